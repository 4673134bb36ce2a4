"""What a learner from a replay buffer looks at before it believes it: spaces, environments, numbers, sizes."""

import numbers
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.memory import check_fits
from otbaselines.common.settings import MANY

# Of a number in float32: its parameter, its gradient, and Adam's two moments.
_BYTES_PER_PARAMETER = 4 * 4


def check_env(env: Any) -> None:
    """
    :param env: what the user passed
    :raises TypeError: if it is no environment and no name of one
    """
    if not isinstance(env, str | gym.Env | VecEnv):
        raise TypeError(
            f"`env` must be a Gymnasium environment, its id, or a vector environment, got {str(env)[:200]} of the type "
            f"{type(env).__name__}"
        )


def check_action_space(space: Any) -> None:
    """
    :param space: of an environment
    :raises ValueError: if its actions cannot be moved along a slope
    """
    if not isinstance(space, spaces.Box) or not space.shape or 0 in space.shape:
        raise ValueError(f"actions have to be vectors in a Box, whose values have slopes, but the action space is {space}")
    if space.dtype.kind != "f":
        raise ValueError(
            f"actions have to be floats, because whole numbers have no slopes between them, but the action space is {space}; "
            "give the environment a float Box and round there"
        )
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(space.high - space.low).all()
    if not (is_finite and (space.low < space.high).all()):
        raise ValueError(
            f"actions are scaled by their box, but the action space {space} is not bounded on all sides, or has a dimension "
            "with a single value, or one whose width is no finite number; bound it, for example with "
            "gymnasium.wrappers.RescaleAction"
        )


def check_observation_space(space: Any) -> None:
    """
    :param space: of an environment
    :raises ValueError: if no features extractor of SB3 reads its observations
    """
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    for key, part in parts.items():
        name = f"the part {key!r} of the observation space" if key or len(parts) > 1 else "the observation space"
        if not isinstance(part, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            raise ValueError(
                f"{name} is {str(part)[:200]}, but only Box, Discrete, MultiDiscrete, MultiBinary and a Dict of these can be "
                "read; flatten it, for example with gymnasium.wrappers.FlattenObservation"
            )
        if isinstance(part, spaces.Box) and (not part.shape or 0 in part.shape):
            raise ValueError(f"{name} is {part}, whose shape holds no vector; use one of shape (1,) at least")
        if np.any(getattr(part, "start", 0)):
            raise ValueError(f"{name} is {part}, but only choices that count from 0 can be read; subtract `start`")
    if isinstance(space, spaces.Dict) and ("" in parts or not parts):
        raise ValueError(f"the observation space is {str(space)[:200]}, whose parts must be there and have names")


def check_noise(noise: ActionNoise | None, shape: tuple[int, ...]) -> None:
    """
    :param noise: of actions
    :param shape: of an action
    :raises ValueError: if it is SB3's, and of another size
    """
    mean = getattr(getattr(noise, "base_noise", noise), "_mu", None)
    if mean is None:
        return
    try:
        fits = np.broadcast_shapes(np.shape(mean), shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"`action_noise` must have the shape of an action, {shape}, got {noise!r} of {np.shape(mean)}")


def check_finite_rows(quantity: str, values: Any, step: int) -> None:
    """
    :param quantity: what the environment returned
    :param values: an array, or a dictionary of arrays, one row a copy
    :param step: how many environment steps there have been
    :raises ValueError: if one is NaN or infinite, with the copies where
    """
    parts = values if isinstance(values, dict) else {"": values}
    for key, part in parts.items():
        array = np.asarray(part)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            copies = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1)).tolist()
            raise ValueError(
                f"`{f'{quantity} {key}'.rstrip()}` became NaN or infinite at step {step}, in the copies {copies[:10]} of the "
                "environment; it has to return finite numbers"
            )


