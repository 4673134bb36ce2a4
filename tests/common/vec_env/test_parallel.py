import importlib
import pkgutil
import warnings

import mpe2
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize, VecVideoRecorder
from toy_teams import CustomSpacesEnv, DiceEnv, RelayEnv, vector

from otbaselines.common.vec_env.lean_mpe import LeanMpeCopy
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.common.vec_env.rows import ActionReader
from otbaselines.common.vec_env.spaces import team_spaces
from otbaselines.common.vec_env.subproc import SubprocParallelVecEnv, WorkerTraceback

MPE_TASKS = sorted(module.name for module in pkgutil.iter_modules(mpe2.__path__) if "_v" in module.name)


def make_mpe(task, **kwargs):
    return importlib.import_module(f"mpe2.{task}").parallel_env(**kwargs)


def native_samples(venv, rng, *, excess=0.0):
    """Random native actions in padded rows; continuous ones stick out of the box by ``excess``."""
    if isinstance(venv.action_space, spaces.Discrete):
        sizes = [space.n for space in venv.agent_action_spaces.values()] * venv.n_copies
        return np.array([rng.integers(size) for size in sizes])
    low, high = venv.action_space.low - excess, venv.action_space.high + excess
    return rng.uniform(low, high, (venv.num_envs, *venv.action_space.shape)).astype(np.float32)


def native_action(space, row):
    """What the documentation promises that an agent's own environment receives of a padded row."""
    if isinstance(space, spaces.Discrete):
        return int(row)
    return np.clip(row[: space.shape[0]], space.low, space.high)


# ---------------------------------------------------------------------- layout, seeds and streams


def test_slots_are_ordered_by_copy_and_then_by_agent():
    venv = ParallelVecEnv(RelayEnv(), n_copies=3)
    observations = venv.reset()
    assert venv.num_envs == 9
    assert (venv.n_copies, venv.n_agents, venv.possible_agents) == (3, 3, ["a", "b", "c"])
    np.testing.assert_array_equal(observations, [[100, 100, 0], [200, 200, 200], [0, 0, 0]] * 3)


@pytest.mark.parametrize("seed", [0, 7])
def test_copy_c_is_seeded_with_seed_plus_c_and_its_stream_goes_on_after_an_episode(seed):
    venv = ParallelVecEnv(DiceEnv(horizon=2), n_copies=3, seed=seed)
    observed = [venv.reset()] + [venv.step(np.zeros((6, 2)))[0] for _ in range(2)]
    for copy in range(3):
        # Five draws of two agents by three numbers: two of them start, two end and one restarts an episode.
        draws = np.random.default_rng(seed + copy).normal(size=(4, 2, 3)).astype(np.float32)
        for rows, expected in zip(observed, draws[[0, 1, 3]], strict=True):
            np.testing.assert_array_equal(rows[2 * copy : 2 * copy + 2], expected)


def test_seed_takes_effect_at_the_next_reset_and_only_there():
    venv = ParallelVecEnv(DiceEnv(), n_copies=2, seed=3)
    first = venv.reset()
    assert not np.array_equal(venv.reset(), first)
    assert venv.seed(3) == [3, 3, 4, 4]
    np.testing.assert_array_equal(venv.reset(), first)


def test_unseeded_copies_of_one_environment_play_different_episodes():
    observations = ParallelVecEnv(DiceEnv(), n_copies=4).reset()
    assert len(np.unique(observations[::2], axis=0)) == 4


def test_unseeded_runs_are_reproduced_by_numpys_global_seed():
    runs = []
    for _ in range(2):
        np.random.seed(5)  # noqa: NPY002
        runs.append(ParallelVecEnv(DiceEnv(), n_copies=2).reset())
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("make", [ParallelVecEnv, lambda *args: SubprocParallelVecEnv(*args, start_method="fork")])
def test_copies_that_ignore_their_seeds_are_refused(make):
    venv = make(DiceEnv(ignores_seed=True), 2)
    with pytest.raises(ValueError, match=r"copies 0 and 1 have the same random stream.*list of factories"):
        venv.reset()
    venv.close()


