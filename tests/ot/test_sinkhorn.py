"""Entropic transport against POT's log-domain solver, linear programming and finite differences."""

from __future__ import annotations

import ot as pot
import pytest
import torch as th
from problems import cost, directional_derivative, measures

from otbaselines import ot

REGS = [1e-3, 1e-2, 0.1, 1.0, 1e2]


@pytest.mark.parametrize("reg", REGS)
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_both_marginals_hold_to_1e_6_with_empty_bins_in_both(reg: float, dtype: th.dtype) -> None:
    a, b = measures(2, 40, dtype=dtype)
    result = ot.sinkhorn(cost(40, dtype=dtype), a, b, reg=reg)
    assert result.converged
    assert result.value.dtype == result.plan.dtype == dtype
    # The plan is rebuilt from rounded potentials: their rounding, over reg, is the relative error of its entries.
    tolerance = 1e-6 if dtype == th.float64 else 1e-6 + 4 * float(result.potential_a.abs().max()) * 6e-8 / reg
    assert (result.plan.sum(1) - a).abs().sum() < tolerance
    assert (result.plan.sum(0) - b).abs().sum() < tolerance
    assert th.isfinite(result.potential_a).all()
    assert th.isfinite(result.potential_b).all()


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("reg", [0.03, 0.1, 1.0, 1e2])
def test_plan_equals_pots_log_domain_solver(reg: float) -> None:
    a, b = measures(2, 30)
    matrix = cost(30)
    result = ot.sinkhorn(matrix, a, b, reg=reg, tol=1e-10)
    expected = pot.bregman.sinkhorn_log(a.numpy(), b.numpy(), matrix.numpy(), reg, numItermax=50_000, stopThr=1e-11)
    assert abs(result.plan.numpy() - expected).sum() < 1e-7
    assert abs(float(result.value_linear) - (expected * matrix.numpy()).sum()) < 1e-7


def test_value_is_cost_plus_reg_times_the_divergence_from_the_product() -> None:
    a, b = measures(2, 30)
    matrix, reg = cost(30), 0.2
    result = ot.sinkhorn(matrix, a, b, reg=reg, tol=1e-12)
    plan, product = result.plan, a[:, None] * b[None, :]
    positive = product > 0
    divergence = (plan[positive] * (plan[positive] / product[positive]).log()).sum()
    assert float(result.value) == pytest.approx(float((plan * matrix).sum() + reg * divergence), abs=1e-11)


def test_small_strength_reaches_the_linear_programme() -> None:
    a, b = measures(2, 40)
    matrix = cost(40)
    exact = pot.emd2(a.numpy(), b.numpy(), matrix.numpy())
    # The bias of the linear part is at most reg times the entropy of the plan, log(n^2).
    result = ot.sinkhorn(matrix, a, b, reg=1e-3)
    assert exact - 1e-6 < float(result.value_linear) < exact + 1e-3 * 2 * 3.7
    assert float(result.value_linear) == pytest.approx(exact, abs=2e-3)


def test_batch_equals_loop_for_shared_and_for_own_costs() -> None:
    a, b = measures(6, 20, seed=1).view(2, 3, 20), measures(6, 20, seed=2).view(2, 3, 20)
    costs = th.stack([cost(20, seed=s) for s in range(6)]).view(2, 3, 20, 20)
    for matrix in (costs[0, 0], costs):
        batch = ot.sinkhorn(matrix, a, b, reg=0.05, tol=1e-9)
        for i in range(2):
            for j in range(3):
                single = ot.sinkhorn(matrix if matrix.dim() == 2 else matrix[i, j], a[i, j], b[i, j], reg=0.05, tol=1e-9)
                assert float(batch.value[i, j]) == pytest.approx(float(single.value), abs=1e-9)
                assert (batch.plan[i, j] - single.plan).abs().sum() < 1e-7


