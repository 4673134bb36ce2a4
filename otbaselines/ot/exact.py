"""Unregularised transport where a closed form or a small enumeration gives it, batched and differentiable."""

from __future__ import annotations

import numpy as np
import torch as th
from torch.autograd import forward_ad

from otbaselines.ot._lipschitz import metric_structure
from otbaselines.ot._validation import (
    broadcast_shapes,
    check_alike,
    check_measure,
    check_order,
    check_rows,
    check_tensor,
    finite,
)


def wasserstein_1d(
    x: th.Tensor, y: th.Tensor, a: th.Tensor | None = None, b: th.Tensor | None = None, *, p: float = 1.0
) -> th.Tensor:
    r"""
    Wasserstein distance on the line, from the quantile functions: :math:`\left(\int_0^1 |F_a^{-1} - F_b^{-1}|^p\right)^{1/p}`.

    :param x: positions, shape ``(..., n)``, in any order
    :param y: positions, shape ``(..., m)``
    :param a: weights of ``x``, broadcastable to it, rows summing to one; uniform when omitted
    :param b: weights of ``y``
    :param p: order, from 1 to 16
    :return: shape ``(...)``, differentiable with respect to positions and weights; where the two measures are equal, with a
        gradient of zero
    :raises TypeError: if an argument is of another type
    :raises ValueError: if ``p`` is out of range, the shapes do not agree, or the contents are no positions and weights
    """
    order = check_order(p)
    check_alike({"x": x, "y": y}, {"a": a, "b": b})
    batch = broadcast_shapes(x=x.shape[:-1], y=y.shape[:-1])
    x, y = x.expand(*batch, -1), y.expand(*batch, -1)
    a, b = _weights(a, "a", x), _weights(b, "b", y)
    return finite(root(line_cost(x, y, a, b, order), order), x=x, y=y)


def _weights(weights: th.Tensor | None, name: str, points: th.Tensor) -> th.Tensor | None:
    if weights is None:
        return None
    check_rows(weights, name, "position", points.shape[-1], points.shape[:-1])
    return check_measure(weights, name).expand(points.shape)


def line_cost(x: th.Tensor, y: th.Tensor, a: th.Tensor | None, b: th.Tensor | None, p: float) -> th.Tensor:
    """
    Transport on the line, without the root: smooth where the measures agree.

    :param x: shape ``(..., n)``
    :param y: shape ``(..., m)``
    :param a: weights of the shape of ``x``; uniform when omitted
    :param b: weights of the shape of ``y``
    :param p: order
    :return: :math:`W_p^p`, shape ``(...)``
    """
    if a is None and b is None and x.shape[-1] == y.shape[-1]:
        gaps = (ascending(x) - ascending(y)).abs()
        return gaps.mean(-1) if p == 1.0 else (gaps**p).mean(-1)
    import ot as pot

    # POT has the problems along the last axis, and is sound for two axes only.
    columns = (None if z is None else z.reshape(-1, z.shape[-1]).t() for z in (x, y, a, b))
    value: th.Tensor = pot.wasserstein_1d(*columns, p=p)
    return value.reshape(x.shape[:-1])


def ascending(x: th.Tensor) -> th.Tensor:
    """
    The values in ascending order along the last dimension.

    torch's sort also says where each value was, which derivatives need. Where they are not wanted, NumPy's takes less than a
    tenth of the time (processors with AVX-512, numpy 2).

    :param x: any shape, float32 or float64
    :return: of the same shape, differentiable
    """
    is_differentiated = (th.is_grad_enabled() and x.requires_grad) or forward_ad.unpack_dual(x).tangent is not None
    # In a trace NumPy's values would be constants.
    is_traced = th.jit.is_tracing()  # type: ignore[attr-defined]
    if is_differentiated or is_traced or x.device.type != "cpu":
        return x.sort(-1).values
    try:
        values = x.numpy(force=True)
    except RuntimeError:
        # The tensors of `torch.func` have no memory of their own.
        return x.sort(-1).values
    return th.from_numpy(np.sort(values, axis=-1))


def root(total: th.Tensor, p: float) -> th.Tensor:
    """
    :param total: non-negative
    :param p: order, at least 1
    :return: the p-th root, with a gradient of zero at zero, where its own is infinite
    """
    if p == 1.0:
        return total
    # Not `total > 0`, which would make a zero of NaN.
    zero = total == 0
    return th.where(zero, 0.0, th.where(zero, 1.0, total) ** (1.0 / p))


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
    :raises TypeError: if an argument is no tensor
    :raises ValueError: if the rows do not sum to one, or the cost is negative, asymmetric or of another size
    """
    check_alike({"p": p, "q": q})
    check_tensor(cost, "cost", 2)
    if cost.dim() != 2 or p.shape[-1] != cost.shape[0] or q.shape[-1] != cost.shape[1]:
        raise ValueError(
            f"`cost` must be (n, n) for `p` and `q` of n bins, got {tuple(cost.shape)}, {tuple(p.shape)} and {tuple(q.shape)}"
        )
    batch = broadcast_shapes(p=p.shape[:-1], q=q.shape[:-1])
    if validate:
        # Stacked, so that both are read at once and equal rows stay equal to the last bit where they miss the sum of one.
        pair = (p, q) if p.shape == q.shape else (p.expand(*batch, -1), q.expand(*batch, -1))
        p, q = check_measure(th.stack(pair), "p` and `q").unbind()
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

    batch = broadcast_shapes(p=p.shape[:-1], q=q.shape[:-1])
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
