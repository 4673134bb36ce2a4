"""The best move of a policy within a Wasserstein-1 ball: one multiplier for all states, and two maps of the actions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch as th

from otbaselines.ot._candidates import Candidates
from otbaselines.ot._dual_search import DualProblem
from otbaselines.ot._validation import SUM_TOLERANCE, check_alike, check_number, check_stop, finite
from otbaselines.ot.costs import validate_cost


@dataclass(frozen=True)
class TrustRegionResult:
    r"""
    The best move within a transport budget. Nothing here is differentiable.

    :param multiplier: :math:`\lambda^*`, value per unit of cost, non-negative, shape ``()``
    :param value: of the dual at the multiplier, shape ``()``
    :param nearest: :math:`T`, the closest maximiser of :math:`v_m - \lambda^* c_m` for each source, shape ``(*sources)``
    :param furthest: :math:`\bar T`, the furthest maximiser
    :param mixing: :math:`t^*` in [0, 1], the share of ``nearest`` in the mixture, shape ``()``; 1 at a multiplier of zero
    :param transport_cost: of the mixture, shape ``()``: at most the radius, and equal to it where the multiplier is positive
    :param gap: by how much the value of the mixture is below that of the dual, non-negative, shape ``()``
    :param n_iter: multipliers that the search looked at after it had a bracket; 0 where the budget does not bind
    :param error: ``gap`` over the range of the values
    :param converged: whether ``error`` is at most the tolerance
    """

    multiplier: th.Tensor
    value: th.Tensor
    nearest: th.Tensor
    furthest: th.Tensor
    mixing: th.Tensor
    transport_cost: th.Tensor
    gap: th.Tensor
    n_iter: int
    error: float
    converged: bool
    _weights: th.Tensor = field(repr=False)
    _size: int = field(repr=False)

    @cached_property
    def mass(self) -> th.Tensor:
        r"""
        Where the weights end up, :math:`t^* T_\# w + (1 - t^*) \bar T_\# w`, shape ``(*sources[:-1], m)``; built when read.

        Sources that differ in the last dimension only are those of one state and share its candidates. For weights
        of :math:`\rho(s)\,\pi(a \mid s)` a row is :math:`\rho(s)\,\tilde\pi(\cdot \mid s)`.
        """
        mass = self._weights.new_zeros(*self._weights.shape[:-1], self._size)
        mass.scatter_add_(-1, self.nearest, self._weights * self.mixing)
        return mass.scatter_add_(-1, self.furthest, self._weights * (1 - self.mixing))


def trust_region_dual(
    values: th.Tensor,
    cost: th.Tensor,
    weights: th.Tensor,
    radius: float,
    *,
    tol: float = 1e-9,
    max_iter: int = 100,
    validate: bool = True,
) -> TrustRegionResult:
    r"""
    The best move of mass within a transport budget, solved through its dual.

    Mass :math:`w_k` sits at source k and may go to any of m candidates, of value :math:`v_{km}` and at a cost of
    :math:`c_{km}`. The largest value at an average cost of at most the radius is

    .. math:: \min_{\lambda \ge 0}\; \lambda\,\delta + \sum_k w_k \max_m\,(v_{km} - \lambda c_{km}),

    which is strong duality (W-MATRPO, Theorem 1; Corollary 1 for the maps). With the actions of an old policy as sources,
    :math:`w = \rho(s)\,\pi_{old}(a \mid s)`, this is the best policy whose mean :math:`W_1` from the old one is at most the
    radius. A value belongs to one candidate: it is an average over all else that is random, such as the actions of team-mates.

    The minimiser is exact: the dual is piecewise linear, and the lines on both sides of the minimiser are crossed until
    nothing is above them. All arithmetic is in float64, whatever the precision of the arguments, and on their device.

    :param values: :math:`v`, broadcastable to ``(*sources, m)``; ``(S, 1, m)`` for the actions of S states
    :param cost: :math:`c \ge 0`, broadcastable to ``(*sources, m)``; ``(k, m)`` where all states share it. Every source should
        be one of its own candidates, at a cost of zero
    :param weights: :math:`w \ge 0`, shape ``sources``, summing to one over all of them
    :param radius: :math:`\delta \ge 0`, in the unit of ``cost``
    :param tol: differences of value that count as ties, and the largest ``error`` that counts as converged; both relative
        to the range of the values
    :param max_iter: multipliers to look at. The mixture is within the budget wherever the search stops
    :param validate: whether to check the tensors' contents
    :return: the multiplier, the two maps and how they are mixed
    :raises TypeError: if an argument is of another type
    :raises ValueError: if the shapes do not fit, the contents are no values, costs and weights, or the radius is negative or
        below what the closest candidates cost
    """
    budget = check_number(radius, "radius", strict=False)
    check_stop(tol, max_iter)
    sources = _check_shapes(values, cost, weights)
    low, high = (float(x) for x in th.aminmax(values.detach()))
    rows = weights.detach().double()
    if validate:
        _check_contents(low, high, weights)
        validate_cost(cost if cost.dim() > 1 else cost.unsqueeze(0))
        rows = rows / rows.sum()
    spread = high - low
    problem = DualProblem(
        Candidates(values, cost, sources),
        rows.reshape(-1),
        budget,
        slack=tol * spread,
        scale=max(abs(low), abs(high)),
        max_iter=max_iter,
    )
    found = problem.solve()
    numbers = values.new_tensor([found.multiplier, found.value, found.mixing, found.cost, found.gap])
    multiplier, value, mixing, transport_cost, gap = finite(numbers, values=values, cost=cost).unbind()
    error = found.gap / spread if spread > 0 else 0.0
    return TrustRegionResult(
        multiplier=multiplier,
        value=value,
        nearest=found.nearest.view(sources),
        furthest=found.furthest.view(sources),
        mixing=mixing,
        transport_cost=transport_cost,
        gap=gap,
        n_iter=found.n_iter,
        error=error,
        converged=error <= tol,
        _weights=rows.to(weights.dtype),
        _size=values.shape[-1],
    )


def _check_shapes(values: th.Tensor, cost: th.Tensor, weights: th.Tensor) -> th.Size:
    check_alike({"values": values, "cost": cost, "weights": weights})
    sources, n_candidates = weights.shape, values.shape[-1]
    wanted = th.Size((*sources, n_candidates))
    for name, x in (("values", values), ("cost", cost)):
        own = (1,) * (len(wanted) - x.dim()) + x.shape
        fits = len(own) == len(wanted) and all(size in (1, full) for size, full in zip(own[:-1], sources, strict=True))
        if x.shape[-1] != n_candidates or not fits:
            raise ValueError(
                f"`values` and `cost` must broadcast to {tuple(wanted)}, the {tuple(sources)} sources of `weights` with "
                f"{n_candidates} candidates each, got `{name}` of shape {tuple(x.shape)}"
            )
    return sources


def _check_contents(low: float, high: float, weights: th.Tensor) -> None:
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise ValueError("`values` holds NaN or infinite numbers")
    held = weights.detach()
    least, total = th.stack((held.amin(), held.sum())).tolist()
    if not abs(total) < float("inf"):
        raise ValueError("`weights` holds NaN or infinite numbers")
    if least < 0:
        raise ValueError(f"`weights` must be non-negative, got a minimum of {least:g}")
    if abs(total - 1) > SUM_TOLERANCE[weights.dtype]:
        raise ValueError(f"`weights` must sum to one over all sources, got {total:g}; divide by `.sum()`")
