"""Steps of first and second order: how many of either bring the particle flow to within one per cent of the optimum."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from otbaselines.envs import Regulator
from otbaselines.wfpg import ParticleFlow
from zoo.drawing.tables import Table
from zoo.papers.wfpg.systems import SYSTEMS, System

#: A flow has arrived when its cost is this near to the optimum, relative to it.
NEAR = 0.01
#: How many times smaller and larger a step than the best is shown as well.
ASIDE = 4.0
#: Newton steps after which the curvature alone has found the optimum to all digits shown.
_CONVERGED = 30


@dataclass(frozen=True)
class Walk:
    """
    One flow.

    :param costs: before the first step and after each one
    :param cpu_seconds: of the whole walk
    """

    costs: tuple[float, ...]
    cpu_seconds: float

    def arrival(self, optimum: float) -> int | None:
        """
        :param optimum: the least cost
        :return: how many steps it takes to come near, ``None`` where it never does
        """
        near = np.flatnonzero(np.array(self.costs) <= (1.0 + NEAR) * optimum)
        return int(near[0]) if len(near) else None


@dataclass(frozen=True)
class Comparison:
    """
    One system.

    :param optimum: the least cost on the grid
    :param best_step_size: of first order, with the fewest steps in the middle of the seeds
    :param walks: of every seed by method
    """

    optimum: float
    best_step_size: float
    walks: Mapping[str, tuple[Walk, ...]]


def walk(flow: ParticleFlow, step: Callable[[ParticleFlow], Any], n_steps: int, stop_at: float) -> Walk:
    """
    :param flow: at its beginning
    :param step: what is done again and again
    :param n_steps: how often at most
    :param stop_at: a cost at which it is enough
    :return: what came of it
    """
    started, costs = time.process_time(), [flow.cost]
    while len(costs) <= n_steps and costs[-1] > stop_at:
        try:
            step(flow)
            costs.append(flow.cost)
        except ValueError:
            # Steps that are too large end where no objective can be told.
            costs.append(float("inf"))
            break
    return Walk(tuple(costs), time.process_time() - started)


def optimum_of(system: System, particles: int) -> float:
    """
    :param system: the problem on its grid
    :param particles: actions at each state
    :return: the least cost, by Newton steps until none raises the objective
    """
    flow = system.flow(particles, seed=0)
    for _ in range(_CONVERGED):
        if flow.newton_step().length == 0.0:
            break
    return flow.cost


def compare(system: System, *, particles: int, seeds: int, n_steps: int) -> Comparison:
    """
    Walk with each method from the same first particles; of first order with the best of the step sizes, and beside it.

    :param system: the problem on its grid
    :param particles: actions at each state
    :param seeds: 0 ... seeds - 1
    :param n_steps: at most, of each walk
    :return: all walks
    """
    optimum = optimum_of(system, particles)
    stop_at = (1.0 + 0.01 * NEAR) * optimum

    def walks(step: Callable[[ParticleFlow], Any], stop: float = stop_at) -> tuple[Walk, ...]:
        return tuple(walk(system.flow(particles, seed), step, n_steps, stop) for seed in range(seeds))

    def first_order(step_size: float) -> Callable[[ParticleFlow], Any]:
        return lambda flow: flow.step(step_size)

    found = {eta: walks(first_order(eta), (1.0 + NEAR) * optimum) for eta in system.step_sizes}
    best = min(found, key=lambda eta: median_arrival(found[eta], optimum, n_steps))
    return Comparison(
        optimum,
        best,
        {
            "first order": walks(first_order(best)),
            f"first order, {ASIDE:g} times smaller": walks(first_order(best / ASIDE)),
            f"first order, {ASIDE:g} times larger": walks(first_order(best * ASIDE)),
            "curvature": walks(lambda flow: flow.newton_step()),
            "curvature and transport": walks(lambda flow: flow.newton_step(transport=True)),
        },
    )


def median_arrival(walks: tuple[Walk, ...], optimum: float, n_steps: int) -> float:
    """
    :param walks: of one method
    :param optimum: the least cost
    :param n_steps: what counts as never
    :return: the median of the numbers of steps; a walk that never arrives counts one step more than it had
    """
    return float(np.median([n_steps + 1 if (n := each.arrival(optimum)) is None else n for each in walks]))


def orders_table(found: Mapping[str, Comparison], n_steps: int) -> Table:
    """
    :param found: by the name of the system
    :param n_steps: of each walk, at most
    :return: the numbers of steps
    """
    methods = list(next(iter(found.values())).walks)
    seeds = len(next(iter(found.values())).walks[methods[0]])
    table = Table(
        f"Steps to within {NEAR:.0%} of the optimum: median (range) of {seeds} seeds, at most {n_steps}",
        ("system", "optimum", "Riccati", "best step size", *methods),
    )
    for name, comparison in found.items():
        problem = SYSTEMS[name].problem
        linear = f"{problem.lqr().average_cost:.5f}" if isinstance(problem, Regulator) and problem.is_linear else "-"
        cells = [_arrivals(comparison.walks[method], comparison.optimum, n_steps) for method in methods]
        # Of sizes none of which arrives, none is the best.
        best = "-" if cells[0] == "never" else f"{comparison.best_step_size:g}"
        table.rows.append((SYSTEMS[name].label, f"{comparison.optimum:.5f}", linear, best, *cells))
    return table


def times_table(found: Mapping[str, Comparison]) -> Table:
    """
    :param found: by the name of the system
    :return: CPU seconds of a step
    """
    methods = [method for method in next(iter(found.values())).walks if "times" not in method]
    table = Table("CPU milliseconds of a step, median over the seeds", ("system", "states", *methods))
    for name, comparison in found.items():
        n_states = int(np.prod([len(axis) for axis in SYSTEMS[name].axes]))
        cells = [_per_step(comparison.walks[method]) for method in methods]
        table.rows.append((SYSTEMS[name].label, str(n_states), *(f"{1000 * seconds:.2g}" for seconds in cells)))
    return table


def _per_step(walks: tuple[Walk, ...]) -> float:
    return float(np.median([each.cpu_seconds / max(1, len(each.costs) - 1) for each in walks]))


def _arrivals(walks: tuple[Walk, ...], optimum: float, n_steps: int) -> str:
    arrivals = [each.arrival(optimum) for each in walks]
    reached = [n for n in arrivals if n is not None]
    if not reached:
        return "never"
    text = f"{median_arrival(walks, optimum, n_steps):g} ({min(reached)} to {max(reached)})"
    return text if len(reached) == len(arrivals) else f"{text}, {len(arrivals) - len(reached)} never"
