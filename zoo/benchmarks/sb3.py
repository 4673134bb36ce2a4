"""
Does parameter-sharing IPPO learn what SB3's PPO learns, what does a central critic add, and what do trust regions? All on
mpe2's simple_spread: ``python -m zoo.plots spread --train``.

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
from zoo.drawing.tables import Table, mean_and_interval
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
    """Mean, Student's interval and range over the seeds, and the price, as Markdown."""
    table = Table(
        "mpe2 simple_spread, three agents, return per agent and episode, mean ± half of Student's 95 % interval (range) over "
        "the seeds",
        ("learner", "seeds", "most probable actions", "sampled actions", "CPU s per run", "agent-steps per CPU s"),
    )
    for label, seeds in runs.items():
        returns = np.array([(run.evaluation.mean(), run.sampled.mean()) for run in seeds]).T
        seconds = float(np.median([run.cpu_seconds for run in seeds]))
        rate = seeds[0].timesteps[-1] / seconds
        cells = (mean_and_interval(each) for each in returns)
        table.rows.append((label, str(len(seeds)), *cells, f"{seconds:.0f}", f"{rate:,.0f}"))
    return f"`python -m zoo.plots spread --train --seeds {args.seeds}`\n\n{table.markdown()}\n"


SPREAD = Comparison(
    help="table of IPPO, MAPPO, HATRPO, WMATRPO and SB3's PPO on mpe2's simple_spread",
    env_id="mpe2/simple_spread-v3",
    methods={
        "ippo": Method(label="`IPPO(share_parameters=True)`", algo="ippo", variants=("sharing",)),
        "sb3-ppo": Method(label="SB3's `PPO`", algo="ippo", variants=("sharing",), learner="sb3-ppo"),
        "mappo": Method(label="`MAPPO()`", algo="mappo"),
        "ippo-own": Method(label="`IPPO()`", algo="ippo"),
        "mappo-own": Method(label="`MAPPO(share_parameters=False)`", algo="mappo", variants=("own_actors",)),
        "hatrpo": Method(label="`HATRPO()`", algo="hatrpo"),
        "wmatrpo": Method(label="`WMATRPO()`", algo="wmatrpo"),
    },
    result=SpreadResult,
    report=report,
    seeds=5,
    folder="runs/spread",
)
