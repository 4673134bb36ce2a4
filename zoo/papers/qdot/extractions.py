"""
``python -m zoo.plots qdot-extractions``: every way to extract a policy, at every price of moving actions.

All ways of one seed share the critics and the minibatches of one training, so that what they differ by is the extraction and
the map alone; cloning and the weights of implicit Q-learning are two of them.
"""

import argparse
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.base_class import BaseAlgorithm

from otbaselines import QDOT
from zoo.config.command import add_training, check_distinct, check_outputs, mistakes
from zoo.drawing.curves import STYLE, save
from zoo.drawing.tables import Table, mean_and_interval, show_tables, student_interval
from zoo.papers.qdot.fan import IQL_WEIGHTS, PLAIN, PolicyFan, weights_by_name
from zoo.papers.qdot.options import add_data, check_options, price_text, with_tasks
from zoo.papers.qdot.report import scaled
from zoo.papers.qdot.runs import ROWS, EvaluatedCurve
from zoo.runs.comparison import Array, LearningCurve, RunResult, finished_runs, train_jobs, waiting_jobs
from zoo.runs.job import Job
from zoo.runs.played import play

FOLDER, LEARNER = "runs/qdot-extractions", "qdot-fan"
# Of the values in names: systems take file names of 255 bytes.
LONGEST = 200


@dataclass(frozen=True)
class Acting:
    """
    One row of the table.

    :param extraction: as QDOT's; ``"bc"`` is cloning, and ``"iql"`` has the weights of implicit Q-learning
    :param price: of the map, infinity for none
    :param divergence: QDOT's ``noise_divergence``, where there are such weights
    """

    extraction: str
    price: float
    divergence: str = ""

    @property
    def label(self) -> str:
        """In the table."""
        words = {"bc": "BC", "iql": "IQL's weights", "regression": "plain regression", "bc_map": "map of cloned actions"}
        name = words.get(self.extraction, self.extraction.replace("_", " "))
        return f"{name}, {self.divergence} nats" if self.divergence else name

    @property
    def family(self) -> tuple[str, str]:
        """What rows have in common that differ by the price alone."""
        return (self.extraction, self.divergence)

    def choose(self, model: PolicyFan) -> None:
        """Let the model act so from now on."""
        if self.extraction in ("bc_map", "best_of"):
            model.policy.choose((math.inf, PLAIN), acts=self.extraction, moved_by=self.price)
        else:
            weights = {"bc": PLAIN, "regression": PLAIN, "iql": IQL_WEIGHTS}.get(self.extraction, self.divergence)
            model.policy.choose((self.price, weights))


def rows_of(prices: Sequence[float], weights: Sequence[str]) -> list[Acting]:
    """
    :param prices: infinity among them or not
    :param weights: as :class:`~zoo.papers.qdot.fan.PolicyFan` has them
    :return: every way to act that one training gives
    """
    finite = [price for price in prices if math.isfinite(price)]
    rows = [Acting("bc", math.inf), Acting("iql", math.inf)]
    rows += [Acting("weighted_map", price, each) for each in weights if each != PLAIN for price in prices]
    if PLAIN in weights:
        rows += [Acting("regression", price) for price in finite]
    rows += [Acting("bc_map", price) for price in finite]
    return rows + [Acting("best_of", price) for price in (*finite, math.inf)]


class FanCurve(EvaluatedCurve):
    """Remember what every way earned, and what the maps do."""

    def __init__(self) -> None:
        super().__init__()
        self._returns: list[list[float]] = []
        self._moves: list[list[float]] = []
        self._gains: list[list[float]] = []

    def _look(self, model: Any) -> float:
        returns = []
        for row in rows_of([*model.prices, math.inf], model.weights):
            row.choose(model)
            returns.append(super()._look(model))
        moves, gains = model.worth(ROWS)
        self._returns.append(returns)
        self._moves.append(moves)
        self._gains.append(gains)
        return float(np.mean(returns))

    def fields(self) -> dict[str, Any]:
        every = {"rewards": self._returns, "moves": self._moves, "gains": self._gains}
        return {**super().fields(), **{name: np.array(values) for name, values in every.items()}}


