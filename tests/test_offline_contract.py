"""What every learner on data promises; a new one joins by a line in ``ALGORITHMS``."""

import importlib
import inspect
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv
from gymnasium import spaces
from offline_toys import HIGH, LOW, same, state, toy_dataset
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure

import otbaselines
from otbaselines import BC, IQL, QDOT

ALGORITHMS = [BC, IQL, QDOT]
pytestmark = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda cls: cls.__name__)
SMALL = {"net_arch": [16, 12]}


def _build(algorithm, **kwargs):
    settings = {"dataset": toy_dataset(), "seed": 0, "device": "cpu", "policy_kwargs": SMALL, "batch_size": 32, **kwargs}
    return algorithm("MlpPolicy", **settings)


def _env():
    return AnySpacesEnv(spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(LOW, HIGH, dtype=np.float32))


# ---------------------------------------------------------------- the form of the class
def test_the_constructor_is_one_that_sb3_can_call(algorithm):
    assert issubclass(algorithm, BaseAlgorithm)
    parameters = list(inspect.signature(algorithm.__init__).parameters.values())[1:]
    assert [parameter.name for parameter in parameters[:2]] == ["policy", "env"]
    assert parameters[-1].name == "_init_setup_model"
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters[1:])
    names = {parameter.name for parameter in parameters}
    assert {"learning_rate", "dataset", "seed", "device", "verbose", "tensorboard_log", "policy_kwargs"} <= names


def test_every_parameter_is_documented(algorithm):
    for name in list(inspect.signature(algorithm.__init__).parameters)[1:]:
        assert f":param {name}:" in algorithm.__doc__, name


def test_the_class_is_exported_from_the_package_and_from_its_own_folder(algorithm):
    folder = importlib.import_module(f"otbaselines.{algorithm.__name__.lower()}")
    assert getattr(folder, algorithm.__name__) is getattr(otbaselines, algorithm.__name__) is algorithm
    assert folder.MlpPolicy is algorithm.policy_aliases["MlpPolicy"]


# ---------------------------------------------------------------- learning
def test_the_defaults_train_without_an_environment(algorithm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = algorithm("MlpPolicy", dataset=toy_dataset(), device="cpu")
        before = state(model)
        assert model.learn(3) is model
    assert model.num_timesteps == 3
    after = state(model)
    assert not same(before, {name: after[name] for name in before})
    assert all(th.isfinite(value).all() for value in after.values())


def test_data_come_from_files_and_environments_from_ids(algorithm, tmp_path):
    n = 40
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
    ends = np.arange(1, n + 1) % 10 == 0
    pendulum = gym.make("Pendulum-v1")
    actions, rewards = rng.uniform(-2, 2, (n, 1)), rng.normal(size=n)
    data = otbaselines.OfflineDataset(
        observations,
        actions,
        rewards,
        observations,
        np.zeros(n, bool),
        ends,
        observation_space=pendulum.observation_space,
        action_space=pendulum.action_space,
    )
    data.save(tmp_path / "data.npz")
    model = algorithm("MlpPolicy", "Pendulum-v1", dataset=str(tmp_path / "data.npz"), seed=0, policy_kwargs=SMALL).learn(3)
    assert model.observation_space == pendulum.observation_space
    assert np.isfinite(evaluate_policy(model, model.get_env(), n_eval_episodes=1, warn=False)[0])
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env="Pendulum-v1", dataset=data, device="cpu")
    loaded.set_env("Pendulum-v1")
    assert loaded.learn(1, reset_num_timesteps=False).get_env().num_envs == 1


def test_it_predicts_single_observations_and_batches_within_the_box(algorithm):
    model = _build(algorithm).learn(5)
    seen = toy_dataset().observations[:6].numpy()
    batch, _ = model.predict(seen, deterministic=True)
    assert batch.shape == (6, 2)
    np.testing.assert_allclose(model.predict(seen[0], deterministic=True)[0], batch[0], rtol=1e-5)
    for deterministic in (True, False):
        assert all(model.action_space.contains(each) for each in model.predict(seen, deterministic=deterministic)[0])


def test_sb3s_evaluation_log_and_bar_work(algorithm, tmp_path, capsys):
    model = _build(algorithm)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    evaluation = EvalCallback(_env(), eval_freq=20, n_eval_episodes=1, log_path=str(tmp_path), verbose=0, warn=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Files that loggers of other tests left to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        model.learn(40, callback=evaluation, log_interval=10, progress_bar=True)
    model.logger.close()
    assert "40/40" in capsys.readouterr().err
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [20, 40]
    log = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True, invalid_raise=False)
    assert {"trainactor_loss", "trainlearning_rate", "trainn_updates"} <= set(log.dtype.names)


def test_gradient_steps_do_not_wait_for_the_device(algorithm, monkeypatch):
    """Nothing is read back between two entries of the log: neither losses nor anything that they depend on."""
    model = _build(algorithm).learn(2)
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(th.Tensor, name, lambda self, *_, name=name: reads.append(name) or 0)
    metrics = otbaselines.common.training.Metrics()
    model.train_step(metrics)
    assert reads == []