def test_a_factory_that_returns_one_object_twice_is_refused():
    env = DiceEnv()
    with pytest.raises(ValueError, match="one and the same environment"):
        ParallelVecEnv(lambda: env, 2)


# ---------------------------------------------------------------------- episodes


def test_agents_leave_and_join_on_their_own_timetable():
    venv = ParallelVecEnv(RelayEnv())
    venv.reset()
    action = np.array([1, 2, 3])
    # step: rewards, dones, who is there afterwards, first column of the observations afterwards
    timetable = [
        ([1, 12, 0], [0, 0, 0], [1, 1, 0], [101, 201, 0]),
        ([1, 12, 0], [1, 0, 0], [0, 1, 0], [0, 202, 0]),
        ([0, 12, 0], [0, 0, 0], [0, 1, 1], [0, 203, 303]),
        ([0, 12, 23], [0, 0, 0], [0, 1, 1], [0, 204, 304]),
        ([0, 12, 23], [0, 1, 1], [1, 1, 0], [100, 200, 0]),
    ]
    for _ in range(2):
        for rewards, dones, active, column in timetable:
            result = venv.step(action)
            np.testing.assert_array_equal(result[1], rewards)
            np.testing.assert_array_equal(result[2], np.array(dones, bool))
            np.testing.assert_array_equal(venv.agent_active[0], np.array(active, bool))
            np.testing.assert_array_equal(result[0][:, 0], column)


def test_infos_close_each_agents_own_episode():
    venv = ParallelVecEnv(RelayEnv())
    venv.reset()
    infos = [venv.step(np.array([1, 2, 3]))[3] for _ in range(5)]
    ends = {(step, slot): info for step, row in enumerate(infos) for slot, info in enumerate(row) if "episode" in info}
    assert set(ends) == {(1, 0), (4, 1), (4, 2)}
    assert [(end["episode"]["r"], end["episode"]["l"]) for end in ends.values()] == [(2.0, 2), (60.0, 5), (46.0, 2)]
    # Terminated; truncated; terminated and truncated at once, which is nothing to bootstrap from.
    assert [end["TimeLimit.truncated"] for end in ends.values()] == [False, True, False]
    finals = [end["terminal_observation"].tolist() for end in ends.values()]
    assert finals == [[102, 102, 0], [205, 205, 205], [305, 0, 0]]
    assert all(info["TimeLimit.truncated"] is False for info in infos[0])
    assert [info.get("t") for info in infos[3]] == [None, 4, 4]
    assert [info.get("t") for info in infos[2]] == [None, 3, 3]


def test_reset_infos_follow_automatic_restarts():
    venv = ParallelVecEnv(RelayEnv(), n_copies=2)
    venv.reset()
    venv.reset_infos = [{} for _ in range(6)]
    for _ in range(5):
        venv.step(np.zeros(6, int))
    assert venv.reset_infos == [{"start": True}, {"start": True}, {}] * 2


def test_agent_active_arrays_are_never_changed_after_the_fact():
    venv = ParallelVecEnv(RelayEnv())
    venv.reset()
    kept = venv.agent_active
    for _ in range(3):
        venv.step(np.zeros(3, int))
    np.testing.assert_array_equal(kept, [[True, True, False]])


def test_dtypes_are_what_stable_baselines_relies_on():
    venv = ParallelVecEnv(DiceEnv(), n_copies=2)
    venv.reset()
    observations, rewards, dones, _ = venv.step(np.zeros((4, 2)))
    assert (observations.dtype, rewards.dtype, dones.dtype) == (np.float32, np.float32, np.bool_)


