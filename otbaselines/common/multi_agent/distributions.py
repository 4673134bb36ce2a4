"""
Action distributions of a whole team at once.

Every tensor carries leading dimensions ``(batch, n_agents)``. Discrete actions of agents with fewer choices than the
team's largest space are masked out: they have probability zero, are never drawn, and carry no gradient.

Divergences compare two distributions agent by agent: :meth:`~TeamDistribution.kl` and :meth:`~TeamDistribution.w1` between a
team and its :meth:`~TeamDistribution.detach` are what trust regions bound. :meth:`~TeamDistribution.select` picks one agent.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import TanhBijector

from otbaselines import ot

# A finite stand-in for log 0: `0 * log 0` in the entropy stays zero, and its gradient stays finite.
LOG_ZERO = -1.0e8
# Below this many choices, a CPU's softmax is quicker along the batch: at five in a quarter of the time and less. From 16 on it
# would take longer.
FEW_CHOICES = 12


class TeamDistribution(ABC):
    """Distribution over the actions of every agent of every copy."""

    @abstractmethod
    def sample(self, generator: th.Generator | None = None) -> th.Tensor:
        """
        :param generator: source of randomness; torch's global one when omitted
        :return: one action per agent, shape ``(batch, n_agents, ...)``
        """

    @abstractmethod
    def mode(self) -> th.Tensor:
        """:return: the most probable action per agent, shape ``(batch, n_agents, ...)``"""

    @abstractmethod
    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: shape ``(batch, n_agents, ...)``
        :return: log-likelihood of each agent's action, shape ``(batch, n_agents)``
        """

    @abstractmethod
    def entropy(self) -> th.Tensor:
        """:return: entropy in nats, shape ``(batch, n_agents)``"""

    @property
    @abstractmethod
    def n_agents(self) -> int:
        """Agents, the size of the second dimension."""

    @abstractmethod
    def _kl(self, other: Any) -> th.Tensor:
        """Kullback-Leibler divergence from a distribution of the same family."""

    @abstractmethod
    def _w1(self, other: Any, cost: th.Tensor | None) -> th.Tensor:
        """Wasserstein distance to a distribution of the same family."""

    def kl(self, other: "TeamDistribution") -> th.Tensor:
        r"""
        :math:`KL(\pi_i \,\|\, \pi'_i)` of every agent, in closed form.

        :param other: the second argument, of the same family; a single agent is compared with every agent
        :return: in nats, shape ``(batch, n_agents)``; infinite where this agent has a choice that the other lacks. Of
            continuous actions the dimensions that both have are compared
        :raises TypeError: if the families differ
        """
        return self._kl(self._same_family(other))

    def w1(self, other: "TeamDistribution", cost: th.Tensor | None = None) -> th.Tensor:
        r"""
        Exact Wasserstein-1 distance between every agent's policy and its counterpart in ``other``.

        One choice among many: under the ground metric ``cost``, total variation by default. Several choices or coin flips:
        under the number of those that differ (Hamming distance), which for independent factors is the sum of their total
        variations. Continuous actions: under :math:`\sum_k |a_k - a'_k|`, the sum over independent dimensions.

        :param other: of the same family; a single agent is compared with every agent
        :param cost: for one choice among many, distances between the choices, shape ``(n_actions, n_actions)``
        :return: in the unit of the ground metric, shape ``(batch, n_agents)``; its gradient is zero where the two agree,
            unless ``cost`` is a general metric on more than eight choices
        :raises TypeError: if the families differ
        :raises ValueError: if the family takes no ``cost``, or it has another size
        """
        if cost is not None and not isinstance(self, MaskedCategorical):
            raise ValueError(
                f"`cost` is for one choice among many, but a {type(self).__name__} sums over its dimensions; leave it out"
            )
        return self._w1(self._same_family(other), cost)

    def _same_family(self, other: "TeamDistribution") -> "TeamDistribution":
        if type(other) is not type(self):
            raise TypeError(f"`other` must be a {type(self).__name__}, got {type(other).__name__}")
        return other

    def _map(self, function: Callable[[th.Tensor], th.Tensor]) -> Self:
        """The distribution whose tensors, all of which end in ``(n_agents or 1, width)``, are those of this one, changed."""
        changed = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, th.Tensor):
                setattr(changed, name, function(value))
        return changed

    def detach(self) -> Self:
        """:return: the same distribution as a constant, which stays what it is when its policy's parameters are written to"""
        # Where a deviation does not depend on the state, it is a parameter itself.
        return self._map(lambda tensor: tensor.detach().clone())

    def select(self, agent: int) -> Self:
        """
        One agent's distribution.

        :param agent: its number, from 0 to ``n_agents - 1``
        :return: a team of one, with leading shape ``(batch, 1)``
        :raises IndexError: if there is no such agent
        """
        if not 0 <= agent < self.n_agents:
            raise IndexError(f"`agent` must be from 0 to {self.n_agents - 1}, got {agent}")
        return self._map(lambda tensor: tensor if tensor.shape[-2] == 1 else tensor[..., agent : agent + 1, :])

    def subset(self, agents: th.Tensor, rows: slice = slice(None)) -> Self:
        """
        Some agents' distributions at some of the rows.

        :param agents: their numbers, shape ``(k,)``
        :param rows: of the batch
        :return: with leading shape ``(len(rows), k)``
        """

        def chosen(tensor: th.Tensor) -> th.Tensor:
            # What does not depend on the state has no rows, and what agents share is there once.
            tensor = tensor[rows] if tensor.dim() > 2 else tensor
            return tensor if tensor.shape[-2] == 1 else tensor.index_select(-2, agents)

        return self._map(chosen)

    def get_actions(self, deterministic: bool = False) -> th.Tensor:
        """
        :param deterministic: the mode instead of a sample
        :return: one action per agent, shape ``(batch, n_agents, ...)``
        """
        return self.mode() if deterministic else self.sample()


