import functools
import importlib.util
import os
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
import supersuit as ss
import torch as th
from gymnasium import spaces
from mpe2 import simple_speaker_listener_v4, simple_spread_v3
from pettingzoo.utils import BaseParallelWrapper
from pettingzoo.utils.conversions import aec_to_parallel, parallel_to_aec
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize
from supersuit.vector import MarkovVectorEnv
from toy_teams import CustomSpacesEnv, DiceEnv, RelayEnv, vector

from otbaselines import IPPO
from otbaselines.common.vec_env.layout import TeamLayout, first_attribute, team_layout
from otbaselines.common.vec_env.make import from_supersuit, make_vec_env, wrap_team_env
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.common.vec_env.subproc import SubprocParallelVecEnv
from otbaselines.common.vec_env.tensor import TensorVecEnv


def supersuit_venv(env, n_copies=3, num_cpus=0, base_class="stable_baselines3"):
    """The two lines of SuperSuit's documentation."""
    venv = ss.pettingzoo_env_to_vec_env_v1(env)
    return ss.concat_vec_envs_v1(venv, n_copies, num_cpus=num_cpus, base_class=base_class)


class OnesEnv(DiceEnv):
    """Episodes of five steps with a reward of 1 each, whatever is done."""

    def __init__(self):
        super().__init__(horizon=5)

    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, dict.fromkeys(rewards, 1.0), *rest


def assert_same_episodes(actual, expected, n_steps=60):
    """Reset and step both with the same actions and demand the same bits."""
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(actual.reset(), expected.reset())
    for _ in range(n_steps):
        sizes = [space.n for space in expected.agent_action_spaces.values()] * expected.n_copies
        actions = np.array([rng.integers(size) for size in sizes])
        ours, theirs = actual.step(actions), expected.step(actions)
        for mine, other in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(mine, other)
        assert [info["TimeLimit.truncated"] for info in ours[3]] == [info["TimeLimit.truncated"] for info in theirs[3]]


# ---------------------------------------------------------------------- make_vec_env


@pytest.mark.parametrize(
    "env",
    [
        "mpe2/simple_spread_v3",
        "mpe2/simple_spread-v3",
        "mpe2.simple_spread_v3",
        "mpe2.simple_spread_v3:parallel_env",
        "mpe2.simple_spread_v3:env",
        simple_spread_v3.parallel_env,
        simple_spread_v3.parallel_env(),
        simple_spread_v3.env(),
    ],
    # A function's text holds its address, which differs between the processes that share the tests.
    ids=lambda env: env if isinstance(env, str) else type(env).__name__,
)
def test_every_spelling_of_a_team_is_the_same_environment(env):
    venv = make_vec_env(env, n_copies=2, seed=3)
    assert type(venv) is ParallelVecEnv
    assert_same_episodes(venv, ParallelVecEnv(simple_spread_v3.parallel_env(), 2, seed=3), n_steps=26)


def test_ids_of_pettingzoos_own_register_work():
    venv = make_vec_env("classic/rps_v2", n_copies=2, env_kwargs={"max_cycles": 4})
    assert team_layout(venv).possible_agents == ("player_0", "player_1")
    venv.reset()
    dones = [venv.step(np.array([0, 1, 2, 0]))[2].all() for _ in range(4)]
    assert dones == [False, False, False, True]


@pytest.mark.parametrize(("backend", "cls"), [("auto", TensorVecEnv), ("tensor", TensorVecEnv), ("parallel", ParallelVecEnv)])
def test_the_backend_decides_how_our_own_environments_are_stepped(backend, cls):
    venv = make_vec_env("otbaselines/Navigation-v0", 5, seed=0, backend=backend, env_kwargs={"n_agents": 4})
    assert isinstance(venv, cls)
    assert team_layout(venv).n_agents == 4
    assert team_layout(venv).n_copies == 5
    assert venv.reset().shape[0] == 20
    again = make_vec_env("otbaselines/Navigation-v0", 5, seed=0, backend=backend, env_kwargs={"n_agents": 4})
    venv.seed(1), again.seed(1)
    np.testing.assert_array_equal(venv.reset(), again.reset())


def test_a_seed_is_that_of_the_first_reset_on_every_backend():
    for backend in ("tensor", "parallel"):
        first, second, other = (
            make_vec_env("otbaselines/SimpleSpread-v0", 2, seed=seed, backend=backend).reset() for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, other)


