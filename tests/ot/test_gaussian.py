"""The closed forms for normals against transport on a fine grid, and the barycenter against its own definition."""

import math

import pytest
import torch as th
from scipy import stats

from otbaselines import ot


def _tensor(*values: float) -> th.Tensor:
    return th.tensor(values, dtype=th.float64)


def _team(n_agents: int = 4, dim: int = 3) -> tuple[th.Tensor, th.Tensor]:
    return th.randn(n_agents, dim, dtype=th.float64), 0.3 + th.rand(n_agents, dim, dtype=th.float64)


def _histogram(grid: th.Tensor, mean: float, std: float) -> th.Tensor:
    weights = (-0.5 * ((grid - mean) / std).square()).exp()
    return weights / weights.sum()


@pytest.mark.parametrize("reg", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("pair", [(0.0, 0.5, 0.7, 0.5), (-0.3, 0.4, 0.4, 0.9)])
def test_the_divergence_is_that_of_a_fine_grid(pair, reg):
    grid = th.linspace(-7.0, 7.0, 241, dtype=th.float64)
    cost = (grid[:, None] - grid[None, :]).square()
    a, b = _histogram(grid, *pair[:2]), _histogram(grid, *pair[2:])
    expected = ot.sinkhorn_divergence(cost, a, b, reg=reg, tol=1e-9).value
    closed = ot.gaussian_sinkhorn_divergence(*(_tensor(value) for value in pair), reg=reg)
    assert float(closed) == pytest.approx(float(expected), abs=1e-6)


def test_without_regularisation_it_is_the_squared_wasserstein_distance():
    mean_a, mean_b, std_a, std_b = *_team()[:1], *_team()[:1], _team()[1], _team()[1]
    closed = ot.gaussian_sinkhorn_divergence(mean_a, std_a, mean_b, std_b, reg=0.0).sum(-1)
    th.testing.assert_close(closed, ot.gaussian_w2(mean_a, std_a, mean_b, std_b).square(), atol=1e-12, rtol=0)
    small = ot.gaussian_sinkhorn_divergence(mean_a, std_a, mean_b, std_b, reg=1e-6).sum(-1)
    th.testing.assert_close(small, closed, atol=1e-5, rtol=0)


def test_with_much_regularisation_only_the_means_count():
    # The debiased divergence tends to the energy distance of the cost, for |x - y|^2 the squared difference of the means.
    (mean_a, std_a), (mean_b, std_b) = _team(), _team()
    closed = ot.gaussian_sinkhorn_divergence(mean_a, std_a, mean_b, std_b, reg=1e5)
    th.testing.assert_close(closed, (mean_a - mean_b).square(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("reg", [0.0, 0.5])
def test_the_divergence_is_symmetric_zero_at_equality_and_positive_elsewhere(reg):
    (mean_a, std_a), (mean_b, std_b) = _team(), _team()
    there = ot.gaussian_sinkhorn_divergence(mean_a, std_a, mean_b, std_b, reg=reg)
    back = ot.gaussian_sinkhorn_divergence(mean_b, std_b, mean_a, std_a, reg=reg)
    th.testing.assert_close(there, back, atol=1e-14, rtol=0)
    assert bool((there > 0).all())
    same = ot.gaussian_sinkhorn_divergence(mean_a, std_a, mean_a, std_a, reg=reg)
    th.testing.assert_close(same, th.zeros_like(same), atol=1e-14, rtol=0)


def test_the_divergence_is_differentiable_in_everything():
    arguments = [value.requires_grad_() for value in (*_team(2), *_team(2))]
    assert th.autograd.gradcheck(lambda *args: ot.gaussian_sinkhorn_divergence(*args, reg=0.5), arguments)


WEIGHTS = {"uniform": None, "unequal": _tensor(0.1, 0.2, 0.3, 0.4)}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("reg", [0.0, 0.05, 0.5, 5.0])
def test_the_barycenter_is_stationary(reg, weights):
    means, stds = _team()
    shares = WEIGHTS[weights]
    mean, std = ot.gaussian_sinkhorn_barycenter(means, stds, reg=reg, weights=shares)
    w = th.full((4, 1), 0.25, dtype=th.float64) if shares is None else shares[:, None]

    def objective(m: th.Tensor, s: th.Tensor) -> th.Tensor:
        return (w * ot.gaussian_sinkhorn_divergence(m, s, means, stds, reg=reg)).sum(0)

    for step in (1e-4, -1e-4):
        assert bool((objective(mean + step, std) > objective(mean, std)).all())
        assert bool((objective(mean, std + step) > objective(mean, std)).all())
    slope = (objective(mean, std + 1e-5) - objective(mean, std - 1e-5)) / 2e-5
    th.testing.assert_close(slope, th.zeros_like(slope), atol=1e-8, rtol=0)


def test_the_barycenter_without_regularisation_is_the_mean_of_the_deviations():
    means, stds = _team()
    mean, std = ot.gaussian_sinkhorn_barycenter(means, stds, reg=0.0, weights=WEIGHTS["unequal"])
    th.testing.assert_close(mean, (WEIGHTS["unequal"][:, None] * means).sum(0))
    th.testing.assert_close(std, (WEIGHTS["unequal"][:, None] * stds).sum(0))


def test_weights_may_differ_between_problems():
    means, stds = th.randn(5, 4, 2, dtype=th.float64), 0.3 + th.rand(5, 4, 2, dtype=th.float64)
    weights = th.rand(5, 4, dtype=th.float64).softmax(-1)
    mean, std = ot.gaussian_sinkhorn_barycenter(means, stds, reg=0.3, weights=weights)
    for k in range(5):
        one_mean, one_std = ot.gaussian_sinkhorn_barycenter(means[k], stds[k], reg=0.3, weights=weights[k])
        th.testing.assert_close(mean[k], one_mean)
        th.testing.assert_close(std[k], one_std)


@pytest.mark.parametrize("reg", [0.0, 0.5])
def test_the_barycenter_of_equals_is_each_of_them(reg):
    means, stds = _team(1)
    mean, std = ot.gaussian_sinkhorn_barycenter(means.expand(5, -1), stds.expand(5, -1), reg=reg)
    th.testing.assert_close(mean, means[0], atol=1e-9, rtol=0)
    th.testing.assert_close(std, stds[0], atol=1e-9, rtol=0)


def test_single_precision_keeps_deviations_far_below_the_regularisation():
    # In float32, 4 A^2 + sigma^4 is sigma^4 for A = 1e-4 and sigma^2 = 0.5.
    stds = th.tensor([[0.01], [0.02]])
    _, single = ot.gaussian_sinkhorn_barycenter(th.zeros(2, 1), stds, reg=1.0)
    _, double = ot.gaussian_sinkhorn_barycenter(th.zeros(2, 1, dtype=th.float64), stds.double(), reg=1.0)
    assert float(single) == pytest.approx(float(double), rel=1e-4)
    # The limit of much regularisation: the root of the mean variance.
    assert float(double) == pytest.approx(math.sqrt((0.01**2 + 0.02**2) / 2), rel=1e-3)


@pytest.mark.parametrize("reg", [-1.0, math.inf, math.nan])
def test_a_bad_reg_is_named(reg):
    means, stds = _team()
    with pytest.raises(ValueError, match=rf"`reg` must be non-negative and at most 1e\+09, got {reg}"):
        ot.gaussian_sinkhorn_barycenter(means, stds, reg=reg)
    with pytest.raises(ValueError, match=rf"`reg` must be non-negative and at most 1e\+09, got {reg}"):
        ot.gaussian_sinkhorn_divergence(means, stds, means, stds, reg=reg)


@pytest.mark.parametrize("ratio", [3.0, 4.0, 5.0])
def test_w1_is_exact_where_the_means_are_some_deviations_apart(ratio):
    # E|shift + spread Z|, whose excess over the shift is small but no rounding there: 7.6e-4 at three deviations.
    shift, spread = th.tensor([ratio], dtype=th.float64), th.tensor([1.0], dtype=th.float64)
    expected = 2 * (stats.norm.pdf(ratio) - ratio * stats.norm.sf(ratio)) + ratio
    value = ot.gaussian_w1(shift, 2 * spread, th.zeros_like(shift), spread)
    assert float(value) == pytest.approx(expected, rel=1e-12)
