"""
The differential game, ``otbaselines/DifferentialGame-v0``: one joint action, one reward, and two peaks to end on.

The game of Salgarkar and Baheri, *When Distance Matters: Wasserstein Trust Regions for Multi-Agent Coordination* (W-MATRPO),
Eq. 30, which grew out of the one in Shek, Shi and Tokekar (2025), *Multi-Agent Trust Region Policy Optimisation: A Joint
Constraint Approach* (arXiv:2508.10340); both as printed, and corrected.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.utils import EzPickle

from otbaselines.common.settings import Setting, check_settings
from otbaselines.envs._parallel import Array, LockstepTeamEnv
from otbaselines.envs._surface import SurfaceScene, cell_centres, draw_surface

VARIANTS = ("as_printed", "ancestor", "corrected")
#: Every action of the two peaks' centres: of what the papers call the global optimum, and of the local one.
GOAL, TRAP = 5.0, 1.0
LOW, HIGH = 0.0, 7.0
#: Reward for each unit of the first agent's action, in the ancestor only.
ANCESTOR_SLOPE = 0.1
# Fixed-point steps from a peak's centre to its maximiser, of which each leaves less than a twentieth of the error.
FIXED_POINT_STEPS = 50


@dataclass(frozen=True)
class Optimum:
    """
    A local maximum of the reward over the box of joint actions.

    :param actions: the joint action, one number for each agent
    :param height: the reward there
    """

    actions: tuple[float, ...]
    height: float


@dataclass(frozen=True)
class RewardSurface:
    r"""
    The reward :math:`\sum_k h_k \exp\bigl(-\tfrac12 \sum_i (a_i - c_k)^2 / s_{ki}^2\bigr) + \sum_i b_i a_i` on one device.

    :param heights: :math:`h_k`, shape ``(2,)``: at the goal, at the trap
    :param centres: :math:`c_k`, shape ``(2, 1)``
    :param precisions: :math:`1 / s_{ki}^2`, shape ``(2, n_agents)``
    :param slopes: :math:`b_i`, shape ``(n_agents,)``
    """

    heights: th.Tensor
    centres: th.Tensor
    precisions: th.Tensor
    slopes: th.Tensor

    def reward(self, joint_actions: th.Tensor) -> th.Tensor:
        """
        :param joint_actions: shape ``(..., n_agents)``
        :return: the team's reward, shape ``(...)``
        """
        return self.bumps(joint_actions).sum(-1) + (joint_actions * self.slopes).sum(-1)

    def bumps(self, joint_actions: th.Tensor) -> th.Tensor:
        """
        :param joint_actions: shape ``(..., n_agents)``
        :return: what either peak contributes, shape ``(..., 2)``
        """
        offsets = joint_actions.unsqueeze(-2) - self.centres
        return self.heights * th.exp(-0.5 * (offsets * offsets * self.precisions).sum(-1))


@dataclass(frozen=True, kw_only=True)
class DifferentialGameConfig:
    r"""
    The game's parameters, checked.

    Two Gaussian bumps, at :math:`(5, \dots, 5)` and at :math:`(1, \dots, 1)`, of unit width except that the first is three
    wide along the second agent's action. What the variants differ in is the bumps' heights:

    - ``"as_printed"``, as in W-MATRPO's Eq. 30: :math:`10 / ((2\pi)^{n/2} \cdot 3)` and :math:`6.5 / (2\pi)^{n/2}`. The second
      is the higher one, 1.95 times, for every number of agents.
    - ``"ancestor"``, as in Shek, Shi and Tokekar (2025), for two agents: the densities ``10 N(5, 5; 1, 3)`` and
      ``5.3 N(1, 1; 1, 1)``, and a tenth of the first agent's action, which makes the first the higher one.
    - ``"corrected"``: 10 and 6.5.

    :param n_agents: number of agents, 2 to 9; the ancestor is defined for two
    :param variant: ``"as_printed"``, ``"ancestor"`` or ``"corrected"``
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if the number of agents is out of range, or not two for the ancestor, or the variant is unknown
    """

    n_agents: int = 3
    variant: str = "as_printed"

    _settings: ClassVar[dict[str, Setting]] = {
        "n_agents": Setting("integer", low=2, high=9),
        "variant": Setting("text", choices=VARIANTS),
    }

    def __post_init__(self) -> None:
        check_settings(self._settings, vars(self))
        if self.variant == "ancestor" and self.n_agents != 2:
            raise ValueError(
                f"`n_agents` must be 2 for the variant 'ancestor', whose source defines it for two agents only, got "
                f"{self.n_agents}; pass n_agents=2, or variant='corrected' for larger teams"
            )

    @property
    def possible_agents(self) -> list[str]:
        """Names of the agents."""
        return [f"agent_{i}" for i in range(self.n_agents)]

    @property
    def widths(self) -> Array:
        """Standard deviations of the bumps at the goal and at the trap along each action, ``(2, n_agents)``."""
        # The paper gives the widths of the first three agents; the others are taken to be as the first and the third.
        widths = np.ones((2, self.n_agents))
        widths[0, 1] = 3.0
        return widths

    @property
    def heights(self) -> Array:
        """Heights of the bumps at the goal and at the trap, ``(2,)``, without what is added to them there."""
        if self.variant == "corrected":
            return np.array([10.0, 6.5])
        volumes = (2.0 * math.pi) ** (self.n_agents / 2) * self.widths.prod(axis=1)
        heights: Array = np.array([10.0, 5.3 if self.variant == "ancestor" else 6.5]) / volumes
        return heights

    @property
    def slopes(self) -> Array:
        """Reward for each unit of an agent's action, ``(n_agents,)``."""
        slopes = np.zeros(self.n_agents)
        slopes[0] = ANCESTOR_SLOPE if self.variant == "ancestor" else 0.0
        return slopes

    def surface(self, dtype: th.dtype, device: th.device | str = "cpu") -> RewardSurface:
        """
        :param dtype: floating-point type of the joint actions
        :param device: where they are
        :return: the reward as a function of such joint actions
        """
        constants = (self.heights, np.array([[GOAL], [TRAP]]), self.widths**-2.0, self.slopes)
        heights, centres, precisions, slopes = (th.as_tensor(each, dtype=dtype, device=device) for each in constants)
        return RewardSurface(heights, centres, precisions, slopes)

    @property
    def optima(self) -> tuple[Optimum, Optimum]:
        """
        The two local maxima in the box of joint actions, the global one first.

        The tail of the other bump, and the slope, move a maximum off its bump's centre; with more than two agents by less
        than a millionth.
        """
        surface = self.surface(th.float64)
        found = []
        for centre in (GOAL, TRAP):
            actions = th.full((self.n_agents,), centre, dtype=th.float64)
            for _ in range(FIXED_POINT_STEPS):
                # Where the gradient vanishes, each action is this weighted mean of the centres, shifted by the slopes.
                weights = surface.bumps(actions).unsqueeze(1) * surface.precisions
                actions = ((weights * surface.centres).sum(0) + surface.slopes) / weights.sum(0)
            found.append(Optimum(tuple(actions.tolist()), float(surface.reward(actions))))
        first, second = sorted(found, key=lambda optimum: -optimum.height)
        return first, second

    def observation_space(self) -> spaces.Box:
        """Return a fresh observation space of one agent, which always sees a 1."""
        return spaces.Box(0.0, 1.0, (1,), np.float32)

    def state_space(self) -> spaces.Box:
        """Return a fresh space of the state, which is always a 1."""
        return spaces.Box(0.0, 1.0, (1,), np.float32)

    def action_space(self) -> spaces.Box:
        """Return a fresh action space of one agent."""
        return spaces.Box(LOW, HIGH, (1,), np.float32)


