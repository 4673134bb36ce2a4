"""What saving promises: files are whole or absent, hold JSON and tensors only, and execute nothing when loaded."""

import io
import os
import pathlib
import warnings
import zipfile
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from core_toys import assert_same_parameters
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from otbaselines.common.saving.algorithm import JsonSaveMixin

th.set_num_threads(1)


class JsonPPO(JsonSaveMixin, PPO):
    """The smallest class that the mixin can be put before."""


class JsonSAC(JsonSaveMixin, SAC):
    """A class with tensors beside its modules, an optimizer of its own, and a training frequency."""


class OwnExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 4)
        self.flatten = th.nn.Flatten()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.flatten(observations)


def make_model(env: Any = "CartPole-v1", **kwargs: Any) -> JsonPPO:
    options: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 3, "device": "cpu"}
    policy = "MultiInputPolicy" if kwargs.pop("multi_input", False) else "MlpPolicy"
    return JsonPPO(policy, env, **{"policy_kwargs": {"net_arch": [8]}, **options, **kwargs})


@pytest.fixture(scope="module")
def trained() -> JsonPPO:
    return make_model(
        learning_rate=LinearSchedule(1e-3, 1e-4, 0.8),
        clip_range=0.3,
        policy_kwargs={
            "net_arch": {"pi": [8], "vf": [4]},
            "activation_fn": th.nn.ELU,
            "optimizer_kwargs": {"betas": (0.8, 0.9)},
        },
    ).learn(64)


@pytest.fixture
def saved(trained: JsonPPO, tmp_path: pathlib.Path) -> pathlib.Path:
    trained.save(tmp_path / "model")
    return tmp_path / "model.zip"


# ---------------------------------------------------------------- round trips


def test_a_loaded_model_predicts_the_same_bits(trained: JsonPPO, saved: pathlib.Path) -> None:
    loaded = JsonPPO.load(saved, device="cpu")
    observations = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    assert_same_parameters(trained.get_parameters(), loaded.get_parameters())
    np.testing.assert_array_equal(
        trained.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    with th.no_grad():
        assert th.equal(
            trained.policy.predict_values(th.tensor(observations)), loaded.policy.predict_values(th.tensor(observations))
        )


def test_every_parameter_and_counter_survives(trained: JsonPPO, saved: pathlib.Path) -> None:
    loaded = JsonPPO.load(saved, device="cpu")
    for name in ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "seed", "verbose", "policy_kwargs", "target_kl"):
        assert getattr(loaded, name) == getattr(trained, name)
    for name in ("num_timesteps", "_total_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining", "n_envs"):
        assert getattr(loaded, name) == getattr(trained, name)
    assert loaded.policy_class is ActorCriticPolicy
    assert loaded.rollout_buffer_class is trained.rollout_buffer_class
    assert loaded.policy_kwargs["optimizer_kwargs"]["betas"] == (0.8, 0.9)
    assert [loaded.lr_schedule(p) for p in (1.0, 0.5, 0.0)] == [trained.lr_schedule(p) for p in (1.0, 0.5, 0.0)]
    assert loaded.clip_range(0.3) == 0.3
    assert loaded.ep_info_buffer == trained.ep_info_buffer
    assert loaded.ep_info_buffer.maxlen == 100


def test_nothing_that_ppo_needs_is_left_out_of_the_file(trained: JsonPPO) -> None:
    # SB3 never gives on-policy algorithms an action noise.
    assert trained.unsaved_attributes() == {"action_noise"}


def test_continued_training_is_equal_to_the_bit(tmp_path: pathlib.Path) -> None:
    original = make_model(make_vec_env("CartPole-v1", 2, seed=1), learning_rate=LinearSchedule(1e-3, 0.0, 1.0)).learn(128)
    original.save(tmp_path / "half")
    results = []
    for model in (original, JsonPPO.load(tmp_path / "half", device="cpu")):
        model.set_env(make_vec_env("CartPole-v1", 2, seed=5))
        model.set_random_seed(11)
        model.learn(128, reset_num_timesteps=False)
        results.append(model)
    assert results[0].num_timesteps == results[1].num_timesteps == 256
    assert_same_parameters(results[0].get_parameters(), results[1].get_parameters())


