r"""
Barycenters of very many very small problems: a fixed number of scaling steps, nothing read from the device.

:func:`otbaselines.ot.barycenter` asks every few iterations whether it may stop, and accelerates; for thousands of problems
with a handful of bins each, solved again after every gradient step from where the last solution ended, both cost more than
they save. Here the caller fixes the number of steps and passes the scalings on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import torch as th

from otbaselines.ot._validation import check_reg

# Beyond this exponent products in float32 can underflow and are taken in the log domain: seen from 35 on, for large teams of
# nearly deterministic agents that disagree and were warm-started elsewhere.
MAX_EXPONENT = 30.0
# Below this a policy's probability is numerically zero; the floor keeps its potential finite.
FLOOR = 1e-30
# Symmetric steps for the self terms of a cold start; each halves the error.
SELF_STEPS = 15
# Between two agents: steps between two looks at the device, the error in the marginals that is asked for, and the last look.
PAIR_STEPS = 8
PAIR_ERROR = 1e-4
MAX_PAIR_ROUNDS = 50


@dataclass(frozen=True)
class ScalingState:
    r"""
    Where the iteration stands, in the arithmetic of the solver that made it: scalings, or their logarithms.

    :param u: scalings of the barycenter's side :math:`u_i`, shape ``(B, N, n)``
    :param own: the debiasing scaling :math:`d` and then those of the self terms, :math:`\mu_i = s_i K s_i`, shape
        ``(B, 1 + N, n)``; :math:`d = 1` without debiasing
    """

    u: th.Tensor
    own: th.Tensor

    def rows(self, index: slice | th.Tensor) -> ScalingState:
        """
        :param index: problems to keep
        :return: the state of those problems
        """
        return ScalingState(self.u[index], self.own[index])


@dataclass(frozen=True)
class ScalingBarycenter:
    """
    Barycenters and what pulls each measure towards its own. Everything is computed when it is first read, since a training
    loop asks for the gradient only.

    :param state: scalings to start the next solution from
    """

    state: ScalingState
    _measures: th.Tensor = field(repr=False)
    _center: th.Tensor = field(repr=False)
    _solver: ScalingSolver = field(repr=False)

    @cached_property
    def weights(self) -> th.Tensor:
        """The barycenters, shape ``(B, n)``."""
        center = self._solver.arithmetic.outside(self._center)
        return (center / center.sum(-1, keepdim=True)).squeeze(1)

    @cached_property
    def potentials(self) -> th.Tensor:
        r"""Gradient of :math:`W(\mu_i, \mu^*)` with respect to :math:`\mu_i`, shape ``(B, N, n)``, in the unit of the cost."""
        return self._solver.potential(self.state.u)

    @cached_property
    def self_potentials(self) -> th.Tensor:
        r"""Gradient of :math:`\tfrac12 W(\mu_i, \mu_i)`, of the same shape; zero unless debiased."""
        if self._solver.debiased:
            return self._solver.potential(self.state.own[:, 1:])
        return th.zeros_like(self.potentials)

    @property
    def gradient(self) -> th.Tensor:
        r"""
        Gradient of :math:`W(\mu_i, \mu^*) - \tfrac12 W(\mu_i, \mu_i)` with respect to :math:`\mu_i`, shape ``(B, N, n)``.
        """
        return self.potentials - self.self_potentials if self._solver.debiased else self.potentials

    @cached_property
    def divergences(self) -> th.Tensor:
        r""":math:`W(\mu_i, \mu^*)`, less half of both self terms when debiased, shape ``(B, N)``, in the unit of the cost."""
        solver, arithmetic = self._solver, self._solver.arithmetic
        far = solver.potential(arithmetic.over(self._measures, arithmetic.apply(self.state.u)))
        if solver.debiased:
            far = far - solver.potential(self.state.own[:, :1])
        near = self.gradient * arithmetic.outside(self._measures)
        return (near + far * arithmetic.outside(self._center)).sum(-1)

    @cached_property
    def error(self) -> th.Tensor:
        r"""
        :math:`\max_i |P_i 1 - \mu_i|_1`, and of the self plans of barycenter and measures when debiased, shape ``(B,)``.
        """
        # The barycenter's marginal is exact after a step; what is left is by how much the measures' own are missed.
        do, (u, own) = self._solver.arithmetic, (self.state.u, self.state.own)
        rows = do.times(do.apply(do.over(self._measures, do.apply(u))), u)
        error = (do.outside(rows) - do.outside(self._center)).abs().sum(-1).amax(-1)
        if not self._solver.debiased:
            return error
        # For blunt kernels these are the last to settle, and the plans above do not show it.
        targets = th.cat([self._center, self._measures], 1)
        own_error = (do.outside(do.times(own, do.apply(own))) - do.outside(targets)).abs().sum(-1).amax(-1)
        return th.maximum(error, own_error)


class ScalingSolver:
    r"""
    Solves many small problems that share cost, strength and weights, again and again.

    With :math:`K = e^{-C/\varepsilon}` one step is :math:`v_i = \mu_i / K u_i`,
    :math:`\mu^* = d \prod_i (K v_i)^{w_i}`, :math:`u_i = \mu^* / K v_i` (Benamou et al. 2015, Sec. 3.2), where debiasing
    updates :math:`d \leftarrow \sqrt{d \mu^* / K d}` (Janati et al. 2020, Alg. 1) and the self terms follow
    :math:`s_i \leftarrow \sqrt{s_i \mu_i / K s_i}`. Constant for autograd (envelope theorem).

    :param cost: symmetric, shape ``(n, n)``
    :param reg: entropic strength :math:`\varepsilon > 0`, in the unit of ``cost``
    :param weights: :math:`w_i`, shape ``(N,)`` or ``(B, N)``, summing to one; uniform when omitted
    :param debiased: remove the entropic blur of the barycenter and of the gradient
    :param max_cost: largest entry of ``cost``, which decides the arithmetic; read from the device when omitted
    :raises ValueError: if ``reg`` is not positive
    """

    def __init__(
        self,
        cost: th.Tensor,
        *,
        reg: float,
        weights: th.Tensor | None = None,
        debiased: bool = True,
        max_cost: float | None = None,
    ) -> None:
        self.reg = check_reg(reg)
        self.debiased = debiased
        self._cost_shape = tuple(cost.shape)
        self._weights = weights
        self.span = span = float_range(cost, self.reg) if max_cost is None else max_cost / self.reg
        with th.no_grad():
            exponent = -cost.detach() / self.reg
            self.arithmetic: _Arithmetic = _Logarithms(exponent) if span > MAX_EXPONENT else _Products(exponent.exp())

    def steps_for(self, remaining: float, most: int) -> int:
        r"""
        About how many steps leave no more than a share of the error.

        While the barycenter stands still, a step contracts Hilbert's projective metric by :math:`x^2` or more, where
        :math:`x = \tanh(c / 2 \varepsilon)` for the largest cost :math:`c` (Birkhoff 1957; Franklin and Lorenz 1989). The
        debiasing scaling keeps :math:`1 - y (1 + y) / 2` of an error along an eigenvector of the normalised kernel
        (linearised at uniform measures); for its eigenvalue :math:`y \le x` two thirds of the bound are taken.

        :param remaining: share of the error that may be left, in (0, 1)
        :param most: bound on the answer, which grows with both sharp and blunt kernels
        :return: at least 1
        """
        sharp = math.tanh(0.5 * self.span)
        blunt = sharp / 1.5
        contraction = max(sharp**2, 1.0 - 0.5 * blunt * (1.0 + blunt) if self.debiased else 1e-9)
        if contraction >= 1.0:
            return most
        return min(most, max(1, math.ceil(math.log(remaining) / math.log(contraction))))

    def potential(self, scaling: th.Tensor) -> th.Tensor:
        """
        :param scaling: in the solver's arithmetic, shape ``(B, k, n)``
        :return: the potential on the other side, of the same shape, in the unit of the cost
        """
        return -self.reg * self.arithmetic.log_apply(scaling)

    @th.no_grad()
    def solve(self, measures: th.Tensor, n_iter: int, init: ScalingState | None = None) -> ScalingBarycenter:
        """
        :param measures: shape ``(B, N, n)``, positive, rows summing to one
        :param n_iter: steps, at least 1
        :param init: scalings of an earlier solution of the same problems, from this solver
        :return: barycenters, potentials, error and scalings
        :raises ValueError: if ``n_iter`` is not positive or the shapes do not agree
        """
        if n_iter < 1:
            raise ValueError(f"`n_iter` must be at least 1, got {n_iter}")
        if measures.dim() != 3 or self._cost_shape != (measures.shape[-1],) * 2:
            raise ValueError(
                f"`measures` must be (B, N, n) and `cost` (n, n), got shapes {tuple(measures.shape)} and {self._cost_shape}"
            )
        do, weights = self.arithmetic, self._weights_of(measures)
        mu = do.inside(measures.detach())
        roots = do.root(mu)
        state = self._agreement(mu, roots, weights) if init is None else init
        u, own = state.u, state.own
        center = own[:, :1]
        for _ in range(n_iter):
            kernel_v = do.apply(do.over(mu, do.apply(u)))
            center = do.mean(weights, kernel_v)
            if self.debiased:
                center = do.times(own[:, :1], center)
                # A root of each factor: in an improbable bin their product would be zero, and stay so.
                own = do.times(do.root(do.over(own, do.apply(own))), th.cat([do.root(center), roots], 1))
            u = do.over(center, kernel_v)
        return ScalingBarycenter(ScalingState(u, own), mu, center, self)

    def _agreement(self, mu: th.Tensor, roots: th.Tensor, weights: th.Tensor) -> ScalingState:
        """
        The solution for a team that agrees, taken from the agents' self terms: ``u = d = s`` there.

        Started from it, the error is proportional to the disagreement; started from ones it is not, and where policies are
        still alike the pull would be all error.
        """
        do, s = self.arithmetic, roots
        for _ in range(SELF_STEPS):
            s = do.times(do.root(do.over(s, do.apply(s))), roots)
        mean = do.mean(weights, s)
        d = mean if self.debiased else do.over(mean, mean)
        return ScalingState(mean.expand_as(mu), th.cat([d, s], 1))

    def _weights_of(self, measures: th.Tensor) -> th.Tensor:
        n_agents = measures.shape[1]
        if self._weights is None:
            return measures.new_full((1, n_agents, 1), 1.0 / n_agents)
        if self._weights.shape[-1] != n_agents:
            raise ValueError(f"`weights` must have one entry per agent, {n_agents}, got shape {tuple(self._weights.shape)}")
        return self._weights.to(measures.dtype).reshape(-1, n_agents, 1)

    @th.no_grad()
    def pair_divergences(self, measures: th.Tensor, state: ScalingState) -> th.Tensor:
        r"""
        :math:`W(\mu_i, \mu_j)` for all :math:`i < j`, less half of both self terms when debiased.

        Looks at the device every few steps, to see whether it may stop.

        :param measures: shape ``(B, N, n)``, positive, rows summing to one
        :param state: of the solution for these measures, whose self terms are where to start
        :return: shape ``(B, N (N - 1) / 2)``, in the unit of the cost and the order of ``torch.triu_indices``
        """
        do, n_agents = self.arithmetic, measures.shape[1]
        first, second = th.triu_indices(n_agents, n_agents, 1, device=measures.device)
        mu, s = do.inside(measures.detach()), state.own[:, 1:]
        a, b = mu[:, first], mu[:, second]
        u, v = s[:, first], s[:, second]
        for _ in range(MAX_PAIR_ROUNDS):
            for _ in range(PAIR_STEPS):
                u = do.over(a, do.apply(v))
                v = do.over(b, do.apply(u))
            rows = do.times(u, do.apply(v))
            if float((do.outside(rows) - do.outside(a)).abs().sum(-1).amax()) < PAIR_ERROR:
                break
        left, right = self.potential(v), self.potential(u)
        if self.debiased:
            own = self.potential(s)
            left, right = left - own[:, first], right - own[:, second]
        return (left * do.outside(a) + right * do.outside(b)).sum(-1)


def scaling_barycenter(
    measures: th.Tensor,
    cost: th.Tensor,
    *,
    reg: float,
    n_iter: int,
    weights: th.Tensor | None = None,
    debiased: bool = True,
    init: ScalingState | None = None,
    max_cost: float | None = None,
) -> ScalingBarycenter:
    """
    ``n_iter`` steps for ``B`` problems that share one small cost: :class:`ScalingSolver`, used once.

    :param measures: shape ``(B, N, n)``, positive, rows summing to one
    :param cost: symmetric, shape ``(n, n)``
    :param reg: entropic strength, positive, in the unit of ``cost``
    :param n_iter: steps, at least 1
    :param weights: shape ``(N,)`` or ``(B, N)``, summing to one; uniform when omitted
    :param debiased: remove the entropic blur of the barycenter and of the gradient
    :param init: scalings of an earlier solution of the same problems
    :param max_cost: largest entry of ``cost``, which decides the arithmetic; read from the device when omitted
    :return: barycenters, potentials, error and scalings
    :raises ValueError: if ``reg`` or ``n_iter`` is not positive or the shapes do not agree
    """
    solver = ScalingSolver(cost, reg=reg, weights=weights, debiased=debiased, max_cost=max_cost)
    return solver.solve(measures, n_iter, init)


def float_range(cost: th.Tensor, reg: float) -> float:
    """
    :param cost: any shape
    :param reg: entropic strength
    :return: the largest exponent of the Gibbs kernel
    """
    return float(cost.max()) / reg


class _Arithmetic(ABC):
    """How scalings are held, and what the algorithm does with them."""

    @abstractmethod
    def inside(self, measures: th.Tensor) -> th.Tensor:
        """Measures, as they are held."""

    @abstractmethod
    def outside(self, x: th.Tensor) -> th.Tensor:
        """Back from :meth:`inside`."""

    @abstractmethod
    def apply(self, x: th.Tensor) -> th.Tensor:
        """The Gibbs kernel along the last axis."""

    @abstractmethod
    def log_apply(self, x: th.Tensor) -> th.Tensor:
        """Logarithm of the kernel's product, as a number outside."""

    @abstractmethod
    def times(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """Product."""

    @abstractmethod
    def over(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """Quotient."""

    @abstractmethod
    def root(self, x: th.Tensor) -> th.Tensor:
        """Square root."""

    @abstractmethod
    def mean(self, weights: th.Tensor, x: th.Tensor) -> th.Tensor:
        """Weighted geometric mean over the agents, shape ``(B, 1, n)``."""


class _Products(_Arithmetic):
    """Scalings and Gibbs kernel as they are: one small matrix product per half step."""

    def __init__(self, kernel: th.Tensor) -> None:
        self.kernel = kernel

    def inside(self, measures: th.Tensor) -> th.Tensor:
        return measures.clamp_min(FLOOR)

    def outside(self, x: th.Tensor) -> th.Tensor:
        return x

    def apply(self, x: th.Tensor) -> th.Tensor:
        return x @ self.kernel

    def log_apply(self, x: th.Tensor) -> th.Tensor:
        return (x @ self.kernel).log_()

    def times(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        return x * y

    def over(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        return x / y

    def root(self, x: th.Tensor) -> th.Tensor:
        return x.sqrt()

    def mean(self, weights: th.Tensor, x: th.Tensor) -> th.Tensor:
        return (weights * x.log()).sum(1, keepdim=True).exp_()


class _Logarithms(_Arithmetic):
    """The same in logarithms, for kernels whose entries underflow: a log-sum-exp over ``n`` bins per half step."""

    def __init__(self, log_kernel: th.Tensor) -> None:
        self.log_kernel = log_kernel

    def inside(self, measures: th.Tensor) -> th.Tensor:
        return measures.clamp_min(FLOOR).log_()

    def outside(self, x: th.Tensor) -> th.Tensor:
        return x.exp()

    def apply(self, x: th.Tensor) -> th.Tensor:
        return (x.unsqueeze(-2) + self.log_kernel).logsumexp(-1)

    def log_apply(self, x: th.Tensor) -> th.Tensor:
        return self.apply(x)

    def times(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        return x + y

    def over(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        return x - y

    def root(self, x: th.Tensor) -> th.Tensor:
        return 0.5 * x

    def mean(self, weights: th.Tensor, x: th.Tensor) -> th.Tensor:
        return (weights * x).sum(1, keepdim=True)
