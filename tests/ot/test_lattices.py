"""Kernels and barycenters on lattices against their dense equals, and at a size whose matrix could not be held."""

from __future__ import annotations

import pytest
import torch as th

from otbaselines import ot
from otbaselines.ot._kernels import LOG, LatticeKernel, line_log_matmul, log_matmul


def squares(n: int) -> th.Tensor:
    steps = th.arange(n, dtype=th.float64)
    return (steps[:, None] - steps) ** 2


def bumps(shape: tuple[int, ...], n_measures: int, floor: float = 0.05) -> th.Tensor:
    """Wide hills on a floor, with tops in different places."""
    generator = th.Generator().manual_seed(0)
    grid = th.cartesian_prod(*(th.linspace(0, 1, n, dtype=th.float64) for n in shape)).reshape(-1, len(shape))
    tops = 0.3 + 0.4 * th.rand(n_measures, 1, len(shape), generator=generator, dtype=th.float64)
    hills = -(grid - tops).square().sum(-1)
    low, high = hills.amin(-1, keepdim=True), hills.amax(-1, keepdim=True)
    hills = hills - low + floor * (high - low)
    return hills / hills.sum(-1, keepdim=True)


@pytest.mark.parametrize("spread", [1.0, 300.0, 3000.0])
def test_products_of_lines_equal_log_sum_exp(spread: float) -> None:
    generator = th.Generator().manual_seed(0)
    x = spread * th.randn(2, 50, 30, generator=generator, dtype=th.float64)
    x[0, 3] = -float("inf")
    x[1, :, :4] = -float("inf")
    exponent = -squares(30) / 0.5
    found, expected = line_log_matmul(x, exponent, exponent.exp()), log_matmul(x, exponent)
    assert th.equal(found.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    assert float((found[finite] - expected[finite]).abs().max()) < 1e-12 * max(1.0, 3 * spread)


def test_lines_that_underflow_are_computed_again() -> None:
    # Mass in one corner of a long line: e^(-99^2 / 0.5) is zero, its logarithm is not.
    x = th.full((1, 1, 100), -float("inf"), dtype=th.float64)
    x[..., 0] = 0.0
    exponent = -squares(100) / 0.5
    found = line_log_matmul(x, exponent, exponent.exp())
    assert th.allclose(found[0, 0], exponent[:, 0], rtol=1e-12)


def test_a_lattice_kernel_in_logarithms_equals_the_dense_one() -> None:
    factors = [squares(4) / -0.02, squares(5) / -0.02, squares(3) / -0.02]
    dense = ot.LatticeCost(factors).dense()
    x = 500 * th.randn(2, 3, 60, generator=th.Generator().manual_seed(1), dtype=th.float64)
    kernel = LatticeKernel(factors, LOG)
    for found, matrix in ((kernel.forward(x), dense), (kernel.adjoint(x), dense.T)):
        assert th.allclose(found, log_matmul(x, matrix.contiguous()), rtol=1e-12)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("reg", [0.05, 0.5, 5.0])
def test_the_barycenter_on_a_lattice_is_the_dense_one(reg: float, debiased: bool) -> None:
    shape = (6, 5, 3)
    lattice, measures = ot.LatticeCost([squares(n) for n in shape]), bumps(shape, 4)
    # A fixed number of iterations of the same maps: what differs is the arithmetic alone.
    options = {"reg": reg, "debiased": debiased, "tol": 1e-12, "max_iter": 40}
    found, expected = ot.barycenter(measures, lattice, **options), ot.barycenter(measures, lattice.dense(), **options)
    assert float((found.weights - expected.weights).abs().sum()) < 1e-10


def test_ten_thousand_points_of_six_clients_are_seconds_of_work_at_most() -> None:
    shape = (9, 9, 5, 5, 5)
    result = ot.barycenter(bumps(shape, 6), ot.LatticeCost([squares(n) for n in shape]), reg=0.5, debiased=True, tol=1e-6)
    assert result.converged
    assert result.n_iter < 150