def test_an_off_policy_model_with_loose_tensors_survives(tmp_path: pathlib.Path) -> None:
    model = JsonSAC(
        "MlpPolicy", "Pendulum-v1", buffer_size=64, learning_starts=8, train_freq=(2, "step"), device="cpu", seed=0
    )
    model.learn(24).save(tmp_path / "sac")
    loaded = JsonSAC.load(tmp_path / "sac", env=model.get_env(), device="cpu")
    assert loaded.train_freq == model.train_freq
    assert loaded.target_entropy == model.target_entropy
    assert th.equal(loaded.log_ent_coef, model.log_ent_coef)
    assert loaded.ent_coef_optimizer.param_groups[0]["params"][0] is loaded.log_ent_coef
    assert_same_parameters(model.get_parameters(), loaded.get_parameters())
    loaded.learn(8, reset_num_timesteps=False)


def test_dict_image_and_sde_models_survive(tmp_path: pathlib.Path) -> None:
    class Both(gym.Env[Any, Any]):
        observation_space = spaces.Dict({"z": spaces.Discrete(3), "a": spaces.Box(0, 255, (36, 36, 3), np.uint8)})
        action_space = spaces.Box(-1.0, 1.0, (2,))

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return self.observation_space.sample(), 0.0, False, False, {}

    model = make_model(Both(), multi_input=True, n_steps=4, batch_size=4, use_sde=True, policy_kwargs=None)
    model.save(tmp_path / "both")
    loaded = JsonPPO.load(tmp_path / "both", env=Both(), device="cpu")
    assert loaded.observation_space == model.observation_space
    assert_same_parameters(model.get_parameters(), loaded.get_parameters())
    loaded.learn(4)


def test_the_exploration_matrix_is_drawn_with_the_loaded_deviations(tmp_path: pathlib.Path) -> None:
    model = make_model("Pendulum-v1", use_sde=True)
    with th.no_grad():
        model.policy.log_std.fill_(5.0)
    model.save(tmp_path / "sde")
    # A freshly built policy has a deviation of one; 150 times that is far outside its samples.
    assert JsonPPO.load(tmp_path / "sde", device="cpu").policy.action_dist.exploration_mat.abs().max() > 20.0


