"""
Consensus state by state: the agents' policies are compared at the same states, and mass never moves between states.

It covers new states in every minibatch, and costs one small problem per state. Without entropic regularisation the mean over
the states bounds the joint transport cost of equally distributed states from above; an entropic cost or a Sinkhorn divergence
it does not bound.
"""

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from otbaselines import ot
from otbaselines.common.multi_agent.distributions import DiagonalGaussian, MaskedCategorical, TeamDistribution
from otbaselines.wbc.consensus import Consensus, ConsensusReport, Policies, Rollout, draw_states
from otbaselines.wbc.metric import GroundMetric

# After each gradient step scalings go on from where they ended when the minibatch was last seen. What they lag behind pulls
# every agent back to where it was: with three steps at reg 0.6, a fourth of the error by the bound, learning was slower, and
# at reg 0.2 it stalled. This share is left at most: five steps at reg 0.6 under the one-hot metric.
WARM_REMAINING = 0.1
MAX_WARM_STEPS = 64
# Before the first, steps are made until the marginals are exact to `COLD_ERROR`.
COLD_STEPS = 8
COLD_ERROR = 1e-4
MAX_COLD_ROUNDS = 50
# States on which D_t is measured: the number of pairs grows with the square of the team.
MAX_PAIR_PROBLEMS = 1024


class StatewiseConsensus(Consensus):
    """The part that all state-by-state forms share: one chunk of states for every minibatch of an epoch."""

    _states: PyTorchObs
    _reg: float | None

    def prepare(
        self,
        policy: Policies,
        buffer: Rollout,
        *,
        n_chunks: int,
        reg: float | None,
        weights: th.Tensor,
    ) -> ConsensusReport:
        self._reg, self._weights = reg, weights
        self._states, _ = draw_states(buffer, self.n_support * n_chunks, self.generator)
        with th.no_grad():
            return self._start(policy, n_chunks)

    def _start(self, policy: Policies, n_chunks: int) -> ConsensusReport:
        raise NotImplementedError

    def _rows(self, chunk: int) -> slice:
        return slice(chunk * self.n_support, (chunk + 1) * self.n_support)

    def states(self, chunk: int) -> PyTorchObs:
        rows = self._rows(chunk)
        if isinstance(self._states, dict):
            return {key: value[rows] for key, value in self._states.items()}
        return self._states[rows]


