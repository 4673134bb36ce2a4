"""Small control problems: random smooth ones, and bandits whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch as th

from otbaselines.wfpg.particles_grid import GridProcess


@dataclass(frozen=True)
class SmoothProblem:
    """Smooth dynamics and costs that are not linear in anything, drawn by a seed."""

    seed: int
    state_dim: int = 1
    action_dim: int = 1
    noise: float = 0.5
    period: float | None = None

    @property
    def noise_std(self) -> tuple[float, ...]:
        return (self.noise,) * self.state_dim

    @property
    def periods(self) -> tuple[float | None, ...]:
        return (self.period,) + (None,) * (self.state_dim - 1)

    def _draw(self, name: int, *shape: int) -> th.Tensor:
        return th.from_numpy(np.random.default_rng([self.seed, name]).standard_normal(shape))

    def drift(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        d, m = self.state_dim, self.action_dim
        pulled = 0.6 * states + 0.3 * th.sin(states @ self._draw(0, d, d)) + 0.4 * actions @ self._draw(1, m, d)
        return pulled + 0.2 * th.tanh(actions[..., :1] * states[..., :1])

    def cost(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        d, m = self.state_dim, self.action_dim
        bend = th.cos(states @ self._draw(2, d, 1) + actions @ self._draw(3, m, 1)).squeeze(-1)
        return (states**2).sum(-1) + 0.3 * (actions**2).sum(-1) + bend


@dataclass(frozen=True)
class Bandit:
    """One state, in which the mean reward of an action is ``q``."""

    q: Callable[[th.Tensor], th.Tensor]
    action_dim: int = 1
    noise_std: tuple[float, ...] = (1.0,)
    periods: tuple[float | None, ...] = (None,)

    def drift(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return 0.0 * states + 0.0 * actions[..., :1]

    def cost(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return -self.q(actions[..., 0])


def random_process(seed: int, *, discount: float = 1.0) -> GridProcess:
    """One or two states, one or two actions, an angle or none, by the seed."""
    state_dim, action_dim, has_angle = 1 + seed % 2, 1 + (seed // 2) % 2, (seed // 4) % 2
    period = 4.0 if has_angle else None
    problem = SmoothProblem(seed, state_dim, action_dim, period=period)
    first = np.linspace(-2.0, 2.0, 8, endpoint=False) if has_angle else np.linspace(-3.0, 3.0, 13)
    axes = [first, np.linspace(-2.5, 2.5, 9)][:state_dim]
    start = None
    if discount < 1.0:
        n_states = int(np.prod([len(axis) for axis in axes]))
        start = th.softmax(th.from_numpy(np.random.default_rng(seed).standard_normal(n_states)), 0)
    return GridProcess(problem, axes, discount=discount, start=start)


def random_field(process: GridProcess, seed: int, n_particles: int = 3) -> th.Tensor:
    """Actions, or directions: normal, ``(S, K, m)``."""
    shape = (process.n_states, n_particles, process.problem.action_dim)
    return th.from_numpy(np.random.default_rng([7, seed]).standard_normal(shape))
