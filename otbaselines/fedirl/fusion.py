r"""
What the server does: the rewards of many clients become one. A pure function, whoever calls it.

Each client sends parameters :math:`\theta_i` and nothing else. On a support that all share, their rewards are shifted by one
:math:`\sigma` and normalised to probability measures; their Wasserstein barycenter is mapped back to a reward, and projected
on the features (Millard and Baheri 2026, Sec. 3).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch as th

from otbaselines import ot
from otbaselines.fedirl.multigrid import barycenter

FUSIONS = ("barycenter", "mean_params", "mean_measure", "mean_matched")


@dataclass(frozen=True)
class Support:
    r"""
    Where rewards are compared: finitely many pairs of states and actions.

    :param features: :math:`\phi` of every pair, shape ``(n, k)``, of full column rank
    :param cost: ground cost between pairs, ``(n, n)`` or a lattice; :func:`lattice_cost` makes the one of a grid
    :raises ValueError: if the sizes disagree, a feature is not finite, or the features are linearly dependent
    """

    features: th.Tensor
    cost: ot.Cost

    def __post_init__(self) -> None:
        n, k = self.features.shape
        if tuple(self.cost.shape) != (n, n):
            raise ValueError(
                f"`cost` must be of shape {(n, n)}, one bin for each row of `features`, got {tuple(self.cost.shape)}"
            )
        if not bool(self.features.isfinite().all()):
            raise ValueError("`features` holds NaN or infinite entries")
        rank = int(th.linalg.matrix_rank(self.features.T @ self.features, hermitian=True))
        if rank < k:
            raise ValueError(
                f"`features` must have full column rank, got {rank} of {k}: the rewards do not determine the parameters; "
                "leave out features that others make up"
            )


@dataclass(frozen=True)
class FusionResult:
    r"""
    One reward made of many.

    :param theta: its parameters, shape ``(k,)``
    :param rewards: the fused reward before it is projected on the features, shape ``(n,)``
    :param shift: :math:`\sigma`, in the unit of the rewards
    :param scale: :math:`Z`, the mean of the clients' sums after the shift
    :param residual: root mean square of what the features cannot express, over the standard deviation of ``rewards``
    :param n_iter: iterations of the barycenter, 0 without one
    :param converged: whether its solver came to its tolerance
    :param error: its marginal error
    """

    theta: th.Tensor
    rewards: th.Tensor
    shift: float
    scale: float
    residual: float
    n_iter: int
    converged: bool
    error: float


def lattice_cost(lengths: Sequence[int], *, categorical: Sequence[bool] | None = None) -> ot.LatticeCost:
    """
    Squared distances on a grid, in units of the spacing along each axis: neighbours are one apart.

    :param lengths: points along each axis
    :param categorical: whether an axis has no order, so that any two of its values are one apart; none when omitted
    :return: the cost, which is never built as a matrix
    :raises ValueError: if an axis is empty, or the lengths disagree
    """
    kinds = [False] * len(lengths) if categorical is None else list(categorical)
    if not lengths or min(lengths) < 1 or len(kinds) != len(lengths):
        raise ValueError(f"`lengths` must be positive, one for each of `categorical`, got {list(lengths)} and {kinds}")
    factors = []
    for length, kind in zip(lengths, kinds, strict=True):
        steps = th.arange(length, dtype=th.float64)
        gaps = (steps[:, None] - steps).square()
        factors.append((gaps > 0).double() if kind else gaps)
    return ot.LatticeCost(factors)


def aggregate(
    thetas: th.Tensor,
    support: Support,
    *,
    fusion: str = "barycenter",
    weights: th.Tensor | None = None,
    reg: float = 0.5,
    debiased: bool = True,
    shift: float | None = None,
    margin: float = 0.01,
    tol: float = 1e-4,
    max_iter: int = 500,
) -> FusionResult:
    r"""
    Fuse the rewards of the clients.

    ===================  ===============================================================================================
    ``"barycenter"``     the entropic 2-Wasserstein barycenter of the rewards as measures
    ``"mean_measure"``   their arithmetic mean, mapped back in the same way: what normalisation does without transport
    ``"mean_params"``    the mean of the parameters: federated averaging
    ``"mean_matched"``   the mean reward with the mean and standard deviation over the support of ``"barycenter"``: what
                         shift and scale do without its shape
    ===================  ===============================================================================================

    :param thetas: parameters of the clients, shape ``(n_clients, k)``
    :param support: where the rewards are compared
    :param fusion: one of these
    :param weights: of the clients, positive, shape ``(n_clients,)``, summing to one; uniform when omitted
    :param reg: entropic strength, in the unit of the cost: for a lattice, its spacing squared
    :param debiased: whether to remove the blur of the entropy
    :param shift: :math:`\sigma`, which must lift every reward to at least zero; chosen by ``margin`` when omitted
    :param margin: the smallest reward of all clients becomes this share of the range of all, above 0
    :param tol: marginal error at which the barycenter is done
    :param max_iter: iterations at which it stops; a warning says so
    :return: the fused reward
    :raises ValueError: if an argument is out of range, or parameters or rewards are not finite
    """
    shares = _check(thetas, support, fusion, weights)
    mean = shares @ thetas
    rewards = thetas @ support.features.T
    if not bool(rewards.isfinite().all()):
        raise ValueError("the rewards of the clients on the support hold NaN or infinite entries; scale `features` down")
    if fusion == "mean_params":
        return FusionResult(mean, support.features @ mean, 0.0, 1.0, 0.0, 0, True, 0.0)
    sigma = _shift(rewards, shift, margin)
    sums = (rewards + sigma).sum(-1)
    measures, scale = (rewards + sigma) / sums.unsqueeze(-1), float(shares @ sums)
    n_iter, converged, error = 0, True, 0.0
    if fusion == "mean_measure":
        fused = shares @ measures
    else:
        solved = barycenter(measures, support.cost, reg=reg, weights=weights, debiased=debiased, tol=tol, max_iter=max_iter)
        fused, n_iter, converged, error = solved.weights, solved.n_iter, bool(solved.converged), float(solved.error)
        if not converged:
            warnings.warn(
                f"the barycenter of {len(thetas)} clients stopped at the marginal error {error:.1e} after {n_iter} iterations;"
                " raise `max_iter`, `tol` or `reg`",
                RuntimeWarning,
                stacklevel=2,
            )
    result = scale * fused - sigma
    if fusion == "mean_matched":
        plain = support.features @ mean
        spread = plain.std().clamp_min(th.finfo(plain.dtype).tiny)
        result = result.mean() + (plain - plain.mean()) * (result.std() / spread)
    theta, residual = project(result, support.features)
    return FusionResult(theta, result, sigma, scale, residual, n_iter, converged, error)


def _check(thetas: th.Tensor, support: Support, fusion: str, weights: th.Tensor | None) -> th.Tensor:
    if fusion not in FUSIONS:
        raise ValueError(f"`fusion` must be one of {', '.join(map(repr, FUSIONS))}, got {fusion!r}")
    k = support.features.shape[1]
    if thetas.dim() != 2 or len(thetas) == 0 or thetas.shape[1] != k:
        raise ValueError(f"`thetas` must have the shape (n_clients, {k}) with at least one client, got {tuple(thetas.shape)}")
    if not bool(thetas.isfinite().all()):
        bad = (~thetas.isfinite().all(-1)).nonzero().flatten().tolist()
        raise ValueError(f"`thetas` holds NaN or infinite entries, of the clients {bad}; leave these clients out")
    n_clients = len(thetas)
    if weights is None:
        return thetas.new_full((n_clients,), 1.0 / n_clients)
    if tuple(weights.shape) != (n_clients,) or not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError(f"`weights` must be {n_clients} positive numbers that sum to one, got {weights.tolist()}")
    return weights.to(thetas)


def _shift(rewards: th.Tensor, shift: float | None, margin: float) -> float:
    low, high = map(float, th.aminmax(rewards))
    if shift is not None:
        if not shift + low >= 0.0 or not shift + high > 0.0:
            raise ValueError(f"`shift` must be at least {-low:g}, so that no reward stays below zero, got {shift}")
        return shift
    if not 0.0 < margin < float("inf"):
        raise ValueError(f"`margin` must be above 0, got {margin}")
    # Rewards that are the same everywhere are the uniform measure, whatever is added.
    return margin * (high - low) - low if high > low else 1.0 - low


def project(rewards: th.Tensor, features: th.Tensor) -> tuple[th.Tensor, float]:
    """
    Least squares of a reward on the features.

    :param rewards: shape ``(n,)``
    :param features: shape ``(n, k)``, of full column rank
    :return: parameters ``(k,)``, and the root mean square that is left over the standard deviation of the rewards
    """
    # The default driver's pivoting depends on where in memory the matrix happens to be: its last bits differ from run to run.
    theta = th.linalg.lstsq(features, rewards.unsqueeze(-1), driver="gels").solution.squeeze(-1)
    left = (rewards - features @ theta).square().mean().sqrt()
    # The reward of a single pair has no spread.
    spread = rewards.std(correction=0).clamp_min(th.finfo(rewards.dtype).tiny)
    return theta, float(left / spread)


def usable_updates(updates: Sequence[object], n_features: int, *, quorum: int = 1) -> list[int]:
    """
    Which of the clients' messages can be fused. Others are dropped with a warning, and the round goes on.

    :param updates: what each client sent: parameters of shape ``(k,)``, or anything else
    :param n_features: k
    :param quorum: how many must be left
    :return: the places of the good ones
    :raises ValueError: if fewer than ``quorum`` are left
    """
    good = []
    for place, update in enumerate(updates):
        problem = _problem(update, n_features)
        if problem:
            warnings.warn(f"the update of client {place} is dropped: {problem}", UserWarning, stacklevel=2)
        else:
            good.append(place)
    if len(good) < quorum:
        raise ValueError(f"`quorum` is {quorum}, but only {len(good)} of {len(updates)} clients sent usable parameters")
    return good


def _problem(update: object, n_features: int) -> str:
    if update is None:
        return "it sent nothing"
    try:
        theta = th.as_tensor(update)
    except (TypeError, ValueError, RuntimeError):
        return f"it sent a {type(update).__name__}, which is no array of numbers"
    if tuple(theta.shape) != (n_features,):
        return f"it has the shape {tuple(theta.shape)}, expected {(n_features,)}"
    return "" if bool(theta.isfinite().all()) else "it holds NaN or infinite entries"
