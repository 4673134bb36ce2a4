"""Consensus without transport: divergences by torch and by quadrature, and what placing the actions changes."""

import math

import numpy as np
import pytest
import torch as th
from consensus_toys import (
    BETA,
    N_ACTIONS,
    N_AGENTS,
    WEIGHTS,
    LinearTeam,
    assert_gradient,
    loss_of,
    metric,
    prepare,
    rollout,
)
from gymnasium import spaces

from otbaselines import ot
from otbaselines.common.multi_agent.distributions import MaskedCategorical
from otbaselines.envs import NavigationConfig
from otbaselines.wbc import divergences
from otbaselines.wbc.conditional import CategoricalConsensus
from otbaselines.wbc.divergences import EnergyConsensus, KLConsensus
from otbaselines.wbc.metric import TeamSpaces, labels, make_metric, normalised_table

# The second agent lacks the last action.
MASK = th.tensor([[True] * 4, [True, True, True, False], [True] * 4])
# What the actions of each agent are: the second agent's numbers are turned round, the third has an action of its own.
PLACES = th.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 4]])
BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


def _generator() -> th.Generator:
    return th.Generator().manual_seed(7)


def _moments(team, states):
    policies = team.policies_at(states)
    return policies.mean, policies.std.expand_as(policies.mean)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_the_discrete_kl_is_torchs_divergence_from_the_mixture(mask):
    team, consensus = LinearTeam(True, mask=mask), KLConsensus(5, _generator())
    report = prepare(consensus, team, rollout(True), n_chunks=2)
    states = consensus.states(1)
    fixed = team.policies_at(states).probs
    mixture = th.distributions.Categorical(probs=(WEIGHTS[:, None] * fixed).sum(1))

    def divergences(team):
        probs = team.policies_at(states).probs
        own = [th.distributions.Categorical(probs=probs[:, agent]) for agent in range(N_AGENTS)]
        return th.stack([th.distributions.kl_divergence(each, mixture).mean() for each in own])

    th.testing.assert_close(loss_of(consensus, team, 1), divergences(team), atol=1e-6, rtol=0)
    assert_gradient(consensus, team, divergences, atol=1e-5, chunk=1)
    first = team.policies_at(consensus.states(0)).probs
    pairs = []
    for i in range(N_AGENTS):
        for j in range(N_AGENTS):
            # Given that the action is one that both have.
            shared = slice(None) if mask is None else mask[i] & mask[j]
            p, q = (th.distributions.Categorical(probs=first[:, agent][:, shared]) for agent in (i, j))
            pairs.append(th.distributions.kl_divergence(p, q).mean())
    assert float(report.max_divergence) == pytest.approx(float(max(pairs)), rel=1e-6)


def test_the_kl_of_agents_that_lack_each_others_actions_is_that_on_the_common_ones():
    # (1/2, 1/4, 1/4) and (1/5, 1/5, 3/5 of an action that the first lacks), by hand: given the first two actions
    # (2/3, 1/3) and (1/2, 1/2), so KL = 2/3 log 4/3 + 1/3 log 2/3; the third agent shares nothing with the first.
    mask = th.tensor([[True, True, True, False, False], [True, True, False, True, False], [False] * 4 + [True]])
    probs = th.tensor([[0.5, 0.25, 0.25, 0, 0], [0.2, 0.2, 0, 0.6, 0], [0, 0, 0, 0, 1.0]], dtype=th.float64)
    pairs = divergences._pairwise_kl(MaskedCategorical(probs.clamp_min(1e-9).log().unsqueeze(0), mask).log_probs, mask)[0]
    assert float(pairs[0, 1]) == pytest.approx(2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3), rel=1e-6)
    assert float(pairs[1, 0]) == pytest.approx(0.5 * math.log(3 / 4) + 0.5 * math.log(3 / 2), rel=1e-6)
    assert pairs.diagonal().tolist() == pairs[2].tolist() == pairs[:, 2].tolist() == [0.0, 0.0, 0.0]


