"""Rollouts of a team, kept on the learner's device with the agents on an axis of their own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs

#: What becomes of the advantages of minibatches ``(n_minibatches, batch, n_agents)``, given who acted; of the same shape.
AdvantageScale = Callable[[th.Tensor, th.Tensor | None], th.Tensor]


@dataclass(frozen=True)
class AgentRolloutSamples:
    """
    A minibatch of joint steps: the same steps of every agent.

    :param observations: shape ``(batch, n_agents, ...)``
    :param actions: shape ``(batch, n_agents, ...)``
    :param old_values: shape ``(batch, n_agents)``
    :param old_log_prob: shape ``(batch, n_agents)``
    :param advantages: shape ``(batch, n_agents)``; scaled where the buffer was asked to
    :param returns: shape ``(batch, n_agents)``
    :param active: ``False`` where the agent had left its episode, shape ``(batch, n_agents)``; ``None`` when all stay
    :param states: of the teams, shape ``(batch, state_dim)``; ``None`` where no critic reads them
    """

    observations: PyTorchObs
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    active: th.Tensor | None
    states: th.Tensor | None = None


class AgentRolloutBuffer:
    """
    Tensors of shape ``(n_steps, n_copies, n_agents, ...)`` on one device.

    SB3's buffer flattens and permutes slots, which loses who acted; this one keeps the agents' axis, so that every
    agent's loss is its own and measures of whole teams can be formed.

    :param n_steps: environment steps per rollout
    :param n_copies: copies of the environment
    :param n_agents: agents per copy
    :param observation_space: the team's common observation space
    :param action_space: the team's common action space
    :param device: where the tensors live
    :param gamma: discount
    :param gae_lambda: bias-variance trade-off of generalized advantage estimation
    :param state_dim: numbers in the state that a central critic reads; no states are kept when 0
    """

    def __init__(
        self,
        n_steps: int,
        n_copies: int,
        n_agents: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        device: th.device,
        gamma: float,
        gae_lambda: float,
        state_dim: int = 0,
    ) -> None:
        self.n_steps = n_steps
        self.n_copies = n_copies
        self.n_agents = n_agents
        self.device = device
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        lead = (n_steps, n_copies, n_agents)
        self.observations = _allocate_observations(lead, observation_space, device)
        self.actions = _allocate_actions(lead, action_space, device)
        self.states = th.zeros((n_steps, n_copies, state_dim), device=device) if state_dim else None
        self.rewards = th.zeros(lead, device=device)
        self.dones = th.zeros(lead, dtype=th.bool, device=device)
        self.log_probs = th.zeros(lead, device=device)
        self.values = th.zeros(lead, device=device)
        self.bootstrap = th.zeros(lead, device=device)
        self.active = th.ones(lead, dtype=th.bool, device=device)
        self.all_active = True
        self.has_values = False
        self.advantages = th.zeros(lead, device=device)
        self.returns = th.zeros(lead, device=device)
        self.pos = 0

    def size(self) -> int:
        """Joint steps in a full buffer; a method, as SB3's callbacks expect."""
        return self.n_steps * self.n_copies

    @property
    def buffer_size(self) -> int:
        """SB3's name for ``n_steps``."""
        return self.n_steps

    @property
    def full(self) -> bool:
        """Whether every step has been written."""
        return self.pos == self.n_steps

    def reset(self) -> None:
        """Start a new rollout; the tensors are overwritten in place."""
        self.pos = 0
        self.all_active = True
        self.has_values = False
        self.bootstrap.zero_()

    def add(
        self,
        observations: PyTorchObs,
        actions: th.Tensor,
        log_probs: th.Tensor,
        rewards: th.Tensor,
        dones: th.Tensor | bool,
        active: th.Tensor | None = None,
        values: th.Tensor | None = None,
        states: th.Tensor | None = None,
    ) -> None:
        """
        Write one environment step of every copy.

        :param observations: what the agents saw, shape ``(n_copies, n_agents, ...)``
        :param actions: what they did, shape ``(n_copies, n_agents, ...)``
        :param log_probs: shape ``(n_copies, n_agents)``
        :param rewards: shape ``(n_copies, n_agents)``
        :param dones: whether the agent's episode ended with this step, shape ``(n_copies, n_agents)``, or one for all
        :param active: which agents acted, shape ``(n_copies, n_agents)``; all when omitted
        :param values: the critics at these observations, where the policy computes them with the actions, shape
            ``(n_copies, n_agents)``; when omitted, they are computed for the whole rollout at its end
        :param states: of the teams, shape ``(n_copies, state_dim)``, where a critic reads them
        """
        if self.full:
            raise ValueError(f"the rollout buffer is full after `n_steps`={self.n_steps} steps; call `reset()` first")
        if isinstance(observations, dict):
            assert isinstance(self.observations, dict)
            for key, value in observations.items():
                self.observations[key][self.pos].copy_(value)
        else:
            assert isinstance(self.observations, th.Tensor)
            self.observations[self.pos].copy_(observations)
        if self.states is not None:
            assert states is not None
            self.states[self.pos].copy_(states)
        self.actions[self.pos].copy_(actions)
        self.log_probs[self.pos].copy_(log_probs)
        self.rewards[self.pos].copy_(rewards)
        self.dones[self.pos] = dones
        if active is None:
            self.active[self.pos] = True
        else:
            self.active[self.pos].copy_(active)
            self.all_active = False
        if values is not None:
            self.values[self.pos].copy_(values)
            self.has_values = True
        self.pos += 1

    def compute_returns_and_advantages(self, values: th.Tensor, last_values: th.Tensor) -> None:
        r"""
        Generalized advantage estimation (Schulman et al. 2016, Eq. 16) for every agent of every copy.

        :math:`\delta_t = r_t + \gamma b_t + \gamma V(s_{t+1})(1 - d_t) - V(s_t)`, where :math:`b_t` is the value of the
        last observation of an episode that was cut off rather than finished (``bootstrap``).

        :param values: the critics at every step, shape ``(n_steps, n_copies, n_agents)``
        :param last_values: the critics after the last step, shape ``(n_copies, n_agents)``
        """
        self.values.copy_(values)
        alive = (~self.dones).to(self.values.dtype)
        next_values = th.cat([self.values[1:], last_values.unsqueeze(0)])
        rewards = self.rewards + self.gamma * self.bootstrap
        deltas = rewards + self.gamma * alive * next_values - self.values
        decay = self.gamma * self.gae_lambda * alive
        advantage = th.zeros_like(last_values)
        for step in reversed(range(self.n_steps)):
            advantage = th.addcmul(deltas[step], decay[step], advantage)
            self.advantages[step] = advantage
        th.add(self.advantages, self.values, out=self.returns)

    def get(self, batch_rows: int, scale: AdvantageScale | None = None) -> Iterator[AgentRolloutSamples]:
        """
        One pass over the rollout in minibatches of randomly drawn joint steps.

        :param batch_rows: joint steps per minibatch; ``batch_rows * n_agents`` agent-steps
        :param scale: what becomes of each minibatch's advantages, given all of equal size at once,
            ``(n_minibatches, batch_rows, n_agents)``, and which agents acted; they stay as they are when omitted
        :return: the minibatches; the last one is smaller when ``batch_rows`` does not divide the rollout
        """
        order = th.randperm(self.size(), device=self.device)
        shuffled = [
            tensor.flatten(0, 1).index_select(0, order)
            for tensor in (self.actions, self.values, self.log_probs, self.advantages, self.returns)
        ]
        observations = _map(self.observations, lambda tensor: tensor.flatten(0, 1).index_select(0, order))
        active = None if self.all_active else self.active.flatten(0, 1).index_select(0, order)
        states = None if self.states is None else self.states.flatten(0, 1).index_select(0, order)
        if scale is not None:
            shuffled[3] = _scaled(shuffled[3], active, batch_rows, scale)
        for start in range(0, self.size(), batch_rows):
            rows = slice(start, start + batch_rows)
            actions, values, log_probs, advantages, returns = (tensor[rows] for tensor in shuffled)
            yield AgentRolloutSamples(
                _map(observations, lambda tensor, rows=rows: tensor[rows]),
                actions,
                values,
                log_probs,
                advantages,
                returns,
                None if active is None else active[rows],
                None if states is None else states[rows],
            )


