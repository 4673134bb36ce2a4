"""Team environments by name: environments are put in from above, and the learners find them without importing them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TeamEnvSpec:
    """
    How to build a registered team environment.

    :param id: the name, such as ``"otbaselines/Navigation-v0"``
    :param parallel: builds a PettingZoo ``ParallelEnv`` from keyword arguments; ``None`` where the single copy is
        Gymnasium's, registered there by the same name
    :param tensor: builds a ``TensorVecEnv`` from ``n_copies``, ``device``, ``seed`` and keyword arguments; ``None``
        where there is no batched version
    """

    id: str
    parallel: Callable[..., Any] | None
    tensor: Callable[..., Any] | None = None


#: The known environments by id.
registry: dict[str, TeamEnvSpec] = {}


def register(id: str, parallel_factory: Callable[..., Any] | None, tensor_factory: Callable[..., Any] | None = None) -> None:
    """
    Make an environment known by a name.

    :param id: name, by convention ``"namespace/Name-v0"``
    :param parallel_factory: called with the environment's keyword arguments; ``None`` where the single copy is
        Gymnasium's, registered there by the same name
    :param tensor_factory: called with ``n_copies``, ``device``, ``seed`` and the environment's keyword arguments; ``None``
        where there is no batched version
    :raises ValueError: if the name is empty or taken, or both factories are missing
    """
    if not id:
        raise ValueError("`id` must not be empty; use a name such as 'mine/Gather-v0'")
    if id in registry:
        raise ValueError(f"`id` {id!r} is taken; choose another, or delete it from `otbaselines.envs.registry` first")
    if parallel_factory is None and tensor_factory is None:
        raise ValueError(f"`parallel_factory` and `tensor_factory` of {id!r} are both None; pass at least one")
    registry[id] = TeamEnvSpec(id=id, parallel=parallel_factory, tensor=tensor_factory)
