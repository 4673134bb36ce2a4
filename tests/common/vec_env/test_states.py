"""The environment's state, as critics that see everything read it: through every kind of vector environment."""

import importlib

import numpy as np
import pytest
import supersuit as ss
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from toy_teams import DiceEnv, RelayEnv

from otbaselines.common.vec_env.make import make_vec_env, wrap_team_env
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.common.vec_env.subproc import SubprocParallelVecEnv
from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.envs import make_parallel
from otbaselines.ippo import IPPO


class ClockEnv(RelayEnv):
    """The state at step ``t`` of the episode number ``e`` is ``[[10 e + t, e]]``; ``a`` terminates, ``b`` is truncated."""

    state_space = spaces.Box(-1e300, 1e300, (1, 2), np.float64)
    episode, n_asked, broken = 0, 0, None

    def reset(self, **kwargs):
        self.episode += 1
        return super().reset(**kwargs)

    def state(self):
        self.n_asked += 1
        return np.array([[10 * self.episode + self.t, self.episode]]) if self.broken is None else self.broken


def make_serial(env, n_copies):
    return ParallelVecEnv(env, n_copies)


def make_processes(env, n_copies):
    return SubprocParallelVecEnv(env, n_copies, n_workers=2, start_method="fork")


@pytest.mark.parametrize("make", [make_serial, make_processes])
def test_states_follow_the_episodes_and_truncated_agents_keep_the_one_before_the_restart(make):
    venv = make(ClockEnv(), 2)
    assert venv.state_space == PAIR
    with pytest.raises(RuntimeError, match="call `reset` before `team_states`"):
        venv.team_states()
    venv.reset()
    assert venv.team_states().tolist() == [[10, 1], [10, 1]]
    assert venv.team_states().dtype == np.float32
    for t in range(1, 6):
        infos = venv.step(np.zeros(6, int))[3]
        assert venv.team_states().tolist() == [[10 + t, 1] if t < 5 else [20, 2]] * 2
        # Of those who leave, `a` (step 2) and `c` (step 5) terminate, and only `b` (step 5) is cut off.
        assert [slot for slot, info in enumerate(infos) if "terminal_state" in info] == ([1, 4] if t == 5 else [])
    assert infos[1]["terminal_state"].tolist() == infos[4]["terminal_state"].tolist() == [15, 1]
    venv.close()


def test_environments_are_not_asked_for_states_that_nobody_wants():
    venv = ParallelVecEnv(ClockEnv(), 2)
    venv.reset()
    infos = [info for _ in range(5) for info in venv.step(np.zeros(6, int))[3]]
    assert [env.n_asked for env in venv.envs] == [0, 0]
    assert not any("terminal_state" in info for info in infos)


def test_the_state_is_read_through_wrappers_of_stable_baselines_and_of_supersuit():
    env = ss.pad_action_space_v0(ss.pad_observations_v0(ClockEnv()))
    given = ss.concat_vec_envs_v1(ss.pettingzoo_env_to_vec_env_v1(env), 2, base_class="stable_baselines3")
    venv = VecNormalize(VecFrameStack(wrap_team_env(given), 2))
    venv.reset()
    assert venv.state_space.shape == (2,)
    assert venv.team_states().tolist() == [[10, 1], [10, 1]]


@pytest.mark.parametrize("space", [None, spaces.Discrete(3), spaces.Box(0, 1, (0,)), spaces.Dict()])
def test_environments_without_a_box_of_states_have_none(space):
    env = ClockEnv()
    env.state_space = space
    venv = ParallelVecEnv(env)
    venv.reset()
    assert venv.state_space is None
    assert venv.team_states() is None
    assert ParallelVecEnv(DiceEnv()).state_space is None


