"""Figures: the statistics behind them, and that drawing needs no training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from otbaselines.envs import NavigationConfig
from zoo import demo, plots
from zoo.drawing.figures import bootstrap_band, moving_average
from zoo.runs import job as runs
from zoo.runs.job import Job, as_directions, is_finished, load_run, train_run


def test_the_bootstrap_band_of_normal_samples_is_near_the_normal_interval() -> None:
    # Over 200 points the average half-width must be close to that of z * s / sqrt(n), with the population's s as the
    # bootstrap has it.
    samples = np.random.default_rng(1).normal(size=(60, 200))
    lower, upper = bootstrap_band(samples)
    expected = stats.norm.ppf(0.975) * samples.std(0) / np.sqrt(60)
    assert np.mean((upper - lower) / 2) == pytest.approx(expected.mean(), rel=0.02)
    assert np.all((lower < samples.mean(0)) & (samples.mean(0) < upper))


def test_the_band_of_equal_seeds_has_no_width() -> None:
    curves = np.tile(np.arange(5.0), (7, 1))
    lower, upper = bootstrap_band(curves)
    np.testing.assert_allclose(lower, np.arange(5.0), atol=1e-12)
    np.testing.assert_allclose(upper, np.arange(5.0), atol=1e-12)


def test_the_moving_average_is_that_of_the_definition() -> None:
    values = np.random.default_rng(0).normal(size=(2, 9))
    expected = [[row[max(0, i - 3) : i + 1].mean() for i in range(9)] for row in values]
    np.testing.assert_allclose(moving_average(values, 4), expected, atol=1e-12)
    np.testing.assert_allclose(moving_average(values, 50)[:, -1], values.mean(1), atol=1e-12)


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


def test_finished_runs_are_neither_trained_again_nor_needed_twice(paper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(job: Job) -> Any:
        raise AssertionError(f"{job} was trained again")

    monkeypatch.setattr(runs, "train_run", refuse)
    plots.main(["wbc-paper", "--train", "--seeds", "2", "-n", "4800", "--jobs", "1", "--out", str(paper)])


def test_a_run_with_other_hyperparameters_is_not_finished(paper: Path) -> None:
    folder = str(paper / "runs" / "homogeneous")
    assert is_finished(Job(method="wbc", seed=0, folder=folder, n_timesteps=4800))
    assert not is_finished(Job(method="wbc", seed=0, folder=folder, n_timesteps=7200))
    assert not is_finished(Job(method="wbc", seed=2, folder=folder, n_timesteps=4800))
    assert not is_finished(Job(method="wbc", seed=0, folder=folder, n_timesteps=4800, env_kwargs={"n_agents": 4}))


def test_without_runs_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--train"):
        plots.main(["wbc-paper", "--out", str(tmp_path)])


def test_a_stored_run_is_what_was_trained(tmp_path: Path) -> None:
    job = Job(method="sharing", seed=5, folder=str(tmp_path), n_timesteps=2400, resolution=7)
    trained, stored = train_run(job), load_run(job.path)
    for name, value in vars(trained).items():
        np.testing.assert_array_equal(getattr(stored, name), value, err_msg=name)
    assert trained.policy_maps.shape == (3, 7, 7)
    # With one network for all, every agent answers the same observation alike.
    np.testing.assert_array_equal(trained.policy_maps[0], trained.policy_maps[1])
    np.testing.assert_allclose(trained.state_probs.sum(-1), 1.0, atol=1e-6)


def test_all_methods_play_the_same_starts(paper: Path) -> None:
    folder = paper / "runs" / "homogeneous"
    random = [load_run(path).random for path in sorted(folder.glob("*.npz"))]
    assert len(random) == 8
    for other in random[1:]:
        np.testing.assert_array_equal(other, random[0])


def test_the_demonstration_leaves_agents_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(["-n", "2400", "--out", str(tmp_path), "--no-progress"])
    files = {path.name for path in tmp_path.iterdir()}
    assert files >= {"wbc-seed0.zip", "ippo-seed0.zip", "learning_curve.png", "policy_map.png"}
    printed = capsys.readouterr().out
    assert all(label in printed for label in ("random", "WBC", "IPPO"))


def test_learning_curves_are_drawn_from_evaluations(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "wbc" / "some-Task-v0_3"
    folder.mkdir(parents=True)
    np.savez(folder / "evaluations.npz", timesteps=np.array([10, 20]), results=np.array([[1.0, 3.0], [2.0, 4.0]]))
    picture = tmp_path / "curve.png"
    plots.main(["learning-curve", "--env", "some/Task-v0", "-f", str(tmp_path / "logs"), "--out", str(picture)])
    assert picture.stat().st_size > 5000
    with pytest.raises(SystemExit, match=r"zoo\.train"):
        plots.main(["learning-curve", "--env", "other/Task-v0", "-f", str(tmp_path / "logs"), "--out", str(picture)])
