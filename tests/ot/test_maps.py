"""Gradients of convex networks: convex, the identity at first, and optimal maps whatever the parameters."""

import numpy as np
import ot as pot
import pytest
import torch as th

from otbaselines.ot import ConvexPotential, displacement_cost, gaussian_w2, sliced_wasserstein
from otbaselines.ot.maps import squareplus


def _trained(dim=3, context_dim=4, net_arch=(16, 12), scale=0.7):
    """A potential with parameters as far from the start as training takes them."""
    potential = ConvexPotential(dim, context_dim, net_arch).double()
    with th.no_grad():
        for parameter in potential.parameters():
            parameter.add_(scale * th.randn_like(parameter))
    return potential


def _points(n=64, dim=3, context_dim=4):
    return 2.0 * th.randn(n, dim, dtype=th.float64), th.randn(n, context_dim, dtype=th.float64)


def test_squareplus_is_smooth_convex_increasing_and_above_the_positive_part():
    x = th.linspace(-30, 30, 6001, dtype=th.float64)
    y = squareplus(x)
    assert (y > x.relu()).all()
    assert float(squareplus(th.zeros((), dtype=th.float64))) == 1.0
    slope = y.diff() / x.diff()
    assert (slope > 0).all()
    assert (slope < 1).all()
    assert (slope.diff() > 0).all()


@pytest.mark.parametrize("net_arch", [(8,), (16, 12), (8, 8, 8)])
@pytest.mark.parametrize("context_dim", [0, 4])
def test_the_map_is_the_identity_at_the_start_to_the_last_bit(net_arch, context_dim):
    x, context = (part.float() for part in _points(context_dim=context_dim))
    assert th.equal(ConvexPotential(3, context_dim, net_arch).transport(x, context), x)


def test_every_parameter_that_moves_points_has_a_gradient_at_the_start():
    potential = ConvexPotential(3, 4, (16, 12))
    x, context = (part.float() for part in _points())
    (potential.transport(x, context) * th.randn(64, 3)).sum().backward()
    # Gates and offsets follow as soon as there are slopes.
    for parameter in (*potential.slopes, potential.last_head.weight, potential.last_head.bias):
        assert parameter.grad.abs().max() > 1e-3


@pytest.mark.parametrize("net_arch", [(8,), (16, 12), (8, 8, 8)])
def test_the_potential_is_convex_along_random_segments(net_arch):
    potential = _trained(net_arch=net_arch)
    (x, context), (y, _), t = _points(500), _points(500), th.rand(500, 1, dtype=th.float64)
    between = potential(t * x + (1 - t) * y, context)
    chord = t.squeeze(1) * potential(x, context) + (1 - t.squeeze(1)) * potential(y, context)
    assert (between <= chord + 1e-9 * chord.abs()).all()
    assert (between < chord - 1e-3).float().mean() > 0.9


@pytest.mark.parametrize("context_dim", [0, 4])
@pytest.mark.parametrize("net_arch", [(8,), (16, 12), (8, 8, 8)])
def test_the_transport_is_the_gradient_of_the_potential(net_arch, context_dim):
    potential = _trained(context_dim=context_dim, net_arch=net_arch)
    x, context = _points(context_dim=context_dim)
    x.requires_grad_()
    exact = th.autograd.grad(potential(x, context).sum(), x)[0]
    np.testing.assert_allclose(potential.transport(x, context).detach(), exact, rtol=1e-10, atol=1e-10)
    step = 1e-5 * th.eye(3, dtype=th.float64)
    with th.no_grad():
        sides = [(potential(x + d, context) - potential(x - d, context)) / 2e-5 for d in step]
    np.testing.assert_allclose(th.stack(sides, 1), exact, rtol=1e-5, atol=1e-5)


