"""Clients whose worlds are finite: values and visits are exact, and all clients are solved at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.tabular import TabularModel, soft_values, soft_values_finite, stack_models
from otbaselines.common.vec_env.layout import first_attribute
from otbaselines.fedirl.clients import Client, tabular_model_of
from otbaselines.fedirl.fusion import Support, lattice_cost
from otbaselines.fedirl.maxent import Horizon, MaxEntResult, expert_features, fit, likelihood, rewards_of

#: How the end of an episode counts.
ENDS = ("absorbing", "terminal")
IRL_ITERATIONS = 200
#: Range of a reward, in the unit of entropy, beyond which its soft-optimal policy has long been deterministic to the last bit.
LARGEST_RANGE = 1e6


def has_model(env: VecEnv) -> bool:
    """
    :param env: the world of the server
    :return: whether it tells its finite decision process
    """
    return isinstance(first_attribute(env, "tabular_model"), TabularModel)


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
        lengths = [len(axis) for axis in first_attribute(env, "lattice_axes")]
    except TypeError:
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
        self._names = list(names)
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
        self._warn_of_divergence(start, found)
        logger.record("irl/feature_gap", float((found.expert_features - found.policy_features).abs().max()))
        logger.record("irl/gradient", float(found.error.max()))
        logger.record("irl/iterations", float(found.n_iter.double().mean()))
        return found.theta

    def _warn_of_divergence(self, start: th.Tensor, found: MaxEntResult) -> None:
        """Steps that did not lead to where they should; that they were too few is no reason."""
        rewards = rewards_of(self.models, found.theta).flatten(1)
        # Comparisons with NaN are false.
        endless = ~(rewards.amax(1) - rewards.amin(1) <= LARGEST_RANGE)
        grown = th.zeros_like(endless)
        if self._learning_rate is not None:
            before = likelihood(self.models, self.expert, start.to(self.expert), horizon=self._horizon, l2=self._l2)
            # The largest entry of a gradient may go up a little on the way down.
            grown = ~(found.error <= 2 * before.gradient.abs().amax(-1)) & ~found.converged
        for place, name in enumerate(self._names):
            if bool(grown[place]):
                problem, remedy = "its gradient has grown", "lower `irl_learning_rate`"
            elif bool(endless[place]):
                problem, remedy = f"its reward has a range beyond {LARGEST_RANGE:g}", "raise `l2`, or show errors too"
            else:
                continue
            warnings.warn(
                f"the inverse reinforcement learning of {name} has not converged: {problem}; {remedy}",
                RuntimeWarning,
                stacklevel=3,
            )
