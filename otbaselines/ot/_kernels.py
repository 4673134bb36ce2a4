"""
Gibbs kernels and the two number systems in which they are applied.

Every solver of this package is written once, in terms of a :class:`Domain` (ordinary products, or their logarithms) and
of a kernel that knows how to apply :math:`K = e^{-C/\\varepsilon}` in that domain without a matrix larger than it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, TypeAlias

import torch as th

from otbaselines.ot.costs import Cost, LatticeCost

# Beyond this range of exponents a float64 product loses bins (e^-600 times e^-100 is zero), hence logarithms.
MAX_RANGE_FLOAT64 = 600.0
# A float32 number ends at e^-87; the margin leaves room for the measures' own small weights.
MAX_RANGE_FLOAT32 = 60.0
# A fixed number of float32 steps, never repeated in float64, can underflow: seen from 35 on, for large teams of nearly
# deterministic agents that disagree and were warm-started elsewhere.
MAX_RANGE_FIXED = 30.0
# A rounded potential over the strength is off by 1e-16 of the range, and so is every entry of the plan, relatively.
MAX_RANGE = 1e8
# Values are differences of numbers of the order of `reg`: relatively to the cost they are off by 1e-16 over the range.
MIN_RANGE = 1e-9
# Logarithms of the largest numbers.
MAX_EXPONENT = {th.float32: 88.0, th.float64: 709.0}
# Up to this many bins, and from this many problems on, the batch is the better axis to compute along.
THIN_BINS = 32
THIN_BATCH = 64
# A marginal in float32 cannot be trusted below a few ulp; tighter tolerances are solved in float64.
FLOAT32_TOLERANCE = 32 * th.finfo(th.float32).eps
# Log-sum-exp needs one number per entry of every plan; rows are taken in blocks of about this many numbers.
BLOCK_SIZE = 1 << 22


# Takes tensors and, where there is anything to compute, `out`.
_Function: TypeAlias = Callable[..., th.Tensor]


def _same(x: th.Tensor) -> th.Tensor:
    return x


class Domain:
    """
    Ordinary positive numbers: multiplication is multiplication.

    :cvar enter: the number whose logarithm is given
    :cvar leave: the logarithm of a number of this domain
    :cvar mul: product, written to ``out`` if given
    :cvar div: quotient, written to ``out`` if given
    :cvar root: square root, written to ``out`` if given
    :cvar inverse: reciprocal
    :cvar wrap: an ordinary number, in this domain
    :cvar value: a number of this domain, as an ordinary one
    """

    # Torch's own functions, without a call of ours around them: on problems of a handful of bins that costs as much.
    log = False
    enter: ClassVar[_Function] = staticmethod(th.exp)
    leave: ClassVar[_Function] = staticmethod(th.log)
    mul: ClassVar[_Function] = staticmethod(th.mul)
    div: ClassVar[_Function] = staticmethod(th.div)
    root: ClassVar[_Function] = staticmethod(th.sqrt)
    inverse: ClassVar[_Function] = staticmethod(th.reciprocal)
    wrap: ClassVar[_Function] = staticmethod(_same)
    value: ClassVar[_Function] = staticmethod(_same)


class LogDomain(Domain):
    """Logarithms of positive numbers: multiplication is addition."""

    log = True
    enter = staticmethod(_same)
    leave = staticmethod(_same)
    mul = staticmethod(th.add)
    div = staticmethod(th.sub)
    root = staticmethod(partial(th.mul, other=0.5))
    inverse = staticmethod(th.neg)
    wrap = staticmethod(th.log)
    value = staticmethod(th.exp)


class Kernel(ABC):
    """
    Applies a Gibbs kernel to rows: ``(B, N, m) -> (B, N, n)``, in the number system ``domain``.

    :param domain: in which inputs and outputs are written
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    @abstractmethod
    def forward(self, v: th.Tensor) -> th.Tensor:
        """``K v``, shape ``(B, N, n)``."""

    @abstractmethod
    def adjoint(self, u: th.Tensor) -> th.Tensor:
        """``K' u``, shape ``(B, N, m)``."""

    def columns(self, v: th.Tensor, out: th.Tensor | None = None) -> th.Tensor:
        """``K v`` for one kernel and many problems, which lie along the last axis: ``(N, m, B) -> (N, n, B)``."""
        product = self.forward(v.transpose(1, 2)).transpose(1, 2)
        return product if out is None else out.copy_(product)

    def arrange(self, rows: th.Tensor) -> th.Tensor:
        """The same rows, in the memory layout that this kernel is fast on."""
        return rows

    def mean(self, weights: th.Tensor, log_x: th.Tensor) -> th.Tensor:
        """Weighted sum over the agents: ``(1, N)`` or ``(B, 1, N)`` and ``(B, N, n)`` to ``(B, 1, n)``."""
        return th.matmul(weights, log_x)

    def geometric(self, weights: th.Tensor, x: th.Tensor, uniform: bool) -> th.Tensor:
        """
        Weighted geometric mean over the agents.

        :param weights: exponents, ordinary numbers, shape ``(1, N)`` or ``(B, 1, N)``
        :param x: shape ``(B, N, n)``, in the kernel's domain
        :param uniform: whether all exponents are known to be equal
        :return: shape ``(B, 1, n)``
        """
        return self.domain.enter(self.mean(weights, self.domain.leave(x)))

    @abstractmethod
    def select(self, index: th.Tensor) -> Kernel:
        """The kernel of the problems ``index`` of the batch."""


