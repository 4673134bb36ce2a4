"""
Does parameter-sharing IPPO learn what SB3's PPO learns, and what does a central critic add? All on mpe2's simple_spread:
``python -m zoo.plots spread --train``.

One environment, one entry of hyperparameters, one evaluation. SB3's PPO sees every agent of every copy as an environment of
its own, which is how its users train teams with shared parameters.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from otbaselines.common.evaluation.team import evaluate_team
from otbaselines.common.vec_env.make import make_vec_env
from zoo.drawing.tables import Table
from zoo.runs.comparison import Array, Comparison, Method, RunResult
from zoo.runs.job import Job


@dataclass(frozen=True, eq=False, kw_only=True)
class SpreadResult(RunResult):
    """
    One run on simple_spread; its evaluation is the mean return per agent of the most probable actions.

    :param sampled: the same of sampled actions, shape ``(n_episodes,)``
    """

    sampled: Array

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """Play the same starts whoever learned, and none that training has seen."""
        returns = []
        for deterministic in (True, False):
            env = make_vec_env(job.env_id, n_copies=8, seed=1000 + job.seed, env_kwargs=job.config.env_kwargs)
            played = evaluate_team(model, env, n_eval_episodes=n_episodes, deterministic=deterministic)
            returns.append(played.episode_agent_returns.mean(1))
            env.close()
        return {"evaluation": returns[0], "sampled": returns[1]}


def report(runs: Mapping[str, Sequence[SpreadResult]], args: argparse.Namespace) -> str:
    """Mean and range over the seeds, as Markdown."""
    table = Table(
        "mpe2 simple_spread, three agents, mean return per agent and episode, mean (range) over the seeds",
        ("learner", "seeds", "most probable actions", "sampled actions", "CPU s per run"),
    )
    for label, seeds in runs.items():
        returns = np.array([(run.evaluation.mean(), run.sampled.mean()) for run in seeds]).T
        cells = (f"{each.mean():.2f} ({each.min():.2f} to {each.max():.2f})" for each in returns)
        table.rows.append((label, str(len(seeds)), *cells, f"{np.median([run.cpu_seconds for run in seeds]):.0f}"))
    return f"`python -m zoo.plots spread --train --seeds {args.seeds}`\n\n{table.markdown()}\n"


SPREAD = Comparison(
    help="table of IPPO, MAPPO and SB3's PPO on mpe2's simple_spread",
    env_id="mpe2/simple_spread-v3",
    methods={
        "ippo": Method(label="`IPPO(share_parameters=True)`", algo="ippo", variants=("sharing",)),
        "sb3-ppo": Method(label="SB3's `PPO`", algo="ippo", variants=("sharing",), learner="sb3-ppo"),
        "mappo": Method(label="`MAPPO()`", algo="mappo"),
        "ippo-own": Method(label="`IPPO()`", algo="ippo"),
        "mappo-own": Method(label="`MAPPO(share_parameters=False)`", algo="mappo", variants=("own_actors",)),
    },
    result=SpreadResult,
    report=report,
    seeds=5,
    folder="runs/spread",
)
