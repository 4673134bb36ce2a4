"""HDF5 files that may come from anywhere: numbers are read, no other file is followed, and no bomb is unpacked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from otbaselines.common.datasets.columns import Array, Recording, bytes_of, columns_from_d4rl
from otbaselines.common.memory import check_fits

_D4RL = (
    "observations",
    "actions",
    "rewards",
    "terminals",
    "timeouts",
    "next_observations",
    "terminations",
    "truncations",
)
# Floats of trajectories shrink by less than two, flags by a thousand; files below the second number are let through.
_MAX_RATIO = 32
_FREE_BYTES = 64 * 2**20


def optional_module(name: str) -> Any:
    """
    :param name: of a module of the extra ``offline``
    :return: the module
    :raises ImportError: with the command that installs it
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"reading this data set needs {name}, which is not installed; pip install otbaselines[offline]"
        ) from error


@contextmanager
def open_hdf5(path: Path, label: str) -> Iterator[Any]:
    """
    :param path: of the file
    :param label: what to call it in messages
    :return: the open file; whatever the library says about damage becomes a ``ValueError``
    """
    h5py = optional_module("h5py")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{label} cannot be read as HDF5 ({str(error)[:200]}); copy or download it again") from error


def member(group: Any, name: str, label: str) -> Any:
    """
    Take one member of a group, unless it is a link that leads somewhere else.

    :param group: an open file or group
    :param name: of the member
    :param label: what to call the file in messages
    :return: the data set or group
    :raises ValueError: if it is a soft or external link
    """
    h5py = optional_module("h5py")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{label} has a link for `{name}`, which may lead to any file; write the data themselves")
    return group[name]


def declared_bytes(dataset: Any, name: str, label: str) -> int:
    """
    What reading a data set will take, from its header alone.

    :param dataset: of HDF5
    :param name: for messages
    :param label: what to call the file in messages
    :return: bytes
    :raises ValueError: if it holds anything but numbers, or its content lies in other files
    """
    h5py = optional_module("h5py")
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None or dataset.dtype.kind not in "biufSO":
        raise ValueError(f"{label} has `{name}` that is no array of numbers")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{label} keeps `{name}` in other files; write the data themselves")
    return bytes_of(dataset.shape, dataset.dtype)


def check_unpacked(n_bytes: int, path: Path, label: str, max_bytes: int | None) -> None:
    """
    :param n_bytes: that all arrays together declare
    :param path: of the file
    :param label: what to call it in messages
    :param max_bytes: what the caller allows; a multiple of the file's size when omitted
    :raises ValueError: if it is too much for such a file, or for this machine
    """
    size = os.path.getsize(path)
    allowed = max(_MAX_RATIO * size, _FREE_BYTES) if max_bytes is None else max_bytes
    if n_bytes > allowed:
        raise ValueError(
            f"{label} would unpack from {size} to {n_bytes} bytes, more than the {allowed} that are allowed; if that is "
            "right, allow it with `max_bytes`"
        )
    # Read, converted and validated: the arrays are there about three times.
    check_fits(3 * n_bytes, f"reading {label}", "use a machine with more memory, or a part of the data")


def read_d4rl(path: Path, max_bytes: int | None) -> Recording:
    """
    Read an HDF5 file with the columns of :func:`columns_from_d4rl` at its top.

    :param path: of the file
    :param max_bytes: as for :func:`check_unpacked`
    :return: the content
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is damaged, holds other things, or unpacks to too much
    """
    label = f"`path` {str(path)!r}"
    if not path.is_file():
        raise FileNotFoundError(f"{label} is no file")
    with open_hdf5(path, label) as file:
        found = {name: member(file, name, label) for name in _D4RL if name in file}
        for name, dataset in found.items():
            if declared_bytes(dataset, name, label) and dataset.dtype.kind not in "biuf":
                raise ValueError(f"{label} has `{name}` of {dataset.dtype}, which are no numbers")
        check_unpacked(sum(bytes_of(each.shape, each.dtype) for each in found.values()), path, label, max_bytes)
        arrays: dict[str, Array] = {name: np.asarray(dataset[()]) for name, dataset in found.items()}
        others = sorted(map(repr, file))[:20] if not found else []
    if others:
        raise ValueError(
            f"{label} has none of D4RL's columns at its top, only {', '.join(others)}; a Minari data set is named by its "
            "id or folder"
        )
    return Recording(columns=columns_from_d4rl(arrays, label), label=label, name=path.stem)
