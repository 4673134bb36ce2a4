"""The command line, from training to pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from otbaselines import IPPO, make_vec_env
from otbaselines.common.saving import normalizer
from otbaselines.wbc import WBC
from zoo.enjoy import enjoy, render_episode
from zoo.train import train

ENV = "otbaselines/Navigation-v0"
NAME = "otbaselines-Navigation-v0"


def _train(folder: Path, *arguments: str, algo: str = "wbc") -> Path:
    return train(["--algo", algo, "--env", ENV, "-f", str(folder), "--seed", "3", "--verbose", "0", "-n", "2400", *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with every kind of file: 4,800 agent-steps, two rollouts of 32 copies."""
    folder = tmp_path_factory.mktemp("logs")
    _train(
        folder,
        *("-n", "4800", "--eval-freq", "2400", "--eval-episodes", "4", "--n-eval-envs", "2", "--save-freq", "2400"),
        *("-params", "normalize:True", "policy_kwargs.net_arch:[16]", "--env-kwargs", "max_episode_steps:10"),
    )
    return folder


def test_a_run_leaves_its_files_where_the_grammar_says(trained: Path) -> None:
    run = trained / "wbc" / f"{NAME}_1"
    expected = {f"{NAME}.zip", "best_model.zip", "evaluations.npz", "rl_model_2400_steps.zip", "rl_model_4800_steps.zip"}
    assert {path.name for path in run.iterdir() if path.is_file()} == expected
    parameters = {path.name for path in (run / NAME).iterdir()}
    assert parameters == {"config.yml", "args.yml", "command.txt", "status.yml", "vecnormalize.npz"}


def test_evaluations_are_counted_in_agent_steps(trained: Path) -> None:
    with np.load(trained / "wbc" / f"{NAME}_1" / "evaluations.npz", allow_pickle=False) as evaluations:
        # 2,400 agent-steps are 25 calls with 32 copies of 3 agents.
        assert evaluations["timesteps"].tolist() == [2400, 4800]
        assert evaluations["results"].shape == (2, 4)


def test_saved_configurations_are_plain_yaml(trained: Path) -> None:
    parameters = trained / "wbc" / f"{NAME}_1" / NAME
    config: dict[str, Any] = yaml.safe_load((parameters / "config.yml").read_text())
    assert config["env_kwargs"] == {"n_agents": 3, "team_reward": True, "max_episode_steps": 10}
    assert config["policy_kwargs"] == {"net_arch": [16]}
    assert yaml.safe_load((parameters / "args.yml").read_text())["seed"] == 3


def test_enjoy_evaluates_with_the_environment_of_the_training(trained: Path) -> None:
    result = enjoy(["--env", ENV, "-f", str(trained), "-n", "6", "--device", "cpu"])
    assert result.n_episodes == 6
    # The horizon is an argument of the environment, which only the stored configuration knows.
    assert result.lengths.tolist() == [10] * 6
    # With a team reward all agents earn the same: half of the variance of the sum would mean that slots were mixed up.
    assert len({round(value, 4) for value in result.agent_returns.values()}) == 1


