"""Policies of WMATRPO: actors, a critic of the state with its target, and critics of the state and the joint action."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import polyak_update
from torch import nn

from otbaselines.common.memory import check_networks
from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy
from otbaselines.wmatrpo.actions import own_bounds
from otbaselines.wmatrpo.joint_critic import JointCritics

DEFAULT_HIDDEN = [64, 64]


class JointCriticPolicy(MultiAgentActorCriticPolicy):
    """
    The actors and the central critic of a team, with a target of the latter, and critics of the joint action.

    :param n_joint_critics: critics of the joint action in the ensemble
    :param prior_scale: of the random networks that are added to them, in the unit of the returns' standard deviation
    """

    belongs_to = "WMATRPO"
    own_bounds: th.Tensor

    def __init__(self, *args: Any, n_joint_critics: int = 1, prior_scale: float = 0.0, **kwargs: Any) -> None:
        self.prior_scale = prior_scale
        self.n_joint_critics = n_joint_critics
        super().__init__(*args, **{"critic": "central", **kwargs})

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        extractor: Any = self.vf_extractors[0]
        width = self._critic_width(int(extractor.features_dim) + (0 if self.agent_ids is None else self.n_agents))
        arch = self.net_arch["vf"] or DEFAULT_HIDDEN
        read = width + self.n_agents * self._action_width()
        # Networks, random ones beside them where there is a prior, and the target.
        copies = self.n_joint_critics * (2 if self.prior_scale > 0.0 else 1)
        check_networks([(copies, (read, *arch, 1)), (1, (width, *arch, self.n_agents))], self.net_arch, self.observation_space)
        self.joint_critics = JointCritics(
            self.n_joint_critics,
            width,
            self.n_agents,
            self._action_width(),
            arch,
            self.activation_fn,
            prior_scale=self.prior_scale,
        )
        online = {"extractors": self.vf_extractors, "vf_net": self.vf_net, "value_net": self.value_net}
        self.target = nn.ModuleDict(deepcopy(online)).requires_grad_(False)
        if isinstance(self.action_space, spaces.Box):
            own = [self.layout.agent_action_spaces[agent] for agent in self.layout.possible_agents]
            bounds = own_bounds(own, self.action_space, self.action_net.weight.device)
            # Of the spaces, which are saved.
            self.register_buffer("own_bounds", bounds, persistent=False)
        self.optimizer = self.make_optimizer(self.parameters(), lr_schedule(1))

    def _action_width(self) -> int:
        space = self.action_space
        return int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))

    def _critic_modules(self) -> list[nn.Module]:
        # The optimizer is made twice, the first time before these are there.
        added = [getattr(self, name) for name in ("joint_critics", "target") if hasattr(self, name)]
        return [*super()._critic_modules(), *added]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "n_joint_critics": self.n_joint_critics,
            "prior_scale": self.prior_scale,
        }

    def team_values(self, obs: PyTorchObs, states: th.Tensor | None = None) -> th.Tensor:
        """
        The target's values, from which returns are made (Salgarkar and Baheri 2025, Eq. 19).

        :param obs: shape ``(batch, n_agents, ...)``
        :param states: of the teams, shape ``(batch, state_dim)``, where the critic reads them
        :return: shape ``(batch, n_agents)``
        """
        extractors: Any = self.target["extractors"]
        features = None if self.state_space is not None else self._agent_features(obs, extractors)
        read = self._critic_features(obs, states, features)
        values: th.Tensor = self.target["value_net"](self.target["vf_net"](read))
        return values.squeeze(0)

    def online_values(self, obs: PyTorchObs, states: th.Tensor | None = None) -> th.Tensor:
        """
        The values that are being fitted.

        :param obs: shape ``(batch, n_agents, ...)``
        :param states: of the teams, shape ``(batch, state_dim)``, where the critic reads them
        :return: shape ``(batch, n_agents)``
        """
        return super().team_values(obs, states)

    @th.no_grad()
    def critic_inputs(self, obs: PyTorchObs, states: th.Tensor | None) -> th.Tensor:
        """
        What the joint critics read of the state.

        :param obs: shape ``(batch, n_agents, ...)``
        :param states: of the teams, shape ``(batch, state_dim)``, where the critic reads them
        :return: shape ``(batch, width)``
        """
        return self._critic_features(obs, states).squeeze(0).to(self.action_net.weight.dtype)

    def box_bounds(self) -> tuple[th.Tensor, th.Tensor]:
        """:return: the ends of the team's box in the precision of the networks, shape ``(action_dim,)`` each"""
        dtype = self.action_net.weight.dtype
        return self.action_low.flatten().to(dtype), self.action_high.flatten().to(dtype)

    def as_played(self, actions: th.Tensor, agents: slice) -> th.Tensor:
        """
        :param actions: of some agents, shape ``(..., n_some, action_dim)``, or numbers of choices ``(..., n_some)``
        :param agents: their numbers
        :return: the same, vectors clipped to the agents' own boxes, as environments do
        """
        if isinstance(self.action_space, spaces.Discrete):
            return actions
        low, high = self.own_bounds[:, agents].to(actions.dtype)
        return th.minimum(th.maximum(actions, low), high)

    def encode_actions(self, actions: th.Tensor) -> th.Tensor:
        """
        Actions as the joint critics read them: one-hot, or clipped to the box and scaled to [-1, 1].

        :param actions: numbers of actions ``(...)``, or vectors ``(..., action_dim)``
        :return: shape ``(..., action_width)``
        """
        if isinstance(self.action_space, spaces.Discrete):
            return nn.functional.one_hot(actions.long(), int(self.action_space.n)).to(self.action_net.weight.dtype)
        low, high = self.box_bounds()
        actions = actions.to(low.dtype)
        return 2.0 * (actions.clamp(low, high) - low) / (high - low) - 1.0

    def update_target(self, tau: float) -> None:
        """
        :param tau: share of the online parameters in the new target
        """
        online = [self.vf_extractors, self.vf_net, self.value_net]
        parameters = [parameter for module in online for parameter in module.parameters()]
        polyak_update(parameters, list(self.target.parameters()), tau)


class JointCriticCnnPolicy(JointCriticPolicy):
    """On images: ``NatureCNN`` features by default."""

    reads = "image"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": NatureCNN, **kwargs})


class JointCriticMultiInputPolicy(JointCriticPolicy):
    """On dict observations: ``CombinedExtractor`` features by default."""

    reads = "dict"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": CombinedExtractor, **kwargs})
