"""The steps of a map after its particles: closed forms, an assembled metric, and what the solvers have in common."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy.stats import norm
from stable_baselines3.common.torch_layers import FlattenExtractor

from otbaselines.wfpg.log_det import bent_with_log_det, log_abs_det, squash_log_det
from otbaselines.wfpg.losses import anchor_error, critic_loss, differential_targets, discounted_targets, noise_entropy
from otbaselines.wfpg.maps import MapActor
from otbaselines.wfpg.solvers import (
    Metric,
    ascent_loss,
    conjugate_gradients,
    flatten,
    flow_targets,
    natural_direction,
    proximal_loss,
    unflatten,
)

DOUBLE = th.float64


def gaussian_map(noise):
    """u = mu + sigma z."""
    return lambda parameters: parameters[0] + parameters[1] * noise


def normal_nodes(n=64):
    """Nodes and weights of Gauss-Hermite quadrature as equally weighted rows would be: repeated quantiles are not exact."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return th.as_tensor(nodes, dtype=DOUBLE)[:, None], th.as_tensor(weights / weights.sum(), dtype=DOUBLE)[:, None]


def test_the_natural_step_of_a_gaussian_under_a_parabola_is_minus_its_mean_and_deviation():
    # Q = -a^2/2 at mu = sigma = 1: the slope at the particles is -(1 + z), and E[dT' dT] is the identity for (mu, sigma).
    nodes, weights = normal_nodes()
    parameters = (th.ones(1, dtype=DOUBLE), th.ones(1, dtype=DOUBLE))
    # A weight on every particle, as its square root on both sides of the metric.
    root = (weights * len(weights)).sqrt()
    metric = Metric(lambda p: root * gaussian_map(nodes)(p), parameters)
    gradient = metric.pull_back(-root * (1.0 + nodes))
    step = natural_direction(metric, gradient, damping=0.0, n_steps=2)
    np.testing.assert_allclose(step.solution, [-1.0, -1.0], atol=1e-10)
    assert float(step.residual) < 1e-10


@pytest.fixture
def linear():
    """A policy that is linear in its parameters, particles in the plane, and velocities that no map can follow exactly."""
    generator = th.Generator().manual_seed(0)
    features = th.randn(40, 5, dtype=DOUBLE, generator=generator)
    weights = th.randn(2, 5, dtype=DOUBLE, generator=generator)
    bias = th.randn(2, dtype=DOUBLE, generator=generator)
    velocities = th.randn(40, 2, dtype=DOUBLE, generator=generator)
    return (lambda p: features @ p[0].mT + p[1]), (weights, bias), velocities


def assembled(images, parameters):
    """The metric as a matrix, from the Jacobian matrix that autograd gives."""
    jacobian = th.autograd.functional.jacobian(lambda *p: images(p), parameters)
    rows = th.cat([part.reshape(*part.shape[:2], -1) for part in jacobian], -1)
    return th.einsum("ndp,ndq->pq", rows, rows) / len(rows), rows


def test_products_with_the_metric_are_those_of_the_assembled_one(linear):
    images, parameters, velocities = linear
    matrix, rows = assembled(images, parameters)
    metric = Metric(images, parameters)
    vector = th.randn(12, dtype=DOUBLE)
    np.testing.assert_allclose(metric.product(vector), matrix @ vector, atol=1e-12)
    np.testing.assert_allclose(metric.push_forward(vector), rows @ vector, atol=1e-12)
    np.testing.assert_allclose(metric.pull_back(velocities), th.einsum("ndp,nd->p", rows, velocities) / 40, atol=1e-12)


def test_the_diagonal_is_estimated_without_bias(linear):
    images, parameters, _ = linear
    matrix, _ = assembled(images, parameters)
    metric, generator = Metric(images, parameters), th.Generator().manual_seed(1)
    signs = th.randn(4000, 40, 2, dtype=DOUBLE, generator=generator).sign()
    samples = th.stack([metric.diagonal_sample(each) for each in signs])
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - matrix.diagonal()).abs() < 5.0 * error).all()


