"""Where the dual of the trust region sends an agent's actions: exact for choices, by a search of the whole box for vectors."""

from dataclasses import dataclass

import torch as th

from otbaselines import ot
from otbaselines.wmatrpo.action_metric import ActionMetric
from otbaselines.wmatrpo.advantages import MarginalAdvantage

# How much closer each round of refinements looks. Faster, and the later ones no longer get anywhere in two dimensions.
CLOSER = 0.8
# Sources of a state around whose images is looked, where there are many.
LOOKERS = 64


@dataclass(frozen=True)
class Transport:
    r"""
    The optimal policy of the trust region (Salgarkar and Baheri 2025, Corollary 1), not yet a network's.

    :param multiplier: :math:`\lambda^*`, in the unit of the advantages over that of the ground metric
    :param value: of the dual
    :param targets: for choices the probabilities to aim at, shape ``(n_states, n_actions)``; for vectors the images of each
        source under both maps, shape ``(2, n_states, n_sources, action_dim)``
    :param shares: for vectors the weights of both maps, shape ``(2,)``
    """

    multiplier: float
    value: float
    targets: th.Tensor
    shares: th.Tensor | None = None


def transport_choices(
    advantage: MarginalAdvantage, probs: th.Tensor, metric: ActionMetric, radius: float, row_weights: th.Tensor
) -> Transport:
    """
    :param advantage: of the agent's actions
    :param probs: of its old policy, shape ``(n_states, n_actions)`` of the agent's own choices
    :param metric: the ground metric
    :param radius: of the trust region
    :param row_weights: of the states, summing to one, shape ``(n_states,)``
    :return: the optimal probabilities
    """
    n = probs.shape[1]
    choices = advantage.sets[advantage.agent].grid(n).unsqueeze(0)
    values = advantage(choices)
    result = ot.trust_region_dual(
        values.unsqueeze(1),
        metric.table(advantage.agent).to(values),
        row_weights.unsqueeze(1) * probs,
        radius,
        validate=False,
    )
    return Transport(float(result.multiplier), float(result.value), result.mass.to(values.dtype))


@dataclass(frozen=True)
class BoxSearch:
    """
    The inner maximum over a box: candidates that cover it, then closer ones around those that were chosen.

    :param low: of the team's box, which the critics read as -1, shape ``(action_dim,)``
    :param high: of the team's box, which the critics read as 1
    :param n_candidates: that cover the agent's own box
    :param n_refinements: rounds of closer ones
    """

    low: th.Tensor
    high: th.Tensor
    n_candidates: int
    n_refinements: int

    def transport(
        self, advantage: MarginalAdvantage, sources: th.Tensor, metric: ActionMetric, radius: float, weights: th.Tensor
    ) -> Transport:
        """
        :param advantage: of the agent's actions
        :param sources: actions drawn from its old policy, shape ``(n_states, n_sources, action_dim)``
        :param metric: the ground metric
        :param radius: of the trust region
        :param weights: of the sources, summing to one, shape ``(n_states, n_sources)``
        :return: where they go
        """
        agent = advantage.agent
        box = advantage.sets[agent]
        grid = self._decode(box.grid(self.n_candidates)).expand(len(sources), -1, -1)
        candidates = th.cat([sources, grid], 1)
        values = advantage(self.encode(candidates))
        # The distance between neighbours on the grid, in shares of the box.
        reach = self.n_candidates ** (-1.0 / metric.sizes[agent])
        for turn in range(self.n_refinements + 1):
            distances = metric.distances(agent, sources, candidates)
            result = ot.trust_region_dual(values.unsqueeze(1), distances, weights, radius, validate=False)
            chosen = [_take(candidates, index) for index in (result.nearest, result.furthest)]
            if turn < self.n_refinements:
                # Sources of one state share their candidates, so that some of many say where to look.
                thin = slice(None, None, max(1, sources.shape[1] // LOOKERS))
                some = sources[:, thin]
                closer = [self._decode(box.near(self.encode(each[:, thin]), reach)) for each in (*chosen, *chosen)]
                if metric.sizes[agent] > 1:
                    # Each dimension has its price, so that the best move often is one in some of them alone.
                    closer[2:] = [th.where(th.rand_like(some) < 0.5, some, each) for each in closer[2:]]
                candidates = th.cat([candidates, *closer], 1)
                values = th.cat([values, advantage(self.encode(th.cat(closer, 1)))], 1)
                reach *= CLOSER
        share = result.mixing.to(values)
        return Transport(float(result.multiplier), float(result.value), th.stack(chosen), th.stack([share, 1.0 - share]))

    def encode(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: shape ``(..., action_dim)``
        :return: as the critics read them, of the same shape
        """
        return 2.0 * (actions.clamp(self.low, self.high) - self.low) / (self.high - self.low) - 1.0

    def _decode(self, scaled: th.Tensor) -> th.Tensor:
        return self.low + 0.5 * (scaled + 1.0) * (self.high - self.low)


def _take(candidates: th.Tensor, index: th.Tensor) -> th.Tensor:
    """The chosen candidates of each source, shape ``(n_states, n_sources, action_dim)``."""
    return candidates.gather(1, index.unsqueeze(-1).expand(-1, -1, candidates.shape[-1]))
