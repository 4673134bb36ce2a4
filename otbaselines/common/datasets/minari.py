"""Minari's data sets that are on this machine."""

from pathlib import Path
from typing import Any

import numpy as np

from otbaselines.common.datasets.columns import Array, Columns, Recording, check_spaces
from otbaselines.common.datasets.hdf5 import check_unpacked, declared_bytes, member, open_hdf5, optional_module


def minari_dataset(source: Any, label: str) -> Any:
    """
    Open a Minari data set. Nothing is downloaded, and the environment that it names is not built.

    :param source: an id, the folder of a data set, or a ``MinariDataset``
    :param label: what to call it in messages
    :return: the ``MinariDataset``
    :raises FileNotFoundError: if there is none of this id here
    :raises ValueError: if it is damaged
    """
    minari = optional_module("minari")
    if isinstance(source, minari.MinariDataset):
        return source
    folder = Path(source)
    if folder.is_dir():
        source = folder if (folder / "metadata.json").is_file() else folder / "data"
    try:
        return minari.MinariDataset(source) if isinstance(source, Path) else minari.load_dataset(str(source))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{label} is not on this machine, and no file of that name either; get it with `minari download {source}`, set "
            "MINARI_DATASETS_PATH to the folder that has it, or give the path of a .npz or .hdf5 file"
        ) from error
    except (ValueError, KeyError, TypeError, AssertionError, OSError) as error:
        raise ValueError(f"{label} cannot be opened by Minari ({str(error)[:200]}); download or record it again") from error


def read_minari(source: Any, max_bytes: int | None) -> Recording:
    """
    Read the episodes of a Minari data set. An observation is stored for each step and one more for the last, so that nothing
    has to be rebuilt.

    :param source: as for :func:`minari_dataset`
    :param max_bytes: as for :func:`~otbaselines.common.datasets.hdf5.check_unpacked`
    :return: the content
    :raises FileNotFoundError: if there is none of this id here
    :raises ValueError: if it is damaged, its spaces are no boxes, or it unpacks to too much
    """
    label = f"the Minari data set {str(getattr(source, 'id', source))!r}"
    dataset = minari_dataset(source, label)
    check_spaces(dataset.observation_space, dataset.action_space, label)
    return Recording(
        columns=_columns(dataset, label, max_bytes),
        label=label,
        name=str(dataset.id),
        observation_space=dataset.observation_space,
        action_space=dataset.action_space,
    )


def _columns(dataset: Any, label: str, max_bytes: int | None) -> Columns:
    if dataset.storage.FORMAT != "hdf5":
        # Only of HDF5 it is known here what reading will take, and that it stays within the file.
        raise ValueError(
            f"{label} is stored as {dataset.storage.FORMAT!r}; only Minari's usual format is read: record it with "
            "`data_format='hdf5'`"
        )
    path = Path(dataset.storage.data_path) / "main_data.hdf5"
    with open_hdf5(path, label) as file:
        groups = ((f"episode_{index}", member(file, f"episode_{index}", label)) for index in dataset.episode_indices)
        n_bytes = sum(_declared_in(group, name, label) for name, group in groups)
    check_unpacked(n_bytes, path, label, max_bytes)
    try:
        episodes = [_episode(each, number, label) for number, each in enumerate(dataset.iterate_episodes())]
    except (OSError, RuntimeError, KeyError, AssertionError, TypeError) as error:
        raise ValueError(f"{label} is damaged ({str(error)[:200]}); download or record it again") from error
    if not episodes:
        raise ValueError(f"{label} has no episodes")
    try:
        return Columns(**{name: np.concatenate([each[name] for each in episodes]) for name in episodes[0]})
    except ValueError as error:
        raise ValueError(f"{label} has episodes that do not go together ({error}); record it again") from error


def _declared_in(group: Any, name: str, label: str) -> int:
    """Everything below a group, infos included: Minari reads them all."""
    h5py = optional_module("h5py")
    if not isinstance(group, h5py.Group):
        return declared_bytes(group, name, label)
    return sum(_declared_in(member(group, key, label), f"{name}/{key}", label) for key in group)


def _episode(episode: Any, number: int, label: str) -> dict[str, Array]:
    seen, n = np.asarray(episode.observations), len(episode.rewards)
    if seen.ndim == 0 or len(seen) != n + 1 or len(episode.actions) != n or n == 0:
        raise ValueError(
            f"{label} has {len(seen) if seen.ndim else 0} observations and {len(episode.actions)} actions for the {n} steps "
            f"of episode {episode.id}, expected {n + 1} and {n}; record it again"
        )
    ended = bool(episode.terminations[-1] or episode.truncations[-1])
    flags = np.asarray(episode.terminations), np.asarray(episode.truncations)
    return {
        "observations": seen[:-1],
        "actions": np.asarray(episode.actions),
        "rewards": np.asarray(episode.rewards),
        "next_observations": seen[1:],
        "terminations": flags[0],
        "truncations": flags[1],
        "episodes": np.full(n, number if ended else -1, np.int64),
    }
