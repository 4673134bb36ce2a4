"""
Cooperative landmark covering, ``otbaselines/SimpleSpread-v0``: the task of mpe2's ``simple_spread_v3``.

Agents and landmarks are discs on a plane. The team is paid minus the sum over landmarks of the distance to the nearest
agent; an agent also pays one for every team-mate it touches (Lowe et al. 2017, *Multi-agent actor-critic for mixed
cooperative-competitive environments*). Positions advance by the velocity of the *previous* step, and overlapping agents
push each other apart with a soft contact force, as in mpe2.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle, seeding
from pettingzoo import ParallelEnv

from otbaselines.envs._drawing import Scene, draw_scene

# The physics of mpe2's `World`, `SimpleEnv` and `simple_spread` scenario, in their units (seconds, lengths of half an arena).
TIME_STEP = 0.1
DAMPING = 0.25
SENSITIVITY = 5.0
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3
AGENT_RADIUS = 0.15
LANDMARK_RADIUS = 0.05
CAPTURE_RADIUS = 0.1

#: Unit push of the actions none, left, right, down, up.
PUSHES = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])


@dataclass(frozen=True, kw_only=True)
class SimpleSpreadConfig:
    """
    The arguments of mpe2's ``simple_spread_v3``, checked. Its ``dynamic_rescaling`` and ``benchmark_data`` have no counterpart.

    :param N: number of agents and of landmarks, at least 1
    :param local_ratio: share of the agent's own collision penalty in its reward, in [0, 1]; the rest is the team's
    :param max_cycles: steps in an episode
    :param continuous_actions: five pushes in [0, 1] instead of one of five actions
    :param curriculum: start at stage 0, without collision penalties; stage 1 has them
    :param terminate_on_success: end the episode once every landmark has an agent within 0.1
    :param num_agent_neighbors: how many nearest team-mates an agent sees, padded with zeros; ``None`` for all, unsorted
    :param num_landmark_neighbors: how many nearest landmarks an agent sees, padded with zeros; ``None`` for all, unsorted
    :raises ValueError: if a number is out of range
    """

    N: int = 3
    local_ratio: float = 0.5
    max_cycles: int = 25
    continuous_actions: bool = False
    curriculum: bool = False
    terminate_on_success: bool = False
    num_agent_neighbors: int | None = None
    num_landmark_neighbors: int | None = None

    def __post_init__(self) -> None:
        for name in ("N", "max_cycles", "num_agent_neighbors", "num_landmark_neighbors"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if not 0.0 <= self.local_ratio <= 1.0:
            raise ValueError(f"`local_ratio` is a share and must lie in [0, 1], got {self.local_ratio}")

    @property
    def possible_agents(self) -> list[str]:
        """Names of the agents, as in mpe2."""
        return [f"agent_{i}" for i in range(self.N)]

    @property
    def obs_dim(self) -> int:
        """Own velocity and position, then landmarks, team-mates (both relative) and their silent channels: two numbers each."""
        n_others = self.N - 1 if self.num_agent_neighbors is None else self.num_agent_neighbors
        return 2 * (2 + (self.num_landmark_neighbors or self.N) + 2 * n_others)

    def observation_space(self) -> spaces.Box:
        """Return a fresh observation space of one agent."""
        return spaces.Box(-np.inf, np.inf, (self.obs_dim,), np.float32)

    def action_space(self) -> spaces.Space[Any]:
        """Return a fresh action space of one agent."""
        return spaces.Box(0.0, 1.0, (5,), np.float32) if self.continuous_actions else spaces.Discrete(5)


class Curriculum:
    """The two stages of mpe2's curriculum, shared by both forms of the environment."""

    config: SimpleSpreadConfig
    _stage: int

    @property
    def curriculum_stage(self) -> int:
        """Stage 0 suppresses the collision penalty, stage 1 restores it. Without ``curriculum`` the stage has no effect."""
        return self._stage

    def advance_curriculum(self) -> None:
        """Go to the next stage; nothing happens at the last one."""
        self.set_curriculum_stage(self._stage + 1)

    def set_curriculum_stage(self, stage: int) -> None:
        """
        Go to a stage.

        :param stage: 0 or 1; other numbers are moved to the nearer of them, as in mpe2
        """
        self._stage = min(max(stage, 0), 1)

    @property
    def _penalise_collisions(self) -> bool:
        return not self.config.curriculum or self._stage == 1


