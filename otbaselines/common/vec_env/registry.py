"""Team environments by name: environments are put in from above, and the learners find them without importing them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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


#: The known environments by id.
registry: dict[str, TeamEnvSpec] = {}


def register(id: str, parallel_factory: Callable[..., Any], tensor_factory: Callable[..., Any] | None = None) -> None:
    """
    Make an environment known by a name.

    :param id: name, by convention ``"namespace/Name-v0"``
    :param parallel_factory: called with the environment's keyword arguments
    :param tensor_factory: called with ``n_copies``, ``device``, ``seed`` and the environment's keyword arguments; ``None``
        where there is no batched version
    :raises ValueError: if the name is empty or taken
    """
    if not id:
        raise ValueError("`id` must not be empty; use a name such as 'mine/Gather-v0'")
    if id in registry:
        raise ValueError(f"`id` {id!r} is taken; choose another, or delete it from `otbaselines.envs.registry` first")
    registry[id] = TeamEnvSpec(id=id, parallel=parallel_factory, tensor=tensor_factory)
