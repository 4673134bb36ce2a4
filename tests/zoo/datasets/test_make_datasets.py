"""Data are made of what one training did, whether or not it was interrupted."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch as th
from recordings import recording

from otbaselines import OfflineDataset
from otbaselines.common.datasets.columns import COLUMNS
from zoo.datasets import make
from zoo.datasets.behaviour import BUFFER, Checkpoint, Keeping, read_checkpoints, train_behaviour
from zoo.datasets.export import episode_slices, export_minari, minari_root
from zoo.datasets.kinds import choose, random_return, record, replay
from zoo.datasets.references import Reference, reference

ENV = "Pendulum-v1"


@pytest.fixture(autouse=True)
def _short_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.datasets.kinds.EPISODES", 2)


OFTEN = Keeping(checkpoint_every=50, save_every=100, eval_episodes=1)


def _train(folder: Path, timesteps: int, keeping: Keeping = OFTEN) -> int:
    # All actions are random, and no network is trained.
    said: list[str] = []
    return train_behaviour(ENV, timesteps, folder, report=said.append, keeping=keeping, learning_starts=10_000)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """250 steps, and 50 more in a second call."""
    folder = tmp_path_factory.mktemp("training")
    assert _train(folder, 250) == 250
    assert _train(folder, 300) == 300
    return folder


def test_a_training_that_is_over_is_not_trained_again(training: Path) -> None:
    before = (training / BUFFER).read_bytes()
    assert _train(training, 300) == 300
    assert (training / BUFFER).read_bytes() == before


def test_checkpoints_are_kept_with_the_returns_of_their_evaluation(training: Path) -> None:
    checkpoints = read_checkpoints(training)
    assert [each.timesteps for each in checkpoints] == [50, 100, 150, 200, 250, 300]
    assert all(len(each.returns) == 1 for each in checkpoints)
    assert {path.name for path in (training / "actors").iterdir()} == {f"{n:08d}.pt" for n in range(50, 301, 50)}


def test_the_replay_is_everything_that_was_seen_until_a_checkpoint(training: Path) -> None:
    data = replay(ENV, training, read_checkpoints(training)[-1])
    assert len(data) == 300
    # Episodes end after 200 steps, and where the training was interrupted: 250.
    assert data.truncations.nonzero().flatten().tolist() == [199, 249]
    assert data.episode_lengths().tolist() == [200, 50]
    assert not data.terminations.any()
    # Torques are between -2 and 2, and random ones come close to both.
    assert data.actions.abs().max() > 1.9
    part = replay(ENV, training, read_checkpoints(training)[1])
    assert all(th.equal(getattr(part, name), getattr(data, name)[:100]) for name in COLUMNS)


def test_a_training_that_was_killed_goes_on_from_its_last_saved_state(training: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    _train(folder, 100)
    state = (folder / "state.pt").read_bytes()
    _train(folder, 150)
    # As if the process had died between the buffer and the state.
    (folder / "state.pt").write_bytes(state)
    assert _train(folder, 200) == 200
    assert [each.timesteps for each in read_checkpoints(folder)] == [50, 100, 150, 200]
    data = replay(ENV, folder, read_checkpoints(folder)[-1])
    assert len(data) == 200
    assert data.truncations.nonzero().flatten().tolist() == [99]
    # Within an episode each row goes on where the one before it ended; what was seen after the saved state is gone.
    assert th.equal(data.next_observations[100:199], data.observations[101:])


def test_training_ends_when_its_time_is_over(tmp_path: Path) -> None:
    assert _train(tmp_path / "short", 500, Keeping(checkpoint_every=50, max_minutes=0.0)) == 1


def test_steps_beyond_the_buffer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`timesteps` must lie between 1 and 1000000, got 1000001"):
        _train(tmp_path, 1_000_001)


def test_medium_is_the_first_that_comes_about_a_third_of_the_way() -> None:
    means = [-1000.0, -800.0, -720.0, -300.0, -100.0, -200.0]
    checkpoints = [Checkpoint(10 * k, [mean - 5, mean + 5], 0.0) for k, mean in enumerate(means)]
    # From -1000 to -100, three tenths are -730.
    choice = choose(checkpoints, random=-1000.0)
    assert (choice.medium.mean_return, choice.expert.mean_return) == (-720.0, -100.0)
    # A task's own expert is the standard, here with -310, unless nobody comes so far.
    assert choose(checkpoints, -1000.0, Reference(-1000.0, 1300.0, "")).medium.mean_return == -300.0
    far = choose(checkpoints, -1000.0, Reference(-1000.0, 9000.0, ""))
    assert (far.medium.mean_return, far.standard.expert) == (-720.0, -100.0)
    with pytest.raises(ValueError, match="none of the 6 checkpoints is better than random actions"):
        choose(checkpoints, random=-50.0)


def test_random_actions_in_the_pendulum_earn_what_they_should() -> None:
    # 1,000 episodes of another seed earned -1230.7, with a standard deviation of 290 between episodes.
    assert abs(random_return(ENV, n_episodes=40, seed=5) + 1230.7) < 4 * 290 / np.sqrt(40)


def test_a_recording_does_not_depend_on_where_it_was_interrupted(training: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoints(training)[0]
    whole = record(ENV, training, checkpoint, tmp_path / "whole", size=401, seed=0)
    # Two episodes of 200 steps are one part.
    assert len(whole) == 800
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / f"{checkpoint.timesteps:08d}_0001.npz").unlink()
    again = record(ENV, training, checkpoint, tmp_path / "cut", size=401, seed=0)
    assert all(th.equal(getattr(whole, name), getattr(again, name)) for name in COLUMNS)
    # Samples, and not the same action in the same state.
    assert not th.equal(whole.observations[:400], whole.observations[400:])


# ------------------------------------------------------------------ Minari
def test_what_is_exported_to_minari_is_read_back(tmp_path: Path) -> None:
    pytest.importorskip("minari")
    columns = recording()
    # The last episode goes on after the recording.
    columns["truncations"][-1] = False
    data = OfflineDataset(**columns)
    for _ in range(2):
        # The second one replaces the first, which may be half of one.
        export_minari(data, "toys/walk-v0", tmp_path, ENV, "steps", reference(ENV))
    before = os.environ.get("MINARI_DATASETS_PATH")
    with minari_root(tmp_path):
        loaded = _raw()
    assert os.environ.get("MINARI_DATASETS_PATH") == before
    for name in COLUMNS:
        np.testing.assert_array_equal(loaded[name], getattr(data, name), err_msg=name)


def _raw() -> dict[str, np.ndarray]:
    """As Minari itself reads it: the spaces of the toy are not the environment's."""
    import minari

    episodes = list(minari.load_dataset("toys/walk-v0").iterate_episodes())
    columns = {name: np.concatenate([getattr(each, name) for each in episodes]) for name in COLUMNS if name[:4] != "next"}
    columns["observations"] = np.concatenate([each.observations[:-1] for each in episodes])
    columns["next_observations"] = np.concatenate([each.observations[1:] for each in episodes])
    return columns


