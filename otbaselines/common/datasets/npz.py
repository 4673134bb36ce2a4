"""Data sets as ``.npz`` without pickles: our own, and what others have put into such a file."""

import json
import pathlib
from typing import Any

import numpy.typing as npt
from gymnasium import spaces

from otbaselines.common.datasets.columns import COLUMNS, Columns, Recording, as_action_space, columns_from_d4rl
from otbaselines.common.datasets.replay import columns_from_buffer
from otbaselines.common.saving.archive import SavePath, describe
from otbaselines.common.saving.arrays import load_npz, save_npz
from otbaselines.common.saving.spaces import space_from_json, space_to_json

_KIND = "otbaselines.OfflineDataset"


def write_npz(
    path: SavePath, columns: Columns, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], name: str
) -> None:
    """
    Write a data set without compression, whole or not at all.

    :param path: a path, to which ``.npz`` is added where it is missing; or a binary file
    :param columns: of the data set
    :param observation_space: of the data set
    :param action_space: of the data set
    :param name: of the data set
    """
    both = {"observation_space": observation_space, "action_space": action_space}
    texts = {key: json.dumps(space_to_json(space)) for key, space in both.items()}
    save_npz(path, {"kind": _KIND, "name": name, **texts, **{key: getattr(columns, key) for key in (*COLUMNS, "episodes")}})


def read_npz(path: SavePath, action_space: Any, max_bytes: int | None) -> Recording:
    """
    Read what :func:`write_npz` wrote, a replay buffer that otbaselines saved, or D4RL's columns.

    :param path: a path, tried as it is and with ``.npz`` added; or a binary file
    :param action_space: of the environment, which a replay buffer needs
    :param max_bytes: what a compressed file may unpack to; without it compressed files are refused
    :return: the content
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is damaged, or holds something else
    """
    stored = load_npz(path, max_bytes=max_bytes)
    label, name = f"`path` {describe(path)!r}", pathlib.Path(describe(path)).stem
    kind = str(stored["kind"]) if "kind" in stored and stored["kind"].ndim == 0 else ""
    if kind == "ReplayBuffer":
        if action_space is None:
            raise ValueError(f"{label} is a replay buffer with scaled actions; pass the environment's `action_space`")
        columns = columns_from_buffer(stored, as_action_space(action_space, label), label, scaled_actions=True)
        return Recording(columns=columns, label=label, name=name)
    if kind != _KIND:
        return Recording(columns=columns_from_d4rl(stored, label), label=label, name=name)
    missing = {"name", "observation_space", "action_space", "episodes", *COLUMNS} - set(stored)
    if missing:
        raise ValueError(f"{label} lacks {sorted(missing)}; save it again")
    return Recording(
        columns=Columns(**{key: stored[key] for key in (*COLUMNS, "episodes")}),
        label=label,
        # It is printed, and a terminal obeys control characters.
        name="".join(letter for letter in str(stored["name"])[:200] if letter.isprintable()),
        observation_space=_space(stored["observation_space"], label),
        action_space=_space(stored["action_space"], label),
    )


def _space(stored: npt.NDArray[Any], label: str) -> spaces.Space[Any]:
    try:
        return space_from_json(json.loads(str(stored)))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{label} has a damaged space ({str(error)[:200]}); save it again") from error
