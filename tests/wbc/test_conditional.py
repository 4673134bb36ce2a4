"""Consensus state by state: gradients against finite differences of the divergence, reports against POT."""

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
from otbaselines.wbc import conditional
from otbaselines.wbc.conditional import CategoricalConsensus, GaussianConsensus
from otbaselines.wbc.divergences import EnergyConsensus, KLConsensus

# The second agent lacks the last action.
MASK = th.tensor([[True] * 4, [True, True, True, False], [True] * 4])
# Moves along a line; the third agent's are turned round.
LINE = [[-1.0], [0.0], [1.0], [2.0]]
TABLES = [LINE, LINE, [[1.0], [0.0], [-1.0], [-2.0]]]


@pytest.fixture(autouse=True)
def _many_digits(monkeypatch):
    """Finite differences need more digits than training does."""
    monkeypatch.setattr(conditional, "COLD_ERROR", 1e-11)
    monkeypatch.setattr(conditional, "MAX_COLD_ROUNDS", 200)


def _generator() -> th.Generator:
    return th.Generator().manual_seed(7)


def _points(embedding) -> th.Tensor:
    """The codebook and every agent's place on it, by hand: shape ``(n_agents, n_actions, n_points)`` and the cost."""
    if embedding == "one_hot":
        return th.eye(N_ACTIONS, dtype=th.float64), th.eye(N_ACTIONS, dtype=th.float64).expand(N_AGENTS, -1, -1)
    table = th.tensor(embedding, dtype=th.float64).expand(N_AGENTS, N_ACTIONS, 1)
    line = th.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]], dtype=th.float64)
    return line, (table == line.T).double()


EMBEDDINGS = {"one_hot": "one_hot", "per_agent": TABLES}


def _categorical(embedding, p, debiased, mask=None, alike=False):
    team = LinearTeam(True, mask=mask, alike=alike)
    ground = metric(True, p=p, action_embedding=EMBEDDINGS[embedding])
    consensus = CategoricalConsensus(5, _generator(), ground, debiased=debiased)
    points, placement = _points(EMBEDDINGS[embedding])
    cost = (BETA * th.cdist(points, points)) ** p

    def measures(team, states):
        return th.einsum("nka,kam->nkm", team.policies_at(states).probs, placement)

    return team, consensus, cost, measures


@pytest.mark.parametrize(
    ("embedding", "p", "debiased", "mask"),
    [
        ("one_hot", 2, True, None),
        ("one_hot", 1, False, None),
        ("one_hot", 2, True, MASK),
        ("one_hot", 2, False, MASK),
        ("per_agent", 1, True, None),
        ("per_agent", 2, False, MASK),
    ],
)
def test_the_categorical_gradient_is_that_of_the_divergence(embedding, p, debiased, mask):
    team, consensus, cost, measures = _categorical(embedding, p, debiased, mask)
    prepare(consensus, team, rollout(True), n_chunks=2)
    states = consensus.states(1)
    fixed = measures(team, states)
    centers = ot.barycenter(fixed, cost, reg=REG, weights=WEIGHTS, debiased=debiased, tol=1e-11).weights.unsqueeze(1)

    def divergences(team):
        current = measures(team, states)
        return divergence(cost, current, centers.expand_as(current), debiased=debiased).mean(0)

    assert_gradient(consensus, team, divergences, atol=1e-5, chunk=1)


@pytest.mark.parametrize("debiased", [False, True], ids=["biased", "debiased"])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_the_categorical_report_is_pots(embedding, debiased):
    team, consensus, cost, measures = _categorical(embedding, 2, debiased)
    report = prepare(consensus, team, rollout(True))
    held = measures(team, consensus.states(0))
    centers = ot.barycenter(held, cost, reg=REG, weights=WEIGHTS, debiased=debiased, tol=1e-9).weights
    for agent in range(N_AGENTS):
        values = [transport(cost, a[agent], b, debiased=debiased) for a, b in zip(held, centers, strict=True)]
        assert float(report.divergences[agent]) == pytest.approx(sum(values) / len(values), abs=1e-3)
    pairs = [
        sum(transport(cost, a[i], a[j], debiased=debiased) for a in held) / len(held)
        for i in range(N_AGENTS)
        for j in range(i)
    ]
    assert float(report.max_divergence) == pytest.approx(max(pairs), abs=1e-3)


def test_the_potentials_follow_the_policy_through_an_update():
    # A few warm steps after each small change stay close to what a cold solution to many digits gives.
    team, consensus, _, _ = _categorical("one_hot", 2, True)
    buffer = rollout(True)
    prepare(consensus, team, buffer)
    for _ in range(20):
        team.weight += 0.02 * th.randn_like(team.weight)
        gradient = _offset_gradient(consensus, team)
    fresh = CategoricalConsensus(5, _generator(), consensus.metric, debiased=True)
    prepare(fresh, team, buffer)
    expected = _offset_gradient(fresh, team)
    assert float((gradient - expected).norm()) < 0.03 * float(expected.norm())


def test_every_step_goes_on_from_where_the_scalings_of_the_last_one_ended():
    team, buffer = LinearTeam(True), rollout(True)
    consensus = CategoricalConsensus(5, _generator(), metric(True), debiased=True)
    prepare(consensus, team, buffer)
    team.offset += th.randn_like(team.offset)
    # Seen again and again with the same policies, the minibatch is solved better each time.
    first, *_, last = (_offset_gradient(consensus, team) for _ in range(30))
    consensus._warm_steps = 300
    solved = _offset_gradient(consensus, team)
    assert float((last - solved).norm()) < 1e-3 * float((first - solved).norm())


