"""Clients whose states and actions are vectors: what a policy does is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor
from tqdm import tqdm

from otbaselines.fedirl.clients import Client
from otbaselines.fedirl.continuous import feature_average, fit_sampled
from otbaselines.fedirl.features import FeatureFunction
from otbaselines.fedirl.learners import PayingVecEnv, forget_returns, normalizing, pay_again
from otbaselines.fedirl.maxent import Horizon

#: Where a policy's features come from.
POLICY_FEATURES = ("learner", "samples")
#: Steps of inverse reinforcement learning, with a learner and with samples, where the user gives no number.
IRL_ITERATIONS = {"learner": 50, "samples": 200}
#: Steps in a client's environment: of each iteration with a learner, of all with samples.
IRL_TIMESTEPS = {"learner": 2048, "samples": 20_000}
#: Of the parameters' ascent beside a learner, which knows no line search.
LEARNING_RATE = 0.5


def watched(env: gym.Env | VecEnv, features: FeatureFunction, horizon: Horizon) -> PayingVecEnv:
    """
    :param env: of a client
    :param features: of states and actions
    :param horizon: of feature averages
    :return: the environment as learners take it, which pays and remembers
    """
    copies = VecMonitor(env) if isinstance(env, VecEnv) else DummyVecEnv([lambda: Monitor(env)])
    paying = PayingVecEnv(copies, features, horizon)
    paying.remembers = True
    return paying


class SampledClients:
    """
    Inverse reinforcement learning from what policies do in the clients' environments.

    :param clients: who takes part
    :param features: of states and actions
    :param horizon: discount and length of feature averages
    :param l2: the ridge
    :param n_iterations: most steps of each client in a round
    :param tol: largest entry of the gradient at which a client is done
    :param n_timesteps: steps in a client's environment, see :data:`IRL_TIMESTEPS`
    :param seeds: of the clients' environments
    """

    def __init__(
        self,
        clients: Sequence[Client],
        features: FeatureFunction,
        *,
        horizon: Horizon,
        l2: float,
        n_iterations: Sequence[int],
        tol: float,
        n_timesteps: int,
        seeds: Sequence[int],
    ) -> None:
        self._horizon, self._l2, self._tol, self._n_timesteps = horizon, l2, tol, n_timesteps
        self._n_iterations, self._seeds = th.tensor(list(n_iterations)), seeds
        #: Steps of inverse reinforcement learning in all rounds: where the log is.
        self.n_steps = 0
        self._envs = [watched(each.env, features, horizon) for each in clients]
        self.expert = th.stack(
            [
                th.stack([feature_average(features, episode, horizon) for episode in each.demonstrations]).mean(0)
                for each in clients
            ]
        )


class LearningClients(SampledClients):
    r"""
    Each client's learner follows its reward, and the reward what the learner does:
    :math:`\theta \leftarrow \theta + \eta (\mu_E - \mu_\pi - \lambda \theta)`, where :math:`\mu_\pi` is that of the episodes
    which the learner has just learned from.

    :param make: makes the learner of a client, of its environment and its number
    :param learning_rate: :math:`\eta`
    :param normalize: whether learners are paid in units of their returns' standard deviation
    """

    def __init__(
        self,
        clients: Sequence[Client],
        features: FeatureFunction,
        *,
        make: Callable[[VecEnv, int], BaseAlgorithm],
        learning_rate: float,
        normalize: bool,
        horizon: Horizon,
        l2: float,
        n_iterations: Sequence[int],
        tol: float,
        n_timesteps: int,
        seeds: Sequence[int],
    ) -> None:
        super().__init__(
            clients,
            features,
            horizon=horizon,
            l2=l2,
            n_iterations=n_iterations,
            tol=tol,
            n_timesteps=n_timesteps,
            seeds=seeds,
        )
        self._learning_rate = learning_rate
        self.learners = []
        for paying, seed in zip(self._envs, seeds, strict=True):
            learner = make(normalizing(paying, horizon.discount) if normalize else paying, seed)
            learner.set_logger(Logger(None, []))
            self.learners.append(learner)

    def learn(self, start: th.Tensor, logger: Logger, *, progress_bar: bool = False) -> th.Tensor:
        """
        One round, in which the clients take turns.

        :param start: parameters to start from, shape ``(n_clients, k)``
        :param logger: takes what is to be logged, after every iteration of all
        :param progress_bar: whether to show a bar that counts iterations
        :return: what the clients send, shape ``(n_clients, k)``
        """
        thetas, done = start.clone(), self._n_iterations <= 0
        gaps, steps = th.zeros(len(thetas)), th.zeros(len(thetas))
        for iteration in tqdm(range(int(self._n_iterations.max())), desc="clients", disable=not progress_bar):
            for place in (~done).nonzero().flatten().tolist():
                gap = self.expert[place] - self._followed(place, thetas[place])
                gradient = gap - self._l2 * thetas[place]
                gaps[place], steps[place] = gap.abs().max(), float(gradient.abs().max())
                done[place] = bool(steps[place] <= self._tol) or iteration + 1 >= self._n_iterations[place]
                if steps[place] > self._tol:
                    thetas[place] += self._learning_rate * gradient
            logger.record("irl/feature_gap", float(gaps.max()))
            logger.record("irl/gradient", float(steps.max()))
            logger.record("irl/iterations", iteration + 1)
            self.n_steps += 1
            logger.dump(step=self.n_steps)
            if bool(done.all()):
                break
        return thetas

    def _followed(self, place: int, theta: th.Tensor) -> th.Tensor:
        """Let a client's learner follow a reward, and tell the features of what it did."""
        paying, learner = self._envs[place], self.learners[place]
        paying.theta = theta.clone()
        assert learner.env is not None
        forget_returns(learner.env)
        pay_again(learner, paying.features, paying.theta)
        learner.learn(self._n_timesteps, reset_num_timesteps=False)
        return paying.feature_averages().mean(0)


