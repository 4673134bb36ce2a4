"""
Features of states and actions that are vectors, and the grid on which rewards made of them are compared.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from scipy.stats import qmc

from otbaselines.common.memory import check_fits
from otbaselines.common.settings import Setting, check_settings
from otbaselines.common.trajectories import Trajectory
from otbaselines.fedirl.fusion import Support, check_lengths, lattice_cost

#: About how many points a grid has whose lengths are not given, and how many at most along one coordinate: transport over
#: many steps of a fine grid takes many iterations.
GRID_POINTS, LONGEST_AXIS = 4096, 32
#: How many points it has at most where coordinates are so many that two along each are more than these thousands.
MOST_POINTS = 2**16
#: Centers, and discrete actions, each of which is a corner of a simplex.
_MANY = 4096
_SETTINGS = {
    "n_centers": Setting("integer", low=2, high=_MANY),
    "bandwidth": Setting("number", low=1e-6, high=1e6, optional=True),
    "seed": Setting("integer", low=0, high=2**63 - 1),
}


class FeatureFunction(Protocol):
    """Features of pairs of states and actions: :class:`RBFFeatures`, or a function of the user's."""

    def __call__(self, observations: Any, actions: Any, /) -> th.Tensor:
        """
        :param observations: shape ``(n, ...)``
        :param actions: shape ``(n, ...)``
        :return: finite features, shape ``(n, k)``
        """


@dataclass(frozen=True)
class RBFFeatures:
    r"""
    Radial basis functions :math:`e^{-|x - c|^2 / (2 h^2)}` of states and actions, scaled to the unit box.

    A discrete action is a corner of a simplex whose corners are one apart.

    :param low: smallest values of the observation, and of the action where it is a vector, shape ``(d,)``
    :param high: largest ones
    :param n_actions: number of actions, None for vectors
    :param centers: in the unit box, shape ``(k, d')``
    :param bandwidth: h, in edges of the unit box
    :raises ValueError: if the box is empty, or ``h`` not in [1e-6, 1e6]
    """

    low: th.Tensor
    high: th.Tensor
    n_actions: int | None
    centers: th.Tensor
    bandwidth: float

    def __post_init__(self) -> None:
        _SETTINGS["bandwidth"].check("bandwidth", self.bandwidth)
        if not bool((self.low < self.high).all()):
            raise ValueError(f"`low` must be below `high`, got {self.low}, {self.high}")

    def __call__(self, observations: npt.ArrayLike, actions: npt.ArrayLike) -> th.Tensor:
        """
        :param observations: shape ``(n, d_obs)``
        :param actions: vectors ``(n, d_act)``, or numbers ``(n,)``
        :return: features, shape ``(n, k)``
        """
        points = self.scaled(observations, actions)
        return (-th.cdist(points, self.centers).square() / (2 * self.bandwidth**2)).exp()

    def scaled(self, observations: npt.ArrayLike, actions: npt.ArrayLike) -> th.Tensor:
        """
        :param observations: shape ``(n, d_obs)``
        :param actions: vectors ``(n, d_act)``, or numbers ``(n,)``
        :return: points in the units of the centers, shape ``(n, d')``
        :raises ValueError: if the shapes do not fit, or a number is no action
        """
        seen, done = th.as_tensor(np.asarray(observations, dtype=np.float64)), np.asarray(actions)
        if seen.dim() != 2 or done.ndim == 0 or len(done) != len(seen):
            raise ValueError(
                f"`observations` must be (n, d_obs) and `actions` as many, got {tuple(seen.shape)} and {done.shape}"
            )
        width, wanted = math.prod(done.shape[1:]), len(self.low)
        if seen.shape[1] + (0 if self.n_actions else width) != wanted or (self.n_actions and width != 1):
            raise ValueError(
                f"`observations` and `actions` must have {wanted} coordinates together"
                f"{', actions being numbers' if self.n_actions else ''}, got the shapes {tuple(seen.shape)} and {done.shape}"
            )
        if self.n_actions is None:
            vectors = th.as_tensor(done.astype(np.float64)).reshape(len(seen), width)
            return (th.cat((seen, vectors), 1) - self.low) / (self.high - self.low)
        numbers = done.astype(np.int64).ravel()
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < self.n_actions and (numbers == done.ravel()).all()):
            raise ValueError(f"`actions` must be integers in [0, {self.n_actions}), got {done.min()} to {done.max()}")
        corners = th.eye(self.n_actions, dtype=th.float64) / 2**0.5
        return th.cat(((seen - self.low) / (self.high - self.low), corners[th.as_tensor(numbers)]), 1)


