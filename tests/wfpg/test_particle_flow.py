"""The particle flow: linear optima, Newton's steps, heat on bandits with known laws, and its policy in the environment."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch as th
from control_toys import Bandit, SmoothProblem

from otbaselines.envs import CoupledOscillators, PendulumRegulator, ScalarRegulator, make_tensor
from otbaselines.wfpg import ParticleFlow

LINEAR = ScalarRegulator(bend=0.0)
LINE = [np.linspace(-3.0, 3.0, 61)]
CIRCLE = [np.linspace(-math.pi, math.pi, 42, endpoint=False), np.linspace(-8.0, 8.0, 27)]
PLANE = [np.linspace(-1.5, 1.5, 41), np.linspace(-4.0, 4.0, 27)]
#: The problem's optimum (Riccati).
OPTIMUM, GAIN = 0.11207, -1.3624


def gain_of(flow: ParticleFlow) -> float:
    """Regression of the clouds' means on the state, as often as states are visited."""
    states, weights = flow.states[:, 0], flow.evaluation.weights
    means = flow.actions.mean(1)[:, 0]
    return float((weights * states * means).sum() / (weights * states**2).sum())


def normal_quantiles(n: int, mean: float, std: float) -> th.Tensor:
    """An even sample of a normal law as particles of one state, with its mean and standard deviation exactly."""
    sample = scipy.stats.norm.ppf((np.arange(n) + 0.5) / n)
    return th.from_numpy(mean + std * (sample - sample.mean()) / sample.std()).view(1, n, 1)


def bandit(q: Any, particles: th.Tensor | int, **settings: Any) -> ParticleFlow:
    return ParticleFlow(Bandit(q), [[0.0]], particles=particles, **settings)


# ---------------------------------------------------------------- the linear regulator
@pytest.mark.parametrize("seed", range(3))
def test_ten_steps_take_the_linear_regulator_to_its_optimum(seed: int) -> None:
    flow = ParticleFlow(LINEAR, LINE, particles=5, seed=seed)
    costs = [flow.cost]
    for _ in range(10):
        flow.step(0.5)
        costs.append(flow.cost)
    assert costs[0] > 1.0
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(OPTIMUM, rel=0.01)
    assert gain_of(flow) == pytest.approx(GAIN, rel=0.01)


def test_the_flow_ends_in_the_optimum_and_without_heat_no_spread_is_left() -> None:
    flow = ParticleFlow(LINEAR, LINE, particles=5, seed=0)
    for _ in range(60):
        flow.step(0.5)
    assert flow.cost == pytest.approx(LINEAR.lqr().average_cost, rel=1e-4)
    assert gain_of(flow) == pytest.approx(LINEAR.lqr().gain.item(), rel=1e-4)
    assert flow.spread < 1e-6


@pytest.mark.parametrize("transport", [False, True])
def test_newton_steps_end_in_the_optimum(transport: bool) -> None:
    flow = ParticleFlow(LINEAR, LINE, particles=5, seed=0)
    for _ in range(20 if transport else 10):
        before, went = flow.cost, flow.newton_step(transport=transport)
        assert flow.cost <= before + 1e-12
        assert went.gain == pytest.approx(before - flow.cost, abs=1e-12)
        assert transport or went.n_iterations == 0
    assert flow.cost == pytest.approx(LINEAR.lqr().average_cost, rel=1e-3 if transport else 1e-5)


