"""The zip file of a saved model: SB3's layout, JSON instead of pickles, written whole or not at all."""

import io
import json
import os
import pathlib
import pickle
import platform
import re
import secrets
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, BinaryIO, Final, cast

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch as th
from stable_baselines3.common.utils import get_device

SavePath = str | pathlib.Path | io.BufferedIOBase

DATA: Final = "data"
MANIFEST: Final = "otbaselines.json"
_VERSION: Final = "_stable_baselines3_version"
_SYSTEM_INFO: Final = "system_info.txt"
_TEXT_ENTRIES: Final = (DATA, MANIFEST, _VERSION, _SYSTEM_INFO)
_TENSOR_ENTRY: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.pth", flags=re.ASCII)
# Far above what any model writes; a text entry that unpacks to more is not one of ours.
_MAX_TEXT_BYTES: Final = 64 * 2**20
_DAMAGE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
    OSError,
)


@dataclass(frozen=True)
class Archive:
    """
    What :func:`read_zip` found.

    :param data: the JSON values of the model, still encoded
    :param tensors: the state dicts by name
    :param manifest: class, policy, spaces and versions, for people and tools
    :param system_info: the system that wrote the file, as text
    :param pickled: names of entries that only unpickling could read; empty for every file of otbaselines
    """

    data: dict[str, Any]
    tensors: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    system_info: str = ""
    pickled: tuple[str, ...] = ()


# ---------------------------------------------------------------- writing


def _sync_directory(directory: pathlib.Path) -> None:
    # Without this the rename itself may be lost in a power failure. Windows cannot open directories, and needs none of it.
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | pathlib.Path) -> Iterator[BinaryIO]:
    """
    Write a file whole or not at all: into a temporary file beside it, flushed to the disk, then renamed over it.

    If the block raises, the old file stays and the temporary one is removed. If the process is killed, the old file
    stays, and a hidden ``.<name>.<pid>.<random>.tmp`` may remain.

    :param path: the file to replace or create; its directory must exist. A symbolic link keeps pointing to its target
    :return: the temporary file, open for binary writing
    """
    target = pathlib.Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"`path` {str(path)!r} is a directory; give the name of a file")
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    # os.open rather than tempfile: the new file gets the permissions that the user's umask gives every file.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def versions() -> dict[str, str]:
    """
    The versions that decide whether a file can be read, without anything that identifies a machine.

    :return: version by name
    """
    try:
        own = metadata.version("otbaselines")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return {
        "otbaselines": own,
        "python": platform.python_version(),
        "torch": str(th.__version__),
        "stable_baselines3": sb3.__version__,
        "numpy": np.__version__,
        "gymnasium": gym.__version__,
    }


def _check_loadable(value: Any, name: str) -> None:
    """Refuse at save what ``weights_only`` would refuse at load."""
    if value is None or isinstance(value, th.Tensor) or type(value) in (bool, int, float, str):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_loadable(item, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_loadable(item, f"{name}[{index}]")
    elif not isinstance(value, (th.dtype, th.device, th.Size)):
        raise TypeError(
            f"`{name}` is a {type(value).__name__}, which a state dict cannot hold safely; make it a tensor or a number"
        )


def _dump_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, indent=1)


def _write_entries(file: BinaryIO, data: dict[str, Any], tensors: Mapping[str, Any], manifest: dict[str, Any]) -> None:
    # The JSON is made before the first byte is written, so that a value it cannot hold leaves nothing behind.
    texts = {DATA: _dump_json(data), MANIFEST: _dump_json(manifest), _VERSION: sb3.__version__}
    system = {"OS": f"{platform.system()} {platform.machine()}", **versions(), "GPU Enabled": str(th.cuda.is_available())}
    texts[_SYSTEM_INFO] = "".join(f"- {key}: {value}\n" for key, value in system.items())
    for name, value in tensors.items():
        _check_loadable(value, name)
    with zipfile.ZipFile(file, mode="w") as archive:
        for name, text in texts.items():
            archive.writestr(name, text, compress_type=zipfile.ZIP_DEFLATED)
        for name, value in tensors.items():
            with archive.open(f"{name}.pth", mode="w", force_zip64=True) as entry:
                th.save(value, entry)


def _target_path(path: str | pathlib.Path) -> pathlib.Path:
    # SB3 looks for any suffix, so that "wbc-mpe2.simple_spread" gets none; only ".zip" counts here.
    target = pathlib.Path(path)
    if target.suffix != ".zip":
        target = target.with_name(f"{target.name}.zip")
    if not target.parent.exists():
        warnings.warn(f"Path '{target.parent}' does not exist. Will create it.", UserWarning, stacklevel=4)
        target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _check_buffer(path: Any, operation: str) -> BinaryIO:
    if not all(hasattr(path, method) for method in ("read", "write", "seek", "closed")):
        raise TypeError(f"`path` must be a path or a binary file, got {type(path).__name__}")
    if isinstance(path, io.TextIOBase):
        raise TypeError("`path` must be a binary file; open it with 'wb' or 'rb'")
    if path.closed:
        raise ValueError("`path` is a closed file; open it again")
    if not getattr(path, operation)():
        raise ValueError(f"`path` must be a {operation} file; open it with {'wb' if operation == 'writable' else 'rb'!r}")
    return cast(BinaryIO, path)


