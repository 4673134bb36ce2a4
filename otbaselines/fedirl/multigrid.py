r"""
Barycenters on large lattices: coarse grids first.

With costs that are squared distances, a grid of twice the spacing with four times the strength is the same problem on fewer
points. Its potentials, interpolated, are near those of the finer grid, where all that is left to be found is what the coarse
grid cannot show. What is far is thus settled where a point is cheap, and memory is that of the finest grid alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch as th

from otbaselines import ot
from otbaselines.ot._validation import check_measure, check_number, check_reg, check_tensor
from otbaselines.ot.costs import check_problem, validate_cost

#: Lattices from this many points on are solved from coarse grids, and axes are halved down to this length.
LARGE, SHORT = 50_000, 16
#: Strengths on one grid, in multiples of the one that is asked for there, and marginal errors on the way to the last one.
STRENGTHS, COARSE_TOL = (2.0, 1.25), 1e-3


def barycenter(
    measures: th.Tensor,
    cost: ot.Cost,
    *,
    reg: float,
    weights: th.Tensor | None = None,
    debiased: bool = True,
    tol: float = 1e-4,
    max_iter: int = 500,
) -> ot.BarycenterResult:
    """
    :func:`otbaselines.ot.barycenter`, whose result it is to the tolerance, by way of coarse grids where the lattice is large.

    :param measures: shape ``(n_clients, n)``
    :param cost: a matrix, or a lattice, whose long axes are taken to be ordered with costs that grow with the distance squared
    :param reg: entropic strength
    :param weights: of the clients, summing to one; uniform when omitted
    :param debiased: whether to remove the blur of the entropy
    :param tol: marginal error
    :param max_iter: most iterations at each strength
    :return: the barycenter; ``n_iter`` counts the iterations of the last strength on the finest grid
    :raises TypeError: if an argument is of another type
    :raises ValueError: if an argument is out of range, shapes disagree, or rows do not sum to one
    """
    check_tensor(measures, "measures", 2)
    if not isinstance(cost, ot.LatticeCost) or measures.shape[-1] < LARGE or _shorter(cost) is None:
        return ot.barycenter(measures, cost, reg=reg, weights=weights, debiased=debiased, tol=tol, max_iter=max_iter)
    check_problem(cost, measures, measures, ("measures", "measures"))
    validate_cost(cost, symmetric=True)
    # Once, for all grids.
    for rows, name in ((measures, "measures"), (weights, "weights")):
        if rows is not None:
            check_measure(rows, name)
    check_number(tol, "tol", high=1.0)
    potentials = _coarse_potentials(measures, cost, check_reg(reg), weights, debiased, max_iter)
    for factor in STRENGTHS:
        start = _solve(measures, cost, factor * reg, weights, debiased, COARSE_TOL, max_iter, potentials)
        potentials = start.potentials_a
    return _solve(measures, cost, reg, weights, debiased, tol, max_iter, potentials)


def _solve(
    measures: th.Tensor,
    cost: ot.LatticeCost,
    reg: float,
    weights: th.Tensor | None,
    debiased: bool,
    tol: float,
    max_iter: int,
    init: th.Tensor | None,
) -> ot.BarycenterResult:
    return ot.barycenter(
        measures, cost, reg=reg, weights=weights, debiased=debiased, tol=tol, max_iter=max_iter, init=init, validate=False
    )


def _coarse_potentials(
    measures: th.Tensor, cost: ot.LatticeCost, reg: float, weights: th.Tensor | None, debiased: bool, max_iter: int
) -> th.Tensor | None:
    """First potentials on this grid, from all that are coarser; None on the coarsest one."""
    coarse = _shorter(cost)
    if coarse is None:
        return None
    lengths, halved = [len(each) for each in cost.factors], [len(each) for each in coarse.factors]
    means = [interpolation(n, m, extrapolate=False).T for n, m in zip(lengths, halved, strict=True)]
    merged = along_axes(measures, [each.to(measures) for each in means])
    # Cells merge in pairs along every axis that is halved, and distances count four times as much as their unit says.
    own = 4.0 * reg
    potentials = _coarse_potentials(merged, coarse, own, weights, debiased, max_iter)
    for factor in STRENGTHS:
        found = _solve(merged, coarse, factor * own, weights, debiased, COARSE_TOL, max_iter, potentials)
        potentials = found.potentials_a
    lines = [interpolation(n, m, extrapolate=True) for n, m in zip(lengths, halved, strict=True)]
    assert potentials is not None
    return along_axes(potentials, [each.to(measures) for each in lines])


def _shorter(cost: ot.LatticeCost) -> ot.LatticeCost | None:
    """Every second point along long axes; None where there is no long axis."""
    factors = [each[::2, ::2] if len(each) > SHORT else each for each in cost.factors]
    if all(len(one) == len(other) for one, other in zip(factors, cost.factors, strict=True)):
        return None
    return ot.LatticeCost(factors)


def interpolation(n: int, m: int, *, extrapolate: bool) -> th.Tensor:
    """
    :param n: points of the fine axis
    :param m: of them every second one, or all
    :param extrapolate: whether to go on straight beyond the last coarse point; its value is kept otherwise
    :return: values at the fine points from those at the coarse ones, shape ``(n, m)``, rows summing to one
    """
    if n == m:
        return th.eye(n, dtype=th.float64)
    place = th.arange(n) / 2.0
    below = place.floor().long().clamp_max(m - 1 - int(extrapolate))
    share = (place - below).to(th.float64)
    if not extrapolate:
        share = th.where(below == m - 1, 0.0, share)
    found = th.zeros(n, m, dtype=th.float64)
    found[th.arange(n), below] = 1.0 - share
    found[th.arange(n), (below + 1).clamp_max(m - 1)] += share
    return found


def along_axes(rows: th.Tensor, matrices: Sequence[th.Tensor]) -> th.Tensor:
    """
    :param rows: functions on a lattice, shape ``(N, n)``, last axis fastest
    :param matrices: one for each axis, each of shape ``(m_k, n_k)``
    :return: the functions after each matrix was applied along its axis, shape ``(N, m)``
    """
    for matrix in matrices:
        # Each acts on the first axis, which then moves to the end: after all of them the order is restored.
        x = rows.reshape(len(rows), matrix.shape[1], -1).transpose(1, 2)
        rows = th.matmul(x, matrix.T).flatten(1)
    return rows
