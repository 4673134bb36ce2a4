"""The systems on which the particle flow is shown, on grids of states. Parameters are ours: the paper's are unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th

from otbaselines.envs import CoupledOscillators, PendulumRegulator, Regulator, ScalarRegulator
from otbaselines.wfpg import ParticleFlow
from otbaselines.wfpg.particles_grid import ControlProblem

_LINE = (np.linspace(-4.0, 4.0, 81),)
_LINEAR = ScalarRegulator(bend=0.0)


@dataclass(frozen=True)
class TwoMotors:
    """
    The linear scalar regulator with two motors of equal strength and price, of which the second is told in units ten times as
    fine: Q curves a hundred times less along its action. The optimum is that of one motor at half the price.
    """

    regulator: ScalarRegulator = _LINEAR
    action_dim: int = 2
    #: Units of the second action in one of the first.
    fineness: float = 10.0

    @property
    def noise_std(self) -> tuple[float, ...]:
        """That of the regulator."""
        return self.regulator.noise_std

    @property
    def periods(self) -> tuple[float | None, ...]:
        """The state is no angle."""
        return self.regulator.periods

    def drift(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """States ``(..., 1)`` and actions ``(..., 2)`` to the mean of the next states."""
        return self.regulator.drift(states, self._same_units(actions).sum(-1, keepdim=True))

    def cost(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """States ``(..., 1)`` and actions ``(..., 2)`` to costs ``(...)``."""
        efforts = self.regulator.control_weight * self._same_units(actions).square().sum(-1)
        return states.square().squeeze(-1) + efforts

    def _same_units(self, actions: th.Tensor) -> th.Tensor:
        return th.cat([actions[..., :1], actions[..., 1:] / self.fineness], -1)


@dataclass(frozen=True)
class System:
    """
    A problem on its grid.

    :param label: in figures and tables
    :param problem: dynamics and costs
    :param axes: grid points of each state variable
    :param step_sizes: among which the best of first order is looked for, in increasing order
    """

    label: str
    problem: ControlProblem
    axes: tuple[Any, ...]
    step_sizes: tuple[float, ...]

    def flow(self, particles: int, seed: int) -> ParticleFlow:
        """
        :param particles: standard normal actions at each state
        :param seed: of these, and of heat
        :return: the flow at its beginning
        """
        bound = self.problem.max_action if isinstance(self.problem, Regulator) else None
        return ParticleFlow(self.problem, self.axes, particles=particles, max_action=bound, seed=seed)


SYSTEMS: Mapping[str, System] = {
    "linear": System("linear scalar regulator", _LINEAR, _LINE, (0.125, 0.25, 0.5, 1.0, 2.0)),
    "scalar": System("nonlinear scalar regulator", ScalarRegulator(), _LINE, (0.125, 0.25, 0.5, 1.0, 2.0)),
    "pendulum": System(
        "inverted pendulum",
        PendulumRegulator(),
        (np.linspace(-math.pi, math.pi, 42, endpoint=False), np.linspace(-8.0, 8.0, 27)),
        (2.0, 4.0, 8.0, 16.0, 32.0),
    ),
    "oscillator": System(
        "oscillator",
        CoupledOscillators(n=1),
        (np.linspace(-1.5, 1.5, 41), np.linspace(-4.0, 4.0, 27)),
        (0.5, 1.0, 2.0, 4.0, 8.0),
    ),
    "two-motors": System("two motors, unlike units", TwoMotors(), _LINE, (0.25, 0.5, 1.0, 2.0, 4.0)),
}
