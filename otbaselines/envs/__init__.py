"""
Team environments, each as a PettingZoo ``ParallelEnv`` and as a batched ``TensorVecEnv`` with the same dynamics; regulators,
in Gymnasium's register and batched; and the single-agent environments of federated inverse reinforcement learning, in
Gymnasium's register.
"""

import difflib
from typing import Any

import torch as th
from pettingzoo import ParallelEnv

from otbaselines.common.vec_env.registry import TeamEnvSpec, register, registry
from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.envs import client_variants, gridworld
from otbaselines.envs.differential_game import DifferentialGameConfig, DifferentialGameEnv
from otbaselines.envs.differential_game_tensor import DifferentialGameVecEnv
from otbaselines.envs.navigation import NavigationConfig, NavigationEnv
from otbaselines.envs.navigation_tensor import NavigationVecEnv
from otbaselines.envs.regulators import CoupledOscillators, LQRSolution, PendulumRegulator, Regulator, ScalarRegulator
from otbaselines.envs.regulators_gym import CoupledOscillatorsEnv, PendulumRegulatorEnv, ScalarRegulatorEnv
from otbaselines.envs.regulators_tensor import CoupledOscillatorsVecEnv, PendulumRegulatorVecEnv, ScalarRegulatorVecEnv
from otbaselines.envs.simple_spread import SimpleSpreadConfig, SimpleSpreadEnv
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv

__all__ = [
    "CoupledOscillators",
    "CoupledOscillatorsEnv",
    "CoupledOscillatorsVecEnv",
    "DifferentialGameConfig",
    "DifferentialGameEnv",
    "DifferentialGameVecEnv",
    "LQRSolution",
    "NavigationConfig",
    "NavigationEnv",
    "NavigationVecEnv",
    "PendulumRegulator",
    "PendulumRegulatorEnv",
    "PendulumRegulatorVecEnv",
    "Regulator",
    "ScalarRegulator",
    "ScalarRegulatorEnv",
    "ScalarRegulatorVecEnv",
    "SimpleSpreadConfig",
    "SimpleSpreadEnv",
    "SimpleSpreadVecEnv",
    "client_variants",
    "gridworld",
    "make_parallel",
    "make_tensor",
    "register",
    "registry",
]


def make_parallel(id: str, **env_kwargs: Any) -> ParallelEnv[Any, Any, Any]:
    """
    Build one copy as a PettingZoo environment.

    :param id: a registered name
    :param env_kwargs: the environment's own arguments
    :return: the environment
    :raises ValueError: if the name is unknown or has no PettingZoo form
    """
    parallel = _spec(id).parallel
    if parallel is None:
        raise ValueError(f"`id` {id!r} is a single agent's; use `gymnasium.make`, or `make_tensor` for its batched version")
    env: ParallelEnv[Any, Any, Any] = parallel(**env_kwargs)
    return env


def make_tensor(
    id: str, n_copies: int, device: th.device | str = "cpu", seed: int | None = None, **env_kwargs: Any
) -> TensorVecEnv:
    """
    Build many copies as one batched environment.

    :param id: a registered name
    :param n_copies: number of copies of the team
    :param device: where they live
    :param seed: seed of all randomness; drawn from the operating system when omitted
    :param env_kwargs: the environment's own arguments
    :return: the environment
    :raises ValueError: if the name is unknown or has no batched version
    """
    tensor = _spec(id).tensor
    if tensor is None:
        raise ValueError(f"`id` {id!r} has no batched version; use `make_parallel`")
    env: TensorVecEnv = tensor(n_copies=n_copies, device=device, seed=seed, **env_kwargs)
    return env


def _spec(id: str) -> TeamEnvSpec:
    if id in registry:
        return registry[id]
    names = {name.lower(): name for name in registry}
    close = [names[match] for match in difflib.get_close_matches(id.lower(), names, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise ValueError(f"`id` {id!r} is unknown; {hint}known are {', '.join(sorted(registry))}")


register("otbaselines/Navigation-v0", NavigationEnv, NavigationVecEnv)
register("otbaselines/SimpleSpread-v0", SimpleSpreadEnv, SimpleSpreadVecEnv)
register("otbaselines/DifferentialGame-v0", DifferentialGameEnv, DifferentialGameVecEnv)
register("otbaselines/ScalarRegulator-v0", None, ScalarRegulatorVecEnv)
register("otbaselines/PendulumRegulator-v0", None, PendulumRegulatorVecEnv)
register("otbaselines/CoupledOscillators-v0", None, CoupledOscillatorsVecEnv)
