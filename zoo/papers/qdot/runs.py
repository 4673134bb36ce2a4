"""The runs of the comparison on recorded data, and what is kept of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from otbaselines import evaluate_team
from otbaselines.ot import displacement_cost
from zoo.papers.qdot.options import price_text, with_tasks
from zoo.runs.comparison import Array, LearningCurve, RunResult
from zoo.runs.job import Job
from zoo.runs.played import play

#: Evaluations during a run, and episodes of each; the last one is measured anew with more episodes.
EVALUATIONS, EPISODES = 10, 5
#: Rows on which the map is looked at.
ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class OfflineMethod:
    """
    One line of the table.

    :param label: in figures and tables
    :param algo: whose hyperparameter file
    :param variants: of the entry in that file
    :param has_alpha: whether there is a price of moving actions
    :param learner: as for :class:`zoo.runs.job.Job`
    """

    label: str
    algo: str
    variants: tuple[str, ...] = ()
    has_alpha: bool = False
    learner: str | None = None


METHODS: Mapping[str, OfflineMethod] = {
    "bc": OfflineMethod(label="BC", algo="bc"),
    "iql": OfflineMethod(label="IQL", algo="iql"),
    "qdot": OfflineMethod(label="QDOT", algo="qdot", has_alpha=True),
    "qdot-map-off": OfflineMethod(label="QDOT, map off", algo="qdot", variants=("map_off",)),
    "weighted": OfflineMethod(label="QDOT, weighted regression", algo="qdot", variants=("weighted_map",), has_alpha=True),
    "regression": OfflineMethod(label="QDOT, plain regression", algo="qdot", variants=("regression",), has_alpha=True),
    "bc-map": OfflineMethod(label="QDOT, map of cloned actions", algo="qdot", variants=("bc_map",), has_alpha=True),
    "best-of": OfflineMethod(label="QDOT, best of several", algo="qdot", variants=("best_of",), has_alpha=True),
    "best-of-map-off": OfflineMethod(label="best of several, map off", algo="qdot", variants=("best_of", "map_off")),
    "adversarial": OfflineMethod(
        label="adversarial W1", algo="iql", variants=("adversarial",), has_alpha=True, learner="adversarial-w1"
    ),
}


class EvaluatedCurve(LearningCurve):
    """Look at the learner ten times in a run; a subclass says how."""

    def _on_training_start(self) -> None:
        model: Any = self.model
        self._every = max(1, model._total_timesteps // EVALUATIONS)

    def _on_step(self) -> bool:
        if self.num_timesteps % self._every == 0:
            self.points.append((self.num_timesteps, self._look(self.model)))
        return True

    def _look(self, model: Any) -> float:
        """
        Play a few episodes.

        :param model: the learner
        :return: what it earned
        """
        return float(evaluate_team(model, model.env, n_eval_episodes=EPISODES).mean_agent_return)


class ReturnCurve(EvaluatedCurve):
    """Remember what a learner earned, and how far the map moved the data's actions."""

    def __init__(self) -> None:
        super().__init__()
        self._displacements: list[float] = []

    def _look(self, model: Any) -> float:
        earned = super()._look(model)
        self._displacements.append(displacement(model))
        return earned

    def fields(self) -> dict[str, Any]:
        return {**super().fields(), "displacements": np.array(self._displacements)}


@dataclass(frozen=True, eq=False, kw_only=True)
class OfflineResult(RunResult):
    """
    One run on recorded data; ``timesteps`` are gradient steps, ``rewards`` mean returns of the evaluations on the way, and
    ``evaluation`` the returns of the episodes after training.

    :param displacements: how far the map moves the data's actions, at the same steps, NaN without a map
    """

    displacements: Array
    recorder: ClassVar[type[LearningCurve]] = ReturnCurve
    may_be_nan: ClassVar[tuple[str, ...]] = ("displacements",)

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        # A run is looked at once at least.
        n = max(1, len(self.timesteps))
        return {**super().shapes(), "timesteps": (n,), "displacements": (n,)}

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """Play the same starts whoever learned."""
        return {"evaluation": play(job, model, n_episodes)}

    @property
    def collapsed(self) -> bool:
        """
        Whether the return after training is below half of the best on the way, both above zero, or above the worst on the way
        where that is negative, and below it by more than episodes differ.
        """
        worst, best, last = min(0.0, float(self.rewards.min())), self.rewards.max(), self.evaluation.mean()
        return bool(last - worst < 0.5 * (best - worst) and best - last > self.evaluation.std())


def displacement(model: Any) -> float:
    """
    :param model: a learner on data
    :return: how far its map moves the data's actions, mean over evenly spaced rows, for actions scaled to [-1, 1]; NaN without
        a map
    """
    if getattr(model.policy, "potential", None) is None:
        return math.nan
    batch = model._rows.batch(model._rows.spread(ROWS))
    with th.no_grad():
        moved = model.policy.transport(batch.observations, batch.actions).clamp(-1.0, 1.0)
        return float(displacement_cost(batch.actions, moved, order=1).mean())


def offline_jobs(
    datasets: Sequence[Path],
    methods: Sequence[str],
    *,
    seeds: int,
    first_seed: int = 0,
    alphas: Sequence[float],
    folder: Path,
    env_id: str | None = None,
    n_timesteps: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[tuple[tuple[str, str], Job]]:
    """
    :param datasets: files
    :param methods: names in :data:`METHODS`
    :param seeds: how many seeds of each
    :param first_seed: the first of them
    :param alphas: prices, for the methods that have one
    :param folder: where the runs go
    :param env_id: where agents are evaluated; the first word of a data set's name when omitted
    :param n_timesteps: gradient steps instead of the entries'
    :param overrides: further changes of the entries
    :return: every run, with the names of its data and its method
    :raises ValueError: as :func:`~zoo.papers.qdot.options.with_tasks` does
    """
    jobs = []
    for path, task in with_tasks(datasets, env_id):
        for seed in range(first_seed, first_seed + seeds):
            for name in methods:
                method = METHODS[name]
                for alpha in alphas if method.has_alpha else [None]:
                    price = {} if alpha is None else {"alpha": alpha}
                    steps = {} if n_timesteps is None else {"n_timesteps": n_timesteps}
                    job = Job.read(
                        method.algo,
                        task,
                        variants=method.variants,
                        overrides={**(overrides or {}), "dataset": str(path), **price, **steps},
                        learner=method.learner,
                        seed=seed,
                        folder=folder / task / path.stem,
                        name="-".join([name, *([] if alpha is None else [f"alpha{price_text(alpha)}"]), f"seed{seed}"]),
                    )
                    label = method.label if alpha is None else f"{method.label}, $\\alpha$ = {price_text(alpha)}"
                    jobs.append(((f"{task}, {path.stem}", label), job))
    return jobs
