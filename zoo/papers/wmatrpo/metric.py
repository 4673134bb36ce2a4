"""
Does a trust region gain by knowing what actions do? ``python -m zoo.plots wmatrpo-metric --train``.

Two teams of unlike agents, on which the Wasserstein-1 distance of two policies is taken once under the distances between the
moves that actions make, and once under the one-hot metric, which is the total variation.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

from zoo.drawing.returns import returns_table
from zoo.runs.comparison import Comparison, Method
from zoo.runs.played import PlayedBesideRandom

FOLDER = "runs/wmatrpo-metric"
Runs = Mapping[str, Sequence[PlayedBesideRandom]]


def _methods(*team: str) -> dict[str, Method]:
    return {
        "moves": Method(label="WMATRPO, distances between moves", algo="wmatrpo", variants=(*team, "moves")),
        "one-hot": Method(label="WMATRPO, one-hot", algo="wmatrpo", variants=team),
        "hatrpo": Method(label="HATRPO", algo="hatrpo", variants=team),
        "ippo": Method(label="IPPO", algo="ippo", variants=team),
    }


def _report(title: str) -> Callable[[Runs, argparse.Namespace], str]:
    def report(runs: Runs, args: argparse.Namespace) -> str:
        return returns_table(title, runs).markdown()

    return report


#: By name on the command line.
METRIC_TASKS: Mapping[str, Comparison[PlayedBesideRandom]] = {
    "navigation": Comparison(
        help="cooperative navigation of agents whose moves are turned",
        env_id="otbaselines/Navigation-v0",
        methods=_methods("roles"),
        result=PlayedBesideRandom,
        report=_report("Cooperative navigation, three agents with turned moves"),
        seeds=5,
        folder=FOLDER,
    ),
    "speaker-listener": Comparison(
        help="mpe2's speaker and listener",
        env_id="mpe2/simple_speaker_listener-v4",
        methods=_methods(),
        result=PlayedBesideRandom,
        report=_report("mpe2 simple_speaker_listener"),
        seeds=5,
        folder=FOLDER,
    ),
}
