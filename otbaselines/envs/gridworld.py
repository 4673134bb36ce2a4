"""
Grid worlds with obstacles that end the episode: ``otbaselines/GridWorld-v0``.

The test bed of federated inverse reinforcement learning (Millard and Baheri 2026, Sec. 4): clients share the goal and the
features, and differ in where the obstacles are and how often a move goes astray.
"""

from __future__ import annotations

from collections import deque
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces

from otbaselines.common.tabular import TabularModel, optimal_values, soft_values
from otbaselines.common.trajectories import Trajectory

#: Right, up, left, down, as steps of (row, column): the actions in the order of their numbers.
MOVES = ((0, 1), (-1, 0), (0, -1), (1, 0))
MAX_SLIP = 0.10
#: The transition tensor has 4 size^4 entries.
MAX_SIZE = 50
_PIXELS = 24
_FREE, _EDGE, _OBSTACLE, _GOAL, _AGENT = (250, 250, 248), (226, 229, 235), (90, 90, 90), (0, 158, 115), (0, 114, 178)


def _reaches_everything(free: npt.NDArray[np.bool_], goal: tuple[int, int]) -> bool:
    """Whether every free cell has a path to the goal over free cells."""
    seen = np.zeros_like(free)
    seen[goal] = True
    queue = deque([goal])
    while queue:
        row, column = queue.popleft()
        for down, right in MOVES:
            cell = (row + down, column + right)
            if min(cell) >= 0 and max(cell) < len(free) and free[cell] and not seen[cell]:
                seen[cell] = True
                queue.append(cell)
    return bool((seen == free).all())


