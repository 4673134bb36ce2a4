"""What SB3's PPO promises on Gymnasium environments, and what the loop promises on teams."""

import dataclasses
import pickle

import gymnasium as gym
import numpy as np
import pytest
import supersuit as ss
import torch as th
from core_toys import AnySpacesEnv, WanderersEnv
from gymnasium import spaces
from mpe2 import simple_spread_v3
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from toy_teams import CustomSpacesEnv, DiceEnv, vector

from otbaselines.common.vec_env.make import make_vec_env
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv
from otbaselines.ippo import IPPO

pytestmark = pytest.mark.filterwarnings("ignore:the rollout of")
SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0}


def _cartpole(**kwargs):
    return IPPO("MlpPolicy", "CartPole-v1", **{**SMALL, **kwargs})


def _flat(model):
    return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def _same(first, second):
    return bool((_flat(first) == _flat(second)).all())


# ---------------------------------------------------------------- spaces
OBSERVATIONS = {
    "vector": spaces.Box(-1, 1, (3,), np.float32),
    "matrix": spaces.Box(-1, 1, (2, 3), np.float64),
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "dict": spaces.Dict(v=vector(2), n=spaces.Discrete(3), image=spaces.Box(0, 255, (36, 36, 1), np.uint8)),
}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "discrete_from_one": spaces.Discrete(3, start=1),
    "box": spaces.Box(-0.5, 0.5, (2,), np.float32),
    "box_matrix": spaces.Box(-1, 1, (2, 2), np.float32),
    "box_scalar": spaces.Box(-1, 1, (), np.float32),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(2),
}


def _learn_and_predict(obs, action):
    policy = {"image": "CnnPolicy", "dict": "MultiInputPolicy"}.get(obs, "MlpPolicy")
    env = AnySpacesEnv(OBSERVATIONS[obs], ACTIONS[action])
    model = IPPO(policy, env, n_steps=8, batch_size=8, n_epochs=1, seed=0).learn(16)
    shown = OBSERVATIONS[obs].sample()
    single, _ = model.predict(shown)
    assert ACTIONS[action].contains(single) or obs == "multi_binary" or action == "multi_binary", single
    assert np.shape(single) == ACTIONS[action].shape
    batch = {key: np.stack([value] * 3) for key, value in shown.items()} if obs == "dict" else np.stack([shown] * 3)
    assert model.predict(batch, deterministic=True)[0].shape == (3, *ACTIONS[action].shape)


@pytest.mark.parametrize("obs", OBSERVATIONS)
def test_every_observation_space_is_learned_and_predicted(obs):
    _learn_and_predict(obs, "discrete")


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_space_is_learned_and_predicted(action):
    _learn_and_predict("vector", action)


def test_an_image_under_the_mlp_policy_is_flattened_as_in_sb3():
    env = AnySpacesEnv(OBSERVATIONS["image"], ACTIONS["discrete"])
    model = IPPO("MlpPolicy", env, **SMALL).learn(16)
    assert model.policy.pi_net.layers[0].in_features == 36 * 36 * 3


def test_a_team_that_sees_images_has_one_convolutional_network_per_agent():
    image = OBSERVATIONS["image"]
    env = CustomSpacesEnv({"a": image, "b": image}, {"a": spaces.Discrete(2), "b": spaces.Discrete(2)})
    model = IPPO("CnnPolicy", env, n_steps=4, batch_size=4, n_epochs=1, seed=0).learn(8)
    assert len(model.policy.pi_extractors) == 2
    assert not th.equal(*(extractor.linear[0].weight for extractor in model.policy.pi_extractors))


def test_without_scaling_anything_with_three_dimensions_is_an_image_as_in_sb3():
    # Such as images that `VecNormalize` has scaled.
    env = AnySpacesEnv(spaces.Box(-10.0, 10.0, (1, 36, 36), np.float32), ACTIONS["discrete"])
    with pytest.raises(ValueError, match="is for images, but the agents observe"):
        IPPO("CnnPolicy", env, **SMALL)
    model = IPPO("CnnPolicy", env, policy_kwargs={"normalize_images": False}, **SMALL).learn(16)
    assert model.policy.pi_extractors[0].cnn[0].in_channels == 1
    last = AnySpacesEnv(spaces.Box(0.0, 1.0, (36, 36, 3), np.float32), ACTIONS["discrete"])
    with pytest.raises(ValueError, match=r"`features_extractor_class` NatureCNN cannot read .*must have channels first"):
        IPPO("CnnPolicy", last, policy_kwargs={"normalize_images": False}, **SMALL)
    told = {"features_extractor_kwargs": {"normalized_image": True}, "normalize_images": False}
    assert IPPO("CnnPolicy", env, policy_kwargs=told, **SMALL).policy.pi_extractors[0].cnn[0].in_channels == 1
    with pytest.raises(ValueError, match="is for images, but the agents observe"):
        IPPO("CnnPolicy", AnySpacesEnv(vector(3), ACTIONS["discrete"]), policy_kwargs={"normalize_images": False}, **SMALL)