def test_an_agent_that_vanishes_is_terminated_with_its_last_observation():
    env = DiceEnv()
    step = env.step

    def vanish(actions):
        observations, rewards, terminations, truncations, infos = step(actions)
        env.agents = ["right"]
        return {"right": observations["right"]}, rewards, terminations, truncations, infos

    env.step = vanish
    venv = ParallelVecEnv(env, seed=0)
    first = venv.reset()
    observations, _, dones, infos = venv.step(np.zeros((2, 2)))
    np.testing.assert_array_equal(dones, [True, False])
    np.testing.assert_array_equal(infos[0]["terminal_observation"], first[0])
    np.testing.assert_array_equal(observations[0], 0)
    assert infos[0]["TimeLimit.truncated"] is False


# ---------------------------------------------------------------------- every task of mpe2


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("task", MPE_TASKS)
def test_mpe2_tasks_equal_their_own_parallel_env_bit_for_bit(task, continuous):
    venv = ParallelVecEnv(make_mpe(task, continuous_actions=continuous), n_copies=2, seed=11)
    assert all(type(copy) is LeanMpeCopy for copy in venv._copies)
    rng = np.random.default_rng(0)
    references = [make_mpe(task, continuous_actions=continuous) for _ in range(2)]
    expected = [env.reset(seed=11 + copy)[0] for copy, env in enumerate(references)]
    observations = venv.reset()
    for _ in range(56):
        actions = native_samples(venv, rng, excess=0.2)
        result = venv.step(actions)
        for copy, env in enumerate(references):
            rows = slice(copy * venv.n_agents, (copy + 1) * venv.n_agents)
            acting = {
                agent: native_action(env.action_space(agent), row)
                for agent, row in zip(env.agents, actions[rows], strict=True)
            }
            for agent, row in zip(venv.possible_agents, observations[rows], strict=True):
                np.testing.assert_array_equal(row[: len(expected[copy][agent])], expected[copy][agent])
                np.testing.assert_array_equal(row[len(expected[copy][agent]) :], 0)
            expected[copy], rewards, terminations, truncations, _ = env.step(acting)
            np.testing.assert_array_equal(result[1][rows], np.array(list(rewards.values()), np.float32))
            np.testing.assert_array_equal(
                result[2][rows], np.logical_or(list(terminations.values()), list(truncations.values()))
            )
            for agent, info in zip(venv.possible_agents, result[3][rows], strict=True):
                assert info["TimeLimit.truncated"] == (truncations[agent] and not terminations[agent])
                if "terminal_observation" in info:
                    last = expected[copy][agent]
                    np.testing.assert_array_equal(info["terminal_observation"][: len(last)], last)
            if not env.agents:
                expected[copy] = env.reset()[0]
        observations = result[0]


def test_termination_on_success_is_not_truncation():
    env = make_mpe("simple_spread_v3", N=1, terminate_on_success=True)
    venv = ParallelVecEnv(env, seed=0)
    venv.reset()
    world = env.unwrapped.world
    world.agents[0].state.p_pos = world.landmarks[0].state.p_pos.copy()
    _, _, dones, infos = venv.step(np.array([0]))
    assert dones[0]
    assert infos[0]["TimeLimit.truncated"] is False


# ---------------------------------------------------------------------- Stable-Baselines3 on top


