"""What is saved and acts: a map of noise, the critics beside it, their slow copies, and the scalars of the flow."""

import copy
import math
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from otbaselines.common.observations import CheckedObservations
from otbaselines.common.saving.policy import JsonPolicyMixin
from otbaselines.common.settings import COUNT, Setting
from otbaselines.wfpg.checks import check_net_arch, check_widths
from otbaselines.wfpg.critics import FlowCritic
from otbaselines.wfpg.maps import FORMS, MapActor

# Among so many actions a pushforward policy chooses where it is asked for a deterministic one.
N_CANDIDATES = 10


class FlowPolicy(CheckedObservations, JsonPolicyMixin, BasePolicy):
    r"""
    A policy that is the image of noise, with stacked critics, their slow copies, and the scalars of the flow.

    :param observation_space: whatever SB3's SAC takes
    :param action_space: a bounded box
    :param lr_schedule: learning rate by remaining progress
    :param net_arch: widths for all networks, or a dictionary with ``pi`` (trunk of the actor) and ``qf`` (critics)
    :param activation_fn: between the layers
    :param policy_form: ``"pushforward"`` or ``"gaussian"``
    :param latent_dim: of a pushforward's noise; as many as actions when omitted
    :param bend_width: of the layer that a pushforward's noise passes
    :param n_critics: action values, of which the smallest counts
    :param n_candidates: among how many actions the deterministic one is chosen, the image of the mean noise and others: the
        one that the critics think best, where it is clearly better than that image. When omitted, 10 for a pushforward,
        whose modes its mean may miss, and 1 for a Gaussian
    :param keeps_metric: whether the diagonal of the metric and the last natural direction are part of the state
    :param features_extractor_class: as in SB3
    :param features_extractor_kwargs: its settings
    :param share_features_extractor: let the critics read the actor's features, which then learns them alone
    :param normalize_images: divide images by 255
    :param optimizer_class: of all optimizers
    :param optimizer_kwargs: their settings; a fused Adam when omitted
    """

    average_reward: th.Tensor
    velocity_scale: th.Tensor
    kick_std: th.Tensor
    candidate_noise: th.Tensor
    metric_diagonal: th.Tensor
    last_direction: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        policy_form: str = "pushforward",
        latent_dim: int | None = None,
        bend_width: int = 64,
        n_critics: int = 2,
        n_candidates: int | None = None,
        keeps_metric: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_policy_settings(policy_form, latent_dim, bend_width, n_critics, n_candidates)
        check_net_arch(net_arch)
        if optimizer_kwargs is None:
            optimizer_kwargs = {"fused": True} if optimizer_class is th.optim.Adam else {}
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        self.net_arch = [256, 256] if net_arch is None else list(net_arch) if isinstance(net_arch, tuple) else net_arch
        self.activation_fn, self.policy_form, self.bend_width = activation_fn, policy_form, bend_width
        self.action_dim = int(np.prod(action_space.shape))
        self.latent_dim = self.action_dim if latent_dim is None else latent_dim
        self.n_critics, self.keeps_metric = n_critics, keeps_metric
        self.n_candidates = (N_CANDIDATES if policy_form == "pushforward" else 1) if n_candidates is None else n_candidates
        self.share_features_extractor = share_features_extractor
        self._build(*get_actor_critic_arch(self.net_arch))
        self._build_optimizers(lr_schedule)

    def _build(self, actor_arch: list[int], critic_arch: list[int]) -> None:
        own = {"policy_form": self.policy_form, "latent_dim": self.latent_dim, "bend_width": self.bend_width}
        extractor = self.make_features_extractor()
        n_features, n, bend = extractor.features_dim, self.action_dim, self.bend_width * (self.policy_form == "pushforward")
        critics = [n_features + n, *critic_arch, 1]
        check_widths(
            [
                (1, [n_features, *actor_arch, 2 * n + bend]),
                (1, [self.latent_dim, bend, n]),
                (self.n_critics, critics),
            ],
            f"`net_arch`={str(self.net_arch)[:100]}, `bend_width`={self.bend_width}, `n_critics`={self.n_critics}",
        )
        self.actor = MapActor(extractor, self.action_dim, actor_arch, self.activation_fn, **own)  # type: ignore[arg-type]
        extractor = self.actor.features_extractor if self.share_features_extractor else self.make_features_extractor()
        self.critic = FlowCritic(extractor, self.action_dim, critic_arch, self.activation_fn, n_critics=self.n_critics)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_ent_coef = nn.Parameter(th.zeros(()))
        self.register_buffer("average_reward", th.zeros(()))
        self.register_buffer("velocity_scale", th.zeros(()))
        self.register_buffer("kick_std", th.zeros(()))
        noise = th.randn(self.n_candidates, self.latent_dim)
        noise[0] = 0.0
        self.register_buffer("candidate_noise", noise)
        if self.keeps_metric:
            n_parameters = sum(parameter.numel() for parameter in self.actor.parameters())
            self.register_buffer("metric_diagonal", th.zeros(n_parameters))
            self.register_buffer("last_direction", th.zeros(n_parameters))

    def _build_optimizers(self, lr_schedule: Schedule) -> None:
        self.actor_optimizer = self._optimizer(list(self.actor.parameters()), lr_schedule)
        critic = self.critic.head if self.share_features_extractor else self.critic
        self.critic_optimizer = self._optimizer(list(critic.parameters()), lr_schedule)
        self.ent_coef_optimizer = self._optimizer([self.log_ent_coef], lr_schedule)

    def _optimizer(self, parameters: list[nn.Parameter], lr_schedule: Schedule) -> th.optim.Optimizer:
        optimizer_class: Any = self.optimizer_class
        optimizer: th.optim.Optimizer = optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)
        return optimizer

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = (
            *("net_arch", "activation_fn", "policy_form", "latent_dim", "bend_width", "n_critics", "n_candidates"),
            *("keeps_metric", "features_extractor_class", "features_extractor_kwargs", "share_features_extractor"),
            *("optimizer_class", "optimizer_kwargs"),
        )
        parameters = {**super()._get_constructor_parameters(), **{name: getattr(self, name) for name in names}}
        if self.policy_form == "gaussian":
            parameters["latent_dim"] = None
        return parameters

    # ------------------------------------------------------------ reading
    def preprocess(self, observations: PyTorchObs) -> Any:
        """
        :param observations: as the environment gives them
        :return: as extractors read them
        """
        return preprocess_obs(observations, self.observation_space, normalize_images=self.normalize_images)

    def values(self, seen: Any, actions: th.Tensor) -> th.Tensor:
        """
        :param seen: preprocessed observations
        :param actions: scaled to [-1, 1], shape ``(batch, action_dim)``
        :return: of all critics, shape ``(n_critics, batch)``
        """
        return self.critic.values(self.critic_features(seen), actions)

    def critic_features(self, seen: Any) -> th.Tensor:
        """
        :param seen: preprocessed observations
        :return: what the critics read of them, shape ``(batch, n_features)``; shared features are the actor's to learn
        """
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            features: th.Tensor = self.critic.features_extractor(seen)
        return features

    def target_value(self, seen: Any, actions: th.Tensor) -> th.Tensor:
        """
        :param seen: preprocessed observations
        :param actions: scaled to [-1, 1], shape ``(batch, action_dim)``
        :return: the smallest of the slow copies' values, shape ``(batch,)``
        """
        values: th.Tensor = self.critic_target(seen, actions)
        return values.amin(0)

    @th.no_grad()
    def update_target(self, tau: float) -> None:
        """
        :param tau: how far the slow copies go towards the critics; running statistics are copied
        """
        th._foreach_lerp_(list(self.critic_target.parameters()), list(self.critic.parameters()), tau)
        for own, given in zip(self.critic_target.buffers(), self.critic.buffers(), strict=True):
            own.copy_(given)

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: whether the actor and the critics are to be trained; slow copies never are
        """
        super().set_training_mode(mode)
        self.critic_target.train(False)

    # ------------------------------------------------------------ acting
    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        seen = self.preprocess(observation)
        hidden = self.actor.hidden(seen)
        if deterministic:
            actions = self._best(seen, hidden)
        else:
            noise = th.randn(len(hidden), self.latent_dim, device=self.device)
            u = self.actor.bend(hidden, noise)
            actions = (u + self.kick_std * th.randn_like(u)).tanh()
        return actions.view(len(hidden), *(self.action_space.shape or ()))

    def _best(self, seen: Any, hidden: th.Tensor) -> th.Tensor:
        """
        The image of the mean noise, but where the critics think another of a few images better, by more than the standard
        deviation of what they say of all of them. Each observation is read once.
        """
        n, k = len(hidden), self.n_candidates
        actions: th.Tensor = self.actor.bend(hidden.repeat_interleave(k, 0), self.candidate_noise.repeat(n, 1)).tanh()
        if k == 1:
            return actions
        features = self.critic_features(seen).repeat_interleave(k, 0)
        values = self.critic.values(features, actions).amin(0).view(n, k)
        best, chosen = values.max(1)
        # Around a single mode critics differ by their errors, and the best of many is the one that they flatter most. A mean
        # between two modes is worth much less than either. This is a rule of thumb: of ten values that are noise alone, the
        # best is so far above the first in 69 of 100 cases, and of ten that bend away from the mean's in none.
        spread = (values - values.mean(1, keepdim=True)).norm(dim=1) / math.sqrt(k - 1)
        chosen = th.where(best - values[:, 0] > spread, chosen, 0)
        return actions.view(n, k, self.action_dim)[th.arange(n, device=chosen.device), chosen]

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: as the environment gives it
        :param deterministic: whether to take the best of the candidates instead of a sample
        :return: actions scaled to [-1, 1]; ``predict`` brings them to the environment's own scale
        """
        return self._predict(observation, deterministic)


