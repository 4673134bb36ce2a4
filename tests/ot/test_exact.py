"""Closed forms and enumerations against SciPy, POT's network simplex and numerical integration."""

from __future__ import annotations

import math

import numpy as np
import ot as pot
import pytest
import scipy.optimize
import scipy.stats
import torch as th
from problems import directional_derivative, measures
from torch.autograd import forward_ad

from otbaselines import ot
from otbaselines.ot._lipschitz import metric_structure


def linear_programme(p: th.Tensor, q: th.Tensor, cost: th.Tensor) -> float:
    """SciPy's value of the transport problem."""
    n = len(p)
    rows = np.kron(np.eye(n), np.ones(n))
    columns = np.kron(np.ones(n), np.eye(n))
    answer = scipy.optimize.linprog(
        cost.numpy().ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([p.numpy(), q.numpy()]), method="highs"
    )
    return float(answer.fun)


def planar(n: int, seed: int = 0) -> th.Tensor:
    points = th.rand(n, 2, generator=th.Generator().manual_seed(seed), dtype=th.float64)
    return ot.pairwise(points)


def tree(n: int) -> th.Tensor:
    """A star: every two leaves meet in the centre, point 0."""
    length = th.arange(n, dtype=th.float64)
    return (length[:, None] + length[None, :]) * (1 - th.eye(n, dtype=th.float64))


METRICS = {
    "zero-one": 0.7 * (1 - th.eye(6, dtype=th.float64)),
    "line": ot.pairwise(th.tensor([[0.3], [2.0], [-1.0], [0.5], [4.0]], dtype=th.float64)),
    "vertices": planar(5),
    "vertices two": planar(7, seed=1),
    "vertices star": tree(6),
    "general": planar(10),
    "general square": planar(5) ** 2,
}


@pytest.mark.parametrize("name", METRICS)
def test_discrete_w1_equals_the_linear_programme(name: str) -> None:
    cost = METRICS[name]
    assert metric_structure(cost).kind == name.split()[0]
    p, q = measures(6, len(cost), seed=1).view(2, 3, -1), measures(6, len(cost), seed=2).view(2, 3, -1)
    value = ot.discrete_w1(p, q, cost)
    for i in range(2):
        for j in range(3):
            assert float(value[i, j]) == pytest.approx(linear_programme(p[i, j], q[i, j], cost), abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_gradient_of_discrete_w1_is_a_potential(name: str) -> None:
    cost = METRICS[name]
    p, q = measures(2, len(cost), seed=3, empty=0.0)
    leaf = p.clone().requires_grad_()
    (potential,) = th.autograd.grad(ot.discrete_w1(leaf, q, cost), leaf)
    direction = th.randn(len(cost), generator=th.Generator().manual_seed(1), dtype=th.float64)
    direction = 0.01 * (direction - direction.mean())
    expected = directional_derivative(lambda z: ot.discrete_w1(z, q, cost, validate=False), p, direction)
    assert float(potential @ direction) == pytest.approx(expected, abs=1e-6)


def test_five_generic_points_have_seventy_extreme_functions() -> None:
    functions = metric_structure(planar(5)).functions
    assert functions is not None
    assert functions.shape == (5, 35)  # one of each pair f, -f
    cost = planar(5).numpy()
    assert (np.abs(functions[:, None] - functions[None]) <= cost[..., None] + 1e-9).all()


def test_w1_of_equal_distributions_is_zero_with_zero_gradient() -> None:
    p = measures(3, 5)
    for cost in (METRICS["vertices"], METRICS["line"]):
        leaf = p.clone().requires_grad_()
        value = ot.discrete_w1(leaf, p, cost)
        value.sum().backward()
        assert float(value.detach().abs().max()) == 0.0
        assert leaf.grad is not None
        assert float(leaf.grad.abs().max()) == 0.0


def test_wasserstein_1d_equals_scipy_with_weights_and_without() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(4, 9)), generator.normal(size=(4, 14)) + 0.5
    a, b = generator.dirichlet(np.ones(9), 4), generator.dirichlet(np.ones(14), 4)
    plain = ot.wasserstein_1d(th.from_numpy(x), th.from_numpy(y))
    weighted = ot.wasserstein_1d(th.from_numpy(x), th.from_numpy(y), th.from_numpy(a), th.from_numpy(b))
    squared = ot.wasserstein_1d(th.from_numpy(x), th.from_numpy(y), th.from_numpy(a), th.from_numpy(b), p=2)
    for i in range(4):
        assert float(plain[i]) == pytest.approx(scipy.stats.wasserstein_distance(x[i], y[i]), abs=1e-12)
        assert float(weighted[i]) == pytest.approx(scipy.stats.wasserstein_distance(x[i], y[i], a[i], b[i]), abs=1e-12)
        expected = pot.emd2_1d(x[i], y[i], a[i], b[i], metric="sqeuclidean") ** 0.5
        assert float(squared[i]) == pytest.approx(expected, abs=1e-10)


