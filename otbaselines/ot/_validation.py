"""Checks of the arguments: a wrong type is a ``TypeError``, a wrong value a ``ValueError``, and both name the argument."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real

import numpy as np
import torch as th

# By how much a row may miss the sum of one: a softmax over many bins in float32, and the same converted to float64.
SUM_TOLERANCE = {th.float32: 1e-4, th.float64: 1e-6}
# Of exponents of distances: beyond, powers of small distances vanish beside those of large ones.
MAX_ORDER = 16.0


def check_number(value: object, name: str, *, low: float = 0.0, strict: bool = True, high: float = math.inf) -> float:
    """
    :param value: what the caller gave for a real number
    :param name: the argument's name, for the message
    :param low: lower bound
    :param strict: whether the bound itself is refused
    :param high: upper bound, allowed where it is finite
    :return: the same as a float
    :raises TypeError: if it is no real number: a truth value, text and a tensor are none
    :raises ValueError: if it is NaN, infinite or out of range
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a real number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        # Integers and fractions may be out of a float's range.
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if not (low < number if strict else low <= number) or not number <= high or math.isinf(number):
        bound = ("positive" if strict else "non-negative") if low == 0 else f"{'above' if strict else 'at least'} {low:g}"
        upper = "finite" if math.isinf(high) else f"at most {high:g}"
        raise ValueError(f"`{name}` must be {bound} and {upper}, got {number}")
    return number


def check_order(p: object, low: float = 1.0) -> float:
    """
    :param p: order of a Wasserstein distance, or exponent of a ground metric
    :param low: 1 for the former, where it is allowed; 0 for the latter, where it is not
    :return: the same as a float
    :raises TypeError: if it is no number
    :raises ValueError: if it is out of range, or above 16
    """
    return check_number(p, "p", low=low, strict=low == 0, high=MAX_ORDER)


