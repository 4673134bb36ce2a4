"""Environments and helpers for the tests of trust regions."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from pettingzoo import ParallelEnv

from otbaselines import ParallelVecEnv


class RewardsEnv(ParallelEnv):
    """
    Agents with random observations and five choices, whose rewards are a function of their joint action.

    :param rewards: takes the actions as an array and gives one reward per agent
    :param n_agents: agents in the team
    :param horizon: steps of an episode
    """

    metadata = {"name": "rewards"}  # noqa: RUF012

    def __init__(self, rewards: Any, n_agents: int = 2, horizon: int = 10) -> None:
        self.possible_agents = [f"agent_{k}" for k in range(n_agents)]
        self.agents: list[str] = []
        self.render_mode = None
        self.rewards = rewards
        self.horizon = horizon
        self.rng = np.random.default_rng(0)

    def observation_space(self, agent: str) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(5)

    def _observe(self) -> dict[str, np.ndarray]:
        return {agent: self.rng.uniform(-1.0, 1.0, 2).astype(np.float32) for agent in self.possible_agents}

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.t = 0
        self.agents = list(self.possible_agents)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self.t += 1
        acting = list(self.agents)
        given = self.rewards(np.array([float(actions[agent]) for agent in acting]))
        is_over = self.t >= self.horizon
        self.agents = [] if is_over else acting
        never, over = dict.fromkeys(acting, False), dict.fromkeys(acting, is_over)
        rewards = {agent: float(reward) for agent, reward in zip(acting, given, strict=True)}
        return self._observe(), rewards, never, over, {agent: {} for agent in acting}


def rewarding(rewards: Any, n_agents: int = 2, n_copies: int = 4) -> ParallelVecEnv:
    """
    :param rewards: see :class:`RewardsEnv`
    :param n_agents: agents in the team
    :param n_copies: copies of the environment
    """
    return ParallelVecEnv([lambda: RewardsEnv(rewards, n_agents)] * n_copies)


def collect(model: Any) -> Any:
    """
    Fill the buffer of a model with one rollout, ready for ``train``.

    :param model: a team algorithm
    :return: the model
    """
    _, callback = model._setup_learn(model.n_steps * model.n_envs)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def rounds(model: Any, n: int) -> list[dict[str, float]]:
    """
    Train round by round.

    :param model: a team algorithm
    :param n: how many
    :return: what each of them logged
    """
    logs = []
    for _ in range(n):
        model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False, log_interval=None)
        logs.append(dict(model.logger.name_to_value))
    return logs


def numbers(log: dict[str, float], name: str) -> list[float]:
    """
    :param log: of one round
    :param name: of a quantity that each agent has
    :return: it, agent by agent
    """
    found = sorted(
        (int(key.rsplit("_", 1)[1]), value) for key, value in log.items() if key.startswith(f"trust_region/{name}_")
    )
    return [value for _, value in found]


def clone(parameters: Any) -> list[th.Tensor]:
    """
    :param parameters: tensors
    :return: copies of them
    """
    return [parameter.detach().clone() for parameter in parameters]