UNSUPPORTED_ACTIONS = {
    "text": (spaces.Text(4), "use Box, Discrete"),
    "tuple": (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]), "use Box, Discrete"),
    "dict": (spaces.Dict(a=spaces.Discrete(2)), "use Box, Discrete"),
    "unbounded": (spaces.Box(-np.inf, np.inf, (2,)), "finite bounds"),
    "matrix_of_choices": (spaces.MultiDiscrete([[2, 2], [3, 3]]), "flatten it"),
    "matrix_of_flags": (spaces.MultiBinary([2, 2]), "flatten it"),
    "shifted": (spaces.MultiDiscrete([2, 2], start=[1, 1]), "count its choices from zero"),
}


@pytest.mark.parametrize("name", UNSUPPORTED_ACTIONS)
def test_action_spaces_that_no_policy_handles_are_errors_with_a_remedy(name):
    space, remedy = UNSUPPORTED_ACTIONS[name]
    with pytest.raises(ValueError, match=f"(?s)the action space .* is not supported; .*{remedy}"):
        IPPO("MlpPolicy", AnySpacesEnv(vector(2), space), **SMALL)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(4),
        spaces.Tuple([vector(2), vector(2)]),
        spaces.Dict(a=spaces.Dict(b=vector(2))),
        spaces.Dict(a=spaces.Tuple([vector(2)])),
        spaces.Dict(),
    ],
    ids=["text", "tuple", "nested", "tuple_in_dict", "empty"],
)
def test_observation_spaces_that_no_policy_handles_are_errors_with_a_remedy(space):
    with pytest.raises(ValueError, match=r"the observation space .* is not supported; use Box"):
        IPPO("MultiInputPolicy", AnySpacesEnv(space, spaces.Discrete(2)), **SMALL)


def test_dict_observations_need_the_multi_input_policy():
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        IPPO("MlpPolicy", AnySpacesEnv(OBSERVATIONS["dict"], ACTIONS["discrete"]), **SMALL)


