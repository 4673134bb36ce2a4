"""FedIRL where states are vectors: rewards, policies and files of a federation whose policies a learner of SB3 finds."""

import inspect
import re
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from otbaselines import Client, FedIRL
from otbaselines.common.settings import settings_of
from otbaselines.common.trajectories import Trajectory
from otbaselines.envs import client_variants, gridworld
from otbaselines.fedirl.continuous import feature_average
from otbaselines.fedirl.features import lattice_support, rbf_features
from otbaselines.fedirl.fusion import Support, aggregate, lattice_cost
from otbaselines.fedirl.learners import PayingVecEnv
from otbaselines.fedirl.maxent import Horizon, discounted_average
from otbaselines.fedirl.sampled import RandomClients


class Line(gym.Env):
    """A point on a line that goes where it is told: ten steps, and the demonstrator stays at ``goal``."""

    def __init__(self, gain=1.0, goal=0.6, discrete=False):
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.gain, self.goal, self.discrete = gain, goal, discrete

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1.0, 0.0, 1).astype(np.float32), 0
        return self.x.copy(), {}

    def step(self, action):
        push = (float(action) - 1.0) if self.discrete else float(np.clip(action, -1, 1)[0])
        self.x = np.clip(self.x + 0.3 * self.gain * push, -1, 1).astype(np.float32)
        self.t += 1
        return self.x.copy(), -abs(float(self.x[0]) - self.goal), False, self.t >= 10, {}


def _expert(env, n=5):
    """Goes to the goal as fast as it can."""
    episodes = []
    for seed in range(n):
        x, _ = env.reset(seed=seed)
        seen, done, truncated = [x], [], False
        while not truncated:
            push = np.clip((env.goal - seen[-1]) / (0.3 * env.gain), -1, 1).astype(np.float32)
            action = round(float(push[0])) + 1 if env.discrete else push
            x, _, _, truncated, _ = env.step(action)
            seen.append(x)
            done.append(action)
        episodes.append(Trajectory(np.array(seen), np.array(done), False))
    return episodes


PPO_KWARGS = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "learning_rate": 3e-3}


def _features(discrete=False):
    env = Line(discrete=discrete)
    return rbf_features(env.observation_space, env.action_space, n_centers=12)


def _model(discrete=False, **kwargs):
    envs = [Line(gain, discrete=discrete) for gain in (0.8, 1.2)]
    clients = kwargs.pop("clients", None) or [Client(env, _expert(env)) for env in envs]
    settings = {"learner_kwargs": PPO_KWARGS, "irl_iterations": 2, "irl_timesteps": 32, "features": _features(discrete)}
    return FedIRL("MlpPolicy", Line(discrete=discrete), clients=clients, seed=0, **(settings | kwargs))


def _far(model, env):
    """How far from the goal the policy's episodes end, on average."""
    ends = []
    for seed in range(10):
        x, _ = env.reset(seed=100 + seed)
        truncated = False
        while not truncated:
            x, _, _, truncated, _ = env.step(model.predict(x, deterministic=True)[0])
        ends.append(abs(float(x[0]) - env.goal))
    return float(np.mean(ends))


def test_the_policy_of_the_fused_reward_goes_where_the_demonstrators_went():
    # A policy that stays at the edge or moves at random ends 0.4 to 1.6 away.
    learner = {"n_steps": 128, "batch_size": 128, "n_epochs": 8, "learning_rate": 1e-2}
    model = _model(irl_iterations=6, irl_timesteps=128, learner_kwargs=learner).learn(1500)
    assert _far(model, Line()) < 0.3
    there, away = model.reward([[0.6], [-0.8]], [[0.0], [0.0]])
    assert there > away


@pytest.mark.parametrize("discrete", [False, True])
def test_importance_weighted_samples_draw_the_reward_to_the_demonstrator_within_the_bound_of_the_ridge(discrete):
    settings = {"policy_features": "samples", "irl_timesteps": 200, "l2": 1.0, "discount": 0.9}
    model = _model(discrete, irl_iterations=100, **settings).learn(32)
    assert model.num_timesteps == 32
    for client, theta in zip(model.clients, model.client_thetas, strict=True):
        expert = th.stack([feature_average(_features(discrete), each, Horizon(0.9)) for each in client.demonstrations]).mean(0)
        # At the optimum l2 theta is the gap between two averages of features that are within [0, 1].
        assert np.abs(theta).max() <= 1.0
        assert float(th.as_tensor(theta) @ expert) > 0.0
    again = _model(discrete, irl_iterations=100, **settings).learn(32)
    np.testing.assert_array_equal(again.client_thetas, model.client_thetas)


