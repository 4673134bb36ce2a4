"""The algorithms that the command line knows, by the name of their folder."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.bc import BC
from otbaselines.common.offline.algorithm import DatasetAlgorithm
from otbaselines.common.schedules import parse_schedule
from otbaselines.hatrpo import HATRPO
from otbaselines.ippo import IPPO
from otbaselines.iql import IQL
from otbaselines.mappo import MAPPO
from otbaselines.qdot import QDOT
from otbaselines.wbc import WBC
from otbaselines.wfpg import WassersteinFlowPG
from otbaselines.wmatrpo import WMATRPO
from zoo.papers.qdot.adversarial import AdversarialW1
from zoo.papers.qdot.fan import PolicyFan
from zoo.papers.wbc.averaging import averaged, equal_starts

#: Name on the command line, name of the hyperparameter file, name of the output folder.
ALGOS: dict[str, type[BaseAlgorithm]] = {
    "bc": BC,
    "hatrpo": HATRPO,
    "ippo": IPPO,
    "iql": IQL,
    "mappo": MAPPO,
    "qdot": QDOT,
    "wbc": WBC,
    "wfpg": WassersteinFlowPG,
    "wmatrpo": WMATRPO,
}

#: Those that learn from recorded data; their steps are gradient steps.
OFFLINE = frozenset(name for name, algorithm in ALGOS.items() if issubclass(algorithm, DatasetAlgorithm))


def sb3_ppo(*, share_parameters: bool, learning_rate: Any, **settings: Any) -> PPO:
    """
    SB3's PPO with the settings of shared IPPO; it sees every agent of every copy as an environment of its own.

    :param share_parameters: must be true: SB3 knows one policy only
    :param learning_rate: as IPPO takes it
    :param settings: further arguments that both have
    :return: the model
    """
    if not share_parameters:
        raise ValueError("`share_parameters` must be true: SB3's PPO trains one policy for all agents")
    return PPO(learning_rate=parse_schedule(learning_rate), **settings)


def sb3_td3(*, env: VecEnv, **settings: Any) -> TD3:
    """
    SB3's TD3, with the exploration noise of its authors (0.1, in units of half the box), which its default lacks.

    :param env: the environment
    :param settings: further arguments that WassersteinFlowPG has as well
    :return: the model
    """
    size = env.action_space.shape
    return TD3(env=env, action_noise=NormalActionNoise(np.zeros(size or ()), np.full(size or (), 0.1)), **settings)


#: What comparisons train besides. It is not on the command line: loading what SB3 saved would execute pickles.
LEARNERS: dict[str, Callable[..., BaseAlgorithm]] = {
    **ALGOS,
    "sb3-ppo": sb3_ppo,
    "sb3-sac": SAC,
    "sb3-td3": sb3_td3,
    "equal-starts": equal_starts,
    "averaged-gradients": partial(averaged, "gradients"),
    "averaged-scales": partial(averaged, "scales"),
    "adversarial-w1": AdversarialW1,
    "qdot-fan": PolicyFan,
}
