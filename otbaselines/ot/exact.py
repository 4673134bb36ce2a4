"""Unregularised transport where a closed form or a small enumeration gives it, batched and differentiable."""

from __future__ import annotations

import math
from typing import Literal

import torch as th

from otbaselines.ot._lipschitz import metric_structure
from otbaselines.ot._validation import broadcast_shapes, check_measure


def wasserstein_1d(
    x: th.Tensor, y: th.Tensor, a: th.Tensor | None = None, b: th.Tensor | None = None, *, p: float = 1.0
) -> th.Tensor:
    r"""
    Wasserstein distance on the line, from the quantile functions: :math:`\left(\int_0^1 |F_a^{-1} - F_b^{-1}|^p\right)^{1/p}`.

    :param x: positions, shape ``(..., n)``, in any order
    :param y: positions, shape ``(..., m)``
    :param a: weights of ``x``, broadcastable to it, rows summing to one; uniform when omitted
    :param b: weights of ``y``
    :param p: order, at least 1
    :return: shape ``(...)``, differentiable with respect to positions and weights
    :raises ValueError: if ``p < 1``
    """
    if not p >= 1:
        raise ValueError(f"`p` must be at least 1, got {p}")
    if a is None and b is None and x.shape[-1] == y.shape[-1]:
        gaps = (x.sort(-1).values - y.sort(-1).values).abs()
        return gaps.mean(-1) if p == 1.0 else (gaps**p).mean(-1) ** (1.0 / p)
    batch = broadcast_shapes(x.shape[:-1], y.shape[:-1])
    x, levels_x = _quantiles(x.expand(*batch, -1), a)
    y, levels_y = _quantiles(y.expand(*batch, -1), b)
    levels, _ = th.cat((levels_x, levels_y), -1).sort(-1)
    masses = th.diff(levels, dim=-1, prepend=th.zeros_like(levels[..., :1]))
    at_x = th.searchsorted(levels_x.detach(), levels.detach()).clamp_max(x.shape[-1] - 1)
    at_y = th.searchsorted(levels_y.detach(), levels.detach()).clamp_max(y.shape[-1] - 1)
    gaps = (x.gather(-1, at_x) - y.gather(-1, at_y)).abs()
    if p == 1.0:
        return (masses * gaps).sum(-1)
    return (masses * gaps**p).sum(-1) ** (1.0 / p)


def _quantiles(x: th.Tensor, weights: th.Tensor | None) -> tuple[th.Tensor, th.Tensor]:
    """Sorted positions and the levels at which the quantile function leaves them."""
    x, order = x.sort(-1)
    if weights is None:
        weights = x.new_full((), 1.0 / x.shape[-1])
    levels = weights.expand(x.shape).gather(-1, order).cumsum(-1)
    return x.contiguous(), levels.contiguous()


def gaussian_w1(mean_a: th.Tensor, std_a: th.Tensor, mean_b: th.Tensor, std_b: th.Tensor) -> th.Tensor:
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
    :return: shape ``(...)``; first derivatives are exact and finite, also at equal deviations; no second derivative
    """
    shift, spread = (mean_a - mean_b).abs(), (std_a - std_b).abs()
    with th.no_grad():
        # The value is homogeneous of degree one in (shift, spread): by Euler's theorem its partial derivatives are the
        # two factors below, so that the ratio can be held constant and never divides a gradient by zero.
        ratio = shift / spread.clamp_min(th.finfo(spread.dtype).tiny)
        ratio = ratio.clamp_max(1e3)
        along_shift = th.erf(ratio / math.sqrt(2.0))
        along_spread = math.sqrt(2.0 / math.pi) * th.exp(-0.5 * ratio.square())
    return (shift * along_shift + spread * along_spread).sum(-1)


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
    :raises ValueError: if ``covariance`` is neither, or a covariance matrix is not positive definite
    """
    shift = (mean_a - mean_b).square().sum(-1)
    if covariance == "diagonal":
        total = shift + (spread_a - spread_b).square().sum(-1)
    elif covariance == "full":
        factor, info = th.linalg.cholesky_ex(spread_a)
        _, info_b = th.linalg.cholesky_ex(spread_b)
        if bool((info != 0).any()) or bool((info_b != 0).any()):
            raise ValueError("`spread_a` and `spread_b` must be positive definite with covariance='full'; add a jitter")
        # L'BL and A^(1/2) B A^(1/2) have the same eigenvalues, and Cholesky has a gradient where eigenvalues repeat.
        middle = factor.transpose(-1, -2) @ spread_b @ factor
        roots = th.linalg.eigvalsh(middle).clamp_min(0.0).sqrt().sum(-1)
        traces = (spread_a + spread_b).diagonal(dim1=-2, dim2=-1).sum(-1)
        total = shift + (traces - 2 * roots).clamp_min(0.0)
    else:
        raise ValueError(f"`covariance` must be 'diagonal' or 'full', got {covariance!r}")
    if squared:
        return total
    positive = total > 0
    return th.where(positive, th.where(positive, total, 1.0).sqrt(), 0.0)