def test_training_gradients_are_those_of_the_double_backward_pass():
    potential = _trained()
    x, context = _points()
    parameters = list(potential.parameters())
    closed = th.autograd.grad(potential.transport(x, context).pow(3).sum(), parameters)
    x.requires_grad_()
    double = th.autograd.grad(potential(x, context).sum(), x, create_graph=True)[0].pow(3).sum()
    for ours, theirs in zip(closed, th.autograd.grad(double, parameters), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_jacobian_is_symmetric_and_positive_semidefinite():
    potential = _trained()
    x, context = _points(20)
    jacobian = th.autograd.functional.jacobian(lambda x: potential.transport(x, context).sum(0), x).permute(1, 0, 2)
    np.testing.assert_allclose(jacobian, jacobian.mT, atol=1e-10)
    assert (th.linalg.eigvalsh(jacobian) > -1e-10).all()
    # Contractions are among them: the price of 1 / 2 |x|^2 alone would forbid them.
    with th.no_grad():
        potential.last_head.weight.zero_()
        potential.last_head.bias[-9:] = (-0.9 * th.eye(3, dtype=th.float64)).flatten()
        for slopes in potential.slopes:
            slopes.zero_()
    moved = (potential.transport(x, context) - potential.transport(0 * x, context)).detach()
    np.testing.assert_allclose(moved, 0.01 * x, atol=1e-12)


def test_the_map_is_cyclically_monotone():
    potential = _trained(context_dim=0)
    x = _points(200, context_dim=0)[0]
    y = potential.transport(x).detach()
    for length in (2, 3, 5):
        for _ in range(50):
            cycle = th.randperm(200)[:length]
            assert (x[cycle] * (y[cycle] - y[cycle.roll(1)])).sum() >= -1e-9


def test_what_moving_costs_is_the_exact_squared_distance_between_samples():
    potential = _trained(context_dim=0, scale=0.2)
    x = _points(150, context_dim=0)[0]
    y = potential.transport(x).detach()
    exact = pot.emd2(np.full(150, 1 / 150), np.full(150, 1 / 150), pot.dist(x.numpy(), y.numpy()))
    assert exact > 0.1
    assert float(displacement_cost(x, y).mean()) == pytest.approx(exact, rel=1e-9)
    # Without convexity the same points at the same places would be dearer than they need to be.
    assert float(displacement_cost(x, y.roll(1, 0)).mean()) > 1.2 * exact


def test_a_map_that_is_trained_to_a_normal_distribution_costs_its_closed_form():
    """Nothing in the loss asks for a cheap map: it matches distributions, and convexity does the rest."""
    generator = th.Generator().manual_seed(0)
    mean, std = th.tensor([1.0, -0.5]), th.tensor([[0.6, 0.0], [0.5, 1.2]])
    potential = ConvexPotential(2, net_arch=(16,))
    optimizer = th.optim.Adam(potential.parameters(), lr=3e-2)
    schedule = th.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 120)
    for step in range(120):
        x, y = th.randn(1000, 2, generator=generator), mean + th.randn(1000, 2, generator=generator) @ std.T
        loss = sliced_wasserstein(potential.transport(x), y, n_projections=16, p=2.0, seed=step).square()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x = th.randn(20_000, 2, generator=generator)
    cost = float(displacement_cost(x, potential.transport(x)).mean().detach())
    # |m|^2 + tr(1 + S - 2 S^(1/2)) for the standard normal; `std` is a root of S, but not the symmetric one.
    eigenvalues = th.linalg.eigvalsh(std @ std.T)
    exact = float(mean.square().sum() + 2 + eigenvalues.sum() - 2 * eigenvalues.sqrt().sum())
    assert exact == pytest.approx(
        float(gaussian_w2(th.zeros(2), th.eye(2), mean, std @ std.T, covariance="full", squared=True)), rel=1e-4
    )
    assert cost == pytest.approx(exact, rel=0.05)


def test_the_cost_of_staying_has_a_gradient_of_zero():
    for order in (1, 2):
        y = th.ones(4, 3, requires_grad=True)
        displacement_cost(th.ones(4, 3), y, order=order).sum().backward()
        assert th.equal(y.grad, th.zeros(4, 3))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"`net_arch` must have at least one layer"):
        ConvexPotential(2, net_arch=())
    with pytest.raises(ValueError, match=r"`dim` must be at least 1, got 0"):
        ConvexPotential(0)
    with pytest.raises(TypeError, match=r"`context_dim` must be an integer, got 1.5"):
        ConvexPotential(2, 1.5)
    potential = ConvexPotential(2, 3)
    with pytest.raises(ValueError, match=r"`context` of shape \(batch, 3\), got \(5, 2\) and None"):
        potential.transport(th.zeros(5, 2))
    with pytest.raises(ValueError, match=r"`x` must be of shape \(batch, 2\) .* got \(5, 3\) and \(5, 3\)"):
        potential(th.zeros(5, 3), th.zeros(5, 3))
    with pytest.raises(ValueError, match="`order` must be 1 or 2, got 3"):
        displacement_cost(th.zeros(5, 2), th.zeros(5, 2), order=3)
