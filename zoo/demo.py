"""
What ``make train`` runs: WBC beside IPPO on cooperative navigation, evaluated, saved and drawn.

``python -m zoo.demo --help`` lists what can be changed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.drawing.figures import draw_learning_curves, draw_policy_maps
from zoo.runs.job import METHODS, Job, RunResult, train_run


def run_demo(*, folder: str, n_timesteps: int | None, seed: int, device: str, progress: bool) -> dict[str, RunResult]:
    """
    Train, evaluate and draw.

    :param folder: where everything goes
    :param n_timesteps: agent-steps of each method instead of the hyperparameter files'
    :param seed: of both
    :param device: where environments and learners live
    :param progress: show progress bars
    :return: the results by label
    """
    results: dict[str, RunResult] = {}
    for name in ("ippo", "wbc"):
        label = METHODS[name].label
        print(f"Training {label} on cooperative navigation (seed {seed})", flush=True)
        job = Job(method=name, seed=seed, folder=folder, n_timesteps=n_timesteps, device=device, progress=progress)
        results[label] = train_run(job)
    ordered = dict(reversed(results.items()))
    draw_learning_curves(
        {label: [run] for label, run in ordered.items()},
        Path(folder) / "learning_curve.png",
        title="Cooperative navigation, three agents, team reward",
        window=10,
    )
    draw_policy_maps(ordered, Path(folder) / "policy_map.png")
    return results


def table(results: dict[str, RunResult]) -> str:
    """
    Compare the methods with the random policy on the same starts.

    :param results: by label
    :return: lines of text
    """
    random = next(iter(results.values())).random
    rows = [
        ("random", random, float("nan"), 0),
        *((k, r.evaluation, r.cpu_seconds, r.timesteps[-1]) for k, r in results.items()),
    ]
    lines = [f"{'policy':<10}{'reward per agent and step':>28}{'agent-steps':>14}{'CPU seconds':>14}"]
    for label, rewards, seconds, steps in rows:
        error = 1.96 * rewards.std() / np.sqrt(len(rewards))
        cost = f"{int(steps):>14,}{seconds:>14.0f}" if steps else f"{'-':>14}{'-':>14}"
        lines.append(f"{label:<10}{f'{rewards.mean():.3f} +/- {error:.3f}':>28}{cost}")
    lines.append(
        f"({len(random)} episodes from the same starts, most probable actions; +/- is the 95 % interval over episodes)"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    :param argv: the arguments; those of the process when omitted
    """
    parser = argparse.ArgumentParser(prog="python -m zoo.demo", description="Train WBC beside IPPO and draw both.")
    parser.add_argument("--out", default="runs/navigation", help="folder for agents and figures")
    parser.add_argument("-n", "--n-timesteps", type=int, default=None, help="agent-steps of each method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto; three agents are fastest on the CPU")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    args = parser.parse_args(argv)
    results = run_demo(
        folder=args.out,
        n_timesteps=args.n_timesteps,
        seed=args.seed,
        device=args.device,
        progress=not args.no_progress,
    )
    print()
    print(table(results))
    print(f"\nAgents, learning curve and policy map are in {args.out}:")
    for path in sorted(Path(args.out).iterdir()):
        print(f"  {path}")


if __name__ == "__main__":
    main()
