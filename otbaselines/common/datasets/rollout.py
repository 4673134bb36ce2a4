"""An agent at work in an environment, recorded."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from otbaselines.common.datasets.columns import Columns, number_episodes


def roll_out(
    model: Any, env: gym.Env[Any, Any], *, n_steps: int | None, n_episodes: int | None, deterministic: bool, seed: int | None
) -> Columns:
    """
    Let an agent act and keep what happens.

    :param model: whatever has SB3's ``predict``
    :param env: one environment
    :param n_steps: steps to record; the last episode may be cut short by it
    :param n_episodes: whole episodes to record, instead
    :param deterministic: the most probable actions instead of samples
    :param seed: of the environment and of the samples; torch's own stream is left as it was
    :return: the columns
    """
    with th.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            th.manual_seed(seed)
        return _record(model, env, n_steps, n_episodes, deterministic, seed)


def _record(
    model: Any, env: gym.Env[Any, Any], n_steps: int | None, n_episodes: int | None, deterministic: bool, seed: int | None
) -> Columns:
    rows: list[tuple[Any, ...]] = []
    episodes = 0
    observation, _ = env.reset(seed=seed)
    while (n_steps is None or len(rows) < n_steps) and (n_episodes is None or episodes < n_episodes):
        action, _ = model.predict(observation, deterministic=deterministic)
        following, reward, terminated, truncated, _ = env.step(action)
        # Copies: an environment may hand out the same array again and again.
        rows.append((np.array(observation), np.array(action), float(reward), np.array(following), terminated, truncated))
        observation = following
        if terminated or truncated:
            episodes += 1
            observation, _ = env.reset()
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
    arrays = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return Columns(**arrays, episodes=number_episodes(arrays["terminations"] | arrays["truncations"]))
