"""Strict-JSON forms of numbers and arrays, exact to the bit."""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch as th

# Beyond this many elements an array is data, and belongs into a state dict rather than into JSON.
MAX_ELEMENTS: Final = 100_000
ARRAY_DTYPES: Final = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
)
TENSOR_DTYPES: Final[dict[str, th.dtype]] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (th.bool, th.uint8, th.int8, th.int16, th.int32, th.int64, th.float16, th.bfloat16, th.float32, th.float64)
}


def _float_to_json(value: float) -> float | str:
    # repr keeps every bit of a finite float; JSON has no word for the others.
    return value if math.isfinite(value) else str(value)


def elements_to_json(array: npt.NDArray[Any]) -> list[Any]:
    elements: list[Any] = array.ravel().tolist()
    return [_float_to_json(element) for element in elements] if array.dtype.kind == "f" else elements


def elements_from_json(elements: list[Any], dtype_name: str) -> npt.NDArray[Any]:
    if dtype_name not in ARRAY_DTYPES:
        raise ValueError(f"The dtype {dtype_name!r} is unknown")
    dtype = np.dtype(dtype_name)
    return np.array([float(element) for element in elements] if dtype.kind == "f" else elements, dtype=dtype)


def array_to_json(array: npt.NDArray[Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": elements_to_json(array)}


def array_from_json(stored: dict[str, Any]) -> npt.NDArray[Any]:
    return elements_from_json(stored["data"], stored["dtype"]).reshape([int(size) for size in stored["shape"]])


def tensor_to_json(tensor: th.Tensor) -> dict[str, Any]:
    values = tensor.detach().cpu()
    # float32 holds every bfloat16 exactly; numpy has no such type.
    array = (values.float() if tensor.dtype == th.bfloat16 else values).numpy()
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "data": elements_to_json(array),
    }


def tensor_from_json(stored: dict[str, Any]) -> th.Tensor:
    dtype_name = "float32" if stored["dtype"] == "bfloat16" else stored["dtype"]
    array = array_from_json({**stored, "dtype": dtype_name})
    return th.from_numpy(array).to(TENSOR_DTYPES[stored["dtype"]])
