"""Strict-JSON forms of Gymnasium's spaces, exact to the bit."""

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.spaces.box import array_short_repr

from otbaselines.common.saving.arrays import ARRAY_DTYPES, elements_from_json, elements_to_json


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
    elements = stored if isinstance(stored, list) else [stored] * math.prod(shape)
    bounded = np.array([element != infinity for element in elements], dtype=bool).reshape(shape)
    if dtype.kind in "iu":
        extreme = np.iinfo(dtype).min if infinity == "-inf" else np.iinfo(dtype).max
        elements = [extreme if element == infinity else element for element in elements]
    return elements_from_json(elements, dtype.name).reshape(shape), bounded


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
    kind = stored["type"]
    if kind == "Box":
        return _box_from_json(stored)
    if kind in ("Discrete", "MultiDiscrete") and stored["dtype"] not in ARRAY_DTYPES:
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
        return spaces.Dict(OrderedDict((key, space_from_json(value)) for key, value in stored["spaces"]))
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(value) for value in stored["spaces"]])
    raise ValueError(f"The space type {kind!r} is unknown")
