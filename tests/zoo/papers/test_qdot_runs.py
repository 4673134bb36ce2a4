"""The comparison on recorded data: small runs, kept, found again, and drawn."""

from pathlib import Path

import numpy as np
import pytest
from recordings_of_pendulum import pendulum_file

from zoo import plots
from zoo.papers.qdot.runs import METHODS, OfflineResult, offline_jobs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pendulum_file(tmp_path / "medium.npz")


def _arguments(data: Path, folder: Path, *more: str) -> list[str]:
    small = ["-n", "20", "--seeds", "1", "--eval-episodes", "2", "--jobs", "1", "-params", "policy_kwargs.net_arch:[8]"]
    return ["qdot", "--datasets", str(data), *small, "--out", str(folder), *more]


def test_runs_are_trained_once_and_told_in_a_table(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["--methods", "bc", "qdot", "adversarial", "--alphas", "0.1", "1.0"]
    plots.main(_arguments(data, tmp_path / "out", *methods, "--train", "--tables", str(tmp_path / "table.md")))
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| Pendulum-v1, medium")]
    assert len(rows) == 1 + 2 + 2
    assert (tmp_path / "out" / "learning_curves.png").is_file()
    capsys.readouterr()
    plots.main(_arguments(data, tmp_path / "out", *methods, "--train"))
    assert "5 of 5 runs are finished" in capsys.readouterr().out
    run = OfflineResult.load(tmp_path / "out/runs/Pendulum-v1/medium/qdot-alpha0.1-seed0.npz")
    assert run.timesteps.tolist() == list(range(2, 21, 2))
    assert np.isfinite(run.displacements).all()


def test_a_run_that_lost_half_of_what_it_gained_has_collapsed() -> None:
    common = {"timesteps": np.arange(3), "cpu_seconds": 1.0, "entry": {}, "displacements": np.zeros(3)}
    rewards = np.array([-1000.0, -200.0, -500.0])
    assert OfflineResult(rewards=rewards, evaluation=np.array([-700.0]), **common).collapsed
    assert not OfflineResult(rewards=rewards, evaluation=np.array([-500.0]), **common).collapsed
    # Where nothing was lost but the luck of a few episodes, nothing collapsed.
    for flat, episodes in (([940.0, 960.0, 950.0], [900.0, 980.0]), ([-540.0, -520.0, -530.0], [-500.0, -580.0])):
        assert not OfflineResult(rewards=np.array(flat), evaluation=np.array(episodes), **common).collapsed
    assert OfflineResult(rewards=np.array([100.0, 960.0, 950.0]), evaluation=np.array([300.0, 340.0]), **common).collapsed


def test_every_method_can_be_built(data: Path, tmp_path: Path) -> None:
    changes = {"policy_kwargs": {"net_arch": [8]}}
    jobs = offline_jobs([data], [*METHODS], seeds=1, alphas=[0.5], folder=tmp_path, overrides=changes)
    assert len(jobs) == len(METHODS)
    for _, job in jobs:
        assert job.build().dataset is not None
    with pytest.raises(ValueError, match="no environment; pass --env"):
        offline_jobs([pendulum_file(tmp_path / "x.npz", name="mine")], ["bc"], seeds=1, alphas=[], folder=tmp_path)
