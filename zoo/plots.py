"""
Figures: ``python -m zoo.plots wbc-paper --train --seeds 10`` and ``python -m zoo.plots learning-curve --algo wbc ippo``.

Figures 1 to 3 of Baheri (2025), *Wasserstein-barycenter consensus*. Every training run is kept in a file of its own, so
that an interrupted comparison goes on where it stopped, and drawing costs seconds.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.drawing.figures import (
    bootstrap_band,
    draw_evaluations,
    draw_learning_curves,
    draw_policy_maps,
    draw_state_probabilities,
)
from zoo.runs.job import ESTIMATORS, METHODS, NAVIGATION, Job, Method, RunResult, is_finished, load_run, train_runs

# Variants of the hyperparameter entries, and what titles say of them.
HETEROGENEOUS = {
    "dynamics": "agents of different speed and size",
    "roles": "agents with turned moves",
    "both": "agents of different speed, size and moves",
}


def paper_jobs(args: argparse.Namespace) -> list[Job]:
    """
    List the runs behind the figures.

    :param args: the command line
    :return: every method with every seed
    """
    folder = Path(args.out) / "runs" / (args.heterogeneous or "homogeneous")
    return [
        Job(
            method=method,
            seed=seed,
            folder=str(folder),
            n_timesteps=args.n_timesteps,
            team=args.heterogeneous,
            device=args.device,
        )
        for seed in range(args.seeds)
        for method in args.methods
    ]


def wbc_paper(args: argparse.Namespace) -> None:
    """
    Draw the WBC paper's figures.

    :param args: the command line
    :raises SystemExit: if nothing was trained yet
    """
    runs = _runs(args, METHODS)
    runs = {method.label: runs[method.label] for method in METHODS.values() if method.label in runs}
    suffix = f"_{args.heterogeneous}" if args.heterogeneous else ""
    out = Path(args.out)
    # One run stands for each method: that of the median evaluation, neither the luckiest nor the worst.
    typical = {label: seeds[_median(seeds)] for label, seeds in runs.items()}
    pair: dict[str, RunResult] = {label: typical[label] for label in ("WBC", "IPPO") if label in typical} or typical
    draw_policy_maps(pair, out / f"figure1_policy_maps{suffix}.png")
    draw_state_probabilities(pair, out / f"figure2_action_probabilities{suffix}.png")
    kind = HETEROGENEOUS.get(args.heterogeneous, "equal agents")
    draw_learning_curves(
        runs, out / f"figure3_learning_curves{suffix}.png", title=f"Cooperative navigation, three agents, {kind}"
    )
    print(summary(runs))
    print(f"Figures are in {out}")


def wbc_estimators(args: argparse.Namespace) -> None:
    """
    Compare the forms of the consensus.

    :param args: the command line
    :raises SystemExit: if nothing was trained yet
    """
    print(summary(_runs(args, ESTIMATORS)))


def _runs(args: argparse.Namespace, methods: Mapping[str, Method]) -> dict[str, list[RunResult]]:
    """Train if asked to, and load every run that is finished, by the label of its method."""
    jobs = paper_jobs(args)
    if args.train:
        train_runs(jobs, n_processes=args.jobs)
    runs: dict[str, list[RunResult]] = {}
    for job in jobs:
        if is_finished(job):
            runs.setdefault(methods[job.method].label, []).append(load_run(job.path))
    if not runs:
        raise SystemExit(f"no finished runs with these hyperparameters in {jobs[0].folder}; add --train")
    return runs


def _median(seeds: Sequence[RunResult]) -> int:
    return int(np.argsort([run.evaluation.mean() for run in seeds])[len(seeds) // 2])


def summary(runs: Mapping[str, Sequence[RunResult]]) -> str:
    """
    Compare the methods, mean over seeds with 95 % bootstrap intervals.

    :param runs: by label
    :return: a Markdown table
    """
    lines = [
        "| method | seeds | training, whole curve | training, last 10 rollouts | evaluation | CPU seconds per run |",
        "|---|---|---|---|---|---|",
    ]
    for label, seeds in runs.items():
        columns = [
            np.array([run.rewards.mean() for run in seeds]),
            np.array([run.rewards[-10:].mean() for run in seeds]),
            np.array([run.evaluation.mean() for run in seeds]),
        ]
        cells = []
        for values in columns:
            lower, upper = bootstrap_band(values[:, None])
            cells.append(f"{values.mean():.3f} [{lower[0]:.3f}, {upper[0]:.3f}]")
        seconds = np.mean([run.cpu_seconds for run in seeds])
        lines.append(f"| {label} | {len(seeds)} | {' | '.join(cells)} | {seconds:.0f} |")
    random = np.mean([run.random.mean() for seeds in runs.values() for run in seeds])
    lines.append(f"| random policy | - | - | - | {random:.3f} | - |")
    return "\n".join(lines)


def learning_curve(args: argparse.Namespace) -> None:
    """
    Draw what ``zoo.train`` measured while it trained.

    :param args: the command line
    :raises SystemExit: if there are no evaluations
    """
    curves = {}
    for algo in args.algo:
        # The folder's name is the id with dashes, and the number of the run.
        for path in sorted(Path(args.log_folder, algo).glob(f"{args.env.replace('/', '-')}_*/evaluations.npz")):
            with np.load(path, allow_pickle=False) as stored:
                curves[f"{algo}, run {path.parent.name.rsplit('_', 1)[1]}"] = (
                    stored["timesteps"],
                    stored["results"].mean(1),
                )
    if not curves:
        raise SystemExit(f"no evaluations of {args.algo} on {args.env} in {args.log_folder!r}; train with zoo.train first")
    draw_evaluations(curves, Path(args.out), title=args.env)
    print(f"Drew {len(curves)} runs to {args.out}")


def _add_run_options(parser: argparse.ArgumentParser, methods: list[str]) -> None:
    parser.add_argument("--train", action="store_true", help="train the runs that do not exist yet")
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 .. SEEDS - 1 of every method")
    parser.add_argument("--methods", nargs="+", choices=sorted(methods), default=methods)
    parser.add_argument(
        "--heterogeneous", nargs="?", const="dynamics", choices=sorted(HETEROGENEOUS), help="how the agents differ"
    )
    parser.add_argument("-n", "--n-timesteps", type=int, default=None, help="agent-steps instead of the YAML entry's")
    parser.add_argument("--jobs", type=int, default=2, help="training processes, one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="runs/wbc-paper", help="folder for runs and figures")


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m zoo.plots", description="Draw figures.")
    figures = parser.add_subparsers(required=True, metavar="FIGURE")
    paper = figures.add_parser("wbc-paper", help="Figures 1 to 3 of the WBC paper")
    _add_run_options(paper, list(METHODS))
    paper.set_defaults(draw=wbc_paper)
    estimators = figures.add_parser("wbc-estimators", help="table of the forms of the consensus")
    _add_run_options(estimators, list(ESTIMATORS))
    estimators.set_defaults(draw=wbc_estimators)
    curve = figures.add_parser("learning-curve", help="evaluations of runs by zoo.train")
    curve.add_argument("--algo", nargs="+", default=["wbc", "ippo"])
    curve.add_argument("--env", default=NAVIGATION)
    curve.add_argument("-f", "--log-folder", default="logs")
    curve.add_argument("--out", default="runs/learning_curve.png", help="the PNG")
    curve.set_defaults(draw=learning_curve)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    :param argv: the arguments; those of the process when omitted
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if getattr(args, "seeds", 1) < 1 or getattr(args, "jobs", 1) < 1:
        parser.error("--seeds and --jobs must be at least 1")
    args.draw(args)


if __name__ == "__main__":
    main()