def rbf_features(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    *,
    bounds: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    n_centers: int = 64,
    bandwidth: float | None = None,
    seed: int = 0,
) -> RBFFeatures:
    """
    Radial basis functions with centers that fill the box evenly.

    :param observation_space: a box of one axis
    :param action_space: a box, or numbers
    :param bounds: smallest and largest observations, where those of the space are infinite or far too wide
    :param n_centers: k, from 2 to 4096
    :param bandwidth: in edges of the unit box; the median distance of a center to the nearest other one when omitted
    :param seed: of the centers, which all clients must have in common
    :return: the features
    :raises TypeError: if a number is of another type
    :raises ValueError: if the spaces are of another kind, the bounds infinite or empty, or a number out of range
    """
    check_settings(_SETTINGS, locals())
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
        raise ValueError(
            f"`observation_space` must be a Box of one axis, got {observation_space}; others need `features` of your own, and "
            "a `support`"
        )
    if not isinstance(action_space, spaces.Box | spaces.Discrete):
        raise ValueError(f"`action_space` must be a Box or Discrete, got {action_space}")
    if isinstance(action_space, spaces.Discrete) and (action_space.start != 0 or action_space.n > _MANY):
        raise ValueError(f"`action_space` must start at 0 and have at most {_MANY} actions, got {action_space}")
    given = (observation_space.low, observation_space.high) if bounds is None else bounds
    try:
        low, high = (np.broadcast_to(np.asarray(each, dtype=np.float64), observation_space.shape) for each in given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`bounds` must be smallest and largest observations, each of the shape {observation_space.shape} or one number, "
            f"got {bounds!r}: {error}"
        ) from None
    n_actions = int(action_space.n) if isinstance(action_space, spaces.Discrete) else None
    if isinstance(action_space, spaces.Box):
        low, high = np.append(low, action_space.low.ravel()), np.append(high, action_space.high.ravel())
    if not np.isfinite(low).all() or not np.isfinite(high).all() or not (low < high).all() or (high > 1e30).any():
        raise ValueError("`bounds` must be finite with low < high; the space's own are not, so that they have to be given")
    drawn = qmc.Halton(len(low) + (n_actions is not None), scramble=True, rng=np.random.default_rng(seed)).random(n_centers)
    centers = th.as_tensor(drawn)
    if n_actions is not None:
        corners = th.eye(n_actions, dtype=th.float64) / 2**0.5
        centers = th.cat((centers[:, :-1], corners[(centers[:, -1] * n_actions).long()]), 1)
    nearest = th.cdist(centers, centers).fill_diagonal_(float("inf")).amin(1)
    width = float(nearest.median()) if bandwidth is None else float(bandwidth)
    return RBFFeatures(th.as_tensor(low.copy()), th.as_tensor(high.copy()), n_actions, centers, width)


