"""The register of team environments by name, which lets the learners build environments without importing them."""

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


_SPECS: dict[str, TeamEnvSpec] = {}


def register_team_env(id: str, *, parallel: Callable[..., Any], tensor: Callable[..., Any] | None = None) -> None:
    """
    Give a team environment a name that :func:`~otbaselines.common.multi_agent.intake.make_vec_env` understands.

    Registering a name again replaces what it stood for.

    :param id: the name
    :param parallel: builds a PettingZoo ``ParallelEnv`` from keyword arguments
    :param tensor: builds a ``TensorVecEnv`` from ``n_copies``, ``device``, ``seed`` and keyword arguments
    :raises ValueError: if the name is empty
    """
    if not id:
        raise ValueError("`id` must not be empty; use a name such as 'mine/Gather-v0'")
    _SPECS[id] = TeamEnvSpec(id=id, parallel=parallel, tensor=tensor)


def registered_team_envs() -> dict[str, TeamEnvSpec]:
    """Return every registered team environment by name, the package's own included."""
    # The environments stand above this layer, so they are found by name, and only when somebody asks for one.
    home = importlib.import_module(_HOME)
    for name, entry in getattr(home, "registry", {}).items():
        if name not in _SPECS:
            _SPECS[name] = TeamEnvSpec(id=name, parallel=entry.parallel, tensor=getattr(entry, "tensor", None))
    return dict(_SPECS)


def team_env_spec(id: str) -> TeamEnvSpec | None:
    """
    Look up a registered team environment.

    :param id: the name
    :return: how to build it, or ``None`` where the name is not registered
    """
    return _SPECS.get(id) or registered_team_envs().get(id)
