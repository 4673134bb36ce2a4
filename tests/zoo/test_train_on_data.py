"""The command line of learners from recorded data, from the file to pictures."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from otbaselines import OfflineDataset
from zoo.enjoy import enjoy
from zoo.plots import main as plots
from zoo.train import train

ENV = "Pendulum-v1"


class Pushing:
    """A torque by the angular speed, so that there is something to clone."""

    def predict(self, observation, deterministic=False):
        return np.clip(observation[2:] / 4, -2, 2), None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pushing.npz"
    OfflineDataset.from_agent(Pushing(), ENV, n_episodes=4, seed=0).save(path)
    return path


def _train(dataset: Path, folder: Path, *arguments: str, algo: str = "bc") -> Path:
    common = ["--algo", algo, "--env", ENV, "-f", str(folder), "--seed", "0", "--device", "cpu", "--log-interval", "-2"]
    return train([*common, "--dataset", str(dataset), "-params", "policy_kwargs.net_arch:[16]", *arguments])


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    evaluations = ("--eval-freq", "20", "--eval-episodes", "2", "--n-eval-envs", "2", "--save-freq", "20")
    _train(dataset, folder, "-n", "40", "--verbose", "0", *evaluations)
    return folder


def test_a_run_leaves_agent_evaluations_and_a_learning_curve(trained, dataset):
    run = trained / "bc" / f"{ENV}_1"
    names = {path.name for path in run.iterdir() if path.is_file()}
    expected = {f"{ENV}.zip", "best_model.zip", "evaluations.npz", "learning_curve.png"}
    assert names == expected | {"rl_model_20_steps.zip", "rl_model_40_steps.zip"}
    with np.load(run / "evaluations.npz", allow_pickle=False) as evaluations:
        # Gradient steps, whatever the number of copies that play.
        assert evaluations["timesteps"].tolist() == [20, 40]
        assert evaluations["results"].shape == (2, 2)
    with Image.open(run / "learning_curve.png") as picture:
        assert picture.size[0] > 500
    assert yaml.safe_load((run / ENV / "config.yml").read_text())["dataset"] == str(dataset)
    assert yaml.safe_load((run / ENV / "status.yml").read_text()) == {"status": "finished", "num_timesteps": 40}


def test_enjoy_needs_no_data_and_says_the_normalised_return(trained, tmp_path, capsys):
    common = ["--algo", "bc", "--env", ENV, "-f", str(trained), "--device", "cpu"]
    result = enjoy([*common, "-n", "2", "--render-dir", str(tmp_path / "pictures"), "--max-frames", "2"])
    printed = capsys.readouterr().out
    assert "finished after 40 steps" in printed
    # Random actions earn -1230.65 and the expert -136.33.
    expected = 100 * (result.team_return + 1230.65) / (1230.65 - 136.33)
    assert f"normalised   {expected:10.1f} (own runs" in printed
    assert (tmp_path / "pictures" / "episode.gif").is_file()


def test_what_was_learned_is_said_at_the_end_and_what_is_learned_from_at_the_start(dataset, tmp_path, capsys):
    _train(dataset, tmp_path, "-n", "5", "--eval-freq", "5", "--eval-episodes", "1", "--n-eval-envs", "1")
    printed = capsys.readouterr().out
    assert "transitions     800 on cpu" in printed
    assert "last return" in printed
    assert "after 5 gradient steps" in printed
    assert "normalised" in printed


def test_a_run_without_evaluations_has_no_curve(dataset, tmp_path):
    run = _train(dataset, tmp_path, "-n", "3", "--eval-freq", "-1", "--verbose", "0")
    assert not (run / "learning_curve.png").exists()


def test_a_run_goes_on_with_its_data(trained, dataset, tmp_path):
    agent = trained / "bc" / f"{ENV}_1" / f"{ENV}.zip"
    run = _train(dataset, tmp_path, "-n", "10", "--eval-freq", "-1", "--verbose", "0", "-i", str(agent))
    assert yaml.safe_load((run / ENV / "status.yml").read_text())["num_timesteps"] == 50


def test_learning_curves_of_several_runs_are_drawn_together(trained, tmp_path, capsys):
    plots(["learning-curve", "--algo", "bc", "--env", ENV, "-f", str(trained), "--out", str(tmp_path / "curve.png")])
    assert "Drew 1 runs" in capsys.readouterr().out


@pytest.mark.parametrize("algo", ["iql", "qdot"])
def test_the_other_learners_train_by_their_entries(algo, dataset, tmp_path):
    run = _train(dataset, tmp_path, "-n", "2", "--eval-freq", "-1", "--verbose", "0", algo=algo)
    assert (run / f"{ENV}.zip").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "bc"], "bc learns from recorded data: name them by --dataset"),
        (["--algo", "ippo", "--dataset", "x.npz"], "--dataset is for qdot, iql and bc"),
        (["--algo", "bc", "--dataset", "none.npz"], "none.npz"),
        (["--algo", "bc", "--dataset", "{}", "--env", "MountainCarContinuous-v0"], "recorded with the observation space"),
        (["--algo", "bc", "--dataset", "{}", "-params", "normalize:True"], "`normalize_observations`, taken from the data"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(arguments, message, dataset, tmp_path, capsys):
    arguments = [str(dataset) if argument == "{}" else argument for argument in arguments]
    with pytest.raises(SystemExit, match="2"):
        train(["--env", ENV, *arguments, "-f", str(tmp_path / "logs"), "--verbose", "0"])
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "logs").exists()