def _log_softmax(logits: th.Tensor) -> th.Tensor:
    """Over the last dimension, which for few choices on a CPU becomes the first for as long as it takes."""
    # A trace serves other devices too, and must not depend on sizes.
    is_traced = th.jit.is_tracing()  # type: ignore[attr-defined]
    if is_traced or logits.device.type != "cpu" or logits.shape[-1] >= FEW_CHOICES:
        return logits.log_softmax(-1)
    return logits.movedim(-1, 0).contiguous().log_softmax(0).movedim(0, -1).contiguous()


class MaskedCategorical(TeamDistribution):
    """
    Categorical over ``n_actions`` choices.

    :param logits: unnormalised log-probabilities, shape ``(batch, n_agents, n_actions)``
    :param mask: ``True`` where an agent has that action, shape ``(n_agents, n_actions)``; all when omitted
    """

    def __init__(self, logits: th.Tensor, mask: th.Tensor | None = None) -> None:
        if mask is not None:
            logits = logits.masked_fill(~mask, LOG_ZERO)
        self.mask = mask
        self.log_probs = _log_softmax(logits)

    @property
    def n_agents(self) -> int:
        return self.log_probs.shape[-2]

    def divide(self, n_rows: int) -> tuple["MaskedCategorical", "MaskedCategorical"]:
        """
        :param n_rows: rows of the first part
        :return: the distributions of the first rows and of the others
        """
        # Backwards this is one concatenation, where two slices would each fill a whole tensor with zeros.
        first, others = self.log_probs.split((n_rows, self.log_probs.shape[0] - n_rows))
        return self._with(first), self._with(others)

    def _with(self, log_probs: th.Tensor) -> "MaskedCategorical":
        made = MaskedCategorical.__new__(MaskedCategorical)
        made.mask, made.log_probs = self.mask, log_probs
        return made

    @property
    def probs(self) -> th.Tensor:
        """Probabilities, shape ``(batch, n_agents, n_actions)``."""
        return self.log_probs.exp()

    def sample(self, generator: th.Generator | None = None) -> th.Tensor:
        # The exponential race: argmax p / E has distribution p, and a masked action's 0 / E never wins.
        noise = th.empty_like(self.log_probs).exponential_(generator=generator)
        return (self.probs / noise.clamp_min_(1e-30)).argmax(-1)

    def mode(self) -> th.Tensor:
        return self.log_probs.argmax(-1)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.log_probs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> th.Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def _kl(self, other: "MaskedCategorical") -> th.Tensor:
        terms = self.probs * (self.log_probs - other.log_probs)
        if other.mask is not None:
            # What neither has counts zero; what only this one has, with whatever probability, counts infinite.
            own = th.ones_like(other.mask) if self.mask is None else self.mask
            terms = terms.masked_fill(~other.mask, 0.0).masked_fill(own & ~other.mask, math.inf)
        return terms.sum(-1)

    def _w1(self, other: "MaskedCategorical", cost: th.Tensor | None) -> th.Tensor:
        if cost is None:
            return 0.5 * (self.probs - other.probs).abs().sum(-1)
        return ot.discrete_w1(self.probs, other.probs, cost, validate=False)