def test_a_newton_step_by_the_curvature_is_a_step_of_policy_iteration() -> None:
    # For a linear policy K the value is quadratic, P = q + r K^2 + (A + B K)^2 P, and so is Q: one step reaches its maximum.
    gain = -0.5
    value = (1.0 + 0.1 * gain**2) / (1.0 - (0.9 + 0.5 * gain) ** 2)
    improved = -0.5 * 0.9 * value / (0.1 + 0.25 * value)
    flow = ParticleFlow(LINEAR, [np.linspace(-6.0, 6.0, 121)], particles=gain * th.linspace(-6.0, 6.0, 121).view(121, 1, 1))
    went = flow.newton_step(damping=0.0)
    assert went.length == 1.0
    inner = flow.states[:, 0].abs() < 1.5
    th.testing.assert_close(flow.actions[inner, 0], improved * flow.states[inner], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("transport", [False, True])
def test_newton_steps_converge_quadratically(transport: bool) -> None:
    optimum = ParticleFlow(LINEAR, LINE, particles=(GAIN * th.linspace(-3.0, 3.0, 61, dtype=th.float64)).view(61, 1, 1))
    for _ in range(6):
        optimum.newton_step(damping=0.0)
    best, errors = optimum.actions, []
    weights = optimum.evaluation
    flow = ParticleFlow(LINEAR, LINE, particles=0.9 * best)
    for _ in range(3):
        errors.append(math.sqrt(weights.inner(flow.actions - best, flow.actions - best)))
        flow.newton_step(transport=transport, damping=0.0, tol=1e-10)
    orders = [math.log(errors[i + 1]) / math.log(errors[i]) for i in range(2)]
    assert min(orders) > 1.6
    assert errors[2] < 1e-3 * errors[0]


def test_at_the_optimum_the_transport_term_of_the_hessian_vanishes() -> None:
    flow = ParticleFlow(LINEAR, LINE, particles=1, seed=0)
    for _ in range(12):
        flow.newton_step()
    process, now = flow.process, flow.evaluation
    curvature = process.curvature(now)
    direction = th.randn(61, 1, 1, dtype=th.float64, generator=th.Generator().manual_seed(0))
    product = process.hessian_vector(direction, now, curvature)
    local = (curvature @ direction.unsqueeze(-1)).squeeze(-1)
    assert math.sqrt(now.inner(product - local, product - local)) < 1e-5 * math.sqrt(now.inner(local, local))


def test_a_discounted_flow_ends_in_the_discounted_optimum() -> None:
    flow = ParticleFlow(LINEAR, [np.linspace(-4.0, 4.0, 81)], particles=3, discount=0.9, seed=0)
    for _ in range(12):
        flow.newton_step()
    solution = LINEAR.lqr(0.9)
    inner = flow.states[:, 0].abs() < 1.5
    expected = flow.states[inner] * solution.gain.item()
    th.testing.assert_close(flow.actions.mean(1)[inner], expected, atol=2e-3, rtol=0.0)
    # All states are first ones, also those at the edge, where the grid is not the line.
    start = (flow.states[:, 0].abs() < 1.5).double()
    flow = ParticleFlow(LINEAR, [np.linspace(-4.0, 4.0, 81)], particles=3, discount=0.9, start=start / start.sum(), seed=0)
    for _ in range(12):
        flow.newton_step()
    expected_cost = float(solution.cost_from(flow.states[inner].numpy()).mean())
    assert flow.cost == pytest.approx(expected_cost, rel=1e-3)


# ---------------------------------------------------------------- the other systems
def test_the_oscillator_is_brought_to_its_linear_optimum() -> None:
    system = CoupledOscillators(n=1)
    flow = ParticleFlow(system, PLANE, particles=2, max_action=system.max_action, seed=0)
    for _ in range(6):
        flow.newton_step()
    solution = system.lqr()
    assert flow.cost == pytest.approx(solution.average_cost, rel=1e-3)
    states = np.array([[0.2, -0.3], [-0.1, 0.4], [0.0, 0.0]])
    np.testing.assert_allclose(flow.mean_actions(states), states @ solution.gain.T, atol=0.01)


def test_the_pendulums_policy_costs_in_the_environment_what_the_flow_says() -> None:
    system = PendulumRegulator()
    flow = ParticleFlow(system, CIRCLE, particles=2, max_action=system.max_action, seed=0)
    for _ in range(6):
        flow.newton_step()
    # Better than what the linearisation promises near upright: it knows the whole circle.
    assert flow.cost < system.lqr().average_cost
    env, costs = make_tensor("otbaselines/PendulumRegulator-v0", 2000, seed=0, double_precision=True), []
    env.reset_tensor()
    for t in range(150):
        states = env.get_state()["states"].numpy()
        shares = th.from_numpy(system.shares(flow.mean_actions(states)))
        step = env.step_tensor(shares.unsqueeze(1))
        if t >= 50:
            costs.append(-float(step.rewards.mean()))
    assert np.mean(costs) == pytest.approx(flow.cost, rel=0.03)


def test_particles_stop_at_the_bound_and_newtons_step_solves_for_the_others() -> None:
    system = ScalarRegulator(max_action=0.5)
    flow = ParticleFlow(system, LINE, particles=3, max_action=0.5, seed=0)
    for transport in (False, True):
        for _ in range(8):
            flow.newton_step(transport=transport)
            assert float(flow.actions.abs().max()) <= 0.5
    gradient, actions = flow.evaluation.gradient, flow.actions
    seen = flow.evaluation.weights > 1e-3
    free = (actions.abs() < 0.5)[seen]
    assert bool(free.any())
    assert not bool(free.all())
    assert float((gradient[seen] * free).abs().max()) < 1e-2
    assert bool(((gradient * actions)[seen][~free] > 0.0).all())


# ---------------------------------------------------------------- bandits
def test_under_a_parabola_mean_and_spread_of_a_gaussian_shrink_alike() -> None:
    # Q = -a^2 / 2 moves every particle by -a: the mean by -mean and the deviation by -deviation (Pfau et al. 2025).
    eta = 0.1
    flow = bandit(lambda a: -0.5 * a**2, normal_quantiles(101, 1.0, 1.0))
    flow.step(eta)
    assert float(flow.actions.mean()) == pytest.approx(1.0 - eta, rel=1e-12)
    assert float(flow.actions.std(correction=0)) == pytest.approx(1.0 - eta, rel=1e-12)
    assert flow.spread == pytest.approx(1.0 - eta, rel=1e-12)


@pytest.mark.parametrize("method", ["flow", "curvature", "transport"])
def test_both_modes_of_a_double_well_keep_their_particles(method: str) -> None:
    # Q = -a^4 / 100 + a^2 has its maxima where a^2 = 50.
    flow = bandit(lambda a: -(a**4) / 100.0 + a**2, normal_quantiles(40, 0.0, 1.0))
    signs = flow.actions.sign()
    for _ in range(100):
        if method == "flow":
            flow.step(0.1)
        else:
            flow.newton_step(transport=method == "transport")
    th.testing.assert_close(flow.actions, signs * math.sqrt(50.0), atol=1e-6, rtol=0.0)
    assert flow.cost == pytest.approx(-25.0, rel=1e-9)


def test_heat_spreads_the_particles_as_gibbs_measure() -> None:
    # Under Q = -(a - 1)^2 / 2 the density exp(Q / ent) is normal with mean 1 and variance ent. Steps of size eta have the
    # stationary variance 2 eta ent / (1 - (1 - eta)^2) = ent / (1 - eta / 2).
    ent, eta, n = 0.3, 0.1, 4000
    flow = bandit(lambda a: -0.5 * (a - 1.0) ** 2, th.full((1, n, 1), 3.0, dtype=th.float64), seed=0)
    for _ in range(120):
        flow.step(eta, ent=ent)
    law = scipy.stats.norm(1.0, math.sqrt(ent / (1.0 - eta / 2.0)))
    assert scipy.stats.kstest(flow.actions.flatten().numpy(), law.cdf).pvalue > 0.01
    for _ in range(200):
        flow.step(eta)
    assert flow.spread < 1e-8


def test_heat_in_a_double_well_is_gibbs_measure_too() -> None:
    ent, n = 1.0, 4000
    flow = bandit(lambda a: -(a**4) / 4.0 + a**2, n, seed=0)
    for _ in range(600):
        flow.step(0.02, ent=ent)
    grid = np.linspace(-4.0, 4.0, 4001)
    density = np.exp((-(grid**4) / 4.0 + grid**2) / ent)
    cdf = np.cumsum(density) / density.sum()
    assert scipy.stats.kstest(flow.actions.flatten().numpy(), lambda a: np.interp(a, grid, cdf)).pvalue > 0.01


def test_at_a_bound_heat_stays_inside() -> None:
    flow = bandit(lambda a: 0.0 * a, 200, max_action=0.5, seed=0)
    for _ in range(20):
        flow.step(1.0, ent=1.0)
    assert float(flow.actions.abs().max()) == 0.5


# ---------------------------------------------------------------- particles
def test_the_same_seed_gives_the_same_particles_and_heat() -> None:
    flows = [ParticleFlow(SmoothProblem(0), [np.linspace(-3.0, 3.0, 13)], seed=seed) for seed in (3, 3, 4)]
    for flow in flows:
        flow.step(0.1, ent=0.1)
    first, again, other = (flow.actions for flow in flows)
    assert th.equal(first, again)
    assert not th.equal(first, other)


def test_given_particles_are_copied_and_steps_leave_handed_out_ones_alone() -> None:
    given = th.ones(61, 2, 1)
    flow = ParticleFlow(LINEAR, LINE, particles=given)
    kept = flow.actions
    copy = kept.clone()
    flow.step(0.5)
    flow.newton_step()
    assert th.equal(kept, copy)
    assert bool((given == 1.0).all())


def test_the_order_of_the_particles_does_not_matter() -> None:
    problem, axes = SmoothProblem(1, action_dim=2), [np.linspace(-3.0, 3.0, 13)]
    first = ParticleFlow(problem, axes, particles=4, seed=0)
    order = th.tensor([2, 0, 3, 1])
    second = ParticleFlow(problem, axes, particles=first.actions[:, order])
    for flow in (first, second):
        flow.step(0.1)
        flow.newton_step()
        flow.newton_step(transport=True)
    th.testing.assert_close(first.actions[:, order], second.actions, atol=1e-9, rtol=1e-9)


def test_mean_actions_interpolate_between_grid_points_and_go_round_the_circle() -> None:
    particles = th.arange(8, dtype=th.float64).view(8, 1, 1).repeat(1, 2, 1)
    flow = ParticleFlow(SmoothProblem(0, period=4.0), [np.linspace(-2.0, 2.0, 8, endpoint=False)], particles=particles)
    # Points half a unit apart hold 0 ... 7; after the last one comes the first.
    found = flow.mean_actions([[-2.0], [-1.75], [1.5], [1.75], [2.0], [6.25]])
    np.testing.assert_allclose(found, [[0.0], [0.5], [7.0], [3.5], [0.0], [0.5]], atol=1e-12)
    flow = ParticleFlow(LINEAR, LINE, particles=flow_line())
    np.testing.assert_allclose(flow.mean_actions([[-9.0], [0.05], [9.0]]), [[-3.0], [0.05], [3.0]], atol=1e-12)
    with pytest.raises(ValueError, match="every axis needs two points"):
        bandit(lambda a: -(a**2), 3).mean_actions([[0.0]])


def flow_line() -> th.Tensor:
    return th.linspace(-3.0, 3.0, 61, dtype=th.float64).view(61, 1, 1)


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"particles": 0}, ValueError, "`particles` must be an integer of at least 1"),
        ({"particles": 2.0}, TypeError, "`particles` must be an integer"),
        ({"particles": "5"}, TypeError, "`particles` must be an integer"),
        ({"particles": True}, TypeError, "`particles` must be an integer"),
        ({"particles": th.zeros(61, 1)}, ValueError, r"`particles` must have the shape \(61, K, 1\), got \(61, 1\)"),
        ({"particles": th.zeros(60, 2, 1)}, ValueError, r"`particles` must have the shape \(61, K, 1\)"),
        ({"particles": th.zeros(61, 0, 1)}, ValueError, r"`particles` must have the shape \(61, K, 1\)"),
        ({"particles": th.zeros(61, 2, 1, dtype=th.int64)}, ValueError, "`particles` must be finite floating-point numbers"),
        ({"particles": th.full((61, 2, 1), math.nan)}, ValueError, "`particles` must be finite floating-point numbers"),
        ({"max_action": 0.0}, ValueError, "`max_action` must be a number above 0"),
        ({"max_action": "1"}, TypeError, "`max_action` must be a number"),
        ({"seed": -1}, ValueError, "`seed` must be an integer"),
        ({"seed": 0.5}, TypeError, "`seed` must be an integer"),
        ({"discount": 2.0}, ValueError, "`discount` must be a number"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ParticleFlow(LINEAR, LINE, **settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"step_size": 0.0}, ValueError, "`step_size` must be a number above 0"),
        ({"step_size": -0.1}, ValueError, "`step_size` must be a number above 0"),
        ({"step_size": math.nan}, ValueError, "`step_size` must be a number above 0"),
        ({"step_size": "0.1"}, TypeError, "`step_size` must be a number"),
        ({"step_size": 0.1, "ent": -0.1}, ValueError, "`ent` must be a number of at least 0"),
        ({"step_size": 0.1, "ent": math.inf}, ValueError, "`ent` must be a number of at least 0"),
        ({"step_size": 0.1, "ent": None}, TypeError, "`ent` must be a number"),
    ],
)
def test_a_step_that_does_not_fit_is_named_and_not_taken(settings: Any, error: type[Exception], message: str) -> None:
    flow = ParticleFlow(LINEAR, LINE, seed=0)
    before = flow.actions
    with pytest.raises(error, match=message):
        flow.step(**settings)
    assert flow.actions is before


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"transport": 1}, TypeError, "`transport` must be True or False"),
        ({"damping": -1.0}, ValueError, "`damping` must be a number of at least 0"),
        ({"tol": 2.0}, ValueError, "`tol` must be a number in"),
        ({"max_iterations": 0}, ValueError, "`max_iterations` must be an integer"),
    ],
)
def test_a_newton_step_that_does_not_fit_is_named(settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ParticleFlow(LINEAR, LINE, seed=0).newton_step(**settings)


def test_what_is_no_problem_no_grid_and_no_state_is_named():
    axes = [np.linspace(-2.0, 2.0, 21)]
    with pytest.raises(TypeError, match=r"`problem` must be a control problem, .* without action_dim, noise_std"):
        ParticleFlow("pendulum", axes)
    with pytest.raises(TypeError, match="`axes` must be a list with the grid points of each state variable, got '5'"):
        ParticleFlow(ScalarRegulator(), 5)
    flow = ParticleFlow(ScalarRegulator(), axes, seed=0)
    for states in (1.0, [], [[0.0, 1.0]]):
        with pytest.raises(ValueError, match=r"`states` must have the shape \(\.\.\., 1\)"):
            flow.mean_actions(states)
    with pytest.raises(ValueError, match="`step_size` must be a number above 0, got"):
        flow.step(1e200)
    # Every step multiplies by about as much: the costs overflow after some of them, and nothing moves any more.
    with pytest.raises(ValueError, match="takes particles to where they cannot be evaluated, and they stay"):  # noqa: PT012
        for _ in range(20):
            before = flow.actions
            flow.step(1e38)
    assert flow.actions is before
