"""
Where the metric of the parameters earns its place: one policy step after the other against slopes that are known,
``python -m zoo.plots wfpg-metric``.

No critic is learned, so that solvers differ in nothing but how the map follows its particles. Every solver has the same number
of rates to choose from on seeds of their own.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines import WassersteinFlowPG
from otbaselines.wfpg.replay import ReplayBatch
from zoo.config.command import count, n_seeds
from zoo.drawing.tables import Table, one_thread, show_tables
from zoo.runs.comparison import Array

OBSERVATIONS, ACTIONS, STATES = 6, 2, 256
#: What each solver may choose from: rates of its optimizer, or lengths of natural steps.
RATES = {"first_order": (1e-3, 3e-3, 1e-2, 3e-2), "regression": (1e-3, 3e-3, 1e-2, 3e-2), "cg": (0.03, 0.1, 0.3, 1.0)}
#: Solvers, and how many times the steps they have; a natural step costs about eight others.
SOLVERS = (("first_order", 1), ("regression", 1), ("cg", 1), ("first_order", 8))
#: Seeds on which they are chosen.
SEARCH = (100, 101)
#: Widths of the policy's layers.
POLICIES: dict[str, list[int]] = {"linear": [], "8": [8], "64, 64": [64, 64]}


@dataclass(frozen=True)
class Problem:
    """
    States are normal, and the value of an action in one is minus a weighted squared distance to the best one.

    :param inputs: condition number of the matrix that makes observations of states
    :param actions: of the weights of the actions' coordinates
    """

    inputs: float
    actions: float

    def make(self, generator: th.Generator) -> "Instance":
        """
        :param generator: of the matrices
        :return: one such problem
        """
        turns = [th.linalg.qr(th.randn(OBSERVATIONS, OBSERVATIONS, generator=generator))[0] for _ in range(2)]
        scales = th.logspace(0.0, -math.log10(self.inputs), OBSERVATIONS) if self.inputs > 1.0 else th.ones(OBSERVATIONS)
        gain = 0.5 * th.randn(OBSERVATIONS, ACTIONS, generator=generator) / math.sqrt(OBSERVATIONS)
        weights = th.tensor([1.0, 1.0 / self.actions])
        return Instance(turns[0] @ scales.diag() @ turns[1], gain, weights, generator)


PROBLEMS = {
    "plain": Problem(1.0, 1.0),
    "ill-scaled observations": Problem(100.0, 1.0),
    "ill-scaled actions": Problem(1.0, 100.0),
}


@dataclass(frozen=True)
class Instance:
    """
    :param mixing: makes observations of states, shape ``(6, 6)``
    :param gain: makes best actions of states, before they are squashed, shape ``(6, 2)``
    :param weights: of squared distances, shape ``(2,)``
    :param generator: of states
    """

    mixing: th.Tensor
    gain: th.Tensor
    weights: th.Tensor
    generator: th.Generator

    def states(self, n: int) -> tuple[th.Tensor, th.Tensor]:
        """
        :param n: how many
        :return: observations, shape ``(n, 6)``, and best actions, shape ``(n, 2)``
        """
        states = th.randn(n, OBSERVATIONS, generator=self.generator)
        return states @ self.mixing, (states @ self.gain).tanh()


class KnownSlopes(WassersteinFlowPG):
    """The policy's step alone; :attr:`best` are the best actions of the minibatch, and :attr:`weights` those of distances."""

    best: th.Tensor
    weights: th.Tensor

    def _velocities(self, seen: Any, u: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
        actions = u.detach().tanh()
        return -2.0 * self.weights * (actions - self.best[: len(u)]) * (1.0 - actions * actions)

    def follow(self, batch: ReplayBatch) -> None:
        """
        :param batch: whose states are looked at
        """
        self._move_policy(batch, th.zeros(()))


class _Spaces(gym.Env[Any, Any]):
    observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)


def left_over(problem: Problem, solver: str, rate: float, *, net_arch: Sequence[int], seed: int, steps: int) -> Array:
    """
    :param problem: which
    :param solver: of :class:`~otbaselines.wfpg.WassersteinFlowPG`
    :param rate: of its optimizer, or the length of a natural step
    :param net_arch: of the policy
    :param seed: of the problem and the policy
    :param steps: of the policy
    :return: what the policy's mean actions still lose, over what they lost at first, and CPU seconds a step, shape ``(2,)``
    """
    found = problem.make(th.Generator().manual_seed(seed))
    rates = {"step_size": rate} if solver == "cg" else {"learning_rate": rate}
    kwargs: dict[str, Any] = {"net_arch": {"pi": [*net_arch], "qf": []}}
    model = KnownSlopes(
        "MlpPolicy",
        _Spaces(),
        solver=solver,
        policy_form="gaussian",
        ent_coef=0.0,
        batch_size=STATES,
        policy_batch_size=STATES,
        buffer_size=1,
        policy_kwargs=kwargs,
        seed=seed,
        device="cpu",
        **rates,  # type: ignore[arg-type]
    )
    model.weights = found.weights
    observations, best = found.states(10_000)

    def loss() -> float:
        with th.no_grad():
            actions = model.policy.actor(observations, th.zeros(len(best), ACTIONS)).tanh()
            return float((found.weights * (actions - best).square()).sum(1).mean())

    first, started = loss(), time.process_time()
    for _ in range(steps):
        seen, model.best = found.states(STATES)
        rows = th.zeros(STATES)
        noise, kicks = th.randn(2, 2, STATES, ACTIONS, generator=found.generator)
        model.follow(ReplayBatch(seen, model.best, rows, rows, rows, seen, noise, kicks))
    return np.array([loss() / first, (time.process_time() - started) / steps])


def rows(seeds: int, steps: int) -> Iterator[tuple[str, ...]]:
    """
    :param seeds: how many are measured
    :param steps: of the policy
    :return: of each problem, policy and solver
    """
    for name, problem in PROBLEMS.items():
        for label, net_arch in POLICIES.items():
            for solver, times in SOLVERS:
                follow = partial(left_over, problem, solver, net_arch=net_arch, steps=times * steps)
                tried = {rate: np.mean([math.log(follow(rate, seed=seed)[0]) for seed in SEARCH]) for rate in RATES[solver]}
                rate = min(tried, key=tried.__getitem__)
                shares, seconds = np.array([follow(rate, seed=seed) for seed in range(seeds)]).T
                shares *= 100.0
                left = f"{math.exp(np.log(shares).mean()):.2g} ({shares.min():.2g} to {shares.max():.2g})"
                cost = f"{times * steps * seconds.mean():.2f}"
                yield name, label, solver, f"{times * steps:,}", f"{rate:g}", left, cost


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add = parser.add_argument
    add("--seeds", type=n_seeds, default=5, help="seeds 0 .. SEEDS - 1 of what is measured")
    add("--steps", type=count, default=300, help="policy steps")
    add("--tables", type=Path, default=None, help="write the table to this file as well")
    parser.set_defaults(draw=draw)


def draw(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Measure all problems, one after the other, on one thread."""
    table = Table(
        f"what is left of the first loss after the policy's steps: geometric mean (range) over {args.seeds} seeds",
        ("problem", "layers of the policy", "solver", "steps", "rate chosen", "loss left, %", "CPU s"),
    )
    with one_thread():
        table.rows.extend(rows(args.seeds, args.steps))
    show_tables([table], args)