def test_vec_normalize_over_it_equals_hand_computed_statistics():
    gamma = 0.9
    venv = VecNormalize(ParallelVecEnv(DiceEnv(horizon=3), n_copies=3, seed=1), gamma=gamma)
    twin = ParallelVecEnv(DiceEnv(horizon=3), n_copies=3, seed=1)
    rng = np.random.default_rng(2)
    venv.reset()
    seen, returns, tracked = [twin.reset()], np.zeros(6), []
    for _ in range(10):
        actions = rng.uniform(-1, 1, (6, 2)).astype(np.float32)
        venv.step(actions)
        observations, rewards, dones, _ = twin.step(actions)
        seen.append(observations)
        returns = returns * gamma + rewards
        tracked.append(returns.copy())
        returns[dones] = 0
    for data, statistics in ((np.concatenate(seen), venv.obs_rms), (np.concatenate(tracked), venv.ret_rms)):
        # The running moments start as if 1e-4 samples of mean 0 and variance 1 had been seen.
        data, n = data.astype(np.float64), len(data) + 1e-4
        mean = data.sum(axis=0) / n
        np.testing.assert_allclose(statistics.mean, mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(statistics.var, (1e-4 + (data**2).sum(axis=0)) / n - mean**2, rtol=1e-6)


def test_vec_monitor_agrees_with_the_episode_statistics_already_there():
    with pytest.warns(UserWarning, match="already wrapped"):
        venv = VecMonitor(ParallelVecEnv(DiceEnv(horizon=3), n_copies=2, seed=1))
    twin = ParallelVecEnv(DiceEnv(horizon=3), n_copies=2, seed=1)
    venv.reset(), twin.reset()
    rng, n_seen = np.random.default_rng(0), 0
    for _ in range(9):
        actions = rng.uniform(-1, 1, (4, 2))
        for monitored, own in zip(venv.step(actions)[3], twin.step(actions)[3], strict=True):
            if "episode" in own:
                n_seen += 1
                assert monitored["episode"]["l"] == own["episode"]["l"]
                assert monitored["episode"]["r"] == pytest.approx(own["episode"]["r"], abs=1e-5)
    assert n_seen == 12


def test_stable_baselines_ppo_trains_and_evaluates_on_it_without_warnings():
    venv = ParallelVecEnv(make_mpe("simple_spread_v3"), n_copies=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PPO("MlpPolicy", venv, n_steps=16, batch_size=32, n_epochs=1, seed=0).learn(96)
        _, lengths = evaluate_policy(model, venv, n_eval_episodes=6, return_episode_rewards=True)
    assert lengths == [25] * 6


def test_a_video_is_recorded_over_a_monitor_at_the_environments_frame_rate(tmp_path):
    with pytest.warns(UserWarning, match="already wrapped"):
        venv = VecMonitor(ParallelVecEnv(RelayEnv(render_mode="rgb_array"), n_copies=2))
    recorder = VecVideoRecorder(venv, str(tmp_path), lambda step: step == 0, video_length=3)
    assert recorder.frames_per_sec == 7
    recorder.reset()
    for _ in range(4):
        recorder.step(np.zeros(6, int))
    recorder.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


# ---------------------------------------------------------------------- attributes, methods, pictures


@pytest.fixture(params=["serial", "subproc"])
def relay(request):
    if request.param == "serial":
        venv = ParallelVecEnv(RelayEnv(render_mode="rgb_array"), 3)
    else:
        venv = SubprocParallelVecEnv(RelayEnv(render_mode="rgb_array"), 3, n_workers=2, start_method="fork")
    yield venv
    venv.close()


def test_attributes_are_read_and_written_by_slot(relay):
    relay.set_attr("calls", 5, indices=[4])
    assert relay.get_attr("calls") == [0, 0, 0, 5, 5, 5, 0, 0, 0]
    assert relay.get_attr("calls", indices=3) == [5]
    assert relay.get_attr("calls", indices=-1) == [0]
    relay.set_attr("brand_new", 1)
    assert relay.has_attr("brand_new")
    assert not relay.has_attr("nonexistent")
    with pytest.raises(AttributeError, match="nonexistent"):
        relay.get_attr("nonexistent")


def test_methods_are_called_once_per_copy_however_many_of_its_slots_are_named(relay):
    assert relay.env_method("poke", 2) == [2] * 9
    assert relay.env_method("poke", amount=1, indices=[8, 0, 1]) == [3, 3, 3]
    assert relay.get_attr("calls", indices=[0, 3, 6]) == [3, 2, 3]


def test_options_reach_the_next_reset_and_no_later_one(relay):
    relay.set_options({"level": 2})
    relay.reset()
    assert relay.get_attr("options", indices=[0, 8]) == [{"level": 2}] * 2
    relay.reset()
    assert relay.get_attr("options", indices=[0, 8]) == [None] * 2


def test_pictures_and_metadata_come_from_the_environment(relay):
    assert [image.shape for image in relay.get_images()] == [(16, 16, 3)] * 3
    assert relay.render().shape == (32, 32, 3)
    assert relay.render_mode == "rgb_array"
    assert relay.metadata["render_fps"] == 7


def test_wrappers_are_found(relay):
    assert relay.env_is_wrapped(RelayEnv) == [True] * 9
    assert relay.env_is_wrapped(DiceEnv, indices=[0, 5]) == [False] * 2
    assert relay.env_is_wrapped(Monitor, indices=0) == [True]


def test_attributes_are_found_behind_pettingzoos_converter():
    venv = ParallelVecEnv(make_mpe("simple_spread_v3"), n_copies=2)
    assert venv.get_attr("max_cycles") == [25] * 6
    venv.set_attr("max_cycles", 3, indices=[0])
    assert [env.unwrapped.max_cycles for env in venv.envs] == [3, 25]
    venv.reset()
    dones = [venv.step(np.zeros(6, int))[2] for _ in range(3)]
    np.testing.assert_array_equal(dones[-1], [True] * 3 + [False] * 3)


def test_every_copy_is_closed_once():
    venv = ParallelVecEnv(RelayEnv(), 2)
    venv.close(), venv.close()
    assert [env.n_closed for env in venv.envs] == [1, 1]


# ---------------------------------------------------------------------- spaces and actions


def test_different_vectors_and_choices_are_padded_to_the_largest():
    venv = ParallelVecEnv(RelayEnv())
    assert venv.observation_space == spaces.Box(-1e3, 1e3, (3,), np.float32)
    assert venv.action_space == spaces.Discrete(4)
    assert [space.n for space in venv.agent_action_spaces.values()] == [2, 3, 4]
    assert [space.shape for space in venv.agent_observation_spaces.values()] == [(2,), (3,), (1,)]


def test_bounds_of_padded_boxes_admit_the_zeros_of_the_padding():
    observation = {"x": spaces.Box(2.0, 3.0, (1,), np.float32), "y": spaces.Box(1.0, 4.0, (2,), np.float32)}
    venv = ParallelVecEnv(CustomSpacesEnv(observation, dict.fromkeys("xy", spaces.Discrete(2))))
    np.testing.assert_array_equal(venv.observation_space.low, [1.0, 0.0])
    np.testing.assert_array_equal(venv.observation_space.high, [4.0, 4.0])
    assert all(venv.observation_space.contains(row) for row in venv.reset())


def test_continuous_actions_are_cut_and_clipped_to_each_agents_own_box():
    boxes = {"x": spaces.Box(-1.0, 1.0, (1,), np.float32), "y": spaces.Box(-2.0, 3.0, (2,), np.float64)}
    env = CustomSpacesEnv(dict.fromkeys("xy", vector(2)), boxes)
    venv = ParallelVecEnv(env)
    assert venv.action_space.shape == (2,)
    venv.reset()
    venv.step(np.array([[-7.0, 9.0], [0.5, 9.0]]))
    assert {agent: (action.tolist(), action.dtype) for agent, action in env.actions.items()} == {
        "x": ([-1.0], np.float32),
        "y": ([0.5, 3.0], np.float64),
    }


def test_choices_are_counted_from_each_agents_own_start():
    choices = {"x": spaces.Discrete(2, start=5), "y": spaces.Discrete(3, start=-1)}
    env = CustomSpacesEnv(dict.fromkeys("xy", vector(1)), choices)
    venv = ParallelVecEnv(env)
    assert venv.action_space == spaces.Discrete(3)
    venv.reset()
    venv.step(np.array([1, 2]))
    assert {agent: int(action) for agent, action in env.actions.items()} == {"x": 6, "y": 1}


@pytest.mark.parametrize(
    ("space", "action"),
    [(spaces.MultiDiscrete([2, 3]), [[1, 2], [0, 0]]), (spaces.MultiBinary(3), [[1, 0, 1], [0, 0, 0]])],
)
def test_composite_actions_pass_unchanged(space, action):
    env = CustomSpacesEnv(dict.fromkeys("xy", vector(1)), dict.fromkeys("xy", space))
    venv = ParallelVecEnv(env)
    venv.reset()
    venv.step(np.array(action))
    assert [row.tolist() for row in env.actions.values()] == action


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (8, 8, 3), np.uint8),
        spaces.Discrete(4),
        spaces.Dict({"image": spaces.Box(0, 255, (4, 4, 1), np.uint8), "speed": vector(2)}),
    ],
)
def test_images_numbers_and_dicts_are_observed_as_they_are(space):
    space.seed(0)
    env = CustomSpacesEnv(dict.fromkeys("xy", space), dict.fromkeys("xy", spaces.Discrete(2)))
    seen = [env.observations[agent] for agent in "xy"]
    venv = ParallelVecEnv(env)
    first = venv.reset()
    second, _, dones, infos = venv.step(np.array([0, 1]))
    assert dones.all()
    for rows in (first, second):
        for index in range(2):
            if isinstance(space, spaces.Dict):
                for key in space:
                    np.testing.assert_array_equal(rows[key][index], seen[index][key])
                    np.testing.assert_array_equal(infos[index]["terminal_observation"][key], seen[index][key])
            else:
                np.testing.assert_array_equal(rows[index], seen[index])
                np.testing.assert_array_equal(infos[index]["terminal_observation"], seen[index])


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 3, 0], r"`actions\[1\]` is 3, which agent 'b' of copy 0 does not have.*Discrete\(3\).*mask"),
        ([-1, 0, 0], r"`actions\[0\]` is -1"),
        ([0, 0], r"shape \(3,\), one row per slot, got \(2,\)"),
        ([0.0, 1.0, 0.0], "must be integers"),
    ],
)
def test_actions_that_an_agent_does_not_have_are_errors(actions, message):
    venv = ParallelVecEnv(RelayEnv())
    venv.reset()
    with pytest.raises(ValueError, match=message):
        venv.step(np.array(actions))


