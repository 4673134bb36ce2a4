"""Federations that cannot be, or are no longer what they were made of: clients, features, settings and environments."""

import copy
import pickle
import re
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize
from stable_baselines3.ppo import CnnPolicy

from otbaselines import Client, FedIRL
from otbaselines.common.tabular import TabularModel
from otbaselines.common.trajectories import Trajectory
from otbaselines.envs import client_variants, gridworld
from otbaselines.fedirl import demonstrate, from_minari
from otbaselines.fedirl.continuous import FusedRewardEnv, fit_sampled
from otbaselines.fedirl.features import lattice_support, rbf_features
from otbaselines.fedirl.fusion import Support, aggregate, lattice_cost
from otbaselines.fedirl.learners import PayingVecEnv
from otbaselines.fedirl.maxent import Horizon, fit

NAN = float("nan")
BOX, PUSH = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32)


class Somewhere(gym.Env):
    """Observations that are drawn from the space; ``n_steps`` of them, or without end."""

    def __init__(self, states=BOX, actions=PUSH, n_steps=8, broken_from=None):
        self.observation_space, self.action_space = states, actions
        self.n_steps, self.broken_from = n_steps, broken_from

    def _look(self):
        seen = self.observation_space.sample()
        return seen * np.float32(NAN) if self.broken_from is not None and self.t >= self.broken_from else seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self._look(), {}

    def step(self, action):
        self.t += 1
        return self._look(), 0.0, False, self.n_steps is not None and self.t >= self.n_steps, {}


def _episodes(states=BOX, actions=PUSH, n=2, seed=0):
    states, actions = copy.deepcopy(states), copy.deepcopy(actions)
    states.seed(seed)
    actions.seed(seed)
    draw = [([states.sample() for _ in range(9)], [actions.sample() for _ in range(8)]) for _ in range(n)]
    return [Trajectory(np.array(seen), np.array(done), False) for seen, done in draw]


def _linear(observations, actions):
    rows = np.asarray(observations, dtype=np.float64)
    return th.as_tensor(rows.reshape(len(rows), int(np.prod(rows.shape[1:])))[:, :2].copy())


POINTS = np.random.default_rng(0).uniform(-1, 1, (20, 2))
SUPPORT = Support(_linear(POINTS, None), lattice_cost([20]))
PPO_KWARGS = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
SHORT = {"learner_kwargs": PPO_KWARGS, "irl_iterations": 1, "irl_timesteps": 16, "device": "cpu", "seed": 0}


def _clients(n=2, **kwargs):
    return [Client(Somewhere(**kwargs), _episodes(seed=seed)) for seed in range(n)]


def _model(clients=None, env=None, **kwargs):
    settings = {"features": _linear, "support": SUPPORT, **SHORT, **kwargs}
    return FedIRL("MlpPolicy", env or Somewhere(), clients=clients or _clients(), **settings)


WORLDS = [gridworld.make(5, seed) for seed in range(2)]


def _members():
    return [Client(world, gridworld.expert(world, 5, seed=1)) for world in WORLDS]


def _grid(clients=None, **kwargs):
    return FedIRL("MlpPolicy", gridworld.make(5, 100), clients=clients or _members(), device="cpu", **kwargs)


# ---------------------------------------------------------------- what changed since the model was made


def test_other_clients_after_learning_are_those_that_are_learned_from():
    model = _model().learn(16)
    others = [Client(Somewhere(), _episodes(seed=seed)) for seed in (7, 8)]
    model.clients = others
    model.learn(16)
    np.testing.assert_array_equal(model._sampled_clients().expert, _model(others)._sampled_clients().expert)
    for n in (3, 1):
        model.clients = _clients(n)
        assert model.learn(16).client_thetas.shape == (n, 2)
        assert model.client_thetas.any(1).all()


def test_learners_of_clients_go_on_where_nothing_changed():
    model = _model().learn(16)
    learners = model._sampled_clients().learners
    assert model.learn(16)._sampled_clients().learners is learners
    model.clients = list(model.clients)
    assert model._sampled_clients().learners is learners


