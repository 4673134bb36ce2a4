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
from gymnasium.utils import EzPickle

from otbaselines.common.settings import COUNT
from otbaselines.envs._drawing import Scene
from otbaselines.envs._parallel import Array, PlaneTeamEnv

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
    The arguments of mpe2's ``simple_spread_v3``, checked; ``dynamic_rescaling`` and ``benchmark_data`` have no counterpart.

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
            if value is not None:
                COUNT.check(name, value)
        if not 0.0 <= self.local_ratio <= 1.0:
            raise ValueError(f"`local_ratio` is a share and must lie in [0, 1], got {self.local_ratio}")

    @property
    def possible_agents(self) -> list[str]:
        """Names of the agents, as in mpe2."""
        return [f"agent_{i}" for i in range(self.N)]

    @property
    def obs_dim(self) -> int:
        """Two numbers for each of: own velocity, own position, landmarks, team-mates, and the team-mates' silent channels."""
        n_others = self.N - 1 if self.num_agent_neighbors is None else self.num_agent_neighbors
        return 2 * (2 + (self.num_landmark_neighbors or self.N) + 2 * n_others)

    def observation_space(self) -> spaces.Box:
        """Return a fresh observation space of one agent."""
        return spaces.Box(-np.inf, np.inf, (self.obs_dim,), np.float32)

    def action_space(self) -> spaces.Box | spaces.Discrete:
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


class SimpleSpreadEnv(Curriculum, PlaneTeamEnv, EzPickle):
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
        super().__init__(
            possible_agents=self.config.possible_agents,
            observation_space=self.config.observation_space(),
            action_space=self.config.action_space(),
            max_cycles=self.config.max_cycles,
            render_mode=render_mode,
        )
        self._stage = 0
        self.positions, self.velocities, self.landmarks = np.zeros((3, self.config.N, 2))

    def set_state(self, *, positions: Array, velocities: Array, landmarks: Array) -> None:
        """
        Begin an episode in a given state; each argument has shape ``(N, 2)``.

        :raises ValueError: if a shape is wrong
        """
        self._take_state(positions=positions, velocities=velocities, landmarks=landmarks)

    def _start(self, rng: np.random.Generator) -> None:
        """Place agents and landmarks uniformly in [-1, 1]^2, at rest, drawing in mpe2's order."""
        self.positions, self.landmarks = rng.uniform(-1.0, 1.0, (2, self.config.N, 2))
        self.velocities = np.zeros((self.config.N, 2))

    def _advance(self, actions: Array) -> tuple[Array, bool]:
        self._move(actions @ PUSHES if self.config.continuous_actions else PUSHES[actions])
        nearest = np.linalg.norm(self.positions[:, None] - self.landmarks[None], axis=-1).min(axis=0)
        finished = self.config.terminate_on_success and bool((nearest < CAPTURE_RADIUS).all())
        return self._rewards(nearest), finished

    def _move(self, pushes: Array) -> None:
        """One step of semi-implicit motion with damping; forces are those at the positions before the move."""
        offset = self.positions[:, None] - self.positions[None]
        distance = np.sqrt((offset**2).sum(-1))
        np.fill_diagonal(distance, np.inf)
        overlap = CONTACT_MARGIN * np.logaddexp(0.0, (2 * AGENT_RADIUS - distance) / CONTACT_MARGIN)
        # Agents in exactly the same place would divide zero by zero, as they do in mpe2; here they exert no force.
        contact = CONTACT_FORCE * (offset * (overlap / np.maximum(distance, 1e-10))[..., None]).sum(1)
        self.positions = self.positions + TIME_STEP * self.velocities
        self.velocities = (1.0 - DAMPING) * self.velocities + TIME_STEP * (SENSITIVITY * pushes + contact)

    def _rewards(self, nearest: Array) -> Array:
        """Mix the team's reward, from each landmark's distance to the nearest agent, with the agent's own."""
        distance = np.linalg.norm(self.positions[:, None] - self.positions[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        own = -(distance < 2 * AGENT_RADIUS).sum(axis=1).astype(np.float64) * self._penalise_collisions
        rewards: Array = self.config.local_ratio * own - (1.0 - self.config.local_ratio) * nearest.sum()
        return rewards

    def _observations(self) -> Array:
        rows = []
        for i in range(self.config.N):
            landmarks = _nearest(self.landmarks - self.positions[i], self.config.num_landmark_neighbors)
            others = _nearest(np.delete(self.positions, i, axis=0) - self.positions[i], self.config.num_agent_neighbors)
            own = np.stack([self.velocities[i], self.positions[i]])
            rows.append(np.concatenate([own, landmarks, others, np.zeros_like(others)]).reshape(-1))
        return np.stack(rows)

    def _scene(self, trail: Array) -> Scene:
        return spread_scene(trail, self.landmarks, step=self.steps, horizon=self.max_cycles)


def _nearest(offsets: Array, count: int | None) -> Array:
    """Return the ``count`` shortest rows of ``offsets``, shortest first, padded with zeros; all of them for ``None``."""
    if count is None:
        return offsets
    chosen = offsets[np.argsort(np.linalg.norm(offsets, axis=1))[:count]]
    return np.concatenate([chosen, np.zeros((count - len(chosen), 2))])


def spread_scene(trail: Array, landmarks: Array, *, step: int, horizon: int) -> Scene:
    """Describe a moment of the task for drawing, given the trail ``(n_moments, N, 2)`` that ends in it."""
    covered = np.linalg.norm(trail[-1][:, None] - landmarks[None], axis=-1).min(axis=0) < CAPTURE_RADIUS
    return Scene(
        trail=trail,
        radii=np.full(trail.shape[1], AGENT_RADIUS),
        landmarks=landmarks,
        caption=f"step {step}/{horizon}   landmarks covered {int(covered.sum())}/{len(landmarks)}",
    )
