"""What every form of consensus offers to WBC: a preparation per rollout and a loss per minibatch."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from otbaselines.common.multi_agent.distributions import TeamDistribution


class Policies(Protocol):
    """A team's policies, or a group's."""

    def policies_at(self, states: PyTorchObs, /) -> TeamDistribution:
        """Every agent's policy at the same states, leading shape ``(n, n_agents)``."""


class Rollout(Protocol):
    """
    A team's rollout, or a group's; tensors have the leading shape ``(n_steps, n_copies, n_agents)``.

    :ivar n_agents: agents
    :ivar device: where it is
    :ivar observations: what they saw
    :ivar actions: what they did
    :ivar active: whether they were there
    :ivar all_active: whether all were, always
    """

    @property
    def n_agents(self) -> int: ...
    @property
    def device(self) -> th.device: ...
    @property
    def observations(self) -> PyTorchObs: ...
    @property
    def actions(self) -> th.Tensor: ...
    @property
    def active(self) -> th.Tensor: ...
    @property
    def all_active(self) -> bool: ...


@dataclass(frozen=True)
class ConsensusReport:
    r"""
    How far apart the agents were when the rollout was collected.

    :param divergences: :math:`W(\mu_i, \mu^*)` of every agent, shape ``(n_agents,)``, in the unit of the ground cost
    :param max_divergence: :math:`D_t = \max_{ij} W(\mu_i, \mu_j)` (Baheri 2025, Thm. 3.1), shape ``()``
    :param solver_error: by how much the solvers' plans miss their marginals at most, in total mass, shape ``()``; ``None``
        for closed forms
    :param tolerance: the error at which the solvers stop; a larger one means that they stopped early
    """

    divergences: th.Tensor
    max_divergence: th.Tensor
    solver_error: th.Tensor | None = None
    tolerance: float = math.inf


class Consensus(ABC):
    """
    A penalty on the agents' disagreement.

    :param n_support: states in the team's common support
    :param generator: random stream of its own, so that consensus never disturbs the learner's
    """

    def __init__(self, n_support: int, generator: th.Generator) -> None:
        self.n_support = n_support
        self.generator = generator

    @abstractmethod
    def prepare(
        self,
        policy: Policies,
        buffer: Rollout,
        *,
        n_chunks: int,
        reg: float | None,
        weights: th.Tensor,
    ) -> ConsensusReport:
        """
        Draw the support from a new rollout and measure disagreement on it.

        :param policy: the team's policies
        :param buffer: the rollout
        :param n_chunks: minibatches per epoch
        :param reg: entropic strength; ``None`` for forms without
        :param weights: of the agents in the barycenter, shape ``(n_agents,)``
        :return: the disagreement
        """

    @abstractmethod
    def states(self, chunk: int) -> PyTorchObs:
        """
        The states at which :meth:`loss` needs the agents' policies.

        :param chunk: number of the minibatch within its epoch
        :return: rows of observations, shape ``(n, ...)``
        """

    @abstractmethod
    def loss(self, policies: TeamDistribution, chunk: int) -> th.Tensor:
        """
        A quantity whose gradient with respect to agent i's parameters is that of agent i's divergence.

        :param policies: the agents' policies at :meth:`states`, as they are now, leading shape ``(n, n_agents)``
        :param chunk: number of the minibatch within its epoch
        :return: shape ``(n_agents,)``
        """


def draw_states(
    buffer: Rollout, n_states: int, generator: th.Generator, *, agent: int | None = None
) -> tuple[PyTorchObs, th.Tensor]:
    """
    Observations that agents made during the rollout, drawn with replacement.

    :param buffer: the rollout
    :param n_states: how many
    :param generator: random stream, on the buffer's device
    :param agent: only this agent's; those of the whole team when omitted
    :return: rows of observations ``(n_states, ...)``, and the drawn indices into ``(n_steps, n_copies, n_agents)``
        flattened
    """
    n_agents, device = buffer.n_agents, buffer.device
    if buffer.all_active:
        index = th.randint(buffer.active.numel(), (n_states,), device=device, generator=generator)
        if agent is not None:
            index = index - index % n_agents + agent
    else:
        active = buffer.active if agent is None else buffer.active[..., agent]
        alive = active.flatten().nonzero().squeeze(1)
        # An agent that was never there in this rollout lends its place to whatever the buffer holds.
        alive = alive if len(alive) else th.arange(active.numel(), device=device)
        index = alive[th.randint(len(alive), (n_states,), device=device, generator=generator)]
        if agent is not None:
            index = index * n_agents + agent
    return rows_of(buffer.observations, index), index


def rows_of(observations: PyTorchObs, index: th.Tensor) -> PyTorchObs:
    """
    :param observations: shape ``(n_steps, n_copies, n_agents, ...)``
    :param index: positions in the first three dimensions, flattened
    :return: rows, shape ``(len(index), ...)``
    """
    if isinstance(observations, dict):
        return {key: value.flatten(0, 2)[index] for key, value in observations.items()}
    return observations.flatten(0, 2)[index]