CHANGES = {
    "discount": 0.5, "horizon": 3, "l2": 0.5, "irl_iterations": 2, "irl_learning_rate": 0.1, "irl_tol": 1.0,
    "irl_timesteps": 32, "normalize_reward": False, "policy_features": "samples",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_a_setting_that_was_changed_after_learning_is_the_one_that_counts(name, value):
    model = _model().learn(16)
    before = model._sampled_clients()
    setattr(model, name, value)
    after, expected = model._sampled_clients(), _model(**{name: value})._sampled_clients()
    assert after is not before
    assert type(after) is type(expected)
    np.testing.assert_array_equal(after.expert, expected.expert)
    plain = ("_horizon", "_l2", "_tol", "_n_timesteps", "_learning_rate")
    assert [getattr(after, each, None) for each in plain] == [getattr(expected, each, None) for each in plain]
    assert after._n_iterations.tolist() == expected._n_iterations.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(16)
    if name == "discount":
        assert model.agent.gamma == model.agent.rollout_buffer.gamma == value


@pytest.mark.parametrize(("name", "value"), [("learner", "sac"), ("learner_kwargs", {"n_steps": 8})])
def test_what_a_made_learner_cannot_become_is_refused(name, value):
    model = _model().learn(16)
    setattr(model, name, value)
    with pytest.raises(ValueError, match=f"`{name}` cannot become"):
        model.learn(16)


@pytest.mark.parametrize(("name", "value"), [("discount", 0.5), ("horizon", 3)])
def test_in_finite_worlds_too_settings_are_read_when_learning(name, value):
    model = _grid()
    setattr(model, name, value)
    np.testing.assert_array_equal(model.learn(1).theta, _grid(**{name: value}).learn(1).theta)
    model.horizon, model.discount = None, 1.0
    with pytest.raises(ValueError, match=r"`discount` must be in \[0, 1\)"):
        model.learn(1)


def test_features_may_become_others_of_the_same_kind_and_number():
    model = _model().learn(16)
    model.features = lambda observations, actions: -_linear(observations, actions)
    np.testing.assert_array_equal(model.learn(16)._sampled_clients().expert, -_model()._sampled_clients().expert)
    model.features = lambda observations, actions: _linear(observations, actions)[:, :1]
    with pytest.raises(ValueError, match="`features` must be 2 of the kind that the model was made with, got 1"):
        model.learn(16)


@pytest.mark.parametrize("learner", ["ppo", "sac"])
@pytest.mark.parametrize("normalize_reward", [True, False])
def test_a_model_that_has_learned_can_be_copied_and_pickled_and_goes_on(learner, normalize_reward):
    kwargs = PPO_KWARGS if learner == "ppo" else {"learning_starts": 4, "buffer_size": 50}
    model = _model(learner=learner, learner_kwargs=kwargs, normalize_reward=normalize_reward).learn(16)
    where = np.zeros((3, 2), np.float32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict(where, deterministic=True)[0], model.predict(where, deterministic=True)[0])
        np.testing.assert_array_equal(other.theta, model.theta)
        assert other.policy is other.agent.policy
        assert other.learn(16).num_timesteps == 16


def test_a_file_is_not_loaded_with_other_basis_functions_than_its_own(tmp_path):
    features = rbf_features(BOX, PUSH, n_centers=6)
    model = _model(features=features, support=lattice_support(features, [5, 5, 5])).learn(16)
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(FedIRL.load(tmp_path / "m", features=features).theta, model.theta)
    for other in (rbf_features(BOX, PUSH, n_centers=6, seed=9), _linear):
        with pytest.raises(ValueError, match="`features` are not the radial basis functions of `path`"):
            FedIRL.load(tmp_path / "m", features=other)


@pytest.mark.parametrize("given", [{"learner": "ppo"}, {"features": _linear}, {"irl_timesteps": 3}])
def test_what_does_not_apply_to_a_file_is_refused_when_it_is_loaded(tmp_path, given):
    _grid().save(tmp_path / "g")
    with pytest.raises(TypeError, match=f"`{next(iter(given))}` does not apply where `env` is finite"):
        FedIRL.load(tmp_path / "g", **given)


# ---------------------------------------------------------------- features of the user's


@pytest.mark.parametrize("policy_features", ["learner", "samples"])
@pytest.mark.parametrize("change", [lambda x: x.float(), lambda x: x.requires_grad_(), lambda x: (10 * x).long().half()])
def test_features_of_any_real_type_will_do(change, policy_features):
    def features(observations, actions):
        return change(_linear(observations, actions))

    with warnings.catch_warnings():
        # Of few effective samples.
        warnings.simplefilter("ignore", UserWarning)
        model = _model(features=features, policy_features=policy_features).learn(16)
    assert np.isfinite(model.theta).all()
    assert model.reward(np.zeros((1, 2)), np.zeros((1, 1))).shape == (1,)
    paying = FusedRewardEnv(Somewhere(), features, th.ones(2))
    seen, _ = paying.reset(seed=0)
    assert paying.step(np.zeros(1))[1] == pytest.approx(float(features(seen[None], None).detach().double().sum()), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x.numpy(), TypeError, "`features` must return a tensor, got ndarray"),
        (lambda x: x[:, :1], ValueError, "`features` must return the shape (1, 2), got (1, 1)"),
        (lambda x: x * NAN, ValueError, "`features` returned NaN"),
        (lambda x: x + 0j, ValueError, "`features` must return real numbers"),
    ],
)
def test_features_that_break_while_learning_are_named(change, error, message):
    calls = []

    def features(observations, actions):
        calls.append(None)
        # Single rows are asked for by the clients' environments; the demonstrations' are more.
        broken = len(calls) > 12 and len(observations) == 1
        return change(_linear(observations, actions)) if broken else _linear(observations, actions)

    with pytest.raises(error, match=re.escape(message)):
        _model(features=features).learn(16)


