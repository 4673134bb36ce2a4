r"""
Inverse reinforcement learning where states and actions are vectors, from sampled episodes alone, and the learned reward as an
environment that any learner takes.

The pieces are functions, which :class:`~otbaselines.fedirl.FedIRL` puts together. Paths have the density
:math:`q(\tau) \, e^{\theta^\top \sum_t \gamma^t \phi}`, with :math:`q` that of the policy which was sampled: of all laws with
these features the one of least relative entropy to :math:`q` (Boularias, Kober and Peters 2011). That is maximum entropy where
dynamics are deterministic, :math:`q` uniform, episodes of one length and :math:`\gamma = 1`. Otherwise it is another
principle: chance counts as if it could be chosen, a discount weighs rewards and not the entropy of late actions, and an
episode that ends early is not held to have had less choice.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from otbaselines.common.trajectories import Trajectory
from otbaselines.fedirl.features import FeatureFunction, RBFFeatures, evaluated
from otbaselines.fedirl.maxent import Horizon, Likelihood, MaxEntResult, ascend_bfgs, discounted_average


def feature_average(features: FeatureFunction, trajectory: Trajectory, horizon: Horizon | None = None) -> th.Tensor:
    """
    :param features: of states and actions
    :param trajectory: one episode
    :param horizon: discount and length; the plain mean over the episode's steps when omitted
    :return: their discounted average, see :func:`~otbaselines.fedirl.maxent.discounted_average`, shape ``(k,)``
    """
    rows = evaluated(features, trajectory.observations[:-1], trajectory.actions)
    return rows.mean(0) if horizon is None else discounted_average(rows, horizon, terminated=trajectory.terminated)


def sampled_likelihood(
    expert: th.Tensor, samples: th.Tensor, theta: th.Tensor, *, n_steps: float, l2: float
) -> tuple[Likelihood, th.Tensor]:
    r"""
    :math:`\theta^\top \mu_E - \frac1T \log \frac1m \sum_j e^{T \theta^\top \mu_j} - \frac\lambda2 |\theta|^2` of every client.
    Its gradient is :math:`\mu_E - \sum_j w_j \mu_j - \lambda \theta` with importance weights :math:`w`.

    :param expert: feature averages of the demonstrators, shape ``(n_clients, k)``
    :param samples: those of sampled episodes, shape ``(n_clients, m, k)``
    :param theta: shape ``(n_clients, k)``
    :param n_steps: T, the length of an episode, :math:`1 / (1 - \gamma)` of a discounted one
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
    n_steps: float,
    l2: float = 0.01,
    n_iterations: int | th.Tensor = 200,
    tol: float = 1e-8,
    init: th.Tensor | None = None,
) -> SampledResult:
    """
    Inverse reinforcement learning of every client from samples, without solving anything.

    :param expert: feature averages of the demonstrators, shape ``(n_clients, k)``
    :param samples: feature averages of episodes of one policy, shape ``(n_clients, m, k)``
    :param n_steps: length of an episode, as in :func:`sampled_likelihood`
    :param l2: the ridge, positive where the demonstrator is outside of what was sampled
    :param n_iterations: most steps, of all clients or of each, shape ``(n_clients,)``
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
    theta, done = ascend_bfgs(objective, start, th.as_tensor(n_iterations).expand(len(expert)), tol)
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
    :raises ValueError: if they are not finite, or of another length than the features
    """

    def __init__(self, env: gym.Env[Any, Any], features: FeatureFunction, theta: th.Tensor) -> None:
        super().__init__(env)
        # Of a function of the user's only a call tells the number of features.
        wanted = (len(features.centers),) if isinstance(features, RBFFeatures) else (theta.numel(),)
        if tuple(theta.shape) != wanted or not bool(theta.isfinite().all()):
            raise ValueError(f"`theta` must be finite of shape {wanted}, got {tuple(theta.shape)}")
        self._features, self._theta = features, theta
        self._last: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._last, info = self.env.reset(**kwargs)
        return self._last, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        learned = float(self._features(np.asarray(self._last)[None], np.asarray(action)[None])[0] @ self._theta)
        self._last, reward, terminated, truncated, info = self.env.step(action)
        return self._last, learned, terminated, truncated, {**info, "true_reward": float(reward)}
