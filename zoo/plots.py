"""
Figures and tables: ``python -m zoo.plots wbc-paper --train``, ``python -m zoo.plots wmatrpo-paper --train`` and
``python -m zoo.plots learning-curve --algo wbc ippo``.

Every training run is kept in a file of its own, so that an interrupted comparison goes on where it stopped, and drawing
costs seconds.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.benchmarks.sb3 import SPREAD
from zoo.config.command import add_training, check_outputs, make_parser, mistakes, n_seeds, shown_command
from zoo.config.registry import OFFLINE
from zoo.drawing.curves import draw_evaluations
from zoo.drawing.tables import show_tables
from zoo.papers.fedirl import command as fedirl_paper
from zoo.papers.qdot import command as qdot
from zoo.papers.qdot import extractions
from zoo.papers.wbc import coefficients as wbc_coefficients
from zoo.papers.wbc import study as wbc_study
from zoo.papers.wbc import tuning as wbc_tuning
from zoo.papers.wbc.comparisons import ESTIMATORS, NAVIGATION, PAPER
from zoo.papers.wbc.team_size import AGENT_TASKS, AVERAGING
from zoo.papers.wfpg import command as wfpg_paper
from zoo.papers.wfpg import metric as wfpg_metric
from zoo.papers.wfpg.curves import CURVE_TASKS
from zoo.papers.wfpg.oscillators import OSCILLATOR_TASKS
from zoo.papers.wmatrpo import command as wmatrpo_paper
from zoo.papers.wmatrpo.metric import METRIC_TASKS
from zoo.runs.comparison import EVAL_EPISODES, Comparison, finished_runs, train_jobs, waiting_jobs
from zoo.runs.folders import numbered_runs, run_name
from zoo.runs.job import Job

#: Name on the command line; a paper's figures are called ``<algo>-paper``.
COMPARISONS: dict[str, Comparison[Any]] = {
    "wbc-paper": PAPER,
    "wbc-estimators": ESTIMATORS,
    "wbc-averaging": AVERAGING,
    "spread": SPREAD,
}
#: Comparisons on several tasks: their help, and the tasks.
ON_TASKS: dict[str, tuple[str, Mapping[str, Comparison[Any]]]] = {
    "wbc-agents": ("tables of WBC in teams of 3, 8 and 16 with critics of their own and shared ones", AGENT_TASKS),
    "wmatrpo-metric": ("tables of WMATRPO under two ground metrics on unlike agents", METRIC_TASKS),
    "wfpg-oscillators": ("cost of chains of oscillators over their optimum, by learner", OSCILLATOR_TASKS),
    "wfpg-curves": ("learning curves of WassersteinFlowPG beside SB3's SAC and TD3", CURVE_TASKS),
}
#: What needs a command of its own: its help, and what describes its options.
STUDIES: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "wbc-transport": ("WBC beside every control where transport should matter", wbc_study.add_options),
    "wbc-tuning": ("the same search for every method of wbc-transport", wbc_tuning.add_options),
    "wbc-coefficients": ("the coefficients that work, by how narrow policies start", wbc_coefficients.add_options),
    "wmatrpo-paper": ("Table 3 and Figure 1 of the W-MATRPO paper", wmatrpo_paper.add_options),
    "qdot": ("table and learning curves of QDOT, IQL and BC on recorded data", qdot.add_options),
    "qdot-extractions": (
        "every way to extract QDOT's policy, at every price, on the critics of one training",
        extractions.add_options,
    ),
    "fedirl-paper": ("Tables 1 and 2, Figure 1 and control tasks of the FedIRL paper", fedirl_paper.add_options),
    "wfpg-paper": ("the policy flow of the Wasserstein formulation, with particles", wfpg_paper.add_options),
    "wfpg-metric": (
        "the solvers of WassersteinFlowPG on values that are known: where the metric of the parameters helps",
        wfpg_metric.add_options,
    ),
}


def compare(tasks: Mapping[str, Comparison[Any]], args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Train if asked to, and draw every run that is finished; the runs of a task are in the folder of its name."""
    chosen = {name: tasks[name] for name in getattr(args, "tasks", tasks)}
    team = getattr(args, "heterogeneous", None)
    overrides = {} if args.n_timesteps == -1 else {"n_timesteps": args.n_timesteps}
    jobs: dict[str, list[tuple[str, Job]]] = {}
    with mistakes(parser):
        for task, comparison in chosen.items():
            folder = Path(args.out) / "runs" / task / (team or "homogeneous" if comparison.teams else "")
            options = {"overrides": overrides, "device": args.device}
            jobs[task] = [
                (comparison.methods[name].label, comparison.job(name, seed, folder, team, **options))
                for seed in range(args.seeds)
                for name in comparison.methods
                if name in args.methods
            ]
        waiting = {
            task: waiting_jobs([job for _, job in jobs[task]], comparison.result, args.eval_episodes)
            for task, comparison in (chosen.items() if args.train else ())
        }
    for task, each in waiting.items():
        train_jobs(each, chosen[task].result, n_episodes=args.eval_episodes, n_processes=args.jobs)
    with mistakes(parser):
        runs = {task: finished_runs(jobs[task], each.result, args.eval_episodes) for task, each in chosen.items()}
    show_tables([comparison.report(runs[task], args) for task, comparison in chosen.items()], args)