@pytest.mark.parametrize("policy", ["MlpPolicy", CnnPolicy])
def test_images_are_shown_to_features_as_the_environment_gives_them(policy, tmp_path):
    image = spaces.Box(0, 255, (40, 36, 3), np.uint8)
    shapes = set()

    def features(observations, actions):
        shapes.add(np.shape(observations)[1:])
        return _linear(observations, actions) / 255

    clients = [Client(Somewhere(image), _episodes(image, seed=seed)) for seed in range(2)]
    settings = {"clients": clients, "features": features, "support": SUPPORT, **SHORT}
    model = FedIRL(policy, Somewhere(image), **settings).learn(16)
    assert shapes == {(40, 36, 3)}
    seen = clients[0].demonstrations[0].observations[:2]
    assert model.reward(seen, np.zeros((2, 1))).shape == (2,)
    model.save(tmp_path / "images")
    loaded = FedIRL.load(tmp_path / "images", features=features)
    np.testing.assert_array_equal(loaded.reward(seen, np.zeros((2, 1))), model.reward(seen, np.zeros((2, 1))))
    np.testing.assert_array_equal(loaded.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0])
    with pytest.raises(ValueError, match=r"`obs` must have the shape \(2, 40, 36, 3\)"):
        model.reward(seen.transpose(0, 3, 1, 2), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="`observation_space` must be a Box of one axis"):
        _model(clients, Somewhere(image), features=None, support=None)


def test_observations_that_are_normalised_below_are_shown_to_features_as_they_were():
    seen = []

    def features(observations, actions):
        seen.append(np.array(observations))
        return _linear(observations, actions)

    for wrap in (lambda env: env, VecMonitor):
        seen.clear()
        paying = PayingVecEnv(wrap(VecNormalize(DummyVecEnv([lambda: Somewhere(n_steps=50)]))), features, Horizon(0.9))
        paying.theta = th.ones(2).double()
        paying.reset()
        for _ in range(20):
            raw = paying._normalizer.get_original_obs()
            paying.step(np.zeros((1, 1)))
            np.testing.assert_array_equal(seen[-1], raw)
    stacked = VecFrameStack(VecNormalize(DummyVecEnv([Somewhere])), 2)
    with pytest.raises(ValueError, match="has `VecFrameStack` above `VecNormalize`"):
        PayingVecEnv(stacked, features, Horizon(0.9))
    twice = VecNormalize(VecNormalize(DummyVecEnv([Somewhere])))
    with pytest.raises(ValueError, match="has another `VecNormalize` above `VecNormalize`"):
        PayingVecEnv(twice, features, Horizon(0.9))


# ---------------------------------------------------------------- endless and broken environments


def test_environments_without_end_are_left_after_the_steps_that_were_asked_for():
    with pytest.warns(UserWarning, match="effective samples"):
        model = _model(_clients(n_steps=None), policy_features="samples", irl_timesteps=30).learn(16)
    assert np.isfinite(model.theta).all()

    class Still:
        def predict(self, observation, deterministic=True):
            return np.zeros(1, np.float32), None

    with pytest.raises(ValueError, match="has not ended after 100 steps; wrap the environment in a `TimeLimit`"):
        demonstrate(Still(), Somewhere(n_steps=None), 1, 0, max_steps=100)


