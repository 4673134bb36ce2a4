"""Everything that a user may pass as an environment, turned into a vector environment."""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import pettingzoo
import torch as th
from pettingzoo import AECEnv, ParallelEnv
from stable_baselines3.common import env_util
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from otbaselines.common.settings import MANY, Setting, check_settings, is_device
from otbaselines.common.vec_env.copies import as_parallel
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.common.vec_env.registry import registry
from otbaselines.common.vec_env.subproc import SubprocParallelVecEnv
from otbaselines.common.vec_env.supersuit import contains_supersuit, from_supersuit, replace_supersuit

BACKENDS = ("auto", "tensor", "parallel", "subproc")

_SETTINGS = {
    "n_copies": Setting("integer", low=1, high=MANY),
    "seed": Setting("integer", low=0, high=2**32 - 1, optional=True),
    "device": Setting(
        (str, th.device), fits=lambda device: device != "auto" and is_device(device), what="one that torch knows"
    ),
    "env_kwargs": Setting((Mapping,), optional=True),
}

# Which extra brings the package that an id's namespace names.
_EXTRAS = {"mpe2": "mpe"}


def make_vec_env(
    env: Any,
    n_copies: int = 8,
    seed: int | None = None,
    device: th.device | str = "cpu",
    backend: str = "auto",
    env_kwargs: Mapping[str, Any] | None = None,
) -> VecEnv:
    """
    Build ``n_copies`` copies of a team's environment as one vector environment.

    Ids are looked up in this order: environments registered here (``"otbaselines/Navigation-v0"``), modules with a
    ``parallel_env`` (``"mpe2/simple_spread_v3"``), factories (``"package.module:function"``), PettingZoo's register
    (``"sisl/pursuit_v5"``), and Gymnasium's (``"CartPole-v1"``), whose environments are teams of one.

    :param env: an id, a PettingZoo environment, or a factory of one
    :param n_copies: number of copies of the team; the result has ``n_copies * n_agents`` slots
    :param seed: seed of the first reset; copies are seeded differently
    :param device: where a batched environment lives; the other backends compute on the CPU
    :param backend: ``"tensor"`` steps all copies as tensors, ``"parallel"`` one after the other, ``"subproc"`` in
        several processes; ``"auto"`` is ``"tensor"`` where the environment has a batched version, else ``"parallel"``
    :param env_kwargs: keyword arguments for the environment's constructor
    :return: the vector environment
    :raises ValueError: if the id is unknown, or does not go with the backend, or ``n_copies`` is not positive
    :raises ImportError: if the id belongs to a package that is not installed
    :raises TypeError: if an argument is of the wrong type, or ``env`` is nothing of the above, or its constructor does not
        accept ``env_kwargs``; of what an id of the form ``"package.module:function"`` names, classes that are no PettingZoo
        environments and functions of Python's own library are refused without a call
    """
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}, got {backend!r}")
    check_settings(_SETTINGS, {"n_copies": n_copies, "seed": seed, "device": device, "env_kwargs": env_kwargs})
    kwargs = dict(env_kwargs or {})
    if isinstance(env, str):
        return _from_id(env, n_copies, seed, device, backend, kwargs)
    if isinstance(env, VecEnv):
        raise ValueError(f"`env` is already a vector environment ({type(env).__name__}); pass it to the algorithm as it is")
    if isinstance(env, gym.Env):
        raise TypeError("`env` is a Gymnasium environment; pass its id, or the environment itself to the algorithm")
    if backend == "tensor":
        raise ValueError("`backend='tensor'` needs the id of an environment with a batched version; use 'parallel'")
    if isinstance(env, ParallelEnv | AECEnv):
        if kwargs:
            raise ValueError("`env_kwargs` cannot be applied to an environment that is already built; pass an id or a factory")
        return _parallel(env, n_copies, seed, backend)
    if callable(env):
        return _parallel(_Factory(env, kwargs, repr(env)), n_copies, seed, backend)
    raise TypeError(f"`env` must be an id, a PettingZoo environment or a factory of one, got {type(env).__name__}")


def wrap_team_env(env: Any) -> VecEnv | None:
    """
    Turn what was passed to an algorithm as its environment into a vector environment.

    :param env: an id, a PettingZoo environment (which becomes one copy), SuperSuit's vector environment, with any wrappers
        of Stable-Baselines3 around it, or a ``VecEnv``, which is returned as it is
    :return: the vector environment; ``None`` for Gymnasium's environments and ids, which Stable-Baselines3 wraps itself
    :raises TypeError: if ``env`` is none of these
    :raises ValueError: if an id is unknown, or a team is not usable
    """
    if contains_supersuit(env):
        return replace_supersuit(env)
    if isinstance(env, VecEnv):
        return env
    if isinstance(env, ParallelEnv | AECEnv):
        return ParallelVecEnv(env)
    if isinstance(env, gym.Env):
        return None
    if isinstance(env, str):
        return None if _is_gymnasium_id(env) else make_vec_env(env)
    raise TypeError(
        f"`env` must be a Gymnasium or PettingZoo environment, an id or a VecEnv, got {type(env).__name__}; factories go "
        "through `make_vec_env`"
    )


class _Factory:
    """Builds one environment; unlike a closure it names itself when the arguments are refused."""

    def __init__(self, create: Callable[..., Any], kwargs: dict[str, Any], name: str) -> None:
        self._create = create
        self._kwargs = kwargs
        self._name = name

    def __call__(self) -> Any:
        try:
            return self._create(**self._kwargs)
        except TypeError as error:
            if not self._kwargs:
                raise
            raise TypeError(f"{self._name} does not accept `env_kwargs={self._kwargs}`: {error}") from error


