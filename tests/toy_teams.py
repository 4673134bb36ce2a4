"""Small PettingZoo environments whose every number can be worked out by hand."""

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class RelayEnv(ParallelEnv):
    """
    Agents of different shapes that come and go on a fixed timetable; nothing is random.

    ``a`` is there from the start and terminates at step 2; ``b`` is there from the start and is truncated at step 5;
    ``c`` joins at step 3 and is both terminated and truncated at step 5. The reward is ``10 * number + action``, the
    observation of agent ``number`` at step ``t`` is filled with ``100 * (number + 1) + t``.
    """

    metadata = {"name": "relay", "render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.possible_agents = ["a", "b", "c"]
        self.agents: list[str] = []
        self.render_mode = render_mode
        self.calls = 0
        self.n_closed = 0

    def observation_space(self, agent: str) -> spaces.Box:
        return spaces.Box(-1e3, 1e3, ({"a": 2, "b": 3, "c": 1}[agent],), np.float32)

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete({"a": 2, "b": 3, "c": 4}[agent])

    def _observe(self, agent: str) -> np.ndarray:
        number = self.possible_agents.index(agent)
        return np.full(self.observation_space(agent).shape, 100 * (number + 1) + self.t, np.float32)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.t = 0
        self.options = options
        self.agents = ["a", "b"]
        return {agent: self._observe(agent) for agent in self.agents}, {agent: {"start": True} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        assert set(actions) == set(self.agents)
        self.t += 1
        acting = list(self.agents)
        rewards = {agent: 10.0 * self.possible_agents.index(agent) + actions[agent] for agent in acting}
        terminations = {agent: (agent, self.t) in (("a", 2), ("c", 5)) for agent in acting}
        truncations = {agent: (agent, self.t) in (("b", 5), ("c", 5)) for agent in acting}
        observations = {agent: self._observe(agent) for agent in acting}
        self.agents = [agent for agent in acting if not (terminations[agent] or truncations[agent])]
        if self.t == 3:
            self.agents.append("c")
            observations["c"], rewards["c"] = self._observe("c"), 0.0
            terminations["c"] = truncations["c"] = False
        return observations, rewards, terminations, truncations, {agent: {"t": self.t} for agent in rewards}

    def poke(self, amount: int) -> int:
        self.calls += amount
        return self.calls

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), 7, np.uint8)

    def close(self) -> None:
        self.n_closed += 1


class DiceEnv(ParallelEnv):
    """
    Two agents that observe draws of the environment's own generator; episodes are truncated after ``horizon`` steps.

    :param ignores_seed: keep the generator that the constructor made, whatever ``reset`` is told
    """

    metadata = {"name": "dice"}  # noqa: RUF012

    def __init__(self, horizon: int = 4, ignores_seed: bool = False, terminates: bool = False) -> None:
        self.possible_agents = ["left", "right"]
        self.agents: list[str] = []
        self.render_mode = None
        self.horizon = horizon
        self.ignores_seed = ignores_seed
        self.terminates = terminates
        self.rng = np.random.default_rng(0)

    def observation_space(self, agent: str) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def action_space(self, agent: str) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def _observe(self) -> dict[str, np.ndarray]:
        return {agent: self.rng.normal(size=3).astype(np.float32) for agent in self.possible_agents}

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        if seed is not None and not self.ignores_seed:
            self.rng = np.random.default_rng(seed)
        self.t = 0
        self.agents = list(self.possible_agents)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict, dict, dict, dict, dict]:
        self.t += 1
        is_over = self.t >= self.horizon
        rewards = {agent: float(action.sum()) + 0.5 * self.t for agent, action in actions.items()}
        self.actions = actions
        if is_over:
            self.agents = []
        over, never = dict.fromkeys(actions, is_over), dict.fromkeys(actions, False)
        ends = (over, never) if self.terminates else (never, over)
        return self._observe(), rewards, *ends, {agent: {} for agent in actions}


class CustomSpacesEnv(ParallelEnv):
    """
    A team with any spaces and any observations, which ends after one step.

    :param observation_spaces: the spaces by agent
    :param action_spaces: the spaces by agent
    :param observations: what the agents see; a sample of their spaces when omitted
    """

    metadata = {"name": "custom"}  # noqa: RUF012

    def __init__(self, observation_spaces: dict, action_spaces: dict, observations: dict | None = None) -> None:
        self.possible_agents = list(observation_spaces)
        self.agents: list[str] = []
        self.render_mode = None
        self.actions: dict = {}
        self.given = (observation_spaces, action_spaces)
        self.observations = observations or {agent: space.sample() for agent, space in observation_spaces.items()}

    def observation_space(self, agent: str) -> spaces.Space:
        return self.given[0][agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.given[1][agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.agents = list(self.possible_agents)
        return self.observations, {agent: {} for agent in self.agents}

    def step(self, actions: dict) -> tuple[dict, dict, dict, dict, dict]:
        # A copy, because PettingZoo's converter from turns empties the dict that it passed.
        self.actions = dict(actions)
        self.agents = []
        over, never = dict.fromkeys(actions, True), dict.fromkeys(actions, False)
        return self.observations, dict.fromkeys(actions, 1.0), over, never, {agent: {} for agent in actions}


def vector(size: int) -> spaces.Box:
    """An observation space of ``size`` numbers."""
    return spaces.Box(-1.0, 1.0, (size,), np.float32)