def test_conjugate_gradients_solve_in_as_many_steps_as_there_are_dimensions(linear):
    images, parameters, _ = linear
    matrix, _ = assembled(images, parameters)
    rhs = th.randn(12, dtype=DOUBLE)
    for inverse_diagonal in (th.ones(12, dtype=DOUBLE), 1.0 / matrix.diagonal()):
        found = conjugate_gradients(lambda v: matrix @ v, rhs, n_steps=12, inverse_diagonal=inverse_diagonal)
        np.testing.assert_allclose(found.solution, th.linalg.solve(matrix, rhs), rtol=1e-8, atol=1e-8)
        # A search that has found it does not leave it.
        longer = conjugate_gradients(lambda v: matrix @ v, rhs, n_steps=60, inverse_diagonal=inverse_diagonal)
        np.testing.assert_allclose(longer.solution, found.solution, rtol=1e-8, atol=1e-8)
        warm = conjugate_gradients(
            lambda v: matrix @ v, rhs, n_steps=1, inverse_diagonal=inverse_diagonal, start=found.solution
        )
        np.testing.assert_allclose(warm.solution, found.solution, rtol=1e-8, atol=1e-8)


def test_the_natural_step_and_the_regression_agree_on_a_linear_policy(linear):
    images, parameters, velocities = linear
    rate, metric = 0.3, Metric(images, parameters)
    step = natural_direction(metric, metric.pull_back(velocities), damping=0.0, n_steps=12)
    natural = [p + rate * d for p, d in zip(parameters, unflatten(step.solution, parameters), strict=True)]
    targets = flow_targets(images(parameters), velocities, rate)
    fitted = [p.clone().requires_grad_() for p in parameters]
    optimizer = th.optim.LBFGS(fitted, max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = proximal_loss(images(tuple(fitted)), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    for one, other in zip(natural, fitted, strict=True):
        np.testing.assert_allclose(one, other.detach(), atol=1e-5)


def test_the_slopes_of_all_solvers_agree_where_they_start(linear):
    images, parameters, velocities = linear
    own = tuple(p.clone().requires_grad_() for p in parameters)
    ascent = th.autograd.grad(ascent_loss(images(own), velocities), own)
    proximal = th.autograd.grad(proximal_loss(images(own), flow_targets(images(parameters), velocities, 0.3)), own)
    pulled = Metric(images, parameters).pull_back(velocities)
    np.testing.assert_allclose(flatten(ascent), -pulled, atol=1e-12)
    np.testing.assert_allclose(flatten(proximal), -0.3 * pulled, atol=1e-12)


def test_the_natural_step_moves_the_particles_alike_whatever_the_parameters_are_called(linear):
    # theta = A phi with a badly scaled A: the first-order step changes, the natural one does not.
    images, parameters, velocities = linear
    change = th.randn(12, 12, dtype=DOUBLE) + 3.0 * th.eye(12, dtype=DOUBLE)
    change[:, 0] *= 30.0
    other = (th.linalg.solve(change, flatten(parameters)),)
    renamed = lambda p: images(unflatten(change @ p[0], parameters))  # noqa: E731
    moves, plain = [], []
    for own, at in ((images, parameters), (renamed, other)):
        metric = Metric(own, at)
        gradient = metric.pull_back(velocities)
        moves.append(metric.push_forward(natural_direction(metric, gradient, damping=0.0, n_steps=40).solution))
        plain.append(metric.push_forward(gradient))
    np.testing.assert_allclose(moves[0], moves[1], atol=1e-6)
    assert float((plain[0] - plain[1]).norm() / plain[0].norm()) > 1.0


# ---------------------------------------------------------------- the map
def make_actor(policy_form, action_dim=2, latent_dim=None, width=16):
    extractor = FlattenExtractor(spaces.Box(-1.0, 1.0, (3,), np.float32))
    return MapActor(
        extractor,
        action_dim,
        [width],
        th.nn.Tanh,
        policy_form=policy_form,
        latent_dim=action_dim if latent_dim is None else latent_dim,
        bend_width=8,
    ).double()


@pytest.mark.parametrize("action_dim", [1, 2, 3, 5])
@pytest.mark.parametrize("policy_form", ["gaussian", "pushforward"])
def test_the_stretch_of_the_noise_is_the_determinant_that_autograd_finds(policy_form, action_dim):
    th.manual_seed(0)
    actor = make_actor(policy_form, action_dim)
    seen, noise = th.randn(6, 3, dtype=DOUBLE), th.randn(6, action_dim, dtype=DOUBLE)
    u, log_det = actor.with_log_det(actor.hidden(seen), noise)
    np.testing.assert_allclose(u.detach(), actor(seen, noise).detach(), atol=1e-12)
    for row in range(6):
        jacobian = th.autograd.functional.jacobian(lambda z, row=row: actor(seen[row : row + 1], z[None])[0], noise[row])
        assert float(log_det[row].detach()) == pytest.approx(float(th.linalg.slogdet(jacobian).logabsdet), abs=1e-9)


def test_the_entropy_of_a_squashed_gaussian_is_that_of_numerical_integration():
    mean, std = 0.4, 0.7
    u = th.as_tensor(norm.ppf((np.arange(200_000) + 0.5) / 200_000) * std + mean)[:, None]
    ours = noise_entropy(1) + math.log(std) + float(squash_log_det(u).mean())
    grid = np.linspace(-1.0, 1.0, 400_002)[1:-1]
    density = norm.pdf((np.arctanh(grid) - mean) / std) / std / (1.0 - grid**2)
    expected = -np.trapezoid(density * np.log(density + 1e-300), grid)
    assert ours == pytest.approx(expected, abs=1e-4)


def test_squashing_does_not_underflow():
    u = th.tensor([[0.0], [20.0], [-50.0]])
    # log(1 - tanh(u)^2) = 2 log 2 - 2 |u| + O(exp(-2 |u|)).
    np.testing.assert_allclose(squash_log_det(u), [0.0, 2 * math.log(2) - 40.0, 2 * math.log(2) - 100.0], atol=1e-5)


@pytest.mark.parametrize("scale", [math.exp(-20.0), 0.05, 1.0, math.exp(2.0)], ids=["narrowest", "narrow", "unit", "widest"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 8, 17, 64])
def test_determinants_have_their_logarithms_and_slopes_where_they_would_underflow(n, scale):
    generator = th.Generator().manual_seed(n)
    matrices = scale * (th.eye(n) + 0.3 / math.sqrt(n) * th.randn(5, n, n, generator=generator))
    exact, ours = matrices.double().requires_grad_(), matrices.clone().requires_grad_()
    expected, found = th.linalg.slogdet(exact).logabsdet, log_abs_det(ours)
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol=1e-5, atol=1e-4)
    # The slopes are the transposed inverses.
    found.sum().backward()
    np.testing.assert_allclose(scale * ours.grad, scale * th.linalg.inv(exact.detach()).mT, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_slopes_of_images_and_of_their_stretch_are_finite_differences(n):
    generator = th.Generator().manual_seed(n)
    heads, noise, inwards, outwards = (
        th.randn(shape, dtype=DOUBLE, generator=generator).requires_grad_()
        for shape in ((6, 2 * n + 5), (6, n), (5, n), (n, 5))
    )
    with th.no_grad():
        # Where standard deviations are held, they have no slopes.
        heads[0, n], heads[1, n] = 2.5, -20.5
        on_the_bounds = heads.clone()
        on_the_bounds[0, n], on_the_bounds[1, n] = 2.0, -20.0
    assert th.autograd.gradcheck(bent_with_log_det, (heads, noise, inwards, outwards), eps=1e-6, atol=1e-6)
    u, log_det = bent_with_log_det(heads, noise, inwards, outwards)
    with th.no_grad():
        for found, expected in zip(bent_with_log_det(heads, noise, inwards, outwards), (u, log_det), strict=True):
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(RuntimeError, match="differentiable once here, got create_graph=True"):
        th.autograd.grad(log_det.sum(), heads, create_graph=True)
    # On the bounds there are slopes, as torch's clamp has them.
    on_the_bounds.requires_grad_()
    slope = th.autograd.grad(bent_with_log_det(on_the_bounds, noise, inwards, outwards)[0].sum(), on_the_bounds)[0]
    np.testing.assert_allclose(slope[:2, n], (noise[:2, 0] * on_the_bounds[:2, n].exp()).detach())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17])