def test_copies_whose_states_differ_in_size_are_refused():
    other = ClockEnv()
    other.state_space = spaces.Box(0, 1, (3,))
    with pytest.raises(ValueError, match="copies 0 and 1 differ"):
        ParallelVecEnv([ClockEnv, lambda: other])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (np.zeros(3), r"shape \(3,\) and dtype float64, but `state_space` holds 2 numbers"),
        (np.zeros(2, complex), "dtype complex128"),
        (np.array(["a", "b"]), r"`state\(\)` returned an array of shape \(2,\) and dtype <U1"),
        (np.array([0.0, np.nan]), r"`state\(\)` returned NaN or infinity"),
    ],
)
@pytest.mark.parametrize("make", [make_serial, make_processes])
def test_states_that_contradict_their_space_are_errors(make, broken, message):
    env = ClockEnv()
    env.broken = broken
    venv = make(env, 2)
    venv.reset()
    with pytest.raises(ValueError, match=message):
        venv.team_states()
    venv.close()


@pytest.mark.parametrize("task", ["simple_spread_v3", "simple_speaker_listener_v4"])
def test_mpe2_states_are_its_own(task):
    module = importlib.import_module(f"mpe2.{task}")
    venv, reference = ParallelVecEnv(module.parallel_env(max_cycles=3), seed=5), module.parallel_env(max_cycles=3)
    venv.reset(), reference.reset(seed=5)
    for _ in range(3):
        np.testing.assert_array_equal(venv.team_states()[0], reference.state())
        infos = venv.step(np.zeros(venv.num_envs, int))[3]
        reference.step(dict.fromkeys(reference.agents, 0))
    assert all(np.array_equal(info["terminal_state"], reference.state()) for info in infos)


# ---------------------------------------------------------------------- tensors


@pytest.mark.parametrize("env_id", ["otbaselines/Navigation-v0", "otbaselines/SimpleSpread-v0"])
def test_both_forms_of_our_environments_have_the_same_state(env_id):
    single, batched = make_parallel(env_id), make_vec_env(env_id, 2, seed=0, env_kwargs={"double_precision": True})
    assert batched.state_space == single.state_space == ParallelVecEnv(single).state_space
    single.reset(seed=0), batched.reset()
    for copy in range(2):
        names = {"positions", "targets", "velocities", "landmarks"}
        single.set_state(**{k: v[copy].numpy() for k, v in batched.get_state().items() if k in names})
        np.testing.assert_array_equal(batched.team_states()[copy], single.state())
    batched.step_tensor(th.ones(2, 3, dtype=th.int64))
    single.step(dict.fromkeys(single.possible_agents, np.array(1)))
    np.testing.assert_allclose(batched.observe_state()[1].numpy(), single.state(), atol=1e-6)


PAIR = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Counting(TensorVecEnv):
    """Copy ``c`` counts its steps from ``10 c``; the state is the count and its square."""

    def __init__(self, *, state_space=PAIR, **kwargs):
        names = ["a", "b"]
        super().__init__(
            n_copies=2,
            agent_observation_spaces={name: spaces.Box(-np.inf, np.inf, (1,), np.float32) for name in names},
            agent_action_spaces={name: spaces.Discrete(2) for name in names},
            state_space=state_space,
            **{"max_episode_steps": 3, **kwargs},
        )
        self.count = th.zeros(2)

    def _reset_state(self, mask):
        start = th.tensor([0.0, 10.0])
        self.count = start if mask is None else th.where(mask, start, self.count)

    def _observe(self):
        return self.count[:, None, None].expand(2, 2, 1).clone()

    def _observe_global(self, obs):
        return th.stack([self.count, self.count**2], dim=1)

    def _transition(self, actions):
        self.count = self.count + 1
        over = (self.count == 12)[:, None].expand(2, 2)
        return th.ones(2, 2), over if self.terminates_early else None

    def _state(self):
        return {"count": self.count}

    def _load_state(self, state):
        self.count = state["count"].clone()


