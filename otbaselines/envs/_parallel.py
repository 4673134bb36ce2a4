"""What the package's PettingZoo environments have in common: seeding, the step protocol, spaces and rendering."""

from abc import abstractmethod
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import ParallelEnv

from otbaselines.envs._drawing import Scene, draw_scene

Array = np.ndarray[Any, Any]


class LockstepTeamEnv(ParallelEnv[str, Array, Any]):
    """
    A team whose members start and finish together, and whose spaces are equal.

    Subclasses implement the hooks at the end, of which :meth:`_info` is optional, and :meth:`render`.

    :param possible_agents: names of the agents
    :param observation_space: of every agent; each gets its own copy
    :param action_space: of every agent; each gets its own copy
    :param max_cycles: steps after which an episode is over
    :param render_mode: ``"rgb_array"`` or ``None``
    :param terminates_in_lockstep: an episode's last step terminates it, instead of truncating it
    :raises ValueError: if the render mode is unknown
    """

    def __init__(
        self,
        *,
        possible_agents: list[str],
        observation_space: spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        max_cycles: int,
        render_mode: str | None,
        terminates_in_lockstep: bool = False,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'`render_mode` must be None or "rgb_array", got {render_mode!r}')
        self.render_mode = render_mode
        self.max_cycles = max_cycles
        self.terminates_in_lockstep = terminates_in_lockstep
        self.possible_agents = possible_agents
        self.agents: list[str] = []
        self.observation_spaces = {agent: _fresh_box(observation_space) for agent in possible_agents}
        self.action_spaces: dict[str, spaces.Space[Any]] = {
            agent: _fresh_box(action_space) if isinstance(action_space, spaces.Box) else spaces.Discrete(action_space.n)
            for agent in possible_agents
        }
        self.state_space = state_space_of(observation_space, len(possible_agents))
        self.steps = 0
        self._np_random, _ = seeding.np_random()

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """Return the agent's observation space, always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """Return the agent's action space, always the same object."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        """
        Start an episode.

        :param seed: seeds the environment's own generator; without it the generator continues
        :param options: not used; PettingZoo prescribes the argument
        :return: every agent's observation, and an empty info
        """
        if seed is not None:
            self._np_random, _ = seeding.np_random(seed)
        self._start(self._np_random)
        self._begin()
        return self._observation_dict(), {agent: {} for agent in self.agents}

    def _begin(self) -> None:
        """Set the counters for an episode that starts in the present state."""
        self.agents = list(self.possible_agents)
        self.steps = 0

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Array], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """
        Advance by one step.

        :param actions: an action of every agent; continuous ones are clipped to their box
        :return: observations, rewards, terminations, truncations and infos by agent; empty after the episode's end
        :raises ValueError: if an agent's action is missing, misshapen, no finite number or none of its choices
        """
        if not self.agents:
            return {}, {}, {}, {}, {}
        rewards, finished = self._advance(self._action_rows(actions))
        self.steps += 1
        names, ends = self.agents, self.steps >= self.max_cycles
        # As in mpe2, running out of time takes precedence over finishing in the last step.
        truncated = ends and not self.terminates_in_lockstep
        terminated = ends if self.terminates_in_lockstep else finished and not truncated
        if truncated or terminated:
            self.agents = []
        return (
            self._observation_dict(),
            dict(zip(names, rewards.tolist(), strict=True)),
            dict.fromkeys(names, terminated),
            dict.fromkeys(names, truncated),
            {agent: self._info() for agent in names},
        )

    def _action_rows(self, actions: dict[str, Any]) -> Array:
        """Check the actions and stack them: ``(n_agents,)`` integers or ``(n_agents, act_dim)`` floats within the box."""
        rows = []
        for agent in self.possible_agents:
            if agent not in actions:
                raise ValueError(f"`actions` must name every agent, {agent!r} is missing from {sorted(actions)}")
            space, action = self.action_spaces[agent], np.asarray(actions[agent])
            if action.shape != space.shape:
                raise ValueError(f"`actions[{agent!r}]` must have shape {space.shape}, got {action.shape}")
            if isinstance(space, spaces.Box):
                if action.dtype.kind not in "fiu" or not np.isfinite(action).all():
                    raise ValueError(f"`actions[{agent!r}]` must be finite numbers for {space}, got {action}")
                rows.append(np.clip(action.astype(np.float64), space.low, space.high))
            elif space.contains(action.item()):
                rows.append(action)
            else:
                raise ValueError(f"`actions[{agent!r}]` must lie in {space}, got {action}")
        return np.stack(rows)

    def _observation_dict(self) -> dict[str, Array]:
        return dict(zip(self.possible_agents, self._observations().astype(np.float32), strict=True))

    def state(self) -> Array:
        """Return all agents' observations in one float32 vector."""
        return self._observations().astype(np.float32).reshape(-1)

    def close(self) -> None:
        """Do nothing: no window is open."""

    # ------------------------------------------------------------------ hooks for subclasses

    @abstractmethod
    def _start(self, rng: np.random.Generator) -> None:
        """Draw a start."""

    @abstractmethod
    def _advance(self, actions: Array) -> tuple[Array, bool]:
        """Move; return every agent's reward, and whether the task is finished."""

    @abstractmethod
    def _observations(self) -> Array:
        """Return the observations, ``(n_agents, obs_dim)``."""

    def _info(self) -> dict[str, Any]:
        """Return what every agent's info says of the step just taken, each time in a dict of its own."""
        return {}


class PlaneTeamEnv(LockstepTeamEnv):
    """
    A team of discs on a plane.

    Subclasses keep ``self.positions``, ``(n_agents, 2)`` float64, and implement :meth:`_scene` besides the other hooks.
    """

    positions: Array

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._trail: list[Array] = []

    def _begin(self) -> None:
        super()._begin()
        self._trail = [self.positions.copy()]

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Array], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """See :meth:`LockstepTeamEnv.step`."""
        is_playing, result = bool(self.agents), super().step(actions)
        if is_playing and self.render_mode is not None:
            self._trail.append(self.positions.copy())
        return result

    def _take_state(self, **arrays: Array) -> None:
        """Check that arrays have shape ``(n_agents, 2)``, store copies under their names, and begin an episode there."""
        shape = (len(self.possible_agents), 2)
        for name, value in arrays.items():
            if np.shape(value) != shape:
                raise ValueError(f"`{name}` must have shape {shape}, got {np.shape(value)}")
        for name, value in arrays.items():
            setattr(self, name, np.array(value, dtype=np.float64))
        self._begin()

    def render(self) -> Array | None:
        """
        Draw the present moment.

        :return: picture ``(height, width, 3)`` uint8, or ``None`` without ``render_mode="rgb_array"`` or before a reset
        """
        if self.render_mode is None or not self._trail:
            return None
        return draw_scene(self._scene(np.array(self._trail)))

    @abstractmethod
    def _scene(self, trail: Array) -> Scene:
        """Describe the present moment for drawing, given the trail ``(n_moments, n_agents, 2)`` that ends in it."""


def state_space_of(observation_space: spaces.Box, n_agents: int) -> spaces.Box:
    """Return the space of a whole team's observations, one after the other: what these environments call their state."""
    low, high = (np.tile(bound, n_agents) for bound in (observation_space.low, observation_space.high))
    return spaces.Box(low, high, dtype=np.float32)


def _fresh_box(space: spaces.Box) -> spaces.Box:
    """Return an equal box with a random generator of its own, so that agents' samples can be seeded separately."""
    return spaces.Box(space.low, space.high, dtype=np.float32)