# ---------------------------------------------------------------- callbacks
class Recorder(BaseCallback):
    """Counts SB3's events and keeps what it finds in the locals."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after = stop_after
        self.events = []
        self.seen = {}

    def _on_training_start(self):
        self.events.append("training_start")
        self.seen["training_start"] = set(self.locals)

    def _on_rollout_start(self):
        self.events.append("rollout_start")

    def _on_step(self):
        self.events.append("step")
        self.seen["step"] = set(self.locals)
        assert len(self.locals["infos"]) == len(self.locals["dones"]) == len(self.locals["rewards"].reshape(-1))
        return self.stop_after is None or self.n_calls < self.stop_after

    def _on_rollout_end(self):
        self.events.append("rollout_end")
        self.seen["rollout_end"] = set(self.locals)

    def _on_training_end(self):
        self.events.append("training_end")


def _environments():
    yield "gymnasium", "CartPole-v1"
    yield "parallel", ParallelVecEnv(lambda: DiceEnv(), 2, seed=0)
    yield "tensor", SimpleSpreadVecEnv(n_copies=2, seed=0)


@pytest.mark.parametrize("name", ["gymnasium", "parallel", "tensor"])
def test_callbacks_see_sb3s_events_and_locals(name):
    env = dict(_environments())[name]
    recorder = Recorder()
    model = IPPO("MlpPolicy", env, **SMALL)
    model.learn(2 * 16 * model.n_envs, callback=recorder)
    rollout = ["rollout_start", *["step"] * 16, "rollout_end"]
    assert recorder.events == ["training_start", *rollout, *rollout, "training_end"]
    assert {"self", "total_timesteps", "callback"} <= recorder.seen["training_start"]
    assert {"self", "env", "infos", "dones", "rewards", "new_obs", "actions"} <= recorder.seen["step"]
    assert {"rollout_buffer", "values"} <= recorder.seen["rollout_end"]


@pytest.mark.parametrize("name", ["gymnasium", "parallel", "tensor"])
def test_a_callback_stops_the_training_at_once(name):
    model = IPPO("MlpPolicy", dict(_environments())[name], **SMALL)
    before = _flat(model).clone()
    model.learn(10_000, callback=Recorder(stop_after=5))
    assert model.num_timesteps == 5 * model.n_envs
    assert (_flat(model) == before).all()


def test_a_plain_function_is_a_callback():
    calls = []
    _cartpole().learn(16, callback=lambda local, _: calls.append(local["dones"]) is None)
    assert len(calls) == 16


def test_sb3s_callbacks_work(tmp_path):
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1e9)
    evaluation = EvalCallback(
        gym.make("CartPole-v1"),
        eval_freq=16,
        n_eval_episodes=2,
        callback_on_new_best=stop,
        callback_after_eval=StopTrainingOnNoModelImprovement(5),
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
        warn=False,
    )
    checkpoints = CheckpointCallback(8, str(tmp_path), name_prefix="mid")
    inner = Recorder()
    model = _cartpole().learn(400, callback=[checkpoints, EveryNTimesteps(4, inner), evaluation])
    assert model.num_timesteps == 16
    assert {path.name for path in tmp_path.iterdir()} >= {"mid_8_steps.zip", "best_model.zip", "evaluations.npz"}
    assert len(inner.events) >= 4
    assert IPPO.load(tmp_path / "best_model", env="CartPole-v1").num_timesteps == 16


def test_training_stops_after_a_number_of_episodes():
    dones = []

    def count(local, _):
        dones.extend(local["dones"])
        return True

    model = _cartpole().learn(10_000, callback=[StopTrainingOnMaxEpisodes(max_episodes=3), ConvertCallback(count)])
    assert sum(dones) == 3
    assert dones[-1]
    assert model.num_timesteps == len(dones)


def test_the_progress_bar_counts_agent_steps(capsys):
    model = IPPO("MlpPolicy", ParallelVecEnv(lambda: DiceEnv(), 2), **SMALL)
    calls = []
    model.learn(128, progress_bar=True, callback=lambda *_: calls.append(1) is None)
    assert "128/128" in capsys.readouterr().err
    assert len(calls) == 32
    # A second call counts its own steps, and goes on with those of the model.
    model.learn(64, progress_bar=True, reset_num_timesteps=False)
    assert "64/64" in capsys.readouterr().err
    assert model.num_timesteps == 192


# ---------------------------------------------------------------- wrappers, networks, optimizers, schedules
def test_vec_normalize_keeps_its_statistics_through_training(tmp_path):
    env = VecNormalize(sb3_make_vec_env("CartPole-v1", 2))
    model = IPPO("MlpPolicy", env, **SMALL).learn(64)
    assert model.get_vec_normalize_env() is env
    assert float(env.obs_rms.count) == pytest.approx(64 + 2, abs=2.1)
    assert len(model.ep_info_buffer) > 0
    # The monitor below reports raw returns: CartPole's equal its lengths.
    assert all(episode["r"] == episode["l"] for episode in model.ep_info_buffer)
    assert abs(float(model.rollout_buffer.observations.mean())) < 1.0


def test_vec_normalize_over_a_team_is_read_through():
    env = VecNormalize(ParallelVecEnv(lambda: DiceEnv(), 2, seed=0))
    model = IPPO("MlpPolicy", env, **SMALL).learn(64)
    assert model.layout.n_agents == 2
    assert model.layout.n_copies == 2
    assert float(env.obs_rms.count) == pytest.approx(17 * 4, abs=0.1)


def test_stacked_frames_are_learned():
    env = VecFrameStack(sb3_make_vec_env("CartPole-v1", 2), 3)
    model = IPPO("MlpPolicy", env, **SMALL).learn(32)
    assert model.policy.pi_net.layers[0].in_features == 12
    assert model.predict(env.reset())[0].shape == (2,)


class Doubler(BaseFeaturesExtractor):
    """A user's own features extractor."""

    def __init__(self, observation_space, factor=1.0):
        super().__init__(observation_space, 7)
        self.layer = th.nn.Linear(int(np.prod(observation_space.shape)), 7)
        self.factor = factor

    def forward(self, observations):
        return self.factor * self.layer(observations)


@pytest.mark.parametrize("share_parameters", [False, True])
def test_networks_extractors_and_optimizers_of_the_users_own_are_trained(share_parameters):
    policy_kwargs = {
        "net_arch": {"pi": [8], "vf": [9, 10]},
        "activation_fn": th.nn.ReLU,
        "features_extractor_class": Doubler,
        "features_extractor_kwargs": {"factor": 2.0},
        "optimizer_class": th.optim.SGD,
        "optimizer_kwargs": {"momentum": 0.5},
        "log_std_init": -1.0,
    }
    env = ParallelVecEnv(lambda: DiceEnv(), 2, seed=0)
    model = IPPO("MlpPolicy", env, policy_kwargs=policy_kwargs, share_parameters=share_parameters, **SMALL)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(64)
    after = model.policy.state_dict()
    assert any("layer.weight" in name for name in after)
    assert all((after[name] != before[name]).any() for name in before)
    assert isinstance(model.policy.optimizer, th.optim.SGD)
    assert model.policy.optimizer.param_groups[0]["momentum"] == 0.5
    assert model.policy.net_arch == {"pi": [8], "vf": [9, 10]}


def test_schedules_follow_the_remaining_progress(tmp_path):
    seen = []
    model = _cartpole(
        learning_rate=lambda left: 1e-3 * left,
        clip_range=LinearSchedule(0.4, 0.0, 1.0),
        clip_range_vf=lambda left: seen.append(left) or 1.0,
    )
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(64)
    log = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True)
    np.testing.assert_allclose(log["trainlearning_rate"][1:], [7.5e-4, 5e-4, 2.5e-4][: len(log) - 1], rtol=1e-6)
    np.testing.assert_allclose(log["trainclip_range"][1:], [0.3, 0.2, 0.1][: len(log) - 1], rtol=1e-6)
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0
    assert min(seen) == 0.0


