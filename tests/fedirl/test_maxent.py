"""Maximum-entropy inverse reinforcement learning against enumeration, finite differences and SciPy."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch as th

from otbaselines.common.tabular import TabularModel, occupancy, occupancy_finite, soft_values, soft_values_finite, stack_models
from otbaselines.common.trajectories import Trajectory
from otbaselines.envs import gridworld
from otbaselines.fedirl.maxent import Horizon, expert_features, fit, likelihood, rewards_of, warn_of_missed_states


def _models(n=3, n_states=6, n_actions=3, k=2, ends=()):
    found = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        transition = rng.dirichlet(np.full(n_states, 0.5), size=(n_states, n_actions))
        terminal = np.zeros(n_states, bool)
        terminal[list(ends)] = True
        transition[terminal] = 0.0
        initial = np.where(terminal, 0.0, rng.uniform(size=n_states))
        features = np.random.default_rng(99).normal(size=(n_states, n_actions, k))
        zeros = np.zeros((n_states, n_actions))
        found.append(TabularModel(*map(th.as_tensor, (transition, zeros, features, initial / initial.sum(), terminal))))
    return stack_models(found)


def _soft_features(models, theta, horizon):
    rewards = rewards_of(models, theta)
    if horizon.n_steps is None:
        visits = occupancy(models, soft_values(models, rewards, discount=horizon.discount).log_policy.exp(), discount=0.9)
    else:
        steps = soft_values_finite(models, rewards, horizon=horizon.n_steps, discount=horizon.discount).log_policy.exp()
        visits = occupancy_finite(models, steps, discount=horizon.discount)
    return (visits.unsqueeze(-1) * models.features).sum((-3, -2))


HORIZONS = [Horizon(0.9), Horizon(1.0, 12), Horizon(0.9, 12)]


@pytest.mark.parametrize("ends", [(), (0,)])
@pytest.mark.parametrize("horizon", HORIZONS, ids=str)
def test_features_of_a_soft_expert_are_matched_and_its_rewards_found(horizon, ends):
    models = _models(ends=ends)
    truth = th.as_tensor(np.random.default_rng(5).normal(size=(3, 2)))
    expert = _soft_features(models, truth, horizon)
    found = fit(models, expert, horizon=horizon, tol=1e-9)
    assert found.converged.all()
    assert float((_soft_features(models, found.theta, horizon) - expert).abs().max()) < 1e-6
    # The features are no potential's difference, so that the maximum of the strictly concave objective is the truth.
    np.testing.assert_allclose(found.theta, truth, atol=1e-5)


@pytest.mark.parametrize("horizon", HORIZONS, ids=str)
def test_the_gradient_is_that_of_finite_differences(horizon):
    models = _models(ends=(1,))
    rng = np.random.default_rng(1)
    expert, theta = th.as_tensor(rng.normal(size=(3, 2))), th.as_tensor(rng.normal(size=(3, 2)))
    found = likelihood(models, expert, theta, horizon=horizon, l2=0.3).gradient
    for entry in range(2):
        step = 1e-5 * th.eye(2).double()[entry]
        up, down = (likelihood(models, expert, theta + sign * step, horizon=horizon, l2=0.3).value for sign in (1, -1))
        np.testing.assert_allclose((up - down) / 2e-5, found[:, entry], atol=1e-5, rtol=1e-5)


def test_the_maximum_is_the_one_over_all_listed_paths():
    # Deterministic moves: the likelihood of the demonstrations is that of a family over paths, which can be listed.
    rng = np.random.default_rng(0)
    n, horizon = 4, 5
    successors, features = rng.integers(n, size=(n, 2)), rng.normal(size=(n, 2, 2))
    model = TabularModel(
        th.as_tensor(np.eye(n)[successors]),
        th.zeros(n, 2).double(),
        th.as_tensor(features),
        th.as_tensor(np.eye(n)[0]),
        th.zeros(n, dtype=th.bool),
    )
    sums, episodes = [], []
    for path in itertools.product(range(2), repeat=horizon):
        states, total = [0], np.zeros(2)
        for action in path:
            total = total + features[states[-1], action]
            states.append(successors[states[-1], action])
        sums.append(total)
        episodes.append(Trajectory(np.array(states), np.array(path), False))
    chosen = [0, 3, 3, 17, 22, 30]
    sums = np.array(sums)
    l2 = 0.01

    def loss(theta):
        return scipy.special.logsumexp(sums @ theta) - sums[chosen].mean(0) @ theta + 0.5 * horizon * l2 * theta @ theta

    brute = scipy.optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
    cut = Horizon(1.0, horizon)
    expert = expert_features(model, [episodes[i] for i in chosen], cut)
    np.testing.assert_allclose(expert, sums[chosen].mean(0) / horizon, atol=1e-12)
    found = fit(stack_models([model]), expert.unsqueeze(0), horizon=cut, l2=l2, tol=1e-10)
    np.testing.assert_allclose(found.theta[0], brute.x, atol=1e-5)


@pytest.mark.parametrize("ends", ["absorbing", "terminal"])
def test_expert_features_of_many_episodes_are_those_of_the_policy_that_made_them(ends):
    env = gridworld.make(4, 1, max_steps=400)
    model = env.tabular_model.absorbing() if ends == "absorbing" else env.tabular_model
    policy = th.as_tensor(gridworld.expert_policy(env, temperature=0.03, discount=0.9))
    exact = (occupancy(model, policy, discount=0.9).unsqueeze(-1) * model.features).sum((0, 1))
    episodes = gridworld.expert(env, 2000, seed=0, temperature=0.03, discount=0.9)
    found = expert_features(model, episodes, Horizon(0.9))
    np.testing.assert_allclose(found, exact, atol=0.025)
    n_steps = 12
    steps = occupancy_finite(model, policy.expand(n_steps, -1, -1))
    exact = (steps.unsqueeze(-1) * model.features).sum((0, 1))
    np.testing.assert_allclose(expert_features(model, episodes, Horizon(1.0, n_steps)), exact, atol=0.025)


def test_absorbing_ends_make_a_constant_in_the_reward_irrelevant_and_terminal_ones_do_not():
    env = gridworld.make(5, 0)
    for model, same in ((env.tabular_model.absorbing(), True), (env.tabular_model, False)):
        rewards = rewards_of(model, th.tensor([-3.0, 1.0]).double())
        one, other = (soft_values(model, rewards + c, discount=0.95).log_policy for c in (0.0, 2.0))
        assert th.allclose(one, other, atol=1e-9) is same


def test_gradient_ascent_with_few_steps_is_the_plain_rule_and_each_client_has_its_own_number():
    models = _models()
    expert = _soft_features(models, th.ones(3, 2).double(), Horizon(0.9))
    steps = th.tensor([0, 1, 2])
    found = fit(models, expert, horizon=Horizon(0.9), n_iterations=steps, learning_rate=0.5, l2=0.1)
    theta, by_hand = th.zeros(3, 2).double(), []
    for _ in range(3):
        by_hand.append(theta)
        theta = theta + 0.5 * likelihood(models, expert, theta, horizon=Horizon(0.9), l2=0.1).gradient
    np.testing.assert_allclose(found.theta, th.stack([by_hand[i][i] for i in range(3)]), atol=1e-12)
    assert found.n_iter.tolist() == [0, 1, 2]


def test_a_batch_of_clients_equals_its_members():
    models = _models(ends=(2,))
    expert = _soft_features(models, th.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]]).double(), Horizon(0.9))
    found = fit(models, expert, horizon=Horizon(0.9), l2=1e-3, tol=1e-10)
    for i in range(3):
        fields = ("transition", "rewards", "features", "initial", "terminal")
        one = TabularModel(*(getattr(models, name)[i : i + 1] for name in fields))
        own = fit(one, expert[i : i + 1], horizon=Horizon(0.9), l2=1e-3, tol=1e-10)
        np.testing.assert_allclose(found.theta[i], own.theta[0], atol=1e-6)


def test_the_ridge_bounds_the_parameters_of_an_expert_that_never_errs():
    model = gridworld.make(5, 0, slip=0.0)
    tabular = model.tabular_model.absorbing()
    expert = expert_features(tabular, gridworld.expert(model, 50, seed=0), Horizon(0.95)).unsqueeze(0)
    found = fit(stack_models([tabular]), expert, horizon=Horizon(0.95), l2=1e-3)
    assert found.converged.all()
    np.testing.assert_allclose(found.expert_features - found.policy_features, 1e-3 * found.theta, atol=1e-7)


def test_impossible_demonstrations_are_warned_of_with_their_share():
    env = gridworld.make(5, 0, slip=0.0)
    episodes = gridworld.expert(env, 5, seed=0)
    assert warn_of_missed_states(env.tabular_model, episodes, "client 0") == 0.0
    jump = Trajectory(np.array([0, 24, 23]), np.array([0, 2]), False)
    with pytest.warns(UserWarning, match=r"100.0% of the steps that client 1 demonstrates are impossible"):
        warn_of_missed_states(env.tabular_model, [jump], "client 1")


def test_bad_arguments_are_named():
    models = _models()
    expert = th.zeros(3, 2).double()
    with pytest.raises(ValueError, match="`l2` must be at least 0, got -1"):
        fit(models, expert, horizon=Horizon(0.9), l2=-1)
    with pytest.raises(ValueError, match=r"`expert` must be finite of shape \(3, 2\), got \(2, 2\)"):
        fit(models, expert[1:], horizon=Horizon(0.9))
    with pytest.raises(ValueError, match=r"`init` must have the shape \(3, 2\)"):
        fit(models, expert, horizon=Horizon(0.9), init=expert[1:])
    with pytest.raises(ValueError, match="`discount` must be in"):
        Horizon(1.0)
    with pytest.raises(ValueError, match="`n_steps` must be at least 1"):
        Horizon(1.0, 0)
    env = gridworld.make(5, 0)
    with pytest.raises(ValueError, match="at least one trajectory"):
        expert_features(env.tabular_model, [], Horizon(0.9))
    with pytest.raises(ValueError, match=r"`observations` must be in \[0, 25\), got 0 to 25"):
        expert_features(env.tabular_model, [Trajectory(np.array([0, 25]), np.array([0]), True)], Horizon(0.9))
    with pytest.raises(ValueError, match="must be a row of integers"):
        expert_features(env.tabular_model, [Trajectory(np.array([0.0, 1.0]), np.array([0]), True)], Horizon(0.9))


def test_features_after_the_end_are_the_policys_own_also_where_they_depend_on_actions():
    # One step leads to the end for certain; whatever is demonstrated, ends alike.
    features = th.tensor([[[1.0, 0.0], [0.0, 1.0]], [[4.0, 0.0], [0.0, 2.0]]]).double()
    transition = th.zeros(2, 2, 2).double()
    transition[0, :, 1] = 1.0
    ends, initial = th.tensor([False, True]), th.tensor([1.0, 0.0]).double()
    model = TabularModel(transition, th.zeros(2, 2).double(), features, initial, ends).absorbing()
    episodes = [Trajectory(np.array([0, 1]), np.array([action]), True) for action in (0, 1)]
    expert = expert_features(model, episodes, Horizon(0.9))
    uniform = occupancy(model, th.full((2, 2), 0.5).double(), discount=0.9)
    np.testing.assert_allclose(expert, (uniform.unsqueeze(-1) * model.features).sum((0, 1)))