class SimpleSpreadEnv(Curriculum, ParallelEnv[str, np.ndarray[Any, Any], Any], EzPickle):
    """
    The task as a PettingZoo ``ParallelEnv`` in NumPy and float64; with the same seed it plays the same episode as mpe2.

    Takes the arguments of :class:`SimpleSpreadConfig`.

    :param render_mode: ``"rgb_array"`` or ``None``
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (PettingZoo prescribes a class attribute)
        "name": "otbaselines/SimpleSpread-v0",
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "is_parallelizable": True,
    }

    def __init__(self, *, render_mode: str | None = None, **config: Any) -> None:
        EzPickle.__init__(self, render_mode=render_mode, **config)
        self.config = SimpleSpreadConfig(**config)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'`render_mode` must be None or "rgb_array", got {render_mode!r}')
        self.render_mode = render_mode
        self.max_cycles = self.config.max_cycles
        self.possible_agents = self.config.possible_agents
        self.agents: list[str] = []
        self.observation_spaces = {agent: self.config.observation_space() for agent in self.possible_agents}
        self.action_spaces = {agent: self.config.action_space() for agent in self.possible_agents}
        self.state_space = spaces.Box(-np.inf, np.inf, (self.config.N * self.config.obs_dim,), np.float32)
        self._stage = 0
        self._np_random, _ = seeding.np_random()
        n = self.config.N
        self.positions, self.velocities, self.landmarks = np.zeros((n, 2)), np.zeros((n, 2)), np.zeros((n, 2))
        self.steps = 0
        self._trail: list[np.ndarray[Any, Any]] = []

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """Return the agent's observation space, always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """Return the agent's action space, always the same object."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, dict[str, Any]]]:
        """Place agents and landmarks uniformly in [-1, 1]^2, at rest."""
        if seed is not None:
            self._np_random, _ = seeding.np_random(seed)
        self.agents = list(self.possible_agents)
        self.steps = 0
        start = self._np_random.uniform(-1.0, 1.0, (2 * self.config.N, 2))
        self.set_state(positions=start[: self.config.N], velocities=0.0 * start[: self.config.N], landmarks=start[self.config.N :])
        return self._observations(), {agent: {} for agent in self.agents}

    def set_state(
        self, *, positions: np.ndarray[Any, Any], velocities: np.ndarray[Any, Any], landmarks: np.ndarray[Any, Any]
    ) -> None:
        """
        Place everything; each argument has shape ``(N, 2)``.

        :raises ValueError: if a shape is wrong
        """
        for name, value in (("positions", positions), ("velocities", velocities), ("landmarks", landmarks)):
            if np.shape(value) != (self.config.N, 2):
                raise ValueError(f"`{name}` must have shape {(self.config.N, 2)}, got {np.shape(value)}")
            setattr(self, name, np.array(value, dtype=np.float64))
        self._trail = [self.positions.copy()]

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[
        dict[str, np.ndarray[Any, Any]], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]
    ]:
        """Advance by one step; actions as the action spaces say, continuous ones are clipped."""
        if not self.agents:
            return {}, {}, {}, {}, {}
        self._move(self._pushes(actions))
        self.steps += 1
        names = self.agents
        rewards = dict(zip(names, self._rewards().tolist(), strict=True))
        # As in mpe2, running out of time takes precedence over success in the last step.
        truncated = self.steps >= self.max_cycles
        terminated = not truncated and self.config.terminate_on_success and self._covered()
        observations = self._observations()
        if truncated or terminated:
            self.agents = []
        return (
            observations,
            rewards,
            dict.fromkeys(names, terminated),
            dict.fromkeys(names, truncated),
            {agent: {} for agent in names},
        )

    def _pushes(self, actions: dict[str, Any]) -> np.ndarray[Any, Any]:
        rows = np.array([np.asarray(actions[agent]) for agent in self.possible_agents])
        if self.config.continuous_actions:
            pushes: np.ndarray[Any, Any] = np.clip(rows, 0.0, 1.0) @ PUSHES
            return pushes
        if rows.min() < 0 or rows.max() > 4:
            raise ValueError(f"`actions` must lie in 0..4, got {actions}")
        return PUSHES[rows]

    def _move(self, pushes: np.ndarray[Any, Any]) -> None:
        """One step of semi-implicit motion with damping; forces are those at the positions before the move."""
        offset = self.positions[:, None] - self.positions[None]
        distance = np.sqrt((offset**2).sum(-1))
        np.fill_diagonal(distance, np.inf)
        overlap = CONTACT_MARGIN * np.logaddexp(0.0, (2 * AGENT_RADIUS - distance) / CONTACT_MARGIN)
        # Agents in exactly the same place would divide zero by zero, as they do in mpe2; here they exert no force.
        contact = CONTACT_FORCE * (offset * (overlap / np.maximum(distance, 1e-10))[..., None]).sum(1)
        self.positions = self.positions + TIME_STEP * self.velocities
        self.velocities = (1.0 - DAMPING) * self.velocities + TIME_STEP * (SENSITIVITY * pushes + contact)
        if self.render_mode is not None:
            self._trail.append(self.positions.copy())

    def _landmark_distances(self) -> np.ndarray[Any, Any]:
        """Distance of every agent (rows) to every landmark (columns)."""
        distances: np.ndarray[Any, Any] = np.linalg.norm(self.positions[:, None] - self.landmarks[None], axis=-1)
        return distances

    def _covered(self) -> bool:
        return bool((self._landmark_distances().min(axis=0) < CAPTURE_RADIUS).all())

    def _rewards(self) -> np.ndarray[Any, Any]:
        team = -self._landmark_distances().min(axis=0).sum()
        distance = np.linalg.norm(self.positions[:, None] - self.positions[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        own = -(distance < 2 * AGENT_RADIUS).sum(axis=1).astype(np.float64) * self._penalise_collisions
        rewards: np.ndarray[Any, Any] = (1.0 - self.config.local_ratio) * team + self.config.local_ratio * own
        return rewards

    def _observations(self) -> dict[str, np.ndarray[Any, Any]]:
        rows = {}
        for i, agent in enumerate(self.possible_agents):
            landmarks = _nearest(self.landmarks - self.positions[i], self.config.num_landmark_neighbors)
            others = _nearest(np.delete(self.positions, i, axis=0) - self.positions[i], self.config.num_agent_neighbors)
            parts = [self.velocities[i : i + 1], self.positions[i : i + 1], landmarks, others, np.zeros_like(others)]
            rows[agent] = np.concatenate(parts).reshape(-1).astype(np.float32)
        return rows

    def state(self) -> np.ndarray[Any, Any]:
        """Return all agents' observations in one vector, as mpe2 does."""
        return np.concatenate(list(self._observations().values()))

    def render(self) -> np.ndarray[Any, Any] | None:
        """Return a picture, ``(height, width, 3)`` uint8, or ``None`` without ``render_mode="rgb_array"``."""
        if self.render_mode is None:
            return None
        return draw_scene(spread_scene(np.array(self._trail), self.landmarks, step=self.steps, horizon=self.max_cycles))

    def close(self) -> None:
        """Do nothing: no window is open."""


def _nearest(offsets: np.ndarray[Any, Any], count: int | None) -> np.ndarray[Any, Any]:
    """Return the ``count`` shortest rows of ``offsets``, shortest first, padded with zeros; all of them for ``None``."""
    if count is None:
        return offsets
    chosen = offsets[np.argsort(np.linalg.norm(offsets, axis=1))[:count]]
    return np.concatenate([chosen, np.zeros((count - len(chosen), 2))])


def spread_scene(trail: np.ndarray[Any, Any], landmarks: np.ndarray[Any, Any], *, step: int, horizon: int) -> Scene:
    """Describe a moment of the task for drawing, given the trail ``(n_moments, N, 2)`` that ends in it."""
    covered = np.linalg.norm(trail[-1][:, None] - landmarks[None], axis=-1).min(axis=0) < CAPTURE_RADIUS
    return Scene(
        trail=trail,
        radii=np.full(trail.shape[1], AGENT_RADIUS),
        landmarks=landmarks,
        caption=f"step {step}/{horizon}   landmarks covered {int(covered.sum())}/{len(landmarks)}",
    )