# ---------------------------------------------------------------- logging
KEYS = {
    "rollout/ep_len_mean",
    "rollout/ep_rew_mean",
    "time/fps",
    "time/iterations",
    "time/time_elapsed",
    "time/total_timesteps",
    "train/approx_kl",
    "train/clip_fraction",
    "train/clip_range",
    "train/entropy_loss",
    "train/explained_variance",
    "train/learning_rate",
    "train/loss",
    "train/n_updates",
    "train/policy_gradient_loss",
    "train/value_loss",
}


@pytest.mark.parametrize("name", ["gymnasium", "parallel", "tensor"])
def test_the_log_has_sb3s_keys(name, tmp_path):
    env = dict(_environments())[name]
    model = IPPO("MlpPolicy", env, **{**SMALL, "n_steps": 32})
    logger = configure(str(tmp_path), ["csv"])
    model.set_logger(logger)
    model.learn(3 * 32 * model.n_envs)
    assert model.logger is logger
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    continuous = {"train/std"} if isinstance(model.action_space, spaces.Box) else set()
    assert set(header) == KEYS | continuous


def test_tensorboard_logs_are_written_under_the_class_or_a_given_name(tmp_path):
    pytest.importorskip("tensorboard")
    model = _cartpole(tensorboard_log=str(tmp_path))
    model.learn(16)
    model.learn(16, tb_log_name="mine")
    assert {path.name for path in tmp_path.iterdir()} == {"IPPO_1", "mine_1"}


def test_episode_statistics_count_every_agents_episode_once():
    env = SimpleSpreadVecEnv(n_copies=2, seed=0)
    model = IPPO("MlpPolicy", env, n_steps=30, batch_size=30, n_epochs=1, seed=0)
    rewards = []
    model.learn(2 * 30 * 6, callback=lambda local, _: rewards.append(local["rewards"].clone()) is None)
    assert [episode["l"] for episode in model.ep_info_buffer] == [25] * 12
    # Episodes go on from one rollout to the next: the second one is made of steps 25 to 49.
    total = th.stack(rewards)
    expected = th.cat([total[:25].sum(0).flatten(), total[25:50].sum(0).flatten()])
    np.testing.assert_allclose([episode["r"] for episode in model.ep_info_buffer], expected, rtol=1e-4)


# ---------------------------------------------------------------- environments
def test_several_copies_of_a_gymnasium_environment_are_one_team_of_one_each():
    model = IPPO("MlpPolicy", sb3_make_vec_env("CartPole-v1", 4), **SMALL).learn(128)
    assert model.layout.n_copies == 4
    assert model.num_timesteps == 128


def test_the_environment_can_be_exchanged():
    model = _cartpole().learn(16)
    other = sb3_make_vec_env("CartPole-v1", 1)
    model.set_env(other)
    assert model.get_env() is other
    model.learn(16, reset_num_timesteps=False)
    assert model.num_timesteps == 32


def test_an_environment_with_other_spaces_or_another_team_is_an_error():
    model = _cartpole()
    with pytest.raises(ValueError, match=r"agent .agent_0. the observation space Box.*built for Box"):
        model.set_env(gym.make("Pendulum-v1"))
    team = IPPO("MlpPolicy", ParallelVecEnv(lambda: DiceEnv(), 3), **SMALL)
    renamed = CustomSpacesEnv({a: vector(3) for a in "abcdef"}, {a: spaces.Box(-1, 1, (2,), np.float32) for a in "abcdef"})
    with pytest.raises(ValueError, match=r"agents \['a', .*built for \['left', 'right'\]"):
        team.set_env(renamed)


def test_training_continues_where_it_was():
    recorder = Recorder()
    model = _cartpole().learn(32)
    model.learn(32, reset_num_timesteps=False, callback=recorder)
    assert model.num_timesteps == 64
    assert recorder.events.count("step") == 32
    model.learn(16)
    assert model.num_timesteps == 16


def test_parameters_are_read_and_written():
    first, second = _cartpole(), _cartpole(seed=1)
    assert not _same(first, second)
    second.set_parameters(first.get_parameters(), exact_match=True)
    assert _same(first, second)
    assert set(first.get_parameters()) == {"policy", "policy.optimizer"}


def test_sb3s_own_evaluation_accepts_the_model():
    mean, std = evaluate_policy(_cartpole(), gym.make("CartPole-v1"), n_eval_episodes=2, warn=False)
    assert mean > 0
    assert std >= 0


