"""What every on-policy team algorithm promises; a new one joins by a line in ``ALGORITHMS``."""

import importlib
import inspect
import json
import pathlib
import pickle
import pkgutil
import warnings
import zipfile

import gymnasium as gym
import mpe2
import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv, WanderersEnv
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize
from toy_teams import DiceEnv

import otbaselines
from otbaselines import HATRPO, IPPO, MAPPO, WBC, WMATRPO, ParallelVecEnv, evaluate_team, make_vec_env
from otbaselines.common.saving.normalizer import load_normalizer
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv

ALGORITHMS = [HATRPO, IPPO, MAPPO, WBC, WMATRPO]
MPE2 = sorted(module.name for module in pkgutil.iter_modules(mpe2.__path__) if "_v" in module.name)

pytestmark = [
    pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda cls: cls.__name__),
    pytest.mark.filterwarnings("ignore:the rollout of"),
]
SMALL = {"n_steps": 8, "batch_size": 24, "seed": 0}
# What says how often each algorithm passes over a rollout.
PASSES = {HATRPO: "n_critic_updates", WMATRPO: "n_critic_updates"}
INTAKES = {
    "tensor": lambda: SimpleSpreadVecEnv(n_copies=2, max_cycles=5),
    "tensor_continuous": lambda: SimpleSpreadVecEnv(n_copies=2, max_cycles=5, continuous_actions=True),
    "parallel": lambda: ParallelVecEnv([WanderersEnv, WanderersEnv]),
    "parallel_continuous": lambda: ParallelVecEnv([DiceEnv] * 3),
    "gymnasium": lambda: AnySpacesEnv(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(3)),
}


def _build(algorithm, intake, n_epochs=1, **kwargs):
    settings = {**SMALL, PASSES.get(algorithm, "n_epochs"): n_epochs, **kwargs}
    if intake == "gymnasium":
        settings = {**settings, "n_steps": 24}
    return algorithm("MlpPolicy", INTAKES[intake](), **settings)


def _learn(model, rollouts=2, **kwargs):
    return model.learn(rollouts * model.n_steps * model.n_envs, **kwargs)


def _state(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def _same(first, second):
    return first.keys() == second.keys() and all(th.equal(value, second[name]) for name, value in first.items())


# ---------------------------------------------------------------- the form of the class
def test_the_constructor_is_one_that_sb3_can_call(algorithm):
    assert issubclass(algorithm, BaseAlgorithm)
    parameters = list(inspect.signature(algorithm.__init__).parameters.values())[1:]
    assert [parameter.name for parameter in parameters[:2]] == ["policy", "env"]
    assert parameters[-1].name == "_init_setup_model"
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters[2:])
    names = {parameter.name for parameter in parameters}
    assert {"learning_rate", "seed", "device", "verbose", "tensorboard_log", "policy_kwargs", "stats_window_size"} <= names


def test_every_parameter_is_documented(algorithm):
    for name in list(inspect.signature(algorithm.__init__).parameters)[1:]:
        documented = any(f":param {name}:" in (cls.__doc__ or "") for cls in algorithm.__mro__)
        assert documented, name


def test_the_class_is_exported_from_the_package_and_from_its_own_folder(algorithm):
    folder = importlib.import_module(f"otbaselines.{algorithm.__name__.lower()}")
    assert getattr(folder, algorithm.__name__) is getattr(otbaselines, algorithm.__name__) is algorithm
    assert folder.MlpPolicy is algorithm.policy_aliases["MlpPolicy"]


# ---------------------------------------------------------------- learning
@pytest.mark.parametrize("intake", INTAKES)
def test_it_learns_predicts_and_is_evaluated_on_every_intake(algorithm, intake):
    model = _build(algorithm, intake)
    before = _state(model)
    assert _learn(model) is model
    assert model.num_timesteps == 2 * model.n_steps * model.n_envs
    after = _state(model)
    assert not _same(before, after)
    assert all(th.isfinite(value).all() for value in after.values())
    n_agents = model.layout.n_agents
    rows = np.stack([model.observation_space.sample() for _ in range(2 * n_agents)])
    actions, _ = model.predict(rows)
    assert actions.shape == (2 * n_agents, *model.action_space.shape)
    assert all(model.action_space.contains(action) for action in actions)
    agents = dict(zip(model.layout.possible_agents, rows, strict=False))
    chosen, _ = model.predict(agents)
    assert all(model.layout.agent_action_spaces[agent].contains(action) for agent, action in chosen.items())
    assert evaluate_team(model, INTAKES[intake](), n_eval_episodes=2).n_episodes == 2