def check_transition(new_obs: Any, rewards: Any, dones: Any, infos: Sequence[dict[str, Any]], step: int) -> None:
    """
    :param new_obs: what was seen after the step, of all copies
    :param rewards: shape ``(n_envs,)``
    :param dones: shape ``(n_envs,)``
    :param infos: one a copy; what was seen last before a reset stands there, and the buffer keeps that
    :param step: how many environment steps there have been
    :raises ValueError: if a number is NaN or infinite, with the copies where
    """
    check_finite_rows("rewards", rewards, step)
    check_finite_rows("observations", new_obs, step)
    for copy in np.flatnonzero(dones).tolist():
        last = infos[copy].get("terminal_observation")
        parts = last.values() if isinstance(last, dict) else [] if last is None else [last]
        if not all(np.isfinite(part).all() for part in map(np.asarray, parts) if part.dtype.kind == "f"):
            raise ValueError(
                f"`terminal_observation` became NaN or infinite at step {step}, in the copies [{copy}] of the environment; it "
                "has to return finite numbers"
            )


def is_frequency(value: Any) -> bool:
    """
    :param value: of ``train_freq``
    :return: whether it is a count of steps, or a pair of a count and its unit
    """
    count, unit = value if isinstance(value, tuple) and len(value) == 2 else (value, "step")
    is_count = isinstance(count, numbers.Integral) and not isinstance(count, bool) and 1 <= int(count) <= MANY
    return is_count and getattr(unit, "value", unit) in ("step", "episode")


def plain_frequency(value: Any) -> Any:
    """
    :param value: of ``train_freq``, where NumPy's integers are welcome
    :return: the same with Python's, which SB3 asks for
    """
    if isinstance(value, TrainFreq):
        return value
    return (int(value[0]), value[1]) if isinstance(value, tuple) else int(value)


def check_sizes(
    *,
    observation_space: spaces.Space[Any],
    action_dim: int,
    batch_size: int,
    buffer_size: int | None,
    halves: bool,
    device: Any,
) -> None:
    """
    :param observation_space: of the environment
    :param action_dim: numbers of an action
    :param batch_size: rows of a minibatch
    :param buffer_size: transitions of a replay buffer, None where none will be filled
    :param halves: whether the buffer stores every observation once
    :param device: of the minibatch
    :raises ValueError: if a minibatch or the replay buffer does not fit into memory
    """
    parts = list(observation_space.spaces.values()) if isinstance(observation_space, spaces.Dict) else [observation_space]
    sizes = [int(np.prod(part.shape or ())) for part in parts]
    check_fits(
        4 * batch_size * (2 * sum(sizes) + action_dim + 3),
        f"a minibatch of `batch_size`={batch_size} rows",
        "lower it",
        device,
    )
    if buffer_size is None:
        return
    stored = sum(size * min(np.dtype(part.dtype).itemsize, 8) for size, part in zip(sizes, parts, strict=True))
    check_fits(
        buffer_size * ((1 if halves else 2) * stored + 4 * (action_dim + 3)),
        f"a replay buffer of `buffer_size`={buffer_size} transitions",
        "lower it, or store every observation once by `optimize_memory_usage`",
    )


def check_widths(networks: Iterable[tuple[int, list[int]]], subject: str) -> None:
    """
    :param networks: copies of a network, and its widths from the input to the output
    :param subject: the settings that they come from
    :raises ValueError: if their parameters and what training adds to them do not fit into the machine
    """
    count = sum(n * (width + 1) * after for n, widths in networks for width, after in pairwise(map(int, widths)))
    check_fits(count * _BYTES_PER_PARAMETER, f"training {count:,} parameters ({subject})", "use narrower layers")


def check_precision() -> None:
    """:raises ValueError: if torch makes networks that cannot read what replay buffers hold"""
    if th.get_default_dtype() != th.float32:
        raise ValueError(
            f"replay buffers hold float32, but torch's default dtype is {th.get_default_dtype()}; call "
            "torch.set_default_dtype(torch.float32) before the model is made"
        )


def check_net_arch(net_arch: Any) -> None:
    """
    :param net_arch: as :class:`~otbaselines.wfpg.policies.FlowPolicy` takes it
    :raises ValueError: if it does not say how wide the actor and the critics are
    """
    if net_arch is None:
        return
    parts = list(net_arch.values()) if isinstance(net_arch, dict) else [net_arch]
    if (isinstance(net_arch, dict) and set(net_arch) != {"pi", "qf"}) or not all(
        isinstance(part, list | tuple) and all(isinstance(width, numbers.Integral) for width in part) for part in parts
    ):
        raise ValueError(
            "`policy_kwargs['net_arch']` must be widths such as [64, 64], or a dictionary such as dict(pi=[64], qf=[64]) with "
            f"those of the actor and of the critics, got {net_arch!r}"
        )
