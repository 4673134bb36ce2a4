"""
The fixed-point loop shared by all entropic solvers, accelerated as Anderson (1965) proposed.

A batch of independent problems is iterated at once; every problem has its own mixing coefficients and leaves the batch
when it has converged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch as th

from otbaselines.ot._kernels import MAX_RANGE_FLOAT32, Domain

# A step with a large kernel is dear: mix after every one. Problems of up to TINY bins are often done before a mixing pays.
PERIOD = 1
TINY_PERIOD = 5
TINY = 32
# Iterations before the first mixing of tiny problems.
TINY_WARM_UP = 30
# Differences kept: more help at small strengths, and cost memory traffic at each mixing of a large problem.
MEMORY = 20
LARGE_MEMORY = 8
LARGE = 8192
# The host reads the error at every check; a read stalls the queue of a GPU, which therefore mixes several times between reads.
CUDA_CHECK = 4
# From this range of exponents on, a solve without a warm start first solves the problem of COARSER times the strength.
# Halving the strength step by step costs a third fewer iterations at a hundredth of the median cost, and is what makes
# strengths of a thousandth converge at all: there a cold start wanders, and steps must be smaller and their solutions better.
COARSE_SPAN = 80.0
COARSER, COARSE_TOLERANCE = 2.0, 1e-2
DELICATE_SPAN = 300.0
DELICATE_COARSER, DELICATE_TOLERANCE = 1.5, 1e-4
COARSE_MAX_ITER = 1000
# Large float64 problems within the range of float32 go most of the way in that precision, where products cost half.
SINGLE_BINS = 256
SINGLE_TOLERANCE = 1e-5
SINGLE_MAX_ITER = 100
# The largest change, in units of a log-scaling, that a mixing may make to any bin.
TRUST = 50.0
# A mixing after which the error is this many times the best one is undone, and so are this many checks without a new best.
# From then on the problem mixes more cautiously, with a larger ridge.
SETBACK = 100.0
PATIENCE = 100
CAUTION = 10.0
MAX_RIDGE = 1e-5
# After a setback more plain steps are made between mixings, up to this many.
MAX_PERIOD = 3
# Relative Tikhonov term of the normal equations, whose condition number is the square of the differences' own.
RIDGE = 1e-10


@dataclass(frozen=True)
class Stage:
    """
    An easier problem whose solution is the start of the one asked for.

    :param factor: its strength over the one asked for
    :param dtype: precision of its arguments
    :param tol: marginal error to stop at
    :param max_iter: iterations to stop at
    """

    factor: float
    dtype: th.dtype
    tol: float
    max_iter: int


def first_stage(span: float, dtype: th.dtype, tol: float, n: int, max_iter: int) -> Stage | None:
    """
    :param span: the problem's range of exponents
    :param dtype: precision of its arguments
    :param tol: its tolerance
    :param n: number of bins
    :param max_iter: its limit of iterations
    :return: what to solve before it, if anything
    """
    if span > COARSE_SPAN:
        delicate = span >= DELICATE_SPAN
        factor = DELICATE_COARSER if delicate else COARSER
        coarse_tol = max(tol, DELICATE_TOLERANCE if delicate else COARSE_TOLERANCE)
        single = span / factor < MAX_RANGE_FLOAT32
        return Stage(factor, th.float32 if single else dtype, coarse_tol, min(max_iter, COARSE_MAX_ITER))
    if dtype == th.float64 and span < MAX_RANGE_FLOAT32 and n >= SINGLE_BINS and tol < SINGLE_TOLERANCE:
        return Stage(1.0, th.float32, SINGLE_TOLERANCE, min(max_iter, SINGLE_MAX_ITER))
    return None


class FixedPointProblem(Protocol):
    """A batch of maps ``x -> T(x)`` on positive vectors, shape ``(B, rows, n)``, in the number system ``domain``."""

    domain: Domain

    def step(self, x: th.Tensor) -> th.Tensor:
        """``T(x)``."""

    def step_error(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """The logarithm of ``T(x)``, and the marginal error at ``x``, shape ``(B,)``."""

    def weight(self) -> th.Tensor:
        """Metric of the residual at the last :meth:`step_error`, broadcastable to ``(B, rows, n)``."""

    def select(self, index: th.Tensor) -> FixedPointProblem:
        """The problems ``index`` of the batch."""


@dataclass(frozen=True)
class FixedPoint:
    """
    Where the loop stopped.

    :param x: the last iterate whose error was measured, shape ``(B, rows, n)``, in the problem's domain
    :param error: marginal error at ``x``, shape ``(B,)``
    :param n_iter: applications of the map, the largest of the batch
    """

    x: th.Tensor
    error: th.Tensor
    n_iter: int


class Anderson:
    """
    Anderson mixing of type II, one least-squares problem per member of the batch.

    :param memory: how many differences are kept
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._count = 0
        self._last: tuple[th.Tensor, th.Tensor] | None = None
        self._residuals = th.empty(0)
        self._values = th.empty(0)
        self._gram = th.empty(0)
        self._interrupted: th.Tensor | None = None

    def mix(self, mapped: th.Tensor, residual: th.Tensor, weight: th.Tensor, ridge: th.Tensor) -> th.Tensor:
        """
        The next iterate.

        :param mapped: ``T(x)``, shape ``(B, rows, n)``
        :param residual: ``T(x) - x``, same shape
        :param weight: metric of the residual, broadcastable to that shape
        :param ridge: relative Tikhonov term of each problem, shape ``(B, 1)``
        :return: the combination of the remembered ``T(x)`` with the smallest residual, same shape
        """
        flat_mapped = mapped.flatten(1)
        flat_residual = (residual * weight).flatten(1)
        last, self._last = self._last, (flat_residual, flat_mapped)
        if last is None:
            batch, size = flat_mapped.shape
            self._residuals = flat_mapped.new_zeros(batch, self.memory, size)
            self._values = flat_mapped.new_zeros(batch, self.memory, size)
            self._gram = flat_mapped.new_zeros(batch, self.memory, self.memory)
            return mapped
        slot = self._count % self.memory
        difference, change = flat_residual - last[0], flat_mapped - last[1]
        if self._interrupted is not None:
            # These problems have jumped: the difference to their last iterate says nothing about where they are now.
            difference, change = th.where(self._interrupted, 0.0, difference), th.where(self._interrupted, 0.0, change)
            self._interrupted = None
        norm = th.linalg.vector_norm(difference, dim=1, keepdim=True).clamp_min(th.finfo(difference.dtype).tiny)
        # Unit differences: the Gram matrix then needs no scaling, and its ridge is relative.
        self._residuals[:, slot] = difference / norm
        self._values[:, slot] = change / norm
        self._count += 1
        used = min(self._count, self.memory)
        remembered = self._residuals[:, :used]
        row = _apply(remembered, self._residuals[:, slot])
        self._gram[:, slot, :used] = row
        self._gram[:, :used, slot] = row
        coefficients = _least_squares(self._gram[:, :used, :used], _apply(remembered, flat_residual), ridge)
        change = _apply(self._values[:, :used].transpose(1, 2), coefficients)
        largest = change.abs().amax(dim=1, keepdim=True)
        change = change * (TRUST / largest.clamp_min(TRUST))
        return mapped - change.view_as(mapped)

    def forget(self, members: th.Tensor) -> None:
        """Drop the memory of the problems in the mask ``members``, shape ``(B,)``."""
        keep = ~members.view(-1, 1, 1)
        self._interrupted = members.view(-1, 1)
        self._residuals = th.where(keep, self._residuals, 0.0)
        self._values = th.where(keep, self._values, 0.0)
        self._gram = th.where(keep, self._gram, 0.0)

    def select(self, index: th.Tensor) -> None:
        """Keep the problems ``index`` only."""
        if self._last is not None:
            self._residuals, self._values = self._residuals[index], self._values[index]
            self._gram = self._gram[index]
            self._interrupted = None if self._interrupted is None else self._interrupted[index]
            self._last = (self._last[0][index], self._last[1][index])


