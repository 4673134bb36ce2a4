"""Supports, parameters and measures that no reward can be fused from: what is refused, what is dropped, and in which words."""

import re

import numpy as np
import pytest
import torch as th

from otbaselines.fedirl import multigrid
from otbaselines.fedirl.fusion import FUSIONS, Support, aggregate, lattice_cost, project, usable_updates

FEATURES = th.as_tensor(np.random.default_rng(0).normal(size=(12, 3)))
THETAS = th.as_tensor(np.random.default_rng(1).normal(size=(4, 3)))
COST = lattice_cost([3, 4])
NAN = float("nan")
# A constant and one more feature: rewards of any offset.
WITH_CONSTANT = Support(th.cat((th.ones(12, 1).double(), FEATURES[:, :1]), 1), COST)


def _rewards(*rows):
    return th.tensor(rows, dtype=th.float64)


@pytest.mark.parametrize(
    ("features", "cost", "error", "message"),
    [
        (FEATURES.numpy(), COST, TypeError, "`features` must be a torch tensor, got ndarray"),
        (FEATURES.tolist(), COST, TypeError, "`features` must be a torch tensor, got list"),
        (FEATURES.float(), COST, ValueError, "`features` must be dense and float64, got torch.float32"),
        (FEATURES > 0, COST, ValueError, "`features` must be dense and float64, got torch.bool"),
        (FEATURES[:, 0], COST, ValueError, "`features` must have the shape (n, k), got (12,)"),
        (FEATURES[:, :0], COST, ValueError, "`features` must have the shape (n, k), got (12, 0)"),
        (FEATURES * NAN, COST, ValueError, "`features` holds NaN"),
        (FEATURES, None, TypeError, "`cost` must be a torch tensor, got NoneType"),
        (FEATURES, np.ones((12, 12)), TypeError, "`cost` must be a torch tensor, got ndarray"),
        (FEATURES, th.ones(12, 12), ValueError, "`cost` must be dense and float64"),
        (FEATURES, th.full((12, 12), NAN, dtype=th.float64), ValueError, "`cost` holds NaN"),
        (FEATURES, -th.ones(12, 12).double(), ValueError, "`cost` must be non-negative"),
        (FEATURES[:1], lattice_cost([1]), ValueError, "full column rank, got 1 of 3"),
    ],
)
def test_a_support_that_cannot_be_used_is_refused_where_it_is_made(features, cost, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Support(features, cost)


@pytest.mark.parametrize("unit", [[1.0, 1e-9, 1e9], [1e160, 1.0, 1.0], [1e-160] * 3])
def test_features_in_very_different_units_are_not_taken_for_dependent_ones(unit):
    unit = th.tensor(unit, dtype=th.float64)
    theta, left = project(FEATURES[:, 0], Support(FEATURES * unit, COST).features)
    np.testing.assert_allclose(theta * unit, [1.0, 0.0, 0.0], atol=1e-12)
    assert left < 1e-6


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([10**9], ValueError, "`lengths[0]` must be an integer in [1, 10000], got 1000000000"),
        ([3, 0], ValueError, "`lengths[1]` must be"),
        ([1.5], TypeError, "`lengths[0]` must be an integer"),
        ([True, 2], TypeError, "`lengths[0]` must be an integer"),
        ([3, NAN], TypeError, "`lengths[1]` must be an integer"),
        ("33", TypeError, "`lengths` must be integers"),
        (5, TypeError, "`lengths` must be integers"),
        ([], ValueError, "got none"),
    ],
)
def test_lengths_of_lattices_are_named(lengths, error, message):
    with pytest.raises(error, match=re.escape(message)):
        lattice_cost(lengths)
    assert lattice_cost(np.array([3, 4])).shape == lattice_cost(th.tensor([3, 4])).shape == (12, 12)
    with pytest.raises(ValueError, match="`categorical` must be True or False for each"):
        lattice_cost([3, 4], categorical="ab")