class DenseKernel(Kernel):
    """
    A kernel held as one matrix, shared by the batch or one per problem.

    :param exponent: ``-C / reg``, shape ``(n, m)`` or ``(B, n, m)``
    :param domain: the number system
    :param symmetric: whether it equals its transpose, which is then never formed
    """

    def __init__(self, exponent: th.Tensor, domain: Domain, *, symmetric: bool = False) -> None:
        super().__init__(domain)
        self._exponent = exponent
        self._matrix = domain.enter(exponent)
        self._transpose = self._matrix if symmetric else self._matrix.transpose(-1, -2)
        self._apply: Callable[[th.Tensor, th.Tensor], th.Tensor] = log_matmul if domain.log else th.matmul
        self._right, self._left = (self._matrix, self._transpose) if domain.log else (self._transpose, self._matrix)

    def forward(self, v: th.Tensor) -> th.Tensor:
        return self._apply(v, self._right)

    def adjoint(self, u: th.Tensor) -> th.Tensor:
        return self._apply(u, self._left)

    def select(self, index: th.Tensor) -> Kernel:
        if self._exponent.dim() == 2:
            return self
        return DenseKernel(self._exponent[index], self.domain)


class ThinKernel(DenseKernel):
    """
    One small kernel for thousands of problems, stored with the batch as the fastest axis.

    A product with a 5 x 5 matrix runs five times as fast over columns of length B as over B rows of length five.

    :param exponent: ``-C / reg``, shape ``(n, m)``
    :param span: the largest ``C / reg``
    """

    def __init__(self, exponent: th.Tensor, span: float) -> None:
        super().__init__(exponent, PRODUCT)
        self._span = span
        self._stacks: dict[int, th.Tensor] = {}

    def arrange(self, rows: th.Tensor) -> th.Tensor:
        return rows.permute(1, 2, 0).contiguous().permute(2, 0, 1)

    def columns(self, v: th.Tensor, out: th.Tensor | None = None) -> th.Tensor:
        # The broadcasting of `matmul` costs as much as the product itself, and `len` of a tensor a quarter of it.
        count = v.shape[0]
        if count not in self._stacks:
            self._stacks[count] = self._matrix.expand(count, -1, -1)
        return th.bmm(self._stacks[count], v, out=out)

    def forward(self, v: th.Tensor) -> th.Tensor:
        return self.columns(v.permute(1, 2, 0)).permute(2, 0, 1)

    def adjoint(self, u: th.Tensor) -> th.Tensor:
        return th.matmul(self._transpose, u.permute(1, 2, 0)).permute(2, 0, 1)

    def mean(self, weights: th.Tensor, log_x: th.Tensor) -> th.Tensor:
        if weights.dim() == 3:
            return (weights.transpose(-1, -2) * log_x).sum(-2, keepdim=True)
        batch, n_agents, n = log_x.shape
        columns = log_x.permute(1, 2, 0).reshape(n_agents, -1)
        return th.matmul(weights, columns).view(n, batch).t().unsqueeze(1)

    def geometric(self, weights: th.Tensor, x: th.Tensor, uniform: bool) -> th.Tensor:
        if uniform and x.shape[1] * self._span < 0.5 * MAX_EXPONENT[x.dtype]:
            # One logarithm of the product in place of one for each agent; its range is safe.
            mean = (x.permute(1, 2, 0).prod(0).log() * weights.flatten()[0]).exp()
            return mean.t().unsqueeze(1)
        return super().geometric(weights, x, uniform)


class LatticeKernel(Kernel):
    """
    A Kronecker product of kernels, applied factor by factor: :math:`O(n \\sum_k n_k)` instead of :math:`O(n^2)`.

    :param exponents: ``-C_k / reg`` of every factor, each ``(n_k, m_k)``
    :param domain: the number system
    """

    def __init__(self, exponents: Sequence[th.Tensor], domain: Domain) -> None:
        super().__init__(domain)
        self._matrices = tuple(domain.enter(exponent) for exponent in exponents)
        self._exponentials = tuple(exponent.exp() for exponent in exponents) if domain.log else self._matrices

    def forward(self, v: th.Tensor) -> th.Tensor:
        return self._apply(v, self._matrices, self._exponentials)

    def adjoint(self, u: th.Tensor) -> th.Tensor:
        turned = ([matrix.transpose(-1, -2) for matrix in each] for each in (self._matrices, self._exponentials))
        return self._apply(u, *turned)

    def _apply(self, x: th.Tensor, matrices: Sequence[th.Tensor], exponentials: Sequence[th.Tensor]) -> th.Tensor:
        batch, rows, _ = x.shape
        # Each factor acts on the last axis, which then moves to the front: after all factors the order is restored.
        for matrix, exponential in zip(matrices, exponentials, strict=True):
            x = x.reshape(batch, rows, matrix.shape[1], -1).transpose(-1, -2)
            if self.domain.log:
                x = line_log_matmul(x.reshape(batch, -1, matrix.shape[1]), matrix, exponential)
            else:
                x = th.matmul(x.reshape(batch, -1, matrix.shape[1]), matrix.transpose(-1, -2))
            x = x.reshape(batch, rows, -1)
        return x

    def select(self, index: th.Tensor) -> Kernel:
        return self


