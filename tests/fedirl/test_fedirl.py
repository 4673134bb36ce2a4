"""FedIRL in SB3's shape: what it learns, what it reduces to, what survives a file, and what it refuses."""

import re
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure

from otbaselines import Client, FedIRL
from otbaselines.common.tabular import soft_values, soft_values_finite
from otbaselines.common.trajectories import Trajectory
from otbaselines.envs import gridworld
from otbaselines.fedirl import demonstrate, from_minari
from otbaselines.fedirl.fusion import FUSIONS, Support, aggregate, lattice_cost
from otbaselines.fedirl.maxent import Horizon, expert_features, fit
from otbaselines.fedirl.policies import TabularPolicy


def _clients(n=3, size=5, n_episodes=20, **kwargs):
    worlds = [gridworld.make(size, seed) for seed in range(n)]
    return [Client(world, gridworld.expert(world, n_episodes, seed=7), **kwargs) for world in worlds]


def _model(clients=None, **kwargs):
    return FedIRL("MlpPolicy", gridworld.make(5, 100), clients=clients or _clients(), seed=0, **kwargs)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_policy_of_the_fused_reward_reaches_the_goal_of_a_world_that_nobody_has_seen(fusion):
    model = _model(fusion=fusion).learn(1)
    world = gridworld.make(5, 100)
    returns, _ = evaluate_policy(model, world, n_eval_episodes=50, warn=False, return_episode_rewards=True)
    # The reward is 1 at the goal, -1 on an obstacle and 0 in between; uniformly random moves are paid about -0.7.
    assert np.mean(returns) > 0.7


def test_one_client_is_inverse_reinforcement_learning_without_a_federation():
    (client,) = _clients(1)
    model = _model([client]).learn(1)
    tabular = client.env.tabular_model.absorbing()
    expert = expert_features(tabular, client.demonstrations, Horizon(0.99)).unsqueeze(0)
    fields = ("transition", "rewards", "features", "initial", "terminal")
    one = replace(tabular, **{name: getattr(tabular, name).unsqueeze(0) for name in fields})
    alone = fit(one, expert, horizon=Horizon(0.99), l2=0.01, tol=1e-6)
    np.testing.assert_allclose(model.client_thetas, alone.theta, atol=1e-9)
    np.testing.assert_allclose(model.theta, alone.theta[0], rtol=1e-3)


def test_the_fused_parameters_are_the_pure_functions():
    model = _model(fusion="barycenter").learn(1)
    world = gridworld.make(5, 100)
    features = world.tabular_model.features
    support = Support(features.flatten(0, 1), lattice_cost([5, 5, 4], categorical=[False, False, True]))
    expected = aggregate(th.as_tensor(model.client_thetas), support)
    np.testing.assert_allclose(model.theta, expected.theta)
    np.testing.assert_allclose(model.reward([3, 7], [0, 2]), (features[[3, 7], [0, 2]] @ expected.theta))


def test_weights_of_clients_and_their_own_numbers_of_steps_count():
    clients = _clients(2)
    heavy = [replace(clients[0], weight=3.0), clients[1]]
    model = _model(heavy, fusion="mean_params").learn(1)
    np.testing.assert_allclose(model.theta, 0.75 * model.client_thetas[0] + 0.25 * model.client_thetas[1])
    lazy = _model([replace(clients[0], irl_iterations=0), clients[1]], fusion="mean_params").learn(1)
    assert not lazy.client_thetas[0].any()
    assert lazy.client_thetas[1].any()


def test_rounds_start_from_the_fused_reward_and_are_logged(tmp_path):
    model = _model(n_rounds=3, irl_iterations=2, irl_learning_rate=0.5, fusion="mean_params")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    calls = []
    model.learn(1, callback=lambda *_: calls.append(model.theta) is None)
    assert model.num_timesteps == len(calls) == 3
    # Gradient ascent that goes on: two more steps a round bring the features closer.
    log = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True)
    assert (np.diff(log["irlfeature_gap"]) < 0).all()
    assert log["timerounds"].tolist() == [1, 2, 3]


