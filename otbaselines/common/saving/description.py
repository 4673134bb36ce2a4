"""What a saved file says of a model beside its tensors: which values belong to a class, and whether they can be right."""

import collections.abc
import inspect
import math
import numbers
import os
import pathlib
import types
import typing
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device

from otbaselines.common.saving import spaces as stored_spaces
from otbaselines.common.saving.arrays import MAX_ELEMENTS, is_integer
from otbaselines.common.saving.values import encode_value
from otbaselines.common.schedules import parse_schedule

# Without these there is no model.
REQUIRED = ("policy_class", "observation_space", "action_space", "n_envs")
# The state of an unfinished rollout, for `load(..., force_reset=False)`.
LAST_STEP = ("_last_obs", "_last_episode_starts", "_last_original_obs")
EPISODES = ("ep_info_buffer", "ep_success_buffer")
_MAX_SLOTS = 2**31
# Floats and loggers count exactly up to here.
_MAX_COUNT = 2**53
_NOT_PARAMETERS = ("self", "policy", "env", "device", "_init_setup_model")
_KINDS: dict[Any, Any] = {
    # True for 1 and 1 for True are what Python takes for equal.
    int: (numbers.Integral, np.bool_),
    float: (numbers.Real, np.bool_),
    bool: (bool, np.bool_, numbers.Integral),
}


def constructor_parameters(cls: type) -> dict[str, Any]:
    """
    The names that a constructor takes as keywords, through ``**kwargs`` into its ancestors, with their annotations.

    :param cls: the class
    :return: annotation by name, without the policy, the environment and the device
    """
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        constructor = vars(base)["__init__"]
        parameters = inspect.signature(constructor).parameters.values()
        keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        hints = {each.name: _resolved(each.annotation, constructor) for each in parameters if each.kind in keywords}
        found = {**hints, **found}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return {name: hint for name, hint in found.items() if name not in _NOT_PARAMETERS}


def _resolved(annotation: Any, function: Any) -> Any:
    # One by one: SB3's annotations of environments name classes that only type checkers import.
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        one = types.SimpleNamespace(__annotations__={"value": annotation})
        return typing.get_type_hints(one, getattr(function, "__globals__", {}))["value"]
    except (NameError, TypeError):
        return Any


def portable_log(path: Any) -> str | None:
    """
    :param path: a log directory
    :return: the directory if it lies below the working directory; others name somebody's machine, or write where nobody
        expects it
    """
    if path is None or os.path.isabs(str(path)) or ".." in pathlib.PurePath(str(path)).parts:
        return None
    return str(path)


