"""Finding team environments by name, which lets the learners build environments without importing them."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_HOME = "otbaselines.envs"


@dataclass(frozen=True)
class TeamEnvSpec:
    """
    How to build a registered team environment.

    :param id: the name, such as ``"otbaselines/Navigation-v0"``
    :param parallel: builds a PettingZoo ``ParallelEnv`` from keyword arguments
    :param tensor: builds a ``TensorVecEnv`` from ``n_copies``, ``device``, ``seed`` and keyword arguments; ``None``
        where there is no batched version
    """

    id: str
    parallel: Callable[..., Any]
    tensor: Callable[..., Any] | None = None


def registered_team_envs() -> dict[str, TeamEnvSpec]:
    """Return every environment in ``otbaselines.envs.registry`` by name, those that users registered included."""
    # The environments stand above this layer, so they are found by name, and only when somebody asks for one.
    registry: dict[str, TeamEnvSpec] = importlib.import_module(_HOME).registry
    return registry


def team_env_spec(id: str) -> TeamEnvSpec | None:
    """
    Look up a registered team environment.

    :param id: the name
    :return: how to build it, or ``None`` where the name is not registered
    """
    return registered_team_envs().get(id)