def test_actions_of_absent_agents_are_ignored():
    venv = ParallelVecEnv(RelayEnv())
    venv.reset()
    venv.step(np.array([0, 0, 99]))


def test_actions_that_are_not_numbers_are_errors():
    venv = ParallelVecEnv(DiceEnv())
    venv.reset()
    with pytest.raises(ValueError, match=r"`actions\[1\]` is \[ *0\. +nan\], which agent 'right'.*finite"):
        venv.step(np.array([[0.0, 0.0], [0.0, np.nan]]))


def test_a_step_before_the_first_reset_is_an_error():
    with pytest.raises(RuntimeError, match="call `reset` before `step`"):
        ParallelVecEnv(RelayEnv()).step(np.zeros(3, int))


@pytest.mark.parametrize("role", ["observation", "action"])
@pytest.mark.parametrize("other", [spaces.Discrete(2), spaces.Box(0, 255, (8, 8, 3), np.uint8)])
def test_mixed_kinds_of_spaces_are_errors_that_name_agents_spaces_and_a_remedy(role, other):
    mixed, same = {"x": vector(2), "y": other}, dict.fromkeys("xy", vector(2))
    pair = (mixed, same) if role == "observation" else (same, mixed)
    with pytest.raises(ValueError, match=rf"{role} spaces cannot be padded.*x: Box.*y: (Discrete|Box).*flatten_v0"):
        ParallelVecEnv(CustomSpacesEnv(*pair))


