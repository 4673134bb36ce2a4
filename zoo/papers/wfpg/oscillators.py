"""
Chains of coupled oscillators, from two to as many as there is patience for, against their linear optimum:
``python -m zoo.plots wfpg-oscillators --train``.

States, actions and networks' inputs grow with the chain, its optimum stays known. Costs of learned policies stand over those
of the optimal linear regulator from the same starts under the same noise.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy

from otbaselines.envs.regulators import Regulator
from zoo.drawing.tables import Table, mean_and_interval
from zoo.papers.wfpg.curves import METHODS, EpisodesResult
from zoo.runs.comparison import Array, Comparison, Method
from zoo.runs.job import Job

ENV_ID = "otbaselines/CoupledOscillators-v0"
FOLDER = "runs/wfpg-oscillators"
#: Oscillators in a chain; each has a variant ``n<number>`` in the entry.
CHAINS = (2, 8, 32, 64)


class LinearRegulator:
    """
    The optimal linear regulator as a policy, for systems whose states are observed.

    :param regulator: the system
    """

    def __init__(self, regulator: Regulator) -> None:
        self.regulator, self.gain = regulator, regulator.lqr().gain

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """
        :param observation: states, shape ``(n, state_dim)``
        :param state: not used
        :param episode_start: not used
        :param deterministic: not used
        :return: shares of the largest action, shape ``(n, action_dim)``, and ``state``
        """
        return self.regulator.shares(np.asarray(observation, dtype=np.float64) @ self.gain.T), state


@dataclass(frozen=True, eq=False, kw_only=True)
class CostsResult(EpisodesResult):
    """
    One run, with the linear regulator's episodes beside the agent's.

    :param optimum: returns of the linear regulator from the starts of ``evaluation``, shape ``(n_episodes,)``
    """

    optimum: Array

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """Both play the same starts with the same noise."""
        system = gym.make(job.env_id, **job.config.env_kwargs)
        found = {}
        for name, player in (("evaluation", model), ("optimum", LinearRegulator(system.unwrapped.regulator))):  # type: ignore[attr-defined]
            env = job.make_env(1, evaluation=True)
            played: Any = evaluate_policy(player, env, n_episodes, return_episode_rewards=True, warn=False)  # type: ignore[arg-type]
            found[name] = np.array(played[0])
            env.close()
        system.close()
        return found

    @property
    def excess(self) -> float:
        """Mean cost over that of the optimum, less one."""
        return float(self.evaluation.mean() / self.optimum.mean()) - 1.0


def _report(n: int) -> Callable[[Mapping[str, Sequence[CostsResult]], argparse.Namespace], str]:
    def report(runs: Mapping[str, Sequence[CostsResult]], args: argparse.Namespace) -> str:
        table = Table(
            f"{n} oscillators: means ± half of Student's 95 % interval (range) over the seeds",
            ("learner", "seeds", "steps", "cost over the optimum's, less one, %", "CPU s per run"),
        )
        for label, seeds in runs.items():
            excess = mean_and_interval([100.0 * run.excess for run in seeds], ".0f")
            steps = f"{max(int(run.entry['n_timesteps']) for run in seeds):,}"
            table.rows.append((label, str(len(seeds)), steps, excess, f"{np.median([run.cpu_seconds for run in seeds]):.0f}"))
        return table.markdown()

    return report


def _methods(n: int) -> dict[str, Method]:
    chosen = ("sb3-sac", "sb3-td3", "regression", "regression-gaussian", "first-order-gaussian", "cg-gaussian")
    return {
        name: Method(
            label=METHODS[name].label, algo="wfpg", learner=METHODS[name].learner, variants=(f"n{n}", *METHODS[name].variants)
        )
        for name in chosen
    }


#: By name on the command line.
OSCILLATOR_TASKS: Mapping[str, Comparison[CostsResult]] = {
    f"oscillators-{n}": Comparison(
        help=f"cost of a chain of {n} oscillators over its optimum",
        env_id=ENV_ID,
        methods=_methods(n),
        result=CostsResult,
        report=_report(n),
        seeds=3,
        folder=FOLDER,
        # Gymnasium's form, whose episodes are counted for all learners alike.
        backend="parallel",
    )
    for n in CHAINS
}
