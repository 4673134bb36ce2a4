"""Replay buffers and action noises survive without a pickle, to the last transition and the last draw."""

import io
import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise

from otbaselines import IPPO
from otbaselines.common.saving.algorithm import JsonSaveMixin
from otbaselines.common.saving.arrays import load_npz, save_npz
from otbaselines.common.saving.replay_buffer import load_buffer, save_buffer
from otbaselines.common.saving.values import decode_value, encode_value
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
KEYS = spaces.Dict({"a": BOX, "image": spaces.Box(0, 255, (4, 4, 1), np.uint8)})


class SafeSAC(JsonSaveMixin, SAC):
    pass


class SafeTD3(JsonSaveMixin, TD3):
    pass


def filled(n_steps: int, *, space: spaces.Space[Any] = BOX, **kwargs: Any) -> ReplayBuffer:
    kind: Any = DictReplayBuffer if isinstance(space, spaces.Dict) else ReplayBuffer
    buffer: ReplayBuffer = kind(20, space, BOX, device="cpu", n_envs=2, **kwargs)
    generator = np.random.default_rng(0)

    def observe() -> Any:
        if isinstance(space, spaces.Dict):
            return {"a": generator.random((2, 2), np.float32), "image": generator.integers(0, 255, (2, 4, 4, 1), np.uint8)}
        return generator.random((2, 2), np.float32)

    for _ in range(n_steps):
        infos = [{"TimeLimit.truncated": bool(flag)} for flag in generator.integers(2, size=2)]
        buffer.add(observe(), observe(), generator.random((2, 2)), generator.random(2), generator.integers(2, size=2), infos)
    return buffer


def arrays(buffer: ReplayBuffer) -> dict[str, Any]:
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    return {name: getattr(buffer, name) for name in names if hasattr(buffer, name)}


@pytest.mark.parametrize("n_steps", [0, 3, 9, 10, 13], ids=lambda steps: f"{steps} steps")
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"optimize_memory_usage": True, "handle_timeout_termination": False}, {"space": KEYS}],
    ids=["plain", "optimized", "dictionary"],
)
def test_a_buffer_comes_back_with_every_transition(kwargs: dict[str, Any], n_steps: int) -> None:
    buffer, other = filled(n_steps, **kwargs), filled(0, **kwargs)
    file = io.BytesIO()
    save_buffer(buffer, file)
    load_buffer(other, file)
    assert (other.pos, other.full) == (buffer.pos, buffer.full) == (n_steps % 10, n_steps >= 10)
    for name, array in arrays(buffer).items():
        for key in array if isinstance(array, dict) else [None]:
            one, two = (value if key is None else value[key] for value in (array, getattr(other, name)))
            np.testing.assert_array_equal(one, two)
            assert one.dtype == two.dtype


def test_a_part_of_a_buffer_takes_a_part_of_the_file() -> None:
    sizes = []
    for n_steps in (2, 9):
        file = io.BytesIO()
        save_buffer(filled(n_steps), file)
        sizes.append(load_npz(file)["rewards"].shape[0])
    # The row at the position too: under `optimize_memory_usage` it holds the last next observation.
    assert sizes == [3, 10]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: ReplayBuffer(40, BOX, BOX, "cpu", 2), "buffer_size"),
        (lambda: ReplayBuffer(10, BOX, BOX, "cpu", 1), "n_envs"),
        (lambda: ReplayBuffer(20, BOX, BOX, "cpu", 2, handle_timeout_termination=False), "handle_timeout_termination"),
        (lambda: ReplayBuffer(20, spaces.Box(-1, 1, (3,)), BOX, "cpu", 2), "observations"),
        (lambda: DictReplayBuffer(20, KEYS, BOX, "cpu", 2), "no replay buffer of this kind"),
    ],
)
def test_a_buffer_of_another_kind_is_refused_by_name(other: Any, named: str, tmp_path: pathlib.Path) -> None:
    save_buffer(filled(3), tmp_path / "buffer")
    target = other()
    with pytest.raises(ValueError, match=rf"buffer.*{named}"):
        load_buffer(target, tmp_path / "buffer")
    assert (target.pos, target.full) == (0, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"pos": np.int64(99)},
        {"pos": np.int64(-1)},
        {"pos": np.float64(1.0)},
        {"full": np.int64(1)},
        {"rewards": np.zeros((4, 2), np.float64)},
        {"rewards": np.zeros((3, 2), np.float32)},
        {"rewards": np.full((4, 2), np.nan, np.float32)},
        {"buffer_size": np.zeros(3)},
        {"extra": np.zeros(3)},
    ],
    ids=str,
)
def test_a_tampered_buffer_is_refused_and_changes_nothing(changes: dict[str, Any], tmp_path: pathlib.Path) -> None:
    save_buffer(filled(3), tmp_path / "buffer")
    save_npz(tmp_path / "buffer", {**load_npz(tmp_path / "buffer"), **changes})
    target = filled(5)
    before = {name: array.copy() for name, array in arrays(target).items()}
    with pytest.raises(ValueError, match=r"buffer' (has|holds|says)"):
        load_buffer(target, tmp_path / "buffer")
    assert target.pos == 5
    assert all(np.array_equal(array, before[name]) for name, array in arrays(target).items())


