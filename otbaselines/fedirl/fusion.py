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
from typing import Any

import numpy as np
import torch as th

from otbaselines import ot
from otbaselines.common.settings import COUNT, Setting, check_settings
from otbaselines.fedirl.multigrid import barycenter
from otbaselines.ot.costs import validate_cost

FUSIONS = ("barycenter", "mean_params", "mean_measure", "mean_matched")
#: Rewards beyond are refused: their squares, summed over a support, are still far from the largest number there is.
LARGEST_REWARD = 1e100
#: Of ``margin``, and of the smallest shifted reward in ranges of the rewards: measures that are lifted higher are uniform but
#: for what the solver's tolerance hides.
MAX_MARGIN = 1e3
#: Points along one axis of a lattice, whose cost along it is a matrix.
MAX_AXIS = 10_000
#: What :func:`aggregate` can be told beside parameters, support and weights.
FUSION_SETTINGS = {
    "fusion": Setting("text", choices=FUSIONS),
    "reg": Setting("number", low=0.0, above="always"),
    "debiased": Setting("flag"),
    "shift": Setting("number", optional=True),
    "margin": Setting("number", low=0.0, high=MAX_MARGIN, above="always"),
    "tol": Setting("number", low=0.0, high=1.0, above="always"),
    "max_iter": COUNT,
}
#: Rounding that is no difference between rewards, in their largest magnitude.
_ROUNDING = 16 * th.finfo(th.float64).eps


@dataclass(frozen=True)
class Support:
    r"""
    Where rewards are compared: finitely many pairs of states and actions.

    :param features: :math:`\phi` of every pair, float64, shape ``(n, k)``, of full column rank
    :param cost: ground cost between pairs, ``(n, n)`` or a lattice; :func:`lattice_cost` makes the one of a grid
    :raises TypeError: if one of them is of another type
    :raises ValueError: if the sizes disagree, an entry is not finite, a cost is negative or not symmetric, or the features are
        linearly dependent
    """

    features: th.Tensor
    cost: ot.Cost

    def __post_init__(self) -> None:
        _check_float64(self.features, "features")
        if self.features.dim() != 2 or 0 in self.features.shape:
            raise ValueError(f"`features` must have the shape (n, k), got {tuple(self.features.shape)}")
        if not bool(self.features.isfinite().all()):
            raise ValueError("`features` holds NaN or infinite entries")
        if not isinstance(self.cost, ot.LatticeCost):
            _check_float64(self.cost, "cost")
        n, k = self.features.shape
        if tuple(self.cost.shape) != (n, n):
            raise ValueError(
                f"`cost` must be of shape {(n, n)}, one bin for each row of `features`, got {tuple(self.cost.shape)}"
            )
        validate_cost(self.cost, symmetric=True)
        object.__setattr__(self, "features", self.features.detach())
        # In a unit of its own for each feature, so that features of very different units are not taken for dependent ones.
        tiny = th.finfo(th.float64).tiny
        columns = self.features / self.features.abs().amax(0).clamp_min(tiny)
        gram = columns.T @ columns
        unit = gram.diagonal().clamp_min(tiny).rsqrt()
        rank = int(th.linalg.matrix_rank(unit[:, None] * gram * unit, hermitian=True))
        if rank < k:
            raise ValueError(
                f"`features` must have full column rank, got {rank} of {k}: the rewards do not determine the parameters; "
                "leave out features that others make up"
            )


