"""Checks of the arguments: a wrong type is a ``TypeError``, a wrong value a ``ValueError``, and both name the argument."""

from __future__ import annotations

import math
from numbers import Integral, Real

import numpy as np
import torch as th

# By how much a row may miss the sum of one: a softmax over many bins in float32, and the same converted to float64.
SUM_TOLERANCE = {th.float32: 1e-4, th.float64: 1e-6}


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
    number = float(value)
    if not (low < number if strict else low <= number) or not number <= high or math.isinf(number):
        bound = ("positive" if strict else "non-negative") if low == 0 else f"{'above' if strict else 'at least'} {low:g}"
        upper = "finite" if math.isinf(high) else f"at most {high:g}"
        raise ValueError(f"`{name}` must be {bound} and {upper}, got {number}")
    return number


def check_count(value: object, name: str) -> int:
    """
    :param value: what the caller gave for a count
    :param name: the argument's name, for the message
    :return: the same as an int
    :raises TypeError: if it is no integer
    :raises ValueError: if it is not positive
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}")
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


def check_tensor(x: object, name: str, dims: int = 1) -> None:
    """
    What can be seen without reading the content.

    :param x: what the caller gave for a tensor
    :param name: the argument's name, for the message
    :param dims: least number of dimensions
    :raises TypeError: if it is no tensor
    :raises ValueError: if it is empty, has too few dimensions, holds no float32 or float64, or has no dense storage
    """
    if not isinstance(x, th.Tensor):
        raise TypeError(f"`{name}` must be a torch tensor, got {type(x).__name__}; convert it with `th.as_tensor`")
    if x.dtype not in SUM_TOLERANCE:
        raise ValueError(f"`{name}` must be float32 or float64, got {x.dtype}; convert it with `.float()` or `.double()`")
    if x.layout != th.strided or x.is_meta:
        raise ValueError(f"`{name}` must be dense and hold numbers, got layout {x.layout} on {x.device}")
    if x.dim() < dims or x.numel() == 0:
        raise ValueError(f"`{name}` must have {dims} or more dimensions and not be empty, got shape {tuple(x.shape)}")


def check_alike(**tensors: th.Tensor | None) -> None:
    """
    :param tensors: the arguments by their names; those left out by the caller are ``None``
    :raises TypeError: if one is no tensor
    :raises ValueError: if one is no tensor of real numbers, or they differ in precision or device
    """
    given = {name: x for name, x in tensors.items() if x is not None}
    for name, x in given.items():
        check_tensor(x, name)
    for what in ("dtype", "device"):
        found = [str(getattr(x, what)) for x in given.values()]
        if len(set(found)) > 1:
            names = ", ".join(f"`{name}`" for name in given)
            raise ValueError(f"{names} must share one {what}, got {', '.join(found)}")


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
    low, high = th.aminmax(held)
    # A product with ones: a sum over a short last axis takes three times as long.
    gap = (th.mv(held.reshape(-1, held.shape[-1]), held.new_ones(held.shape[-1])) - 1).abs().amax()
    minimum, maximum, gap_value = th.stack((low, high, gap)).tolist()
    if minimum != minimum or not maximum < math.inf:
        raise ValueError(f"`{name}` holds NaN or infinite weights")
    if minimum < 0:
        raise ValueError(f"`{name}` must be non-negative, got a minimum of {minimum:g}")
    if gap_value > SUM_TOLERANCE[measure.dtype]:
        raise ValueError(f"rows of `{name}` must sum to one, one is off by {gap_value:g}; divide by `.sum(-1, keepdim=True)`")
    return measure if gap_value <= 4 * th.finfo(measure.dtype).eps else shifted(measure, unit_mass(held))


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
