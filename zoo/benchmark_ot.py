"""
Times the transport layer against POT: ``python -m zoo.benchmark_ot [--quick] [--theorem32]``.

Every comparison is of equal accuracy: both solvers stop at the same error, which is computed here for both, and POT is given
the loosest threshold that reaches it. Times are CPU seconds of one thread, the median of repeats that alternate between the two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from otbaselines import ot

Array = npt.NDArray[np.float64]
TOLERANCE = 1e-6
BETA = 0.8
N_ACTIONS = 5


@dataclass(frozen=True)
class Table:
    """
    :param title: what was measured
    :param columns: headings
    :param rows: one tuple of cells each
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return f"**{self.title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Problem:
    """
    :param measures: histograms, shape ``(N, n)``
    :param cost: ground cost divided by its median, shape ``(n, n)``
    """

    measures: th.Tensor
    cost: th.Tensor

    @property
    def empty(self) -> float:
        """Share of empty bins."""
        return float((self.measures == 0).double().mean())


def visitation_problem(n_agents: int, n_bins: int, *, samples_per_bin: float = 1.0, seed: int = 0) -> Problem:
    """
    Histograms of state-action samples on a pooled codebook.

    Every agent visits its own part of the square, and its policy prefers its own actions. The codebook is drawn from all
    agents' samples together; each sample counts for the nearest code of its action.

    :param n_agents: N
    :param n_bins: size of the codebook
    :param samples_per_bin: samples of each agent over the size of the codebook
    :param seed: of the samples
    :return: the histograms under ``|s-s'| + 0.8 |a-a'|``
    """
    generator = th.Generator().manual_seed(seed)
    m = int(samples_per_bin * n_bins)
    centre = th.rand(n_agents, 1, 2, generator=generator, dtype=th.float64) * 2 - 1
    states = (centre + 0.6 * th.randn(n_agents, m, 2, generator=generator, dtype=th.float64)).clamp(-1, 1)
    preference = 0.2 + th.rand(n_agents, N_ACTIONS, generator=generator, dtype=th.float64)
    actions = th.multinomial(preference, m, replacement=True, generator=generator)
    chosen = th.randperm(n_agents * m, generator=generator)[:n_bins]
    codes, code_actions = states.flatten(0, 1)[chosen], actions.flatten()[chosen]
    embedding = ot.one_hot_embedding(N_ACTIONS, dtype=th.float64)
    measures = th.zeros(n_agents, n_bins, dtype=th.float64)
    for i in range(n_agents):
        distance = ot.state_action_cost(states[i], actions[i], codes, code_actions, beta=10.0, embedding=embedding)
        measures[i] = th.bincount(distance.argmin(1), minlength=n_bins).double() / m
    cost = ot.state_action_cost(codes, code_actions, beta=BETA, embedding=embedding)
    return Problem(measures, cost / cost.median())


def cpu_times(functions: list[Callable[[], Any]], repeats: int) -> list[float]:
    """
    :param functions: the contestants
    :param repeats: runs of each, alternating
    :return: the median CPU seconds of each
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, record in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            record.append(time.process_time() - start)
    return [statistics.median(record) for record in times]


def bregman_errors(measures: Array, cost: Array, reg: float, tol: float, max_iter: int = 200_000) -> tuple[float, float, int]:
    """
    Follow POT's iteration, whose result carries no plans, and find where its plans reach the error asked for.

    :param measures: shape ``(N, n)``
    :param cost: shape ``(n, n)``
    :param reg: entropic strength
    :param tol: ``max_i |plan_i 1 - mu|_1`` to reach at one of POT's checks, made every ten iterations
    :param max_iter: give up here
    :return: POT's own stopping quantity there, the error reached, and the number of iterations
    """
    kernel = np.exp(-cost / reg)
    marginals = measures @ kernel.T * 0 + kernel @ np.ones(len(cost)) if False else (measures / kernel.sum(0)) @ kernel.T
    u = np.exp(np.log(marginals).mean(0)) / marginals
    for i in range(max_iter):
        marginals = u * ((measures / (u @ kernel.T)) @ kernel)
        barycenter = np.exp(np.log(marginals).mean(0))
        if i % 10 == 1:
            error = float(np.abs(marginals - barycenter).sum(1).max())
            if error <= tol:
                return float(marginals.std(0).sum()), error, i + 1
        u = u * barycenter / marginals
    raise RuntimeError(f"POT's iteration has not reached {tol} in {max_iter} iterations")


def benchmark_barycenter(quick: bool) -> Table:
    """
    :param quick: whether to leave out the large problems and repeat less
    :return: ours against POT's sound backends
    """
    import ot as pot

    table = Table(
        "Fixed-support barycenter, float64, stopped at max_i |plan_i 1 - mu|_1 <= 1e-6",
        (
            "problem",
            "reg / median",
            "empty",
            "POT numpy ms (iter)",
            "POT torch ms",
            "ours ms (iter)",
            "ratio",
            "error POT / ours",
        ),
    )
    cases = [(3, 128, 0.1), (3, 512, 0.1), (8, 512, 0.1), (8, 512, 0.01), (32, 1024, 0.1)]
    for n_agents, n_bins, reg in cases[:2] if quick else cases:
        problem = visitation_problem(n_agents, n_bins)
        columns, matrix = problem.measures.T.numpy().copy(), problem.cost.numpy()
        threshold, pot_error, iterations = bregman_errors(problem.measures.numpy(), matrix, reg, TOLERANCE)
        options = {"numItermax": iterations + 10, "stopThr": threshold * (1 + 1e-9), "warn": False}
        contestants: list[Callable[[], Any]] = [
            lambda a=columns, c=matrix, r=reg, o=options: pot.barycenter(a, c, r, **o),
            lambda a=th.from_numpy(columns), c=problem.cost, r=reg, o=options: pot.barycenter(a, c, r, **o),
            lambda p=problem, r=reg: ot.barycenter(p.measures, p.cost, reg=r, tol=TOLERANCE),
        ]
        result = contestants[-1]()
        in_numpy, in_torch, ours = cpu_times(contestants, 3 if quick else 5)
        table.rows.append(
            (
                f"{n_agents} x {n_bins}",
                f"{reg:g}",
                f"{problem.empty:.0%}",
                f"{1e3 * in_numpy:.1f} ({iterations})",
                f"{1e3 * in_torch:.1f}",
                f"{1e3 * ours:.1f} ({result.n_iter})",
                f"{min(in_numpy, in_torch) / ours:.1f}",
                f"{pot_error:.1e} / {plan_error(result, n_agents):.1e}",
            )
        )
    return table


def plan_error(result: ot.BarycenterResult, n_agents: int) -> float:
    """The largest ``|plan_i 1 - mu|_1``, from the plans themselves."""
    return max(float((result.plan(i).sum(1) - result.weights).abs().sum()) for i in range(n_agents))


def run(quick: bool = False) -> list[Table]:
    """
    :param quick: whether to make do with small problems, for a smoke test
    :return: all tables
    """
    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        return [benchmark_barycenter(quick)]
    finally:
        th.set_num_threads(threads)


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small problems only")
    arguments = parser.parse_args()
    for table in run(arguments.quick):
        print(table.markdown(), end="\n\n")


if __name__ == "__main__":
    main()