def test_thousands_of_small_problems_equal_the_loop() -> None:
    a, b = measures(200, 5, seed=3, empty=0.3), measures(200, 5, seed=4, empty=0.3)
    matrix = ot.action_cost(ot.one_hot_embedding(5, dtype=th.float64), beta=0.8)
    batch = ot.sinkhorn(matrix, a, b, reg=0.3, tol=1e-10)
    for i in range(0, 200, 40):
        single = ot.sinkhorn(matrix, a[i], b[i], reg=0.3, tol=1e-10)
        assert (batch.plan[i] - single.plan).abs().sum() < 1e-9


def test_warm_start_needs_fewer_iterations_and_lands_on_the_same_plan() -> None:
    a, b = measures(2, 60)
    matrix = cost(60)
    moved = 0.98 * a + 0.02 * b
    cold = ot.sinkhorn(matrix, moved, b, reg=0.03, tol=1e-8)
    warm = ot.sinkhorn(matrix, moved, b, reg=0.03, tol=1e-8, init=ot.sinkhorn(matrix, a, b, reg=0.03, tol=1e-8))
    assert warm.n_iter < cold.n_iter
    assert (warm.plan - cold.plan).abs().sum() < 1e-6
    again = ot.sinkhorn(matrix, moved, b, reg=0.03, tol=1e-6, init=cold.potential_a)
    assert again.n_iter <= 2


def test_gradient_of_the_value_equals_finite_differences_on_empty_bins_too() -> None:
    a, b = measures(2, 15)
    matrix = cost(15)
    generator = th.Generator().manual_seed(0)
    for name, x in (("a", a), ("b", b), ("cost", matrix)):

        def value(z: th.Tensor, name: str = name) -> th.Tensor:
            arguments = {"cost": matrix, "a": a, "b": b, name: z}
            return ot.sinkhorn(**arguments, reg=0.1, tol=1e-13, validate=False).value

        leaf = x.clone().requires_grad_()
        (gradient,) = th.autograd.grad(value(leaf), leaf)
        direction = th.randn(x.shape, generator=generator, dtype=th.float64) * (x > 0)
        if name != "cost":
            # Stay on the simplex, and off the boundary for the central difference.
            direction = direction - direction.sum() * x
        expected = directional_derivative(value, x, direction)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    # Moving mass into a bin that was empty: a one-sided difference.
    empty = int((a == 0).nonzero()[0])
    inward = -a.clone()
    inward[empty] += 1
    step = 1e-7
    base = ot.sinkhorn(matrix, a, b, reg=0.1, tol=1e-13)
    ahead = ot.sinkhorn(matrix, a + step * inward, b, reg=0.1, tol=1e-13)
    slope = float(ahead.value - base.value) / step
    # The one-sided slope holds a term of order step * log(step).
    assert float((base.potential_a * inward).sum()) == pytest.approx(slope, abs=1e-4)


def test_divergence_vanishes_at_equality_with_zero_gradient_and_is_positive_elsewhere() -> None:
    a, b = measures(2, 25)
    matrix = cost(25)
    leaf = a.clone().requires_grad_()
    same = ot.sinkhorn_divergence(matrix, leaf, a, reg=0.3, tol=1e-12).value
    (gradient,) = th.autograd.grad(same, leaf)
    assert abs(float(same.detach())) < 1e-10
    assert float((gradient - gradient.mean()).abs().max()) < 1e-9
    assert float(ot.sinkhorn_divergence(matrix, a, b, reg=0.3).value) > 1e-3


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_divergence_equals_pots_on_two_clouds() -> None:
    generator = th.Generator().manual_seed(0)
    x, y = th.rand(12, 2, generator=generator, dtype=th.float64), th.rand(17, 2, generator=generator, dtype=th.float64) + 0.3
    a, b = th.full((12,), 1 / 12, dtype=th.float64), th.full((17,), 1 / 17, dtype=th.float64)
    ours = ot.sinkhorn_divergence(
        ot.pairwise(x, y, p=2), a, b, reg=0.2, cost_aa=ot.pairwise(x, p=2), cost_bb=ot.pairwise(y, p=2), tol=1e-12
    ).value

    def entropic(p: th.Tensor, q: th.Tensor, matrix: th.Tensor) -> float:
        plan = th.from_numpy(
            pot.bregman.sinkhorn_log(p.numpy(), q.numpy(), matrix.numpy(), 0.2, stopThr=1e-13, numItermax=10_000)
        )
        return float((plan * matrix).sum() + 0.2 * (plan * (plan / (p[:, None] * q)).log()).sum())

    expected = entropic(a, b, ot.pairwise(x, y, p=2))
    expected -= 0.5 * (entropic(a, a, ot.pairwise(x, p=2)) + entropic(b, b, ot.pairwise(y, p=2)))
    assert float(ours) == pytest.approx(expected, abs=1e-9)


