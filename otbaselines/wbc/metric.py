"""The ground metric of WBC: which distances between states and actions are meant."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from scipy.optimize import linear_sum_assignment

from otbaselines import ot


@dataclass(frozen=True)
class GroundMetric:
    r"""
    The ground cost :math:`|s-s'|^p + (\beta |a-a'|)^p` between pairs of state and action.

    With ``p=1`` it is the metric of Baheri (2025, Sec. 3), and with ``p=2`` a squared Euclidean distance. Both are of
    negative type, so that Sinkhorn divergences are not negative; the square of the paper's metric is not. Both are sums over
    states and actions.

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
        return th.einsum("bna,nam->bnm", probs, one_hot_of(self.placement, len(self.codebook)).to(probs.dtype))

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
    :param members: numbers of those whose consensus is meant; everybody when ``None``
    """

    action_space: spaces.Space[Any]
    observation_space: spaces.Space[Any]
    n_agents: int
    device: th.device
    members: tuple[int, ...] | None = None

    @property
    def discrete(self) -> bool:
        """Whether actions are numbers rather than vectors."""
        return isinstance(self.action_space, spaces.Discrete)


def make_metric(
    team: TeamSpaces,
    *,
    beta: float,
    p: int,
    action_embedding: Any = None,
    action_metric: str = "euclidean",
    metric_coordinates: Sequence[int] | None = None,
    scale_observations: bool = True,
) -> GroundMetric:
    r"""
    The ground metric on a team's spaces.

    :param team: the team's spaces
    :param beta: weight of actions against states
    :param p: exponent, 1 or 2
    :param action_embedding: of discrete actions: ``"one_hot"``, which ``None`` stands for; or one row per action, such as the
        displacement that it causes; or such a table for each agent, shape ``(n_agents, n_actions, k)``
    :param action_metric: ``"euclidean"`` between the points of the embedding; or ``"zero_one"``, which knows only whether two
        actions have the same point, and puts any two others at the distance of one-hot, :math:`\sqrt 2`
    :param metric_coordinates: entries of the flattened observation that count; all when ``None``
    :param scale_observations: divide each coordinate by its standard deviation over the rollout
    :return: the metric
    :raises TypeError: if coordinates are not integers
    :raises ValueError: if a setting does not fit the spaces
    """
    codebook, placement = None, None
    if isinstance(team.action_space, spaces.Discrete):
        merged = action_metric == "zero_one"
        codebook, placement = _codebook(action_embedding, team, int(team.action_space.n), merged=merged)
        if merged:
            codebook = ot.one_hot_embedding(len(codebook), device=team.device)
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


def labels(team: TeamSpaces, action_embedding: Any) -> th.Tensor | None:
    """
    Which label each agent's action has, for divergences that know no distance.

    :param team: the team's spaces
    :param action_embedding: as for :func:`make_metric`; actions at the same point have the same label
    :return: shape ``(n_agents, n_actions)``; ``None`` where labels are the numbers of the actions
    :raises TypeError: if it is no table of numbers
    :raises ValueError: if it does not fit the spaces
    """
    assert isinstance(team.action_space, spaces.Discrete)
    return _codebook(action_embedding, team, int(team.action_space.n), merged=True)[1]


def one_hot_of(placement: th.Tensor, n_points: int | None = None) -> th.Tensor:
    """
    :param placement: which point each agent's action is, shape ``(n_agents, n_actions)``
    :param n_points: how many points there are; as many as are named when omitted
    :return: one where an action is at a point, shape ``(n_agents, n_actions, n_points)``
    """
    return th.nn.functional.one_hot(placement, int(placement.max()) + 1 if n_points is None else n_points)


def _codebook(value: Any, team: TeamSpaces, n_actions: int, *, merged: bool) -> tuple[th.Tensor, th.Tensor | None]:
    """Points and, where agents differ or points are to be merged that coincide, which point each agent's action is."""
    n_agents, device = team.n_agents, team.device
    if value is None:
        value = "one_hot"
    if isinstance(value, str):
        if value != "one_hot":
            raise ValueError(f"`action_embedding` must be 'one_hot', 'matched', 'environment' or a table, got {value!r}")
        return ot.one_hot_embedding(n_actions, device=device), None
    try:
        table = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        raise TypeError(
            f"`action_embedding` must be 'one_hot', 'matched', 'environment' or a table of numbers, got {value!r}"
        ) from None
    if not np.isfinite(table).all():
        raise ValueError("`action_embedding` holds NaN or infinite entries; every action needs a point")
    if table.ndim == 2 and len(table) == n_actions and table.shape[1]:
        if not merged:
            return th.as_tensor(table, device=device), None
        table = np.broadcast_to(table, (n_agents, *table.shape))
    if table.ndim != 3 or table.shape[:2] != (n_agents, n_actions) or not table.shape[2]:
        raise ValueError(
            f"`action_embedding` must have one row for each of the {n_actions} actions, or such a table for each of the "
            f"{n_agents} agents, got shape {table.shape}; 'one_hot' fits always"
        )
    if team.members is not None:
        table = table[list(team.members)]
    # Actions of different agents that do the same thing share a point, up to rounding.
    points, place = np.unique(table.reshape(-1, table.shape[-1]).round(5) + 0.0, axis=0, return_inverse=True)
    placement = th.as_tensor(place.reshape(table.shape[:2]), device=device)
    return th.as_tensor(points, device=device), placement