def test_different_spaces_without_padding_are_an_error_with_the_remedy():
    with pytest.raises(ValueError, match=r"observation spaces differ.*`pad=False`; use `pad=True`.*pad_observations_v0"):
        ParallelVecEnv(RelayEnv(), pad=False)


def test_unsupported_spaces_are_errors():
    with pytest.raises(ValueError, match=r"action space of agent 'x' is Tuple.*not supported"):
        ParallelVecEnv(CustomSpacesEnv({"x": vector(1)}, {"x": spaces.Tuple([vector(1)])}))


def test_an_empty_team_is_an_error():
    with pytest.raises(ValueError, match="at least one agent"):
        ParallelVecEnv(CustomSpacesEnv({}, {}))


def test_a_team_without_a_list_of_possible_agents_is_an_error():
    env = DiceEnv()
    del env.possible_agents
    with pytest.raises(ValueError, match="has no `possible_agents`"):
        ParallelVecEnv(env)


@pytest.mark.parametrize("observation", [np.zeros(3, np.float32), np.zeros((2, 1), np.float32), np.zeros(2, complex), 0.0])
def test_observations_that_contradict_their_space_are_errors_at_the_first_reset(observation):
    env = CustomSpacesEnv({"x": vector(2)}, {"x": spaces.Discrete(2)}, {"x": observation})
    with pytest.raises(ValueError, match=r"agent 'x' observed an array of shape .* but its observation space is Box"):
        ParallelVecEnv(env).reset()