@dataclass(frozen=True, eq=False, kw_only=True)
class FanResult(RunResult):
    """
    One training; the rows of the table are columns here: ``rewards`` is of shape ``(n_evaluations, n_rows)`` and
    ``evaluation`` of shape ``(n_episodes, n_rows)``.

    :param moves: how far the maps move the data's actions, shape ``(n_evaluations, n_prices)``
    :param gains: what the critics say that they gain by it, in standard deviations of their values, of the same shape
    """

    moves: Array
    gains: Array
    recorder: ClassVar[type[LearningCurve]] = FanCurve

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        prices = [price for price in self.entry["prices"] if math.isfinite(price)]
        # A run is looked at once at least.
        n, n_rows = max(1, len(self.timesteps)), len(rows_of([*prices, math.inf], weights_by_name(self.entry["weights"])))
        maps = (n, len(prices))
        return {"timesteps": (n,), "rewards": (n, n_rows), "evaluation": (None, n_rows), "moves": maps, "gains": maps}

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """Play the same starts by every way."""
        assert isinstance(model, PolicyFan)
        returns = []
        for row in rows_of([*model.prices, math.inf], model.weights):
            row.choose(model)
            returns.append(play(job, model, n_episodes))
        return {"evaluation": np.stack(returns, 1)}


Runs = Mapping[str, Sequence[FanResult]]


