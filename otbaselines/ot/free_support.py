"""Barycenters whose support is free to move, by POT."""

from __future__ import annotations

from collections.abc import Sequence

import torch as th

from otbaselines.ot._validation import check_measure, check_reg
from otbaselines.ot.costs import pairwise

# Below this ratio of the strength to the median cost POT's inner loop stops short of its tolerance.
MIN_RELATIVE_REG = 0.1


def free_support_barycenter(
    points: Sequence[th.Tensor] | th.Tensor,
    weights: Sequence[th.Tensor] | th.Tensor | None,
    *,
    reg: float,
    support: th.Tensor,
    agent_weights: th.Tensor | None = None,
    tol: float = 1e-6,
    max_iter: int = 100,
) -> th.Tensor:
    r"""
    Entropic barycenter under :math:`|x - y|^2` whose atoms, of equal weight, are free to move (Cuturi & Doucet 2014, Alg. 2).

    Runs POT's ``free_support_sinkhorn_barycenter``. The problem is not convex: the result depends on ``support``, which
    should have the spread of the measures. Below a tenth of the median cost use a codebook and
    :func:`otbaselines.ot.barycenter`.

    :param points: one ``(m_i, d)`` for each measure
    :param weights: one ``(m_i,)`` for each measure, positive, summing to one; uniform when omitted
    :param reg: entropic strength, in the unit of the squared distance
    :param support: where the atoms start, shape ``(k, d)``
    :param agent_weights: of the measures, shape ``(N,)``, summing to one; uniform when omitted
    :param tol: stop when the atoms move by less, in squared distance
    :param max_iter: moves of the atoms at most
    :return: the atoms, shape ``(k, d)``
    :raises ValueError: if ``reg`` is below a tenth of the median cost, or the shapes disagree
    """
    import ot as pot

    reg = check_reg(reg)
    if support.dim() != 2 or any(cloud.dim() != 2 or cloud.shape[1] != support.shape[1] for cloud in points):
        shapes = [tuple(cloud.shape) for cloud in points]
        raise ValueError(f"`points` must be (m, d) clouds in the dimension of `support` {tuple(support.shape)}, got {shapes}")
    if weights is None:
        weights = [cloud.new_full((len(cloud),), 1.0 / len(cloud)) for cloud in points]
    for cloud, row in zip(points, weights, strict=True):
        check_measure(row, "weights")
        if len(row) != len(cloud):
            raise ValueError(f"`weights` must have one entry per point, {len(cloud)}, got {len(row)}")
        relative = reg / float(pairwise(cloud, support, p=2.0).median())
        if relative < MIN_RELATIVE_REG:
            raise ValueError(
                f"`reg` is {relative:.3g} of the median squared distance; below "
                f"{MIN_RELATIVE_REG} use `ot.barycenter` on a codebook"
            )
    atoms: th.Tensor = pot.bregman.free_support_sinkhorn_barycenter(
        [cloud.detach() for cloud in points],
        [row.detach() for row in weights],
        support.detach(),
        reg,
        weights=agent_weights,
        numItermax=max_iter,
        stopThr=tol,
    )
    return atoms
