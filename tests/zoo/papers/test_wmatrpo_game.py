"""The W-MATRPO paper's Table 3 and Figure 1: settings of Table 2, what is kept of a run, and what is made of it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from PIL import Image
from stable_baselines3.common.callbacks import CallbackList

from zoo import plots
from zoo.drawing.tables import mean_and_interval
from zoo.papers.wmatrpo.game import METHODS, GameResult, MeanPath, by_seed, game_job, means_and_stds
from zoo.papers.wmatrpo.report import distances_table, peaks_table
from zoo.runs.comparison import LearningCurve, finished_run, run_job
from zoo.runs.job import Job


def job(method: str, folder: Path, *, n_agents: int = 2, variant: str = "as_printed", n_iterations: int = 4) -> Job:
    return game_job(method, n_agents=n_agents, variant=variant, n_iterations=n_iterations, seed=0, folder=folder)


def set_team(model: Any, mean: float, std: float) -> None:
    """Let every agent play a Gaussian around ``mean``."""
    with th.no_grad():
        for parameter, value in ((model.policy.action_net.weight, 0.0), (model.policy.action_net.bias, mean)):
            parameter.fill_(value)
        model.policy.log_std.fill_(math.log(std))


@pytest.mark.parametrize(("n_agents", "constant"), [(3, 0.02), (5, 0.02), (7, 0.10), (9, 0.15)])
def test_runs_have_the_settings_of_table_2(n_agents: int, constant: float, tmp_path: Path) -> None:
    for method in ("hatrpo", "hatrpo-caatr", "wmatrpo", "wmatrpo-fixed"):
        run = job(method, tmp_path, n_agents=n_agents, n_iterations=4000)
        model: Any = run.build()
        assert run.config.n_timesteps / (model.n_steps * model.n_envs) == 4000
        assert model.n_steps * model.env.unwrapped.n_copies == 30
        assert model.env.unwrapped.config.n_agents == n_agents
        assert model.fixed_radius == 0.1
        assert model.caatr == (method in ("hatrpo-caatr", "wmatrpo"))
        assert model.caatr_constant == (constant if model.caatr else None)
        means, stds = means_and_stds(model)
        # Only the hundredth of an orthogonal row that the one observation adds is random.
        np.testing.assert_allclose(means, 1.5, atol=0.011)
        np.testing.assert_allclose(stds, 0.5, atol=1e-4)


def test_every_method_of_the_comparison_can_be_built(tmp_path: Path) -> None:
    for method in METHODS:
        run = job(method, tmp_path, variant="corrected")
        assert run.build().env is not None, method


def test_the_distance_of_teams_at_the_trap_is_four_times_the_root_of_their_number(tmp_path: Path) -> None:
    for n_agents in (2, 3, 9):
        run = job("hatrpo", tmp_path, n_agents=n_agents)
        model = run.build()
        set_team(model, 1.0, 0.5)
        found = GameResult.measure(run, model, 1)
        assert found["final_distance"] == pytest.approx(4.0 * math.sqrt(n_agents), abs=1e-6)
        # As printed, the trap's peak without what little the other adds.
        peak = 6.5 / (2.0 * math.pi) ** (n_agents / 2)
        tail = 10.0 / 3.0 / (2.0 * math.pi) ** (n_agents / 2) * math.exp(-8.0 * (n_agents - 1 + 1 / 9))
        assert found["evaluation"] == pytest.approx(peak + tail, rel=1e-6)


def test_a_mean_beyond_the_box_counts_as_it_is_played(tmp_path: Path) -> None:
    run = job("hatrpo", tmp_path)
    model = run.build()
    set_team(model, 9.0, 0.5)
    assert GameResult.measure(run, model, 1)["final_distance"] == pytest.approx(2.0 * math.sqrt(2.0))


def test_the_path_begins_before_training_and_ends_with_the_result(tmp_path: Path) -> None:
    kept = run_job(job("hatrpo", tmp_path, n_iterations=6), GameResult, n_episodes=1)
    assert list(kept.rounds) == [0, 1, 2, 3, 4, 5, 6]
    assert len(kept.rewards) == len(kept.distances) == 6
    np.testing.assert_allclose(kept.means[0], 1.5, atol=0.011)
    np.testing.assert_allclose(np.linalg.norm(kept.means[-1] - 5.0), kept.final_distance[0])
    # From 1.5, the nearer peak is at 1.
    assert np.all(kept.means[-1] < kept.means[0])
    stored = finished_run(job("hatrpo", tmp_path, n_iterations=6), GameResult, 1)
    assert stored is not None
    for name, value in vars(kept).items():
        np.testing.assert_array_equal(getattr(stored, name), value, err_msg=name)


def test_a_long_path_is_thinned_to_about_two_hundred_points(tmp_path: Path) -> None:
    kept = run_job(job("hatrpo", tmp_path, n_iterations=450), GameResult, n_episodes=1)
    assert list(kept.rounds) == [*range(0, 450, 2), 450]
    assert len(kept.rewards) == 450


def test_rewards_are_those_of_the_game_with_and_without_a_normaliser(tmp_path: Path) -> None:
    run = job("hatrpo", tmp_path, n_agents=3)
    model = run.build()
    path, curve = MeanPath(), LearningCurve()
    model.learn(run.config.n_timesteps, callback=CallbackList([path, curve]))
    np.testing.assert_allclose(path.fields()["rewards"], curve.fields()["rewards"], rtol=1e-5)
    scaled = Job(**{**vars(run), "entry": {**run.entry, "normalize": {"norm_obs": False}}})
    other = scaled.build()
    again, normalised = MeanPath(), LearningCurve()
    other.learn(scaled.config.n_timesteps, callback=CallbackList([again, normalised]))
    # The first rollout is the same one, whose rewards the normaliser multiplies.
    assert again.fields()["rewards"][0] == pytest.approx(path.fields()["rewards"][0])
    assert normalised.fields()["rewards"][0] > 1.5 * again.fields()["rewards"][0]


def test_as_printed_the_trap_is_worth_nearly_twice_the_goal() -> None:
    rows = peaks_table("as_printed", (3, 9)).rows
    # 6.5 / (2 pi)^(n / 2) and 10 / 3 / (2 pi)^(n / 2).
    assert rows == [("3", rows[0][1], "0.413", "0.212"), ("9", rows[1][1], "0.00166", "0.000853")]
    assert peaks_table("corrected", (9,)).rows[0][2:] == ("6.5", "10")


def test_an_interval_is_students() -> None:
    # The mean of 1, 2 and 3 has the standard error 1 / sqrt(3), and Student's quantile for two degrees of freedom is 4.3027.
    assert mean_and_interval([1.0, 2.0, 3.0]) == "2.00 ± 2.48 (1.00 to 3.00)"
    assert mean_and_interval([1.5]) == "1.50"


def result(distance: float, n_agents: int = 3) -> GameResult:
    means = np.full((2, n_agents), 5.0)
    means[1, 0] -= distance
    return GameResult(
        timesteps=np.arange(150.0),
        rewards=np.r_[np.full(50, 9.0), np.full(100, 2.0)],
        evaluation=np.array([1.0]),
        cpu_seconds=7.0,
        entry={},
        distances=np.r_[np.zeros(50), np.full(100, 3.0)],
        rounds=np.array([0, 150]),
        means=means,
        stds=np.full((2, n_agents), 0.5),
        final_distance=np.array([distance]),
    )


def test_the_end_of_a_run_is_its_last_hundred_rounds() -> None:
    values = by_seed([result(0.4), result(0.6)])
    assert {name: list(value) for name, value in values.items()} == {
        "distance": [0.4, 0.6],
        "reward": [1.0, 1.0],
        "mean_distance": [3.0, 3.0],
        "mean_reward": [2.0, 2.0],
    }


def test_table_3_stands_beside_the_papers() -> None:
    runs = {(3, "wmatrpo"): [result(0.4), result(0.6)], (3, "hatrpo"): [result(6.9)], (2, "hatrpo"): [result(5.6, 2)]}
    table = distances_table(runs, "as_printed", printed=True)
    columns = [table.columns.index(name) for name in ("agents", "method", "the paper's", "seeds within 0.5")]
    assert [tuple(row[column] for column in columns) for row in table.rows] == [
        ("2", "HATRPO", "-", "0 of 1"),
        ("3", "HATRPO", "6.92", "0 of 1"),
        ("3", "WMATRPO with CAATR", "2.43", "1 of 2"),
    ]
    assert "the paper's" not in distances_table(runs, "corrected", printed=False).columns


def test_the_command_trains_writes_tables_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["wmatrpo-paper", "--seeds", "1", "--agents", "2", "3", "--variant", "corrected", "--iterations", "2"]
    arguments += ["--jobs", "1", "--out", str(tmp_path), "--tables", str(tmp_path / "table.md")]
    plots.main([*arguments, "--train"])
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    command = "python -m zoo.plots wmatrpo-paper --train --seeds 1 --agents 2 3 --variant corrected --iterations 2"
    assert text.startswith(f"`{command}`")
    assert all(f"| {n} | {method.label} | 1 |" in text for n in (2, 3) for method in METHODS.values())
    with Image.open(tmp_path / "figure1_corrected.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    plots.main([*arguments, "--train"])
    assert "12 of 12 runs are finished" in capsys.readouterr().out


def test_the_ancestor_is_a_game_of_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        plots.main(["wmatrpo-paper", "--variant", "ancestor", "--agents", "3", "--out", str(tmp_path)])
    assert "--agents 2" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        plots.main(["wmatrpo-paper", "--variant", "ancestor", "--out", str(tmp_path)])
    assert "add --train" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
