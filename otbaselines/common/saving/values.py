"""
Strict-JSON codecs for what a model is made of: spaces, schedules, classes, arrays and plain containers.

Plain JSON values stand for themselves. Everything else is a dictionary tagged with ``":kind:"``. Nothing here executes
what a file says: classes are looked up in an allow-list, and every other object that JSON cannot hold is refused.
"""

import importlib
import math
import re
from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from gymnasium.spaces.box import array_short_repr
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import TrainFreq

from otbaselines.common.schedules import parse_schedule, schedule_from_json, schedule_to_json

__all__ = [
    "class_from_name",
    "class_to_name",
    "decode_value",
    "encode_value",
    "parse_schedule",
    "space_from_json",
    "space_to_json",
]

KIND: Final = ":kind:"
# Beyond this many elements an array is data, and belongs into a state dict rather than into JSON.
MAX_ELEMENTS: Final = 100_000
_PACKAGES: Final = ("torch.nn", "torch.optim", "stable_baselines3", "otbaselines")
# A class of these packages is instantiated with arguments from the file, so only kinds whose constructors merely
# build networks, optimizers and buffers are let through (the packages also hold loggers that open files).
_STORABLE_BASES: Final = (th.nn.Module, th.optim.Optimizer, BaseBuffer, Distribution)
_ARRAY_DTYPES: Final = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
)
_TENSOR_DTYPES: Final[dict[str, th.dtype]] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (th.bool, th.uint8, th.int8, th.int16, th.int32, th.int64, th.float16, th.bfloat16, th.float32, th.float64)
}


# ---------------------------------------------------------------- classes


def _in_packages(module: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in _PACKAGES)


def class_to_name(cls: type) -> str | None:
    """
    The dotted name under which a class is stored.

    :param cls: a network, optimizer, buffer or distribution class
    :return: its name, in the short public form for torch's own (``torch.nn.Tanh``); None if the class is not one that
        :func:`class_from_name` would give back
    """
    for package in (th.nn, th.optim):
        if vars(package).get(cls.__name__) is cls:
            return f"{package.__name__}.{cls.__name__}"
    name = f"{cls.__module__}.{cls.__qualname__}"
    try:
        return name if class_from_name(name) is cls else None
    except ValueError:
        return None


def class_from_name(name: str) -> type:
    """
    Look up a class by its dotted name, only inside torch.nn, torch.optim, stable_baselines3 and otbaselines.

    :param name: the dotted name, e.g. ``torch.nn.Tanh``
    :return: the class
    :raises ValueError: if the name leaves those packages, does not exist, or is not a network, optimizer, buffer or
        distribution class that was defined there
    """
    refusal = (
        f"The class name {name!r} is refused: only network, optimizer, buffer and distribution classes of "
        f"{', '.join(_PACKAGES)} are loaded by name; give your own through `custom_objects`"
    )
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name, flags=re.ASCII):
        raise ValueError(refusal)
    module_name, _, class_name = name.rpartition(".")
    if not _in_packages(module_name):
        raise ValueError(refusal)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise ValueError(refusal) from error
    found = vars(module).get(class_name)
    # The module of the class itself counts: a module's namespace also holds whatever it has imported.
    if (
        not isinstance(found, type)
        or found.__name__ != class_name
        or not _in_packages(found.__module__)
        or not issubclass(found, _STORABLE_BASES)
    ):
        raise ValueError(refusal)
    return found


# ---------------------------------------------------------------- numbers and arrays


def _float_to_json(value: float) -> float | str:
    # repr keeps every bit of a finite float; JSON has no word for the others.
    return value if math.isfinite(value) else str(value)


def _elements_to_json(array: npt.NDArray[Any]) -> list[Any]:
    elements: list[Any] = array.ravel().tolist()
    return [_float_to_json(element) for element in elements] if array.dtype.kind == "f" else elements


def _elements_from_json(elements: list[Any], dtype_name: str) -> npt.NDArray[Any]:
    if dtype_name not in _ARRAY_DTYPES:
        raise ValueError(f"The dtype {dtype_name!r} is unknown")
    dtype = np.dtype(dtype_name)
    return np.array([float(element) for element in elements] if dtype.kind == "f" else elements, dtype=dtype)


