"""Independent copies of a PettingZoo environment: building them, telling them apart, and finding what lies inside."""

import copy as copylib
import hashlib
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import cloudpickle
import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel

from otbaselines.common.settings import COUNT

# PettingZoo carries no type information, so a `ParallelEnv` is anything to the type checker.
TeamEnv: TypeAlias = Any
EnvFactory = Callable[[], Any]

# Attributes under which PettingZoo's and SuperSuit's wrappers and converters keep what they wrap.
INNER_NAMES = ("env", "aec_env", "par_env", "parallel_env")


def build_copies(env_or_factories: Any, n_copies: int = 1) -> list[TeamEnv]:
    """
    Build the copies of an environment that a vector environment steps.

    An environment itself becomes the first copy; the others are deep copies of it, which for environments that inherit
    ``EzPickle`` are rebuilt from their constructor's arguments.

    :param env_or_factories: a factory, a list with one factory or environment per copy, or an environment
    :param n_copies: number of copies; taken from a list's length where one is given
    :return: the copies, all distinct objects
    :raises TypeError: if something else than a PettingZoo environment comes out
    :raises ValueError: if the number of copies is wrong, or copies are the same object, or the environment cannot be copied
    """
    COUNT.check("n_copies", n_copies)
    if isinstance(env_or_factories, list | tuple):
        if not env_or_factories:
            raise ValueError("`env_or_factories` is an empty list; pass one factory per copy")
        if n_copies not in (1, len(env_or_factories)):
            raise ValueError(
                f"`n_copies` is {n_copies}, but `env_or_factories` has {len(env_or_factories)} entries; leave it out"
            )
        copies = [as_parallel(entry() if _is_factory(entry) else entry) for entry in env_or_factories]
    elif _is_factory(env_or_factories):
        copies = [as_parallel(env_or_factories()) for _ in range(n_copies)]
    else:
        original = as_parallel(env_or_factories)
        copies = [original, *(_duplicate(original) for _ in range(n_copies - 1))]
    innermost = {id(list(inner_envs(copy))[-1]) for copy in copies}
    if len(innermost) != len(copies):
        raise ValueError("several copies are one and the same environment; make the factory build a new one at every call")
    return copies


def as_parallel(env: Any) -> TeamEnv:
    """
    Return ``env`` if it is a ``ParallelEnv``, or convert it from an ``AECEnv`` that allows it.

    :param env: a PettingZoo environment
    :return: the parallel environment
    :raises TypeError: if it is no PettingZoo environment
    :raises ValueError: if it is turn-based and cannot be stepped in parallel
    """
    if isinstance(env, ParallelEnv):
        return env
    if isinstance(env, AECEnv):
        if not env.metadata.get("is_parallelizable", False):
            raise ValueError(
                f"{env} is a turn-based AECEnv whose metadata does not say `is_parallelizable`, so its agents cannot act at "
                "once; use its `parallel_env` if it has one"
            )
        parallel: TeamEnv = aec_to_parallel(env)
        return parallel
    raise TypeError(f"expected a PettingZoo ParallelEnv, got {type(env).__name__}; pass an environment or a factory of one")


def _is_factory(value: Any) -> bool:
    return callable(value) and not isinstance(value, ParallelEnv | AECEnv)


def _duplicate(env: TeamEnv) -> TeamEnv:
    try:
        return copylib.deepcopy(env)
    except Exception:
        # Closures and handles that `deepcopy` cannot follow may still survive a round trip through a pickle.
        try:
            duplicate: TeamEnv = cloudpickle.loads(cloudpickle.dumps(env))
        except Exception as error:
            raise ValueError(
                f"{env} can be neither deep-copied nor pickled ({error}); pass a factory, as in `lambda: MyEnv(...)`, instead"
            ) from error
        return duplicate


def inner_envs(env: Any) -> Iterator[Any]:
    """Yield ``env`` and everything that it wraps, from the outside in."""
    seen: set[int] = set()
    while env is not None and id(env) not in seen:
        seen.add(id(env))
        yield env
        # `vars` rather than `getattr`: wrappers forward unknown names to what they wrap.
        held = getattr(env, "__dict__", {})
        env = next((held[name] for name in INNER_NAMES if isinstance(held.get(name), ParallelEnv | AECEnv)), None)


def owner_of(env: Any, name: str) -> Any | None:
    """
    Find the object, from the outside in, that itself has an attribute.

    :param env: the outermost environment
    :param name: name of the attribute
    :return: ``env``, or one of the environments it wraps, or ``None``
    """
    for inner in inner_envs(env):
        if name in getattr(inner, "__dict__", {}) or hasattr(type(inner), name):
            return inner
    return env if hasattr(env, name) else None


def stream_fingerprint(env: Any) -> str | None:
    """
    Digest the states of all random generators that are attributes of an environment or of what it wraps.

    :param env: the environment
    :return: equal for equal states; ``None`` where no generator is found
    """
    states: list[tuple[str, Any]] = []
    for inner in inner_envs(env):
        for name, value in sorted(getattr(inner, "__dict__", {}).items()):
            if isinstance(value, np.random.Generator):
                states.append((name, value.bit_generator.state))
            elif isinstance(value, np.random.RandomState):
                states.append((name, value.get_state(legacy=False)))
            elif isinstance(value, random.Random):
                states.append((name, value.getstate()))
    return hashlib.sha256(pickle.dumps(states)).hexdigest() if states else None


def check_distinct_streams(fingerprints: Sequence[str | None]) -> None:
    """
    Make sure that copies which were just reset with different seeds do not play the same episodes.

    A copy is refused if every generator that can be seen in it is in the same state as in another copy.

    :param fingerprints: what :func:`stream_fingerprint` returns for every copy
    :raises ValueError: if two copies hold the same random streams
    """
    first: dict[str, int] = {}
    for index, fingerprint in enumerate(fingerprints):
        if fingerprint is None:
            continue
        if fingerprint in first:
            raise ValueError(
                f"copies {first[fingerprint]} and {index} have the same random stream although they were reset with different "
                "seeds, so they would play identical episodes; make `reset(seed=...)` of the environment use its seed, or "
                "pass a list of factories that seed their environments differently"
            )
        first[fingerprint] = index


def native_action_space(env: Any, agent: Any) -> spaces.Space[Any]:
    """
    Return an agent's action space from under SuperSuit's ``pad_action_space_v0``, where that is safe.

    The padding wrapper replaces choices that an agent does not have by its first one, so a policy must know which those are.

    :param env: the environment, with any wrappers
    :param agent: identifier of the agent
    :return: the space below the padding; ``env.action_space(agent)`` where nothing is padded, or where a wrapper above
        the padding changes actions once more, or is not PettingZoo's or SuperSuit's, so that it may
    """
    outermost: spaces.Space[Any] = env.action_space(agent)
    for inner in inner_envs(env):
        if type(inner).__module__.partition(".")[0] not in ("supersuit", "pettingzoo"):
            break
        change = getattr(inner, "__dict__", {}).get("change_action_fn")
        if change is None:
            continue
        if change.__qualname__.startswith("pad_action_space_v0."):
            native: spaces.Space[Any] = inner.env.action_space(agent)
            return native
        break
    return outermost