def _from_id(
    env_id: str, n_copies: int, seed: int | None, device: th.device | str, backend: str, kwargs: dict[str, Any]
) -> VecEnv:
    spec = registry.get(env_id)
    if spec is not None and spec.tensor is not None and backend in ("auto", "tensor"):
        venv: VecEnv = _Factory(spec.tensor, {"n_copies": n_copies, "device": device, "seed": seed, **kwargs}, env_id)()
        return venv
    if backend == "tensor":
        raise ValueError(f"`backend='tensor'`: {env_id!r} has no batched version; use 'auto', 'parallel' or 'subproc'")
    # What has no PettingZoo form is a single agent's, and as such in Gymnasium's register.
    create = spec.parallel if spec is not None else _find_parallel(env_id)
    if create is not None:
        return _parallel(_Factory(create, kwargs, env_id), n_copies, seed, backend)
    if not _is_gymnasium_id(env_id):
        raise ValueError(_unknown(env_id))
    vec_env_cls = SubprocVecEnv if backend == "subproc" else None
    return env_util.make_vec_env(env_id, n_envs=n_copies, seed=seed, env_kwargs=kwargs, vec_env_cls=vec_env_cls)


def _parallel(env: Any, n_copies: int, seed: int | None, backend: str) -> VecEnv:
    cls = SubprocParallelVecEnv if backend == "subproc" else ParallelVecEnv
    return cls(env, n_copies, seed=seed)


def _find_parallel(env_id: str) -> Callable[..., Any] | None:
    """Return what builds the ``ParallelEnv`` behind an id, or ``None`` where no package or register knows it."""
    if ":" in env_id:
        return _from_entry_point(env_id)
    namespace, _, name = env_id.rpartition("/")
    if namespace in _EXTRAS and importlib.util.find_spec(namespace) is None:
        raise ImportError(f"{env_id!r} needs the package {namespace!r}: pip install otbaselines[{_EXTRAS[namespace]}]")
    for module_name in _module_names(namespace, name):
        module = importlib.import_module(module_name)
        if hasattr(module, "parallel_env"):
            create: Callable[..., Any] = module.parallel_env
            return create
    try:
        spec = pettingzoo.spec("parallel", env_id)
    except Exception:
        # The register has an exception class of its own for every way in which an id can be unknown.
        return None
    return lambda **kwargs: pettingzoo.make("parallel", spec, **kwargs)


def _module_names(namespace: str, name: str) -> list[str]:
    """List the modules that exist for ``"package/task_v1"``, also spelled ``"package/task-v1"`` or ``"package.task_v1"``."""
    path = ".".join(part for part in (namespace.replace("/", "."), name) if part)
    found = []
    for candidate in dict.fromkeys((path, "_v".join(path.rsplit("-v", 1)))):
        package = candidate.rpartition(".")[0]
        # Only packages are searched: an id such as "Hopper-v5" must not import a stray module of the user's.
        if not package or not candidate.replace(".", "").isidentifier():
            continue
        try:
            spec = importlib.util.find_spec(candidate)
        except (ImportError, ValueError):
            continue
        if spec is not None:
            found.append(candidate)
    return found


def _from_entry_point(env_id: str) -> Callable[..., Any] | None:
    module_name, _, name = env_id.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ImportError(f"the id {env_id!r} names the module {module_name!r}, which cannot be imported: {error}") from error
    if not hasattr(module, name):
        # Gymnasium spells "module:Name-v0" for an id that importing the module registers.
        if name in gym.registry:
            return None
        close = difflib.get_close_matches(name, dir(module))
        raise ValueError(f"the id {env_id!r} names {name!r}, which {module_name!r} does not have; close are {close}")
    create: Callable[..., Any] = getattr(module, name)
    if not _may_make_environments(create):
        raise TypeError(
            f"the id {env_id!r} names {create!r}, which makes no environments and was not called; name a class of PettingZoo "
            "environments, or a function that returns one"
        )
    return create


def _may_make_environments(create: Any) -> bool:
    """Whether it is a PettingZoo class, or something to call that is not the standard library's: ``os:system`` has effects."""
    while isinstance(create, partial):
        create = create.func
    if isinstance(create, type):
        return issubclass(create, ParallelEnv | AECEnv)
    origin = getattr(inspect.unwrap(create), "__module__", None) or type(create).__module__
    return callable(create) and origin.partition(".")[0] not in sys.stdlib_module_names


def _is_gymnasium_id(env_id: str) -> bool:
    try:
        # Of "module:Name-v0" the register knows what follows the colon, once the module is imported.
        gym.spec(env_id.rpartition(":")[2])
    except (gym.error.Error, ImportError):
        return False
    return True


def _unknown(env_id: str) -> str:
    known = {*registry, *pettingzoo.parallel_registry, *gym.registry}
    for package in {*_EXTRAS, env_id.partition("/")[0]}:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        paths = spec.submodule_search_locations if spec is not None else None
        known |= {f"{package}/{module.name}" for module in pkgutil.iter_modules(paths or []) if "_v" in module.name}
    # Comparing the last part as well finds an id of the right name with the wrong namespace.
    name = env_id.rpartition("/")[2].lower()
    by_name = {known_id.rpartition("/")[2].lower(): known_id for known_id in sorted(known)}
    close = difflib.get_close_matches(env_id, sorted(known), n=3)
    close += [by_name[match] for match in difflib.get_close_matches(name, list(by_name), n=3)]
    hint = f"did you mean {' or '.join(map(repr, dict.fromkeys(close)))}?" if close else "see `otbaselines.envs.registry`"
    return f"`env` is the unknown id {env_id!r}; {hint}"


__all__ = ["BACKENDS", "as_parallel", "from_supersuit", "make_vec_env", "wrap_team_env"]
