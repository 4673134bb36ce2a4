"""Optimal transport for reinforcement learning: batched, warm-started, differentiable, on torch tensors."""

from otbaselines.ot.barycenter import barycenter
from otbaselines.ot.costs import (
    Cost,
    LatticeCost,
    action_cost,
    one_hot_embedding,
    pairwise,
    state_action_cost,
    validate_cost,
)
from otbaselines.ot.exact import discrete_w1, gaussian_w1, gaussian_w2, gaussian_w2_barycenter, wasserstein_1d
from otbaselines.ot.free_support import free_support_barycenter
from otbaselines.ot.result import BarycenterResult, OTResult
from otbaselines.ot.sinkhorn import pairwise_sinkhorn, self_transport, sinkhorn, sinkhorn_divergence
from otbaselines.ot.sliced import line_potentials, random_directions, sliced_pairwise, sliced_wasserstein

__all__ = [
    "BarycenterResult",
    "Cost",
    "LatticeCost",
    "OTResult",
    "action_cost",
    "barycenter",
    "discrete_w1",
    "free_support_barycenter",
    "gaussian_w1",
    "gaussian_w2",
    "gaussian_w2_barycenter",
    "line_potentials",
    "one_hot_embedding",
    "pairwise",
    "pairwise_sinkhorn",
    "random_directions",
    "self_transport",
    "sinkhorn",
    "sinkhorn_divergence",
    "sliced_pairwise",
    "sliced_wasserstein",
    "state_action_cost",
    "validate_cost",
    "wasserstein_1d",
]
