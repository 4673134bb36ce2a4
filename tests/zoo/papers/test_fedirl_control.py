"""The Gymnasium part of the FedIRL paper, and its reward maps: what is judged, what is kept, what is drawn."""

import json

import numpy as np
import pytest

from otbaselines.envs import client_variants
from otbaselines.fedirl import demonstrate
from zoo import plots
from zoo.papers.fedirl import control, maps
from zoo.papers.fedirl.control import ControlJob, ControlResult, finished, paired_returns, return_of, returns_table


class Leaning:
    """Pushes to the side to which the pole leans."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.array(int(observation[2] > 0)), None


@pytest.mark.parametrize("index", [0, 3])
def test_an_episode_played_again_has_the_return_of_its_length(index):
    # CartPole pays one for each step.
    env = client_variants.make("CartPole-v1", index)
    (episode,) = demonstrate(Leaning(), env, 1, seed=5)
    assert return_of("CartPole-v1", index, episode, 5) == len(episode) > 20


def test_a_seed_is_computed_once_and_all_rewards_are_judged_in_the_same_environment(tmp_path, monkeypatch, capsys):
    tiny = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
    changes = {
        "n_copies": 2,
        "n_demonstrations": 1,
        "n_centers": 6,
        "lattice": [2, 2, 3, 2, 2],
        "irl_iterations": 1,
        "irl_timesteps": 32,
    }
    changes |= {"n_timesteps": 32, "learner_kwargs": tiny, "expert": {"n_timesteps": 32, "kwargs": tiny}}
    entry = control.entry_of("CartPole-v1") | changes
    monkeypatch.setattr(
        control, "entry_of", lambda task, variant=None: entry | ({"normalize_reward": False} if variant else {})
    )
    monkeypatch.setattr(control, "N_CLIENTS", 2)
    monkeypatch.setattr(control, "N_EVALUATIONS", 2)
    folder = tmp_path / "runs"
    arguments = ["--sizes", "--weak", "--tasks", "CartPole-v1", "--seeds", "1", "--out", str(folder)]
    plots.main(
        ["fedirl-paper", "--train", *arguments, "--tables", str(tmp_path / "tables.md"), "--curves", str(tmp_path / "c.png")]
    )
    text = (tmp_path / "tables.md").read_text()
    assert text in capsys.readouterr().out
    assert "| CartPole-v1 | 1 |" in text
    assert (tmp_path / "c.png").stat().st_size > 10_000
    path = folder / "CartPole-v1_seed0.json"
    kept = json.loads(path.read_text())
    assert set(kept["returns"]) == set(kept["curves"]) == set(control.METHODS)
    # The demonstrators are there and are not trained again: the same seed gives the same result.
    path.unlink()
    assert finished(ControlJob("CartPole-v1", 0), folder, train=False) is None
    assert finished(ControlJob("CartPole-v1", 0), folder, train=True) == ControlResult(**kept)
    # A variant of the settings is another run.
    assert finished(ControlJob("CartPole-v1", 0, "paper"), folder, train=True).returns.keys() == kept["returns"].keys()
    assert (folder / "CartPole-v1_paper_seed0.json").is_file()
    assert set(control.read_entry("fedirl", "CartPole-v1", variants=["paper"])) == set(
        control.read_entry("fedirl", "CartPole-v1")
    )


def test_tables_hold_means_and_paired_differences():
    seeds = [ControlResult({name: 10.0 * i + seed for i, name in enumerate(control.METHODS)}, 99.0) for seed in range(3)]
    (row,) = returns_table({"CartPole-v1": seeds}).rows
    assert row[:3] == ("CartPole-v1", "3", "99")
    assert row[4].startswith("11 ±")
    (row,) = paired_returns({"CartPole-v1": seeds}).rows
    assert [cell.split(" ")[0] for cell in row[1:]] == ["+10", "-10", "-20", "-30"]


def test_the_mean_of_a_learning_curve_leaves_out_parts_in_which_nothing_ended():
    seeds = [ControlResult({}, 9.0, 0.0, {name: [None, 2.0 * i, 4.0 * i] for i, name in enumerate(control.METHODS)})] * 2
    (row,) = returns_table({"CartPole-v1": seeds}, training=True).rows
    assert [cell.split(" ")[0] for cell in row[3:]] == ["0", "3", "6", "9", "12"]
    (row,) = paired_returns({"CartPole-v1": seeds}, training=True).rows
    assert [cell.split(" ")[0] for cell in row[1:]] == ["+3", "-3", "-6", "-9"]


def test_every_map_is_highest_at_the_goal_and_the_figure_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "SIZE", 5)
    monkeypatch.setattr(maps, "N_EPISODES", 10)
    world, found = maps.reward_maps(0, size=5, n_clients=2)
    assert set(found) == {"one client alone", *control.FUSIONS}
    for each in found.values():
        assert (float(each.min()), float(each.max())) == (0.0, 1.0)
        assert float(each[world.goal]) > float(each[0, 0])
    monkeypatch.setattr(maps, "reward_maps", lambda seed: (world, found))
    maps.draw_maps(tmp_path / "maps.png")
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