def test_gradient_of_wasserstein_1d_equals_finite_differences() -> None:
    generator = th.Generator().manual_seed(0)
    x, y = th.randn(7, generator=generator, dtype=th.float64), th.randn(5, generator=generator, dtype=th.float64)
    a, b = measures(1, 7, empty=0.0)[0], measures(1, 5, empty=0.0)[0]
    for argument, function in ((x, lambda z: ot.wasserstein_1d(z, y, a, b)), (a, lambda z: ot.wasserstein_1d(x, y, z, b))):
        leaf = argument.clone().requires_grad_()
        (gradient,) = th.autograd.grad(function(leaf), leaf)
        direction = th.randn(7, generator=generator, dtype=th.float64)
        direction = 0.01 * (direction - direction.mean())
        assert float(gradient @ direction) == pytest.approx(directional_derivative(function, argument, direction), rel=1e-6)


@pytest.mark.parametrize(("shift", "std_a", "std_b"), [(0.7, 0.5, 1.3), (0.0, 0.2, 1.0), (1.5, 0.4, 0.4), (2.0, 1.0, 1.1)])
def test_gaussian_w1_equals_the_integral_of_the_quantile_gap(shift: float, std_a: float, std_b: float) -> None:
    quantile = scipy.stats.norm.ppf((np.arange(400_000) + 0.5) / 400_000)
    expected = np.abs(shift + (std_b - std_a) * quantile).mean()
    one = th.ones(1, dtype=th.float64)
    value = ot.gaussian_w1(0 * one, std_a * one, shift * one, std_b * one)
    assert float(value) == pytest.approx(expected, abs=2e-5)


def test_gradient_of_gaussian_w1_equals_finite_differences_and_stays_finite_at_equal_deviations() -> None:
    parameters = th.tensor([0.3, 0.5, -0.4, 0.9], dtype=th.float64)

    def value(z: th.Tensor) -> th.Tensor:
        return ot.gaussian_w1(z[0:1], z[1:2], z[2:3], z[3:4]).sum()

    leaf = parameters.clone().requires_grad_()
    (gradient,) = th.autograd.grad(value(leaf), leaf)
    for k in range(4):
        direction = th.eye(4, dtype=th.float64)[k]
        assert float(gradient[k]) == pytest.approx(directional_derivative(value, parameters, direction), abs=1e-8)
    for special in ([0.3, 0.5, -0.4, 0.5], [0.3, 0.5, 0.3, 0.5], [0.3, 0.5, -0.4, 0.5 + 1e-300], [1e30, 0.5, 0.0, 0.6]):
        leaf = th.tensor(special, dtype=th.float64, requires_grad=True)
        outcome = value(leaf)
        outcome.backward()
        assert leaf.grad is not None
        assert th.isfinite(leaf.grad).all()
        assert float(outcome.detach()) == pytest.approx(abs(special[0] - special[2]), rel=1e-12)


def test_gaussian_w2_equals_pot_and_the_diagonal_form() -> None:
    generator = th.Generator().manual_seed(0)
    means = th.randn(2, 3, generator=generator, dtype=th.float64)
    factors = th.randn(2, 3, 3, generator=generator, dtype=th.float64)
    covariances = factors @ factors.mT + 0.1 * th.eye(3, dtype=th.float64)
    ours = ot.gaussian_w2(means[0], covariances[0], means[1], covariances[1], covariance="full")
    theirs = pot.gaussian.bures_wasserstein_distance(*means.numpy(), *covariances.numpy())
    assert float(ours) == pytest.approx(float(theirs), abs=1e-9)
    stds = th.rand(2, 3, generator=generator, dtype=th.float64) + 0.1
    full = ot.gaussian_w2(means[0], th.diag(stds[0] ** 2), means[1], th.diag(stds[1] ** 2), covariance="full")
    assert float(ot.gaussian_w2(means[0], stds[0], means[1], stds[1])) == pytest.approx(float(full), abs=1e-9)


