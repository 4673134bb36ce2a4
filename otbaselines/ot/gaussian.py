r"""
Entropic transport between normals with diagonal covariance, in closed form.

With the cost :math:`|x-y|^2`, :math:`\varepsilon = 2 \sigma^2` and :math:`D_{AB} = \sqrt{4AB + \sigma^4}` for variances
:math:`A, B`, Janati et al. (2020, "Entropic optimal transport between unbalanced Gaussian measures has a closed form",
Thm. 1) gives per dimension :math:`(m_a-m_b)^2 + A + B + \varphi(D_{AB})` up to a constant that debiasing cancels, where
:math:`\varphi(D) = -D + \sigma^2 \log(D + \sigma^2)`.
"""

from __future__ import annotations

import torch as th


def gaussian_sinkhorn_divergence(
    mean_a: th.Tensor, std_a: th.Tensor, mean_b: th.Tensor, std_b: th.Tensor, *, reg: float
) -> th.Tensor:
    r"""
    Debiased entropic transport :math:`W(a,b) - \tfrac12 W(a,a) - \tfrac12 W(b,b)` under the squared Euclidean cost.

    :param mean_a: shape ``(..., d)``
    :param std_a: standard deviations, shape ``(..., d)``, non-negative
    :param mean_b: shape ``(..., d)``
    :param std_b: shape ``(..., d)``
    :param reg: entropic strength :math:`\varepsilon \ge 0`, in squared units of the support; 0 gives W2 squared
    :return: shape ``(..., d)``, one term per dimension: sum over the dimensions that count. Differentiable
    :raises ValueError: if ``reg`` is negative
    """
    half = _half(reg)
    cross = _phi(_root(std_a, std_b, half), half)
    own = 0.5 * (_phi(_root(std_a, std_a, half), half) + _phi(_root(std_b, std_b, half), half))
    if half == 0.0:
        return (mean_a - mean_b).square() + (std_a - std_b).square()
    return (mean_a - mean_b).square() + cross - own


def gaussian_sinkhorn_barycenter(
    means: th.Tensor, stds: th.Tensor, *, reg: float, weights: th.Tensor | None = None, n_iter: int = 30
) -> tuple[th.Tensor, th.Tensor]:
    r"""
    The normal that minimises the weighted debiased divergences to ``N`` normals.

    The mean is the mean of the means. Stationarity in the variance :math:`A` reads
    :math:`\sqrt{4A^2 + \sigma^4} = \sum_i w_i \sqrt{4 A B_i + \sigma^4}`, solved by fixed-point iteration; at
    :math:`\varepsilon = 0` it is the W2 barycenter, the mean of the standard deviations.

    :param means: shape ``(..., N, d)``
    :param stds: shape ``(..., N, d)``, positive
    :param reg: entropic strength :math:`\varepsilon \ge 0`, in squared units of the support
    :param weights: :math:`w_i`, shape ``(N,)`` or ``(..., N)``, summing to one; uniform when omitted
    :param n_iter: steps of the fixed-point iteration
    :return: mean and standard deviation, each of shape ``(..., d)``
    :raises ValueError: if ``reg`` is negative
    """
    half = _half(reg)
    if weights is None:
        weights = means.new_full((means.shape[-2],), 1.0 / means.shape[-2])
    w = weights.to(means.dtype).unsqueeze(-1)
    mean = (w * means).sum(-2)
    std = (w * stds).sum(-2)
    if half == 0.0:
        return mean, std
    variance = std.square()
    variances = stds.square()
    for _ in range(n_iter):
        # Both sides less sigma^2, without subtracting: for variances far below the regularisation nothing would be left.
        product = 4.0 * variance.unsqueeze(-2) * variances
        excess = (w * product / ((product + half**2).sqrt() + half)).sum(-2)
        variance = 0.5 * (excess * (excess + 2.0 * half)).sqrt()
    return mean, variance.sqrt()


def _half(reg: float) -> float:
    if not 0 <= reg < float("inf"):
        raise ValueError(f"`reg` must be non-negative and finite, got {reg}")
    return 0.5 * reg


def _root(std_a: th.Tensor, std_b: th.Tensor, half: float) -> th.Tensor:
    return (4.0 * (std_a * std_b).square() + half**2).sqrt()


def _phi(root: th.Tensor, half: float) -> th.Tensor:
    return half * (root + half).log() - root if half > 0 else -root
