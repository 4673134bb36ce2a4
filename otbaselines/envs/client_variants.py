"""
Gymnasium's control tasks with dynamics that differ from client to client: the second test bed of federated inverse
reinforcement learning (Millard and Baheri 2026, Sec. 4). Spaces and rewards are the same for all clients of a task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.wrappers import TimeLimit

#: Of the pendulum of client 0, per second. Gymnasium's has none; the paper scales a damping that it does not give.
BASE_DAMPING = 0.1


class ClientPendulum(PendulumEnv):
    """
    Gymnasium's pendulum with a motor of its own strength, and a joint that brakes.

    :param gain: torque per unit of the action, whose bounds and cost stay as they are
    :param damping: angular deceleration per angular speed, in 1/s
    :param g: gravity, in m/s^2
    :param render_mode: as in Gymnasium
    """

    def __init__(
        self, gain: float = 1.0, damping: float = BASE_DAMPING, g: float = 9.81, render_mode: str | None = None
    ) -> None:
        super().__init__(render_mode=render_mode, g=g)
        self.gain, self.damping = gain, damping

    def step(self, u: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        speed = self.state[1]
        # Gymnasium's step is linear in the action before the speed is clipped: the same step with another action, whose
        # cost is put right afterwards, and whose bounds are lifted for the moment.
        asked = float(np.clip(np.asarray(u).ravel()[0], -self.max_torque, self.max_torque))
        effective = self.gain * asked - self.damping * speed * self.m * self.l**2 / 3.0
        bound, self.max_torque = self.max_torque, float("inf")
        try:
            observation, reward, *rest = super().step(np.array([effective]))
        finally:
            self.max_torque = bound
        self.last_u = asked
        return observation, float(reward) + 0.001 * (effective**2 - asked**2), *rest


class ObservationNoise(gym.ObservationWrapper[Any, Any, Any]):
    """
    Adds normal noise to vectors, and leaves them within their space.

    :param env: with vectors as observations
    :param std: standard deviation, in the units of the observation
    """

    def __init__(self, env: gym.Env[Any, Any], std: float) -> None:
        super().__init__(env)
        self.std = std

    def observation(self, observation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        space = self.observation_space
        assert isinstance(space, spaces.Box)
        noise = self.unwrapped.np_random.normal(0.0, self.std, size=observation.shape)
        return np.clip(observation + noise, space.low, space.high).astype(observation.dtype)


def _pendulum(index: int, render_mode: str | None) -> gym.Env[Any, Any]:
    pendulum = ClientPendulum(1 + 0.1 * index, BASE_DAMPING * (1 + 0.05 * index), 9.81 + 0.2 * index, render_mode)
    return ObservationNoise(TimeLimit(pendulum, 200), 0.005 * index)


def _cart_pole(index: int, render_mode: str | None) -> gym.Env[Any, Any]:
    pole = CartPoleEnv(render_mode=render_mode)
    scale = 1 + 0.05 * index
    pole.force_mag *= 1 + 0.1 * index
    pole.gravity *= 1 + 0.005 * index
    pole.masscart, pole.masspole, pole.length = scale * pole.masscart, scale * pole.masspole, scale * pole.length
    pole.total_mass, pole.polemass_length = pole.masscart + pole.masspole, pole.masspole * pole.length
    return ObservationNoise(TimeLimit(pole, 500), 0.005 * index)


def _acrobot(index: int, render_mode: str | None) -> gym.Env[Any, Any]:
    acrobot: Any = AcrobotEnv(render_mode=render_mode)
    scale = 1 + 0.05 * index
    for name in ("LINK_LENGTH_1", "LINK_LENGTH_2", "LINK_MASS_1", "LINK_MASS_2", "LINK_COM_POS_1", "LINK_COM_POS_2"):
        # On the instance: the class's own values are those of every other acrobot.
        setattr(acrobot, name, scale * getattr(acrobot, name))
    return TimeLimit(acrobot, 500)


def _lunar_lander(index: int, render_mode: str | None) -> gym.Env[Any, Any]:
    try:
        return gym.make(
            "LunarLanderContinuous-v3",
            enable_wind=True,
            wind_power=10.0 + index,
            turbulence_power=1.0 + 0.2 * index,
            render_mode=render_mode,
        )
    except gym.error.DependencyNotInstalled as error:
        raise ImportError("the lunar lander needs Box2D: pip install otbaselines[box2d]") from error


#: Largest index of a client: beyond it Gymnasium warns of winds that its lander was not made for.
MAX_INDEX = 5
RENDER_MODES = ("human", "rgb_array")
CLIENTS: dict[str, Callable[[int, str | None], gym.Env[Any, Any]]] = {
    "Pendulum-v1": _pendulum,
    "CartPole-v1": _cart_pole,
    "Acrobot-v1": _acrobot,
    "LunarLanderContinuous-v3": _lunar_lander,
}


#: Smallest and largest observations that demonstrators come to, where those of the space are infinite or too wide for a grid.
BOUNDS: dict[str, tuple[list[float], list[float]]] = {
    "Pendulum-v1": ([-1.0, -1.0, -8.0], [1.0, 1.0, 8.0]),
    "CartPole-v1": ([-2.4, -3.0, -0.25, -3.0], [2.4, 3.0, 0.25, 3.0]),
    "Acrobot-v1": ([-1.0] * 4 + [-12.6, -28.3], [1.0] * 4 + [12.6, 28.3]),
    "LunarLanderContinuous-v3": ([-1.5, -0.5, -2.0, -2.0, -1.6, -2.0, 0.0, 0.0], [1.5, 1.6, 2.0, 1.0, 1.6, 2.0, 1.0, 1.0]),
}


def make(env_id: str, index: int, *, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """
    The environment of one client. Client 0 of CartPole and Acrobot is Gymnasium's own environment.

    ============================  =====================================================================================
    ``Pendulum-v1``               torque times 1 + .1 i, damping times 1 + .05 i, gravity 9.81 + .2 i, noise .005 i
    ``CartPole-v1``               force times 1 + .1 i, gravity times 1 + .005 i, masses and length times 1 + .05 i,
                                  noise .005 i
    ``Acrobot-v1``                masses, lengths and centers of mass times 1 + .05 i; moments of inertia stay Gymnasium's
    ``LunarLanderContinuous-v3``  wind 10 + i, turbulence 1 + .2 i
    ============================  =====================================================================================

    :param env_id: one of these
    :param index: i, from 0 to 5 as in the paper
    :param render_mode: ``"human"``, ``"rgb_array"`` or None, as in Gymnasium
    :return: the environment, with Gymnasium's limit of steps
    :raises TypeError: if the index is no integer
    :raises ValueError: if the task or the mode is unknown, or the index out of range
    :raises ImportError: if a package is missing
    """
    if not isinstance(env_id, str) or env_id not in CLIENTS:
        raise ValueError(f"`env_id` must be one of {', '.join(map(repr, CLIENTS))}, got {env_id!r}")
    if isinstance(index, bool) or not isinstance(index, int | np.integer):
        raise TypeError(f"`index` must be an integer, got {index!r}")
    if not 0 <= index <= MAX_INDEX:
        raise ValueError(f"`index` must be in [0, {MAX_INDEX}], got {index}")
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"`render_mode` must be one of {', '.join(map(repr, RENDER_MODES))} or None, got {render_mode!r}")
    return CLIENTS[env_id](int(index), render_mode)
