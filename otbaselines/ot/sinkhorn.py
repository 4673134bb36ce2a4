r"""
Entropic transport between two measures, its debiased form, and all pairs of a team.

The convention throughout is :math:`W_\varepsilon(a, b) = \min_P \langle P, C\rangle + \varepsilon KL(P \,|\, a \otimes b)`
over the couplings of ``a`` and ``b``. (With :math:`-\varepsilon H(P)` instead the plan is the same and the value differs by
:math:`\varepsilon (H(a) + H(b))`.)
"""

from __future__ import annotations

import torch as th

from otbaselines.ot._anderson import FixedPoint, FixedPointProblem, first_stage, solve
from otbaselines.ot._kernels import LOG, Domain, Kernel
from otbaselines.ot._validation import (
    broadcast_shapes,
    check_measure,
    check_reg,
    check_shapes,
    check_stop,
    choose_arithmetic,
    convert_cost,
    exponent_range,
    flatten_cost,
    make_kernel,
)
from otbaselines.ot.costs import Cost, validate_cost
from otbaselines.ot.result import OTResult, gibbs_plan


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
        return self.domain.power(self.domain.div(x, product), 0.5)

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
    :raises ValueError: if ``reg`` or ``tol`` is not positive, shapes or dtypes disagree, or the contents are no
        measures and costs
    """
    reg = check_reg(reg)
    check_stop(tol, max_iter)
    check_shapes(cost, a, b, ("a", "b"))
    if validate:
        validate_cost(cost)
        check_measure(a, "a")
        check_measure(b, "b")
    batch = broadcast_shapes(cost.shape[:-2], a.shape[:-1], b.shape[:-1])
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
    start = init.potential_a if isinstance(init, OTResult) else init
    if start is not None and start.shape != a.shape:
        raise ValueError(f"`init` must hold potentials of shape {tuple(a.shape)}, got {tuple(start.shape)}")
    with th.no_grad():
        f, g, point = _solve_coupling(flatten_cost(cost, batch), a, b, start, reg, tol, max_iter)
    f, g, error = f.reshape(a.shape), g.reshape(b.shape), point.error.reshape(batch)
    value = _dual_value(a, b, f, g)
    if cost.requires_grad and isinstance(cost, th.Tensor):
        plan = gibbs_plan(cost, reg, a, b, f.to(a.dtype), g.to(a.dtype))
        value = value + (plan * (cost - cost.detach())).sum((-1, -2))
    return OTResult(
        value=value,
        potential_a=f.to(a.dtype),
        potential_b=g.to(a.dtype),
        n_iter=n_coarse + point.n_iter,
        converged=error <= tol,
        error=error.to(a.dtype),
        _cost=cost,
        _reg=reg,
        _a=a,
        _b=b,
    )


def _dual_value(a: th.Tensor, b: th.Tensor, f: th.Tensor, g: th.Tensor) -> th.Tensor:
    # Potentials are constants here, so autograd returns f and g for the marginals: the envelope theorem. The sum is
    # formed in the potentials' precision because the two terms may cancel.
    value = (a.to(f.dtype) * f).sum(-1) + (b.to(g.dtype) * g).sum(-1)
    return value.to(a.dtype)


def _solve_coupling(
    cost: Cost, a: th.Tensor, b: th.Tensor, start: th.Tensor | None, reg: float, tol: float, max_iter: int
) -> tuple[th.Tensor, th.Tensor, FixedPoint]:
    dtype, domain = choose_arithmetic(exponent_range(cost, reg), a.dtype, tol)
    rows, columns = a.reshape(-1, 1, a.shape[-1]).to(dtype), b.reshape(-1, 1, b.shape[-1]).to(dtype)
    log_x = th.zeros_like(rows) if start is None else start.detach().to(dtype).reshape(rows.shape) / reg
    kernel = make_kernel(cost, reg, dtype, domain, len(rows))
    problem = _Coupling(kernel, domain.wrap(kernel.arrange(rows)), domain.wrap(kernel.arrange(columns)))
    point = solve(problem, domain.enter(kernel.arrange(log_x)), tol=tol, max_iter=max_iter)
    if not domain.log and not bool(point.error.isfinite().all()):
        # The products ran out of range in spite of the bound (an extreme warm start can do that).
        kernel = make_kernel(cost, reg, th.float64, LOG)
        problem = _Coupling(kernel, rows.double().log(), columns.double().log())
        point = solve(problem, th.zeros_like(rows, dtype=th.float64), tol=tol, max_iter=max_iter)
    # Empty bins carry no weight in the stopping rule nor in the mixing: their potentials are those of one more half step.
    product = problem.kernel.adjoint(problem.domain.mul(problem.a, point.x))
    rows = problem.kernel.forward(problem.domain.div(problem.b, product))
    return -reg * problem.domain.leave(rows), -reg * problem.domain.leave(product), point


def self_transport(
    cost: Cost, a: th.Tensor, *, reg: float, tol: float = 1e-6, max_iter: int = 10_000
) -> tuple[th.Tensor, th.Tensor]:
    r"""
    The self term :math:`W_\varepsilon(a, a)` of the Sinkhorn divergence, by symmetric averaging.

    :param cost: symmetric, shape ``(n, n)`` or ``(..., n, n)``, or a lattice
    :param a: shape ``(..., n)``
    :param reg: entropic strength
    :param tol: stop at this marginal error
    :param max_iter: stop at this many iterations
    :return: the value, shape ``(...)``, whose gradient is twice the potential; and the potential, shape ``(..., n)``
    """
    batch = broadcast_shapes(cost.shape[:-2], a.shape[:-1])
    a = a.expand(*batch, -1)
    with th.no_grad():
        flat = flatten_cost(cost, batch)
        dtype, domain = choose_arithmetic(exponent_range(flat, reg), a.dtype, tol)
        rows = a.reshape(-1, 1, a.shape[-1]).to(dtype)
        kernel = make_kernel(flat, reg, dtype, domain, len(rows))
        rows = domain.wrap(kernel.arrange(rows))
        problem = _SelfCoupling(kernel, rows, rows)
        point = solve(problem, domain.enter(th.zeros_like(rows)), tol=tol, max_iter=max_iter)
        scaled = domain.mul(problem.a, point.x)
        product = kernel.forward(scaled)
        # Empty bins carry no weight in the stopping rule nor in the mixing: their potentials are those of one more step.
        occupied = domain.value(problem.a) > 0
        log_x = th.where(occupied, domain.leave(point.x), -domain.leave(product))
        potential = (reg * log_x).reshape(a.shape)
        mass = domain.value(domain.mul(scaled, product)).sum(-1).reshape(batch)
    value = 2 * (a.to(dtype) * potential).sum(-1) + reg * (1 - mass)
    if cost.requires_grad and isinstance(cost, th.Tensor):
        plan = gibbs_plan(cost, reg, a, a, potential.to(a.dtype), potential.to(a.dtype))
        value = value + (plan * (cost - cost.detach())).sum((-1, -2))
    return value.to(a.dtype), potential.to(a.dtype)


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
) -> th.Tensor:
    r"""
    Debiased transport :math:`S(a, b) = W(a, b) - \tfrac12 W(a, a) - \tfrac12 W(b, b)` (Genevay et al. 2018).

    Zero exactly at ``a == b`` and non-negative for costs of negative type (powers :math:`0 < p \le 2` of Euclidean
    distances), while :math:`W_\varepsilon(a, a) > 0`: minimising the latter alone shrinks measures to a point.

    :param cost_ab: between the two supports, shape ``(..., n, m)``; with one common support this cost is enough
    :param a: shape ``(..., n)``
    :param b: shape ``(..., m)``
    :param reg: entropic strength
    :param cost_aa: within the first support, shape ``(..., n, n)``; give both or neither
    :param cost_bb: within the second support, shape ``(..., m, m)``
    :param tol: stop at this marginal error
    :param max_iter: stop at this many iterations
    :param init: warm start of the cross term, as in :func:`sinkhorn`
    :param validate: whether to check the tensors' contents
    :return: the divergence, shape ``(...)``, differentiable with respect to ``a``, ``b`` and the costs
    :raises ValueError: as :func:`sinkhorn`; if one self cost is given alone, or none and ``cost_ab`` is not symmetric
    """
    if (cost_aa is None) != (cost_bb is None):
        raise ValueError("`cost_aa` and `cost_bb` belong together: give both, or neither where the support is common")
    if cost_aa is None or cost_bb is None:
        cost_aa = cost_bb = cost_ab
        if validate or cost_ab.shape[-1] != cost_ab.shape[-2]:
            validate_cost(cost_ab, symmetric=True, name="cost_ab")
    elif validate:
        validate_cost(cost_aa, symmetric=True, name="cost_aa")
        validate_cost(cost_bb, symmetric=True, name="cost_bb")
    check_shapes(cost_aa, a, a, ("a", "a"))
    check_shapes(cost_bb, b, b, ("b", "b"))
    cross = sinkhorn(cost_ab, a, b, reg=reg, tol=tol, max_iter=max_iter, init=init, validate=validate)
    self_a, _ = self_transport(cost_aa, a, reg=reg, tol=tol, max_iter=max_iter)
    self_b, _ = self_transport(cost_bb, b, reg=reg, tol=tol, max_iter=max_iter)
    return cross.value - 0.5 * (self_a + self_b)


def pairwise_sinkhorn(
    measures: th.Tensor,
    cost: Cost,
    *,
    reg: float,
    debiased: bool = True,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    validate: bool = True,
) -> th.Tensor:
    r"""
    The (debiased) transport between all pairs of a team, each pair solved once, all in one batch.

    :param measures: shape ``(..., N, n)``, rows summing to one
    :param cost: symmetric, shape ``(n, n)``, or a lattice
    :param reg: entropic strength
    :param debiased: whether to subtract the self terms; without, the diagonal is :math:`W(\mu_i, \mu_i)`
    :param tol: stop at this marginal error, in every pair
    :param max_iter: stop at this many iterations
    :param validate: whether to check the tensors' contents
    :return: symmetric, shape ``(..., N, N)``, differentiable with respect to ``measures``
    :raises ValueError: as :func:`sinkhorn`, or if ``cost`` is asymmetric or ``measures`` has no dimension of agents
    """
    reg = check_reg(reg)
    check_stop(tol, max_iter)
    if measures.dim() < 2:
        raise ValueError(f"`measures` must be (..., N, n), one row per agent, got shape {tuple(measures.shape)}")
    check_shapes(cost, measures, measures, ("measures", "measures"))
    if validate:
        validate_cost(cost, symmetric=True)
        check_measure(measures, "measures")
    n_agents = measures.shape[-2]
    first, second = th.triu_indices(n_agents, n_agents, offset=1, device=measures.device)
    own, _ = self_transport(cost, measures, reg=reg, tol=tol, max_iter=max_iter)
    matrix = measures.new_zeros(*measures.shape[:-1], n_agents)
    if not debiased:
        matrix = matrix + th.diag_embed(own)
    if n_agents == 1:
        return matrix
    pairs = sinkhorn(
        cost, measures[..., first, :], measures[..., second, :], reg=reg, tol=tol, max_iter=max_iter, validate=False
    )
    value = pairs.value
    if debiased:
        value = value - 0.5 * (own[..., first] + own[..., second])
    upper = th.zeros_like(matrix).flatten(-2).index_copy(-1, first * n_agents + second, value).view_as(matrix)
    return matrix + upper + upper.transpose(-1, -2)