# ---------------------------------------------------------------- truncation
@pytest.mark.parametrize("terminates", [False, True])
def test_only_episodes_that_were_cut_off_are_bootstrapped(terminates):
    env = ParallelVecEnv(lambda: DiceEnv(horizon=5, terminates=terminates), 2, seed=0)
    ends = []

    def keep(local, _):
        ends.append([info.get("terminal_observation") for info in local["infos"]])
        return True

    model = IPPO("MlpPolicy", env, **SMALL).learn(64, callback=keep)
    buffer = model.rollout_buffer
    assert buffer.dones[4::5].all()
    assert int(buffer.dones.sum()) == 3 * 4
    if terminates:
        assert (buffer.bootstrap == 0).all()
        return
    assert ((buffer.bootstrap != 0) == buffer.dones).all()
    fresh = IPPO("MlpPolicy", env, **SMALL)
    with th.no_grad():
        for step in (4, 9, 14):
            expected = fresh.policy.predict_values(th.as_tensor(np.stack(ends[step]))).view(2, 2)
            th.testing.assert_close(buffer.bootstrap[step], expected, atol=1e-6, rtol=0)


def test_a_tensor_environment_is_bootstrapped_at_its_horizon():
    env = SimpleSpreadVecEnv(n_copies=2, seed=0, max_cycles=7)
    model = IPPO("MlpPolicy", env, **SMALL)
    finals = []
    model.learn(96, callback=lambda local, _: finals.append(local["step"].final_obs) is None)
    buffer = model.rollout_buffer
    fresh = IPPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=2, seed=0, max_cycles=7), **SMALL)
    assert ((buffer.bootstrap != 0).all(-1).all(-1)).nonzero().flatten().tolist() == [6, 13]
    for step in (6, 13):
        with th.no_grad():
            th.testing.assert_close(buffer.bootstrap[step], fresh.policy.team_values(finals[step]), atol=1e-6, rtol=0)


# ---------------------------------------------------------------- determinism
def _supersuit():
    env = ss.pettingzoo_env_to_vec_env_v1(simple_spread_v3.parallel_env(max_cycles=8))
    return ss.concat_vec_envs_v1(env, 2, num_cpus=0, base_class="stable_baselines3")


INTAKES = {
    "gymnasium": lambda: "CartPole-v1",
    "gymnasium_copies": lambda: sb3_make_vec_env("CartPole-v1", 3),
    "parallel": lambda: ParallelVecEnv(lambda: DiceEnv(), 3),
    "leaving": lambda: ParallelVecEnv(lambda: WanderersEnv(), 2),
    "mpe2": lambda: make_vec_env("mpe2/simple_spread_v3", 2),
    "tensor": lambda: SimpleSpreadVecEnv(n_copies=3),
    "tensor_early": lambda: SimpleSpreadVecEnv(n_copies=3, terminate_on_success=True),
    "supersuit": _supersuit,
}


@pytest.mark.parametrize("intake", INTAKES)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(intake):
    models = []
    for seed in (0, 0, 1):
        np.random.seed(len(models))  # noqa: NPY002
        th.manual_seed(len(models))
        model = IPPO("MlpPolicy", INTAKES[intake](), **{**SMALL, "seed": seed, "n_epochs": 2})
        models.append(model.learn(2 * 16 * model.n_envs))
    assert _same(models[0], models[1])
    assert not _same(models[0], models[2])
    observed = [model.rollout_buffer.observations for model in models]
    assert th.equal(observed[0], observed[1])
    assert not th.equal(observed[0], observed[2])


# ---------------------------------------------------------------- saving
@pytest.mark.parametrize("intake", ["gymnasium_copies", "parallel", "leaving", "tensor"])
def test_a_saved_model_predicts_the_same_bits_without_an_environment(intake, tmp_path):
    model = IPPO("MlpPolicy", INTAKES[intake](), **SMALL)
    model.learn(16 * model.n_envs)
    model.save(tmp_path / "model")
    loaded = IPPO.load(tmp_path / "model")
    rows = np.stack([model.observation_space.sample() for _ in range(4 * model.layout.n_agents)])
    np.testing.assert_array_equal(loaded.predict(rows, deterministic=True)[0], model.predict(rows, deterministic=True)[0])
    drawn = []
    for each in (model, loaded):
        th.manual_seed(3)
        drawn.append(each.predict(rows)[0])
    np.testing.assert_array_equal(*drawn)
    agents = {agent: rows[i] for i, agent in enumerate(model.layout.possible_agents)}
    assert list(loaded.predict(agents)[0]) == list(agents)


