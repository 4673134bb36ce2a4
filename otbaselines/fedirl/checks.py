"""Mistakes of the caller of :class:`~otbaselines.fedirl.FedIRL`, before anything is learned."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from otbaselines.common.tabular import TabularModel
from otbaselines.common.trajectories import Trajectory
from otbaselines.fedirl.clients import Client, tabular_model_of
from otbaselines.fedirl.features import RBFFeatures, warn_of_missed_points
from otbaselines.fedirl.maxent import numbers_of
from otbaselines.fedirl.policies import TabularPolicy

#: What applies where states are vectors, and what where worlds are finite.
_SAMPLED = ("features", "learner", "learner_kwargs", "policy_features", "irl_timesteps", "normalize_reward")
_FINITE = ("ends",)
#: Largest size that a file may name.
_MAX_SIZE = 2**20


def name_of(clients: Sequence[Client], place: int) -> str:
    """
    :param clients: who takes part
    :param place: of one of them
    :return: what to call it
    """
    return clients[place].name or f"clients[{place}]"


def check_kind(settings: Any, *, is_finite: bool) -> None:
    """
    :param settings: has the settings as attributes
    :param is_finite: whether ``env`` is a finite world
    :raises TypeError: if one is given that does not apply
    :raises ValueError: if ``env`` has numbers of states and does not tell its process, numbers that do not start at 0, or the
        policy of a finite world is no table
    """
    if not is_finite and isinstance(settings.observation_space, spaces.Discrete):
        raise ValueError(
            "`env` must have an attribute `tabular_model` of type `TabularModel` where its states are numbers, such as "
            "`otbaselines/GridWorld-v0` has"
        )
    for name in ("observation_space", "action_space"):
        space = getattr(settings, name)
        if isinstance(space, spaces.Discrete) and space.start != 0:
            raise ValueError(f"`{name}` of `env` must start at 0, as everywhere in Stable-Baselines3, got {space}")
    where = "is finite" if is_finite else "is not finite"
    for name in _SAMPLED if is_finite else _FINITE:
        if getattr(settings, name) is not None:
            raise TypeError(f"`{name}` does not apply where `env` {where}, got {getattr(settings, name)!r}; leave it out")
    if not is_finite and settings.policy_features == "samples" and settings.irl_learning_rate is not None:
        raise TypeError('`irl_learning_rate` does not apply to `policy_features="samples"`, which uses BFGS; leave it out')
    if is_finite:
        if not issubclass(settings.policy_class, TabularPolicy):
            raise ValueError(
                f"`policy` must be 'MlpPolicy' or a `TabularPolicy` where `env` is finite, got {settings.policy_class}"
            )
        if settings.policy_class is TabularPolicy and settings.policy_kwargs:
            raise TypeError(
                f"`policy_kwargs` does not apply where `env` is finite, got {settings.policy_kwargs}; leave it out"
            )


def check_model(model: TabularModel, env: Any, who: str) -> None:
    """
    :param model: of a finite world
    :param env: the world
    :param who: whose it is, for the message
    :raises ValueError: if its spaces are not those of the process
    """
    wanted = (spaces.Discrete(model.n_states), spaces.Discrete(model.n_actions))
    if model.transition.dim() != 3 or (env.observation_space, env.action_space) != wanted:
        raise ValueError(
            f"the `tabular_model` of {who} has the shape {tuple(model.transition.shape)}, which is not that of the spaces "
            f"{env.observation_space} and {env.action_space}"
        )


def check_clients(
    clients: Sequence[Client] | None,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    features: Any,
    probe: TabularModel | None,
) -> None:
    """
    :param clients: who takes part
    :param observation_space: that of the server's world
    :param action_space: that of the server's world
    :param features: of vectors
    :param probe: the process of the server's world, where worlds are finite
    :raises TypeError: if one of them is no client
    :raises ValueError: if there is none, spaces differ, or a demonstration is not of them
    """
    if not clients:
        raise ValueError("`clients` must hold at least one `Client`, got none")
    for place, client in enumerate(clients):
        if not isinstance(client, Client):
            raise TypeError(f"`clients[{place}]` must be a `Client`, got {type(client).__name__}")
        name = name_of(clients, place)
        for space, shared in (("observation_space", observation_space), ("action_space", action_space)):
            own = getattr(client.env, space)
            if own != shared:
                raise ValueError(f"the `{space}` of {name} is {own}, that of `env` {shared}; clients share both")
        if probe is not None:
            model = tabular_model_of(client.env, name)
            check_model(model, client.env, name)
            if model.features.shape[-1] != probe.features.shape[-1]:
                raise ValueError(
                    f"{name} has {model.features.shape[-1]} features, `env` {probe.features.shape[-1]}; clients share them"
                )
            warn_of_missed_states(model, client.demonstrations, name)
            continue
        for number, episode in enumerate(client.demonstrations):
            _check_vectors(episode, observation_space, action_space, f"`demonstrations[{number}]` of {name}")
        if isinstance(features, RBFFeatures):
            warn_of_missed_points(features, client.demonstrations, name)


def _check_vectors(
    episode: Trajectory, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], label: str
) -> None:
    seen, done = episode.observations.shape[1:], episode.actions.shape[1:]
    if seen != observation_space.shape or done != action_space.shape:
        raise ValueError(
            f"{label} has observations and actions of the shapes {seen} and {done}, the environment's are "
            f"{observation_space.shape} and {action_space.shape}"
        )
    if isinstance(action_space, spaces.Discrete):
        numbers = episode.actions
        if not (np.equal(numbers, np.round(numbers)).all() and numbers.min() >= 0 and numbers.max() < action_space.n):
            raise ValueError(
                f"{label} has actions from {numbers.min()} to {numbers.max()}, which must be integers in [0, {action_space.n})"
            )


def warn_of_missed_states(model: TabularModel, trajectories: Sequence[Trajectory], name: str) -> float:
    """
    :param model: one process
    :param trajectories: its demonstrations
    :param name: the client, for the warning
    :return: the share of demonstrated steps that the process gives no probability, warned of where it is not zero
    :raises ValueError: if a number is not a state or an action
    """
    missed = n_steps = 0
    for place, trajectory in enumerate(trajectories):
        try:
            states = numbers_of(trajectory.observations, model.n_states, "observations")
            actions = numbers_of(trajectory.actions, model.n_actions, "actions")
        except ValueError as error:
            raise ValueError(f"`demonstrations[{place}]` of {name}: {error}") from None
        missed += int((model.transition[states[:-1], actions, states[1:]] == 0).sum())
        n_steps += len(trajectory)
    if missed:
        warnings.warn(
            f"{missed / n_steps:.1%} of the steps that {name} demonstrates are impossible in its process; "
            "check that the demonstrations are of this environment",
            UserWarning,
            stacklevel=2,
        )
    return missed / n_steps


def warn_of_shared(env: VecEnv, clients: Sequence[Client]) -> None:
    """
    Two that step one environment disturb each other's episodes.

    :param env: of the server
    :param clients: who takes part
    """
    owners = dict.fromkeys(_single(env), "`env`")
    for place, client in enumerate(clients):
        name = name_of(clients, place)
        if other := next((owners[one] for one in _single(client.env) if one in owners), None):
            warnings.warn(
                f"{name} has the same environment object as {other}: each steps it while the other is in an episode; make one "
                "for each",
                UserWarning,
                stacklevel=2,
            )
        owners |= dict.fromkeys(_single(client.env), name)


def _single(env: gym.Env[Any, Any] | VecEnv) -> list[int]:
    if isinstance(env, VecEnv):
        below = env.unwrapped
        return [id(one.unwrapped) for one in below.envs] if isinstance(below, DummyVecEnv) else [id(below)]
    return [id(env.unwrapped)]


def check_shape(name: str, value: Any, length: int) -> tuple[int, ...]:
    """
    :param name: of an entry of a file
    :param value: what it holds
    :param length: how many sizes it must be
    :return: the sizes
    :raises ValueError: if it is anything else
    """
    if not isinstance(value, list) or len(value) != length or not all(type(n) is int and 0 <= n < _MAX_SIZE for n in value):
        raise ValueError(f"`{name}` must be {length} sizes, got {str(value)[:100]!r}")
    return tuple(value)
