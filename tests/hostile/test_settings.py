"""Bad settings by the hundred: each is an error that names the parameter and its value, before any step is taken."""

import inspect
import math
import warnings
from fractions import Fraction
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv, WanderersEnv
from gymnasium import spaces
from toy_teams import vector

from otbaselines import HATRPO, IPPO, WBC, WMATRPO, ParallelVecEnv, WassersteinFlowPG
from otbaselines.common.settings import check_settings, settings_of

ALGORITHMS = [HATRPO, IPPO, WBC, WMATRPO, WassersteinFlowPG]
NAN, INF = math.nan, math.inf
# No number, no integer, no flag, no schedule, no table of anything.
NONSENSE: list[Any] = [
    Fraction(1, 2),
    [1],
    (1,),
    {"a": 1},
    {1},
    object(),
    1j,
    np.array([1.0, 2.0]),
    np.array(["x"]),
    b"1",
    th.tensor([1.0]),
    ...,
]
NOT_A_NUMBER = [*NONSENSE, "1", "", "abc", True, False, int, range(3), np.bool_(True)]
NOT_AN_INTEGER = [*NOT_A_NUMBER, 1.0, 1.5, np.float32(2.0), NAN, INF]
NOT_A_FLAG = [*NONSENSE, 0, 1, 1.0, "True", "no", None, NAN]
# Beyond 64 bits, torch takes no integers.
NOT_FINITE = [NAN, INF, -INF, np.float32("nan"), 10**400, 10**20]
FALLING = [-1.0, -1e-9, -5, np.float32(-0.5)]
NOT_A_SCHEDULE = [
    *NONSENSE,
    "abc",
    "lin",
    "lin_x",
    "lin_nan",
    "linear_1_2_3_4",
    "linear_1_2_0",
    "1e",
    "",
    True,
    None,
    *NOT_FINITE,
]
BAD_SCHEDULES = [
    lambda progress: NAN,
    lambda progress: INF,
    lambda progress: -progress,
    lambda progress: progress - 1.0,
    lambda progress: "1",
    lambda progress: None,
    lambda progress: [progress],
]
COUNT = [0, -1, -(10**9), 2**40, *NOT_AN_INTEGER]

