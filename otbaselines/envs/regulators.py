r"""
Regulators: keep a noisy system at rest, and pay for the distance and for the effort.

The three systems on which Dus (2026, *Wasserstein Formulation of Reinforcement Learning*, arXiv:2604.14765) shows the policy
flow: a scalar nonlinear regulator, an inverted pendulum, coupled oscillators. Their parameters are ours. The dynamics

.. math:: s' = f(s, a) + \sigma \xi, \qquad \xi \sim N(0, I), \qquad r = -c(s, a)

are one differentiable function of torch, called by the Gymnasium environments (:mod:`otbaselines.envs.regulators_gym`), by the
batched form (:mod:`otbaselines.envs.regulators_tensor`), and by whoever needs the model itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines.common.settings import Setting
from otbaselines.envs._drawing import Scene
from otbaselines.envs.regulators_base import POSITIVE, Array, LQRSolution, Regulator, RegulatorStep

__all__ = [
    "REGULATORS",
    "CoupledOscillators",
    "LQRSolution",
    "PendulumRegulator",
    "Regulator",
    "RegulatorStep",
    "ScalarRegulator",
]

_NON_NEGATIVE = Setting("number", low=0.0)
_NUMBER = Setting("number")


@dataclass(frozen=True, kw_only=True)
class ScalarRegulator(Regulator):
    r"""
    One state, one action:
    :math:`s' = \text{decay} \, s + \text{bend} \sin s + \text{gain} \, a + N(0, \text{noise}^2)`, at the cost
    :math:`s^2 + \text{control\_weight} \, a^2`.

    With the default ``bend`` rest is unstable: left alone, the system settles near one of two states to the left and to the
    right. ``bend=0`` is the linear regulator, whose optimum is known: average cost 0.11207 and gain -1.3624.

    :param decay: of the state in a step
    :param bend: strength of the nonlinear part
    :param gain: what a unit of the action moves, not 0
    :param noise: standard deviation, at least 0
    :param control_weight: cost of a squared unit of the action, above 0
    :param max_action: bound of the action, above 0
    :param max_state: where the walls are, above 0
    :param max_start: largest absolute first state, from 0 to ``max_state``
    :raises TypeError: if an argument is no number
    :raises ValueError: if one is out of range
    """

    decay: float = 0.9
    bend: float = 0.5
    gain: float = 0.5
    noise: float = 0.3
    control_weight: float = 0.1
    max_action: float = 4.0
    max_state: float = 10.0
    max_start: float = 2.0

    _settings: ClassVar[dict[str, Setting]] = {
        "decay": _NUMBER,
        "bend": _NUMBER,
        "gain": Setting("number", fits=lambda gain: gain != 0.0, what="a number other than 0"),
        "noise": _NON_NEGATIVE,
        "control_weight": POSITIVE,
        "max_state": POSITIVE,
        "max_start": _NON_NEGATIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_start > self.max_state:
            raise ValueError(f"`max_start` must be at most `max_state` = {self.max_state}, got {self.max_start}")

    @property
    def state_dim(self) -> int:
        return 1

    @property
    def action_dim(self) -> int:
        return 1

    @property
    def noise_std(self) -> tuple[float, ...]:
        return (self.noise,)

    @property
    def state_bounds(self) -> tuple[float, ...]:
        return (self.max_state,)

    @property
    def start_bounds(self) -> tuple[float, ...]:
        return (self.max_start,)

    @property
    def is_linear(self) -> bool:
        return self.bend == 0.0

    def scene(self, state: Array) -> Scene:
        return _scene(np.zeros((1, 2)), np.array([[state[0] / self.max_state, 0.0]]), f"state {state[0]:+.2f}")

    def drift(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return self.decay * states + self.bend * th.sin(states) + self.gain * actions

    def cost(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return (states * states + self.control_weight * (actions * actions)).squeeze(-1)


@dataclass(frozen=True, kw_only=True)
class PendulumRegulator(Regulator):
    r"""
    An inverted pendulum on the full circle: the state is the angle :math:`\theta` from upright, in radians, and the angular
    speed :math:`\omega`, in rad/s; an observation is :math:`(\cos\theta, \sin\theta, \omega)`, the action a torque over the
    moment of inertia, in rad/s².

    .. math:: \omega' = \omega + (g \sin\theta - d \, \omega + a) \, dt, \qquad \theta' = \theta + \omega' dt,
       \qquad c = 2 (1 - \cos\theta) + w_\omega \omega^2 + w_a a^2

    plus noise on both; :math:`2 (1 - \cos\theta)` is :math:`\theta^2` near upright, and smooth everywhere. With the defaults
    the torque is stronger than gravity, so that nobody has to swing up; ``max_action`` below ``gravity`` asks for that.

    :param gravity: over the length, in 1/s², at least 0
    :param damping: in 1/s, at least 0
    :param dt: length of a step in seconds, above 0
    :param angle_noise: standard deviation of a step's noise on the angle, at least 0
    :param speed_noise: the same of the speed
    :param speed_weight: :math:`w_\omega`, at least 0
    :param control_weight: :math:`w_a`, above 0
    :param max_action: bound of the torque, above 0
    :param max_speed: largest speed, above 0
    :param max_start_angle: largest absolute first angle, in [0, pi]
    :param max_start_speed: largest absolute first speed, from 0 to ``max_speed``
    :raises TypeError: if an argument is no number
    :raises ValueError: if one is out of range
    """

    gravity: float = 5.0
    damping: float = 0.1
    dt: float = 0.1
    angle_noise: float = 0.1
    speed_noise: float = 0.4
    speed_weight: float = 0.1
    control_weight: float = 0.02
    max_action: float = 10.0
    max_speed: float = 8.0
    max_start_angle: float = math.pi
    max_start_speed: float = 1.0

    _settings: ClassVar[dict[str, Setting]] = {
        "gravity": _NON_NEGATIVE,
        "damping": _NON_NEGATIVE,
        "dt": POSITIVE,
        "angle_noise": _NON_NEGATIVE,
        "speed_noise": _NON_NEGATIVE,
        "speed_weight": _NON_NEGATIVE,
        "control_weight": POSITIVE,
        "max_speed": POSITIVE,
        "max_start_angle": Setting("number", low=0.0, high=math.pi),
        "max_start_speed": _NON_NEGATIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_start_speed > self.max_speed:
            raise ValueError(f"`max_start_speed` must be at most `max_speed` = {self.max_speed}, got {self.max_start_speed}")

    @property
    def state_dim(self) -> int:
        return 2

    @property
    def action_dim(self) -> int:
        return 1

    @property
    def noise_std(self) -> tuple[float, ...]:
        return (self.angle_noise, self.speed_noise)

    @property
    def state_bounds(self) -> tuple[float, ...]:
        return (math.pi, self.max_speed)

    @property
    def start_bounds(self) -> tuple[float, ...]:
        return (self.max_start_angle, self.max_start_speed)

    @property
    def periods(self) -> tuple[float | None, ...]:
        return (2.0 * math.pi, None)

    @property
    def is_linear(self) -> bool:
        return False

    def scene(self, state: Array) -> Scene:
        angle, speed = state
        bob = 0.8 * np.array([[math.sin(angle), math.cos(angle)]])
        return _scene(np.zeros((1, 2)), bob, f"angle {angle:+.2f} rad   speed {speed:+.2f} rad/s")

    def drift(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        angle, speed = states[..., 0], states[..., 1]
        speed = speed + self.dt * (self.gravity * th.sin(angle) - self.damping * speed + actions[..., 0])
        return th.stack([angle + self.dt * speed, speed], -1)

    def cost(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        angle, speed, torque = states[..., 0], states[..., 1], actions[..., 0]
        return 2.0 * (1.0 - th.cos(angle)) + self.speed_weight * (speed * speed) + self.control_weight * (torque * torque)

    def observe(self, states: th.Tensor) -> th.Tensor:
        angle = states[..., 0]
        return th.stack([th.cos(angle), th.sin(angle), states[..., 1]], -1)

    def observation_space(self) -> spaces.Box:
        high = np.array([1.0, 1.0, self.max_speed], dtype=np.float32)
        return spaces.Box(-high, high, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class CoupledOscillators(Regulator):
    r"""
    A chain of ``n`` unit masses between two walls, each tied to its neighbours by springs and pushed by a force of its own:
    states are the ``n`` displacements (m) and then the ``n`` speeds (m/s), actions the ``n`` forces (N).

    .. math:: v_i' = v_i + \bigl(k (x_{i-1} - 2 x_i + x_{i+1}) - \kappa x_i^3 - d \, v_i + a_i\bigr) dt, \qquad
       x_i' = x_i + v_i' dt, \qquad c = \tfrac1n \sum_i (x_i^2 + w_v v_i^2 + w_a a_i^2)

    with :math:`x_0 = x_{n+1} = 0`, plus noise on both. The cost is a mean over the masses, so that chains of all lengths can
    be compared. With ``cubic=0``, the default, the system is linear and its optimum known.

    :param n: number of masses, at least 1
    :param stiffness: :math:`k` in N/m, at least 0
    :param cubic: :math:`\kappa`, a spring to the place of rest that hardens, in N/m³, at least 0
    :param damping: :math:`d` in N s/m, at least 0
    :param dt: length of a step in seconds, above 0
    :param position_noise: standard deviation of a step's noise on the displacements, at least 0
    :param speed_noise: the same of the speeds
    :param speed_weight: :math:`w_v`, at least 0
    :param control_weight: :math:`w_a`, above 0
    :param max_action: bound of each force, above 0
    :param max_position: where walls hold the displacements, above 0
    :param max_speed: largest speed, above 0
    :param max_start: largest absolute first displacement and speed, at least 0 and within both bounds
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if one is out of range
    """

    n: int = 2
    stiffness: float = 2.0
    cubic: float = 0.0
    damping: float = 0.1
    dt: float = 0.1
    position_noise: float = 0.05
    speed_noise: float = 0.2
    speed_weight: float = 0.1
    control_weight: float = 0.1
    max_action: float = 4.0
    max_position: float = 5.0
    max_speed: float = 10.0
    max_start: float = 1.0

    _settings: ClassVar[dict[str, Setting]] = {
        "n": Setting("integer", low=1, high=4096),
        "stiffness": _NON_NEGATIVE,
        "cubic": _NON_NEGATIVE,
        "damping": _NON_NEGATIVE,
        "dt": POSITIVE,
        "position_noise": _NON_NEGATIVE,
        "speed_noise": _NON_NEGATIVE,
        "speed_weight": _NON_NEGATIVE,
        "control_weight": POSITIVE,
        "max_position": POSITIVE,
        "max_speed": POSITIVE,
        "max_start": _NON_NEGATIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        bound = min(self.max_position, self.max_speed)
        if self.max_start > bound:
            raise ValueError(f"`max_start` must be at most {bound}, as `max_position` and `max_speed`, got {self.max_start}")

    @property
    def state_dim(self) -> int:
        return 2 * self.n

    @property
    def action_dim(self) -> int:
        return self.n

    @property
    def noise_std(self) -> tuple[float, ...]:
        return (self.position_noise,) * self.n + (self.speed_noise,) * self.n

    @property
    def state_bounds(self) -> tuple[float, ...]:
        return (self.max_position,) * self.n + (self.max_speed,) * self.n

    @property
    def start_bounds(self) -> tuple[float, ...]:
        return (self.max_start,) * self.state_dim

    @property
    def is_linear(self) -> bool:
        return self.cubic == 0.0

    def scene(self, state: Array) -> Scene:
        along = np.linspace(-1.0, 1.0, self.n + 2)[1:-1]
        rest = np.stack([along, np.zeros(self.n)], -1)
        held = np.stack([along, state[: self.n] / self.max_position], -1)
        return _scene(rest, held, f"{self.n} masses, displacements drawn upwards, +-{self.max_position:g} m")

    def drift(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        positions, speeds = states[..., : self.n], states[..., self.n :]
        # The walls are neighbours that stay at 0.
        chain = th.nn.functional.pad(positions, (1, 1))
        force = self.stiffness * (chain[..., :-2] - 2.0 * positions + chain[..., 2:]) - self.damping * speeds + actions
        if self.cubic:
            force = force - self.cubic * positions**3
        speeds = speeds + self.dt * force
        return th.cat([positions + self.dt * speeds, speeds], -1)

    def cost(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        positions, speeds = states[..., : self.n], states[..., self.n :]
        squares = positions * positions + self.speed_weight * (speeds * speeds) + self.control_weight * (actions * actions)
        return squares.mean(-1)


def _scene(rest: Array, now: Array, caption: str) -> Scene:
    """Masses ``(n, 2)`` at rest and now, in [-1, 1]^2; nothing collides."""
    n = len(now)
    return Scene(
        trail=np.stack([rest, now]),
        radii=np.full(n, min(0.08, 0.6 / n)),
        landmarks=rest,
        touching=np.zeros(n, dtype=bool),
        caption=caption,
    )


#: The systems by the name of their environment.
REGULATORS: dict[str, type[Any]] = {
    "otbaselines/ScalarRegulator-v0": ScalarRegulator,
    "otbaselines/PendulumRegulator-v0": PendulumRegulator,
    "otbaselines/CoupledOscillators-v0": CoupledOscillators,
}
