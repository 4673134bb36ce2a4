"""Features on grids, learning from samples against the exact solution, and the learned reward as an environment."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO

from otbaselines.common.tabular import TabularModel, stack_models
from otbaselines.common.trajectories import Trajectory
from otbaselines.envs import client_variants
from otbaselines.fedirl import demonstrate
from otbaselines.fedirl.continuous import FusedRewardEnv, feature_average, fit_sampled, sampled_likelihood
from otbaselines.fedirl.features import lattice_support, rbf_features, warn_of_missed_points
from otbaselines.fedirl.fusion import aggregate
from otbaselines.fedirl.maxent import Horizon, fit

BOX, TORQUE = spaces.Box(-1.0, 3.0, (2,), np.float64), spaces.Box(-2.0, 2.0, (1,), np.float64)


def test_all_paths_as_samples_give_the_exact_maximum_entropy_solution():
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
    averages = []
    for path in itertools.product(range(2), repeat=horizon):
        state, total = 0, np.zeros(2)
        for action in path:
            total, state = total + features[state, action], successors[state, action]
        averages.append(total / horizon)
    samples = th.as_tensor(np.array(averages)).unsqueeze(0)
    expert = samples[:, [0, 3, 17, 22]].mean(1)
    exact = fit(stack_models([model]), expert, horizon=Horizon(1.0, horizon), l2=0.01, tol=1e-10)
    sampled = fit_sampled(expert, samples, n_steps=horizon, l2=0.01, tol=1e-10)
    np.testing.assert_allclose(sampled.fit.theta, exact.theta, atol=1e-7)
    assert sampled.fit.converged.all()
    assert 1 < float(sampled.effective_samples) < 32


def test_samples_are_not_maximum_entropy_where_episodes_may_end_early():
    # At each of four steps one may stay, of feature one, or leave for good. Staying twice is demonstrated.
    stay = TabularModel(
        th.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]).double(),
        th.zeros(2, 2).double(),
        th.tensor([[[1.0], [0.0]], [[0.0], [0.0]]]).double(),
        th.tensor([1.0, 0.0]).double(),
        th.tensor([False, True]),
    )
    expert = th.tensor([[2.0 / 4.0]]).double()
    exact = fit(stack_models([stay]), expert, horizon=Horizon(1.0, 4), l2=1e-6, tol=1e-10).theta
    # Uniformly random play leaves after 0, 1, 2 or 3 steps, or never, with these chances in sixteenths.
    stayed = np.repeat([0, 1, 2, 3, 4], [8, 4, 2, 1, 1])
    samples = th.as_tensor(stayed[None, :, None] / 4.0)
    sampled = fit_sampled(expert, samples, n_steps=4, l2=1e-6, tol=1e-10).fit.theta
    # Five outcomes weighed e^(theta k) are symmetric around two at zero; weighed by chance as well, staying must be paid.
    np.testing.assert_allclose(exact, 0.0, atol=1e-4)
    assert float(sampled) > 0.3


def test_the_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(1)
    expert, samples, theta = (th.as_tensor(rng.normal(size=shape)) for shape in ((2, 3), (2, 20, 3), (2, 3)))
    gradient = sampled_likelihood(expert, samples, theta, n_steps=4, l2=0.2)[0].gradient
    for entry in range(3):
        step = 1e-5 * th.eye(3).double()[entry]
        up, down = (sampled_likelihood(expert, samples, theta + sign * step, n_steps=4, l2=0.2)[0].value for sign in (1, -1))
        np.testing.assert_allclose((up - down) / 2e-5, gradient[:, entry], atol=1e-8)


@pytest.mark.parametrize("discrete", [True, False])
def test_features_by_hand(discrete):
    made = rbf_features(BOX, spaces.Discrete(3) if discrete else TORQUE, n_centers=10)
    action = np.array([2]) if discrete else np.array([[1.0]])
    point = [0.5, 0.25, 0, 0, 2**-0.5] if discrete else [0.5, 0.25, 0.75]
    expected = np.exp(-((np.array(point) - made.centers.numpy()) ** 2).sum(1) / (2 * made.bandwidth**2))
    np.testing.assert_allclose(made(np.array([[1.0, 0.0]]), action)[0], expected)
    again = rbf_features(BOX, spaces.Discrete(3) if discrete else TORQUE, n_centers=10)
    assert th.equal(made.centers, again.centers)


def test_the_bandwidth_is_the_median_distance_of_a_center_to_the_nearest_other():
    made = rbf_features(BOX, TORQUE, n_centers=9)
    centers = made.centers.numpy()
    nearest = [min(np.linalg.norm(one - other) for other in np.delete(centers, i, 0)) for i, one in enumerate(centers)]
    assert made.bandwidth == pytest.approx(np.median(nearest))


def test_a_coordinate_of_one_point_stands_in_the_middle():
    made = rbf_features(BOX, TORQUE, n_centers=6)
    support = lattice_support(made, [1, 3, 2])
    observations = np.array([[1.0, y] for y in np.linspace(-1, 3, 3) for _ in range(2)])
    np.testing.assert_allclose(support.features, made(observations, np.tile([[-2.0], [2.0]], (3, 1))))


@pytest.mark.parametrize("discrete", [True, False])
def test_the_support_is_the_grid_in_the_order_of_its_cost(discrete):
    made = rbf_features(BOX, spaces.Discrete(3) if discrete else TORQUE, n_centers=6)
    support = lattice_support(made, [4, 5, 3])
    assert support.features.shape == (60, 6)
    observations = np.array([[x, y] for x in np.linspace(-1, 3, 4) for y in np.linspace(-1, 3, 5) for _ in range(3)])
    actions = np.tile([0, 1, 2], 20) if discrete else np.tile([[-2.0], [0.0], [2.0]], (20, 1))
    np.testing.assert_allclose(support.features, made(observations, actions))
    # Bins 0 and 2 differ in the action alone: one step between categories, two between values.
    assert float(support.cost.dense()[0, 2]) == (1.0 if discrete else 4.0)


def test_demonstrations_outside_of_the_support_are_warned_of_with_their_share():
    made = rbf_features(BOX, TORQUE)
    inside = Trajectory(np.zeros((5, 2)), np.zeros((4, 1)), True)
    assert warn_of_missed_points(made, [inside], "client 0") == 0.0
    outside = Trajectory(np.full((2, 2), 9.0), np.zeros((1, 1)), True)
    with pytest.warns(UserWarning, match=r"misses 20.0% of the steps that client 1 demonstrates"):
        warn_of_missed_points(made, [inside, outside], "client 1")


def test_pendulum_clients_are_fused_and_an_sb3_learner_takes_the_reward():
    envs = [client_variants.make("Pendulum-v1", index) for index in range(2)]
    features = rbf_features(envs[0].observation_space, envs[0].action_space, n_centers=16)

    class Brake:
        """Pushes against the motion."""

        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return np.clip(-observation[2:], -2, 2), None

    class Chance:
        def __init__(self, env):
            self.env = env

        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return self.env.action_space.sample(), None

    def averages(agent, env, n):
        env.action_space.seed(0)
        return th.stack([feature_average(features, each) for each in demonstrate(agent, env, n, seed=0)])

    expert = th.stack([averages(Brake(), env, 2).mean(0) for env in envs])
    samples = th.stack([averages(Chance(env), env, 8) for env in envs])
    found = fit_sampled(expert, samples, n_steps=200, l2=10.0)
    assert found.fit.converged.all()
    fused = aggregate(found.fit.theta, lattice_support(features, [5, 5, 7, 3]))
    paying = FusedRewardEnv(client_variants.make("Pendulum-v1", 3), features, fused.theta)
    observation, _ = paying.reset(seed=0)
    _, reward, _, _, info = paying.step(np.array([0.5], np.float32))
    expected = features(observation[None], np.array([[0.5]]))[0] @ fused.theta
    assert reward == pytest.approx(float(expected))
    assert info["true_reward"] < 0
    PPO("MlpPolicy", paying, n_steps=32, batch_size=32, n_epochs=1, device="cpu").learn(32)


def test_too_few_effective_samples_are_warned_of():
    samples = th.as_tensor(np.random.default_rng(0).normal(size=(1, 10, 2)))
    with pytest.warns(UserWarning, match="effective samples; raise `l2`"):
        fit_sampled(samples[:, int(samples[0, :, 0].argmax())], samples, n_steps=1000, l2=1e-6)


def test_bad_arguments_are_named():
    cart_pole = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match="`bounds` must be finite"):
        rbf_features(cart_pole.observation_space, cart_pole.action_space)
    assert rbf_features(cart_pole.observation_space, cart_pole.action_space, bounds=(-3.0, 3.0)).n_actions == 2
    with pytest.raises(ValueError, match="`observation_space` must be a Box of one axis"):
        rbf_features(spaces.Discrete(3), TORQUE)
    with pytest.raises(ValueError, match="`n_centers` must be at least 2"):
        rbf_features(BOX, TORQUE, n_centers=1)
    with pytest.raises(ValueError, match="`lengths` must have 3 entries"):
        lattice_support(rbf_features(BOX, TORQUE), [3, 3])
    with pytest.raises(ValueError, match=r"`samples` must be \(n_clients, m, k\)"):
        fit_sampled(th.zeros(2, 3), th.zeros(1, 5, 3), n_steps=3)
    with pytest.raises(ValueError, match="`theta` must be finite of shape"):
        FusedRewardEnv(cart_pole, rbf_features(BOX, TORQUE), th.zeros(3))