# ---------------------------------------------------------------- determinism and saving
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(algorithm):
    states = []
    for run, seed in enumerate((3, 3, 4)):
        th.manual_seed(run)
        states.append(state(_build(algorithm, seed=seed).learn(10)))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_a_run_that_was_interrupted_resumes_to_the_last_bit(algorithm, tmp_path):
    whole = _build(algorithm).learn(30)
    first = _build(algorithm).learn(30, callback=lambda scope, _: scope["self"].num_timesteps < 12)
    assert first.num_timesteps == 12
    first.save(tmp_path / "model")
    # Whatever happens to the global streams in between.
    th.manual_seed(123)
    rest = algorithm.load(tmp_path / "model", dataset=toy_dataset(), device="cpu")
    rest.learn(18, reset_num_timesteps=False)
    assert rest.num_timesteps == 30
    assert same(state(whole), state(rest))


def test_the_data_are_not_in_the_file_and_the_model_predicts_without_them(algorithm, tmp_path):
    model = _build(algorithm, dataset=toy_dataset(4000)).learn(5)
    model.save(tmp_path / "model")
    small = _build(algorithm).learn(5)
    small.save(tmp_path / "small")
    assert abs((tmp_path / "model.zip").stat().st_size - (tmp_path / "small.zip").stat().st_size) < 2000
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert "dataset" not in json.loads(archive.read("data"))
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    seen = toy_dataset().observations[:9].numpy()
    np.testing.assert_array_equal(loaded.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0])
    with pytest.raises(RuntimeError, match="no data to learn from; call `set_dataset`"):
        loaded.learn(1)
    loaded.set_dataset(toy_dataset(seed=1))
    loaded.learn(2, reset_num_timesteps=False)
    # What it was trained to see does not change with the data.
    assert th.equal(loaded.policy.observation_mean, model.policy.observation_mean)


def test_every_tensor_is_saved_or_declared(algorithm):
    model = _build(algorithm).learn(3)
    loose = {
        name
        for name in model.unsaved_attributes() - {"_logger", "_custom_logger"}
        if isinstance(vars(model)[name], th.Tensor | th.nn.Module | th.optim.Optimizer)
    }
    # Drawn anew in every step.
    assert loose <= {"_drawn", "_index"}
    assert {"dataset", "_rows"} <= model.unsaved_attributes()


def test_parameters_of_another_learner_are_refused_and_nothing_is_set(algorithm):
    model, other = _build(algorithm), _build(algorithm, policy_kwargs={"net_arch": [8]})
    before = state(model)
    with pytest.raises(ValueError, match=r"must have the shape|lacks"):
        model.set_parameters(other.get_parameters())
    assert same(before, state(model))


def test_no_file_is_executed(algorithm, tmp_path):
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    (tmp_path / "pickle").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="pickle"):
        algorithm.load(tmp_path / "pickle")
    assert not marker.exists()


# ---------------------------------------------------------------- mistakes
def test_mistakes_are_named_before_training(algorithm):
    with pytest.raises(ValueError, match="`env` and `dataset` are both None"):
        algorithm("MlpPolicy")
    with pytest.raises(RuntimeError, match="no data to learn from"):
        algorithm("MlpPolicy", _env()).learn(1)
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, got 0"):
        _build(algorithm, batch_size=0)
    with pytest.raises(ValueError, match="`cuda_graph`=True works on CUDA only, but the device is 'cpu'"):
        _build(algorithm, cuda_graph=True)
    with pytest.raises(ValueError, match=r"(?i)space"):
        algorithm("MlpPolicy", "Pendulum-v1", dataset=toy_dataset())
    with pytest.raises(ValueError, match="space"):
        _build(algorithm).set_dataset(toy_dataset_of_other_spaces())
    with pytest.raises(ValueError, match="`policy` must be one of 'MlpPolicy' or a policy class, got 'CnnPolicy'"):
        algorithm("CnnPolicy", dataset=toy_dataset())


def toy_dataset_of_other_spaces():
    data = toy_dataset()
    wide = spaces.Box(-5.0, 5.0, (2,), np.float32)
    columns = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
    return otbaselines.OfflineDataset(**{name: getattr(data, name) for name in columns}, action_space=wide)


def test_nan_keeps_the_last_good_parameters(algorithm):
    model = _build(algorithm, learning_rate=1e-3).learn(5, log_interval=5)
    before = state(model)
    with th.no_grad():
        model.dataset.observations[:] = th.nan
    with pytest.raises(ValueError, match="became NaN or infinite in the update after"):
        model.learn(5, reset_num_timesteps=False)
    assert same(before, state(model))


# ---------------------------------------------------------------- speed
@pytest.mark.slow
# torch's compiler uses parts of torch that torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_losses_are_those_of_eager_ones(algorithm):
    eager, compiled = _build(algorithm).learn(5), _build(algorithm, compile=True).learn(5)
    theirs = state(eager)
    for name, value in state(compiled).items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_is_the_eager_one_and_loads_on_a_cpu(algorithm, tmp_path):
    eager, captured = (_build(algorithm, device="cuda", cuda_graph=graph).learn(12) for graph in (False, True))
    theirs = state(eager)
    for name, value in state(captured).items():
        np.testing.assert_allclose(value.cpu(), theirs[name].cpu(), rtol=1e-3, atol=1e-5, err_msg=name)
    captured.learn(12, reset_num_timesteps=False)
    captured.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu", cuda_graph=False, dataset=toy_dataset())
    loaded.learn(3, reset_num_timesteps=False)
