"""What the entropic solvers return."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch as th

from otbaselines.ot._kernels import LOG, LatticeKernel, log_matmul
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


def factor_plans(
    cost: LatticeCost, reg: float, a: th.Tensor, b: th.Tensor, potential_a: th.Tensor, potential_b: th.Tensor
) -> list[th.Tensor]:
    r"""
    The marginals of a plan on the factors of its lattice, without an :math:`n \times n` matrix.

    Summed over the bins of the other factors a plan keeps the form :math:`u K v`: their kernels are applied to ``v`` first.

    :param cost: of ``F`` factors of shapes ``(n_k, m_k)``
    :param reg: entropic strength
    :param a: shape ``(..., n)``
    :param b: shape ``(..., m)``
    :param potential_a: shape ``(..., n)``, in the unit of the cost
    :param potential_b: shape ``(..., m)``, in the unit of the cost
    :return: one tensor of shape ``(..., n_k, m_k)`` for each factor, in float64
    """
    log_u = (a.detach().log() + potential_a / reg).double()
    log_v = (b.detach().log() + potential_b / reg).double()
    batch = log_u.shape[:-1]
    log_u = log_u.reshape(-1, *(factor.shape[0] for factor in cost.factors))
    log_v = log_v.expand(*batch, -1).reshape(1, -1, log_v.shape[-1])
    exponents = [factor.detach().double() / -reg for factor in cost.factors]
    plans = []
    for k, exponent in enumerate(exponents):
        identity = th.eye(exponent.shape[1], dtype=th.float64, device=exponent.device).log()
        others = LatticeKernel([identity if j == k else e for j, e in enumerate(exponents)], LOG)
        shape = [e.shape[1] if j == k else e.shape[0] for j, e in enumerate(exponents)]
        rows = log_u.movedim(k + 1, 1).flatten(2)
        columns = others.forward(log_v).reshape(-1, *shape).movedim(k + 1, 1).flatten(2)
        plans.append((log_matmul(rows, columns) + exponent).exp().reshape(*batch, *exponent.shape))
    return plans


@dataclass(frozen=True)
class OTResult:
    r"""
    An entropic transport problem, solved. All shapes carry the batch's leading dimensions.

    :param value: :math:`\langle P, C\rangle + \varepsilon KL(P \,|\, a \otimes b)`, shape ``(...)``; differentiable with
        respect to ``a``, ``b`` and ``cost``
    :param potential_a: the gradient of ``value`` with respect to ``a`` (up to a constant), finite on empty bins,
        shape ``(..., n)``
    :param potential_b: the gradient with respect to ``b``, shape ``(..., m)``. Of a self term, where both measures are one,
        the two potentials are equal and the gradient is their sum
    :param n_iter: iterations made, the largest of the batch
    :param converged: whether ``error`` is below the tolerance, shape ``(...)``
    :param error: :math:`|P 1 - a|_1` half a step before the end, shape ``(...)``: the returned plan's first marginal is exact,
        its second at most that far off. Of a self term, by how much both marginals of its symmetric plan are off
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
        parts = zip(self.factor_plans, self._cost.factors, strict=True)
        total = sum((plan * factor.detach()).sum((-1, -2)) for plan, factor in parts)
        return th.as_tensor(total, dtype=self.value.dtype)

    @cached_property
    def factor_plans(self) -> list[th.Tensor]:
        """The plan's marginals on the factors of a lattice, each ``(..., n_k, m_k)``; for a dense cost the plan itself."""
        if isinstance(self._cost, LatticeCost):
            return factor_plans(self._cost, self._reg, self._a, self._b, self.potential_a, self.potential_b)
        return [self.plan]


@dataclass(frozen=True)
class DivergenceResult:
    r"""
    Transport that several problems make up: a divergence, or the pairs of a team.

    :param value: in the unit of the cost, shape ``(...)``, or ``(..., N, N)`` for the pairs of a team
    :param n_iter: iterations made, the largest of the problems behind it
    :param converged: whether ``error`` is below the tolerance, of the shape of ``value``
    :param error: the largest marginal error of the problems behind each value, of its shape
    """

    value: th.Tensor
    n_iter: int
    converged: th.Tensor
    error: th.Tensor


@dataclass(frozen=True)
class FreeSupportResult:
    """
    A barycenter whose atoms moved.

    :param atoms: of equal weight, shape ``(k, d)``
    :param n_iter: moves made
    :param converged: whether ``error`` is below the tolerance, and every plan of the last move exact
    :param error: sum of the squared distances of the last move, over the sum of those to the atoms' mean
    """

    atoms: th.Tensor
    n_iter: int
    converged: bool
    error: float


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
