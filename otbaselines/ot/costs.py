"""
Ground costs on state-action pairs.

The ground metric is :math:`d((s,a),(s',a')) = |s-s'| + \\beta |a-a'|` and the cost its power :math:`d^p`, or the sum of powers
:math:`|s-s'|^p + (\\beta |a-a'|)^p`. The sum is of negative type for :math:`p \\le 2`, the power in general for :math:`p = 1`
only, and without that a Sinkhorn divergence can be negative. On a product of a state grid and an action set a cost that is a
sum over the factors is a :class:`LatticeCost`, which the entropic solvers apply factor by factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch as th

from otbaselines.ot._validation import (
    broadcast_shapes,
    check_alike,
    check_count,
    check_dense,
    check_number,
    check_order,
    check_tensor,
    finite,
)

# Weight of the actions in the ground metric: its powers stay within float64.
MAX_BETA = 1e15


@dataclass(frozen=True)
class LatticeCost:
    r"""
    A cost on a product of supports that is additive over the factors: :math:`C(x, y) = \sum_k C_k(x_k, y_k)`.

    Its Gibbs kernel is a Kronecker product, so that solvers need :math:`O(n \sum_k n_k)` work and never an
    :math:`n \times n` matrix. Bins are numbered with the last factor fastest, as ``th.cartesian_prod`` does.
    :math:`|s-s'| + \beta |a-a'|` and :math:`d_S^2 + \beta^2 d_A^2` are of this kind; the square of the former is not.

    :param factors: the :math:`C_k`, each of shape ``(n_k, m_k)``, of one dtype and on one device
    :raises TypeError: if a factor is no tensor
    :raises ValueError: if there is no factor, one of them is not a matrix, or they differ in precision or device
    """

    factors: tuple[th.Tensor, ...]

    def __init__(self, factors: Sequence[th.Tensor]) -> None:
        object.__setattr__(self, "factors", tuple(factors))
        check_alike({f"factors[{k}]": factor for k, factor in enumerate(self.factors)})
        if not self.factors or any(factor.dim() != 2 for factor in self.factors):
            shapes = [tuple(factor.shape) for factor in self.factors]
            raise ValueError(
                f"`factors` must be one or more matrices, got shapes {shapes}; batched lattices are not supported"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of bins on the two sides."""
        rows, columns = 1, 1
        for factor in self.factors:
            rows, columns = rows * factor.shape[0], columns * factor.shape[1]
        return rows, columns

    @property
    def dtype(self) -> th.dtype:
        """Precision of the factors."""
        return self.factors[0].dtype

    @property
    def device(self) -> th.device:
        """Where the factors live."""
        return self.factors[0].device

    @property
    def requires_grad(self) -> bool:
        """Whether a factor is differentiated."""
        return any(factor.requires_grad for factor in self.factors)

    def dense(self) -> th.Tensor:
        """The whole cost, shape ``(n, m)``: for tests and small supports."""
        total = self.factors[0]
        for factor in self.factors[1:]:
            total = total[:, None, :, None] + factor[None, :, None, :]
            total = total.flatten(2, 3).flatten(0, 1)
        return total


Cost = th.Tensor | LatticeCost


def pairwise(x: th.Tensor, y: th.Tensor | None = None, *, p: float = 1.0, scale: th.Tensor | float | None = None) -> th.Tensor:
    r"""
    Euclidean distances between two sets of points, to the power ``p``.

    :param x: points, shape ``(..., n, d)``
    :param y: points, shape ``(..., m, d)``; ``x`` when omitted
    :param p: exponent of the distance, positive, at most 16
    :param scale: unit of each coordinate, a number or shape ``(d,)``, positive: coordinates are divided by it
    :return: :math:`|x_i - y_j|^p`, shape ``(..., n, m)``, differentiable
    :raises TypeError: if the points are no tensors, or ``p`` or ``scale`` no numbers
    :raises ValueError: if the dimensions disagree, ``p`` or ``scale`` is not positive, or the distances are not finite
    """
    return pairwise_of(x, y, p, scale, ("x", "y"))


