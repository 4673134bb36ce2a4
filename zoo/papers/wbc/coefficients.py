"""
Which strengths of a consensus work, by how narrow policies start: ``python -m zoo.plots wbc-coefficients --train``.

Everything but the coefficient is that of one trial of the search (:mod:`zoo.papers.wbc.tuning`), on the search's seeds. The
pull of a Kullback-Leibler divergence on the mean of a normal grows with the inverse variance, that of transport does not.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.base_class import BaseAlgorithm

from zoo.config.command import add_training, mistakes, number
from zoo.drawing.curves import METHOD_STYLES, STYLE, save
from zoo.drawing.tables import Table, paired_verdict, show_tables, student_interval
from zoo.papers.wbc.evidence import MEASURES, measures
from zoo.papers.wbc.study import CONTESTANTS, SETTINGS, StudyResult, contestants, is_continuous, study_job
from zoo.papers.wbc.tuning import FIRST_SEED, coefficient, draw
from zoo.runs.comparison import Array, finished_runs, train_jobs, waiting_jobs
from zoo.runs.job import Job

FOLDER = "runs/wbc-coefficients"
#: Coefficients, in units of each method's own.
FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)
#: What has no coefficient, and stands beside every one.
REFERENCE = "ippo"
STYLES: dict[str, dict[str, Any]] = {
    "wbc": METHOD_STYLES["WBC"],
    "kl": METHOD_STYLES["KL consensus"],
    "energy": {"color": "#E69F00", "linestyle": "-."},
}


@dataclass(frozen=True, eq=False, kw_only=True)
class CoefficientResult(StudyResult):
    """
    One run.

    :param deviation: mean standard deviation of the policies' normals after training, in steps; NaN for other policies
    """

    deviation: Array
    may_be_nan = ("deviation",)

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """Play the same starts whoever learned, and ask how narrow the policies have become."""
        log_std = getattr(model.policy, "log_std", None)
        deviation = np.nan if log_std is None else float(log_std.detach().exp().mean())
        return {**super().measure(job, model, n_episodes), "deviation": np.array(deviation)}


Runs = Mapping[tuple[str, str, float | None], Sequence[CoefficientResult]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add = parser.add_argument
    chosen = [name for name, each in CONTESTANTS.items() if each.unit is not None and not each.matched]
    add("--settings", nargs="+", choices=[*SETTINGS], default=[name for name in SETTINGS if is_continuous(name)])
    add("--methods", nargs="+", choices=chosen, default=[*STYLES], help="besides IPPO, which has no coefficient")
    add("--trial", type=number(0, 10**6), default=9, help="of wbc-tuning, whose other hyperparameters all have")
    add("--seeds", type=number(2, 1000), default=3, help=f"seeds {FIRST_SEED} .. {FIRST_SEED} + SEEDS - 1 of everything")
    add_training(parser, eval_episodes=100, folder=FOLDER)
    parser.set_defaults(draw=sweep)


def sweep(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Train if asked to, and tabulate and draw every run that is finished."""
    steps = {} if args.n_timesteps == -1 else {"n_timesteps": args.n_timesteps}
    shared = {**draw(args.trial)[0], **steps}
    jobs: list[tuple[tuple[str, str, float | None], Job]] = []
    with mistakes(parser):
        methods = {setting: contestants(setting, args.methods) for setting in args.settings}
        for setting in args.settings:
            folder = Path(args.out) / "runs" / f"trial{args.trial}" / setting
            for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
                for method, factor in [(REFERENCE, None), *((name, f) for name in methods[setting] for f in FACTORS)]:
                    strength = {} if factor is None else coefficient(setting, method, factor, annealed=True)
                    name = f"{method}-seed{seed}" if factor is None else f"{method}-{factor:g}-seed{seed}"
                    options = {"name": name, "overrides": {**shared, **strength}, "device": args.device}
                    jobs.append(((setting, method, factor), study_job(setting, method, seed, folder, **options)))
        every = [job for _, job in jobs]
        waiting = waiting_jobs(every, CoefficientResult, args.eval_episodes) if args.train else []
    train_jobs(waiting, CoefficientResult, n_episodes=args.eval_episodes, n_processes=args.jobs)
    with mistakes(parser):
        runs: Runs = finished_runs(jobs, CoefficientResult, args.eval_episodes)
        # A row of the tables is of the same seeds throughout.
        settings = [s for s in args.settings if all(len(runs.get(key, ())) == args.seeds for key, _ in jobs if key[0] == s)]
        if not settings:
            raise ValueError("no setting has all its runs; take --train")
    left_out = [f"{setting}: not all runs are finished." for setting in args.settings if setting not in settings]
    show_tables([*(table for setting in settings for table in tables(runs, setting, methods[setting])), *left_out], args)
    path = Path(args.out) / f"coefficients_trial{args.trial}.png"
    draw_strengths(runs, {setting: methods[setting] for setting in settings}, path)
    print(f"The figure is {path}")


