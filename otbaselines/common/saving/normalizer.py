"""Running statistics of ``VecNormalize`` as ``.npz``: its own ``save`` writes a pickle, which a download must not be."""

from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from otbaselines.common.saving.archive import atomic_write

FILE_NAME = "vecnormalize.npz"
_SETTINGS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon")
_MOMENTS = ("mean", "var", "count")


def save_normalizer(normalizer: VecNormalize, path: str | Path) -> None:
    """
    Write the statistics and settings of a normaliser, whole or not at all.

    :param normalizer: the wrapper
    :param path: the file; its folder must exist
    :raises ValueError: if observations are dictionaries, whose statistics have no single array
    """
    # Without normalised observations the wrapper has no such attribute.
    obs_rms = normalizer.obs_rms if normalizer.norm_obs else None
    if isinstance(obs_rms, dict):
        raise ValueError("the statistics of dictionary observations cannot be stored; normalise a flat observation")
    arrays: dict[str, Any] = {name: getattr(normalizer, name) for name in _SETTINGS}
    for prefix, statistics in (("obs", obs_rms), ("ret", normalizer.ret_rms)):
        if statistics is not None:
            arrays.update({f"{prefix}_{name}": getattr(statistics, name) for name in _MOMENTS})
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def load_normalizer(venv: VecEnv, path: str | Path, *, training: bool) -> VecNormalize:
    """
    Wrap an environment in a normaliser with stored statistics.

    :param venv: the environment to wrap
    :param path: what :func:`save_normalizer` wrote
    :param training: go on learning the statistics, and normalise rewards; neither is wanted for an evaluation
    :return: the wrapper
    """
    with np.load(path, allow_pickle=False) as stored:
        settings = {name: stored[name].item() for name in _SETTINGS}
        if not training:
            settings["norm_reward"] = False
        normalizer = VecNormalize(venv, training=training, **settings)
        for prefix in ("obs", "ret"):
            if f"{prefix}_mean" in stored:
                statistics: RunningMeanStd = getattr(normalizer, f"{prefix}_rms")
                statistics.mean, statistics.var = stored[f"{prefix}_mean"], stored[f"{prefix}_var"]
                statistics.count = stored[f"{prefix}_count"].item()
    return normalizer


class SaveNormalizer(BaseCallback):
    """
    Write the normaliser's statistics each time it is called, if the training has one.

    :param folder: where ``vecnormalize.npz`` goes
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)

    def _on_step(self) -> bool:
        normalizer = self.model.get_vec_normalize_env()
        if normalizer is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_normalizer(normalizer, self.folder / FILE_NAME)
        return True
