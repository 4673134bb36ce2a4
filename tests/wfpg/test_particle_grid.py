"""Gridded control problems: kernel, laws and values by NumPy; gradient and Hessian by finite differences of the objective."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from control_toys import SmoothProblem, random_field, random_process
from scipy.stats import norm

from otbaselines.envs import CoupledOscillators, ScalarRegulator
from otbaselines.wfpg.particles_grid import Evaluation, GridProcess

every_seed = pytest.mark.parametrize("seed", range(8))
every_discount = pytest.mark.parametrize("discount", [1.0, 0.9])


def brute_force_kernel(process: GridProcess, actions: th.Tensor) -> np.ndarray:
    """Products of normal densities at every pair of states, normalised, ``(S, K, S)``."""
    states = process.states.numpy()
    means = process.problem.drift(process.states.unsqueeze(1), actions).numpy()
    density = np.ones((*means.shape[:2], len(states)))
    for i, (deviation, period) in enumerate(zip(process.problem.noise_std, process.problem.periods, strict=True)):
        offsets = states[None, None, :, i] - means[:, :, None, i]
        turns = [0.0] if period is None else np.arange(-9, 10) * period
        density *= sum(norm.pdf(offsets + turn, scale=deviation) for turn in turns)
    return density / density.sum(-1, keepdims=True)


@every_seed
def test_the_kernel_is_the_normal_density_on_the_grid_normalised_in_each_row(seed: int) -> None:
    process = random_process(seed)
    actions = random_field(process, seed)
    expected, kernel = brute_force_kernel(process, actions), process.kernel(actions)
    np.testing.assert_allclose(kernel.chain(), expected.mean(1), atol=1e-14)
    rng = np.random.default_rng(seed)
    values, masses = rng.standard_normal(process.n_states), rng.random(actions.shape[:2])
    np.testing.assert_allclose(kernel.expect(th.from_numpy(values)), expected @ values, atol=1e-13)
    np.testing.assert_allclose(kernel.push(th.from_numpy(masses)), np.einsum("sk,skt->t", masses, expected), atol=1e-13)


@every_seed
def test_the_stationary_law_and_the_values_are_those_of_a_long_walk(seed: int) -> None:
    process = random_process(seed)
    actions = random_field(process, seed)
    chain = brute_force_kernel(process, actions).mean(1)
    rewards = -process.problem.cost(process.states.unsqueeze(1), actions).mean(1).numpy()
    law, future, values = np.full(len(chain), 1.0 / len(chain)), rewards, np.zeros(len(chain))
    law = law @ np.linalg.matrix_power(chain, 4096)
    average = law @ rewards
    for _ in range(3000):
        values, future = values + future - average, chain @ future
    evaluation = process.evaluate(actions)
    np.testing.assert_allclose(evaluation.weights, law, atol=1e-12)
    assert evaluation.objective == pytest.approx(average, rel=1e-12)
    np.testing.assert_allclose(evaluation.values, values - law @ values, atol=1e-9)


@every_seed
def test_the_discounted_values_and_visits_are_series(seed: int) -> None:
    process = random_process(seed, discount=0.8)
    actions = random_field(process, seed)
    chain = brute_force_kernel(process, actions).mean(1)
    rewards = -process.problem.cost(process.states.unsqueeze(1), actions).mean(1).numpy()
    future, values, law, visits = rewards, np.zeros(len(chain)), process.start.numpy(), np.zeros(len(chain))
    for t in range(300):
        values, visits = values + 0.8**t * future, visits + 0.2 * 0.8**t * law
        future, law = chain @ future, law @ chain
    evaluation = process.evaluate(actions)
    np.testing.assert_allclose(evaluation.values, values, atol=1e-10)
    np.testing.assert_allclose(evaluation.weights, visits, atol=1e-12)
    assert evaluation.objective == pytest.approx(0.2 * process.start.numpy() @ values, rel=1e-12)


@every_discount
@every_seed
def test_the_gradient_is_the_slope_of_q_weighted_by_the_visits(seed: int, discount: float) -> None:
    process = random_process(seed, discount=discount)
    actions, direction, h = random_field(process, seed), random_field(process, seed + 100), 1e-4
    along = [process.evaluate(actions + sign * h * direction).objective for sign in (1.0, -1.0)]
    evaluation = process.evaluate(actions)
    assert evaluation.inner(evaluation.gradient, direction) == pytest.approx((along[0] - along[1]) / (2.0 * h), rel=1e-4)


def second_difference(process: GridProcess, actions: th.Tensor, direction: th.Tensor, h: float = 4e-3) -> float:
    """The second derivative along a direction, from five points: exact up to the order h^4."""
    values = [process.evaluate(actions + k * h * direction).objective for k in (-2, -1, 0, 1, 2)]
    return float(np.dot([-1.0, 16.0, -30.0, 16.0, -1.0], values)) / (12.0 * h * h)


@every_discount
@every_seed
def test_the_hessian_along_a_field_is_curvature_plus_transport(seed: int, discount: float) -> None:
    process = random_process(seed, discount=discount)
    actions, direction = random_field(process, seed), random_field(process, seed + 100)
    evaluation = process.evaluate(actions)
    curvature = process.curvature(evaluation)
    product = process.hessian_vector(direction, evaluation, curvature)
    expected = second_difference(process, actions, direction)
    assert evaluation.inner(direction, product) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    # Neither term is zero, so that the sum tests both.
    local = evaluation.inner(direction, (curvature @ direction.unsqueeze(-1)).squeeze(-1))
    assert abs(local - expected) > 1e-3 * abs(expected)


@every_discount
@every_seed
def test_the_hessian_is_symmetric_in_the_metric_and_its_products_are_mixed_derivatives(seed: int, discount: float) -> None:
    process = random_process(seed, discount=discount)
    actions, v, w = (random_field(process, seed + offset) for offset in (0, 100, 200))
    evaluation = process.evaluate(actions)
    curvature = process.curvature(evaluation)
    mixed = evaluation.inner(w, process.hessian_vector(v, evaluation, curvature))
    assert mixed == pytest.approx(evaluation.inner(v, process.hessian_vector(w, evaluation, curvature)), rel=1e-9, abs=1e-12)
    # 4 J''(v, w) = J''(v + w, v + w) - J''(v - w, v - w).
    expected = (second_difference(process, actions, v + w) - second_difference(process, actions, v - w)) / 4.0
    assert mixed == pytest.approx(expected, rel=1e-4, abs=1e-5)


@every_seed
def test_the_curvature_is_the_derivative_of_the_slope_of_q(seed: int) -> None:
    process = random_process(seed)
    actions, h = random_field(process, seed), 1e-5
    evaluation = process.evaluate(actions)

    def slope(at: th.Tensor) -> th.Tensor:
        leaf = at.clone().requires_grad_()
        return th.autograd.grad(process.q_values(leaf, evaluation).sum(), leaf)[0]

    for j in range(actions.shape[-1]):
        step = th.zeros_like(actions)
        step[..., j] = h
        expected = (slope(actions + step) - slope(actions - step)) / (2.0 * h)
        th.testing.assert_close(process.curvature(evaluation)[..., j], expected, atol=1e-7, rtol=1e-6)
    th.testing.assert_close(slope(actions), evaluation.gradient)


def test_q_of_the_particles_averages_to_the_values() -> None:
    for discount in (1.0, 0.9):
        process = random_process(3, discount=discount)
        actions = random_field(process, 0)
        evaluation = process.evaluate(actions)
        th.testing.assert_close(process.q_values(actions, evaluation).mean(1), evaluation.values, atol=1e-12, rtol=0.0)


@pytest.mark.parametrize(
    ("system", "axes"),
    [
        (ScalarRegulator(bend=0.0), [np.linspace(-3.0, 3.0, 61)]),
        (CoupledOscillators(n=1), [np.linspace(-1.5, 1.5, 41), np.linspace(-4.0, 4.0, 27)]),
    ],
    ids=["scalar", "oscillator"],
)
def test_the_grid_evaluates_the_linear_optimum_as_the_riccati_equation_does(system: Any, axes: Any) -> None:
    process, solution = GridProcess(system, axes), system.lqr()
    actions = (process.states @ th.from_numpy(solution.gain).T).unsqueeze(1)
    assert -process.evaluate(actions).objective == pytest.approx(solution.average_cost, rel=1e-4)


def test_many_axes_are_possible() -> None:
    process = GridProcess(SmoothProblem(0, state_dim=3), [np.linspace(-1.5, 1.5, 5)] * 3)
    actions, direction = random_field(process, 0, 2), random_field(process, 1, 2)
    np.testing.assert_allclose(process.kernel(actions).chain(), brute_force_kernel(process, actions).mean(1), atol=1e-14)
    evaluation = process.evaluate(actions)
    along = [process.evaluate(actions + h * direction).objective for h in (1e-4, -1e-4)]
    assert evaluation.inner(evaluation.gradient, direction) == pytest.approx((along[0] - along[1]) / 2e-4, rel=1e-4)


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([], "`axes` must have one entry for each of 1 state variables, got 0"),
        ([[0.0, 1.0], [0.0, 1.0]], "`axes` must have one entry for each of 1 state variables, got 2"),
        ([[1.0, 0.0]], r"`axes\[0\]` must be finite and increasing"),
        ([[0.0, 0.0]], r"`axes\[0\]` must be finite and increasing"),
        ([[0.0, math.nan]], r"`axes\[0\]` must be finite and increasing"),
        ([[]], r"`axes\[0\]` must be finite and increasing"),
        ([0.0], r"`axes\[0\]` must be finite and increasing"),
        ([[[0.0, 1.0]]], r"`axes\[0\]` must be finite and increasing"),
        ([[0.0, 2.0]], r"`axes\[0\]` must have steps of at most 2.5 standard deviations of the noise, 0.75, got 2"),
        ([np.linspace(0.0, 1.0, 10_001)], "`axes` make 10001 states, of which at most 10000"),
    ],
)
def test_axes_that_do_not_fit_are_named(axes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GridProcess(ScalarRegulator(), axes)


def test_axes_of_another_type_are_named() -> None:
    with pytest.raises(TypeError, match=r"`axes\[0\]` must be a sequence of numbers"):
        GridProcess(ScalarRegulator(), ["abc"])


def test_an_angle_must_not_meet_itself_on_the_grid() -> None:
    problem = SmoothProblem(0, period=4.0)
    with pytest.raises(ValueError, match=r"`axes\[0\]` must be shorter than its period 4, got 4"):
        GridProcess(problem, [np.linspace(-2.0, 2.0, 9)])


def test_an_angle_must_not_be_all_noise() -> None:
    with pytest.raises(ValueError, match=r"`problem.noise_std\[0\]` must be at most a quarter of the period 1.5, got 0.5"):
        GridProcess(SmoothProblem(0, period=1.5), [np.linspace(-0.7, 0.7, 9)])


def test_a_system_without_noise_has_no_smooth_kernel() -> None:
    with pytest.raises(ValueError, match=r"`problem.noise_std\[0\]` must be above 0"):
        GridProcess(ScalarRegulator(noise=0.0), [[0.0, 0.1]])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"discount": 0.0}, ValueError, "`discount` must be"),
        ({"discount": 1.5}, ValueError, "`discount` must be"),
        ({"discount": "1"}, TypeError, "`discount` must be"),
        ({"start": th.tensor([0.5, 0.5])}, ValueError, "`start` has no effect on the long-run average"),
        ({"discount": 0.9, "start": [0.5, 0.5]}, TypeError, "`start` must be a tensor"),
        ({"discount": 0.9, "start": th.tensor([1.0])}, ValueError, "`start` must be 2 non-negative weights"),
        ({"discount": 0.9, "start": th.tensor([0.5, 0.6])}, ValueError, "`start` must be 2 non-negative weights"),
        ({"discount": 0.9, "start": th.tensor([1.5, -0.5])}, ValueError, "`start` must be 2 non-negative weights"),
        ({"discount": 0.9, "start": th.tensor([math.nan, 1.0])}, ValueError, "`start` must be 2 non-negative weights"),
    ],
)
def test_a_discount_or_start_that_does_not_fit_is_named(settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GridProcess(ScalarRegulator(), [[0.0, 0.1]], **settings)


def test_a_policy_without_a_finite_objective_is_named() -> None:
    process = GridProcess(ScalarRegulator(), [[0.0, 0.1]])
    with pytest.raises(ValueError, match="the objective of `actions` is"):
        process.evaluate(th.full((2, 1, 1), 1e200, dtype=th.float64))


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
def test_a_law_that_rounding_would_decide_is_refused_unless_there_is_a_discount(noise: float) -> None:
    # Left alone the regulator rests on either side, and with little noise never changes it: how often is either visited?
    problem, axes = ScalarRegulator(noise=noise, bend=2.0), [np.linspace(-4.0, 4.0, int(8.0 / noise) + 1)]
    actions = th.zeros(len(axes[0]), 1, 1, dtype=th.float64)
    with pytest.raises(
        ValueError, match=r"the stationary law of `actions` cannot be told .* use more noise, other actions, or a"
    ):
        GridProcess(problem, axes).evaluate(actions)
    weights = GridProcess(problem, axes, discount=0.99).evaluate(actions).weights
    th.testing.assert_close(weights, weights.flip(0), atol=1e-10, rtol=0.0)


def test_a_law_that_is_told_is_symmetric_where_the_problem_is() -> None:
    weights = (
        GridProcess(ScalarRegulator(), [np.linspace(-4.0, 4.0, 53)]).evaluate(th.zeros(53, 1, 1, dtype=th.float64)).weights
    )
    th.testing.assert_close(weights, weights.flip(0), atol=1e-8, rtol=0.0)


def test_an_evaluation_knows_its_metric() -> None:
    process = random_process(0)
    evaluation: Evaluation = process.evaluate(random_field(process, 0))
    one = th.ones_like(evaluation.actions)
    assert evaluation.inner(one, one) == pytest.approx(1.0)
