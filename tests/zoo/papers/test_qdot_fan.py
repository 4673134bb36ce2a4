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
from zoo.drawing.tables import student_interval
from zoo.papers.qdot import runs
from zoo.papers.qdot.extractions import FanResult, extractions_table, rows_of
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


def test_rows_are_told_in_a_table_and_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "EPISODES", 1)
    monkeypatch.setattr(runs, "EVALUATIONS", 2)
    data = pendulum_file(tmp_path / "medium.npz")
    small = ["-n", "4", "--seeds", "2", "--eval-episodes", "2", "--jobs", "1", "-params", "policy_kwargs.net_arch:[8]"]
    words = ["qdot-extractions", "--datasets", str(data), *small, "--out", str(tmp_path / "out"), "--alphas", "0.1", "1"]
    plots.main([*words, "--train", "--tables", str(tmp_path / "table.md")])
    acting = rows_of([0.1, 1.0, math.inf], ["plain", "0.05"])
    lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(acting) == 2 + 2 + 3 + 2 + 2 + 3
    assert (tmp_path / "out" / "prices.png").is_file()
    capsys.readouterr()
    plots.main([*words, "--train"])
    assert "2 of 2 runs are finished" in capsys.readouterr().out
    run = FanResult.load(tmp_path / "out/runs/Pendulum-v1/medium/alpha-0.1-1.0-nats-0.05-seed0.npz")
    assert run.evaluation.shape == (2, len(acting))
    assert run.rewards.shape == (2, len(acting))
    assert run.moves.shape == run.gains.shape == (2, 2)
    # Other prices are other runs, and take the place of none.
    plots.main([*words[:-1], "--train"])
    plots.main(words)


def test_the_table_pairs_each_row_with_its_own_controls() -> None:
    acting = rows_of([0.5, math.inf], ["plain", "0.05"])
    names = [(row.extraction, row.price) for row in acting]
    finals = np.random.default_rng(0).normal(size=(3, 4, len(acting)))
    found_runs = [
        FanResult(
            timesteps=np.arange(1.0, 11.0),
            rewards=np.arange(10.0)[:, None] + np.arange(len(acting)) + seed,
            evaluation=finals[seed],
            cpu_seconds=1.0,
            entry={"n_timesteps": 10},
            moves=np.full((10, 1), 0.25),
            gains=np.full((10, 1), 0.5),
        )
        for seed in range(3)
    ]
    rows = {(row[0], row[1]): row for row in extractions_table("unknown task", found_runs, acting, [0.5]).rows}
    mean = finals.mean(1)

    def paired(first: tuple[str, float], second: tuple[str, float]) -> str:
        return student_interval(mean[:, names.index(first)] - mean[:, names.index(second)]).text(".1f")

    found = rows[("weighted map, 0.05 nats", "0.5")]
    own = ("weighted_map", 0.5)
    assert found[4:7] == tuple(paired(own, other) for other in (("bc", math.inf), ("iql", math.inf), (own[0], math.inf)))
    assert found[7:] == ("0.250", "0.500")
    # Evaluations 5 to 9 of three seeds.
    assert found[3].startswith(f"{7.0 + names.index(own) + 1.0:.1f} ")
    assert rows[("plain regression", "0.5")][6] == paired(("regression", 0.5), ("bc", math.inf))
    assert rows[("map of cloned actions", "0.5")][6] == paired(("bc_map", 0.5), ("bc", math.inf))
    assert rows[("best of", "0.5")][6] == paired(("best_of", 0.5), ("best_of", math.inf))
    assert rows[("BC", "-")][4:] == ("0", paired(("bc", math.inf), ("iql", math.inf)), "-", "-", "-")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alphas", "0"], "`--alphas` must be a number"),
        (["--alphas", "nan"], "`--alphas` must be a number"),
        (["--alphas", "inf"], "`--alphas` must be a number"),
        (["--alphas", "1", "1"], "--alphas has the same value twice"),
        (["--divergences", "-1"], "`--divergences` must be a number"),
        (["--divergences", "0.1", "0.1"], "--divergences has the same value twice"),
        (["-params", "prices:[1.0]"], "-params prices: is what"),
        (["--first-seed", "4294967295", "--seeds", "2"], "beyond the largest seed"),
    ],
)
def test_options_that_cannot_be_meant_are_named(words, message, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pendulum_file(tmp_path / "medium.npz")
    with pytest.raises(SystemExit):
        plots.main(["qdot-extractions", "--datasets", str(data), "--out", str(tmp_path), *words])
    assert message in capsys.readouterr().err


def test_a_way_that_was_not_trained_is_named(fan) -> None:
    for choice in ({"way": (0.2, "plain")}, {"way": (0.1, "plain"), "acts": "best"}, {"way": (0.1, "plain"), "moved_by": 7.0}):
        before = fan.policy.actor[0].weight.clone()
        with pytest.raises(ValueError, match=f"`{[*choice][-1]}` must be one of"):
            fan.policy.choose(**choice)
        assert th.equal(before, fan.policy.actor[0].weight)
    with pytest.raises(ValueError, match="leaves nobody to disagree with"):
        PolicyFan("MlpPolicy", **{**COMMON, "policy_kwargs": {"n_critics": 1, "net_arch": [8]}})