def test_observations_that_change_shape_later_are_errors():
    env = CustomSpacesEnv({"x": vector(2)}, {"x": spaces.Discrete(2)})
    venv = ParallelVecEnv(env)
    venv.reset()
    env.observations = {"x": np.zeros(1, np.float32)}
    with pytest.raises(ValueError, match=r"agent 'x' observed an array of shape \(1,\)"):
        venv.step(np.array([0]))


def test_agents_that_were_never_announced_are_errors():
    env = DiceEnv()
    env.possible_agents = ["left"]
    reset = env.reset

    def grow(**kwargs):
        observations, infos = reset(**kwargs)
        env.agents = ["left", "right"]
        return observations, infos

    env.reset = grow
    with pytest.raises(ValueError, match=r"agent 'right', which `possible_agents` \['left'\] does not list"):
        ParallelVecEnv(env).reset()


def test_living_agents_without_an_observation_are_errors():
    env = CustomSpacesEnv(
        dict.fromkeys("xy", vector(1)), dict.fromkeys("xy", spaces.Discrete(2)), {"x": np.zeros(1, np.float32)}
    )
    with pytest.raises(ValueError, match="no observation for agent 'y'"):
        ParallelVecEnv(env).reset()


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((object(),), TypeError, "expected a PettingZoo ParallelEnv, got object"),
        ((lambda: 3,), TypeError, "got int"),
        ((RelayEnv, 0), ValueError, "`n_copies` must be an integer of at least 1, got 0"),
        (([RelayEnv, RelayEnv], 3), ValueError, "`n_copies` is 3, but"),
        (([],), ValueError, "empty list"),
        (([RelayEnv, DiceEnv],), ValueError, "copies 0 and 1 differ"),
    ],
)
def test_wrong_constructor_arguments_are_errors(args, error, message):
    with pytest.raises(error, match=message):
        ParallelVecEnv(*args)


# ---------------------------------------------------------------------- several processes


@pytest.mark.parametrize("make", [RelayEnv, DiceEnv, lambda: make_mpe("simple_world_comm_v3")])
def test_several_processes_give_the_same_numbers_as_one(make):
    serial = ParallelVecEnv(make, 3, seed=4)
    parallel = SubprocParallelVecEnv(make, 3, n_workers=2, seed=4, start_method="fork")
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(serial.reset(), parallel.reset())
    for _ in range(30):
        actions = native_samples(serial, rng)
        ours, theirs = serial.step(actions), parallel.step(actions)
        for expected, actual in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(expected, actual)
            assert expected.dtype == actual.dtype
        np.testing.assert_array_equal(serial.agent_active, parallel.agent_active)
        assert serial.reset_infos == parallel.reset_infos
        for expected, actual in zip(ours[3], theirs[3], strict=True):
            assert expected.keys() == actual.keys()
            assert expected["TimeLimit.truncated"] == actual["TimeLimit.truncated"]
            np.testing.assert_array_equal(expected.get("terminal_observation"), actual.get("terminal_observation"))
            assert all(expected["episode"][key] == actual["episode"][key] for key in "rl" if "episode" in expected)
    parallel.close()


def test_the_default_start_method_and_number_of_workers_work():
    venv = SubprocParallelVecEnv(make_mpe("simple_spread_v3"), n_copies=2, seed=0)
    expected = ParallelVecEnv(make_mpe("simple_spread_v3"), n_copies=2, seed=0).reset()
    np.testing.assert_array_equal(venv.reset(), expected)
    venv.close()