# ---------------------------------------------------------------- before anything is built


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated kind; an annotation that says nothing about the outermost kind lets all pass."""
    if hint is Any:
        return True
    origin = typing.get_origin(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in typing.get_args(hint))
    if origin is collections.abc.Callable:
        # Every class of ours takes a schedule as text too.
        return callable(value) or (isinstance(value, str) and callable(parse_schedule(value)))
    if hint in _KINDS:
        return isinstance(value, _KINDS[hint])
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    kind = hint if origin is None else origin
    if kind is collections.abc.Sequence:
        return isinstance(value, (collections.abc.Sequence, np.ndarray))
    return not isinstance(kind, type) or isinstance(value, kind)


def _has_nan(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_nan, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_nan, value))
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def check_arguments(values: Mapping[str, Any], cls: type, within: str = "") -> None:
    """
    Compare values with the annotations of a class's constructor.

    :param values: by name
    :param cls: the class
    :param within: the parameter of another class that holds them all
    :raises ValueError: if a value is of another kind, or NaN
    """
    hints = constructor_parameters(cls)
    for name, value in values.items():
        label = f"`{within}[{name!r}]`" if within else f"`{name}`"
        if name in hints and not _fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", str(hints[name]))
            raise ValueError(f"{label} must be of type {wanted}, got {str(value)[:100]!r}")
        if name in hints and _has_nan(value):
            raise ValueError(f"{label} is NaN")


def check_sizes(data: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """
    :param data: the JSON of a model, whose boxes are counted before any is made
    :param values: spaces and slots as the caller gives them, where he does
    :raises ValueError: if the boxes together are larger than memory should be spent on, or the number of slots is impossible
    """
    limit = 2 * stored_spaces.MAX_ELEMENTS
    if (elements := stored_spaces.count_elements(list(data.values()))) > limit:
        raise ValueError(f"its spaces have {elements} elements, more than {limit}")
    n_envs = values.get("n_envs", data.get("n_envs"))
    if not is_integer(n_envs) or not 1 <= n_envs <= _MAX_SLOTS:
        raise ValueError(f"`n_envs` must be a positive whole number, got {str(n_envs)[:100]!r}")


def check_device(device: Any) -> None:
    """
    :param device: as the caller gives it
    :raises ValueError: if torch knows no such device
    """
    try:
        get_device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"`device` must be a device of torch such as 'cpu' or 'auto', got {device!r}") from error


def same_form(given: Any, stored: Any) -> bool:
    """
    :param given: a space
    :param stored: that of a file
    :return: whether both are of one kind, shape and size; bounds may differ
    """
    if type(given) is not type(stored) or not isinstance(given, spaces.Space) or given.shape != stored.shape:
        return False
    return not given.is_np_flattenable or spaces.flatdim(given) == spaces.flatdim(stored)


# ---------------------------------------------------------------- state


def encode_episodes(buffer: Any) -> Any:
    """
    :param buffer: the statistics of the last episodes
    :return: their JSON form; what a wrapper has added beyond reward, length and time may be unstorable
    """
    if buffer is None:
        return None
    episodes: deque[Any] = deque(maxlen=buffer.maxlen)
    for episode in buffer:
        lost: list[str] = []
        encode_value(episode, missing=lost)
        episodes.append({key: episode[key] for key in ("r", "l", "t") if key in episode} if lost else episode)
    return encode_value(episodes, name="ep_info_buffer")


def is_small(value: Any) -> bool:
    """
    :param value: anything
    :return: whether arrays in it are small enough for JSON
    """
    if isinstance(value, dict):
        return all(is_small(item) for item in value.values())
    return not isinstance(value, (np.ndarray, th.Tensor)) or int(np.prod(value.shape)) <= MAX_ELEMENTS


def _check_episodes(name: str, buffer: Any) -> None:
    if buffer is None:
        return
    if not isinstance(buffer, deque):
        raise ValueError(f"`{name}` must be a deque, got {str(buffer)[:100]!r}")
    for episode in buffer:
        numbers_of = [episode.get(key, 0) for key in ("r", "l", "t")] if isinstance(episode, dict) else [episode]
        if isinstance(episode, dict) != (name == "ep_info_buffer") or not all(_fits(each, float) for each in numbers_of):
            raise ValueError(f"`{name}` holds {str(episode)[:100]!r}, which is no episode's result")


def _check_last_step(name: str, value: Any, space: spaces.Space[Any], n_envs: int) -> None:
    if name == "_last_original_obs":
        # Those of the normaliser, which wrappers around it may since have stacked or transposed.
        for part in value.values() if isinstance(value, dict) else [value]:
            if not isinstance(part, (np.ndarray, th.Tensor)) or tuple(part.shape[:1]) not in ((n_envs,), (0,)):
                raise ValueError(f"`{name}` must be arrays of {n_envs} rows, got {str(part)[:100]!r}")
        return
    if isinstance(space, spaces.Dict) and isinstance(value, dict) and name != "_last_episode_starts":
        if set(value) != set(space.spaces):
            raise ValueError(f"`{name}` does not have the keys of the observation space")
        for key, part in space.spaces.items():
            _check_last_step(name, value[key], part, n_envs)
        return
    shape = (n_envs,) if name == "_last_episode_starts" else (n_envs, *(space.shape or ()))
    if not isinstance(value, (np.ndarray, th.Tensor)) or tuple(value.shape) not in (shape, (0,)):
        raise ValueError(f"`{name}` must be an array of shape {shape}, got {str(value)[:100]!r}")


def check_state(values: Mapping[str, Any], model: Any) -> None:
    """
    Compare attributes that are to be set with what the constructor has put there, or with what they are for.

    :param values: by name
    :param model: the model, as its constructor left it, with its spaces
    :raises ValueError: if a value is impossible
    """
    for name, value in values.items():
        if name in EPISODES:
            _check_episodes(name, value)
        elif name in LAST_STEP:
            if value is not None:
                _check_last_step(name, value, values["observation_space"], values["n_envs"])
        elif name == "_current_progress_remaining":
            if not _fits(value, float) or not -math.inf < value <= 1:
                raise ValueError(f"`{name}` must be a number of at most 1, got {str(value)[:100]!r}")
        elif type(own := getattr(model, name, None)) is int:
            # Counters all.
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not 0 <= int(value) <= _MAX_COUNT:
                raise ValueError(f"`{name}` must be a whole number from 0 to 2**53, got {str(value)[:100]!r}")
        elif type(own) in (bool, str, float, list, dict, tuple) and not _fits(value, type(own)):
            raise ValueError(f"`{name}` must be of type {type(own).__name__}, got {str(value)[:100]!r}")


def names_of(items: Iterable[str]) -> str:
    """
    :param items: names, possibly a file's
    :return: a list for a message, of bounded length
    """
    text = ", ".join(items)
    return text if len(text) <= 300 else f"{text[:300]}..."