BAD = {
    "policy": [None, 1, 1.5, ["MlpPolicy"], "mlp", "", "MlpLstmPolicy", object()],
    "learning_rate": [*NOT_A_SCHEDULE, *FALLING, *BAD_SCHEDULES, "lin_-1", "linear_1e-3_-1e-3"],
    "n_steps": COUNT,
    "batch_size": COUNT,
    "n_epochs": [*COUNT, None],
    "gamma": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, 1.0001, 99, None],
    "gae_lambda": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, 1.0001, None],
    "clip_range": [*NOT_A_SCHEDULE, *FALLING, *BAD_SCHEDULES, 0.0, "lin_-0.2", "linear_0.2_-0.2"],
    "clip_range_vf": [*(bad for bad in NOT_A_SCHEDULE if bad is not None), *FALLING, *BAD_SCHEDULES, 0.0, "lin_-0.2"],
    "normalize_advantage": NOT_A_FLAG,
    "ent_coef": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, None],
    "vf_coef": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, None],
    "max_grad_norm": [*NOT_A_NUMBER, NAN, -INF, 0, 0.0, *FALLING, None],
    "use_sde": NOT_A_FLAG,
    "sde_sample_freq": [0, -2, *NOT_AN_INTEGER, None],
    "target_kl": [*NOT_A_NUMBER, *NOT_FINITE, 0, 0.0, *FALLING],
    "share_parameters": NOT_A_FLAG,
    "stats_window_size": [*COUNT, None],
    "tensorboard_log": [1, 1.5, True, b"x", ["a"]],
    "estimator": [1, None, "sinkhorn", ["conditional"], True],
    "consensus_groups": [*NONSENSE[:-1], 1, 1.5, "agent_0", ["agent_0"], [[0]], True, [["nobody"]], [["agent_0", "agent_0"]]],
    "estimator_kwargs": [1, "p", ["p"], True],
    "policy_kwargs": [1, "net_arch", ["net_arch"], True],
    "verbose": [-1, 3, 2.0, "1", None, True],
    "seed": [-1, 1.0, 1.5, "0", True, NAN, [0], 2**70],
    "device": [None, 1.5, ["cpu"], "gpu0", "cpu:x", "", "tpu9000", "meta", "xpu"],
    "_init_setup_model": NOT_A_FLAG,
    "consensus_coef": [*NOT_A_SCHEDULE, *FALLING, *BAD_SCHEDULES, "lin_-1"],
    "reg": [*(bad for bad in NOT_A_SCHEDULE if bad is not None), *FALLING, *BAD_SCHEDULES, 0.0, "lin_0.5", "0"],
    "critic": [None, 1, "team", "", ["own"], True],
    "n_critic_updates": [*COUNT, None],
    "importance_clip": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, 0, 0.99, None],
    "caatr": NOT_A_FLAG,
    "caatr_constant": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, 0, 0.0],
    "caatr_eps_base": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING],
    "caatr_eps_max": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING],
    "trust_radius_max": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, 0, 0.0],
    "cg_max_steps": [*COUNT, None],
    "cg_damping": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, None],
    "line_search_shrinking_factor": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, 0, 0.0, 1, 1.0, 1.5, None],
    "line_search_max_iter": [*COUNT, None],
    "actor_learning_rate": [*NOT_A_SCHEDULE, *FALLING, *BAD_SCHEDULES, "lin_-1", "linear_1e-3_-1e-3"],
    "n_actor_updates": [*COUNT, None],
    "trust_radius": [*NOT_A_SCHEDULE, *FALLING, *BAD_SCHEDULES, 0, 0.0, "lin_0.1"],
    "update": [None, 1, "Transport", "", ["transport"], True],
    "dual_learning_rate": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING],
    "leader": [None, 1, "best", "", ["mean"], True],
    "n_critics": [*COUNT, 1001, None],
    "optimism": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, None],
    "replay_rollouts": [*COUNT, None],
    "tau": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, 1.0001, None],
    "ground_metric": [1, 1.5, True, {"a": 1}, {1}, object(), b"x", "euclidean", "", [[1j]]],
    "n_candidates": [1, *COUNT],
    "n_refinements": [-1, 1001, *NOT_AN_INTEGER],
    "n_joint": [10**4 + 1, *COUNT],
    "buffer_size": [*COUNT, None],
    "learning_starts": [-1, 2**40, *NOT_AN_INTEGER, None],
    "train_freq": [0, -1, 1.5, "1", True, None, (1,), (0, "step"), (1.5, "step"), (1, "day"), ("1", "step"), {1}, object()],
    "gradient_steps": [-2, 2**40, *NOT_AN_INTEGER, None],
    "action_noise": [1, 0.1, "normal", [0.1], True, object()],
    "replay_buffer_class": [1, "ReplayBuffer", int, True],
    "replay_buffer_kwargs": [1, "n", ["n"], True],
    "optimize_memory_usage": [*NOT_A_FLAG],
    "solver": [None, 1, "newton", "", ["cg"], True],
    "step_size": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, 0, 0.0],
    "n_inner_steps": [1001, *COUNT],
    "objective": [None, 1, "total", "", ["average"], True],
    "policy_form": [None, 1, "normal", "", ["gaussian"], True],
    "entropy": [None, 1, 0.1, "none", "", ["bonus"], True],
    "target_entropy": [*NOT_A_NUMBER, *NOT_FINITE, "auto"],
    "compile": NOT_A_FLAG,
    "cuda_graph": NOT_A_FLAG,
}
# What is a schedule in one algorithm, and an optional number in others.
BAD_OF: dict[Any, dict[str, list[Any]]] = {
    WassersteinFlowPG: {
        "gamma": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING, 1.0001],
        "ent_coef": [
            *NOT_A_NUMBER,
            *NOT_FINITE,
            *FALLING,
            None,
            "auto_",
            "auto_x",
            "auto_-1",
            "auto_0",
            "auto_inf",
            "auto0.1",
        ],
        "cg_max_steps": [1001, *COUNT],
        "cg_damping": [*NOT_A_NUMBER, *NOT_FINITE, *FALLING],
        "policy_batch_size": [257, *COUNT],
    },
    HATRPO: {"target_kl": [*NOT_A_SCHEDULE, *FALLING, *BAD_SCHEDULES, 0, 0.0, "lin_0.01"]},
}
BAD_POLICY_KWARGS = {
    "net_arch": [
        "64",
        [0],
        [-5],
        [64.0],
        [True],
        {"pi": [0]},
        {"pi": 5},
        {"pi": {"vf": [1]}},
        64,
        [[64]],
        [None],
        {"pi": None},
        [{"pi": [0]}],
        [{"pi": [4]}, 64],
        [64, {"pi": [4]}],
        [[{"pi": [4]}]],
    ],
    "activation_fn": ["tanh", None, th.nn.Tanh(), 1, int, th.nn.BatchNorm1d, th.nn.LSTM, th.nn.GLU, th.nn.Linear],
    "ortho_init": NOT_A_FLAG,
    "log_std_init": [*NOT_A_NUMBER, *NOT_FINITE, None, 1e4],
    "squash_output": NOT_A_FLAG,
    "optimizer_class": ["Adam", None, 3, int, th.optim.LBFGS, th.optim.SparseAdam],
    "optimizer_kwargs": [1, "lr", [1], {"maximize": True}, {"lr": 1e-3}, {"betas": 3}, {"betas": (2, 2)}, {"foo": 1}],
    "features_extractor_class": ["cnn", None],
    "append_agent_id": NOT_A_FLAG,
}


