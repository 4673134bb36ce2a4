"""Reference points of cooperative navigation that need no training: greedy walkers, and uniformly random actions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from otbaselines.common.evaluation.team import evaluate_team
from otbaselines.envs.navigation import NavigationConfig
from zoo.runs.comparison import Array

Policy = Callable[[Array], Array]


def walker(config: NavigationConfig) -> Policy:
    """
    Every agent takes the action that brings it closest to its target, as if it were alone.

    It knows where its actions lead, and nothing of collisions: a team that avoids those can earn a little more.

    :param config: the task
    :return: maps the rows of observations of whole teams, agent after agent, to actions
    """
    vectors, turns, n_agents = config.agent_action_vectors, config.turns, config.n_agents

    def act(rows: Array) -> Array:
        rows = np.asarray(rows, dtype=np.float64)
        agents = np.arange(len(rows)) % n_agents
        here, target = rows[:, :2], rows[:, 2:4]
        if config.continuous_actions:
            # The move that would arrive, in the agent's own axes; the longest step that the box allows in each of them.
            wanted = np.linalg.solve(turns[agents], (target - here)[:, :, None])[:, :, 0]
            largest = np.abs(wanted).max(axis=1, keepdims=True)
            steps: Array = (wanted / np.maximum(largest, 1.0)).astype(np.float32)
            return steps
        there = np.clip(here[:, None] + vectors[agents], -1.0, 1.0)
        choices: Array = np.linalg.norm(there - target[:, None], axis=-1).argmin(1)
        return choices

    return act


def random_policy(config: NavigationConfig, seed: int = 0) -> Policy:
    """
    :param config: the task
    :param seed: of its stream
    :return: uniformly random actions
    """
    generator = np.random.default_rng(seed)

    def act(rows: Array) -> Array:
        if config.continuous_actions:
            moves: Array = generator.uniform(-1.0, 1.0, (len(rows), 2)).astype(np.float32)
            return moves
        choices: Array = generator.integers(config.headings, size=len(rows))
        return choices

    return act


def mean_rewards(policy: Any, env: Any, n_episodes: int) -> Array:
    """
    What a team earns on the starts that all evaluations play.

    :param policy: a model, or one of the policies here
    :param env: copies of the task, made with the same seed for everybody
    :param n_episodes: how many
    :return: mean reward per agent and step of each episode, shape ``(n_episodes,)``
    """
    played = evaluate_team(policy, env, n_eval_episodes=n_episodes, seed=1)
    rewards: Array = played.episode_agent_returns.mean(1) / env.config.max_episode_steps
    return rewards