def test_gradient_of_the_divergence_equals_finite_differences() -> None:
    a, b = measures(2, 15, empty=0.0)
    matrix = cost(15)
    leaf = a.clone().requires_grad_()
    (gradient,) = th.autograd.grad(ot.sinkhorn_divergence(matrix, leaf, b, reg=0.2, tol=1e-13).value, leaf)
    direction = th.randn(15, generator=th.Generator().manual_seed(0), dtype=th.float64) * a
    direction = direction - direction.sum() * a

    def value(z: th.Tensor) -> th.Tensor:
        return ot.sinkhorn_divergence(matrix, z, b, reg=0.2, tol=1e-13, validate=False).value

    assert float(gradient @ direction) == pytest.approx(directional_derivative(value, a, direction), rel=1e-5)


def test_self_transport_equals_the_general_solver() -> None:
    a = measures(3, 30)
    matrix = cost(30)
    own = ot.self_transport(matrix, a, reg=0.05, tol=1e-11)
    general = ot.sinkhorn(matrix, a, a, reg=0.05, tol=1e-11)
    assert th.allclose(own.value, general.value, atol=1e-10)
    # Nearly all mass stays where it is, so that only the sum of the two potentials of the general solver is determined.
    assert float((general.potential_a + general.potential_b - 2 * own.potential_a)[a > 0].abs().max()) < 1e-7


@pytest.mark.parametrize("debiased", [True, False])
def test_all_pairs_equal_the_loop(debiased: bool) -> None:
    team = measures(5, 30)
    matrix = cost(30)
    pairs = ot.pairwise_sinkhorn(team, matrix, reg=0.1, debiased=debiased, tol=1e-9).value
    assert th.equal(pairs, pairs.T)
    for i in range(5):
        for j in range(5):
            if debiased:
                expected = ot.sinkhorn_divergence(matrix, team[i], team[j], reg=0.1, tol=1e-9).value
            else:
                expected = ot.sinkhorn(matrix, team[i], team[j], reg=0.1, tol=1e-9).value
            assert float(pairs[i, j]) == pytest.approx(float(expected), abs=1e-8)


@pytest.mark.parametrize("reg", [0.002, 0.1])
def test_lattice_equals_the_dense_cost(reg: float) -> None:
    lattice = ot.LatticeCost([cost(6, seed=0), 0.5 * cost(5, seed=1), cost(3, seed=2)])
    a, b = measures(2, 90)
    dense = ot.sinkhorn(lattice.dense(), a, b, reg=reg, tol=1e-9)
    fast = ot.sinkhorn(lattice, a, b, reg=reg, tol=1e-9)
    assert float(fast.value) == pytest.approx(float(dense.value), abs=1e-8)
    assert float(fast.value_linear) == pytest.approx(float(dense.value_linear), abs=1e-7)
    assert (fast.plan - dense.plan).abs().sum() < 1e-6