def pairwise_of(
    x: th.Tensor, y: th.Tensor | None, p: float, scale: th.Tensor | float | None, names: tuple[str, str]
) -> th.Tensor:
    """:func:`pairwise` of arguments that the caller knows as ``names``."""
    if y is None:
        y, names = x, (names[0], names[0])
    given = dict(zip(names, (x, y), strict=True))
    check_alike(given)
    if x.dim() < 2 or y.dim() < 2 or x.shape[-1] != y.shape[-1]:
        shapes = " and ".join(f"`{name}` {tuple(points.shape)}" for name, points in given.items())
        raise ValueError(f"points must be (..., n, d) and (..., m, d), got {shapes}")
    broadcast_shapes(**{name: points.shape[:-2] for name, points in given.items()})
    order = check_order(p, low=0.0)
    if scale is not None:
        factor = _unit_of(scale, x)
        x, y = x / factor, y / factor
    # The matrix-product form of cdist loses half of the digits of small distances.
    distance: th.Tensor = th.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return finite(distance if order == 1.0 else distance**order, **given)


def _unit_of(scale: th.Tensor | float, x: th.Tensor) -> th.Tensor:
    if not isinstance(scale, th.Tensor):
        scale = x.new_tensor(check_number(scale, "scale"))
    check_dense(scale, "scale")
    if scale.shape not in ((), (1,), x.shape[-1:]):
        raise ValueError(f"`scale` must be a number or have one entry per coordinate, {x.shape[-1]}, got {tuple(scale.shape)}")
    if not bool((scale > 0).all() & scale.isfinite().all()):
        raise ValueError(f"`scale` must be positive and finite, got {scale.tolist()}; give constant coordinates the scale 1")
    return scale.to(x)


def one_hot_embedding(n_actions: int, *, dtype: th.dtype = th.float32, device: th.device | str = "cpu") -> th.Tensor:
    r"""
    Actions as corners of a simplex: every two different actions are :math:`\sqrt 2` apart.

    :param n_actions: how many actions there are
    :param dtype: precision
    :param device: where to put the table
    :return: the identity, shape ``(n_actions, n_actions)``
    :raises ValueError: if ``n_actions`` is not positive
    """
    return th.eye(check_count(n_actions, "n_actions"), dtype=dtype, device=device)


def action_cost(embedding: th.Tensor, *, beta: float = 1.0, p: float = 1.0) -> th.Tensor:
    r"""
    Cost between the actions of one state.

    :param embedding: one row per action (one-hot, or the displacement that the action causes), shape ``(n_actions, k)``
    :param beta: weight of the actions against the states, non-negative, in units of state distance per unit of the embedding
    :param p: exponent of the ground metric
    :return: :math:`(\beta |e_a - e_{a'}|)^p`, shape ``(n_actions, n_actions)``
    :raises ValueError: if ``embedding`` is not a matrix, ``beta`` is negative, or ``p`` is not positive
    """
    _check_embedding(embedding)
    weight = float(_check_beta(beta) ** check_order(p, low=0.0))
    return finite(weight * pairwise_of(embedding, None, p, None, ("embedding", "")), embedding=embedding)


