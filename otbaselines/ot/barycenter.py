r"""
Entropic Wasserstein barycenters on one support, batched.

With :math:`K = e^{-C/\varepsilon}`, an outer term :math:`\tau KL(\mu | \eta)` and the convention
:math:`W = \langle P, C\rangle + \varepsilon KL(P | \mu \otimes \mu_i)`, one iteration is

.. math:: v_i = \mu_i / K' u_i, \qquad \mu = \eta \prod_i (K v_i)^{w_i \varepsilon / \tau}, \qquad u_i = \mu / K v_i .

At :math:`\tau = \varepsilon`, the default, this is Benamou et al. (2015, Sec. 3.2) with a reference measure: plain
iterative Bregman projections already minimise with the term :math:`\varepsilon KL(\mu | \text{uniform})`.
"""

from __future__ import annotations

import torch as th

from otbaselines.ot._anderson import FixedPoint, FixedPointProblem, solve
from otbaselines.ot._kernels import LOG, Domain, Kernel
from otbaselines.ot._validation import (
    check_measure,
    check_reg,
    check_shapes,
    check_stop,
    choose_arithmetic,
    exponent_range,
    make_kernel,
)
from otbaselines.ot.costs import Cost, LatticeCost, validate_cost
from otbaselines.ot.result import BarycenterResult


