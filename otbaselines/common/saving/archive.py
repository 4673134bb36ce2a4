"""The zip file of a saved model: SB3's layout, JSON instead of pickles, written whole or not at all."""

import io
import json
import os
import pathlib
import platform
import re
import secrets
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, BinaryIO, Final, cast

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch as th

from otbaselines.common.saving.tensors import read_tensors

SavePath = str | pathlib.Path | io.BufferedIOBase

DATA: Final = "data"
MANIFEST: Final = "otbaselines.json"
_VERSION: Final = "_stable_baselines3_version"
_SYSTEM_INFO: Final = "system_info.txt"
_TEXT_ENTRIES: Final = (DATA, MANIFEST, _VERSION, _SYSTEM_INFO)
_TENSOR_ENTRY: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.pth", flags=re.ASCII)
# Tensors are not compressed, and text is compressed about threefold; more than this says that somebody packed a bomb.
_FREE_BYTES: Final = 4 * 2**20
_MAX_RATIO: Final = 8
_MAX_SYSTEM_INFO: Final = 10_000
# What Python's zip and JSON readers raise about damaged files.
_DAMAGE: Final = (zlib.error, EOFError, RuntimeError, ValueError, KeyError, IndexError, OverflowError, struct.error, OSError)


@dataclass(frozen=True)
class Archive:
    """
    What :func:`read_zip` found.

    :param data: the JSON values of the model, still encoded
    :param tensors: the state dicts by name
    :param manifest: class, policy, spaces and versions, for people and tools
    :param system_info: the system that wrote the file, as text
    """

    data: dict[str, Any]
    tensors: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    system_info: str = ""


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


def _checked_path(path: str | pathlib.Path) -> pathlib.Path:
    if "\0" in str(path):
        raise ValueError(f"`path` must not have null bytes, got {str(path)[:200]!r}")
    checked = pathlib.Path(path)
    if checked.name in ("", ".."):
        raise ValueError(f"`path` must name a file, got {str(path)!r}")
    return checked


@contextmanager
def atomic_write(path: str | pathlib.Path) -> Iterator[BinaryIO]:
    """
    Write a file whole or not at all: into a temporary file beside it, flushed to the disk, then renamed over it.

    If the block raises, the old file stays and the temporary one is removed. If the process is killed, the old file
    stays, and a hidden ``.<name>.<pid>.<random>.tmp`` may remain.

    :param path: the file to replace or create; its directory must exist. A symbolic link keeps pointing to its target
    :return: the temporary file, open for binary writing
    :raises ValueError: if the path names no file, or something that is no regular file, such as a device or a pipe
    """
    target = pathlib.Path(os.path.realpath(_checked_path(path)))
    if target.is_dir():
        raise IsADirectoryError(f"`path` {str(path)!r} is a directory; give the name of a file")
    # A link that leads to itself is still one here.
    if os.path.lexists(target) and not stat.S_ISREG(target.lstat().st_mode):
        raise ValueError(f"`path` {str(path)!r} is no regular file, and would be replaced by one; give another name")
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


def _write_entries(file: BinaryIO, data: dict[str, Any], tensors: Mapping[str, Any], manifest: dict[str, Any]) -> None:
    # The JSON is made before the first byte is written, so that a value it cannot hold leaves nothing behind.
    texts = {
        DATA: json.dumps(data, allow_nan=False),
        MANIFEST: json.dumps(manifest, allow_nan=False, indent=1),
        _VERSION: sb3.__version__,
    }
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
        _check_sizes(archive.infolist())


def _target_path(path: str | pathlib.Path, suffix: str) -> pathlib.Path:
    # SB3 looks for any suffix, so that "wbc-mpe2.simple_spread" gets none; only this one counts here.
    target = _checked_path(path)
    if not target.name.endswith(suffix):
        target = target.with_name(f"{target.name}{suffix}")
    if not target.parent.exists():
        warnings.warn(f"Path '{target.parent}' does not exist. Will create it.", UserWarning, stacklevel=6)
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