@pytest.mark.parametrize("name", ["model", "model.zip", "wbc-mpe2.simple_spread", "new/folder/model.v1"])
def test_a_name_gets_the_suffix_unless_it_ends_so(trained: JsonPPO, tmp_path: pathlib.Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained.save(str(tmp_path / name))
    expected = tmp_path / (name if name.endswith(".zip") else f"{name}.zip")
    assert expected.is_file()
    JsonPPO.load(str(tmp_path / name), device="cpu")
    JsonPPO.load(expected, device="cpu")
    assert not list(expected.parent.glob(".*.tmp"))


def test_a_folder_of_the_same_name_is_no_obstacle(trained: JsonPPO, tmp_path: pathlib.Path) -> None:
    (tmp_path / "CartPole-v1").mkdir()
    trained.save(tmp_path / "CartPole-v1")
    JsonPPO.load(tmp_path / "CartPole-v1", device="cpu")


def test_buffers_and_open_files_are_taken_and_closed_ones_refused(trained: JsonPPO, tmp_path: pathlib.Path) -> None:
    buffer = io.BytesIO()
    trained.save(buffer)
    assert_same_parameters(trained.get_parameters(), JsonPPO.load(buffer, device="cpu").get_parameters())
    with (tmp_path / "open.zip").open("wb") as file:
        trained.save(file)
        with pytest.raises(ValueError, match="readable"):
            JsonPPO.load(file)
    with (tmp_path / "open.zip").open("rb") as file:
        JsonPPO.load(file, device="cpu")
        with pytest.raises(ValueError, match="writable"):
            trained.save(file)
    buffer.close()
    with pytest.raises(ValueError, match="closed"):
        trained.save(buffer)
    with pytest.raises(TypeError, match="`path` must be a path or a binary file"):
        trained.save(3)  # type: ignore[arg-type]


def test_callbacks_save_files_that_load(tmp_path: pathlib.Path) -> None:
    checkpoint = CheckpointCallback(save_freq=32, save_path=str(tmp_path), name_prefix="check")
    evaluate = EvalCallback(
        make_vec_env("CartPole-v1"), eval_freq=32, n_eval_episodes=1, best_model_save_path=str(tmp_path), verbose=0
    )
    make_model().learn(64, callback=[checkpoint, evaluate])
    assert JsonPPO.load(tmp_path / "check_32_steps", device="cpu").num_timesteps == 32
    JsonPPO.load(tmp_path / "best_model", device="cpu")


# ---------------------------------------------------------------- SB3's habits at load


def test_keywords_change_parameters_and_attributes(saved: pathlib.Path) -> None:
    loaded = JsonPPO.load(saved, device="cpu", n_steps=16, gamma=0.5, verbose=1, tensorboard_log="runs", num_timesteps=7)
    assert (loaded.n_steps, loaded.gamma, loaded.verbose, loaded.tensorboard_log) == (16, 0.5, 1, "runs")
    assert loaded.rollout_buffer.buffer_size == 16
    assert loaded.num_timesteps == 7
    with pytest.raises(ValueError, match=r"^`load` got `n_step`, .*spelling"):
        JsonPPO.load(saved, n_step=16)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"foo": 3}, ValueError, r"`load` got `foo`, .*spelling"),
        ({"device": "foo"}, ValueError, r"`device` must be a device of torch"),
        ({"observation_space": spaces.Discrete(3)}, ValueError, r"`observation_space` must be of the form of the stored Box"),
        ({"action_space": spaces.Discrete(3)}, ValueError, r"`action_space` must be of the form of the stored Discrete\(2\)"),
        ({"action_space": 3}, ValueError, r"`action_space` must be of the form"),
        ({"num_timesteps": -5}, ValueError, r"`num_timesteps` must be a whole number"),
        ({"custom_objects": {"num_timesteps": -5}}, ValueError, r"`num_timesteps` must be a whole number"),
        ({"predict": None}, ValueError, r"`load` got predict, which JsonPPO itself defines"),
        ({"train": 3}, ValueError, r"`load` got train, which JsonPPO itself defines"),
        ({"custom_objects": {"learn": 3}}, ValueError, r"`load` got learn, which JsonPPO itself defines"),
        ({"custom_objects": {"foo": 1}}, ValueError, r"`custom_objects` names foo, .*spelling"),
        ({"include": "abc"}, TypeError, r"`include` must be a list of names, got 'abc'"),
        ({"include": 3}, TypeError, r"`include` must be a list of names, got '3'"),
        ({"include": [3]}, TypeError, r"`include` must be a list of names"),
        ({"include": ["abc"]}, ValueError, r"`include` names abc, .*does not hold"),
    ],
)
def test_the_callers_mistake_at_load_is_not_blamed_on_the_file(
    saved: pathlib.Path, given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=f"^{message}") as raised:
        JsonPPO.load(saved, **{"device": "cpu", **given})
    assert "save the model again" not in str(raised.value)


def test_what_sb3s_users_give_at_load_is_taken(trained: JsonPPO, saved: pathlib.Path) -> None:
    wider = spaces.Box(-np.inf, np.inf, trained.observation_space.shape, np.float32)
    loaded = JsonPPO.load(
        saved,
        device="cpu",
        custom_objects={"lr_schedule": lambda progress: 1e-3, "clip_range": 0.25, "observation_space": wider},
        policy_class="MlpPolicy",
    )
    assert (loaded.observation_space, loaded.clip_range(1.0)) == (wider, 0.25)
    for name in ("exclude", "include"):
        with pytest.raises(TypeError, match=f"`{name}` must be a list of names, got 'gamma'"):
            trained.save(saved, **{name: "gamma"})


def test_contradicting_policy_kwargs_are_refused_and_equal_ones_taken(trained: JsonPPO, saved: pathlib.Path) -> None:
    JsonPPO.load(saved, device="cpu", policy_kwargs=dict(trained.policy_kwargs))
    with pytest.raises(ValueError, match="policy kwargs do not equal the stored"):
        JsonPPO.load(saved, policy_kwargs={"net_arch": [3]})