def test_a_fold_has_a_logarithm_and_no_slope(n):
    matrices = th.eye(n).repeat(2, 1, 1)
    matrices[0, 0, 0] = 0.0
    matrices.requires_grad_()
    found = log_abs_det(matrices)
    found.sum().backward()
    np.testing.assert_allclose(found.detach(), [n * math.log(1e-12), 0.0], rtol=1e-5)
    assert float(matrices.grad[0].abs().max()) == 0.0
    with pytest.raises(RuntimeError, match="differentiable once here, got create_graph=True"):
        th.autograd.grad(log_abs_det(matrices).sum(), matrices, create_graph=True)
    np.testing.assert_allclose(matrices.grad[1], np.eye(n))


def test_noise_of_another_dimension_passes_a_pushforward():
    actor = make_actor("pushforward", action_dim=2, latent_dim=5)
    assert actor(th.zeros(4, 3, dtype=DOUBLE), th.randn(4, 5, dtype=DOUBLE)).shape == (4, 2)


def two_modes(u):
    """Slope of -a^4/100 + a^2, with modes at +-sqrt(50), in units in which these are +-1."""
    a = math.sqrt(50.0) * u
    return (-(a**3) / 25.0 + 2.0 * a) / math.sqrt(50.0)


def follow(policy_form, solver, steps=200, seed=0):
    """Where the particles of one state end up under a slope with two modes, without any entropy."""
    th.manual_seed(seed)
    actor = make_actor(policy_form, action_dim=1, width=64).float()
    seen, named = th.zeros(128, 3), dict(actor.named_parameters())
    parameters, optimizer = tuple(named.values()), th.optim.Adam(actor.parameters(), lr=3e-3)
    for _ in range(steps):
        noise = th.randn(128, 1)

        def images(values, noise=noise):
            return th.func.functional_call(actor, dict(zip(named, values, strict=True)), (seen, noise))

        if solver == "regression":
            with th.no_grad():
                u = actor(seen, noise)
                targets = flow_targets(u, two_modes(u), 0.05)
            for _ in range(2):
                optimizer.zero_grad()
                proximal_loss(actor(seen, noise), targets).backward()
                optimizer.step()
            continue
        with th.no_grad():
            metric = Metric(images, tuple(p.detach() for p in parameters))
            step = natural_direction(metric, metric.pull_back(two_modes(actor(seen, noise))), damping=1e-3, n_steps=10)
            for parameter, part in zip(parameters, unflatten(0.05 * step.solution, parameters), strict=True):
                parameter += part
    with th.no_grad():
        found = actor(th.zeros(4000, 3), th.randn(4000, 1)).flatten()
    near = (found.abs() - 1.0).abs() < 0.1
    return [float((near & side).float().mean()) for side in (found > 0, found < 0)]


