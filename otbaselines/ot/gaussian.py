r"""
Transport between normals, in closed form: exact, and entropic between those with diagonal covariance.

With the cost :math:`|x-y|^2`, :math:`\varepsilon = 2 \sigma^2` and :math:`D_{AB} = \sqrt{4AB + \sigma^4}` for variances
:math:`A, B`, Janati et al. (2020, "Entropic optimal transport between unbalanced Gaussian measures has a closed form",
Thm. 1) gives per dimension :math:`(m_a-m_b)^2 + A + B + \varphi(D_{AB})` up to a constant that debiasing cancels, where
:math:`\varphi(D) = -D + \sigma^2 \log(D + \sigma^2)`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch as th

from otbaselines.ot._validation import (
    broadcast_shapes,
    check_alike,
    check_count,
    check_measure,
    check_number,
    check_rows,
    finite,
)
from otbaselines.ot.exact import root

# Terms of the order of `reg` cancel in the divergence: it is off by as much as their rounding.
MAX_REG = 1e9


def gaussian_w1(
    mean_a: th.Tensor, std_a: th.Tensor, mean_b: th.Tensor, std_b: th.Tensor, *, validate: bool = True
) -> th.Tensor:
    r"""
    W1 between Gaussians with independent coordinates, under the cost :math:`\sum_k |x_k - y_k|`.

    In one dimension the two quantile functions differ by a Gaussian of mean :math:`\Delta m` and deviation
    :math:`\Delta s`, hence :math:`W_1 = |\Delta m| \, \mathrm{erf}(|\Delta m| / \sqrt2 |\Delta s|) +
    |\Delta s| \sqrt{2/\pi} \, e^{-\Delta m^2 / 2 \Delta s^2}`; coordinates add up. Under the Euclidean cost this is an
    upper bound only.

    :param mean_a: shape ``(..., d)``
    :param std_a: standard deviations, non-negative, shape ``(..., d)``
    :param mean_b: shape ``(..., d)``
    :param std_b: shape ``(..., d)``
    :param validate: whether to check the content (reads from the device)
    :return: shape ``(...)``; derivatives of every order are exact and finite, and zero where the two are equal
    :raises TypeError: if an argument is no tensor
    :raises ValueError: if a deviation is negative, or the shapes do not agree
    """
    _check_normals(validate, mean_a=mean_a, std_a=std_a, mean_b=mean_b, std_b=std_b)
    shift, spread = mean_a - mean_b, std_a - std_b
    # The second term is below 1e-22 of the first here, and a ratio that overflows would make its derivatives NaN.
    far = shift.abs() >= 10.0 * spread.abs()
    spread = th.where(far, 1.0, spread).abs()
    ratio = th.where(far, 0.0, shift) / spread
    folded = spread * (ratio * th.erf(ratio / math.sqrt(2.0)) + math.sqrt(2.0 / math.pi) * th.exp(-0.5 * ratio.square()))
    total = th.where(far, shift.abs(), folded).sum(-1)
    return finite(total, mean_a=mean_a, std_a=std_a, mean_b=mean_b, std_b=std_b) if validate else total


def gaussian_w2(
    mean_a: th.Tensor,
    spread_a: th.Tensor,
    mean_b: th.Tensor,
    spread_b: th.Tensor,
    *,
    covariance: Literal["diagonal", "full"] = "diagonal",
    squared: bool = False,
) -> th.Tensor:
    r"""
    W2 between Gaussians under the Euclidean distance (Bures; Dowson & Landau 1982).

    :math:`W_2^2 = |m_a - m_b|^2 + \mathrm{tr}(A + B - 2 (A^{1/2} B A^{1/2})^{1/2})`; for independent coordinates the
    second term is :math:`|s_a - s_b|^2`.

    :param mean_a: shape ``(..., d)``
    :param spread_a: standard deviations ``(..., d)``, or covariances ``(..., d, d)``, positive definite
    :param mean_b: shape ``(..., d)``
    :param spread_b: as ``spread_a``
    :param covariance: ``"diagonal"`` for standard deviations, ``"full"`` for covariance matrices
    :param squared: whether to return :math:`W_2^2`, which is smooth where the two agree
    :return: shape ``(...)``, differentiable; the gradient of the distance at two equal Gaussians is zero
    :raises TypeError: if an argument is no tensor
    :raises ValueError: if ``covariance`` is neither, the shapes do not agree, a deviation is negative, or a covariance matrix
        is not symmetric and positive definite
    """
    if covariance not in ("diagonal", "full"):
        raise ValueError(f"`covariance` must be 'diagonal' or 'full', got {covariance!r}")
    moments = {"mean_a": mean_a, "spread_a": spread_a, "mean_b": mean_b, "spread_b": spread_b}
    if covariance == "diagonal":
        _check_normals(True, **moments)
        total = (mean_a - mean_b).square().sum(-1) + (spread_a - spread_b).square().sum(-1)
    else:
        _check_covariances(mean_a, spread_a, mean_b, spread_b)
        factor, info = th.linalg.cholesky_ex(spread_a)
        _, info_b = th.linalg.cholesky_ex(spread_b)
        if bool((info != 0).any()) or bool((info_b != 0).any()):
            raise ValueError("`spread_a` and `spread_b` must be positive definite with covariance='full'; add a jitter")
        # L'BL and A^(1/2) B A^(1/2) have the same eigenvalues, and Cholesky has a gradient where eigenvalues repeat.
        middle = factor.transpose(-1, -2) @ spread_b @ factor
        roots = th.linalg.eigvalsh(middle).clamp_min(0.0).sqrt().sum(-1)
        traces = (spread_a + spread_b).diagonal(dim1=-2, dim2=-1).sum(-1)
        total = (mean_a - mean_b).square().sum(-1) + (traces - 2 * roots).clamp_min(0.0)
    return finite(total if squared else root(total, 2.0), **moments)


def gaussian_w2_barycenter(means: th.Tensor, stds: th.Tensor, weights: th.Tensor | None = None) -> tuple[th.Tensor, th.Tensor]:
    r"""
    W2 barycenter of Gaussians with independent coordinates: the means of the means and of the deviations.

    :param means: shape ``(..., N, d)``
    :param stds: standard deviations, shape ``(..., N, d)``
    :param weights: shape ``(N,)`` or ``(..., N)``, summing to one; uniform when omitted
    :return: mean and standard deviation, each ``(..., d)``, differentiable
    :raises TypeError: if an argument is no tensor
    :raises ValueError: if the shapes disagree, a deviation is negative, or weights do not sum to one
    """
    return gaussian_sinkhorn_barycenter(means, stds, reg=0.0, weights=weights)


def gaussian_sinkhorn_divergence(
    mean_a: th.Tensor, std_a: th.Tensor, mean_b: th.Tensor, std_b: th.Tensor, *, reg: float, validate: bool = True
) -> th.Tensor:
    r"""
    Debiased entropic transport :math:`W(a,b) - \tfrac12 W(a,a) - \tfrac12 W(b,b)` under the squared Euclidean cost.

    :param mean_a: shape ``(..., d)``
    :param std_a: standard deviations, shape ``(..., d)``, non-negative
    :param mean_b: shape ``(..., d)``
    :param std_b: shape ``(..., d)``
    :param reg: entropic strength :math:`\varepsilon \ge 0`, in squared units of the support, at most 1e9; 0 gives W2
        squared. Terms of its order cancel: in float32 the result is off by about 1e-7 of it
    :param validate: whether to check the content (reads from the device)
    :return: shape ``(..., d)``, one term per dimension: sum over the dimensions that count. Differentiable
    :raises TypeError: if an argument is of another type
    :raises ValueError: if ``reg`` or a deviation is negative, or the shapes do not agree
    """
    half = 0.5 * check_number(reg, "reg", strict=False, high=MAX_REG)
    _check_normals(validate, mean_a=mean_a, std_a=std_a, mean_b=mean_b, std_b=std_b)
    if half == 0.0:
        total = (mean_a - mean_b).square() + (std_a - std_b).square()
    else:
        cross = _phi(_root(std_a, std_b, half), half)
        own = 0.5 * (_phi(_root(std_a, std_a, half), half) + _phi(_root(std_b, std_b, half), half))
        total = (mean_a - mean_b).square() + cross - own
    return finite(total, mean_a=mean_a, std_a=std_a, mean_b=mean_b, std_b=std_b) if validate else total


def gaussian_sinkhorn_barycenter(
    means: th.Tensor,
    stds: th.Tensor,
    *,
    reg: float,
    weights: th.Tensor | None = None,
    n_iter: int = 30,
    validate: bool = True,
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
    :param n_iter: steps of the fixed-point iteration, each of which halves the error at least
    :param validate: whether to check the content (reads from the device)
    :return: mean and standard deviation, each of shape ``(..., d)``
    :raises TypeError: if an argument is of another type
    :raises ValueError: if ``reg`` or a deviation is negative, the shapes do not agree, or weights do not sum to one
    """
    half = 0.5 * check_number(reg, "reg", strict=False, high=MAX_REG)
    check_count(n_iter, "n_iter")
    _check_normals(validate, means=means, stds=stds)
    if means.shape != stds.shape or means.dim() < 2:
        raise ValueError(f"`means` and `stds` must both be (..., N, d), got {tuple(means.shape)} and {tuple(stds.shape)}")
    if weights is None:
        weights = means.new_full((means.shape[-2],), 1.0 / means.shape[-2])
    check_rows(weights, "weights", "Gaussian", means.shape[-2], means.shape[:-2])
    if validate:
        check_alike({"means": means, "weights": weights})
        weights = check_measure(weights, "weights")
    w = weights.to(means.dtype).unsqueeze(-1)
    mean = (w * means).sum(-2)
    std = (w * stds).sum(-2)
    if half > 0.0:
        variance, variances = std.square(), stds.square()
        for _ in range(n_iter):
            # Both sides less sigma^2, without subtracting: for variances far below the regularisation nothing would be left.
            product = 4.0 * variance.unsqueeze(-2) * variances
            excess = (w * product / ((product + half**2).sqrt() + half)).sum(-2)
            variance = 0.5 * (excess * (excess + 2.0 * half)).sqrt()
        std = variance.sqrt()
    if validate:
        finite(mean, means=means), finite(std, stds=stds)
    return mean, std


