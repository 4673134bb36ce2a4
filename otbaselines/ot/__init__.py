"""Optimal transport for reinforcement learning: batched, warm-started, differentiable, on torch tensors."""

from otbaselines.ot.barycenter import barycenter
from otbaselines.ot.costs import (
    Cost,
    LatticeCost,
    action_cost,
    check_metric,
    one_hot_embedding,
    pairwise,
    state_action_cost,
    validate_cost,
)
from otbaselines.ot.exact import discrete_w1, wasserstein_1d
from otbaselines.ot.free_support import free_support_barycenter
from otbaselines.ot.gaussian import (
    gaussian_sinkhorn_barycenter,
    gaussian_sinkhorn_divergence,
    gaussian_w1,
    gaussian_w2,
    gaussian_w2_barycenter,
)
from otbaselines.ot.maps import ConvexPotential, displacement_cost
from otbaselines.ot.result import BarycenterResult, DivergenceResult, FreeSupportResult, OTResult
from otbaselines.ot.scaling import ScalingBarycenter, ScalingSolver, ScalingState
from otbaselines.ot.sinkhorn import pairwise_sinkhorn, self_transport, sinkhorn, sinkhorn_divergence
from otbaselines.ot.sliced import line_potentials, random_directions, sliced_pairwise, sliced_wasserstein
from otbaselines.ot.trust_region import TrustRegionResult, trust_region_dual

__all__ = [
    "BarycenterResult",
    "ConvexPotential",
    "Cost",
    "DivergenceResult",
    "FreeSupportResult",
    "LatticeCost",
    "OTResult",
    "ScalingBarycenter",
    "ScalingSolver",
    "ScalingState",
    "TrustRegionResult",
    "action_cost",
    "barycenter",
    "check_metric",
    "discrete_w1",
    "displacement_cost",
    "free_support_barycenter",
    "gaussian_sinkhorn_barycenter",
    "gaussian_sinkhorn_divergence",
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
    "trust_region_dual",
    "validate_cost",
    "wasserstein_1d",
]
