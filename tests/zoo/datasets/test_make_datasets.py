"""Data are made of what one training did, whether or not it was interrupted."""

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from recordings import recording
from stable_baselines3 import SAC

from otbaselines import OfflineDataset
from otbaselines.common.datasets.columns import COLUMNS
from zoo.datasets import make
from zoo.datasets.behaviour import (
    BUFFER,
    Checkpoint,
    Keeping,
    load_state,
    make_agent,
    read_checkpoints,
    train_behaviour,
    unusual_settings,
)
from zoo.datasets.export import episode_slices, export_minari, minari_root
from zoo.datasets.kinds import Choice, choose, random_return, record, replay
from zoo.datasets.references import Reference, reference

ENV = "Pendulum-v1"


@pytest.fixture(autouse=True)
def _short_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.datasets.kinds.EPISODES", 2)


OFTEN = Keeping(checkpoint_every=50, save_every=100, eval_episodes=1)


def _train(folder: Path, timesteps: int, keeping: Keeping = OFTEN, **settings: Any) -> int:
    # All actions are random, and no network is trained.
    said: list[str] = []
    settings = {"learning_starts": 10_000, **settings}
    return train_behaviour(ENV, timesteps, folder, report=said.append, keeping=keeping, **settings)


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


def test_every_checkpoint_plays_the_same_starts(training: Path) -> None:
    # No network was trained, and the most probable actions are no accident: returns differ only if the starts do.
    assert len({tuple(each.returns) for each in read_checkpoints(training)}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "was begun with seed 0, not 7; give what it was begun with, or another --out"),
        ({"learning_rate": 1e-3}, 'settings {.*}, not {.*"learning_rate": 0.001}'),
        ({"keeping": Keeping(70, 100, 1)}, "checkpoint_every 50, not 70"),
        ({"keeping": Keeping(50, 100, 2)}, "eval_episodes 1, not 2"),
    ],
)
def test_a_training_is_not_gone_on_with_as_another(training: Path, change: dict[str, Any], message: str) -> None:
    before = (training / BUFFER).read_bytes()
    with pytest.raises(ValueError, match=message):
        _train(training, 400, **change)
    assert (training / BUFFER).read_bytes() == before


def test_recordings_of_another_seed_or_training_are_not_taken(training: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoints(training)[0]
    record(ENV, training, checkpoint, tmp_path, size=1, seed=0)
    with pytest.raises(ValueError, match="was begun with seed 0, not 1"):
        record(ENV, training, checkpoint, tmp_path, size=1, seed=1)
    other = tmp_path / "other"
    _train(other, 50, seed=3)
    with pytest.raises(ValueError, match=r'training {.*"seed": 0.*}, not {.*"seed": 3'):
        record(ENV, other, checkpoint, tmp_path, size=1, seed=0)


def test_settings_that_are_not_sb3s_are_listed_with_sb3s_own() -> None:
    agent = SAC("MlpPolicy", ENV, device="cpu")
    ours = make_agent(ENV, 0, learning_rate=1e-3)
    listed = unusual_settings({"learning_rate": 1e-3})
    assert listed.keys() == {"learning_starts", "learning_rate", "policy_kwargs"}
    for name in ("learning_starts", "learning_rate"):
        assert listed[name] == (getattr(ours, name), getattr(agent, name))


def test_a_buffer_ahead_of_its_state_is_cut_even_when_full(tmp_path: Path) -> None:
    _train(tmp_path, 100, buffer_size=150)
    state = (tmp_path / "state.pt").read_bytes()
    _train(tmp_path, 150, buffer_size=150)
    (tmp_path / "state.pt").write_bytes(state)
    agent = make_agent(ENV, 0, buffer_size=150)
    load_state(agent, tmp_path)
    assert agent.replay_buffer is not None
    assert agent.replay_buffer.size() == 100


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
    assert "Unverified" not in card
    assert "learning_starts 500 (100 in SB3), " in card
    assert "learning_rate 0.001 (0.0003 in SB3)" in card
    capsys.readouterr()
    make.main([*arguments, "--kinds", "medium"])
    assert "medium is there already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        make.main([*arguments, "--kinds", "medium", "--seed", "7"])
    assert "was begun with seed 0, not 7" in capsys.readouterr().err
    # Of a longer training, the first 110 steps are all that a shorter command looks at.
    (tmp_path / "medium-replay.md").unlink()
    arguments[3] = "110"
    make.main([*arguments, "--kinds", "medium-replay", "--no-minari"])
    card = (tmp_path / "medium-replay.md").read_text()
    assert "trained by SB3's SAC for 110 environment steps" in card
    assert "--steps 110 " in card


def test_a_folder_that_does_not_say_its_seed_is_taken_and_the_card_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "random_return", lambda env_id: -1e9)
    arguments = ["--env", ENV, "--steps", "60", "--checkpoint-every", "60", "--eval-episodes", "1", "--size", "1"]
    arguments += ["--no-minari", "--out", str(tmp_path), "--kinds"]
    make.main([*arguments, "medium"])
    for part in ("behaviour", "recordings"):
        (tmp_path / part / "made_with.json").unlink()
    make.main([*arguments, "expert", "medium-replay", "--seed", "7"])
    assert "Unverified: the training in this folder" in (tmp_path / "medium-replay.md").read_text()
    assert "Unverified: the recordings" not in (tmp_path / "medium-replay.md").read_text()
    assert "Unverified: the recordings in this folder" in (tmp_path / "expert.md").read_text()


def _card(arguments: str, trained: int) -> str:
    """A card of agents between random actions at -1000 and an expert at 0."""
    args = make.make_parser().parse_args(shlex.split(arguments))
    medium, expert = Checkpoint(100, [-700.0, -600.0], 0.0), Checkpoint(200, [-110.0, -90.0], 0.0)
    choice = Choice(medium, expert, Reference(-1000.0, 0.0, "toy"))
    return make.card(args, "medium", OfflineDataset(**recording()), choice, trained)


def test_the_share_on_a_card_is_the_medium_agents() -> None:
    # From -1000 to 0, -650 is 35 %; the expert's -100 would be 90 %.
    assert "from -1000.0 to 0.0 (toy), at 35.0 %" in _card("--steps 200 --checkpoint-every 100 --size 9 --out x", 200)


@pytest.mark.parametrize("limit", ["", " --max-minutes 2.5"])
def test_the_command_on_a_card_is_the_one_that_made_it(limit: str) -> None:
    given = f"--env {ENV} --steps 300 --checkpoint-every 100 --eval-episodes 3 --size 9 --seed 4 --out x --kinds medium{limit}"
    (printed,) = [line for line in _card(given, 300).splitlines() if line.startswith("python -m zoo.datasets.make ")]
    parse = make.make_parser().parse_args
    again = parse(shlex.split(printed)[3:])
    assert vars(again) == vars(parse(shlex.split(given))) | {"out": Path("data")}


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
