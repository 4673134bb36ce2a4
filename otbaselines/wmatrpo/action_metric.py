"""The ground metric of trust regions: how far apart two actions of an agent are."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines import ot
from otbaselines.common.multi_agent.distributions import DiagonalGaussian, TeamDistribution
from otbaselines.common.vec_env.layout import TeamLayout

# Weights of dimensions beyond this leave nothing of the others in float32.
LARGEST_WEIGHT = 1e6


class ActionMetric:
    """
    Distances between the actions of each agent, and Wasserstein-1 distances between its policies under them.

    :param value: ``None`` for one between different choices, or :math:`\\sum_k |a_k - a'_k|` for vectors. Else for choices
        a table of distances ``(n_actions, n_actions)``, for vectors the weight of each dimension ``(action_dim,)``, or such an
        entry for each agent
    :param layout: the team
    :param action_space: common to the team
    :param device: where distances are computed
    :raises TypeError: if the value is no table of numbers
    :raises ValueError: if it does not fit the spaces, or is no metric
    """

    def __init__(self, value: Any, layout: TeamLayout, action_space: spaces.Space[Any], device: th.device) -> None:
        self.discrete = isinstance(action_space, spaces.Discrete)
        own = [layout.agent_action_spaces[agent] for agent in layout.possible_agents]
        self.sizes = [int(s.n) if isinstance(s, spaces.Discrete) else int(np.prod(s.shape or ())) for s in own]
        width = max(self.sizes)
        self.tables: list[th.Tensor] | None = None
        if value is not None:
            table = _numbers(value)
            ndim = 2 if self.discrete else 1
            if table.ndim == ndim:
                table = np.broadcast_to(table, (layout.n_agents, *table.shape))
            if table.shape != (layout.n_agents, *[width] * ndim):
                wanted = (
                    f"({width}, {width}) of distances between choices"
                    if self.discrete
                    else f"({width},) of weights of the dimensions"
                )
                raise ValueError(
                    f"`ground_metric` must have the shape {wanted}, or one such entry for each of the {layout.n_agents} "
                    f"agents, got {np.asarray(value).shape}"
                )
            self.tables = [self._entry(part, n, device) for part, n in zip(table, self.sizes, strict=True)]

    def _entry(self, part: np.ndarray, n: int, device: th.device) -> th.Tensor:
        # A copy: one table for all agents is a view that must not be written to, which torch warns of.
        cut = th.as_tensor(np.array(part[:n, :n] if self.discrete else part[:n], dtype=np.float32))
        if self.discrete:
            ot.check_metric(cut, name="ground_metric")
            if n > 1 and not bool((cut > 0).any()):
                raise ValueError(
                    "`ground_metric` is zero everywhere, so that no radius bounds anything; give actions distances"
                )
        elif not bool((cut > 0).all()) or not bool((cut <= LARGEST_WEIGHT).all()):
            raise ValueError(
                f"`ground_metric` must weigh every dimension by a positive number up to {LARGEST_WEIGHT:g}, got {cut.tolist()}"
            )
        return cut.to(device)

    def table(self, agent: int) -> th.Tensor:
        """
        :param agent: whose choices
        :return: the distances between them, shape ``(n_actions, n_actions)`` of the agent's own actions
        """
        if self.tables is not None:
            return self.tables[agent]
        return 1.0 - th.eye(self.sizes[agent])

    def distances(self, agent: int, sources: th.Tensor, candidates: th.Tensor) -> th.Tensor:
        """
        :param agent: whose vectors
        :param sources: shape ``(n_states, k, action_dim)``
        :param candidates: shape ``(n_states, m, action_dim)``
        :return: shape ``(n_states, k, m)``
        """
        n = self.sizes[agent]
        weights = 1.0 if self.tables is None else self.tables[agent]
        return th.cdist(sources[..., :n] * weights, candidates[..., :n] * weights, p=1.0)

    def w1(self, new: TeamDistribution, old: TeamDistribution, agent: int) -> th.Tensor:
        """
        :param new: the agent's policies, leading shape ``(n_rows, 1)``
        :param old: likewise
        :param agent: its number
        :return: exact Wasserstein-1 distances, shape ``(n_rows, 1)``
        """
        if self.tables is None:
            return new.w1(old)
        table, n = self.tables[agent], self.sizes[agent]
        if self.discrete:
            ours, theirs = (distribution.probs[..., :n] for distribution in (new, old))  # type: ignore[attr-defined]
            return ot.discrete_w1(ours, theirs, table.to(ours.dtype), validate=False)
        return _weighted(new, table).w1(_weighted(old, table))


def _weighted(policies: Any, weights: th.Tensor) -> DiagonalGaussian:
    """The policies of actions whose dimensions are stretched by the weights."""
    padded = th.ones(policies.mean.shape[-1], device=weights.device)
    padded[: len(weights)] = weights
    return DiagonalGaussian(policies.mean * padded, policies.log_std + padded.log(), policies.mask)


def environment_distances(vectors: Any) -> list[Any]:
    """
    Distances between what actions do.

    :param vectors: an environment's ``agent_action_vectors``, one row per agent and action, shape ``(n_agents, n_actions, k)``
    :return: Euclidean distances in units of the median one between two different actions, nested lists of the shape
        ``(n_agents, n_actions, n_actions)``; zero where two actions of an agent do the same
    """
    table = np.asarray(vectors, dtype=np.float64)
    distances = np.linalg.norm(table[:, :, None] - table[:, None], axis=-1)
    different = distances[distances > 1e-9]
    scaled: list[Any] = (distances / (np.median(different) if different.size else 1.0)).tolist()
    return scaled


def _numbers(value: Any) -> np.ndarray:
    if isinstance(value, th.Tensor):
        value = value.detach().cpu().numpy()
    try:
        table = np.asarray(value)
    except ValueError:
        table = np.empty(0, dtype=object)
    if table.dtype.kind not in "iuf":
        raise TypeError(
            "`ground_metric` must be None, 'environment' or a table of real numbers, whose rows for agents with fewer actions "
            f"are padded to the team's largest number, got {str(value)[:200]}"
        )
    if not np.isfinite(table).all():
        raise ValueError("`ground_metric` holds NaN or infinite entries; every distance must be a number")
    return table.astype(np.float64)
