"""Teams of linear policies in float64, rollouts made by hand, and transport that is recomputed by POT."""

from dataclasses import replace
from typing import Any

import numpy as np
import ot as pot
import torch as th
from gymnasium import spaces

from otbaselines import ot
from otbaselines.common.multi_agent.buffers import AgentRolloutBuffer
from otbaselines.common.multi_agent.distributions import DiagonalGaussian, MaskedCategorical, TeamDistribution
from otbaselines.wbc.consensus import Consensus, ConsensusReport
from otbaselines.wbc.metric import GroundMetric, TeamSpaces, make_metric

N_AGENTS, OBS_DIM, N_ACTIONS, ACTION_DIM = 3, 2, 4, 2
REG, BETA = 0.5, 0.8
WEIGHTS = th.tensor([0.2, 0.5, 0.3], dtype=th.float64)
DISCRETE, CONTINUOUS = spaces.Discrete(N_ACTIONS), spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)


class LinearTeam:
    """
    Policies that are linear in the observation, one matrix per agent.

    :param discrete: categorical policies; normal ones otherwise
    :param mask: actions that the agents have
    :param alike: the same parameters for all agents
    """

    def __init__(self, discrete: bool, *, mask: th.Tensor | None = None, alike: bool = False) -> None:
        width = N_ACTIONS if discrete else ACTION_DIM
        self.discrete, self.mask = discrete, mask
        # The second coordinate of the observation is large.
        self.weight = th.randn(N_AGENTS, OBS_DIM, width, dtype=th.float64) * th.tensor([[1.0], [0.05]], dtype=th.float64)
        self.offset = th.randn(N_AGENTS, width, dtype=th.float64)
        self.log_std = 0.3 * th.randn(N_AGENTS, ACTION_DIM, dtype=th.float64)
        if alike:
            for parameter in self.parameters():
                parameter[1:] = parameter[:1].clone()

    def parameters(self) -> list[th.Tensor]:
        """Everything, each of leading dimension ``n_agents``."""
        return [self.weight, self.offset] if self.discrete else [self.weight, self.offset, self.log_std]

    def policies_at(self, states: th.Tensor) -> TeamDistribution:
        head = th.einsum("nd,kda->nka", states.double(), self.weight) + self.offset
        return MaskedCategorical(head, self.mask) if self.discrete else DiagonalGaussian(head, self.log_std, self.mask)


def rollout(discrete: bool) -> AgentRolloutBuffer:
    """Ten steps of two copies, observations of different scales, actions at random."""
    box = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
    space = DISCRETE if discrete else CONTINUOUS
    buffer = AgentRolloutBuffer(10, 2, N_AGENTS, box, space, device=th.device("cpu"), gamma=0.9, gae_lambda=0.9)
    buffer.observations.copy_(th.randn(buffer.observations.shape) * th.tensor([1.0, 20.0]))
    if discrete:
        buffer.actions.copy_(th.randint(N_ACTIONS, buffer.actions.shape))
    else:
        buffer.actions.copy_(th.randn(buffer.actions.shape))
    return buffer


def metric(discrete: bool, **settings: Any) -> GroundMetric:
    """The metric that the settings of WBC give."""
    box = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
    team = TeamSpaces(DISCRETE if discrete else CONTINUOUS, box, N_AGENTS, th.device("cpu"))
    built = make_metric(team, **{"beta": BETA, "p": 2, **settings})
    # Training is in float32; finite differences need more digits.
    return replace(built, codebook=None if built.codebook is None else built.codebook.double())


def prepare(
    consensus: Consensus, team: LinearTeam, buffer: AgentRolloutBuffer, n_chunks: int = 1, weights: th.Tensor = WEIGHTS
) -> ConsensusReport:
    """Begin an update."""
    return consensus.prepare(team, buffer, n_chunks=n_chunks, reg=REG, weights=weights)  # type: ignore[arg-type]


def loss_of(consensus: Consensus, team: LinearTeam, chunk: int = 0) -> th.Tensor:
    """What WBC adds for every agent, shape ``(n_agents,)``."""
    return consensus.loss(team.policies_at(consensus.states(chunk)), chunk)


def assert_gradient(consensus: Consensus, team: LinearTeam, divergences: Any, *, atol: float, chunk: int = 0) -> None:
    """
    The gradient of every agent's loss is that of its divergence, and is zero in the other agents' parameters.

    :param divergences: maps a team to its agents' true divergences from the fixed barycenter, shape ``(n_agents,)``
    :param atol: how far a directional derivative may be from the central difference
    """
    parameters, step = team.parameters(), 1e-5
    for parameter in parameters:
        parameter.requires_grad_()
    losses = loss_of(consensus, team, chunk)
    gradients = [th.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    for parameter in parameters:
        parameter.requires_grad_(False)
    others = [th.arange(N_AGENTS) != agent for agent in range(N_AGENTS)]
    for number, parameter in enumerate(parameters):
        direction = th.randn_like(parameter)
        parameter += step * direction
        ahead = divergences(team)
        parameter -= 2 * step * direction
        behind = divergences(team)
        parameter += step * direction
        for agent in range(N_AGENTS):
            gradient = gradients[agent][number]
            assert float(gradient[others[agent]].abs().max()) == 0.0
            slope, expected = float((gradient * direction).sum()), float(ahead[agent] - behind[agent]) / (2 * step)
            # A slope that is zero anyway would show nothing.
            assert abs(expected) > 10 * atol
            assert abs(slope - expected) < atol, (agent, number, slope, expected)


def transport(cost: th.Tensor, a: th.Tensor, b: th.Tensor, *, debiased: bool) -> float:
    r"""POT's :math:`\langle P, C\rangle + \varepsilon KL(P | a \otimes b)` on one support, debiased or not."""

    def value(x: th.Tensor, y: th.Tensor) -> float:
        held_x, held_y = x > 0, y > 0
        x, y, inner = x[held_x], y[held_y], cost[held_x][:, held_y]
        plan = pot.bregman.sinkhorn_log(x, y, inner, REG, numItermax=2000, stopThr=1e-7)
        return float((plan * inner).sum() + REG * (plan * (plan / (x[:, None] * y[None, :])).log()).nansum())

    return value(a, b) - 0.5 * (value(a, a) + value(b, b)) if debiased else value(a, b)


def divergence(cost: th.Tensor, a: th.Tensor, b: th.Tensor, *, debiased: bool) -> th.Tensor:
    """The general solver to many digits, for finite differences; shape of the batch."""
    if debiased:
        return ot.sinkhorn_divergence(cost, a, b, reg=REG, tol=1e-9).value
    return ot.sinkhorn(cost, a, b, reg=REG, tol=1e-9).value
