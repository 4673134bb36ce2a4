"""Sliced Wasserstein distances: for supports that are too large for a cost matrix."""

from __future__ import annotations

import torch as th

from otbaselines.ot.exact import wasserstein_1d


def sliced_wasserstein(
    x: th.Tensor,
    y: th.Tensor,
    *,
    n_projections: int = 50,
    p: float = 1.0,
    seed: int | None = None,
    generator: th.Generator | None = None,
) -> th.Tensor:
    r"""
    Monte-Carlo sliced Wasserstein distance between two samples (Bonneel et al. 2015).

    :math:`\left(\frac1L \sum_l W_p^p(\theta_l \cdot x, \theta_l \cdot y)\right)^{1/p}` over ``L`` random directions.

    :param x: points of equal weight, shape ``(..., n, d)``
    :param y: points of equal weight, shape ``(..., m, d)``
    :param n_projections: number of directions
    :param p: order, at least 1
    :param seed: of the directions; fixes them on every device
    :param generator: a CPU generator, in place of ``seed``
    :return: shape ``(...)``, differentiable
    :raises ValueError: if the dimensions disagree or both ``seed`` and ``generator`` are given
    """
    if x.dim() < 2 or y.dim() < 2 or x.shape[-1] != y.shape[-1]:
        raise ValueError(f"`x` and `y` must be (..., n, d) and (..., m, d), got {tuple(x.shape)} and {tuple(y.shape)}")
    directions = random_directions(x.shape[-1], n_projections, seed=seed, generator=generator).to(x)
    lines_x = th.matmul(x, directions).transpose(-1, -2)
    lines_y = th.matmul(y, directions).transpose(-1, -2)
    distance = wasserstein_1d(lines_x, lines_y, p=p)
    return distance.mean(-1) if p == 1.0 else (distance**p).mean(-1) ** (1.0 / p)


def sliced_pairwise(
    points: th.Tensor,
    *,
    n_projections: int = 50,
    p: float = 1.0,
    seed: int | None = None,
    generator: th.Generator | None = None,
) -> th.Tensor:
    r"""
    Sliced Wasserstein distances between all pairs of a team of equally large samples.

    Every agent's projections are sorted once; a pair then costs one pass over two vectors.

    :param points: shape ``(N, m, d)``
    :param n_projections: number of directions, the same for all pairs
    :param p: order, at least 1
    :param seed: of the directions; fixes them on every device
    :param generator: a CPU generator, in place of ``seed``
    :return: shape ``(N, N)``, differentiable
    :raises ValueError: if ``points`` has another shape, ``p < 1``, or both ``seed`` and ``generator`` are given
    """
    if points.dim() != 3 or points.shape[1] == 0:
        raise ValueError(f"`points` must be (N, m, d), m points for each agent, got {tuple(points.shape)}")
    if p < 1:
        raise ValueError(f"`p` must be at least 1, got {p}")
    directions = random_directions(points.shape[-1], n_projections, seed=seed, generator=generator).to(points)
    lines = th.matmul(points, directions).transpose(-1, -2)
    ordered = lines.sort(-1).values.flatten(1)
    distance: th.Tensor = th.cdist(ordered, ordered, p=p, compute_mode="donot_use_mm_for_euclid_dist")
    return distance / float(ordered.shape[1] ** (1.0 / p))


def line_potentials(x: th.Tensor, y: th.Tensor, *, p: float = 1.0) -> th.Tensor:
    r"""
    Kantorovich potentials between equally many points of equal weight on a line.

    They are the gradient of :math:`W_p^p` with respect to the weights of ``x``, up to a constant. Between neighbours the dual
    leaves an interval, from :math:`|x_{k+1}-y_k|^p - |x_k-y_k|^p` to :math:`|x_{k+1}-y_{k+1}|^p - |x_k-y_{k+1}|^p`: what a
    little mass costs that moves up, and what it saves that moves down. The middle is taken.

    :param x: shape ``(..., n)``, ascending
    :param y: of the same shape, ascending
    :param p: order, at least 1
    :return: potentials with mean zero, of the shape of ``x``, in the unit of the distance to the power ``p``
    :raises ValueError: if the shapes differ or ``p < 1``
    """
    if x.shape != y.shape or x.dim() == 0:
        raise ValueError(f"`x` and `y` must have one shape (..., n), got {tuple(x.shape)} and {tuple(y.shape)}")
    if p < 1:
        raise ValueError(f"`p` must be at least 1, got {p}")

    def slope(partner: th.Tensor) -> th.Tensor:
        return (x[..., 1:] - partner).abs() ** p - (x[..., :-1] - partner).abs() ** p

    steps = 0.5 * (slope(y[..., :-1]) + slope(y[..., 1:]))
    potentials = th.cat([th.zeros_like(x[..., :1]), steps.cumsum(-1)], -1)
    return potentials - potentials.mean(-1, keepdim=True)


def random_directions(
    dimension: int, n_projections: int, *, seed: int | None = None, generator: th.Generator | None = None
) -> th.Tensor:
    """
    Directions drawn uniformly from the sphere, on the CPU in float64, so that a seed means the same everywhere.

    :param dimension: of the points
    :param n_projections: how many directions
    :param seed: of a generator of its own
    :param generator: a CPU generator; torch's global one when both are omitted
    :return: unit columns, shape ``(dimension, n_projections)``
    :raises ValueError: if ``n_projections`` is not positive or both ``seed`` and ``generator`` are given
    """
    if n_projections < 1:
        raise ValueError(f"`n_projections` must be at least 1, got {n_projections}")
    if seed is not None:
        if generator is not None:
            raise ValueError("`seed` and `generator` both fix the directions: give one of them")
        generator = th.Generator().manual_seed(seed)
    directions = th.randn(dimension, n_projections, dtype=th.float64, generator=generator)
    norms: th.Tensor = th.linalg.vector_norm(directions, dim=0, keepdim=True)
    return directions / norms
