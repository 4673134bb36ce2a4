"""Policies of learners on data: a Gaussian actor with a bounded mean, and critics beside it."""

import copy
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import create_mlp, get_actor_critic_arch
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from otbaselines.common.networks.layers import StackedLinear, StackedMLP
from otbaselines.common.observations import CheckedObservations
from otbaselines.common.saving.policy import JsonPolicyMixin
from otbaselines.common.settings import Setting

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


class StackedCritic(nn.Module):
    """
    Several action values of one architecture, evaluated by one batched product a layer.

    :param n_critics: how many
    :param in_features: of an observation beside an action
    :param net_arch: widths of the hidden layers
    :param activation_fn: between them
    """

    def __init__(self, n_critics: int, in_features: int, net_arch: list[int], activation_fn: type[nn.Module]) -> None:
        super().__init__()
        self.n_critics = n_critics
        self.body = StackedMLP(n_critics, in_features, net_arch, activation_fn)
        self.head = StackedLinear(n_critics, self.body.out_features, 1)

    def forward(self, observation_actions: th.Tensor) -> th.Tensor:
        """
        :param observation_actions: shape ``(batch, in_features)``
        :return: shape ``(n_critics, batch)``
        """
        values: th.Tensor = self.head(self.body(observation_actions.expand(self.n_critics, -1, -1)))
        return values.squeeze(-1)


