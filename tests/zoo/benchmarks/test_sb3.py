"""The comparison with SB3's PPO: the same environment, settings and evaluation for both."""

from pathlib import Path

import numpy as np
import pytest
import torch as th

pytest.importorskip("mpe2")

from zoo import plots
from zoo.benchmarks.sb3 import SPREAD
from zoo.runs.comparison import run_job
from zoo.runs.played import PlayedResult


def test_both_learners_have_the_entrys_settings(tmp_path: Path) -> None:
    ours, theirs = (SPREAD.job(method, 0, tmp_path).build() for method in ("ippo", "sb3-ppo"))
    for name in ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "n_envs"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for progress in (1.0, 0.3):
        assert ours.lr_schedule(progress) == theirs.lr_schedule(progress)
        assert ours.clip_range(progress) == theirs.clip_range(progress)
    sizes = [sum(p.numel() for p in model.policy.parameters()) for model in (ours, theirs)]
    assert sizes[0] == sizes[1]
    # Each derives the environment's stream from the seed in its own way; the environments are one.
    for model in (ours, theirs):
        model.env.seed(5)
    np.testing.assert_array_equal(ours.env.reset(), theirs.env.reset())


@pytest.mark.parametrize("method", ["ippo", "sb3-ppo"])
def test_a_run_is_reproducible(method: str, tmp_path: Path) -> None:
    job = SPREAD.job(method, 3, tmp_path, overrides={"n_timesteps": 6000})
    first = run_job(job, PlayedResult, n_episodes=8)
    th.manual_seed(99)
    again = run_job(job, PlayedResult, n_episodes=8)
    np.testing.assert_array_equal(first.evaluation, again.evaluation)
    assert np.all(first.evaluation < 0.0)


def test_the_command_trains_in_processes_and_prints_and_writes_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["spread", "--train", "--seeds", "1", "-n", "6000", "--eval-episodes", "8", "--out", str(tmp_path)]
    plots.main([*arguments, "--tables", str(tmp_path / "table.md")])
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "IPPO(share_parameters=True)" in text
    assert "SB3's `PPO`" in text
    assert all(f"| {method.label} | 1 | -" in text for method in SPREAD.methods.values())


def test_trust_regions_get_the_rollouts_of_the_others(tmp_path: Path) -> None:
    entries = [SPREAD.job(method, 0, tmp_path).entry for method in ("ippo", "hatrpo", "wmatrpo")]
    for name in ("n_timesteps", "n_envs", "n_steps", "batch_size", "gamma", "env_kwargs"):
        assert len({str(entry[name]) for entry in entries}) == 1, name
