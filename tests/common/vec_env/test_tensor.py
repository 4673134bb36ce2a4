"""TensorVecEnv: counting, restarting and the two interfaces, on small environments whose every number is known."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from torch.utils._python_dispatch import TorchDispatchMode

from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.common.vec_env.tensor_rows import TensorStep
from otbaselines.ippo import IPPO

N_COPIES, N_AGENTS = 4, 2


def box(low: float = -np.inf, high: float = np.inf, dim: int = 2) -> spaces.Box:
    return spaces.Box(low, high, (dim,), np.float32)


class Fuses(TensorVecEnv):
    """Each agent holds a fuse of a random length that its own copy alone burns down; an agent terminates when it is burnt."""

    def __init__(self, *, max_episode_steps: int = 5, terminates_early: bool = True, **kwargs) -> None:
        names = [f"agent_{i}" for i in range(N_AGENTS)]
        super().__init__(
            n_copies=N_COPIES,
            agent_observation_spaces={name: box() for name in names},
            agent_action_spaces={name: spaces.Discrete(3) for name in names},
            max_episode_steps=max_episode_steps,
            terminates_early=terminates_early,
            **kwargs,
        )
        self.fuses = th.zeros(N_COPIES, N_AGENTS)
        self.last_actions = th.zeros(N_COPIES, N_AGENTS)

    def _reset_state(self, mask: th.Tensor | None) -> None:
        fresh = th.randint(2, 9, (N_COPIES, N_AGENTS), generator=self.generator).float()
        self.fuses = fresh if mask is None else th.where(mask[:, None], fresh, self.fuses)
        if mask is None:
            self.last_actions = th.zeros(N_COPIES, N_AGENTS)
        else:
            self.last_actions = th.where(mask[:, None], 0.0, self.last_actions)

    def _observe(self) -> th.Tensor:
        return th.stack([self.fuses, self.last_actions], dim=-1)

    def _transition(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        self.fuses = self.fuses - 1.0
        self.last_actions = actions.float()
        return self.fuses * 10.0 + actions, (self.fuses <= 0.0) if self.terminates_early else None

    def _state(self) -> dict[str, th.Tensor]:
        return {"fuses": self.fuses, "last_actions": self.last_actions}

    def _load_state(self, state: Mapping[str, th.Tensor]) -> None:
        self.fuses, self.last_actions = state["fuses"].clone(), state["last_actions"].clone()


def random_actions(n_steps: int, seed: int = 0) -> th.Tensor:
    return th.randint(0, 3, (n_steps, N_COPIES, N_AGENTS), generator=th.Generator().manual_seed(seed))


def test_copies_restart_on_their_own_when_an_agent_terminates_or_time_runs_out() -> None:
    env = Fuses(seed=1)
    obs = env.reset_tensor()
    fuses, elapsed = obs[..., 0].clone(), [0] * N_COPIES
    seen = set()
    for actions in random_actions(200):
        step = env.step_tensor(actions)
        for copy in range(N_COPIES):
            burnt = [float(fuse) - 1.0 for fuse in fuses[copy]]
            elapsed[copy] += 1
            gone = [fuse <= 0.0 for fuse in burnt]
            over = elapsed[copy] == 5 or any(gone)
            assert step.rewards[copy].tolist() == [10.0 * f + float(a) for f, a in zip(burnt, actions[copy], strict=True)]
            assert step.terminated[copy].tolist() == gone
            assert bool(step.truncated[copy]) == (over and not all(gone))
            assert step.done[copy].tolist() == [over] * N_AGENTS
            assert step.final_obs[copy, :, 0].tolist() == burnt
            if over:
                seen.add((any(gone), all(gone)))
                elapsed[copy] = 0
                assert step.obs[copy, :, 1].tolist() == [0.0, 0.0]
                assert (step.obs[copy, :, 0] >= 2).all()
            else:
                assert th.equal(step.obs[copy], step.final_obs[copy])
        fuses = step.obs[..., 0].clone()
    # Time running out, one agent terminating and both terminating at once have all occurred.
    assert seen == {(False, False), (True, False), (True, True)}


def test_lockstep_flags_are_host_booleans_and_the_final_observation_comes_only_at_the_end() -> None:
    env = Fuses(seed=1, max_episode_steps=3, terminates_early=False)
    start = env.reset_tensor()[..., 0]
    for t, actions in enumerate(random_actions(9)):
        step = env.step_tensor(actions)
        ends = t % 3 == 2
        assert step.terminated is None
        assert step.truncated is ends
        assert step.done is ends
        if ends:
            assert th.equal(step.final_obs[..., 0], start - 3)
            assert (step.obs[..., 1] == 0).all()
            start = step.obs[..., 0]
        else:
            assert step.final_obs is None
        assert th.equal(env.observe(), step.obs)


class _ForbidHostSync(TorchDispatchMode):
    """Fails on the operations that make the host wait for a device, and on shapes that depend on data."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        for forbidden in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "aten::equal", "unique"):
            assert forbidden not in name, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("terminates_early", [False, True])
