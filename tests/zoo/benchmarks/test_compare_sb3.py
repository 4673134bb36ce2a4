"""The comparison with SB3's PPO: the same environment, settings and evaluation for both."""

import numpy as np
import pytest
import torch as th

pytest.importorskip("mpe2")

from zoo.compare_sb3 import SPREAD, Job, build, main, run
from zoo.config.entries import read_entry, split_entry


def test_both_learners_have_the_entrys_settings():
    config = split_entry(read_entry("ippo", SPREAD, variants=("sharing",)))
    ours, theirs = build("IPPO", 0, config), build("PPO", 0, config)
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


@pytest.mark.parametrize("learner", ["IPPO", "PPO"])
def test_a_run_is_reproducible(learner):
    job = Job(learner=learner, seed=3, n_timesteps=6000, n_eval_episodes=8)
    first = run(job)
    th.manual_seed(99)
    again = run(job)
    assert first.most_probable == again.most_probable
    assert first.most_probable < 0.0


def test_the_command_prints_and_writes_the_table(tmp_path, capsys):
    main(["--seeds", "1", "-n", "6000", "--n-eval-episodes", "8", "--out", str(tmp_path / "table.md")])
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "IPPO(share_parameters=True)" in text
    assert "SB3's `PPO`" in text


def test_bad_numbers_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err
