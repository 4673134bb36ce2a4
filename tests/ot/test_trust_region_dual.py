"""The dual of a transport budget against SciPy's linear programme, its own certificate, closed forms and symmetries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import torch as th

from otbaselines import ot
from otbaselines.ot import _candidates, _dual_search


@dataclass(frozen=True)
class Problem:
    """
    :param values: shape ``(S, 1, m)``
    :param cost: a metric, shape ``(m, m)``
    :param weights: shape ``(S, m)``
    :param radius: the budget
    """

    values: th.Tensor
    cost: th.Tensor
    weights: th.Tensor
    radius: float

    def solve(self, **options: float) -> ot.TrustRegionResult:
        return ot.trust_region_dual(self.values, self.cost, self.weights, self.radius, **options)  # type: ignore[arg-type]

    def dense(self) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Values and costs of every source, and their weights, as rows."""
        shape, m = (*self.weights.shape, self.values.shape[-1]), self.values.shape[-1]
        values, cost = (x.double().expand(shape).reshape(-1, m) for x in (self.values, self.cost))
        return values, cost, self.weights.double().reshape(-1)


def random_problem(seed: int) -> Problem:
    """One of the kinds in turn: integer values with ties, values that are equal, several metrics, and weights of zero."""
    random = np.random.default_rng(seed)
    n_states, m = int(random.integers(1, 7)), int(random.integers(2, 9))
    metric = ("one-hot", "line", "plane", "shortest paths")[seed % 4]
    if metric == "one-hot":
        cost = 1.0 - np.eye(m)
    elif metric == "line":
        cost = np.abs(np.arange(m)[:, None] - np.arange(m)[None]).astype(float)
    elif metric == "plane":
        points = random.normal(size=(m, 2))
        cost = np.linalg.norm(points[:, None] - points[None], axis=-1)
    else:
        lengths = np.triu(random.uniform(0.1, 2.0, size=(m, m)), 1)
        cost = scipy.sparse.csgraph.shortest_path(lengths + lengths.T)
    values = random.normal(size=(n_states, 1, m))
    if seed // 4 % 3 == 1:
        values = random.integers(0, 4, size=values.shape).astype(float)
    if seed // 4 % 3 == 2:
        values[0] = values[0, 0, 0]
    weights = random.dirichlet(np.ones(n_states * m)).reshape(n_states, m)
    if seed // 12 % 2:
        weights[random.random(weights.shape) < 0.4] = 0.0
        weights[0, 0] += 0.1
        weights /= weights.sum()
    return Problem(*(th.from_numpy(x) for x in (values, cost, weights)), float(random.uniform(0.02, 0.7) * cost.mean()))


def linear_programme(problem: Problem, radius: float) -> tuple[float, float]:
    """SciPy's value of the primal, with one row for each source and one for the budget, and the price of the latter."""
    values, cost, weights = (x.numpy() for x in problem.dense())
    n, m = values.shape
    rows = scipy.sparse.kron(scipy.sparse.eye(n), np.ones((1, m)))
    answer = scipy.optimize.linprog(
        -values.ravel(), A_ub=cost.reshape(1, -1), b_ub=[radius], A_eq=rows, b_eq=weights, method="highs"
    )
    assert answer.status == 0
    return -float(answer.fun), -float(answer.ineqlin.marginals[0])


def certificate(problem: Problem, result: ot.TrustRegionResult) -> tuple[float, float, float]:
    """The dual's value at the multiplier, the value of the mixture, and its cost: from the definitions."""
    values, cost, weights = problem.dense()
    multiplier, share = float(result.multiplier), float(result.mixing)
    dual = multiplier * problem.radius + float(weights @ (values - multiplier * cost).amax(-1))
    maps = [index.reshape(-1, 1) for index in (result.nearest, result.furthest)]
    value, spent = (
        sum(float(weights @ x.gather(-1, index)[:, 0]) * t for index, t in zip(maps, (share, 1 - share), strict=True))
        for x in (values, cost)
    )
    return dual, value, spent


