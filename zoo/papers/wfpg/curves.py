"""
WassersteinFlowPG beside SB3's SAC and TD3, with the same networks and steps: ``python -m zoo.plots wfpg-curves --train``.

Every run is kept with the returns of its training episodes, so that a comparison that was interrupted goes on where it
stopped. The area under the curve is the mean return of the training episodes over the steps, those with random actions
included, which all learners have.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy

from zoo.drawing.curves import STYLE, confidence_band, save
from zoo.drawing.tables import Table, mean_and_interval
from zoo.runs.comparison import Array, Comparison, LearningCurve, Method, RunResult
from zoo.runs.job import Job

FOLDER = "runs/wfpg-curves"
# Points of a drawn curve.
POINTS = 60


class EpisodeCurve(LearningCurve):
    """Remember the return of every episode that training has finished."""

    def _on_step(self) -> bool:
        self.points += [(self.num_timesteps, info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        """Episodes are what is remembered."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EpisodesResult(RunResult):
    """One run; ``timesteps`` are the ends of its training episodes and ``rewards`` their returns."""

    recorder: ClassVar[type[LearningCurve]] = EpisodeCurve

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """Play the same starts whoever learned, and none that training has seen."""
        env = job.make_env(1, evaluation=True)
        returns = evaluate_policy(model, env, n_episodes, deterministic=True, return_episode_rewards=True, warn=False)[0]
        env.close()
        return {"evaluation": np.array(returns)}

    def curve(self, steps: Array) -> Array:
        """
        :param steps: where to read it
        :return: the mean return of the last ten episodes, of the first one before it has ended
        """
        sums = np.cumsum(np.concatenate([[0.0], self.rewards]))
        last = np.searchsorted(self.timesteps, steps, side="right").clip(min=1)
        first = (last - 10).clip(min=0)
        found: Array = (sums[last] - sums[first]) / (last - first)
        return found

    @property
    def area(self) -> float:
        """Mean return over the steps: each episode counts by its length."""
        lengths = np.diff(np.concatenate([[0.0], self.timesteps]))
        return float((self.rewards * lengths).sum() / lengths.sum())


Runs = Mapping[str, Sequence[EpisodesResult]]


def curves_table(title: str, runs: Runs) -> Table:
    """
    :param title: of the table
    :param runs: of all seeds by learner
    :return: areas under the learning curves, last evaluations and cost
    """
    table = Table(
        f"{title}: means ± half of Student's 95 % interval (range) over the seeds",
        ("learner", "seeds", "area under the curve", "evaluated after training", "CPU s per run"),
    )
    for label, seeds in runs.items():
        cells = [
            mean_and_interval(np.array(each)) for each in zip(*((r.area, r.evaluation.mean()) for r in seeds), strict=True)
        ]
        table.rows.append((label, str(len(seeds)), *cells, f"{np.median([run.cpu_seconds for run in seeds]):.0f}"))
    return table


def draw(runs: Runs, path: Path, *, title: str) -> None:
    """
    :param runs: of all seeds by learner
    :param path: the PNG
    :param title: of the figure
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.8), layout="constrained")
        axis = figure.subplots()
        for label, seeds in runs.items():
            steps = np.linspace(0.0, min(run.timesteps[-1] for run in seeds), POINTS + 1)[1:]
            curves = np.stack([run.curve(steps) for run in seeds])
            (line,) = axis.plot(steps / 1000, curves.mean(0), label=label, lw=1.6)
            if len(seeds) > 1:
                axis.fill_between(steps / 1000, *confidence_band(curves), alpha=0.15, lw=0, color=line.get_color())
        axis.set(xlabel="environment steps (thousands)", ylabel="return of the last ten episodes", title=title)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        axis.grid(alpha=0.25)
        save(figure, path)


def _report(env_id: str) -> Callable[[Runs, argparse.Namespace], str]:
    def report(runs: Runs, args: argparse.Namespace) -> str:
        path = Path(args.out) / f"{env_id}.png"
        draw(runs, path, title=env_id)
        return curves_table(env_id, runs).markdown()

    return report


METHODS: Mapping[str, Method] = {
    "sb3-sac": Method(label="SB3's SAC", algo="wfpg", learner="sb3-sac"),
    "sb3-td3": Method(label="SB3's TD3", algo="wfpg", learner="sb3-td3"),
    "regression": Method(label="regression, pushforward", algo="wfpg", variants=("regression",)),
    "regression-gaussian": Method(label="regression, Gaussian", algo="wfpg", variants=("regression_gaussian",)),
    "first-order": Method(label="first order, pushforward", algo="wfpg", variants=("first_order",)),
    "first-order-gaussian": Method(label="first order, Gaussian", algo="wfpg", variants=("first_order_gaussian",)),
    "cg": Method(label="natural, pushforward", algo="wfpg", variants=("cg",)),
    "cg-gaussian": Method(label="natural, Gaussian", algo="wfpg", variants=("cg_gaussian",)),
    "fixed-bonus": Method(label="regression, fixed bonus", algo="wfpg", variants=("fixed_bonus",)),
    "langevin": Method(label="regression, Langevin", algo="wfpg", variants=("langevin",)),
    "no-entropy": Method(label="regression, no entropy", algo="wfpg", variants=("no_entropy",)),
    "single-critic": Method(label="regression, one critic", algo="wfpg", variants=("single_critic",)),
}

#: By name on the command line.
CURVE_TASKS: Mapping[str, Comparison[EpisodesResult]] = {
    env_id: Comparison(
        help=f"learning curves on {env_id}",
        env_id=env_id,
        methods=METHODS,
        result=EpisodesResult,
        report=_report(env_id),
        seeds=5,
        folder=FOLDER,
    )
    for env_id in ("Pendulum-v1", "Hopper-v5", "HalfCheetah-v5")
}
