"""Sliced Wasserstein distances: for supports that are too large for a cost matrix."""

from __future__ import annotations

from numbers import Integral

import torch as th

from otbaselines.ot._validation import broadcast_shapes, check_alike, check_count, check_order, check_tensor, finite
from otbaselines.ot.exact import ascending, line_cost, root

# The error falls with the square root: more would take minutes and gigabytes for a fourth digit.
MAX_PROJECTIONS = 1_000_000


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
    :param n_projections: number of directions, at most a million
    :param p: order, from 1 to 16
    :param seed: of the directions; fixes them on every device
    :param generator: a CPU generator, in place of ``seed``
    :return: shape ``(...)``, differentiable; where the two agree, with a gradient of zero
    :raises TypeError: if an argument is of another type
    :raises ValueError: if ``p`` is out of range, the dimensions disagree or both ``seed`` and ``generator`` are given
    """
    order = check_order(p)
    check_alike({"x": x, "y": y})
    if x.dim() < 2 or y.dim() < 2 or x.shape[-1] != y.shape[-1]:
        raise ValueError(f"`x` and `y` must be (..., n, d) and (..., m, d), got {tuple(x.shape)} and {tuple(y.shape)}")
    batch = broadcast_shapes(x=x.shape[:-2], y=y.shape[:-2])
    directions = random_directions(x.shape[-1], n_projections, seed=seed, generator=generator).to(x)
    lines_x, lines_y = (th.matmul(z, directions).transpose(-1, -2).expand(*batch, -1, -1) for z in (x, y))
    return finite(root(line_cost(lines_x, lines_y, None, None, order).mean(-1), order), x=x, y=y)


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
    :param n_projections: number of directions, at most a million, the same for all pairs
    :param p: order, from 1 to 16
    :param seed: of the directions; fixes them on every device
    :param generator: a CPU generator, in place of ``seed``
    :return: shape ``(N, N)``, differentiable
    :raises TypeError: if an argument is of another type
    :raises ValueError: if ``points`` has another shape, ``p`` is out of range, or both ``seed`` and ``generator`` are given
    """
    order = check_order(p)
    check_tensor(points, "points")
    if points.dim() != 3:
        raise ValueError(f"`points` must be (N, m, d), m points for each agent, got {tuple(points.shape)}")
    directions = random_directions(points.shape[-1], n_projections, seed=seed, generator=generator).to(points)
    lines = ascending(th.matmul(points, directions).transpose(-1, -2)).flatten(1)
    n_agents, length = lines.shape
    # Each pair once, which on a CPU, in float64 and for p of 1 or 2, takes a seventh of the time of all by all.
    first, second = th.triu_indices(n_agents, n_agents, offset=1, device=lines.device)
    upper = lines.new_zeros(n_agents, n_agents).index_put((first, second), th.pdist(lines, order))
    return finite((upper + upper.transpose(0, 1)) / float(length ** (1.0 / order)), points=points)


def line_potentials(x: th.Tensor, y: th.Tensor, *, p: float = 1.0) -> th.Tensor:
    r"""
    Kantorovich potentials between equally many points of equal weight on a line.

    They are the gradient of :math:`W_p^p` with respect to the weights of ``x``, up to a constant. Between neighbours the dual
    leaves an interval, from :math:`|x_{k+1}-y_k|^p - |x_k-y_k|^p` to :math:`|x_{k+1}-y_{k+1}|^p - |x_k-y_{k+1}|^p`: what a
    little mass costs that moves up, and what it saves that moves down. The middle is taken.

    :param x: shape ``(..., n)``, ascending
    :param y: of the same shape, ascending
    :param p: order, from 1 to 16
    :return: potentials with mean zero, of the shape of ``x``, in the unit of the distance to the power ``p``
    :raises TypeError: if an argument is of another type
    :raises ValueError: if the shapes differ, ``p`` is out of range, or points are not in ascending order
    """
    order = check_order(p)
    check_alike({"x": x, "y": y})
    if x.shape != y.shape:
        raise ValueError(f"`x` and `y` must have one shape (..., n), got {tuple(x.shape)} and {tuple(y.shape)}")
    for name, line in (("x", x), ("y", y)):
        rounding = 4 * th.finfo(line.dtype).eps * line.detach().abs().amax()
        if bool((line.detach().diff(dim=-1) < -rounding).any()):
            raise ValueError(f"`{name}` must be in ascending order along its last dimension; use `.sort(-1)`")

    def slope(partner: th.Tensor) -> th.Tensor:
        return (x[..., 1:] - partner).abs() ** order - (x[..., :-1] - partner).abs() ** order

    steps = 0.5 * (slope(y[..., :-1]) + slope(y[..., 1:]))
    potentials = th.cat([th.zeros_like(x[..., :1]), steps.cumsum(-1)], -1)
    return finite(potentials - potentials.mean(-1, keepdim=True), x=x, y=y)


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
    :raises TypeError: if a count, the seed or the generator is of another type
    :raises ValueError: if a count is not positive, or above a million directions, the seed is none, or both ``seed`` and
        ``generator`` are given
    """
    check_count(dimension, "dimension")
    check_count(n_projections, "n_projections", MAX_PROJECTIONS)
    if seed is not None:
        if generator is not None:
            raise ValueError("`seed` and `generator` both fix the directions: give one of them")
        if isinstance(seed, bool) or not isinstance(seed, Integral):
            raise TypeError(f"`seed` must be an integer, got {seed!r}")
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"`seed` must be in [0, 2^63), got {seed}")
        generator = th.Generator().manual_seed(int(seed))
    elif generator is not None and (not isinstance(generator, th.Generator) or generator.device.type != "cpu"):
        raise TypeError(f"`generator` must be a torch generator on the CPU, got {generator!r}")
    directions = th.randn(dimension, n_projections, dtype=th.float64, generator=generator)
    norms: th.Tensor = th.linalg.vector_norm(directions, dim=0, keepdim=True)
    return directions / norms
