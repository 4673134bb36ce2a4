"""
Action distributions of a whole team at once.

Every tensor carries leading dimensions ``(batch, n_agents)``. Discrete actions of agents with fewer choices than the
team's largest space are masked out: they have probability zero, are never drawn, and carry no gradient.
"""

import math
from abc import ABC, abstractmethod
from copy import copy

import numpy as np
import torch as th
from gymnasium import spaces

# A finite stand-in for log 0: `0 * log 0` in the entropy stays zero, and its gradient stays finite.
LOG_ZERO = -1.0e8


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

    def get_actions(self, deterministic: bool = False) -> th.Tensor:
        """
        :param deterministic: the mode instead of a sample
        :return: one action per agent, shape ``(batch, n_agents, ...)``
        """
        return self.mode() if deterministic else self.sample()


class MaskedCategorical(TeamDistribution):
    """
    Categorical over ``n_actions`` choices.

    :param logits: unnormalised log-probabilities, shape ``(batch, n_agents, n_actions)``
    :param mask: ``True`` where an agent has that action, shape ``(n_agents, n_actions)``; all when omitted
    """

    def __init__(self, logits: th.Tensor, mask: th.Tensor | None = None) -> None:
        if mask is not None:
            logits = logits.masked_fill(~mask, LOG_ZERO)
        self.log_probs = logits.log_softmax(-1)

    def divide(self, n_rows: int) -> tuple["MaskedCategorical", "MaskedCategorical"]:
        """
        :param n_rows: rows of the first part
        :return: the distributions of the first rows and of the others
        """
        first, others = copy(self), copy(self)
        first.log_probs, others.log_probs = self.log_probs[:n_rows], self.log_probs[n_rows:]
        return first, others

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
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> th.Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


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


class DiagonalGaussian(TeamDistribution):
    """
    Independent normals, one per action dimension.

    :param mean: shape ``(batch, n_agents, action_dim)``
    :param log_std: shape ``(n_agents or 1, action_dim)``, or that of ``mean`` where it depends on the state
    :param mask: ``True`` where an agent has that dimension, shape ``(n_agents, action_dim)``; all when omitted
    :param noise: what a sample adds to the mean, of its shape; drawn anew for every sample when omitted
    """

    def __init__(
        self, mean: th.Tensor, log_std: th.Tensor, mask: th.Tensor | None = None, noise: th.Tensor | None = None
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

    def sample(self, generator: th.Generator | None = None) -> th.Tensor:
        noise = self.noise
        if noise is None:
            noise = self.std * th.empty_like(self.mean).normal_(generator=generator)
        return self.mean + (noise if self.mask is None else noise.masked_fill(~self.mask, 0.0))

    def mode(self) -> th.Tensor:
        return self.mean

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        z = (actions - self.mean) * th.exp(-self.log_std)
        return self._sum(-0.5 * z.square() - self.log_std - 0.5 * math.log(2.0 * math.pi))

    def entropy(self) -> th.Tensor:
        per_dimension = self.log_std + 0.5 * (1.0 + math.log(2.0 * math.pi))
        return self._sum(per_dimension.expand_as(self.mean))


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