def test_errors_in_a_worker_are_raised_here_with_their_traceback_and_leave_it_usable():
    venv = SubprocParallelVecEnv(RelayEnv(), 2, n_workers=2, start_method="fork")
    with pytest.raises(TypeError, match="poke") as caught:
        venv.env_method("poke", 1, 2, 3)
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert "_obey" in str(caught.value.__cause__)
    assert venv.env_method("poke", 1, indices=[0, 5]) == [1, 1]
    venv.close()


def test_a_worker_that_dies_is_reported_and_the_others_are_closed():
    venv = SubprocParallelVecEnv(RelayEnv(), 2, n_workers=2, start_method="fork")
    venv.reset()
    venv._processes[1].terminate()
    venv._processes[1].join()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"worker 1 .* exit code -15"):
            venv.step(np.zeros(6, int))
    venv.close(), venv.close()
    assert not any(process.is_alive() for process in venv._processes)


def test_workers_end_when_their_team_cannot_be_built():
    with pytest.raises(ValueError, match="at least one agent"):
        SubprocParallelVecEnv(CustomSpacesEnv({}, {}), 2, start_method="fork")


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((RelayEnv, 0), {}, "`n_copies` must be an integer of at least 1"),
        ((RelayEnv, 2), {"n_workers": 0}, "`n_workers` must be an integer of at least 1"),
        (([RelayEnv], 2), {}, "leave it out"),
        (([RelayEnv, DiceEnv],), {"n_workers": 2}, "copies 0 and 1 differ"),
    ],
)
def test_wrong_arguments_of_the_process_backend_are_errors(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        SubprocParallelVecEnv(*args, start_method="fork", **kwargs)


@pytest.mark.parametrize("agents", [[1, True], [0, 0.0]])
def test_agents_that_are_one_key_are_refused(agents):
    env = DiceEnv()
    env.possible_agents = agents
    with pytest.raises(ValueError, match="are one key of a dict"):
        ParallelVecEnv(env)


@pytest.mark.parametrize("own", [{"r": 1.0}, 3])
def test_an_environments_own_episode_info_does_not_replace_the_statistics(own):
    class Telling(DiceEnv):
        def step(self, actions):
            *rest, infos = super().step(actions)
            return *rest, {agent: {"episode": own, "else": 1} for agent in infos}

    env = ParallelVecEnv(lambda: Telling(horizon=2), seed=0)
    env.reset()
    actions = np.zeros((env.num_envs, *env.action_space.shape), dtype=env.action_space.dtype)
    first, second = env.step(actions)[3], env.step(actions)[3]
    assert all("episode" not in info and info["else"] == 1 for info in first)
    assert all(info["episode"]["l"] == 2 for info in second)


@pytest.mark.parametrize(
    ("role", "space", "remedy"),
    [
        ("observation", spaces.Box(-1.0, 1.0, (), np.float32), r"shape \(1,\)"),
        ("observation", spaces.MultiDiscrete([[2, 2], [2, 2]]), "flatten it"),
    ],
)
def test_spaces_without_the_right_number_of_axes_are_refused(role, space, remedy):
    own = {"observation": spaces.Box(-1.0, 1.0, (2,), np.float32), "action": spaces.Discrete(2)} | {role: space}
    with pytest.raises(ValueError, match=remedy):
        team_spaces({"a": own["observation"]}, {"a": own["action"]})


def test_actions_that_are_single_numbers_are_clipped_to_each_agents_box():
    own = {agent: spaces.Box(-1.0, high, (), np.float32) for agent, high in (("a", 1.0), ("b", 2.0))}
    team = team_spaces(dict.fromkeys(own, spaces.Box(-1.0, 1.0, (2,), np.float32)), own)
    assert ActionReader(team, 1).read(np.array([5.0, 5.0], np.float32), np.ones(2, bool)) == [1.0, 2.0]