def test_the_progress_bar_counts_rounds(capsys):
    _model(n_rounds=2).learn(1, progress_bar=True)
    assert "2/2" in capsys.readouterr().err


def test_a_saved_model_predicts_and_rewards_alike_and_goes_on_with_clients(tmp_path):
    clients = _clients()
    model = _model(clients, reg=0.7, n_rounds=2).learn(1)
    model.save(tmp_path / "fed")
    loaded = FedIRL.load(tmp_path / "fed")
    cells = np.arange(25)
    np.testing.assert_array_equal(loaded.predict(cells, deterministic=True)[0], model.predict(cells, deterministic=True)[0])
    assert th.equal(loaded.policy.log_policy, model.policy.log_policy)
    np.testing.assert_array_equal(loaded.reward(cells, cells % 4), model.reward(cells, cells % 4))
    np.testing.assert_array_equal(loaded.client_thetas, model.client_thetas)
    assert (loaded.reg, loaded.n_rounds) == (0.7, 2)
    with pytest.raises(RuntimeError, match=r"no clients to learn from; `load` it with `clients=`"):
        loaded.learn(1)
    resumed = FedIRL.load(tmp_path / "fed", env=gridworld.make(5, 100), clients=clients)
    np.testing.assert_allclose(resumed.learn(1).theta, model.theta, rtol=1e-3)


def test_the_same_seed_gives_the_same_reward_to_the_last_bit():
    np.testing.assert_array_equal(_model().learn(1).theta, _model().learn(1).theta)


def test_an_agents_episodes_are_demonstrations():
    model = _model().learn(1)
    world = gridworld.make(5, 100)
    episodes = demonstrate(model, world, 5, seed=0)
    assert len(episodes) == 5
    for each in episodes:
        assert each.observations.shape == (len(each) + 1,)
        assert each.success == (each.observations[-1] == 24)
        np.testing.assert_array_equal(each.actions, model.predict(each.observations[:-1], deterministic=True)[0])
    assert FedIRL("MlpPolicy", world, clients=[Client(world, episodes)]).learn(1).theta.shape == (2,)


def test_minari_episodes_are_demonstrations(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    world = gridworld.make(5, 0)
    episodes = gridworld.expert(world, 3, seed=0)
    buffers = []
    for number, each in enumerate(episodes):
        ends = np.arange(len(each)) == len(each) - 1
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                observations=each.observations,
                actions=each.actions,
                rewards=np.zeros(len(each)),
                terminations=ends & each.terminated,
                truncations=ends & (not each.terminated),
            )
        )
    spaces = {"observation_space": world.observation_space, "action_space": world.action_space}
    with warnings.catch_warnings():
        # Minari asks for an author, a description and more.
        warnings.simplefilter("ignore")
        dataset = minari.create_dataset_from_buffers("grid/test-v0", buffers, **spaces)
    for source in ("grid/test-v0", dataset):
        for found, expected in zip(from_minari(source), episodes, strict=True):
            np.testing.assert_array_equal(found.observations, expected.observations)
            np.testing.assert_array_equal(found.actions, expected.actions)
            assert found.terminated == expected.terminated


def test_a_constant_changes_nothing_where_ends_are_absorbing():
    # The reduction behind `ends`: with terminal ends the same demonstrations lead to another reward.
    absorbing, terminal = (_model(ends=ends, discount=0.9).learn(1).theta for ends in ("absorbing", "terminal"))
    assert np.abs(absorbing - terminal).max() > 1e-2


def test_literal_ends_count_for_the_policy_as_well():
    model = _model(ends="terminal", discount=0.9).learn(1)
    tabular = gridworld.make(5, 100).tabular_model
    expected = soft_values(tabular, tabular.features @ th.as_tensor(model.theta), discount=0.9).log_policy
    np.testing.assert_allclose(model.policy.log_policy, expected)


