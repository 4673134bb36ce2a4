"""The systems of :mod:`otbaselines.envs.regulators` as Gymnasium environments."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th

from otbaselines.envs._drawing import draw_scene
from otbaselines.envs.regulators import (
    REGULATORS,
    CoupledOscillators,
    PendulumRegulator,
    Regulator,
    ScalarRegulator,
)
from otbaselines.envs.regulators_base import Array

#: Steps after which the registered environments are truncated.
MAX_EPISODE_STEPS = 200


class RegulatorEnv(gym.Env[Any, Any]):
    """
    One copy of a regulator, computed in float64. Episodes never terminate; ``gymnasium.make`` truncates them after 200 steps,
    or ``max_episode_steps``. ``reset(options={"state": ...})`` starts from a state of one's own.

    :param render_mode: ``"rgb_array"`` or ``None``
    :param parameters: those of the system
    :raises TypeError: if a parameter is of the wrong type
    :raises ValueError: if one is out of range, or the render mode is unknown
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's class attribute)
    #: The class of the system.
    model: ClassVar[type[Regulator]]

    def __init__(self, *, render_mode: str | None = None, **parameters: Any) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"`render_mode` must be 'rgb_array' or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.regulator = self.model(**parameters)
        self.observation_space = self.regulator.observation_space()
        self.action_space = self.regulator.action_space()
        self._step = self.regulator.transition(th.float64)
        self._state: th.Tensor | None = None

    @property
    def state(self) -> Array:
        """
        The present state, ``(state_dim,)``.

        :raises RuntimeError: before the first reset
        """
        return self._present().numpy().copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """
        :param seed: of starts and noise
        :param options: ``{"state": ...}`` starts there instead of at a random state
        :return: the first observation, and nothing more
        :raises ValueError: if an option is unknown, or the state does not fit
        """
        super().reset(seed=seed)
        if options is not None and not isinstance(options, dict):
            raise TypeError(f"`options` must be a dictionary or None, got {options!r}")
        unknown = set(options or {}) - {"state"}
        if unknown:
            raise ValueError(f"`options` may have the entry 'state' only, got {sorted(unknown)}")
        drawn = self._step.start(th.from_numpy(self.np_random.random(self.regulator.state_dim)))
        self._state = self._checked(options["state"]) if options else drawn
        return self._observation(), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """
        :param action: shares of ``max_action``, shape ``(action_dim,)``; clipped to -1 and 1
        :return: observation, reward, and that the episode goes on
        :raises ValueError: if the action has another shape, or is not finite
        :raises RuntimeError: before the first reset
        """
        state, shape = self._present(), self.action_space.shape
        taken = _numbers(action)
        if taken is None or taken.shape != shape or not np.isfinite(taken).all():
            raise ValueError(f"`action` must be finite numbers of shape {shape}, got {action!r}")
        self._state, reward = self._step(state, th.from_numpy(taken), th.from_numpy(self._noise()))
        return self._observation(), float(reward), False, False, {}

    def render(self) -> Any:
        """:return: where the masses are, ``(508, 480, 3)`` uint8; None without a render mode"""
        return None if self.render_mode is None else draw_scene(self.regulator.scene(self.state))

    def _noise(self) -> Array:
        return self.np_random.standard_normal(self.regulator.state_dim)

    def _present(self) -> th.Tensor:
        if self._state is None:
            raise RuntimeError("the environment was never reset; call `reset` first")
        return self._state

    def _observation(self) -> npt.NDArray[np.float32]:
        return self.regulator.observe(self._present()).numpy().astype(np.float32)

    def _checked(self, value: Any) -> th.Tensor:
        state, bounds = _numbers(value), np.array(self.regulator.state_bounds)
        if state is None or state.shape != bounds.shape or not (np.abs(state) <= bounds).all():
            raise ValueError(
                f"`options['state']` must have shape {bounds.shape} and lie within plus and minus {bounds}, got {value!r}"
            )
        return th.from_numpy(state)


def _numbers(value: Any) -> Array | None:
    """A copy in double precision, or None where there are other things than numbers."""
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None


class ScalarRegulatorEnv(RegulatorEnv):
    """:class:`~otbaselines.envs.regulators.ScalarRegulator` in Gymnasium, ``otbaselines/ScalarRegulator-v0``."""

    model = ScalarRegulator


class PendulumRegulatorEnv(RegulatorEnv):
    """:class:`~otbaselines.envs.regulators.PendulumRegulator` in Gymnasium, ``otbaselines/PendulumRegulator-v0``."""

    model = PendulumRegulator


class CoupledOscillatorsEnv(RegulatorEnv):
    """:class:`~otbaselines.envs.regulators.CoupledOscillators` in Gymnasium, ``otbaselines/CoupledOscillators-v0``."""

    model = CoupledOscillators


_register = partial(gym.register, max_episode_steps=MAX_EPISODE_STEPS)
for _name, _model in REGULATORS.items():
    _register(_name, entry_point=f"otbaselines.envs.regulators_gym:{_model.__name__}Env")
