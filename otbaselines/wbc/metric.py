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
    :param embedding: one row per discrete action, shape ``(n_actions, k)``; ``None`` for continuous actions
    :param coordinates: the entries of the observation that count; all when ``None``
    :param scale_observations: divide each coordinate by its standard deviation over the rollout
    """

    beta: float
    p: float
    embedding: th.Tensor | None
    coordinates: tuple[int, ...] | None
    scale_observations: bool

    def action_cost(self) -> th.Tensor:
        """:return: cost between discrete actions in one state, shape ``(n_actions, n_actions)``"""
        assert self.embedding is not None
        return ot.action_cost(self.embedding, beta=self.beta, p=self.p)

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

    def action_points(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: action numbers ``(...)``, or vectors ``(..., k)``
        :return: points whose Euclidean distances are :math:`\\beta |a-a'|`, shape ``(..., k)``
        """
        points = actions.float() if self.embedding is None else self.embedding[actions]
        return self.beta * points


def make_metric(
    action_space: spaces.Space[Any],
    observation_space: spaces.Space[Any],
    *,
    beta: float,
    p: float,
    action_embedding: Any,
    metric_coordinates: Sequence[int] | None,
    scale_observations: bool,
    device: th.device,
) -> GroundMetric:
    """
    Check the settings of the ground metric and build it.

    :param action_space: the team's common action space
    :param observation_space: the team's common observation space
    :param beta: weight of actions against states, positive
    :param p: exponent, 1 or 2
    :param action_embedding: ``"one_hot"``, or one row per action, such as the displacement that it causes
    :param metric_coordinates: entries of the flattened observation that count; all when ``None``
    :param scale_observations: divide each coordinate by its standard deviation over the rollout
    :param device: where the embedding is kept
    :return: the metric
    :raises ValueError: if a setting is out of range or does not fit the spaces
    """
    if not beta > 0:
        raise ValueError(f"`beta` must be positive, got {beta}; it weighs actions against states")
    if p not in (1, 2):
        raise ValueError(f"`p` must be 1 or 2, got {p}")
    embedding = None
    if isinstance(action_space, spaces.Discrete):
        embedding = _embedding(action_embedding, int(action_space.n)).to(device)
    elif not isinstance(action_embedding, str) or action_embedding != "one_hot":
        raise ValueError(f"`action_embedding` is for discrete actions, but the action space is {action_space}")
    coordinates = None
    if metric_coordinates is not None:
        size = int(np.prod(observation_space.shape or ()))
        coordinates = tuple(int(index) for index in metric_coordinates)
        if not coordinates or min(coordinates) < 0 or max(coordinates) >= size:
            raise ValueError(
                f"`metric_coordinates` must name entries 0 to {size - 1} of the observation, got {list(metric_coordinates)}"
            )
    return GroundMetric(float(beta), float(p), embedding, coordinates, scale_observations)


def _embedding(value: Any, n_actions: int) -> th.Tensor:
    if isinstance(value, str):
        if value != "one_hot":
            raise ValueError(f"`action_embedding` must be 'one_hot' or a table with one row per action, got {value!r}")
        return ot.one_hot_embedding(n_actions)
    table = th.as_tensor(np.asarray(value, dtype=np.float32))
    if table.ndim != 2 or table.shape[0] != n_actions:
        raise ValueError(
            f"`action_embedding` must have one row for each of the {n_actions} actions, got shape {tuple(table.shape)}"
        )
    return table