def check_count(value: object, name: str, high: float = math.inf) -> int:
    """
    :param value: what the caller gave for a count
    :param name: the argument's name, for the message
    :param high: upper bound, allowed
    :return: the same as an int
    :raises TypeError: if it is no integer
    :raises ValueError: if it is not positive, or above the bound
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}")
    if int(value) > high:
        raise ValueError(f"`{name}` must be at most {high:,}, got {value:,}")
    return int(value)


def check_reg(reg: object) -> float:
    """
    :param reg: the entropic strength
    :return: the same as a float
    :raises TypeError: if it is no real number
    :raises ValueError: unless it is positive and finite
    """
    try:
        return check_number(reg, "reg")
    except ValueError as error:
        raise ValueError(f"{error}; `ot.discrete_w1` is transport without regularisation") from None


def check_stop(tol: object, max_iter: object) -> None:
    """
    :param tol: marginal error to stop at
    :param max_iter: iterations to stop at
    :raises TypeError: unless they are a number and an integer
    :raises ValueError: unless both are positive and ``tol`` is at most one, half of the largest error there is
    """
    check_number(tol, "tol", high=1.0)
    check_count(max_iter, "max_iter")


def check_dense(x: object, name: str) -> None:
    """
    What can be seen of a tensor of any numbers without reading them.

    :param x: what the caller gave for a tensor
    :param name: the argument's name, for the message
    :raises TypeError: if it is no tensor
    :raises ValueError: if it is empty, complex, or has no dense storage
    """
    if not isinstance(x, th.Tensor):
        raise TypeError(f"`{name}` must be a torch tensor, got {type(x).__name__}; convert it with `th.as_tensor`")
    if x.layout != th.strided or x.is_meta or x.is_complex():
        raise ValueError(f"`{name}` must be dense and hold real numbers, got {x.dtype} of layout {x.layout} on {x.device}")
    if x.numel() == 0:
        raise ValueError(f"`{name}` must not be empty, got shape {tuple(x.shape)}")


def check_tensor(x: object, name: str, dims: int = 1) -> None:
    """
    What can be seen of a tensor of floating-point numbers without reading them.

    :param x: what the caller gave for a tensor
    :param name: the argument's name, for the message
    :param dims: least number of dimensions
    :raises TypeError: if it is no tensor
    :raises ValueError: as :func:`check_dense`, or if it has too few dimensions or holds neither float32 nor float64
    """
    check_dense(x, name)
    assert isinstance(x, th.Tensor)
    if x.dtype not in SUM_TOLERANCE:
        raise ValueError(f"`{name}` must be float32 or float64, got {x.dtype}; convert it with `.float()` or `.double()`")
    if x.dim() < dims:
        raise ValueError(f"`{name}` must have {dims} or more dimensions, got shape {tuple(x.shape)}")


def check_alike(tensors: Mapping[str, th.Tensor], optional: Mapping[str, th.Tensor | None] | None = None) -> None:
    """
    :param tensors: arguments by their names
    :param optional: arguments that the caller may leave out
    :raises TypeError: if one is no tensor
    :raises ValueError: if one is no tensor of real numbers, or they differ in precision or device
    """
    given = {**tensors, **{name: x for name, x in (optional or {}).items() if x is not None}}
    for name, x in given.items():
        check_tensor(x, name)
    for what in ("dtype", "device"):
        found = [getattr(x, what) for x in given.values()]
        if len(set(found)) > 1:
            names = ", ".join(f"`{name}`" for name in given)
            raise ValueError(f"{names} must share one {what}, got {', '.join(map(str, found))}")


def check_measure(measure: th.Tensor, name: str) -> th.Tensor:
    """
    :param measure: rows of weights, shape ``(..., n)``
    :param name: the argument's name, for the message
    :return: the same with rows that sum to one exactly. The gradient with respect to ``measure`` is that with respect to the
        result: rows are meant to stay on the simplex, where the two agree up to a constant
    :raises TypeError: if it is no tensor
    :raises ValueError: if a weight is NaN or negative, or a row does not sum to one: within 1e-4 in float32, 1e-6 in float64
    """
    check_tensor(measure, name)
    held = measure.detach()
    # A product with ones: a sum over a short last axis takes three times as long.
    least, most = th.aminmax(th.mv(held.reshape(-1, held.shape[-1]), held.new_ones(held.shape[-1])))
    minimum, lowest, highest = th.stack((held.amin(), least, most)).tolist()
    gap = max(1.0 - lowest, highest - 1.0)
    # Sums tell of every NaN and infinity, whose comparisons are false.
    if not (minimum >= 0.0 and gap <= SUM_TOLERANCE[measure.dtype]):
        raise _no_measure(held, name, minimum, gap)
    return measure if gap <= 4 * th.finfo(measure.dtype).eps else shifted(measure, unit_mass(held))


def _no_measure(held: th.Tensor, name: str, minimum: float, gap: float) -> ValueError:
    if not bool(held.isfinite().all()):
        return ValueError(f"`{name}` holds NaN or infinite weights")
    if minimum < 0:
        return ValueError(f"`{name}` must be non-negative, got a minimum of {minimum:g}")
    return ValueError(f"rows of `{name}` must sum to one, one is off by {gap:g}; divide by `.sum(-1, keepdim=True)`")


def unit_mass(measure: th.Tensor) -> th.Tensor:
    """
    :param measure: non-negative, shape ``(..., n)``
    :return: rows that sum to one
    """
    return measure / measure.sum(-1, keepdim=True)


def shifted(x: th.Tensor, value: th.Tensor) -> th.Tensor:
    """
    :param x: any tensor
    :param value: a constant of the same shape
    :return: ``value``, whose gradient is passed on to ``x``
    """
    return x + (value - x).detach() if x.requires_grad else value


def finite(result: th.Tensor, **arguments: th.Tensor | None) -> th.Tensor:
    """
    Refuse what is no number, after the fact: one look at the result instead of one at every argument.

    :param result: what was computed
    :param arguments: from which tensors, by their names
    :return: the result
    :raises ValueError: if it is not finite, naming the argument that is not, or all of them where numbers are too large
    """
    if bool(result.detach().isfinite().all()):
        return result
    for name, x in arguments.items():
        if x is not None and not bool(x.detach().isfinite().all()):
            raise ValueError(f"`{name}` holds NaN or infinite numbers")
    names = ", ".join(f"`{name}`" for name, x in arguments.items() if x is not None)
    raise ValueError(f"{names}: numbers so large that the result is not finite in {result.dtype}; change the unit")


def broadcast_shapes(**shapes: th.Size | tuple[int, ...]) -> th.Size:
    """
    The common batch. (torch's own function imports a symbolic-algebra package on its first call: a second of CPU time.)

    :param shapes: leading dimensions of the arguments, by their names
    :return: what they broadcast to
    :raises ValueError: if they do not
    """
    first, *others = shapes.values()
    if all(shape == first for shape in others):
        return th.Size(first)
    try:
        return th.Size(np.broadcast_shapes(first, *others))
    except ValueError:
        found = ", ".join(f"`{name}` {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"leading dimensions do not broadcast: {found}") from None


def check_rows(rows: th.Tensor, name: str, entry: str, size: int, batch: th.Size) -> None:
    """
    What shares the batch of the problems without adding to it.

    :param rows: one row for all problems, or one for each
    :param name: the argument's name, for the message
    :param entry: what an entry belongs to, for the message
    :param size: entries of a row
    :param batch: leading dimensions of the problems
    :raises ValueError: if a row has another number of entries, or the rows do not fit the batch
    """
    check_tensor(rows, name)
    if rows.shape[-1] != size:
        raise ValueError(f"`{name}` must have one entry per {entry}, {size}, got shape {tuple(rows.shape)}")
    if rows.dim() > 1 and broadcast_shapes(problems=batch, **{name: rows.shape[:-1]}) != batch:
        raise ValueError(f"`{name}` must be one row, or rows for the batch {tuple(batch)}, got shape {tuple(rows.shape)}")
