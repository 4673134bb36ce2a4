"""Consensus of visitation measures: gradients against finite differences of the divergence, reports against POT."""

import numpy as np
import ot as pot
import pytest
import torch as th
from consensus_toys import (
    BETA,
    N_ACTIONS,
    N_AGENTS,
    REG,
    WEIGHTS,
    LinearTeam,
    assert_gradient,
    divergence,
    loss_of,
    metric,
    prepare,
    rollout,
    transport,
)

from otbaselines import ot
from otbaselines.wbc import visitation
from otbaselines.wbc.visitation import ExpectedConsensus, ReparametrisedConsensus, SampledConsensus, SlicedConsensus

EACH = 3
N_STATES = EACH * N_AGENTS


@pytest.fixture(autouse=True)
def _many_digits(monkeypatch):
    """Finite differences need more digits than training does."""
    monkeypatch.setattr(visitation, "TOLERANCE", 1e-7)


def _generator() -> th.Generator:
    return th.Generator().manual_seed(7)


def _state_points(buffer, states) -> th.Tensor:
    """Observations in units of their deviations over the rollout."""
    return (states / buffer.observations.flatten(0, 2).std(0)).double()


def _shares(pooled: bool) -> th.Tensor:
    """Weight of every state in every agent's measure: the drawn states lie agent after agent."""
    if pooled:
        return th.full((N_AGENTS, N_STATES), 1.0 / N_STATES, dtype=th.float64)
    return th.eye(N_AGENTS, dtype=th.float64).repeat_interleave(EACH, 1) / EACH


def _cost(points, actions, other_points=None, other_actions=None, *, p) -> th.Tensor:
    """The ground cost; actions are vectors."""
    other_points = points if other_points is None else other_points
    other_actions = actions if other_actions is None else other_actions
    return th.cdist(points, other_points) ** p + (BETA * th.cdist(actions, other_actions)) ** p


def _assert_report(report, cost, measures, center, *, debiased) -> None:
    for agent in range(N_AGENTS):
        expected = transport(cost, measures[agent], center, debiased=debiased)
        assert float(report.divergences[agent]) == pytest.approx(expected, abs=1e-4)
    pairs = [transport(cost, measures[i], measures[j], debiased=debiased) for i in range(N_AGENTS) for j in range(i)]
    assert float(report.max_divergence) == pytest.approx(max(pairs), abs=1e-4)


def test_states_are_drawn_evenly_from_the_agents():
    buffer = rollout(True)
    buffer.observations[..., 0] = th.arange(N_AGENTS).float()
    consensus = ExpectedConsensus(N_STATES + 1, _generator(), metric(True), pooled=False, debiased=True)
    consensus._draw(buffer)
    assert consensus.states(0)[:, 0].tolist() == [0.0] * EACH + [1.0] * EACH + [2.0] * EACH


def test_states_of_agents_that_had_left_are_not_drawn():
    buffer = rollout(True)
    buffer.active = th.rand(buffer.active.shape) < 0.4
    buffer.active[0] = True
    buffer.all_active = False
    buffer.observations[..., 0] = buffer.active.float()
    consensus = ExpectedConsensus(60, _generator(), metric(True), pooled=True, debiased=True)
    consensus._draw(buffer)
    assert bool((consensus.states(0)[:, 0] == 1.0).all())


# ---------------------------------------------------------------- expected
def _expected(pooled, p, debiased, mask=None, alike=False):
    team, buffer = LinearTeam(True, mask=mask, alike=alike), rollout(True)
    consensus = ExpectedConsensus(N_STATES, _generator(), metric(True, p=p), pooled=pooled, debiased=debiased)
    report = prepare(consensus, team, buffer)
    states = consensus.states(0)
    points = _state_points(buffer, states).repeat_interleave(N_ACTIONS, 0)
    cost = _cost(points, th.eye(N_ACTIONS, dtype=th.float64).repeat(N_STATES, 1), p=p)

    def measures(team):
        return (_shares(pooled)[..., None] * team.policies_at(states).probs.transpose(0, 1)).flatten(1)

    center = consensus._barycenter.weights
    return team, consensus, report, cost, measures, center


MASK = th.tensor([[True] * 4, [True, True, True, False], [True] * 4])


@pytest.mark.parametrize(
    ("pooled", "p", "debiased", "mask"),
    [(True, 1, True, None), (True, 2, True, None), (True, 2, False, MASK), (False, 1, False, None), (False, 2, True, None)],
)
def test_the_expected_gradient_is_that_of_the_divergence(pooled, p, debiased, mask):
    team, consensus, _, cost, measures, center = _expected(pooled, p, debiased, mask)

    def divergences(team):
        current = measures(team)
        return divergence(cost, current, center.expand_as(current), debiased=debiased)

    assert_gradient(consensus, team, divergences, atol=1e-5)


