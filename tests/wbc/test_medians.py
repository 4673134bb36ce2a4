"""Medians of quantiles: the barycenter on a line for p=1."""

import torch as th

from otbaselines.wbc.visitation import weighted_median


def test_the_median_minimises_the_mean_distance():
    generator = th.Generator().manual_seed(0)
    values = th.randn(5, 7, 11, generator=generator, dtype=th.float64)
    weights = th.rand(5, generator=generator, dtype=th.float64)
    weights = weights / weights.sum()
    found = weighted_median(values, weights)

    def cost(points):
        return (weights[:, None, None] * (values - points).abs()).sum(0)

    # One of the values is a minimiser.
    best = th.stack([cost(candidate) for candidate in values]).amin(0)
    th.testing.assert_close(cost(found), best)
    assert weighted_median(values[:2], th.tensor([0.5, 0.5], dtype=th.float64)).equal(values[:2].mean(0))


def test_the_average_of_quantiles_is_no_barycenter_for_p_1():
    # Points 0, 0 and 3 on a line: the median costs 1 on average, the mean 4/3.
    lines = th.tensor([[[0.0]], [[0.0]], [[3.0]]], dtype=th.float64)
    assert weighted_median(lines, th.full((3,), 1 / 3, dtype=th.float64)).tolist() == [[0.0]]