def random_layout(size: int, density: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """
    Obstacles in random cells. One that would cut a free cell off from the goal is left out, so that there may be fewer.

    :param size: cells along an edge
    :param density: share of the cells that get an obstacle, in [0, 1)
    :param rng: source of randomness
    :return: where the obstacles are, shape ``(size, size)``; the goal, in the last row and column, is free
    """
    obstacles = np.zeros((size, size), dtype=bool)
    goal, wanted = (size - 1, size - 1), round(density * size**2)
    for cell in rng.permutation(size**2 - 1):
        if wanted == 0:
            break
        place = (int(cell) // size, int(cell) % size)
        obstacles[place] = True
        if (~obstacles).sum() > 1 and _reaches_everything(~obstacles, goal):
            wanted -= 1
        else:
            obstacles[place] = False
    return obstacles


class GridWorldEnv(gym.Env[np.int64, np.int64]):
    r"""
    A walk over a square grid to the goal in the last row and column.

    The observation is the number of the cell, ``row * size + column``; the actions are :data:`MOVES`. With the probability
    ``slip`` a move goes to one of its two sides instead. At the edge nobody moves. An episode begins in a random free cell;
    it ends on the goal (reward 1, ``info["is_success"]``) and on obstacles (reward -1), and is cut off after ``max_steps``.
    The other rewards are zero. Every free cell has a path to the goal.

    :param size: cells along an edge, from 3 to 50
    :param layout_seed: seed of obstacles and slip; drawn from the operating system when omitted
    :param obstacle_density: share of the cells that get an obstacle, in [0, 0.5]
    :param slip: probability that a move goes astray, in [0, 1]; drawn from U(0, 0.10) by the layout's seed when omitted
    :param max_steps: length at which an episode is cut off; ``8 * size`` when omitted
    :param layout: obstacles given one by one, bool, shape ``(size, size)``, in place of random ones
    :param render_mode: ``"rgb_array"`` or None
    :raises TypeError: if an argument is of another type
    :raises ValueError: if one is out of range, or a given layout blocks the goal or cuts off a free cell
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(
        self,
        size: int = 10,
        layout_seed: int | None = None,
        obstacle_density: float = 0.15,
        slip: float | None = None,
        max_steps: int | None = None,
        layout: npt.ArrayLike | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.size = _whole(size, "size", 3, MAX_SIZE)
        _number(obstacle_density, "obstacle_density", 0.5)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"`render_mode` must be 'rgb_array' or None, got {render_mode!r}")
        if layout_seed is not None:
            _whole(layout_seed, "layout_seed", 0, 2**63 - 1)
        rng = np.random.default_rng(layout_seed)
        drawn_slip = float(rng.uniform(0.0, MAX_SLIP))
        self.slip = drawn_slip if slip is None else _number(slip, "slip", 1.0)
        self.max_steps = 8 * self.size if max_steps is None else _whole(max_steps, "max_steps", 1, 2**31 - 1)
        self.render_mode = render_mode
        self.goal = (self.size - 1, self.size - 1)
        drawn = random_layout(self.size, obstacle_density, rng) if layout is None else self._checked_layout(layout)
        self.obstacles: npt.NDArray[np.bool_] = drawn
        self.obstacles.flags.writeable = False
        self.observation_space = spaces.Discrete(self.size**2)
        self.action_space = spaces.Discrete(len(MOVES))
        self._starts = np.flatnonzero(~self.obstacles.ravel())[:-1]
        self._cell, self._n_steps, self._is_over = int(self._starts[0]), 0, True

    def _checked_layout(self, layout: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        obstacles = np.array(layout)
        if obstacles.dtype != np.bool_ or obstacles.shape != (self.size, self.size):
            raise ValueError(
                f"`layout` must be bool of shape {(self.size, self.size)}, got {obstacles.dtype} of shape {obstacles.shape}"
            )
        if obstacles[self.goal] or not _reaches_everything(~obstacles, self.goal) or obstacles.sum() >= self.size**2 - 1:
            raise ValueError("`layout` must leave the last cell free, and a path to it from every other free one")
        return obstacles

    # ------------------------------------------------------------ episodes

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self._cell = int(self.np_random.choice(self._starts))
        self._n_steps, self._is_over = 0, False
        return np.int64(self._cell), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        if self._is_over:
            raise RuntimeError("the episode is over; call `reset` before `step`")
        if not self.action_space.contains(action):
            raise ValueError(f"`action` must be an integer from 0 to {len(MOVES) - 1}, got {action!r}")
        # One number and two comparisons: ten times as fast as NumPy's `choice`.
        draw = self.np_random.random()
        turn = 0 if draw >= self.slip else 1 if draw < self.slip / 2 else -1
        self._cell = self._after(self._cell, (int(action) + turn) % len(MOVES))
        self._n_steps += 1
        place = divmod(self._cell, self.size)
        success, crash = place == self.goal, bool(self.obstacles[place])
        terminated, truncated = success or crash, self._n_steps >= self.max_steps
        self._is_over = terminated or truncated
        info = {"is_success": success} if self._is_over else {}
        return np.int64(self._cell), float(success) - float(crash), terminated, truncated and not terminated, info

    def _turn_probabilities(self) -> list[float]:
        """Of going straight on, and to either side."""
        return [1.0 - self.slip, self.slip / 2, self.slip / 2]

    def _after(self, cell: int, move: int) -> int:
        row, column = divmod(cell, self.size)
        down, right = MOVES[move]
        row, column = row + down, column + right
        return row * self.size + column if min(row, column) >= 0 and max(row, column) < self.size else cell

    # ------------------------------------------------------------ the model

    @cached_property
    def tabular_model(self) -> TabularModel:
        """The whole process: transitions, expected rewards, features and first states."""
        n, n_moves = self.size**2, len(MOVES)
        ends = self.obstacles.ravel().copy()
        ends[-1] = True
        transition = np.zeros((n, n_moves, n))
        for cell in np.flatnonzero(~ends):
            for move in range(n_moves):
                for turn, probability in zip((0, 1, -1), self._turn_probabilities(), strict=True):
                    transition[cell, move, self._after(int(cell), (move + turn) % n_moves)] += probability
        pay = -self.obstacles.ravel().astype(float)
        pay[-1] = 1.0
        initial = np.zeros(n)
        initial[self._starts] = 1.0 / len(self._starts)
        features = np.repeat(self.features.reshape(n, 1, -1), n_moves, axis=1)
        return TabularModel(
            transition=th.as_tensor(transition),
            rewards=th.as_tensor(transition @ pay),
            features=th.as_tensor(features),
            initial=th.as_tensor(initial),
            terminal=th.as_tensor(ends),
        )

    @cached_property
    def features(self) -> npt.NDArray[np.float64]:
        """
        Euclidean distances of each cell to the goal and to the nearest obstacle, in units of the grid's diagonal, shape
        ``(size, size, 2)``. Without an obstacle the second is one everywhere.
        """
        cells = np.moveaxis(np.indices((self.size, self.size)), 0, -1).astype(float)
        diagonal = np.sqrt(2.0) * (self.size - 1)
        to_goal = np.linalg.norm(cells - np.array(self.goal), axis=-1) / diagonal
        if not self.obstacles.any():
            return np.stack([to_goal, np.ones_like(to_goal)], axis=-1)
        places = np.argwhere(self.obstacles)
        to_obstacle = np.linalg.norm(cells[:, :, None] - places, axis=-1).min(-1) / diagonal
        return np.stack([to_goal, to_obstacle], axis=-1)

    @property
    def lattice_axes(self) -> tuple[npt.NDArray[np.float64], ...]:
        """Coordinates of the support of states and actions: rows, columns, and one-hot actions by number."""
        steps = np.arange(self.size, dtype=float)
        return steps, steps, np.arange(len(MOVES), dtype=float)

    # ------------------------------------------------------------ pictures

    def render(self) -> Any:
        """:return: the grid from above, shape ``(24 size, 24 size, 3)``, uint8; None without a render mode"""
        if self.render_mode is None:
            return None
        colours = np.empty((self.size, self.size, 3), np.uint8)
        colours[:] = _FREE
        colours[self.obstacles] = _OBSTACLE
        colours[self.goal] = _GOAL
        picture = colours.repeat(_PIXELS, 0).repeat(_PIXELS, 1)
        picture[::_PIXELS] = picture[:, ::_PIXELS] = _EDGE
        row, column = divmod(self._cell, self.size)
        rows, columns = np.indices((_PIXELS, _PIXELS)) - (_PIXELS - 1) / 2
        disc = rows**2 + columns**2 <= (_PIXELS / 3) ** 2
        picture[row * _PIXELS : (row + 1) * _PIXELS, column * _PIXELS : (column + 1) * _PIXELS][disc] = _AGENT
        return picture


def make(size: int, seed: int, **env_kwargs: Any) -> GridWorldEnv:
    """
    One client's world.

    :param size: cells along an edge; the paper's are 5, 10 and 20
    :param seed: of obstacles and slip
    :param env_kwargs: further arguments of :class:`GridWorldEnv`
    :return: the environment
    """
    return GridWorldEnv(size=size, layout_seed=seed, **env_kwargs)


def expert_policy(env: gym.Env[Any, Any], *, temperature: float = 0.0, discount: float = 0.99) -> npt.NDArray[np.float64]:
    """
    Who knows the rewards and the dynamics.

    :param env: a grid world, wrapped or not
    :param temperature: 0 for the hard optimum, which divides itself equally between the best actions; above, the soft optimum
        for rewards divided by it
    :param discount: in [0, 1)
    :return: probabilities, shape ``(S, A)``
    :raises ValueError: if the temperature is negative
    """
    if not temperature >= 0.0:
        raise ValueError(f"`temperature` must be at least 0, got {temperature}")
    model = _world(env).tabular_model
    if temperature == 0.0:
        return np.asarray(optimal_values(model, model.rewards, discount=discount)[1])
    return np.asarray(soft_values(model, model.rewards / temperature, discount=discount).log_policy.exp())


def expert(
    env: gym.Env[Any, Any], n_episodes: int, seed: int, *, temperature: float = 0.0, discount: float = 0.99
) -> list[Trajectory]:
    """
    Demonstrations by :func:`expert_policy`. The expert slips like everybody else, and so may end on an obstacle.

    :param env: a grid world, wrapped or not
    :param n_episodes: how many episodes, at least 1
    :param seed: of starts, slips and choices
    :param temperature: see :func:`expert_policy`
    :param discount: in [0, 1)
    :return: the episodes
    :raises ValueError: if an argument is out of range
    """
    _whole(n_episodes, "n_episodes", 1, 2**31 - 1)
    # Thresholds between the actions; the last of them all is left out, so that rounding cannot reach beyond it.
    reached = expert_policy(env, temperature=temperature, discount=discount).cumsum(-1)[:, :-1]
    world, rng = _world(env), np.random.default_rng(seed)
    episodes = []
    for episode in range(n_episodes):
        cell, _ = world.reset(seed=int(rng.integers(2**31)) if episode == 0 else None)
        info: dict[str, Any] = {}
        cells, actions, over, terminated = [cell], [], False, False
        while not over:
            action = int((rng.random() >= reached[cell]).sum())
            cell, _, terminated, truncated, info = world.step(np.int64(action))
            over = terminated or truncated
            cells.append(cell)
            actions.append(action)
        episodes.append(Trajectory(np.array(cells), np.array(actions), terminated, bool(info["is_success"])))
    return episodes


def _world(env: gym.Env[Any, Any]) -> GridWorldEnv:
    world = env.unwrapped
    if not isinstance(world, GridWorldEnv):
        raise TypeError(f"`env` must be a grid world, got {type(world).__name__}")
    return world


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"`{name}` must be in [{low}, {high}], got {value}")
    return int(value)


def _number(value: Any, name: str, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, float | int | np.floating | np.integer):
        raise TypeError(f"`{name}` must be a number, got {value!r}")
    if not 0.0 <= value <= high:
        raise ValueError(f"`{name}` must be in [0, {high:g}], got {value}")
    return float(value)


gym.register("otbaselines/GridWorld-v0", entry_point="otbaselines.envs.gridworld:GridWorldEnv")
