"""Tables of the FedIRL paper: success against simulation, and the command that makes and keeps them."""

import json

import numpy as np
import pytest
import torch as th

from otbaselines.common.tabular import stack_models
from otbaselines.envs import gridworld
from zoo import plots
from zoo.papers.fedirl.gridworlds import WorldsJob, finished, run_worlds, success


def test_exact_success_is_that_of_played_episodes():
    world = gridworld.make(5, 1, slip=0.3)
    policy = th.as_tensor(gridworld.expert_policy(world))
    exact = success(stack_models([world.tabular_model.absorbing()]), policy.unsqueeze(0), world.max_steps)
    played = [each.success for each in gridworld.expert(world, 2000, seed=0)]
    assert 100 * np.mean(played) == pytest.approx(exact, abs=5 * 100 * 0.5 / np.sqrt(2000))


def test_a_seed_is_computed_once_and_read_again(tmp_path):
    job = WorldsJob(5, 3, 0)
    assert finished(job, tmp_path, train=False) is None
    one = finished(job, tmp_path, train=True)
    assert finished(job, tmp_path, train=False) == one
    assert run_worlds(job) == one
    # What is kept is what is read: another number in the file is another number in the table.
    path = tmp_path / f"{job.name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "expert": 12.5}))
    assert finished(job, tmp_path, train=True).expert == 12.5


def test_the_command_writes_both_tables(tmp_path, capsys):
    plots.main(
        f"fedirl-paper --train --seeds 2 --sizes 5 --weak --out {tmp_path / 'runs'} --tables {tmp_path / 'tables.md'}".split()
    )
    text = (tmp_path / "tables.md").read_text()
    assert text in capsys.readouterr().out
    assert text.count("| 5 x 5, 3 clients | 2 |") == 2
    assert "paired by seed" in text


def test_missing_results_and_bad_shares_are_told_in_one_line(tmp_path, capsys):
    for arguments, message in ((["--weak", "2"], "must be shares from 0 to 1"), ([], "compute them with --train")):
        with pytest.raises(SystemExit) as stop:
            plots.main(["fedirl-paper", "--out", str(tmp_path), *arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ['{"local": 1', '{"foo": 1}', "[]", "", "\x00", '{"local": {}, "seen": {}, "held_out": {}, "expert": NaN}']
)
def test_a_damaged_result_is_told_by_its_file(tmp_path, capsys, text):
    path = tmp_path / f"{WorldsJob(5, 3, 0).name}.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        plots.main(f"fedirl-paper --sizes 5 --weak --seeds 1 --out {tmp_path}".split())
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert str(path) in told
    assert "delete it, and compute it again" in told


def test_a_file_that_cannot_be_written_is_told_before_anything_is_computed(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "tables.md", tmp_path):
        with pytest.raises(SystemExit) as stop:
            plots.main(f"fedirl-paper --train --sizes 5 --weak --seeds 1 --out {tmp_path / 'runs'} --tables {target}".split())
        assert stop.value.code == 2
        assert str(tmp_path) in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()
