"""Barycenters against POT's sound solvers, a linear programme, first-order conditions and symmetries."""

from __future__ import annotations

import ot as pot
import pytest
import torch as th
from problems import cost, measures

from otbaselines import ot

WEIGHTS = th.tensor([0.5, 0.2, 0.3], dtype=th.float64)


@pytest.mark.parametrize("reg", [1e-3, 1e-2, 0.1, 1.0, 1e2])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_all_marginals_hold_to_1e_6(reg: float, dtype: th.dtype) -> None:
    team = measures(3, 40, dtype=dtype)
    result = ot.barycenter(team, cost(40, dtype=dtype), reg=reg, weights=WEIGHTS.to(dtype))
    assert result.converged
    assert result.weights.dtype == dtype
    tolerance = 1.1e-6 if dtype == th.float64 else 1e-6 + 4 * float(result.potentials_a.abs().max()) * 6e-8 / reg
    for i in range(3):
        assert (result.plan(i).sum(1) - result.weights).abs().sum() < tolerance
        assert (result.plan(i).sum(0) - team[i]).abs().sum() < tolerance


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("reg", [0.03, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_weights_equal_pots_log_domain_solver(reg: float, weights: th.Tensor | None) -> None:
    n = 20 if reg < 0.1 else 40
    team, matrix = measures(3, n), cost(n)
    result = ot.barycenter(team, matrix, reg=reg, weights=weights, tol=1e-10)
    expected = pot.bregman.barycenter(
        team.T.numpy(),
        matrix.numpy(),
        reg,
        weights=None if weights is None else weights.numpy(),
        method="sinkhorn_log",
        numItermax=5_000,
        stopThr=1e-9,
    )
    assert abs(result.weights.numpy() - expected).sum() < 2e-6


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_debiased_equals_pots_at_uniform_weights() -> None:
    team, matrix = measures(3, 30), cost(30)
    result = ot.barycenter(team, matrix, reg=0.1, debiased=True, tol=1e-10)
    expected = pot.bregman.barycenter_debiased(
        team.T.numpy(), matrix.numpy(), 0.1, method="sinkhorn_log", numItermax=20_000, stopThr=1e-12
    )
    assert abs(result.weights.numpy() - expected).sum() < 1e-5


def test_debiased_returns_the_common_measure_and_the_plain_one_blurs_it() -> None:
    one = measures(1, 30, empty=0.0)
    team, matrix = one.expand(3, -1), cost(30)
    debiased = ot.barycenter(team, matrix, reg=0.1, debiased=True, tol=1e-10)
    plain = ot.barycenter(team, matrix, reg=0.1, tol=1e-10)
    assert (debiased.weights - one[0]).abs().sum() < 1e-6
    assert (plain.weights - one[0]).abs().sum() > 1e-2


def test_small_strength_reaches_the_objective_of_the_linear_programme() -> None:
    team, matrix = measures(3, 25), cost(25)
    exact = pot.lp.barycenter(team.T.numpy(), matrix.numpy(), weights=WEIGHTS.numpy())
    result = ot.barycenter(team, matrix, reg=2e-3, weights=WEIGHTS)

    def objective(weights) -> float:  # type: ignore[no-untyped-def]
        return sum(
            w * pot.emd2(weights / weights.sum(), m, matrix.numpy())
            for w, m in zip(WEIGHTS.numpy(), team.numpy(), strict=True)
        )

    assert objective(result.weights.numpy()) == pytest.approx(objective(exact), abs=5e-3)


@pytest.mark.parametrize("strength", [0.025, 0.1, 0.4])
def test_first_order_condition_with_a_reference_of_any_strength(strength: float) -> None:
    # The gradient sum_i w_i f_i + tau log(mu / eta) of the convex objective is constant over the bins at the minimum.
    team, matrix, reg = measures(3, 30), cost(30), 0.1
    reference = measures(1, 30, seed=9, empty=0.0)[0]
    result = ot.barycenter(team, matrix, reg=reg, weights=WEIGHTS, reference=reference, reference_strength=strength, tol=1e-11)
    assert result.converged
    independent = th.stack([ot.sinkhorn(matrix, result.weights, m, reg=reg, tol=1e-12).potential_a for m in team])
    gradient = WEIGHTS @ independent + strength * (result.weights / reference).log()
    assert float(gradient.max() - gradient.min()) < 1e-6


def test_the_default_reference_is_the_uniform_measure_at_strength_reg() -> None:
    team, matrix = measures(3, 20), cost(20)
    uniform = th.full((20,), 0.05, dtype=th.float64)
    plain = ot.barycenter(team, matrix, reg=0.1, tol=1e-11)
    explicit = ot.barycenter(team, matrix, reg=0.1, tol=1e-11, reference=uniform, reference_strength=0.1)
    assert th.allclose(plain.weights, explicit.weights, atol=1e-11)


def test_potentials_are_those_of_the_two_marginal_problem() -> None:
    team, matrix = measures(3, 30), cost(30)
    result = ot.barycenter(team, matrix, reg=0.1, tol=1e-12)
    for i in range(3):
        pair = ot.sinkhorn(matrix, result.weights, team[i], reg=0.1, tol=1e-12)
        for ours, expected in ((result.potentials_a[i], pair.potential_a), (result.potentials_b[i], pair.potential_b)):
            gap = ours - expected
            assert float((gap - gap.mean()).abs().max()) < 1e-7


@pytest.mark.parametrize("debiased", [True, False])
def test_batch_equals_loop_with_weights_and_costs_of_their_own(debiased: bool) -> None:
    team = measures(12, 20, seed=5).view(4, 3, 20)
    weights = th.rand(4, 3, generator=th.Generator().manual_seed(0), dtype=th.float64) + 0.2
    weights = weights / weights.sum(-1, keepdim=True)
    costs = th.stack([cost(20, seed=s) for s in range(4)])
    for matrix in (costs[0], costs):
        batch = ot.barycenter(team, matrix, reg=0.05, weights=weights, debiased=debiased, tol=1e-9)
        for i in range(4):
            own = matrix if matrix.dim() == 2 else matrix[i]
            single = ot.barycenter(team[i], own, reg=0.05, weights=weights[i], debiased=debiased, tol=1e-9)
            assert (batch.weights[i] - single.weights).abs().sum() < 1e-6


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("debiased", [True, False])
def test_thousands_of_small_problems_equal_the_loop(weights: th.Tensor | None, debiased: bool) -> None:
    team = measures(600, 5, seed=3, empty=0.0).view(200, 3, 5)
    matrix = ot.action_cost(ot.one_hot_embedding(5, dtype=th.float64), beta=0.8)
    batch = ot.barycenter(team, matrix, reg=0.5, weights=weights, debiased=debiased, tol=1e-9)
    assert batch.converged.all()
    for i in range(0, 200, 40):
        single = ot.barycenter(team[i], matrix, reg=0.5, weights=weights, debiased=debiased, tol=1e-9)
        assert (batch.weights[i] - single.weights).abs().sum() < 1e-6


def test_lattice_equals_the_dense_cost() -> None:
    lattice = ot.LatticeCost([cost(8, seed=0), 0.5 * cost(5, seed=1)])
    team = measures(3, 40)
    for reg in (0.002, 0.1):
        fast = ot.barycenter(team, lattice, reg=reg, tol=1e-8)
        dense = ot.barycenter(team, lattice.dense(), reg=reg, tol=1e-7)
        # In the log domain the barycenter moves by some thousand times the marginal error.
        assert (fast.weights - dense.weights).abs().sum() < (1e-3 if reg < 0.01 else 1e-5)


def test_a_large_lattice_needs_no_dense_kernel() -> None:
    # 40,000 points: the dense kernel would hold 1.6e9 numbers, 12.8 GB.
    grid = ot.pairwise(th.linspace(0, 1, 200, dtype=th.float64).unsqueeze(1), p=2)
    result = ot.barycenter(measures(2, 40_000), ot.LatticeCost([grid, grid]), reg=0.05, tol=1e-4)
    assert result.converged


@pytest.mark.parametrize("debiased", [True, False])
def test_warm_start_needs_fewer_iterations_and_lands_on_the_same_measure(debiased: bool) -> None:
    team, matrix = measures(3, 60), cost(60)
    moved = 0.98 * team + 0.02 * team.mean(0)
    before = ot.barycenter(team, matrix, reg=0.03, debiased=debiased, tol=1e-8)
    cold = ot.barycenter(moved, matrix, reg=0.03, debiased=debiased, tol=1e-8)
    warm = ot.barycenter(moved, matrix, reg=0.03, debiased=debiased, tol=1e-8, init=before)
    assert warm.n_iter < cold.n_iter
    assert (warm.weights - cold.weights).abs().sum() < 1e-5


def test_order_of_the_agents_does_not_matter() -> None:
    team, matrix = measures(3, 30), cost(30)
    order = [2, 0, 1]
    first = ot.barycenter(team, matrix, reg=0.05, weights=WEIGHTS, tol=1e-10)
    second = ot.barycenter(team[order], matrix, reg=0.05, weights=WEIGHTS[order], tol=1e-10)
    assert (first.weights - second.weights).abs().sum() < 1e-7


def test_arguments_are_not_changed() -> None:
    team, matrix = measures(3, 20), cost(20)
    copies = team.clone(), matrix.clone()
    ot.barycenter(team, matrix, reg=0.05)
    assert th.equal(team, copies[0])
    assert th.equal(matrix, copies[1])


def test_free_support_finds_the_mean_of_two_translated_clouds() -> None:
    cloud = th.randn(12, 2, generator=th.Generator().manual_seed(0), dtype=th.float64)
    shift = th.tensor([4.0, 0.0], dtype=th.float64)
    found = ot.free_support_barycenter([cloud, cloud + shift], None, reg=2.0, support=cloud + 1.0)
    assert th.allclose(found.atoms.mean(0), cloud.mean(0) + shift / 2, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reg": 0.0}, "`reg` must be positive"),
        ({"measures": measures(3, 4)[0]}, "`measures` must have 2 or more dimensions"),
        ({"measures": 2 * measures(3, 4)}, "rows of `measures` must sum to one"),
        ({"measures": measures(3, 5)}, "needs \\[4, 4\\] bins"),
        ({"cost": cost(4) + th.arange(4.0).double()}, "`cost` must be symmetric"),
        ({"cost": cost(4) - 1}, "`cost` must be non-negative"),
        ({"weights": th.ones(3).double()}, "rows of `weights` must sum to one"),
        ({"weights": th.ones(2).double() / 2}, "one entry per agent, 3"),
        ({"reference": th.tensor([0.5, 0.5, 0, 0]).double()}, "`reference` must be positive"),
        ({"reference_strength": 0.0}, "`reference_strength` must be positive"),
        ({"debiased": True, "reference_strength": 0.1}, "no reference measure"),
        ({"init": th.zeros(4).double()}, "`init` must hold potentials"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, object], message: str) -> None:
    arguments = {"measures": measures(3, 4), "cost": cost(4), "reg": 0.1} | change
    with pytest.raises(ValueError, match=message):
        ot.barycenter(**arguments)


def test_a_missing_plan_is_named() -> None:
    with pytest.raises(IndexError, match="`i` must be in"):
        ot.barycenter(measures(3, 4), cost(4), reg=0.1).plan(3)


def test_free_support_moves_as_pots() -> None:
    generator = th.Generator().manual_seed(0)
    clouds = [th.randn(m, 2, generator=generator, dtype=th.float64) + k for k, m in enumerate((6, 9))]
    weights = [measures(1, len(cloud), empty=0.0)[0] for cloud in clouds]
    shares, start = th.tensor([0.7, 0.3], dtype=th.float64), th.randn(5, 2, generator=generator, dtype=th.float64)
    found = ot.free_support_barycenter(clouds, weights, reg=1.0, support=start, agent_weights=shares, max_iter=5)
    expected = pot.bregman.free_support_sinkhorn_barycenter(clouds, weights, start, 1.0, weights=shares, numItermax=5)
    assert found.n_iter == 5
    assert th.allclose(found.atoms, expected, atol=1e-5)


def test_free_support_of_little_regularisation_is_the_mean_of_matched_points() -> None:
    # Two copies of one cloud, a shift apart: matched points meet half way. POT's inner loop has no numbers for this strength.
    cloud = th.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 5.0]], dtype=th.float64)
    shift = th.tensor([1.0, 1.0], dtype=th.float64)
    found = ot.free_support_barycenter([cloud, cloud + shift], None, reg=1e-2, support=cloud + 0.4)
    assert found.converged
    assert th.allclose(found.atoms, cloud + shift / 2, atol=1e-6)
    early = ot.free_support_barycenter([cloud, cloud + shift], None, reg=10.0, support=cloud, max_iter=1)
    assert not early.converged
    assert early.error > 1e-6


