r"""
Barycenters of very many very small problems: a fixed number of scaling steps, nothing read from the device.

:func:`otbaselines.ot.barycenter` asks every few iterations whether it may stop, and accelerates; for thousands of problems
with a handful of bins each, solved again after every gradient step from where the last solution ended, both cost more than
they save. Here the caller fixes the number of steps and passes the scalings on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch as th

from otbaselines.ot._validation import check_reg

# Beyond this exponent products in float32 can underflow and are taken in the log domain: seen from 35 on, for large teams of
# nearly deterministic agents that disagree and were warm-started elsewhere.
MAX_EXPONENT = 30.0
# Symmetric steps for the self terms of a cold start; each halves the error.
SELF_STEPS = 15


@dataclass(frozen=True)
class ScalingState:
    r"""
    Where the iteration stands; all in logarithms, shapes with the batch's leading dimension.

    :param log_u: scalings of the barycenter's side :math:`\log u_i`, shape ``(B, N, n)``
    :param log_d: the debiasing scaling :math:`\log d`, shape ``(B, 1, n)``; zero without debiasing
    :param log_s: scalings of the self terms, :math:`\mu_i = s_i K s_i`, shape ``(B, N, n)``
    """

    log_u: th.Tensor
    log_d: th.Tensor
    log_s: th.Tensor

    def rows(self, index: slice | th.Tensor) -> ScalingState:
        """
        :param index: problems to keep
        :return: the state of those problems
        """
        return ScalingState(self.log_u[index], self.log_d[index], self.log_s[index])


@dataclass(frozen=True)
class ScalingBarycenter:
    r"""
    Barycenters and what pulls each measure towards its own.

    :param weights: the barycenters, shape ``(B, n)``
    :param potentials: gradient of :math:`W(\mu_i, \mu^*)` with respect to :math:`\mu_i`, shape ``(B, N, n)``, in the unit of
        the cost
    :param self_potentials: gradient of :math:`\tfrac12 W(\mu_i, \mu_i)`, of the same shape; zero unless debiased
    :param state: scalings to start the next solution from
    """

    weights: th.Tensor
    potentials: th.Tensor
    self_potentials: th.Tensor
    state: ScalingState
    _error: Callable[[], th.Tensor] = field(repr=False)

    @cached_property
    def error(self) -> th.Tensor:
        r""":math:`\max_i |P_i 1 - \mu_i|_1`, shape ``(B,)``: computed when first read, since a training loop never asks."""
        return self._error()

    @property
    def gradient(self) -> th.Tensor:
        r"""
        Gradient of :math:`W(\mu_i, \mu^*) - \tfrac12 W(\mu_i, \mu_i)` with respect to :math:`\mu_i`, shape ``(B, N, n)``.
        """
        return self.potentials - self.self_potentials


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
    r"""
    ``n_iter`` steps of iterative Bregman projections for ``B`` problems that share one small cost.

    With :math:`K = e^{-C/\varepsilon}` one step is :math:`v_i = \mu_i / K u_i`,
    :math:`\mu^* = d \prod_i (K v_i)^{w_i}`, :math:`u_i = \mu^* / K v_i` (Benamou et al. 2015, Sec. 3.2), where debiasing
    updates :math:`d \leftarrow \sqrt{d \mu^* / K d}` (Janati et al. 2020, Alg. 1) and the self terms follow
    :math:`s_i \leftarrow \sqrt{s_i \mu_i / K s_i}`. Constant for autograd (envelope theorem).

    :param measures: shape ``(B, N, n)``, positive, rows summing to one
    :param cost: symmetric, shape ``(n, n)``
    :param reg: entropic strength :math:`\varepsilon > 0`, in the unit of ``cost``
    :param n_iter: steps, at least 1
    :param weights: :math:`w_i`, shape ``(N,)`` or ``(B, N)``, summing to one; uniform when omitted
    :param debiased: remove the entropic blur of the barycenter and of the gradient
    :param init: scalings of an earlier solution of the same problems
    :param max_cost: largest entry of ``cost``, which decides the arithmetic; read from the device when omitted
    :return: barycenters, potentials, error and scalings
    :raises ValueError: if ``reg`` or ``n_iter`` is not positive or the shapes do not agree
    """
    reg = check_reg(reg)
    if n_iter < 1:
        raise ValueError(f"`n_iter` must be at least 1, got {n_iter}")
    if measures.dim() != 3 or cost.shape != (measures.shape[-1], measures.shape[-1]):
        raise ValueError(
            f"`measures` must be (B, N, n) and `cost` (n, n), got shapes {tuple(measures.shape)} and {tuple(cost.shape)}"
        )
    with th.no_grad():
        span = float_range(cost, reg) if max_cost is None else max_cost / reg
        steps = _LogSteps if span > MAX_EXPONENT else _ProductSteps
        return steps(measures.detach(), cost.detach(), reg, _weights(weights, measures)).run(n_iter, debiased, init)


def float_range(cost: th.Tensor, reg: float) -> float:
    """
    :param cost: any shape
    :param reg: entropic strength
    :return: the largest exponent of the Gibbs kernel
    """
    return float(cost.max()) / reg


def _weights(weights: th.Tensor | None, measures: th.Tensor) -> th.Tensor:
    n_agents = measures.shape[1]
    if weights is None:
        return measures.new_full((1, n_agents, 1), 1.0 / n_agents)
    if weights.shape[-1] != n_agents:
        raise ValueError(f"`weights` must have one entry per agent, {n_agents}, got shape {tuple(weights.shape)}")
    return weights.to(measures.dtype).reshape(-1, n_agents, 1)


class _ProductSteps:
    """Scalings and Gibbs kernel as they are: one small matrix product per half step."""

    def __init__(self, measures: th.Tensor, cost: th.Tensor, reg: float, weights: th.Tensor) -> None:
        # Below this a policy's probability is numerically zero; the floor keeps its potential finite.
        self.measures = measures.clamp_min(1e-30)
        self.roots = self.measures.sqrt()
        self.kernel = (-cost.to(measures.dtype) / reg).exp()
        self.reg = reg
        self.weights = weights

    def run(self, n_iter: int, debiased: bool, init: ScalingState | None) -> ScalingBarycenter:
        mu, kernel = self.measures, self.kernel
        if init is None:
            u, d, s = self._agreement(debiased)
        else:
            u, d, s = init.log_u.exp(), init.log_d.exp(), init.log_s.exp()
        center = d
        for _ in range(n_iter):
            kernel_v = (mu / (u @ kernel)) @ kernel
            center = (self.weights * kernel_v.log()).sum(1, keepdim=True).exp()
            if debiased:
                center = d * center
                # A root of each factor: in an improbable bin their product would be zero, and stay so.
                d = (d / (d @ kernel)).sqrt() * center.sqrt()
                s = (s / (s @ kernel)).sqrt() * self.roots
            u = center / kernel_v
        kernel_u = u @ kernel
        return self._finish(u, d, s, center, kernel_u, debiased)

    def _agreement(self, debiased: bool) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        The solution for a team that agrees, taken from the agents' self terms: ``u = d = s`` there.

        Started from it, the error is proportional to the disagreement; started from ones it is not, and where policies are
        still alike the pull would be all error.
        """
        mu, s = self.measures, self.roots
        for _ in range(SELF_STEPS):
            s = (s / (s @ self.kernel)).sqrt() * self.roots
        mean = (self.weights * s.log()).sum(1, keepdim=True).exp()
        return mean.expand_as(mu), mean if debiased else th.ones_like(mean), s

    def _finish(
        self, u: th.Tensor, d: th.Tensor, s: th.Tensor, center: th.Tensor, kernel_u: th.Tensor, debiased: bool
    ) -> ScalingBarycenter:
        mu = self.measures

        def error() -> th.Tensor:
            # The barycenter's marginal is exact after a step; what is left is by how much the measures' own are missed.
            return ((mu / kernel_u) @ self.kernel * u - center).abs().sum(-1).amax(-1)

        potentials = -self.reg * kernel_u.log()
        own = -self.reg * (s @ self.kernel).log() if debiased else th.zeros_like(potentials)
        state = ScalingState(u.log(), d.log(), s.log())
        return ScalingBarycenter((center / center.sum(-1, keepdim=True)).squeeze(1), potentials, own, state, error)


