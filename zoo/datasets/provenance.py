"""What a folder was made with, so that nobody goes on in it with something else, or writes the wrong thing on a card."""

import json
from pathlib import Path
from typing import Any

from otbaselines.common.saving.archive import atomic_write

_FILE = "made_with.json"


def made_with(folder: Path) -> dict[str, Any] | None:
    """
    :param folder: of a training or of recordings
    :return: the seed and the settings that it was begun with; none where it does not say
    """
    path = folder / _FILE
    stored: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return stored


def check_made_with(folder: Path, settings: dict[str, Any]) -> None:
    """
    A folder that does not say what it was made with is let through; its cards tell so.

    :param folder: of a training or of recordings
    :param settings: with which it shall be gone on with, by name; what JSON can hold
    :raises ValueError: if it was begun with others
    """
    stored = made_with(folder)
    if stored is None:
        return
    asked = json.loads(json.dumps(settings))
    different = [name for name in (stored | asked) if stored.get(name) != asked.get(name)]
    if different:
        parts = (f"{name} {_text(stored.get(name))}, not {_text(asked.get(name))}" for name in different)
        raise ValueError(f"{str(folder)!r} was begun with {'; '.join(parts)}; give what it was begun with, or another --out")


def begin(folder: Path, settings: dict[str, Any], *, is_new: bool) -> None:
    """
    Write down what a folder is made with when it is begun, and compare when it is gone on with.

    :param folder: that exists
    :param settings: as for :func:`check_made_with`
    :param is_new: whether nothing has been made in it
    :raises ValueError: if it was begun with others
    """
    if not is_new:
        check_made_with(folder, settings)
        return
    with atomic_write(folder / _FILE) as file:
        file.write(json.dumps(settings, indent=1).encode())


def _text(value: Any) -> str:
    return json.dumps(value)
