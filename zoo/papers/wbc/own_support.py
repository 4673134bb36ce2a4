"""
Why consensus between measures on the agents' own states fails: ``python -m zoo.theory supports``.

The paper compares empirical measures of visited states and actions. Two agents' states are farther apart than any two
actions, so mass is matched between unrelated states, and whoever follows the pull learns to act alike *everywhere*: the
information that a state gives about the action vanishes before the disagreement does.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from otbaselines import WBC
from otbaselines.common.multi_agent.distributions import MaskedCategorical
from otbaselines.wbc.estimators import MetricEstimator
from zoo.drawing.tables import Table
from zoo.papers.wbc.comparisons import NAVIGATION
from zoo.runs.job import Job

#: Label, variant of the entry and coefficient (the entry's when ``None``).
SETTINGS: tuple[tuple[str, str | None, str | float | None], ...] = (
    ("no consensus (IPPO)", None, 0.0),
    ("expected, own states, 0.01", "own", "lin_0.01"),
    ("expected, own states, 0.3", "own", "lin_0.3"),
    ("expected, own states, 1", "own", "lin_1.0"),
    ("expected, own states, 5", "own", "lin_5.0"),
    ("conditional (default)", None, None),
)


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """
    What a trained team does on its last rollout; entropies in nats, means over agents.

    :param reward: mean reward per agent and step
    :param entropy: of the action given the state
    :param information: mutual information of state and action
    :param disagreement: total variation between two agents at the same states
    """

    reward: float
    entropy: float
    information: float
    disagreement: float


def train(variant: str | None, coef: str | float | None, seed: int, n_timesteps: int | None = None) -> WBC:
    """
    :param variant: of the hyperparameter entry
    :param coef: coefficient of the consensus; the entry's when ``None``
    :param seed: of everything random
    :param n_timesteps: agent-steps instead of the entry's
    :return: a team trained on cooperative navigation
    """
    changes = {} if coef is None else {"consensus_coef": coef}
    variants = (variant,) if variant else ()
    job = Job.read("wbc", NAVIGATION, variants=variants, overrides=changes, seed=seed, folder=Path(), name="own-support")
    return job.build().learn(n_timesteps or job.config.n_timesteps)  # type: ignore[return-value]


def behaviour(model: WBC) -> Behaviour:
    """
    :param model: a trained team with discrete actions
    :return: what it does at the observations of its last rollout
    """
    buffer = model.rollout_buffer
    observations = buffer.observations
    assert isinstance(observations, th.Tensor)
    with th.no_grad():
        own: Any = model.policy.team_distribution(observations.flatten(0, 1))
        alike: Any = model.policy.policies_at(observations.flatten(0, 2))
    assert isinstance(own, MaskedCategorical)
    given_state = own.entropy().mean(0)
    marginal = own.probs.mean(0)
    information = -(marginal * marginal.clamp_min(1e-12).log()).sum(-1) - given_state
    pairs = alike.probs.unsqueeze(1) - alike.probs.unsqueeze(2)
    n_agents = pairs.shape[1]
    disagreement = 0.5 * pairs.abs().sum(-1).mean(0).sum() / (n_agents * (n_agents - 1))
    return Behaviour(
        reward=float(buffer.rewards.mean()),
        entropy=float(given_state.mean()),
        information=float(information.mean()),
        disagreement=float(disagreement),
    )


def distances(model: WBC, n_states: int = 32, n_draws: int = 20) -> tuple[float, float, float]:
    """
    How far apart the agents' own states are, in the ground metric.

    :param model: a trained team
    :param n_states: states of each agent
    :param n_draws: samples over which to take the mean
    :return: distance to the nearest state of a team-mate, mean distance between states of team-mates, and the distance
        between two actions
    """
    observations = model.rollout_buffer.observations
    assert isinstance(observations, th.Tensor)
    agents = observations.flatten(3).permute(2, 0, 1, 3).flatten(1, 2)
    spread = agents.flatten(0, 1).std(0)
    points = agents / th.where(spread > 1e-6, spread, 1.0)
    assert isinstance(model.options, MetricEstimator)
    generator = th.Generator().manual_seed(0)
    nearest, mean = [], []
    for _ in range(n_draws):
        first, second = (agent[th.randint(len(agent), (n_states,), generator=generator)] for agent in points[:2])
        between = th.cdist(first, second)
        nearest.append(float(between.min(1).values.mean()))
        mean.append(float(between.mean()))
    return float(np.mean(nearest)), float(np.mean(mean)), model.options.beta * 2**0.5


def supports(args: argparse.Namespace) -> list[Table]:
    """Behaviour by coefficient, and distances between states, as the command line of ``zoo.theory`` says."""
    table = Table(
        f"Trained teams on cooperative navigation, mean over {args.seeds} seeds (range): nats, and total variation",
        ("consensus", "reward", "entropy given the state", "information about the state", "disagreement"),
    )
    gaps: list[tuple[float, float, float]] = []
    for label, variant, coef in SETTINGS:
        found = []
        for seed in range(args.seeds):
            model = train(variant, coef, seed, 2 * 2400 if args.quick else None)
            found.append(behaviour(model))
            if coef == 0.0:
                gaps.append(distances(model))
        columns = ("reward", "entropy", "information", "disagreement")
        table.rows.append((label, *(_mean_and_range([getattr(each, name) for each in found]) for name in columns)))
    space = Table(
        "Distances in the ground metric between 32 states of one agent and 32 of another",
        ("to the nearest", "mean", "between two actions"),
    )
    space.rows.append(tuple(f"{value:.2f}" for value in np.mean(gaps, axis=0)))
    return [table, space]


def _mean_and_range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