def test_multiplier_and_value_equal_the_linear_programmes_on_a_hundred_problems() -> None:
    n_unique = n_bound = 0
    for seed in range(100):
        problem = random_problem(seed)
        result = problem.solve()
        value, price = linear_programme(problem, problem.radius)
        assert float(result.value) == pytest.approx(value, abs=1e-6), seed
        multiplier = float(result.multiplier)
        n_bound += multiplier > 0
        if abs(multiplier - price) <= 1e-6:
            n_unique += 1
            continue
        # Not unique: by concavity every multiplier is between the slopes of the value in the radius, on both sides of it.
        step = 1e-3 * problem.radius
        above, below = (linear_programme(problem, problem.radius + sign * step)[0] for sign in (1, -1))
        assert (above - value) / step - 1e-6 <= multiplier <= (value - below) / step + 1e-6, seed
    assert n_unique >= 80
    assert n_bound >= 60


def test_the_mixture_is_within_the_budget_and_closes_the_gap() -> None:
    for seed in range(100):
        problem = random_problem(seed)
        result = problem.solve()
        dual, value, spent = certificate(problem, result)
        assert float(result.value) == pytest.approx(dual, abs=1e-12), seed
        assert dual - value < 1e-6, seed
        assert float(result.gap) == pytest.approx(dual - value, abs=1e-12), seed
        assert float(result.transport_cost) == pytest.approx(spent, abs=1e-12), seed
        assert spent <= problem.radius * (1 + 1e-12), seed
        if float(result.multiplier) > 0:
            assert spent == pytest.approx(problem.radius, rel=1e-12), seed
        assert result.converged
        assert result.error <= 1e-9


def test_two_actions_by_hand() -> None:
    # All mass is on action 0; action 1 is worth 2 more and costs 4, so that a unit of cost is worth 1/2 and a budget of 1
    # moves a quarter of the mass.
    problem = Problem(
        th.tensor([[[1.0, 3.0]]], dtype=th.float64),
        th.tensor([[0.0, 4.0], [4.0, 0.0]], dtype=th.float64),
        th.tensor([[1.0, 0.0]], dtype=th.float64),
        1.0,
    )
    result = problem.solve()
    assert float(result.multiplier) == pytest.approx(0.5, abs=1e-15)
    assert float(result.value) == pytest.approx(1.5, abs=1e-15)
    assert (int(result.nearest[0, 0]), int(result.furthest[0, 0])) == (0, 1)
    assert float(result.mixing) == pytest.approx(0.75, abs=1e-15)
    assert th.allclose(result.mass, th.tensor([[0.75, 0.25]], dtype=th.float64), atol=1e-15)


def integer_problem(seed: int) -> Problem:
    """On a line of integers with integer values many candidates tie at the minimiser."""
    random = np.random.default_rng(seed)
    values = th.from_numpy(random.integers(0, 6, size=(4, 1, 7)).astype(float))
    points = th.arange(7, dtype=th.float64)
    return Problem(values, (points[:, None] - points[None]).abs(), th.full((4, 7), 1 / 28, dtype=th.float64), 0.5)


def check_extremes(problem: Problem, result: ot.TrustRegionResult) -> None:
    """Among all that is on top at the multiplier, the maps take what costs least and what costs most."""
    values, cost, _ = problem.dense()
    net = values - float(result.multiplier) * cost
    on_top = net >= net.amax(-1, keepdim=True) - 1e-10
    nearest, furthest = (cost.gather(-1, index.reshape(-1, 1))[:, 0] for index in (result.nearest, result.furthest))
    assert th.equal(nearest, th.where(on_top, cost, th.inf).amin(-1))
    assert th.equal(furthest, th.where(on_top, cost, -th.inf).amax(-1))


def test_nearest_and_furthest_are_the_extreme_maximisers() -> None:
    for seed in range(30):
        problem = integer_problem(seed)
        check_extremes(problem, problem.solve())
        free = Problem(problem.values, problem.cost, problem.weights, 10.0)
        check_extremes(free, free.solve())


def test_nearest_and_furthest_are_the_extreme_maximisers_where_the_search_starts_at_the_minimiser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(30):
        problem = integer_problem(seed)
        multiplier = float(problem.solve().multiplier)
        monkeypatch.setattr(_dual_search.DualProblem, "_guess", lambda self, guess=multiplier: guess)
        result = problem.solve()
        monkeypatch.undo()
        dual, value, _ = certificate(problem, result)
        assert dual - value < 1e-12
        check_extremes(problem, result)


