"""SB3's replay buffers as ``.npz``: their own file is a pickle."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from otbaselines.common.saving.archive import SavePath, describe
from otbaselines.common.saving.arrays import load_npz, save_npz

_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_SETTINGS = ("buffer_size", "n_envs", "optimize_memory_usage", "handle_timeout_termination")
_KINDS = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)


def _check_kind(buffer: Any) -> None:
    # By name: subclasses keep more, such as HerReplayBuffer its environment and its episodes.
    if type(buffer) not in _KINDS:
        raise TypeError(
            f"a {type(buffer).__name__} cannot be stored without a pickle; use SB3's ReplayBuffer, DictReplayBuffer or "
            "NStepReplayBuffer, or `stable_baselines3.common.save_util.save_to_pkl` for a file of your own"
        )


def _arrays(buffer: ReplayBuffer) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """All arrays of a buffer by name; those of dictionary observations by ``name/key``."""
    for name in _ARRAYS:
        value = getattr(buffer, name, None)
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", array) for key, array in value.items())
        elif value is not None:
            yield name, value


def save_buffer(buffer: ReplayBuffer, path: SavePath, *, suffix: str = ".npz") -> None:
    """
    Write the transitions of a replay buffer, whole or not at all.

    :param buffer: exactly a ``ReplayBuffer``, a ``DictReplayBuffer`` or an ``NStepReplayBuffer``
    :param path: a path, or a binary file
    :param suffix: added to a path that does not end so
    :raises TypeError: if it is another buffer
    """
    _check_kind(buffer)
    # Where next observations are those of the next row, the row at the position holds the latest one.
    rows = buffer.buffer_size if buffer.full else min(buffer.pos + 1, buffer.buffer_size)
    settings = {name: getattr(buffer, name) for name in (*_SETTINGS, "pos", "full")}
    arrays = {name: array[:rows] for name, array in _arrays(buffer)}
    save_npz(path, {"kind": type(buffer).__name__, **settings, **arrays}, suffix=suffix)


def load_buffer(buffer: ReplayBuffer, path: SavePath) -> None:
    """
    Fill a replay buffer with what :func:`save_buffer` has written.

    :param buffer: of the same kind, size and spaces
    :param path: a path, tried as it is and with ``.npz`` added; or a binary file
    :raises ValueError: if the file is damaged or of another buffer; the buffer is as it was
    """
    _check_kind(buffer)
    stored = load_npz(path)
    label = f"`path` {describe(path)!r}"
    own = dict(_arrays(buffer))
    settings = {"kind": type(buffer).__name__} | {name: getattr(buffer, name) for name in _SETTINGS}
    if set(stored) != {*settings, "pos", "full", *own}:
        raise ValueError(f"{label} holds {sorted(stored)[:20]}, which is no replay buffer of this kind")
    for name, value in settings.items():
        if stored[name].shape != () or stored[name].item() != value:
            raise ValueError(
                f"{label} holds a replay buffer with {name}={stored[name].tolist()!r}, but the model's has {value!r}; "
                "load the model with the settings and the environments that it was saved with"
            )
    pos, full = stored["pos"], stored["full"]
    if pos.shape != () or pos.dtype.kind not in "iu" or full.shape != () or full.dtype != np.bool_:
        raise ValueError(f"{label} says neither where its replay buffer ends nor whether it is full")
    if not 0 <= pos < buffer.buffer_size:
        raise ValueError(f"{label} has the position {pos}, outside of a buffer of {buffer.buffer_size}")
    rows = buffer.buffer_size if full else min(int(pos) + 1, buffer.buffer_size)
    for name, array in own.items():
        if stored[name].shape != (rows, *array.shape[1:]) or stored[name].dtype != array.dtype:
            raise ValueError(
                f"{label} has `{name}` of {stored[name].dtype} and shape {stored[name].shape}, expected {array.dtype} and "
                f"{(rows, *array.shape[1:])}"
            )
        if array.dtype.kind == "f" and not np.isfinite(stored[name]).all():
            raise ValueError(f"{label} has NaN or infinite entries in `{name}`")
        if name in ("dones", "timeouts") and not np.isin(stored[name], (0, 1)).all():
            raise ValueError(f"{label} has entries in `{name}` that are neither 0 nor 1")
        # Boxes are scaled to [-1, 1] before they are stored, up to rounding.
        if name == "actions" and isinstance(buffer.action_space, spaces.Box) and np.abs(stored[name]).max(initial=0.0) > 1.001:
            raise ValueError(f"{label} has entries in `actions` outside of [-1, 1], to which actions are scaled")
    for name, array in own.items():
        array[:rows] = stored[name]
    buffer.pos, buffer.full = int(pos), bool(full)