def test_the_gaussian_kl_is_torchs_mean_divergence_from_the_team_mates():
    team, consensus = LinearTeam(False), KLConsensus(5, _generator())
    report = prepare(consensus, team, rollout(False), n_chunks=2)

    def normals(team, states):
        mean, std = _moments(team, states)
        return [th.distributions.Normal(mean[:, agent], std[:, agent]) for agent in range(N_AGENTS)]

    states = consensus.states(1)
    fixed = normals(team, states)

    def divergences(team):
        rows = [
            sum(w * th.distributions.kl_divergence(p, q).sum(-1).mean() for w, q in zip(WEIGHTS, fixed, strict=True))
            for p in normals(team, states)
        ]
        return th.stack(rows)

    th.testing.assert_close(loss_of(consensus, team, 1), divergences(team))
    assert_gradient(consensus, team, divergences, atol=1e-4, chunk=1)
    first = normals(team, consensus.states(0))
    pairs = [th.distributions.kl_divergence(p, q).sum(-1).mean() for p in first for q in first]
    assert float(report.max_divergence) == pytest.approx(float(max(pairs)), rel=1e-9)


# ---------------------------------------------------------------- placed labels
def _placed(probs):
    return th.einsum("nka,kam->nkm", probs, th.nn.functional.one_hot(PLACES).double())


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_the_kl_of_placed_actions_is_that_of_the_same_policies_written_on_the_labels(mask, reverse):
    team, consensus = LinearTeam(True, mask=mask), KLConsensus(5, _generator(), PLACES, reverse=reverse)
    prepare(consensus, team, rollout(True), n_chunks=2)
    states = consensus.states(1)
    mixture = (WEIGHTS[:, None] * _placed(team.policies_at(states).probs)).sum(1)
    held = th.nn.functional.one_hot(PLACES).bool()
    held = (held if mask is None else held & mask[..., None]).any(1)

    def divergences_of(team):
        values = []
        for agent, own in enumerate(held):
            q = _placed(team.policies_at(states).probs)[:, agent, own]
            m = mixture[:, own]
            if reverse:
                m = m / m.sum(-1, keepdim=True)
                values.append((m * (m / q).log()).sum(-1).mean())
            else:
                values.append((q * (q / m).log()).sum(-1).mean())
        return th.stack(values)

    th.testing.assert_close(loss_of(consensus, team, 1), divergences_of(team), atol=1e-6, rtol=0)
    assert_gradient(consensus, team, divergences_of, atol=1e-5, chunk=1)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_permuted_labels_are_the_problem_of_equal_agents(reverse):
    # Agents who do the same thing under other numbers agree; without the labels they do not.
    turned = NavigationConfig(turn=90)
    team = TeamSpaces(spaces.Discrete(5), BOX, 3, th.device("cpu"))
    place = labels(team, normalised_table(turned.agent_action_vectors))
    assert place is not None
    common = th.tensor([[0.05, 0.6, 0.2, 0.1, 0.05]], dtype=th.float64)
    probs = th.stack([common[:, place[0].argsort()][:, place[agent]] for agent in range(3)], 1)
    policies = MaskedCategorical(probs.log())
    for placement, agrees in ((place, True), (None, False)):
        consensus = KLConsensus(2, _generator(), placement, reverse=reverse)
        consensus._weights = th.full((3,), 1 / 3, dtype=th.float64)
        assert bool(consensus._divergence(policies).max() < 1e-9) is agrees
        assert bool(consensus._pairs(policies).max() < 1e-9) is agrees


def _pulls(kind, angle):
    """How agent 1's logits are pulled: its team-mates walk along +x, it is uniform over moves turned by ``angle``."""
    table = normalised_table(NavigationConfig(n_agents=3, turn=[0.0, angle, 0.0]).agent_action_vectors)
    team = TeamSpaces(spaces.Discrete(5), BOX, 3, th.device("cpu"))
    ground = make_metric(team, beta=0.8, p=2, action_embedding=table)
    consensus = {
        "kl": lambda: KLConsensus(2, _generator(), labels(team, table)),
        "energy": lambda: EnergyConsensus(2, _generator(), make_metric(team, beta=0.8, p=1, action_embedding=table)),
        "transport": lambda: CategoricalConsensus(2, _generator(), ground, debiased=True),
    }[kind]()
    mates, own = th.tensor([0.01, 0.96, 0.01, 0.01, 0.01]), th.full((5,), 0.2)
    logits = th.stack([mates, own, mates]).log().double().unsqueeze(0).requires_grad_()
    policies = MaskedCategorical(logits)
    consensus._weights, consensus._reg = th.full((3,), 1 / 3, dtype=th.float64), 0.6
    if kind == "transport":
        solver = ot.ScalingSolver(ground.action_cost().double(), reg=0.6, weights=consensus._weights)
        solved = solver.solve(ground.place(policies.probs.detach()), 400)
        loss = (solved.gradient * ground.place(policies.probs))[:, 1].sum()
    else:
        loss = consensus._divergence(policies)[1]
    (gradient,) = th.autograd.grad(loss, logits)
    return -gradient[0, 1]