def _apply(matrix: th.Tensor, vector: th.Tensor) -> th.Tensor:
    """``(B, m, k)`` times ``(B, k)``."""
    if matrix.shape[0] == 1:
        # One plain matrix-vector product: the batched routine takes three times as long on it.
        return th.mv(matrix[0], vector[0]).unsqueeze(0)
    return th.matmul(matrix, vector.unsqueeze(2)).squeeze(2)


def _least_squares(gram: th.Tensor, right: th.Tensor, ridge: th.Tensor) -> th.Tensor:
    """Coefficients of the remembered differences that cancel most of the residual, shape ``(B, memory)``."""
    gram = gram.clone()
    # A forgotten difference is a row of zeros; the ridge keeps its coefficient zero.
    gram.diagonal(dim1=1, dim2=2).add_(ridge)
    solution: th.Tensor = th.linalg.solve_ex(gram, right)[0]
    return th.nan_to_num(solution)


class _Archive:
    """Collects every problem's best iterate while the batch shrinks."""

    def __init__(self, start: th.Tensor) -> None:
        self.x = start
        self.error = start.new_full(start.shape[:1], float("inf"))
        self.index = th.arange(start.shape[0], device=start.device)

    def best(self) -> th.Tensor:
        """The smallest errors seen, of the problems still in the batch."""
        return self.error if self._whole() else self.error[self.index]

    def keep(self, x: th.Tensor, error: th.Tensor, better: th.Tensor, n_better: int) -> None:
        """
        :param x: iterates
        :param error: their errors
        :param better: mask of those to record
        :param n_better: how many these are
        """
        if n_better == 0:
            return
        if self._whole():
            everything = n_better == x.shape[0]
            self.x = x if everything else th.where(better.view(-1, 1, 1), x, self.x)
            self.error = error if everything else th.where(better, error, self.error)
        else:
            self.x[self.index[better]] = x[better]
            self.error[self.index[better]] = error[better]

    def select(self, members: th.Tensor) -> None:
        """Go on with these problems only."""
        if self._whole():
            # From here on the best iterates are written in place, which no caller's tensor may see.
            self.x, self.error = self.x.clone(), self.error.clone()
        self.index = self.index[members]

    def _whole(self) -> bool:
        return self.index.shape[0] == self.x.shape[0]