def has_suffix(path: SavePath) -> bool:
    """
    :param path: a path, or a binary file
    :return: whether a path says what kind of file it is
    """
    return isinstance(path, (str, pathlib.Path)) and bool(pathlib.Path(path).suffix)


@contextmanager
def open_target(path: SavePath, suffix: str) -> Iterator[BinaryIO]:
    """
    :param path: a path, whose missing directories are created; or a binary file
    :param suffix: added to a path that does not end so
    :return: a file to write into; what the block has written arrives whole or not at all
    """
    if isinstance(path, (str, pathlib.Path)):
        with atomic_write(_target_path(path, suffix)) as file:
            yield file
        return
    buffer = _check_buffer(path, "writable")
    # A buffer cannot be renamed into place, so everything is finished before the first byte goes out.
    whole = io.BytesIO()
    yield whole
    buffer.write(whole.getvalue())


def write_zip(
    path: SavePath, *, data: dict[str, Any], tensors: Mapping[str, Any], manifest: dict[str, Any], suffix: str = ".zip"
) -> None:
    """
    Write a model in SB3's zip layout with plain JSON.

    :param path: a path, with missing directories created; or a binary file
    :param data: the entry ``data``, strict JSON
    :param tensors: state dicts, each written as ``<name>.pth``
    :param manifest: the entry ``otbaselines.json``, strict JSON
    :param suffix: added to a path that does not end so
    :raises TypeError: if a state dict holds what ``weights_only`` loading refuses, or JSON cannot hold a value
    """
    with open_target(path, suffix) as file:
        _write_entries(file, data, tensors, manifest)


# ---------------------------------------------------------------- reading


def _find_file(path: str | pathlib.Path, suffix: str) -> pathlib.Path:
    given = _checked_path(path)
    candidates = [given] if given.suffix == suffix else [given, given.with_name(f"{given.name}{suffix}")]
    # A directory of that name may stand beside the zip, as in the zoo.
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = " and ".join(f"'{candidate}'" for candidate in candidates)
    raise FileNotFoundError(f"There is no file at {tried}; check the path, or save first")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check_sizes(entries: list[zipfile.ZipInfo]) -> None:
    packed, unpacked = sum(entry.compress_size for entry in entries), sum(entry.file_size for entry in entries)
    if unpacked > _FREE_BYTES + _MAX_RATIO * packed:
        raise ValueError(f"its entries of {packed} bytes would unpack to {unpacked}")