def _root(std_a: th.Tensor, std_b: th.Tensor, half: float) -> th.Tensor:
    return (4.0 * (std_a * std_b).square() + half**2).sqrt()


def _phi(root: th.Tensor, half: float) -> th.Tensor:
    return half * (root + half).log() - root if half > 0 else -root


def _check_normals(validate: bool, **moments: th.Tensor) -> None:
    """Means, and deviations under names that begin with ``std`` or ``spread``: of one last dimension, none negative."""
    if not validate:
        return
    check_alike(moments)
    broadcast_shapes(**{name: x.shape for name, x in moments.items()})
    if len({x.shape[-1] for x in moments.values()}) > 1:
        shapes = ", ".join(f"`{name}` {tuple(x.shape)}" for name, x in moments.items())
        raise ValueError(f"means and deviations must have one last dimension, got {shapes}")
    for name, x in moments.items():
        if name.startswith(("std", "spread")) and bool((x < 0).any()):
            raise ValueError(f"`{name}` must be non-negative, got a minimum of {float(x.min()):g}")


def _check_covariances(mean_a: th.Tensor, spread_a: th.Tensor, mean_b: th.Tensor, spread_b: th.Tensor) -> None:
    check_alike({"mean_a": mean_a, "spread_a": spread_a, "mean_b": mean_b, "spread_b": spread_b})
    broadcast_shapes(
        mean_a=mean_a.shape[:-1], spread_a=spread_a.shape[:-2], mean_b=mean_b.shape[:-1], spread_b=spread_b.shape[:-2]
    )
    d = mean_a.shape[-1]
    for name, x in (("spread_a", spread_a), ("spread_b", spread_b)):
        if mean_b.shape[-1] != d or x.shape[-2:] != (d, d):
            raise ValueError(f"`{name}` must be (..., d, d) for means of d = {d}, got {tuple(x.shape)}, {tuple(mean_b.shape)}")
        # Cholesky reads one triangle only.
        gap, size = (x.detach() - x.detach().mT).abs().amax(), x.detach().abs().amax()
        if not bool(gap <= 1e-5 * size):
            raise ValueError(f"`{name}` must be a symmetric covariance matrix, got a gap of {float(gap):g} to its transpose")
