"""The regulariser that QDOT replaces: a Wasserstein-1 distance that a discriminator estimates."""

import copy
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import nn

from otbaselines.common.offline.implicit_q import ImplicitQLearning
from otbaselines.common.offline.losses import expectile_loss
from otbaselines.common.offline.policies import ImplicitQPolicy
from otbaselines.common.offline.rows import OfflineBatch
from otbaselines.common.settings import Setting
from otbaselines.qdot.qdot import magnitude


class DiscriminatorPolicy(ImplicitQPolicy):
    """
    Implicit Q-learning's networks and a discriminator of actions.

    :param observation_space: a box, which is flattened
    :param action_space: a bounded box
    :param lr_schedule: learning rate by remaining progress
    :param kwargs: of :class:`~otbaselines.common.offline.policies.ImplicitQPolicy`
    """

    def __init__(self, observation_space: spaces.Box, action_space: spaces.Box, lr_schedule: Schedule, **kwargs: Any) -> None:
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build_networks(self, actor_arch: list[int], critic_arch: list[int]) -> None:
        super()._build_networks(actor_arch, critic_arch)
        self.discriminator = nn.Sequential(*create_mlp(self.obs_dim + self.action_dim, 1, critic_arch, self.activation_fn))

    def _build_optimizers(self, lr_schedule: Schedule) -> None:
        super()._build_optimizers(lr_schedule)
        self.discriminator_optimizer = self._optimizer(self.discriminator.parameters(), lr_schedule)


class AdversarialW1(ImplicitQLearning):
    r"""
    Behaviour-regularised learning with the dual form of :math:`W_1` (Wu et al. 2019), on implicit Q-learning's values.

    The actor maximises :math:`Q(s, a_\pi) / c - \alpha W_1(\pi, \beta)`, and the distance is
    :math:`\max_g E_\beta g - E_\pi g` over discriminators whose slope in the action a penalty keeps near one (Gulrajani et
    al. 2017). A reference for comparisons of stability, not part of the package.

    :param alpha: weight of the distance, as QDOT's for actions scaled to [-1, 1]
    :param gradient_penalty: of the discriminator's slopes
    :param return_share: QDOT's, whose critics it has
    :param settings: of :class:`~otbaselines.common.offline.implicit_q.ImplicitQLearning`
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "alpha": Setting("number", low=0.0),
        "gradient_penalty": Setting("number", low=0.0),
    }
    metric_names: ClassVar[tuple[str, ...]] = ("value_loss", "critic_loss", "actor_loss", "discriminator_loss", "w1", "q")
    optimizer_names: ClassVar[tuple[str, ...]] = ("optimizer", "critic_optimizer", "discriminator_optimizer")
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": DiscriminatorPolicy}
    policy: DiscriminatorPolicy

    def __init__(
        self,
        policy: str | type,
        env: GymEnv | str | None = None,
        *,
        alpha: float = 1.0,
        gradient_penalty: float = 10.0,
        return_share: float = 0.2,
        **settings: Any,
    ) -> None:
        self.alpha = alpha
        self.gradient_penalty = gradient_penalty
        super().__init__(policy, env, return_share=return_share, **settings)

    def _losses(self, batch: OfflineBatch) -> tuple[th.Tensor, th.Tensor]:
        policy = self.policy
        values, next_values = policy.value(batch.observations), self._next_values(batch)
        target_q = policy.target_value(batch.observation_actions)
        value_loss = expectile_loss(target_q - values, self.expectile)
        critic_loss = self._critic_loss(batch, next_values)
        acted = policy.act(batch.observations, th.randn_like(batch.actions))
        beside = th.cat([batch.observations, acted], 1)
        # The actor looks at a copy, so that its loss has no gradient in the discriminator.
        frozen = copy.deepcopy(policy.discriminator).requires_grad_(False)
        w1 = (frozen(batch.observation_actions) - frozen(beside)).mean()
        actor_loss = self.alpha * w1 - policy.target_value(beside).mean() / magnitude(target_q)
        discriminator_loss = self._discriminator_loss(batch, acted.detach())
        scalars = (value_loss, critic_loss, actor_loss, discriminator_loss, w1, target_q.mean())
        return value_loss + critic_loss + actor_loss + discriminator_loss, th.stack(scalars).detach()

    def _discriminator_loss(self, batch: OfflineBatch, acted: th.Tensor) -> th.Tensor:
        """The distance that it misses, and the penalty of slopes that are not one, between the two samples."""
        judge = self.policy.discriminator
        share = th.rand_like(acted[:, :1])
        between = (share * batch.actions + (1.0 - share) * acted).requires_grad_()
        judged = judge(th.cat([batch.observations, between], 1)).sum()
        slope = th.autograd.grad(judged, between, create_graph=True)[0]
        penalty = (slope.square().sum(1).add(1e-12).sqrt() - 1.0).square().mean()
        distance = judge(batch.observation_actions).mean() - judge(th.cat([batch.observations, acted], 1)).mean()
        loss: th.Tensor = self.gradient_penalty * penalty - distance
        return loss
