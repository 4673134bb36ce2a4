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
