"""However a training ends, its agent is kept; real processes where signals are involved."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from otbaselines.wbc import WBC
from zoo.enjoy import enjoy
from zoo.runs.keeping import SIGNALS, Stopped, stop_signals
from zoo.train import train

NAME = "otbaselines-Navigation-v0"
ENDLESS = ["-n", "100000000", "--eval-freq", "-1", "-params", "policy_kwargs.net_arch:[8]", "n_envs:8"]


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "zoo.train", "-f", str(folder), "--device", "cpu", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the training has not started"
        time.sleep(0.05)


def _status(run: Path) -> dict[str, Any]:
    status: dict[str, Any] = yaml.safe_load((run / NAME / "status.yml").read_text())
    return status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_training_and_keeps_the_agent(number: signal.Signals, tmp_path: Path) -> None:
    process = _start(tmp_path, *ENDLESS, "--log-interval", "1")
    try:
        # Every iteration prints its figures.
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("total_timesteps" in line for line in lines)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    run = tmp_path / "wbc" / f"{NAME}_1"
    assert _status(run)["status"] == "interrupted"
    assert _status(run)["num_timesteps"] == WBC.load(run / f"{NAME}.zip").num_timesteps > 0
    assert "interrupted after" in errors
    assert "Traceback" not in errors


def test_runs_started_together_have_a_folder_each_and_all_keep_their_agents(tmp_path: Path) -> None:
    arguments = ["-n", "600", "--eval-freq", "-1", "--verbose", "0", "-params", "n_envs:8"]
    processes = [_start(tmp_path, *arguments, "--seed", str(seed)) for seed in range(3)]
    for process in processes:
        assert process.communicate(timeout=300)[1] == ""
        assert process.returncode == 0
    seeds = {WBC.load(tmp_path / "wbc" / f"{NAME}_{number}" / f"{NAME}.zip").seed for number in (1, 2, 3)}
    assert seeds == {0, 1, 2}
    assert len(list((tmp_path / "wbc").iterdir())) == 3


def test_an_error_inside_learn_keeps_the_agent_and_enjoy_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-f", str(tmp_path), "--seed", "0", "--verbose", "0", "-n", "4800", "--eval-freq", "-1", "--device", "cpu"]
    updates = []
    original = WBC.train

    def failing(self: WBC) -> None:
        original(self)
        updates.append(1)
        if len(updates) == 2:
            raise RuntimeError("the second update fails")

    with monkeypatch.context() as patch:
        patch.setattr(WBC, "train", failing)
        with pytest.raises(RuntimeError, match="second update"):
            train(arguments)
    run = tmp_path / "wbc" / f"{NAME}_1"
    assert _status(run) == {"status": "failed", "num_timesteps": 4800}
    assert "failed after 4,800 steps; the agent so far is in" in capsys.readouterr().err
    assert WBC.load(run / f"{NAME}.zip").num_timesteps == 4800
    # A run that was killed on the spot has no agent: the one before it is taken, and said to be.
    (tmp_path / "wbc" / f"{NAME}_2").mkdir()
    enjoy(["-f", str(tmp_path), "-n", "2", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "run 1 of 2" in printed
    assert "failed after 4,800 steps; passed over run 2 (it says nothing about its end)" in printed


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    run = train(["-f", str(tmp_path), "--seed", "0", "--verbose", "0", "-n", "2400", "--eval-freq", "-1"])
    assert _status(run) == {"status": "finished", "num_timesteps": 2400}


def test_signals_are_raised_inside_and_handled_as_before_outside() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    for number in SIGNALS:
        with pytest.raises(Stopped) as stopped, stop_signals():  # noqa: PT012
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert stopped.value.number == number
    with stop_signals(signal.SIG_IGN):
        for number in SIGNALS:
            os.kill(os.getpid(), number)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