def log_density(mean: th.Tensor, log_std: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """
    :param mean: of a normal distribution, shape ``(..., action_dim)``
    :param log_std: of every dimension, kept in [-5, 2], of a shape that goes with it
    :param actions: likewise
    :return: log-densities, shape ``(...)``
    """
    log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
    squares = (actions - mean).square()
    constant = log_std.sum(-1) + 0.5 * actions.shape[-1] * float(np.log(2.0 * np.pi))
    densities: th.Tensor = -0.5 * (squares * (-2.0 * log_std).exp()).sum(-1) - constant
    return densities


class OfflineActorPolicy(CheckedObservations, JsonPolicyMixin, BasePolicy):
    r"""
    An actor :math:`N(\tanh m(s), \sigma)` on actions scaled to [-1, 1], with a standard deviation that no state changes.

    Observations are normalised inside, with statistics that are saved with the parameters.

    :param observation_space: a box, which is flattened
    :param action_space: a bounded box
    :param lr_schedule: learning rate by remaining progress
    :param net_arch: widths for all networks, or a dictionary with ``pi`` (actor) and ``qf`` (critics)
    :param activation_fn: between the layers
    :param log_std_init: logarithm of the standard deviation at the start, kept in [-5, 2]
    :param optimizer_class: of all optimizers
    :param optimizer_kwargs: their settings; a fused Adam when omitted
    :raises ValueError: if a space is none of these
    """

    observation_mean: th.Tensor
    observation_std: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        log_std_init: float = 0.0,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_spaces(observation_space, action_space)
        if optimizer_kwargs is None:
            optimizer_kwargs = {"fused": True} if optimizer_class is th.optim.Adam else {}
        super().__init__(
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        self.net_arch = [256, 256] if net_arch is None else net_arch
        self.activation_fn, self.log_std_init = activation_fn, log_std_init
        self.obs_dim, self.action_dim = (int(np.prod(space.shape)) for space in (observation_space, action_space))
        self.register_buffer("observation_mean", th.zeros(self.obs_dim))
        self.register_buffer("observation_std", th.ones(self.obs_dim))
        if isinstance(self.net_arch, dict) and not {"pi", "qf"} <= self.net_arch.keys():
            raise ValueError(
                f"`policy_kwargs['net_arch']`={self.net_arch} must have widths for 'pi', the actor, and for 'qf', the "
                "critics; a list of widths is for all"
            )
        self._build_networks(*get_actor_critic_arch(self.net_arch))
        self._build_optimizers(lr_schedule)

    def _build_networks(self, actor_arch: list[int], critic_arch: list[int]) -> None:
        """The actor first, so that equal seeds give equal actors whatever stands beside them."""
        del critic_arch
        self.actor = nn.Sequential(*self._layers(self.action_dim, actor_arch), nn.Tanh())
        self.log_std = nn.Parameter(th.full((self.action_dim,), float(self.log_std_init)))

    def _layers(self, out_features: int, net_arch: list[int]) -> list[nn.Module]:
        return create_mlp(self.obs_dim, out_features, net_arch, self.activation_fn)

    def _build_optimizers(self, lr_schedule: Schedule) -> None:
        self.optimizer = self._optimizer([*self.actor.parameters(), self.log_std], lr_schedule)

    def _optimizer(self, parameters: Any, lr_schedule: Schedule) -> th.optim.Optimizer:
        optimizer_class: Any = self.optimizer_class
        optimizer: th.optim.Optimizer = optimizer_class(list(parameters), lr=lr_schedule(1), **self.optimizer_kwargs)
        return optimizer

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "log_std_init": self.log_std_init,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    # ------------------------------------------------------------ acting
    def normalize(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: as the environment gives them, shape ``(batch, *obs_shape)``
        :return: as the networks read them, shape ``(batch, obs_dim)``
        """
        return (observations.flatten(1).float() - self.observation_mean) / self.observation_std

    def _std(self) -> th.Tensor:
        return self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()

    def log_prob(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param observations: normalised, shape ``(batch, obs_dim)``
        :param actions: scaled to [-1, 1], shape ``(batch, action_dim)``
        :return: log-densities on the scaled actions, shape ``(batch,)``
        """
        return log_density(self.actor(observations), self.log_std, actions)

    def act(self, observations: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        """
        :param observations: normalised, shape ``(batch, obs_dim)``
        :param noise: standard normal, shape ``(batch, action_dim)``; None for the most probable action
        :return: actions scaled to [-1, 1], shape ``(batch, action_dim)``
        """
        mean: th.Tensor = self.actor(observations)
        return mean if noise is None else (mean + self._std() * noise).clamp(-1.0, 1.0)

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        seen = self.normalize(observation)
        noise = None if deterministic else th.randn(len(seen), self.action_dim, device=seen.device)
        shape: Any = self.action_space.shape
        return self.act(seen, noise).view(-1, *shape)

    def forward(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: as the environment gives it
        :param deterministic: whether to take the most probable action
        :return: actions scaled to [-1, 1]; ``predict`` brings them to the environment's own scale
        """
        return self._predict(observation, deterministic)


class ImplicitQPolicy(OfflineActorPolicy):
    """
    The actor, twin action values with a slow copy, and a state value.

    :param observation_space: a box, which is flattened
    :param action_space: a bounded box
    :param lr_schedule: learning rate by remaining progress
    :param n_critics: action values, of whose slow copies the smallest counts
    :param kwargs: of :class:`OfflineActorPolicy`
    """

    reward_factor: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        n_critics: int = 2,
        **kwargs: Any,
    ) -> None:
        Setting("integer", low=1, high=1000).check("policy_kwargs['n_critics']", n_critics)
        self.n_critics = n_critics
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build_networks(self, actor_arch: list[int], critic_arch: list[int]) -> None:
        super()._build_networks(actor_arch, critic_arch)
        self.register_buffer("reward_factor", th.ones(()))
        width = self.obs_dim + self.action_dim
        self.critic = StackedCritic(self.n_critics, width, critic_arch, self.activation_fn)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.value_net = nn.Sequential(*self._layers(1, critic_arch))

    def _build_optimizers(self, lr_schedule: Schedule) -> None:
        super()._build_optimizers(lr_schedule)
        self.critic_optimizer = self._optimizer([*self.critic.parameters(), *self.value_net.parameters()], lr_schedule)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "n_critics": self.n_critics}

    def value(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: normalised, shape ``(batch, obs_dim)``
        :return: :math:`V(s)`, in the unit of the scaled returns, shape ``(batch,)``
        """
        values: th.Tensor = self.value_net(observations)
        return values.squeeze(-1)

    def target_value(self, observation_actions: th.Tensor) -> th.Tensor:
        """
        :param observation_actions: shape ``(batch, obs_dim + action_dim)``
        :return: the smallest of the slow copies' action values, shape ``(batch,)``
        """
        return self.target_values(observation_actions).amin(0)

    def target_values(self, observation_actions: th.Tensor) -> th.Tensor:
        """
        :param observation_actions: shape ``(batch, obs_dim + action_dim)``
        :return: every slow copy's action values, shape ``(n_critics, batch)``
        """
        values: th.Tensor = self.critic_target(observation_actions)
        return values

    def update_target(self, tau: float) -> None:
        """
        :param tau: how far the slow copies go towards the critics
        """
        th._foreach_lerp_(list(self.critic_target.parameters()), [p.detach() for p in self.critic.parameters()], tau)


def check_spaces(observation_space: Any, action_space: Any) -> None:
    """
    :param observation_space: of an environment or dataset
    :param action_space: likewise
    :raises ValueError: if these learners cannot take one
    """
    if not isinstance(observation_space, spaces.Box):
        raise ValueError(
            f"learners on data take Box observations, but the observation space is {observation_space}; flatten it, for "
            "example with gymnasium.wrappers.FlattenObservation"
        )
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"learners on data take actions in a Box, but the action space is {action_space}")
    if th.get_default_dtype() not in (th.float32, th.float64):
        raise ValueError(
            f"learners on data compute in single precision, but torch makes its tensors of {th.get_default_dtype()}; call "
            "`torch.set_default_dtype(torch.float32)` first"
        )
    for name, space in (("observation", observation_space), ("action", action_space)):
        if not space.shape or 0 in space.shape:
            raise ValueError(
                f"learners on data need {name}s of one dimension at least, but the {name} space is {space}; a single number "
                "is a vector of length 1"
            )
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise ValueError(
            f"learners on data scale actions by their box, but the action space {action_space} is not bounded on all sides; "
            "bound it, for example with gymnasium.wrappers.RescaleAction"
        )
    if not (action_space.low < action_space.high).all():
        raise ValueError(
            f"learners on data scale actions by their box, but the action space {action_space} has a dimension with a single "
            "value; leave that dimension out"
        )