def gaussian_w2_barycenter(means: th.Tensor, stds: th.Tensor, weights: th.Tensor | None = None) -> tuple[th.Tensor, th.Tensor]:
    r"""
    W2 barycenter of Gaussians with independent coordinates: the means of the means and of the deviations.

    :param means: shape ``(..., N, d)``
    :param stds: standard deviations, shape ``(..., N, d)``
    :param weights: shape ``(N,)`` or ``(..., N)``, summing to one; uniform when omitted
    :return: mean and standard deviation, each ``(..., d)``, differentiable
    :raises ValueError: if the shapes disagree
    """
    if means.shape != stds.shape or means.dim() < 2:
        raise ValueError(f"`means` and `stds` must both be (..., N, d), got {tuple(means.shape)} and {tuple(stds.shape)}")
    if weights is None:
        return means.mean(-2), stds.mean(-2)
    if weights.shape[-1] != means.shape[-2]:
        raise ValueError(f"`weights` must have one entry per Gaussian, {means.shape[-2]}, got shape {tuple(weights.shape)}")
    check_measure(weights, "weights")
    return (weights.unsqueeze(-1) * means).sum(-2), (weights.unsqueeze(-1) * stds).sum(-2)


def discrete_w1(p: th.Tensor, q: th.Tensor, cost: th.Tensor, *, validate: bool = True) -> th.Tensor:
    r"""
    Exact transport between distributions over few points, for thousands of them at once.

    The structure of the cost is found once and cached: a metric proportional to 0/1 gives total variation, points on a
    line cumulative sums, any other metric of up to 8 points :math:`\max_k \langle f_k, p - q\rangle` over the extreme
    1-Lipschitz functions (70 at 5 points, 3,432 at 8). Everything else, costs that are no metric included, is a loop over
    POT's network simplex: 5 us a problem at best, on the CPU.

    :param p: shape ``(..., n)``, rows summing to one
    :param q: shape ``(..., n)``
    :param cost: symmetric, shape ``(n, n)``, zero on the diagonal where it is a metric
    :param validate: whether to check the tensors' contents
    :return: :math:`\min_P \langle P, C\rangle`, shape ``(...)``; its gradient is a Kantorovich potential, zero at ``p == q``
        for metrics. ``cost`` is a constant
    :raises ValueError: if the rows do not sum to one, or the cost is negative, asymmetric or of another size
    """
    if cost.dim() != 2 or p.shape[-1] != cost.shape[0] or q.shape[-1] != cost.shape[1]:
        raise ValueError(
            f"`cost` must be (n, n) for `p` and `q` of n bins, got {tuple(cost.shape)}, {tuple(p.shape)} and {tuple(q.shape)}"
        )
    if validate:
        if p.shape == q.shape:
            check_measure(th.stack((p, q)), "p` and `q")
        else:
            check_measure(p, "p")
            check_measure(q, "q")
    structure = metric_structure(cost)
    difference = p - q
    if structure.kind == "zero-one":
        return 0.5 * structure.scale * difference.abs().sum(-1)
    if structure.kind == "line":
        order = th.as_tensor(structure.order, device=p.device)
        gaps = th.as_tensor(structure.gaps, dtype=p.dtype, device=p.device)
        return (difference[..., order].cumsum(-1)[..., :-1].abs() * gaps).sum(-1)
    if structure.kind == "vertices":
        functions = th.as_tensor(structure.functions, dtype=p.dtype, device=p.device)
        # One function of each pair f, -f is stored; the absolute value also makes the gradient at p == q zero. Columns, since
        # a maximum over rows of 35 numbers takes as long as the product itself.
        columns = difference.reshape(-1, difference.shape[-1]).t()
        return th.matmul(functions.t(), columns).abs().amax(0).view(difference.shape[:-1])
    return _network_simplex(p, q, cost)


def _network_simplex(p: th.Tensor, q: th.Tensor, cost: th.Tensor) -> th.Tensor:
    import ot as pot

    batch = broadcast_shapes(p.shape[:-1], q.shape[:-1])
    p, q = p.expand(*batch, -1), q.expand(*batch, -1)
    rows = p.detach().reshape(-1, p.shape[-1]).double().cpu().numpy()
    columns = q.detach().reshape(-1, q.shape[-1]).double().cpu().numpy()
    matrix = cost.detach().double().cpu().numpy()
    f, g = [], []
    for row, column in zip(rows, columns, strict=True):
        _, log = pot.emd(row / row.sum(), column / column.sum(), matrix, log=True)
        f.append(th.from_numpy(log["u"]))
        g.append(th.from_numpy(log["v"]))
    potential_p = th.stack(f).reshape(p.shape).to(p.device)
    potential_q = th.stack(g).reshape(q.shape).to(q.device)
    value: th.Tensor = (p.double() * potential_p).sum(-1) + (q.double() * potential_q).sum(-1)
    return value.to(p.dtype)