def _check_float64(value: object, name: str) -> None:
    if not isinstance(value, th.Tensor):
        raise TypeError(f"`{name}` must be a torch tensor, got {type(value).__name__}; convert it with `th.as_tensor`")
    if value.dtype != th.float64 or value.layout != th.strided:
        raise ValueError(f"`{name}` must be dense and float64, got {value.dtype}, {value.layout}; convert it with `.double()`")


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
    :param converged: whether its solver came to its tolerance, which bounds the measure's error and not that of ``theta``: on
        rewards that vary little beside what they are shifted by, the same marginal error is a larger one of parameters
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
    :raises TypeError: if a length is no integer
    :raises ValueError: if an axis is empty or longer than 10,000 points, or the lengths disagree
    """
    lengths = check_lengths(lengths)
    kinds = [False] * len(lengths) if categorical is None else list(categorical)
    if len(kinds) != len(lengths) or not all(isinstance(kind, bool | np.bool_) for kind in kinds):
        raise ValueError(f"`categorical` must be True or False for each of `lengths`, got {kinds} and {lengths}")
    factors = []
    for length, kind in zip(lengths, kinds, strict=True):
        steps = th.arange(length, dtype=th.float64)
        gaps = (steps[:, None] - steps).square()
        factors.append((gaps > 0).double() if kind else gaps)
    return ot.LatticeCost(factors)


def check_lengths(lengths: object) -> list[int]:
    """
    :param lengths: points along each axis of a lattice
    :return: the same as a list
    :raises TypeError: if they are no integers
    :raises ValueError: if there is none, or one is out of range
    """
    if isinstance(lengths, str | bytes) or not hasattr(lengths, "__len__"):
        raise TypeError(f"`lengths` must be integers, one for each axis, got {lengths!r}")
    # Rows of arrays are arrays.
    given: Any = lengths.tolist() if isinstance(lengths, np.ndarray | th.Tensor) else lengths
    found = list(given)
    if not found:
        raise ValueError("`lengths` must be positive integers, one for each axis, got none")
    for place, length in enumerate(found):
        Setting("integer", low=1, high=MAX_AXIS).check(f"lengths[{place}]", length)
    return [int(length) for length in found]


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
    :param shift: :math:`\sigma`, which must lift every reward to at least zero; chosen by ``margin`` when omitted. A warning
        says when it lifts them by more than a thousand times their range
    :param margin: the smallest reward of all clients becomes this share of the range of all, above 0 and at most 1,000:
        measures that are lifted higher are uniform but for what the solver's tolerance hides
    :param tol: marginal error at which the barycenter is done
    :param max_iter: iterations at which it stops; a warning says so
    :return: the fused reward
    :raises TypeError: if an argument is of another type
    :raises ValueError: if an argument is out of range, or parameters or rewards are not finite, or rewards beyond 1e100
    """
    check_settings(FUSION_SETTINGS, locals())
    shares = _check(thetas, support, weights)
    thetas = thetas.detach()
    mean = shares @ thetas
    rewards = thetas @ support.features.T
    if bad := _too_large(rewards):
        raise ValueError(
            f"the rewards of the clients {bad} on the support are beyond {LARGEST_REWARD:g}; leave these clients out, or "
            "scale `features` down"
        )
    if fusion == "mean_params":
        return FusionResult(mean, support.features @ mean, 0.0, 1.0, 0.0, 0, True, 0.0)
    sigma = _shift(rewards, shift, margin)
    sums = (rewards + sigma).sum(-1)
    if not bool((sums > 0).all()):
        bad = (~(sums > 0)).nonzero().flatten().tolist()
        raise ValueError(f"`shift` leaves no reward above zero of the clients {bad}, got {sigma}; raise it")
    measures, scale = (rewards + sigma) / sums.unsqueeze(-1), float(shares @ sums)
    n_iter, converged, error = 0, True, 0.0
    if fusion == "mean_measure":
        fused = shares @ measures
    else:
        given = None if weights is None else shares
        solved = barycenter(measures, support.cost, reg=reg, weights=given, debiased=debiased, tol=tol, max_iter=max_iter)
        fused, n_iter, converged, error = solved.weights, solved.n_iter, bool(solved.converged), float(solved.error)
        if not converged:
            warnings.warn(
                f"the barycenter of {len(thetas)} clients stopped at the marginal error {error:.1e} after {n_iter} iterations;"
                " raise `reg`, or `max_iter` or `tol` of `aggregate`",
                RuntimeWarning,
                stacklevel=2,
            )
    result = scale * fused - sigma
    if fusion == "mean_matched" and len(result) > 1:
        plain = support.features @ mean
        result = result.mean() + (plain - plain.mean()) * (result.std() / _at_least_rounding(plain.std(), plain))
    theta, residual = project(result, support.features)
    return FusionResult(theta, result, sigma, scale, residual, n_iter, converged, error)


def _check(thetas: th.Tensor, support: Support, weights: th.Tensor | None) -> th.Tensor:
    if not isinstance(support, Support):
        raise TypeError(f"`support` must be a `Support`, got {type(support).__name__}")
    _check_float64(thetas, "thetas")
    k = support.features.shape[1]
    if thetas.dim() != 2 or len(thetas) == 0 or thetas.shape[1] != k:
        raise ValueError(f"`thetas` must have the shape (n_clients, {k}) with at least one client, got {tuple(thetas.shape)}")
    if not bool(thetas.isfinite().all()):
        bad = (~thetas.isfinite().all(-1)).nonzero().flatten().tolist()
        raise ValueError(f"`thetas` holds NaN or infinite entries, of the clients {bad}; leave these clients out")
    n_clients = len(thetas)
    if weights is None:
        return thetas.new_full((n_clients,), 1.0 / n_clients)
    if not isinstance(weights, th.Tensor):
        raise TypeError(f"`weights` must be a torch tensor, got {type(weights).__name__}; convert it with `th.as_tensor`")
    if tuple(weights.shape) != (n_clients,) or not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError(f"`weights` must be {n_clients} positive numbers that sum to one, got {weights.tolist()}")
    return weights.to(thetas)


def _too_large(rewards: th.Tensor) -> list[int]:
    """Rows with an entry that is not finite, or beyond :data:`LARGEST_REWARD`."""
    # Comparisons with NaN are false.
    return (~(rewards.abs() <= LARGEST_REWARD).all(-1)).nonzero().flatten().tolist()