class Counter(AnySpacesEnv):
    """An environment that tells whether anybody has touched it."""

    touched = 0

    def reset(self, **kwargs):
        Counter.touched += 1
        return super().reset(**kwargs)


def _env(algorithm=IPPO):
    return Counter(vector(2), vector(1) if algorithm is WassersteinFlowPG else spaces.Discrete(2))


def _own(algorithm):
    return [name for name in BAD if name in inspect.signature(algorithm).parameters]


def _refused(build, name, value):
    try:
        build()
    except (TypeError, ValueError) as error:
        text = str(error)
        assert f"`{name}" in text, (name, value, text)
        shown = "remaining progress" if isinstance(value, FunctionType) else repr(value)[:60]
        assert shown in text, (name, value, text)
        return 1
    raise AssertionError(f"{name}={value!r} was accepted")


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda cls: cls.__name__)
def test_every_parameter_has_an_entry_in_the_table(algorithm):
    assert set(inspect.signature(algorithm).parameters) - {"env"} <= settings_of(algorithm).keys()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda cls: cls.__name__)
def test_hundreds_of_bad_settings_are_named(algorithm):
    env, tried, Counter.touched = _env(algorithm), 0, 0
    for name in _own(algorithm):
        for value in {**BAD, **BAD_OF.get(algorithm, {})}[name]:
            settings = {"policy": "MlpPolicy", name: value}
            tried += _refused(lambda settings=settings: algorithm(env=env, **settings), name, value)
    for name, values in BAD_POLICY_KWARGS.items():
        for value in values:
            kwargs = {name: value}
            build = lambda kwargs=kwargs: algorithm("MlpPolicy", env, policy_kwargs=kwargs)  # noqa: E731
            tried += _refused(build, f"policy_kwargs['{name}']", value)
    assert tried >= 500
    assert Counter.touched == 0


def test_bad_arguments_of_learn_are_named():
    bad = {
        "total_timesteps": [NAN, INF, -INF, -5, 0, 0.5, 1.5, "5", None, True, [5], 1j, 10**30],
        "log_interval": [0, -1, 1.5, 1.0, "1", True, NAN],
        "callback": [5, "callback", {"a": 1}, [3], [None]],
        "tb_log_name": [5, True, ["run"]],
        "reset_num_timesteps": NOT_A_FLAG,
        "progress_bar": NOT_A_FLAG,
    }
    model, Counter.touched = IPPO("MlpPolicy", _env(), n_steps=8, batch_size=8), 0
    for name, values in bad.items():
        for value in values:
            arguments = {"total_timesteps": 8, name: value}
            _refused(lambda arguments=arguments: model.learn(**arguments), name, value)
    assert Counter.touched == 0
    # What SB3's users write is understood.
    assert model.learn(1e1, log_interval=None).num_timesteps == 16