@pytest.mark.parametrize("intake", ["gymnasium_copies", "parallel", "tensor"])
def test_training_after_load_equals_training_without_saving(intake, tmp_path):
    settings = {**SMALL, "learning_rate": LinearSchedule(1e-3, 0.0, 1.0), "clip_range": "lin_0.3", "n_epochs": 2}

    def go_on(model, env):
        # Saving does not keep random streams or environments, so both start alike.
        model.set_env(env)
        model.set_random_seed(5)
        return model.learn(3 * 16 * model.n_envs, reset_num_timesteps=False)

    model = IPPO("MlpPolicy", INTAKES[intake](), **settings)
    model.learn(2 * 16 * model.n_envs)
    model.save(tmp_path / "model")
    env = INTAKES[intake]()
    loaded = IPPO.load(tmp_path / "model", env=env)
    assert loaded.num_timesteps == model.num_timesteps
    unbroken, resumed = go_on(model, INTAKES[intake]()), go_on(loaded, env)
    assert _same(unbroken, resumed)
    assert resumed.num_timesteps == unbroken.num_timesteps
    first, second = (each.policy.optimizer.state_dict() for each in (unbroken, resumed))
    assert first["param_groups"][0]["lr"] == second["param_groups"][0]["lr"]
    for key, entry in first["state"].items():
        assert all(th.equal(th.as_tensor(entry[name]), th.as_tensor(second["state"][key][name])) for name in entry)


@pytest.mark.parametrize("n_copies", [1, 64])
def test_a_model_is_loaded_with_another_number_of_copies(n_copies, tmp_path):
    model = IPPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=8, seed=0), n_epochs=1, seed=0)
    model.save(tmp_path / "model")
    env = SimpleSpreadVecEnv(n_copies=n_copies, seed=0)
    loaded = IPPO.load(tmp_path / "model", env=env)
    assert loaded.layout.n_copies == n_copies
    loaded.learn(1)
    assert loaded.rollout_buffer.n_copies == n_copies


def test_a_model_of_many_copies_is_loaded_with_one(tmp_path):
    # By default the minibatches of many copies hold more steps than one copy's rollout has.
    model = IPPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=256, seed=0), n_epochs=1, seed=0)
    model.save(tmp_path / "model")
    loaded = IPPO.load(tmp_path / "model", env=SimpleSpreadVecEnv(n_copies=1, seed=0))
    loaded.learn(1)
    assert loaded.layout.n_copies == 1


def test_loading_with_another_team_is_an_error(tmp_path):
    model = IPPO("MlpPolicy", ParallelVecEnv(lambda: WanderersEnv((3, 4, 5))), **SMALL)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"\['w0', 'w1'\].*\['w0', 'w1', 'w2'\]"):
        IPPO.load(tmp_path / "model", env=ParallelVecEnv(lambda: WanderersEnv((3, 4)), 3))


def test_custom_networks_survive_saving(tmp_path):
    kwargs = {"net_arch": {"pi": [8], "vf": [9]}, "activation_fn": th.nn.ELU, "optimizer_class": th.optim.SGD}
    model = _cartpole(policy_kwargs=kwargs).learn(16)
    model.save(tmp_path / "model")
    loaded = IPPO.load(tmp_path / "model", env="CartPole-v1")
    assert _same(model, loaded)
    assert loaded.policy.net_arch == kwargs["net_arch"]
    assert isinstance(loaded.policy.optimizer, th.optim.SGD)


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("quantity", ["observation", "reward"])
def test_nan_from_the_environment_stops_training_and_leaves_the_parameters(quantity, continuous):
    env = ParallelVecEnv(WanderersEnv((30, 30, 30), poison=(quantity, "w1", 21), continuous=continuous), seed=0)
    model = IPPO("MlpPolicy", env, **SMALL)
    model.learn(48)
    before = _flat(model).clone()
    with pytest.raises(ValueError, match=rf"`{quantity}s` of agent 'w1' in copy 0 became NaN or infinite at step \d+"):
        model.learn(48, reset_num_timesteps=False)
    assert (_flat(model) == before).all()


class PoisonedSpread(SimpleSpreadVecEnv):
    """A tensor environment whose second copy's third agent sees infinity at step 5 of the second rollout."""

    count = 0

    def _observe(self):
        self.count += 1
        obs = super()._observe()
        if self.count == 22:
            obs[1, 2, 0] = float("inf")
        return obs


def test_infinite_observations_on_a_device_stop_training_with_agent_and_copy():
    env = PoisonedSpread(n_copies=2, seed=0)
    model = IPPO("MlpPolicy", env, **SMALL).learn(96)
    before = _flat(model).clone()
    with pytest.raises(ValueError, match=r"`observations` of agent 'agent_2' in copy 1 became NaN or infinite at step 5"):
        model.learn(96, reset_num_timesteps=False)
    assert (_flat(model) == before).all()


@pytest.mark.parametrize("final", [float("nan"), float("inf")])
@pytest.mark.parametrize("activation", [th.nn.Tanh, th.nn.ReLU])
def test_a_terminal_observation_that_is_not_finite_is_the_environments_fault(final, activation):
    # Cut off at step 2 of the copy, with an observation that only the critic's bootstrap would see.
    copies = [lambda value=value: WanderersEnv((9, 3), truncates=True, final=value) for value in (None, final)]
    env = ParallelVecEnv(copies, seed=0)
    model = IPPO("MlpPolicy", env, policy_kwargs={"activation_fn": activation}, **{**SMALL, "n_steps": 8})
    before = _flat(model).clone()
    with pytest.raises(ValueError, match=r"`terminal_observation` of agent 'w1' in copy 1 became NaN or infinite at step 2"):
        model.learn(64)
    assert (_flat(model) == before).all()
    # An episode that ended for good has no value beyond its end, so nobody looks.
    env = ParallelVecEnv(lambda: WanderersEnv((9, 3), final=final), 2, seed=0)
    IPPO("MlpPolicy", env, **{**SMALL, "n_steps": 8}).learn(64)