def test_with_a_horizon_the_policy_knows_the_step_and_is_stored(tmp_path):
    model = _model(discount=1.0, horizon=6).learn(1)
    tabular = gridworld.make(5, 100).tabular_model.absorbing()
    expected = soft_values_finite(tabular, tabular.features @ th.as_tensor(model.theta), horizon=6).log_policy
    np.testing.assert_allclose(model.policy.log_policy, expected)
    # The policies of the first and the last step differ, or there would be nothing to know.
    assert float((expected[0].exp() - expected[5].exp()).abs().max()) > 0.1
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    states, steps, starts = np.arange(25), None, None
    for step in range(8):
        best = expected[min(step, 5)].argmax(-1)
        for player in (FedIRL.load(tmp_path / "model"), TabularPolicy.load(tmp_path / "policy"), model):
            actions, after = player.predict(states, steps, starts, deterministic=True)
            np.testing.assert_array_equal(actions, best)
        steps, starts = after, np.zeros(25, bool)
    # Episodes that begin anew are at their first step again; without a memory every step is taken for the first.
    for steps, starts in ((after, np.ones(25, bool)), (None, None)):
        np.testing.assert_array_equal(model.predict(states, steps, starts, deterministic=True)[0], expected[0].argmax(-1))
    action, (step,) = model.predict(np.int64(3), deterministic=True)
    assert (int(action), step.tolist()) == (int(expected[0, 3].argmax()), [1])
    frequencies = np.bincount([int(model.predict(np.int64(3), (np.array([5]),))[0]) for _ in range(600)], minlength=4) / 600
    np.testing.assert_allclose(frequencies, expected[5, 3].exp(), atol=0.08)


def test_bad_clients_are_named():
    clients = _clients(2)
    for wrong, error, message in (
        ([], ValueError, "`clients` must hold at least one"),
        ([clients[0], "client"], TypeError, r"`clients[1]` must be a `Client`, got str"),
        ([*clients, *_clients(1, size=6, name="large")], ValueError, "the `observation_space` of large is Discrete(36)"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            FedIRL("MlpPolicy", gridworld.make(5, 100), clients=wrong)
    with pytest.raises(ValueError, match="must have at least one trajectory, got none"):
        Client(clients[0].env, [])
    with pytest.raises(TypeError, match="must be a list of `Trajectory`, got Trajectory"):
        Client(clients[0].env, clients[0].demonstrations[0])
    with pytest.raises(ValueError, match="`weight` of a must be positive, got 0"):
        Client(clients[0].env, clients[0].demonstrations, name="a", weight=0)
    with pytest.raises(ValueError, match="must have an attribute `tabular_model`"):
        FedIRL("MlpPolicy", gym.make("Taxi-v4"), clients=[Client(gym.make("Taxi-v4"), clients[0].demonstrations)])
    jump = Trajectory(np.array([0, 24]), np.array([0]), True)
    with pytest.warns(UserWarning, match=r"of the steps that clients\[0\] demonstrates are impossible"):
        FedIRL("MlpPolicy", gridworld.make(5, 100), clients=[Client(clients[0].env, [jump])])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fusion": "median"}, "`fusion` must be one of 'barycenter'"),
        ({"reg": 0.0}, "`reg` must be a number above 0, got 0.0"),
        ({"discount": 1.0}, "`discount` must be in [0, 1), or up to 1 with a number of steps, got 1.0"),
        ({"n_rounds": 0}, "`n_rounds` must be an integer of at least 1, got 0"),
        ({"ends": "never"}, "`ends` must be one of 'absorbing', 'terminal' or None, got 'never'"),
        ({"l2": -1.0}, "`l2` must be a number of at least 0, got -1.0"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _model(**kwargs)


def test_bad_pairs_and_a_missed_quorum_are_named():
    model = _model(quorum=4)
    with pytest.raises(ValueError, match="`quorum` is 4, but only 3 of 3"):
        model.learn(1)
    with pytest.raises(ValueError, match=r"`obs` must be integers in \[0, 25\)"):
        model.reward([25], [0])
    with pytest.raises(ValueError, match=r"`actions` must be integers in \[0, 4\)"):
        model.reward([0], [0.5])
