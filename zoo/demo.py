"""
What ``make train`` runs: WBC beside IPPO on cooperative navigation, evaluated, saved and drawn.

``python -m zoo.demo --help`` lists what can be changed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.config.command import count_or_default, device, make_parser, mistakes, seed
from zoo.drawing.curves import draw_learning_curves
from zoo.papers.wbc.comparisons import PAPER, random_reward
from zoo.papers.wbc.maps import NavigationResult, draw_policy_maps
from zoo.runs.comparison import run_job


def table(results: Mapping[str, NavigationResult]) -> str:
    """Compare the methods with the random policy on the same starts."""
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
    """Run the command line ``argv``, that of the process when omitted."""
    parser = make_parser("zoo.demo", "Train WBC beside IPPO and draw both.")
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/navigation"), help="folder for agents and figures")
    add("-n", "--n-timesteps", type=count_or_default, default=-1, help="agent-steps of each method")
    add("--seed", type=seed, default=0)
    add("--device", type=device, default="cpu", help="cpu, cuda or auto; three agents are fastest on the CPU")
    add("--no-progress", action="store_true", help="no progress bars")
    args = parser.parse_args(argv)
    overrides = {} if args.n_timesteps == -1 else {"n_timesteps": args.n_timesteps}
    with mistakes(parser):
        args.out.mkdir(parents=True, exist_ok=True)
        jobs = [PAPER.job(name, args.seed, args.out, overrides=overrides, device=args.device) for name in ("ippo", "wbc")]
    results: dict[str, NavigationResult] = {}
    for job in jobs:
        label = PAPER.methods[job.algo].label
        print(f"Training {label} on cooperative navigation (seed {args.seed})", flush=True)
        results[label] = run_job(job, PAPER.result, progress=not args.no_progress)
    ordered = dict(reversed(results.items()))
    draw_learning_curves(
        {label: [run] for label, run in ordered.items()},
        args.out / "learning_curve.png",
        title="Cooperative navigation, three agents, team reward",
        random=random_reward({label: [run] for label, run in results.items()}),
        window=10,
    )
    draw_policy_maps(ordered, args.out / "policy_map.png")
    print(f"\n{table(results)}\n\nAgents, learning curve and policy map are in {args.out}:")
    for path in sorted(args.out.iterdir()):
        print(f"  {path}")


if __name__ == "__main__":
    main()