# Of the extent of all points: what is closer counts as equal, on every machine.
SAME_PLACE = 9


def matched_table(vectors: Any, groups: Sequence[Sequence[int]], mask: np.ndarray | None = None) -> Any:
    r"""
    Places that agents who are to agree have in common, from displacements that they need not have in common.

    In every group the actions of each agent are matched with those of one of them by the assignment of least squared distance,
    optimal transport between sets of points, and matched actions share their mean place. Agents whose actions lead to the same
    places as often, if under other numbers, are matched alike, and where all are such, they keep those places. The agent whose
    actions the others are matched with is one with most actions for whom that costs least. Nothing depends on the order of
    agents and actions: of several that are as good, that is taken whose points come first in the order of their coordinates.

    :param vectors: shape ``(n_agents, n_actions, k)``; what is no such table of finite numbers is returned as it is, for
        :func:`make_metric` to refuse
    :param groups: who is to agree with whom
    :param mask: which actions each agent has, shape ``(n_agents, n_actions)``; all when ``None``
    :return: shape ``(n_agents, n_actions, k)``
    """
    table = _team_table(vectors, groups, mask)
    if table is None:
        return vectors
    places = table.copy()
    for group in groups:
        actions, points = _in_order(table, group, mask)
        # Agents with equal points give equal answers, whatever their numbers are.
        most = max(map(len, points))
        references = sorted((p for p in points if len(p) == most), key=lambda p: p.tolist())
        matchings = [[_assignment(own, reference) for own in points] for reference in references]
        best = matchings[int(np.argmin([round(sum(cost for _, cost in matching), SAME_PLACE) for matching in matchings]))]
        agents = np.repeat(group, [len(held) for held in actions])
        held, partners = np.concatenate(actions), np.concatenate([each for each, _ in best])
        for partner in range(most):
            matched = agents[partners == partner], held[partners == partner]
            places[matched] = table[matched].mean(0)
    return places


def have_common_places(vectors: Any, groups: Sequence[Sequence[int]], mask: np.ndarray | None = None) -> bool:
    """
    :param vectors: as for :func:`matched_table`
    :param groups: who is to agree with whom
    :param mask: which actions each agent has
    :return: whether wherever an action of an agent leads, one of each of its team-mates does
    """
    table = _team_table(vectors, groups, mask)
    if table is None:
        return True
    for group in groups:
        _, points = _in_order(table, group, mask)
        if len({frozenset(map(tuple, each.tolist())) for each in points}) > 1:
            return False
    return True


def _team_table(vectors: Any, groups: Sequence[Sequence[int]], mask: np.ndarray | None) -> np.ndarray | None:
    """Displacements as numbers, or ``None`` for what is no table of the team."""
    try:
        table = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    fits = table.ndim == 3 and table.size and (mask is None or mask.shape == table.shape[:2])
    if not fits or not np.isfinite(table).all() or max((i for group in groups for i in group), default=0) >= len(table):
        return None
    return table


def _in_order(table: np.ndarray, group: Sequence[int], mask: np.ndarray | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The actions of a group's agents, and their points in the unit of the group's extent, both in the order of the points."""
    actions = [np.arange(table.shape[1]) if mask is None else np.flatnonzero(mask[i]) for i in group]
    points = [table[i, held] for i, held in zip(group, actions, strict=True)]
    extent = max(float(np.abs(each).max(initial=0.0)) for each in points) or 1.0
    points = [(each / extent).round(SAME_PLACE) + 0.0 for each in points]
    orders = [np.lexsort(each.T[::-1]) for each in points]
    actions = [held[order] for held, order in zip(actions, orders, strict=True)]
    return actions, [each[order] for each, order in zip(points, orders, strict=True)]


def _assignment(points: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, float]:
    """Which of the others each point is matched with, and what that costs; there are at least as many others."""
    cost = ((points[:, None] - others[None]) ** 2).sum(-1).round(SAME_PLACE)
    rows, columns = linear_sum_assignment(cost)
    return columns, float(cost[rows, columns].sum())


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