@pytest.mark.parametrize("policy_features", ["learner", "samples"])
def test_clients_may_bring_several_copies_of_their_environment(policy_features):
    def clients():
        for gain in (0.8, 1.2):
            copies = DummyVecEnv([lambda gain=gain: Line(gain) for _ in range(4)])
            yield Client(copies, _expert(Line(gain)))

    kwargs = {"irl_timesteps": 120, "irl_iterations": 4, "policy_features": policy_features, "l2": 0.5, "discount": 0.9}
    model = _model(clients=list(clients()), **kwargs).learn(32)
    there, away = model.reward([[0.6], [-0.8]], [[0.0], [0.0]])
    assert there > away
    again = _model(clients=list(clients()), **kwargs).learn(32)
    np.testing.assert_array_equal(again.client_thetas, model.client_thetas)


def test_every_episode_of_every_copy_counts_once():
    copies = DummyVecEnv([Line for _ in range(4)])
    client = Client(copies, _expert(Line()))
    random = RandomClients(
        [client], _features(), horizon=Horizon(0.9), l2=0.01, n_iterations=[1], tol=0.0, n_timesteps=80, seeds=[3]
    )
    averages = random._episodes(0)
    # 80 steps of four copies are two episodes of ten steps in each.
    assert averages.shape == (8, 12)
    copies.seed(3)
    copies.action_space.seed(3)
    seen, actions = [copies.reset()], []
    for _ in range(10):
        actions.append(np.array([copies.action_space.sample() for _ in range(4)]))
        seen.append(copies.step(actions[-1])[0])
    for copy in range(4):
        episode = Trajectory(
            np.array([*(each[copy] for each in seen[:-1]), seen[0][copy]]), np.array([each[copy] for each in actions]), False
        )
        np.testing.assert_allclose(averages[copy], feature_average(_features(), episode, Horizon(0.9)))


def test_the_fused_parameters_are_the_pure_functions():
    model = _model().learn(32)
    expected = aggregate(th.as_tensor(model.client_thetas), lattice_support(_features()))
    np.testing.assert_allclose(model.theta, expected.theta)
    x, u = np.array([[0.1], [0.5]]), np.array([[0.3], [-0.2]])
    np.testing.assert_allclose(model.reward(x, u), _features()(x, u) @ expected.theta)


def test_no_step_of_a_client_is_taken_for_one_that_makes_none():
    clients = [Client(env, _expert(env), irl_iterations=n) for env, n in ((Line(0.8), 0), (Line(1.2), 2))]
    model = FedIRL(
        "MlpPolicy", Line(), clients=clients, fusion="mean_params", features=_features(), irl_timesteps=32,
        learner_kwargs=PPO_KWARGS, seed=0,
    ).learn(32)  # fmt: skip
    assert not model.client_thetas[0].any()
    assert model.client_thetas[1].any()


def test_the_first_step_is_the_gap_between_the_demonstrator_and_a_policy_that_is_paid_nothing():
    model = _model(irl_iterations=1, irl_learning_rate=0.25, irl_tol=0.0).learn(32)
    clients = model._sampled_clients()
    # theta_1 = eta (mu_E - mu_pi): the policy's features are probabilities of the box, as the demonstrator's are.
    policy = clients.expert - th.as_tensor(model.client_thetas) / 0.25
    assert bool((policy > 0).all())
    assert bool((policy < 1).all())
    random = _features()(np.random.default_rng(0).uniform(-1, 1, (500, 1)), np.random.default_rng(1).normal(size=(500, 1)))
    assert float((policy - random.mean(0)).abs().max()) < 0.35


def test_rounds_start_from_the_fused_reward_and_everything_is_logged(tmp_path):
    model = _model(n_rounds=2, irl_iterations=2)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(64)
    text = (tmp_path / "progress.csv").read_text()
    names = text.splitlines()[0].split(",")
    assert {"irl/feature_gap", "fusion/residual", "time/rounds", "train/loss", "rollout/ep_rew_mean"} <= set(names)


