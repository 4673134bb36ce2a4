"""Strict-JSON forms of Gymnasium's spaces, exact to the bit."""

import math
from collections import OrderedDict
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.spaces.box import array_short_repr

from otbaselines.common.saving.arrays import ARRAY_DTYPES, elements_from_json, elements_to_json, is_integer, shape_from_json

# A few bytes of a file describe a space of any size, and what is built for it follows. An image of a megapixel has less.
MAX_ELEMENTS: Final = 2**22


def _bound_to_json(bound: npt.NDArray[Any], bounded: npt.NDArray[np.bool_], infinity: str) -> Any:
    elements = elements_to_json(bound)
    if bound.dtype.kind in "iu":
        # Gymnasium keeps an infinite integer bound as the last value of the dtype, and a flag beside it.
        elements = [element if flag else infinity for element, flag in zip(elements, bounded.ravel(), strict=True)]
    # Most boxes, images above all, have one bound for all their elements.
    if elements and all(element == elements[0] for element in elements) and not (np.signbit(bound) & (bound == 0)).any():
        return elements[0]
    return elements


def _bound_from_json(stored: Any, shape: tuple[int, ...], dtype: np.dtype[Any], infinity: str) -> Any:
    elements = stored if isinstance(stored, list) else [stored]
    bounded = np.array([element != infinity for element in elements], dtype=bool)
    if dtype.kind in "iu":
        extreme = np.iinfo(dtype).min if infinity == "-inf" else np.iinfo(dtype).max
        elements = [extreme if element == infinity else element for element in elements]
    bound = elements_from_json(elements, dtype.name)
    if isinstance(stored, list):
        return bound.reshape(shape), bounded.reshape(shape)
    return np.full(shape, bound[0], dtype), np.full(shape, bounded[0])


def _box_to_json(space: spaces.Box[Any]) -> dict[str, Any]:
    return {
        "dtype": space.dtype.name,
        "shape": list(space.shape),
        "low": _bound_to_json(space.low, space.bounded_below, "-inf"),
        "high": _bound_to_json(space.high, space.bounded_above, "inf"),
    }


def _box_from_json(stored: dict[str, Any]) -> spaces.Box[Any]:
    if stored["dtype"] not in ARRAY_DTYPES:
        raise ValueError(f"The dtype {stored['dtype']!r} is unknown")
    dtype: np.dtype[Any] = np.dtype(stored["dtype"])
    shape = shape_from_json(stored["shape"])
    if math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"a box of shape {shape} has more than {MAX_ELEMENTS} elements")
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
    if _size(space) > MAX_ELEMENTS:
        raise TypeError(f"A space of {_size(space)} entries cannot be saved, only one of up to {MAX_ELEMENTS}")
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
        if not all(isinstance(key, str) for key in space.spaces):
            raise TypeError(f"A Dict space whose keys are not text cannot be saved, got {list(space.spaces)}")
        return {
            "type": "Dict",
            "spaces": [[key, space_to_json(value)] for key, value in space.spaces.items()],
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
    space = _build_space(stored)
    if _size(space) > MAX_ELEMENTS:
        raise ValueError(f"a space of {_size(space)} entries is larger than {MAX_ELEMENTS}")
    return space


def _size(space: spaces.Space[Any]) -> int:
    """Choices or entries of a space, as a network would see them."""
    return int(space.n) if isinstance(space, spaces.Discrete) else math.prod(space.shape or ())


def _build_space(stored: dict[str, Any]) -> spaces.Space[Any]:
    kind = stored["type"]
    if kind == "Box":
        return _box_from_json(stored)
    if kind in ("Discrete", "MultiDiscrete") and stored["dtype"] not in ARRAY_DTYPES:
        raise ValueError(f"The dtype {stored['dtype']!r} is unknown")
    if kind == "Discrete":
        if not (is_integer(stored["n"]) and is_integer(stored["start"])):
            raise ValueError(f"a Discrete space needs whole numbers, got n={stored['n']!r} and start={stored['start']!r}")
        # Older Gymnasium knows no dtype here, so it is passed only where it differs from the default.
        options: dict[str, Any] = {} if stored["dtype"] == "int64" else {"dtype": np.dtype(stored["dtype"]).type}
        return spaces.Discrete(stored["n"], start=stored["start"], **options)
    if kind == "MultiDiscrete":
        dtype = np.dtype(stored["dtype"])
        nvec, start = (_whole_numbers(stored[name], dtype) for name in ("nvec", "start"))
        return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)
    if kind == "MultiBinary":
        return spaces.MultiBinary(stored["n"] if is_integer(stored["n"]) else shape_from_json(stored["n"]))
    if kind == "Dict":
        keys = [key for key, _ in stored["spaces"]]
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
            raise ValueError(f"the keys of a Dict space must be different texts, got {keys!r}")
        return spaces.Dict(OrderedDict((key, space_from_json(value)) for key, value in stored["spaces"]))
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(value) for value in stored["spaces"]])
    raise ValueError(f"The space type {kind!r} is unknown")


def _whole_numbers(stored: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    array = np.array(stored)
    if array.dtype.kind not in "iu" or (array != array.astype(dtype)).any():
        raise ValueError(f"whole numbers of {dtype} are expected, got {stored!r}")
    return array.astype(dtype)


def count_elements(stored: Any) -> int:
    """
    :param stored: parsed JSON
    :return: elements of all the boxes that it describes
    """
    if isinstance(stored, list):
        return sum(map(count_elements, stored))
    if not isinstance(stored, dict):
        return 0
    if stored.get("type") == "Box" and isinstance(stored.get("shape"), list):
        return math.prod(shape_from_json(stored["shape"]))
    return sum(map(count_elements, stored.values()))
