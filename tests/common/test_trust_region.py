"""What trust regions share, by hand: radii, products of likelihood ratios, natural gradients, and the way back."""

import itertools
import math

import numpy as np
import pytest
import torch as th
from torch import nn
from torch.nn.utils import parameters_to_vector

from otbaselines.common.trust_region import ImportanceFactor, RadiusRule, backtrack, natural_step

CPU = th.device("cpu")


# ---------------------------------------------------------------- radii that know how far team-mates move
def test_radii_divide_the_constant_by_the_drift_of_the_others():
    rule = RadiusRule(constant=0.06, eps_base=0.001, eps_max=0.1, radius_max=10.0)
    # The others of each agent drift by 0.5, 0.4 and 0.3, of which a tenth is added.
    assert rule.radii([0.1, 0.2, 0.3]) == pytest.approx([0.06 / 0.55, 0.06 / 0.44, 0.06 / 0.33], rel=1e-12)


@pytest.mark.parametrize(
    ("drift", "epsilon"),
    [(0.0, 0.01), (0.05, 0.01), (0.1, 0.01), (0.5, 0.05), (1.0, 0.1), (1.2, 0.1), (30.0, 0.1)],
    ids=["none", "base", "base meets tenth", "tenth", "tenth meets largest", "largest", "far above"],
)
def test_the_regularisation_is_a_tenth_of_the_drift_between_its_two_bounds(drift, epsilon):
    rule = RadiusRule(constant=1.0, eps_base=0.01, eps_max=0.1, radius_max=1e9)
    # Two agents: the first one's team-mate drifts, and the second one's does not.
    assert rule.radii([0.0, drift]) == pytest.approx([1.0 / (drift + epsilon), 1.0 / 0.01], rel=1e-12)


def test_a_base_above_the_largest_regularisation_wins():
    # Eq. 14 takes the maximum last.
    assert RadiusRule(1.0, eps_base=0.5, eps_max=0.1, radius_max=1e9).radii([0.0, 30.0])[0] == pytest.approx(1.0 / 30.5)


@pytest.mark.parametrize("eps_base", [0.0, 1e-300])
def test_without_drift_the_radius_is_its_bound(eps_base):
    assert RadiusRule(0.02, eps_base, eps_max=0.1, radius_max=0.7).radii([0.0, 0.0, 0.0]) == [0.7, 0.7, 0.7]


def test_no_radius_exceeds_the_bound():
    # 0.02 / (0.01 + 0.001) would be 1.8.
    assert RadiusRule(0.02, 0.001, 0.1, radius_max=0.7).radii([0.0, 0.01])[0] == 0.7


# ---------------------------------------------------------------- products of likelihood ratios
def test_factors_multiply_are_clipped_and_have_mean_one():
    factor = ImportanceFactor(4, 2.0, CPU)
    assert factor.weights.tolist() == [1.0] * 4
    assert float(factor.effective_share()) == 1.0
    factor.multiply(th.tensor([1.0, 2.0, 0.5, 1.0]).log())
    # Nothing is beyond the clip yet; the mean is 1.125.
    np.testing.assert_allclose(factor.weights, np.array([1.0, 2.0, 0.5, 1.0]) / 1.125, rtol=1e-6)
    factor.multiply(th.tensor([3.0, 3.0, 0.5, 1.0]).log())
    # The products are 3, 6, 1/4, 1: clipped 2, 2, 1/2, 1 with the mean 11/8, and what was clipped is remembered in full.
    weights = np.array([2.0, 2.0, 0.5, 1.0]) / 1.375
    np.testing.assert_allclose(factor.weights, weights, rtol=1e-6)
    # Kish: (5.5)² / (4 * 9.25).
    assert float(factor.effective_share()) == pytest.approx(5.5**2 / (4 * 9.25), rel=1e-6)
    factor.multiply(th.tensor([1 / 3, 1 / 6, 1.0, 1.0]).log())
    np.testing.assert_allclose(factor.weights, np.array([1.0, 1.0, 0.5, 1.0]) / 0.875, rtol=1e-6)


def test_a_clip_of_one_switches_the_factors_off():
    factor = ImportanceFactor(3, 1.0, CPU)
    factor.multiply(th.tensor([5.0, -5.0, 0.1]))
    assert factor.weights.tolist() == [1.0] * 3