@pytest.mark.parametrize("pooled", [False, True], ids=["own", "pooled"])
def test_the_barycenter_is_pots(pooled):
    team, _, _, cost, measures, center = _expected(pooled, 1, False)
    expected = pot.barycenter(
        measures(team).T, cost, REG, weights=WEIGHTS, method="sinkhorn_log", numItermax=5000, stopThr=1e-10
    )
    th.testing.assert_close(center, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("debiased", [False, True], ids=["biased", "debiased"])
@pytest.mark.parametrize("pooled", [False, True], ids=["own", "pooled"])
def test_the_expected_report_is_pots(pooled, debiased):
    team, _, report, cost, measures, center = _expected(pooled, 1, debiased)
    _assert_report(report, cost, measures(team), center, debiased=debiased)


def test_coordinates_that_do_not_count_do_not_matter():
    team, buffer = LinearTeam(True), rollout(True)
    team.weight[:, 0] = 0.0
    ground = metric(True, p=1, metric_coordinates=[1], scale_observations=False)
    reports = []
    for shift in (0.0, 5.0):
        buffer.observations[..., 0] *= shift
        reports.append(prepare(ExpectedConsensus(N_STATES, _generator(), ground, pooled=True, debiased=True), team, buffer))
    assert float(reports[0].max_divergence) > 1e-3
    th.testing.assert_close(reports[0].divergences, reports[1].divergences)


# ---------------------------------------------------------------- reparametrised
def _reparametrised(pooled, p, debiased, alike=False):
    team, buffer = LinearTeam(False, alike=alike), rollout(False)
    consensus = ReparametrisedConsensus(N_STATES, _generator(), metric(False, p=p), pooled=pooled, debiased=debiased)
    report = prepare(consensus, team, buffer)
    states, noise = consensus.states(0), consensus._noise.double()
    points = _state_points(buffer, states)

    def actions(team):
        policies = team.policies_at(states)
        return (policies.mean + policies.std * noise).transpose(0, 1)

    # The codebook: each agent's action at each state of its own measure, agent after agent.
    agent_of, state_of = _shares(pooled).nonzero().unbind(1)
    codebook = actions(team)[agent_of, state_of]
    cost = _cost(points[state_of], codebook, p=p)
    measures = th.zeros(N_AGENTS, len(agent_of), dtype=th.float64)
    measures[agent_of, th.arange(len(agent_of))] = _shares(pooled)[agent_of, state_of]
    center = consensus._barycenter.weights

    def divergences(team):
        moved, values = actions(team), []
        for agent in range(N_AGENTS):
            held = (agent_of == agent).nonzero().squeeze(1)
            own_points, own_actions = points[state_of[held]], moved[agent, state_of[held]]
            own = measures[agent, held]
            cross = _cost(own_points, own_actions, points[state_of], codebook, p=p)
            value = ot.sinkhorn(cross, own, center, reg=REG, tol=1e-9).value
            if debiased:
                value = value - 0.5 * ot.self_transport(_cost(own_points, own_actions, p=p), own, reg=REG, tol=1e-9).value
            values.append(value)
        return th.stack(values)

    return team, consensus, report, cost, measures, center, divergences


@pytest.mark.parametrize(("pooled", "p", "debiased"), [(True, 1, True), (True, 2, False), (False, 1, False), (False, 2, True)])
def test_the_reparametrised_gradient_is_that_of_the_divergence(pooled, p, debiased):
    team, consensus, *_, divergences = _reparametrised(pooled, p, debiased)
    assert_gradient(consensus, team, divergences, atol=2e-4)


@pytest.mark.parametrize("pooled", [False, True], ids=["own", "pooled"])
def test_the_reparametrised_report_is_pots(pooled):
    _, _, report, cost, measures, center, _ = _reparametrised(pooled, 1, True)
    _assert_report(report, cost, measures, center, debiased=True)


# ---------------------------------------------------------------- sampled
def _sampled(discrete, pooled, debiased, gradient="potential"):
    team, buffer = LinearTeam(discrete), rollout(discrete)
    consensus = SampledConsensus(
        N_STATES, _generator(), metric(discrete, p=1), pooled=pooled, debiased=debiased, gradient=gradient
    )
    report = prepare(consensus, team, buffer)
    states, actions = consensus.states(0), consensus._sampled
    shares = _shares(pooled)
    agent_of, state_of = shares.nonzero().unbind(1)
    vectors = th.eye(N_ACTIONS, dtype=th.float64)[actions] if discrete else actions.double()
    cost = _cost(_state_points(buffer, states)[state_of], vectors[state_of, agent_of], p=1)
    measures = th.zeros(N_AGENTS, len(agent_of), dtype=th.float64)
    measures[agent_of, th.arange(len(agent_of))] = shares[agent_of, state_of]
    center = consensus._barycenter.weights
    return team, consensus, report, cost, measures, center


@pytest.mark.parametrize(
    ("discrete", "pooled", "debiased"), [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_the_sampled_gradient_is_that_of_the_reweighted_divergence(discrete, pooled, debiased):
    # The score function differentiates the measure whose samples carry the likelihood ratio, normalised, as weights.
    team, consensus, _, cost, measures, center = _sampled(discrete, pooled, debiased)
    states, actions = consensus.states(0), consensus._sampled
    agent_of, state_of = _shares(pooled).nonzero().unbind(1)
    old = team.policies_at(states).log_prob(actions)

    def divergences(team):
        ratio = (team.policies_at(states).log_prob(actions) - old).exp()[state_of, agent_of]
        current = measures * ratio
        current = current / current.sum(1, keepdim=True)
        return divergence(cost, current, center.expand_as(current), debiased=debiased)

    assert_gradient(consensus, team, divergences, atol=1e-5)


@pytest.mark.parametrize("discrete", [True, False], ids=["discrete", "continuous"])
def test_the_sampled_report_is_pots(discrete):
    _, _, report, cost, measures, center = _sampled(discrete, pooled=True, debiased=True)
    _assert_report(report, cost, measures, center, debiased=True)


def test_own_samples_are_the_actions_that_were_taken():
    team, buffer = LinearTeam(True), rollout(True)
    buffer.observations[..., 0] = buffer.actions.float()
    consensus = SampledConsensus(N_STATES, _generator(), metric(True), pooled=False, debiased=True, gradient="potential")
    prepare(consensus, team, buffer)
    assert th.equal(consensus._sampled[:, 0].float(), consensus.states(0)[:, 0])


def test_the_plans_cost_is_the_papers():
    # c(x) = sum_y P(x, y) d(x, y) / mu(x), times grad log pi, summed with the samples' weights, less its mean.
    team, consensus, _, cost, measures, center = _sampled(True, True, False, gradient="plan")
    team.offset.requires_grad_()
    (gradient,) = th.autograd.grad(loss_of(consensus, team).sum(), [team.offset], retain_graph=True)
    log_prob = team.policies_at(consensus.states(0)).log_prob(consensus._sampled)
    for agent in range(N_AGENTS):
        held = measures[agent] > 0
        plan = pot.bregman.sinkhorn_log(measures[agent][held], center, cost[held], REG, numItermax=2000, stopThr=1e-8)
        transported = (plan * cost[held]).sum(1) / measures[agent][held]
        surrogate = ((transported - transported.mean()) * log_prob[:, agent]).mean()
        (expected,) = th.autograd.grad(surrogate, [team.offset], retain_graph=True)
        th.testing.assert_close(gradient[agent], expected[agent], atol=1e-5, rtol=0)


# ---------------------------------------------------------------- sliced
def _sliced(p, **options):
    return SlicedConsensus(N_STATES, _generator(), metric(False, p=p), directions=_generator(), **options)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("pooled", [False, True], ids=["own", "pooled"])
def test_sliced_costs_and_divergences_are_pots(pooled, p):
    team, buffer = LinearTeam(False), rollout(False)
    consensus = _sliced(p, pooled=pooled, gradient="plan", n_projections=64)
    report = prepare(consensus, team, buffer, weights=WEIGHTS.float())
    agent_of, state_of = _shares(pooled).nonzero().unbind(1)
    points = _state_points(buffer, consensus.states(0))[state_of]
    actions = consensus._sampled.double()[state_of, agent_of]
    features = th.cat([points, BETA * actions], -1).view(N_AGENTS, -1, 4)
    stream = _generator()
    first, second = (ot.random_directions(4, consensus.n_projections, generator=stream).double() for _ in range(2))
    lines = features @ first
    quantiles = _quantiles(lines, p)
    for agent in range(N_AGENTS):
        expected = pot.wasserstein_1d(lines[agent], quantiles, p=p).mean()
        assert float(report.divergences[agent]) == pytest.approx(float(expected), rel=1e-4)
        # What each sample pays under the optimal plan on every line, less the mean.
        costs = [_line_costs(lines[agent, :, k], quantiles[:, k], p) for k in range(consensus.n_projections)]
        mean = th.stack(costs).mean(0)
        weights = consensus._sample_weights[agent, state_of[agent_of == agent]].double()
        th.testing.assert_close(weights, (mean - mean.mean()) / len(mean), atol=1e-5, rtol=1e-4)
    arrays, directions = features.numpy(), second.numpy()
    pairs = [
        pot.sliced_wasserstein_distance(arrays[i], arrays[j], projections=directions, p=p) ** p
        for i in range(N_AGENTS)
        for j in range(i)
    ]
    assert float(report.max_divergence) == pytest.approx(float(np.max(pairs)), rel=1e-4)


@pytest.mark.parametrize("p", [1, 2])
def test_the_sliced_potential_is_the_derivative_by_the_samples_weights(p):
    team, buffer = LinearTeam(False), rollout(False)
    consensus = _sliced(p, pooled=True, gradient="potential", n_projections=3)
    prepare(consensus, team, buffer, weights=WEIGHTS.float())
    points = _state_points(buffer, consensus.states(0))
    features = th.stack([th.cat([points, BETA * consensus._sampled.double()[:, agent]], -1) for agent in range(N_AGENTS)])
    directions = ot.random_directions(4, 3, generator=_generator()).double()
    lines = features @ directions
    quantiles = _quantiles(lines, p)
    uniform, step = th.full((N_STATES,), 1 / N_STATES, dtype=th.float64), 1e-5
    for agent in range(N_AGENTS):
        expected = th.zeros(N_STATES, dtype=th.float64)
        for k in range(3):
            order = lines[agent, :, k].argsort()
            x, y = lines[agent, order, k], quantiles[:, k]
            cost = (x[:, None] - y[None, :]).abs() ** p
            slopes = []
            for sample in range(N_STATES - 1):
                moved = th.zeros(N_STATES, dtype=th.float64)
                moved[sample + 1], moved[sample] = step, -step
                ahead, behind = (pot.emd2(uniform + sign * moved, uniform, cost) for sign in (1, -1))
                slopes.append((ahead - behind) / (2 * step))
            potential = th.cat([th.zeros(1, dtype=th.float64), th.stack(slopes).cumsum(0)])
            expected[order] += (potential - potential.mean()) / 3
        weights = consensus._sample_weights[agent].double()
        th.testing.assert_close(weights, expected / N_STATES, atol=1e-5, rtol=1e-3)


def _quantiles(lines: th.Tensor, p: int) -> th.Tensor:
    """Of the barycenter on every line: averages, and for p=1 medians, which for the weights 0.2, 0.5, 0.3 are midpoints."""
    ordered = lines.sort(1).values
    if p == 2:
        return (WEIGHTS[:, None, None] * ordered).sum(0)
    # Half of the weight is the second agent's alone: from its value to the nearest other on one side all are medians.
    own, others = ordered[1], ordered[[0, 2]]
    low, high = others.amin(0), others.amax(0)
    other = th.where(own < low, low, th.where(own > high, high, own))
    return 0.5 * (own + other)


def _line_costs(x: th.Tensor, y: th.Tensor, p: int) -> th.Tensor:
    plan = pot.emd_1d(x, y, metric="minkowski", p=p)
    return len(x) * (plan * (x[:, None] - y[None, :]).abs() ** p).sum(1)


# ---------------------------------------------------------------- agreement
KINDS = {
    "expected": lambda: (True, ExpectedConsensus(N_STATES, _generator(), metric(True, p=1), pooled=True, debiased=True)),
    "reparametrised": lambda: (
        False,
        ReparametrisedConsensus(N_STATES, _generator(), metric(False, p=1), pooled=True, debiased=True),
    ),
    "potential": lambda: (
        True,
        SampledConsensus(N_STATES, _generator(), metric(True, p=1), pooled=True, debiased=True, gradient="potential"),
    ),
    "plan": lambda: (
        True,
        SampledConsensus(N_STATES, _generator(), metric(True, p=1), pooled=True, debiased=True, gradient="plan"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_team_that_agrees_is_left_alone(kind):
    discrete, consensus = KINDS[kind]()
    team = LinearTeam(discrete, alike=True)
    if kind in ("potential", "plan"):
        # Agreement of samples: what is done is all but certain, and depends on the state.
        team.weight *= 1000.0
    report = prepare(consensus, team, rollout(discrete))
    assert float(report.max_divergence) == pytest.approx(0.0, abs=1e-5)
    assert report.divergences.tolist() == pytest.approx([0.0] * N_AGENTS, abs=1e-5)
    if kind in ("potential", "plan"):
        # The score of a certain action is zero, so it is the coefficients that must vanish.
        assert float(consensus._sample_weights.abs().max()) < 1e-6
        return
    for parameter in team.parameters():
        parameter.requires_grad_()
    for gradient in th.autograd.grad(loss_of(consensus, team).sum(), team.parameters(), allow_unused=True):
        assert float(gradient.abs().max()) < 1e-5