def learning_curve(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Draw what ``zoo.train`` measured while it trained."""
    curves = {}
    with mistakes(parser):
        for algo in args.algo:
            for number, run in numbered_runs(Path(args.log_folder, algo), run_name(args.env)).items():
                path = run / "evaluations.npz"
                if path.is_file():
                    try:
                        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                            curves[f"{algo}, run {number}"] = (stored["timesteps"], stored["results"].mean(1))
                    except Exception as error:
                        raise ValueError(f"{str(path)!r} holds no evaluations: {error}") from error
        if not curves:
            raise ValueError(f"no evaluations of {args.algo} on {args.env} in {args.log_folder!r}; train with zoo.train first")
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    draw_evaluations(curves, Path(args.out), title=args.env, offline=OFFLINE.issuperset(args.algo))
    print(f"Drew {len(curves)} runs to {args.out}")


def _add_comparison(parser: argparse.ArgumentParser, tasks: Mapping[str, Comparison[Any]]) -> None:
    add, first = parser.add_argument, next(iter(tasks.values()))
    methods = [*dict.fromkeys(name for comparison in tasks.values() for name in comparison.methods)]
    add("--seeds", type=n_seeds, default=first.seeds, help="seeds 0 .. SEEDS - 1 of every method")
    add("--methods", nargs="+", choices=sorted(methods), default=methods)
    if len(tasks) > 1:
        add("--tasks", nargs="+", choices=[*tasks], default=[*tasks])
    if first.teams:
        teams = sorted(first.teams)
        add("--heterogeneous", nargs="?", const="dynamics", choices=teams, help="how the agents differ")
    add_training(parser, eval_episodes=EVAL_EPISODES, folder=first.folder)
    parser.set_defaults(draw=partial(compare, tasks))


def parser_of_figures() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = make_parser("zoo.plots", "Draw figures.")
    figures = parser.add_subparsers(required=True, metavar="FIGURE")
    for name, comparison in COMPARISONS.items():
        _add_comparison(figures.add_parser(name, help=comparison.help, allow_abbrev=False), {"": comparison})
    for name, (text, tasks) in ON_TASKS.items():
        _add_comparison(figures.add_parser(name, help=text, allow_abbrev=False), tasks)
    for name, (text, add_options) in STUDIES.items():
        add_options(figures.add_parser(name, help=text, allow_abbrev=False))
    curve = figures.add_parser("learning-curve", help="evaluations of runs by zoo.train", allow_abbrev=False)
    curve.add_argument("--algo", nargs="+", default=["wbc", "ippo"])
    curve.add_argument("--env", default=NAVIGATION)
    curve.add_argument("-f", "--log-folder", default="logs")
    curve.add_argument("--out", default="runs/learning_curve.png", help="the PNG")
    curve.set_defaults(draw=learning_curve)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``, that of the process when omitted."""
    parser = parser_of_figures()
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    args.command = shown_command("zoo.plots", argv, trains=hasattr(args, "train"))
    with mistakes(parser):
        check_outputs(getattr(args, "tables", None))
    args.draw(args, parser)


if __name__ == "__main__":
    main()