def test_it_learns_in_the_processes_of_sb3(algorithm):
    # They end when they are asked for an attribute that their environment lacks.
    env = make_vec_env("CartPole-v1", 2, seed=0, backend="subproc")
    try:
        model = algorithm("MlpPolicy", env, **{**SMALL, PASSES.get(algorithm, "n_epochs"): 1, "n_steps": 24})
        before = _state(model)
        _learn(model, rollouts=1)
        assert not _same(before, _state(model))
    finally:
        env.close()


def test_what_reset_returns_is_refused_with_the_remedy(algorithm):
    for intake, env in (("gymnasium", INTAKES["gymnasium"]()), ("parallel", WanderersEnv())):
        model = _build(algorithm, intake)
        with pytest.raises(ValueError, match="you are mixing Gym API with SB3's VecEnv API"):
            model.predict(env.reset())
        with pytest.raises(ValueError, match="`observation` must hold rows of one length"):
            model.predict([[0.0, 0.0, 0.0], [0.0, 0.0]])


def test_observations_may_be_tensors_and_must_fit_single_precision(algorithm):
    model = _build(algorithm, "parallel")
    agents = model.layout.possible_agents
    rows = {agent: th.zeros(model.layout.agent_observation_spaces[agent].shape, requires_grad=True) for agent in agents}
    expected, _ = model.predict({agent: row.detach().numpy() for agent, row in rows.items()}, deterministic=True)
    assert model.predict(rows, deterministic=True)[0] == expected
    stacked = th.zeros(len(agents), *model.observation_space.shape, requires_grad=True)
    assert model.predict(stacked)[0].shape == (len(agents),)
    for bad in (np.full(stacked.shape, 1e300), {agents[0]: np.full(rows[agents[0]].shape, 1e300)}):
        with pytest.raises(ValueError, match="holds NaN or infinity"):
            model.predict(bad)
    with pytest.raises(ValueError, match="mixing Gym API"):
        model.predict({agents[0]: (rows[agents[0]], {})})
    with pytest.raises(ValueError, match="must hold rows of one length"):
        model.predict({agents[0]: [[1.0, 2.0], [1.0]]})


@pytest.mark.filterwarnings("ignore:no two agents have equal spaces")
@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize("task", MPE2)
def test_every_mpe2_task_is_learned_for_an_iteration(algorithm, task, continuous):
    kwargs = {"max_cycles": 6, "continuous_actions": continuous}
    env = make_vec_env(f"mpe2/{task}", n_copies=2, seed=0, env_kwargs=kwargs)
    n_agents = env.n_agents
    model = algorithm("MlpPolicy", env, n_steps=8, batch_size=8 * n_agents, seed=0)
    before = _state(model)
    model.learn(8 * env.num_envs)
    assert not _same(before, _state(model))
    assert all(th.isfinite(value).all() for value in _state(model).values())
    if model.policy.action_mask is not None and not continuous:
        taken = th.nn.functional.one_hot(model.rollout_buffer.actions, model.action_space.n).sum((0, 1)) > 0
        assert not (taken & ~model.policy.action_mask).any()


def test_the_defaults_train(algorithm):
    env = SimpleSpreadVecEnv(n_copies=32, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = algorithm("MlpPolicy", env, seed=0).learn(1)
    assert model.num_timesteps == model.n_steps * env.num_envs
    assert (model.rollout_buffer.size() * 3) % model.batch_size == 0


def test_it_logs_sb3s_keys_and_whole_numbers_of_rollouts(algorithm, tmp_path):
    model = _build(algorithm, "tensor")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    _learn(model, 3)
    rows = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True)
    wanted = {"rolloutep_rew_mean", "timetotal_timesteps", "trainvalue_loss", "trainlearning_rate", "trainexplained_variance"}
    assert wanted <= set(rows.dtype.names)
    assert rows["timetotal_timesteps"].tolist() == [48.0, 96.0, 144.0]
    assert np.isfinite(rows["trainvalue_loss"][1:]).all()


def test_a_callback_cancels(algorithm):
    model = _build(algorithm, "tensor")
    before = _state(model)
    _learn(model, 5, callback=lambda local, _: local["self"].num_timesteps < 18)
    assert model.num_timesteps == 18
    assert _same(before, _state(model))


def test_normalisation_around_a_team_works(algorithm):
    env = VecNormalize(INTAKES["parallel_continuous"]())
    model = algorithm("MlpPolicy", env, **SMALL)
    _learn(model)
    assert model.get_vec_normalize_env() is env
    assert evaluate_team(model, env, n_eval_episodes=2).n_episodes == 2


def test_a_tensorboard_log_gets_the_name_of_the_class(algorithm, tmp_path):
    pytest.importorskip("tensorboard")
    _learn(_build(algorithm, "tensor", tensorboard_log=str(tmp_path)), 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"{algorithm.__name__}_1"]