class RandomClients(SampledClients):
    """Importance-weighted episodes of uniformly random actions, drawn once: see :mod:`~otbaselines.fedirl.continuous`."""

    def learn(self, start: th.Tensor, logger: Logger, *, progress_bar: bool = False) -> th.Tensor:
        """
        One round.

        :param start: parameters to start from, shape ``(n_clients, k)``
        :param logger: takes what is to be logged
        :param progress_bar: whether to show a bar that counts clients
        :return: what the clients send, shape ``(n_clients, k)``
        """
        places = tqdm(range(len(self._envs)), desc="clients", disable=not progress_bar)
        drawn = [self._episodes(place) for place in places]
        n = min(map(len, drawn))
        samples = th.stack([each[:n] for each in drawn])
        if self._horizon.n_steps is None:
            length = 1.0 / (1.0 - self._horizon.discount)
        else:
            length = float(self._horizon.n_steps)
        found = fit_sampled(
            self.expert, samples, n_steps=length, l2=self._l2, n_iterations=self._n_iterations, tol=self._tol, init=start
        )
        gap = found.fit.expert_features - found.fit.policy_features
        logger.record("irl/feature_gap", float(gap.abs().max()))
        logger.record("irl/gradient", float(found.fit.error.max()))
        logger.record("irl/iterations", float(found.fit.n_iter.double().mean()))
        logger.record("irl/effective_samples", float(found.effective_samples.min()))
        self.n_steps += 1
        return found.fit.theta

    def _episodes(self, place: int) -> th.Tensor:
        """Feature averages of a client's episodes, shape ``(m, k)``; the last one may be cut off."""
        averages: list[th.Tensor] = []
        env, n_steps = self._envs[place], 0
        env.seed(self._seeds[place])
        env.action_space.seed(self._seeds[place])
        env.reset()
        while n_steps < self._n_timesteps or not averages:
            _, _, dones, _ = env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))
            n_steps += env.num_envs
            if dones.any():
                averages.extend(env.feature_averages())
        return th.stack(averages)