@pytest.mark.parametrize(
    ("thetas", "kwargs", "error", "message"),
    [
        (THETAS.numpy(), {}, TypeError, "`thetas` must be a torch tensor"),
        (THETAS.float(), {}, ValueError, "`thetas` must be dense and float64"),
        (THETAS * 1e160, {}, ValueError, "of the clients [0, 1, 2, 3] on the support are beyond 1e+100"),
        (THETAS, {"weights": [0.25] * 4}, TypeError, "`weights` must be a torch tensor, got list"),
        (THETAS, {"debiased": "no"}, TypeError, "`debiased` must be True or False"),
        (THETAS, {"shift": NAN}, ValueError, "`shift` must be a number"),
        (THETAS, {"shift": "1"}, TypeError, "`shift` must be a number"),
        (THETAS, {"margin": 1e12}, ValueError, "`margin` must be a number in (0, 1000]"),
        (THETAS, {"reg": NAN}, ValueError, "`reg` must be a number"),
        (THETAS, {"max_iter": 1.5}, TypeError, "`max_iter` must be an integer"),
    ],
)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_cannot_be_fused_is_named_whatever_the_fusion(fusion, thetas, kwargs, error, message):
    with pytest.raises(error, match=re.escape(message)):
        aggregate(thetas, Support(FEATURES, COST), fusion=fusion, **kwargs)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_single_pair_has_one_reward(fusion):
    one = Support(th.full((1, 1), 2.0).double(), lattice_cost([1]))
    found = aggregate(_rewards([1.0], [2.0]), one, fusion=fusion)
    np.testing.assert_allclose(found.theta, [1.5])


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("offset", [2.0, -2.0, 1e17, -1e17])
def test_rewards_that_are_the_same_everywhere_keep_their_constant(fusion, offset):
    found = aggregate(_rewards([offset, 0.0], [offset, 0.0]), WITH_CONSTANT, fusion=fusion)
    np.testing.assert_allclose(found.theta / offset, [1.0, 0.0], atol=1e-4)
    assert np.isfinite(found.residual)


def test_an_offset_beside_which_the_margin_is_lost_is_refused():
    with pytest.raises(ValueError, match="take the constant out of `features`"):
        aggregate(_rewards([1e14, 1.0], [1e14, 2.0]), WITH_CONSTANT)


def test_a_shift_that_hides_the_rewards_is_warned_of():
    with pytest.warns(RuntimeWarning, match="uniform but for what the solver's tolerance hides"):
        aggregate(THETAS, Support(FEATURES, COST), shift=1e18, fusion="mean_measure")


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (th.full((3,), 1e300, dtype=th.float64), "beyond 1e+100"),
        (np.full(3, -1e308), "beyond 1e+100"),
        ([1j, 2, 3], "no real numbers"),
        (th.zeros(3).to_sparse(), "no real numbers"),
        ([True] * 3, "no real numbers"),
        (np.array(["a"] * 3), "no array of numbers"),
    ],
)
def test_updates_that_would_poison_a_round_are_dropped_by_client(update, reason):
    support = Support(FEATURES, COST)
    with pytest.warns(UserWarning, match=re.escape(reason)) as record:
        assert usable_updates([THETAS[0], update], support) == [0]
    assert "client 1" in str(record[0].message)


@pytest.mark.parametrize(("quorum", "error"), [(0, ValueError), (-1, ValueError), (NAN, TypeError), ("1", TypeError)])
def test_a_quorum_is_a_positive_integer(quorum, error):
    with pytest.raises(error, match="`quorum` must be an integer of at least 1"):
        usable_updates([THETAS[0]], Support(FEATURES, COST), quorum=quorum)
    with pytest.raises(TypeError, match="`support` must be a `Support`, got int"):
        usable_updates([THETAS[0]], 3)


@pytest.mark.parametrize("rewards", [THETAS[:, 0] * NAN, THETAS[:, 0] * 1e300])
def test_a_projection_of_what_is_no_reward_is_refused(rewards):
    with pytest.raises(ValueError, match="`rewards` holds NaN or infinite entries"):
        project(rewards, FEATURES[:4])


@pytest.mark.parametrize(
    ("change", "weights", "message"),
    [
        (lambda m: m * NAN, None, "`measures` holds NaN"),
        (lambda m: 2 * m, None, "rows of `measures` must sum to one"),
        (lambda m: m - 2 * m.max(), None, "`measures` must be non-negative"),
        (lambda m: m[:, :-1], None, "`cost` of shape"),
        (lambda m: m, [1.0, 1.0], "rows of `weights` must sum to one"),
        (lambda m: m, [0.5, 0.25, 0.25], "`weights` must have one entry per agent"),
    ],
)
def test_measures_on_large_lattices_are_checked_once_at_the_entrance(monkeypatch, change, weights, message):
    monkeypatch.setattr(multigrid, "LARGE", 10)
    measures = th.as_tensor(np.random.default_rng(0).dirichlet(np.ones(40), size=2))
    shares = None if weights is None else th.tensor(weights).double()
    with pytest.raises(ValueError, match=re.escape(message)):
        multigrid.barycenter(change(measures), lattice_cost([40]), reg=0.5, weights=shares)