def test_placed_kl_has_no_preference_among_moves_that_no_team_mate_has():
    # At 45 degrees no direction is common: the same pull on all four moves, while transport prefers the two that lead to +x.
    kl = _pulls("kl", 45.0)
    assert float((kl[1:] - kl[1]).abs().max()) < 1e-9
    for kind in ("transport", "energy"):
        right, left, up, down = _pulls(kind, 45.0)[1:].tolist()
        # Right and down, turned by 45 degrees, have a part along +x; left and up lead away from it.
        assert right == pytest.approx(down, abs=1e-6)
        assert left == pytest.approx(up, abs=1e-6)
        assert right > 0.01 > -0.01 > left
    # At 90 degrees the labels coincide again: agent 1's "down" is its mates' "right".
    assert int(_pulls("kl", 90.0).argmax()) == 4


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_a_zero_one_metric_on_labels_is_one_hot_transport_between_them(mask):
    points = [[0.0], [1.0], [5.0], [7.0]]
    table = [points, points[::-1], [[0.0], [1.0], [5.0], [9.0]]]
    team = TeamSpaces(spaces.Discrete(4), BOX, 3, th.device("cpu"))
    ground = make_metric(team, beta=BETA, p=2, action_embedding=table, action_metric="zero_one")
    expected = 2 * BETA**2 * (1 - th.eye(5))
    th.testing.assert_close(ground.action_cost(), expected)
    assert ground.placement.tolist() == PLACES.tolist()
    # Two of one agent's actions may do the same thing.
    single = make_metric(team, beta=BETA, p=2, action_embedding=[[0.0], [1.0], [1.0], [2.0]], action_metric="zero_one")
    assert single.placement.tolist() == [[0, 1, 1, 2]] * 3
    assert single.action_cost().shape == (3, 3)


def test_without_a_table_labels_are_numbers_and_nonsense_is_an_error():
    team = TeamSpaces(spaces.Discrete(4), BOX, 3, th.device("cpu"))
    assert labels(team, "one_hot") is None
    assert labels(team, [[0.0], [1.0], [0.0], [3.0]]).tolist() == [[0, 1, 0, 2]] * 3
    with pytest.raises(
        ValueError, match="`action_embedding` must be 'one_hot', 'matched', 'environment' or a table, got 'nonsense'"
    ):
        labels(team, "nonsense")


# ---------------------------------------------------------------- reverse
def test_the_gradient_of_the_reverse_kl_of_normals_is_that_of_their_mixture():
    team, consensus = LinearTeam(False), KLConsensus(5, _generator(), reverse=True)
    prepare(consensus, team, rollout(False))
    states = consensus.states(0)
    fixed = _moments(team, states)

    def divergences_of(team):
        mean, std = _moments(team, states)
        values = []
        for agent in range(N_AGENTS):
            own = th.distributions.Normal(mean[:, agent], std[:, agent])
            # Cross entropy with the mixture, up to its entropy, which is constant.
            rows = [
                w * th.distributions.kl_divergence(th.distributions.Normal(fixed[0][:, j], fixed[1][:, j]), own).sum(-1).mean()
                for j, w in enumerate(WEIGHTS)
            ]
            values.append(sum(rows))
        return th.stack(values)

    assert_gradient(consensus, team, divergences_of, atol=1e-4)