class MultiCategorical(TeamDistribution):
    """
    Independent categoricals, one per action dimension.

    :param logits: concatenated logits, shape ``(batch, n_agents, sum(nvec))``
    :param nvec: number of choices of each dimension
    """

    def __init__(self, logits: th.Tensor, nvec: list[int]) -> None:
        self.factors = [MaskedCategorical(part) for part in logits.split(nvec, dim=-1)]

    def sample(self, generator: th.Generator | None = None) -> th.Tensor:
        return th.stack([factor.sample(generator) for factor in self.factors], -1)

    def mode(self) -> th.Tensor:
        return th.stack([factor.mode() for factor in self.factors], -1)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        parts = [factor.log_prob(action) for factor, action in zip(self.factors, actions.unbind(-1), strict=True)]
        return th.stack(parts, -1).sum(-1)

    def entropy(self) -> th.Tensor:
        return th.stack([factor.entropy() for factor in self.factors], -1).sum(-1)

    @property
    def n_agents(self) -> int:
        return self.factors[0].n_agents

    def _map(self, function: Callable[[th.Tensor], th.Tensor]) -> Self:
        changed = copy(self)
        changed.factors = [factor._map(function) for factor in self.factors]
        return changed

    def _kl(self, other: "MultiCategorical") -> th.Tensor:
        parts = [mine.kl(theirs) for mine, theirs in zip(self.factors, other.factors, strict=True)]
        return th.stack(parts, -1).sum(-1)

    def _w1(self, other: "MultiCategorical", cost: th.Tensor | None) -> th.Tensor:
        parts = [mine.w1(theirs) for mine, theirs in zip(self.factors, other.factors, strict=True)]
        return th.stack(parts, -1).sum(-1)


class IndependentBernoulli(TeamDistribution):
    """
    Independent coin flips.

    :param logits: log-odds, shape ``(batch, n_agents, n)``
    """

    def __init__(self, logits: th.Tensor) -> None:
        self.logits = logits

    def sample(self, generator: th.Generator | None = None) -> th.Tensor:
        return th.bernoulli(self.logits.sigmoid(), generator=generator)

    def mode(self) -> th.Tensor:
        return (self.logits > 0).to(self.logits.dtype)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return -th.nn.functional.binary_cross_entropy_with_logits(self.logits, actions, reduction="none").sum(-1)

    def entropy(self) -> th.Tensor:
        return th.nn.functional.binary_cross_entropy_with_logits(self.logits, self.logits.sigmoid(), reduction="none").sum(-1)

    @property
    def n_agents(self) -> int:
        return self.logits.shape[-2]

    def _kl(self, other: "IndependentBernoulli") -> th.Tensor:
        # log p and log (1 - p) from the log-odds, neither of which overflows.
        log_sigmoid = th.nn.functional.logsigmoid
        heads = self.logits.sigmoid() * (log_sigmoid(self.logits) - log_sigmoid(other.logits))
        tails = (-self.logits).sigmoid() * (log_sigmoid(-self.logits) - log_sigmoid(-other.logits))
        return (heads + tails).sum(-1)

    def _w1(self, other: "IndependentBernoulli", cost: th.Tensor | None) -> th.Tensor:
        return (self.logits.sigmoid() - other.logits.sigmoid()).abs().sum(-1)


