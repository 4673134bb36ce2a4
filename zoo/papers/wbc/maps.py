"""What the agents of cooperative navigation do where: the WBC paper's Figures 1 and 2, and the runs behind them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from stable_baselines3.common.base_class import BaseAlgorithm

from otbaselines.common.vec_env.make import make_vec_env
from otbaselines.envs.navigation import MOVES
from zoo.drawing.curves import STYLE, save
from zoo.papers.wbc.walker import mean_rewards, random_policy, walker
from zoo.runs.comparison import Array, RunResult
from zoo.runs.job import Job

ACTIONS = ("stay", "right", "left", "up", "down")
# The paper's colours (grey, red, blue, green, orange) in the colour-blind safe palette.
ACTION_COLOURS = ("#BBBBBB", "#D55E00", "#0072B2", "#009E73", "#E69F00")
# Where the policy maps put the target: off the centre, so that a map that ignores it is seen to be wrong.
MAP_TARGET = (0.0, 0.2)
# Points along each axis of the maps.
RESOLUTION = 41


@dataclass(frozen=True, eq=False, kw_only=True)
class NavigationResult(RunResult):
    """
    One run on cooperative navigation; its evaluation is the mean reward per agent and step of the most probable actions.

    :param policy_maps: most probable direction of each agent at each position, shape ``(n_agents, resolution, resolution)``,
        indices of :data:`ACTIONS`, first row at the lower edge
    :param team_mates: where the team-mates stand in the maps, shape ``(n_agents - 1, 2)``
    :param state_probs: probability of each direction, shape ``(n_states, n_agents, 5)``
    :param states: descriptions of these states, shape ``(n_states,)``
    :param random: what uniformly random actions earn on the starts of the evaluation, shape ``(n_episodes,)``
    :param walker: the same of agents who walk straight to their targets, see :mod:`zoo.papers.wbc.walker`
    """

    policy_maps: Array
    team_mates: Array
    state_probs: Array
    states: Array
    random: Array
    walker: Array

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """Play, and ask the agents what they would do; evaluations of all methods and seeds play the same starts."""
        env: Any = make_vec_env(job.env_id, n_copies=50, seed=0, device=model.device, env_kwargs=job.config.env_kwargs)
        played, random, greedy = (
            mean_rewards(policy, env, n_episodes) for policy in (model, random_policy(env.config), walker(env.config))
        )
        situations = env.representative_states()
        maps = env.policy_map_observations(RESOLUTION, 0, target=MAP_TARGET)
        vectors = env.agent_action_vectors
        directions = as_directions(team_probabilities(model, maps), vectors).argmax(-1)
        env.close()
        return {
            "evaluation": played,
            "random": random,
            "walker": greedy,
            "policy_maps": directions.T.reshape(-1, RESOLUTION, RESOLUTION).astype(np.int8),
            "team_mates": maps[0, 4:].reshape(-1, 2),
            "state_probs": as_directions(team_probabilities(model, np.stack(list(situations.values()))), vectors),
            "states": np.array(list(situations)),
        }


def team_probabilities(model: BaseAlgorithm, observations: Array) -> Array:
    """
    Action probabilities of every agent at the same observations.

    :param model: a team with discrete actions
    :param observations: shape ``(n, obs_dim)``
    :return: shape ``(n, n_agents, n_actions)``
    :raises ValueError: if actions are continuous
    """
    if not isinstance(model.action_space, spaces.Discrete):
        raise ValueError(f"policy maps need discrete actions, got {model.action_space}; leave `continuous_actions` off")
    policy: Any = model.policy
    rows = th.as_tensor(observations, device=model.device).unsqueeze(1).expand(-1, policy.n_agents, -1)
    with th.no_grad():
        probabilities: Array = policy.team_distribution(rows).probs.cpu().numpy()
    return probabilities


def as_directions(probabilities: Array, action_vectors: Array) -> Array:
    """
    Turn probabilities of action numbers into probabilities of directions, for teams whose moves are turned or have more
    headings: each action counts for the nearest of the five, staying for staying only.

    :param probabilities: shape ``(n, n_agents, n_actions)``
    :param action_vectors: displacement by each action of each agent, shape ``(n_agents, n_actions, 2)``
    :return: shape ``(n, n_agents, 5)``, the last axis in the order of :data:`ACTIONS`
    """
    lengths = np.linalg.norm(action_vectors, axis=-1, keepdims=True)
    headings = action_vectors / np.where(lengths > 0, lengths, 1.0)
    # direction[agent, action] is the entry of MOVES in which that action takes that agent.
    # No heading is nearer to staying than to a move; of two at 45 degrees, rounding must not choose.
    direction = np.linalg.norm(headings[:, :, None] - MOVES, axis=-1).round(9).argmin(-1)
    turned = np.zeros((*probabilities.shape[:2], len(MOVES)), probabilities.dtype)
    for agent, order in enumerate(direction):
        for action, nearest in enumerate(order):
            turned[:, agent, nearest] += probabilities[:, agent, action]
    return turned


def draw_policy_maps(runs: Mapping[str, NavigationResult], path: Path) -> None:
    """
    The paper's Figure 1: the most probable action of each agent at each own position, all else fixed.

    :param runs: one run by method; a row each
    :param path: the PNG
    """
    n_agents = max(len(run.policy_maps) for run in runs.values())
    with mpl.rc_context({**STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(2.1 * n_agents + 0.7, 2.15 * len(runs) + 1.0), layout="constrained")
        axes = figure.subplots(len(runs), n_agents, squeeze=False, sharex=True, sharey=True, gridspec_kw={"hspace": 0.12})
        for row, (label, run) in zip(axes, runs.items(), strict=True):
            for agent, axis in enumerate(row):
                _draw_map(axis, run, agent)
            row[0].set_ylabel(f"{label}\nown y")
        for agent, axis in enumerate(axes[0]):
            axis.set_title(f"agent {agent + 1}")
        for axis in axes[-1]:
            axis.set_xlabel("own x")
        handles = [Patch(color=colour, label=action) for colour, action in zip(ACTION_COLOURS, ACTIONS, strict=True)]
        star = mpl.lines.Line2D([], [], marker="*", linestyle="", color="#F0E442", mec="black", ms=11, label="target")
        mates = mpl.lines.Line2D([], [], marker="o", linestyle="", color="white", mec="black", ms=6, label="team-mates")
        figure.legend(handles=[*handles, star, mates], loc="outside lower center", ncols=7, frameon=False)
        figure.suptitle(
            "Most probable action at each own position, all agents asked about the\n"
            "same observations: the target and the other positions stay where they are"
        )
        save(figure, path)


def _draw_map(axis: Axes, run: NavigationResult, agent: int) -> None:
    colours = ListedColormap(list(ACTION_COLOURS))
    norm = BoundaryNorm(np.arange(len(ACTIONS) + 1) - 0.5, len(ACTIONS))
    axis.imshow(
        run.policy_maps[agent], cmap=colours, norm=norm, origin="lower", extent=(-1, 1, -1, 1), interpolation="nearest"
    )
    axis.plot(*MAP_TARGET, marker="*", color="#F0E442", markeredgecolor="black", markersize=13)
    axis.plot(*run.team_mates.T, linestyle="", marker="o", color="white", markeredgecolor="black", markersize=5)
    axis.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])


def draw_state_probabilities(runs: Mapping[str, NavigationResult], path: Path) -> None:
    """
    The paper's Figure 2: the action probabilities of every agent in the representative states.

    :param runs: one run by method; a row each
    :param path: the PNG
    """
    states = next(iter(runs.values())).states
    with mpl.rc_context({**STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        n_agents = next(iter(runs.values())).state_probs.shape[1]
        figure = Figure(figsize=(2.3 * len(states) + 0.9, (0.36 * n_agents + 0.95) * len(runs) + 0.5), layout="constrained")
        axes = figure.subplots(len(runs), len(states), squeeze=False, sharex=True, sharey=True)
        image: Any = None
        for row, (label, run) in zip(axes, runs.items(), strict=True):
            for state, axis in enumerate(row):
                image = _draw_heat_map(axis, run.state_probs[state])
            row[0].set_ylabel(label)
        for description, axis in zip(states, axes[0], strict=True):
            axis.set_title(description)
        figure.colorbar(image, ax=axes, label="probability", shrink=0.8, pad=0.01)
        figure.suptitle("Action probabilities of every agent when each is asked about the same observation")
        save(figure, path)


def _draw_heat_map(axis: Axes, probabilities: Array) -> Any:
    image = axis.imshow(probabilities, cmap="cividis", vmin=0.0, vmax=1.0, aspect="auto")
    for (agent, action), value in np.ndenumerate(probabilities):
        axis.text(action, agent, f"{value:.2f}", ha="center", va="center", fontsize=7, color="k" if value > 0.5 else "w")
    axis.set_xticks(range(len(ACTIONS)), ACTIONS, fontsize=7)
    axis.set_yticks(range(len(probabilities)), [f"agent {i + 1}" for i in range(len(probabilities))], fontsize=7)
    return image
