"""Checks of the solvers' arguments, and the choice of the number system that is safe for them."""

from __future__ import annotations

import numpy as np
import torch as th

from otbaselines.ot._kernels import (
    FLOAT32_TOLERANCE,
    LOG,
    MAX_RANGE_FLOAT32,
    MAX_RANGE_FLOAT64,
    PRODUCT,
    THIN_BATCH,
    THIN_BINS,
    DenseKernel,
    Domain,
    Kernel,
    LatticeKernel,
    ThinKernel,
)
from otbaselines.ot.costs import Cost, LatticeCost


def check_reg(reg: float) -> float:
    """
    :param reg: the entropic strength
    :return: the same as a float
    :raises ValueError: unless it is positive and finite
    """
    reg = float(reg)
    if not 0 < reg < float("inf"):
        raise ValueError(f"`reg` must be positive and finite, got {reg}; use `ot.exact` for reg=0")
    return reg


def check_measure(measure: th.Tensor, name: str) -> None:
    """
    :param measure: rows of weights, shape ``(..., n)``
    :param name: the argument's name, for the message
    :raises ValueError: if a weight is NaN or negative, or a row does not sum to one
    """
    if measure.dim() < 1 or measure.shape[-1] == 0:
        raise ValueError(f"`{name}` must have a last dimension of bins, got shape {tuple(measure.shape)}")
    if measure.dtype not in (th.float32, th.float64):
        raise ValueError(f"`{name}` must be float32 or float64, got {measure.dtype}; convert with `.float()` or `.double()`")
    if measure.numel() == 0:
        return
    measure = measure.detach()
    low, high = th.aminmax(measure)
    # A product with ones: a sum over a short last axis takes three times as long.
    gap = (th.mv(measure.reshape(-1, measure.shape[-1]), measure.new_ones(measure.shape[-1])) - 1).abs().amax()
    minimum, maximum, gap_value = th.stack((low, high, gap)).tolist()
    if minimum != minimum or not maximum < float("inf"):
        raise ValueError(f"`{name}` holds NaN or infinite weights")
    if minimum < 0:
        raise ValueError(f"`{name}` must be non-negative, got a minimum of {minimum:g}")
    if gap_value > 1e-4:
        raise ValueError(f"rows of `{name}` must sum to one, one is off by {gap_value:g}; divide by `.sum(-1, keepdim=True)`")


def check_stop(tol: float, max_iter: int) -> None:
    """
    :param tol: marginal error to stop at
    :param max_iter: iterations to stop at
    :raises ValueError: unless both are positive
    """
    if not tol > 0:
        raise ValueError(f"`tol` must be positive, got {tol}; 1e-6 is the default")
    if max_iter < 1:
        raise ValueError(f"`max_iter` must be at least 1, got {max_iter}")


def check_shapes(cost: Cost, rows: th.Tensor, columns: th.Tensor, names: tuple[str, str]) -> None:
    """
    :param cost: shape ``(..., n, m)``
    :param rows: measures on the first side, ``(..., n)``
    :param columns: measures on the second side, ``(..., m)``
    :param names: the measures' names, for the message
    :raises ValueError: if the numbers of bins, the precisions or the devices disagree
    """
    if rows.shape[-1] != cost.shape[-2] or columns.shape[-1] != cost.shape[-1]:
        raise ValueError(
            f"`cost` of shape {tuple(cost.shape)} needs {cost.shape[-2]} bins in `{names[0]}` and {cost.shape[-1]} in "
            f"`{names[1]}`, got {rows.shape[-1]} and {columns.shape[-1]}"
        )
    if not rows.dtype == columns.dtype == cost.dtype:
        raise ValueError(
            f"`cost`, `{names[0]}` and `{names[1]}` must share one dtype, got {cost.dtype}, {rows.dtype}, {columns.dtype}"
        )
    if not rows.device == columns.device == cost.device:
        raise ValueError(
            f"`cost`, `{names[0]}` and `{names[1]}` must share one device, got {cost.device}, {rows.device}, {columns.device}"
        )


def exponent_range(cost: Cost, reg: float) -> float:
    """The largest ``cost / reg``: how many powers of e the kernel spans. Reads one number from the device."""
    if isinstance(cost, LatticeCost):
        return sum(float(factor.max()) for factor in cost.factors) / reg
    return float(cost.detach().max()) / reg if cost.numel() else 0.0


def choose_arithmetic(span: float, dtype: th.dtype, tol: float) -> tuple[th.dtype, Domain]:
    """
    The cheapest arithmetic that is sound for a kernel whose exponents span ``span``.

    float32 is kept only where neither the kernel nor the tolerance is out of its reach; everything else is solved in
    float64 and rounded at the end, because there a product costs a hundredth of a log-sum-exp.

    :param span: see :func:`exponent_range`
    :param dtype: precision of the caller's tensors
    :param tol: marginal error asked for
    :return: the precision to compute in, and the number system
    """
    if span >= MAX_RANGE_FLOAT64:
        return th.float64, LOG
    if dtype == th.float32 and span < MAX_RANGE_FLOAT32 and tol >= FLOAT32_TOLERANCE:
        return th.float32, PRODUCT
    return th.float64, PRODUCT


def make_kernel(cost: Cost, reg: float, dtype: th.dtype, domain: Domain, batch: int = 1) -> Kernel:
    """
    :param cost: dense, shape ``(n, m)`` or ``(B, n, m)``, or a lattice
    :param reg: entropic strength
    :param dtype: precision to compute in
    :param domain: number system
    :param batch: how many problems there are
    :return: the operator that applies ``exp(-cost / reg)``
    """
    if isinstance(cost, LatticeCost):
        factors = [factor.detach().to(dtype) for factor in cost.factors]
        return LatticeKernel([factor / -reg for factor in factors], domain, factors)
    cost = cost.detach().to(dtype)
    if cost.dim() == 2 and max(cost.shape) <= THIN_BINS and batch >= THIN_BATCH and not domain.log:
        return ThinKernel(cost / -reg, exponent_range(cost, reg))
    return DenseKernel(cost / -reg, domain, cost)


def convert_cost(cost: Cost, dtype: th.dtype) -> Cost:
    """
    :param cost: dense or a lattice
    :param dtype: precision wanted
    :return: the same cost in that precision, cut off from autograd
    """
    if isinstance(cost, LatticeCost):
        return LatticeCost([factor.detach().to(dtype) for factor in cost.factors])
    return cost.detach().to(dtype)


def flatten_cost(cost: Cost, batch: th.Size) -> Cost:
    """
    :param cost: shape ``(n, m)`` or ``(..., n, m)``, or a lattice
    :param batch: the leading dimensions of the whole problem
    :return: a shared cost as it is, a batched one as ``(B, n, m)``
    """
    if isinstance(cost, LatticeCost) or cost.dim() == 2:
        return cost
    return cost.detach().expand(*batch, -1, -1).reshape(-1, *cost.shape[-2:])


def broadcast_shapes(*shapes: th.Size | tuple[int, ...]) -> th.Size:
    """
    The common batch. (torch's own function imports a symbolic-algebra package on its first call: a second of CPU time.)

    :param shapes: leading dimensions of the arguments
    :return: what they broadcast to
    :raises ValueError: if they do not
    """
    try:
        return th.Size(np.broadcast_shapes(*shapes))
    except ValueError:
        raise ValueError(f"the leading dimensions {[tuple(shape) for shape in shapes]} do not broadcast") from None
