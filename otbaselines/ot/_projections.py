"""The fixed-point maps of the barycenter: iterative Bregman projections, plain and debiased."""

from __future__ import annotations

from dataclasses import dataclass

import torch as th

from otbaselines.ot._anderson import TRUST, FixedPointProblem
from otbaselines.ot._kernels import Kernel


@dataclass(frozen=True)
class Solution:
    """
    :param barycenter: shape ``(B, n)``, summing to one
    :param log_f: first potentials over the entropic strength, shape ``(B, N, n)``
    :param log_g: second potentials over the entropic strength, shape ``(B, N, n)``
    """

    barycenter: th.Tensor
    log_f: th.Tensor
    log_g: th.Tensor


class Projections:
    r"""
    Iterative Bregman projections on :math:`x_i = u_i / \eta`, finite and positive on empty bins.

    :param kernel: of the cost
    :param measures: shape ``(B, N, n)``, in the kernel's domain
    :param weights: shape ``(B, 1, N)`` or ``(1, N)``, ordinary numbers
    :param reference: :math:`\eta`, shape ``(B, 1, n)`` or ``(1, n)``, in the kernel's domain
    :param outer: :math:`\varepsilon / \tau`
    :param uniform: whether all weights are known to be equal
    """

    def __init__(
        self, kernel: Kernel, measures: th.Tensor, weights: th.Tensor, reference: th.Tensor, outer: float, uniform: bool
    ) -> None:
        self.kernel, self.domain, self.measures = kernel, kernel.domain, measures
        self.weights, self.reference, self.outer, self.uniform = weights, reference, outer, uniform
        self._weighted = weights * outer
        self._barycenter = reference

    def _half_step(self, u: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """``1 / K v_i``, shape ``(B, N, n)``, and its geometric mean over the agents, shape ``(B, 1, n)``."""
        v = self.domain.div(self.measures, self.kernel.adjoint(u))
        inverse = self.domain.inverse(self.kernel.forward(v))
        return inverse, self.kernel.geometric(self._weighted, inverse, self.uniform)

    def step(self, x: th.Tensor) -> th.Tensor:
        inverse, mean = self._half_step(self.domain.mul(x, self.reference))
        return self._damp(x, self.domain.div(inverse, mean))

    def step_error(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        u = self.domain.mul(x, self.reference)
        product = self.kernel.forward(self.domain.div(self.measures, self.kernel.adjoint(u)))
        log_product = self.domain.leave(product)
        log_mean = self.kernel.mean(self._weighted, log_product)
        self._record(self.domain.mul(self.reference, self.domain.enter(log_mean)))
        log_mapped = log_mean - log_product
        if self.outer > 1.0:
            log_mapped = th.lerp(self.domain.leave(x), log_mapped, 1.0 / self.outer)
        return log_mapped, self._gap(self.domain.mul(u, product))

    def _record(self, barycenter: th.Tensor) -> None:
        ordinary = self.domain.value(barycenter)
        self._barycenter = ordinary / ordinary.sum(-1, keepdim=True)

    def _gap(self, marginals: th.Tensor) -> th.Tensor:
        return (self.domain.value(marginals) - self._barycenter).abs().sum(-1).amax(-1)

    def _damp(self, x: th.Tensor, mapped: th.Tensor) -> th.Tensor:
        if self.outer <= 1.0:
            return mapped
        # Where the reference is weaker than the entropy the plain map overshoots by eps / tau and diverges.
        return self.domain.enter(th.lerp(self.domain.leave(x), self.domain.leave(mapped), 1.0 / self.outer))

    def weight(self) -> th.Tensor:
        return self._barycenter.sqrt()

    def select(self, index: th.Tensor) -> FixedPointProblem:
        weights = self.weights if self.weights.dim() == 2 else self.weights[index]
        reference = self.reference if self.reference.dim() == 2 else self.reference[index]
        chosen = Projections(self.kernel.select(index), self.measures[index], weights, reference, self.outer, self.uniform)
        chosen._barycenter = self._barycenter[index]
        return chosen

    def finish(self, x: th.Tensor) -> Solution:
        """The barycenter and the potentials that belong to the iterate ``x``."""
        product = self.kernel.adjoint(self.domain.mul(x, self.reference))
        inverse = self.domain.inverse(self.kernel.forward(self.domain.div(self.measures, product)))
        mean = self.kernel.geometric(self._weighted, inverse, self.uniform)
        barycenter = self.domain.value(self.domain.div(self.reference, mean))
        # Empty bins have no say in the stopping rule nor in the mixing: 1 / Kv, and not the iterate, is right there too.
        return Solution(
            (barycenter / barycenter.sum(-1, keepdim=True)).squeeze(-2),
            self.domain.leave(inverse),
            -self.domain.leave(product),
        )

    def start(self, log_f: th.Tensor, barycenter: th.Tensor | None) -> th.Tensor:
        """
        The iterate that belongs to given potentials.

        :param log_f: first potentials over the entropic strength, shape ``(B, N, n)``
        :param barycenter: shape ``(B, 1, n)``, where it is known
        :return: the iterate, in the kernel's domain
        """
        log_f = log_f.to(self._weighted.dtype)
        return self.kernel.arrange(self.domain.enter(log_f - th.matmul(self._weighted, log_f)))


class DebiasedProjections(Projections):
    r"""
    Projections in which the reference is the scaling :math:`d` of the barycenter's transport to itself.

    :math:`d \leftarrow \sqrt{d \mu / K d}` (Janati et al. 2020, Alg. 1). The state has one row more than there are agents:
    the last is :math:`d`.
    """

    def step(self, x: th.Tensor) -> th.Tensor:
        return self._debiased_step(x)[0]

    def step_error(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        mapped, u, inverse, barycenter, own = self._debiased_step(x)
        self._record(barycenter)
        plans = self.domain.div(u, inverse)
        return self.domain.leave(mapped), self._gap(th.cat((plans, own), -2))

    def _debiased_step(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        scaling = x[..., -1:, :]
        u = self.domain.mul(x[..., :-1, :], scaling)
        inverse, mean = self._half_step(u)
        barycenter = self.domain.div(scaling, mean)
        own = self.domain.mul(scaling, self.kernel.forward(scaling))
        update = self.domain.mul(scaling, self.domain.root(self.domain.div(barycenter, own)))
        return th.cat((self.domain.div(inverse, mean), update), -2), u, inverse, barycenter, own

    def select(self, index: th.Tensor) -> FixedPointProblem:
        weights = self.weights if self.weights.dim() == 2 else self.weights[index]
        chosen = DebiasedProjections(
            self.kernel.select(index), self.measures[index], weights, self.reference, self.outer, self.uniform
        )
        chosen._barycenter = self._barycenter[index]
        return chosen

    def start(self, log_f: th.Tensor, barycenter: th.Tensor | None) -> th.Tensor:
        log_f = log_f.to(self._weighted.dtype)
        mean = th.matmul(self._weighted, log_f)
        scaling = th.zeros_like(mean) if barycenter is None else barycenter.to(mean.dtype).log() + mean
        # An underflowed bin of the earlier barycenter must stay able to grow again.
        scaling = scaling.clamp_min(-TRUST)
        return self.kernel.arrange(self.domain.enter(th.cat((log_f - mean, scaling), -2)))

    def finish(self, x: th.Tensor) -> Solution:
        scaling = x[..., -1:, :]
        fixed = Projections(self.kernel, self.measures, self.weights, scaling, self.outer, self.uniform)
        return fixed.finish(x[..., :-1, :])
