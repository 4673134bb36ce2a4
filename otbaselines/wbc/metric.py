"""The ground metric of WBC: which distances between states and actions are meant."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines import ot


@dataclass(frozen=True)
class GroundMetric:
    r"""
    :math:`d((s,a),(s',a')) = |s-s'| + \beta |a-a'|`, raised to the power ``p`` (Baheri 2025, Sec. 3).

    :param beta: weight of actions against states
    :param p: exponent, 1 or 2
    :param codebook: the points of the action space that discrete actions stand for, shape ``(n, k)``; ``None`` for
        continuous actions
    :param placement: which point each agent's action is, shape ``(n_agents, n_actions)``; ``None`` where action ``a`` of
        every agent is point ``a``
    :param coordinates: the entries of the observation that count; all when ``None``
    :param scale_observations: divide each coordinate by its standard deviation over the rollout
    """

    beta: float
    p: float
    codebook: th.Tensor | None
    placement: th.Tensor | None
    coordinates: tuple[int, ...] | None
    scale_observations: bool

    def action_cost(self) -> th.Tensor:
        """:return: cost between the codebook's points in one state, shape ``(n, n)``"""
        assert self.codebook is not None
        return ot.action_cost(self.codebook, beta=self.beta, p=self.p)

    def place(self, probs: th.Tensor) -> th.Tensor:
        """
        Action probabilities as measures on the common codebook.

        :param probs: shape ``(batch, n_agents, n_actions)``
        :return: shape ``(batch, n_agents, n)``
        """
        if self.placement is None:
            return probs
        assert self.codebook is not None
        table = th.nn.functional.one_hot(self.placement, len(self.codebook)).to(probs.dtype)
        return th.einsum("bna,nam->bnm", probs, table)

    def state_points(self, observations: th.Tensor, spread: th.Tensor) -> th.Tensor:
        """
        Observations as points of the metric's state space.

        :param observations: shape ``(n, ...)``
        :param spread: observations over which the scale is taken, shape ``(m, ...)``
        :return: shape ``(n, d)``
        """
        points, sample = observations.float().flatten(1), spread.float().flatten(1)
        if self.coordinates is not None:
            index = th.as_tensor(self.coordinates, device=points.device)
            points, sample = points[:, index], sample[:, index]
        if not self.scale_observations:
            return points
        scale = sample.std(0)
        # A coordinate that never changes separates nothing, whatever its unit.
        return points / th.where(scale > 1e-6, scale, 1.0)

    def action_points(self, actions: th.Tensor, agents: th.Tensor) -> th.Tensor:
        r"""
        :param actions: action numbers ``(n,)``, or vectors ``(n, k)``
        :param agents: whose actions they are, shape ``(n,)``
        :return: points whose Euclidean distances are :math:`\beta |a-a'|`, shape ``(n, k)``
        """
        if self.codebook is None:
            return self.beta * actions.float()
        return self.beta * self.codebook[actions if self.placement is None else self.placement[agents, actions]]


@dataclass(frozen=True)
class TeamSpaces:
    """
    What the agents of a team see and do.

    :param action_space: common to the team, padded where agents differ
    :param observation_space: likewise
    :param n_agents: agents in the team
    :param device: where consensus is computed
    """

    action_space: spaces.Space[Any]
    observation_space: spaces.Space[Any]
    n_agents: int
    device: th.device

    @property
    def discrete(self) -> bool:
        """Whether actions are numbers rather than vectors."""
        return isinstance(self.action_space, spaces.Discrete)


def make_metric(
    team: TeamSpaces,
    *,
    beta: float,
    p: int,
    action_embedding: Any = "one_hot",
    metric_coordinates: Sequence[int] | None = None,
    scale_observations: bool = True,
) -> GroundMetric:
    """
    The ground metric on a team's spaces.

    :param team: the team's spaces
    :param beta: weight of actions against states
    :param p: exponent, 1 or 2
    :param action_embedding: of discrete actions: ``"one_hot"``; or one row per action, such as the displacement that it
        causes; or such a table for each agent, shape ``(n_agents, n_actions, k)``
    :param metric_coordinates: entries of the flattened observation that count; all when ``None``
    :param scale_observations: divide each coordinate by its standard deviation over the rollout
    :return: the metric
    :raises TypeError: if coordinates are not integers
    :raises ValueError: if a setting does not fit the spaces
    """
    codebook, placement = None, None
    if isinstance(team.action_space, spaces.Discrete):
        codebook, placement = _codebook(action_embedding, team.n_agents, int(team.action_space.n), team.device)
    coordinates = None if metric_coordinates is None else _coordinates(metric_coordinates, team.observation_space)
    return GroundMetric(float(beta), float(p), codebook, placement, coordinates, scale_observations)


def _coordinates(value: Sequence[int], observation_space: spaces.Space[Any]) -> tuple[int, ...]:
    """Checked positions in the flattened observation."""
    array, size = np.asarray(value), int(np.prod(observation_space.shape or ()))
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"`metric_coordinates` must be a list of integers, got {value!r}")
    if array.ndim != 1 or not array.size or array.min() < 0 or array.max() >= size:
        raise ValueError(f"`metric_coordinates` must name entries 0 to {size - 1} of the observation, got {value!r}")
    return tuple(array.tolist())


def _codebook(value: Any, n_agents: int, n_actions: int, device: th.device) -> tuple[th.Tensor, th.Tensor | None]:
    """Points and, where agents differ, which point each agent's action is."""
    if isinstance(value, str):
        if value != "one_hot":
            raise ValueError(f"`action_embedding` must be 'one_hot', 'environment' or a table, got {value!r}")
        return ot.one_hot_embedding(n_actions, device=device), None
    try:
        table = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        raise TypeError(f"`action_embedding` must be 'one_hot', 'environment' or a table of numbers, got {value!r}") from None
    if not np.isfinite(table).all():
        raise ValueError("`action_embedding` holds NaN or infinite entries; every action needs a point")
    if table.ndim == 2 and len(table) == n_actions and table.shape[1]:
        return th.as_tensor(table, device=device), None
    if table.ndim != 3 or table.shape[:2] != (n_agents, n_actions) or not table.shape[2]:
        raise ValueError(
            f"`action_embedding` must have one row for each of the {n_actions} actions, or such a table for each of the "
            f"{n_agents} agents, got shape {table.shape}"
        )
    # Actions of different agents that do the same thing share a point, up to rounding.
    points, place = np.unique(table.reshape(-1, table.shape[-1]).round(5) + 0.0, axis=0, return_inverse=True)
    placement = th.as_tensor(place.reshape(n_agents, n_actions), device=device)
    return th.as_tensor(points, device=device), placement


def normalised_table(vectors: Any) -> list[Any]:
    r"""
    Displacements in units in which the median distance between two different actions is :math:`\sqrt 2`, as in one-hot.

    :param vectors: shape ``(n_actions, k)`` or ``(n_agents, n_actions, k)``
    :return: nested lists of the same shape
    """
    table = np.asarray(vectors, dtype=np.float64)
    rows = table.reshape(-1, table.shape[-1])
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    unit = np.median(distances[distances > 1e-9]) if (distances > 1e-9).any() else 1.0
    scaled: list[Any] = (table * (np.sqrt(2.0) / unit)).tolist()
    return scaled