def write_zip(path: SavePath, *, data: dict[str, Any], tensors: Mapping[str, Any], manifest: dict[str, Any]) -> None:
    """
    Write a model in SB3's zip layout with plain JSON.

    :param path: a path, to which ``.zip`` is added if it does not end so, with missing directories created; or a binary file
    :param data: the entry ``data``, strict JSON
    :param tensors: state dicts, each written as ``<name>.pth``
    :param manifest: the entry ``otbaselines.json``, strict JSON
    :raises TypeError: if a state dict holds what ``weights_only`` loading refuses, or JSON cannot hold a value
    """
    if isinstance(path, (str, pathlib.Path)):
        with atomic_write(_target_path(path)) as file:
            _write_entries(file, data, tensors, manifest)
        return
    buffer = _check_buffer(path, "writable")
    # A buffer cannot be renamed into place, so the zip is finished before the first byte goes out.
    whole = io.BytesIO()
    _write_entries(whole, data, tensors, manifest)
    buffer.write(whole.getvalue())


# ---------------------------------------------------------------- reading


def _find_file(path: str | pathlib.Path) -> pathlib.Path:
    given = pathlib.Path(path)
    candidates = [given] if given.suffix == ".zip" else [given, given.with_name(f"{given.name}.zip")]
    # A directory of that name may stand beside the zip, as in the zoo.
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = " and ".join(f"'{candidate}'" for candidate in candidates)
    raise FileNotFoundError(f"No saved model at {tried}; check the path, or save the model first")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse_json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    if archive.getinfo(name).file_size > _MAX_TEXT_BYTES:
        raise ValueError(f"the entry {name!r} is larger than {_MAX_TEXT_BYTES} bytes")
    try:
        value = json.loads(archive.read(name).decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"the entry {name!r} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"the entry {name!r} is not a JSON object")
    return value


def _has_pickle(value: Any) -> bool:
    if isinstance(value, dict):
        return ":serialized:" in value or any(_has_pickle(item) for item in value.values())
    return isinstance(value, list) and any(_has_pickle(item) for item in value)


def _pickled_entries(names: list[str], data: dict[str, Any]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in _TEXT_ENTRIES and not _TENSOR_ENTRY.fullmatch(name)]
    return (*(key for key, value in data.items() if _has_pickle(value)), *unknown)


def _read_entries(file: BinaryIO, device: th.device, trust_pickle: bool) -> Archive:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise ValueError("two entries have the same name")
        if DATA not in names:
            raise ValueError(f"the entry {DATA!r} is missing")
        data = _parse_json(archive, DATA)
        pickled = _pickled_entries(names, data)
        if pickled and not trust_pickle:
            raise ValueError(
                f"the entries {', '.join(map(repr, pickled))} are pickled or unknown, and reading them can execute code; "
                "if you trust whoever made the file, pass `trust_pickle=True`"
            )
        system_info = archive.read(_SYSTEM_INFO).decode() if _SYSTEM_INFO in names else ""
        if pickled:
            return Archive(data, system_info=system_info, pickled=pickled)
        if MANIFEST not in names:
            raise ValueError(f"the entry {MANIFEST!r} is missing: it was not saved by otbaselines")
        tensors = {}
        for name in names:
            if name.endswith(".pth"):
                # Read whole, so that zipfile compares the checksum before torch parses anything.
                content = io.BytesIO(archive.read(name))
                tensors[name.removesuffix(".pth")] = th.load(content, map_location=device, weights_only=True)
        return Archive(data, tensors, _parse_json(archive, MANIFEST), system_info)


def describe(path: SavePath) -> str:
    """
    What to call a source in messages.

    :param path: a path or an open file
    :return: the path, the name of the file, or the type of the buffer
    """
    return str(path) if isinstance(path, (str, pathlib.Path)) else str(getattr(path, "name", type(path).__name__))


def read_zip(path: SavePath, *, device: th.device | str = "auto", trust_pickle: bool = False) -> Archive:
    """
    Read what :func:`write_zip` wrote. Nothing is ever unpickled; tensors are loaded with ``weights_only=True``.

    :param path: a path, tried as it is and with ``.zip`` added; or a binary file
    :param device: where the tensors go
    :param trust_pickle: let a file with pickled entries (SB3's own) pass: their names are then in
        ``Archive.pickled``, and nothing but ``data`` is read
    :return: the entries
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if the file is not a zip, is damaged or incomplete, or holds pickled entries and
        ``trust_pickle`` is off
    """
    if isinstance(path, (str, pathlib.Path)):
        path = _find_file(path)
        file: BinaryIO = path.open("rb")
    else:
        file = _check_buffer(path, "readable")
    label = describe(path)
    try:
        return _read_entries(file, get_device(device), trust_pickle)
    except zipfile.BadZipFile as error:
        raise ValueError(f"`path` {label!r} is not a whole zip file ({error}); copy, download or save it again") from error
    except (*_DAMAGE, pickle.UnpicklingError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        if isinstance(error, th.OutOfMemoryError):
            raise
        raise ValueError(f"`path` {label!r} cannot be loaded: {error}; copy, download or save it again") from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