def test_the_iteration_limit_is_kept_and_reported() -> None:
    a, b = measures(2, 40)
    result = ot.sinkhorn(cost(40), a, b, reg=0.05, max_iter=3)
    assert result.n_iter == 3
    assert not result.converged
    assert float(result.error) > 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reg": -1.0}, "`reg` must be positive and finite, got -1.0; `ot.discrete_w1` is transport"),
        ({"reg": float("nan")}, "`reg` must be positive"),
        ({"tol": 0.0}, "`tol` must be positive"),
        ({"max_iter": 0}, "`max_iter` must be at least 1"),
        ({"a": th.full((4,), 0.3, dtype=th.float64)}, "rows of `a` must sum to one"),
        ({"a": th.tensor([1.5, -0.5, 0, 0], dtype=th.float64)}, "`a` must be non-negative"),
        ({"b": th.tensor([float("nan"), 0.5, 0.5, 0], dtype=th.float64)}, "`b` holds NaN"),
        ({"b": th.full((5,), 0.2, dtype=th.float64)}, "`cost` of shape .* needs \\[4, 4\\] bins"),
        ({"b": th.full((4,), 0.25)}, "must share one dtype"),
        ({"cost": -th.ones(4, 4, dtype=th.float64)}, "`cost` must be non-negative"),
        ({"cost": th.full((4, 4), float("nan"), dtype=th.float64)}, "`cost` holds NaN"),
        ({"init": th.zeros(3, dtype=th.float64)}, "`init` must hold potentials of shape"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, object], message: str) -> None:
    uniform = th.full((4,), 0.25, dtype=th.float64)
    arguments = {"cost": cost(4), "a": uniform, "b": uniform, "reg": 0.1} | change
    with pytest.raises(ValueError, match=message):
        ot.sinkhorn(**arguments)


def test_the_divergence_refuses_half_a_set_of_costs_and_asymmetric_ones() -> None:
    uniform = th.full((4,), 0.25, dtype=th.float64)
    with pytest.raises(ValueError, match="belong together"):
        ot.sinkhorn_divergence(cost(4), uniform, uniform, reg=0.1, cost_aa=cost(4))
    with pytest.raises(ValueError, match="`cost_ab` must be symmetric"):
        ot.sinkhorn_divergence(cost(4) + th.arange(4.0).double(), uniform, uniform, reg=0.1)


@pytest.mark.parametrize(("dtype", "share"), [(th.float32, 1 - 5e-5), (th.float64, 1 - 5e-7)])
def test_rows_that_miss_the_sum_of_one_by_rounding_are_divided_by_it(dtype: th.dtype, share: float) -> None:
    team, matrix = measures(3, 20, dtype=dtype), cost(20, dtype=dtype)
    short = share * team
    exact, off = (ot.sinkhorn_divergence(matrix, x[0], x[1], reg=0.1) for x in (team, short))
    assert off.converged
    assert float(off.value) == pytest.approx(float(exact.value), abs=1e-5)
    assert float(ot.sinkhorn_divergence(matrix, team[0], short[0], reg=0.1).value) == pytest.approx(0.0, abs=1e-6)
    assert (ot.barycenter(short, matrix, reg=0.1).weights - ot.barycenter(team, matrix, reg=0.1).weights).abs().sum() < 1e-5
    assert ot.pairwise_sinkhorn(short, matrix, reg=0.1).converged.all()
    with pytest.raises(ValueError, match="rows of `a` must sum to one, one is off by"):
        ot.sinkhorn(matrix, (2 * share - 1 - 1e-3) * team[0], team[1], reg=0.1)


def test_measures_off_by_1e_5_are_refused_in_float64() -> None:
    a, b = measures(2, 20)
    for call in (ot.sinkhorn, ot.sinkhorn_divergence):
        with pytest.raises(ValueError, match="rows of `b` must sum to one, one is off by 1e-05"):
            call(cost(20), a, (1 - 1e-5) * b, reg=0.1)


def test_results_say_when_a_solver_stopped_early() -> None:
    team, matrix = measures(3, 30), cost(30)
    for early in (
        ot.self_transport(matrix, team, reg=1.0, max_iter=1),
        ot.sinkhorn_divergence(matrix, team[0], team[1:], reg=1.0, max_iter=1),
        ot.pairwise_sinkhorn(team, matrix, reg=1.0, max_iter=1),
    ):
        assert early.converged.shape == early.error.shape == early.value.shape
        assert not early.converged.any()
        assert bool((early.error > 1e-6).all())
    late = ot.pairwise_sinkhorn(team, matrix, reg=0.1)
    assert late.converged.all()
    # The error behind a pair is the largest of its three problems, each measured on its own.
    cross = ot.sinkhorn(matrix, team[0], team[1], reg=0.1, tol=1e-6)
    assert float(late.error[0, 1]) <= 1e-6
    assert th.equal(late.error, late.error.T)
    assert late.n_iter >= cross.n_iter > 0


