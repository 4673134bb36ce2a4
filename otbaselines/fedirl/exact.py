"""Clients whose worlds are finite: values and visits are exact, and all clients are solved at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.tabular import TabularModel, soft_values, soft_values_finite, stack_models
from otbaselines.fedirl.clients import Client, tabular_model_of
from otbaselines.fedirl.fusion import Support, lattice_cost
from otbaselines.fedirl.maxent import Horizon, expert_features, fit, rewards_of

#: How the end of an episode counts.
ENDS = ("absorbing", "terminal")
IRL_ITERATIONS = 200


def has_model(env: VecEnv) -> bool:
    """
    :param env: the world of the server
    :return: whether it tells its finite decision process
    """
    try:
        return isinstance(env.get_attr("tabular_model")[0], TabularModel)
    except AttributeError:
        return False


def as_counted(model: TabularModel, ends: str) -> TabularModel:
    """
    :param model: a process
    :param ends: one of :data:`ENDS`
    :return: the process in which ends count so
    """
    return model.absorbing() if ends == "absorbing" else model


def lattice_of(env: VecEnv, probe: TabularModel) -> Support:
    """
    :param env: the world of the server
    :param probe: its process
    :return: its states and actions on its ``lattice_axes``
    :raises ValueError: if it has none
    """
    try:
        lengths = [len(axis) for axis in env.get_attr("lattice_axes")[0]]
    except AttributeError:
        raise ValueError("`support` is needed where `env` has no `lattice_axes` to compare rewards on") from None
    # The last axis holds the actions, whose numbers mean nothing.
    cost = lattice_cost(lengths, categorical=[*[False] * (len(lengths) - 1), True])
    return Support(probe.features.flatten(0, 1), cost)


def soft_optimal(probe: TabularModel, theta: th.Tensor, horizon: Horizon) -> th.Tensor:
    """
    :param probe: the process of the server's world
    :param theta: parameters of the reward, shape ``(k,)``
    :param horizon: discount and length
    :return: logarithms of the soft-optimal policy, shape ``(S, A)``; with a horizon one for each step, ``(T, S, A)``
    """
    rewards = rewards_of(probe, theta)
    if horizon.n_steps is None:
        return soft_values(probe, rewards, discount=horizon.discount).log_policy
    return soft_values_finite(probe, rewards, horizon=horizon.n_steps, discount=horizon.discount).log_policy


class ExactClients:
    """
    Inverse reinforcement learning of all clients by linear algebra.

    :param clients: who takes part
    :param names: what to call them
    :param horizon: discount and length
    :param ends: one of :data:`ENDS`
    :param l2: the ridge
    :param n_iterations: most steps of each client in a round
    :param learning_rate: of plain gradient ascent; BFGS when omitted
    :param tol: largest entry of the gradient at which a client is done
    """

    def __init__(
        self,
        clients: Sequence[Client],
        names: Sequence[str],
        *,
        horizon: Horizon,
        ends: str,
        l2: float,
        n_iterations: Sequence[int],
        learning_rate: float | None,
        tol: float,
    ) -> None:
        models = [as_counted(tabular_model_of(each.env, name), ends) for each, name in zip(clients, names, strict=True)]
        self.models = stack_models(models)
        self.expert = th.stack(
            [expert_features(model, each.demonstrations, horizon) for model, each in zip(models, clients, strict=True)]
        )
        self._horizon, self._l2, self._learning_rate, self._tol = horizon, l2, learning_rate, tol
        self._n_iterations = th.tensor(list(n_iterations))

    def learn(self, start: th.Tensor, logger: Logger) -> th.Tensor:
        """
        One round.

        :param start: parameters to start from, shape ``(n_clients, k)``
        :param logger: takes what is to be logged
        :return: what the clients send, shape ``(n_clients, k)``
        """
        found = fit(
            self.models,
            self.expert,
            horizon=self._horizon,
            l2=self._l2,
            n_iterations=self._n_iterations,
            tol=self._tol,
            learning_rate=self._learning_rate,
            init=start,
        )
        logger.record("irl/feature_gap", float((found.expert_features - found.policy_features).abs().max()))
        logger.record("irl/gradient", float(found.error.max()))
        logger.record("irl/iterations", float(found.n_iter.double().mean()))
        return found.theta
