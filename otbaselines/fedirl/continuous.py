r"""
The same method where states and actions are vectors: features on a grid, a likelihood from samples, and the fused reward as
an environment that any learner takes.

The pieces are functions; with :func:`~otbaselines.fedirl.fusion.aggregate` between them they are the whole method. Paths have
the density :math:`q(\tau) \, e^{\theta^\top \sum_t \phi}`, with :math:`q` that of the policy which was sampled
(Boularias, Kober and Peters 2011): for dynamics that are deterministic and :math:`q` uniform this is maximum entropy, and
otherwise an approximation that treats chance as if it could be chosen.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from scipy.stats import qmc

from otbaselines.common.trajectories import Trajectory
from otbaselines.fedirl.fusion import Support, lattice_cost
from otbaselines.fedirl.maxent import Likelihood, MaxEntResult, ascend_bfgs


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
    """

    low: th.Tensor
    high: th.Tensor
    n_actions: int | None
    centers: th.Tensor
    bandwidth: float

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


def lattice_support(features: RBFFeatures, lengths: Sequence[int]) -> Support:
    """
    A regular grid over the box of the features, on which rewards are compared.

    :param features: whose box is covered
    :param lengths: points along each coordinate of observation and action; the number of actions last where they are discrete
    :return: features and cost; distances are counted in steps of the grid
    :raises ValueError: if there are not as many lengths as coordinates
    """
    d = len(features.low)
    wanted = d if features.n_actions is None else d + 1
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


def feature_average(features: RBFFeatures, trajectory: Trajectory) -> th.Tensor:
    """
    :param features: of states and actions
    :param trajectory: one episode
    :return: their mean over its steps, shape ``(k,)``
    """
    return features(trajectory.observations[:-1], trajectory.actions).mean(0)


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


# ---------------------------------------------------------------- learning from samples


def sampled_likelihood(
    expert: th.Tensor, samples: th.Tensor, theta: th.Tensor, *, n_steps: int, l2: float
) -> tuple[Likelihood, th.Tensor]:
    r"""
    :math:`\theta^\top \mu_E - \frac1T \log \frac1m \sum_j e^{T \theta^\top \mu_j} - \frac\lambda2 |\theta|^2` of every client.
    Its gradient is :math:`\mu_E - \sum_j w_j \mu_j - \lambda \theta` with importance weights :math:`w`.

    :param expert: feature averages of the demonstrators, shape ``(n_clients, k)``
    :param samples: those of sampled episodes, shape ``(n_clients, m, k)``
    :param theta: shape ``(n_clients, k)``
    :param n_steps: T, the length of an episode
    :param l2: the ridge
    :return: the objective, and the effective number of samples, shape ``(n_clients,)``
    """
    scores = n_steps * (samples @ theta.unsqueeze(-1)).squeeze(-1)
    weights = scores.softmax(-1)
    policy = (weights.unsqueeze(-1) * samples).sum(-2)
    start = (scores.logsumexp(-1) - np.log(samples.shape[1])) / n_steps
    value = (theta * expert).sum(-1) - start - 0.5 * l2 * theta.square().sum(-1)
    found = Likelihood(value, expert - policy - l2 * theta, policy, weights)
    return found, 1.0 / weights.square().sum(-1)


@dataclass(frozen=True)
class SampledResult:
    """
    :param fit: parameters, and how the ascent stopped
    :param effective_samples: how many samples bear the policy's features, shape ``(n_clients,)``; near one they say nothing
    """

    fit: MaxEntResult
    effective_samples: th.Tensor


def fit_sampled(
    expert: th.Tensor,
    samples: th.Tensor,
    *,
    n_steps: int,
    l2: float = 0.01,
    n_iterations: int = 200,
    tol: float = 1e-8,
    init: th.Tensor | None = None,
) -> SampledResult:
    """
    Inverse reinforcement learning of every client from samples, without solving anything.

    :param expert: feature averages of the demonstrators, shape ``(n_clients, k)``
    :param samples: feature averages of episodes of one policy, shape ``(n_clients, m, k)``
    :param n_steps: length of an episode
    :param l2: the ridge, positive where the demonstrator is outside of what was sampled
    :param n_iterations: most steps
    :param tol: largest entry of the gradient at which a client is done
    :param init: parameters to start from; zeros when omitted
    :return: the parameters, and how many samples they rest on; a warning says where these are fewer than two
    :raises ValueError: if shapes disagree, or an entry is not finite
    """
    if samples.dim() != 3 or expert.shape != (samples.shape[0], samples.shape[2]):
        raise ValueError(
            f"`samples` must be (n_clients, m, k) and `expert` (n_clients, k), got {tuple(samples.shape)} and "
            f"{tuple(expert.shape)}"
        )
    if not bool(expert.isfinite().all()) or not bool(samples.isfinite().all()):
        raise ValueError("`expert` or `samples` hold NaN or infinite entries")

    def objective(theta: th.Tensor) -> Likelihood:
        return sampled_likelihood(expert, samples, theta, n_steps=n_steps, l2=l2)[0]

    start = th.zeros_like(expert) if init is None else init
    theta, done = ascend_bfgs(objective, start, th.full((len(expert),), n_iterations), tol)
    end, effective = sampled_likelihood(expert, samples, theta, n_steps=n_steps, l2=l2)
    error = end.gradient.abs().amax(-1)
    if bool((effective < 2).any()):
        warnings.warn(
            f"the policy's features rest on {float(effective.min()):.1f} effective samples; raise `l2`, or sample from a "
            "policy closer to the demonstrator's",
            UserWarning,
            stacklevel=2,
        )
    found = MaxEntResult(theta, expert, end.policy_features, done, error, error <= tol)
    return SampledResult(found, effective)


class FusedRewardEnv(gym.Wrapper[Any, Any, Any, Any]):
    """
    An environment that pays a learned reward; ``info["true_reward"]`` has its own.

    :param env: the environment
    :param features: of states and actions
    :param theta: parameters, shape ``(k,)``
    """

    def __init__(self, env: gym.Env[Any, Any], features: RBFFeatures, theta: th.Tensor) -> None:
        super().__init__(env)
        if tuple(theta.shape) != (len(features.centers),) or not bool(theta.isfinite().all()):
            raise ValueError(f"`theta` must be finite of shape {(len(features.centers),)}, got {tuple(theta.shape)}")
        self._features, self._theta = features, theta
        self._last: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._last, info = self.env.reset(**kwargs)
        return self._last, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        learned = float(self._features(np.asarray(self._last)[None], np.asarray(action)[None])[0] @ self._theta)
        self._last, reward, terminated, truncated, info = self.env.step(action)
        return self._last, learned, terminated, truncated, {**info, "true_reward": float(reward)}