def test_callbacks_see_every_step_and_can_stop_and_the_bar_counts_steps(capsys, tmp_path):
    model = _model(irl_iterations=1)
    seen = []
    evaluation = EvalCallback(Monitor(Line()), eval_freq=32, n_eval_episodes=1, best_model_save_path=str(tmp_path), verbose=0)
    model.learn(64, callback=[lambda local, _: seen.append(len(local["infos"])) is None, evaluation], progress_bar=True)
    assert len(seen) == 64 == model.num_timesteps
    assert "64/64" in capsys.readouterr().err
    assert np.isfinite(evaluation.last_mean_reward)
    # What the callback has saved is a model of this class.
    assert FedIRL.load(tmp_path / "best_model").reward([[0.0]], [[0.0]]).shape == (1,)
    model.learn(1000, callback=lambda *_: model.num_timesteps < 10)
    assert model.num_timesteps == 10


@pytest.mark.parametrize(
    ("learner", "kwargs", "discrete"),
    [
        ("ppo", PPO_KWARGS, False),
        ("sac", {"learning_starts": 20, "buffer_size": 500}, False),
        (DQN, {"learning_starts": 20}, True),
    ],
)
def test_a_saved_model_predicts_and_rewards_alike_and_goes_on(tmp_path, learner, kwargs, discrete):
    model = _model(discrete, learner=learner, learner_kwargs=kwargs, irl_iterations=1, irl_timesteps=32).learn(32)
    model.save(tmp_path / "fed")
    with zipfile.ZipFile(tmp_path / "fed.zip") as archive:
        assert not any(name.endswith((".pkl", ".pickle")) for name in archive.namelist())
    loaded = FedIRL.load(tmp_path / "fed")
    x = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
    u = np.arange(9) % 3 if discrete else x
    np.testing.assert_array_equal(loaded.predict(x, deterministic=True)[0], model.predict(x, deterministic=True)[0])
    np.testing.assert_array_equal(loaded.reward(x, u), model.reward(x, u))
    np.testing.assert_array_equal(loaded.client_thetas, model.client_thetas)
    for name, state in model.get_parameters().items():
        assert str(loaded.get_parameters()[name]) == str(state), name
    with pytest.raises(RuntimeError, match=r"no clients to learn from; `load` it with `clients=`"):
        loaded.learn(1)
    resumed = FedIRL.load(tmp_path / "fed", env=Line(discrete=discrete), clients=model.clients)
    before = model.num_timesteps
    resumed.learn(32, reset_num_timesteps=False)
    assert resumed.num_timesteps == before + 32


def test_the_same_seed_gives_the_same_model_to_the_last_bit():
    one, other = (_model(irl_iterations=2).learn(32) for _ in range(2))
    np.testing.assert_array_equal(one.theta, other.theta)
    for mine, its in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        assert th.equal(mine, its)


def test_a_users_own_features_need_a_support_and_are_asked_for_again(tmp_path):
    def polynomials(observations, actions):
        x = th.as_tensor(np.asarray(observations, dtype=np.float64))
        return th.cat((x, x**2), 1)

    axis = np.linspace(-1, 1, 9)[:, None]
    support = Support(polynomials(axis, axis), lattice_cost([9]))
    model = _model(features=polynomials, support=support, irl_iterations=2).learn(32)
    np.testing.assert_allclose(model.reward([[0.5]], [[0.0]]), [0.5 * model.theta[0] + 0.25 * model.theta[1]])
    with pytest.raises(ValueError, match="`support` is needed where `features` is a function"):
        _model(features=polynomials).learn(32)
    model.save(tmp_path / "own")
    with pytest.raises(RuntimeError, match="`load` it with `features=`"):
        FedIRL.load(tmp_path / "own").reward([[0.5]], [[0.0]])
    loaded = FedIRL.load(tmp_path / "own", features=polynomials)
    np.testing.assert_array_equal(loaded.reward([[0.5]], [[0.0]]), model.reward([[0.5]], [[0.0]]))


