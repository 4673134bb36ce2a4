"""Distributions of whole teams against torch.distributions, SciPy and counting."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy import stats

from otbaselines.common.multi_agent.distributions import (
    FEW_CHOICES,
    DiagonalGaussian,
    IndependentBernoulli,
    MaskedCategorical,
    MultiCategorical,
    SquashedGaussian,
    action_head_size,
)

SIZES = (2, 5, 3)
MASK = th.arange(5)[None, :] < th.tensor(SIZES)[:, None]


def _logits(batch: int = 7, width: int = 5) -> th.Tensor:
    return 2.0 * th.randn(batch, 3, width, dtype=th.float64)


def test_masked_choices_have_probability_zero_exactly():
    probs = MaskedCategorical(_logits(), MASK).probs
    assert (probs[:, ~MASK] == 0).all()
    th.testing.assert_close(probs.sum(-1), th.ones(7, 3, dtype=th.float64), atol=1e-14, rtol=0)


def test_masked_categorical_equals_torchs_categorical_on_the_choices_that_exist():
    logits = _logits()
    ours = MaskedCategorical(logits, MASK)
    for agent, size in enumerate(SIZES):
        oracle = th.distributions.Categorical(logits=logits[:, agent, :size])
        th.testing.assert_close(ours.entropy()[:, agent], oracle.entropy(), atol=1e-12, rtol=0)
        for action in range(size):
            actions = th.full((7, 3), 0)
            actions[:, agent] = action
            expected = oracle.log_prob(actions[:, agent])
            th.testing.assert_close(ours.log_prob(actions)[:, agent], expected, atol=1e-12, rtol=0)
        assert (ours.mode()[:, agent] == oracle.probs.argmax(-1)).all()


def test_a_divided_distribution_keeps_its_mask():
    mask = th.tensor([[True, True, False], [True, True, True]])
    whole = MaskedCategorical(th.randn(5, 2, 3), mask)
    # The divergence from somebody with more choices is infinite, which only the mask can say.
    other = MaskedCategorical(th.randn(5, 2, 3))
    for part, rows in zip(whole.divide(2), (slice(0, 2), slice(2, 5)), strict=True):
        assert th.equal(part.probs, whole.probs[rows])
        assert th.equal(other.subset(th.arange(2), rows).kl(part), other.kl(whole)[rows])


def test_gradients_are_finite_and_vanish_on_masked_logits():
    logits = (_logits() * 30).requires_grad_()
    distribution = MaskedCategorical(logits, MASK)
    (distribution.entropy().sum() + distribution.log_prob(th.zeros(7, 3, dtype=th.int64)).sum()).backward()
    assert th.isfinite(logits.grad).all()
    assert (logits.grad[:, ~MASK] == 0).all()
    assert (logits.grad[:, MASK] != 0).any()


def test_entropy_gradient_of_a_masked_categorical_equals_finite_differences():
    logits = _logits(2).requires_grad_()
    assert th.autograd.gradcheck(lambda x: MaskedCategorical(x, MASK).entropy(), (logits,))


def test_sample_frequencies_follow_the_probabilities_and_masked_choices_are_never_drawn():
    n = 20_000
    logits = _logits(1).expand(n, -1, -1)
    distribution = MaskedCategorical(logits, MASK)
    samples = distribution.sample()
    for agent, size in enumerate(SIZES):
        counts = np.bincount(samples[:, agent], minlength=5)
        assert counts[size:].sum() == 0
        expected = n * th.softmax(logits[0, agent, :size], -1).numpy()
        assert stats.chisquare(counts[:size], expected).pvalue > 1e-3


def test_extreme_logits_are_drawn_and_scored_without_nan():
    logits = th.tensor([[[1e4, -1e4, 0.0]], [[-1e4, -1e4, -1e4]]])
    distribution = MaskedCategorical(logits, th.tensor([[True, True, False]]))
    assert distribution.sample()[0, 0] == 0
    assert (distribution.sample() < 2).all()
    assert th.isfinite(distribution.entropy()).all()


def test_multi_categorical_is_the_product_of_its_dimensions():
    nvec = [3, 2, 4]
    logits = _logits(width=9)
    actions = th.stack([th.randint(n, (7, 3)) for n in nvec], -1)
    ours = MultiCategorical(logits, nvec)
    oracles = [th.distributions.Categorical(logits=part) for part in logits.split(nvec, -1)]
    expected = sum(oracle.log_prob(actions[..., i]) for i, oracle in enumerate(oracles))
    th.testing.assert_close(ours.log_prob(actions), expected, atol=1e-12, rtol=0)
    th.testing.assert_close(ours.entropy(), sum(oracle.entropy() for oracle in oracles), atol=1e-12, rtol=0)
    assert ours.sample().shape == ours.mode().shape == (7, 3, 3)
    assert (ours.sample() < th.tensor(nvec)).all()


def test_independent_bernoulli_equals_torchs():
    logits = _logits()
    ours, oracle = IndependentBernoulli(logits), th.distributions.Bernoulli(logits=logits)
    actions = th.randint(2, (7, 3, 5)).double()
    th.testing.assert_close(ours.log_prob(actions), oracle.log_prob(actions).sum(-1), atol=1e-12, rtol=0)
    th.testing.assert_close(ours.entropy(), oracle.entropy().sum(-1), atol=1e-12, rtol=0)
    assert (ours.mode() == oracle.probs.round()).all()
    frequency = IndependentBernoulli(logits[:1].expand(20_000, -1, -1)).sample().mean(0)
    assert (frequency - oracle.probs[0]).abs().max() < 0.02


@pytest.mark.parametrize("n_sets", [1, 3])
def test_gaussian_with_missing_dimensions_equals_torchs_normal_on_those_that_exist(n_sets):
    mean, log_std = _logits(), 0.3 * th.randn(n_sets, 5, dtype=th.float64)
    actions = _logits()
    ours = DiagonalGaussian(mean, log_std, MASK)
    for agent, size in enumerate(SIZES):
        std = log_std[agent if n_sets > 1 else 0, :size].exp()
        oracle = th.distributions.Normal(mean[:, agent, :size], std)
        expected = oracle.log_prob(actions[:, agent, :size]).sum(-1)
        th.testing.assert_close(ours.log_prob(actions)[:, agent], expected, atol=1e-11, rtol=0)
        th.testing.assert_close(ours.entropy()[:, agent], oracle.entropy().sum(-1), atol=1e-12, rtol=0)
    assert (ours.sample()[:, ~MASK] == 0).all()
    assert (ours.mode()[:, ~MASK] == 0).all()


def test_missing_dimensions_carry_no_gradient():
    mean, log_std = _logits().requires_grad_(), th.zeros(3, 5, dtype=th.float64, requires_grad=True)
    distribution = DiagonalGaussian(mean, log_std, MASK)
    (distribution.log_prob(_logits()).sum() + distribution.entropy().sum()).backward()
    assert (mean.grad[:, ~MASK] == 0).all()
    assert (log_std.grad[~MASK] == 0).all()
    assert (log_std.grad[MASK] != 0).all()


def test_gaussian_samples_have_the_stated_moments():
    mean, log_std = th.tensor([[[1.0, -2.0]]]), th.tensor([[0.5, -1.0]])
    samples = DiagonalGaussian(mean.expand(20_000, 1, 2), log_std).sample()[:, 0]
    for dimension in range(2):
        law = stats.norm(float(mean[0, 0, dimension]), float(log_std[0, dimension].exp()))
        assert stats.kstest(samples[:, dimension].numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    "distribution",
    [
        MaskedCategorical(_logits(), MASK),
        MultiCategorical(_logits(), [2, 3]),
        IndependentBernoulli(_logits()),
        DiagonalGaussian(_logits(), th.zeros(1, 5, dtype=th.float64)),
    ],
    ids=lambda distribution: type(distribution).__name__,
)
def test_a_generator_of_its_own_fixes_the_sample_and_spares_the_global_stream(distribution):
    before = th.get_rng_state()
    draws = [distribution.sample(generator=th.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert th.equal(th.get_rng_state(), before)
    assert th.equal(draws[0], draws[1])
    assert not th.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (spaces.Discrete(4), 4),
        (spaces.MultiDiscrete([2, 3]), 5),
        (spaces.MultiBinary(3), 3),
        (spaces.Box(-1, 1, (2, 3)), 6),
    ],
)
def test_head_has_one_output_per_choice_or_dimension(space, size):
    assert action_head_size(space) == size


def test_an_action_space_without_a_distribution_is_an_error():
    with pytest.raises(ValueError, match="`action_space` must be Box, Discrete"):
        action_head_size(spaces.Text(3))


def test_a_squashed_gaussian_is_torchs_transformed_normal():
    mean, noise = th.randn(2, 7, 3, 2, dtype=th.float64).clamp(-1.0, 1.0)
    log_std = th.randn(3, 2, dtype=th.float64).clamp(-0.5, 0.5)
    ours = SquashedGaussian(mean, log_std)
    oracle = th.distributions.TransformedDistribution(
        th.distributions.Normal(mean, log_std.exp()), th.distributions.TanhTransform()
    )
    actions = ours.reparametrised(noise)
    th.testing.assert_close(actions, (mean + log_std.exp() * noise).tanh())
    # Within the 1e-6 that SB3 adds to the slope of the tangent, which is above 0.019 here.
    th.testing.assert_close(ours.log_prob(actions), oracle.log_prob(actions).sum(-1), atol=2e-4, rtol=0)
    th.testing.assert_close(ours.mode(), mean.tanh())
    assert SquashedGaussian(mean, log_std, noise=lambda: noise).sample().equal((mean + noise).tanh())
    with pytest.raises(ValueError, match="the entropy of squashed actions has no closed form"):
        ours.entropy()


def test_the_divergence_of_squashed_gaussians_is_the_integral_of_their_densities():
    first, second = (
        SquashedGaussian(th.tensor([[[mean]]], dtype=th.float64), th.tensor([[log_std]], dtype=th.float64))
        for mean, log_std in ((0.3, -0.7), (-0.2, -0.4))
    )
    x = th.linspace(-0.9999, 0.9999, 200_001, dtype=th.float64).view(-1, 1, 1)
    log_p, log_q = first.log_prob(x).flatten(), second.log_prob(x).flatten()
    integral = th.trapezoid(log_p.exp() * (log_p - log_q), x.flatten())
    th.testing.assert_close(first.kl(second).squeeze(), integral, atol=1e-4, rtol=0)


def test_padded_dimensions_of_squashed_actions_are_zero_and_carry_no_gradient():
    mean = th.randn(7, 2, 3).requires_grad_()
    mask = th.tensor([[True, True, True], [True, False, False]])
    ours = SquashedGaussian(mean, th.zeros(3), mask)
    actions = ours.sample()
    assert (actions[:, 1, 1:] == 0).all()
    ours.log_prob(actions.detach()).sum().backward()
    assert (mean.grad[:, 1, 1:] == 0).all()
    single = SquashedGaussian(mean[:, 1:, :1], th.zeros(1)).log_prob(actions[:, 1:, :1])
    th.testing.assert_close(ours.log_prob(actions)[:, 1:], single)


@pytest.mark.parametrize("n_actions", [2, 5, FEW_CHOICES - 1, FEW_CHOICES])
def test_log_probabilities_are_logits_less_the_logarithm_of_their_sum(n_actions):
    logits = th.randn(3, 20, n_actions, dtype=th.float64).transpose(0, 1).requires_grad_()
    ours, expected = MaskedCategorical(logits).log_probs, logits - logits.exp().sum(-1, keepdim=True).log()
    th.testing.assert_close(ours, expected, atol=1e-13, rtol=0)
    weights = th.randn_like(logits)
    slopes = [th.autograd.grad((x * weights).sum(), logits)[0] for x in (ours, expected)]
    th.testing.assert_close(*slopes, atol=1e-13, rtol=0)