def _parse_json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    try:
        value = json.loads(archive.read(name).decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"the entry {name!r} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"the entry {name!r} is not a JSON object")
    return value


def _check_names(names: list[str], data: dict[str, Any]) -> None:
    if len(set(names)) != len(names):
        raise ValueError("two entries have the same name")
    pickled = [key for key, value in data.items() if isinstance(value, dict) and ":serialized:" in value]
    pickled += [name for name in names if name not in _TEXT_ENTRIES and not _TENSOR_ENTRY.fullmatch(name)]
    if pickled:
        raise ValueError(
            f"the entries {', '.join(map(repr, pickled[:20]))} are pickled or unknown, and reading them can execute code. "
            "Where SB3 itself saved the model, build one and take over the tensors alone with `set_parameters`"
        )
    if MANIFEST not in names:
        raise ValueError(f"the entry {MANIFEST!r} is missing: it was not saved by otbaselines")


def _read_entries(file: BinaryIO, *, tensors_only: bool) -> Archive:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        _check_sizes(archive.infolist())
        if sum(entry.compress_size for entry in archive.infolist()) > size:
            raise ValueError("its entries overlap")
        data, manifest, system_info = {}, {}, ""
        if not tensors_only:
            if DATA not in names:
                raise ValueError(f"the entry {DATA!r} is missing")
            data = _parse_json(archive, DATA)
            _check_names(names, data)
            manifest = _parse_json(archive, MANIFEST)
        if _SYSTEM_INFO in names:
            text = archive.read(_SYSTEM_INFO)[:_MAX_SYSTEM_INFO].decode()
            # It is printed on demand, and a terminal obeys control characters.
            system_info = "".join(letter for letter in text if letter.isprintable() or letter == "\n")
        tensors = {}
        for name in names:
            if _TENSOR_ENTRY.fullmatch(name):
                # Read whole, so that zipfile compares the checksum before anything is parsed.
                tensors[name.removesuffix(".pth")] = _read_tensors(archive.read(name), name)
        return Archive(data, tensors, manifest, system_info)


def _read_tensors(content: bytes, name: str) -> Any:
    try:
        return read_tensors(content)
    except Exception as error:
        raise ValueError(f"the entry {name!r} is no file of tensors: {brief(error)}") from error


def brief(error: BaseException) -> str:
    """
    :param error: what reading a file led to
    :return: its message, which may quote the file at length, cut short
    """
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return text if len(text) <= 500 else f"{text[:500]}..."


def describe(path: SavePath) -> str:
    """
    What to call a source in messages.

    :param path: a path or an open file
    :return: the path, the name of the file, or the type of the buffer
    """
    return str(path) if isinstance(path, (str, pathlib.Path)) else str(getattr(path, "name", type(path).__name__))


@contextmanager
def open_source(path: SavePath, suffix: str) -> Iterator[BinaryIO]:
    """
    :param path: a path, tried as it is (if it is not one of another kind) and with the suffix added; or a binary file
    :param suffix: with its dot
    :return: the open file; any damage that the block meets in it becomes a ``ValueError`` that names it
    :raises FileNotFoundError: if there is no such file
    """
    if isinstance(path, (str, pathlib.Path)):
        path = _find_file(path, suffix)
        file: BinaryIO = path.open("rb")
    else:
        file = _check_buffer(path, "readable")
    label = describe(path)
    try:
        yield file
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"`path` {label!r} is not a whole zip file ({brief(error)}); copy, download or save it again"
        ) from error
    except _DAMAGE as error:
        raise ValueError(f"`path` {label!r} cannot be loaded: {brief(error)}; copy, download or save it again") from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()


@contextmanager
def naming_damage(label: str, given: Iterable[str], place: str) -> Iterator[None]:
    """
    Whatever a wrong description leads to becomes one kind of error, which names the file.

    :param label: the file
    :param given: arguments of the caller's, whose errors are theirs
    :param place: the part of the file that is being used
    """
    try:
        yield
    except th.OutOfMemoryError:
        raise
    except Exception as error:
        text = brief(error)
        if isinstance(error, ValueError) and text.startswith("`path`"):
            raise
        # No part of a file is read from another file.
        if isinstance(error, FileNotFoundError) and given:
            raise
        if isinstance(error, (ValueError, TypeError)) and any(f"`{name}`" in text for name in given):
            raise
        where = "" if "`" in text else f" (in {place})"
        names = ", ".join(f"`{name}`" for name in sorted(given))
        remedy = f"unless what is given as {names} is wrong, save the model again" if names else "save the model again"
        raise ValueError(f"`path` {label} cannot be loaded: {text}{where}; {remedy}") from error


def read_zip(path: SavePath, *, tensors_only: bool = False) -> Archive:
    """
    Read what :func:`write_zip` wrote. Nothing is ever unpickled, and no more memory is taken than the file has bytes for.

    :param path: a path, tried as it is and with ``.zip`` added; or a binary file
    :param tensors_only: look at nothing but the tensors, so that SB3's own files will do
    :return: the entries; tensors are on the CPU
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if the file is not a zip, is damaged or incomplete, or holds pickled entries
    """
    with open_source(path, ".zip") as file:
        return _read_entries(file, tensors_only=tensors_only)