def test_arrays_that_unpack_to_more_than_the_file_are_refused_unless_allowed(tmp_path: pathlib.Path) -> None:
    np.savez_compressed(tmp_path / "packed.npz", zeros=np.zeros(100_000))
    with pytest.raises(ValueError, match=r"packed.npz.*`max_bytes`"):
        load_npz(tmp_path / "packed")
    assert load_npz(tmp_path / "packed", max_bytes=10**6)["zeros"].shape == (100_000,)
    with pytest.raises(TypeError, match="`thing` has the dtype object"):
        save_npz(tmp_path / "objects", {"thing": np.array([{}])})


# ---------------------------------------------------------------- action noise


NOISES = {
    "normal": lambda: NormalActionNoise(np.zeros(2), np.array([0.1, 0.2])),
    "process": lambda: OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.3), theta=0.2, dt=0.05, dtype=np.float64),
    "started": lambda: OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.3), initial_noise=np.array([1.0, -1.0])),
}
NOISES["vectorized"] = lambda: VectorizedActionNoise(NOISES["process"](), 3)


@pytest.mark.parametrize("kind", NOISES)
def test_an_action_noise_goes_on_where_it_stood(kind: str) -> None:
    noise: ActionNoise = NOISES[kind]()
    for _ in range(3):
        noise()
    restored = decode_value(encode_value(noise))
    draws = []
    for each in (noise, restored):
        np.random.seed(0)  # noqa: NPY002
        draws.append([each() for _ in range(3)])
        each.reset()
        draws[-1].append(each())
    np.testing.assert_array_equal(*draws)
    assert draws[0][0].dtype == draws[1][0].dtype


def test_a_noise_of_the_users_own_has_no_json_form() -> None:
    class Own(NormalActionNoise):
        pass

    with pytest.raises(TypeError, match="JSON cannot hold"):
        encode_value(Own(np.zeros(2), np.ones(2)))


# ---------------------------------------------------------------- whole models


def small(algorithm: Any, env: Any = "Pendulum-v1", **kwargs: Any) -> Any:
    options = {"buffer_size": 40, "learning_starts": 8, "batch_size": 4, "policy_kwargs": {"net_arch": [4]}}
    return algorithm("MlpPolicy", env, seed=0, device="cpu", **{**options, **kwargs})


def test_an_off_policy_model_goes_on_with_its_buffer_and_its_noise(tmp_path: pathlib.Path) -> None:
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.3))
    model = small(SafeTD3, make_vec_env("Pendulum-v1", 2, seed=0), action_noise=noise).learn(30)
    assert isinstance(model.action_noise, VectorizedActionNoise)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    assert {path.name for path in tmp_path.iterdir()} == {"model.zip", "buffer.npz"}
    loaded = SafeTD3.load(tmp_path / "model", device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    states = []
    for each in (model, loaded):
        each.set_env(make_vec_env("Pendulum-v1", 2, seed=5))
        each.set_random_seed(7)
        each.learn(20, reset_num_timesteps=False)
        states.append({name: value.clone() for name, value in each.policy.state_dict().items()})
    assert all((value == states[1][name]).all() for name, value in states[0].items())
    np.testing.assert_array_equal(model.replay_buffer.observations, loaded.replay_buffer.observations)


def test_checkpoints_of_the_buffer_load(tmp_path: pathlib.Path) -> None:
    callback = CheckpointCallback(10, str(tmp_path), name_prefix="check", save_replay_buffer=True)
    model = small(SafeSAC).learn(10, callback=callback)
    loaded = SafeSAC.load(tmp_path / "check_10_steps", device="cpu")
    loaded.load_replay_buffer(tmp_path / "check_replay_buffer_10_steps.pkl")
    # Callbacks come before the transition is stored.
    assert loaded.replay_buffer.pos == 9
    np.testing.assert_array_equal(loaded.replay_buffer.actions[:9], model.replay_buffer.actions[:9])


def test_what_cannot_be_stored_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    env: gym.Env[Any, Any] = BitFlippingEnv(n_bits=3, continuous=True)
    model = SafeSAC("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, buffer_size=40, device="cpu")
    with pytest.raises(TypeError, match="a HerReplayBuffer cannot be stored without a pickle"):
        model.save_replay_buffer(tmp_path / "buffer")
    on_policy = IPPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=1), n_steps=8, batch_size=12)
    with pytest.raises(TypeError, match="IPPO has no replay buffer"):
        on_policy.load_replay_buffer(tmp_path / "buffer")
    assert list(tmp_path.iterdir()) == []