def test_of_several_candidates_without_cost_the_best_is_taken() -> None:
    # The second candidate is a twin of the source that is worth 1 more, and the third one costs more than the budget.
    values = th.tensor([[0.0, 1.0, 5.0]], dtype=th.float64)
    cost = th.tensor([[0.0, 0.0, 1.0]], dtype=th.float64)
    result = ot.trust_region_dual(values, cost, th.ones(1, dtype=th.float64), 0.0)
    assert int(result.nearest[0]) == 1
    assert float(result.value) == 1.0
    assert float(result.multiplier) == 4.0


def test_continuous_actions_equal_a_dense_grid_of_multipliers() -> None:
    random = np.random.default_rng(0)
    grid = th.linspace(0.0, 7.0, 141, dtype=th.float64)
    actions = th.from_numpy(random.normal(1.5, 0.5, size=(3, 16))).clamp(0, 7)
    # The candidates of a source are the grid and itself, at a cost of zero.
    candidates = th.cat((grid.expand(3, 16, -1), actions[..., None]), -1)
    values = 10 * th.exp(-((candidates - 5) ** 2) / 2) + 6.5 * th.exp(-((candidates - 1) ** 2) / 2)
    cost = (candidates - actions[..., None]).abs()
    for radius in (0.05, 0.4, 2.0):
        result = ot.trust_region_dual(values, cost, th.full((3, 16), 1 / 48, dtype=th.float64), radius)
        multipliers = th.linspace(0.0, 20.0, 4_001, dtype=th.float64)
        dual = th.stack([x * radius + (values - x * cost).amax(-1).mean() for x in multipliers])
        spacing = 20.0 / 4_000
        assert float(result.multiplier) == pytest.approx(float(multipliers[dual.argmin()]), abs=spacing)
        # The dual rises by at most its slope, which is below the radius or the largest mean cost of 5.5.
        assert float(dual.min()) - 5.5 * spacing <= float(result.value) <= float(dual.min()) + 1e-12


def test_multiplier_of_a_parabola_is_its_slope_where_the_budget_ends() -> None:
    # One source at zero and values 4 a - a^2: the whole mass goes to a = radius, where the slope is 4 - 2 radius, if that is
    # on the grid; beyond the top, at 2, the budget is worth nothing.
    grid = th.linspace(0.0, 4.0, 4001, dtype=th.float64)
    values, weights = (4 * grid - grid**2)[None], th.ones(1, dtype=th.float64)
    for radius in (0.5, 1.0, 1.5):
        result = ot.trust_region_dual(values, grid[None], weights, radius)
        assert float(result.multiplier) == pytest.approx(4 - 2 * radius, abs=1e-3)  # the spacing
        assert float(result.value) == pytest.approx(4 * radius - radius**2, abs=1e-12)
    assert float(ot.trust_region_dual(values, grid[None], weights, 2.5).multiplier) == 0.0


def test_value_is_concave_and_rises_and_the_multiplier_falls_with_the_radius() -> None:
    for seed in range(12):
        problem = random_problem(seed)
        radii = np.linspace(0.0, 1.2 * float(problem.cost.max()), 41)
        results = [ot.trust_region_dual(problem.values, problem.cost, problem.weights, float(radius)) for radius in radii]
        value = np.array([float(result.value) for result in results])
        multiplier = np.array([float(result.multiplier) for result in results])
        assert (np.diff(value) >= -1e-12).all()
        assert (np.diff(value, 2) <= 1e-12).all()
        assert (np.diff(multiplier) <= 1e-12).all()


def test_a_radius_of_zero_leaves_all_mass_at_the_price_of_the_steepest_move() -> None:
    for seed in range(24):
        problem = random_problem(seed)
        values, cost, weights = problem.dense()
        result = ot.trust_region_dual(problem.values, problem.cost, problem.weights, 0.0)
        m = problem.cost.shape[0]
        held = problem.weights > 0
        assert th.equal(result.nearest[held], th.arange(m).expand(problem.weights.shape)[held])
        assert th.allclose(result.mass, problem.weights, atol=1e-15)
        assert float(result.transport_cost) == 0.0
        own = th.arange(m).repeat(problem.weights.shape[0])[:, None]
        gain = values - values.gather(-1, own)
        steepest = (gain / cost)[(weights[:, None] > 0) & (cost > 0)].max().clamp(min=0)
        assert float(result.multiplier) == pytest.approx(float(steepest), rel=1e-14)
        assert float(result.value) == pytest.approx(float(weights @ values.gather(-1, own)[:, 0]), abs=1e-12)


