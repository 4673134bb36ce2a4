"""What is read from any source, before it becomes a data set: one array per quantity, checked."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

Array = npt.NDArray[Any]
COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
# Shares of the action range by which an action may miss it: float32 has rounded where files were written in float64.
ACTION_TOLERANCE = 1e-4
# Names that the flags have in D4RL (first) and in Gymnasium.
_TERMINATIONS = ("terminals", "terminations")
_TRUNCATIONS = ("timeouts", "truncations")


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """
    Transitions in the order in which they happened, episode after episode.

    :param observations: shape ``(n, *obs_shape)``
    :param actions: shape ``(n, *action_shape)``, in the environment's own scale
    :param rewards: shape ``(n,)``
    :param next_observations: as ``observations``
    :param terminations: whether the environment ended there by itself, shape ``(n,)``
    :param truncations: whether it was stopped there, by a limit of time for instance, shape ``(n,)``
    :param episodes: number of the episode that each row is of, ascending; -1 where its beginning or end was not recorded
    """

    observations: Array
    actions: Array
    rewards: Array
    next_observations: Array
    terminations: Array
    truncations: Array
    episodes: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Recording:
    """
    What a source holds.

    :param columns: its transitions, unchecked
    :param label: what to call it in messages
    :param name: of the data set
    :param observation_space: where it names one
    :param action_space: where it names one
    """

    columns: Columns
    label: str
    name: str
    observation_space: Any = None
    action_space: Any = None


def number_episodes(ends: Array) -> Array:
    """
    :param ends: whether each row is the last of its episode, shape ``(n,)``
    :return: the episode of each row, counted from 0; -1 after the last end
    """
    before = np.concatenate([[0], np.cumsum(ends[:-1])]) if len(ends) else np.zeros(0)
    episodes = before.astype(np.int64)
    episodes[episodes == ends.sum()] = -1
    return episodes


def infer_action_space(actions: Array, label: str) -> spaces.Box[Any]:
    """
    :param actions: shape ``(n, *action_shape)``
    :param label: the source, for messages
    :return: the box from -1 to 1, which D4RL's environments have
    :raises ValueError: if the actions leave it
    """
    largest = float(np.abs(actions).max(initial=0))
    if not largest <= 1 + 2 * ACTION_TOLERANCE:
        raise ValueError(
            f"{label} does not say what the action space is, and its actions reach {largest:g}, out of the usual box from -1 "
            "to 1; pass `action_space`, or an environment that has it"
        )
    return spaces.Box(-1.0, 1.0, actions.shape[1:], np.float32)


def infer_observation_space(observations: Array) -> spaces.Box[Any]:
    """
    :param observations: shape ``(n, *obs_shape)``
    :return: a box without bounds
    """
    return spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32)


def check_spaces(observation_space: Any, action_space: Any, label: str) -> None:
    """
    :param observation_space: what the policy sees
    :param action_space: what it does
    :param label: the source, for messages
    :raises ValueError: if they are not boxes, or the actions unbounded
    """
    if not isinstance(observation_space, spaces.Box):
        raise ValueError(
            f"{label} has the observation space {_short(observation_space)}; offline learners take a Box, so record the data "
            "through gymnasium.wrappers.FlattenObservation"
        )
    if not isinstance(action_space, spaces.Box) or action_space.dtype.kind != "f":
        raise ValueError(
            f"{label} has the action space {_short(action_space)}; offline learners take a Box of floating-point numbers, and "
            "no discrete actions"
        )
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise ValueError(
            f"{label} has the unbounded action space {_short(action_space)}; record it through "
            "gymnasium.wrappers.ClipAction, or pass an `action_space` with bounds"
        )


def as_action_space(space: Any, label: str) -> spaces.Box[Any]:
    """
    :param space: any space
    :param label: the source, for messages
    :return: the same
    :raises ValueError: if actions are not numbers between bounds
    """
    check_spaces(spaces.Box(-1.0, 1.0), space, label)
    assert isinstance(space, spaces.Box)
    return space


def agreed_space(stored: Any, given: Any, name: str, label: str) -> Any:
    """
    :param stored: the space that a source names, if it does
    :param given: the one that the caller has, if any
    :param name: ``"observation"`` or ``"action"``
    :param label: the source, for messages
    :return: the caller's, or else the source's
    :raises ValueError: if they are different; bounds and precision of observations may be
    """
    if stored is None or given is None:
        return stored if given is None else given
    same = isinstance(given, spaces.Box) and isinstance(stored, spaces.Box) and given.shape == stored.shape
    if same and name == "action":
        same = np.allclose(stored.low, given.low) and np.allclose(stored.high, given.high)
    if not same:
        raise ValueError(
            f"{label} was recorded with the {name} space {_short(stored)}, but {_short(given)} is given as "
            f"`{name}_space` or by the environment; take the environment that the data are of"
        )
    return given


def check_columns(columns: Columns, observation_space: spaces.Box[Any], action_space: spaces.Box[Any], label: str) -> Columns:
    """
    Refuse what cannot be learned from, and bring the rest into float32.

    :param columns: of any numeric dtypes
    :param observation_space: whose shape the observations must have
    :param action_space: in which the actions must lie; those that miss it by rounding alone are clipped, with a warning
    :param label: the source, for messages
    :return: observations, actions and rewards of float32, flags of bool, episodes of int64
    :raises ValueError: naming the column and what is wrong with it
    """
    check_spaces(observation_space, action_space, label)
    n = len(columns.rewards)
    if n == 0:
        raise ValueError(f"{label} has no transitions")
    observed = (n, *observation_space.shape)
    flat = {"observations": observed, "next_observations": observed, "actions": (n, *action_space.shape)}
    ready = {name: _numbers(getattr(columns, name), shape, name, label) for name, shape in flat.items()}
    ready["rewards"] = _numbers(columns.rewards, (n,), "rewards", label)
    ready |= {name: as_flags(getattr(columns, name), n, name, label) for name in ("terminations", "truncations")}
    ready["actions"] = _inside(ready["actions"], action_space, label)
    episodes = _numbered(columns.episodes, n, label)
    goes_on = (episodes[:-1] >= 0) & (episodes[:-1] == episodes[1:])
    ends = np.flatnonzero(goes_on & (ready["terminations"] | ready["truncations"])[:-1])
    if len(ends) > 0:
        raise ValueError(
            f"{label} has a row {ends[0]} that ends an episode, but row {ends[0] + 1} has the same number in `episodes`, "
            f"{episodes[ends[0]]}; number it anew"
        )
    return Columns(**ready, episodes=episodes)


def _numbered(values: Any, n: int, label: str) -> Array:
    episodes = np.asarray(values)
    if episodes.shape == (n,) and episodes.dtype.kind in "iu":
        # Of the rows that belong to whole episodes.
        numbers = episodes[episodes >= 0]
        if (np.diff(numbers) >= 0).all() and _contiguous(episodes):
            return episodes.astype(np.int64)
    raise ValueError(f"{label} has `episodes` that are not one ascending whole number for each of its {n} rows")


def _contiguous(episodes: Array) -> bool:
    starts = np.flatnonzero(np.diff(episodes, prepend=-2))
    numbers = episodes[starts]
    # Of ascending numbers: none begins twice.
    return bool((np.diff(numbers[numbers >= 0]) > 0).all())


def as_flags(values: Any, n: int, name: str, label: str) -> npt.NDArray[np.bool_]:
    """
    :param values: booleans, or zeros and ones
    :param n: how many there must be
    :param name: of the column
    :param label: the source, for messages
    :return: booleans, shape ``(n,)``
    :raises ValueError: if they are anything else
    """
    values = np.asarray(values)
    if values.shape not in ((n,), (n, 1)):
        raise ValueError(f"{label} has `{name}` of the shape {values.shape}, expected {(n,)}")
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise ValueError(f"{label} has `{name}` that are neither booleans nor zeros and ones")
    flags: npt.NDArray[np.bool_] = values.reshape(n).astype(np.bool_)
    return flags


def _numbers(values: Any, shape: tuple[int, ...], name: str, label: str) -> Array:
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{label} has `{name}` of {values.dtype}, which are no numbers")
    if values.shape not in (shape, (*shape, 1)) or (values.shape == (*shape, 1) and len(shape) > 1):
        raise ValueError(
            f"{label} has `{name}` of the shape {values.shape}, but {shape} would go with its {shape[0]} rewards and with the "
            "space; take the spaces of the environment that the data are of"
        )
    with np.errstate(over="ignore"):
        # A copy of its own, also where the caller's array is of float32 already.
        numbers = np.array(values, dtype=np.float32, order="C").reshape(shape)
    wrong = ~np.isfinite(numbers).reshape(len(numbers), -1).all(1)
    if wrong.any():
        rows = np.flatnonzero(wrong)
        raise ValueError(
            f"{label} has NaN, infinite or too large `{name}` in {len(rows)} of its {len(numbers)} rows, the first of them "
            f"row {rows[0]}; leave the episodes out that these are of"
        )
    return numbers


def _inside(actions: Array, space: spaces.Box[Any], label: str) -> Array:
    low, high = (bound.astype(np.float32) for bound in (space.low, space.high))
    excess = np.maximum(low - actions, actions - high).max(axis=0, initial=0)
    if (excess > ACTION_TOLERANCE * (high - low)).any():
        raise ValueError(
            f"{label} has actions from {actions.min():g} to {actions.max():g}, up to {excess.max():g} outside of the action "
            f"space {_short(space)}; take the environment that the data are of, or scale the actions to it"
        )
    clipped = np.clip(actions, low, high)
    if (excess > 0).any():
        rows = int((clipped != actions).any(axis=tuple(range(1, actions.ndim))).sum())
        warnings.warn(
            f"{label}: {rows} of {len(actions)} actions missed the action space by up to {excess.max():.1e}, which rounding "
            "explains, and were clipped to it",
            UserWarning,
            stacklevel=6,
        )
    return clipped


# ------------------------------------------------------------------ D4RL's columns
def columns_from_d4rl(stored: Mapping[str, Any], label: str) -> Columns:
    """
    Read D4RL's names: ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts``, ``next_observations``.

    Gymnasium's ``terminations`` and ``truncations`` are also understood. Where there are no ``next_observations``, those of
    a row are the observations of the following one of the same episode. The last row before a timeout has none, as its
    successor was never written; it is left out, and the row before it becomes the one at which the episode was truncated.
    The last row of a file that ends in the middle of an episode is left out as well. A terminal row stays, since what comes
    after it has no value; its own observation stands in for the next.

    :param stored: arrays by name; others than these are not looked at
    :param label: the source, for messages
    :return: the columns, unchecked but for their lengths
    :raises ValueError: if a column is missing, or next observations cannot be rebuilt
    :warns RuntimeWarning: if there are no ``timeouts``, and rows of different episodes may therefore count as one episode
    """
    for name in ("observations", "actions", "rewards"):
        if name not in stored:
            raise ValueError(f"{label} has no `{name}`; it has {sorted(stored)[:20]}")
    kept = {name: np.asarray(stored[name]) for name in ("observations", "actions", "rewards")}
    n = len(kept["rewards"]) if kept["rewards"].ndim else 0
    for name, values in kept.items():
        if values.ndim == 0 or len(values) != n:
            raise ValueError(f"{label} has `{name}` of the shape {values.shape}, but {n} rewards")
    terminations, truncations = (_flags(stored, names, n, label) for names in (_TERMINATIONS, _TRUNCATIONS))
    if terminations is None:
        raise ValueError(
            f"{label} has no `terminals`, so that nobody knows where an episode ended; it has {sorted(stored)[:20]}"
        )
    following = stored.get("next_observations")
    if truncations is None:
        if following is None and not terminations.any():
            raise ValueError(
                f"{label} has neither `next_observations` nor `timeouts` nor any terminal row, so that next observations "
                "cannot be rebuilt; add one of the columns"
            )
        truncations = np.zeros(n, np.bool_)
        if doubt := _doubt_without_timeouts(kept["observations"], following, terminations):
            warnings.warn(f"{label} has no `timeouts`: {doubt}", RuntimeWarning, stacklevel=4)
    if following is not None:
        following = np.asarray(following)
        episodes = number_episodes(terminations | truncations)
        return Columns(
            **kept, next_observations=following, terminations=terminations, truncations=truncations, episodes=episodes
        )
    return _with_successors(kept, terminations, truncations)


def _flags(stored: Mapping[str, Any], names: tuple[str, ...], n: int, label: str) -> npt.NDArray[np.bool_] | None:
    for name in names:
        if name in stored:
            return as_flags(stored[name], n, name, label)
    return None


def _doubt_without_timeouts(observations: Array, following: Any, terminations: Array) -> str | None:
    """What may be wrong where only terminal rows are known to end an episode, and what to do."""
    if following is None:
        return (
            "every row is taken to go on into the next one until a terminal row, so that rows before a limit of time, if "
            "there are any, get the first observation of another episode as their next; add `timeouts` or "
            "`next_observations`, unless no episode was cut short"
        )
    following = np.asarray(following)
    if following.shape != observations.shape:
        # Refused later, with both shapes.
        return None
    jumps = (following[:-1] != observations[1:]).reshape(max(len(observations) - 1, 0), -1).any(1) & ~terminations[:-1]
    if not jumps.any():
        return None
    return (
        f"row {np.flatnonzero(jumps)[0]} and {jumps.sum() - 1} others do not go on into the next one and are not terminal, so "
        "that returns are sums over several episodes; the transitions are right. Add `timeouts` to have returns"
    )


def _with_successors(kept: Mapping[str, Array], terminations: Array, truncations: Array) -> Columns:
    """Rebuild next observations from the following rows, without the rows that have none."""
    truncated = truncations & ~terminations
    episodes = number_episodes(terminations | truncated)
    lost = truncated.copy()
    # The file's last row has a successor only in a terminal state, where it does not matter.
    lost[-1:] |= ~terminations[-1:]
    successor = np.roll(kept["observations"], -1, axis=0)
    successor[terminations] = kept["observations"][terminations]
    same = np.append(episodes[:-1] == episodes[1:], False)
    # Of the same episode only: an episode of one row leaves nothing behind.
    shortened = np.append(truncated[1:], False) & same
    keep = ~lost
    return Columns(
        **{name: values[keep] for name, values in kept.items()},
        next_observations=successor[keep],
        terminations=terminations[keep],
        truncations=(truncations & terminations | shortened)[keep],
        episodes=episodes[keep],
    )


def bytes_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """
    :param shape: of an array
    :param dtype: of its elements
    :return: its size
    """
    return math.prod(shape) * dtype.itemsize


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 150 else f"{text[:150]}..."