def test_ratios_that_overflow_are_clipped():
    factor = ImportanceFactor(2, 10.0, CPU)
    factor.multiply(th.tensor([500.0, -math.inf]))
    np.testing.assert_allclose(factor.weights, np.array([10.0, 0.1]) / 5.05, rtol=1e-6)


def test_the_mean_of_factor_times_advantage_is_the_advantage_under_the_new_earlier_agents():
    # A game of three agents with 2, 3 and 2 actions. The rows are all joint actions, each as often as the old policies take
    # it, so that means over the rows are expectations, exactly.
    counts = [np.array([1, 3]), np.array([2, 1, 1]), np.array([1, 1])]
    old = [count / count.sum() for count in counts]
    rng = np.random.default_rng(0)
    new = [rng.dirichlet(np.full(len(p), 5.0)) for p in old]
    game = rng.normal(size=(2, 3, 2))
    rows = [
        joint
        for joint in itertools.product(range(2), range(3), range(2))
        for _ in range(int(np.prod([count[action] for count, action in zip(counts, joint, strict=True)])))
    ]
    assert len(rows) == 4 * 4 * 2
    advantages = np.array([game[joint] for joint in rows])
    factor = ImportanceFactor(len(rows), 1e6, CPU)
    for updated, agent in enumerate((1, 0), start=1):
        ratios = np.array([new[agent][joint[agent]] / old[agent][joint[agent]] for joint in rows])
        factor.multiply(th.as_tensor(ratios, dtype=th.float32).log())
        present = [new[k] if k in (1, 0)[:updated] else old[k] for k in range(3)]
        # Of each action of the agent whose turn is next, not only of all together.
        for action in range(2):
            third = np.eye(2)[action]
            expected = np.einsum("abc,a,b,c->", game, present[0], present[1], third * old[2])
            mine = np.array([joint[2] == action for joint in rows])
            estimate = float((factor.weights.double().numpy() * advantages * mine).mean())
            assert estimate == pytest.approx(expected, rel=1e-5)
            # Without the factor it is the value under the old team.
            assert float((advantages * mine).mean()) != pytest.approx(expected, rel=1e-2)


# ---------------------------------------------------------------- natural gradients
def test_the_step_is_the_damped_natural_gradient_at_the_length_that_meets_the_bound():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(3, 3))
    fisher, gradient = root @ root.T, rng.normal(size=3)
    first, second, unused = (nn.Parameter(th.zeros(size, dtype=th.float64)) for size in (2, 1, 4))

    def moved():
        return th.cat([first, second])

    result = natural_step(
        moved() @ th.as_tensor(gradient),
        0.5 * moved() @ th.as_tensor(fisher) @ moved(),
        [first, unused, second],
        radius=0.03,
        cg_max_steps=10,
        cg_damping=0.2,
    )
    damped = fisher + 0.2 * np.eye(3)
    direction = np.linalg.solve(damped, gradient)
    expected = direction * np.sqrt(2 * 0.03 / (direction @ damped @ direction))
    assert result.parameters == [first, second]
    np.testing.assert_allclose(result.step.detach(), expected, rtol=1e-6)


# ---------------------------------------------------------------- the way back
def _parameters():
    return [nn.Parameter(th.randn(2, 3)), nn.Parameter(th.randn(4))]


def test_the_first_share_that_is_accepted_is_taken():
    parameters = _parameters()
    start = parameters_to_vector(parameters).detach().clone()
    step, seen = th.randn(10), []

    def attempt():
        seen.append(parameters_to_vector(parameters).detach().clone())
        return (0.5, 0.25, 1.0)[len(seen) - 1]

    assert backtrack(parameters, start, step, attempt, max_iter=9) == 0.125
    for share, parameter in zip((1.0, 0.5, 0.125), seen, strict=True):
        assert th.equal(parameter, start + share * step)
    assert th.equal(parameters_to_vector(parameters), start + 0.125 * step)


@pytest.mark.parametrize("size", [1.0, 1e30, math.nan, math.inf])
def test_what_is_never_accepted_goes_back_bit_for_bit(size):
    parameters = _parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    start = parameters_to_vector(parameters).detach().clone()
    trials = []
    attempt = lambda: trials.append(1) or 0.8  # noqa: E731
    assert backtrack(parameters, start, size * th.ones(10), attempt, max_iter=7) == 0.0
    assert len(trials) == 7
    assert all(th.equal(old, new) for old, new in zip(before, parameters, strict=True))
