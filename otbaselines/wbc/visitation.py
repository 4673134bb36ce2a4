"""
Consensus of visitation measures over states and actions, where mass may move between states as the paper has it.

The support is drawn once per rollout, the barycenter and the plans are computed once, and every gradient step uses them as
constants (Baheri 2025, Alg. 1).
"""

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from otbaselines import ot
from otbaselines.common.multi_agent.distributions import DiagonalGaussian, MaskedCategorical, TeamDistribution
from otbaselines.wbc.consensus import Consensus, ConsensusReport, Policies, Rollout, draw_states, rows_of
from otbaselines.wbc.metric import GroundMetric

# Stopping error of the barycenter and of the self terms: far below the sampling error of the support.
TOLERANCE = 1e-3
# Squared distances are floored by this before the square root, whose slope at zero is infinite.
DISTANCE_FLOOR = 1e-12


class VisitationConsensus(Consensus):
    r"""
    What the forms with a support of state-action pairs share.

    :param n_support: states in the team's common support, spread evenly over the agents
    :param generator: random stream of its own
    :param metric: the ground metric
    :param pooled: every agent's policy is evaluated on the union of the drawn states, not only on its own
    :param debiased: subtract half the self terms, and debias the barycenter
    """

    def __init__(self, n_support: int, generator: th.Generator, metric: GroundMetric, *, pooled: bool, debiased: bool) -> None:
        super().__init__(n_support, generator)
        self.metric = metric
        self.pooled = pooled
        self.debiased = debiased

    def states(self, chunk: int) -> PyTorchObs:
        return self._states

    def _draw(self, buffer: Rollout) -> None:
        """Draw the same number of states from each agent's experience, agent after agent."""
        each = max(2, self.n_support // buffer.n_agents)
        drawn = [draw_states(buffer, each, self.generator, agent=agent)[1] for agent in range(buffer.n_agents)]
        self._index = th.cat(drawn)
        self._owner = self._index % buffer.n_agents
        self._states: PyTorchObs = rows_of(buffer.observations, self._index)
        assert isinstance(self._states, th.Tensor)
        assert isinstance(buffer.observations, th.Tensor)
        self._points = self.metric.state_points(self._states, buffer.observations.flatten(0, 2))
        self._state_cost = self._cost_between_states()

    def _cost_between_states(self) -> th.Tensor:
        # Computed once per rollout: float64 costs little and keeps small regularisation stable.
        return ot.pairwise(self._points.double(), p=self.metric.p)

    def _membership(self, n_agents: int) -> th.Tensor:
        """Weight of every state in every agent's measure, shape ``(n_agents, n_states)``, rows summing to one."""
        n_states = len(self._owner)
        if self.pooled:
            return self._state_cost.new_full((n_agents, n_states), 1.0 / n_states)
        own = (self._owner == th.arange(n_agents, device=self._owner.device)[:, None]).to(self._state_cost.dtype)
        return own / own.sum(1, keepdim=True)

    def _solve(self, measures: th.Tensor, cost: ot.Cost, reg: float, weights: th.Tensor) -> ConsensusReport:
        """
        The barycenter, and the gradient of every agent's divergence on the support.

        :param measures: shape ``(n_agents, n)``
        """
        self._barycenter = ot.barycenter(
            measures, cost, reg=reg, weights=weights.double(), debiased=self.debiased, tol=TOLERANCE, validate=False
        )
        self._coefficients, errors = self._barycenter.potentials_b, [self._barycenter.error]
        self._self_potentials = th.zeros_like(self._coefficients)
        if self.debiased:
            own = ot.self_transport(cost, measures, reg=reg, tol=TOLERANCE, validate=False)
            self._self_potentials = own.potential_a
            self._coefficients = self._coefficients - own.potential_a
            errors.append(own.error)
        everybody = th.cat([measures, self._barycenter.weights.unsqueeze(0)])
        pairs = ot.pairwise_sinkhorn(everybody, cost, reg=reg, debiased=self.debiased, tol=TOLERANCE, validate=False)
        divergences, between = pairs.value[:-1, -1].float(), pairs.value[:-1, :-1].float()
        error = th.cat([error.flatten() for error in [*errors, pairs.error]]).amax()
        return ConsensusReport(divergences, between.amax(), error, TOLERANCE)


class ExpectedConsensus(VisitationConsensus):
    r"""
    Discrete actions, each weighted by its probability: :math:`\mu_i = \sum_k m^{-1} \delta_{s_k} \times \pi_i(\cdot|s_k)`.

    The gradient is pathwise, through the probabilities: no score function, no sampling noise in the actions.
    """

    def _cost(self) -> ot.Cost:
        # A sum over states and actions is a lattice: its Gibbs kernel is applied factor by factor.
        return ot.LatticeCost([self._state_cost, ot.action_cost(self._embedding(), beta=self.metric.beta, p=self.metric.p)])

    def _embedding(self) -> th.Tensor:
        assert self.metric.codebook is not None
        return self.metric.codebook.double()

    def _measures(self, policies: TeamDistribution) -> th.Tensor:
        assert isinstance(policies, MaskedCategorical)
        probs = self.metric.place(policies.probs).transpose(0, 1).to(self._weights_of_states.dtype)
        return (self._weights_of_states.unsqueeze(-1) * probs).flatten(1)

    def prepare(
        self,
        policy: Policies,
        buffer: Rollout,
        *,
        n_chunks: int,
        reg: float | None,
        weights: th.Tensor,
    ) -> ConsensusReport:
        assert reg is not None
        self._draw(buffer)
        self._weights_of_states = self._membership(buffer.n_agents)
        with th.no_grad():
            measures = self._measures(policy.policies_at(self._states))
            return self._solve(measures / measures.sum(-1, keepdim=True), self._cost(), reg, weights)

    def loss(self, policies: TeamDistribution, chunk: int) -> th.Tensor:
        return (self._coefficients * self._measures(policies)).sum(-1).float()


class ReparametrisedConsensus(VisitationConsensus):
    r"""
    Continuous actions :math:`a = m_i(s) + \sigma_i \xi` with the noise :math:`\xi` fixed for the update.

    The points of agent i move with its parameters while the plans stay: :math:`\sum_{xy} P_{xy} C(x_\theta, y)`.
    """

    def _actions(self, policies: TeamDistribution) -> th.Tensor:
        """Actions of every agent at every state, in the unit of the ground cost, shape ``(n_agents, n_states, k)``."""
        assert isinstance(policies, DiagonalGaussian)
        return self.metric.beta * policies.reparametrised(self._noise).transpose(0, 1).double()

    def prepare(
        self,
        policy: Policies,
        buffer: Rollout,
        *,
        n_chunks: int,
        reg: float | None,
        weights: th.Tensor,
    ) -> ConsensusReport:
        assert reg is not None
        self._draw(buffer)
        n_agents, n_states = buffer.n_agents, len(self._owner)
        size = buffer.actions.shape[-1]
        self._noise = th.randn(n_states, 1, size, device=buffer.device, generator=self.generator)
        with th.no_grad():
            actions = self._actions(policy.policies_at(self._states))
            membership = self._membership(n_agents)
            # The codebook holds every agent's action at every state of its own measure; state of point j is `_point_state`.
            held = membership > 0
            agent_of, self._point_state = held.nonzero().unbind(1)
            self._point_actions = actions[agent_of, self._point_state]
            measures = actions.new_zeros(n_agents, len(agent_of))
            measures[agent_of, th.arange(len(agent_of), device=buffer.device)] = membership[agent_of, self._point_state]
            cost = self._point_cost(self._point_state, self._point_actions)
            report = self._solve(measures, cost, reg, weights)
            self._own_points = [(agent_of == agent).nonzero().squeeze(1) for agent in range(n_agents)]
            self._keep_plans(measures, cost, reg)
        return report

    def _point_cost(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Cost between codebook points (columns) and the given points (rows)."""
        return self._state_cost[states][:, self._point_state] + self._action_cost(actions, self._point_actions)

    def _action_cost(self, actions: th.Tensor, others: th.Tensor) -> th.Tensor:
        squared = (actions.unsqueeze(1) - others.unsqueeze(0)).square().sum(-1)
        return squared if self.metric.p == 2.0 else (squared + DISTANCE_FLOOR).sqrt()

    def _keep_plans(self, measures: th.Tensor, cost: th.Tensor, reg: float) -> None:
        """Plans from the barycenter to each agent's points, and of each measure with itself."""
        self._plans, self._self_plans = [], []
        for agent, points in enumerate(self._own_points):
            self._plans.append(self._barycenter.plan(agent)[:, points].T)
            potential, mass = self._self_potentials[agent, points], measures[agent, points]
            exponent = (potential[:, None] + potential[None, :] - cost[points][:, points]) / reg
            self._self_plans.append(mass[:, None] * mass[None, :] * exponent.exp())

    def loss(self, policies: TeamDistribution, chunk: int) -> th.Tensor:
        actions = self._actions(policies)
        losses = []
        for agent, points in enumerate(self._own_points):
            states = self._point_state[points]
            moved = actions[agent, states]
            value = (self._plans[agent] * self._point_cost(states, moved)).sum()
            if self.debiased:
                own = self._state_cost[states][:, states] + self._action_cost(moved, moved)
                value = value - 0.5 * (self._self_plans[agent] * own).sum()
            losses.append(value)
        return th.stack(losses).float()


class SampledConsensus(VisitationConsensus):
    r"""
    The paper's estimator: ``m`` sampled state-action pairs per agent and the score function.

    :math:`\nabla W = \sum_x c(x) \nabla \log \pi_i(a_x | s_x)` with the transported cost of the sample,
    :math:`c(x) = \sum_y P_{xy} d(x,y)^p / \mu_i(x)`, for ``gradient="plan"`` (as printed), or with the dual potential for
    ``gradient="potential"`` (envelope theorem), which is consistent: it comes from the same samples, so that a bias remains
    that vanishes as they grow in number. A baseline, the mean of ``c``, is subtracted; and
    the likelihood ratio takes the place of the log-likelihood, so that the estimate stays right after the first step.

    :param gradient: ``"plan"`` or ``"potential"``
    """

    def __init__(
        self,
        n_support: int,
        generator: th.Generator,
        metric: GroundMetric,
        *,
        pooled: bool,
        debiased: bool,
        gradient: str,
    ) -> None:
        super().__init__(n_support, generator, metric, pooled=pooled, debiased=debiased)
        self.gradient = gradient

    def prepare(
        self,
        policy: Policies,
        buffer: Rollout,
        *,
        n_chunks: int,
        reg: float | None,
        weights: th.Tensor,
    ) -> ConsensusReport:
        self._draw(buffer)
        with th.no_grad():
            distribution = policy.policies_at(self._states)
            # Own support keeps what was done; on the pooled support every agent says what it would do.
            taken = buffer.actions.flatten(0, 2)[self._index]
            actions = (
                distribution.sample(self.generator)
                if self.pooled
                else taken.unsqueeze(1).expand(-1, buffer.n_agents, *taken.shape[1:])
            )
            self._sampled = actions
            self._old_log_prob = distribution.log_prob(actions)
            return self._weigh(actions, reg, weights)

    def _weigh(self, actions: th.Tensor, reg: float | None, weights: th.Tensor) -> ConsensusReport:
        """Set the coefficient of every sample, shape ``(n_agents, n_states)``; zero where it is not the agent's."""
        assert reg is not None
        n_agents = actions.shape[1]
        membership = self._membership(n_agents)
        agent_of, state_of = (membership > 0).nonzero().unbind(1)
        points = self.metric.action_points(actions[state_of, agent_of], agent_of).double()
        cost = self._state_cost[state_of][:, state_of] + ot.pairwise(points, p=self.metric.p)
        measures = cost.new_zeros(n_agents, len(agent_of))
        measures[agent_of, th.arange(len(agent_of), device=cost.device)] = membership[agent_of, state_of]
        report = self._solve(measures, cost, reg, weights)
        flat = self._coefficients if self.gradient == "potential" else self._plan_costs(measures, cost, reg)
        self._set_samples(flat, measures, membership, agent_of, state_of)
        return report

    def _plan_costs(self, measures: th.Tensor, cost: th.Tensor, reg: float) -> th.Tensor:
        """:math:`c(x)` of the paper for every agent and point; the self term likewise when debiased."""
        floor = measures.clamp_min(1e-30)
        rows = []
        for agent in range(len(measures)):
            value = (self._barycenter.plan(agent) * cost).sum(0) / floor[agent]
            if self.debiased:
                potential, mass = self._self_potentials[agent], measures[agent]
                own = mass[:, None] * mass[None, :] * ((potential[:, None] + potential[None, :] - cost) / reg).exp()
                # Half the self term moves with both of its arguments, which are the same measure: two halves.
                value = value - (own * cost).sum(0) / floor[agent]
            rows.append(value)
        return th.stack(rows)

    def _set_samples(
        self, flat: th.Tensor, measures: th.Tensor, membership: th.Tensor, agent_of: th.Tensor, state_of: th.Tensor
    ) -> None:
        own = flat[agent_of, th.arange(len(agent_of), device=flat.device)]
        samples = th.zeros_like(membership)
        samples[agent_of, state_of] = own
        baseline = (samples * membership).sum(1, keepdim=True)
        self._sample_weights = ((samples - baseline) * membership).float()

    def loss(self, policies: TeamDistribution, chunk: int) -> th.Tensor:
        log_prob = policies.log_prob(self._sampled)
        ratio = (log_prob - self._old_log_prob).clamp(-20.0, 20.0).exp()
        return (self._sample_weights * ratio.T).sum(1)


class SlicedConsensus(SampledConsensus):
    r"""
    Sampled pairs and sliced transport, for supports too large for a cost matrix (the paper's own suggestion).

    Pairs are points at Euclidean distances :math:`\sqrt{|s-s'|^2 + \beta^2 |a-a'|^2}`, whose square is the ground cost for
    ``p=2``. Along every random direction the quantiles of the barycenter are the averages of the agents' quantiles for
    ``p=2``, and their medians for ``p=1``. A sample's coefficient is, averaged over the directions, its potential there
    (``gradient="potential"``), or its distance to its own quantile to the power ``p`` (``"plan"``). There is no entropic bias
    to remove.

    :param gradient: ``"plan"`` or ``"potential"``
    :param n_projections: random directions per rollout
    :param directions: their random stream, on the CPU
    """

    def __init__(
        self,
        n_support: int,
        generator: th.Generator,
        metric: GroundMetric,
        *,
        pooled: bool,
        gradient: str,
        n_projections: int,
        directions: th.Generator,
    ) -> None:
        super().__init__(n_support, generator, metric, pooled=pooled, debiased=False, gradient=gradient)
        self.n_projections = n_projections
        self._directions = directions

    def _cost_between_states(self) -> th.Tensor:
        # Projections take the place of a cost matrix; only its dtype and device are asked for.
        return self._points.new_zeros(())

    def _weigh(self, actions: th.Tensor, reg: float | None, weights: th.Tensor) -> ConsensusReport:
        n_agents = actions.shape[1]
        membership = self._membership(n_agents)
        agent_of, state_of = (membership > 0).nonzero().unbind(1)
        features = th.cat([self._points[state_of], self.metric.action_points(actions[state_of, agent_of], agent_of)], -1)
        points = features.view(n_agents, -1, features.shape[-1])
        directions = ot.random_directions(points.shape[-1], self.n_projections, generator=self._directions).to(points)
        # Shape (n_agents, n_projections, m), sorted along the lines.
        ordered, rank = (points @ directions).transpose(1, 2).sort(-1)
        if self.metric.p == 1.0:
            quantiles = weighted_median(ordered, weights.to(ordered.dtype)).expand_as(ordered)
        else:
            quantiles = (weights.to(ordered.dtype).view(-1, 1, 1) * ordered).sum(0).expand_as(ordered)
        gaps = (ordered - quantiles).abs() ** self.metric.p
        values = ot.line_potentials(ordered, quantiles, p=self.metric.p) if self.gradient == "potential" else gaps
        coefficients = th.zeros_like(values).scatter_(2, rank, values).mean(1)
        samples = th.zeros_like(membership)
        samples[agent_of, state_of] = coefficients.flatten()
        baseline = (samples * membership).sum(1, keepdim=True)
        self._sample_weights = (samples - baseline) * membership
        distances = ot.sliced_pairwise(points, n_projections=self.n_projections, p=self.metric.p, generator=self._directions)
        return ConsensusReport(gaps.mean((1, 2)), (distances**self.metric.p).amax())


def weighted_median(values: th.Tensor, weights: th.Tensor) -> th.Tensor:
    r"""
    The minimiser of :math:`\sum_i w_i |x_i - m|`, the middle of all minimisers where there are several.

    :param values: shape ``(n, ...)``
    :param weights: non-negative, shape ``(n,)``, summing to one
    :return: shape ``(...)``
    """
    ordered, index = values.sort(0)
    below = weights[index].cumsum(0)
    # The first values at which half of the weight is reached, and at which it is exceeded; rounding must not tell them apart.
    slack = 1e-5
    first, last = ((below < 0.5 + sign * slack).sum(0, keepdim=True).clamp_max(len(values) - 1) for sign in (-1, 1))
    return 0.5 * (ordered.gather(0, first) + ordered.gather(0, last)).squeeze(0)