class PoisonedEnd(SimpleSpreadVecEnv):
    """A tensor environment whose second copy ends with an infinite observation of its third agent."""

    def step_tensor(self, actions):
        step = super().step_tensor(actions)
        if step.final_obs is None:
            return step
        final = step.final_obs.clone()
        final[1, 2, 0] = float("inf")
        return dataclasses.replace(step, final_obs=final)


def test_a_terminal_observation_on_a_device_is_checked_too():
    model = IPPO("MlpPolicy", PoisonedEnd(n_copies=2, seed=0, max_cycles=7), **SMALL)
    before = _flat(model).clone()
    with pytest.raises(ValueError, match=r"`terminal_observation` of agent 'agent_2' in copy 1 .* at step 6 of"):
        model.learn(96)
    assert (_flat(model) == before).all()


def test_nan_from_a_gymnasium_environment_is_named():
    class Broken(AnySpacesEnv):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, reward * np.nan if len(self.actions) == 5 else reward, *rest

    model = IPPO("MlpPolicy", Broken(vector(2), ACTIONS["discrete"]), **SMALL)
    with pytest.raises(ValueError, match=r"`rewards` of agent 'agent_0' in copy 0 became NaN or infinite at step 4"):
        model.learn(16)


def test_an_unknown_id_is_an_error():
    with pytest.raises(ValueError, match=r"'mpe2/simple_spraed_v3'; did you mean 'mpe2/simple_spread_v3'"):
        IPPO("MlpPolicy", "mpe2/simple_spraed_v3")


def test_an_empty_team_is_an_error():
    with pytest.raises(ValueError, match="team needs at least one agent"):
        IPPO("MlpPolicy", CustomSpacesEnv({}, {}))


def test_an_unpadded_team_with_different_spaces_is_an_error():
    env = CustomSpacesEnv({"a": vector(2), "b": vector(3)}, {"a": spaces.Discrete(2), "b": spaces.Discrete(2)})
    with pytest.raises(ValueError, match="`pad=False`"):
        IPPO("MlpPolicy", ParallelVecEnv(env, pad=False))


def test_something_that_is_no_environment_is_an_error():
    with pytest.raises(TypeError, match="`env` must be"):
        IPPO("MlpPolicy", 3)


def test_an_unknown_policy_name_is_an_error():
    with pytest.raises(ValueError, match=r"`policy` must be one of 'MlpPolicy', .*, got 'NoPolicy'"):
        IPPO("NoPolicy", "CartPole-v1")


def test_schedules_do_not_turn_negative_when_the_last_rollout_overshoots():
    model = IPPO("MlpPolicy", "CartPole-v1", n_steps=64, learning_rate="lin_1e-3", seed=0, device="cpu")
    model.learn(100)
    assert model.num_timesteps == 128
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0


class _Choices(WanderersEnv):
    """The toy team, in which one agent has another number of actions or another width than it seems from outside."""

    def __init__(self, sizes=(2, 5), widths=(2, 4)):
        super().__init__((9, 9))
        agents = self.possible_agents
        self.action_spaces = {agent: spaces.Discrete(size) for agent, size in zip(agents, sizes, strict=True)}
        self.observation_spaces = {agent: spaces.Box(-1, 1, (width,)) for agent, width in zip(agents, widths, strict=True)}

    def action_space(self, agent):
        return self.action_spaces[agent]

    def observation_space(self, agent):
        return self.observation_spaces[agent]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"sizes": (5, 2)}, r"agent 'w0' the action space Discrete\(5\), but the model was built for Discrete\(2\)"),
        ({"widths": (4, 4)}, r"agent 'w0' the observation space Box.*\(4,\).*built for Box.*\(2,\)"),
    ],
)
def test_a_team_with_other_spaces_of_its_own_is_refused_although_the_padded_ones_agree(other, message, tmp_path):
    model = IPPO("MlpPolicy", ParallelVecEnv(_Choices()), n_steps=8, batch_size=8)
    model.save(tmp_path / "model")
    # From outside the two look alike.
    env = ParallelVecEnv(_Choices(**other))
    assert (env.observation_space, env.action_space) == (model.observation_space, model.action_space)
    with pytest.raises(ValueError, match=message):
        model.set_env(env)
    with pytest.raises(ValueError, match=message):
        IPPO.load(tmp_path / "model", env=env)


