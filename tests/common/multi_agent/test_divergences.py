"""Divergences between team distributions against torch.distributions, SciPy and POT; detaching and selecting."""

import numpy as np
import ot as pot
import pytest
import torch as th
from scipy import stats
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence

from otbaselines.common.multi_agent.distributions import (
    DiagonalGaussian,
    IndependentBernoulli,
    MaskedCategorical,
    MultiCategorical,
)

MASK = th.tensor([[True, True, False, False], [True] * 4, [True, True, True, False]])
NVEC = [2, 1, 3]


def _numbers(*shape: int, seed: int = 0) -> th.Tensor:
    return th.randn(shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def _categorical(z: th.Tensor, mask: th.Tensor | None = None) -> MaskedCategorical:
    return MaskedCategorical(2.0 * z[..., :4], mask)


def _gaussian(z: th.Tensor, mask: th.Tensor | None = None) -> DiagonalGaussian:
    return DiagonalGaussian(z[..., :3], 0.5 * z[0, :, 3:6], mask)


FAMILIES = {
    "categorical": _categorical,
    "masked": lambda z: _categorical(z, MASK),
    "multi": lambda z: MultiCategorical(z, NVEC),
    "bernoulli": IndependentBernoulli,
    "gaussian": _gaussian,
    "padded": lambda z: _gaussian(z, MASK[:, :3]),
    "state_std": lambda z: DiagonalGaussian(z[..., :3], 0.5 * z[..., 3:]),
}


def _oracle(family, d, row, agent):
    """The same distribution of one agent in one row by torch, as independent factors."""
    if family in ("categorical", "masked"):
        own = MASK[agent] if family == "masked" else slice(None)
        return [Categorical(logits=d.log_probs[row, agent, own])]
    if family == "multi":
        return [Categorical(logits=factor.log_probs[row, agent]) for factor in d.factors]
    if family == "bernoulli":
        return [Bernoulli(logits=logit) for logit in d.logits[row, agent]]
    own = MASK[agent, :3] if family == "padded" else th.ones(3, dtype=th.bool)
    std = d.std.expand_as(d.mean)[row, agent]
    return [Independent(Normal(d.mean[row, agent][own], std[own]), 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_equals_torchs_for_every_agent(family):
    p, q = (FAMILIES[family](_numbers(5, 3, 6, seed=seed)) for seed in (0, 1))
    ours = p.kl(q)
    assert ours.shape == (5, 3)
    for row in range(5):
        for agent in range(3):
            pairs = zip(_oracle(family, p, row, agent), _oracle(family, q, row, agent), strict=True)
            th.testing.assert_close(ours[row, agent], sum(kl_divergence(a, b) for a, b in pairs), atol=1e-12, rtol=1e-12)


def _line_w1(a, b) -> float:
    """W1 of one-dimensional laws: SciPy's for finite ones, the area between the quantile functions for normals."""
    if isinstance(a, Bernoulli):
        return stats.wasserstein_distance([0, 1], [0, 1], [1 - a.probs, a.probs], [1 - b.probs, b.probs])
    levels = (np.arange(200_000) + 0.5) / 200_000
    laws = ((n.base_dist.loc.numpy(), n.base_dist.scale.numpy()) for n in (a, b))
    quantiles = [stats.norm.ppf(levels[:, None], loc, scale) for loc, scale in laws]
    return float(np.abs(quantiles[0] - quantiles[1]).mean(0).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_w1_equals_an_independent_solver_for_every_agent(family):
    p, q = (FAMILIES[family](_numbers(2, 3, 6, seed=seed)) for seed in (0, 1))
    ours = p.w1(q)
    assert ours.shape == (2, 3)
    for row in range(2):
        for agent in range(3):
            expected = 0.0
            for a, b in zip(_oracle(family, p, row, agent), _oracle(family, q, row, agent), strict=True):
                if isinstance(a, Categorical):
                    n = len(a.probs)
                    expected += pot.emd2(a.probs.numpy(), b.probs.numpy(), 1.0 - np.eye(n))
                else:
                    expected += _line_w1(a, b)
            assert float(ours[row, agent]) == pytest.approx(expected, abs=2e-5 if "gauss" in family else 1e-4)


def test_w1_of_factors_is_transport_between_the_joint_laws_under_the_hamming_distance():
    p, q = (MultiCategorical(_numbers(1, 1, 5, seed=seed), [2, 3]) for seed in (0, 1))
    joint = [np.outer(*(f.probs[0, 0].numpy() for f in d.factors)).ravel() for d in (p, q)]
    points = np.array([(i, j) for i in range(2) for j in range(3)])
    hamming = (points[:, None] != points[None]).sum(-1).astype(float)
    assert float(p.w1(q)) == pytest.approx(pot.emd2(*joint, hamming), abs=1e-12)


@pytest.mark.parametrize("n_actions", [3, 5])
def test_w1_of_choices_takes_any_ground_metric(n_actions):
    points = np.random.default_rng(0).normal(size=(n_actions, 2))
    cost = np.linalg.norm(points[:, None] - points[None], axis=-1)
    p, q = (MaskedCategorical(_numbers(4, 2, n_actions, seed=seed)) for seed in (0, 1))
    ours = p.w1(q, th.as_tensor(cost))
    for row in range(4):
        for agent in range(2):
            expected = pot.emd2(p.probs[row, agent].numpy(), q.probs[row, agent].numpy(), cost)
            assert float(ours[row, agent]) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("divergence", ["kl", "w1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_and_second_derivatives_equal_finite_differences(family, divergence):
    q = FAMILIES[family](_numbers(2, 3, 6, seed=1)).detach()

    def value(z):
        return getattr(FAMILIES[family](z), divergence)(q).sum()

    z = _numbers(2, 3, 6).requires_grad_()
    assert th.autograd.gradcheck(value, (z,))
    assert th.autograd.gradgradcheck(value, (z,))


@pytest.mark.parametrize("family", FAMILIES)
def test_divergences_from_oneself_vanish_with_their_gradients(family):
    z = _numbers(2, 3, 6).requires_grad_()
    d = FAMILIES[family](z)
    for value in (d.kl(d.detach()), d.w1(d.detach())):
        th.testing.assert_close(value, th.zeros(2, 3, dtype=th.float64), atol=1e-14, rtol=0)
        (gradient,) = th.autograd.grad(value.sum(), z, create_graph=True, retain_graph=True)
        th.testing.assert_close(gradient, th.zeros_like(gradient), atol=1e-14, rtol=0)
        assert th.isfinite(th.autograd.grad(gradient.square().sum(), z, retain_graph=True)[0]).all()


def test_the_hessian_of_kl_at_oneself_is_fishers_matrix():
    # Of the softmax: diag(p) - p p'.
    logits = _numbers(1, 1, 4)

    def value(z):
        return MaskedCategorical(z.view(1, 1, 4)).kl(MaskedCategorical(logits)).sum()

    p = logits.flatten().softmax(0)
    hessian = th.autograd.functional.hessian(value, logits.flatten())
    th.testing.assert_close(hessian, p.diag() - p.outer(p), atol=1e-12, rtol=0)


def test_a_choice_that_the_other_lacks_makes_kl_infinite_and_one_that_neither_has_does_not():
    d = _categorical(_numbers(2, 3, 6), MASK)
    first, second, third = (d.select(agent) for agent in range(3))
    assert th.isinf(second.kl(first)).all()
    assert th.isinf(second.kl(third)).all()
    assert th.isfinite(first.kl(second)).all()
    assert th.isfinite(third.kl(third)).all()
    free = _categorical(_numbers(2, 1, 6))
    assert th.isinf(free.kl(third)).all()
    assert th.isfinite(third.kl(free)).all()
    assert th.isfinite(first.w1(second)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_selected_agent_is_a_team_of_one_with_the_same_numbers(family):
    p, q = (FAMILIES[family](_numbers(4, 3, 6, seed=seed)) for seed in (0, 1))
    actions = p.sample()
    for agent in range(3):
        one = p.select(agent)
        assert one.n_agents == 1
        th.testing.assert_close(one.log_prob(actions[:, agent : agent + 1]), p.log_prob(actions)[:, agent : agent + 1])
        for name in ("entropy", "mode"):
            th.testing.assert_close(getattr(one, name)(), getattr(p, name)()[:, agent : agent + 1], rtol=0, atol=0)
        for name in ("kl", "w1"):
            both, alone = getattr(p, name)(q), getattr(one, name)(q.select(agent))
            th.testing.assert_close(alone, both[:, agent : agent + 1], rtol=0, atol=0)
        assert one.sample().shape == actions[:, :1].shape
    with pytest.raises(IndexError, match="`agent` must be from 0 to 2, got 3"):
        p.select(3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_detached_distribution_is_a_constant_with_the_same_numbers(family):
    p = FAMILIES[family](_numbers(4, 3, 6).requires_grad_())
    constant = p.detach()
    assert not constant.entropy().requires_grad
    assert p.entropy().requires_grad
    th.testing.assert_close(constant.entropy(), p.entropy().detach(), rtol=0, atol=0)


def test_noise_that_was_given_is_selected_and_detached_with_the_mean():
    noise = _numbers(4, 3, 2, seed=2).requires_grad_()
    d = DiagonalGaussian(_numbers(4, 3, 2), _numbers(3, 2, seed=1), noise=lambda: noise)
    th.testing.assert_close(d.select(1).sample(), d.sample()[:, 1:2], rtol=0, atol=0)
    assert not d.detach().sample().requires_grad


def test_families_are_not_mixed_and_a_cost_belongs_to_choices():
    p, q = _categorical(_numbers(2, 3, 6)), _gaussian(_numbers(2, 3, 6))
    for name in ("kl", "w1"):
        with pytest.raises(TypeError, match="`other` must be a MaskedCategorical, got DiagonalGaussian"):
            getattr(p, name)(q)
    with pytest.raises(ValueError, match="`cost` is for one choice among many, but a DiagonalGaussian"):
        q.w1(q, th.ones(3, 3))
    with pytest.raises(ValueError, match="`cost` must be"):
        p.w1(p, th.ones(3, 3))


@pytest.mark.parametrize("divergence", ["kl", "w1"])
def test_dimensions_that_either_lacks_are_left_out(divergence):
    mean, log_std = _numbers(2, 1, 2), _numbers(1, 2, seed=1)
    full = DiagonalGaussian(mean + 1.0, log_std + 0.5)
    half = DiagonalGaussian(mean, log_std, th.tensor([[True, False]]))
    alone = getattr(DiagonalGaussian(mean[..., :1], log_std[..., :1]), divergence)
    expected = alone(DiagonalGaussian(mean[..., :1] + 1.0, log_std[..., :1] + 0.5))
    th.testing.assert_close(getattr(half, divergence)(full), expected)
    back = getattr(DiagonalGaussian(mean[..., :1] + 1.0, log_std[..., :1] + 0.5), divergence)
    th.testing.assert_close(getattr(full, divergence)(half), back(DiagonalGaussian(mean[..., :1], log_std[..., :1])))


def test_kl_of_coins_with_extreme_odds_is_finite_and_right():
    # Where p is all but one and q all but zero, KL is the difference of the log-odds that counts.
    p, q = (IndependentBernoulli(th.tensor([[[odds]]])) for odds in (200.0, -200.0))
    th.testing.assert_close(p.kl(q), th.tensor([[200.0]]))
    th.testing.assert_close(q.kl(p), th.tensor([[200.0]]))


def test_a_detached_distribution_stays_what_it_was_when_parameters_are_written_to():
    # A deviation that does not depend on the state is a parameter, and a trust region moves it in place.
    log_std = th.nn.Parameter(0.3 * _numbers(3, 2))
    mean = _numbers(5, 3, 2, seed=1)
    old, expected = DiagonalGaussian(mean, log_std).detach(), DiagonalGaussian(mean.clone(), log_std.detach().clone())
    with th.no_grad():
        log_std.add_(0.5)
        mean.add_(1.0)
    assert th.equal(old.mean, expected.mean)
    assert th.equal(old.log_std, expected.log_std)
    # One normal twice as wide in every dimension, in the same place.
    wide = DiagonalGaussian(expected.mean, expected.log_std + np.log(2.0))
    by_hand = 0.5 * (4.0 - 1.0) - np.log(2.0)
    th.testing.assert_close(wide.kl(old), th.full((5, 3), 2 * by_hand, dtype=th.float64))
