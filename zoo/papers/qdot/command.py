"""``python -m zoo.plots qdot``: what the map is worth on recorded data."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.config.command import StoreAssignments, count, count_or_default, mistakes
from zoo.drawing.tables import write_tables
from zoo.papers.qdot.report import draw_curves, scores_table
from zoo.papers.qdot.runs import METHODS, OfflineResult, offline_jobs
from zoo.runs.comparison import finished_runs, train_jobs

FOLDER = "runs/qdot"
#: What the table needs so that nobody takes the extraction for the transport.
USUAL = ("bc", "iql", "qdot-map-off", "qdot")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add = parser.add_argument
    add("--train", action="store_true", help="train the runs that do not exist yet")
    add("--datasets", type=Path, nargs="+", required=True, help="files of recorded data")
    add("--env", default=None, help="where agents are evaluated; said by the data when omitted")
    add("--seeds", type=count, default=3, help="seeds 0 .. SEEDS - 1 of every method")
    add("--methods", nargs="+", choices=[*METHODS], default=[*USUAL])
    add("--alphas", type=float, nargs="+", default=[0.3], help="prices of moving actions")
    add("-n", "--n-timesteps", type=count_or_default, default=-1, help="gradient steps instead of the YAML entry's")
    params = "changed hyperparameters of every method, such as policy_kwargs.net_arch:[128,128]"
    add("-params", "--hyperparams", nargs="+", action=StoreAssignments, default={}, metavar="KEY:VALUE", help=params)
    add("--eval-episodes", type=count, default=20, help="episodes after training")
    add("--jobs", type=count, default=2, help="training processes, one thread each")
    add("--out", default=FOLDER, help="folder for runs and figures")
    add("--tables", type=Path, default=None, help="write the table to this file as well")
    parser.set_defaults(draw=compare)


def compare(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Train if asked to, and draw every run that is finished."""
    folder = Path(args.out) / "runs"
    with mistakes(parser):
        jobs = offline_jobs(
            args.datasets,
            args.methods,
            seeds=args.seeds,
            alphas=args.alphas,
            folder=folder,
            env_id=args.env,
            n_timesteps=None if args.n_timesteps == -1 else args.n_timesteps,
            overrides=args.hyperparams,
        )
    if args.train:
        train_jobs([job for _, job in jobs], OfflineResult, n_episodes=args.eval_episodes, n_processes=args.jobs)
    with mistakes(parser):
        runs = finished_runs(jobs, OfflineResult, args.eval_episodes)
    figure = Path(args.out) / "learning_curves.png"
    draw_curves(runs, figure)
    text = f"`{command_line(args)}`\n\n{scores_table(runs).markdown()}\n"
    print(text)
    print(f"The learning curves are {figure}")
    write_tables(text, args.tables)


def command_line(args: argparse.Namespace) -> str:
    """The command that makes the same table; data are named without their folders."""
    names = " ".join(path.name for path in args.datasets)
    words = [f"python -m zoo.plots qdot --train --datasets {names} --methods {' '.join(args.methods)} --seeds {args.seeds}"]
    words.append(f"--alphas {' '.join(f'{alpha:g}' for alpha in args.alphas)}")
    if args.n_timesteps != -1:
        words.append(f"-n {args.n_timesteps}")
    if args.hyperparams:
        words.append(f"-params {' '.join(_assignments(args.hyperparams))}")
    return " ".join(words)


def _assignments(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested values as the command line takes them."""
    words = []
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        words += _assignments(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}:{value}".replace(" ", "")]
    return words