def test_settings_that_are_changed_later_are_checked_as_well(tmp_path):
    model = IPPO("MlpPolicy", _env(), n_steps=8, batch_size=8)
    model.save(tmp_path / "model")
    bad = {"gamma": 2.0, "vf_coef": -0.5, "max_grad_norm": -1, "n_epochs": 0, "learning_rate": -1.0, "target_kl": NAN}
    for name, value in bad.items():
        for change in ({"custom_objects": {name: value}}, {name: value}):
            _refused(lambda change=change: IPPO.load(tmp_path / "model", env=_env(), **change), name, value)
        good = getattr(model, name)
        setattr(model, name, value)
        _refused(lambda: model.learn(8), name, value)
        setattr(model, name, good)
    assert model.num_timesteps == 0


@pytest.mark.parametrize("name", ["learning_rate", "clip_range", "clip_range_vf", "consensus_coef", "reg"])
@pytest.mark.parametrize("value", [NAN, -1.0, INF, "x"])
def test_a_schedule_that_goes_wrong_on_the_way_is_named_where_it_did(name, value):
    team = ParallelVecEnv([WanderersEnv] * 2)
    settings = {
        "n_steps": 8,
        "batch_size": 24,
        "n_epochs": 1,
        name: lambda left: 0.5 if left in (0.0, 1.0) else value,
    }
    model = WBC("MlpPolicy", team, **settings)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises((TypeError, ValueError), match=f"`{name}` at the remaining progress 0.5 must be .*, got "):
        model.learn(96)
    assert all(th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:the rollout of")
def test_random_good_settings_train():
    rng = np.random.default_rng(0)
    teams = [ParallelVecEnv([lambda c=c: WanderersEnv(continuous=c)] * 2) for c in (False, True)]

    def pick(*values):
        return values[rng.integers(len(values))]

    for _ in range(30):
        algorithm = pick(IPPO, WBC)
        continuous = bool(rng.integers(2))
        settings = {
            "learning_rate": pick(0.0, 1e-4, np.float32(3e-3), "lin_1e-3", "linear_1e-3_1e-4", lambda left: 1e-3 * left),
            "n_steps": pick(2, np.int64(5), 8),
            "batch_size": pick(None, 6, 12),
            "n_epochs": pick(1, 3),
            "gamma": pick(0, 0.5, 1.0, np.float64(0.9)),
            "gae_lambda": pick(0.0, 1, 0.95),
            "clip_range": pick(1e-6, 0.2, 5, "lin_0.2"),
            "clip_range_vf": pick(None, 0.1, "lin_0.3"),
            "normalize_advantage": pick(True, False, np.bool_(True)),
            "ent_coef": pick(0, 0.1),
            "vf_coef": pick(0.0, 0.5, 10),
            "max_grad_norm": pick(1e-6, 0.5, INF),
            "use_sde": continuous and pick(True, False),
            "sde_sample_freq": pick(-1, 1, 3),
            "target_kl": pick(None, 1e-6, 0.01),
            "stats_window_size": pick(1, 100),
            "policy_kwargs": pick(None, {"net_arch": []}, {"net_arch": {"pi": (4,), "vf": [np.int64(3)]}, "log_std_init": -2}),
            "seed": pick(None, 0, 2**63 - 1),
        }
        if algorithm is IPPO:
            settings["share_parameters"] = pick(True, False)
        else:
            settings |= {"consensus_coef": pick(0, 1.0, "lin_5.0"), "reg": pick(0.3, "linear_0.9_0.3")}
        model = algorithm("MlpPolicy", teams[continuous], **settings)
        model.learn(1)
        assert all(bool(th.isfinite(parameter).all()) for parameter in model.policy.parameters()), settings


@pytest.mark.filterwarnings("ignore:the rollout of")
@pytest.mark.filterwarnings("ignore:the rewards of agent")
def test_random_good_settings_of_trust_regions_train():
    rng = np.random.default_rng(0)
    teams = [ParallelVecEnv([lambda c=c: WanderersEnv(continuous=c)] * 2) for c in (False, True)]

    def pick(*values):
        return values[rng.integers(len(values))]

    for turn in range(24):
        algorithm, continuous, caatr = (HATRPO, WMATRPO)[turn % 2], bool(rng.integers(2)), bool(rng.integers(2))
        settings = {
            "learning_rate": pick(0.0, 1e-4, np.float32(3e-3), "lin_1e-3"),
            "n_steps": pick(2, np.int64(5), 8),
            "batch_size": pick(None, 6, 12),
            "n_critic_updates": pick(1, 3),
            "gamma": pick(0, 0.5, 1.0, np.float64(0.9)),
            "gae_lambda": pick(0.0, 1, 0.95),
            "normalize_advantage": pick(True, False, np.bool_(True)),
            "importance_clip": pick(1, 1.0, 2.5, 1e6),
            "caatr": caatr,
            "caatr_constant": pick(None, 1e-9, 1e3) if caatr else None,
            "caatr_eps_base": pick(None, 0, 1.0) if caatr else None,
            "caatr_eps_max": pick(None, 1.0, 2.0) if caatr else None,
            "trust_radius_max": pick(None, 1e-6, 10) if caatr else None,
            "policy_kwargs": pick(None, {"net_arch": []}, {"net_arch": {"pi": (4,), "vf": [np.int64(3)]}, "log_std_init": -2}),
            "seed": pick(None, 0, 2**63 - 1),
        }
        if algorithm is HATRPO:
            settings |= {
                "target_kl": pick(1e-9, 0.01, "linear_0.5_0.01", lambda left: 0.1 + left),
                "cg_max_steps": pick(1, 15),
                "cg_damping": pick(0, 0.1),
                "line_search_max_iter": pick(1, 10),
                "line_search_shrinking_factor": pick(0.01, 0.99),
                "critic": pick("own", "shared", "central"),
            }
        else:
            update = pick("transport", "lagrangian")
            leader = pick("mean", "best_response") if update == "transport" else "mean"
            settings |= {
                "actor_learning_rate": pick(0, 1e-3, "lin_0.1"),
                "trust_radius": pick(1e-9, 0.1, "linear_0.5_0.01", 1e6),
                "n_actor_updates": pick(1, 3),
                "update": update,
                "dual_learning_rate": pick(None, 0, 5.0) if update == "lagrangian" else None,
                "leader": leader,
                "n_joint": pick(None, 1, 5, 40) if leader == "mean" else None,
                "n_critics": 2,
                "optimism": pick(0, 1.5),
                "replay_rollouts": pick(1, 3),
                "tau": pick(0, 0.5, 1),
                "n_candidates": pick(None, 2, 9) if continuous else None,
                "n_refinements": pick(None, 0, 2) if continuous else None,
                "ground_metric": pick(None, (1, 2), np.array([3, 0.5])) if continuous else pick(None, 1 - np.eye(4)),
            }
        model = algorithm("MlpPolicy", teams[continuous], **settings)
        model.learn(2 * model.n_envs * int(settings["n_steps"]))
        assert all(bool(th.isfinite(parameter).all()) for parameter in model.policy.parameters()), settings


def test_random_good_settings_of_the_flow_train():
    rng = np.random.default_rng(0)

    def pick(*values):
        return values[rng.integers(len(values))]

    for turn in range(20):
        solver, entropy = pick("regression", "cg", "first_order"), pick("bonus", "langevin")
        objective, policy_form = pick("discounted", "average"), pick("pushforward", "gaussian")
        ent_coef = pick(0, 0.1, np.float32(1.0)) if entropy == "langevin" or turn % 2 else pick("auto", "auto_0.1")
        settings = {
            "learning_rate": pick(0.0, 1e-4, np.float32(3e-3), "lin_1e-3", lambda left: 1e-3 * left),
            "buffer_size": pick(1, np.int64(50)),
            "learning_starts": pick(0, 3),
            "batch_size": pick(1, 7),
            "tau": pick(0, 0.5, 1),
            "gamma": pick(None, 0, 1.0) if objective == "discounted" else None,
            "train_freq": pick(1, 3, (2, "step"), (1, "episode")),
            "gradient_steps": pick(-1, 0, 2),
            "n_steps": pick(1, 3) if objective == "discounted" else 1,
            "solver": solver,
            "step_size": pick(None, 1e-6, 10) if solver != "first_order" else None,
            "n_inner_steps": pick(None, 1, 4) if solver == "regression" else None,
            "cg_max_steps": pick(None, 1, 20) if solver == "cg" else None,
            "cg_damping": pick(None, 0, 5.0) if solver == "cg" else None,
            "policy_batch_size": pick(None, 1),
            "objective": objective,
            "policy_form": policy_form,
            "entropy": entropy,
            "ent_coef": ent_coef,
            "target_entropy": pick(None, -3, 0.5) if isinstance(ent_coef, str) else None,
            "policy_kwargs": pick(None, {"net_arch": []}, {"net_arch": {"pi": [4], "qf": [3]}, "n_critics": 3}),
            "seed": pick(None, 0, 2**63 - 1),
        }
        model = WassersteinFlowPG("MlpPolicy", _env(WassersteinFlowPG), **settings).learn(12)
        assert all(bool(th.isfinite(parameter).all()) for parameter in model.policy.parameters()), settings


def test_good_activations_optimizers_and_lists_of_functions_train():
    steps = []
    kwargs = [
        {"activation_fn": th.nn.RReLU},
        {"activation_fn": th.nn.Softmax},
        {"optimizer_class": th.optim.RMSprop},
        {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
        {"optimizer_kwargs": {"betas": (0.8, 0.9), "amsgrad": True}},
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Implicit dimension choice for softmax")
        for policy_kwargs in kwargs:
            model = IPPO("MlpPolicy", _env(), n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=policy_kwargs)
            model.learn(8, callback=[lambda *_: steps.append(1) is None])
    assert len(steps) == 8 * len(kwargs)


def test_checks_of_settings_draw_no_random_numbers():
    th.manual_seed(0)
    before = th.get_rng_state()
    check_settings(settings_of(IPPO), {"policy_kwargs": {"activation_fn": th.nn.RReLU, "optimizer_class": th.optim.Adam}})
    assert th.equal(th.get_rng_state(), before)


def test_parts_of_a_network_that_does_not_exist_are_named():
    with pytest.raises(ValueError, match="`net_arch` must have no other keys than 'pi' and 'vf', got 'qf'"):
        IPPO("MlpPolicy", _env(), policy_kwargs={"net_arch": {"qf": [4]}})


@pytest.mark.parametrize(("policy", "wanted"), [("MultiInputPolicy", "a Dict"), ("CnnPolicy", "images")])
def test_policies_for_other_observations_are_refused(policy, wanted):
    with pytest.raises(ValueError, match=rf"`policy` .* is for {wanted}.*, but the agents observe Box.*; use 'MlpPolicy'"):
        IPPO(policy, _env())


@pytest.mark.parametrize("mode", [th.no_grad, th.inference_mode])
def test_learning_without_gradients_is_refused(mode):
    model = IPPO("MlpPolicy", _env(), n_steps=8, batch_size=8)
    with mode(), pytest.raises(RuntimeError, match=r"`learn` needs gradients; call it outside of torch.no_grad\(\)"):
        model.learn(8)
    assert model.learn(8).num_timesteps == 8


def test_no_environment_is_refused_where_the_model_is_to_be_built():
    with pytest.raises(
        TypeError, match=r"`env` must be an environment or its id, got None; a saved model needs none: IPPO\.load"
    ):
        IPPO("MlpPolicy", None)


def test_a_count_beyond_what_is_possible_is_told_the_bound():
    with pytest.raises(ValueError, match=r"`n_steps` must be .* got 1000000000000; at most 2,147,483,647 are possible"):
        IPPO("MlpPolicy", "CartPole-v1", n_steps=10**12)
