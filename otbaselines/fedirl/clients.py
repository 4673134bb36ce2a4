"""Who takes part in a federation: an environment and what was demonstrated in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.datasets.minari import minari_dataset
from otbaselines.common.settings import COUNT, MANY, Setting, check_settings
from otbaselines.common.tabular import TabularModel
from otbaselines.common.trajectories import Trajectory

_SETTINGS = {
    "name": Setting("text"),
    "weight": Setting("number", low=0.0, above="always"),
    "irl_iterations": Setting("integer", low=0, high=MANY, optional=True),
}
_DEMONSTRATE_SETTINGS = {
    "n_episodes": COUNT,
    "seed": Setting("integer", low=0, high=2**63 - 1, optional=True),
    "deterministic": Setting("flag"),
    "max_steps": COUNT,
}


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
    :raises TypeError: if the environment, a demonstration or a number is of another type
    :raises ValueError: if there is no demonstration, or a number is out of range
    """

    env: gym.Env[Any, Any] | VecEnv
    demonstrations: Sequence[Trajectory]
    name: str = ""
    weight: float = 1.0
    irl_iterations: int | None = None

    def __post_init__(self) -> None:
        who = f" of {self.name}" if isinstance(self.name, str) and self.name else ""
        try:
            check_settings(_SETTINGS, vars(self))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}{who and f' as setting{who}'}") from None
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
        # What was checked is what is learned from, whatever becomes of the caller's list.
        object.__setattr__(self, "demonstrations", tuple(self.demonstrations))


def demonstrate(
    agent: Agent,
    env: gym.Env[Any, Any],
    n_episodes: int,
    seed: int | None,
    *,
    deterministic: bool = True,
    max_steps: int = 100_000,
) -> list[Trajectory]:
    """
    Record an agent.

    :param agent: a model of SB3's or of this package
    :param env: the environment in which it acts
    :param n_episodes: how many episodes, at least 1
    :param seed: of the environment
    :param deterministic: whether it takes its most probable actions
    :param max_steps: of one episode, so that an environment which never ends is noticed
    :return: the episodes
    :raises TypeError: if an argument is of another type, or ``agent`` predicts something else than an action and a state
    :raises ValueError: if a number is out of range, or an episode is longer than ``max_steps``
    """
    check_settings(_DEMONSTRATE_SETTINGS, locals())
    if not isinstance(env, gym.Env):
        raise TypeError(f"`env` must be one Gymnasium environment, got {type(env).__name__}")
    if not callable(getattr(agent, "predict", None)):
        raise TypeError(f"`agent` must have a method `predict`, as models of SB3 have, got {type(agent).__name__}")
    episodes = []
    for episode in range(n_episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        seen, terminated, truncated = [observation], False, False
        done: list[Any] = []
        while not (terminated or truncated):
            if len(done) == max_steps:
                raise ValueError(
                    f"an episode of `env` has not ended after {max_steps} steps; wrap the environment in a `TimeLimit`,"
                    " or raise `max_steps`"
                )
            action = _predicted(agent, observation, deterministic=deterministic)
            observation, _, terminated, truncated, info = env.step(action)
            seen.append(observation)
            done.append(action)
        success = info.get("is_success")
        episodes.append(
            Trajectory(np.array(seen), np.array(done), bool(terminated), None if success is None else bool(success))
        )
    return episodes


def _predicted(agent: Agent, observation: Any, *, deterministic: bool) -> Any:
    found = agent.predict(observation, deterministic=deterministic)
    if not isinstance(found, tuple) or len(found) != 2:
        raise TypeError(f"`agent` must predict an action and a state, as models of SB3 do, got {type(found).__name__}")
    # A discrete action comes as an array without dimensions, which not every environment takes.
    return np.asarray(found[0])[()] if np.ndim(found[0]) == 0 else found[0]


def from_minari(dataset: Any) -> list[Trajectory]:
    """
    The episodes of a Minari data set.

    :param dataset: the id of a local data set, or the ``MinariDataset`` itself
    :return: the episodes
    :raises TypeError: if it is something else
    :raises ImportError: if Minari is not installed
    :raises FileNotFoundError: if there is none of this id here
    :raises ValueError: if it is damaged
    """
    if isinstance(dataset, str):
        dataset = minari_dataset(dataset, f"the Minari data set {dataset!r}")
    if not callable(getattr(dataset, "iterate_episodes", None)):
        raise TypeError(f"`dataset` must be the id of a Minari data set, or a `MinariDataset`, got {type(dataset).__name__}")
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