@pytest.mark.parametrize("policy_features", ["learner", "samples"])
def test_a_client_whose_environment_breaks_is_named(policy_features):
    clients = [_clients(1)[0], Client(Somewhere(broken_from=3), _episodes(), name="broken")]
    with pytest.raises(ValueError, match="the observations of broken hold NaN or infinite entries"):
        _model(clients, policy_features=policy_features).learn(16)


# ---------------------------------------------------------------- rewards that run away


def test_clients_whose_parameters_grow_without_end_are_warned_of():
    with pytest.warns(
        RuntimeWarning, match=r"clients\[\d\] has not converged: its gradient has grown; lower `irl_learning_rate`"
    ):
        _grid(irl_learning_rate=1e3, irl_iterations=20, fusion="mean_params").learn(1)
    with pytest.warns(RuntimeWarning, match=r"its reward has a range beyond 1e\+06; raise `l2`"):
        _grid(l2=0.0, fusion="mean_params").learn(1)
    with pytest.warns(RuntimeWarning, match=r"clients\[\d\] diverges: its gradient went from .*; lower `irl_learning_rate`"):
        _model(l2=10.0, irl_learning_rate=100.0, irl_iterations=3).learn(16)
    # Steps that are merely few say nothing.
    _grid(irl_learning_rate=0.005, irl_iterations=3, fusion="mean_params").learn(1)


# ---------------------------------------------------------------- who cannot take part


def _table(**changes):
    return replace(WORLDS[0].tabular_model, **changes)


TABLE = WORLDS[0].tabular_model


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"transition": TABLE.transition.numpy()}, TypeError, "`transition` must be a torch tensor, got ndarray"),
        ({"features": TABLE.features.float()}, ValueError, "`features` must be torch.float64, got torch.float32"),
        ({"terminal": TABLE.terminal.long()}, ValueError, "`terminal` must be torch.bool, got torch.int64"),
        ({"features": TABLE.features[..., :0]}, ValueError, "none of them empty"),
    ],
)
def test_a_process_of_other_types_is_refused_where_it_is_made(changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        _table(**changes)


class Tabular(gym.Env):
    """A finite world of any spaces."""

    def __init__(self, model, n_states=25, n_actions=4, start=0):
        self.tabular_model = model
        self.observation_space = spaces.Discrete(n_states, start=start)
        self.action_space = spaces.Discrete(n_actions)
        self.lattice_axes = WORLDS[0].lattice_axes


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (Tabular(TABLE, n_states=30), "the `tabular_model` of `env` has the shape (25, 4, 25)"),
        (Tabular(TABLE, n_actions=6), "the `tabular_model` of `env` has the shape (25, 4, 25)"),
        (Tabular(TABLE, start=1), "`observation_space` of `env` must start at 0"),
        (Tabular(_table(features=TABLE.features[..., :1])), "clients[0] has 2 features, `env` 1"),
    ],
)
def test_a_process_that_is_not_of_its_spaces_is_refused(world, message):
    clients = _members()
    if world.observation_space != clients[0].env.observation_space or world.action_space != clients[0].env.action_space:
        clients = [Client(world, clients[0].demonstrations)]
    with pytest.raises(ValueError, match=re.escape(message)):
        _grid_of(world, clients)


def _grid_of(world, clients):
    return FedIRL("MlpPolicy", world, clients=clients, device="cpu")


@pytest.mark.parametrize(
    ("states", "actions", "message"),
    [
        ([0, 35], [0], "`observations` must be in [0, 25), got 0 to 35"),
        ([0, -1], [0], "`observations` must be in [0, 25), got -1 to 0"),
        ([0, 1], [4], "`actions` must be in [0, 4), got 4 to 4"),
        ([0.0, 1.0], [0], "`observations` of a tabular demonstration must be a row of integers"),
        (np.array([2**63, 1], np.uint64), [0], "`observations` must be in [0, 25)"),
        (np.array([0, 1], np.longdouble), [0], "must be a row of integers"),
    ],
)
def test_demonstrations_of_another_world_are_named_before_anything_is_learned(states, actions, message):
    episode = Trajectory(np.array(states), np.array(actions), False)
    client = Client(WORLDS[0], [*gridworld.expert(WORLDS[0], 1, seed=0), episode], name="lost")
    with pytest.raises(ValueError, match=re.escape("`demonstrations[1]` of lost: ")) as caught:
        _grid([client])
    assert message in str(caught.value)


