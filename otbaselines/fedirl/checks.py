"""Mistakes of the caller of :class:`~otbaselines.fedirl.FedIRL`, before anything is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium import spaces

from otbaselines.fedirl.clients import Client, tabular_model_of
from otbaselines.fedirl.features import RBFFeatures, warn_of_missed_points
from otbaselines.fedirl.maxent import warn_of_missed_states

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
    :raises ValueError: if ``env`` has numbers of states, and does not tell its process
    """
    if not is_finite and isinstance(settings.observation_space, spaces.Discrete):
        raise ValueError(
            "`env` must have an attribute `tabular_model` of type `TabularModel` where its states are numbers, such as "
            "`otbaselines/GridWorld-v0` has"
        )
    where = "is finite" if is_finite else "is not finite"
    for name in _SAMPLED if is_finite else _FINITE:
        if getattr(settings, name) is not None:
            raise TypeError(f"`{name}` does not apply where `env` {where}, got {getattr(settings, name)!r}; leave it out")
    if not is_finite and settings.policy_features == "samples" and settings.irl_learning_rate is not None:
        raise TypeError('`irl_learning_rate` does not apply to `policy_features="samples"`, which uses BFGS; leave it out')


def check_clients(
    clients: Sequence[Client] | None,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    features: Any,
    *,
    is_finite: bool,
) -> None:
    """
    :param clients: who takes part
    :param observation_space: that of the server's world
    :param action_space: that of the server's world
    :param features: of vectors
    :param is_finite: whether worlds are finite
    :raises TypeError: if one of them is no client
    :raises ValueError: if there is none, or spaces differ
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
        if is_finite:
            warn_of_missed_states(tabular_model_of(client.env, name), client.demonstrations, name)
            continue
        for number, episode in enumerate(client.demonstrations):
            seen, done = episode.observations.shape[1:], episode.actions.shape[1:]
            if seen != observation_space.shape or done != action_space.shape:
                raise ValueError(
                    f"`demonstrations[{number}]` of {name} has observations and actions of the shapes {seen} and {done}, the "
                    f"environment's are {observation_space.shape} and {action_space.shape}"
                )
        if isinstance(features, RBFFeatures):
            warn_of_missed_points(features, client.demonstrations, name)


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
