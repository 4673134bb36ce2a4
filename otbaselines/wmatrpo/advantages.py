"""What each action of an agent is worth to the team: the joint critics, averaged over team-mates or at their best response."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch as th

from otbaselines.wmatrpo.joint_critic import JointCritics

# Joint actions that a leader's search for the team's best one starts from, and rounds of drawing closer to it.
JOINT_DRAWS, JOINT_ROUNDS = 64, 4
# Actions of a later agent among which its best response is looked for, where they are a continuum.
RESPONSES = 17
# Joint actions of a state that a leader considers where they are draws, and those of a repeated state without a leader.
LEADER_ROWS, JOINT_ROWS = 4, 64
# Joint actions that are judged together, so that what they need stays near the processor: 16 MiB with hidden layers of 64.
TOGETHER = 1 << 16
# Up to so many joint actions a leader's followers are asked for all of their answers, beyond it for those of a search.
MOST_ANSWERS = 1 << 22


class ActionSet(Protocol):
    """The actions of one agent, as the critics read them."""

    def draw(self, shape: tuple[int, ...]) -> th.Tensor:
        """
        :param shape: how many
        :return: actions spread evenly at random, shape ``(*shape, action_width)``
        """

    def near(self, actions: th.Tensor, spread: float) -> th.Tensor:
        """
        :param actions: shape ``(..., action_width)``
        :param spread: in shares of the set's width
        :return: actions near them, of the same shape
        """

    def grid(self, n: int) -> th.Tensor:
        """
        :param n: about how many
        :return: actions that cover the set, shape ``(m, action_width)``
        """


@dataclass(frozen=True)
class MarginalAdvantage:
    r"""
    :math:`\bar A_i(s, a'_i) = E_{a_{-i}}[w(s, a) (Q(s, a'_i, a_{-i}) - b(s))]`, over the team-mates' actions.

    The expectation is taken over the joint actions that are given for a state, before any maximum over :math:`a'_i`: the
    agent's policy does not know what its team-mates are about to do, and a mean of maxima would be larger (Salgarkar and
    Baheri 2025, Eqs. 8, 11 and 15). Joint actions of the rollout are weighted by the likelihood ratios of those updated
    before, those of the present policies by their probabilities.

    Agents that answer know the state and :math:`a'_i`, and no more than the agent itself of what those before it do:
    :math:`\max_{a_{later}} E_{a_{earlier}}`, and not a mean of maxima.

    :param critics: of the joint action
    :param states: as the critics read them, shape ``(n_states, width)``
    :param joint: actions of the team in each state, as the critics read them, shape
        ``(n_states or 1, n_joint, n_agents, width)``
    :param weights: of the joint actions, of mean one in each state, shape ``(n_states, n_joint)``
    :param agent: whose actions are judged
    :param baseline: of each state, shape ``(n_states,)``
    :param scale: the unit of the advantages
    :param optimism: standard deviations of the ensemble that are added to its mean
    :param later: agents that answer with their best response, whatever they do in ``joint``; none for the mean over it
    :param sets: of every agent's actions
    """

    critics: JointCritics
    states: th.Tensor
    joint: th.Tensor
    weights: th.Tensor
    agent: int
    baseline: th.Tensor
    scale: th.Tensor
    optimism: float
    later: tuple[int, ...]
    sets: list[ActionSet]

    @th.no_grad()
    def __call__(self, candidates: th.Tensor) -> th.Tensor:
        """
        :param candidates: actions as the critics read them, shape ``(n_states or 1, n_candidates, action_width)``
        :return: shape ``(n_states, n_candidates)``
        """
        n_states, per_state = len(self.states), self.joint.shape[1] * candidates.shape[1]
        # Asked of all states together, and not again of a part of them.
        tries_all = bool(self.later) and self._is_enumerable(candidates.shape[1])
        if tries_all:
            per_state *= len(self._answers())
        together = max(1, TOGETHER // per_state)
        if together >= n_states:
            return self._of_rows(candidates, tries_all)
        parts = []
        for start in range(0, n_states, together):
            rows = slice(start, start + together)
            own = replace(self, states=self.states[rows], weights=self.weights[rows], baseline=self.baseline[rows])
            own = replace(own, joint=self.joint if len(self.joint) == 1 else self.joint[rows])
            parts.append(own._of_rows(candidates if len(candidates) == 1 else candidates[rows], tries_all))
        return th.cat(parts)

    def _of_rows(self, candidates: th.Tensor, tries_all: bool) -> th.Tensor:
        if not self.later:
            return self._mean(self._judge(self.states, self.joint, self.agent, candidates))
        return self._led_by_all(candidates) if tries_all else self._led(candidates)

    def _mean(self, values: th.Tensor) -> th.Tensor:
        """Over the joint actions: shape ``(n_states, n_joint, ...)`` to ``(n_states, ...)``, less the baseline."""
        ones = [1] * (values.dim() - 2)
        centred = (values - self.baseline.view(-1, 1, *ones)) / self.scale
        return (centred * self.weights.view(*self.weights.shape, *ones)).mean(1)

    def _judge(self, states: th.Tensor, joint: th.Tensor, agent: int, candidates: th.Tensor) -> th.Tensor:
        """The ensemble's judgement, shape ``(n_states, n_joint, n_candidates)``."""
        return optimistic(self.critics.responses(states, joint, agent, candidates), self.optimism)

    def _is_enumerable(self, n_candidates: int) -> bool:
        """Whether the later agents' joint actions are few enough to try all of them for every candidate."""
        number = len(self.states) * self.joint.shape[1] * n_candidates
        for agent in self.later:
            own = self.sets[agent]
            number *= own.n if isinstance(own, Choices) else MOST_ANSWERS
        return number <= MOST_ANSWERS

    def _answers(self) -> th.Tensor:
        """All joint actions of the later agents, shape ``(n_answers, n_later, width)``."""
        own = [self.sets[agent].grid(0) for agent in self.later]
        numbers = th.cartesian_prod(*(th.arange(len(each), device=each.device) for each in own)).view(-1, len(own))
        return th.stack([each[numbers[:, k]] for k, each in enumerate(own)], 1)

    def _led_by_all(self, candidates: th.Tensor) -> th.Tensor:
        """Each candidate with the best that later agents can do, shape ``(n_states, n_candidates)``."""
        answers, n_joint = self._answers(), self.joint.shape[1]
        joint = self.joint.unsqueeze(2).expand(-1, -1, len(answers), -1, -1).clone()
        joint[:, :, :, list(self.later)] = answers
        values = self._judge(self.states, joint.flatten(1, 2), self.agent, candidates)
        of_answers: th.Tensor = values.unflatten(1, (n_joint, len(answers)))  # type: ignore[no-untyped-call]
        return self._mean(of_answers).amax(1)

    def _led(self, candidates: th.Tensor) -> th.Tensor:
        """The same where answers are too many to try: by coordinate ascent from each row's and a good joint action."""
        later, values = list(self.later), None
        taken = self.joint.expand(len(self.states), -1, -1, -1)
        starts = [*taken[:, :, later].unbind(1), self._best_joint(taken)[:, later]]
        for answer in starts:
            joint = taken.unsqueeze(2).expand(-1, -1, candidates.shape[1], -1, -1).clone()
            joint[:, :, :, self.agent] = candidates.unsqueeze(1)
            joint[:, :, :, later] = answer[:, None, None]
            reached = self._ascend(joint, later)
            values = reached if values is None else th.maximum(values, reached)
        assert values is not None
        return values

    def _ascend(self, joint: th.Tensor, agents: list[int]) -> th.Tensor:
        """
        One pass over the agents, each to its best action whatever the earlier agents do.

        :param joint: shape ``(n_states, n_joint, n_candidates, n_agents, width)``; is changed
        :param agents: who answer
        :return: the values reached, shape ``(n_states, n_candidates)``
        """
        values, (n_joint, n_candidates) = None, joint.shape[1:3]
        for agent in agents:
            options, flat = self.sets[agent].grid(RESPONSES), joint.flatten(1, 2)
            judged = self._judge(self.states, flat, agent, options.unsqueeze(0))
            of_options: th.Tensor = judged.unflatten(1, (n_joint, n_candidates))  # type: ignore[no-untyped-call]
            values, index = self._mean(of_options).max(-1)
            present = self._mean(self._judge_joint(flat).view(-1, n_joint, n_candidates))
            better = (values > present)[:, None, :, None]
            values = th.maximum(values, present)
            joint[:, :, :, agent] = th.where(better, options[index].unsqueeze(1), joint[:, :, :, agent])
        assert values is not None
        return values

    def _judge_joint(self, joint: th.Tensor) -> th.Tensor:
        n_states, n_joint = joint.shape[:2]
        states = self.states.unsqueeze(1).expand(-1, n_joint, -1).flatten(0, 1)
        return optimistic(self.critics(states, joint.flatten(0, 1)), self.optimism).view(n_states, n_joint)

    def _best_joint(self, taken: th.Tensor) -> th.Tensor:
        """The best joint action that a cross-entropy search finds in each state, shape ``(n_states, n_agents, width)``."""
        draws = th.stack([each.draw((len(self.states), JOINT_DRAWS)) for each in self.sets], 2)
        draws = th.cat([draws, taken], 1)
        rows = th.arange(len(self.states), device=draws.device)
        best = draws[rows, self._judge_joint(draws).argmax(1)]
        for turn in range(1, JOINT_ROUNDS):
            repeated = best.unsqueeze(1).expand(-1, JOINT_DRAWS, -1, -1)
            near = th.stack([each.near(repeated[:, :, i], 0.5**turn) for i, each in enumerate(self.sets)], 2)
            near = th.cat([near, best.unsqueeze(1)], 1)
            best = near[rows, self._judge_joint(near).argmax(1)]
        return best