def test_a_tensor_step_carries_the_state_and_the_one_before_a_restart():
    env = Counting()
    with pytest.raises(RuntimeError, match="call `reset`"):
        env.observe_state()
    env.reset_tensor()
    actions = th.zeros(2, 2, dtype=th.int64)
    steps = [env.step_tensor(actions) for _ in range(3)]
    assert [step.state[0].tolist() for step in steps] == [[1, 1], [2, 4], [0, 0]]
    assert [None if step.final_state is None else step.final_state.tolist() for step in steps[1:]] == [
        None,
        [[3, 9], [13, 169]],
    ]
    assert env.observe_state() is steps[-1].state
    env.set_state({"count": th.tensor([5.0, 6.0])})
    assert env.observe_state().tolist() == [[5, 25], [6, 36]]


def test_copies_that_end_on_their_own_restart_their_state_alone():
    env = Counting(terminates_early=True)
    env.reset_tensor()
    actions = th.zeros(2, 2, dtype=th.int64)
    env.step_tensor(actions)
    step = env.step_tensor(actions)
    assert step.final_state.tolist() == [[2, 4], [12, 144]]
    assert step.state.tolist() == [[2, 4], [10, 100]]
    rows = Counting(terminates_early=True)
    rows.reset()
    infos = [rows.step(np.zeros(4, int))[3] for _ in range(3)]
    # Copy 1 terminated at its second step, which is no truncation; copy 0 ran out of time at its third.
    assert [slot for slot, info in enumerate(infos[1]) if "terminal_state" in info] == []
    assert [infos[2][slot]["terminal_state"].tolist() for slot in (0, 1)] == [[3, 9]] * 2
    assert rows.team_states().tolist() == [[0, 0], [11, 121]]


def test_without_a_state_space_there_is_no_state():
    env = Counting(state_space=None)
    env.reset()
    step = env.step_tensor(th.zeros(2, 2, dtype=th.int64))
    assert (env.state_space, env.team_states(), env.observe_state(), step.state) == (None,) * 4
    with pytest.raises(ValueError, match="states must be one-dimensional Boxes"):
        Counting(state_space=spaces.Discrete(2))


# ---------------------------------------------------------------------- termination in lockstep


def test_episodes_that_terminate_in_lockstep_are_over_for_good():
    env = Counting(terminates_in_lockstep=True)
    env.reset_tensor()
    actions = th.zeros(2, 2, dtype=th.int64)
    for t in range(1, 7):
        step = env.step_tensor(actions)
        ends = t % 3 == 0
        assert (step.terminated, step.truncated, step.done) == (ends, False, ends)
        assert (None if step.final_obs is None else step.final_obs[:, 0, 0].tolist()) == ([3, 13] if ends else None)
        assert step.obs[:, 0, 0].tolist() == [t % 3, 10 + t % 3]
    rows = Counting(terminates_in_lockstep=True)
    rows.reset()
    _, _, dones, infos = [rows.step(np.zeros(4, int)) for _ in range(3)][-1]
    assert dones.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [False] * 4
    assert [info["terminal_observation"].tolist() for info in infos] == [[3], [3], [13], [13]]
    assert not any("terminal_state" in info for info in infos)


def test_episodes_cannot_terminate_both_early_and_in_lockstep():
    with pytest.raises(ValueError, match="`terminates_early` and `terminates_in_lockstep` exclude each other"):
        Counting(terminates_early=True, terminates_in_lockstep=True)


@pytest.mark.parametrize("terminates", [False, True])
def test_values_are_bootstrapped_only_where_lockstep_episodes_are_cut_off(terminates):
    model = IPPO("MlpPolicy", Counting(terminates_in_lockstep=terminates), n_steps=6, n_epochs=1, gamma=1.0, gae_lambda=1.0)
    model.learn(24)
    # Every step earns 1: without a bootstrap the targets of a three-step episode are 3, 2, 1.
    targets = th.tensor([3.0, 2.0, 1.0] * 2)[:, None, None].expand(6, 2, 2)
    assert bool(((model.rollout_buffer.returns - targets).abs() < 1e-5).all()) is terminates
    assert bool((model.rollout_buffer.bootstrap == 0).all()) is terminates
    assert [(episode["r"], episode["l"]) for episode in model.ep_info_buffer] == [(3.0, 3)] * 8
