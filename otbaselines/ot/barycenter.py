r"""
Entropic Wasserstein barycenters on one support, batched.

With :math:`K = e^{-C/\varepsilon}`, an outer term :math:`\tau KL(\mu | \eta)` and the convention
:math:`W = \langle P, C\rangle + \varepsilon KL(P | \mu \otimes \mu_i)`, one iteration is

.. math:: v_i = \mu_i / K' u_i, \qquad \mu = \eta \prod_i (K v_i)^{w_i \varepsilon / \tau}, \qquad u_i = \mu / K v_i .

At :math:`\tau = \varepsilon`, the default, this is Benamou et al. (2015, Sec. 3.2) with a reference measure: plain
iterative Bregman projections already minimise with the term :math:`\varepsilon KL(\mu | \text{uniform})`.
"""

from __future__ import annotations

from functools import partial

import torch as th

from otbaselines.ot._anderson import first_stage, solve
from otbaselines.ot._kernels import (
    LOG,
    MIN_RANGE,
    Domain,
    choose_arithmetic,
    convert_cost,
    exponent_range,
    flatten_cost,
    make_kernel,
)
from otbaselines.ot._projections import DebiasedProjections, Projections
from otbaselines.ot._validation import (
    broadcast_shapes,
    check_alike,
    check_measure,
    check_number,
    check_reg,
    check_rows,
    check_stop,
    check_tensor,
    finite,
    unit_mass,
)
from otbaselines.ot.costs import Cost, check_problem, validate_cost
from otbaselines.ot.result import BarycenterResult


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
    :param init: where to start: an earlier result on the same support, or first potentials, shape ``(..., N, n)``. When
        omitted and the strength is small, coarser problems are solved first, each with a limit of its own
    :param validate: whether to check the tensors' contents (a few reads from the device)
    :return: the weights of the barycenter, its potentials, and how the solver stopped
    :raises TypeError: if an argument is of another type
    :raises ValueError: if a row does not sum to one (within 1e-4 in float32, 1e-6 in float64; the rest is divided out), the
        shapes do not agree, the cost is negative or asymmetric, ``cost.max() / reg`` is out of reach of float64 (above 1e8,
        below 1e-9), or ``debiased`` meets a reference
    """
    reg = check_reg(reg)
    check_stop(tol, max_iter)
    outer = _check_reference(reference, reference_strength, debiased, reg)
    check_tensor(measures, "measures", 2)
    check_problem(cost, measures, measures, ("measures", "measures"))
    check_alike({"measures": measures}, {"weights": weights, "reference": reference})
    batch = broadcast_shapes(cost=cost.shape[:-2], measures=measures.shape[:-2])
    if weights is not None:
        check_rows(weights, "weights", "agent", measures.shape[-2], batch)
    if reference is not None:
        check_rows(reference, "reference", "bin", measures.shape[-1], batch)
    if validate:
        validate_cost(cost, symmetric=True)
        for rows, name in ((measures, "measures"), (weights, "weights"), (reference, "reference")):
            if rows is not None:
                check_measure(rows, name)
        if reference is not None and not bool((reference > 0).all()):
            raise ValueError("`reference` must be positive everywhere; mix in a little of the uniform measure")
    measures = measures.detach().expand(*batch, -1, -1)
    span, n_coarse = exponent_range(cost, reg), 0
    stage = first_stage(span, measures.dtype, tol, measures.shape[-1], max_iter) if init is None else None
    if stage is not None:
        init = barycenter(
            measures.to(stage.dtype),
            convert_cost(cost, stage.dtype),
            reg=stage.factor * reg,
            weights=None if weights is None else weights.to(stage.dtype),
            reference=None if reference is None else reference.to(stage.dtype),
            reference_strength=None if reference_strength is None else stage.factor * reference_strength,
            debiased=debiased,
            tol=stage.tol,
            max_iter=stage.max_iter,
            validate=False,
        )
        n_coarse = init.n_iter
    given = _given_potentials(init, measures, reg, validate)
    with th.no_grad():
        build = partial(_build, flatten_cost(cost, batch), measures, weights, reference, outer, debiased, reg)
        problem = build(*choose_arithmetic(span, measures.dtype, tol))
        point = solve(problem, problem.start(*given), tol=tol, max_iter=max_iter)
        if not problem.domain.log and not bool(point.error.isfinite().all()):
            # The products ran out of range in spite of the bound (an extreme warm start can do that).
            problem = build(th.float64, LOG)
            point = solve(problem, problem.start(th.zeros_like(given[0]), None), tol=tol, max_iter=max_iter)
        solution = problem.finish(point.x)
    error = point.error.reshape(batch)
    return BarycenterResult(
        weights=solution.barycenter.reshape(*batch, -1).to(measures.dtype),
        potentials_a=(reg * solution.log_f).reshape(measures.shape).to(measures.dtype),
        potentials_b=(reg * solution.log_g).reshape(measures.shape).to(measures.dtype),
        n_iter=n_coarse + point.n_iter,
        converged=error <= tol,
        error=error.to(measures.dtype),
        _cost=cost,
        _reg=reg,
        _measures=unit_mass(measures),
    )


def _build(
    cost: Cost,
    measures: th.Tensor,
    weights: th.Tensor | None,
    reference: th.Tensor | None,
    outer: float,
    debiased: bool,
    reg: float,
    dtype: th.dtype,
    domain: Domain,
) -> Projections:
    n_agents, n = measures.shape[-2:]
    rows = unit_mass(measures.reshape(-1, n_agents, n).to(dtype))
    kernel = make_kernel(cost, reg, dtype, domain, len(rows))
    shares = rows.new_full((n_agents,), 1.0 / n_agents) if weights is None else weights
    eta = rows.new_full((n,), 1.0 / n) if reference is None else reference
    kind = DebiasedProjections if debiased else Projections
    return kind(
        kernel,
        domain.wrap(kernel.arrange(rows)),
        _rows(shares, measures.shape[:-2], dtype),
        domain.wrap(_rows(eta, measures.shape[:-2], dtype)),
        outer,
        uniform=weights is None,
    )


def _rows(vectors: th.Tensor, batch: th.Size, dtype: th.dtype) -> th.Tensor:
    """One vector as ``(1, k)``, a batch of them as ``(B, 1, k)``."""
    vectors = unit_mass(vectors.detach().to(dtype))
    if vectors.dim() == 1:
        return vectors.unsqueeze(0)
    return vectors.expand(*batch, -1).reshape(-1, 1, vectors.shape[-1])


def _given_potentials(
    init: BarycenterResult | th.Tensor | None, measures: th.Tensor, reg: float, validate: bool
) -> tuple[th.Tensor, th.Tensor | None]:
    n_agents, n = measures.shape[-2:]
    dtype = th.float64
    if init is None:
        return measures.new_zeros((measures.shape[:-2].numel(), n_agents, n)), None
    potentials = init.potentials_a if isinstance(init, BarycenterResult) else init
    check_tensor(potentials, "init")
    if potentials.shape != measures.shape:
        raise ValueError(f"`init` must hold potentials of shape {tuple(measures.shape)}, got {tuple(potentials.shape)}")
    if validate:
        finite(potentials, init=potentials)
    log_f = potentials.detach().to(dtype).reshape(-1, n_agents, n) / reg
    weights = init.weights.to(dtype).reshape(-1, 1, n) if isinstance(init, BarycenterResult) else None
    return log_f, weights


def _check_reference(reference: th.Tensor | None, reference_strength: float | None, debiased: bool, reg: float) -> float:
    """The exponent ``reg / reference_strength``."""
    if debiased and (reference is not None or reference_strength is not None):
        raise ValueError(
            "`debiased=True` has no reference measure; drop `reference` and `reference_strength`, or set it to False"
        )
    if reference_strength is None:
        return 1.0
    strength = check_number(reference_strength, "reference_strength")
    if reg > strength / MIN_RANGE:
        raise ValueError(f"`reference_strength` must be at least {MIN_RANGE:g} of `reg`, {reg:g}, got {strength:g}")
    return reg / strength