class DifferentialGameViews:
    """The game as a function, for plots and tables, shared by both forms of the environment."""

    config: DifferentialGameConfig
    #: Entries of the infos that are part of an episode's result.
    info_keywords: tuple[str, ...] = ("distance",)
    #: A picture shows what was played last although the next episode has begun.
    draws_last_step = True

    @property
    def goal(self) -> Array:
        """The joint action from which the distance is measured, ``(n_agents,)``."""
        return np.full(self.config.n_agents, GOAL)

    @property
    def optima(self) -> tuple[Optimum, Optimum]:
        """See :attr:`DifferentialGameConfig.optima`."""
        return self.config.optima

    def reward(self, joint_actions: th.Tensor) -> th.Tensor:
        """
        The team's reward, differentiable, for any number of joint actions.

        :param joint_actions: floating-point tensor of shape ``(..., n_agents)``; nothing is clipped
        :return: rewards, shape ``(...)``, in the type and on the device of ``joint_actions``
        :raises ValueError: if the last dimension is not the team's, or the numbers are not floating-point ones
        """
        self._check(joint_actions)
        return self.config.surface(joint_actions.dtype, joint_actions.device).reward(joint_actions)

    def distance(self, joint_actions: th.Tensor) -> th.Tensor:
        """
        Euclidean distance to :attr:`goal`.

        :param joint_actions: floating-point tensor of shape ``(..., n_agents)``; nothing is clipped
        :return: distances, shape ``(...)``
        :raises ValueError: as in :meth:`reward`
        """
        self._check(joint_actions)
        return _distance(joint_actions)

    def _check(self, joint_actions: th.Tensor) -> None:
        n = self.config.n_agents
        if not isinstance(joint_actions, th.Tensor):
            raise TypeError(
                f"`joint_actions` must be a tensor, got {type(joint_actions).__name__}; use torch.as_tensor(joint_actions)"
            )
        if joint_actions.shape[-1:] != (n,) or not joint_actions.is_floating_point():
            raise ValueError(
                f"`joint_actions` must be floating-point numbers of shape (..., {n}), got {joint_actions.dtype} of shape "
                f"{tuple(joint_actions.shape)}"
            )