def state_action_cost(
    states: th.Tensor,
    actions: th.Tensor,
    other_states: th.Tensor | None = None,
    other_actions: th.Tensor | None = None,
    *,
    beta: float = 1.0,
    p: float = 1.0,
    scale: th.Tensor | float | None = None,
    embedding: th.Tensor | None = None,
    additive: bool = False,
) -> th.Tensor:
    r"""
    The ground cost :math:`(|s-s'| + \beta |a-a'|)^p` between two sets of state-action pairs, or
    :math:`|s-s'|^p + (\beta |a-a'|)^p`.

    For Sinkhorn divergences with ``p=2`` take the second: it is a squared Euclidean distance, and they are not negative. The
    square of a sum of distances is not of negative type, and they can be.

    :param states: shape ``(..., n, d)``
    :param actions: action numbers, integer, shape ``(..., n)``, looked up in ``embedding``; or vectors, shape ``(..., n, k)``
    :param other_states: the second set, shape ``(..., m, d)``; the first when omitted
    :param other_actions: its actions
    :param beta: weight of the actions, non-negative
    :param p: exponent of the ground metric
    :param scale: unit of each state coordinate, as in :func:`pairwise`
    :param embedding: one row per action, shape ``(n_actions, k)``; needed for action numbers
    :param additive: the sum of the powers instead of the power of the sum; on a product of states and actions it is a
        :class:`LatticeCost`
    :return: shape ``(..., n, m)``
    :raises TypeError: if tensors or numbers are of another type
    :raises ValueError: if only one part of the second set is given, action numbers come without an embedding or are not among
        its rows, or the shapes disagree
    """
    if (other_states is None) != (other_actions is None):
        raise ValueError("`other_states` and `other_actions` describe one set of pairs: give both or neither")
    vectors = _embed(actions, "actions", embedding, states)
    other_vectors = None
    if other_states is not None and other_actions is not None:
        other_vectors = _embed(other_actions, "other_actions", embedding, other_states)
    if not isinstance(additive, bool):
        raise TypeError(f"`additive` must be True or False, got {additive!r}")
    order = check_order(p, low=0.0)
    inner = order if additive else 1.0
    between_states = pairwise_of(states, other_states, inner, scale, ("states", "other_states"))
    between_actions = pairwise_of(vectors, other_vectors, inner, None, ("actions", "other_actions"))
    total = between_states + float(_check_beta(beta) ** inner) * between_actions
    return finite(total if additive or order == 1.0 else total**order, states=states, actions=vectors)


def _check_beta(beta: object) -> float:
    return check_number(beta, "beta", strict=False, high=MAX_BETA)


def _embed(actions: th.Tensor, name: str, embedding: th.Tensor | None, states: th.Tensor) -> th.Tensor:
    """One vector for each state, in the precision of the states."""
    check_tensor(states, "states", 2)
    check_dense(actions, name)
    if actions.is_floating_point():
        vectors = actions.to(states.dtype)
    else:
        if embedding is None:
            raise ValueError(
                "`embedding` is needed for action numbers; pass `one_hot_embedding(n_actions)` or a table of moves"
            )
        _check_embedding(embedding)
        if not bool(((actions >= 0) & (actions < len(embedding))).all()):
            low, high = actions.min().item(), actions.max().item()
            raise ValueError(f"`{name}` must be in [0, {len(embedding)}), the rows of `embedding`, got {low} to {high}")
        # Bytes and truth values would be taken for a mask.
        vectors = embedding.to(states.dtype)[actions.long()]
    if vectors.dim() < 2 or vectors.shape[-2] != states.shape[-2]:
        raise ValueError(f"`{name}` must have one entry per state, {states.shape[-2]}, got shape {tuple(actions.shape)}")
    return vectors


def _check_embedding(embedding: th.Tensor) -> None:
    check_tensor(embedding, "embedding")
    if embedding.dim() != 2:
        raise ValueError(f"`embedding` must have one row per action, shape (n_actions, k), got {tuple(embedding.shape)}")


def check_problem(cost: Cost, rows: th.Tensor, columns: th.Tensor, names: tuple[str, str], *, cost_name: str = "cost") -> None:
    """
    What can be seen without reading the content of a transport problem.

    :param cost: shape ``(..., n, m)``
    :param rows: measures on the first side, ``(..., n)``
    :param columns: measures on the second side, ``(..., m)``
    :param names: the measures' names, for the message
    :param cost_name: that of the cost
    :raises TypeError: if they are no tensors, and the cost no lattice either
    :raises ValueError: if the numbers of bins, the precisions or the devices disagree, or something is empty
    """
    given = {cost_name: cost.factors[0] if isinstance(cost, LatticeCost) else cost, names[0]: rows, names[1]: columns}
    check_alike(given)
    if len(cost.shape) < 2 or rows.shape[-1:] != cost.shape[-2:-1] or columns.shape[-1:] != cost.shape[-1:]:
        sizes = f"{tuple(rows.shape)} and {tuple(columns.shape)}"
        raise ValueError(
            f"`{cost_name}` of shape {tuple(cost.shape)} needs {list(cost.shape)[-2:]} bins in `{names[0]}` and `{names[1]}`, "
            f"got shapes {sizes}"
        )


