"""SB3's own policy classes for a team of one, or for agents that share one set of parameters: there a row is a row."""

import inspect
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from otbaselines.common.multi_agent.row_policy import TeamActionEvaluation, TeamPolicy, box_actions
from otbaselines.common.vec_env.layout import TeamLayout


def check_policy_class(
    policy_class: type, layout: TeamLayout, action_space: spaces.Space[Any], *, share_parameters: bool, critic: str
) -> bool:
    """
    Refuse a class that cannot serve the team.

    :param policy_class: what the user chose
    :param layout: the team
    :param action_space: the team's common action space
    :param share_parameters: whether all agents use one set of parameters
    :param critic: whom the values come from
    :return: whether it is one of SB3's, which :class:`SB3TeamPolicy` makes a team's policy
    :raises ValueError: if it does not fit; names the class and says what to do
    """
    if issubclass(policy_class, TeamPolicy):
        return False
    name = f"`policy` {policy_class.__name__}"
    if not issubclass(policy_class, ActorCriticPolicy):
        raise ValueError(
            f"{name} is no actor-critic policy; derive it from MultiAgentActorCriticPolicy, or, for one set of parameters, "
            "from stable_baselines3.common.policies.ActorCriticPolicy"
        )
    extra = list(inspect.signature(policy_class.forward).parameters.values())[2:]
    needed = [p.name for p in extra if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if needed:
        raise ValueError(f"{name} needs {', '.join(map(repr, needed))} beside observations, which rollouts do not provide")
    if layout.n_agents > 1 and not share_parameters:
        raise ValueError(
            f"{name} has one set of parameters, but each of the {layout.n_agents} agents needs its own; use IPPO with "
            "`share_parameters=True`, or derive the class from MultiAgentActorCriticPolicy"
        )
    if critic != "own":
        raise ValueError(
            f"{name} brings a critic that reads an agent's own observation, but `critic` is {critic!r}; use `critic='own'`, "
            "or derive the class from MultiAgentActorCriticPolicy"
        )
    if layout.action_mask(action_space) is not None:
        raise ValueError(
            f"{name} cannot mask padded actions, but the agents' action spaces differ; derive the class from "
            "MultiAgentActorCriticPolicy, or give all agents one action space"
        )
    return True


class SB3TeamPolicy(TeamPolicy):
    """
    A team's view of one of SB3's actor-critic policies, whose methods are called as SB3's PPO calls them.

    Rollouts take actions, values and log-likelihoods from ``forward``, bootstrap with ``predict_values`` and evaluate with
    ``evaluate_actions``, so that whatever a subclass overrides counts.

    :param policy: SB3's policy
    :param layout: the team
    """

    def __init__(self, policy: ActorCriticPolicy, layout: TeamLayout) -> None:
        self.policy = policy
        self.layout = layout
        self.n_agents = layout.n_agents
        self.observation_space = policy.observation_space
        self.device = policy.device
        # SB3's policies count choices from zero, and hand them over like that.
        self.action_start = int(policy.action_space.start) if isinstance(policy.action_space, spaces.Discrete) else 0

    def _rows(self, obs: PyTorchObs) -> PyTorchObs:
        return {key: value.flatten(0, 1) for key, value in obs.items()} if isinstance(obs, dict) else obs.flatten(0, 1)

    def _actions(self, rows: th.Tensor) -> th.Tensor:
        """Rows of actions as the buffer holds them."""
        team = self._split_tensor(rows)
        return team if isinstance(self.policy.action_space, spaces.Discrete) else team.flatten(2)

    @th.no_grad()
    def act(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        actions, values, log_prob = self.policy(self._rows(obs))
        return self._actions(actions), self._split_tensor(log_prob), self._split_tensor(values.flatten())

    def env_actions(self, actions: th.Tensor) -> th.Tensor:
        space = self.policy.action_space
        if not isinstance(space, spaces.Box):
            return actions + self.action_start if self.action_start else actions
        low, high = (th.as_tensor(bound, device=actions.device) for bound in (space.low, space.high))
        actions = actions.reshape(*actions.shape[:2], *space.shape)
        return box_actions(actions, low, high, is_squashed=self.policy.squash_output)

    def _team_actions(self, obs: PyTorchObs, deterministic: bool) -> th.Tensor:
        self.policy.set_training_mode(False)
        actions = self._actions(self.policy._predict(self._rows(obs), deterministic))  # type: ignore[arg-type]
        return self.env_actions(actions) if self.policy.squash_output else actions

    def _predict_rows(self, observation: Any, deterministic: bool) -> np.ndarray:
        return self.policy.predict(observation, deterministic=deterministic)[0] + self.action_start

    def team_values(self, obs: PyTorchObs, states: th.Tensor | None = None) -> th.Tensor:
        return self._split_tensor(self.policy.predict_values(self._rows(obs)).flatten())  # type: ignore[arg-type]

    def evaluate_team_actions(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        common_states: PyTorchObs | None = None,
        states: th.Tensor | None = None,
    ) -> TeamActionEvaluation:
        assert common_states is None, "one set of parameters has nobody to compare with"
        values, log_prob, entropy = self.policy.evaluate_actions(self._rows(obs), actions.flatten(0, 1))  # type: ignore[arg-type]
        # Some distributions have no closed form; then the sample's own surprise, as in SB3.
        entropy = -log_prob if entropy is None else entropy
        values, log_prob, entropy = (self._split_tensor(part.flatten()) for part in (values, log_prob, entropy))
        return TeamActionEvaluation(values, log_prob, entropy)

    def track_states(self, states: th.Tensor) -> None:
        raise ValueError("SB3's policies read no states")

    def clip_gradients(self, max_norm: float) -> None:
        nn.utils.clip_grad_norm_(self.policy.parameters(), max_norm)

    def reset_noise(self, n_envs: int = 1) -> None:
        self.policy.reset_noise(n_envs)
