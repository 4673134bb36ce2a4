"""Small random transport problems, with empty bins, shared by the tests of the transport layer."""

from __future__ import annotations

import torch as th

from otbaselines import ot


def measures(n_agents: int, n: int, *, seed: int = 0, empty: float = 0.4, dtype: th.dtype = th.float64) -> th.Tensor:
    """Histograms of which about the share ``empty`` of the bins is zero."""
    generator = th.Generator().manual_seed(seed)
    weights = th.rand(n_agents, n, generator=generator, dtype=th.float64) ** 2
    weights = weights * (th.rand(n_agents, n, generator=generator) >= empty)
    weights[:, 0] += 0.01
    return (weights / weights.sum(-1, keepdim=True)).to(dtype)


def cost(n: int, *, seed: int = 0, p: float = 1.0, dtype: th.dtype = th.float64) -> th.Tensor:
    """State-action cost of random pairs, in units of its median."""
    generator = th.Generator().manual_seed(seed)
    states = th.rand(n, 2, generator=generator, dtype=th.float64)
    actions = th.randint(5, (n,), generator=generator)
    embedding = ot.one_hot_embedding(5, dtype=th.float64)
    matrix = ot.state_action_cost(states, actions, embedding=embedding, beta=0.4, p=p)
    return (matrix / matrix.median()).to(dtype)


def directional_derivative(function, x: th.Tensor, direction: th.Tensor, step: float = 1e-5) -> float:  # type: ignore[no-untyped-def]
    """Central difference."""
    return float((function(x + step * direction) - function(x - step * direction)).sum()) / (2 * step)
