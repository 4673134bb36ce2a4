"""Many policies on one pair of critics are the policies that would have been trained one at a time."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch as th
from offline_toys import toy_dataset
from recordings_of_pendulum import pendulum_file

from otbaselines import BC, IQL, QDOT
from zoo import plots
from zoo.papers.qdot.extractions import FanResult, rows_of
from zoo.papers.qdot.fan import PolicyFan

COMMON = {"dataset": toy_dataset(), "seed": 3, "device": "cpu", "batch_size": 32, "policy_kwargs": {"net_arch": [16]}}
SHARE = {"return_share": 0.2}


@pytest.fixture(scope="module")
def fan():
    return PolicyFan("MlpPolicy", prices=(0.1, 1.0, math.inf), weights=("plain", 0.05), **SHARE, **COMMON).learn(60)


@pytest.mark.parametrize(
    ("algorithm", "settings", "way"),
    [
        (QDOT, {"alpha": 0.1, **SHARE}, (0.1, "0.05")),
        (QDOT, {"alpha": math.inf, **SHARE}, (math.inf, "0.05")),
        (QDOT, {"alpha": 1.0, "extraction": "regression", **SHARE}, (1.0, "plain")),
        (IQL, SHARE, (math.inf, "iql")),
        (BC, {}, (math.inf, "plain")),
    ],
)
def test_each_way_is_the_learner_of_that_name(fan, algorithm, settings, way):
    alone = algorithm("MlpPolicy", **settings, **COMMON).learn(60)
    fan.policy.choose(way)
    observations = COMMON["dataset"].observations.numpy()
    found, expected = (model.predict(observations, deterministic=True)[0] for model in (fan, alone))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(fan.policy.log_std.detach(), alone.policy.log_std.detach(), atol=1e-5)


@pytest.mark.parametrize("extraction", ["bc_map", "best_of"])
def test_cloned_actions_go_through_the_map_that_was_chosen(fan, extraction):
    alone = QDOT("MlpPolicy", alpha=0.1, extraction=extraction, **SHARE, **COMMON).learn(60)
    fan.policy.choose((math.inf, "plain"), acts=extraction, moved_by=0.1)
    with th.no_grad():
        fan.policy.candidate_noise.copy_(getattr(alone.policy, "candidate_noise", fan.policy.candidate_noise))
    observations = COMMON["dataset"].observations.numpy()
    found, expected = (model.predict(observations, deterministic=True)[0] for model in (fan, alone))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    displacement, _ = fan.worth(400)
    assert displacement[0] > displacement[1] > 0


def test_rows_are_told_in_a_table_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pendulum_file(tmp_path / "medium.npz")
    small = ["-n", "20", "--seeds", "2", "--eval-episodes", "2", "--jobs", "1", "-params", "policy_kwargs.net_arch:[8]"]
    words = ["qdot-extractions", "--datasets", str(data), *small, "--out", str(tmp_path / "out"), "--alphas", "0.1", "1"]
    plots.main([*words, "--train", "--tables", str(tmp_path / "table.md")])
    acting = rows_of([0.1, 1.0, math.inf], ["plain", "0.05"])
    lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(acting) == 2 + 2 + 3 + 2 + 2 + 3
    assert (tmp_path / "out" / "prices.png").is_file()
    capsys.readouterr()
    plots.main([*words, "--train"])
    assert "2 of 2 runs are finished" in capsys.readouterr().out
    run = FanResult.load(tmp_path / "out/runs/Pendulum-v1/medium/extractions-seed0.npz")
    assert run.evaluation.shape == (2, len(acting))
    assert run.rewards.shape == (10, len(acting))
    assert run.moves.shape == run.gains.shape == (10, 2)