@pytest.mark.parametrize("actions", [[0, 2], [0, -1], [0.0, 0.7]])
def test_discrete_actions_of_vectors_are_named(actions):
    cart = client_variants.make("CartPole-v1", 0)
    episode = Trajectory(np.zeros((3, 4), np.float32), np.array(actions), False)
    features = rbf_features(
        cart.observation_space, cart.action_space, bounds=client_variants.BOUNDS["CartPole-v1"], n_centers=4
    )
    with pytest.raises(ValueError, match=re.escape("`demonstrations[0]` of clients[0] has actions from")):
        FedIRL("MlpPolicy", cart, clients=[Client(cart, [episode])], features=features, **SHORT)
    with pytest.raises(ValueError, match=r"`actions` must be integers in \[0, 2\)"):
        features(episode.observations[:-1], np.array(actions))


def test_discrete_actions_start_at_0():
    late = spaces.Discrete(3, start=5)
    with pytest.raises(ValueError, match="`action_space` must start at 0"):
        rbf_features(BOX, late)
    with pytest.raises(ValueError, match="`action_space` of `env` must start at 0"):
        _model([Client(Somewhere(actions=late), _episodes(actions=late))], Somewhere(actions=late))


def test_what_is_missing_or_does_not_fit_is_told_when_the_model_is_made():
    with pytest.raises(ValueError, match="`support` is needed where `features` is a function"):
        _model(support=None)
    three = Support(th.as_tensor(np.random.default_rng(0).normal(size=(20, 3))), lattice_cost([20]))
    for make in (_model, _grid):
        with pytest.raises(ValueError, match="`support` must have the 2 features of the clients, got 3"):
            make(support=three)
        with pytest.raises(ValueError, match="`quorum` is 3, but there are only 2 clients"):
            make(quorum=3)
    with pytest.raises(TypeError, match="`policy_kwargs` does not apply where `env` is finite"):
        _grid(policy_kwargs={"net_arch": [4]})
    with pytest.raises(ValueError, match="`policy` must be 'MlpPolicy' or a `TabularPolicy`"):
        FedIRL(int, WORLDS[0], clients=_members())
    with pytest.raises(ValueError, match=r"`margin` must be a number in \(0, 1000\]"):
        _grid(margin=1e12)


