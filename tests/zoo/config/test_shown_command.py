"""Tables say how they are made: the command that was typed, without what belongs to one machine."""

import argparse
import shlex
from pathlib import Path

import pytest

from zoo import plots
from zoo.config.command import shown_command
from zoo.drawing.tables import Table, show_tables

TYPED = "qdot --train --datasets m.npz --alphas 0.31 --methods qdot --env Pendulum-v1 -params policy_kwargs.net_arch:[64]"


def test_where_files_go_and_how_many_processes_there_are_is_not_shown() -> None:
    words = [*shlex.split(TYPED), "--out", "/some/where", "--tables=/some/table.md", "--jobs", "2"]
    shown = shown_command("zoo.plots", words, trains=True)
    assert "some" not in shown
    assert "jobs" not in shown
    typed, again = (plots.parser_of_figures().parse_args(shlex.split(text)) for text in (TYPED, shown.split(" ", 3)[3]))
    assert vars(again) == vars(typed)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("qdot --datasets /data/medium.npz runs/mixed.npz", "qdot --train --datasets medium.npz runs/mixed.npz"),
        ("wbc-transport --seeds 2 --tuned=/here/tuned.yml --train", "wbc-transport --train --seeds 2 --tuned=tuned.yml"),
        (
            "qdot -params env_kwargs.file:/home/me/ant.xml --tuned ../../me/t.yml",
            "qdot --train -params env_kwargs.file:ant.xml --tuned t.yml",
        ),
        ("wbc-agents", "wbc-agents --train"),
        ("wbc-agents --out", "wbc-agents --train"),
    ],
)
def test_absolute_paths_lose_their_folders_and_training_is_said(typed: str, shown: str) -> None:
    assert shown_command("zoo.plots", typed.split(), trains=True) == f"python -m zoo.plots {shown}"


def test_words_are_quoted_as_a_shell_needs_it() -> None:
    words = ["qdot", "--datasets", "my data.npz", "-params", "net_arch:[64, 64]"]
    shown = shown_command("zoo.plots", words)
    assert shlex.split(shown) == ["python", "-m", "zoo.plots", *words]


def test_what_does_not_train_is_not_told_to() -> None:
    assert shown_command("zoo.theory", ["rate", "--seeds", "3"]) == "python -m zoo.theory rate --seeds 3"


def test_tables_are_printed_and_kept_under_their_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(command="python -m zoo.plots x", tables=tmp_path / "deep" / "t.md")
    show_tables([Table("title", ("a", "b"), [("1", "2")]), "## words\n"], args)
    text = (tmp_path / "deep" / "t.md").read_text()
    assert text == "`python -m zoo.plots x`\n\n**title**\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n## words\n"
    assert text in capsys.readouterr().out
    show_tables([], argparse.Namespace(command="c", tables=None))
    assert capsys.readouterr().out == "`c`\n\n"
