"""
Consensus state by state without transport: pulls to the team's mixture by Kullback-Leibler divergence or energy distance.

They are what transport has to be compared with. The divergence knows which actions are the same, the energy distance also how
far apart others are.
"""

import math

import torch as th

from otbaselines.common.multi_agent.distributions import LOG_ZERO, MaskedCategorical, TeamDistribution
from otbaselines.wbc.conditional import StatewiseConsensus, dimension_weights, gaussians, own_dimensions, shared_dimensions
from otbaselines.wbc.consensus import ConsensusReport, Policies
from otbaselines.wbc.metric import GroundMetric, one_hot_of

# Probabilities are floored by this before the logarithm, for labels that an agent has no action for.
FLOOR = 1e-30


class MixtureConsensus(StatewiseConsensus):
    """What the pulls to a mixture share: closed forms, without anything to prepare."""

    def _divergence(self, policies: TeamDistribution) -> th.Tensor:
        """Divergence of every agent from the mixture, which is held constant, shape ``(n_agents,)``."""
        raise NotImplementedError

    def _pairs(self, policies: TeamDistribution) -> th.Tensor:
        """Divergence of every two agents, shape ``(n, n_agents, n_agents)``."""
        raise NotImplementedError

    def _start(self, policy: Policies, n_chunks: int) -> ConsensusReport:
        policies = policy.policies_at(self.states(0))
        return ConsensusReport(self._divergence(policies), self._pairs(policies).mean(0).amax())

    def loss(self, policies: TeamDistribution, chunk: int) -> th.Tensor:
        return self._divergence(policies)