def test_gaussian_w2_has_a_finite_gradient_at_equality_and_refuses_a_singular_covariance() -> None:
    mean, identity = th.zeros(2, dtype=th.float64, requires_grad=True), th.eye(2, dtype=th.float64)
    ot.gaussian_w2(mean, identity, th.zeros(2, dtype=th.float64), identity, covariance="full").backward()
    assert mean.grad is not None
    assert float(mean.grad.abs().max()) == 0.0
    with pytest.raises(ValueError, match="positive definite"):
        ot.gaussian_w2(mean, 0 * identity, mean, identity, covariance="full")
    with pytest.raises(ValueError, match="must be 'diagonal' or 'full', got 'banded'"):
        ot.gaussian_w2(mean, identity, mean, identity, covariance="banded")  # type: ignore[arg-type]


def test_no_gaussian_is_closer_to_all_than_their_barycenter() -> None:
    generator = th.Generator().manual_seed(0)
    means, stds = th.randn(4, 3, generator=generator, dtype=th.float64), th.rand(4, 3, generator=generator, dtype=th.float64)
    weights = th.tensor([0.4, 0.3, 0.2, 0.1], dtype=th.float64)
    mean, std = ot.gaussian_w2_barycenter(means, stds, weights)

    def objective(m: th.Tensor, s: th.Tensor) -> float:
        return float((weights * ot.gaussian_w2(m, s, means, stds, squared=True)).sum())

    best = objective(mean, std)
    for _ in range(20):
        step = 0.1 * th.randn(2, 3, generator=generator, dtype=th.float64)
        assert objective(mean + step[0], std + step[1]) > best


def test_sliced_distance_of_a_translation_is_its_mean_projection() -> None:
    # Every projection of a translated cloud moves by <theta, t>; over directions in the plane the mean of |cos| is 2 / pi.
    cloud = th.randn(50, 2, generator=th.Generator().manual_seed(0), dtype=th.float64)
    shift = th.tensor([3.0, 4.0], dtype=th.float64)
    value = ot.sliced_wasserstein(cloud, cloud + shift, n_projections=20_000, seed=0)
    assert float(value) == pytest.approx(5 * 2 / math.pi, rel=0.01)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_sliced_pairs_equal_pot_on_the_same_directions(p: float) -> None:
    points = th.randn(4, 30, 3, generator=th.Generator().manual_seed(0), dtype=th.float64)
    directions = ot.random_directions(3, 20, seed=1)
    pairs = ot.sliced_pairwise(points, n_projections=20, seed=1, p=p)
    for i in range(4):
        for j in range(4):
            expected = pot.sliced_wasserstein_distance(
                points[i].numpy(), points[j].numpy(), p=p, projections=directions.numpy()
            )
            assert float(pairs[i, j]) == pytest.approx(float(expected), abs=1e-10)
            assert float(ot.sliced_wasserstein(points[i], points[j], n_projections=20, seed=1, p=p)) == pytest.approx(
                float(expected), abs=1e-10
            )


