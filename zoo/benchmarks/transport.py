"""
Times the transport layer against POT: ``python -m zoo.benchmark --only transport``.

Every comparison is of equal accuracy: both solvers stop at the same error, and POT is given the loosest threshold that
reaches it. Times are CPU seconds of one thread, the median of repeats that alternate between the two.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from otbaselines import ot
from zoo.drawing.tables import Table, one_thread

Array = npt.NDArray[np.float64]
TOLERANCE = 1e-6
SHORTEST = 0.02
BETA = 0.8
N_ACTIONS = 5


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
            n_calls, start = 0, time.process_time()
            # A clock tick and a cold cache are a good part of a millisecond: short functions are called several times.
            while n_calls == 0 or time.process_time() - start < SHORTEST:
                function()
                n_calls += 1
            record.append((time.process_time() - start) / n_calls)
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
    marginals = (measures / kernel.sum(0)) @ kernel.T
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
    """Ours against POT's sound backends; little of it when ``quick``."""
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
        tensors = th.from_numpy(columns)
        threshold, pot_error, iterations = bregman_errors(problem.measures.numpy(), matrix, reg, TOLERANCE)
        options = {"numItermax": iterations + 10, "stopThr": threshold * (1 + 1e-9), "warn": False}
        contestants: list[Callable[[], Any]] = [
            partial(pot.barycenter, columns, matrix, reg, **options),
            partial(pot.barycenter, tensors, problem.cost, reg, **options),
            partial(ot.barycenter, problem.measures, problem.cost, reg=reg, tol=TOLERANCE),
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
                f"{pot_error:.1e} / {float(result.error):.1e}",
            )
        )
    return table


def pot_pairs(problem: Problem, reg: float, threshold: float, agents: range, grouped: bool) -> float:
    """
    All pairs ``i < j`` by POT, soundly: its plain solver fails on bins that are empty on both sides, so they are left out.

    :param problem: the team
    :param reg: entropic strength
    :param threshold: POT's own
    :param agents: the first members ``i`` of the pairs to solve
    :param grouped: one call for all pairs of an agent (a matrix of targets), or one for each pair
    :return: the largest ``|plan' 1 - b|_1`` of a pair
    """
    import ot as pot

    measures, matrix, worst = problem.measures.numpy(), problem.cost.numpy(), 0.0
    for i in agents:
        rows = measures[i] > 0
        targets = measures[i + 1 :].T
        if grouped:
            _, log = pot.sinkhorn(
                measures[i][rows], targets, matrix[rows], reg, log=True, stopThr=threshold, numItermax=10_000, warn=False
            )
            kernel = np.exp(-matrix[rows] / reg)
            worst = max(worst, float(np.abs(log["v"] * (kernel.T @ log["u"]) - targets).sum(0).max()))
            continue
        for target in targets.T:
            columns = target > 0
            plan = pot.sinkhorn(
                measures[i][rows],
                target[columns],
                matrix[np.ix_(rows, columns)],
                reg,
                stopThr=threshold,
                numItermax=10_000,
                warn=False,
            )
            error = np.abs(plan.sum(0) - target[columns]).sum() + np.abs(plan.sum(1) - measures[i][rows]).sum()
            worst = max(worst, float(error))
    return worst