def _distance(joint_actions: th.Tensor) -> th.Tensor:
    distance: th.Tensor = th.linalg.vector_norm(joint_actions - GOAL, dim=-1)
    return distance


class DifferentialGameEnv(DifferentialGameViews, LockstepTeamEnv, EzPickle):
    """
    The game as a PettingZoo ``ParallelEnv`` in float64.

    An episode is one step, which terminates it. Every agent sees a constant 1, is paid the team's reward, and finds in its
    info the ``reward`` and the ``distance`` of the joint action, clipped to the box, to (5, ..., 5). Takes the arguments of
    :class:`DifferentialGameConfig`.

    :param render_mode: ``"rgb_array"`` or ``None``
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (PettingZoo prescribes a class attribute)
        "name": "otbaselines/DifferentialGame-v0",
        "render_modes": ["rgb_array"],
        "render_fps": 2,
        "is_parallelizable": True,
    }

    def __init__(self, *, render_mode: str | None = None, **config: Any) -> None:
        EzPickle.__init__(self, render_mode=render_mode, **config)
        self.config = DifferentialGameConfig(**config)
        super().__init__(
            possible_agents=self.config.possible_agents,
            observation_space=self.config.observation_space(),
            action_space=self.config.action_space(),
            max_cycles=1,
            render_mode=render_mode,
            terminates_in_lockstep=True,
        )
        self.state_space = self.config.state_space()
        self._surface = self.config.surface(th.float64)
        self._played: Array | None = None
        self._was_reset = False
        self._result = {"distance": math.nan, "reward": math.nan}

    def state(self) -> Array:
        """Return the constant 1, ``(1,)`` float32."""
        return np.ones(1, dtype=np.float32)

    def render(self) -> Array | None:
        """
        Draw the reward over the first two agents' actions, with the others where they last were, and the last joint action.

        :return: picture ``(height, width, 3)`` uint8, or ``None`` without ``render_mode="rgb_array"`` or before a reset
        """
        if self.render_mode is None or not self._was_reset:
            return None
        return draw_surface(game_scene(self.config, self._played))

    def _start(self, rng: np.random.Generator) -> None:
        """Nothing is random; what was played last stays in the picture until something else is."""
        self._was_reset = True

    def _advance(self, actions: Array) -> tuple[Array, bool]:
        self._played = actions[:, 0]
        joint = th.from_numpy(self._played)
        reward = float(self._surface.reward(joint))
        self._result = {"distance": float(_distance(joint)), "reward": reward}
        return np.full(self.config.n_agents, reward), True

    def _observations(self) -> Array:
        return np.ones((self.config.n_agents, 1))

    def _info(self) -> dict[str, Any]:
        return dict(self._result)


def game_scene(config: DifferentialGameConfig, played: Array | None) -> SurfaceScene:
    """Describe a joint action ``(n_agents,)`` for drawing; without one, the agents that are not on the map are at the goal."""
    surface, axis = config.surface(th.float64), th.from_numpy(cell_centres(LOW, HIGH))
    joint = th.full((config.n_agents,), GOAL, dtype=th.float64) if played is None else th.from_numpy(played)
    grid = joint.repeat(len(axis), len(axis), 1)
    grid[..., 0], grid[..., 1] = axis, axis.unsqueeze(1)
    result = "nothing played yet"
    if played is not None:
        result = f"reward {float(surface.reward(joint)):.3g}   distance {float(_distance(joint)):.2f}"
    return SurfaceScene(
        rewards=surface.reward(grid).numpy(),
        low=LOW,
        high=HIGH,
        names=tuple(config.possible_agents),
        marks=((GOAL, GOAL), (TRAP, TRAP)),
        point=None if played is None else (float(joint[0]), float(joint[1])),
        others=tuple(joint[2:].tolist()),
        caption=f"{config.variant}   {result}",
    )
