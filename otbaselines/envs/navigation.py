"""
Cooperative navigation, ``otbaselines/Navigation-v0``: every agent walks to a target of its own without touching the others.

The task of Baheri (2025), *Wasserstein-barycenter consensus*. The paper leaves the step, the horizon, the collision
threshold and the penalty open; the defaults are this package's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle

from otbaselines.common.settings import COUNT, Setting
from otbaselines.envs._drawing import Scene
from otbaselines.envs._parallel import Array, PlaneTeamEnv

#: Directions of the actions stay, right, left, up, down.
MOVES = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])

HEADINGS = Setting("integer", low=2, high=3601, remedy="to stay counts as one of them")

#: What ``heterogeneous`` may name.
HETEROGENEITY = ("dynamics", "roles", "both")


@dataclass(frozen=True, kw_only=True)
class NavigationConfig:
    """
    The task's parameters, checked.

    Teams differ in one or two ways, which an agent's observation does not reveal:

    - ``"dynamics"`` (or ``True``): speeds run evenly from 0.5 to 1.5 times ``step_size``, radii from 1.5 to 0.5 times half
      the ``collision_threshold``, so the large are slow. What to do is much the same for all, how it plays out is not.
    - ``"roles"``: agent ``i``'s moves are turned by ``i`` quarter turns anticlockwise, as with ``turn=90``. The same action
      number takes agents to different places; :attr:`agent_action_vectors` says where.
    - ``"both"``.

    :param n_agents: number of agents, at least 1
    :param step_size: length of a move, > 0; the arena is [-1, 1]^2
    :param max_episode_steps: steps in an episode, at least 1
    :param collision_threshold: distance below which two agents collide, >= 0; where sizes differ, the sum of two radii
    :param collision_penalty: what an agent pays for each team-mate that it collides with, >= 0
    :param team_reward: pay every agent the team's mean
    :param continuous_actions: moves are vectors in [-1, 1]^2 times the step, instead of one of ``headings``
    :param heterogeneous: ``False``, ``True``, ``"dynamics"``, ``"roles"`` or ``"both"``
    :param headings: number of discrete actions, at least 2: to stay, and ``headings - 1`` directions evenly around the circle.
        The five are stay, right, left, up, down; any other number has stay, right, and so on anticlockwise
    :param turn: degrees by which moves are turned anticlockwise, one for each agent; or a number, which turns agent ``i``
        by ``i`` times as much. Multiples of 90 only permute the five actions, other angles give agents directions that
        their team-mates do not have
    :raises TypeError: if a setting is of the wrong type
    :raises ValueError: if a number is out of range, the kind of heterogeneity is unknown, or settings contradict each other
    """

    n_agents: int = 3
    step_size: float = 0.1
    max_episode_steps: int = 25
    collision_threshold: float = 0.15
    collision_penalty: float = 1.0
    team_reward: bool = False
    continuous_actions: bool = False
    heterogeneous: bool | str = False
    headings: int = 5
    turn: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        for name in ("n_agents", "max_episode_steps"):
            COUNT.check(name, getattr(self, name))
        if not isinstance(self.team_reward, bool | np.bool_):
            raise TypeError(f"`team_reward` must be True or False, got {self.team_reward!r}")
        if not 0.0 < self.step_size < np.inf:
            raise ValueError(f"`step_size` must be positive, got {self.step_size}")
        for name in ("collision_threshold", "collision_penalty"):
            if not 0.0 <= getattr(self, name) < np.inf:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        if isinstance(self.heterogeneous, str) and self.heterogeneous not in HETEROGENEITY:
            raise ValueError(f"`heterogeneous` must be a bool or one of {HETEROGENEITY}, got {self.heterogeneous!r}")
        HEADINGS.check("headings", self.headings)
        if self.continuous_actions and self.headings != len(MOVES):
            raise ValueError(f"`headings` are discrete actions, got {self.headings} with `continuous_actions`; leave it out")
        self._check_turn()

    def _check_turn(self) -> None:
        given = self.turn
        try:
            angles = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"`turn` must be a number of degrees, or one for each agent, got {given!r}") from None
        if isinstance(given, str | bool) or angles.shape not in ((), (self.n_agents,)) or not np.isfinite(angles).all():
            raise ValueError(
                f"`turn` must be a finite number of degrees, or one for each of the {self.n_agents} agents, got {given!r}"
            )
        if self._has_roles and angles.any():
            raise ValueError(
                f"`heterogeneous={self.heterogeneous!r}` turns the moves already, got `turn`={given!r}; leave one out"
            )
        # Comparable and hashable, whatever kind of sequence it came in.
        object.__setattr__(self, "turn", float(angles) if angles.ndim == 0 else tuple(angles.tolist()))

    @property
    def possible_agents(self) -> list[str]:
        """Names of the agents."""
        return [f"agent_{i}" for i in range(self.n_agents)]

    @property
    def _dynamics_differ(self) -> bool:
        # A lone agent has nobody to differ from.
        return self.heterogeneous in (True, "dynamics", "both") and self.n_agents > 1

    @property
    def speeds(self) -> Array:
        """Length of each agent's move, ``(n_agents,)``."""
        factors = np.linspace(0.5, 1.5, self.n_agents) if self._dynamics_differ else np.ones(self.n_agents)
        return self.step_size * factors

    @property
    def radii(self) -> Array:
        """Each agent's radius, ``(n_agents,)``; two agents collide when they are closer than the sum of theirs."""
        factors = np.linspace(1.5, 0.5, self.n_agents) if self._dynamics_differ else np.ones(self.n_agents)
        return 0.5 * self.collision_threshold * factors

    @property
    def collision_distances(self) -> Array:
        """Distance below which agents ``i`` and ``j`` collide, ``(n_agents, n_agents)``; negative on the diagonal."""
        distances: Array = self.radii[:, None] + self.radii[None]
        np.fill_diagonal(distances, -1.0)
        return distances

    @property
    def _has_roles(self) -> bool:
        return self.heterogeneous in ("roles", "both")

    @property
    def angles(self) -> Array:
        """Degrees by which each agent's moves are turned anticlockwise, ``(n_agents,)``."""
        number = np.arange(self.n_agents)
        if self._has_roles:
            return 90.0 * number
        degrees: Array = self.turn * number if isinstance(self.turn, float) else np.asarray(self.turn)
        return degrees

    @property
    def turns(self) -> Array:
        """Each agent's move matrix, step length included: an action vector ``u`` moves agent ``i`` by ``turns[i] @ u``."""
        matrices: Array = self.speeds[:, None, None] * np.stack([_rotation(angle) for angle in self.angles])
        return matrices

    @property
    def moves(self) -> Array:
        """Direction of each discrete action before it is turned, ``(headings, 2)``; zero for staying."""
        if self.headings == len(MOVES):
            return MOVES
        angles = 2.0 * np.pi * np.arange(self.headings - 1) / (self.headings - 1)
        return np.concatenate([MOVES[:1], np.stack([np.cos(angles), np.sin(angles)], axis=1)])

    @property
    def action_vectors(self) -> Array:
        """
        Displacement by each action of an agent of ordinary speed and orientation, ``(headings, 2)``.

        The natural embedding of the actions in a ground metric: left is farther from right than from staying.
        """
        return self.step_size * self.moves

    @property
    def agent_action_vectors(self) -> Array:
        """Displacement by each action of each agent, ``(n_agents, headings, 2)``: where their actions truly take them."""
        vectors: Array = np.einsum("nij,aj->nai", self.turns, self.moves)
        return vectors

    @property
    def obs_dim(self) -> int:
        """Own position, own target, and the others' positions."""
        return 2 * (self.n_agents + 1)

    def observation_space(self) -> spaces.Box:
        """Return a fresh observation space of one agent."""
        return spaces.Box(-1.0, 1.0, (self.obs_dim,), np.float32)

    def action_space(self) -> spaces.Box | spaces.Discrete:
        """Return a fresh action space of one agent."""
        return spaces.Box(-1.0, 1.0, (2,), np.float32) if self.continuous_actions else spaces.Discrete(self.headings)