PRODUCT = Domain()
LOG = LogDomain()


def log_matmul(x: th.Tensor, log_matrix: th.Tensor) -> th.Tensor:
    r"""
    :math:`\log \sum_j e^{x_j + L_{ij}}`, in blocks of rows that bound the memory.

    :param x: logarithms, shape ``(B, N, m)``
    :param log_matrix: shape ``(n, m)``, shared, or ``(B, n, m)``
    :return: shape ``(B, N, n)``
    """
    n, m = log_matrix.shape[-2:]
    if log_matrix.dim() == 2:
        if x.numel() * n <= BLOCK_SIZE:
            return th.logsumexp(x.unsqueeze(-2) + log_matrix, dim=-1)
        rows = x.reshape(-1, m)
        size = max(1, BLOCK_SIZE // (n * m))
        parts = [th.logsumexp(block.unsqueeze(-2) + log_matrix, dim=-1) for block in rows.split(size)]
        return th.cat(parts).reshape(*x.shape[:-1], n)
    size = max(1, BLOCK_SIZE // (n * m * x.shape[-2]))
    pairs = zip(x.split(size), log_matrix.split(size), strict=True)
    return th.cat([th.logsumexp(block.unsqueeze(-2) + matrix.unsqueeze(-3), dim=-1) for block, matrix in pairs])


def line_log_matmul(x: th.Tensor, log_matrix: th.Tensor, matrix: th.Tensor) -> th.Tensor:
    r"""
    :func:`log_matmul` by one ordinary product, with the largest number of every row divided out.

    Along one axis of a lattice potentials seldom span more than a float64 does, however much they span over all of it: one
    exponential and one logarithm for each bin then do the work of one exponential for each entry of every plan. Rows in which
    a sum comes near underflow, and could have lost a part of it, are computed again by log-sum-exp.

    :param x: logarithms, shape ``(B, N, m)``
    :param log_matrix: shape ``(n, m)``
    :param matrix: its exponential
    :return: shape ``(B, N, n)``
    """
    largest = x.amax(-1, keepdim=True)
    # A line of empty bins has no largest number to divide by.
    empty = largest == -float("inf")
    shift = largest.masked_fill(empty, 0.0)
    sums = th.matmul((x - shift).exp_(), matrix.transpose(-1, -2))
    limits = th.finfo(x.dtype)
    doubtful = (sums.amin(-1) < limits.tiny / limits.eps**2) & ~empty.squeeze(-1)
    found = sums.log_().add_(shift)
    if bool(doubtful.any()):
        found[doubtful] = log_matmul(x[doubtful].unsqueeze(0), log_matrix).squeeze(0)
    return found


def exponent_range(cost: Cost, reg: float) -> float:
    """
    How many powers of e the Gibbs kernel spans. Reads the largest cost from the device.

    :param cost: dense or a lattice
    :param reg: entropic strength
    :return: the largest ``cost / reg``
    :raises ValueError: if it is out of reach of float64, see :func:`check_range`
    """
    factors = cost.factors if isinstance(cost, LatticeCost) else [cost]
    return check_range(sum(float(factor.detach().max()) for factor in factors), reg)


def check_range(max_cost: float, reg: float) -> float:
    """
    :param max_cost: largest entry of the cost
    :param reg: entropic strength
    :return: the largest ``cost / reg``
    :raises ValueError: if plans, above, or values, below, would be lost in rounding
    """
    span = max_cost / reg
    if span > MAX_RANGE:
        raise ValueError(
            f"`reg` is {reg:g} and the largest entry of `cost` {max_cost:g}: beyond a ratio of {MAX_RANGE:g} a plan is lost "
            "in rounding; raise `reg`, or lower the entries that stand for forbidden transport"
        )
    if reg > (max_cost or 1.0) / MIN_RANGE:
        raise ValueError(
            f"`reg` is {reg:g} and the largest entry of `cost` {max_cost:g}: beyond a ratio of {1 / MIN_RANGE:g} the value is "
            "lost in rounding; lower `reg`"
        )
    return span


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
        return LatticeKernel([factor / -reg for factor in factors], domain)
    cost = cost.detach().to(dtype)
    if cost.dim() == 2 and max(cost.shape) <= THIN_BINS and batch >= THIN_BATCH and not domain.log:
        return ThinKernel(cost / -reg, exponent_range(cost, reg))
    return DenseKernel(cost / -reg, domain)


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
