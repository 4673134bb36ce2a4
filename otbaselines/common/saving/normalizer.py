"""Running statistics of ``VecNormalize`` as ``.npz``: its own ``save`` writes a pickle, which a download must not be."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from otbaselines.common.saving.archive import naming_damage
from otbaselines.common.saving.arrays import load_npz, save_npz
from otbaselines.common.saving.description import check_arguments

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
    save_npz(path, arrays)


def load_normalizer(venv: VecEnv, path: str | Path, *, training: bool) -> VecNormalize:
    """
    Wrap an environment in a normaliser with stored statistics.

    :param venv: the environment to wrap
    :param path: what :func:`save_normalizer` wrote
    :param training: go on learning the statistics, and normalise rewards; neither is wanted for an evaluation
    :return: the wrapper
    :raises ValueError: if the file is damaged, or its statistics do not fit the observations
    """
    stored = load_npz(path)
    with naming_damage(repr(str(path)), (), "its statistics"):
        settings = {name: stored[name].item() for name in _SETTINGS}
        check_arguments(settings, VecNormalize)
        if not (settings["clip_obs"] > 0 and settings["clip_reward"] > 0 and 0 < settings["epsilon"] < math.inf):
            raise ValueError("`clip_obs`, `clip_reward` and `epsilon` must be positive, and `epsilon` finite")
        if not 0 <= settings["gamma"] <= 1:
            raise ValueError(f"`gamma` must be between 0 and 1, got {settings['gamma']}")
        if not training:
            settings["norm_reward"] = False
        normalizer = VecNormalize(venv, training=training, **settings)
        _restore_moments(normalizer.ret_rms, stored, "ret")
        if settings["norm_obs"]:
            assert isinstance(normalizer.obs_rms, RunningMeanStd)
            _restore_moments(normalizer.obs_rms, stored, "obs")
    return normalizer


def _restore_moments(statistics: RunningMeanStd, stored: dict[str, Any], prefix: str) -> None:
    mean, var, count = (stored[f"{prefix}_{name}"] for name in _MOMENTS)
    for name, array, shape in (
        ("mean", mean, np.shape(statistics.mean)),
        ("var", var, np.shape(statistics.mean)),
        ("count", count, ()),
    ):
        if array.shape != shape or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise ValueError(f"`{prefix}_{name}` must be finite numbers of shape {shape}")
    if (var < 0).any() or count <= 0:
        raise ValueError(f"`{prefix}_var` must not be negative, nor `{prefix}_count` zero")
    statistics.mean, statistics.var, statistics.count = mean, var, count.item()


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