def _offset_gradient(consensus, team) -> th.Tensor:
    team.offset.requires_grad_()
    (gradient,) = th.autograd.grad(loss_of(consensus, team).sum(), [team.offset])
    team.offset.requires_grad_(False)
    return gradient


def test_every_minibatch_has_states_of_its_own():
    consensus = CategoricalConsensus(5, _generator(), metric(True), debiased=True)
    prepare(consensus, LinearTeam(True), rollout(True), n_chunks=3)
    chunks = [consensus.states(chunk) for chunk in range(3)]
    assert [len(chunk) for chunk in chunks] == [5, 5, 5]
    assert not th.equal(chunks[0], chunks[1])


def _moments(team, states):
    policies = team.policies_at(states)
    return policies.mean, policies.std.expand_as(policies.mean)


def test_the_gaussian_gradient_is_that_of_the_divergence():
    team, consensus = LinearTeam(False), GaussianConsensus(5, _generator(), metric(False))
    prepare(consensus, team, rollout(False), n_chunks=2)
    states = consensus.states(1)
    mean, std = _moments(team, states)
    # A square root of the stationarity condition of the variance, dimension by dimension: bisection.
    low, high = th.zeros_like(std[:, 0]), 10.0 + 0.0 * std[:, 0]
    half, shares = 0.5 * REG, WEIGHTS[:, None]
    for _ in range(80):
        middle = 0.5 * (low + high)
        total = (shares * (4 * (middle.unsqueeze(1) * BETA * std) ** 2 + half**2).sqrt()).sum(1)
        below = (4 * middle**4 + half**2).sqrt() < total
        low, high = th.where(below, middle, low), th.where(below, high, middle)
    center, spread = BETA * (shares * mean).sum(1, keepdim=True), low.unsqueeze(1)

    def divergences(team):
        mean, std = _moments(team, states)
        return ot.gaussian_sinkhorn_divergence(BETA * mean, BETA * std, center, spread, reg=REG).sum(-1).mean(0)

    assert_gradient(consensus, team, divergences, atol=1e-5, chunk=1)


def test_the_gaussian_report_is_that_of_the_closed_form():
    team, consensus = LinearTeam(False), GaussianConsensus(5, _generator(), metric(False))
    report = prepare(consensus, team, rollout(False))
    mean, std = (BETA * value for value in _moments(team, consensus.states(0)))
    pairs = [
        ot.gaussian_sinkhorn_divergence(mean[:, i], std[:, i], mean[:, j], std[:, j], reg=REG).sum(-1).mean()
        for i in range(N_AGENTS)
        for j in range(i)
    ]
    assert float(report.max_divergence) == pytest.approx(float(max(pairs)), rel=1e-9)
    th.testing.assert_close(report.divergences, loss_of(consensus, team))


def test_a_missing_action_dimension_is_not_part_of_the_comparison():
    # The second agent has no second dimension: what is written there must not matter to anybody.
    mask = th.tensor([[True, True], [True, False], [True, True]])
    for kind in (
        lambda: GaussianConsensus(5, _generator(), metric(False)),
        lambda: KLConsensus(5, _generator()),
        lambda: KLConsensus(5, _generator(), reverse=True),
        lambda: EnergyConsensus(5, _generator(), metric(False)),
    ):
        team, buffer, results = LinearTeam(False, mask=mask), rollout(False), []
        for value in (-1.0, 2.0):
            team.log_std[1, 1] = value
            consensus = kind()
            report = prepare(consensus, team, buffer)
            results.append(th.cat([report.divergences, report.max_divergence.view(1), loss_of(consensus, team)]))
        th.testing.assert_close(results[0], results[1])


KINDS = {
    "categorical": lambda: (True, CategoricalConsensus(5, _generator(), metric(True), debiased=True)),
    "gaussian": lambda: (False, GaussianConsensus(5, _generator(), metric(False))),
    "kl": lambda: (True, KLConsensus(5, _generator())),
    "kl_gaussian": lambda: (False, KLConsensus(5, _generator())),
    "reverse_kl": lambda: (True, KLConsensus(5, _generator(), reverse=True)),
    "reverse_kl_gaussian": lambda: (False, KLConsensus(5, _generator(), reverse=True)),
    "energy": lambda: (True, EnergyConsensus(5, _generator(), metric(True))),
    "energy_gaussian": lambda: (False, EnergyConsensus(5, _generator(), metric(False))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_team_that_agrees_is_left_alone(kind):
    discrete, consensus = KINDS[kind]()
    team = LinearTeam(discrete, alike=True)
    report = prepare(consensus, team, rollout(discrete))
    assert float(report.max_divergence) == pytest.approx(0.0, abs=1e-5)
    assert report.divergences.tolist() == pytest.approx([0.0] * N_AGENTS, abs=1e-5)
    for parameter in team.parameters():
        parameter.requires_grad_()
    for gradient in th.autograd.grad(loss_of(consensus, team).sum(), team.parameters()):
        assert float(gradient.abs().max()) < 1e-6
