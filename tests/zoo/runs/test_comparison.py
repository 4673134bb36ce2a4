"""Comparisons over several seeds, trained in processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def _living_members(group: int) -> list[str]:
    """Command names of the processes of a group, those that wait to be buried left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition(") ")
        except OSError:
            continue
        state, _, process_group = rest.split()[:3]
        if int(process_group) == group and state not in "ZX":
            found.append(name)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_an_interrupted_comparison_keeps_what_is_finished_and_leaves_no_process(tmp_path: Path) -> None:
    options = ["--train", "--seeds", "9", "-n", "12000", "--methods", "ippo", "--jobs", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "zoo.plots", "wbc-paper", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert [process.stdout.readline()[:9] for _ in range(2)] == ["0 of 9 ru", "ippo-seed"]
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM
        assert "the finished runs are kept" in output
        assert errors == ""
        # Python's own helper for shared resources ends by itself once its parent has.
        deadline = time.monotonic() + 10
        while _living_members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _living_members(process.pid) == []
    finally:
        if _living_members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    kept = {path.name for path in (tmp_path / "runs" / "homogeneous").iterdir()}
    assert {"ippo-seed0.npz", "ippo-seed0.zip"} <= kept
    # One was finished and two were in progress; the others were not begun.
    assert len(kept) < 2 * 5
    assert not any(name.endswith(".tmp") for name in kept)
