"""Who agrees with whom: the groups of a team, each with a consensus of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from otbaselines.common.multi_agent.distributions import TeamDistribution
from otbaselines.common.vec_env.layout import TeamLayout
from otbaselines.wbc.consensus import Consensus, ConsensusReport, Policies, Rollout


def check_groups(value: Any) -> None:
    """
    What can be said of ``consensus_groups`` before the team is known.

    :param value: lists of agents, or ``None``
    :raises TypeError: if it is anything else
    :raises ValueError: if an agent is in two groups
    """
    if value is None:
        return

    def is_list(x: Any) -> bool:
        return isinstance(x, list | tuple)

    if not is_list(value) or not all(is_list(group) and all(isinstance(name, str) for name in group) for group in value):
        raise TypeError(f"`consensus_groups` must be a list of lists of agents' names or None, got {value!r}")
    named = [name for group in value for name in group]
    twice = [name for name in dict.fromkeys(named) if named.count(name) > 1]
    if twice:
        raise ValueError(
            f"`consensus_groups` names {twice[0]!r} twice, got {value!r}; an agent is pulled to one group's barycenter"
        )


def groups_of(layout: TeamLayout, value: Sequence[Sequence[str]] | None) -> list[tuple[int, ...]]:
    """
    The groups with anybody to agree with.

    :param layout: the team
    :param value: lists of agents; those with equal spaces when ``None``
    :return: numbers of the agents of each group of two or more
    :raises ValueError: if an agent is unknown
    """
    agents = layout.possible_agents
    if value is None:
        spaces = [(layout.agent_observation_spaces[name], layout.agent_action_spaces[name]) for name in agents]
        first = [next(k for k, other in enumerate(spaces) if other == own) for own in spaces]
        groups = [tuple(i for i, k in enumerate(first) if k == leader) for leader in dict.fromkeys(first)]
    else:
        unknown = [name for group in value for name in group if name not in agents]
        if unknown:
            raise ValueError(
                f"`consensus_groups` names {unknown[0]!r}, who is not in the team of {list(agents)}, got {value!r}"
            )
        groups = [tuple(agents.index(name) for name in group) for group in value]
    return [group for group in groups if len(group) > 1]


@dataclass(frozen=True)
class _GroupRollout:
    """What a group's agents did in a rollout."""

    n_agents: int
    device: th.device
    observations: PyTorchObs
    actions: th.Tensor
    active: th.Tensor
    all_active: bool

    @classmethod
    def of(cls, rollout: Rollout, agents: th.Tensor) -> "_GroupRollout":
        seen = rollout.observations
        if isinstance(seen, dict):
            observations: PyTorchObs = {name: value.index_select(2, agents) for name, value in seen.items()}
        else:
            observations = seen.index_select(2, agents)
        actions, active = (each.index_select(2, agents) for each in (rollout.actions, rollout.active))
        return cls(len(agents), rollout.device, observations, actions, active, rollout.all_active)


@dataclass(frozen=True)
class _GroupPolicies:
    """A group's policies."""

    team: Policies
    agents: th.Tensor

    def policies_at(self, states: PyTorchObs, /) -> TeamDistribution:
        return self.team.policies_at(states).subset(self.agents)


class GroupedConsensus:
    """
    The consensus of every group of a team, as one loss.

    :param groups: numbers of each group's agents, at least two
    :param parts: each group's consensus
    :param n_agents: agents in the team
    :param device: where the parts compute
    """

    def __init__(
        self, groups: Sequence[tuple[int, ...]], parts: Sequence[Consensus], n_agents: int, device: th.device
    ) -> None:
        self.groups, self.parts, self.n_agents = list(groups), list(parts), n_agents
        self._members = [th.tensor(group, device=device) for group in groups]
        # The usual case, in which nothing is to be picked out.
        self._is_everybody = [group == tuple(range(n_agents)) for group in groups]

    def prepare(
        self, policy: Policies, rollout: Rollout, *, n_chunks: int, reg: float | None, weights: th.Tensor
    ) -> list[ConsensusReport]:
        """
        Draw every group's support from a new rollout and measure its disagreement.

        :param policy: the team's policies
        :param rollout: the team's rollout
        :param n_chunks: minibatches per epoch
        :param reg: entropic strength; ``None`` for forms without
        :param weights: of each agent in its group's barycenter, shape ``(n_agents,)``
        :return: one report for each group
        """
        reports = []
        for part, agents, everybody in zip(self.parts, self._members, self._is_everybody, strict=True):
            own: tuple[Policies, Rollout] = (policy, rollout)
            if not everybody:
                own = _GroupPolicies(policy, agents), _GroupRollout.of(rollout, agents)
            reports.append(part.prepare(*own, n_chunks=n_chunks, reg=reg, weights=weights[agents]))
        return reports

    def states(self, chunk: int) -> PyTorchObs:
        """
        The states at which :meth:`loss` needs the agents' policies, group after group.

        :param chunk: number of the minibatch within its epoch
        :return: rows of observations, shape ``(n, ...)``
        """
        states = [part.states(chunk) for part in self.parts]
        self._lengths = [len(next(iter(each.values())) if isinstance(each, dict) else each) for each in states]
        first = states[0]
        if len(states) == 1:
            return first
        if isinstance(first, dict):
            return {name: th.cat([each[name] for each in states]) for name in first}  # type: ignore[index]
        return th.cat(states)  # type: ignore[arg-type]

    def loss(self, policies: TeamDistribution, chunk: int) -> th.Tensor:
        """
        :param policies: the agents' policies at :meth:`states`, as they are now, leading shape ``(n, n_agents)``
        :param chunk: number of the minibatch within its epoch
        :return: what each agent's divergence has the gradient of, the groups' agents one after the other
        """
        losses, start = [], 0
        for part, agents, everybody, length in zip(self.parts, self._members, self._is_everybody, self._lengths, strict=True):
            own = policies if everybody else policies.subset(agents, slice(start, start + length))
            losses.append(part.loss(own, chunk))
            start += length
        return losses[0] if len(losses) == 1 else th.cat(losses)