def _shift(rewards: th.Tensor, shift: float | None, margin: float) -> float:
    low, high = map(float, th.aminmax(rewards))
    largest, span = max(-low, high), high - low
    # Rewards that are the same everywhere but for rounding are the uniform measure, whatever is added.
    constant = span <= _ROUNDING * largest
    if shift is not None:
        if not shift + low >= 0.0 or not shift + high > 0.0:
            raise ValueError(f"`shift` must be at least {-low:g}, so that no reward stays below zero, got {shift}")
        if not constant and shift + low > MAX_MARGIN * span:
            warnings.warn(
                f"`shift` lifts rewards whose range is {span:g} to at least {shift + low:g}, which makes measures that are "
                f"uniform but for what the solver's tolerance hides; lower it below {MAX_MARGIN * span - low:g}",
                RuntimeWarning,
                stacklevel=3,
            )
        return float(shift)
    if constant:
        return max(1.0, largest) - low
    if margin * span <= _ROUNDING * largest:
        raise ValueError(
            f"the clients' rewards differ by {span:g} at a size of {largest:g}, beside which `margin` of their range is lost "
            "in rounding; take the constant out of `features`, or raise `margin`"
        )
    return margin * span - low


def _at_least_rounding(spread: th.Tensor, rewards: th.Tensor) -> th.Tensor:
    """A standard deviation to divide by, which rounding alone does not make."""
    floor = th.finfo(rewards.dtype).tiny
    return spread.clamp_min(max(floor, 1e-12 * float(rewards.abs().amax())))


def project(rewards: th.Tensor, features: th.Tensor) -> tuple[th.Tensor, float]:
    """
    Least squares of a reward on the features.

    :param rewards: shape ``(n,)``
    :param features: shape ``(n, k)``, of full column rank
    :return: parameters ``(k,)``, and the root mean square that is left over the standard deviation of the rewards
    :raises ValueError: if a reward is NaN or infinite, or beyond 1e100, or the features are linearly dependent
    """
    if _too_large(rewards.unsqueeze(0)):
        raise ValueError(f"`rewards` holds NaN or infinite entries, or some beyond {LARGEST_REWARD:g}")
    # The default driver's pivoting depends on where in memory the matrix happens to be: its last bits differ from run to run.
    try:
        theta = th.linalg.lstsq(features, rewards.unsqueeze(-1), driver="gels").solution.squeeze(-1)
    except RuntimeError:
        raise ValueError("`features` must have full column rank; leave out features that others make up") from None
    left = (rewards - features @ theta).square().mean().sqrt()
    # The reward of a single pair has no spread.
    return theta, float(left / _at_least_rounding(rewards.std(correction=0), rewards))


def usable_updates(updates: Sequence[object], support: Support, *, quorum: int = 1) -> list[int]:
    """
    Which of the clients' messages can be fused. Others are dropped with a warning, and the round goes on.

    What is finite and wrong is not told from what is right: one such client moves the mean and the barycenter alike.

    :param updates: what each client sent: parameters of shape ``(k,)``, or anything else
    :param support: where rewards are compared, which have to be finite there, and at most 1e100
    :param quorum: how many must be left
    :return: the places of the good ones
    :raises TypeError: if ``quorum`` is no integer, or ``support`` something else
    :raises ValueError: if the quorum is not positive, or fewer are left
    """
    COUNT.check("quorum", quorum)
    if not isinstance(support, Support):
        raise TypeError(f"`support` must be a `Support`, got {type(support).__name__}")
    good = []
    for place, update in enumerate(updates):
        problem = _problem(update, support)
        if problem:
            warnings.warn(f"the update of client {place} is dropped: {problem}", UserWarning, stacklevel=2)
        else:
            good.append(place)
    if len(good) < quorum:
        raise ValueError(f"`quorum` is {quorum}, but only {len(good)} of {len(updates)} clients sent usable parameters")
    return good


def _problem(update: object, support: Support) -> str:
    if update is None:
        return "it sent nothing"
    try:
        theta = th.as_tensor(update)
    except Exception:
        # Whatever torch makes of an object that is not an array.
        return f"it sent a {type(update).__name__}, which is no array of numbers"
    if theta.layout != th.strided or theta.is_complex() or theta.dtype == th.bool:
        return f"it sent a tensor of {theta.dtype}, {theta.layout}, which holds no real numbers in order"
    n_features = support.features.shape[1]
    if tuple(theta.shape) != (n_features,):
        return f"it has the shape {tuple(theta.shape)}, expected {(n_features,)}"
    if not bool(theta.isfinite().all()):
        return "it holds NaN or infinite entries"
    rewards = support.features @ theta.detach().to(support.features)
    return f"its rewards on the support are beyond {LARGEST_REWARD:g}" if _too_large(rewards.unsqueeze(0)) else ""
