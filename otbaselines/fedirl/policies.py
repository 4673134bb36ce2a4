"""What of FedIRL is stored with the model: a policy that is a table, and the rewards of the federation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from otbaselines.common.observations import check_is_observation
from otbaselines.common.saving.policy import JsonPolicyMixin
from otbaselines.fedirl.features import RBFFeatures


class TabularPolicy(JsonPolicyMixin, BasePolicy):
    """
    One distribution over actions for each state; uniform until it is set.

    With a number of steps there is one for each step of an episode as well. Which step it is goes through ``predict`` as the
    memory of a recurrent policy does: what it returns as ``state`` is given back to it with the next observation, as SB3's
    ``evaluate_policy`` does. Without, every observation is taken for an episode's first.

    :param observation_space: numbers of states
    :param action_space: numbers of actions
    :param lr_schedule: part of SB3's signature; nothing is learned by gradients
    :param n_steps: of an episode, where distributions depend on the step
    """

    log_policy: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any = None,
        n_steps: int | None = None,
    ) -> None:
        del lr_schedule
        super().__init__(observation_space, action_space)
        if not isinstance(observation_space, spaces.Discrete) or not isinstance(action_space, spaces.Discrete):
            raise ValueError(f"a tabular policy needs discrete spaces, got {observation_space} and {action_space}")
        self.n_steps = n_steps
        of_steps = () if n_steps is None else (n_steps,)
        table = th.zeros(*of_steps, int(observation_space.n), int(action_space.n), dtype=th.float64)
        self.register_buffer("log_policy", table.log_softmax(-1))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {"observation_space": self.observation_space, "action_space": self.action_space, "n_steps": self.n_steps}

    def follow(self, log_policy: th.Tensor) -> None:
        """
        :param log_policy: logarithms of the distributions from now on, shape ``(S, A)``, or ``(T, S, A)`` by step
        """
        self.n_steps = len(log_policy) if log_policy.dim() == 3 else None
        self.log_policy = log_policy.to(self.log_policy.device)

    def forward(self, obs: th.Tensor, deterministic: bool = False, steps: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: numbers of states, shape ``(n,)``
        :param deterministic: whether to take the most probable action
        :param steps: of their episodes, shape ``(n,)``, where distributions depend on them; 0 when omitted
        :return: actions, shape ``(n,)``
        :raises ValueError: if a number is no state
        """
        states = obs.long().flatten()
        n_states = self.log_policy.shape[-2]
        if not bool(((states == obs.flatten()) & (states >= 0) & (states < n_states)).all()):
            raise ValueError(f"`observation` must be integers in [0, {n_states}), got {obs.flatten().tolist()[:10]}")
        if self.n_steps is None:
            logits = self.log_policy[states]
        else:
            steps = th.zeros_like(states) if steps is None else steps.clamp(max=self.n_steps - 1)
            logits = self.log_policy[steps, states]
        actions: th.Tensor = logits.argmax(-1) if deterministic else th.distributions.Categorical(logits=logits).sample()
        return actions

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return self.forward(observation, deterministic)

    def predict(
        self,
        observation: Any,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """
        :param observation: numbers of states
        :param state: what the last call returned; None at the start of an episode
        :param episode_start: where episodes have just begun, shape ``(n_envs,)``
        :param deterministic: whether to take the most probable actions
        :return: actions, and the steps that come next, shape ``(n_envs,)`` in a tuple, where distributions depend on them
        """
        if self.n_steps is None:
            return super().predict(observation, state, episode_start, deterministic)
        check_is_observation(observation)
        seen, is_batch = self.obs_to_tensor(observation)
        assert isinstance(seen, th.Tensor)
        steps = np.zeros(len(seen.flatten()), np.int64) if state is None else np.asarray(state[0], np.int64)
        if episode_start is not None:
            steps = np.where(episode_start, 0, steps)
        with th.no_grad():
            actions = self(seen, deterministic, th.as_tensor(steps, device=self.device)).cpu().numpy()
        return actions if is_batch else actions[0], (steps + 1,)


class TableReward(th.nn.Module):
    """
    Linear rewards on a table of features.

    :param n_states: number of states
    :param n_actions: number of actions
    :param n_features: number of features
    :param n_clients: whose parameters are kept
    """

    features: th.Tensor
    theta: th.Tensor
    thetas: th.Tensor

    def __init__(self, n_states: int, n_actions: int, n_features: int, n_clients: int) -> None:
        super().__init__()
        self.register_buffer("features", th.zeros(n_states, n_actions, n_features, dtype=th.float64))
        self.register_buffer("theta", th.zeros(n_features, dtype=th.float64))
        self.register_buffer("thetas", th.zeros(n_clients, n_features, dtype=th.float64))

    def forward(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param states: numbers, shape ``(n,)``
        :param actions: numbers, shape ``(n,)``
        :return: fused rewards, shape ``(n,)``
        """
        return self.features[states, actions] @ self.theta


class FeatureReward(th.nn.Module):
    """
    Linear rewards on features of vectors. Radial basis functions are stored with it; functions of the user's are not.

    :param n_features: number of features
    :param n_clients: whose parameters are kept
    :param centers: the shape of the radial basis functions' centers, None where there are none
    :param n_coordinates: of their box
    :param n_actions: discrete ones, None for vectors
    """

    theta: th.Tensor
    thetas: th.Tensor

    def __init__(
        self, n_features: int, n_clients: int, centers: tuple[int, int] | None, n_coordinates: int, n_actions: int | None
    ) -> None:
        super().__init__()
        self.register_buffer("theta", th.zeros(n_features, dtype=th.float64))
        self.register_buffer("thetas", th.zeros(n_clients, n_features, dtype=th.float64))
        self.n_actions = n_actions
        self.has_rbf = centers is not None
        if centers is not None:
            shapes = {"low": (n_coordinates,), "high": (n_coordinates,), "centers": centers, "bandwidth": ()}
            for name, shape in shapes.items():
                self.register_buffer(name, th.zeros(shape, dtype=th.float64))

    def keep(self, features: RBFFeatures) -> None:
        """
        :param features: those to be stored
        """
        for name in ("low", "high", "centers"):
            setattr(self, name, getattr(features, name).to(self.theta))
        self.bandwidth = th.tensor(features.bandwidth, dtype=th.float64).to(self.theta)

    def rbf(self) -> RBFFeatures:
        """
        :return: those that are stored, on the CPU
        """
        low, high, centers = (getattr(self, name).cpu() for name in ("low", "high", "centers"))
        return RBFFeatures(low, high, self.n_actions, centers, float(self.bandwidth))