def validate_cost(cost: Cost, *, symmetric: bool = False, name: str = "cost") -> None:
    """
    Refuse what is not a cost, before a solver turns it into NaN.

    :param cost: dense, shape ``(..., n, m)``, or a lattice
    :param symmetric: whether both sides are the same support
    :param name: the argument's name, for the message
    :raises TypeError: if it is neither a tensor nor a lattice
    :raises ValueError: if an entry is NaN, infinite or negative, or the cost is asymmetric where it must not be
    """
    if isinstance(cost, LatticeCost):
        for k, factor in enumerate(cost.factors):
            validate_cost(factor, symmetric=symmetric, name=f"{name}.factors[{k}]")
        return
    check_tensor(cost, name, 2)
    cost = cost.detach()
    low, high = th.aminmax(cost)
    largest_gap = cost.new_zeros(())
    if symmetric:
        if cost.shape[-1] != cost.shape[-2]:
            raise ValueError(f"`{name}` must be square, one support on both sides, got shape {tuple(cost.shape)}")
        largest_gap = (cost - cost.transpose(-1, -2)).abs().amax()
    minimum, maximum, gap = th.stack((low, high, largest_gap)).tolist()
    if not abs(minimum) < float("inf") or not abs(maximum) < float("inf"):
        raise ValueError(f"`{name}` holds NaN or infinite entries; transport that is forbidden needs a large finite cost")
    if minimum < 0:
        raise ValueError(f"`{name}` must be non-negative, got a minimum of {minimum:g}; add a constant to it")
    if gap > 1e-5 * maximum:
        raise ValueError(f"`{name}` must be symmetric, entries differ from the transpose by {gap:g}; use (C + C.T) / 2")


def check_metric(cost: th.Tensor, *, name: str = "cost") -> None:
    """
    Refuse what is no metric between the points of one support, naming the entry that breaks it.

    Different points may be at a distance of zero. Rounding is allowed for: 1e-9 of the largest entry in float64, 1e-6 in
    float32. The triangle inequality takes time of order n³.

    :param cost: shape ``(..., n, n)``
    :param name: the argument's name, for the message
    :raises TypeError: if it is no tensor
    :raises ValueError: if it is not square, or an entry is NaN, infinite or negative, does not vanish on the diagonal, differs
        from its transpose, or is larger than the way over a third point
    """
    check_tensor(cost, name, 2)
    if cost.shape[-1] != cost.shape[-2]:
        raise ValueError(f"`{name}` must be square, one support on both sides, got shape {tuple(cost.shape)}")
    cost = cost.detach()
    if not bool(cost.isfinite().all()):
        raise ValueError(f"`{name}{list(_first(~cost.isfinite()))}` is NaN or infinite; a distance is a finite number")
    slack = (1e-9 if cost.dtype == th.float64 else 1e-6) * float(cost.abs().max())
    diagonal = th.eye(cost.shape[-1], dtype=cost.dtype, device=cost.device)
    for problem, off, remedy in (
        ("must be non-negative", -cost, "use distances, as `ot.pairwise` returns"),
        ("must be zero, from a point to itself", cost * diagonal, "set the diagonal to zero"),
        ("must be symmetric", (cost - cost.transpose(-1, -2)).abs(), "use (C + C.T) / 2"),
    ):
        if float(off.max()) > slack:
            worst = _first(off == off.max())
            raise ValueError(f"`{name}{list(worst)}` {problem}, got {float(cost[worst]):g}; {remedy}")
    for k in range(cost.shape[-1]):
        detour = cost[..., :, k, None] + cost[..., None, k, :]
        if float((cost - detour).max()) > slack:
            worst = _first(cost - detour == (cost - detour).max())
            raise ValueError(
                f"`{name}{list(worst)}` must be at most {float(detour[worst]):g}, the way over point {k}, "
                f"got {float(cost[worst]):g}; use the lengths of shortest paths"
            )


def _first(mask: th.Tensor) -> tuple[int, ...]:
    """The indices of the first entry that is true."""
    return tuple(int(i) for i in mask.nonzero()[0])
