"""Runs that are judged by the episodes that the trained team plays."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from otbaselines.common.evaluation.team import evaluate_team
from otbaselines.common.vec_env.layout import team_layout
from otbaselines.common.vec_env.make import make_vec_env
from zoo.runs.comparison import Array, RunResult
from zoo.runs.job import Job


@dataclass(frozen=True, eq=False, kw_only=True)
class PlayedResult(RunResult):
    """
    One run on any task of teams; its evaluation is the mean return per agent of the most probable actions.

    :param sampled: the same of sampled actions, shape ``(n_episodes,)``
    """

    sampled: Array

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """:return: those of every run, and of the sampled episodes"""
        return {**super().shapes(), "sampled": (None,)}

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """Play the same starts whoever learned, and none that training has seen."""
        greedy, sampled = (play(job, model, n_episodes, deterministic=each) for each in (True, False))
        return {"evaluation": greedy, "sampled": sampled}


@dataclass(frozen=True, eq=False, kw_only=True)
class PlayedBesideRandom(PlayedResult):
    """
    The same, with what uniformly random actions earn on the same starts.

    :param random: shape ``(n_episodes,)``
    """

    random: Array

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """:return: those of played runs, and of the random episodes"""
        return {**super().shapes(), "random": (None,)}

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """Play as the trained team, and at random."""
        return {**super().measure(job, model, n_episodes), "random": play(job, None, n_episodes)}


def play(job: Job, model: BaseAlgorithm | None, n_episodes: int, *, deterministic: bool = True) -> Array:
    """
    :param job: whose task and seed it is
    :param model: who plays; ``None`` for uniformly random choices
    :param n_episodes: how many
    :param deterministic: the most probable actions instead of samples
    :return: mean return per agent of each episode, shape ``(n_episodes,)``
    """
    env = make_vec_env(job.env_id, n_copies=8, seed=(1000 + job.seed) % 2**32, env_kwargs=job.config.env_kwargs)
    layout = team_layout(env)
    choices: list[Any] = [layout.agent_action_spaces[agent] for agent in layout.possible_agents]
    generator = np.random.default_rng(0)

    def draw(rows: Array) -> Array:
        # Rows are ordered by copies, so that the agents take turns.
        return np.array([generator.integers(choices[row % len(choices)].n) for row in range(len(rows))])

    played = evaluate_team(model or draw, env, n_eval_episodes=n_episodes, deterministic=deterministic)
    env.close()
    returns: Array = played.episode_agent_returns.mean(1)
    return returns
