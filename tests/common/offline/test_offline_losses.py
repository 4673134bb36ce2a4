"""The equations of learning from data, against what is known of their minima and by hand."""

import numpy as np
import pytest
import torch as th
from scipy.optimize import brentq, minimize

from otbaselines.common.offline.losses import (
    advantage_weights,
    agreed_weights,
    bounded_weights,
    disagreement,
    effective_share,
    expectile_loss,
    td_targets,
)


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


def _sample(kind: str, n: int) -> th.Tensor:
    noise = th.randn(n, generator=th.Generator().manual_seed(n), dtype=th.float64)
    return {"normal": noise, "heavy": noise**3, "one far": th.cat([noise[1:], noise.new_full((1,), 1e3)])}[kind]


@pytest.mark.parametrize("kind", ["normal", "heavy", "one far"])
@pytest.mark.parametrize("divergence", [0.01, 0.1, 1.0])
def test_bounded_weights_are_exponential_and_use_up_their_divergence(kind, divergence):
    a = _sample(kind, 200)

    def weights(log_eta):
        powers = np.exp((a - a.max()).numpy() / np.exp(log_eta))
        return len(a) * powers / powers.sum()

    def excess(log_eta):
        w = weights(log_eta)
        return np.mean(w * np.log(np.maximum(w, 1e-300))) - divergence

    expected = weights(brentq(excess, -6.0, 9.0))
    np.testing.assert_allclose(bounded_weights(a, divergence), expected, rtol=1e-5, atol=1e-7 * expected.max())
    np.testing.assert_allclose(bounded_weights(100 * a + 7, divergence), expected, rtol=1e-5, atol=1e-7 * expected.max())


def test_bounded_weights_gain_the_most_that_their_divergence_allows():
    a = _sample("normal", 6)

    def divergence(w):
        return np.mean(w * np.log(w))

    constraints = [
        {"type": "eq", "fun": lambda w: w.mean() - 1},
        {"type": "ineq", "fun": lambda w: 0.2 - divergence(w)},
    ]
    best = minimize(lambda w: -np.mean(w * a.numpy()), np.ones(6), bounds=[(1e-9, 6)] * 6, constraints=constraints, tol=1e-12)
    np.testing.assert_allclose(bounded_weights(a, 0.2), best.x, atol=1e-4)


def test_advantages_that_are_all_the_same_weigh_the_same():
    for a in (th.zeros(5), th.full((4,), 3.0), th.tensor([7.0])):
        assert th.equal(bounded_weights(a, 0.1), th.ones(len(a)))


def test_a_divergence_beyond_all_leaves_the_best_row_alone():
    weights = bounded_weights(th.tensor([1.0, 3.0, 2.0]), 50.0)
    np.testing.assert_allclose(weights, [0.0, 3.0, 0.0], atol=1e-6)


def test_the_effective_share_counts_equal_weights():
    assert float(effective_share(th.tensor([2.0, 2.0, 0.0, 0.0]))) == 0.5
    assert float(effective_share(th.full((7,), 0.3))) == pytest.approx(1.0)


def test_critics_that_differ_by_noise_alone_weigh_by_as_many_nats_as_was_said():
    generator = th.Generator().manual_seed(0)
    for noise in (0.1, 30.0):
        values = noise * th.randn(2, 200_000, generator=generator)
        variances = disagreement(values)
        # The mean of two such critics.
        assert float(variances.mean()) == pytest.approx(noise**2 / 2, rel=0.02)
        weights = agreed_weights(values.mean(0), variances, 0.05)
        assert float(weights.mean()) == pytest.approx(1.0, rel=1e-4)
        assert float((weights * weights.log()).mean()) == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize(("n_critics", "ratio"), [(2, 1.363), (3, 1.679), (10, 3.44)])
def test_the_smallest_critic_varies_more_than_the_mean_of_all(n_critics, ratio):
    values = th.randn(n_critics, 300_000, generator=th.Generator().manual_seed(0))
    variances = disagreement(values)
    assert float(variances.mean()) == pytest.approx(1 / n_critics, rel=0.01)
    assert float(values.amin(0).var() / variances.mean()) == pytest.approx(ratio, rel=0.01)


def test_agreed_weights_have_no_gradient():
    advantages = th.randn(8, requires_grad=True)
    assert not agreed_weights(advantages, advantages.square(), 0.05).requires_grad


def test_agreed_weights_are_as_much_sharper_as_advantages_exceed_the_noise():
    generator = th.Generator().manual_seed(0)
    advantages = 2.0 * th.randn(200_000, generator=generator)
    weights = agreed_weights(advantages, th.full((200_000,), 1.0), 0.05)
    assert float((weights * weights.log()).mean()) == pytest.approx(4 * 0.05, rel=0.03)
    # Neither the unit of the returns nor a shift matters.
    other = agreed_weights(1000 * advantages + 50, th.full((200_000,), 1e6), 0.05)
    np.testing.assert_allclose(other, weights, rtol=1e-3)


def test_critics_that_agree_wholly_leave_the_best_row_alone():
    assert agreed_weights(th.tensor([1.0, 3.0, 2.0]), th.zeros(3), 0.05).tolist() == [0.0, 3.0, 0.0]
    assert agreed_weights(th.ones(3), th.zeros(3), 0.05).tolist() == [1.0, 1.0, 1.0]
    assert agreed_weights(1e20 * th.tensor([1.0, 3.0, 2.0]), th.zeros(3), 0.05).tolist() == [0.0, 3.0, 0.0]