def test_the_self_term_is_the_plan_of_its_potentials() -> None:
    a, matrix = measures(1, 20)[0], cost(20)
    own = ot.self_transport(matrix, a, reg=0.1, tol=1e-12)
    assert (own.plan.sum(0) - a).abs().sum() < 1e-11
    assert th.allclose(own.plan, own.plan.T, atol=1e-15)
    positive = own.plan > 0
    ratio = own.plan[positive] / (a[:, None] * a)[positive]
    assert float(own.value) == pytest.approx(float((own.plan * matrix).sum() + 0.1 * (own.plan[positive] * ratio.log()).sum()))


@pytest.mark.parametrize("reg", [0.002, 0.1])
def test_gradient_with_respect_to_the_factors_of_a_lattice_equals_finite_differences(reg: float) -> None:
    factors = [cost(4, seed=0), 0.5 * cost(3, seed=1), cost(3, seed=2)]
    a, b = measures(2, 36)

    def value(k: int, factor: th.Tensor) -> th.Tensor:
        lattice = ot.LatticeCost([factor if j == k else other for j, other in enumerate(factors)])
        return ot.sinkhorn(lattice, a, b, reg=reg, tol=1e-12).value

    # In the log domain one factor is enough: it takes a second.
    for k, factor in list(enumerate(factors))[: 1 if reg < 0.01 else None]:
        leaf = factor.clone().requires_grad_()
        (gradient,) = th.autograd.grad(value(k, leaf), leaf)
        direction = th.rand(factor.shape, generator=th.Generator().manual_seed(k), dtype=th.float64) * (factor > 0)
        expected = directional_derivative(lambda x, k=k: value(k, x), factor, direction, step=1e-6)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_gradients_of_a_batch_over_a_lattice_are_those_of_its_dense_cost() -> None:
    factors = [cost(4, seed=0), cost(3, seed=1)]
    a, b = measures(6, 12).view(2, 3, 12), measures(3, 12, seed=2)
    for call in (
        lambda c: ot.sinkhorn(c, a, b, reg=0.2, tol=1e-12),
        lambda c: ot.sinkhorn_divergence(c, a, b, reg=0.2, tol=1e-12),
        lambda c: ot.pairwise_sinkhorn(a, c, reg=0.2, tol=1e-12),
    ):
        gradients = []
        for build in (ot.LatticeCost, lambda leaves: ot.LatticeCost(leaves).dense()):
            leaves = [factor.clone().requires_grad_() for factor in factors]
            call(build(leaves)).value.square().sum().backward()
            gradients.append([leaf.grad for leaf in leaves])
        for fast, dense in zip(*gradients, strict=True):
            assert th.allclose(fast, dense, atol=1e-8)