class CategoricalConsensus(StatewiseConsensus):
    r"""
    Discrete actions: at every state the entropic barycenter of the agents' action probabilities.

    :param n_support: states per minibatch
    :param generator: random stream of its own
    :param metric: the ground metric, of which only the action part is used
    :param debiased: Sinkhorn divergence and debiased barycenter instead of :math:`W_{p,\varepsilon}` itself
    """

    def __init__(self, n_support: int, generator: th.Generator, metric: GroundMetric, *, debiased: bool) -> None:
        super().__init__(n_support, generator)
        self.metric = metric
        self.cost = metric.action_cost()
        self.max_cost = float(self.cost.max())
        self.debiased = debiased
        self._scalings: list[ot.ScalingState] = []

    def _start(self, policy: Policies, n_chunks: int) -> ConsensusReport:
        assert self._reg is not None
        measures = self._measures(policy.policies_at(self._states))
        # The policy's precision decides: torch's default may be float64.
        cost, weights = self.cost.to(measures.dtype), self._weights.to(measures.dtype)
        self._solver = ot.ScalingSolver(
            cost, reg=self._reg, weights=weights, debiased=self.debiased, max_cost=self.max_cost, validate=False
        )
        self._warm_steps = self._solver.steps_for(WARM_REMAINING, MAX_WARM_STEPS)
        solved = self._solver.solve(measures, COLD_STEPS)
        for _ in range(MAX_COLD_ROUNDS):
            # One look at the device per round, and rarely more than one round: small regularisation converges slowly.
            if float(solved.error.max()) < COLD_ERROR:
                break
            solved = self._solver.solve(measures, COLD_STEPS, solved.state)
        self._scalings = [solved.state.rows(self._rows(chunk)) for chunk in range(n_chunks)]
        n_agents = measures.shape[1]
        some = slice(max(8, MAX_PAIR_PROBLEMS // (n_agents * (n_agents - 1))))
        pairs = self._solver.pair_divergences(measures[some], solved.state.rows(some))
        error = th.maximum(solved.error.max(), pairs.error.max())
        return ConsensusReport(solved.divergences.mean(0), pairs.value.mean(0).amax(), error, COLD_ERROR)

    def _measures(self, policies: TeamDistribution) -> th.Tensor:
        """Action measures of every agent at the same states, shape ``(n, n_agents, n_points)``."""
        assert isinstance(policies, MaskedCategorical)
        return self.metric.place(policies.probs)

    def loss(self, policies: TeamDistribution, chunk: int) -> th.Tensor:
        measures = self._measures(policies)
        # Plans and potentials are held constant: at the optimum their dependence on the policy contributes no gradient
        # (envelope theorem), so the derivative of the divergence is its potential on the policy's own marginal.
        with th.inference_mode():
            solved = self._solver.solve(measures, self._warm_steps, self._scalings[chunk])
            self._scalings[chunk], potentials = solved.state, solved.gradient
        return (potentials / measures.shape[0] * measures).sum((0, 2))


class GaussianConsensus(StatewiseConsensus):
    r"""
    Continuous actions: diagonal normals, whose debiased barycenter under :math:`(\beta |a-a'|)^2` has a closed form.

    :param n_support: states per minibatch
    :param generator: random stream of its own
    :param metric: the ground metric, of which only the action part is used
    """

    def __init__(self, n_support: int, generator: th.Generator, metric: GroundMetric) -> None:
        super().__init__(n_support, generator)
        self.beta = metric.beta

    def _moments(self, policies: TeamDistribution) -> tuple[th.Tensor, th.Tensor]:
        """Means and standard deviations in the unit of the ground cost, shape ``(n, n_agents, action_dim)`` each."""
        mean, std = gaussians(policies)
        return self.beta * mean, self.beta * std

    def _divergence(self, policies: TeamDistribution) -> th.Tensor:
        assert self._reg is not None
        mean, std = self._moments(policies)
        with th.no_grad():
            # One problem per action dimension, whose barycenter is that of the agents who have it.
            columns = (moment.transpose(1, 2).unsqueeze(-1) for moment in (mean, std))
            shares = dimension_weights(policies, self._weights)
            center, spread = ot.gaussian_sinkhorn_barycenter(*columns, reg=self._reg, weights=shares, validate=False)
        center, spread = center.transpose(1, 2), spread.transpose(1, 2)
        terms = ot.gaussian_sinkhorn_divergence(mean, std, center, spread, reg=self._reg, validate=False)
        return own_dimensions(policies, terms).sum(-1).mean(0)

    def _start(self, policy: Policies, n_chunks: int) -> ConsensusReport:
        assert self._reg is not None
        policies = policy.policies_at(self.states(0))
        mean, std = self._moments(policies)
        pairs = ot.gaussian_sinkhorn_divergence(
            mean.unsqueeze(1), std.unsqueeze(1), mean.unsqueeze(2), std.unsqueeze(2), reg=self._reg, validate=False
        )
        return ConsensusReport(self._divergence(policies), shared_dimensions(policies, pairs).sum(-1).mean(0).amax())

    def loss(self, policies: TeamDistribution, chunk: int) -> th.Tensor:
        return self._divergence(policies)


def gaussians(policies: TeamDistribution) -> tuple[th.Tensor, th.Tensor]:
    """Means and standard deviations of every agent at the same states, shape ``(n, n_agents, action_dim)`` each."""
    assert isinstance(policies, DiagonalGaussian)
    return policies.mean, policies.std.expand_as(policies.mean)


def own_dimensions(policies: TeamDistribution, terms: th.Tensor) -> th.Tensor:
    """Drop the padded action dimensions of agents that do not have them; ``terms`` ends in ``(n_agents, action_dim)``."""
    assert isinstance(policies, DiagonalGaussian)
    return terms if policies.mask is None else terms.masked_fill(~policies.mask, 0.0)


def shared_dimensions(policies: TeamDistribution, terms: th.Tensor) -> th.Tensor:
    """Drop the action dimensions that not both agents have; ``terms`` ends in ``(n_agents, n_agents, action_dim)``."""
    assert isinstance(policies, DiagonalGaussian)
    if policies.mask is None:
        return terms
    return terms.masked_fill(~(policies.mask.unsqueeze(0) & policies.mask.unsqueeze(1)), 0.0)


def dimension_weights(policies: TeamDistribution, weights: th.Tensor) -> th.Tensor:
    """Weights of the agents in each action dimension, among those who have it, shape ``(action_dim, n_agents)``."""
    assert isinstance(policies, DiagonalGaussian)
    if policies.mask is None:
        return weights.expand(policies.mean.shape[-1], -1)
    held = weights * policies.mask.T
    return held / held.sum(1, keepdim=True)
