"""Two ground metrics on teams of unlike agents: what differs between the runs, and what random play is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mpe2")

from otbaselines.wmatrpo.action_metric import environment_distances
from zoo import plots
from zoo.papers.wmatrpo.metric import METRIC_TASKS
from zoo.runs import played
from zoo.runs.job import Job


@pytest.mark.parametrize("task", METRIC_TASKS)
def test_the_two_forms_of_wmatrpo_differ_in_the_metric_alone(task: str, tmp_path: Path) -> None:
    moves, one_hot = (dict(METRIC_TASKS[task].job(name, 0, tmp_path).entry) for name in ("moves", "one-hot"))
    assert moves.pop("ground_metric") is not None
    assert moves == one_hot


@pytest.mark.parametrize("task", METRIC_TASKS)
def test_every_learner_gets_the_same_task_and_rollouts(task: str, tmp_path: Path) -> None:
    entries = [METRIC_TASKS[task].job(name, 0, tmp_path).entry for name in METRIC_TASKS[task].methods]
    for name in ("n_timesteps", "n_envs", "n_steps", "batch_size", "gamma", "env_kwargs"):
        assert len({str(entry.get(name)) for entry in entries}) == 1, name


def test_turned_moves_are_as_far_apart_as_others(tmp_path: Path) -> None:
    model: Any = METRIC_TASKS["navigation"].job("moves", 0, tmp_path).build()
    # Staying is one step from every move, which is two steps from its opposite and the root of two from the others. The median
    # of these is the root of two. A turn changes no distance.
    table = np.array([[0, 1, 1, 1, 1], [1, 0, 2, 2**0.5, 2**0.5], [1, 2, 0, 2**0.5, 2**0.5]]) / 2**0.5
    for agent in range(3):
        np.testing.assert_allclose(np.array(model.ground_metric)[agent, :3], table, atol=1e-6)


def test_the_listeners_table_says_how_far_its_moves_lead(tmp_path: Path) -> None:
    model: Any = METRIC_TASKS["speaker-listener"].job("moves", 0, tmp_path).build()
    assert model.layout.possible_agents == ("speaker_0", "listener_0")
    speaker, listener = np.array(model.ground_metric)
    np.testing.assert_array_equal(speaker, 1.0 - np.eye(5))
    # mpe2's order: stay, left, right, down, up.
    steps = [[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]]
    np.testing.assert_allclose(listener, environment_distances([steps])[0], atol=1e-4)


def test_random_play_draws_from_each_agents_own_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []

    def follow(policy: Any, env: Any, **options: Any) -> Any:
        drawn.extend(policy(np.zeros((16, 11))) for _ in range(50))
        return type("Played", (), {"episode_agent_returns": np.zeros((1, 2))})

    monkeypatch.setattr(played, "evaluate_team", follow)
    played.play(METRIC_TASKS["speaker-listener"].job("ippo", 0, tmp_path), None, 1)
    actions = np.stack(drawn)
    assert set(actions[:, 0::2].flat) == {0, 1, 2}
    assert set(actions[:, 1::2].flat) == {0, 1, 2, 3, 4}


def test_the_command_trains_both_tasks_and_trains_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["wmatrpo-metric", "--train", "--seeds", "1", "-n", "4000", "--eval-episodes", "8", "--jobs", "1"]
    arguments += ["--out", str(tmp_path)]
    plots.main([*arguments, "--tables", str(tmp_path / "tables.md")])
    text = (tmp_path / "tables.md").read_text()
    for task, comparison in METRIC_TASKS.items():
        assert (tmp_path / "runs" / task / "moves-seed0.npz").is_file()
        assert all(text.count(f"| {method.label} | 1 | -") == len(METRIC_TASKS) for method in comparison.methods.values())
    assert text.count("| uniformly random | - | - | -") == 2

    def refuse(job: Job) -> Any:
        raise AssertionError(f"{job} was trained again")

    monkeypatch.setattr(Job, "build", refuse)
    capsys.readouterr()
    plots.main([*arguments, "--tasks", "navigation"])
    assert "speaker" not in capsys.readouterr().out