# ---------------------------------------------------------------- energy
def test_the_discrete_energy_distance_is_the_three_means_of_its_definition():
    team, consensus = LinearTeam(True), EnergyConsensus(5, _generator(), metric(True, p=1))
    report = prepare(consensus, team, rollout(True), n_chunks=2)
    states, distance = consensus.states(1), BETA * math.sqrt(2.0) * (1 - th.eye(N_ACTIONS, dtype=th.float64))
    mixture = (WEIGHTS[:, None] * team.policies_at(states).probs).sum(1)

    def mean_distance(p, q):
        return th.einsum("na,ab,nb->n", p, distance, q)

    def energy(p, q):
        return (2 * mean_distance(p, q) - mean_distance(p, p) - mean_distance(q, q)).mean()

    def divergences_of(team):
        return th.stack([energy(team.policies_at(states).probs[:, agent], mixture) for agent in range(N_AGENTS)])

    th.testing.assert_close(loss_of(consensus, team, 1), divergences_of(team))
    assert_gradient(consensus, team, divergences_of, atol=1e-5, chunk=1)
    first = team.policies_at(consensus.states(0)).probs
    pairs = [float(energy(first[:, i], first[:, j])) for i in range(N_AGENTS) for j in range(i)]
    assert float(report.max_divergence) == pytest.approx(max(pairs), rel=1e-6)


def test_the_energy_distance_of_normals_is_cramers_by_quadrature():
    # In one dimension the energy distance is twice the integral of the squared difference of the distribution functions.
    team, consensus = LinearTeam(False), EnergyConsensus(3, _generator(), metric(False))
    report = prepare(consensus, team, rollout(False))
    states, grid = consensus.states(0), th.linspace(-80.0, 80.0, 400_001, dtype=th.float64)

    def functions(team):
        mean, std = (BETA * moment.transpose(0, 1).unsqueeze(-1) for moment in _moments(team, states))
        # Shape (n_agents, n_states, action_dim, points).
        return th.distributions.Normal(mean, std).cdf(grid)

    all_of = functions(team)
    mixture = (WEIGHTS[:, None, None, None] * all_of).sum(0)
    expected = [2 * th.trapezoid((each - mixture) ** 2, grid).sum(-1).mean() for each in all_of]
    th.testing.assert_close(loss_of(consensus, team), th.stack(expected), rtol=1e-6, atol=1e-8)
    pairs = [
        float(2 * th.trapezoid((all_of[i] - all_of[j]) ** 2, grid).sum(-1).mean()) for i in range(N_AGENTS) for j in range(i)
    ]
    assert float(report.max_divergence) == pytest.approx(max(pairs), rel=1e-6)


def test_the_gradient_of_the_energy_of_normals_leaves_the_mixture_fixed():
    team, consensus = LinearTeam(False), EnergyConsensus(3, _generator(), metric(False))
    prepare(consensus, team, rollout(False))
    states = consensus.states(0)
    fixed = [moment.clone() for moment in _moments(team, states)]

    def gap(mean_p, std_p, mean_q, std_q):
        x = th.distributions.Normal(BETA * (mean_p - mean_q), BETA * (std_p**2 + std_q**2).sqrt())
        # Mean of a folded normal.
        m, s = x.mean, x.stddev
        return s * math.sqrt(2 / math.pi) * (-(m**2) / (2 * s**2)).exp() + m * th.erf(m / (math.sqrt(2) * s))

    def divergences_of(team):
        mean, std = _moments(team, states)
        values = []
        for i in range(N_AGENTS):
            to = sum(w * gap(mean[:, i], std[:, i], fixed[0][:, j], fixed[1][:, j]) for j, w in enumerate(WEIGHTS))
            values.append((2 * to - gap(mean[:, i], std[:, i], mean[:, i], std[:, i])).sum(-1).mean())
        return th.stack(values)

    assert_gradient(consensus, team, divergences_of, atol=1e-5)


def test_the_sinkhorn_divergence_at_large_strength_is_half_the_energy_of_the_same_cost():
    # Why the energy distance is the control: it is what is left of transport when the plan is blurred completely.
    cost = (
        make_metric(
            TeamSpaces(spaces.Discrete(5), BOX, 2, th.device("cpu")),
            beta=0.8,
            p=1,
            action_embedding=normalised_table(NavigationConfig(n_agents=2).agent_action_vectors),
        )
        .action_cost()
        .double()
    )
    p, q = th.tensor([[0.1, 0.5, 0.2, 0.1, 0.1], [0.3, 0.1, 0.1, 0.2, 0.3]], dtype=th.float64)
    value = float(ot.sinkhorn_divergence(cost, p, q, reg=1e4).value)
    assert value == pytest.approx(-0.5 * float((p - q) @ cost @ (p - q)), rel=1e-3)
