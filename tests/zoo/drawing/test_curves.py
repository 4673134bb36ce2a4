"""Figures: the statistics behind them."""

import numpy as np
import pytest
from scipy import stats

from zoo.drawing.curves import confidence_band, moving_average
from zoo.drawing.tables import paired_verdict


def test_the_band_is_scipys_t_interval() -> None:
    samples = np.random.default_rng(1).normal(size=(10, 7))
    lower, upper = confidence_band(samples)
    for k in range(7):
        expected = stats.ttest_1samp(samples[:, k], 0.0).confidence_interval(0.95)
        np.testing.assert_allclose([lower[k], upper[k]], expected, rtol=1e-12)


def test_intervals_of_ten_seeds_cover_the_mean_in_95_of_100_cases() -> None:
    samples = np.random.default_rng(2).normal(size=(10, 4000))
    lower, upper = confidence_band(samples)
    # Within four standard errors of a share of 0.95 over 4000 cases.
    assert np.mean((lower < 0) & (upper > 0)) == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 4000))


def test_paired_differences_are_those_of_scipys_paired_test() -> None:
    generator = np.random.default_rng(3)
    seeds = generator.normal(size=10)
    first, second = seeds + 0.1 + 0.01 * generator.normal(size=10), seeds
    found, verdict = paired_verdict(first, second)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert verdict == "ahead"
    assert paired_verdict(second, first)[1] == "behind"
    # The same numbers without their pairing are far from telling the two apart.
    assert paired_verdict(first, generator.permutation(second))[1] == "not told apart"
    assert paired_verdict([1.0], [2.0])[1] == "one seed"
    with pytest.raises(ValueError, match="of the same seeds, got 2 and 3"):
        paired_verdict([1.0, 2.0], [1.0, 2.0, 3.0])


def test_the_band_of_equal_seeds_has_no_width() -> None:
    curves = np.tile(np.arange(5.0), (7, 1))
    lower, upper = confidence_band(curves)
    np.testing.assert_allclose(lower, np.arange(5.0), atol=1e-12)
    np.testing.assert_allclose(upper, np.arange(5.0), atol=1e-12)


def test_the_moving_average_is_that_of_the_definition() -> None:
    values = np.random.default_rng(0).normal(size=(2, 9))
    expected = [[row[max(0, i - 3) : i + 1].mean() for i in range(9)] for row in values]
    np.testing.assert_allclose(moving_average(values, 4), expected, atol=1e-12)
    np.testing.assert_allclose(moving_average(values, 50)[:, -1], values.mean(1), atol=1e-12)
