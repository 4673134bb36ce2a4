"""What holds for every environment of the package: the registry, Stable-Baselines3's tools, pictures and determinism."""

from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize, VecVideoRecorder
from torch.utils._python_dispatch import TorchDispatchMode

from otbaselines import envs
from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.envs import make_parallel, make_tensor

NAVIGATION, SPREAD = "otbaselines/Navigation-v0", "otbaselines/SimpleSpread-v0"
GAME = "otbaselines/DifferentialGame-v0"
PLANES: list[tuple[str, dict[str, Any]]] = [
    (NAVIGATION, {}),
    (NAVIGATION, {"heterogeneous": "both", "continuous_actions": True}),
    (SPREAD, {}),
    (SPREAD, {"continuous_actions": True, "terminate_on_success": True}),
    (SPREAD, {"num_agent_neighbors": 1, "num_landmark_neighbors": 1, "N": 4}),
]
GAMES: list[tuple[str, dict[str, Any]]] = [(GAME, {}), (GAME, {"n_agents": 2, "variant": "ancestor"})]
every_environment = pytest.mark.parametrize(("env_id", "config"), PLANES + GAMES, ids=str)
every_plane = pytest.mark.parametrize(("env_id", "config"), PLANES, ids=str)


def random_actions(env: TensorVecEnv, n_steps: int) -> th.Tensor:
    generator = th.Generator().manual_seed(0)
    shape = (n_steps, env.n_copies, env.n_agents)
    if isinstance(env.action_space, gym.spaces.Discrete):
        return th.randint(0, 5, shape, generator=generator).to(env.device)
    return th.rand(*shape, *env.action_space.shape, generator=generator).to(env.device)


def test_the_registry_knows_every_environment() -> None:
    assert set(envs.registry) >= {NAVIGATION, SPREAD, GAME}
    assert make_parallel(NAVIGATION, n_agents=4).max_num_agents == 4
    env = make_tensor(SPREAD, 6, device="cpu", seed=0, N=2)
    assert (env.n_copies, env.n_agents, env.num_envs) == (6, 2, 12)
    assert env.device == th.device("cpu")


def test_an_unknown_id_is_met_with_the_close_and_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"'otbaselines/Navigation' is unknown; did you mean 'otbaselines/Navigation-v0'"
    ) as error:
        make_tensor("otbaselines/Navigation", 2)
    assert NAVIGATION in str(error.value)
    assert SPREAD in str(error.value)
    with pytest.raises(ValueError, match="'zzz' is unknown; known are"):
        make_parallel("zzz")


@mock.patch.dict(envs.registry)
def test_environments_of_others_can_be_registered_once() -> None:
    envs.register("mine/Small-v0", lambda: make_parallel(NAVIGATION, n_agents=2))
    assert make_parallel("mine/Small-v0").max_num_agents == 2
    with pytest.raises(ValueError, match="no batched version; use `make_parallel`"):
        make_tensor("mine/Small-v0", 2)
    with pytest.raises(ValueError, match="is taken"):
        envs.register("mine/Small-v0", lambda: make_parallel(NAVIGATION))
    with pytest.raises(ValueError, match="must not be empty"):
        envs.register("", lambda: make_parallel(NAVIGATION))


@every_environment
def test_both_forms_have_the_same_spaces(env_id: str, config: dict[str, Any]) -> None:
    parallel, tensor = make_parallel(env_id, **config), make_tensor(env_id, 2, **config)
    assert parallel.metadata["name"] == env_id
    assert parallel.possible_agents == tensor.possible_agents
    for agent in parallel.possible_agents:
        assert parallel.observation_space(agent) == tensor.agent_observation_spaces[agent] == tensor.observation_space
        assert parallel.action_space(agent) == tensor.agent_action_spaces[agent] == tensor.action_space
    tensor.seed(0)
    assert all(tensor.observation_space.contains(row) for row in tensor.reset())


