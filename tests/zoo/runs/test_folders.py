"""Folders of runs: each run has its own, and how it ended can be read."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zoo.runs.folders import describe_run, new_folder, numbered_runs, run_name, write_yaml


def test_both_spellings_of_an_mpe_task_have_one_folder() -> None:
    assert run_name("mpe2/simple_spread_v3") == run_name("mpe2/simple_spread-v3") == "mpe2-simple_spread-v3"


def test_runs_are_ordered_by_number_and_strangers_are_left_out(tmp_path: Path) -> None:
    for name in ("task_10", "task_9", "task_09", "task_x", "other_1", "task_1_old"):
        (tmp_path / name).mkdir()
    (tmp_path / "task_3").touch()
    assert list(numbered_runs(tmp_path, "task")) == [9, 10]
    assert numbered_runs(tmp_path / "missing", "task") == {}


def test_every_one_of_many_at_once_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path / "wbc", "task"), range(40)))
    assert sorted(numbered_runs(tmp_path / "wbc", "task")) == list(range(1, 41))
    assert len(set(folders)) == 40


def test_a_file_in_the_way_takes_the_next_number(tmp_path: Path) -> None:
    (tmp_path / "task_1").touch()
    assert new_folder(tmp_path, "task").name == "task_2"


@pytest.mark.parametrize("text", ["", "[1, 2]", "status: finished", "status: x\nnum_timesteps: many", "a: [", None])
def test_a_run_without_a_readable_end_says_so(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "status.yml").write_text(text)
    assert describe_run(tmp_path) == "it says nothing about its end"


def test_the_end_of_a_run_is_told(tmp_path: Path) -> None:
    write_yaml(tmp_path / "name" / "status.yml", {"status": "interrupted", "num_timesteps": 2400})
    assert describe_run(tmp_path / "name") == "interrupted after 2,400 steps"
