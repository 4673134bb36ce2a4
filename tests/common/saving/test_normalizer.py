"""Statistics of ``VecNormalize`` survive without a pickle."""

from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from otbaselines import make_vec_env
from otbaselines.common.saving.normalizer import load_normalizer, save_normalizer


def _stepped(norm_obs: bool = True) -> VecNormalize:
    env = VecNormalize(
        make_vec_env("otbaselines/Navigation-v0", n_copies=4, seed=0), gamma=0.9, clip_obs=3.0, norm_obs=norm_obs
    )
    env.reset()
    generator = np.random.default_rng(0)
    for _ in range(30):
        env.step(generator.integers(5, size=env.num_envs))
    return env


def test_a_stored_normaliser_normalises_alike_bit_for_bit(tmp_path: Path) -> None:
    env = _stepped()
    save_normalizer(env, tmp_path / "statistics.npz")
    loaded = load_normalizer(
        make_vec_env("otbaselines/Navigation-v0", n_copies=2, seed=1), tmp_path / "statistics.npz", training=True
    )
    rows, rewards = np.random.default_rng(1).normal(size=(6, 8)), np.random.default_rng(2).normal(size=6)
    np.testing.assert_array_equal(loaded.normalize_obs(rows), env.normalize_obs(rows))
    np.testing.assert_array_equal(loaded.normalize_reward(rewards), env.normalize_reward(rewards))
    assert (loaded.gamma, loaded.clip_obs, loaded.training, loaded.norm_reward) == (0.9, 3.0, True, True)
    assert loaded.obs_rms.count == env.obs_rms.count


def test_for_an_evaluation_statistics_stand_still_and_rewards_are_raw(tmp_path: Path) -> None:
    save_normalizer(_stepped(), tmp_path / "statistics.npz")
    loaded = load_normalizer(
        make_vec_env("otbaselines/Navigation-v0", n_copies=2, seed=1), tmp_path / "statistics.npz", training=False
    )
    before = loaded.obs_rms.mean.copy()
    loaded.reset()
    _, rewards, _, _ = loaded.step(np.zeros(loaded.num_envs, dtype=np.int64))
    np.testing.assert_array_equal(loaded.obs_rms.mean, before)
    np.testing.assert_array_equal(rewards, loaded.get_original_reward())


def test_a_normaliser_of_rewards_alone_is_stored(tmp_path: Path) -> None:
    env = _stepped(norm_obs=False)
    save_normalizer(env, tmp_path / "statistics.npz")
    loaded = load_normalizer(
        make_vec_env("otbaselines/Navigation-v0", n_copies=2, seed=1), tmp_path / "statistics.npz", training=True
    )
    assert not loaded.norm_obs
    assert loaded.ret_rms.var == env.ret_rms.var


def test_the_file_needs_no_pickle(tmp_path: Path) -> None:
    save_normalizer(_stepped(), tmp_path / "statistics.npz")
    with np.load(tmp_path / "statistics.npz", allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)
    np.savez(tmp_path / "objects.npz", norm_obs=np.array([object()]))
    with pytest.raises(ValueError, match="needs a pickle"):
        load_normalizer(make_vec_env("otbaselines/Navigation-v0", n_copies=2), tmp_path / "objects.npz", training=True)


@pytest.mark.parametrize(
    ("name", "value"), [("gamma", -1.0), ("gamma", np.inf), ("epsilon", np.inf), ("epsilon", 0.0), ("clip_obs", -1.0)]
)
def test_impossible_settings_are_refused(tmp_path: Path, name: str, value: float) -> None:
    path = tmp_path / "statistics.npz"
    save_normalizer(_stepped(), path)
    with np.load(path) as stored:
        np.savez(path, **{**stored, name: value})
    with pytest.raises(ValueError, match=f"`{name}`"):
        load_normalizer(make_vec_env("otbaselines/Navigation-v0", n_copies=2), path, training=True)