class KLConsensus(MixtureConsensus):
    r"""
    The baseline of the paper's Figure 3: a Kullback-Leibler pull towards the team's mixture, state by state.

    Discrete actions use :math:`KL(\pi_i \,|\, \sum_j w_j \pi_j)` with the mixture held constant. A mixture of normals has no
    closed form, so continuous actions use :math:`\sum_j w_j KL(\pi_i | \pi_j)`, which bounds it from above.

    With ``reverse`` the arguments change places: :math:`KL(\sum_j w_j \pi_j \,|\, \pi_i)` given a label that the agent has,
    and for continuous actions :math:`\sum_j w_j KL(\pi_j | \pi_i)`, which has the same gradient.

    :param n_support: states per minibatch
    :param generator: random stream of its own
    :param placement: the label of each agent's discrete action, shape ``(n_agents, n_actions)``; its number when ``None``
    :param reverse: whether the mixture is the first argument
    """

    def __init__(
        self, n_support: int, generator: th.Generator, placement: th.Tensor | None = None, *, reverse: bool = False
    ) -> None:
        super().__init__(n_support, generator)
        self.placement = placement
        self.reverse = reverse

    def _labels(self, policies: MaskedCategorical) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        Probabilities of the labels and their logarithms, ``(n, n_agents, n_labels)`` each, and which labels every agent has,
        ``(n_agents, n_labels)``.
        """
        if self.placement is None:
            return policies.probs, policies.log_probs, policies.mask
        table = one_hot_of(self.placement)
        probs = th.einsum("bna,nam->bnm", policies.probs, table.to(policies.probs.dtype))
        held = table.bool() if policies.mask is None else table.bool() & policies.mask.unsqueeze(-1)
        return probs, probs.clamp_min(FLOOR).log(), held.any(1)

    def _divergence(self, policies: TeamDistribution) -> th.Tensor:
        if isinstance(policies, MaskedCategorical):
            probs, log_probs, held = self._labels(policies)
            with th.no_grad():
                mixture = (self._weights[:, None] * probs).sum(1, keepdim=True)
                if self.reverse:
                    # Given a label that the agent has: of others it can never have any.
                    mixture = mixture if held is None else mixture * held
                    mixture = mixture / mixture.sum(-1, keepdim=True)
                log_mixture = mixture.clamp_min(FLOOR).log()
            if self.reverse:
                return (mixture * (log_mixture - log_probs)).sum(-1).mean(0)
            return (probs * (log_probs - log_mixture)).sum(-1).mean(0)
        mean, std = gaussians(policies)
        own, others = (mean.unsqueeze(2), std.unsqueeze(2)), (mean.detach().unsqueeze(1), std.detach().unsqueeze(1))
        terms = _gaussian_kl(*others, *own) if self.reverse else _gaussian_kl(*own, *others)
        shares = dimension_weights(policies, self._weights).T
        return (shared_dimensions(policies, terms) * shares).sum((-1, -2)).mean(0)

    def _pairs(self, policies: TeamDistribution) -> th.Tensor:
        if isinstance(policies, MaskedCategorical):
            _, log_probs, held = self._labels(policies)
            return _pairwise_kl(log_probs, held)
        mean, std = gaussians(policies)
        terms = _gaussian_kl(mean.unsqueeze(2), std.unsqueeze(2), mean.unsqueeze(1), std.unsqueeze(1))
        return shared_dimensions(policies, terms).sum(-1)


class EnergyConsensus(MixtureConsensus):
    r"""
    The energy distance to the team's mixture, :math:`2 E|a-b| - E|a-a'| - E|b-b'|` under :math:`\beta |a-a'|`: a maximum mean
    discrepancy (Szekely and Rizzo 2013; Sejdinovic et al. 2013), whose barycenter *is* the mixture.

    Continuous actions sum it over their dimensions.

    :param n_support: states per minibatch
    :param generator: random stream of its own
    :param metric: the ground metric, of which only the action part is used, with exponent 1
    """

    def __init__(self, n_support: int, generator: th.Generator, metric: GroundMetric) -> None:
        super().__init__(n_support, generator)
        self.metric = metric
        self.distance = None if metric.codebook is None else metric.action_cost()

    def _divergence(self, policies: TeamDistribution) -> th.Tensor:
        if isinstance(policies, MaskedCategorical):
            measures = self.metric.place(policies.probs)
            mixture = (self._weights[:, None] * measures).sum(1, keepdim=True).detach()
            return self._squared(measures - mixture).mean(0)
        mean, std = (self.metric.beta * moment for moment in gaussians(policies))
        shares = dimension_weights(policies, self._weights).T
        between = _mean_distance(mean.unsqueeze(2), std.unsqueeze(2), mean.detach().unsqueeze(1), std.detach().unsqueeze(1))
        to_mixture = (shared_dimensions(policies, between) * shares).sum(2)
        within = (to_mixture.detach() * shares).sum(1, keepdim=True)
        own = _mean_distance(mean, std, mean, std)
        return own_dimensions(policies, 2.0 * to_mixture - own - within).sum(-1).mean(0)

    def _squared(self, difference: th.Tensor) -> th.Tensor:
        r""":math:`-\delta^\top D \delta`, which is not negative where the entries of :math:`\delta` sum to zero."""
        assert self.distance is not None
        return -(difference @ self.distance.to(difference.dtype) * difference).sum(-1)

    def _pairs(self, policies: TeamDistribution) -> th.Tensor:
        if isinstance(policies, MaskedCategorical):
            measures = self.metric.place(policies.probs)
            return self._squared(measures.unsqueeze(2) - measures.unsqueeze(1))
        mean, std = (self.metric.beta * moment for moment in gaussians(policies))
        between = _mean_distance(mean.unsqueeze(2), std.unsqueeze(2), mean.unsqueeze(1), std.unsqueeze(1))
        own = _mean_distance(mean, std, mean, std)
        return shared_dimensions(policies, 2.0 * between - own.unsqueeze(2) - own.unsqueeze(1)).sum(-1)


def _pairwise_kl(log_probs: th.Tensor, held: th.Tensor | None) -> th.Tensor:
    r"""
    :math:`KL(\pi_i \,|\, \pi_j)` of the policies given a label that both agents have, shape ``(n, n_agents, n_agents)``;
    zero where they have none in common.
    """
    log_p, log_q = log_probs.unsqueeze(2), log_probs.unsqueeze(1)
    if held is not None:
        shared = held.unsqueeze(1) & held.unsqueeze(0)
        log_p, log_q = (x.masked_fill(~shared, LOG_ZERO).log_softmax(-1) for x in (log_p, log_q))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _gaussian_kl(mean_p: th.Tensor, std_p: th.Tensor, mean_q: th.Tensor, std_q: th.Tensor) -> th.Tensor:
    ratio = std_p / std_q
    return 0.5 * (ratio.square() + ((mean_p - mean_q) / std_q).square() - 1.0) - ratio.log()


def _mean_distance(mean_p: th.Tensor, std_p: th.Tensor, mean_q: th.Tensor, std_q: th.Tensor) -> th.Tensor:
    """Mean of :math:`|x - y|` over independent normals, the mean of a folded normal."""
    gap, spread = mean_p - mean_q, (std_p.square() + std_q.square()).sqrt()
    ratio = gap / (math.sqrt(2.0) * spread)
    return spread * math.sqrt(2.0 / math.pi) * (-ratio.square()).exp() + gap * ratio.erf()
