"""Finite decision processes against enumeration, value iteration, simulation and linear programming."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch as th

from otbaselines.common.tabular import (
    TabularModel,
    occupancy,
    occupancy_finite,
    optimal_values,
    soft_values,
    soft_values_finite,
    stack_models,
)
from otbaselines.common.trajectories import Trajectory


def random_model(seed, n_states=6, n_actions=3, n_features=2, ends=()):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(n_states, 0.5), size=(n_states, n_actions))
    terminal = np.zeros(n_states, bool)
    terminal[list(ends)] = True
    transition[terminal] = 0.0
    initial = np.where(terminal, 0.0, 1.0) / (~terminal).sum()
    arrays = (transition, rng.normal(size=(n_states, n_actions)), rng.normal(size=(n_states, n_actions, n_features)), initial)
    return TabularModel(*map(th.as_tensor, arrays), th.as_tensor(terminal))


@pytest.mark.parametrize("ends", [(), (0, 3)])
def test_soft_values_are_what_value_iteration_converges_to(ends):
    model = random_model(0, ends=ends)
    found = soft_values(model, model.rewards, discount=0.9)
    assert found.converged
    assert found.n_iter < 15
    values = np.zeros(6)
    transition, rewards = model.transition.numpy(), model.rewards.numpy()
    for _ in range(500):
        values = np.where(model.terminal, 0.0, np.log(np.exp(rewards + 0.9 * transition @ values).sum(-1)))
    np.testing.assert_allclose(found.values, values, atol=1e-10)


def test_newton_converges_from_anywhere_and_for_large_rewards():
    model = random_model(1)
    for scale, start in ((1.0, 1e6), (1.0, -1e6), (1e4, 0.0)):
        found = soft_values(model, scale * model.rewards, discount=0.99, init=th.full((6,), start, dtype=th.float64))
        assert found.converged


def test_with_growing_rewards_the_soft_values_become_the_hard_ones():
    model = random_model(2, ends=(1,))
    hard, policy = optimal_values(model, model.rewards, discount=0.9)
    soft = soft_values(model, 1e6 * model.rewards, discount=0.9)
    np.testing.assert_allclose(soft.values / 1e6, hard, atol=1e-4)
    assert th.equal(soft.log_policy.argmax(-1)[~model.terminal], policy.argmax(-1)[~model.terminal])


@pytest.mark.parametrize("ends", [(), (0,)])
def test_optimal_values_solve_the_linear_programme(ends):
    model = random_model(3, ends=ends)
    values, _ = optimal_values(model, model.rewards, discount=0.9)
    # min sum V subject to V(s) >= r(s, a) + 0.9 E V(s') for every action; V = 0 where it is over.
    rows, bounds = [], []
    for state, action in itertools.product(range(6), range(3)):
        if not model.terminal[state]:
            rows.append(0.9 * model.transition[state, action].numpy() - np.eye(6)[state])
            bounds.append(-float(model.rewards[state, action]))
    limits = [(0, 0) if over else (None, None) for over in model.terminal]
    solved = scipy.optimize.linprog(np.ones(6), A_ub=np.array(rows), b_ub=bounds, bounds=limits)
    np.testing.assert_allclose(values, solved.x, atol=1e-8)


def test_ties_are_divided_equally():
    model = random_model(4)
    even = TabularModel(
        model.transition[:, :1].expand(-1, 3, -1), th.ones(6, 3).double(), model.features, model.initial, model.terminal
    )
    _, policy = optimal_values(even, even.rewards, discount=0.9)
    np.testing.assert_allclose(policy, 1 / 3)


@pytest.mark.parametrize("ends", [(), (0,)])
def test_occupancies_are_discounted_visits(ends):
    model = random_model(5, ends=ends)
    policy = soft_values(model, model.rewards, discount=0.9).log_policy.exp()
    found = occupancy(model, policy, discount=0.9)
    states, total = model.initial.numpy(), np.zeros((6, 3))
    for t in range(400):
        pairs = states[:, None] * policy.numpy() * ~model.terminal.numpy()[:, None]
        total += 0.1 * 0.9**t * pairs
        states = np.einsum("sa,sat->t", pairs, model.transition.numpy())
    np.testing.assert_allclose(found, total, atol=1e-12)
    assert float(found.sum()) == pytest.approx(1.0) if not ends else float(found.sum()) < 0.9


def test_the_gradient_of_the_soft_value_is_the_occupancy():
    # Danskin: what a reward adds to the value is how often it is received.
    model = random_model(6, ends=(2,))
    found = occupancy(model, soft_values(model, model.rewards, discount=0.8).log_policy.exp(), discount=0.8)

    def value(rewards):
        return 0.2 * float(model.initial @ soft_values(model, rewards, discount=0.8).values)

    for state, action in itertools.product(range(6), range(3)):
        step = th.zeros_like(model.rewards)
        step[state, action] = 1e-5
        slope = (value(model.rewards + step) - value(model.rewards - step)) / 2e-5
        assert slope == pytest.approx(float(found[state, action]), abs=1e-8)


def test_with_a_horizon_the_soft_policy_is_the_distribution_over_all_paths_by_their_rewards():
    # Deterministic moves: P(path) is proportional to e^(sum of rewards), and every path can be listed.
    rng = np.random.default_rng(0)
    n, horizon = 4, 5
    successors, rewards = rng.integers(n, size=(n, 2)), rng.normal(size=(n, 2))
    model = TabularModel(
        th.as_tensor(np.eye(n)[successors]),
        th.as_tensor(rewards),
        th.zeros(n, 2, 1).double(),
        th.as_tensor(np.eye(n)[0]),
        th.zeros(n, dtype=th.bool),
    )
    counts, mass = np.zeros((n, 2)), 0.0
    for path in itertools.product(range(2), repeat=horizon):
        state, total, seen = 0, 0.0, np.zeros((n, 2))
        for action in path:
            total, state, seen = total + rewards[state, action], successors[state, action], seen + _one(n, state, action)
        counts, mass = counts + np.exp(total) * seen, mass + np.exp(total)
    found = soft_values_finite(model, model.rewards, horizon=horizon)
    assert float(found.values[0, 0]) == pytest.approx(np.log(mass))
    visits = occupancy_finite(model, found.log_policy.exp())
    np.testing.assert_allclose(horizon * visits, counts / mass, atol=1e-12)


def _one(n, state, action):
    seen = np.zeros((n, 2))
    seen[state, action] = 1
    return seen


def test_a_long_horizon_becomes_the_discounted_problem():
    model = random_model(7, ends=(1,))
    finite = soft_values_finite(model, model.rewards, horizon=300, discount=0.9)
    endless = soft_values(model, model.rewards, discount=0.9)
    np.testing.assert_allclose(finite.values[0], endless.values, atol=1e-10)
    visits = 300 * 0.1 * occupancy_finite(model, finite.log_policy.exp(), discount=0.9)
    np.testing.assert_allclose(visits, occupancy(model, endless.log_policy.exp(), discount=0.9), atol=1e-9)


def test_a_batch_equals_its_members():
    models = [random_model(seed, ends=(seed,)) for seed in range(3)]
    batch = stack_models(models)
    found = soft_values(batch, batch.rewards, discount=0.95)
    visits = occupancy(batch, found.log_policy.exp(), discount=0.95)
    finite = occupancy_finite(batch, soft_values_finite(batch, batch.rewards, horizon=7).log_policy.exp())
    hard, policy = optimal_values(batch, batch.rewards, discount=0.95)
    for i, model in enumerate(models):
        own = soft_values(model, model.rewards, discount=0.95)
        np.testing.assert_allclose(found.values[i], own.values, atol=1e-10)
        np.testing.assert_allclose(visits[i], occupancy(model, own.log_policy.exp(), discount=0.95), atol=1e-12)
        steps = soft_values_finite(model, model.rewards, horizon=7).log_policy.exp()
        np.testing.assert_allclose(finite[i], occupancy_finite(model, steps), atol=1e-12)
        expected, choices = optimal_values(model, model.rewards, discount=0.95)
        np.testing.assert_allclose(hard[i], expected, atol=1e-10)
        np.testing.assert_allclose(policy[i], choices)


def test_absorbing_ends_are_their_own_successors_and_nothing_is_lost():
    model = random_model(8, ends=(0, 4)).absorbing()
    assert float(model.transition[0, 2, 0]) == 1.0
    visits = occupancy(model, soft_values(model, model.rewards, discount=0.9).log_policy.exp(), discount=0.9)
    assert float(visits.sum()) == pytest.approx(1.0)


def test_bad_models_and_rewards_are_named():
    model = random_model(0)
    fields = [model.transition, model.rewards, model.features, model.initial, model.terminal]
    with pytest.raises(ValueError, match="`transition` must be non-negative with rows that sum to one"):
        TabularModel(0.9 * fields[0], *fields[1:])
    with pytest.raises(ValueError, match=r"`rewards` must have the shape \(6, 3\), got \(5, 3\)"):
        TabularModel(fields[0], fields[1][1:], *fields[2:])
    with pytest.raises(ValueError, match="`features` holds NaN"):
        TabularModel(*fields[:2], fields[2] * np.nan, *fields[3:])
    with pytest.raises(ValueError, match="`initial`"):
        TabularModel(*fields[:3], 2 * fields[3], fields[4])
    with pytest.raises(ValueError, match="`rewards` holds NaN"):
        soft_values(model, model.rewards * np.inf, discount=0.9)
    with pytest.raises(ValueError, match=r"`discount` must be in \[0, 1\), got 1.0"):
        soft_values(model, model.rewards, discount=1.0)
    with pytest.raises(ValueError, match="`horizon` must be at least 1, got 0"):
        soft_values_finite(model, model.rewards, horizon=0)
    with pytest.raises(ValueError, match="`models` must have the same numbers of states"):
        stack_models([model, random_model(0, n_states=5)])


def test_bad_trajectories_are_named():
    with pytest.raises(ValueError, match="got an empty trajectory"):
        Trajectory(np.zeros(1), np.zeros(0), True)
    with pytest.raises(ValueError, match="`observations` must have one entry more than `actions`, 4, got 3"):
        Trajectory(np.zeros(3), np.zeros(3), True)
    with pytest.raises(ValueError, match="`observations` holds NaN"):
        Trajectory(np.array([0.0, np.nan]), np.zeros(1), True)
    with pytest.raises(ValueError, match="`actions` must be an array of numbers"):
        Trajectory(np.zeros(2), np.array(["left"]), True)


def test_what_is_left_of_features_in_an_absorbing_state_does_not_depend_on_an_action():
    model = random_model(3, ends=(2,))
    counted = model.absorbing()
    for action in range(3):
        np.testing.assert_allclose(counted.features[2, action], model.features[2].mean(0))
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(counted.features[others], model.features[others])


def test_an_action_that_is_better_by_little_is_the_best():
    model = random_model(4)
    rewards = model.rewards.clone()
    values, _ = optimal_values(model, rewards, discount=0.0)
    best = rewards.argmax(-1)
    worse = rewards.scatter(-1, ((best + 1) % 3).unsqueeze(-1), (values - 1e-6).unsqueeze(-1))
    _, policy = optimal_values(model, worse, discount=0.0)
    np.testing.assert_array_equal(policy.argmax(-1), best)
    np.testing.assert_array_equal(policy.amax(-1), 1.0)
