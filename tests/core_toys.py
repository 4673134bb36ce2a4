"""Environments and oracles for the tests of the multi-agent core."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from pettingzoo import ParallelEnv
from stable_baselines3.common.policies import ActorCriticPolicy


class AnySpacesEnv(gym.Env):
    """
    A Gymnasium environment with any spaces: random observations, rewards from the action, episodes of ``horizon`` steps.

    :param observation_space: the observation space
    :param action_space: the action space
    :param horizon: steps after which an episode is truncated
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, horizon: int = 6) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.horizon = horizon
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(np.asarray(action)) or isinstance(self.action_space, spaces.MultiBinary), action
        self.actions.append(action)
        self.t += 1
        return self.observation_space.sample(), float(np.sum(action)), False, self.t >= self.horizon, {}


class WanderersEnv(ParallelEnv):
    """
    Three agents with random observations; agent ``k`` leaves after ``lives[k]`` steps, by terminating or by truncation.

    :param lives: steps that each agent stays
    :param truncates: leave by truncation instead of termination
    :param continuous: two-dimensional boxes instead of four choices
    :param poison: ``(quantity, agent, step)`` at which a NaN appears, ``quantity`` being ``"observation"`` or ``"reward"``
    :param final: what the last observation of an episode that is cut off is filled with
    """

    metadata = {"name": "wanderers"}  # noqa: RUF012

    def __init__(
        self,
        lives: tuple[int, ...] = (3, 7, 5),
        truncates: bool = False,
        continuous: bool = False,
        poison: tuple[str, str, int] | None = None,
        final: float | None = None,
    ) -> None:
        self.final = final
        self.possible_agents = [f"w{k}" for k in range(len(lives))]
        self.agents: list[str] = []
        self.render_mode = None
        self.lives = dict(zip(self.possible_agents, lives, strict=True))
        self.truncates = truncates
        self.continuous = continuous
        self.poison = poison
        self.rng = np.random.default_rng(0)
        self.total = 0

    def observation_space(self, agent: str) -> spaces.Box:
        return spaces.Box(-10.0, 10.0, (4,), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Box(-1.0, 1.0, (2,), np.float32) if self.continuous else spaces.Discrete(4)

    def _poisoned(self, quantity: str, agent: str, value: Any) -> Any:
        return value * np.nan if self.poison == (quantity, agent, self.total) else value

    def _observe(self, agents: list[str]) -> dict[str, np.ndarray]:
        drawn = {agent: self.rng.normal(size=4).astype(np.float32) for agent in self.possible_agents}
        return {agent: self._poisoned("observation", agent, drawn[agent]) for agent in agents}

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.t = 0
        self.agents = list(self.possible_agents)
        return self._observe(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self.t += 1
        self.total += 1
        acting = list(self.agents)
        leaving = {agent: self.t >= self.lives[agent] for agent in acting}
        never = dict.fromkeys(acting, False)
        rewards = {a: self._poisoned("reward", a, float(np.sum(actions[a])) + self.t) for a in acting}
        self.agents = [agent for agent in acting if not leaving[agent]]
        ends = (never, leaving) if self.truncates else (leaving, never)
        observations = self._observe(acting)
        if self.final is not None:
            observations |= {agent: np.full(4, self.final, np.float32) for agent in acting if leaving[agent]}
        return observations, rewards, *ends, {agent: {} for agent in acting}


def copy_to_sb3(policy: Any, target: ActorCriticPolicy, index: int = 0) -> None:
    """
    Write one parameter set of a stacked policy into SB3's policy of the same architecture.

    :param policy: the stacked policy
    :param target: SB3's policy
    :param index: which set
    """
    networks = {
        "mlp_extractor.policy_net": policy.pi_net.layers,
        "mlp_extractor.value_net": policy.vf_net.layers,
    }
    state = {}
    for name, layers in networks.items():
        for position, layer in enumerate(layers):
            if hasattr(layer, "weight"):
                state[f"{name}.{position}.weight"] = layer.weight[index].T
                state[f"{name}.{position}.bias"] = layer.bias[index, 0]
    for name, layer in (("action_net", policy.action_net), ("value_net", policy.value_net)):
        state[f"{name}.weight"], state[f"{name}.bias"] = layer.weight[index].T, layer.bias[index, 0]
    if hasattr(policy, "log_std"):
        state["log_std"] = policy.log_std[index]
    for part, extractors in (("pi", policy.pi_extractors), ("vf", policy.vf_extractors)):
        for name, value in extractors[index].state_dict().items():
            state[f"{part}_features_extractor.{name}"] = value
            if part == "pi":
                state[f"features_extractor.{name}"] = value
    wanted = target.state_dict()
    target.load_state_dict({name: value.detach().clone() for name, value in state.items() if name in wanted})


def stacked_gradients(policy: Any, target: ActorCriticPolicy, index: int = 0) -> dict[str, tuple[th.Tensor, th.Tensor]]:
    """
    Pairs of gradients (stacked policy's, SB3's) of the multilayer perceptrons and heads.

    :param policy: the stacked policy
    :param target: SB3's policy
    :param index: which set
    """
    layers = [
        *zip(policy.pi_net.layers, target.mlp_extractor.policy_net, strict=True),
        *zip(policy.vf_net.layers, target.mlp_extractor.value_net, strict=True),
        (policy.action_net, target.action_net),
        (policy.value_net, target.value_net),
    ]
    pairs = {}
    for number, (ours, theirs) in enumerate(layers):
        if hasattr(theirs, "weight"):
            pairs[f"{number}.weight"] = (ours.weight.grad[index].T, theirs.weight.grad)
            pairs[f"{number}.bias"] = (ours.bias.grad[index, 0], theirs.bias.grad)
    if hasattr(policy, "log_std"):
        pairs["log_std"] = (policy.log_std.grad[index], target.log_std.grad)
    return pairs


def sb3_ppo_backward(policy: ActorCriticPolicy, rows: dict[str, Any], settings: dict[str, Any]) -> th.Tensor:
    """
    One backward pass of PPO's loss as the paper and SB3 write it, clipping of the gradient included.

    :param policy: SB3's policy, whose gradients are overwritten
    :param rows: ``obs, actions, old_values, old_log_prob, advantages, returns``, one row per agent-step
    :param settings: ``clip_range, clip_range_vf, ent_coef, vf_coef, max_grad_norm``
    :return: the loss
    """
    values, log_prob, entropy = policy.evaluate_actions(rows["obs"], rows["actions"])
    advantages = (rows["advantages"] - rows["advantages"].mean()) / (rows["advantages"].std() + 1e-8)
    ratio = (log_prob - rows["old_log_prob"]).exp()
    clip, clip_vf = settings["clip_range"], settings["clip_range_vf"]
    surrogate = th.min(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    predicted = values.flatten()
    if clip_vf is not None:
        predicted = rows["old_values"] + (predicted - rows["old_values"]).clamp(-clip_vf, clip_vf)
    value_loss = ((rows["returns"] - predicted) ** 2).mean()
    loss = -surrogate - settings["ent_coef"] * entropy.mean() + settings["vf_coef"] * value_loss
    policy.zero_grad()
    loss.backward()
    th.nn.utils.clip_grad_norm_(policy.parameters(), settings["max_grad_norm"])
    return loss.detach()


def assert_same_parameters(first: Any, second: Any) -> None:
    """Bit equality of everything in the state dicts, optimizers included."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same_parameters(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same_parameters(one, other)
    elif isinstance(first, th.Tensor):
        assert th.equal(first, second)
    else:
        assert first == second
