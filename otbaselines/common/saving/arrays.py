"""Numbers and arrays, exact to the bit: small ones as strict JSON, large ones as ``.npz`` without pickles."""

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch as th

from otbaselines.common.saving.archive import SavePath, open_source, open_target

# Booleans, numbers and text; the others are structures and Python objects.
_NPZ_KINDS: Final = "biufcSU"
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


def is_integer(value: Any) -> bool:
    """
    :param value: parsed JSON
    :return: whether it is a whole number, which ``true`` is not
    """
    return type(value) is int


def shape_from_json(stored: Any) -> tuple[int, ...]:
    """
    :param stored: parsed JSON
    :return: the shape of an array
    :raises ValueError: if it is no list of sizes
    """
    if not isinstance(stored, list) or not all(is_integer(size) and size >= 0 for size in stored):
        raise ValueError(f"a shape must be a list of sizes, got {stored!r}")
    return tuple(stored)


def _float_from_json(stored: Any) -> float:
    if isinstance(stored, bool) or not (isinstance(stored, (int, float)) or stored in ("inf", "-inf", "nan")):
        raise ValueError(f"a number is expected, got {stored!r}")
    return float(stored)


def elements_from_json(elements: list[Any], dtype_name: str) -> npt.NDArray[Any]:
    if dtype_name not in ARRAY_DTYPES:
        raise ValueError(f"The dtype {dtype_name!r} is unknown")
    dtype = np.dtype(dtype_name)
    if dtype.kind == "f":
        floats = [_float_from_json(element) for element in elements]
        with np.errstate(over="ignore"):
            array = np.array(floats, dtype=dtype)
        if np.isinf(array).sum() != sum(map(math.isinf, floats)):
            raise ValueError(f"a number is too large for {dtype_name}")
        return array
    kind = bool if dtype.kind == "b" else int
    if not all(type(element) is kind for element in elements):
        raise ValueError(f"elements of {dtype_name} must be of type {kind.__name__}")
    return np.array(elements, dtype=dtype)


def array_to_json(array: npt.NDArray[Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": elements_to_json(array)}


def array_from_json(stored: dict[str, Any]) -> npt.NDArray[Any]:
    return elements_from_json(stored["data"], stored["dtype"]).reshape(shape_from_json(stored["shape"]))


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


# ---------------------------------------------------------------- files of arrays


def save_npz(path: SavePath, arrays: Mapping[str, Any], *, suffix: str = ".npz") -> None:
    """
    Write arrays as ``.npz``, whole or not at all.

    :param path: a path, with missing directories created; or a binary file
    :param arrays: of numbers or text, by name
    :param suffix: added to a path that does not end so
    :raises TypeError: if an array holds Python objects, which only a pickle could store
    """
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype.kind not in _NPZ_KINDS:
            raise TypeError(f"`{name}` has the dtype {array.dtype}, which cannot be stored without a pickle; make it numbers")
    with open_target(path, suffix) as file:
        np.savez(file, allow_pickle=False, **plain)


def load_npz(path: SavePath, *, max_bytes: int | None = None) -> dict[str, npt.NDArray[Any]]:
    """
    Read a ``.npz`` that may come from anywhere: it executes nothing, and takes no more memory than the file has bytes.

    :param path: a path, tried as it is and with ``.npz`` added; or a binary file
    :param max_bytes: what a compressed file may unpack to; without it compressed files are refused
    :return: the arrays by name
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if the file is damaged, holds anything but arrays of numbers or text, or is too large
    """
    with open_source(path, ".npz") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > max(size, max_bytes or 0):
                raise ValueError(
                    f"it would unpack from {size} to {unpacked} bytes; if that is right, allow it with `max_bytes`, or write "
                    "the file without compression"
                )
            return {entry.filename.removesuffix(".npy"): _read_array(archive, entry) for entry in entries}


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> npt.NDArray[Any]:
    content = io.BytesIO(archive.read(entry))
    try:
        version = np.lib.format.read_magic(content)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(content)
        if dtype.kind not in _NPZ_KINDS:
            raise ValueError(f"the dtype {dtype} needs a pickle")
        if math.prod(shape) * dtype.itemsize != entry.file_size - content.tell():
            raise ValueError(f"its shape {shape} does not go with its size")
        content.seek(0)
        return np.lib.format.read_array(content, allow_pickle=False)
    except Exception as error:
        raise ValueError(f"the entry {entry.filename!r} is no plain array: {error}") from error
