"""Coarse grids first: the same barycenter, from potentials that were found where points are cheap."""

import numpy as np
import pytest
import torch as th

from otbaselines import ot
from otbaselines.fedirl import multigrid
from otbaselines.fedirl.fusion import lattice_cost


def _measures(lengths, n=3, seed=0):
    """Smooth bumps, each somewhere else."""
    rng = np.random.default_rng(seed)
    points = th.cartesian_prod(*(th.linspace(0, 1, length).double() for length in lengths)).reshape(-1, len(lengths))
    rows = [0.05 + sum(th.exp(-((points - th.as_tensor(rng.uniform(size=len(lengths)))) ** 2).sum(1) / 0.05) for _ in range(2))
            for _ in range(n)]  # fmt: skip
    return th.stack([row / row.sum() for row in rows])


@pytest.mark.parametrize(("lengths", "debiased", "weights"), [([24, 17, 2], True, None), ([40], False, [0.5, 0.3, 0.2])])
def test_the_barycenter_is_that_of_the_solver_without_coarse_grids(monkeypatch, lengths, debiased, weights):
    monkeypatch.setattr(multigrid, "LARGE", 10)
    measures, cost = _measures(lengths), lattice_cost(lengths)
    shares = None if weights is None else th.tensor(weights).double()
    arguments = {"reg": 0.5, "weights": shares, "debiased": debiased, "tol": 1e-7, "max_iter": 2000}
    found = multigrid.barycenter(measures, cost, **arguments)
    expected = ot.barycenter(measures, cost, **arguments)
    assert bool(found.converged)
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-7)


def test_small_lattices_and_matrices_are_the_solvers_own():
    measures, cost = _measures([6, 4]), lattice_cost([6, 4])
    for each in (cost, cost.dense()):
        one = multigrid.barycenter(measures, each, reg=0.5)
        assert th.equal(one.weights, ot.barycenter(measures, each, reg=0.5, debiased=True, tol=1e-4, max_iter=500).weights)


@pytest.mark.parametrize("n", [16, 17])
def test_interpolation_is_exact_for_straight_lines_and_merging_keeps_mass_and_order_of_axes(n):
    m = (n + 1) // 2
    line = 3.0 - 0.5 * th.arange(n).double()
    np.testing.assert_allclose(multigrid.interpolation(n, m, extrapolate=True) @ line[::2], line)
    merge = multigrid.interpolation(n, m, extrapolate=False).T
    assert bool((merge >= 0).all())
    np.testing.assert_allclose(merge.sum(0), 1.0)
    rows = th.as_tensor(np.random.default_rng(0).normal(size=(2, n * 3)))
    found = multigrid.along_axes(rows, [merge, th.eye(3).double()])
    expected = np.einsum("kn,bnc->bkc", merge, rows.reshape(2, n, 3)).reshape(2, -1)
    np.testing.assert_allclose(found, expected)