def test_multiplier_is_zero_from_the_cost_of_the_unconstrained_optimum_on() -> None:
    for seed in range(36):
        problem = random_problem(seed)
        values, cost, weights = problem.dense()
        # The closest of the best candidates.
        best = th.where(values == values.amax(-1, keepdim=True), cost, th.inf).amin(-1)
        needed = float(weights @ best)
        for radius, is_free in ((needed * (1 + 1e-9), True), (needed, True), (needed * (1 - 1e-6), False), (100.0, True)):
            result = ot.trust_region_dual(problem.values, problem.cost, problem.weights, radius)
            assert (float(result.multiplier) == 0.0) == (is_free or needed == 0), seed
            if float(result.multiplier) == 0.0:
                assert float(result.value) == pytest.approx(float(weights @ values.amax(-1)), abs=1e-12)
                assert float(result.transport_cost) == pytest.approx(needed, abs=1e-12)
                assert float(result.mixing) == 1.0


def test_multiplier_scales_with_the_values_and_against_the_cost() -> None:
    for seed in range(24):
        problem = random_problem(seed)
        multiplier = float(problem.solve().multiplier)
        larger = Problem(3 * problem.values, problem.cost, problem.weights, problem.radius).solve()
        assert float(larger.multiplier) == pytest.approx(3 * multiplier, abs=1e-10)
        # The same budget in another unit.
        dearer = Problem(problem.values, 3 * problem.cost, problem.weights, 3 * problem.radius).solve()
        assert float(dearer.multiplier) == pytest.approx(multiplier / 3, abs=1e-10)
        assert float(dearer.value) == pytest.approx(float(problem.solve().value), abs=1e-10)
        # A baseline of each state changes nothing.
        baseline = th.arange(len(problem.values), dtype=th.float64)[:, None, None]
        shifted = Problem(problem.values + 10 * baseline, problem.cost, problem.weights, problem.radius).solve()
        assert float(shifted.multiplier) == pytest.approx(multiplier, abs=1e-10)


def test_multiplier_is_at_most_the_lipschitz_constant_of_the_values() -> None:
    for seed in range(100):
        problem = random_problem(seed)
        rise = problem.values - problem.values.transpose(-1, -2)
        steepest = float((rise / problem.cost)[:, problem.cost > 0].max())
        result = problem.solve()
        assert float(result.multiplier) <= steepest * (1 + 1e-12)
        # Kantorovich and Rubinstein: nothing gains more than the constant times the budget.
        values, _, weights = problem.dense()
        m = problem.cost.shape[0]
        start = float(weights @ values.gather(-1, th.arange(m).repeat(len(problem.values))[:, None])[:, 0])
        assert float(result.value) <= start + steepest * problem.radius + 1e-12


def test_values_that_rise_evenly_are_worth_their_slope_all_along() -> None:
    points = th.arange(5, dtype=th.float64)
    cost = (points[:, None] - points[None]).abs()
    for radius in (0.1, 0.7, 1.9):
        # The mean distance to the top, 4, is 2: until then every unit of cost gains 3.
        weights = th.full((1, 5), 0.2, dtype=th.float64)
        result = ot.trust_region_dual(3 * points.expand(1, 1, 5), cost, weights, radius)
        assert float(result.multiplier) == pytest.approx(3.0, abs=1e-12)
        assert float(result.value) == pytest.approx(3 * (2 + radius), abs=1e-12)


