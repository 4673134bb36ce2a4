"""``python -m zoo.plots wmatrpo-paper``: Table 3 and Figure 1 of the W-MATRPO paper."""

import argparse
from pathlib import Path

from otbaselines.envs.differential_game import VARIANTS
from zoo.config.command import count, mistakes, n_seeds
from zoo.drawing.tables import show_tables
from zoo.papers.wmatrpo.game import CAATR_CONSTANTS, METHODS, GameResult, game_job
from zoo.papers.wmatrpo.report import distances_table, draw_paths, peaks_table
from zoo.runs.comparison import finished_runs, train_jobs, waiting_jobs

FOLDER = "runs/wmatrpo-paper"
ITERATIONS = 4000
#: The paper's methods, and what else is compared where the goal is the best that there is.
USUAL = ("hatrpo", "hatrpo-caatr", "wmatrpo", "wmatrpo-fixed")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add = parser.add_argument
    add("--train", action="store_true", help="train the runs that do not exist yet")
    add("--seeds", type=n_seeds, default=10, help="seeds 0 .. SEEDS - 1 of every method")
    add("--variant", choices=VARIANTS, default="as_printed", help="of the game")
    add("--agents", type=int, nargs="+", choices=sorted(CAATR_CONSTANTS), help="numbers of agents; all that the variant has")
    add("--methods", nargs="+", choices=[*METHODS], help="all, or the paper's where the printed game makes others pointless")
    add("--iterations", type=count, default=ITERATIONS, help="rounds of 30 joint actions")
    add("--jobs", type=count, default=2, help="training processes, one thread each")
    add("--out", default=FOLDER, help="folder for runs and figures")
    add("--tables", type=Path, default=None, help="write the tables to this file as well")
    parser.set_defaults(draw=compare)


def compare(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Train if asked to, and draw every run that is finished."""
    numbers = args.agents or ([2] if args.variant == "ancestor" else sorted(CAATR_CONSTANTS))
    methods = args.methods or ([*METHODS] if args.variant == "corrected" else USUAL)
    folder = Path(args.out) / "runs"
    with mistakes(parser):
        if args.variant == "ancestor" and [*numbers] != [2]:
            raise ValueError(f"the variant 'ancestor' is a game of two agents, got {numbers}; pass --agents 2")
        jobs = [
            (
                (n_agents, method),
                game_job(
                    method,
                    n_agents=n_agents,
                    variant=args.variant,
                    n_iterations=args.iterations,
                    seed=seed,
                    folder=folder,
                ),
            )
            for seed in range(args.seeds)
            for n_agents in numbers
            for method in methods
        ]
        waiting = waiting_jobs([job for _, job in jobs], GameResult, 1) if args.train else []
    train_jobs(waiting, GameResult, n_episodes=1, n_processes=args.jobs)
    with mistakes(parser):
        runs = finished_runs(jobs, GameResult, 1)
    tables = [
        peaks_table(args.variant, numbers),
        distances_table(runs, args.variant, printed=args.variant == "as_printed"),
    ]
    pairs = {method: seeds for (n_agents, method), seeds in runs.items() if n_agents == 2}
    if pairs:
        figure = Path(args.out) / f"figure1_{args.variant}.png"
        draw_paths(pairs, args.variant, figure)
        print(f"Figure 1 is {figure}")
    show_tables(tables, args)
