"""SB3's own policy classes in a team of one and with shared parameters: used as SB3 uses them, refused elsewhere by name."""

import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv, WanderersEnv
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env as make_sb3_env
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.dqn import MlpPolicy as DQNPolicy
from toy_teams import CustomSpacesEnv, vector

from otbaselines import IPPO, WBC, ParallelVecEnv, evaluate_team, make_vec_env

SMALL = {"n_steps": 8, "batch_size": 24, "n_epochs": 1, "seed": 0, "policy_kwargs": {"net_arch": [8]}}


class ConstantValue(ActorCriticPolicy):
    """``forward`` claims a value that no critic would give."""

    constant = 2.5

    def forward(self, obs, deterministic=False):
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, th.full_like(values, self.constant), log_prob

    def predict_values(self, obs):
        return super().predict_values(obs) * 0.0 + 0.5


@pytest.fixture(params=[IPPO, WBC], ids=lambda cls: cls.__name__)
def algorithm(request):
    return request.param


def _team(kind="parallel"):
    if kind == "tensor":
        return make_vec_env("otbaselines/Navigation-v0", n_copies=2, seed=0, env_kwargs={"n_agents": 3})
    return ParallelVecEnv(WanderersEnv((3, 3, 3), truncates=kind == "truncating"), 2)


def _build(algorithm, policy, env, **kwargs):
    one = isinstance(env, str) or env.num_envs == 1
    settings = {**SMALL, "batch_size": 8} if one else {**SMALL, "share_parameters": True}
    return algorithm(policy, env, **settings, **kwargs)