def _scaled(advantages: th.Tensor, active: th.Tensor | None, batch_rows: int, scale: AdvantageScale) -> th.Tensor:
    """All minibatches at once: one at a time, the handful of operations would be a thirtieth of a gradient step's time."""
    whole, parts = len(advantages) // batch_rows * batch_rows, []
    for rows in (slice(0, whole), slice(whole, None)):
        if len(advantages[rows]):
            shape = (-1, min(batch_rows, len(advantages[rows])), advantages.shape[1])
            mask = None if active is None else active[rows].view(shape)
            parts.append(scale(advantages[rows].view(shape), mask).view(-1, advantages.shape[1]))
    return th.cat(parts)


def _map(obs: PyTorchObs, function: Any) -> PyTorchObs:
    if isinstance(obs, dict):
        return {key: function(value) for key, value in obs.items()}
    return function(obs)  # type: ignore[no-any-return]


def _torch_dtype(space: spaces.Space[Any]) -> th.dtype:
    """Integers are stored as they are (an image stays one byte a pixel), every float as float32."""
    dtype = np.dtype(space.dtype)
    if np.issubdtype(dtype, np.floating):
        return th.float32
    return th.from_numpy(np.zeros(1, dtype=dtype)).dtype


def _allocate_observations(lead: tuple[int, ...], space: spaces.Space[Any], device: th.device) -> PyTorchObs:
    if isinstance(space, spaces.Dict):
        return {key: th.zeros((*lead, *sub.shape), dtype=_torch_dtype(sub), device=device) for key, sub in space.items()}  # type: ignore[misc]
    return th.zeros((*lead, *space.shape), dtype=_torch_dtype(space), device=device)  # type: ignore[misc]


def _allocate_actions(lead: tuple[int, ...], space: spaces.Space[Any], device: th.device) -> th.Tensor:
    if isinstance(space, spaces.Discrete):
        return th.zeros(lead, dtype=th.int64, device=device)
    dtype = th.int64 if isinstance(space, spaces.MultiDiscrete) else th.float32
    return th.zeros((*lead, get_action_dim(space)), dtype=dtype, device=device)
