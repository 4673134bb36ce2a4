"""A learner without an environment: SB3's callbacks, the log, the bar, and runs that resume to the last bit."""

import warnings

import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy

from otbaselines.common.offline import OfflineAlgorithm, spaces_only_env
from otbaselines.common.settings import MANY, Setting, arguments_of

SEES, DOES = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)


class Cloning(OfflineAlgorithm):
    """
    Behaviour cloning: the mean action is pulled towards that of the data.

    :param dataset: observations and actions
    :param batch_size: rows per gradient step
    """

    policy_aliases = {"MlpPolicy": ActorCriticPolicy}  # noqa: RUF012
    _json_skip = ("dataset",)
    setting_ranges = {  # noqa: RUF012
        "dataset": Setting((tuple,), optional=True),
        "batch_size": Setting("integer", low=1, high=MANY),
    }

    def __init__(
        self,
        policy,
        env=None,
        learning_rate=1e-2,
        dataset=None,
        batch_size=16,
        policy_kwargs=None,
        verbose=0,
        seed=None,
        device="cpu",
        _init_setup_model=True,
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        if env is None and dataset is not None and _init_setup_model:
            env = spaces_only_env(SEES, DOES)
        super().__init__(**arguments_of(super().__init__, locals()))

    def _setup_model(self):
        super()._setup_model()
        self.minibatches = np.random.default_rng(self.seed)

    def train_step(self, metrics):
        rows = self.minibatches.integers(len(self.dataset[0]), size=self.batch_size)
        observations, actions = (th.as_tensor(part[rows]) for part in self.dataset)
        loss = (self.policy.get_distribution(observations).mode() - actions).square().mean()
        self.policy.optimizer.zero_grad()
        loss.backward()
        self.policy.optimizer.step()
        metrics.add("train/loss", loss.detach())


@pytest.fixture
def data():
    seen = np.random.default_rng(0).uniform(-1, 1, (256, 3)).astype(np.float32)
    return seen, np.tanh(seen[:, :2] - seen[:, 1:]).astype(np.float32)


def _make(data, **kwargs):
    # Dropout draws from torch's global stream, minibatches from one of the learner's own.
    return Cloning("MlpPolicy", dataset=data, seed=0, policy_kwargs={"activation_fn": th.nn.Dropout}, **kwargs)


def _bits(model):
    optimizer = model.policy.optimizer.state_dict()["state"]
    moments = {f"{key}/{name}": value.clone() for key, state in optimizer.items() for name, value in state.items()}
    return {**{name: value.clone() for name, value in model.policy.state_dict().items()}, **moments}


def test_it_learns_and_is_logged_by_gradient_steps(data, tmp_path):
    model = Cloning("MlpPolicy", dataset=data, seed=0)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    assert model.learn(250, log_interval=50) is model
    assert (model.num_timesteps, model._n_updates) == (250, 250)
    log = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True)
    assert log["timetotal_timesteps"].tolist() == [50, 100, 150, 200, 250]
    assert log["trainn_updates"].tolist() == [50, 100, 150, 200, 250]
    assert log["trainloss"][-1] < 0.1 * log["trainloss"][0]


def test_a_run_that_was_saved_resumes_to_the_last_bit(data, tmp_path):
    whole = _make(data).learn(60)
    first = _make(data).learn(25)
    first.save(tmp_path / "model")
    # Whatever happens to the global streams in between.
    th.manual_seed(123)
    rest = Cloning.load(tmp_path / "model", dataset=data)
    rest.learn(35, reset_num_timesteps=False)
    assert rest.num_timesteps == 60
    expected, bits = _bits(whole), _bits(rest)
    assert expected.keys() == bits.keys()
    assert all(th.equal(value, bits[name]) for name, value in expected.items())


def test_a_loaded_model_predicts_without_data(data, tmp_path):
    model = _make(data).learn(5)
    model.save(tmp_path / "model")
    loaded = Cloning.load(tmp_path / "model")
    np.testing.assert_array_equal(
        loaded.predict(data[0], deterministic=True)[0], model.predict(data[0], deterministic=True)[0]
    )


def test_sb3s_callbacks_and_evaluation_work(data, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = EvalCallback(
            AnySpacesEnv(SEES, DOES), eval_freq=20, n_eval_episodes=2, log_path=str(tmp_path), verbose=0, warn=False
        )
        calls = []
        checkpoints = CheckpointCallback(20, str(tmp_path), name_prefix="mid")
        model = _make(data).learn(40, callback=[evaluation, checkpoints])
        model.learn(10, callback=lambda *_: len(calls) < 3 and calls.append(1) is None)
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [20, 40]
    assert (tmp_path / "mid_40_steps.zip").exists()
    # The third call was the last one that said yes.
    assert model.num_timesteps == 4
    assert np.isfinite(evaluate_policy(model, AnySpacesEnv(SEES, DOES), n_eval_episodes=1, warn=False)[0])


def test_the_progress_bar_counts_gradient_steps(data, capsys):
    _make(data).learn(30, progress_bar=True)
    assert "30/30" in capsys.readouterr().err


def test_a_schedule_goes_down_to_the_end(data):
    model = Cloning("MlpPolicy", dataset=data, seed=0, learning_rate="lin_1e-2")
    rates = []
    model.learn(4, callback=lambda *_: rates.append(model.policy.optimizer.param_groups[0]["lr"]) is None)
    np.testing.assert_allclose(rates, [1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_nan_in_the_data_restores_the_parameters_of_the_last_log_entry(data):
    model = Cloning("MlpPolicy", dataset=data, seed=0).learn(20)
    before = _bits(model)
    model.dataset = (data[0], data[1] * np.nan)
    with pytest.raises(ValueError, match=r"`train/loss`.* became NaN or infinite in the update after 21 gradient steps"):
        model.learn(5, reset_num_timesteps=False)
    assert all(th.equal(value, before[name]) for name, value in _bits(model).items())


def test_bad_settings_are_named(data):
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, got 0"):
        Cloning("MlpPolicy", dataset=data, batch_size=0)
    with pytest.raises(TypeError, match=r"`dataset` must be of the type tuple or None, got 'data\.npz'"):
        Cloning("MlpPolicy", dataset="data.npz")
    with pytest.raises(ValueError, match="`total_timesteps` must be a whole number"):
        Cloning("MlpPolicy", dataset=data).learn(float("nan"))


def test_there_is_nothing_to_step(data):
    with pytest.raises(RuntimeError, match="no environment; pass `env=`"):
        _make(data).get_env().step(np.zeros((1, 2), np.float32))
