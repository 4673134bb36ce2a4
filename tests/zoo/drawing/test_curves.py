"""Figures: the statistics behind them."""

import numpy as np
import pytest
from scipy import stats

from zoo.drawing.curves import bootstrap_band, moving_average


def test_the_bootstrap_band_of_normal_samples_is_near_the_normal_interval() -> None:
    # Over 200 points the average half-width must be close to that of z * s / sqrt(n), with the population's s as the
    # bootstrap has it.
    samples = np.random.default_rng(1).normal(size=(60, 200))
    lower, upper = bootstrap_band(samples)
    expected = stats.norm.ppf(0.975) * samples.std(0) / np.sqrt(60)
    assert np.mean((upper - lower) / 2) == pytest.approx(expected.mean(), rel=0.02)
    assert np.all((lower < samples.mean(0)) & (samples.mean(0) < upper))


def test_the_band_of_equal_seeds_has_no_width() -> None:
    curves = np.tile(np.arange(5.0), (7, 1))
    lower, upper = bootstrap_band(curves)
    np.testing.assert_allclose(lower, np.arange(5.0), atol=1e-12)
    np.testing.assert_allclose(upper, np.arange(5.0), atol=1e-12)


def test_the_moving_average_is_that_of_the_definition() -> None:
    values = np.random.default_rng(0).normal(size=(2, 9))
    expected = [[row[max(0, i - 3) : i + 1].mean() for i in range(9)] for row in values]
    np.testing.assert_allclose(moving_average(values, 4), expected, atol=1e-12)
    np.testing.assert_allclose(moving_average(values, 50)[:, -1], values.mean(1), atol=1e-12)