def test_an_environment_is_wrapped_checked_and_counted(saved: pathlib.Path) -> None:
    normalized = VecNormalize(make_vec_env("CartPole-v1", 3))
    loaded = JsonPPO.load(saved, env=normalized, device="cpu")
    assert loaded.n_envs == 3
    assert loaded.get_vec_normalize_env() is normalized
    assert loaded._last_obs is None
    loaded.learn(96)
    single = JsonPPO.load(saved, env=gym.make("CartPole-v1"), device="cpu")
    assert single.get_env().num_envs == 1
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        JsonPPO.load(saved, env=gym.make("MountainCar-v0"))


def test_without_a_forced_reset_the_last_observation_is_kept(trained: JsonPPO, saved: pathlib.Path) -> None:
    loaded = JsonPPO.load(saved, env=trained.get_env(), device="cpu", force_reset=False)
    np.testing.assert_array_equal(loaded._last_obs, trained._last_obs)
    np.testing.assert_array_equal(loaded._last_episode_starts, trained._last_episode_starts)


def test_observations_stacked_after_normalising_do_not_hinder_a_load(tmp_path: pathlib.Path) -> None:
    env = VecFrameStack(VecNormalize(make_vec_env("CartPole-v1", 2)), 2)
    model = make_model(env).learn(64)
    model.save(tmp_path / "stacked")
    loaded = JsonPPO.load(tmp_path / "stacked", env=env, device="cpu", force_reset=False)
    np.testing.assert_array_equal(loaded._last_original_obs, model._last_original_obs)
    loaded.learn(64, reset_num_timesteps=False)


def test_exclude_and_include_choose_what_is_stored(trained: JsonPPO, tmp_path: pathlib.Path) -> None:
    trained.note = {"run": (1, 2)}
    try:
        trained.save(tmp_path / "chosen", exclude=["gamma", "num_timesteps"], include=["note"])
        with pytest.raises(ValueError, match=r"holds note, .*`load\(include=...\)`"):
            JsonPPO.load(tmp_path / "chosen", device="cpu")
        with pytest.warns(UserWarning, match=r"chosen' does not say gamma; the defaults are taken: `gamma`=0.99"):
            loaded = JsonPPO.load(tmp_path / "chosen", device="cpu", include=["note"])
        # Whoever gives it is told nothing.
        assert JsonPPO.load(tmp_path / "chosen", device="cpu", include=["note"], gamma=0.5).gamma == 0.5
        assert loaded.note == {"run": (1, 2)}
        assert loaded.num_timesteps == 0
        trained.note = object()
        with pytest.raises(TypeError, match=r"`note` is a builtins.object"):
            trained.save(tmp_path / "refused", include=["note"])
        assert not (tmp_path / "refused.zip").exists()
        with pytest.raises(ValueError, match="`exclude` names"):
            trained.save(tmp_path / "refused", exclude=["observation_space"])
        with pytest.raises(ValueError, match="`include` names"):
            trained.save(tmp_path / "refused", include=["logger"])
    finally:
        del trained.note


def test_system_info_is_printed_and_names_no_machine(saved: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    JsonPPO.load(saved, device="cpu", print_system_info=True)
    assert "SAVED MODEL SYSTEM INFO" in capsys.readouterr().out
    with zipfile.ZipFile(saved) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if not name.endswith(".pth")).decode()
    for secret in (os.uname().nodename, str(pathlib.Path.home()) + "/", str(pathlib.Path.cwd()), str(saved.parent)):
        assert secret not in text


# ---------------------------------------------------------------- what cannot be stored


def test_a_lambda_schedule_warns_at_save_and_is_asked_for_at_load(tmp_path: pathlib.Path) -> None:
    model = make_model(learning_rate=lambda progress: 1e-3 * progress**2)
    with pytest.warns(UserWarning, match=r"`?learning_rate \(a builtins.function\).*custom_objects=\{'learning_rate'"):
        model.save(tmp_path / "own")
    with pytest.raises(ValueError, match=r"learning_rate .*custom_objects=\{'learning_rate'"):
        JsonPPO.load(tmp_path / "own")
    by_keyword = JsonPPO.load(tmp_path / "own", device="cpu", learning_rate=1e-4)
    by_object = JsonPPO.load(
        tmp_path / "own", device="cpu", custom_objects={"learning_rate": lambda progress: 1e-4 * progress}
    )
    assert by_keyword.lr_schedule(0.5) == 1e-4
    assert by_object.lr_schedule(0.5) == 0.5e-4
    assert_same_parameters(model.get_parameters()["policy"], by_object.get_parameters()["policy"])