def test_the_natural_step_takes_a_pushforward_to_both_modes_and_a_gaussian_to_none():
    # The law starts with 46 % on the right; particles do not cross zero, where the slope is none.
    right, left = follow("pushforward", "cg")
    assert right > 0.4
    assert left > 0.4
    assert sum(follow("gaussian", "cg", steps=60)) < 0.2


def test_a_regression_by_a_shared_optimizer_takes_all_particles_to_one_mode():
    # The limit that the documentation states: without entropy, the common part of the velocities moves the whole law.
    assert max(follow("pushforward", "regression", steps=500)) > 0.95


@pytest.mark.slow
def test_without_entropy_the_natural_step_keeps_both_modes_in_most_seeds_and_the_regression_in_none():
    kept = {
        solver: sum(min(follow("pushforward", solver, steps, seed)) > 0.2 for seed in range(6))
        for solver, steps in (("cg", 200), ("regression", 500))
    }
    print(kept)
    assert kept["cg"] >= 3
    assert kept["regression"] == 0


# ---------------------------------------------------------------- noise on the targets
def test_noise_on_the_targets_leaves_no_heat_in_a_regression():
    # The mean of |T - (t + xi)|^2 over xi is |T - t|^2 plus a constant: independent noise moves no map. This is why the
    # Langevin noise is a kick that each action gets, and not one that its target gets.
    noise = th.randn(100_000, 1, dtype=DOUBLE, generator=th.Generator().manual_seed(0))
    kicks = th.randn(100_000, 1, dtype=DOUBLE, generator=th.Generator().manual_seed(1))
    parameters = tuple(th.ones(1, dtype=DOUBLE).requires_grad_() for _ in range(2))
    targets = flow_targets(noise, -noise, 0.1)
    slopes = [
        flatten(th.autograd.grad(proximal_loss(gaussian_map(noise)(parameters), each), parameters))
        for each in (targets, targets + 0.5 * kicks)
    ]
    assert float((slopes[0] - slopes[1]).abs().max()) < 4 * 0.5 / math.sqrt(100_000)


