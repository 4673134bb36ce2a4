"""Optimal-transport reinforcement learning in the API of stable-baselines3."""

from importlib.metadata import PackageNotFoundError, version

from otbaselines import envs, ot
from otbaselines.bc import BC
from otbaselines.common.datasets import OfflineDataset
from otbaselines.common.evaluation.team import TeamEvalCallback, TeamEvaluation, evaluate_team
from otbaselines.common.vec_env.make import make_vec_env
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.fedirl import Client, FedIRL
from otbaselines.hatrpo import HATRPO
from otbaselines.ippo import IPPO
from otbaselines.iql import IQL
from otbaselines.mappo import MAPPO
from otbaselines.qdot import QDOT
from otbaselines.wbc import WBC
from otbaselines.wfpg import WassersteinFlowPG
from otbaselines.wmatrpo import WMATRPO

try:
    __version__ = version("otbaselines")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"

__all__ = [
    "BC",
    "HATRPO",
    "IPPO",
    "IQL",
    "MAPPO",
    "QDOT",
    "WBC",
    "WMATRPO",
    "Client",
    "FedIRL",
    "OfflineDataset",
    "ParallelVecEnv",
    "TeamEvalCallback",
    "TeamEvaluation",
    "TensorVecEnv",
    "WassersteinFlowPG",
    "envs",
    "evaluate_team",
    "make_vec_env",
    "ot",
]