def test_a_wrong_argument_is_named() -> None:
    x = th.zeros(3, 2)
    with pytest.raises(ValueError, match="`p` must be at least 1"):
        ot.wasserstein_1d(x, x, p=0.5)
    with pytest.raises(ValueError, match="give one of them"):
        ot.sliced_wasserstein(x, x, seed=0, generator=th.Generator())
    with pytest.raises(ValueError, match="`n_projections` must be at least 1"):
        ot.sliced_wasserstein(x, x, n_projections=0)
    with pytest.raises(ValueError, match=r"`points` must be \(N, m, d\)"):
        ot.sliced_pairwise(x)
    with pytest.raises(ValueError, match=r"`cost` must be \(n, n\)"):
        ot.discrete_w1(th.ones(1), th.ones(1), x)
    with pytest.raises(ValueError, match=r"`means` \(3, 2\), `stds` \(2, 2\)"):
        ot.gaussian_w2_barycenter(x, th.zeros(2, 2))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_line_potentials_are_the_derivative_of_transport_by_the_weights(p):
    # By POT's linear programme, moving a little mass to the next point and back.
    x, y = (np.sort(np.random.default_rng(seed).normal(size=9)) for seed in (0, 1))
    potentials = ot.line_potentials(th.as_tensor(x), th.as_tensor(y), p=p)
    assert float(potentials.mean()) == pytest.approx(0.0, abs=1e-12)
    cost, uniform, step = np.abs(x[:, None] - y[None, :]) ** p, np.full(9, 1 / 9), 1e-4
    for k in range(8):
        direction = np.zeros(9)
        direction[k + 1], direction[k] = step, -step
        ahead, behind = (pot.emd2(uniform + sign * direction, uniform, cost) for sign in (1, -1))
        assert float(potentials[k + 1] - potentials[k]) == pytest.approx((ahead - behind) / (2 * step), abs=1e-7)


def test_line_potentials_pull_back_what_was_shifted():
    # Every point pays the same under a translation, but the potential falls towards where the points belong.
    x = th.linspace(0.0, 1.0, 6, dtype=th.float64)
    for p in (1, 2):
        slopes = ot.line_potentials(x.expand(3, -1) + 2.0, x.expand(3, -1), p=p).diff(dim=-1)
        th.testing.assert_close(slopes, th.full_like(slopes, 0.2 if p == 1 else 2 * 2.0 * 0.2))


@pytest.mark.parametrize(
    ("x", "y", "p", "message"),
    [
        (th.zeros(3), th.zeros(4), 1, r"`x` and `y` must have one shape \(\.\.\., n\), got \(3,\) and \(4,\)"),
        (th.zeros(3), th.zeros(3), 0.5, r"`p` must be at least 1 and at most 16, got 0\.5"),
    ],
)
def test_bad_lines_are_named(x, y, p, message):
    with pytest.raises(ValueError, match=message):
        ot.line_potentials(x, y, p=p)


def test_wasserstein_1d_of_unequal_sizes_equals_scipy() -> None:
    x, y = th.tensor([0.0, 1.0, 3.0], dtype=th.float64), th.tensor([1.0, 2.0], dtype=th.float64)
    expected = scipy.stats.wasserstein_distance(x.numpy(), y.numpy())
    assert float(ot.wasserstein_1d(x, y)) == pytest.approx(expected, abs=1e-15)
    # Integers have no uniform weight of one third.
    with pytest.raises(ValueError, match=r"`x` must be float32 or float64, got torch.int64"):
        ot.wasserstein_1d(x.long(), y.long())


def test_wasserstein_1d_refuses_weights_that_are_none() -> None:
    x = th.tensor([0.0, 1.0], dtype=th.float64)
    for weights, message in (
        ([1.0, 1.0], "rows of `a` must sum to one"),
        ([1.5, -0.5], "`a` must be non-negative"),
        ([0.2, 0.3, 0.5], "`a` must have one entry per position, 2"),
    ):
        with pytest.raises(ValueError, match=message):
            ot.wasserstein_1d(x, x, th.tensor(weights, dtype=th.float64))


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_gradients_of_distances_on_lines_are_zero_where_the_measures_agree(p: float) -> None:
    cloud = th.randn(6, 2, generator=th.Generator().manual_seed(0), dtype=th.float64)
    weights = measures(1, 6, empty=0.0)[0]
    for distance in (
        lambda x: ot.wasserstein_1d(x[:, 0], cloud[:, 0], p=p),
        lambda x: ot.wasserstein_1d(x[:, 0], cloud[:, 0], weights, weights, p=p),
        lambda x: ot.sliced_wasserstein(x, cloud, seed=0, p=p),
        lambda x: ot.sliced_pairwise(th.stack((x, cloud)), seed=0, p=p).sum(),
    ):
        leaf = cloud.clone().requires_grad_()
        value = distance(leaf)
        value.backward()
        assert float(value.detach()) == 0.0
        assert leaf.grad is not None
        assert float(leaf.grad.abs().max()) == 0.0