def _array_to_json(array: npt.NDArray[Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": _elements_to_json(array)}


def _array_from_json(stored: dict[str, Any]) -> npt.NDArray[Any]:
    return _elements_from_json(stored["data"], stored["dtype"]).reshape([int(size) for size in stored["shape"]])


def _tensor_to_json(tensor: th.Tensor) -> dict[str, Any]:
    values = tensor.detach().cpu()
    # float32 holds every bfloat16 exactly; numpy has no such type.
    array = (values.float() if tensor.dtype == th.bfloat16 else values).numpy()
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "data": _elements_to_json(array),
    }


def _tensor_from_json(stored: dict[str, Any]) -> th.Tensor:
    dtype_name = "float32" if stored["dtype"] == "bfloat16" else stored["dtype"]
    array = _array_from_json({**stored, "dtype": dtype_name})
    return th.from_numpy(array).to(_TENSOR_DTYPES[stored["dtype"]])


# ---------------------------------------------------------------- spaces


def _bound_to_json(bound: npt.NDArray[Any], bounded: npt.NDArray[np.bool_], infinity: str) -> Any:
    elements = _elements_to_json(bound)
    if bound.dtype.kind in "iu":
        # Gymnasium keeps an infinite integer bound as the last value of the dtype, and a flag beside it.
        elements = [element if flag else infinity for element, flag in zip(elements, bounded.ravel(), strict=True)]
    # Most boxes, images above all, have one bound for all their elements.
    if elements and all(element == elements[0] for element in elements) and not (np.signbit(bound) & (bound == 0)).any():
        return elements[0]
    return elements


def _bound_from_json(stored: Any, shape: tuple[int, ...], dtype: np.dtype[Any], infinity: str) -> Any:
    elements = stored if isinstance(stored, list) else [stored] * math.prod(shape)
    bounded = np.array([element != infinity for element in elements], dtype=bool).reshape(shape)
    if dtype.kind in "iu":
        extreme = np.iinfo(dtype).min if infinity == "-inf" else np.iinfo(dtype).max
        elements = [extreme if element == infinity else element for element in elements]
    return _elements_from_json(elements, dtype.name).reshape(shape), bounded


def _box_to_json(space: spaces.Box[Any]) -> dict[str, Any]:
    return {
        "dtype": space.dtype.name,
        "shape": list(space.shape),
        "low": _bound_to_json(space.low, space.bounded_below, "-inf"),
        "high": _bound_to_json(space.high, space.bounded_above, "inf"),
    }


def _box_from_json(stored: dict[str, Any]) -> spaces.Box[Any]:
    if stored["dtype"] not in _ARRAY_DTYPES:
        raise ValueError(f"The dtype {stored['dtype']!r} is unknown")
    dtype: np.dtype[Any] = np.dtype(stored["dtype"])
    shape = tuple(int(size) for size in stored["shape"])
    low, bounded_below = _bound_from_json(stored["low"], shape, dtype, "-inf")
    high, bounded_above = _bound_from_json(stored["high"], shape, dtype, "inf")
    if np.isnan(low).any() or np.isnan(high).any() or (low > high).any():
        raise ValueError(f"A box needs low <= high, got {low} and {high}")
    # The constructor rounds the extreme integers, so the exact bounds are set on a box that it has built from safe ones.
    space: spaces.Box[Any] = spaces.Box(low=0, high=1, shape=shape, dtype=dtype)
    space.low, space.high = low, high
    space.bounded_below, space.bounded_above = bounded_below, bounded_above
    space.low_repr, space.high_repr = array_short_repr(low), array_short_repr(high)
    return space


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """
    The JSON form of a Gymnasium space. The state of the space's random generator is not part of it.

    :param space: a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple
    :return: a dictionary with ``type`` and the exact bounds, sizes and dtypes
    :raises TypeError: if it is another kind of space
    """
    if isinstance(space, spaces.Box):
        return {"type": "Box", **_box_to_json(space)}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.MultiDiscrete):
        fields = {"nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": np.dtype(space.dtype).name}
        return {"type": "MultiDiscrete", **fields}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": [int(size) for size in space.n] if isinstance(space.n, tuple) else int(space.n)}
    if isinstance(space, spaces.Dict):
        # The order of the keys is part of the space: policies flatten by it.
        return {
            "type": "Dict",
            "spaces": [[encode_value(key, name="key"), space_to_json(value)] for key, value in space.spaces.items()],
        }
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(value) for value in space.spaces]}
    raise TypeError(
        f"A {type(space).__name__} space cannot be saved; use Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
    )


