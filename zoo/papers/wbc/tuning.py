"""
One search for every method of :mod:`zoo.papers.wbc.study`: ``python -m zoo.plots wbc-tuning --train``.

The same number of trials, the same space and the same draws for all; methods without a coefficient ignore its draw. Search
seeds are apart from the test seeds 0, 1, ... What is best by the mean over the search seeds goes to a file of hyperparameters,
which ``zoo.plots wbc-transport --tuned`` reads.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from otbaselines.common.saving.archive import atomic_write
from zoo.config.command import add_training, mistakes, number
from zoo.config.entries import read_yaml
from zoo.drawing.tables import Table, show_tables
from zoo.papers.wbc.evidence import MEASURES, measures
from zoo.papers.wbc.study import CONTESTANTS, FEW_COMMON_PLACES, SETTINGS, StudyResult, contestants, study_job
from zoo.runs.comparison import finished_runs, train_jobs, waiting_jobs
from zoo.runs.job import Job

FOLDER = "runs/wbc-tuning"
#: Where the seeds of the search begin; those of the test begin at zero.
FIRST_SEED = 1000
#: The space, common to all methods. Rollouts have 2400 agent-steps, which all batch sizes divide.
SPACE: dict[str, tuple[Any, ...]] = {
    "learning_rate": (5.0e-4, 1.0e-3, 2.0e-3, 4.0e-3),
    "n_epochs": (3, 5, 10),
    "batch_size": (300, 600, 1200),
    "ent_coef": (0.0, 0.003, 0.01, 0.03),
    "gamma": (0.9, 0.95, 0.99),
}
# The coefficient in units of each method's own: a factor of 30 to both sides of equal stiffness is a factor of 900 in all.
COEFFICIENT_FACTOR = 30.0
# Where agents have few places in common, the pull of a method that sees places does not vanish near agreement, and at equal
# stiffness it drives everybody to the place that all have. Its units are those of a force there, which are this much smaller.
FORCE_UNIT = 0.01


def draw(trial: int) -> tuple[dict[str, Any], float, bool]:
    """
    The settings of a trial, the same for all methods.

    :param trial: its number; trial 0 is the zoo's entry with the coefficient of equal stiffness, annealed
    :return: hyperparameters, the coefficient in units of the method's own, and whether it is annealed to zero
    """
    if trial == 0:
        return {}, 1.0, True
    generator = np.random.default_rng((2026, trial))
    chosen = {name: values[generator.integers(len(values))] for name, values in SPACE.items()}
    factor = float(COEFFICIENT_FACTOR ** generator.uniform(-1.0, 1.0))
    return chosen, factor, bool(generator.integers(2))


def overrides_of(setting: str, method: str, trial: int) -> dict[str, Any]:
    """
    :param setting: a name in :data:`~zoo.papers.wbc.study.SETTINGS`
    :param method: a name in :data:`~zoo.papers.wbc.study.CONTESTANTS`
    :param trial: its number
    :return: the trial's hyperparameters for that method
    """
    chosen, factor, annealed = draw(trial)
    return {**chosen, **coefficient(setting, method, factor, annealed=annealed)}


def coefficient(setting: str, method: str, factor: float, *, annealed: bool) -> dict[str, Any]:
    """
    :param setting: a name in :data:`~zoo.papers.wbc.study.SETTINGS`
    :param method: a name in :data:`~zoo.papers.wbc.study.CONTESTANTS`
    :param factor: the coefficient in units of the method's own
    :param annealed: whether it falls to zero
    :return: the hyperparameter; empty for a method without one
    """
    unit = CONTESTANTS[method].unit
    if unit is None:
        return {}
    if setting in FEW_COMMON_PLACES and CONTESTANTS[method].placed:
        unit *= FORCE_UNIT
    value = float(f"{unit * factor:.3g}")
    return {"consensus_coef": f"lin_{value}" if annealed else value}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add = parser.add_argument
    add("--settings", nargs="+", choices=[*SETTINGS], default=[*SETTINGS])
    add("--methods", nargs="+", choices=[*CONTESTANTS], default=[*CONTESTANTS])
    add("--trials", type=number(1, 1000), default=24, help="of every method in every setting")
    add("--seeds", type=number(1, 1000), default=3, help=f"seeds {FIRST_SEED} .. {FIRST_SEED} + SEEDS - 1 of every trial")
    add("--criterion", choices=[*MEASURES], default="training, whole curve", help="what is best")
    add_training(parser, eval_episodes=100, folder=FOLDER, kept="runs, and for the hyperparameters, tuned.yml")
    parser.set_defaults(draw=search)


def search(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Train if asked to, and write the best of every method whose trials are all finished."""
    steps = {} if args.n_timesteps == -1 else {"n_timesteps": args.n_timesteps}
    jobs: list[tuple[tuple[str, str, int], Job]] = []
    with mistakes(parser):
        for setting in args.settings:
            folder = Path(args.out) / "runs" / setting
            for trial in range(args.trials):
                for method in contestants(setting, args.methods):
                    for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
                        name, options = f"{method}-trial{trial}-seed{seed}", {**overrides_of(setting, method, trial), **steps}
                        job = study_job(setting, method, seed, folder, name=name, overrides=options, device=args.device)
                        jobs.append(((setting, method, trial), job))
        path = Path(args.out) / "tuned.yml"
        read_best(path)
        waiting = waiting_jobs([job for _, job in jobs], StudyResult, args.eval_episodes) if args.train else []
    train_jobs(waiting, StudyResult, n_episodes=args.eval_episodes, n_processes=args.jobs)
    with mistakes(parser):
        runs = finished_runs(jobs, StudyResult, args.eval_episodes)
    column = [*MEASURES].index(args.criterion)
    best: dict[str, dict[str, dict[str, Any]]] = {}
    tables: list[str | Table] = []
    for setting in args.settings:
        table = Table(
            f"{setting}: best of {args.trials} trials over {args.seeds} search seeds by {args.criterion}",
            ("method", "trial", *MEASURES, "trials within 0.01", "hyperparameters"),
        )
        for method in contestants(setting, args.methods):
            found = {trial: runs.get((setting, method, trial), []) for trial in range(args.trials)}
            missing = sum(len(seeds) < args.seeds for seeds in found.values())
            if missing:
                table.rows.append((CONTESTANTS[method].label, f"{missing} unfinished", *["-"] * (len(MEASURES) + 2)))
                continue
            means = np.array([measures(seeds).mean(0) for seeds in found.values()])
            winner = int(means[:, column].argmax())
            values = overrides_of(setting, method, winner)
            best.setdefault(setting, {})[method] = values
            near = int((means[:, column] > means[winner, column] - 0.01).sum())
            cells = [f"{value:.3f}" for value in means[winner]]
            shown = ", ".join(f"{name}={value}" for name, value in values.items()) or "the entry"
            table.rows.append((CONTESTANTS[method].label, str(winner), *cells, str(near), shown))
        tables.append(table)
    show_tables(tables, args)
    with mistakes(parser):
        keep_best(best, path)
    print(f"Hyperparameters are in {path}; what was there of methods that are unfinished, or of other calls, was kept")


def keep_best(best: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """
    Write hyperparameters beside those of other settings and methods that a file has already.

    :param best: hyperparameters by setting and method
    :param path: the file
    """
    kept = read_best(path)
    found = {setting: {**kept.get(setting, {}), **best.get(setting, {})} for setting in {**kept, **best}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(("# Found by python -m zoo.plots wbc-tuning.\n" + yaml.safe_dump(found)).encode())


def read_best(path: Path) -> dict[str, dict[str, Any]]:
    """
    :param path: what :func:`keep_best` wrote, if it has
    :return: hyperparameters by setting and method; nothing where there is no file
    :raises ValueError: if the file holds anything else
    """
    if not path.exists():
        return {}
    found = {setting: methods or {} for setting, methods in read_yaml(path).items()}
    for setting, methods in found.items():
        if not isinstance(methods, Mapping):
            raise ValueError(f"{str(path)!r} has no methods under {setting!r}; move it away, or take another --out")
    return found