class _Guard:
    """Decides which problems go back to their best iterate, because mixing has stopped helping them."""

    def __init__(self, start: th.Tensor) -> None:
        self.stale = th.zeros(start.shape[0], dtype=th.long, device=start.device)
        self.ridge = th.full((start.shape[0], 1), RIDGE, dtype=start.dtype, device=start.device)

    def judge(self, error: th.Tensor, best: th.Tensor, better: th.Tensor) -> th.Tensor:
        """The mask of the problems to be set back, given their errors now and at best."""
        self.stale = th.where(better, 0, self.stale + 1)
        return ~(error <= SETBACK * best) | (self.stale > PATIENCE)

    def punish(self, setback: th.Tensor) -> None:
        """Make the problems that were set back more cautious."""
        self.stale = th.where(setback, 0, self.stale)
        # Caution may itself be what is in the way: after the largest ridge comes the smallest again.
        next_ridge = th.where(self.ridge < MAX_RIDGE, CAUTION * self.ridge, RIDGE)
        self.ridge = th.where(setback.unsqueeze(1), next_ridge, self.ridge)

    def select(self, members: th.Tensor) -> None:
        """Go on with these problems only."""
        self.stale, self.ridge = self.stale[members], self.ridge[members]


def solve(problem: FixedPointProblem, start: th.Tensor, *, tol: float, max_iter: int) -> FixedPoint:
    """
    Iterate every problem of the batch to its fixed point.

    The host reads three numbers at every check: how many problems improved, have converged, and
    must go back.

    :param problem: the maps
    :param start: first iterate, shape ``(B, rows, n)``, in the problem's domain
    :param tol: marginal error at which a problem is done
    :param max_iter: applications of the map at most
    :return: the iterates with the smallest error seen
    """
    domain, archive, guard = problem.domain, _Archive(start), _Guard(start)
    size = start[0].numel()
    accelerator = Anderson(LARGE_MEMORY if size > LARGE else MEMORY)
    period, warm_up = (TINY_PERIOD, TINY_WARM_UP) if start.shape[2] <= TINY else (PERIOD, 0)
    check, since_check = (CUDA_CHECK if start.is_cuda else 1), 0
    x, log_x, n_iter = start, None, 0
    while True:
        for _ in range(max(0, min(period, max_iter - n_iter) - 1)):
            x, log_x, n_iter = problem.step(x), None, n_iter + 1
        log_mapped, error = problem.step_error(x)
        n_iter += 1
        mixing = n_iter >= warm_up
        mixed = log_mapped
        if mixing:
            residual = log_mapped - (domain.leave(x) if log_x is None else log_x)
            mixed = accelerator.mix(log_mapped, residual, problem.weight(), guard.ridge)
        since_check += 1
        if since_check == check or n_iter >= max_iter:
            best, since_check = archive.best(), 0
            better, done = error < best, th.minimum(error, best) <= tol
            setback = guard.judge(error, best, better)
            n_better, n_done, n_setback = th.stack((better, done, setback)).sum(1).tolist()
            archive.keep(x, error, better, n_better)
            if n_done == x.shape[0] or n_iter >= max_iter:
                return FixedPoint(archive.x, archive.error, n_iter)
            if n_setback and mixing:
                guard.punish(setback)
                accelerator.forget(setback)
                period = max(period, min(period + 1, MAX_PERIOD))
                retreat = domain.leave(problem.step(archive.x[archive.index]))
                mixed = th.where(setback.view(-1, 1, 1), retreat, mixed)
            if 4 * n_done >= x.shape[0]:
                remaining = th.nonzero(~done).flatten()
                problem, mixed = problem.select(remaining), mixed[remaining]
                archive.select(remaining)
                accelerator.select(remaining)
                guard.select(remaining)
        x, log_x = domain.enter(mixed), mixed
