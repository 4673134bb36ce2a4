"""
Ground costs on state-action pairs.

The ground metric is :math:`d((s,a),(s',a')) = |s-s'| + \\beta |a-a'|` and the cost its power :math:`d^p`. On a product of a
state grid and an action set a cost that is a sum over the factors is a :class:`LatticeCost`, which the entropic solvers
apply factor by factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch as th


@dataclass(frozen=True)
class LatticeCost:
    r"""
    A cost on a product of supports that is additive over the factors: :math:`C(x, y) = \sum_k C_k(x_k, y_k)`.

    Its Gibbs kernel is a Kronecker product, so that solvers need :math:`O(n \sum_k n_k)` work and never an
    :math:`n \times n` matrix. Bins are numbered with the last factor fastest, as ``th.cartesian_prod`` does.
    :math:`|s-s'| + \beta |a-a'|` and :math:`d_S^2 + \beta^2 d_A^2` are of this kind; the square of the former is not.

    :param factors: the :math:`C_k`, each of shape ``(n_k, m_k)``
    :raises ValueError: if there is no factor or one of them is not a matrix
    """

    factors: tuple[th.Tensor, ...]

    def __init__(self, factors: Sequence[th.Tensor]) -> None:
        object.__setattr__(self, "factors", tuple(factors))
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
        """Always false: the solvers do not differentiate with respect to a lattice."""
        return False

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
    :param p: exponent of the distance, positive
    :param scale: unit of each coordinate, a number or shape ``(d,)``, positive: coordinates are divided by it
    :return: :math:`|x_i - y_j|^p`, shape ``(..., n, m)``, differentiable
    :raises ValueError: if the dimensions disagree, or ``p`` or ``scale`` is not positive
    """
    y = x if y is None else y
    if x.dim() < 2 or y.dim() < 2 or x.shape[-1] != y.shape[-1]:
        raise ValueError(f"`x` and `y` must be (..., n, d) and (..., m, d), got {tuple(x.shape)} and {tuple(y.shape)}")
    if not p > 0:
        raise ValueError(f"`p` must be positive, got {p}; 1 and 2 are the usual choices")
    if scale is not None:
        factor = th.as_tensor(scale, dtype=x.dtype, device=x.device)
        if not bool((factor > 0).all()):
            raise ValueError(f"`scale` must be positive, got {factor.tolist()}; give constant coordinates the scale 1")
        x, y = x / factor, y / factor
    # The matrix-product form of cdist loses half of the digits of small distances.
    distance: th.Tensor = th.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distance if p == 1.0 else distance**p


def one_hot_embedding(n_actions: int, *, dtype: th.dtype = th.float32, device: th.device | str = "cpu") -> th.Tensor:
    r"""
    Actions as corners of a simplex: every two different actions are :math:`\sqrt 2` apart.

    :param n_actions: how many actions there are
    :param dtype: precision
    :param device: where to put the table
    :return: the identity, shape ``(n_actions, n_actions)``
    :raises ValueError: if ``n_actions`` is not positive
    """
    if n_actions < 1:
        raise ValueError(f"`n_actions` must be at least 1, got {n_actions}")
    return th.eye(n_actions, dtype=dtype, device=device)


def action_cost(embedding: th.Tensor, *, beta: float = 1.0, p: float = 1.0) -> th.Tensor:
    r"""
    Cost between the actions of one state.

    :param embedding: one row per action (one-hot, or the displacement that the action causes), shape ``(n_actions, k)``
    :param beta: weight of the actions against the states, in units of state distance per unit of the embedding
    :param p: exponent of the ground metric
    :return: :math:`(\beta |e_a - e_{a'}|)^p`, shape ``(n_actions, n_actions)``
    :raises ValueError: if ``embedding`` is not a matrix, ``beta`` is negative, or ``p`` is not positive
    """
    if embedding.dim() != 2:
        raise ValueError(f"`embedding` must have one row per action, shape (n_actions, k), got {tuple(embedding.shape)}")
    weight = float(_check_beta(beta) ** p)
    return weight * pairwise(embedding, p=p)


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
) -> th.Tensor:
    r"""
    The ground cost :math:`(|s-s'| + \beta |a-a'|)^p` between two sets of state-action pairs.

    :param states: shape ``(..., n, d)``
    :param actions: action numbers, integer, shape ``(..., n)``, looked up in ``embedding``; or vectors, shape ``(..., n, k)``
    :param other_states: the second set, shape ``(..., m, d)``; the first when omitted
    :param other_actions: its actions
    :param beta: weight of the actions, non-negative
    :param p: exponent of the ground metric
    :param scale: unit of each state coordinate, as in :func:`pairwise`
    :param embedding: one row per action, shape ``(n_actions, k)``; needed for action numbers
    :return: shape ``(..., n, m)``
    :raises ValueError: if only one part of the second set is given, or action numbers come without an embedding
    """
    if (other_states is None) != (other_actions is None):
        raise ValueError("`other_states` and `other_actions` describe one set of pairs: give both or neither")
    vectors = _embed(actions, embedding, states.dtype)
    other_vectors = None if other_actions is None else _embed(other_actions, embedding, states.dtype)
    distance = pairwise(states, other_states, scale=scale) + _check_beta(beta) * pairwise(vectors, other_vectors)
    return distance if p == 1.0 else distance**p


def _embed(actions: th.Tensor, embedding: th.Tensor | None, dtype: th.dtype) -> th.Tensor:
    if actions.is_floating_point():
        return actions.to(dtype)
    if embedding is None:
        raise ValueError("`embedding` is needed for action numbers; pass `one_hot_embedding(n_actions)` or a table of moves")
    return embedding.to(dtype)[actions]


def _check_beta(beta: float) -> float:
    if not 0 <= beta < float("inf"):
        raise ValueError(f"`beta` must be non-negative and finite, got {beta}")
    return beta


def validate_cost(cost: Cost, *, symmetric: bool = False, name: str = "cost") -> None:
    """
    Refuse what is not a cost, before a solver turns it into NaN.

    :param cost: dense, shape ``(..., n, m)``, or a lattice
    :param symmetric: whether both sides are the same support
    :param name: the argument's name, for the message
    :raises ValueError: if an entry is NaN, infinite or negative, or the cost is asymmetric where it must not be
    """
    if isinstance(cost, LatticeCost):
        for k, factor in enumerate(cost.factors):
            validate_cost(factor, symmetric=symmetric, name=f"{name}.factors[{k}]")
        return
    if cost.dim() < 2:
        raise ValueError(f"`{name}` must be a matrix or a batch of matrices, got shape {tuple(cost.shape)}")
    if cost.dtype not in (th.float32, th.float64):
        raise ValueError(f"`{name}` must be float32 or float64, got {cost.dtype}; convert it with `.float()` or `.double()`")
    cost = cost.detach()
    low, high = th.aminmax(cost) if cost.numel() else (cost.new_zeros(()), cost.new_zeros(()))
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