def test_a_grid_that_is_too_large_asks_for_a_support():
    wide = spaces.Box(-1.0, 1.0, (17,), np.float32)
    with pytest.raises(ValueError, match=re.escape("`support` is needed: a grid of 2 points along each of 18 coordinates")):
        lattice_support(rbf_features(wide, PUSH))
    thin = rbf_features(wide, PUSH, n_centers=4, bandwidth=0.5)
    assert lattice_support(thin, [4, 4, *[1] * 16]).features.shape == (16, 4)
    with pytest.raises(ValueError, match="`support` is needed: a grid"):
        _model([Client(Somewhere(wide), _episodes(wide))], Somewhere(wide), features=None, support=None)
    with pytest.raises(ValueError, match=r"a grid of .* points with 64 features"):
        lattice_support(rbf_features(BOX, PUSH), [10_000, 10_000, 10_000])
    with pytest.raises(ValueError, match="at most 4096 actions"):
        rbf_features(BOX, spaces.Discrete(100_000))


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"weight": "1"}, TypeError),
        ({"weight": None}, TypeError),
        ({"weight": True}, TypeError),
        ({"weight": 10**400}, ValueError),
        ({"weight": NAN}, ValueError),
        ({"irl_iterations": "3"}, TypeError),
        ({"irl_iterations": NAN}, TypeError),
        ({"irl_iterations": 1.5}, TypeError),
        ({"irl_iterations": True}, TypeError),
        ({"irl_iterations": 10**30}, ValueError),
        ({"name": None}, TypeError),
        ({"name": 1}, TypeError),
    ],
)
def test_numbers_and_names_of_clients_are_checked(kwargs, error):
    (name,) = kwargs
    with pytest.raises(error, match=f"`{name}` must be"):
        Client(WORLDS[0], _members()[0].demonstrations, **kwargs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 1], [0], "no"), TypeError, "`terminated` must be True or False, got 'no'"),
        (([0, 1], [0], None), TypeError, "`terminated` must be True or False"),
        (([0, 1], [0], True, 2), TypeError, "`success` must be True or False"),
        (([[1, 2], [1]], [0], True), ValueError, "`observations` must be an array of numbers, all steps of one shape"),
    ],
)
def test_trajectories_are_checked(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Trajectory(*arguments)


def test_a_client_keeps_the_demonstrations_that_were_checked():
    episodes = list(_members()[0].demonstrations)
    client = Client(WORLDS[0], episodes)
    episodes.clear()
    assert len(client.demonstrations) == 5


class Says:
    def __init__(self, answer):
        self.answer = answer

    def predict(self, observation, deterministic=True):
        return self.answer


def test_agents_that_do_not_predict_are_named_and_plain_integers_are_actions():
    cart = client_variants.make("CartPole-v1", 0)
    assert len(demonstrate(Says((1, None)), cart, 1, 0)[0]) > 3
    for answer in (None, 1, (1,)):
        with pytest.raises(TypeError, match="`agent` must predict an action and a state"):
            demonstrate(Says(answer), cart, 1, 0)
    with pytest.raises(TypeError, match="`agent` must have a method `predict`"):
        demonstrate(None, cart, 1, 0)
    for env in (None, DummyVecEnv([lambda: cart])):
        with pytest.raises(TypeError, match="`env` must be one Gymnasium environment"):
            demonstrate(Says((1, None)), env, 1, 0)
    for name, value in (("n_episodes", 1.5), ("n_episodes", 0), ("seed", -1), ("seed", "0")):
        with pytest.raises((TypeError, ValueError), match=f"`{name}` must be an integer"):
            demonstrate(Says((1, None)), cart, **{"n_episodes": 1, "seed": 0, name: value})
    for dataset in (None, 1, [], object()):
        with pytest.raises(TypeError, match="`dataset` must be the id of a Minari data set"):
            from_minari(dataset)


@pytest.mark.parametrize("observation", [-1, 25, 1.5, NAN])
def test_the_policy_of_a_finite_world_knows_its_states_alone(observation):
    with pytest.raises(ValueError, match=r"`observation` must be integers in \[0, 25\)"):
        _grid().predict(observation)


def test_rewards_are_asked_for_in_pairs():
    model = _grid()
    assert model.reward(np.zeros(0, int), np.zeros(0, int)).shape == (0,)
    assert model.reward(3, 1).shape == (1,)
    for obs, actions in (([0, 1], [0]), ([0, 1, 2], [0, 1]), ([[0, 1]], [[0, 1]]), ([-1], [0])):
        with pytest.raises(ValueError, match="must be integers in"):
            model.reward(obs, actions)
    assert _model().reward(np.zeros((0, 2)), np.zeros((0, 1))).shape == (0,)
    features = rbf_features(BOX, PUSH, n_centers=4)
    assert features(np.zeros((0, 2)), np.zeros((0, 1))).shape == (0, 4)
    for shapes in (((2,), (1,)), ((2, 2), (3, 1)), ((2, 3), (2, 1)), ((2, 2), (2, 5))):
        with pytest.raises(ValueError, match="`observations`"):
            features(*map(np.zeros, shapes))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"n_centers": 10**9}, {"n_centers": 1.5}, {"bandwidth": 0.0}, {"bandwidth": "1"}, {"bandwidth": 1e300}, {"seed": None},
        {"bounds": 1}, {"bounds": ([0, 0],)}, {"bounds": ([0, 0, 0], [1, 1, 1])}, {"bounds": ([0, 0], ["a", "b"])},
    ],
)  # fmt: skip
def test_basis_functions_name_their_arguments(kwargs):
    (name,) = kwargs
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        rbf_features(BOX, PUSH, **kwargs)


@pytest.mark.parametrize("lengths", [[], "333", 5, [3.5, 3, 3], [True] * 3, [0, 3, 3], [NAN] * 3])
def test_lengths_of_grids_are_named(lengths):
    with pytest.raises((TypeError, ValueError), match="`lengths"):
        lattice_support(rbf_features(BOX, PUSH, n_centers=4), lengths)
    with pytest.raises(TypeError, match="`features` must be those of `rbf_features`, got function"):
        lattice_support(_linear)