def _rotation(degrees: float) -> Array:
    """Matrix of an anticlockwise turn, in whole numbers for quarter turns."""
    if degrees % 90 == 0:
        return np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), int(degrees // 90) % 4)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s], [s, c]])


class NavigationViews:
    """Observations worth looking at, shared by both forms of the environment."""

    config: NavigationConfig

    @property
    def action_vectors(self) -> Array:
        """See :attr:`NavigationConfig.action_vectors`."""
        return self.config.action_vectors

    @property
    def agent_action_vectors(self) -> Array:
        """See :attr:`NavigationConfig.agent_action_vectors`."""
        return self.config.agent_action_vectors

    def representative_states(self) -> dict[str, Array]:
        """
        Five situations of one agent, the team-mates parked along the lower edge where nothing else is said.

        :return: float32 observations ``(obs_dim,)`` by description
        """
        n_others = self.config.n_agents - 1
        parked = np.stack([np.linspace(-0.9, 0.9, n_others), np.full(n_others, -0.95)], axis=1)
        blocked = parked.copy()
        # Close enough that the next step to the right is a collision, not so close that there is one now.
        blocked[:1] = [-0.5 + self.config.collision_threshold + 0.5 * self.config.step_size, 0.0]
        situations: dict[str, tuple[tuple[float, float], tuple[float, float], Array]] = {
            "target to the right": ((-0.5, 0.0), (0.5, 0.0), parked),
            "target above": ((0.0, -0.5), (0.0, 0.5), parked),
            "target below to the left": ((0.5, 0.5), (-0.3, -0.3), parked),
            "at the target": ((0.3, 0.3), (0.3, 0.3), parked),
            "team-mate in the way": ((-0.5, 0.0), (0.5, 0.0), blocked),
        }
        return {
            name: np.concatenate([own, target, others.reshape(-1)]).astype(np.float32)
            for name, (own, target, others) in situations.items()
        }

    def policy_map_observations(self, resolution: int, agent: int, *, target: tuple[float, float] | None = None) -> Array:
        """
        Observations of one agent all over the arena, for drawing where its policy goes.

        Targets stand on a circle of radius 0.6, agent 0's on top and the rest anticlockwise; team-mates stand on theirs.

        :param resolution: points along each axis, at least 2
        :param agent: whose target and team-mates, ``0 .. n_agents - 1``
        :param target: the agent's target instead; give all agents the same to compare their maps
        :return: float32 observations ``(resolution**2, obs_dim)``, row by row from (-1, -1); the first two columns are x and y
        :raises ValueError: if ``resolution`` or ``agent`` is out of range
        """
        n = self.config.n_agents
        if resolution < 2:
            raise ValueError(f"`resolution` must be at least 2, got {resolution}")
        if not 0 <= agent < n:
            raise ValueError(f"`agent` must be a number in 0..{n - 1}, got {agent}")
        angles = 0.5 * np.pi + 2.0 * np.pi * np.arange(n) / n
        places = 0.6 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        axis = np.linspace(-1.0, 1.0, resolution)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        fixed = np.concatenate([places[agent] if target is None else target, np.delete(places, agent, axis=0).reshape(-1)])
        own = np.stack([x.reshape(-1), y.reshape(-1)], axis=1)
        return np.concatenate([own, np.broadcast_to(fixed, (len(own), len(fixed)))], axis=1).astype(np.float32)


class NavigationEnv(NavigationViews, PlaneTeamEnv, EzPickle):
    """
    The task as a PettingZoo ``ParallelEnv`` in NumPy and float64.

    Rewards are minus the distance to the own target after the move, minus ``collision_penalty`` for every team-mate touched.
    Moves end at the arena's edge. Takes the arguments of :class:`NavigationConfig`.

    :param render_mode: ``"rgb_array"`` or ``None``
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (PettingZoo prescribes a class attribute)
        "name": "otbaselines/Navigation-v0",
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "is_parallelizable": True,
    }

    def __init__(self, *, render_mode: str | None = None, **config: Any) -> None:
        EzPickle.__init__(self, render_mode=render_mode, **config)
        self.config = NavigationConfig(**config)
        super().__init__(
            possible_agents=self.config.possible_agents,
            observation_space=self.config.observation_space(),
            action_space=self.config.action_space(),
            max_cycles=self.config.max_episode_steps,
            render_mode=render_mode,
        )
        self._turns, self._moves = self.config.turns, self.config.agent_action_vectors
        self._collision_distances = self.config.collision_distances
        self.positions, self.targets = np.zeros((2, self.config.n_agents, 2))

    def set_state(self, *, positions: Array, targets: Array) -> None:
        """
        Begin an episode in a given state; each argument has shape ``(n_agents, 2)``.

        :raises ValueError: if a shape is wrong
        """
        self._take_state(positions=positions, targets=targets)

    def _start(self, rng: np.random.Generator) -> None:
        """Place agents and targets uniformly in the arena."""
        self.positions, self.targets = rng.uniform(-1.0, 1.0, (2, self.config.n_agents, 2))

    def _advance(self, actions: Array) -> tuple[Array, bool]:
        if self.config.continuous_actions:
            steps = (self._turns @ actions[:, :, None])[:, :, 0]
        else:
            steps = self._moves[np.arange(self.config.n_agents), actions]
        self.positions = np.clip(self.positions + steps, -1.0, 1.0)
        distance = np.linalg.norm(self.positions[:, None] - self.positions[None], axis=-1)
        n_touched = (distance < self._collision_distances).sum(axis=1)
        rewards: Array = -np.linalg.norm(self.positions - self.targets, axis=1) - self.config.collision_penalty * n_touched
        return (np.full_like(rewards, rewards.mean()) if self.config.team_reward else rewards), False

    def _observations(self) -> Array:
        n = self.config.n_agents
        others = np.stack([np.delete(self.positions, i, axis=0).reshape(-1) for i in range(n)])
        return np.concatenate([self.positions, self.targets, others], axis=1)

    def _scene(self, trail: Array) -> Scene:
        return navigation_scene(self.config, trail, self.targets, step=self.steps)


def navigation_scene(config: NavigationConfig, trail: Array, targets: Array, *, step: int) -> Scene:
    """Describe a moment of the task for drawing, given the trail ``(n_moments, n_agents, 2)`` that ends in it."""
    mean_distance = float(np.linalg.norm(trail[-1] - targets, axis=1).mean())
    return Scene(
        trail=trail,
        radii=config.radii,
        targets=targets,
        caption=f"step {step}/{config.max_episode_steps}   mean distance to target {mean_distance:.2f}",
    )