@pytest.mark.parametrize("reg", [0.5, 1.8, 2.5])
def test_entropy_shrinks_a_free_support_by_half_the_strength_and_debiasing_undoes_it(reg: float) -> None:
    # Midpoints of the quantiles of a normal and of the same one step away.
    cloud = th.special.ndtri((th.arange(60, dtype=th.float64) + 0.5) / 60).unsqueeze(-1)
    variance, start = float(cloud.var(unbiased=False)), 0.7 * cloud
    found = {
        debiased: ot.free_support_barycenter(
            [cloud, cloud + 1.0], None, reg=reg, support=start, debiased=debiased, max_iter=300
        )
        for debiased in (False, True)
    }
    for result in found.values():
        assert float(result.atoms.mean()) == pytest.approx(0.5, abs=1e-3)
    # Above twice the variance all atoms are one point.
    assert float(found[False].atoms.var(unbiased=False)) == pytest.approx(max(0.0, variance - 0.5 * reg), abs=1e-2)
    assert float(found[True].atoms.var(unbiased=False)) == pytest.approx(variance, rel=1e-3)
    th.testing.assert_close(found[True].atoms, cloud + 0.5, atol=2e-2, rtol=0)


def test_entropy_widens_a_fixed_support_barycenter_of_normals_by_half_the_strength() -> None:
    # The outer divergence from the uniform measure is what plain projections add.
    grid = th.linspace(-8, 8, 200, dtype=th.float64).unsqueeze(-1)
    measures = th.stack([(-0.5 * (grid[:, 0] - mean) ** 2).exp() for mean in (0.0, 1.0)])
    for debiased, expected in ((False, 1.25), (True, 1.0)):
        found = ot.barycenter(
            measures / measures.sum(1, keepdim=True), ot.pairwise(grid, p=2), reg=0.5, debiased=debiased
        ).weights
        mean = float((found * grid[:, 0]).sum())
        assert float((found * (grid[:, 0] - mean) ** 2).sum()) == pytest.approx(expected, abs=1e-3)