def test_a_step_never_asks_the_device_for_a_number(terminates_early: bool) -> None:
    env = Fuses(seed=0, terminates_early=terminates_early)
    env.reset_tensor()
    with _ForbidHostSync():
        for actions in random_actions(12):
            env.step_tensor(actions)


def test_rows_are_slots_of_copy_times_team_plus_agent() -> None:
    tensor_env, numpy_env = Fuses(seed=3), Fuses(seed=3)
    assert numpy_env.num_envs == N_COPIES * N_AGENTS
    assert np.array_equal(numpy_env.reset(), tensor_env.reset_tensor().reshape(-1, 2).numpy())
    for actions in random_actions(40):
        step = tensor_env.step_tensor(actions)
        obs, rewards, dones, infos = numpy_env.step(actions.reshape(-1).numpy())
        assert np.array_equal(obs, step.obs.reshape(-1, 2).numpy())
        assert np.array_equal(rewards, step.rewards.reshape(-1).numpy())
        assert np.array_equal(dones, step.done.reshape(-1).numpy())
        assert (obs.dtype, rewards.dtype, dones.dtype) == (np.float32, np.float32, np.bool_)
        for slot, info in enumerate(infos):
            copy, agent = divmod(slot, N_AGENTS)
            if dones[slot]:
                assert info["terminal_observation"].tolist() == step.final_obs[copy, agent].tolist()
                assert info["TimeLimit.truncated"] is not bool(step.terminated[copy, agent])
            else:
                assert info == {}


def test_writing_into_returned_arrays_leaves_the_environment_alone() -> None:
    env = Fuses(seed=0)
    obs = env.reset()
    before = env.observe().clone()
    obs += 100.0
    assert th.equal(env.observe(), before)


@pytest.mark.parametrize("terminates_early", [False, True])
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(terminates_early: bool) -> None:
    def run(seed: int, *, by_method: bool) -> th.Tensor:
        env = Fuses(seed=None if by_method else seed, terminates_early=terminates_early)
        if by_method:
            assert env.seed(seed) == [seed] * env.num_envs
        frames = [env.reset_tensor()]
        frames += [env.step_tensor(actions).obs for actions in random_actions(30)]
        return th.stack(frames)

    assert th.equal(run(7, by_method=False), run(7, by_method=True))
    assert not th.equal(run(7, by_method=False), run(8, by_method=False))


@pytest.mark.parametrize("terminates_early", [False, True])
def test_a_restored_state_has_the_same_future_bit_for_bit(terminates_early: bool) -> None:
    env, other = Fuses(seed=7, terminates_early=terminates_early), Fuses(seed=8, terminates_early=terminates_early)
    env.reset_tensor()
    for actions in random_actions(7):
        env.step_tensor(actions)
    state = env.get_state()
    other.set_state(state)
    assert th.equal(other.observe(), env.observe())
    for actions in random_actions(30, seed=1):
        a, b = env.step_tensor(actions), other.step_tensor(actions)
        assert th.equal(a.obs, b.obs)
        assert th.equal(a.rewards, b.rewards)