class FlowCnnPolicy(FlowPolicy):
    """
    The same on images.

    :param observation_space: of the environment
    :param action_space: a bounded box
    :param lr_schedule: learning rate by remaining progress
    :param features_extractor_class: a convolutional network by default
    :param kwargs: of :class:`FlowPolicy`
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ) -> None:
        kwargs["features_extractor_class"] = features_extractor_class
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)


class FlowMultiInputPolicy(FlowPolicy):
    """
    The same on dictionaries of observations.

    :param observation_space: of the environment
    :param action_space: a bounded box
    :param lr_schedule: learning rate by remaining progress
    :param features_extractor_class: one network an entry by default
    :param kwargs: of :class:`FlowPolicy`
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, lr_schedule, **kwargs, features_extractor_class=features_extractor_class
        )


def check_policy_settings(policy_form: Any, latent_dim: Any, bend_width: Any, n_critics: Any, n_candidates: Any) -> None:
    """
    :param policy_form: as :class:`FlowPolicy` takes it, like the others
    :param latent_dim: of the noise
    :param bend_width: of the layer that it passes
    :param n_critics: of action values
    :param n_candidates: of deterministic actions
    :raises TypeError: if one is of the wrong type, or does not apply to the form
    :raises ValueError: if one is out of range
    """
    Setting("text", choices=FORMS).check("policy_form", policy_form)
    few = Setting("integer", low=1, high=1000, optional=True)
    few.check("policy_kwargs['latent_dim']", latent_dim)
    COUNT.check("policy_kwargs['bend_width']", bend_width)
    Setting("integer", low=1, high=1000).check("policy_kwargs['n_critics']", n_critics)
    few.check("policy_kwargs['n_candidates']", n_candidates)
    if policy_form == "gaussian" and latent_dim is not None:
        raise TypeError(f"`policy_kwargs['latent_dim']` applies to pushforwards only, got {latent_dim}; leave it out")
