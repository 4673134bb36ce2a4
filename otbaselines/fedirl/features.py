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

from otbaselines.common.trajectories import Trajectory
from otbaselines.fedirl.fusion import Support, lattice_cost

#: About how many points a grid has whose lengths are not given, and how many at most along one coordinate: transport over
#: many steps of a fine grid takes many iterations.
GRID_POINTS, LONGEST_AXIS = 4096, 32


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
    :raises ValueError: if the box is empty, or ``h`` not positive
    """

    low: th.Tensor
    high: th.Tensor
    n_actions: int | None
    centers: th.Tensor
    bandwidth: float

    def __post_init__(self) -> None:
        if not bool((self.low < self.high).all()) or not 0.0 < self.bandwidth < float("inf"):
            raise ValueError(
                f"`bandwidth` must be positive and `low` below `high`, got {self.bandwidth}, {self.low}, {self.high}"
            )

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
        """
        seen, done = th.as_tensor(np.asarray(observations, dtype=np.float64)), np.asarray(actions)
        if self.n_actions is None:
            vectors = th.as_tensor(done.astype(np.float64)).reshape(len(seen), -1)
            return (th.cat((seen, vectors), 1) - self.low) / (self.high - self.low)
        corners = th.eye(self.n_actions, dtype=th.float64) / 2**0.5
        return th.cat(((seen - self.low) / (self.high - self.low), corners[th.as_tensor(done.astype(np.int64)).flatten()]), 1)


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
    :param n_centers: k
    :param bandwidth: in edges of the unit box; the median distance of a center to the nearest other one when omitted
    :param seed: of the centers, which all clients must have in common
    :return: the features
    :raises ValueError: if the spaces are of another kind, or the bounds infinite or empty
    """
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
        raise ValueError(f"`observation_space` must be a Box of one axis, got {observation_space}")
    if not isinstance(action_space, spaces.Box | spaces.Discrete):
        raise ValueError(f"`action_space` must be a Box or Discrete, got {action_space}")
    if n_centers < 2:
        raise ValueError(f"`n_centers` must be at least 2, got {n_centers}")
    given = (observation_space.low, observation_space.high) if bounds is None else bounds
    low, high = (np.broadcast_to(np.asarray(each, dtype=np.float64), observation_space.shape) for each in given)
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
    width = float(nearest.median()) if bandwidth is None else bandwidth
    if not width > 0.0:
        raise ValueError(f"`bandwidth` must be positive, got {bandwidth}")
    return RBFFeatures(th.as_tensor(low.copy()), th.as_tensor(high.copy()), n_actions, centers, width)


def lattice_support(features: RBFFeatures, lengths: Sequence[int] | None = None) -> Support:
    """
    A regular grid over the box of the features, on which rewards are compared.

    :param features: whose box is covered
    :param lengths: points along each coordinate of observation and action, the number of actions last where they are discrete;
        when omitted, equally many along every coordinate, so that there are some thousands
    :return: features and cost; distances are counted in steps of the grid
    :raises ValueError: if there are not as many lengths as coordinates
    """
    d = len(features.low)
    wanted = d if features.n_actions is None else d + 1
    if lengths is None:
        each = min(LONGEST_AXIS, max(2, math.floor((GRID_POINTS / (features.n_actions or 1)) ** (1 / d) + 1e-9)))
        lengths = [each] * d + ([] if features.n_actions is None else [features.n_actions])
    if len(lengths) != wanted or (features.n_actions is not None and lengths[-1] != features.n_actions):
        raise ValueError(f"`lengths` must have {wanted} entries, the last one of discrete actions their number, got {lengths}")
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


def evaluated(features: FeatureFunction, observations: Any, actions: Any) -> th.Tensor:
    """
    :param features: of the user's, perhaps
    :param observations: shape ``(n, ...)``
    :param actions: shape ``(n, ...)``
    :return: what they are, in float64, shape ``(n, k)``
    :raises TypeError: if they are no tensor
    :raises ValueError: if they are of another shape, or not finite
    """
    found = features(observations, actions)
    if not isinstance(found, th.Tensor):
        raise TypeError(f"`features` must return a tensor, got {type(found).__name__}")
    if found.dim() != 2 or len(found) != len(observations):
        raise ValueError(f"`features` must return the shape ({len(observations)}, k), got {tuple(found.shape)}")
    if not bool(found.isfinite().all()):
        raise ValueError("`features` returned NaN or infinite entries")
    return found.detach().double()