def test_batched_environments_live_where_they_are_told():
    venv = make_vec_env("otbaselines/SimpleSpread-v0", 2, device=th.device("cpu"))
    assert venv.reset_tensor().device.type == "cpu"


def test_the_process_backend_is_used_on_request():
    venv = make_vec_env("mpe2/simple_spread_v3", 2, seed=1, backend="subproc")
    assert type(venv) is SubprocParallelVecEnv
    assert_same_episodes(venv, ParallelVecEnv(simple_spread_v3.parallel_env(), 2, seed=1), n_steps=3)
    venv.close()


def test_gymnasium_ids_are_teams_of_one():
    venv = make_vec_env("CartPole-v1", n_copies=3, seed=0)
    assert type(venv) is DummyVecEnv
    layout = team_layout(venv)
    assert (layout.possible_agents, layout.n_agents, layout.n_copies) == (("agent_0",), 1, 3)
    assert layout.agent_action_spaces == {"agent_0": spaces.Discrete(2)}


def test_gymnasium_ids_may_name_the_module_that_registers_them(tmp_path, monkeypatch):
    (tmp_path / "registers_pole.py").write_text(
        "import gymnasium\ngymnasium.register('Pole-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert make_vec_env("registers_pole:Pole-v0", n_copies=2, seed=0).num_envs == 2
        assert IPPO("MlpPolicy", "registers_pole:Pole-v0", n_steps=8, batch_size=8, seed=0).n_envs == 1
    finally:
        gym.registry.pop("Pole-v0", None)


def test_gymnasium_ids_run_in_processes_on_request():
    venv = make_vec_env("CartPole-v1", n_copies=2, seed=0, backend="subproc")
    assert type(venv) is SubprocVecEnv
    venv.close()


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("mpe2/simple_spred_v3", "'mpe2/simple_spread_v3'"),
        ("mpe/simple_spread_v3", "'mpe2/simple_spread_v3'"),
        ("otbaselines/Navgation-v0", "'otbaselines/Navigation-v0'"),
        ("Navigation-v0", "'otbaselines/Navigation-v0'"),
        ("CartPol-v1", "'CartPole-v1'"),
        ("sisl/pursuit_v99", "'sisl/pursuit-v5'"),
        ("zzzzzzzzzzzz", "otbaselines.envs.registry"),
        ("", "otbaselines.envs.registry"),
    ],
)
def test_unknown_ids_are_errors_with_close_matches(env_id, hint):
    with pytest.raises(ValueError, match="unknown id") as caught:
        make_vec_env(env_id)
    assert hint in str(caught.value)


def test_an_entry_point_with_a_misspelt_function_names_close_ones():
    with pytest.raises(ValueError, match=r"'paralel_env', which 'mpe2.simple_spread_v3' does not have.*'parallel_env'"):
        make_vec_env("mpe2.simple_spread_v3:paralel_env")


def _team(horizon=5):
    return DiceEnv(horizon=horizon)


@functools.wraps(_team)
def _wrapped():
    return _team()


class _Maker:
    def __call__(self):
        return _team()


@pytest.mark.parametrize("create", [_team, _wrapped, OnesEnv, functools.partial(_team, horizon=3), _Maker(), lambda: _team()])
def test_an_entry_point_is_a_class_of_environments_or_whatever_a_user_calls_to_make_one(create, monkeypatch):
    module = types.ModuleType("some_users_module")
    module.make = create
    monkeypatch.setitem(sys.modules, module.__name__, module)
    env = make_vec_env("some_users_module:make", n_copies=2)
    assert isinstance(env, ParallelVecEnv)
    assert env.num_envs == 2 * len(DiceEnv().possible_agents)
    env.close()


@pytest.mark.parametrize("create", [os.system, functools.partial(os.system, "exit 3"), dict, gym.Env, "text", None])
def test_an_entry_point_that_makes_no_environments_is_refused(create, monkeypatch):
    module = types.ModuleType("some_users_module")
    module.make = create
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(TypeError, match=r"the id 'some_users_module:make' names .*was not called"):
        make_vec_env("some_users_module:make")


def test_an_entry_point_without_its_module_is_an_error():
    with pytest.raises(ImportError, match="names the module 'no_such_module'"):
        make_vec_env("no_such_module:parallel_env")