def tables(runs: Runs, setting: str, methods: Sequence[str]) -> list[Table]:
    """
    :param runs: of the same seeds each
    :param setting: what was trained
    :param methods: its rows
    :return: for each measure, how far every coefficient is ahead of none and the first method ahead of the others; and the
        deviations that were left
    """
    columns = ("method", *(f"{factor:g}" for factor in FACTORS))
    alone = runs[setting, REFERENCE, None]
    found = []
    for column, measure in enumerate(MEASURES):
        none = measures(alone)[:, column]
        title = f"{setting}, {measure}: reward less that of IPPO ({student_interval(none).text()}), by coefficient in units"
        table = Table(title, columns)
        first = methods[0]
        values = {method: [measures(runs[setting, method, factor])[:, column] for factor in FACTORS] for method in methods}
        pairs = [(CONTESTANTS[method].label, each, [none] * len(FACTORS)) for method, each in values.items()]
        for method in methods[1:]:
            label = f"{CONTESTANTS[first].label} less {CONTESTANTS[method].label}"
            pairs.append((label, values[first], values[method]))
        for label, ours, theirs in pairs:
            verdicts = (paired_verdict(*pair) for pair in zip(ours, theirs, strict=True))
            table.rows.append((label, *(f"{x.text('+.3f')}: {said}" for x, said in verdicts)))
        found.append(table)
    left = np.mean([run.deviation for run in alone])
    if np.isfinite(left):
        title = f"{setting}: mean standard deviation after training (IPPO: {left:.3f}), by coefficient in units"
        found.append(Table(title, columns))
        for method in methods:
            deviations = (np.mean([run.deviation for run in runs[setting, method, factor]]) for factor in FACTORS)
            found[-1].rows.append((CONTESTANTS[method].label, *(f"{value:.3f}" for value in deviations)))
    return found


def draw_strengths(runs: Runs, settings: Mapping[str, Sequence[str]], path: Path) -> None:
    """
    Reward of the last ten rollouts by coefficient, one panel a setting; IPPO is the band across.

    :param runs: of the same seeds each
    :param settings: the panels, and the lines of each
    :param path: the PNG
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.8 * len(settings) + 0.8, 3.2), layout="constrained")
        axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        for axis, (setting, methods) in zip(axes, settings.items(), strict=True):
            for method in methods:
                found = [student_interval(measures(runs[setting, method, factor])[:, 1]) for factor in FACTORS]
                means = np.array([each.mean for each in found])
                spread = np.abs(np.array([(each.low, each.high) for each in found]).T - means)
                style = STYLES.get(method, {})
                axis.errorbar(FACTORS, means, spread, label=CONTESTANTS[method].label, capsize=2, lw=1.5, **style)
            alone = student_interval(measures(runs[setting, REFERENCE, None])[:, 1])
            axis.axhline(alone.mean, label="IPPO", lw=1.5, **METHOD_STYLES["IPPO"])
            axis.axhspan(alone.low, alone.high, color=METHOD_STYLES["IPPO"]["color"], alpha=0.15, lw=0)
            axis.set(xscale="log", title=setting, xlabel="coefficient (units)")
            axis.grid(alpha=0.25)
        axes[0].set_ylabel("mean reward per agent and step,\nlast ten rollouts")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=1 + len(settings), frameon=False)
        save(figure, path)