def test_free_support_refuses_weights_that_do_not_sum_to_one() -> None:
    cloud = th.zeros(3, 2, dtype=th.float64)
    with pytest.raises(ValueError, match="rows of `agent_weights` must sum to one, one is off by 9"):
        ot.free_support_barycenter([cloud, cloud], None, reg=1.0, support=cloud, agent_weights=th.tensor([5.0, 5.0]).double())
    with pytest.raises(ValueError, match="rows of `weights` must sum to one"):
        ot.free_support_barycenter([cloud], [th.ones(3).double()], reg=1.0, support=cloud)
    with pytest.raises(ValueError, match="`weights` must have one row per measure, 2, got 1"):
        ot.free_support_barycenter([cloud, cloud], [th.ones(3).double() / 3], reg=1.0, support=cloud)


def test_a_reference_of_another_batch_is_named() -> None:
    with pytest.raises(ValueError, match=r"`reference` must be one row, or rows for the batch \(\)"):
        ot.barycenter(measures(3, 4), cost(4), reg=0.1, reference=measures(2, 4, empty=0.0))
    with pytest.raises(ValueError, match=r"`weights` must be one row, or rows for the batch \(\)"):
        ot.barycenter(measures(3, 4), cost(4), reg=0.1, weights=WEIGHTS.expand(2, -1))