def test_episodes_are_cut_where_they_end_or_do_not_go_on() -> None:
    columns = recording((3, 1, 4), (True, False, False))
    columns["truncations"][:] = False
    data = OfflineDataset(**columns)
    # Without flags, the second and third are known by observations that do not follow from each other.
    assert [(rows.start, rows.stop) for rows in episode_slices(data)] == [(0, 3), (3, 4), (4, 8)]


# ------------------------------------------------------------------ the command
def test_the_command_makes_all_kinds_with_cards_and_makes_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minari")
    # Whatever was learned in so few steps counts as better than that.
    monkeypatch.setattr(make, "random_return", lambda env_id: -1e9)
    arguments = ["--env", ENV, "--steps", "220", "--checkpoint-every", "110", "--size", "100", "--out", str(tmp_path)]
    arguments += ["--eval-episodes", "1"]
    make.main(arguments)
    lengths = {kind: len(OfflineDataset.load(tmp_path / f"{kind}.npz")) for kind in make.KINDS}
    # A recording has two whole episodes of 200 steps at least; the replay has what the first checkpoint had seen.
    assert lengths == {"medium": 400, "medium-replay": 110, "expert": 400, "medium-expert": 800}
    with minari_root(tmp_path / "minari"):
        stored = OfflineDataset.load("otbaselines/pendulum/medium-v0")
    own = OfflineDataset.load(tmp_path / "medium.npz")
    assert all(th.equal(getattr(stored, name), getattr(own, name)) for name in COLUMNS)
    assert (stored.observation_space, stored.action_space) == (own.observation_space, own.action_space)
    card = (tmp_path / "medium-expert.md").read_text()
    assert "# Pendulum-v1, medium-expert" in card
    assert "4 whole" in card
    assert "seed 0" in card
    assert str(tmp_path) not in card
    assert "Shortened" not in card
    capsys.readouterr()
    make.main([*arguments, "--kinds", "medium"])
    assert "medium is there already" in capsys.readouterr().out


def test_a_shortened_training_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "random_return", lambda env_id: -1e9)
    arguments = ["--env", ENV, "--steps", "100", "--checkpoint-every", "50", "--out", str(tmp_path), "--eval-episodes", "1"]
    make.main([*arguments, "--kinds"])
    arguments[3] = "5000"
    make.main([*arguments, "--kinds", "medium-replay", "--no-minari", "--max-minutes", "0"])
    assert "Shortened: training ended after 101 of 5,000 steps." in (tmp_path / "medium-replay.md").read_text()


@pytest.mark.parametrize(("env_id", "message"), [("Nonsense-v0", "doesn't exist"), ("CartPole-v1", "Box")])
def test_an_environment_that_cannot_be_recorded_is_told_in_one_line(
    tmp_path: Path, env_id: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        make.main(["--env", env_id, "--out", str(tmp_path), "--steps", "100"])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_normalised_returns_are_d4rls() -> None:
    hopper = reference("Hopper-v5")
    assert hopper is not None
    # Half of the way between the two returns that D4RL has for this task.
    np.testing.assert_allclose(hopper.normalized([-20.272305, 3234.3, (3234.3 - 20.272305) / 2]), [0.0, 100.0, 50.0])
    assert reference("otbaselines/Navigation-v0") is None


def test_stored_returns_are_plain_json(training: Path) -> None:
    rows = json.loads((training / "returns.json").read_text())
    assert rows[0].keys() == {"timesteps", "returns", "seconds"}