def test_a_users_own_network_warns_at_save_and_is_asked_for_at_load(tmp_path: pathlib.Path) -> None:
    policy_kwargs = {"features_extractor_class": OwnExtractor, "net_arch": [4]}
    model = make_model(policy_kwargs=policy_kwargs)
    with pytest.warns(UserWarning, match=r"policy_kwargs\['features_extractor_class'\]"):
        model.save(tmp_path / "own")
    with pytest.raises(ValueError, match=r"policy_kwargs\['features_extractor_class'\].*custom_objects=\{'policy_kwargs'"):
        JsonPPO.load(tmp_path / "own")
    for loaded in (
        JsonPPO.load(tmp_path / "own", device="cpu", custom_objects={"policy_kwargs": policy_kwargs}),
        JsonPPO.load(tmp_path / "own", device="cpu", policy_kwargs=policy_kwargs),
    ):
        assert_same_parameters(model.get_parameters(), loaded.get_parameters())


def test_a_users_own_policy_class_is_asked_for_at_load(tmp_path: pathlib.Path) -> None:
    class OwnPolicy(ActorCriticPolicy):
        pass

    model = JsonPPO(OwnPolicy, "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    with pytest.warns(UserWarning, match="policy_class"):
        model.save(tmp_path / "own")
    with pytest.raises(ValueError, match="policy_class"):
        JsonPPO.load(tmp_path / "own")
    loaded = JsonPPO.load(tmp_path / "own", device="cpu", custom_objects={"policy_class": OwnPolicy})
    assert type(loaded.policy) is OwnPolicy


class Remembering(JsonPPO):
    """A class with state, a skipped parameter and extra data of its own."""

    _json_state = ("drift",)
    _json_skip = ("dataset",)

    def __init__(self, policy: Any, env: Any, *, temperature: float = 1.0, dataset: Any = None, **kwargs: Any) -> None:
        self.temperature = temperature
        self.dataset = dataset
        self.drift: list[float] = []
        self.agents = ("nobody",)
        super().__init__(policy, env, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.drift = []
        self.head = th.nn.Linear(len(self.agents), 1)

    def _extra_data(self) -> dict[str, Any]:
        return {**super()._extra_data(), "agents": self.agents, "native": {"a": spaces.Discrete(2)}}

    def _load_extra_data(self, extra: dict[str, Any]) -> None:
        super()._load_extra_data(extra)
        self.agents, self.native = extra["agents"], extra["native"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, "head"], variables


def test_own_state_extra_data_and_inherited_keywords_survive(tmp_path: pathlib.Path) -> None:
    model = Remembering("MlpPolicy", "CartPole-v1", temperature=2.0, dataset=object(), n_steps=16, batch_size=8, device="cpu")
    model.agents, model.drift = ("a", "b"), [0.5, 0.25]
    model.head = th.nn.Linear(2, 1)
    model.save(tmp_path / "own")
    loaded = Remembering.load(tmp_path / "own", device="cpu", dataset="given")
    assert (loaded.temperature, loaded.n_steps, loaded.dataset) == (2.0, 16, "given")
    assert (loaded.agents, loaded.drift, loaded.native) == (("a", "b"), [0.5, 0.25], {"a": spaces.Discrete(2)})
    assert th.equal(loaded.head.weight, model.head.weight)
    assert Remembering.load(tmp_path / "own", device="cpu").dataset is None


def test_state_that_json_cannot_hold_is_a_type_error_and_leaves_no_file(tmp_path: pathlib.Path) -> None:
    model = Remembering("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=8, device="cpu")
    model.drift = {1, 2}  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"`drift` is a builtins.set"):
        model.save(tmp_path / "refused")
    del model.temperature
    with pytest.raises(TypeError, match="no attribute for its constructor parameter `temperature`"):
        model.save(tmp_path / "refused")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_class_is_refused_by_name(saved: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"holds a JsonPPO, not a JsonSAC; load it with JsonPPO.load"):
        JsonSAC.load(saved)