class DiagonalGaussian(TeamDistribution):
    """
    Independent normals, one per action dimension.

    :param mean: shape ``(batch, n_agents, action_dim)``
    :param log_std: shape ``(n_agents or 1, action_dim)``, or that of ``mean`` where it depends on the state
    :param mask: ``True`` where an agent has that dimension, shape ``(n_agents, action_dim)``; all when omitted
    :param noise: gives what a sample adds to the mean, of its shape; drawn anew for every sample when omitted
    """

    def __init__(
        self,
        mean: th.Tensor,
        log_std: th.Tensor,
        mask: th.Tensor | None = None,
        noise: Callable[[], th.Tensor] | None = None,
    ) -> None:
        self.mean = mean if mask is None else mean.masked_fill(~mask, 0.0)
        self.log_std = log_std
        self.mask = mask
        self.noise = noise

    @property
    def std(self) -> th.Tensor:
        """Standard deviations, of the shape of ``log_std``, in the unit of the action."""
        return self.log_std.exp()

    def _sum(self, terms: th.Tensor) -> th.Tensor:
        return (terms if self.mask is None else terms.masked_fill(~self.mask, 0.0)).sum(-1)

    def reparametrised(self, noise: th.Tensor) -> th.Tensor:
        """
        :param noise: standard normal, of a shape that broadcasts to that of ``mean``
        :return: the action that it makes, differentiable in the distribution's parameters; zero where the mask is ``False``
        """
        return self._moved(self.std * noise)

    def _moved(self, noise: th.Tensor) -> th.Tensor:
        return self.mean + (noise if self.mask is None else noise.masked_fill(~self.mask, 0.0))

    def sample(self, generator: th.Generator | None = None) -> th.Tensor:
        if self.noise is not None:
            return self._moved(self.noise())
        return self.reparametrised(th.empty_like(self.mean).normal_(generator=generator))

    def mode(self) -> th.Tensor:
        return self.mean

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        z = (actions - self.mean) * th.exp(-self.log_std)
        return self._sum(-0.5 * z.square() - self.log_std - 0.5 * math.log(2.0 * math.pi))

    def entropy(self) -> th.Tensor:
        per_dimension = self.log_std + 0.5 * (1.0 + math.log(2.0 * math.pi))
        return self._sum(per_dimension.expand_as(self.mean))

    @property
    def n_agents(self) -> int:
        return self.mean.shape[-2]

    def _map(self, function: Callable[[th.Tensor], th.Tensor]) -> Self:
        changed = super()._map(function)
        noise = self.noise
        changed.noise = None if noise is None else lambda: function(noise())
        return changed

    def _shared(self, other: "DiagonalGaussian", terms: th.Tensor) -> th.Tensor:
        """Sum over the dimensions that both have."""
        for mask in (self.mask, other.mask):
            terms = terms if mask is None else terms.masked_fill(~mask, 0.0)
        return terms.sum(-1)

    def _kl(self, other: "DiagonalGaussian") -> th.Tensor:
        ratio = self.log_std - other.log_std
        z = (self.mean - other.mean) * th.exp(-other.log_std)
        return self._shared(other, 0.5 * ((2.0 * ratio).exp() + z.square() - 1.0) - ratio)

    def _w1(self, other: "DiagonalGaussian", cost: th.Tensor | None) -> th.Tensor:
        # One problem per dimension, whose transport is the difference of two quantile functions.
        moments = (self.mean, self.std, other.mean, other.std)
        return self._shared(other, ot.gaussian_w1(*(moment.unsqueeze(-1) for moment in moments), validate=False))


class SquashedGaussian(DiagonalGaussian):
    """
    The hyperbolic tangent of independent normals: actions within -1 and 1, as SB3's with ``squash_output=True``.

    ``mean``, ``log_std`` and the noise are those of the normals. So are the divergences: the tangent leaves :meth:`kl` as it
    is, but :meth:`w1` measures actions before it.
    """

    def _moved(self, noise: th.Tensor) -> th.Tensor:
        return super()._moved(noise).tanh()

    def mode(self) -> th.Tensor:
        return self.mean.tanh()

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        unbounded = TanhBijector.inverse(actions)
        return super().log_prob(unbounded) - self._sum(TanhBijector().log_prob_correction(unbounded))

    def entropy(self) -> th.Tensor:
        """:raises ValueError: always"""
        raise ValueError("the entropy of squashed actions has no closed form; estimate it by `-log_prob` of sampled actions")


def action_head_size(action_space: spaces.Space) -> int:  # type: ignore[type-arg]
    """
    Width of the policy's last layer.

    :param action_space: the team's common action space
    :return: logits, log-odds or means that the space needs
    :raises ValueError: if the space is none of Box, Discrete, MultiDiscrete and MultiBinary
    """
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    if isinstance(action_space, spaces.MultiDiscrete):
        return int(np.sum(action_space.nvec))
    if isinstance(action_space, spaces.MultiBinary):
        return int(np.prod(action_space.shape))
    if isinstance(action_space, spaces.Box):
        return int(np.prod(action_space.shape))
    raise ValueError(
        f"`action_space` must be Box, Discrete, MultiDiscrete or MultiBinary, got {action_space}; flatten it with a wrapper"
    )
