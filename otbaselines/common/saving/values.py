"""
Strict-JSON codecs for what a model is made of: spaces, schedules, classes, arrays and plain containers.

Plain JSON values stand for themselves. Everything else is a dictionary tagged with ``":kind:"``. Nothing here executes
what a file says: classes are looked up in an allow-list, and every other object that JSON cannot hold is refused.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import TrainFreq

from otbaselines.common.saving.archive import brief
from otbaselines.common.saving.arrays import (
    ARRAY_DTYPES,
    MAX_ELEMENTS,
    TENSOR_DTYPES,
    array_from_json,
    array_to_json,
    tensor_from_json,
    tensor_to_json,
)
from otbaselines.common.saving.classes import class_from_name, class_to_name
from otbaselines.common.saving.noise import noise_from_json, noise_to_json
from otbaselines.common.saving.spaces import space_from_json, space_to_json
from otbaselines.common.schedules import Schedule, schedule_from_json, schedule_to_json

KIND: Final = ":kind:"


def _encode_tagged(value: Any) -> dict[str, Any] | None:
    """The tagged form of an object that is no container, or None if it has none."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.name in ARRAY_DTYPES and value.size <= MAX_ELEMENTS:
        return {KIND: "array" if isinstance(value, np.ndarray) else "scalar", **array_to_json(np.asarray(value))}
    # After numpy's scalars: float64 is a Python float too.
    if isinstance(value, float):
        return {KIND: "float", "value": str(value)}
    if isinstance(value, th.Tensor) and value.dtype in TENSOR_DTYPES.values() and value.numel() <= MAX_ELEMENTS:
        return {KIND: "tensor", **tensor_to_json(value)}
    if isinstance(value, spaces.Space):
        return {KIND: "space", **space_to_json(value)}
    if isinstance(value, th.dtype):
        return {KIND: "torch_dtype", "name": str(value).removeprefix("torch.")}
    if isinstance(value, TrainFreq):
        # SB3 turns the constructor's pair into this; the pair is what the constructor takes.
        return {KIND: "tuple", "items": [int(value.frequency), str(value.unit.value)]}
    if isinstance(value, type) and (class_name := class_to_name(value)) is not None:
        return {KIND: "class", "name": class_name}
    if isinstance(value, ActionNoise):
        noise = noise_to_json(value)
        return None if noise is None else {KIND: "noise", **noise}
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
    return array_from_json(stored)[()]


def _schedule_from_json(stored: dict[str, Any]) -> Schedule:
    schedule = schedule_from_json(stored)
    # Damaged numbers show themselves in a value: they are NaN, divide by zero, or are no numbers at all.
    if not all(math.isfinite(schedule(progress)) for progress in (1.0, 0.5, 0.0)):
        raise ValueError(f"the schedule {stored} is not finite")
    return schedule


_LEAF_DECODERS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "float": lambda stored: float(stored["value"]),
    "array": array_from_json,
    "scalar": _scalar_from_json,
    "tensor": tensor_from_json,
    "space": space_from_json,
    "torch_dtype": lambda stored: TENSOR_DTYPES[stored["name"]],
    "class": lambda stored: class_from_name(stored["name"]),
    "schedule": _schedule_from_json,
    "noise": lambda stored: noise_from_json({key: value for key, value in stored.items() if key != KIND}),
}


def _part(name: str, key: Any) -> str:
    # Cut short, because the keys are a file's, and each level of nesting carries those above it.
    return f"{name}[{str(key)[:60]!r}]"[:300]


def _decode_tagged(stored: dict[str, Any], name: str, missing: list[str] | None) -> Any:
    kind = stored[KIND]
    if kind in _LEAF_DECODERS:
        return _LEAF_DECODERS[kind](stored)
    if kind == "missing" and missing is not None:
        missing.append(f"{name} (a {stored['was']})")
        return None
    if kind in ("dict", "ordered_dict"):
        pairs = [
            (decode_value(key), decode_value(item, name=_part(name, key), missing=missing)) for key, item in stored["items"]
        ]
        return OrderedDict(pairs) if kind == "ordered_dict" else dict(pairs)
    if kind in ("tuple", "deque"):
        if not isinstance(stored["items"], list):
            raise ValueError(f"its items must be a list, got {stored['items']!r}")
        items = decode_value(stored["items"], name=name, missing=missing)
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
        return {key: decode_value(item, name=_part(name, key), missing=missing) for key, item in stored.items()}
    try:
        return _decode_tagged(stored, name, missing)
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError, AssertionError) as error:
        if isinstance(error, ValueError) and str(error).startswith("`"):
            raise  # An inner value has already said where it stands.
        raise ValueError(f"`{name}` cannot be read: {brief(error)}") from error