def test_set_state_refuses_what_it_cannot_use() -> None:
    env = Fuses(seed=0, terminates_early=False)
    env.reset_tensor()
    with pytest.raises(ValueError, match="unknown entry 'fuse'"):
        env.set_state({"fuse": th.zeros(N_COPIES, N_AGENTS)})
    with pytest.raises(ValueError, match=r"shape \(4, 2\), got \(2, 4\)"):
        env.set_state({"fuses": th.zeros(N_AGENTS, N_COPIES)})
    with pytest.raises(ValueError, match="lockstep"):
        env.set_state({"elapsed": th.tensor([0, 1, 0, 0])})


def test_monitored_returns_are_the_sums_of_rewards_by_slot() -> None:
    env = VecMonitor(Fuses(seed=2))
    env.reset()
    sums, lengths, n_episodes = np.zeros(8), np.zeros(8, dtype=int), 0
    for actions in random_actions(60):
        _, rewards, dones, infos = env.step(actions.reshape(-1).numpy())
        sums, lengths = sums + rewards, lengths + 1
        for slot in np.flatnonzero(dones):
            assert infos[slot]["episode"]["r"] == pytest.approx(sums[slot])
            assert infos[slot]["episode"]["l"] == lengths[slot]
            n_episodes += 1
        sums[dones], lengths[dones] = 0.0, 0
    assert n_episodes > 50


def test_normalised_returns_restart_with_each_episode() -> None:
    gamma = 0.9
    env = VecNormalize(Fuses(seed=2), gamma=gamma)
    env.reset()
    returns = np.zeros(8)
    for actions in random_actions(60):
        _, _, dones, _ = env.step(actions.reshape(-1).numpy())
        returns = gamma * returns + env.get_original_reward()
        returns[dones] = 0.0
        np.testing.assert_allclose(env.returns, returns, rtol=1e-6)
    assert np.isfinite(env.get_original_obs()).all()


def test_attributes_and_methods_are_those_of_all_copies_together() -> None:
    env = Fuses(seed=0)
    assert env.get_attr("max_episode_steps") == [5] * 8
    assert env.get_attr("max_episode_steps", indices=[0, 3]) == [5, 5]
    assert not env.has_attr("nonsense")
    env.set_attr("max_episode_steps", 9)
    assert env.max_episode_steps == 9
    with pytest.raises(ValueError, match="`indices` must name all 8 slots"):
        env.set_attr("max_episode_steps", 9, indices=0)
    assert env.env_method("seed", 3, indices=[0]) == [[3] * 8]
    assert env.env_is_wrapped(VecMonitor) == [False] * 8
    assert env.env_is_wrapped(VecMonitor, indices=1) == [False]


def test_wrong_use_is_explained() -> None:
    env = Fuses(seed=0)
    with pytest.raises(RuntimeError, match="call `reset`"):
        env.observe()
    with pytest.raises(RuntimeError, match="never reset"):
        env.step_tensor(th.zeros(N_COPIES, N_AGENTS, dtype=th.int64))
    env.reset()
    with pytest.raises(RuntimeError, match="step_async"):
        env.step_wait()
    with pytest.raises(ValueError, match=r"shape \(4, 2\), got \(8,\)"):
        env.step_tensor(th.zeros(8, dtype=th.int64))
    with pytest.raises(ValueError, match=r"shape \(8,\), got \(4, 2\)"):
        env.step(np.zeros((4, 2), dtype=int))
    with pytest.raises(ValueError, match=r"lie in 0\.\.2, got 0\.\.3"):
        env.step(np.array([0, 1, 2, 3, 0, 0, 0, 0]))
    with pytest.raises(RuntimeError, match="rgb_array"):
        env.get_images()