@every_plane
def test_the_same_seed_gives_the_same_bits(env_id: str, config: dict[str, Any]) -> None:
    def run(seed: int) -> list[th.Tensor]:
        env = make_tensor(env_id, 16, seed=seed, **config)
        frames = [env.reset_tensor()]
        for actions in random_actions(env, 60):
            step = env.step_tensor(actions)
            frames += [step.obs, step.rewards]
        return frames

    first, again, other = run(3), run(3), run(4)
    assert all(th.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not th.equal(first[-2], other[-2])


@every_environment
def test_a_saved_state_resumes_bit_for_bit(env_id: str, config: dict[str, Any]) -> None:
    env, other = make_tensor(env_id, 8, seed=0, **config), make_tensor(env_id, 8, seed=1, **config)
    env.reset_tensor()
    for actions in random_actions(env, 10):
        env.step_tensor(actions)
    other.set_state(env.get_state())
    for actions in random_actions(env, 40):
        a, b = env.step_tensor(actions), other.step_tensor(actions)
        assert th.equal(a.obs, b.obs)
        assert th.equal(a.rewards, b.rewards)


class _RefuseHostSync(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for forbidden in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "aten::equal", "unique"):
            assert forbidden not in func.name(), f"{func.name()} waits for the device"
        return func(*args, **(kwargs or {}))


@every_environment
def test_an_episode_never_asks_the_device_for_a_number(env_id: str, config: dict[str, Any]) -> None:
    env = make_tensor(env_id, 4, seed=0, **config)
    env.reset_tensor()
    actions = random_actions(env, 30)
    with _RefuseHostSync():
        for row in actions:
            env.step_tensor(row)


@every_environment
def test_later_steps_leave_returned_tensors_alone(env_id: str, config: dict[str, Any]) -> None:
    env = make_tensor(env_id, 4, seed=0, **config)
    kept = [env.reset_tensor()]
    for actions in random_actions(env, 30):
        step = env.step_tensor(actions)
        kept += [step.obs, step.rewards]
        copies = [tensor.clone() for tensor in kept]
    for actions in random_actions(env, 30):
        env.step_tensor(actions)
    assert all(th.equal(a, b) for a, b in zip(kept, copies, strict=True))


@every_environment
def test_ppo_of_stable_baselines_trains_on_it(env_id: str, config: dict[str, Any]) -> None:
    def train() -> PPO:
        env = VecNormalize(VecMonitor(make_tensor(env_id, 4, **config)))
        model = PPO("MlpPolicy", env, n_steps=30, batch_size=30, n_epochs=1, seed=0, device="cpu")
        return model.learn(2 * 30 * env.num_envs)

    first, second = train(), train()
    assert np.isfinite(first.ep_info_buffer[0]["r"])
    assert first.num_timesteps == 2 * 30 * first.env.num_envs
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert th.isfinite(a).all()
        assert th.equal(a, b)


@every_plane
def test_pictures_show_every_agent_moving(env_id: str, config: dict[str, Any]) -> None:
    env = make_parallel(env_id, render_mode="rgb_array", **config)
    assert env.render() is None
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (508, 480, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, env.render())
    # Every agent's colour appears.
    for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):
        disc = np.array([round(255 - 0.85 * (255 - channel)) for channel in colour])
        assert (np.abs(first.astype(int) - disc).max(axis=-1) <= 2).sum() > 30
    for _ in range(3):
        env.step({agent: env.action_space(agent).sample() for agent in env.agents})
    assert (env.render() != first).any()
    assert make_parallel(env_id, **config).render() is None


@every_plane
def test_the_batched_form_draws_what_the_single_one_draws(env_id: str, config: dict[str, Any]) -> None:
    vec_env = make_tensor(env_id, 3, seed=0, render_mode="rgb_array", double_precision=True, **config)
    vec_env.reset()
    env = make_parallel(env_id, render_mode="rgb_array", **config)
    state = {name: value[0].numpy() for name, value in vec_env.get_state().items() if name not in ("elapsed", "generator")}
    env.set_state(**state)
    for actions in random_actions(vec_env, 4):
        vec_env.step_tensor(actions)
        env.step(dict(zip(env.possible_agents, actions[0].numpy(), strict=True)))
    assert np.array_equal(vec_env.render(), env.render())


def test_several_copies_are_drawn_as_tiles() -> None:
    env = make_tensor(NAVIGATION, 9, seed=0, render_mode="rgb_array", n_render_copies=4)
    env.reset()
    assert env.render().shape == (2 * 508, 2 * 480, 3)
    assert len(env.get_images()) == 4


def test_a_trail_does_not_reach_into_the_episode_before() -> None:
    env = make_tensor(SPREAD, 2, seed=0, render_mode="rgb_array", terminate_on_success=True, max_cycles=4)
    env.reset_tensor()
    for t, actions in enumerate(random_actions(env, 11)):
        env.step_tensor(actions)
        elapsed = (t + 1) % 4
        trail = env._trail.last(elapsed + 1, 0)
        assert len(trail) == elapsed + 1
        assert np.abs(np.diff(trail, axis=0)).max(initial=0.0) < 0.25
        assert np.array_equal(trail[-1], env.get_state()["positions"][0].double().numpy())


def test_the_video_recorder_records(tmp_path: Any) -> None:
    pytest.importorskip("moviepy")
    env = VecMonitor(make_tensor(NAVIGATION, 2, seed=0, render_mode="rgb_array"))
    env = VecVideoRecorder(env, str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=5)
    env.reset()
    for _ in range(7):
        env.step(np.zeros(6, dtype=int))
    env.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


@pytest.mark.gpu
@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
@every_environment
def test_a_cuda_device_gives_the_numbers_of_the_cpu_without_a_host_sync(env_id: str, config: dict[str, Any]) -> None:
    cpu, cuda = make_tensor(env_id, 256, "cpu", 0, **config), make_tensor(env_id, 256, "cuda", 0, **config)
    cpu.reset_tensor()
    cuda.reset_tensor()
    cuda.set_state({name: value for name, value in cpu.get_state().items() if name != "generator"})
    actions = random_actions(cpu, 20)
    cuda_actions = actions.cuda()
    th.cuda.set_sync_debug_mode("error")
    try:
        steps = [cuda.step_tensor(row) for row in cuda_actions]
    finally:
        th.cuda.set_sync_debug_mode("default")
    for row, step in zip(actions, steps, strict=True):
        expected = cpu.step_tensor(row)
        th.testing.assert_close(step.obs.cpu(), expected.obs, atol=1e-4, rtol=0)
        th.testing.assert_close(step.rewards.cpu(), expected.rewards, atol=1e-4, rtol=0)
