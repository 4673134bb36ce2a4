"""The equations of learning from data, against what is known of their minima and by hand."""

import numpy as np
import pytest
import torch as th

from otbaselines.common.offline.losses import advantage_weights, expectile_loss, td_targets


def _minimiser(sample: th.Tensor, expectile: float) -> float:
    """By Newton's method: the loss is quadratic on each side."""
    value = sample.mean().clone().requires_grad_()
    for _ in range(20):
        slope = th.autograd.grad(expectile_loss(sample - value, expectile), value, create_graph=True)[0]
        value = (value - slope / th.autograd.grad(slope, value)[0]).detach().requires_grad_()
    return float(value.detach())


def test_the_expectile_of_one_half_is_the_mean_and_its_loss_half_the_variance():
    sample = th.randn(1000, dtype=th.float64)
    assert _minimiser(sample, 0.5) == pytest.approx(float(sample.mean()), abs=1e-12)
    assert float(expectile_loss(sample - sample.mean(), 0.5)) == pytest.approx(0.5 * float(sample.var(correction=0)))


@pytest.mark.parametrize("expectile", [0.1, 0.7, 0.95])
def test_an_expectile_balances_the_distances_on_both_sides(expectile):
    sample = th.randn(1000, dtype=th.float64).exp()
    difference = sample - _minimiser(sample, expectile)
    above, below = difference.clamp(min=0).mean(), (-difference).clamp(min=0).mean()
    assert float(above / (above + below)) == pytest.approx(1 - expectile, rel=1e-6)


def test_expectiles_approach_the_maximum():
    sample = th.rand(50, dtype=th.float64)
    assert _minimiser(sample, 1 - 1e-6) == pytest.approx(float(sample.max()), abs=1e-3)


def test_terminations_end_the_sum_of_rewards_and_truncations_do_not():
    targets = td_targets(th.tensor([1.0, 1.0]), th.tensor([1.0, 0.0]), th.tensor([10.0, 10.0]), 0.9)
    np.testing.assert_allclose(targets, [1.0 + 0.9 * 10.0, 1.0], rtol=1e-6)


def test_weights_are_exponential_up_to_their_bound():
    weights = advantage_weights(th.tensor([-1.0, 0.0, 0.5, 40.0]), 2.0, 100.0)
    np.testing.assert_allclose(weights, [np.exp(-2.0), 1.0, np.e, 100.0], rtol=1e-6)
    assert th.equal(advantage_weights(th.randn(9), 0.0, 100.0), th.ones(9))