def test_enjoy_is_reproducible_and_follows_the_normaliser(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--env", ENV, "-f", str(trained), "-n", "4", "--device", "cpu"]
    first = enjoy(arguments)
    np.testing.assert_array_equal(enjoy(arguments).episode_team_returns, first.episode_team_returns)
    real = normalizer.load_normalizer

    def shifted(*args: Any, **kwargs: Any) -> Any:
        wrapped = real(*args, **kwargs)
        wrapped.obs_rms.mean = wrapped.obs_rms.mean + 5.0
        return wrapped

    monkeypatch.setattr("zoo.enjoy.load_normalizer", shifted)
    assert not np.array_equal(enjoy(arguments).episode_team_returns, first.episode_team_returns)


@pytest.mark.parametrize("choice", [["--load-best"], ["--load-checkpoint", "2400"], ["--load-last-checkpoint"]])
def test_enjoy_loads_other_agents_of_the_run(trained: Path, choice: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    enjoy(["--env", ENV, "-f", str(trained), "-n", "2", "--stochastic", *choice])
    wanted = {"--load-best": "best_model", "--load-checkpoint": "_2400_", "--load-last-checkpoint": "_4800_"}[choice[0]]
    assert wanted in capsys.readouterr().out


def test_enjoy_draws_an_episode(trained: Path, tmp_path: Path) -> None:
    enjoy(["--env", ENV, "-f", str(trained), "-n", "1", "--render-dir", str(tmp_path / "pictures")])
    frames = sorted((tmp_path / "pictures").glob("frame_*.png"))
    # The start and nine of the ten steps; the tenth ends the episode.
    assert len(frames) == 10
    with Image.open(frames[0]) as first, Image.open(frames[-1]) as last:
        assert first.size == last.size
        assert np.asarray(first).std() > 5
        assert not np.array_equal(np.asarray(first), np.asarray(last))
    with Image.open(tmp_path / "pictures" / "episode.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 10


@pytest.mark.parametrize("backend", ["tensor", "parallel"])
def test_an_episode_of_one_step_is_drawn_after_it(backend: str) -> None:
    kwargs = {"n_agents": 2, "render_mode": "rgb_array"}
    env = make_vec_env("otbaselines/DifferentialGame-v0", 1, backend=backend, env_kwargs=kwargs)
    start, end = render_episode(IPPO("MlpPolicy", env, seed=0), env, deterministic=True, max_steps=5)
    # The disc of the joint action is there at the end alone.
    discs = [int((np.abs(frame.astype(int) - [213, 94, 0]).sum(-1) == 0).sum()) for frame in (start, end)]
    assert discs[0] == 0
    assert discs[1] > 50


def test_a_missing_run_is_named_with_the_remedy(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--exp-id", "7"], ["--algo", "ippo"]):
        with pytest.raises(SystemExit):
            enjoy(["--env", ENV, "-f", str(trained), *arguments])
        assert "python -m zoo.train" in capsys.readouterr().err


def test_training_continues_where_it_stopped(trained: Path, tmp_path: Path) -> None:
    agent = trained / "wbc" / f"{NAME}_1" / f"{NAME}.zip"
    run = _train(
        tmp_path,
        *("-i", str(agent), "--eval-freq", "-1", "--env-kwargs", "max_episode_steps:10", "-params", "normalize:True"),
    )
    before, after = WBC.load(str(agent)), WBC.load(str(run / f"{NAME}.zip"))
    assert before.num_timesteps == 4800
    assert after.num_timesteps == 7200
    with np.load(agent.parent / NAME / "vecnormalize.npz") as old, np.load(run / NAME / "vecnormalize.npz") as new:
        # 32 copies x 25 steps x 3 agents more, and the first observations of the new run.
        assert new["obs_count"] - old["obs_count"] == pytest.approx(2400 + 96)


def test_the_same_seed_trains_the_same_agent(tmp_path: Path) -> None:
    first, second = (_train(tmp_path / name, "--eval-freq", "-1") for name in ("a", "b"))
    parameters = [WBC.load(str(run / f"{NAME}.zip")).policy.state_dict() for run in (first, second)]
    for name, value in parameters[0].items():
        assert value.equal(parameters[1][name]), name


def test_runs_are_numbered(tmp_path: Path) -> None:
    runs = [_train(tmp_path, "--eval-freq", "-1", algo="ippo").name for _ in range(2)]
    assert runs == [f"{NAME}_1", f"{NAME}_2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "otbaselines/Navigaton-v0"], "Navigation-v0"),
        (["-params", "learning_rat:0.1"], "learning_rat"),
        (["-params", "batch_size:100000"], "batch_size"),
        (["--env-kwargs", "n_agents:0"], "n_agents"),
        (["--variant", "fast"], "fast"),
        (["-i", "missing.zip"], "missing.zip"),
        (["--conf-file", "missing.yml"], "missing.yml"),
    ],
)
def test_mistakes_are_named_and_leave_no_run(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _train(tmp_path / "logs", *arguments)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()