def space_from_json(stored: dict[str, Any]) -> spaces.Space[Any]:
    """
    The inverse of :func:`space_to_json`.

    :param stored: the dictionary
    :return: an equal space
    :raises ValueError: if the type is unknown or a value impossible
    """
    kind = stored["type"]
    if kind == "Box":
        return _box_from_json(stored)
    if kind in ("Discrete", "MultiDiscrete") and stored["dtype"] not in _ARRAY_DTYPES:
        raise ValueError(f"The dtype {stored['dtype']!r} is unknown")
    if kind == "Discrete":
        # Older Gymnasium knows no dtype here, so it is passed only where it differs from the default.
        options: dict[str, Any] = {} if stored["dtype"] == "int64" else {"dtype": np.dtype(stored["dtype"]).type}
        return spaces.Discrete(int(stored["n"]), start=int(stored["start"]), **options)
    if kind == "MultiDiscrete":
        dtype = np.dtype(stored["dtype"]).type
        return spaces.MultiDiscrete(np.array(stored["nvec"], dtype), dtype=dtype, start=np.array(stored["start"], dtype))
    if kind == "MultiBinary":
        return spaces.MultiBinary(stored["n"])
    if kind == "Dict":
        return spaces.Dict(OrderedDict((decode_value(key), space_from_json(value)) for key, value in stored["spaces"]))
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(value) for value in stored["spaces"]])
    raise ValueError(f"The space type {kind!r} is unknown")


# ---------------------------------------------------------------- values


