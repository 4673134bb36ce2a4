"""``python -m zoo.plots qdot``: what the map is worth on recorded data."""

import argparse
from pathlib import Path

from zoo.config.command import check_distinct, check_outputs, count, count_or_default, mistakes
from zoo.drawing.tables import show_tables
from zoo.papers.qdot.options import add_data, check_options
from zoo.papers.qdot.report import draw_curves, scores_table
from zoo.papers.qdot.runs import METHODS, OfflineResult, offline_jobs
from zoo.runs.comparison import finished_runs, train_jobs, waiting_jobs
from zoo.runs.job import Job

FOLDER, EPISODES = "runs/qdot", 20
#: What the table needs so that nobody takes the extraction for the transport.
USUAL = ("bc", "iql", "qdot-map-off", "qdot")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add = parser.add_argument
    add("--train", action="store_true", help="train the runs that do not exist yet")
    add_data(parser, alphas=[0.3])
    add("--methods", nargs="+", choices=[*METHODS], default=[*USUAL])
    add("-n", "--n-timesteps", type=count_or_default, default=-1, help="gradient steps instead of the YAML entry's")
    add("--eval-episodes", type=count, default=EPISODES, help="episodes after training")
    add("--jobs", type=count, default=2, help="training processes, one thread each")
    add("--out", default=FOLDER, help="folder for runs and figures")
    add("--tables", type=Path, default=None, help="write the table to this file as well")
    parser.set_defaults(draw=compare)


def compare(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Train if asked to, and draw every run that is finished."""
    folder, figure = Path(args.out) / "runs", Path(args.out) / "learning_curves.png"
    with mistakes(parser):
        check_distinct("--methods", args.methods)
        learners = {name: METHODS[name].learner or METHODS[name].algo for name in args.methods}
        check_options(args, learners=learners, elsewhere={"extraction": "--methods"})
        jobs = offline_jobs(
            args.datasets,
            args.methods,
            seeds=args.seeds,
            first_seed=args.first_seed,
            alphas=args.alphas,
            folder=folder,
            env_id=args.env,
            n_timesteps=None if args.n_timesteps == -1 else args.n_timesteps,
            overrides=args.hyperparams,
        )
        waiting: list[Job] = []
        if args.train:
            waiting = waiting_jobs([job for _, job in jobs], OfflineResult, args.eval_episodes, build=True)
            check_outputs(figure)
    train_jobs(waiting, OfflineResult, n_episodes=args.eval_episodes, n_processes=args.jobs)
    with mistakes(parser):
        runs = finished_runs(jobs, OfflineResult, args.eval_episodes)
        check_outputs(figure)
    draw_curves(runs, figure)
    show_tables([scores_table(runs)], args)
    print(f"The learning curves are {figure}")
