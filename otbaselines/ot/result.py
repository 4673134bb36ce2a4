"""What the entropic solvers return."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch as th

from otbaselines.ot._kernels import LOG
from otbaselines.ot._validation import make_kernel
from otbaselines.ot.costs import Cost, LatticeCost


def gibbs_plan(
    cost: Cost, reg: float, a: th.Tensor, b: th.Tensor, potential_a: th.Tensor, potential_b: th.Tensor
) -> th.Tensor:
    r"""
    The coupling that a pair of potentials stands for.

    :param cost: shape ``(..., n, m)``
    :param reg: entropic strength
    :param a: shape ``(..., n)``
    :param b: shape ``(..., m)``
    :param potential_a: shape ``(..., n)``, in the unit of the cost
    :param potential_b: shape ``(..., m)``, in the unit of the cost
    :return: :math:`a_i b_j e^{(f_i + g_j - C_{ij})/\varepsilon}`, shape ``(..., n, m)``
    """
    dense = cost.dense() if isinstance(cost, LatticeCost) else cost.detach()
    exponent = (potential_a.unsqueeze(-1) + potential_b.unsqueeze(-2) - dense) / reg
    # The weights stay in the exponent: where a bin is empty the potential may be large, and inf * 0 is NaN.
    return (exponent + a.detach().log().unsqueeze(-1) + b.detach().log().unsqueeze(-2)).exp()


@dataclass(frozen=True)
class OTResult:
    r"""
    An entropic transport problem, solved. All shapes carry the batch's leading dimensions.

    :param value: :math:`\langle P, C\rangle + \varepsilon KL(P \,|\, a \otimes b)`, shape ``(...)``; differentiable with
        respect to ``a``, ``b`` and ``cost``
    :param potential_a: the gradient of ``value`` with respect to ``a`` (up to a constant), finite on empty bins,
        shape ``(..., n)``
    :param potential_b: the gradient with respect to ``b``, shape ``(..., m)``
    :param n_iter: iterations made, the largest of the batch
    :param converged: whether ``error`` is below the tolerance, shape ``(...)``
    :param error: :math:`|P 1 - a|_1` half a step before the end, shape ``(...)``: the returned plan's first marginal is exact,
        its second at most that far off
    """

    value: th.Tensor
    potential_a: th.Tensor
    potential_b: th.Tensor
    n_iter: int
    converged: th.Tensor
    error: th.Tensor
    _cost: Cost = field(repr=False)
    _reg: float = field(repr=False)
    _a: th.Tensor = field(repr=False)
    _b: th.Tensor = field(repr=False)

    @cached_property
    def plan(self) -> th.Tensor:
        """The coupling, shape ``(..., n, m)``: built when first read, never differentiable."""
        return gibbs_plan(self._cost, self._reg, self._a, self._b, self.potential_a, self.potential_b)

    @cached_property
    def value_linear(self) -> th.Tensor:
        r"""The transport cost alone, :math:`\langle P, C\rangle`, shape ``(...)``: computed when first read."""
        if not isinstance(self._cost, LatticeCost):
            return (self.plan * self._cost.detach()).sum((-1, -2))
        log_u = (self._a.detach().log() + self.potential_a / self._reg).double()
        log_v = (self._b.detach().log() + self.potential_b / self._reg).double()
        shape = log_u.shape[:-1]
        log_u, log_v = log_u.reshape(1, -1, log_u.shape[-1]), log_v.expand(*shape, -1).reshape(1, -1, log_v.shape[-1])
        total = th.zeros(log_u.shape[1], dtype=th.float64, device=log_u.device)
        for kernel in make_kernel(self._cost, self._reg, th.float64, LOG).cost_weighted():
            total = total + (log_u + kernel.forward(log_v)).exp().sum(-1)[0]
        return total.reshape(shape).to(self.value.dtype)


@dataclass(frozen=True)
class BarycenterResult:
    r"""
    An entropic barycenter. All shapes carry the batch's leading dimensions; nothing here is differentiable.

    :param weights: the barycenter :math:`\mu^*` on the common support, shape ``(..., n)``
    :param potentials_a: the gradient of :math:`W(\mu^*, \mu_i)` with respect to :math:`\mu^*` (up to a constant),
        shape ``(..., N, n)``
    :param potentials_b: its gradient with respect to :math:`\mu_i`, finite on empty bins, shape ``(..., N, n)``
    :param n_iter: iterations made, the largest of the batch
    :param converged: whether ``error`` is below the tolerance, shape ``(...)``
    :param error: :math:`\max_i |P_i 1 - \mu^*|_1` half a step before the end, shape ``(...)``: the returned plans' first
        marginals are exact, the second ones at most that far off
    """

    weights: th.Tensor
    potentials_a: th.Tensor
    potentials_b: th.Tensor
    n_iter: int
    converged: th.Tensor
    error: th.Tensor
    _cost: Cost = field(repr=False)
    _reg: float = field(repr=False)
    _measures: th.Tensor = field(repr=False)

    def plan(self, i: int) -> th.Tensor:
        """
        The coupling of the barycenter (rows) with the measure of one agent (columns).

        :param i: the agent
        :return: shape ``(..., n, n)``
        :raises IndexError: if there is no such agent
        """
        n_agents = self._measures.shape[-2]
        if not -n_agents <= i < n_agents:
            raise IndexError(f"`i` must be in [{-n_agents}, {n_agents}), got {i}")
        measure, f, g = self._measures[..., i, :], self.potentials_a[..., i, :], self.potentials_b[..., i, :]
        return gibbs_plan(self._cost, self._reg, self.weights, measure, f, g)