def lattice_support(features: RBFFeatures, lengths: Sequence[int] | None = None) -> Support:
    """
    A regular grid over the box of the features, on which rewards are compared.

    :param features: whose box is covered
    :param lengths: points along each coordinate of observation and action, the number of actions last where they are discrete;
        when omitted, equally many along every coordinate, so that there are some thousands
    :return: features and cost; distances are counted in steps of the grid
    :raises TypeError: if the features are no radial basis functions, or a length is no integer
    :raises ValueError: if there are not as many lengths as coordinates, the grid has too many points, or its points are too
        few to tell the features apart
    """
    if not isinstance(features, RBFFeatures):
        raise TypeError(
            f"`features` must be those of `rbf_features`, got {type(features).__name__}; make a `Support` of others"
        )
    d = len(features.low)
    wanted = d if features.n_actions is None else d + 1
    lengths = default_lengths(features) if lengths is None else check_lengths(lengths)
    if len(lengths) != wanted or (features.n_actions is not None and lengths[-1] != features.n_actions):
        raise ValueError(f"`lengths` must have {wanted} entries, the last one of discrete actions their number, got {lengths}")
    check_fits(
        4 * 8 * len(features.centers) * math.prod(lengths),
        f"a grid of {math.prod(lengths):,} points with {len(features.centers)} features (`lengths`={lengths})",
        "give fewer points along an axis: 1 along coordinates of no matter",
    )
    axes = [
        th.linspace(float(low), float(high), n, dtype=th.float64) if n > 1 else ((low + high) / 2).reshape(1)
        for low, high, n in zip(features.low, features.high, lengths, strict=False)
    ]
    if features.n_actions is not None:
        axes.append(th.arange(features.n_actions, dtype=th.float64))
    points = th.cartesian_prod(*axes).reshape(-1, wanted)
    if features.n_actions is None:
        # Observation and action stand one after the other in a point, as the features put them together.
        table = features(points, np.zeros((len(points), 0)))
    else:
        table = features(points[:, :-1], points[:, -1])
    kinds = [False] * d + ([True] if features.n_actions is not None else [])
    return Support(table, lattice_cost(lengths, categorical=kinds))


def default_lengths(features: RBFFeatures) -> list[int]:
    """
    :param features: whose box is covered
    :return: equally many points along every coordinate, so that there are some thousands
    :raises ValueError: if two along each are too many already
    """
    d, n_actions = len(features.low), features.n_actions
    each = min(LONGEST_AXIS, max(2, math.floor((GRID_POINTS / (n_actions or 1)) ** (1 / d) + 1e-9)))
    if each**d * (n_actions or 1) > MOST_POINTS:
        raise ValueError(
            f"`support` is needed: a grid of 2 points along each of {d} coordinates"
            f"{'' if n_actions is None else f' and {n_actions} actions'} has {each**d * (n_actions or 1):,}; give "
            "`support=lattice_support(features, lengths)` with 1 point along coordinates of no matter"
        )
    return [each] * d + ([] if n_actions is None else [n_actions])


def warn_of_missed_points(features: RBFFeatures, trajectories: Sequence[Trajectory], name: str) -> float:
    """
    :param features: whose box the support covers
    :param trajectories: demonstrations
    :param name: whose, for the warning
    :return: the share of demonstrated steps outside of the box, warned of where it is not zero
    """
    d = len(features.low)
    points = th.cat([features.scaled(each.observations[:-1], each.actions)[:, :d] for each in trajectories])
    share = float(((points < -1e-6) | (points > 1 + 1e-6)).any(1).double().mean())
    if share:
        warnings.warn(
            f"the support misses {share:.1%} of the steps that {name} demonstrates; widen `bounds`", UserWarning, stacklevel=2
        )
    return share


def evaluated(features: FeatureFunction, observations: Any, actions: Any, n_features: int | None = None) -> th.Tensor:
    """
    :param features: of the user's, perhaps
    :param observations: shape ``(n, ...)``
    :param actions: shape ``(n, ...)``
    :param n_features: k, where it is known
    :return: what they are, on the CPU in float64, shape ``(n, k)``
    :raises TypeError: if they are no tensor
    :raises ValueError: if they are of another shape, complex, or not finite
    """
    found = features(observations, actions)
    if not isinstance(found, th.Tensor):
        raise TypeError(f"`features` must return a tensor, got {type(found).__name__}")
    if found.dim() != 2 or len(found) != len(observations) or n_features not in (None, found.shape[1]):
        width = "k" if n_features is None else n_features
        raise ValueError(f"`features` must return the shape ({len(observations)}, {width}), got {tuple(found.shape)}")
    if found.is_complex():
        raise ValueError(f"`features` must return real numbers, got {found.dtype}")
    if not bool(found.isfinite().all()):
        raise ValueError("`features` returned NaN or infinite entries")
    return found.detach().to("cpu", th.float64)