def test_ranges_of_the_equations_are_checked():
    for arguments in (("x",), (None,), (1.0, 1.5), (0.9, NAN), (0.9, True)):
        with pytest.raises((TypeError, ValueError), match="must be"):
            Horizon(*arguments)
    models = TabularModel(
        *(getattr(TABLE, name)[None] for name in ("transition", "rewards", "features", "initial", "terminal"))
    )
    expert, samples = th.zeros(1, 2).double(), th.ones(1, 5, 2).double()
    for name, value in (
        ("l2", NAN), ("l2", "x"), ("n_iterations", -1), ("n_iterations", 1.5), ("n_iterations", th.tensor([1, 2])),
        ("tol", NAN), ("learning_rate", 0.0), ("learning_rate", NAN), ("init", expert * NAN), ("horizon", 0.9),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
            fit(models, expert, **{"horizon": Horizon(0.9), name: value})
    for name, value in (
        ("n_steps", 0),
        ("n_steps", NAN),
        ("l2", -1),
        ("n_iterations", NAN),
        ("tol", -1),
        ("init", expert * NAN),
    ):
        with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
            fit_sampled(expert, samples, **{"n_steps": 10.0, name: value})
    for theta in (None, np.zeros(2)):
        with pytest.raises(TypeError, match="`theta` must be a torch tensor"):
            FusedRewardEnv(Somewhere(), _linear, theta)
    with pytest.raises(RuntimeError, match="call `reset` before `step`"):
        FusedRewardEnv(Somewhere(), _linear, th.zeros(2)).step(np.zeros(1))


# ---------------------------------------------------------------- what reaches whom


def test_every_setting_of_the_fusion_reaches_it():
    settings = {"reg": 2.0, "debiased": False, "margin": 0.5}
    model = _model(**settings).learn(16)
    expected = aggregate(th.as_tensor(model.client_thetas), SUPPORT, **settings)
    np.testing.assert_array_equal(model.theta, expected.theta)
    for name in settings:
        other = aggregate(th.as_tensor(model.client_thetas), SUPPORT, **{k: v for k, v in settings.items() if k != name})
        assert not np.array_equal(model.theta, other.theta)


@pytest.mark.parametrize("make", [_grid, _model])
def test_going_on_starts_the_clients_from_the_fused_reward(make):
    model = make().learn(1)
    fused, model.irl_iterations = model.theta, 0
    np.testing.assert_array_equal(model.learn(1, reset_num_timesteps=False).client_thetas, np.tile(fused, (2, 1)))
    assert not model.learn(1).client_thetas.any()


def test_two_rounds_of_one_step_are_one_of_two_steps_for_a_single_client():
    ascent = {"clients": _members()[:1], "fusion": "mean_params", "irl_learning_rate": 0.1, "irl_tol": 0.0}
    twice, once = _grid(**ascent, n_rounds=2, irl_iterations=1), _grid(**ascent, n_rounds=1, irl_iterations=2)
    np.testing.assert_allclose(twice.learn(1).theta, once.learn(1).theta, atol=1e-10)


def test_learners_are_paid_in_units_of_their_returns_unless_they_are_not_to_be():
    plain = _model(normalize_reward=False)._sampled_clients().learners[0].env
    assert isinstance(plain, PayingVecEnv)
    model = _model(discount=0.7)
    env = model._sampled_clients().learners[0].env
    assert isinstance(env, VecNormalize)
    assert (env.gamma, env.norm_obs, env.norm_reward) == (0.7, False, True)
    model.learn(16)
    seen = env.ret_rms.count
    # One iteration of 16 steps, after the statistics were started anew.
    assert seen == pytest.approx(16, abs=1)
    model.learn(16)
    assert env.ret_rms.count == seen


def test_true_rewards_are_those_of_the_environment_also_where_a_wrapper_normalises_them():
    class Paid(Somewhere):
        def step(self, action):
            return (self._look(), 7.0, *super().step(action)[2:])

    paying = PayingVecEnv(VecMonitor(VecNormalize(DummyVecEnv([Paid]))), _linear, Horizon(0.9))
    paying.reset()
    for _ in range(5):
        assert paying.step(np.zeros((1, 1)))[3][0]["true_reward"] == 7.0


def test_environments_that_two_share_are_warned_of():
    env = Somewhere()
    with pytest.warns(UserWarning, match=r"clients\[0\] has the same environment object as `env`"):
        _model([Client(env, _episodes())], env)
    with pytest.warns(UserWarning, match=r"clients\[1\] has the same environment object as clients\[0\]"):
        _model([Client(env, _episodes()), Client(DummyVecEnv([lambda: env]), _episodes())])
