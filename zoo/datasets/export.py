"""Data sets as Minari keeps them, for every other library that reads Minari."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from otbaselines import OfflineDataset
from otbaselines.common.datasets.hdf5 import optional_module
from zoo.datasets.references import Reference


def episode_slices(data: OfflineDataset) -> list[slice]:
    """
    :param data: any data set
    :return: the rows of each episode, whole or not, in order
    """
    ends = (data.terminations | data.truncations).cpu().numpy()
    following, seen = data.next_observations[:-1], data.observations[1:]
    continues = (following == seen).flatten(1).all(1).cpu().numpy()
    same = (data.episodes[:-1] == data.episodes[1:]) & ~ends[:-1] & continues
    starts = np.flatnonzero(np.append(True, ~same))
    return [slice(int(start), int(stop)) for start, stop in zip(starts, np.append(starts[1:], len(data)), strict=True)]


@contextmanager
def minari_root(root: Path) -> Iterator[None]:
    """
    :param root: where Minari keeps its data sets inside the block
    """
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def export_minari(
    data: OfflineDataset, dataset_id: str, root: Path, env_id: str, description: str, scale: Reference | None
) -> None:
    """
    Write a data set for Minari, replacing one of the same id.

    :param data: any data set
    :param dataset_id: such as ``otbaselines/hopper/medium-v0``
    :param root: folder of data sets, ``MINARI_DATASETS_PATH`` for those who read it
    :param env_id: of Gymnasium, in which the data were recorded
    :param description: what they are, in a sentence
    :param scale: of normalised returns
    """
    minari = optional_module("minari")
    buffer_class = optional_module("minari.data_collector").EpisodeBuffer
    observations, actions = (
        array.cpu().numpy().astype(space.dtype)
        for array, space in ((data.observations, data.observation_space), (data.actions, data.action_space))
    )
    last = data.next_observations.cpu().numpy().astype(data.observation_space.dtype)
    flags = {name: getattr(data, name).cpu().numpy() for name in ("rewards", "terminations", "truncations")}

    def episode(number: int, rows: slice) -> Any:
        return buffer_class(
            id=number,
            observations=np.concatenate([observations[rows], last[rows.stop - 1 : rows.stop]]),
            actions=actions[rows],
            infos={},
            **{name: values[rows].tolist() for name, values in flags.items()},
        )

    episodes = [episode(number, rows) for number, rows in enumerate(episode_slices(data))]
    # A writer that was killed leaves half a data set, which Minari would not overwrite.
    if (root / dataset_id).is_dir():
        shutil.rmtree(root / dataset_id)
    root.mkdir(parents=True, exist_ok=True)
    scores = {} if scale is None else {"ref_min_score": scale.random, "ref_max_score": scale.expert}
    with minari_root(root.resolve()), warnings.catch_warnings():
        # It warns of metadata that are missing, such as the authors' e-mail.
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
            env=env_id,
            eval_env=env_id,
            algorithm_name="SAC",
            author="The otbaselines contributors",
            description=description,
            data_format="hdf5",
            **scores,
        )