def benchmark_pairs(quick: bool) -> Table:
    """All pairs of a team, ours with the self terms that debias them, POT's without; little of it when ``quick``."""
    title = (
        "Entropic transport between all pairs, reg .1 of the median cost, float64, |marginal error|_1 <= 1e-6 in every pair"
    )
    table = Table(
        title, ("team", "pairs", "POT by agent s", "POT by pair s", "ours, debiased, s", "ratio", "error POT / ours")
    )
    for n_agents, n_bins in [(8, 128)] if quick else [(8, 512), (32, 1024)]:
        problem, reg = visitation_problem(n_agents, n_bins), 0.1
        times, errors = [], []
        for grouped in (True, False):
            threshold = 1e-6
            # The hardest agents of a few decide: the threshold holds for all pairs or is tightened below.
            while pot_pairs(problem, reg, threshold, range(n_agents - 3, n_agents - 1), grouped) > TOLERANCE:
                threshold /= 2
            start = time.process_time()
            errors.append(pot_pairs(problem, reg, threshold, range(n_agents - 1), grouped))
            times.append(time.process_time() - start)
        first, second = th.triu_indices(n_agents, n_agents, offset=1)
        result = ot.sinkhorn(problem.cost, problem.measures[first], problem.measures[second], reg=reg, tol=TOLERANCE)
        (ours,) = cpu_times([partial(ot.pairwise_sinkhorn, problem.measures, problem.cost, reg=reg, tol=TOLERANCE)], 3)
        best = int(np.argmin(times))
        row = (f"{n_agents} x {n_bins}", str(len(first)), f"{times[0]:.2f}", f"{times[1]:.2f}", f"{ours:.2f}")
        table.rows.append((*row, f"{times[best] / ours:.1f}", f"{errors[best]:.1e} / {float(result.error.max()):.1e}"))
    return table


def benchmark_sliced(quick: bool) -> Table:
    """Sliced W1 between all pairs, on the same directions; little of it when ``quick``."""
    import ot as pot

    n_agents, m, n_projections = (8, 256, 50) if quick else (32, 1024, 50)
    points = th.randn(n_agents, m, 4, generator=th.Generator().manual_seed(0), dtype=th.float64)
    directions = ot.random_directions(4, n_projections, seed=0).numpy()
    arrays = points.numpy()

    def by_pot() -> Array:
        matrix = np.zeros((n_agents, n_agents))
        for i in range(n_agents):
            for j in range(i):
                matrix[i, j] = pot.sliced_wasserstein_distance(arrays[i], arrays[j], p=1, projections=directions)
        return matrix + matrix.T

    def by_ours() -> th.Tensor:
        return ot.sliced_pairwise(points, n_projections=n_projections, seed=0)

    difference = float(np.abs(by_pot() - by_ours().numpy()).max())
    theirs, ours = cpu_times([by_pot, by_ours], 3)
    table = Table(
        "Sliced W1 between all pairs, float64, the same directions", ("team", "POT s", "ours s", "ratio", "largest difference")
    )
    size = f"{n_agents} agents x {m} points x {n_projections} directions"
    table.rows.append((size, f"{theirs:.2f}", f"{ours:.3f}", f"{theirs / ours:.0f}", f"{difference:.0e}"))
    return table


def benchmark_discrete(quick: bool) -> Table:
    """Exact W1 per state against loops over POT's public and internal network simplex; little of it when ``quick``."""
    import ot as pot
    from ot.lp.emd_wrap import emd_c

    table = Table(
        "Exact W1 between two policies in every state, float64",
        ("states x actions, metric", "POT emd2 ms", "POT emd_c ms", "ours ms", "ratio to the best", "largest difference"),
    )
    n_states = 128 if quick else 2048
    generator = th.Generator().manual_seed(0)
    for n_actions, metric in ((5, "plane"), (5, "line"), (5, "0/1"), (8, "plane")):
        logits = th.randn(2, n_states, n_actions, generator=generator, dtype=th.float64)
        p, q = logits.softmax(-1)
        embedding = th.randn(n_actions, 1 if metric == "line" else 2, generator=generator, dtype=th.float64)
        cost = 1 - th.eye(n_actions, dtype=th.float64) if metric == "0/1" else ot.action_cost(embedding)
        rows, columns, matrix = p.numpy(), q.numpy(), cost.numpy().copy()

        def public(rows: Array = rows, columns: Array = columns, matrix: Array = matrix) -> list[float]:
            return [float(pot.emd2(a, b, matrix)) for a, b in zip(rows, columns, strict=True)]

        def internal(rows: Array = rows, columns: Array = columns, matrix: Array = matrix) -> list[float]:
            return [emd_c(a, b, matrix, 100_000, 1)[1] for a, b in zip(rows, columns, strict=True)]

        def ours(p: th.Tensor = p, q: th.Tensor = q, cost: th.Tensor = cost) -> th.Tensor:
            return ot.discrete_w1(p, q, cost)

        difference = float(np.abs(np.array(public()) - ours().numpy()).max())
        times = cpu_times([public, internal, ours], 5)
        table.rows.append(
            (
                f"{n_states} x {n_actions}, {metric}",
                *(f"{1e3 * seconds:.2f}" for seconds in times),
                f"{min(times[:2]) / times[2]:.0f}",
                f"{difference:.0e}",
            )
        )
    return table