# ---------------------------------------------------------------- determinism
@pytest.mark.parametrize("intake", INTAKES)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(algorithm, intake):
    states = []
    for run, seed in enumerate((3, 3, 4)):
        np.random.seed(run)  # noqa: NPY002
        th.manual_seed(run)
        states.append(_state(_learn(_build(algorithm, intake, seed=seed, n_epochs=2))))
    assert _same(states[0], states[1])
    assert not _same(states[0], states[2])


# ---------------------------------------------------------------- saving
@pytest.mark.parametrize("intake", INTAKES)
def test_a_saved_model_predicts_the_same_bits(algorithm, intake, tmp_path):
    model = _learn(_build(algorithm, intake))
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    assert _same(_state(model), _state(loaded))
    rows = np.stack([model.observation_space.sample() for _ in range(4 * model.layout.n_agents)])
    drawn = []
    for each in (model, loaded):
        th.manual_seed(1)
        drawn.append((each.predict(rows)[0], each.predict(rows, deterministic=True)[0]))
    np.testing.assert_array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("intake", INTAKES)
def test_training_goes_on_after_load_as_if_nothing_had_happened(algorithm, intake, tmp_path):
    model = _learn(_build(algorithm, intake, learning_rate="lin_1e-3", n_epochs=2))
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=INTAKES[intake]())
    states = []
    for each in (model, loaded):
        each.set_env(INTAKES[intake]())
        # Random streams and environments are not saved; everything else must be.
        each.set_random_seed(5)
        _learn(each, reset_num_timesteps=False)
        states.append({**_state(each), **_optimizer_state(each)})
    assert _same(*states)
    assert model.num_timesteps == loaded.num_timesteps == 4 * model.n_steps * model.n_envs


def _optimizer_state(model):
    entries = model.policy.optimizer.state_dict()["state"]
    return {f"{key}.{name}": th.as_tensor(value) for key, entry in entries.items() for name, value in entry.items()}


def test_a_saved_model_is_json_and_tensors(algorithm, tmp_path):
    _learn(_build(algorithm, "tensor")).save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert ":serialized:" not in archive.read("data").decode()
        json.loads(archive.read("data"))
        assert json.loads(archive.read("otbaselines.json"))["class"].endswith(f".{algorithm.__name__}")


def test_widths_given_as_tuples_load_again(algorithm, tmp_path):
    model = _build(algorithm, "tensor", policy_kwargs={"net_arch": {"pi": (8, 8), "vf": (8,)}})
    model.save(tmp_path / "agent")
    assert algorithm.load(tmp_path / "agent").policy_kwargs == {"net_arch": {"pi": [8, 8], "vf": [8]}}


def test_another_team_is_refused(algorithm, tmp_path):
    model = _build(algorithm, "parallel")
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="the model was built for"):
        algorithm.load(tmp_path / "model", env=ParallelVecEnv(WanderersEnv((4, 4)), 3))
    with pytest.raises(ValueError, match="the model was built for"):
        model.set_env(ParallelVecEnv(WanderersEnv((4, 4)), 3))


# Tensors that live outside the saved states, with the reason why a loaded model may be without them.
NOT_SAVED = {
    "rollout_buffer": "is filled anew before it is read",
    "_statistics": "belongs to the environment's running episodes",
    "_last_obs": "belongs to the environment",
    "env": "is the environment",
    "_consensus": "is prepared anew from every rollout",
    "_metric": "is made of the ground metric, which is saved",
    "_replay": "is filled anew, as its documentation says",
    "_streams": "starts anew where the seed and the number of steps say",
}


def _has_tensors(value, seen=()):
    if id(value) in seen or isinstance(value, type | spaces.Space):
        return False
    if isinstance(value, th.Tensor | th.nn.Module | th.optim.Optimizer | th.Generator | np.random.Generator):
        return True
    seen = (*seen, id(value))
    if isinstance(value, dict):
        return any(_has_tensors(entry, seen) for entry in value.values())
    if isinstance(value, list | tuple | set):
        return any(_has_tensors(entry, seen) for entry in value)
    return hasattr(value, "__dict__") and not callable(value) and _has_tensors(vars(value), seen)


@pytest.mark.parametrize("intake", INTAKES)
def test_every_tensor_is_saved_or_declared(algorithm, intake):
    model = _learn(_build(algorithm, intake))
    logger = {"_logger", "_custom_logger"}
    loose = {name for name in model.unsaved_attributes() - logger if _has_tensors(vars(model)[name])}
    assert loose <= NOT_SAVED.keys(), loose - NOT_SAVED.keys()
    # The walk finds what is hidden.
    model._forgotten = {"inside": [th.zeros(1)]}
    assert _has_tensors(model._forgotten)
    assert "_forgotten" in model.unsaved_attributes()


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