def test_mean_w1_of_the_new_policies_from_the_old_ones_is_the_radius() -> None:
    n_bound = 0
    for seed in range(40):
        problem = random_problem(seed)
        states = problem.weights.sum(-1)
        seen = states > 0
        result = problem.solve()
        assert th.allclose(result.mass.sum(-1), states, atol=1e-12)
        old, new = (x[seen] / states[seen, None] for x in (problem.weights, result.mass))
        distance = float(states[seen] @ ot.discrete_w1(old, new, problem.cost))
        assert distance <= problem.radius * (1 + 1e-9)
        if float(result.multiplier) > 1e-9:
            # A cheaper way to the same policies would leave a budget that is worth something.
            n_bound += 1
            assert distance == pytest.approx(problem.radius, rel=1e-9), seed
    assert n_bound > 20


def large_problem(radius: float, dtype: th.dtype = th.float64, n_states: int = 1000) -> Problem:
    generator = th.Generator().manual_seed(0)
    values = th.randn(n_states, 1, 20, generator=generator, dtype=th.float64)
    cost = ot.pairwise(th.rand(20, 2, generator=generator, dtype=th.float64))
    policies = th.randn(n_states, 20, generator=generator, dtype=th.float64).softmax(-1)
    return Problem(values.to(dtype), cost.to(dtype), (policies / n_states).to(dtype), radius)


@pytest.mark.parametrize("radius", [0.0, 0.003, 0.05, 0.3, 0.5, 2.0])
def test_many_states_are_certified_and_a_first_look_at_a_few_changes_nothing(
    radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = large_problem(radius)
    result = problem.solve()
    dual, value, spent = certificate(problem, result)
    assert dual - value < 1e-9
    assert spent <= radius * (1 + 1e-12)
    monkeypatch.setattr(_dual_search, "SAMPLE", len(problem.weights.view(-1)))
    plain = problem.solve()
    assert float(plain.multiplier) == pytest.approx(float(result.multiplier), rel=1e-12)
    assert th.equal(plain.nearest, result.nearest)
    assert th.equal(plain.furthest, result.furthest)


def test_a_first_look_at_a_few_of_many_states_is_near_the_minimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    guesses = []
    look = _dual_search.DualProblem._guess

    def noted(self: _dual_search.DualProblem) -> float:
        guesses.append(look(self))
        return guesses[-1]

    monkeypatch.setattr(_dual_search.DualProblem, "_guess", noted)
    for radius in (0.01, 0.05, 0.2):
        multiplier = float(large_problem(radius).solve().multiplier)
        # One in ten of the sources: three standard deviations.
        assert guesses[-1] == pytest.approx(multiplier, rel=0.1)


def test_a_first_look_that_misleads_is_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = large_problem(0.05)
    expected = float(problem.solve().multiplier)
    for guess in (1e-3 * expected, 0.97 * expected, expected, 1.3 * expected, 1e3 * expected):
        monkeypatch.setattr(_dual_search.DualProblem, "_guess", lambda self, guess=guess: guess)
        result = problem.solve()
        assert float(result.multiplier) == pytest.approx(expected, rel=1e-12)
        assert float(result.gap) < 1e-12


def test_lines_that_seem_to_change_by_rounding_are_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = large_problem(0.05)
    expected = problem.solve()
    monkeypatch.setattr(_candidates.Candidates, "above", lambda self, tops, multiplier: th.arange(len(tops.index)))
    result = problem.solve()
    assert float(result.multiplier) == pytest.approx(float(expected.multiplier), rel=1e-12)
    assert th.equal(result.nearest, expected.nearest)


def test_a_first_look_at_sources_without_weight_is_no_harm() -> None:
    problem = large_problem(0.001)
    weights = th.zeros_like(problem.weights)
    weights[17, 3], weights[400, 11] = 0.25, 0.75
    lonely = Problem(problem.values, problem.cost, weights, 0.001)
    dual, value, spent = certificate(lonely, lonely.solve())
    assert dual - value < 1e-12
    assert spent == pytest.approx(0.001, rel=1e-12)
    assert dual == pytest.approx(
        linear_programme(Problem(problem.values[[17, 400]], problem.cost, weights[[17, 400]], 0.001), 0.001)[0], abs=1e-6
    )


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = large_problem(0.05, n_states=30)
    expected = problem.solve()
    monkeypatch.setattr(_candidates, "BLOCK", 64)
    result = problem.solve()
    assert th.equal(result.nearest, expected.nearest)
    assert th.equal(result.furthest, expected.furthest)
    assert float(result.multiplier) == pytest.approx(float(expected.multiplier), rel=1e-14)


def test_all_shapes_of_one_problem_have_one_answer() -> None:
    problem = random_problem(6)
    shape = (*problem.weights.shape, problem.cost.shape[0])
    values, cost, weights = problem.dense()
    expected = problem.solve()
    forms = [
        (problem.values.expand(shape), problem.cost, problem.weights),
        (problem.values, problem.cost.expand(shape).contiguous(), problem.weights),
        (values, cost, weights),
        (values.view(shape)[None], cost.view(shape)[None], problem.weights[None]),
        # Actions before states.
        (problem.values.transpose(0, 1), problem.cost[:, None], problem.weights.T),
    ]
    for form in forms:
        result = ot.trust_region_dual(*form, problem.radius)
        assert float(result.multiplier) == pytest.approx(float(expected.multiplier), abs=1e-12)
        assert float(result.value) == pytest.approx(float(expected.value), abs=1e-12)
        assert result.nearest.shape == form[2].shape


def test_one_row_of_values_and_a_candidate_set_of_its_own_need_no_square_cost() -> None:
    # Sources at 0 and 1, candidates at 0, 1 and 3 of value 0, 1 and 5: going to 3 gains 5/3 and 2 a unit. A budget of 1 takes
    # half of the mass at 1 away, which is all there is of it, at a cost of 2 each.
    values = th.tensor([0.0, 1.0, 5.0], dtype=th.float64)
    cost = th.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0]], dtype=th.float64)
    result = ot.trust_region_dual(values, cost, th.tensor([0.5, 0.5], dtype=th.float64), 0.5)
    assert float(result.multiplier) == pytest.approx(2.0, abs=1e-14)
    assert th.allclose(result.mass, th.tensor([0.5, 0.25, 0.25], dtype=th.float64), atol=1e-14)
    assert float(result.value) == pytest.approx(0.5 + 2 * 0.5, abs=1e-14)


