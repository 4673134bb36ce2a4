"""SB3's replay buffers, in memory, as ``.npz`` or as the pickle that SB3 writes."""

import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl

from otbaselines.common.datasets.columns import Array, Columns, Recording, agreed_space, as_action_space, number_episodes
from otbaselines.common.saving.archive import describe

_NAMES = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def buffer_arrays(buffer: Any) -> dict[str, Array]:
    """
    :param buffer: SB3's ``ReplayBuffer``
    :return: what ``save_buffer`` would write of it
    :raises TypeError: if it is something else
    """
    if not isinstance(buffer, ReplayBuffer) or isinstance(buffer, DictReplayBuffer):
        raise TypeError(f"`buffer` must be SB3's ReplayBuffer for observations that are a Box, got {type(buffer).__name__}")
    rows = buffer.buffer_size if buffer.full else min(buffer.pos + 1, buffer.buffer_size)
    arrays = {name: getattr(buffer, name)[:rows] for name in _NAMES if getattr(buffer, name, None) is not None}
    settings = ("buffer_size", "n_envs", "optimize_memory_usage", "handle_timeout_termination", "pos", "full")
    return {**arrays, **{name: np.asarray(getattr(buffer, name)) for name in settings}}


def read_buffer(buffer: Any, action_space: Any, *, scaled_actions: bool, trust_pickle: bool) -> Recording:
    """
    :param buffer: a ``ReplayBuffer``, or the pickle that SB3's ``save_replay_buffer`` writes
    :param action_space: of the environment; the buffer's when omitted
    :param scaled_actions: as for :func:`columns_from_buffer`
    :param trust_pickle: whether a pickle may be read
    :return: the content
    :raises TypeError: if it is another object
    :raises ValueError: if it is a pickle that may not be read
    """
    label, name = "the replay buffer", "replay buffer"
    if isinstance(buffer, (str, pathlib.Path, io.BufferedIOBase)):
        label, name = f"`buffer` {describe(buffer)!r}", pathlib.Path(describe(buffer)).stem
        if not trust_pickle:
            raise ValueError(
                f"{label} would be read as a pickle, which executes what it says; if you trust it, pass `trust_pickle=True`"
            )
        buffer = load_from_pkl(buffer)
    arrays = buffer_arrays(buffer)
    box = as_action_space(agreed_space(buffer.action_space, action_space, "action", label), label)
    return Recording(
        columns=columns_from_buffer(arrays, box, label, scaled_actions=scaled_actions),
        label=label,
        name=name,
        observation_space=buffer.observation_space,
        action_space=buffer.action_space,
    )


def columns_from_buffer(
    stored: Mapping[str, Array], action_space: spaces.Box[Any], label: str, *, scaled_actions: bool
) -> Columns:
    """
    Unroll a ring of parallel environments into one environment's life after the other's.

    A full ring does not say whether it has gone round. Its rows would be the same if nothing had been overwritten (as many
    steps as rows, so that the position is back at zero), or if the row before the oldest had ended an episode. Each life of a
    full ring is therefore taken to begin in the middle of an episode: the transitions until its first end are kept, but are
    of no whole episode (-1) and of no return. Likewise those after its last end, of any ring.

    Without ``handle_timeout_termination`` the buffer does not know truncations, and every end is a termination.

    :param stored: as :func:`buffer_arrays` returns it
    :param action_space: of the environment
    :param label: the source, for messages
    :param scaled_actions: whether the actions were scaled to the range from -1 to 1, as SB3's algorithms do
    :return: the columns
    :raises ValueError: if arrays are missing or do not go together
    """
    order = _rows(stored, label)
    settings = {name: bool(_scalar(stored, name, label)) for name in ("full", "optimize_memory_usage")}
    n_envs = int(_scalar(stored, "n_envs", label))
    columns: dict[str, Array] = {}
    for name in ("observations", "actions", "rewards", "dones"):
        columns[name] = _lives(_ring(stored, name, n_envs, label), order)
    if settings["optimize_memory_usage"]:
        size = int(_scalar(stored, "buffer_size", label))
        successors = (order + 1) % size
        columns["next_observations"] = _lives(_ring(stored, "observations", n_envs, label), successors)
    else:
        columns["next_observations"] = _lives(_ring(stored, "next_observations", n_envs, label), order)
    ends = columns.pop("dones") != 0
    truncations = np.zeros_like(ends)
    if _scalar(stored, "handle_timeout_termination", label):
        truncations = _lives(_ring(stored, "timeouts", n_envs, label), order) != 0
    if scaled_actions:
        low, high = action_space.low, action_space.high
        columns["actions"] = low + 0.5 * (columns["actions"] + 1.0) * (high - low)
    return Columns(
        **columns,
        terminations=ends & ~truncations,
        truncations=ends & truncations,
        episodes=_number_lives(ends.reshape(n_envs, -1), is_cut=settings["full"]),
    )


def _scalar(stored: Mapping[str, Array], name: str, label: str) -> Any:
    if name not in stored or stored[name].shape != () or stored[name].dtype.kind not in "biu":
        raise ValueError(f"{label} does not say its `{name}`, as a replay buffer does; save it again")
    return stored[name].item()


def _rows(stored: Mapping[str, Array], label: str) -> Array:
    """The rows of the ring, oldest first."""
    size, pos, full = (int(_scalar(stored, name, label)) for name in ("buffer_size", "pos", "full"))
    if not 0 <= pos < max(size, 1):
        raise ValueError(f"{label} has the position {pos}, outside of a buffer of {size}")
    if not full:
        return np.arange(pos)
    # The row at the position holds the newest observation there, so that its own transition is gone.
    lost = int(bool(_scalar(stored, "optimize_memory_usage", label)))
    return (pos + np.arange(lost, size)) % size


def _ring(stored: Mapping[str, Array], name: str, n_envs: int, label: str) -> Array:
    if name not in stored:
        raise ValueError(f"{label} has no `{name}`; a replay buffer has {', '.join(_NAMES)}")
    array = stored[name]
    size, pos, full = (int(_scalar(stored, key, label)) for key in ("buffer_size", "pos", "full"))
    rows = size if full else min(pos + 1, size)
    if array.ndim < 2 or array.shape[:2] != (rows, n_envs):
        raise ValueError(f"{label} has `{name}` of the shape {array.shape}, expected {(rows, n_envs)} and what a row has")
    return array


def _lives(ring: Array, order: Array) -> Array:
    """``(rows, n_envs, ...)`` in the ring's order as ``(n_envs * rows, ...)`` in time's."""
    lives = ring[order].swapaxes(0, 1)
    return lives.reshape(-1, *lives.shape[2:])


def _number_lives(ends: Array, *, is_cut: bool) -> Array:
    """Episodes of several lives, numbered on; ``is_cut`` where the first of each may have begun before the first row."""
    numbers, following = [], 0
    for life in ends:
        episodes = number_episodes(life)
        if is_cut:
            episodes[episodes == 0] = -1
        whole = episodes >= 0
        episodes[whole] += following
        following += int(life.sum())
        numbers.append(episodes)
    return np.concatenate(numbers) if numbers else np.zeros(0, np.int64)
