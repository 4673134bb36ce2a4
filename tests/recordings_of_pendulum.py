"""A few recorded steps with the spaces of Pendulum."""

from pathlib import Path

import gymnasium as gym
import numpy as np

from otbaselines import OfflineDataset


def pendulum_file(path: Path, *, name: str = "Pendulum-v1 medium") -> Path:
    """
    :param path: where to write them
    :param name: of the data
    :return: the file
    """
    env, rng = gym.make("Pendulum-v1"), np.random.default_rng(0)
    observations, n = rng.uniform(-1, 1, (101, 3)).astype(np.float32), 100
    OfflineDataset(
        observations[:-1],
        rng.uniform(-2, 2, (n, 1)),
        rng.normal(size=n),
        observations[1:],
        np.zeros(n, bool),
        np.arange(1, n + 1) % 20 == 0,
        observation_space=env.observation_space,
        action_space=env.action_space,
        name=name,
    ).save(path)
    return path
