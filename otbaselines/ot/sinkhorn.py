r"""
Entropic transport between two measures, its debiased form, and all pairs of a team.

The convention throughout is :math:`W_\varepsilon(a, b) = \min_P \langle P, C\rangle + \varepsilon KL(P \,|\, a \otimes b)`
over the couplings of ``a`` and ``b``. (With :math:`-\varepsilon H(P)` instead the plan is the same and the value differs by
:math:`\varepsilon (H(a) + H(b))`.)
"""

from __future__ import annotations

from dataclasses import replace

import torch as th

from otbaselines.ot._anderson import FixedPoint, FixedPointProblem, first_stage, solve
from otbaselines.ot._kernels import (
    LOG,
    Domain,
    Kernel,
    choose_arithmetic,
    convert_cost,
    exponent_range,
    flatten_cost,
    make_kernel,
)
from otbaselines.ot._validation import (
    broadcast_shapes,
    check_measure,
    check_reg,
    check_stop,
    check_tensor,
    finite,
    shifted,
    unit_mass,
)
from otbaselines.ot.costs import Cost, LatticeCost, check_problem, validate_cost
from otbaselines.ot.result import DivergenceResult, OTResult


class _Coupling:
    r"""
    Sinkhorn's map on :math:`x = e^{f/\varepsilon}`: :math:`x \mapsto 1 / K (b / K'(a x))` (Cuturi 2013, Alg. 1).

    Unlike the usual scaling :math:`u = a x`, ``x`` is finite and positive on empty bins.

    :param kernel: of the cost
    :param a: shape ``(B, 1, n)``, in the kernel's domain
    :param b: shape ``(B, 1, m)``, in the kernel's domain
    """

    def __init__(self, kernel: Kernel, a: th.Tensor, b: th.Tensor) -> None:
        self.kernel, self.domain, self.a, self.b = kernel, kernel.domain, a, b

    def step(self, x: th.Tensor) -> th.Tensor:
        v = self.domain.div(self.b, self.kernel.adjoint(self.domain.mul(self.a, x)))
        return self.domain.inverse(self.kernel.forward(v))

    def step_error(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        u = self.domain.mul(self.a, x)
        product = self.kernel.forward(self.domain.div(self.b, self.kernel.adjoint(u)))
        return -self.domain.leave(product), _gap(self.domain, self.domain.mul(u, product), self.a)

    def weight(self) -> th.Tensor:
        return self.domain.value(self.a).sqrt()

    def select(self, index: th.Tensor) -> FixedPointProblem:
        return type(self)(self.kernel.select(index), self.a[index], self.b[index])


class _SelfCoupling(_Coupling):
    r"""
    The symmetric problem :math:`W(a, a)`, whose two potentials are one.

    The averaged map :math:`x \mapsto \sqrt{x / K (a x)}` converges in about 15 iterations where the alternating one takes
    hundreds (Feydy et al. 2019, Sec. 3.3).
    """

    def step(self, x: th.Tensor) -> th.Tensor:
        product = self.kernel.forward(self.domain.mul(self.a, x))
        return self.domain.root(self.domain.div(x, product))

    def step_error(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        scaled = self.domain.mul(self.a, x)
        product = self.kernel.forward(scaled)
        log_mapped = 0.5 * self.domain.leave(self.domain.div(x, product))
        return log_mapped, _gap(self.domain, self.domain.mul(scaled, product), self.a)


def _gap(domain: Domain, marginal: th.Tensor, target: th.Tensor) -> th.Tensor:
    return (domain.value(marginal) - domain.value(target)).abs().sum(-1).amax(-1)


def sinkhorn(
    cost: Cost,
    a: th.Tensor,
    b: th.Tensor,
    *,
    reg: float,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    init: OTResult | th.Tensor | None = None,
    validate: bool = True,
) -> OTResult:
    r"""
    Entropic optimal transport by Sinkhorn's iterations with Anderson mixing.

    Minimises :math:`\langle P, C\rangle + \varepsilon KL(P | a \otimes b)` (Cuturi 2013). Plain products are used while
    ``cost.max() / reg`` is below 600, log-sum-exp beyond; ``float32`` problems whose range or tolerance is out of that
    type's reach are computed in ``float64``. The gradient of ``value`` is that of the envelope theorem: the potentials
    with respect to the marginals, the plan with respect to the cost; it needs no graph through the iterations and is
    as accurate as ``tol``. Plan and potentials are constants for autograd, and there is no second derivative.
    Rows that miss the sum of one by rounding (1e-4 in float32, 1e-6 in float64) are made to sum to one exactly, since no plan
    has both as marginals otherwise.

    :param cost: shape ``(n, m)``, shared by the batch, or ``(..., n, m)``, non-negative; or a lattice
    :param a: first marginal, shape ``(..., n)``, rows summing to one, empty bins allowed
    :param b: second marginal, shape ``(..., m)``
    :param reg: entropic strength :math:`\varepsilon > 0`, in the unit of ``cost``
    :param tol: stop at this error :math:`|P 1 - a|_1`, in every problem of the batch
    :param max_iter: stop at this many iterations; ``converged`` says which came first
    :param init: where to start: an earlier result, or first potentials of shape ``(..., n)``. When omitted and the strength is
        small, coarser problems are solved first, each with a limit of its own
    :param validate: whether to check the tensors' contents (two reads from the device)
    :return: value, potentials, plan on demand, and how the solver stopped
    :raises TypeError: if an argument is of another type
    :raises ValueError: if ``reg`` or ``tol`` is not positive, ``cost.max() / reg`` is out of reach of float64 (above 1e8,
        below 1e-9), shapes or dtypes disagree, or the contents are no measures and costs
    """
    reg = check_reg(reg)
    check_stop(tol, max_iter)
    check_problem(cost, a, b, ("a", "b"))
    if validate:
        validate_cost(cost)
        check_measure(a, "a")
        check_measure(b, "b")
    batch = broadcast_shapes(cost=cost.shape[:-2], a=a.shape[:-1], b=b.shape[:-1])
    a, b = a.expand(*batch, -1), b.expand(*batch, -1)
    span, n_coarse = exponent_range(cost, reg), 0
    stage = first_stage(span, a.dtype, tol, max(cost.shape[-2:]), max_iter) if init is None else None
    if stage is not None:
        init = sinkhorn(
            convert_cost(cost, stage.dtype),
            a.detach().to(stage.dtype),
            b.detach().to(stage.dtype),
            reg=stage.factor * reg,
            tol=stage.tol,
            max_iter=stage.max_iter,
            validate=False,
        )
        n_coarse = init.n_iter
    start = _given_potentials(init, a, validate)
    with th.no_grad():
        rows, columns, f, g, point = _solve_coupling(flatten_cost(cost, batch), a, b, start, span, reg, tol, max_iter)
    error = point.error.reshape(batch)
    # Potentials are constants, so autograd returns f and g for the marginals: the envelope theorem. The sum is formed in the
    # potentials' precision because the two terms may cancel.
    value = (shifted(a.to(f.dtype), rows) * f).sum(-1) + (shifted(b.to(g.dtype), columns) * g).sum(-1)
    result = OTResult(
        value=value.to(a.dtype),
        potential_a=f.to(a.dtype),
        potential_b=g.to(a.dtype),
        n_iter=n_coarse + point.n_iter,
        converged=error <= tol,
        error=error.to(a.dtype),
        _cost=cost,
        _reg=reg,
        _a=rows.to(a.dtype),
        _b=columns.to(a.dtype),
    )
    return _with_cost_gradient(result)


def _given_potentials(init: OTResult | th.Tensor | None, a: th.Tensor, validate: bool) -> th.Tensor | None:
    start = init.potential_a if isinstance(init, OTResult) else init
    if start is not None:
        check_tensor(start, "init")
        if start.shape != a.shape:
            raise ValueError(f"`init` must hold potentials of shape {tuple(a.shape)}, got {tuple(start.shape)}")
        if validate:
            finite(start, init=start)
    return start


def _with_cost_gradient(result: OTResult) -> OTResult:
    """The envelope theorem for the cost: the gradient of the value is the plan, held constant."""
    cost, value = result._cost, result.value
    if not (cost.requires_grad and th.is_grad_enabled()):
        return result
    factors = cost.factors if isinstance(cost, LatticeCost) else (cost,)
    for factor, plan in zip(factors, result.factor_plans, strict=True):
        value = value + (plan.to(factor.dtype) * (factor - factor.detach())).sum((-1, -2))
    return replace(result, value=value)


def _solve_coupling(
    cost: Cost, a: th.Tensor, b: th.Tensor, start: th.Tensor | None, span: float, reg: float, tol: float, max_iter: int
) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor, FixedPoint]:
    """Marginals of unit mass and potentials, of the shapes of ``a`` and ``b``, and where the loop stopped."""
    dtype, domain = choose_arithmetic(span, a.dtype, tol)
    rows, columns = (unit_mass(x.reshape(-1, 1, x.shape[-1]).to(dtype)) for x in (a, b))
    log_x = th.zeros_like(rows) if start is None else start.detach().to(dtype).reshape(rows.shape) / reg
    problem, point = _iterate(_Coupling, cost, rows, columns, log_x, reg, tol, max_iter, domain)
    # Empty bins carry no weight in the stopping rule nor in the mixing: their potentials are those of one more half step.
    product = problem.kernel.adjoint(problem.domain.mul(problem.a, point.x))
    inverse = problem.kernel.forward(problem.domain.div(problem.b, product))
    f, g = -reg * problem.domain.leave(inverse), -reg * problem.domain.leave(product)
    return rows.reshape(a.shape), columns.reshape(b.shape), f.reshape(a.shape), g.reshape(b.shape), point


def _iterate(
    kind: type[_Coupling],
    cost: Cost,
    rows: th.Tensor,
    columns: th.Tensor,
    log_x: th.Tensor,
    reg: float,
    tol: float,
    max_iter: int,
    domain: Domain,
) -> tuple[_Coupling, FixedPoint]:
    """Make the problem and solve it; where products run out of range in spite of the bound, once more in logarithms."""
    kernel = make_kernel(cost, reg, rows.dtype, domain, len(rows))
    problem = kind(kernel, domain.wrap(kernel.arrange(rows)), domain.wrap(kernel.arrange(columns)))
    point = solve(problem, domain.enter(kernel.arrange(log_x)), tol=tol, max_iter=max_iter)
    if domain.log or bool(point.error.isfinite().all()):
        return problem, point
    # Extreme warm starts can do that, and measures that are all but zero in places.
    rows, columns = rows.double(), columns.double()
    return _iterate(kind, cost, rows, columns, th.zeros_like(rows), reg, tol, max_iter, LOG)


def self_transport(
    cost: Cost, a: th.Tensor, *, reg: float, tol: float = 1e-6, max_iter: int = 10_000, validate: bool = True
) -> OTResult:
    r"""
    The self term :math:`W_\varepsilon(a, a)` of the Sinkhorn divergence, by symmetric averaging.

    :param cost: symmetric, shape ``(n, n)`` or ``(..., n, n)``, or a lattice
    :param a: shape ``(..., n)``, rows summing to one
    :param reg: entropic strength, positive, in the unit of ``cost``
    :param tol: stop at this marginal error
    :param max_iter: stop at this many iterations; ``converged`` says which came first
    :param validate: whether to check the tensors' contents
    :return: as of :func:`sinkhorn`, with two equal potentials; the gradient of ``value`` with respect to ``a`` is their sum
    :raises TypeError: if an argument is of another type
    :raises ValueError: as :func:`sinkhorn`, or if ``cost`` is asymmetric
    """
    reg = check_reg(reg)
    check_stop(tol, max_iter)
    check_problem(cost, a, a, ("a", "a"))
    if validate:
        validate_cost(cost, symmetric=True)
        check_measure(a, "a")
    return _self_transport(cost, a, reg, tol, max_iter)


def _self_transport(cost: Cost, a: th.Tensor, reg: float, tol: float, max_iter: int) -> OTResult:
    batch = broadcast_shapes(cost=cost.shape[:-2], a=a.shape[:-1])
    a = a.expand(*batch, -1)
    with th.no_grad():
        dtype, domain = choose_arithmetic(exponent_range(cost, reg), a.dtype, tol)
        rows = unit_mass(a.reshape(-1, 1, a.shape[-1]).to(dtype))
        flat, start = flatten_cost(cost, batch), th.zeros_like(rows)
        problem, point = _iterate(_SelfCoupling, flat, rows, rows, start, reg, tol, max_iter, domain)
        domain = problem.domain
        scaled = domain.mul(problem.a, point.x)
        product = problem.kernel.forward(scaled)
        # Empty bins carry no weight in the stopping rule nor in the mixing: their potentials are those of one more step.
        log_x = th.where(domain.value(problem.a) > 0, domain.leave(point.x), -domain.leave(product))
        potential = (reg * log_x).reshape(a.shape)
        mass = domain.value(domain.mul(scaled, product)).sum(-1).reshape(batch)
        rows, error = rows.reshape(a.shape), point.error.reshape(batch)
    value = 2 * (shifted(a.to(potential.dtype), rows) * potential).sum(-1) + reg * (1 - mass)
    result = OTResult(
        value=value.to(a.dtype),
        potential_a=potential.to(a.dtype),
        potential_b=potential.to(a.dtype),
        n_iter=point.n_iter,
        converged=error <= tol,
        error=error.to(a.dtype),
        _cost=cost,
        _reg=reg,
        _a=rows.to(a.dtype),
        _b=rows.to(a.dtype),
    )
    return _with_cost_gradient(result)


def sinkhorn_divergence(
    cost_ab: Cost,
    a: th.Tensor,
    b: th.Tensor,
    *,
    reg: float,
    cost_aa: Cost | None = None,
    cost_bb: Cost | None = None,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    init: OTResult | th.Tensor | None = None,
    validate: bool = True,
) -> DivergenceResult:
    r"""
    Debiased transport :math:`S(a, b) = W(a, b) - \tfrac12 W(a, a) - \tfrac12 W(b, b)` (Genevay et al. 2018).

    Zero exactly at ``a == b`` and non-negative for costs of negative type (powers :math:`0 < p \le 2` of Euclidean
    distances, and their sums; not powers above one of sums of distances), while :math:`W_\varepsilon(a, a) > 0`: minimising
    the latter alone shrinks measures to a point.

    :param cost_ab: between the two supports, shape ``(..., n, m)``; with one common support this cost is enough
    :param a: shape ``(..., n)``
    :param b: shape ``(..., m)``
    :param reg: entropic strength
    :param cost_aa: within the first support, shape ``(..., n, n)``; give both or neither
    :param cost_bb: within the second support, shape ``(..., m, m)``
    :param tol: stop at this marginal error, in each of the three problems
    :param max_iter: stop at this many iterations; ``converged`` says which came first
    :param init: warm start of the cross term, as in :func:`sinkhorn`
    :param validate: whether to check the tensors' contents
    :return: the divergence, shape ``(...)``, differentiable with respect to ``a``, ``b`` and the costs, and how the solver
        stopped
    :raises TypeError: if an argument is of another type
    :raises ValueError: as :func:`sinkhorn`; if one self cost is given alone, or none and ``cost_ab`` is not symmetric
    """
    reg = check_reg(reg)
    if (cost_aa is None) != (cost_bb is None):
        raise ValueError("`cost_aa` and `cost_bb` belong together: give both, or neither where the support is common")
    check_problem(cost_ab, a, b, ("a", "b"), cost_name="cost_ab")
    if cost_aa is None or cost_bb is None:
        cost_aa = cost_bb = cost_ab
        if validate or cost_ab.shape[-1] != cost_ab.shape[-2]:
            validate_cost(cost_ab, symmetric=True, name="cost_ab")
    else:
        check_problem(cost_aa, a, a, ("a", "a"), cost_name="cost_aa")
        check_problem(cost_bb, b, b, ("b", "b"), cost_name="cost_bb")
        if validate:
            validate_cost(cost_aa, symmetric=True, name="cost_aa")
            validate_cost(cost_bb, symmetric=True, name="cost_bb")
    cross = sinkhorn(cost_ab, a, b, reg=reg, tol=tol, max_iter=max_iter, init=init, validate=validate)
    own = [_self_transport(cost, x, reg, tol, max_iter) for cost, x in ((cost_aa, a), (cost_bb, b))]
    error = th.maximum(cross.error, th.maximum(own[0].error, own[1].error))
    return DivergenceResult(
        value=cross.value - 0.5 * (own[0].value + own[1].value),
        n_iter=max(cross.n_iter, own[0].n_iter, own[1].n_iter),
        converged=cross.converged & own[0].converged & own[1].converged,
        error=error,
    )


def pairwise_sinkhorn(
    measures: th.Tensor,
    cost: Cost,
    *,
    reg: float,
    debiased: bool = True,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    validate: bool = True,
) -> DivergenceResult:
    r"""
    The (debiased) transport between all pairs of a team, each pair solved once, all in one batch.

    :param measures: shape ``(..., N, n)``, rows summing to one
    :param cost: symmetric, shape ``(n, n)``, or a lattice
    :param reg: entropic strength
    :param debiased: whether to subtract the self terms; without, the diagonal is :math:`W(\mu_i, \mu_i)`
    :param tol: stop at this marginal error, in every pair
    :param max_iter: stop at this many iterations; ``converged`` says which came first
    :param validate: whether to check the tensors' contents
    :return: values, symmetric, shape ``(..., N, N)``, differentiable with respect to ``measures``, and how the solver stopped
        in each pair
    :raises TypeError: if an argument is of another type
    :raises ValueError: as :func:`sinkhorn`, or if ``cost`` is asymmetric or ``measures`` has no dimension of agents
    """
    reg = check_reg(reg)
    check_stop(tol, max_iter)
    check_tensor(measures, "measures", 2)
    check_problem(cost, measures, measures, ("measures", "measures"))
    if len(cost.shape) != 2:
        raise ValueError(f"`cost` must be one matrix or a lattice, shared by all pairs, got shape {tuple(cost.shape)}")
    if validate:
        validate_cost(cost, symmetric=True)
        check_measure(measures, "measures")
    n_agents = measures.shape[-2]
    own = _self_transport(cost, measures, reg, tol, max_iter)
    diagonal = th.zeros_like(own.value) if debiased else own.value
    if n_agents == 1:
        return DivergenceResult(th.diag_embed(diagonal), own.n_iter, own.converged.unsqueeze(-1), own.error.unsqueeze(-1))
    first, second = th.triu_indices(n_agents, n_agents, offset=1, device=measures.device)
    pairs = sinkhorn(
        cost, measures[..., first, :], measures[..., second, :], reg=reg, tol=tol, max_iter=max_iter, validate=False
    )
    value, error, converged = pairs.value, pairs.error, pairs.converged
    if debiased:
        value = value - 0.5 * (own.value[..., first] + own.value[..., second])
        error = th.maximum(error, th.maximum(own.error[..., first], own.error[..., second]))
        converged = converged & own.converged[..., first] & own.converged[..., second]

    def square(upper: th.Tensor, diagonal: th.Tensor) -> th.Tensor:
        place = first * n_agents + second
        half = upper.new_zeros(*upper.shape[:-1], n_agents * n_agents).index_copy(-1, place, upper)
        half = half.unflatten(-1, (n_agents, n_agents))
        whole: th.Tensor = th.diag_embed(diagonal) + half + half.transpose(-1, -2)
        return whole

    return DivergenceResult(
        value=square(value, diagonal),
        n_iter=max(own.n_iter, pairs.n_iter),
        converged=square(converged.byte(), own.converged.byte()).bool(),
        error=square(error, own.error),
    )