def _encode_tagged(value: Any) -> dict[str, Any] | None:
    """The tagged form of an object that is no container, or None if it has none."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.name in _ARRAY_DTYPES and value.size <= MAX_ELEMENTS:
        return {KIND: "array" if isinstance(value, np.ndarray) else "scalar", **_array_to_json(np.asarray(value))}
    # After numpy's scalars: float64 is a Python float too.
    if isinstance(value, float):
        return {KIND: "float", "value": str(value)}
    if isinstance(value, th.Tensor) and value.dtype in _TENSOR_DTYPES.values() and value.numel() <= MAX_ELEMENTS:
        return {KIND: "tensor", **_tensor_to_json(value)}
    if isinstance(value, spaces.Space):
        return {KIND: "space", **space_to_json(value)}
    if isinstance(value, th.dtype):
        return {KIND: "torch_dtype", "name": str(value).removeprefix("torch.")}
    if isinstance(value, TrainFreq):
        # SB3 turns the constructor's pair into this; the pair is what the constructor takes.
        return {KIND: "tuple", "items": [int(value.frequency), str(value.unit.value)]}
    if isinstance(value, type) and (class_name := class_to_name(value)) is not None:
        return {KIND: "class", "name": class_name}
    if callable(value) and isinstance(schedule := schedule_to_json(value), dict):
        return {KIND: "schedule", **schedule}
    return None


def _encode_container(value: Any, name: str, missing: list[str] | None) -> Any:
    """The form of a list, tuple, deque or dictionary, or None for anything else."""
    if isinstance(value, dict):
        pairs = [(key, encode_value(item, name=f"{name}[{key!r}]", missing=missing)) for key, item in value.items()]
        if type(value) is dict and all(type(key) is str and key != KIND for key in value):
            return dict(pairs)
        keys = [encode_value(key, name=f"a key of {name}") for key in value]
        kind = "ordered_dict" if isinstance(value, OrderedDict) else "dict"
        return {KIND: kind, "items": [[key, item] for key, (_, item) in zip(keys, pairs, strict=True)]}
    if isinstance(value, (list, tuple, deque)):
        items = [encode_value(item, name=f"{name}[{index}]", missing=missing) for index, item in enumerate(value)]
        if isinstance(value, deque):
            return {KIND: "deque", "items": items, "maxlen": value.maxlen}
        return {KIND: "tuple", "items": items} if isinstance(value, tuple) else items
    return None


def encode_value(value: Any, *, name: str = "value", missing: list[str] | None = None) -> Any:
    """
    The JSON form of a value: numbers, text, containers (tuples stay tuples), arrays, tensors, spaces, schedules and classes.

    :param value: the value; arrays and tensors of up to :data:`MAX_ELEMENTS` elements
    :param name: what to call the value in messages
    :param missing: where to note, as ``name (a type)``, the parts that JSON cannot hold; a marker stands in their place
    :return: what ``json.dumps(allow_nan=False)`` takes and :func:`decode_value` turns back
    :raises TypeError: if JSON cannot hold the value and ``missing`` is not given
    """
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, np.str_):
        return str(value)
    if callable(value) and isinstance(constant := schedule_to_json(value), float):
        return encode_value(constant, name=name)
    encoded = None if isinstance(value, Enum) else _encode_tagged(value)
    if encoded is None and not isinstance(value, Enum):
        encoded = _encode_container(value, name, missing)
    if encoded is not None:
        return encoded
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if missing is None:
        raise TypeError(f"`{name}` is a {kind}, which JSON cannot hold; keep it out with `exclude`, or make it a plain value")
    missing.append(f"{name} (a {kind})")
    return {KIND: "missing", "was": kind}


def _scalar_from_json(stored: dict[str, Any]) -> Any:
    return _array_from_json(stored)[()]


_LEAF_DECODERS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "float": lambda stored: float(stored["value"]),
    "array": _array_from_json,
    "scalar": _scalar_from_json,
    "tensor": _tensor_from_json,
    "space": space_from_json,
    "torch_dtype": lambda stored: _TENSOR_DTYPES[stored["name"]],
    "class": lambda stored: class_from_name(stored["name"]),
    "schedule": schedule_from_json,
}


def _decode_tagged(stored: dict[str, Any], name: str, missing: list[str] | None) -> Any:
    kind = stored[KIND]
    if kind in _LEAF_DECODERS:
        return _LEAF_DECODERS[kind](stored)
    if kind == "missing" and missing is not None:
        missing.append(f"{name} (a {stored['was']})")
        return None
    if kind in ("dict", "ordered_dict"):
        pairs = [
            (decode_value(key), decode_value(item, name=f"{name}[{key!r}]", missing=missing)) for key, item in stored["items"]
        ]
        return OrderedDict(pairs) if kind == "ordered_dict" else dict(pairs)
    if kind in ("tuple", "deque"):
        items = decode_value(list(stored["items"]), name=name, missing=missing)
        return tuple(items) if kind == "tuple" else deque(items, maxlen=stored["maxlen"])
    raise ValueError(f"the form {kind!r} is unknown")


def decode_value(stored: Any, *, name: str = "value", missing: list[str] | None = None) -> Any:
    """
    The inverse of :func:`encode_value`. Executes nothing and resolves classes only through :func:`class_from_name`.

    :param stored: parsed JSON
    :param name: what to call the value in messages
    :param missing: where to note the parts that could not be stored; None is returned in their place
    :return: the value
    :raises ValueError: if the form is unknown or damaged, or a part was not stored and ``missing`` is not given
    """
    if isinstance(stored, list):
        return [decode_value(item, name=f"{name}[{index}]", missing=missing) for index, item in enumerate(stored)]
    if not isinstance(stored, dict):
        return stored
    if KIND not in stored:
        return {key: decode_value(item, name=f"{name}[{key!r}]", missing=missing) for key, item in stored.items()}
    try:
        return _decode_tagged(stored, name, missing)
    except (KeyError, TypeError, AttributeError, OverflowError, ValueError, AssertionError) as error:
        if isinstance(error, ValueError) and str(error).startswith("`"):
            raise  # An inner value has already said where it stands.
        raise ValueError(f"`{name}` cannot be read: {error}") from error