class _LogSteps:
    """The same in logarithms, for kernels whose entries underflow: a log-sum-exp over ``n`` bins per half step."""

    def __init__(self, measures: th.Tensor, cost: th.Tensor, reg: float, weights: th.Tensor) -> None:
        self.log_measures = measures.clamp_min(1e-30).log()
        self.log_kernel = -cost.to(measures.dtype) / reg
        self.reg = reg
        self.weights = weights

    def _apply(self, log_x: th.Tensor) -> th.Tensor:
        return (log_x.unsqueeze(-2) + self.log_kernel).logsumexp(-1)

    def run(self, n_iter: int, debiased: bool, init: ScalingState | None) -> ScalingBarycenter:
        mu = self.log_measures
        if init is None:
            u, d, s = self._agreement(debiased)
        else:
            u, d, s = init.log_u, init.log_d, init.log_s
        center = d
        for _ in range(n_iter):
            kernel_v = self._apply(mu - self._apply(u))
            center = (self.weights * kernel_v).sum(1, keepdim=True)
            if debiased:
                center = d + center
                d = 0.5 * (d + center - self._apply(d))
                s = 0.5 * (s + mu - self._apply(s))
            u = center - kernel_v
        kernel_u = self._apply(u)

        def error() -> th.Tensor:
            return ((self._apply(mu - kernel_u) + u).exp() - center.exp()).abs().sum(-1).amax(-1)

        own = -self.reg * self._apply(s) if debiased else th.zeros_like(mu)
        weights = center.softmax(-1).squeeze(1)
        return ScalingBarycenter(weights, -self.reg * kernel_u, own, ScalingState(u, d, s), error)

    def _agreement(self, debiased: bool) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        mu = self.log_measures
        s = 0.5 * mu
        for _ in range(SELF_STEPS):
            s = 0.5 * (s + mu - self._apply(s))
        mean = (self.weights * s).sum(1, keepdim=True)
        return mean.expand_as(mu), mean if debiased else th.zeros_like(mean), s
