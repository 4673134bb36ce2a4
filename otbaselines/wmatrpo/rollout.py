"""What one rollout says about a team, and what its policies would do in the same states now."""

import math
from collections.abc import Callable
from typing import Any

import torch as th

from otbaselines.common.multi_agent.sequential import TeamSteps
from otbaselines.wmatrpo.advantages import LEADER_ROWS, ActionSet, Choices

# Joint actions of the team-mates in each state: all of them up to the first number, else so many draws of choices or vectors.
ENUMERATED, DRAWN_CHOICES, DRAWN_VECTORS = 32, 16, 8


class JointRollout:
    """
    A rollout as the joint critics read it, shared by all agents of a round.

    :param steps: the rollout
    :param inputs: its states, shape ``(n_rows, width)``
    :param actions: the actions that were taken, shape ``(n_rows, n_agents, action_width)``
    :param values: of the states, shape ``(n_rows,)``
    :param judged: advantages of the joint actions, in units of ``scale``, shape ``(n_rows,)``
    :param scale: the unit of the advantages
    :param optimism: standard deviations of the ensemble that are added to its mean
    :param sets: of every agent's actions
    """

    def __init__(
        self,
        steps: TeamSteps,
        inputs: th.Tensor,
        actions: th.Tensor,
        values: th.Tensor,
        judged: th.Tensor,
        scale: th.Tensor,
        optimism: float,
        sets: list[ActionSet],
    ) -> None:
        self.inputs = inputs
        self.actions = actions
        self.values = values
        self.judged = judged
        self.scale = scale
        self.optimism = optimism
        self.sets = sets
        observations = steps.observations if isinstance(steps.observations, dict) else {"": steps.observations}
        everything = [inputs, *observations.values()]
        self.is_one_state = steps.active is None and all(bool((x == x[:1]).all()) for x in everything)


class TeamMates:
    r"""
    Joint actions that stand for :math:`a_{-i} \sim \pi_{-i}(\cdot | s)` in each state, as the policies are at the time.

    Where the team-mates have few joint actions these are all of them, weighted by their probabilities. Else they are draws, of
    which those of one agent are replaced when its policy has moved: a round of n agents draws for 2 n agents, and not for
    :math:`n^2`.

    :param policies: of the team, at the states, leading shape ``(n_states, n_agents)``
    :param encode: turns the actions of some agents, shape ``(..., n_some, ...)``, and their numbers into what the critics read
    :param sets: of every agent's actions
    :param n_joint: joint actions in each state; all up to ``ENUMERATED``, else ``DRAWN_CHOICES`` or ``DRAWN_VECTORS``, when
        omitted
    """

    def __init__(
        self,
        policies: Any,
        encode: Callable[[th.Tensor, slice], th.Tensor],
        sets: list[ActionSet],
        n_joint: int | None = None,
    ) -> None:
        self._encode = encode
        self._sets = sets
        are_choices = all(isinstance(each, Choices) for each in sets)
        drawn = DRAWN_CHOICES if are_choices else DRAWN_VECTORS
        self._n_joint = 1 if len(sets) == 1 else drawn if n_joint is None else n_joint
        self._enumerates = can_enumerate(sets, n_joint)
        if self._enumerates:
            self._probs: list[th.Tensor] = list(policies.probs.unbind(1))
        else:
            everybody = slice(0, len(sets))
            self._drawn = th.stack([encode(policies.sample(), everybody) for _ in range(self._n_joint)], 1)

    def joint(self, agent: int, answering: tuple[int, ...] = ()) -> tuple[th.Tensor, th.Tensor]:
        """
        :param agent: whose own action in them means nothing
        :param answering: further agents of whom this is so; of draws, ``LEADER_ROWS`` are taken where there are any
        :return: joint actions, shape ``(n_states or 1, n_joint, n_agents, action_width)``, and their weights, of mean one in
            each state, shape ``(n_states, n_joint)``
        """
        if not self._enumerates:
            drawn = self._drawn[:, :LEADER_ROWS] if answering else self._drawn
            return drawn, th.ones(drawn.shape[:2], device=drawn.device)
        device, silent = self._probs[0].device, {agent, *answering}
        own = [th.arange(1 if i in silent else each.n, device=device) for i, each in enumerate(self._sets)]  # type: ignore[attr-defined]
        numbers = th.cartesian_prod(*own).view(-1, len(own))
        weights = th.ones(1, 1, device=device)
        for other, probs in enumerate(self._probs):
            if other not in silent:
                weights = weights * probs[:, numbers[:, other]]
        encoded = self._encode(numbers, slice(0, len(own)))
        return encoded.unsqueeze(0), weights.expand(len(self._probs[0]), -1) * len(numbers)

    def moved(self, agent: int, policies: Any) -> None:
        """
        :param agent: whose policy is another now
        :param policies: its own, at the states, leading shape ``(n_states, 1)``
        """
        if self._enumerates:
            # Of repeated states the first will do.
            self._probs[agent] = policies.probs[: len(self._probs[agent]), 0]
        else:
            own = slice(agent, agent + 1)
            drawn = [self._encode(policies.sample(), own)[:, 0] for _ in range(self._n_joint)]
            self._drawn[:, :, agent] = th.stack(drawn, 1)


def can_enumerate(sets: list[ActionSet], n_joint: int | None = None) -> bool:
    """
    :param sets: of every agent's actions
    :param n_joint: joint actions in each state; ``ENUMERATED`` when omitted
    :return: whether everybody's team-mates have no more joint actions than that
    """
    if not all(isinstance(each, Choices) for each in sets):
        return False
    limit, sizes = ENUMERATED if n_joint is None else n_joint, [each.n for each in sets]  # type: ignore[attr-defined]
    return all(math.prod(sizes[:i] + sizes[i + 1 :]) <= limit for i in range(len(sizes)))