def test_a_missing_extra_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "mpe2" else find_spec(name, *args))
    with pytest.raises(ImportError, match=r"pip install otbaselines\[mpe\]"):
        make_vec_env("mpe2/simple_spread_v3")


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (("mpe2/simple_spread_v3",), {"backend": "gpu"}, ValueError, "`backend` must be one of auto, tensor"),
        (("mpe2/simple_spread_v3",), {"backend": "tensor"}, ValueError, "no batched version"),
        (("CartPole-v1",), {"backend": "tensor"}, ValueError, "no batched version"),
        ((RelayEnv,), {"backend": "tensor"}, ValueError, "needs the id"),
        (("mpe2/simple_spread_v3", 0), {}, ValueError, "`n_copies` must be an integer of at least 1, got 0"),
        (
            ("mpe2/simple_spread_v3",),
            {"env_kwargs": {"M": 3}},
            TypeError,
            r"simple_spread_v3 does not accept `env_kwargs=.*'M'",
        ),
        ((RelayEnv(),), {"env_kwargs": {"render_mode": None}}, ValueError, "already built"),
        ((3,), {}, TypeError, "got int"),
        ((gym.make("CartPole-v1"),), {}, TypeError, "pass its id"),
        ((ParallelVecEnv(RelayEnv()),), {}, ValueError, "already a vector environment"),
    ],
)
def test_wrong_arguments_are_errors(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        make_vec_env(*args, **kwargs)


# ---------------------------------------------------------------------- wrap_team_env and team_layout


def test_vector_environments_are_taken_as_they_are():
    for venv in (
        ParallelVecEnv(RelayEnv()),
        VecNormalize(ParallelVecEnv(DiceEnv())),
        DummyVecEnv([lambda: gym.make("CartPole-v1")]),
        make_vec_env("otbaselines/Navigation-v0", 2),
    ):
        assert wrap_team_env(venv) is venv


@pytest.mark.parametrize("env", [RelayEnv(), parallel_to_aec(RelayEnv())])
def test_a_pettingzoo_environment_becomes_one_copy_of_itself(env):
    venv = wrap_team_env(env)
    assert type(venv) is ParallelVecEnv
    assert venv.n_copies == 1
    assert venv.envs[0].unwrapped is env.unwrapped


def test_team_ids_become_copies_and_gymnasium_is_left_to_stable_baselines():
    assert wrap_team_env("mpe2/simple_spread_v3").n_agents == 3
    assert wrap_team_env("CartPole-v1") is None
    assert wrap_team_env(gym.make("CartPole-v1")) is None
    with pytest.raises(TypeError, match="got function"):
        wrap_team_env(lambda: RelayEnv())
    with pytest.raises(ValueError, match="unknown id"):
        wrap_team_env("CartPol-v1")


def test_turn_based_environments_are_errors():
    env = parallel_to_aec(RelayEnv())
    env.metadata["is_parallelizable"] = False
    with pytest.raises(ValueError, match="turn-based"):
        wrap_team_env(env)


def test_the_layout_is_read_through_wrappers():
    venv = VecNormalize(VecFrameStack(ParallelVecEnv(RelayEnv(), 2), 2))
    assert team_layout(venv) == TeamLayout(
        possible_agents=("a", "b", "c"),
        n_copies=2,
        agent_observation_spaces={agent: RelayEnv().observation_space(agent) for agent in "abc"},
        agent_action_spaces={agent: RelayEnv().action_space(agent) for agent in "abc"},
    )


# ---------------------------------------------------------------------- SuperSuit


@pytest.mark.parametrize("base_class", ["stable_baselines3", "gymnasium"])
@pytest.mark.parametrize("num_cpus", [0, 1, 2])
def test_supersuits_two_lines_become_the_same_copies_seeded_and_distinct(num_cpus, base_class):
    given = supersuit_venv(simple_spread_v3.parallel_env(), 4, num_cpus, base_class)
    processes = getattr(getattr(given, "venv", given), "procs", [])
    assert len(processes) == (2 if num_cpus == 2 else 0)
    venv = wrap_team_env(given)
    assert type(venv) is ParallelVecEnv
    assert not any(process.is_alive() for process in processes)
    venv.seed(7)
    assert_same_episodes(venv, ParallelVecEnv(simple_spread_v3.parallel_env(), 4, seed=7))


@pytest.mark.parametrize("num_cpus", [0, 2])
def test_copies_from_supersuit_of_an_environment_with_its_own_stream_are_distinct(num_cpus):
    venv = from_supersuit(supersuit_venv(DiceEnv(), 4, num_cpus))
    assert len(np.unique(venv.reset()[::2], axis=0)) == 4


def test_supersuits_environment_for_a_single_copy_is_taken_too():
    venv = wrap_team_env(ss.pettingzoo_env_to_vec_env_v1(simple_spread_v3.parallel_env()))
    assert (venv.n_copies, venv.n_agents) == (1, 3)


@pytest.mark.filterwarnings("ignore:The `render_mode` attribute")
@pytest.mark.parametrize("num_cpus", [0, 2])
def test_the_replacement_is_put_under_the_wrappers_of_stable_baselines(num_cpus):
    env = simple_spread_v3.parallel_env(render_mode="rgb_array")
    given = VecNormalize(VecFrameStack(VecMonitor(supersuit_venv(env, 2, num_cpus)), 2))
    venv = wrap_team_env(given)
    assert venv is given
    assert wrap_team_env(venv) is given
    assert type(venv.unwrapped) is ParallelVecEnv
    for layer in (venv, venv.venv, venv.venv.venv, venv.unwrapped):
        assert (layer.num_envs, layer.render_mode) == (6, "rgb_array")
    venv.seed(0)
    assert venv.reset().shape == (6, 36)
    for _ in range(26):
        _, _, dones, infos = venv.step(np.zeros(6, int))
        if dones.any():
            assert dones.dtype == np.bool_
            assert all(info["TimeLimit.truncated"] and info["episode"]["l"] == 25 for info in infos)


@pytest.mark.filterwarnings("ignore:The `render_mode` attribute")
def test_vec_normalize_over_supersuit_gets_the_return_variance_right():
    # The return after t rewards of 1 is (1 - 0.9**t) / 0.1, and starts again after every five of them.
    venv = wrap_team_env(VecNormalize(supersuit_venv(OnesEnv(), 3), gamma=0.9))
    venv.reset()
    for _ in range(50):
        venv.step(np.zeros((6, 2)))
    returns = (1 - 0.9 ** np.arange(1, 6)) / 0.1
    assert venv.ret_rms.var == pytest.approx(returns.var(), rel=1e-3)


@pytest.mark.parametrize("num_cpus", [0, 2])
def test_native_action_spaces_are_found_under_supersuits_padding(num_cpus):
    env = ss.pad_action_space_v0(ss.pad_observations_v0(simple_speaker_listener_v4.parallel_env()))
    venv = wrap_team_env(supersuit_venv(env, 2, num_cpus))
    assert venv.action_space == spaces.Discrete(5)
    assert venv.agent_action_spaces == {"speaker_0": spaces.Discrete(3), "listener_0": spaces.Discrete(5)}
    venv.seed(3)
    assert_same_episodes(venv, ParallelVecEnv(simple_speaker_listener_v4.parallel_env(), 2, seed=3))
    with pytest.raises(ValueError, match="'speaker_0' of copy 0 does not have"):
        venv.step(np.array([4, 4, 0, 0]))


def test_native_continuous_action_spaces_are_found_under_supersuits_padding():
    boxes = {"x": spaces.Box(-1.0, 1.0, (1,), np.float32), "y": spaces.Box(-1.0, 1.0, (2,), np.float32)}
    env = CustomSpacesEnv(dict.fromkeys("xy", vector(2)), boxes)
    venv = ParallelVecEnv(ss.pad_action_space_v0(env))
    assert venv.agent_action_spaces == boxes
    venv.reset()
    venv.step(np.array([[0.5, 0.25], [0.5, 0.25]]))
    assert {agent: action.tolist() for agent, action in env.actions.items()} == {"x": [0.5], "y": [0.5, 0.25]}


class ReversedChoices(BaseParallelWrapper):
    """A user's own wrapper that changes what actions mean, but not their space."""

    def step(self, actions):
        return self.env.step({agent: 3 - action for agent, action in actions.items()})


def reversed_choices(env):
    """The same with SuperSuit's means."""
    return ss.action_lambda_v1(env, lambda action, space: 3 - action, lambda space: spaces.Discrete(4))


@pytest.mark.parametrize("wrap", [ReversedChoices, reversed_choices])
def test_padding_under_another_change_of_actions_is_left_alone(wrap):
    venv = ParallelVecEnv(wrap(ss.pad_action_space_v0(RelayEnv())))
    assert [space.n for space in venv.agent_action_spaces.values()] == [4, 4, 4]


def test_padding_under_harmless_wrappers_is_seen_through():
    venv = ParallelVecEnv(ss.frame_stack_v1(ss.pad_action_space_v0(ss.pad_observations_v0(RelayEnv())), 2))
    assert [space.n for space in venv.agent_action_spaces.values()] == [2, 3, 4]


def test_supersuits_preprocessing_is_kept():
    env = ss.agent_indicator_v0(ss.frame_stack_v1(simple_spread_v3.parallel_env(), 3))
    venv = wrap_team_env(supersuit_venv(env, 2))
    assert venv.observation_space.shape == (18 * 3 + 3,)
    np.testing.assert_array_equal(venv.reset()[:, -3:], np.tile(np.eye(3), (2, 1)))


@pytest.mark.parametrize("num_cpus", [0, 2])
@pytest.mark.parametrize("depth", ["outermost", "in between"])
def test_black_death_is_taken_out_and_episodes_keep_their_length(depth, num_cpus):
    env = ss.black_death_v3(simple_spread_v3.parallel_env())
    if depth == "in between":
        env = ss.agent_indicator_v0(env)
    given = supersuit_venv(env, 2, num_cpus)
    with pytest.warns(UserWarning, match="`black_death_v3` was taken out"):
        venv = wrap_team_env(given)
    venv.reset()
    dones = np.array([venv.step(np.zeros(6, int))[2].all() for _ in range(51)])
    np.testing.assert_array_equal(np.flatnonzero(dones) + 1, [25, 50])


def test_agents_that_die_early_may_come_through_supersuit():
    env = ss.black_death_v3(ss.pad_action_space_v0(ss.pad_observations_v0(RelayEnv())))
    with pytest.warns(UserWarning, match="taken out"):
        venv = ParallelVecEnv(from_supersuit(MarkovVectorEnv(env, black_death=True)).envs)
    expected = ParallelVecEnv(RelayEnv())
    venv.reset(), expected.reset()
    for _ in range(10):
        ours, theirs = venv.step(np.array([1, 2, 3])), expected.step(np.array([1, 2, 3]))
        for actual, wanted in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(actual, wanted)
        np.testing.assert_array_equal(venv.agent_active, expected.agent_active)


def test_a_supersuit_vector_environment_without_a_team_inside_is_an_error():
    single = ss.vector.ConcatVecEnv([lambda: gym.make("CartPole-v1")])
    with pytest.raises(ValueError, match="no PettingZoo environment was found inside ConcatVecEnv"):
        from_supersuit(single)


def test_workers_that_have_gone_are_an_error_with_a_remedy():
    given = supersuit_venv(simple_spread_v3.parallel_env(), 2, num_cpus=2)
    given.venv.close()
    with pytest.raises(ValueError, match=r"do not answer.*make_vec_env"):
        from_supersuit(given)


def test_a_converted_environment_is_recognised_as_parallel():
    assert wrap_team_env(aec_to_parallel(simple_spread_v3.env())).n_agents == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_copies", "a"), ("n_copies", 1.5), ("env_kwargs", 3), ("seed", -1), ("device", "foo")],
)
def test_wrong_arguments_are_named(name, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        make_vec_env("otbaselines/Navigation-v0", **{name: value})


def test_an_attribute_is_that_of_the_first_copy_and_none_where_it_has_none():
    def pole(number):
        env = gym.make("CartPole-v1")
        if number is not None:
            env.unwrapped.number = number
        return lambda: env

    mixed = DummyVecEnv([pole(3), pole(None)])
    assert first_attribute(VecMonitor(mixed), "number") == 3
    assert first_attribute(DummyVecEnv([pole(None), pole(3)]), "number") is None


def test_supersuits_environments_are_asked_for_attributes_as_well():
    env = ss.concat_vec_envs_v1(
        ss.pettingzoo_env_to_vec_env_v1(simple_spread_v3.parallel_env()), 2, num_cpus=1, base_class="stable_baselines3"
    )
    assert first_attribute(env, "agent_action_vectors") is None