@pytest.mark.parametrize("is_fresh", [False, True], ids=["the same environment", "a fresh one"])
def test_training_goes_on_after_a_load_without_a_reset_on_a_tensor_environment(is_fresh, tmp_path):
    env = SimpleSpreadVecEnv(n_copies=2, max_cycles=5)
    model = IPPO("MlpPolicy", env, n_steps=8, batch_size=24, n_epochs=1, seed=0).learn(48)
    model.save(tmp_path / "model")
    next_env = SimpleSpreadVecEnv(n_copies=2, max_cycles=5) if is_fresh else env
    loaded = IPPO.load(tmp_path / "model", env=next_env, force_reset=False)
    before = None if is_fresh else env.observe().clone()
    seen = []
    loaded.learn(48, reset_num_timesteps=False, callback=lambda local, _: seen.append(local["obs"].clone()) or True)
    assert loaded.num_timesteps == 96
    if before is not None:
        assert th.equal(seen[0], before)


def test_a_model_survives_a_pickle():
    model = IPPO("MlpPolicy", "CartPole-v1", **SMALL, learning_rate="lin_1e-3").learn(16)
    copy = pickle.loads(pickle.dumps(model))
    assert _same(model, copy)
    assert copy.lr_schedule(0.5) == 5e-4
    assert copy.learn(16, reset_num_timesteps=False).num_timesteps == 32


def test_another_number_of_slots_is_refused_with_the_remedy():
    model = IPPO("MlpPolicy", ParallelVecEnv(lambda: DiceEnv(), 2), **SMALL)
    with pytest.raises(ValueError, match=r"`env` has 6 slots, but the model was built for 4; .*`IPPO.load\(path, env=env\)`"):
        model.set_env(ParallelVecEnv(lambda: DiceEnv(), 3))
    assert model.env.num_envs == 4


def test_other_spaces_are_refused_with_the_agent_and_both_spaces():
    wider = CustomSpacesEnv(dict.fromkeys(["left", "right"], vector(5)), dict.fromkeys(["left", "right"], spaces.Discrete(2)))
    model = IPPO("MlpPolicy", ParallelVecEnv(lambda: DiceEnv(), 2), **SMALL)
    with pytest.raises(ValueError, match=r"agent 'left' the observation space Box.*\(5,\).*built for Box.*\(3,\)"):
        model.set_env(ParallelVecEnv(wider, 2))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("route", ["set_env", "load"])
def test_training_does_not_go_on_with_observations_of_another_scale(normalized, route, tmp_path):
    def make(is_normalized):
        env = ParallelVecEnv(lambda: DiceEnv(), 2, seed=0)
        return VecNormalize(env) if is_normalized else env

    model = IPPO("MlpPolicy", make(normalized), **SMALL).learn(64)
    if route == "load":
        model.save(tmp_path / "model")
        model = IPPO.load(tmp_path / "model", env=make(not normalized))
    else:
        model.set_env(make(not normalized))
    before, steps = _flat(model), model.num_timesteps
    with pytest.raises(
        ValueError, match=r"`env` is with.* observations, but the model was trained with.*trained_normalized = None"
    ):
        model.learn(64)
    assert model.num_timesteps == steps
    assert (before == _flat(model)).all()
    # Statistics without scaled observations are no normalisation of what the policy sees.
    model.set_env(make(True) if normalized else VecNormalize(make(False), norm_obs=False))
    model.learn(64)


def test_what_sb3s_callers_use_of_a_team_of_one_is_there():
    model = _cartpole().learn(16)
    assert model.rollout_buffer.buffer_size == model.n_steps == 16
    obs = th.rand(3, 4)
    whole, floats = (
        model.policy.evaluate_actions(obs, actions)[1] for actions in (th.tensor([0, 1, 0]), th.tensor([0.0, 1, 0]))
    )
    assert (whole == floats).all()


def test_training_after_an_interrupt_begins_with_a_reset():
    model = IPPO("MlpPolicy", ParallelVecEnv(WanderersEnv, 2, seed=0), n_steps=8, seed=0)

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.learn(64, callback=interrupt)
    assert model._last_obs is None
    resets = []
    original = model.env.reset
    model.env.reset = lambda: resets.append(1) or original()
    model.learn(32, reset_num_timesteps=False)
    assert resets == [1]


def test_continuous_policies_start_around_the_mean_that_was_asked_for():
    model = IPPO("MlpPolicy", DiceEnv(), policy_kwargs={"mean_init": 0.4, "net_arch": [8]}, **SMALL)
    layer = model.policy.action_net
    assert th.equal(layer.bias, th.full_like(layer.bias, 0.4))
    # The last layer starts near zero, so that the mean is the bias: a gain of .01 times at most 8 bounded features.
    obs = th.zeros(1, model.layout.n_agents, *model.observation_space.shape)
    assert float((model.policy.team_distribution(obs).mean.detach() - 0.4).abs().max()) < 0.03
    with pytest.raises(ValueError, match=r"`mean_init`=0\.4 is for Box actions, not for Discrete"):
        IPPO("MlpPolicy", "CartPole-v1", policy_kwargs={"mean_init": 0.4}, **SMALL)