def optimistic(values: th.Tensor, optimism: float) -> th.Tensor:
    """
    :param values: of an ensemble, shape ``(n_critics, ...)``
    :param optimism: standard deviations that are added to the mean
    :return: shape ``(...)``
    """
    if optimism == 0.0:
        return values[0] if len(values) == 1 else values.mean(0)
    return values.mean(0) + optimism * values.std(0, unbiased=False)


@dataclass(frozen=True)
class Choices:
    """
    Finitely many actions, one-hot.

    :param n: the agent's own
    :param width: of the team's largest set
    :param device: where tensors live
    """

    n: int
    width: int
    device: th.device

    def grid(self, n: int) -> th.Tensor:
        return th.eye(self.width, device=self.device)[: self.n]

    def draw(self, shape: tuple[int, ...]) -> th.Tensor:
        return self.grid(self.n)[th.randint(self.n, shape, device=self.device)]

    def near(self, actions: th.Tensor, spread: float) -> th.Tensor:
        # Nothing is between two choices: a few are drawn anew.
        redrawn = th.rand(actions.shape[:-1], device=self.device) < spread
        return th.where(redrawn.unsqueeze(-1), self.draw(tuple(actions.shape[:-1])), actions)


@dataclass(frozen=True)
class Box:
    """
    A box of vectors, in the scale in which the critics read them.

    :param low: shape ``(width,)``, equal to ``high`` in dimensions that the agent lacks
    :param high: likewise
    """

    low: th.Tensor
    high: th.Tensor

    def _stretch(self, unit: th.Tensor) -> th.Tensor:
        return self.low + unit * (self.high - self.low)

    def grid(self, n: int) -> th.Tensor:
        if len(self.low) == 1:
            return self._stretch(th.linspace(0.0, 1.0, n, device=self.low.device).unsqueeze(1))
        points = th.quasirandom.SobolEngine(len(self.low), scramble=True, seed=0).draw(n)
        return self._stretch(points.to(self.low))

    def draw(self, shape: tuple[int, ...]) -> th.Tensor:
        return self._stretch(th.rand(*shape, len(self.low), device=self.low.device))

    def near(self, actions: th.Tensor, spread: float) -> th.Tensor:
        noise = spread * (self.high - self.low) * th.randn_like(actions)
        return th.minimum(th.maximum(actions + noise, self.low), self.high)
