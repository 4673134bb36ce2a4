"""The growth of one fusion: that cells are measured, each in a process of its own."""

import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines.fedirl.features import rbf_features
from otbaselines.fedirl.fusion import lattice_cost
from zoo.benchmarks.fusion import fusion_table, rewards_on


def test_every_cell_is_solved_to_its_tolerance_and_says_what_it_took() -> None:
    table = fusion_table(quick=True)
    assert [row[:2] for row in table.rows] == [("2", "125"), ("3", "216")]
    for row in table.rows:
        assert float(row[2]) > 0
        assert float(row[4]) <= 1e-4
        assert float(row[6].replace(",", "")) >= float(row[5].replace(",", "")) > 50


def test_rewards_are_those_of_the_grid_in_the_order_of_its_cost() -> None:
    features = rbf_features(spaces.Box(-1.0, 1.0, (2,), np.float64), spaces.Box(-1.0, 1.0, (1,), np.float64), n_centers=5)
    thetas = th.as_tensor(np.random.default_rng(0).normal(size=(2, 5)))
    found = rewards_on(features, thetas, 4)
    axis = np.linspace(-1, 1, 4)
    # Bin 1 is the next value of the last axis, which is the action; bin 16 the next one of the first axis.
    for place, point in ((0, [-1, -1, -1]), (1, [-1, -1, axis[1]]), (16, [axis[1], -1, -1])):
        expected = features(np.array([point[:2]]), np.array([point[2:]]))[0] @ thetas.T
        np.testing.assert_allclose(found[:, place], expected, rtol=1e-6)
    assert lattice_cost([4] * 3).shape == (64, 64)