class _Keep(BaseCallback):
    """What the rollout held at its end."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        names = ("rewards", "dones", "bootstrap", "values", "advantages", "returns")
        self.kept = {name: getattr(buffer, name).clone() for name in names}


@pytest.mark.parametrize("kind", ["CartPole-v1", "parallel", "truncating", "tensor"])
def test_the_values_of_a_custom_forward_are_those_of_the_advantages(kind):
    model = _build(IPPO, ConstantValue, kind if "-" in kind else _team(kind), gamma=0.9, gae_lambda=0.8)
    keep = _Keep()
    model.learn(1, callback=keep)
    kept = keep.kept
    assert (kept["values"] == 2.5).all()
    # Where an episode was cut off, and after the last step, SB3 asks `predict_values`.
    assert set(kept["bootstrap"].unique().tolist()) <= {0.0, 0.5}
    assert (kept["bootstrap"] > 0).any() == (kind == "truncating")
    advantage, following = th.zeros_like(kept["rewards"][0]), th.full_like(kept["rewards"][0], 0.5)
    for step in reversed(range(8)):
        alive = 1.0 - kept["dones"][step].float()
        rewards = kept["rewards"][step] + 0.9 * kept["bootstrap"][step]
        advantage = rewards + 0.9 * alive * following - 2.5 + 0.9 * 0.8 * alive * advantage
        following = th.full_like(following, 2.5)
        th.testing.assert_close(kept["advantages"][step], advantage, atol=1e-5, rtol=1e-5)
    th.testing.assert_close(kept["returns"], kept["advantages"] + 2.5)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_an_iteration_is_that_of_sb3s_ppo(env_id):
    # One minibatch holds the rollout, so that its order does not matter.
    settings = {"n_steps": 64, "batch_size": 128, "n_epochs": 3, "ent_coef": 0.01, "learning_rate": 1e-3}
    states = []
    for cls in (PPO, IPPO):
        th.manual_seed(0)
        # Rows of single agents: two copies of a team of one.
        model = cls(ActorCriticPolicy, make_sb3_env(env_id, n_envs=2), **settings)
        model.env.seed(1)
        th.manual_seed(2)
        model.learn(128)
        states.append(model.policy.state_dict())
    assert model.layout.n_agents == 1
    for name, expected in states[0].items():
        th.testing.assert_close(states[1][name], expected, atol=2e-5, rtol=1e-4, msg=name)


SPACES = {
    "discrete": (vector(3), spaces.Discrete(3), ActorCriticPolicy),
    "from_five": (vector(3), spaces.Discrete(3, start=5), ActorCriticPolicy),
    "box": (vector(3), spaces.Box(-2, 3, (2,), np.float32), ActorCriticPolicy),
    "matrix": (vector(3), spaces.Box(-2, 3, (2, 2), np.float32), ActorCriticPolicy),
    "multi_discrete": (vector(3), spaces.MultiDiscrete([2, 3]), ActorCriticPolicy),
    "multi_binary": (vector(3), spaces.MultiBinary(2), ActorCriticPolicy),
    "dict": (spaces.Dict(v=vector(3), n=spaces.Discrete(2)), spaces.Discrete(3), MultiInputActorCriticPolicy),
    "image": (spaces.Box(0, 255, (3, 36, 36), np.uint8), spaces.Discrete(3), ActorCriticCnnPolicy),
}


@pytest.mark.parametrize("kind", SPACES)
def test_every_space_is_trained_and_predicted(algorithm, kind):
    if algorithm is WBC and kind.startswith("multi"):
        pytest.skip("WBC compares policies over Discrete or Box actions")
    obs, action, policy = SPACES[kind]
    model = algorithm(policy, AnySpacesEnv(obs, action), **{**SMALL, "batch_size": 8})
    before = {name: p.clone() for name, p in model.policy.state_dict().items()}
    model.learn(16)
    assert any(not th.equal(p, before[name]) for name, p in model.policy.state_dict().items())
    assert action.contains(model.predict(obs.sample())[0])


@pytest.mark.parametrize("policy", [ActorCriticPolicy, "MlpPolicy"])
def test_squashed_actions_fill_the_box_and_take_the_samples_surprise_for_entropy(policy):
    env = AnySpacesEnv(vector(3), spaces.Box(-2, 6, (1,), np.float32))
    kwargs = {"squash_output": True, "log_std_init": 1.0, "net_arch": [8]}
    model = IPPO(policy, env, **{**SMALL, "batch_size": 8, "use_sde": True, "ent_coef": 0.1, "policy_kwargs": kwargs})
    model.learn(64)
    taken = np.array(env.actions)
    assert taken.min() < -1.0
    assert taken.max() > 4.0
    stored = model.rollout_buffer.actions.flatten().cpu().numpy()
    assert np.abs(stored).max() <= 1.0
    np.testing.assert_allclose(taken.flatten()[-8:], 2.0 + 4.0 * stored, atol=1e-5)
    obs, agent = env.observation_space.sample(), model.layout.possible_agents[0]
    by_agent = model.predict({agent: obs}, deterministic=True)[0][agent]
    np.testing.assert_allclose(by_agent, model.predict(obs, deterministic=True)[0], atol=1e-5)
    assert np.isfinite(model.logger.name_to_value["train/entropy_loss"])


# ---------------------------------------------------------------- teams
@pytest.mark.parametrize("kind", ["parallel", "tensor"])
def test_a_team_that_shares_parameters_is_predicted_by_rows_and_by_agents_and_evaluated(kind):
    model = _build(IPPO, ActorCriticPolicy, _team(kind))
    model.learn(48)
    rows = np.stack([model.observation_space.sample() for _ in range(3)])
    by_rows, _ = model.predict(rows, deterministic=True)
    agents = model.layout.possible_agents
    by_agents, _ = model.predict(dict(zip(agents, rows, strict=True)), deterministic=True)
    np.testing.assert_array_equal(np.stack([by_agents[agent] for agent in agents]), by_rows)
    assert evaluate_team(model, _team(kind), n_eval_episodes=2).n_episodes == 2


def test_consensus_is_inert_in_a_team_of_one():
    states = []
    for algorithm in (IPPO, WBC):
        model = _build(algorithm, ConstantValue, "CartPole-v1")
        model.learn(32)
        states.append(model.policy.state_dict())
        assert not any(name.startswith("consensus/") for name in model.logger.name_to_value)
    assert all(th.equal(states[1][name], p) for name, p in states[0].items())


@pytest.mark.parametrize("kind", ["CartPole-v1", "parallel"])
def test_a_small_target_kl_stops_the_one_set_of_parameters(kind):
    env = kind if "-" in kind else _team()
    model = _build(IPPO, ActorCriticPolicy, env, target_kl=1e-9, learning_rate=0.1)
    model.n_epochs = 5
    model.learn(1)
    steps = {float(entry["step"]) for entry in model.policy.optimizer.state_dict()["state"].values()}
    assert steps <= {1.0, 2.0}


# ---------------------------------------------------------------- saving
@pytest.mark.parametrize("kind", ["CartPole-v1", "parallel"])
def test_sb3s_classes_are_saved_by_name(kind, tmp_path):
    env = kind if "-" in kind else _team()
    model = _build(IPPO, ActorCriticPolicy, env)
    model.learn(48)
    model.save(tmp_path / "model")
    loaded = IPPO.load(tmp_path / "model", env=model.env)
    assert type(loaded.policy) is ActorCriticPolicy
    for name, p in model.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[name], p)
    loaded.learn(48, reset_num_timesteps=False)


def test_a_class_of_ones_own_is_asked_for_at_load(algorithm, tmp_path):
    model = _build(algorithm, ConstantValue, "CartPole-v1")
    with pytest.warns(UserWarning, match="policy_class"):
        model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"custom_objects=\{'policy_class': \.\.\.\}"):
        algorithm.load(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", custom_objects={"policy_class": ConstantValue})
    assert type(loaded.policy) is ConstantValue
    for name, p in model.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[name], p)


# ---------------------------------------------------------------- refusals
def test_agents_with_parameters_of_their_own_cannot_use_one_set(algorithm):
    with pytest.raises(ValueError, match=r"`policy` ActorCriticPolicy has one set of parameters.*`share_parameters=True`"):
        algorithm(ActorCriticPolicy, _team(), **SMALL)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (DQNPolicy, "`policy` DQNPolicy is no actor-critic policy"),
        (RecurrentActorCriticPolicy, "`policy` RecurrentActorCriticPolicy needs 'lstm_states', 'episode_starts'"),
    ],
)
def test_other_policies_are_refused_by_name(algorithm, policy, message):
    with pytest.raises(ValueError, match=message):
        algorithm(policy, "CartPole-v1", n_steps=8, batch_size=8)


def test_padded_actions_cannot_be_masked_by_sb3s_policies():
    env = CustomSpacesEnv({"a": vector(2), "b": vector(2)}, {"a": spaces.Discrete(2), "b": spaces.Discrete(4)})
    with pytest.raises(ValueError, match="`policy` ActorCriticPolicy cannot mask padded actions"):
        IPPO(ActorCriticPolicy, env, **{**SMALL, "share_parameters": True, "batch_size": 16})


def test_the_extractor_has_sb3s_name_where_there_is_one():
    one, team = IPPO("MlpPolicy", "CartPole-v1"), IPPO("MlpPolicy", _team(), **SMALL)
    assert one.policy.features_extractor is one.policy.pi_extractors[0]
    assert team.policy.features_extractor is None
    assert team.policy.agent(1).features_extractor is team.policy.pi_extractors[1]
    assert not any(name.startswith("features_extractor") for name in one.policy.state_dict())