def benchmark_trust_region(quick: bool) -> Table:
    """The dual of a trust region beside a policy's forward pass and POT's distances, state by state; little when ``quick``."""
    import ot as pot

    table = Table(
        "Dual of a Wasserstein-1 trust region over all states, float64; POT computes the W1 between old and new policy of "
        "every state, once the new one is known",
        (
            "states x actions, metric",
            "radius / unconstrained",
            "forward ms",
            "ours ms (iter)",
            "ours / forward",
            "POT emd2 ms",
            "ratio",
            "gap",
            "POT's mean W1 - radius",
        ),
    )
    n_states = 128 if quick else 2048
    generator = th.Generator().manual_seed(0)
    for n_actions, metric in ((5, "0/1"), (5, "line"), (20, "plane")):
        policies = th.randn(n_states, n_actions, generator=generator, dtype=th.float64).softmax(-1)
        values = th.randn(n_states, 1, n_actions, generator=generator, dtype=th.float64)
        embedding = th.randn(n_actions, 1 if metric == "line" else 2, generator=generator, dtype=th.float64)
        cost = 1 - th.eye(n_actions, dtype=th.float64) if metric == "0/1" else ot.action_cost(embedding)
        weights, matrix = policies / n_states, cost.numpy().copy()
        network = policy_network(n_actions)
        observations = th.randn(n_states, 18, generator=generator)
        free = float(ot.trust_region_dual(values, cost, weights, 1e6).transport_cost)
        for share in (0.02, 0.2) if n_actions == 20 else (0.2,):
            solve = partial(ot.trust_region_dual, values, cost, weights, share * free)
            result = solve()
            rows, columns = policies.numpy(), (result.mass * n_states).numpy()

            def forward(network: th.nn.Module = network, observations: th.Tensor = observations) -> th.Tensor:
                with th.no_grad():
                    output: th.Tensor = network(observations)
                    return output

            def by_state(rows: Array = rows, columns: Array = columns, matrix: Array = matrix) -> list[float]:
                return [float(pot.emd2(a, b / b.sum(), matrix)) for a, b in zip(rows, columns, strict=True)]

            difference = float(np.mean(by_state())) - share * free
            passes, ours, theirs = cpu_times([forward, solve, by_state], 5)
            table.rows.append(
                (
                    f"{n_states} x {n_actions}, {metric}",
                    f"{share:g}",
                    f"{1e3 * passes:.2f}",
                    f"{1e3 * ours:.2f} ({result.n_iter})",
                    f"{ours / passes:.1f}",
                    f"{1e3 * theirs:.1f}",
                    f"{theirs / ours:.0f}",
                    f"{float(result.gap):.0e}",
                    f"{difference:.0e}",
                )
            )
    return table


def policy_network(n_actions: int) -> th.nn.Module:
    """Two hidden layers of 64, as SB3's policies have, on the 18 numbers that an agent of simple_spread sees."""
    layers = (th.nn.Linear(18, 64), th.nn.Tanh(), th.nn.Linear(64, 64), th.nn.Tanh(), th.nn.Linear(64, n_actions))
    return th.nn.Sequential(*layers)


def run(quick: bool = False) -> list[Table]:
    """All tables; little of it when ``quick``."""
    sections = (
        benchmark_barycenter,
        benchmark_pairs,
        benchmark_sliced,
        benchmark_discrete,
        benchmark_trust_region,
    )
    with one_thread():
        return [section(quick) for section in sections]