# ---------------------------------------------------------------- critics
def test_targets_are_those_computed_by_hand():
    rewards, next_values = th.tensor([1.0, 2.0]), th.tensor([10.0, 20.0])
    np.testing.assert_allclose(discounted_targets(rewards, th.tensor([0.9, 0.0]), next_values), [10.0, 2.0])
    found = differential_targets(rewards, th.tensor([1.0, 0.0]), next_values, th.tensor(0.5))
    np.testing.assert_allclose(found, [10.5, 1.5])
    # Errors 1, 2 and 0, 4: half of the means of the squares is 2.5 / 2 + 16 / 4.
    values = th.tensor([[11.0, 4.0], [10.0, 6.0]])
    assert float(critic_loss(values, th.tensor([10.0, 2.0]))) == pytest.approx(0.5 * (2.5 + 8.0))


@pytest.mark.parametrize("rates", [(1.0, 0.05, 0.2), (0.02, 0.05, 0.2), (0.01, 0.3, 0.9), (1.0, 1.0, 1.0)])
def test_the_anchored_average_reward_is_that_of_the_stationary_law_whatever_the_rates(rates):
    # Values, slow copies and the average reward follow each other at rates of their own; each state is replayed as often as
    # any other, which is not how often the chain visits it.
    rng = np.random.default_rng(0)
    chain, rewards = rng.dirichlet(np.ones(5), 5), 10.0 + rng.standard_normal(5)
    law = np.linalg.matrix_power(chain, 200)[0]
    kernel, r = th.as_tensor(chain), th.as_tensor(rewards)
    of_values, of_copies, of_average = rates
    values, copies, average = th.full((5,), 70.0, dtype=DOUBLE), th.full((5,), -30.0, dtype=DOUBLE), th.zeros((), dtype=DOUBLE)
    for _ in range(10_000):
        targets = differential_targets(r, th.ones(5), kernel @ copies, average)
        correction = of_average * anchor_error(r, targets)
        average = average + correction
        values = values + of_values * (targets - correction - values)
        copies = copies + of_copies * (values - copies)
    assert float(average) == pytest.approx(float(law @ rewards), abs=1e-9)
    np.testing.assert_allclose(values - kernel @ values, rewards - law @ rewards, atol=1e-9)
    assert float((kernel @ values).mean()) == pytest.approx(float(average), abs=1e-9)
