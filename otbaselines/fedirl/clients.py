"""Who takes part in a federation: an environment and what was demonstrated in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.datasets.minari import minari_dataset
from otbaselines.common.tabular import TabularModel
from otbaselines.common.trajectories import Trajectory


class Agent(Protocol):
    """Whatever predicts as SB3's models and policies do."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        """
        :param observation: of one environment
        :param state: of a recurrent agent
        :param episode_start: whether an episode begins
        :param deterministic: whether to take the most probable action
        :return: the action, and the state
        """


@dataclass(frozen=True)
class Client:
    """
    One member of a federation. Its environment and demonstrations stay with it: only reward parameters leave it.

    :param env: its dynamics, as a Gymnasium environment; or several copies in a ``VecEnv``, with which a learner beside it
        collects faster
    :param demonstrations: episodes of its demonstrator; see :func:`demonstrate` and :func:`from_minari`
    :param name: for messages and the log
    :param weight: of the client in the fusion, positive; weights are divided by their sum
    :param irl_iterations: most steps of its inverse reinforcement learning; those of the algorithm when omitted
    :raises TypeError: if the environment or a demonstration is of another type
    :raises ValueError: if there is no demonstration, or a number is out of range
    """

    env: gym.Env[Any, Any] | VecEnv
    demonstrations: Sequence[Trajectory]
    name: str = ""
    weight: float = 1.0
    irl_iterations: int | None = None

    def __post_init__(self) -> None:
        who = f" of {self.name}" if self.name else ""
        if not isinstance(self.env, gym.Env | VecEnv):
            raise TypeError(f"`env`{who} must be a Gymnasium environment or a `VecEnv`, got {type(self.env).__name__}")
        if isinstance(self.demonstrations, Trajectory) or not isinstance(self.demonstrations, Sequence):
            raise TypeError(
                f"`demonstrations`{who} must be a list of `Trajectory`, got {type(self.demonstrations).__name__}; record an "
                "agent's with `demonstrate`"
            )
        if len(self.demonstrations) == 0:
            raise ValueError(f"`demonstrations`{who} must have at least one trajectory, got none")
        for place, each in enumerate(self.demonstrations):
            if not isinstance(each, Trajectory):
                raise TypeError(f"`demonstrations[{place}]`{who} must be a `Trajectory`, got {type(each).__name__}")
        if not 0.0 < self.weight < float("inf"):
            raise ValueError(f"`weight`{who} must be positive, got {self.weight}")
        if self.irl_iterations is not None and self.irl_iterations < 0:
            raise ValueError(f"`irl_iterations`{who} must be at least 0, got {self.irl_iterations}")


def demonstrate(
    agent: Agent, env: gym.Env[Any, Any], n_episodes: int, seed: int, *, deterministic: bool = True
) -> list[Trajectory]:
    """
    Record an agent.

    :param agent: a model of SB3's or of this package
    :param env: the environment in which it acts
    :param n_episodes: how many episodes, at least 1
    :param seed: of the environment
    :param deterministic: whether it takes its most probable actions
    :return: the episodes
    :raises ValueError: if ``n_episodes`` is not positive
    """
    if n_episodes < 1:
        raise ValueError(f"`n_episodes` must be at least 1, got {n_episodes}")
    episodes = []
    for episode in range(n_episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        seen, done, terminated, truncated = [observation], [], False, False
        while not (terminated or truncated):
            action, _ = agent.predict(observation, deterministic=deterministic)
            # A discrete action comes as an array without dimensions, which not every environment takes.
            action = action[()] if np.ndim(action) == 0 else action
            observation, _, terminated, truncated, info = env.step(action)
            seen.append(observation)
            done.append(action)
        success = info.get("is_success")
        episodes.append(
            Trajectory(np.array(seen), np.array(done), bool(terminated), None if success is None else bool(success))
        )
    return episodes


def from_minari(dataset: Any) -> list[Trajectory]:
    """
    The episodes of a Minari data set.

    :param dataset: the id of a local data set, or the ``MinariDataset`` itself
    :return: the episodes
    :raises ImportError: if Minari is not installed
    :raises FileNotFoundError: if there is none of this id here
    :raises ValueError: if it is damaged
    """
    if isinstance(dataset, str):
        dataset = minari_dataset(dataset, f"the Minari data set {dataset!r}")
    return [
        Trajectory(np.asarray(each.observations), np.asarray(each.actions), bool(each.terminations[-1]))
        for each in dataset.iterate_episodes()
    ]


def tabular_model_of(env: gym.Env[Any, Any] | VecEnv, who: str) -> TabularModel:
    """
    :param env: of a client
    :param who: whose it is, for the message
    :return: its finite decision process
    :raises ValueError: if it has none
    """
    model = getattr(env.unwrapped, "tabular_model", None)
    if not isinstance(model, TabularModel):
        raise ValueError(
            f"the environment of {who} must have an attribute `tabular_model` of type `TabularModel`, got "
            f"{type(env.unwrapped).__name__} without one; `otbaselines/GridWorld-v0` has one"
        )
    return model