def test_several_copies_are_paid_for_what_each_saw_and_did_also_where_observations_are_normalised():
    features, theta = _features(), th.arange(12.0).double()
    paying = PayingVecEnv(VecNormalize(DummyVecEnv([Line, Line])), features, Horizon(0.9))
    paying.theta, paying.remembers = theta, True
    paying.seed(0)
    paying.reset()
    averages = []
    for _ in range(10):
        raw = paying.venv.get_original_obs()
        actions = np.array([[0.5], [-0.5]], np.float32)
        _, paid, _, infos = paying.step(actions)
        np.testing.assert_allclose(paid, features(raw, actions) @ theta, rtol=1e-5)
        assert infos[0]["true_reward"] <= 0
        averages.append(features(raw, actions))
    weights = 0.1 * 0.9 ** th.arange(10.0).double() / (1 - 0.9**10)
    expected = (weights.view(-1, 1, 1) * th.stack(averages)).sum(0)
    np.testing.assert_allclose(paying.feature_averages(), expected)


class Cliff(Line):
    """The line, beyond whose right end an episode is over."""

    def step(self, action):
        x, reward, _, truncated, info = super().step(action)
        return x, reward, bool(x[0] > 0.5), truncated, info


def test_nothing_counts_after_an_end_and_an_episode_that_was_cut_counts_for_its_length():
    features, horizon = _features(), Horizon(0.9)
    for env, terminated in ((Cliff(), True), (Line(), False)):
        paying = PayingVecEnv(DummyVecEnv([lambda env=env: env]), features, horizon)
        paying.remembers = True
        paying.seed(1)
        paying.reset()
        rows, done = [], [False]
        while not done[0]:
            rows.append(features(paying.venv.envs[0].x[None], np.ones((1, 1)))[0])
            _, _, done, infos = paying.step(np.ones((1, 1), np.float32))
        assert infos[0]["TimeLimit.truncated"] is not terminated
        expected = discounted_average(th.stack(rows), horizon, terminated=terminated)
        other = discounted_average(th.stack(rows), horizon, terminated=not terminated)
        np.testing.assert_allclose(paying.feature_averages(), expected[None], rtol=1e-6)
        assert float((expected - other).abs().max()) > 1e-3


def test_an_episode_that_is_under_way_counts_from_its_first_step():
    features, horizon = _features(), Horizon(0.9)
    paying = PayingVecEnv(DummyVecEnv([Line]), features, horizon)
    paying.remembers = True
    paying.seed(0)
    state, rows = paying.reset(), []
    for n_steps in (6, 4):
        for _ in range(n_steps):
            action = np.full((1, 1), 0.3, np.float32)
            rows.append(features(state, action)[0])
            state = paying.step(action)[0]
        np.testing.assert_allclose(paying.feature_averages()[0], discounted_average(th.stack(rows), horizon, terminated=False))