class _Projections:
    r"""
    Iterative Bregman projections on :math:`x_i = u_i / \eta`, finite and positive on empty bins.

    :param kernel: of the cost
    :param measures: shape ``(B, N, n)``, in the kernel's domain
    :param weights: shape ``(B, 1, N)`` or ``(1, N)``, ordinary numbers
    :param reference: :math:`\eta`, shape ``(B, 1, n)`` or ``(1, n)``, in the kernel's domain
    :param outer: :math:`\varepsilon / \tau`
    """

    def __init__(
        self, kernel: Kernel, measures: th.Tensor, weights: th.Tensor, reference: th.Tensor, outer: float
    ) -> None:
        self.kernel, self.domain, self.measures = kernel, kernel.domain, measures
        self.weights, self.reference, self.outer = weights, reference, outer
        self._weighted = weights * outer
        self._barycenter = reference

    def _half_step(self, u: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """``1 / K v_i``, shape ``(B, N, n)``, and its geometric mean over the agents, shape ``(B, 1, n)``."""
        v = self.domain.div(self.measures, self.kernel.adjoint(u))
        inverse = self.domain.inverse(self.kernel.forward(v))
        return inverse, self.domain.geometric(self._weighted, inverse)

    def step(self, x: th.Tensor) -> th.Tensor:
        inverse, mean = self._half_step(self.domain.mul(x, self.reference))
        return self._damp(x, self.domain.div(inverse, mean))

    def step_error(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        u = self.domain.mul(x, self.reference)
        inverse, mean = self._half_step(u)
        barycenter = self.domain.value(self.domain.div(self.reference, mean))
        self._barycenter = barycenter / barycenter.sum(-1, keepdim=True)
        gaps = (self.domain.value(self.domain.div(u, inverse)) - self._barycenter).abs().sum(-1)
        return self._damp(x, self.domain.div(inverse, mean)), gaps.amax(-1)

    def _damp(self, x: th.Tensor, mapped: th.Tensor) -> th.Tensor:
        if self.outer <= 1.0:
            return mapped
        # Where the reference is weaker than the entropy the plain map overshoots by eps / tau and diverges.
        share = 1.0 / self.outer
        return self.domain.mul(self.domain.power(x, 1.0 - share), self.domain.power(mapped, share))

    def weight(self) -> th.Tensor:
        return self._barycenter.sqrt()

    def select(self, index: th.Tensor) -> FixedPointProblem:
        weights = self.weights if self.weights.dim() == 2 else self.weights[index]
        reference = self.reference if self.reference.dim() == 2 else self.reference[index]
        chosen = _Projections(self.kernel.select(index), self.measures[index], weights, reference, self.outer)
        chosen._barycenter = self._barycenter[index]
        return chosen

    def finish(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Barycenter, and the logarithms of the scalings of both sides of every plan."""
        u = self.domain.mul(x, self.reference)
        product = self.kernel.adjoint(u)
        inverse = self.domain.inverse(self.kernel.forward(self.domain.div(self.measures, product)))
        mean = self.domain.geometric(self._weighted, inverse)
        log_mean = self.domain.leave(mean)
        barycenter = self.domain.value(self.domain.div(self.reference, mean))
        return barycenter.squeeze(-2), self.domain.leave(x) + log_mean, -self.domain.leave(product)


class _DebiasedProjections(_Projections):
    r"""
    Projections in which the reference is the scaling :math:`d` of the barycenter's transport to itself.

    :math:`d \leftarrow \sqrt{d \mu / K d}` (Janati et al. 2020, Alg. 1). The state has one row more than there are agents:
    the last is :math:`d`.
    """

    def step(self, x: th.Tensor) -> th.Tensor:
        return self._debiased_step(x)[0]

    def step_error(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        mapped, u, inverse, barycenter, own = self._debiased_step(x)
        ordinary = self.domain.value(barycenter)
        self._barycenter = ordinary / ordinary.sum(-1, keepdim=True)
        plans = self.domain.value(self.domain.div(u, inverse))
        gaps = (th.cat((plans, self.domain.value(own)), -2) - self._barycenter).abs().sum(-1)
        return mapped, gaps.amax(-1)

    def _debiased_step(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        scaling = x[..., -1:, :]
        u = self.domain.mul(x[..., :-1, :], scaling)
        inverse, mean = self._half_step(u)
        barycenter = self.domain.div(scaling, mean)
        own = self.domain.mul(scaling, self.kernel.forward(scaling))
        update = self.domain.mul(scaling, self.domain.power(self.domain.div(barycenter, own), 0.5))
        return th.cat((self.domain.div(inverse, mean), update), -2), u, inverse, barycenter, own

    def select(self, index: th.Tensor) -> FixedPointProblem:
        weights = self.weights if self.weights.dim() == 2 else self.weights[index]
        chosen = _DebiasedProjections(self.kernel.select(index), self.measures[index], weights, self.reference, self.outer)
        chosen._barycenter = self._barycenter[index]
        return chosen

    def finish(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        scaling = x[..., -1:, :]
        fixed = _Projections(self.kernel, self.measures, self.weights, scaling, self.outer)
        return fixed.finish(x[..., :-1, :])


def barycenter(
    measures: th.Tensor,
    cost: Cost,
    *,
    reg: float,
    weights: th.Tensor | None = None,
    reference: th.Tensor | None = None,
    reference_strength: float | None = None,
    debiased: bool = False,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    init: BarycenterResult | th.Tensor | None = None,
    validate: bool = True,
) -> BarycenterResult:
    r"""
    Fixed-support entropic Wasserstein barycenter by iterative Bregman projections with Anderson mixing.

    Minimises :math:`\sum_i w_i W_\varepsilon(\mu, \mu_i) + \tau KL(\mu | \eta)` (Benamou et al. 2015, Sec. 3.2).
    Entropy blurs the minimiser by about :math:`\sqrt{\varepsilon}` in the unit of the support; ``debiased=True`` (Janati
    et al. 2020) removes that. Arithmetic is chosen as in :func:`otbaselines.ot.sinkhorn`.
    The result is constant for autograd: by the envelope theorem the gradient of the objective with respect to
    :math:`\mu_i` is :math:`w_i` times ``potentials_b[i]``.

    :param measures: the :math:`\mu_i`, shape ``(..., N, n)``, non-negative, rows summing to one, empty bins allowed
    :param cost: symmetric ground cost on the support, shape ``(n, n)``, shared by the batch, or ``(..., n, n)``; or a lattice
    :param reg: entropic strength :math:`\varepsilon > 0`, in the unit of ``cost``
    :param weights: :math:`w_i`, shape ``(N,)`` or ``(..., N)``, summing to one; uniform when omitted
    :param reference: :math:`\eta`, positive, shape ``(n,)`` or ``(..., n)``, summing to one; uniform when omitted
    :param reference_strength: :math:`\tau > 0`; ``reg`` when omitted. Below ``reg`` the iteration is damped and slower
    :param debiased: whether to remove the entropic blur; excludes a reference
    :param tol: stop at this error :math:`\max_i |P_i 1 - \mu^*|_1`, in every problem of the batch
    :param max_iter: stop at this many iterations; ``converged`` says which came first
    :param init: where to start: an earlier result on the same support, or first potentials, shape ``(..., N, n)``
    :param validate: whether to check the tensors' contents (a few reads from the device)
    :return: the weights of the barycenter, its potentials, and how the solver stopped
    :raises ValueError: if a row does not sum to one, the shapes do not agree, the cost is negative or asymmetric, or
        ``debiased`` meets a reference
    """
    reg = check_reg(reg)
    check_stop(tol, max_iter)
    outer = _check_reference(reference, reference_strength, debiased, reg)
    if measures.dim() < 2:
        raise ValueError(f"`measures` must be (..., N, n), one row per agent, got shape {tuple(measures.shape)}")
    check_shapes(cost, measures, measures, ("measures", "measures"))
    weights = _check_weights(weights, measures, validate)
    if validate:
        validate_cost(cost, symmetric=True)
        check_measure(measures, "measures")
        if reference is not None:
            check_measure(reference, "reference")
            if not bool((reference > 0).all()):
                raise ValueError("`reference` must be positive everywhere; mix in a little of the uniform measure")
    batch = th.broadcast_shapes(cost.shape[:-2], measures.shape[:-2])
    measures = measures.detach().expand(*batch, -1, -1)
    if isinstance(cost, th.Tensor) and cost.dim() > 2:
        flat: Cost = cost.detach().expand(*batch, -1, -1).reshape(-1, *cost.shape[-2:])
    else:
        flat = cost
    with th.no_grad():
        start = None if init is None else _potentials(init, measures.shape)
        dtype, domain = choose_arithmetic(exponent_range(flat, reg), measures.dtype, tol)
        point, problem = _solve(flat, measures, weights, reference, start, reg, outer, debiased, tol, max_iter, dtype, domain)
        if not domain.log and not bool(point.error.isfinite().all()):
            # The products ran out of range in spite of the bound (an extreme warm start can do that).
            point, problem = _solve(
                flat, measures, weights, reference, None, reg, outer, debiased, tol, max_iter, th.float64, LOG
            )
        result, log_f, log_g = problem.finish(point.x)
    result = (result / result.sum(-1, keepdim=True)).reshape(*batch, -1)
    error = point.error.reshape(batch)
    return BarycenterResult(
        weights=result.to(measures.dtype),
        potentials_a=(reg * log_f).reshape(measures.shape).to(measures.dtype),
        potentials_b=(reg * log_g).reshape(measures.shape).to(measures.dtype),
        n_iter=point.n_iter,
        converged=error <= tol,
        error=error.to(measures.dtype),
        _cost=cost,
        _reg=reg,
        _measures=measures,
    )
