"""
Does parameter-sharing IPPO learn what SB3's PPO learns, what does a central critic add, and what do trust regions? All on
mpe2's simple_spread: ``python -m zoo.plots spread --train``.

One environment, one entry of hyperparameters, one evaluation. SB3's PPO sees every agent of every copy as an environment of
its own, which is how its users train teams with shared parameters.
"""

import argparse
from collections.abc import Mapping, Sequence

from zoo.drawing.returns import returns_table
from zoo.runs.comparison import Comparison, Method
from zoo.runs.played import PlayedResult


def report(runs: Mapping[str, Sequence[PlayedResult]], args: argparse.Namespace) -> str:
    """The table of the learners."""
    return returns_table("mpe2 simple_spread, three agents", runs).markdown()


SPREAD = Comparison(
    help="table of IPPO, MAPPO, HATRPO, WMATRPO and SB3's PPO on mpe2's simple_spread",
    env_id="mpe2/simple_spread-v3",
    methods={
        "ippo": Method(label="`IPPO(share_parameters=True)`", algo="ippo", variants=("sharing",)),
        "sb3-ppo": Method(label="SB3's `PPO`", algo="ippo", variants=("sharing",), learner="sb3-ppo"),
        "mappo": Method(label="`MAPPO()`", algo="mappo"),
        "ippo-own": Method(label="`IPPO()`", algo="ippo"),
        "mappo-own": Method(label="`MAPPO(share_parameters=False)`", algo="mappo", variants=("own_actors",)),
        "hatrpo": Method(label="`HATRPO()`", algo="hatrpo"),
        "wmatrpo": Method(label="`WMATRPO()`", algo="wmatrpo"),
    },
    result=PlayedResult,
    report=report,
    seeds=5,
    folder="runs/spread",
)
