"""The WBC paper's figures and the runs behind them: finished runs are kept, and drawing needs no training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from otbaselines.envs import NavigationConfig
from zoo import demo, plots
from zoo.papers.wbc import maps
from zoo.papers.wbc.comparisons import PAPER, rollouts_to_pass
from zoo.papers.wbc.maps import NavigationResult, as_directions
from zoo.runs.comparison import finished_run, run_job
from zoo.runs.job import Job


def test_directions_are_actions_where_agents_are_alike() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), (4, 3))
    vectors = NavigationConfig(heterogeneous="dynamics").agent_action_vectors
    np.testing.assert_array_equal(as_directions(probabilities, vectors), probabilities)


def test_directions_undo_the_turned_moves() -> None:
    # Agent 1's moves are turned by a quarter anticlockwise: its "right" (1) goes up (3), its "up" (3) goes left (2).
    probabilities = np.tile(np.array([0.1, 0.4, 0.05, 0.3, 0.15]), (1, 2, 1))
    vectors = NavigationConfig(n_agents=2, heterogeneous="roles").agent_action_vectors
    turned = as_directions(probabilities, vectors)
    np.testing.assert_array_equal(turned[0, 0], probabilities[0, 0])
    np.testing.assert_array_equal(turned[0, 1], [0.1, 0.15, 0.3, 0.4, 0.05])


def test_every_heading_counts_for_the_nearest_direction() -> None:
    # Stay, east, north-east, north, ...: north-east is as near to up as to right, and counts for the first of the two.
    vectors = NavigationConfig(n_agents=1, headings=9).agent_action_vectors
    probabilities = np.arange(9.0).reshape(1, 1, 9) / 36.0
    expected = np.array([0, 1 + 2 + 8, 4 + 5 + 6, 3, 7]) / 36.0
    np.testing.assert_allclose(as_directions(probabilities, vectors)[0, 0], expected, atol=1e-12)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of every method, two rollouts each."""
    folder = tmp_path_factory.mktemp("paper")
    plots.main(["wbc-paper", "--train", "--seeds", "2", "-n", "4800", "--jobs", "1", "--out", str(folder)])
    return folder


def test_the_papers_figures_are_drawn(paper: Path) -> None:
    for name in ("figure1_policy_maps", "figure2_action_probabilities", "figure3_learning_curves"):
        with Image.open(paper / f"{name}.png") as picture:
            assert min(picture.size) > 400
            assert np.asarray(picture.convert("L")).std() > 10


def test_a_curve_passes_another_when_its_smoothed_mean_does() -> None:
    first, second = np.linspace(-1.0, 0.0, 21), np.full(21, -0.5)
    run = {name: SimpleNamespace(rewards=rewards) for name, rewards in (("first", first), ("second", second))}
    # The mean of five points of a line is its value two points before.
    assert rollouts_to_pass([run["first"]], [run["second"]]) == (13, 21)
    assert rollouts_to_pass([run["second"]], [SimpleNamespace(rewards=first)]) is None
    assert rollouts_to_pass([run["first"]] * 2, [run["second"]]) is None
    # A mean of fewer than five points is none.
    falling = SimpleNamespace(rewards=np.concatenate([[0.0], np.full(20, -1.0)]))
    assert rollouts_to_pass([falling], [run["second"]]) is None


def test_finished_runs_are_neither_trained_again_nor_needed_twice(paper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(job: Job) -> Any:
        raise AssertionError(f"{job} was trained again")

    monkeypatch.setattr(Job, "build", refuse)
    plots.main(["wbc-paper", "--train", "--seeds", "2", "-n", "4800", "--jobs", "1", "--out", str(paper)])


def test_a_run_with_other_hyperparameters_or_another_evaluation_is_named(paper: Path) -> None:
    def finished(seed: int, n_episodes: int = 200, **overrides: Any) -> bool:
        job = PAPER.job("wbc", seed, paper / "runs" / "homogeneous", overrides={"n_timesteps": 4800, **overrides})
        return finished_run(job, NavigationResult, n_episodes) is not None

    assert finished(0)
    assert not finished(2)
    for changes, said in (
        ({"n_timesteps": 7200}, "`n_timesteps` is 4800 there and 7200 here"),
        ({"env_kwargs": {"n_agents": 4}}, r"`env_kwargs.n_agents` is .* there and 4 here"),
        ({"n_episodes": 100}, "`--eval-episodes` is 200 there and 100 here"),
    ):
        with pytest.raises(
            ValueError, match=f"wbc-seed0.npz' holds this run with other options: .*{said}.*; take another --out"
        ):
            finished(0, **changes)


def test_a_damaged_file_of_results_is_named(paper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "homogeneous"
    folder.mkdir(parents=True)
    whole = (paper / "runs" / "homogeneous" / "wbc-seed0.npz").read_bytes()
    (folder / "wbc-seed0.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit):
        plots.main(["wbc-paper", "--out", str(tmp_path)])
    assert "wbc-seed0.npz' holds no results" in capsys.readouterr().err


def test_without_runs_the_remedy_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plots.main(["wbc-paper", "--out", str(tmp_path)])
    assert "--train" in capsys.readouterr().err


def test_a_stored_run_is_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "RESOLUTION", 7)
    job = PAPER.job("sharing", 5, tmp_path, overrides={"n_timesteps": 2400})
    trained = run_job(job, NavigationResult, n_episodes=10)
    stored = finished_run(job, NavigationResult, 10)
    assert stored is not None
    for name, value in vars(trained).items():
        np.testing.assert_array_equal(getattr(stored, name), value, err_msg=name)
    assert trained.policy_maps.shape == (3, 7, 7)
    # With one network for all, every agent answers the same observation alike.
    np.testing.assert_array_equal(trained.policy_maps[0], trained.policy_maps[1])
    np.testing.assert_allclose(trained.state_probs.sum(-1), 1.0, atol=1e-6)


def test_all_methods_play_the_same_starts(paper: Path) -> None:
    folder = paper / "runs" / "homogeneous"
    random = [NavigationResult.load(path).random for path in sorted(folder.glob("*.npz"))]
    assert len(random) == 2 * len(PAPER.methods)
    for other in random[1:]:
        np.testing.assert_array_equal(other, random[0])


def test_the_demonstration_leaves_agents_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(["-n", "2400", "--out", str(tmp_path), "--no-progress"])
    files = {path.name for path in tmp_path.iterdir()}
    assert files >= {"wbc-seed0.zip", "ippo-seed0.zip", "learning_curve.png", "policy_map.png"}
    printed = capsys.readouterr().out
    assert all(label in printed for label in ("random", "WBC", "IPPO"))


def test_learning_curves_are_drawn_from_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "logs" / "wbc" / "some-Task-v0_3"
    folder.mkdir(parents=True)
    np.savez(folder / "evaluations.npz", timesteps=np.array([10, 20]), results=np.array([[1.0, 3.0], [2.0, 4.0]]))
    picture = tmp_path / "curve.png"
    plots.main(["learning-curve", "--env", "some/Task-v0", "-f", str(tmp_path / "logs"), "--out", str(picture)])
    assert picture.stat().st_size > 5000
    with pytest.raises(SystemExit):
        plots.main(["learning-curve", "--env", "other/Task-v0", "-f", str(tmp_path / "logs"), "--out", str(picture)])
    assert "zoo.train" in capsys.readouterr().err