class Still(TensorVecEnv):
    """Continuous actions that are paid out as rewards."""

    def __init__(self, **overrides) -> None:
        arguments = {
            "n_copies": 2,
            "agent_observation_spaces": {"a": box(), "b": box()},
            "agent_action_spaces": {"a": box(-1.0, 1.0, 1), "b": box(-1.0, 1.0, 1)},
            "max_episode_steps": 4,
        }
        super().__init__(**{**arguments, **overrides})

    def _reset_state(self, mask: th.Tensor | None) -> None:
        pass

    def _observe(self) -> th.Tensor:
        return th.zeros(2, 2, 2)

    def _transition(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        return actions[..., 0], None


def test_continuous_actions_are_clipped_to_their_box() -> None:
    env = Still()
    env.reset()
    _, rewards, _, _ = env.step(np.array([[3.0], [0.5], [-3.0], [-0.5]]))
    assert rewards.tolist() == [1.0, 0.5, -1.0, -0.5]


@pytest.mark.parametrize(
    "wrong", [np.full((4, 1), np.nan), np.full((4, 1), np.inf), np.full((4, 1), "a"), np.ones((4, 1)) * 1j]
)
def test_actions_that_are_no_finite_numbers_are_errors(wrong: np.ndarray) -> None:
    env = Still()
    env.reset()
    with pytest.raises(ValueError, match="`actions` must be finite numbers"):
        env.step(wrong)
    with pytest.raises(ValueError, match=r"`actions` must be integers for Discrete\(3\), got dtype float64"):
        Fuses().step(np.zeros(8))


def test_a_closed_environment_says_so() -> None:
    env = Still()
    env.reset()
    env.close(), env.close()
    for call in (env.reset, env.observe, env.observe_state, lambda: env.step_tensor(th.zeros(2, 2, 1))):
        with pytest.raises(RuntimeError, match="the environment is closed; make a new one"):
            call()
    with pytest.raises(RuntimeError, match="the environment is closed"):
        IPPO("MlpPolicy", env, n_steps=4, n_epochs=1).learn(16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_copies": 0}, "`n_copies` must be an integer of at least 1, got 0"),
        ({"max_episode_steps": 0}, "`max_episode_steps` must be an integer of at least 1, got 0"),
        ({"n_render_copies": 0}, "`n_render_copies` must be an integer of at least 1"),
        ({"render_mode": "human"}, "`render_mode` must be None or"),
        ({"agent_observation_spaces": {}}, "`agent_observation_spaces` is empty"),
        ({"agent_observation_spaces": {"a": box(), "b": box(dim=3)}}, "'b' has .* pad them"),
        ({"agent_observation_spaces": {"a": spaces.Discrete(2), "b": spaces.Discrete(2)}}, "one-dimensional Boxes"),
        ({"agent_observation_spaces": dict.fromkeys("ab", spaces.Box(0, 1, (2,), np.float64))}, "must be float32"),
        ({"agent_action_spaces": dict.fromkeys("ab", spaces.MultiBinary(2))}, "actions must be Discrete"),
        ({"agent_action_spaces": {"a": box(dim=1)}}, "name the same agents"),
    ],
)
def test_unsuitable_constructor_arguments_are_named(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Still(**overrides)


def test_undeclared_termination_is_an_error() -> None:
    class Liar(Still):
        def _transition(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
            return actions[..., 0], actions[..., 0] > 0

    env = Liar()
    env.reset()
    with pytest.raises(ValueError, match="terminates_early=True"):
        env.step_tensor(th.zeros(2, 2, 1))


def test_a_step_says_who_is_done() -> None:
    zeros = th.zeros(2, 2)
    terminated = th.tensor([[True, True], [False, False]])
    step = TensorStep(obs=zeros, rewards=zeros, terminated=terminated, truncated=th.tensor([False, True]), final_obs=zeros)
    assert step.done.tolist() == [[True, True], [True, True]]
    assert (step.truncated.unsqueeze(1) & ~step.terminated).tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("n_copies", [2.5, "a", None, True])
def test_a_number_of_copies_that_is_no_integer_is_named(n_copies: object) -> None:
    with pytest.raises(TypeError, match="`n_copies` must be an integer of at least 1, got"):
        Still(n_copies=n_copies)
