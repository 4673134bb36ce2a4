"""The comparisons of the WBC paper on cooperative navigation: its Figures 1 to 3, and the forms of the consensus."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.drawing.curves import SMOOTHED, draw_learning_curves, moving_average
from zoo.papers.wbc.evidence import evidence_tables
from zoo.papers.wbc.maps import NavigationResult, draw_policy_maps, draw_state_probabilities
from zoo.runs.comparison import Comparison, Method

NAVIGATION = "otbaselines/Navigation-v0"
FOLDER = "runs/wbc-paper"
TEAMS = {
    "dynamics": "agents of different speed and size",
    "roles": "agents with turned moves",
    "both": "agents of different speed, size and moves",
}
Runs = Mapping[str, Sequence[NavigationResult]]


def draw_paper(runs: Runs, args: argparse.Namespace) -> str:
    """Draw Figures 1 to 3, and return the table of the runs."""
    suffix = f"_{args.heterogeneous}" if args.heterogeneous else ""
    # One run stands for each method: that of the median evaluation, neither the luckiest nor the worst.
    typical = {label: sorted(seeds, key=lambda run: run.evaluation.mean())[len(seeds) // 2] for label, seeds in runs.items()}
    first, second = "WBC", "IPPO"
    pair: dict[str, NavigationResult] = {label: typical[label] for label in (first, second) if label in typical} or typical
    out = Path(args.out)
    draw_policy_maps(pair, out / f"figure1_policy_maps{suffix}.png")
    draw_state_probabilities(pair, out / f"figure2_action_probabilities{suffix}.png")
    title = f"Cooperative navigation, three agents, {TEAMS.get(args.heterogeneous, 'equal agents')}"
    draw_learning_curves(runs, out / f"figure3_learning_curves{suffix}.png", title=title, random=random_reward(runs))
    print(f"Figures are in {out}")
    found = rollouts_to_pass(runs[first], runs[second]) if {first, second} <= {*runs} else None
    if found is None:
        return summary(runs, args)
    said = f"{first} first has the mean reward of {second}'s last ten rollouts after {found[0]} of {found[1]}."
    return f"{summary(runs, args)}\n\n{said}"


def rollouts_to_pass(first: Sequence[NavigationResult], second: Sequence[NavigationResult]) -> tuple[int, int] | None:
    """
    :param first: runs of one method
    :param second: runs of another
    :return: after how many rollouts, and of how many, the first one's mean over seeds and five rollouts is for the first time
        as high as the second one's over seeds and the last ten; None if it never is, or the seeds differ in number
    """
    if len(first) != len(second):
        return None
    n = min(len(run.rewards) for run in first)
    curve = moving_average(np.mean([run.rewards[:n] for run in first], axis=0), SMOOTHED)
    passed = np.flatnonzero(curve >= np.mean([run.rewards[-10:].mean() for run in second]))
    passed = passed[passed >= SMOOTHED - 1]
    return (int(passed[0]) + 1, n) if len(passed) else None


def summary(runs: Runs, args: argparse.Namespace) -> str:
    """Compare the methods in Markdown tables: means with Student's intervals, and paired differences."""
    return "\n\n".join(table.markdown() for table in evidence_tables(runs, n_seeds=args.seeds))


def random_reward(runs: Runs) -> float:
    """Mean reward per agent and step of uniformly random actions."""
    return float(np.mean([run.random.mean() for seeds in runs.values() for run in seeds]))


PAPER = Comparison(
    help="Figures 1 to 3 of the WBC paper",
    env_id=NAVIGATION,
    methods={
        "wbc": Method(label="WBC", algo="wbc"),
        "kl": Method(label="KL consensus", algo="wbc", variants=("kl",)),
        "sharing": Method(label="parameter sharing", algo="ippo", variants=("sharing",)),
        "sharing-id": Method(label="parameter sharing with identity", algo="ippo", variants=("sharing", "identity")),
        "kl-placed": Method(label="KL consensus on placed labels", algo="wbc", variants=("kl", "placed")),
        "zero-one": Method(label="WBC, 0/1 metric on placed labels", algo="wbc", variants=("zero-one",)),
        "ippo": Method(label="IPPO", algo="ippo"),
    },
    result=NavigationResult,
    report=draw_paper,
    folder=FOLDER,
    teams=TEAMS,
)

ESTIMATORS = Comparison(
    help="table of the forms of the consensus",
    env_id=NAVIGATION,
    methods={
        "wbc": Method(label="conditional (default)", algo="wbc"),
    }
    | {
        name: Method(label=label, algo="wbc", variants=(name,))
        for name, label in (
            ("paper", "as printed: own samples, plan, no debiasing, reg 0.1, 0.5"),
            ("sampled-plan", "own samples, plan, debiased"),
            ("sampled-potential", "own samples, potential, debiased"),
            ("sliced", "own samples, sliced, plan"),
            ("sliced-potential", "own samples, sliced, potential"),
            ("own", "expected, own states"),
            ("pooled", "expected, pooled states"),
            ("biased", "conditional, not debiased"),
            ("sharp", "conditional, reg 0.2"),
            ("by-return", "conditional, weighted by return"),
            ("moves", "conditional, actions placed by their displacements"),
        )
    },
    result=NavigationResult,
    report=summary,
    folder=FOLDER,
    teams=TEAMS,
)