def extractions_table(data: str, runs: Sequence[FanResult], acting: Sequence[Acting], prices: Sequence[float]) -> Table:
    """
    :param data: name of the data
    :param runs: of all seeds
    :param acting: the rows
    :param prices: of the maps, in the order of the runs
    :return: returns after training and the mean of the evaluations in its second half, what the row has ahead of cloning and
        of IQL's weights, what the map adds to the same extraction without one, how far it moves actions, and what the critics
        say of that
    """
    finals = np.stack([scaled(data, run.evaluation.mean(0)) for run in runs])
    late = np.stack([scaled(data, run.rewards[len(run.rewards) // 2 :].mean(0)) for run in runs])
    ahead = {name: finals[:, [k]] for k, name in enumerate(["BC", "IQL"])}
    steps, n = int(runs[0].entry["n_timesteps"]), len(runs)
    title = (
        f"{data}: normalised returns after {steps:,} gradient steps, {n} seeds, mean ± half of Student's 95 % interval "
        "(range), and paired differences [interval]"
    )
    columns = (
        "policy",
        "price",
        "after training",
        "second half",
        "less BC",
        "less IQL's weights",
        "less map off",
        "moved",
        "said gain",
    )
    table = Table(title, columns)
    off = {row.family: k for k, row in enumerate(acting) if math.isinf(row.price)}
    off[("regression", "")] = off[("bc_map", "")] = off[("bc", "")]
    for k, row in enumerate(acting):
        without, is_on = off[row.family], math.isfinite(row.price)
        at = prices.index(row.price) if is_on else 0
        table.rows.append(
            (
                row.label,
                price_text(row.price) if is_on else "-",
                mean_and_interval(finals[:, k], ".1f"),
                mean_and_interval(late[:, k], ".1f"),
                *(_difference(finals[:, [k]] - other) for other in ahead.values()),
                _difference(finals[:, [k]] - finals[:, [without]]) if is_on else "-",
                f"{np.mean([run.moves[-1, at] for run in runs]):.3f}" if is_on else "-",
                f"{np.mean([run.gains[-1, at] for run in runs]):.3f}" if is_on else "-",
            )
        )
    return table


def draw_prices(runs: Mapping[str, Sequence[FanResult]], acting: Sequence[Acting], path: Path) -> None:
    """
    Returns over the price of moving actions, one panel for each data set, with bars from the worst seed to the best; rows
    without a map are lines across.

    :param runs: of all seeds, by name of the data
    :param acting: the rows
    :param path: the PNG
    """
    families = list(dict.fromkeys(row.family for row in acting))
    colours = {family: f"C{k}" for k, family in enumerate(families)}
    with mpl.rc_context(STYLE):
        width = max(7.0, 1.0 + 3.6 * len(runs))
        figure = Figure(figsize=(width, 4.8), layout="constrained")
        axes = figure.subplots(1, len(runs), squeeze=False)[0]
        for axis, (data, seeds) in zip(axes, runs.items(), strict=True):
            finals = np.stack([scaled(data, run.evaluation.mean(0)) for run in seeds])
            means = finals.mean(0)
            bars = np.stack([means - finals.min(0), finals.max(0) - means])
            for family in families:
                at = [k for k, row in enumerate(acting) if row.family == family]
                on = [k for k in at if math.isfinite(acting[k].price)]
                label, colour = (acting[at[0]].label, colours[family])
                if on:
                    prices = [acting[k].price for k in on]
                    axis.errorbar(prices, means[on], bars[:, on], marker="o", ms=4, capsize=3, color=colour, label=label)
                for k in sorted({*at} - {*on}):
                    text = f"{label}, no map" if on else label
                    axis.axhline(means[k], color=colour, ls="--", lw=1.2, label=text)
            axis.set(xscale="log", xlabel=r"price $\alpha$", ylabel="normalised return", title=data)
            axis.grid(alpha=0.25)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=int(width // 2.6), frameon=False)
        save(figure, path)


def _difference(values: Array) -> str:
    if not np.any(values):
        return "0"
    return student_interval(values.ravel()).text(".1f") if len(values) > 1 else f"{values.item():.1f}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add_training(parser, eval_episodes=20, folder=FOLDER, kept="runs and the figure")
    add = parser.add_argument
    add_data(parser, alphas=[0.01, 0.1, 0.3, 1.0, 5.0])
    add("--divergences", nargs="+", type=float, default=[0.05], help="QDOT's noise_divergence, in nats")
    parser.set_defaults(draw=compare)


def _check(args: argparse.Namespace) -> None:
    divergence = replace(QDOT.setting_ranges["noise_divergence"], optional=False)
    for value in args.divergences:
        divergence.check("--divergences", value)
    check_distinct("--divergences", args.divergences)
    elsewhere = {"prices": "--alphas", "weights": "--divergences", "device": "--device"}
    check_options(args, learners={"their learner": LEARNER}, elsewhere=elsewhere)


def _name(prices: Sequence[float], divergences: Sequence[float], seed_of_run: int) -> str:
    """Of a run in files: all prices, or, where the system would not take so long a name, a hash of them."""
    values = "-".join(["alpha", *map(str, prices), "nats", *map(str, divergences)])
    if len(values) > LONGEST:
        digest = hashlib.sha256(values.encode()).hexdigest()[:16]
        values = f"alpha-{len(prices)}-prices-nats-{len(divergences)}-{digest}"
    return f"{values}-seed{seed_of_run}"


def compare(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Train if asked to, and tell of every run that is finished."""
    weights, prices = [PLAIN, *args.divergences], list(args.alphas)
    figure = Path(args.out) / "prices.png"
    steps = {} if args.n_timesteps == -1 else {"n_timesteps": args.n_timesteps}
    jobs: list[tuple[str, Job]] = []
    with mistakes(parser):
        _check(args)
        for path, task in with_tasks(args.datasets, args.env):
            for seed_of_run in range(args.first_seed, args.first_seed + args.seeds):
                job = Job.read(
                    "qdot",
                    task,
                    overrides={
                        **args.hyperparams,
                        **steps,
                        "dataset": str(path),
                        "prices": [*prices, math.inf],
                        "weights": weights,
                    },
                    learner=LEARNER,
                    seed=seed_of_run,
                    folder=Path(args.out) / "runs" / task / path.stem,
                    name=_name(prices, args.divergences, seed_of_run),
                    device=args.device,
                )
                # Every extraction at every price is trained, whichever a task's entry prefers.
                entry = {name: value for name, value in job.entry.items() if name not in ("extraction", "alpha")}
                jobs.append((f"{task}, {path.stem}", replace(job, entry=entry)))
        waiting: list[Job] = []
        if args.train:
            waiting = waiting_jobs([job for _, job in jobs], FanResult, args.eval_episodes, build=True)
            check_outputs(figure)
    train_jobs(waiting, FanResult, n_episodes=args.eval_episodes, n_processes=args.jobs)
    with mistakes(parser):
        runs = finished_runs(jobs, FanResult, args.eval_episodes)
        check_outputs(figure)
    acting = rows_of([*prices, math.inf], weights_by_name(weights))
    draw_prices(runs, acting, figure)
    show_tables([extractions_table(data, found, acting, prices) for data, found in runs.items()], args)
    print(f"The figure is {figure}")