def test_no_kind_of_file_is_executed(algorithm, tmp_path):
    marker = tmp_path / "executed"
    model = _build(algorithm, "tensor")
    for kind in ("pickle", "torch", "numpy"):
        path = tmp_path / kind
        if kind == "pickle":
            path.write_bytes(pickle.dumps(Evil(marker)))
        elif kind == "torch":
            th.save({"state_dict": Evil(marker)}, path)
        else:
            with path.open("wb") as file:
                np.savez(file, mean=np.array([Evil(marker)], dtype=object))
        loaders = {
            "load": algorithm.load,
            "set_parameters": model.set_parameters,
            "policy": type(model.policy).load,
            "normalizer": lambda path: load_normalizer(INTAKES["tensor"](), path, training=False),
        }
        for name, load in loaders.items():
            with pytest.raises(ValueError, match=kind):
                load(path)
            assert not marker.exists(), name
    # The payload is live.
    pickle.loads((tmp_path / "pickle").read_bytes())
    assert marker.exists()


# ---------------------------------------------------------------- derivatives
def test_second_derivatives_of_the_policy_are_those_of_finite_differences(algorithm):
    model = _build(algorithm, "tensor")
    n_agents = model.layout.n_agents
    obs = (
        th.as_tensor(np.stack([model.observation_space.sample() for _ in range(32 * n_agents)])).float().unflatten(0, (32, -1))
    )
    states = None if model.state_space is None else th.randn(32, *model.state_space.shape)

    def objective():
        said = model.policy.evaluate_team_actions(obs, th.zeros(32, n_agents, dtype=th.int64), states=states)
        return said.values.square().mean() + said.log_prob.mean() + said.entropy.mean()

    objective().backward()
    # Critics of the joint action, and targets, are read by nobody here.
    parameters = [parameter for parameter in model.policy.parameters() if parameter.grad is not None]
    assert len(parameters) >= 12
    direction = [th.randn_like(parameter) for parameter in parameters]

    def gradient(**kwargs):
        return th.autograd.grad(objective(), parameters, **kwargs)

    slope = sum((part * vector).sum() for part, vector in zip(gradient(create_graph=True), direction, strict=True))
    exact = th.autograd.grad(slope, parameters)
    sides = []
    for step in (2e-3, -4e-3):
        with th.no_grad():
            for parameter, vector in zip(parameters, direction, strict=True):
                parameter.add_(vector, alpha=step)
        sides.append(gradient())
    for product, upper, lower in zip(exact, *sides, strict=True):
        numeric = (upper - lower) / 4e-3
        assert float((product - numeric).norm()) <= 0.02 * float(numeric.norm()) + 1e-5


# ---------------------------------------------------------------- interrupts
@pytest.mark.parametrize("intake", ["tensor", "parallel"])
@pytest.mark.parametrize("where", ["rollout", "update"])
def test_an_interrupted_model_goes_on(algorithm, where, intake, tmp_path):
    model = _learn(_build(algorithm, intake, n_epochs=2))

    def interrupt(*_):
        raise KeyboardInterrupt

    if where == "update":
        step, model.policy.optimizer.step = model.policy.optimizer.step, interrupt
        with pytest.raises(KeyboardInterrupt):
            _learn(model, 1, reset_num_timesteps=False)
        model.policy.optimizer.step = step
    else:
        with pytest.raises(KeyboardInterrupt):
            _learn(model, 1, reset_num_timesteps=False, callback=interrupt)
    stopped_at = model.num_timesteps
    model.save(tmp_path / "model")
    for each in (model, algorithm.load(tmp_path / "model", env=INTAKES[intake]())):
        before = _state(each)
        _learn(each, 1, reset_num_timesteps=False)
        assert each.num_timesteps == stopped_at + model.n_steps * model.n_envs
        assert not _same(before, _state(each))
        assert all(th.isfinite(value).all() for value in _state(each).values())


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize("quantity", ["observation", "reward"])
def test_nan_stops_training_and_leaves_the_parameters(algorithm, quantity):
    env = ParallelVecEnv(WanderersEnv((99, 99, 99), poison=(quantity, "w2", 11)))
    model = algorithm("MlpPolicy", env, **SMALL)
    _learn(model, 1)
    before = _state(model)
    with pytest.raises(ValueError, match=f"`{quantity}s` of agent 'w2'"):
        _learn(model, 1, reset_num_timesteps=False)
    assert _same(before, _state(model))


def test_a_minibatch_larger_than_the_rollout_is_an_error(algorithm):
    with pytest.raises(ValueError, match="`batch_size` must not exceed the rollout"):
        _build(algorithm, "tensor", batch_size=1000)


def test_an_environment_with_other_spaces_is_an_error(algorithm):
    model = _build(algorithm, "gymnasium")
    with pytest.raises(ValueError, match=r"agent .* the observation space Box.*built for Box"):
        model.set_env(gym.make("CartPole-v1"))
