"""The register of algorithms, and rl_zoo3's beside it."""

import sys
from pathlib import Path

import pytest

from otbaselines.ippo import IPPO
from zoo.config.registry import ALGOS, sb3_ppo


def test_rl_zoo3_trains_our_algorithms_once_they_are_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rl_zoo3_train = pytest.importorskip("rl_zoo3.train")
    config = tmp_path / "config.yml"
    config.write_text("CartPole-v1: {n_timesteps: 64, n_envs: 2, policy: MlpPolicy, n_steps: 32, batch_size: 32}")
    monkeypatch.setattr(sys, "argv", ["train", "--algo", "ippo", "--env", "CartPole-v1", "-f", str(tmp_path / "logs")])
    sys.argv += ["-conf", str(config), "--eval-freq", "-1", "--verbose", "0"]
    for name, algorithm in ALGOS.items():
        monkeypatch.setitem(rl_zoo3_train.ALGOS, name, algorithm)
    rl_zoo3_train.train()
    assert IPPO.load(tmp_path / "logs" / "ippo" / "CartPole-v1_1" / "CartPole-v1.zip").num_timesteps == 64


def test_sb3s_ppo_has_no_policies_of_their_own() -> None:
    with pytest.raises(ValueError, match="share_parameters"):
        sb3_ppo(share_parameters=False, learning_rate=1e-3)