@pytest.mark.parametrize(
    ("entry", "reg", "message"),
    [
        (1e30, 0.1, "`reg` is 0.1 and the largest entry of `cost` 1e.30: beyond a ratio of 1e.08 a plan is lost"),
        (1.0, 1e-300, "beyond a ratio of 1e.08 a plan is lost"),
        (1.0, 1e300, "the value is lost in rounding; lower `reg`"),
    ],
)
def test_ranges_that_float64_cannot_hold_are_refused_at_once(entry: float, reg: float, message: str) -> None:
    matrix, team = cost(10), measures(3, 10)
    matrix[2, 5] = matrix[5, 2] = matrix.max() if entry == 1.0 else entry
    for call in (
        lambda: ot.sinkhorn(matrix, team[0], team[1], reg=reg),
        lambda: ot.self_transport(matrix, team, reg=reg),
        lambda: ot.pairwise_sinkhorn(team, matrix, reg=reg),
        lambda: ot.barycenter(team, matrix, reg=reg),
        lambda: ot.ScalingSolver(matrix, reg=reg),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_large_entry_forbids_transport() -> None:
    # With 1e4 between the first and the last point, the linear programme moves nothing between them, nor does the plan.
    matrix, (a, b) = cost(8), measures(2, 8, empty=0.0)
    matrix[0, 7] = matrix[7, 0] = 1e4
    result = ot.sinkhorn(matrix, a, b, reg=0.05, tol=1e-9)
    assert result.converged
    assert float(result.plan[0, 7]) == 0.0
    assert float(result.value_linear) == pytest.approx(pot.emd2(a.numpy(), b.numpy(), matrix.numpy()), abs=0.05 * 2 * 2.1)


@pytest.mark.parametrize("reg", [-1.0, 0.0, float("nan")])
def test_a_strength_that_is_none_is_refused_by_every_solver(reg: float) -> None:
    team, matrix = measures(3, 5), cost(5)
    for call in (
        lambda: ot.self_transport(matrix, team, reg=reg),
        lambda: ot.sinkhorn_divergence(matrix, team[0], team[1], reg=reg),
        lambda: ot.pairwise_sinkhorn(team, matrix, reg=reg),
        lambda: ot.barycenter(team, matrix, reg=reg),
        lambda: ot.ScalingSolver(matrix, reg=reg),
        lambda: ot.free_support_barycenter([team], None, reg=reg, support=team),
    ):
        with pytest.raises(ValueError, match="`reg` must be positive"):
            call()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"a": [0.5, 0.5]}, TypeError, "`a` must be a torch tensor, got list"),
        ({"a": th.zeros(0, 4, dtype=th.float64)}, ValueError, r"`a` must not be empty, got shape \(0, 4\)"),
        ({"cost": None}, TypeError, "`cost` must be a torch tensor, got NoneType"),
        ({"reg": "0.1"}, TypeError, "`reg` must be a real number, got str"),
        ({"max_iter": 1.5}, TypeError, "`max_iter` must be an integer, got 1.5"),
        ({"tol": 2.0}, ValueError, "`tol` must be positive and at most 1, got 2.0"),
        (
            {"a": measures(2, 4), "b": measures(3, 4)},
            ValueError,
            r"leading dimensions do not broadcast: .* `a` \(2,\), `b` \(3,\)",
        ),
    ],
)
def test_the_kind_of_the_error_is_that_of_the_mistake(change: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments = {"cost": cost(4), "a": measures(1, 4)[0], "b": measures(1, 4)[0], "reg": 0.1} | change
    with pytest.raises(kind, match=message):
        ot.sinkhorn(**arguments)


def test_measures_that_are_all_but_empty_somewhere_are_solved_in_logarithms() -> None:
    # Products at a range of 460 run out on weights of 1e-50: the error was infinite, the potentials those of the start.
    near, far = 1e-8, 0.1
    matrix = th.tensor([[0, far, near], [far, 0, far], [near, far, 0]], dtype=th.float64)
    team = th.tensor([[1e-219, 1e-51, 1.0], [5e-10, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=th.float64)
    own = ot.self_transport(matrix, team, reg=far / 460)
    assert own.converged.all()
    assert own.potential_a.isfinite().all()
    # All mass is where the potentials vanish, or a hundred millionth away.
    assert float(own.value.abs().max()) < 1e-8
    assert ot.pairwise_sinkhorn(team, matrix, reg=far / 460).converged.all()


@pytest.mark.parametrize("reg", [10**400, -(10**400)])
def test_a_strength_beyond_the_floats_is_refused_by_name(reg):
    cost, a = 1.0 - th.eye(2), th.full((2,), 0.5)
    for call in (lambda: ot.sinkhorn(cost, a, a, reg=reg), lambda: ot.gaussian_sinkhorn_divergence(a, a, a, a, reg=reg)):
        with pytest.raises(ValueError, match=r"`reg` must be .*, got -?inf"):
            call()
