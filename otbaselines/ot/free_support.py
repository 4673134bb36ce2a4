"""Barycenters whose support is free to move."""

from __future__ import annotations

from collections.abc import Sequence

import torch as th

from otbaselines.ot._validation import check_alike, check_measure, check_reg, check_stop, check_tensor
from otbaselines.ot.costs import pairwise_of
from otbaselines.ot.result import FreeSupportResult, OTResult
from otbaselines.ot.sinkhorn import self_transport, sinkhorn

# Iterations for one plan: the next move starts from where it stopped.
PLAN_MAX_ITER = 1000


def free_support_barycenter(
    points: Sequence[th.Tensor] | th.Tensor,
    weights: Sequence[th.Tensor] | th.Tensor | None,
    *,
    reg: float,
    support: th.Tensor,
    agent_weights: th.Tensor | None = None,
    tol: float = 1e-6,
    max_iter: int = 100,
    debiased: bool = False,
) -> FreeSupportResult:
    r"""
    Entropic barycenter under :math:`|x - y|^2` whose atoms, of equal weight, are free to move (Cuturi & Doucet 2014, Alg. 2).

    Every atom moves to the mean of where its mass goes, :math:`x_j \leftarrow T(x_j) = k \sum_i w_i (P_i y_i)_j`. The problem
    is not convex: the result depends on ``support``, which should have the spread of the measures.

    Entropy shrinks it. Of a normal with variance :math:`\sigma^2` the result has :math:`\sigma^2 - \varepsilon / 2`, and from
    :math:`\varepsilon = 2 \sigma^2` on all atoms are one point. ``debiased=True`` descends on Sinkhorn divergences instead,
    whose gradient subtracts what self transport does: :math:`x_j \leftarrow x_j + T(x_j) - T_{self}(x_j)`.

    :param points: one ``(m_i, d)`` for each measure
    :param weights: one ``(m_i,)`` for each measure, summing to one; uniform when omitted
    :param reg: entropic strength, positive, in the unit of the squared distance
    :param support: where the atoms start, shape ``(k, d)``
    :param agent_weights: of the measures, shape ``(N,)``, summing to one; uniform when omitted
    :param tol: stop when the atoms move by less: the sum of the squared distances, over that of the support to its mean
    :param max_iter: moves of the atoms at most; ``converged`` says which came first
    :param debiased: remove the shrinkage, at the price of one more plan a move
    :return: the atoms, constant for autograd, and how the iteration stopped
    :raises TypeError: if an argument is of another type
    :raises ValueError: if there is no measure, weights do not sum to one, the shapes disagree, or ``reg`` is out of reach
    """
    reg = check_reg(reg)
    check_stop(tol, max_iter)
    if not isinstance(debiased, bool):
        raise TypeError(f"`debiased` must be True or False, got {debiased!r}")
    check_tensor(support, "support")
    clouds = list(points)
    if not clouds:
        raise ValueError("`points` must hold one or more clouds, got none")
    rows: list[th.Tensor | None] = [None] * len(clouds) if weights is None else list(weights)
    if len(rows) != len(clouds):
        raise ValueError(f"`weights` must have one row per measure, {len(clouds)}, got {len(rows)}")
    shares = support.new_full((len(clouds),), 1.0 / len(clouds)) if agent_weights is None else agent_weights
    masses = [_check_cloud(cloud, row, support) for cloud, row in zip(clouds, rows, strict=True)]
    check_alike({"agent_weights": shares, "support": support})
    if shares.shape != (len(clouds),):
        raise ValueError(f"`agent_weights` must have one entry per measure, {len(clouds)}, got shape {tuple(shares.shape)}")
    shares = check_measure(shares, "agent_weights")
    with th.no_grad():
        return _move(clouds, masses, shares, support, reg, tol, max_iter, debiased)


def _move(
    clouds: list[th.Tensor],
    masses: list[th.Tensor],
    shares: th.Tensor,
    atoms: th.Tensor,
    reg: float,
    tol: float,
    max_iter: int,
    debiased: bool,
) -> FreeSupportResult:
    uniform = atoms.new_full((len(atoms),), 1.0 / len(atoms))
    plans: list[OTResult] = []
    n_iter, error = 0, float("inf")
    while error > tol and n_iter < max_iter:
        costs = [pairwise_of(atoms, cloud, 2.0, None, ("support", "points")) for cloud in clouds]
        starts: Sequence[OTResult | None] = plans or [None] * len(clouds)
        plans = [
            sinkhorn(cost, uniform, mass, reg=reg, max_iter=PLAN_MAX_ITER, init=start, validate=False)
            for cost, mass, start in zip(costs, masses, starts, strict=True)
        ]
        pulls = [plan.plan @ cloud for plan, cloud in zip(plans, clouds, strict=True)]
        moved = len(atoms) * th.tensordot(shares, th.stack(pulls), 1)
        if debiased:
            own = self_transport(pairwise_of(atoms, None, 2.0, None, ("support", "")), uniform, reg=reg, validate=False)
            moved = atoms + moved - len(atoms) * own.plan @ atoms
        spread = (moved - moved.mean(0)).square().sum().clamp_min(th.finfo(moved.dtype).tiny)
        error, n_iter = float((moved - atoms).square().sum() / spread), n_iter + 1
        atoms = moved
    exact = all(bool(plan.converged) for plan in plans)
    return FreeSupportResult(atoms, n_iter, error <= tol and exact, error)


def _check_cloud(cloud: th.Tensor, weights: th.Tensor | None, support: th.Tensor) -> th.Tensor:
    """Weights of the points of one cloud, summing to one."""
    check_alike({"points": cloud, "support": support}, {"weights": weights})
    if support.dim() != 2 or cloud.dim() != 2 or cloud.shape[1] != support.shape[1]:
        raise ValueError(
            f"`points` must be (m, d) clouds in the dimension of `support` {tuple(support.shape)}, got {tuple(cloud.shape)}"
        )
    if weights is None:
        return cloud.new_full((len(cloud),), 1.0 / len(cloud))
    if weights.shape != cloud.shape[:1]:
        raise ValueError(f"`weights` must have one entry per point, {len(cloud)}, got shape {tuple(weights.shape)}")
    return check_measure(weights.detach(), "weights")
