"""Where ``zoo.train`` keeps its runs, ``<folder>/<algo>/<env>_<number>/``, and what is known about each."""

import re
from pathlib import Path
from typing import Any

import yaml

from otbaselines.common.saving.archive import atomic_write
from zoo.config.entries import canonical, read_yaml

STATUS = "status.yml"


def run_name(env_id: str) -> str:
    """An environment's name in files."""
    return canonical(env_id).replace("/", "-")


def numbered_runs(parent: Path, name: str) -> dict[int, Path]:
    """
    :param parent: ``<folder>/<algo>``
    :param name: of the environment in files
    :return: the folders of the runs by number, in ascending order
    """
    pattern = re.compile(re.escape(name) + r"_([1-9]\d*)")
    found = [(pattern.fullmatch(path.name), path) for path in (parent.iterdir() if parent.is_dir() else ())]
    return dict(sorted((int(match[1]), path) for match, path in found if match and path.is_dir()))


def new_folder(parent: Path, name: str) -> Path:
    """
    Make the folder of a run, which is its own even where several start at the same moment.

    :param parent: ``<folder>/<algo>``
    :param name: of the environment in files
    :return: the folder, with the next free number
    :raises OSError: if nothing can be written there
    """
    parent.mkdir(parents=True, exist_ok=True)
    number = max(numbered_runs(parent, name), default=0) + 1
    while True:
        folder = parent / f"{name}_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def write_yaml(path: Path, values: Any) -> None:
    """Write plain values, whole or not at all, into a file whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(yaml.safe_dump(values, sort_keys=True).encode())


def describe_run(parameters: Path) -> str:
    """
    Say how a run ended.

    :param parameters: the run's folder of parameters
    :return: such as ``finished after 2,400 steps``
    """
    try:
        status = read_yaml(parameters / STATUS)
        return f"{status['status']} after {int(status['num_timesteps']):,} steps"
    except (ValueError, KeyError, TypeError):
        return "it says nothing about its end"