@pytest.mark.parametrize("p", [2.0, 3.0])
def test_gradients_of_distances_on_lines_equal_finite_differences_where_some_points_agree(p: float) -> None:
    x, y = (th.randn(5, generator=th.Generator().manual_seed(seed), dtype=th.float64) for seed in (0, 1))
    y[x.argmin()] = y.min() - 1.0
    x[x.argmin()] = y.min()
    leaf = x.clone().requires_grad_()
    (gradient,) = th.autograd.grad(ot.wasserstein_1d(leaf, y, p=p), leaf)
    direction = th.randn(5, generator=th.Generator().manual_seed(2), dtype=th.float64)
    expected = directional_derivative(lambda z: ot.wasserstein_1d(z, y, p=p), x, direction)
    assert float(gradient @ direction) == pytest.approx(expected, rel=1e-6)


# Forward-mode derivatives compile some of their formulas.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("call", [ot.wasserstein_1d, lambda x, y: ot.sliced_wasserstein(x, y, seed=0, n_projections=7)])
def test_tangents_of_distances_on_lines_equal_finite_differences(call) -> None:
    # Without derivatives to keep, values are sorted by another function, which must not lose a tangent.
    x, y, direction = (th.randn(6, 2, generator=th.Generator().manual_seed(seed), dtype=th.float64) for seed in (0, 1, 2))
    expected = directional_derivative(lambda z: call(z, y).sum(), x, direction)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(x, direction), y).sum()).tangent
    assert float(tangent) == pytest.approx(expected, rel=1e-6)
    assert float(th.func.jvp(lambda z: call(z, y).sum(), (x,), (direction,))[1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_of_distances_on_a_line_serves_other_points() -> None:
    x, y = (th.randn(3, 9, generator=th.Generator().manual_seed(seed), dtype=th.float64) for seed in (0, 1))
    traced = th.jit.trace(ot.wasserstein_1d, (x, y))
    assert th.equal(traced(2.0 * x + 1.0, y), ot.wasserstein_1d(2.0 * x + 1.0, y))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_values_are_the_same_to_the_bit_with_and_without_derivatives(p: float) -> None:
    generator = th.Generator().manual_seed(0)
    # Not contiguous, with ties.
    points = th.randint(-3, 4, (3, 40, 5), generator=generator).double().transpose(0, 1)
    leaf = points.clone().requires_grad_()
    for call in (
        lambda z: ot.sliced_pairwise(z, n_projections=6, seed=1, p=p),
        lambda z: ot.sliced_wasserstein(z[:1], z[1:], n_projections=6, seed=1, p=p),
        lambda z: ot.wasserstein_1d(z[0], z[1], p=p),
    ):
        assert th.equal(call(points), call(leaf).detach())


def test_gaussian_barycenters_check_their_weights() -> None:
    means, stds = th.zeros(3, 2, dtype=th.float64), th.ones(3, 2, dtype=th.float64)
    for call in (ot.gaussian_w2_barycenter, lambda m, s, w: ot.gaussian_sinkhorn_barycenter(m, s, reg=0.1, weights=w)):
        with pytest.raises(ValueError, match="rows of `weights` must sum to one, one is off by 2"):
            call(means, stds, th.ones(3, dtype=th.float64))
        with pytest.raises(ValueError, match="`weights` must have one entry per Gaussian, 3"):
            call(means, stds, th.ones(2, dtype=th.float64) / 2)
        with pytest.raises(ValueError, match="`stds` must be non-negative"):
            call(means, -stds, None)


def test_numbers_that_are_none_are_not_hidden_by_the_root() -> None:
    nan = th.tensor([0.0, math.nan], dtype=th.float64)
    for p in (1.0, 2.0):
        with pytest.raises(ValueError, match="`x` holds NaN"):
            ot.wasserstein_1d(nan, th.zeros(2, dtype=th.float64), p=p)
    with pytest.raises(ValueError, match="`mean_a` holds NaN"):
        ot.gaussian_w2(nan, nan.nan_to_num(), nan.nan_to_num(), nan.nan_to_num())


@pytest.mark.parametrize("call", [ot.sliced_wasserstein, ot.sliced_pairwise])
def test_more_directions_than_a_million_are_refused(call):
    points = th.zeros(2, 3, 2)
    with pytest.raises(ValueError, match="`n_projections` must be at most 1,000,000, got 100,000,000"):
        call(points, *([points] if call is ot.sliced_wasserstein else []), n_projections=10**8)