@pytest.mark.parametrize("learner", ["sac", "td3", "dqn"])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_a_learner_remembers_is_paid_by_the_present_reward(learner, normalize):
    kwargs = {"learning_starts": 8, "buffer_size": 60, "batch_size": 8}
    model = _model(
        learner == "dqn", learner=learner, learner_kwargs=kwargs, irl_iterations=3, irl_timesteps=40,
        normalize_reward=normalize, irl_tol=0.0, irl_learning_rate=2.0,
    ).learn(8)  # fmt: skip
    federation = model._sampled_clients()
    for paying, client in zip(federation._envs, federation.learners, strict=True):
        buffer = client.replay_buffer
        # More was done than the buffer holds, so that it is full and has been written over.
        assert buffer.full
        actions = buffer.actions[:, 0]
        actions = actions.flatten() if learner == "dqn" else client.policy.unscale_action(actions)
        expected = paying.features(buffer.observations[:, 0], actions) @ paying.theta
        np.testing.assert_allclose(buffer.rewards[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_log_goes_forward_over_rounds(tmp_path):
    model = _model(n_rounds=2)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    steps = []
    dump = model.logger.dump
    model.logger.dump = lambda step=0: (steps.append(step), dump(step))[1]
    model.learn(32)
    rounds = steps[:-1] if steps[-1] == 32 else steps
    assert rounds[:6] == [1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1", "Acrobot-v1", "LunarLanderContinuous-v3"])
def test_clients_of_the_control_tasks_are_fused(env_id):
    if env_id.startswith("LunarLander"):
        pytest.importorskip("Box2D")
    envs = [client_variants.make(env_id, index) for index in range(2)]
    features = client_variants_features(env_id)
    clients = []
    for env in envs:
        env.action_space.seed(0)
        x, _ = env.reset(seed=0)
        seen, done = [x], []
        for _ in range(10):
            done.append(env.action_space.sample())
            seen.append(env.step(done[-1])[0])
        clients.append(Client(env, [Trajectory(np.array(seen), np.array(done), False)]))
    model = FedIRL(
        "MlpPolicy", envs[0], clients=clients, features=features, learner_kwargs=PPO_KWARGS, irl_iterations=1, irl_timesteps=32
    ).learn(32)
    assert np.isfinite(model.theta).all()


def client_variants_features(env_id):
    env = client_variants.make(env_id, 0)
    bounds = client_variants.BOUNDS[env_id]
    return rbf_features(env.observation_space, env.action_space, bounds=bounds, n_centers=8)


def test_bad_arguments_are_named():
    for kwargs, error, message in (
        ({"ends": "terminal"}, TypeError, "`ends` does not apply where `env` is not finite"),
        ({"policy_features": "samples", "irl_learning_rate": 0.1}, TypeError, "`irl_learning_rate` does not apply to"),
        ({"learner": "trpo"}, ValueError, "`learner` must be 'a2c', 'ddpg'"),
        ({"learner": "dqn"}, ValueError, "`learner` DQN does not take `learner_kwargs` or the spaces"),
        ({"learner_kwargs": {"n_step": 3}}, ValueError, "`learner` PPO does not take `learner_kwargs`"),
        ({"learner_kwargs": {"gamma": 0.9}}, ValueError, "`learner_kwargs` must not have 'gamma', got 0.9; it is `discount`"),
        ({"learner_kwargs": {"seed": 1}}, ValueError, "give `seed` to FedIRL itself"),
        ({"features": lambda x, u: x}, TypeError, "`features` must return a tensor, got ndarray"),
        ({"features": lambda x, u: th.zeros(3)}, ValueError, r"`features` must return the shape (1, k), got (3,)"),
        ({"features": lambda x, u: th.full((len(x), 2), th.nan)}, ValueError, "`features` returned NaN"),
        (
            {"clients": [Client(Line(), [Trajectory(np.zeros((3, 2)), np.zeros((2, 1)), True)])]},
            ValueError,
            "has observations",
        ),
    ):
        with pytest.raises(error, match=re.escape(message)):
            _model(**kwargs)
    world = gridworld.make(4, 0)
    with pytest.raises(TypeError, match="`learner` does not apply where `env` is finite, got 'ppo'"):
        FedIRL("MlpPolicy", world, clients=[Client(world, gridworld.expert(world, 2, seed=0))], learner=PPO)
    with pytest.raises(ValueError, match=r"`actions` must have the shape \(2, 1\), got \(1, 1\)"):
        _model().reward([[0.0], [0.0]], [[0.0]])


def test_demonstrations_outside_of_the_box_are_warned_of_with_their_share():
    outside = Trajectory(np.full((3, 1), 5.0), np.zeros((2, 1)), True)
    with pytest.warns(UserWarning, match=r"misses 100.0% of the steps that clients\[0\] demonstrates"):
        _model(clients=[Client(Line(), [outside])])


NONSENSE = [object(), [1], {1}, b"1", th.tensor([1.0]), np.array([1.0, 2.0])]
NUMBERS = ("discount", "l2", "irl_tol", "reg", "margin", "irl_learning_rate")
INTEGERS = ("n_rounds", "horizon", "irl_iterations", "quorum", "irl_timesteps")


@pytest.mark.parametrize("name", [*NUMBERS, *INTEGERS, "debiased", "normalize_reward", "fusion", "learner", "policy_features"])
def test_bad_settings_of_every_kind_are_named_with_their_values(name):
    env = Line()
    clients = [Client(env, _expert(env, 1))]
    bad = [*NONSENSE, "never"]
    bad += [-1, -0.5, float("nan"), float("inf"), True] if name in NUMBERS + INTEGERS else [0, 1.5]
    bad += [1.5, 2.0] if name in INTEGERS else []
    for value in bad:
        with pytest.raises((TypeError, ValueError)) as error:
            FedIRL("MlpPolicy", env, clients=clients, **{name: value})
        assert f"`{name}`" in str(error.value)
        assert repr(value)[:60] in str(error.value)


def test_every_parameter_has_an_entry_in_the_table():
    assert set(inspect.signature(FedIRL).parameters) - {"env"} <= settings_of(FedIRL).keys()