def test_float32_is_solved_in_float64_and_rounded() -> None:
    problem = large_problem(0.05, th.float32)
    result = problem.solve()
    assert {x.dtype for x in (result.multiplier, result.value, result.gap, result.mass)} == {th.float32}
    wide = Problem(problem.values.double(), problem.cost.double(), problem.weights.double(), 0.05)
    # The weights miss the sum of one by float32's rounding, which is divided out.
    expected = Problem(wide.values, wide.cost, wide.weights / wide.weights.sum(), 0.05).solve()
    assert float(result.multiplier) == pytest.approx(float(expected.multiplier), rel=2**-24)
    assert th.equal(result.nearest, expected.nearest)


def test_what_the_weights_miss_of_one_is_divided_out() -> None:
    problem = random_problem(3)
    result = ot.trust_region_dual(problem.values, problem.cost, (1 + 5e-7) * problem.weights, problem.radius)
    assert float(result.mass.sum()) == pytest.approx(1.0, abs=1e-14)
    assert float(result.value) == pytest.approx(float(problem.solve().value), abs=1e-13)


def test_values_that_are_equal_up_to_rounding_move_nothing() -> None:
    noise = 1e-13 * th.randn(4, 1, 5, generator=th.Generator().manual_seed(0), dtype=th.float64)
    # One state has values of size one, whose range is the unit of the tolerance; no mass is in it.
    values = th.cat((noise, th.linspace(0, 1, 5, dtype=th.float64)[None, None]))
    weights = th.cat((th.full((4, 5), 0.05, dtype=th.float64), th.zeros(1, 5, dtype=th.float64)))
    result = ot.trust_region_dual(values, 1 - th.eye(5, dtype=th.float64), weights, 0.3)
    assert float(result.multiplier) == 0.0
    assert float(result.transport_cost) == 0.0


