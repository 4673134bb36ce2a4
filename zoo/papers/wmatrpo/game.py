"""
Training on the differential game with the settings of the W-MATRPO paper's Table 2, and what is kept of each run.

The paper evaluates in one state, in which every agent has a Gaussian with a constant mean, so that a run is told by the
path of these means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from zoo.config.entries import split_entry
from zoo.runs.comparison import Array, LearningCurve, Method, RunResult
from zoo.runs.job import Job

GAME = "otbaselines/DifferentialGame-v0"
#: Joint actions a round (Table 2, "batch size").
BATCH = 30
#: CAATR's constant by the number of agents (Table 2). It gives none for the two agents of Figure 1, who have that of three.
CAATR_CONSTANTS = {2: 0.02, 3: 0.02, 5: 0.02, 7: 0.10, 9: 0.15}
#: Rounds over which the end of a run is averaged, and points of the path of the means that are kept.
LAST_ROUNDS, PATH_POINTS = 100, 200

METHODS: Mapping[str, Method] = {
    "hatrpo": Method(label="HATRPO", algo="hatrpo"),
    "hatrpo-caatr": Method(label="HATRPO with CAATR", algo="hatrpo", variants=("caatr",)),
    "wmatrpo": Method(label="WMATRPO with CAATR", algo="wmatrpo"),
    "wmatrpo-fixed": Method(label="WMATRPO", algo="wmatrpo", variants=("fixed",)),
    "wmatrpo-optimism": Method(label="WMATRPO, optimism", algo="wmatrpo", variants=("optimism",)),
    "wmatrpo-leader": Method(label="WMATRPO, optimism and best response", algo="wmatrpo", variants=("leader",)),
}


class MeanPath(LearningCurve):
    """Remember rewards and distances of every round, and where the agents' means and standard deviations were."""

    def __init__(self) -> None:
        super().__init__()
        self._distances: list[float] = []
        self._path: list[tuple[int, Array, Array]] = []

    def _on_training_start(self) -> None:
        config: Any = self.model
        self._stride = max(1, round(config._total_timesteps / (BATCH * config.layout.n_agents * PATH_POINTS)))

    def _on_rollout_end(self) -> None:
        if len(self.points) % self._stride == 0:
            self._mark()
        super()._on_rollout_end()

    def _on_training_end(self) -> None:
        self._mark()

    def _mark(self) -> None:
        self._path.append((len(self.points), *means_and_stds(self.model)))

    def _mean_reward(self) -> float:
        # Of what was played, whatever a normaliser made of the rewards.
        game = game_of(self.model)
        actions: th.Tensor = self.locals["rollout_buffer"].actions[..., 0].double()
        played = actions.clamp(float(game.action_space.low.min()), float(game.action_space.high.max()))
        self._distances.append(float(game.distance(played).mean()))
        return float(game.reward(played).mean())

    def fields(self) -> dict[str, Any]:
        rounds, means, stds = zip(*self._path, strict=True)
        return {
            **super().fields(),
            "distances": np.array(self._distances),
            "rounds": np.array(rounds),
            "means": np.stack(means),
            "stds": np.stack(stds),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class GameResult(RunResult):
    """
    One run on the differential game; its rewards are those of the joint actions as they were played, and its evaluation is the
    reward of the means, shape ``(1,)``.

    :param distances: of the played joint actions to (5, ..., 5), mean of each round, shape ``(n_rounds,)``
    :param rounds: at which the path was kept, the first before any training and the last at its end, shape ``(n_points,)``
    :param means: of the agents' actions, clipped to the box as they are played, shape ``(n_points, n_agents)``
    :param stds: of the agents' actions, of the same shape
    :param final_distance: of the last means to (5, ..., 5), shape ``(1,)``
    """

    distances: Array
    rounds: Array
    means: Array
    stds: Array
    final_distance: Array
    recorder: ClassVar[type[LearningCurve]] = MeanPath

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """Reward and distance of the joint action that the trained team plays without noise."""
        game, means = game_of(model), th.from_numpy(means_and_stds(model)[0])
        return {
            "evaluation": game.reward(means).reshape(1).numpy(),
            "final_distance": game.distance(means).reshape(1).numpy(),
        }


def means_and_stds(model: Any) -> tuple[Array, Array]:
    """
    :param model: a team on the differential game
    :return: the agents' mean actions, clipped to the box, and their standard deviations, shape ``(n_agents,)`` each
    """
    with th.no_grad():
        policies = model.policy.team_distribution(th.ones(1, model.layout.n_agents, 1, device=model.device))
        both = policies.mean, policies.log_std.expand_as(policies.mean).exp()
        means, stds = (x[0, :, 0].double().cpu().numpy() for x in both)
    low, high = model.action_space.low, model.action_space.high
    return means.clip(low, high), stds


def game_of(model: Any) -> Any:
    """
    :param model: a team on the differential game
    :return: the game, whatever normalises its rewards
    """
    return model.env.unwrapped


def game_job(method: str, *, n_agents: int, variant: str, n_iterations: int, seed: int, folder: Path) -> Job:
    """
    Describe one run: the method's entry, with what Table 2 changes by the number of agents.

    :param method: a name in :data:`METHODS`
    :param n_agents: 2 to 9
    :param variant: of the game
    :param n_iterations: rounds
    :param seed: of everything random
    :param folder: of all runs
    :return: the run
    """
    chosen = METHODS[method]
    changes: dict[str, Any] = {
        "n_timesteps": n_iterations * BATCH * n_agents,
        "env_kwargs": {"n_agents": n_agents, "variant": variant},
    }

    def read() -> Job:
        return Job.read(
            chosen.algo,
            GAME,
            variants=chosen.variants,
            overrides=changes,
            seed=seed,
            folder=folder / variant / f"{n_agents}-agents",
            name=f"{method}-seed{seed}",
        )

    kwargs = split_entry(read().entry).model_kwargs
    # The entry's minibatch is that of three agents.
    changes["batch_size"] = kwargs["batch_size"] // 3 * n_agents
    if kwargs["caatr"]:
        if n_agents not in CAATR_CONSTANTS:
            raise ValueError(f"the paper has a constant of CAATR for {sorted(CAATR_CONSTANTS)} agents, not for {n_agents}")
        changes["caatr_constant"] = CAATR_CONSTANTS[n_agents]
    return read()


def last_rounds(values: Array) -> float:
    """
    :param values: of each round
    :return: their mean over the last ones
    """
    return float(np.mean(values[-LAST_ROUNDS:]))


def by_seed(runs: Sequence[GameResult]) -> dict[str, Array]:
    """
    :param runs: of one method on one game
    :return: what tables compare, one number a run: ``distance`` and ``reward`` of the means at the end, and the
        ``mean_distance`` and ``mean_reward`` of what was played in the last rounds
    """
    return {
        "distance": np.array([run.final_distance[0] for run in runs]),
        "reward": np.array([run.evaluation[0] for run in runs]),
        "mean_distance": np.array([last_rounds(run.distances) for run in runs]),
        "mean_reward": np.array([last_rounds(run.rewards) for run in runs]),
    }