def test_a_staircase_of_slopes_does_not_make_the_search_crawl() -> None:
    # One source whose lines have slopes that fall by a factor of two each. Their heights are a root of these, which is
    # strictly concave: every one of them is on top somewhere.
    cost = 2.0 ** -th.arange(300, dtype=th.float64)
    cost[-1] = 0.0
    for exponent in (*range(1, 20, 3), 70, 150, 220):
        radius = 0.75 * 2.0**-exponent
        problem = Problem(cost.sqrt()[None, None], cost[None], th.ones(1, 1, dtype=th.float64), radius)
        result = problem.solve()
        assert result.converged
        assert result.n_iter <= 30
        assert float(result.transport_cost) == pytest.approx(radius, rel=1e-12)
        if exponent < 20:
            # Half of the mass on each of two neighbours, in whose middle the radius is. Far down the staircase heights differ
            # by less than the rounding of its top.
            near, far = 2.0 ** -(exponent + 1), 2.0**-exponent
            assert float(result.multiplier) == pytest.approx((far**0.5 - near**0.5) / (far - near), rel=1e-9)
            assert float(result.mixing) == pytest.approx(0.5, rel=1e-9)


def test_a_search_that_is_stopped_says_so_and_stays_within_the_budget() -> None:
    problem = large_problem(0.05, n_states=200)
    result = problem.solve(max_iter=1)
    dual, value, spent = certificate(problem, result)
    assert not result.converged
    assert result.error > 1e-9
    assert spent == pytest.approx(0.05, rel=1e-12)
    assert float(result.gap) == pytest.approx(dual - value, abs=1e-12)
    assert float(result.gap) > 0
    assert problem.solve().converged


def test_the_caller_may_skip_the_checks_and_gets_no_gradient() -> None:
    problem = random_problem(3)
    values = problem.values.clone().requires_grad_()
    result = ot.trust_region_dual(values, problem.cost, problem.weights, problem.radius, validate=False)
    assert not result.value.requires_grad
    assert float(result.multiplier) == float(problem.solve().multiplier)


BAD = {
    "`radius` must be non-negative and finite, got -0.1": {"radius": -0.1},
    "`radius` must be a real number, got str": {"radius": "0.1"},
    "`tol` must be positive": {"tol": 0.0},
    "`max_iter` must be at least 1": {"max_iter": 0},
    "`values` holds NaN or infinite": {"values": th.full((2, 1, 3), float("nan"), dtype=th.float64)},
    "`cost` holds NaN or infinite": {"cost": th.full((3, 3), float("inf"), dtype=th.float64)},
    "`cost` must be non-negative, got a minimum of -1": {"cost": -th.ones(3, 3, dtype=th.float64)},
    "`weights` holds NaN or infinite": {"weights": th.full((2, 3), float("nan"), dtype=th.float64)},
    "`weights` must be non-negative, got a minimum of -1": {"weights": -th.ones(2, 3, dtype=th.float64)},
    "`weights` must sum to one over all sources, got 2; divide": {"weights": th.full((2, 3), 1 / 3, dtype=th.float64)},
    r"`values` and `cost` must broadcast to \(2, 3, 3\).* got `cost` of shape \(4, 3\)": {
        "cost": th.ones(4, 3, dtype=th.float64)
    },
    r"must broadcast to \(2, 3, 3\).* got `cost` of shape \(3, 1\)": {"cost": th.ones(3, 1, dtype=th.float64)},
    r"must broadcast to \(2, 3, 4\).* got `cost` of shape \(3, 3\)": {"values": th.ones(2, 1, 4, dtype=th.float64)},
    r"got `values` of shape \(5, 1, 3\)": {"values": th.ones(5, 1, 3, dtype=th.float64)},
    "must share one dtype": {"values": th.zeros(2, 1, 3)},
    "`radius` must be at least 1, what the closest candidates cost on average, got 0.1; let every source be one of its own": {
        "cost": th.ones(3, 3, dtype=th.float64)
    },
}


@pytest.mark.parametrize("message", BAD)
def test_a_wrong_argument_is_named(message: str) -> None:
    arguments: dict[str, object] = {
        "values": th.arange(6, dtype=th.float64).view(2, 1, 3),
        "cost": 1 - th.eye(3, dtype=th.float64),
        "weights": th.full((2, 3), 1 / 6, dtype=th.float64),
        "radius": 0.1,
    }
    ot.trust_region_dual(**arguments)  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError), match=message):
        ot.trust_region_dual(**(arguments | BAD[message]))  # type: ignore[arg-type]
