r"""
The policy flow with particles: each state of a grid holds a cloud of actions, and every action climbs the slope of Q.

In the metric that weights states by how often they are visited, the Wasserstein gradient flow of the objective is
:math:`\dot a = \nabla_a Q(s, a)` for every particle (Dus 2026, *Wasserstein Formulation of Reinforcement Learning*,
arXiv:2604.14765). :class:`ParticleFlow` follows it in steps of first order, with heat if wanted, and in Newton's steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from scipy.interpolate import RegularGridInterpolator

from otbaselines.common.settings import COUNT, MANY, Setting
from otbaselines.wfpg.particles_grid import RARE, ControlProblem, Evaluation, GridProcess

_STEP_SIZE = Setting("number", low=0.0, above="always")
_ENT = Setting("number", low=0.0)
_SETTINGS = {
    "max_action": Setting("number", low=0.0, above="always", optional=True),
    "seed": Setting("integer", low=0, high=2**63 - 1, optional=True),
}
_NEWTON = {
    "transport": Setting("flag"),
    "damping": Setting("number", low=0.0),
    "tol": Setting("number", low=0.0, high=1.0),
    "max_iterations": Setting("integer", low=1, high=MANY),
}
#: Of the gain that the slope promises, this share is asked of a Newton step before it is halved, at most so many times.
_ARMIJO, _HALVINGS = 1e-4, 20


@dataclass(frozen=True)
class NewtonStep:
    """
    How a Newton step went.

    :param length: share of the direction that was taken, 1 for all of it; 0 where no share raised the objective
    :param n_iterations: of conjugate gradients, 0 by the curvature alone
    :param is_concave: whether no direction of upward curvature was met, or at no visited state
    :param gain: by how much the objective rose
    """

    length: float
    n_iterations: int
    is_concave: bool
    gain: float


class ParticleFlow:
    r"""
    The flow of a policy on a grid of states, exact but for the grid: every quantity comes from one linear system in double
    precision (:class:`~otbaselines.wfpg.particles_grid.GridProcess`). The price is a matrix with the square of the number of
    states, so that this is for one or two state variables.

    Without heat clouds shrink wherever Q is concave in the action, and the flow ends in a deterministic policy. Heat is noise
    of Langevin's kind; it stands for the entropy in the step, and not in Q, so that at rest a cloud has the density
    :math:`\exp(Q(s, \cdot) / \text{ent})` up to the step size's order, with the Q of the bare costs.

    :param problem: dynamics and costs, as a regulator of :mod:`otbaselines.envs.regulators`
    :param axes: grid points of each state variable
    :param particles: how many actions each state has, drawn from the standard normal distribution, or the actions themselves,
        shape ``(S, K, m)``
    :param max_action: bound on the absolute value of every entry of an action, at which particles stop; none when omitted
    :param discount: :math:`\gamma` in (0, 1]; 1 is the long-run average
    :param start: weights of the first states, shape ``(S,)``, for a discount below 1; uniform when omitted
    :param seed: of first actions and heat; drawn from the operating system when omitted
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if one is out of range, or they do not go together
    """

    def __init__(
        self,
        problem: ControlProblem,
        axes: Sequence[Any],
        *,
        particles: int | th.Tensor = 5,
        max_action: float | None = None,
        discount: float = 1.0,
        start: th.Tensor | None = None,
        seed: int | None = None,
    ) -> None:
        for name, value in (("max_action", max_action), ("seed", seed)):
            _SETTINGS[name].check(name, value)
        self.process = GridProcess(problem, axes, discount=discount, start=start)
        self.max_action = max_action
        self.generator = th.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self._evaluation: Evaluation | None = None
        self._actions = self._bounded(self._first_actions(particles))

    def _first_actions(self, particles: int | th.Tensor) -> th.Tensor:
        n_states, n_actions = self.process.n_states, self.process.problem.action_dim
        if not isinstance(particles, th.Tensor):
            COUNT.check("particles", particles)
            return th.randn(n_states, particles, n_actions, dtype=th.float64, generator=self.generator)
        shape = tuple(particles.shape)
        if len(shape) != 3 or shape[0] != n_states or shape[1] < 1 or shape[2] != n_actions:
            raise ValueError(f"`particles` must have the shape ({n_states}, K, {n_actions}), got {shape}")
        if not particles.is_floating_point() or not bool(particles.isfinite().all()):
            raise ValueError(f"`particles` must be finite floating-point numbers, got {particles.dtype}")
        return particles.detach().to(th.float64).clone()

    # ------------------------------------------------------------------ what there is

    @property
    def states(self) -> th.Tensor:
        """The grid, ``(S, d)``, the last axis running fastest."""
        return self.process.states

    @property
    def actions(self) -> th.Tensor:
        """The particles, ``(S, K, m)``; steps put another tensor in its place."""
        return self._actions

    @property
    def evaluation(self) -> Evaluation:
        """Objective, weights, values and gradient of the present particles."""
        if self._evaluation is None:
            self._evaluation = self.process.evaluate(self._actions)
        return self._evaluation

    @property
    def cost(self) -> float:
        r"""The long-run cost of a step, or :math:`1 - \gamma` times the discounted cost."""
        return -self.evaluation.objective

    @property
    def spread(self) -> float:
        """Root mean square deviation of the particles from the mean of their state, as often as states are visited."""
        centred = self._actions - self._actions.mean(1, keepdim=True)
        return math.sqrt(self.evaluation.inner(centred, centred))

    def mean_actions(self, states: Any) -> np.ndarray[Any, Any]:
        """
        The clouds' means, between grid points by multilinear interpolation; beyond the grid, those of its edge.

        :param states: shape ``(..., d)``; angles within their period
        :return: shape ``(..., m)``
        :raises ValueError: if there are other than ``d`` coordinates
        """
        points = np.asarray(states, dtype=np.float64)
        axes = [axis.numpy() for axis in self.process.axes]
        if points.shape[-1:] != (len(axes),):
            raise ValueError(f"`states` must have the shape (..., {len(axes)}), got {points.shape}")
        table = self._actions.mean(1).numpy().reshape(*map(len, axes), -1)
        held = []
        for i, (axis, period) in enumerate(zip(axes, self.process.problem.periods, strict=True)):
            coordinate = points[..., i]
            if period is not None:
                # The first point once more, one period later, closes the circle.
                axes[i] = np.append(axis, axis[0] + period)
                table = np.concatenate([table, table.take([0], axis=i)], axis=i)
                coordinate = axis[0] + np.remainder(coordinate - axis[0], period)
            held.append(coordinate.clip(axes[i][0], axes[i][-1]))
        if any(len(axis) == 1 for axis in axes):
            raise ValueError("`mean_actions` interpolates, for which every axis needs two points; read `actions` instead")
        found: np.ndarray[Any, Any] = RegularGridInterpolator(axes, table)(np.stack(held, -1))
        return found

    # ------------------------------------------------------------------ steps

    def step(self, step_size: float, *, ent: float = 0.0) -> None:
        r"""
        One step of first order: :math:`a \leftarrow a + \eta \nabla_a Q(s, a) + \sqrt{2 \eta \, \text{ent}} \, \xi`.

        :param step_size: :math:`\eta > 0`
        :param ent: strength of the heat, at least 0, in the unit of the costs
        :raises TypeError: if an argument is no number
        :raises ValueError: if one is out of range, or the particles would go where they cannot be evaluated; they stay then
        """
        _STEP_SIZE.check("step_size", step_size)
        _ENT.check("ent", ent)
        moved = self._actions + step_size * self.evaluation.gradient
        if ent > 0.0:
            noise = th.randn(moved.shape, dtype=th.float64, generator=self.generator)
            moved = moved + (2.0 * step_size * ent) ** 0.5 * noise
        moved = self._bounded(moved)
        try:
            evaluation = self.process.evaluate(moved)
        except ValueError as error:
            raise ValueError(
                f"`step_size` {step_size} takes particles to where they cannot be evaluated, and they stay; use a smaller "
                f"one, or `max_action`: {error}"
            ) from error
        self._move_to(moved, evaluation)

    def newton_step(
        self, *, transport: bool = False, damping: float = 1e-6, tol: float = 1e-3, max_iterations: int = 100
    ) -> NewtonStep:
        r"""
        One step of second order: a direction :math:`v`, and the largest of :math:`v, v/2, v/4, \dots` that raises the
        objective enough. Particles at the bound that are pushed outwards stay.

        By the curvature alone, :math:`v = (|\nabla_a^2 Q| + \text{damping})^{-1} \nabla_a Q` for each particle by itself:
        Newton's step up Q, and so a policy iteration. With ``transport`` by the whole Hessian, :math:`-H v = \nabla_a Q`:
        conjugate gradients in the metric, preconditioned by the former, without forming :math:`H`; where the objective curves
        upwards they stop at what they have (Steihaug 1983). At an optimum the gradient vanishes, both halves of the transport
        term do so with it, and the two steps agree; far from it the curvature alone needed fewer steps on all regulators.

        :param transport: whether to solve with the transport term of the Hessian
        :param damping: added to the absolute curvature, at least 0, in the unit of costs over squared actions
        :param tol: of the residual relative to the gradient, both in the preconditioned metric
        :param max_iterations: of conjugate gradients
        :return: how it went
        :raises TypeError: if an argument is of the wrong type
        :raises ValueError: if one is out of range
        """
        given = {"transport": transport, "damping": damping, "tol": tol, "max_iterations": max_iterations}
        for name, setting in _NEWTON.items():
            setting.check(name, given[name])
        now = self.evaluation
        curvature = self.process.curvature(now)
        is_free = self._is_free(now)
        strength, axes = th.linalg.eigh(0.5 * (curvature + curvature.transpose(-1, -2)))
        # Where Q curves upwards the absolute value leads away from its minimum, and not to it.
        inverse = axes @ ((strength.abs() + damping).reciprocal().unsqueeze(-1) * axes.transpose(-1, -2))
        gradient = now.gradient * is_free

        def precondition(field: th.Tensor) -> th.Tensor:
            scaled: th.Tensor = (inverse @ field.unsqueeze(-1)).squeeze(-1) * is_free
            return scaled

        def minus_hessian(field: th.Tensor) -> th.Tensor:
            return -self.process.hessian_vector(field, now, curvature) * is_free

        direction, n_iterations = precondition(gradient), 0
        is_concave = bool((strength[now.weights > RARE * now.weights.max()] < 0.0).all())
        if transport:
            direction, n_iterations, is_concave = _conjugate_gradients(
                now, minus_hessian, precondition, gradient, tol=tol, max_iterations=max_iterations
            )
        length, gain = self._search(now, direction, now.inner(gradient, direction))
        return NewtonStep(length, n_iterations, is_concave, gain)

    def _search(self, now: Evaluation, direction: th.Tensor, slope: float) -> tuple[float, float]:
        length = 1.0
        for _ in range(_HALVINGS):
            with suppress(ValueError):
                # What cannot be evaluated is no better than what there is.
                moved = self.process.evaluate(self._bounded(now.actions + length * direction))
                if moved.objective >= now.objective + _ARMIJO * length * slope:
                    self._move_to(moved.actions, moved)
                    return length, moved.objective - now.objective
            length *= 0.5
        return 0.0, 0.0

    def _is_free(self, now: Evaluation) -> th.Tensor:
        if self.max_action is None:
            return th.ones_like(now.actions)
        held = (now.actions.abs() >= self.max_action) & (now.actions * now.gradient > 0.0)
        free: th.Tensor = (~held).to(th.float64)
        return free

    def _bounded(self, actions: th.Tensor) -> th.Tensor:
        return actions if self.max_action is None else actions.clamp(-self.max_action, self.max_action)

    def _move_to(self, actions: th.Tensor, evaluation: Evaluation | None = None) -> None:
        self._actions, self._evaluation = actions, evaluation


def _conjugate_gradients(
    now: Evaluation, operator: Any, precondition: Any, right: th.Tensor, *, tol: float, max_iterations: int
) -> tuple[th.Tensor, int, bool]:
    """Solve in the metric of ``now``, up to the tolerance or to upward curvature; count, and whether there was none of it."""
    solution, residual = th.zeros_like(right), right
    scaled = precondition(residual)
    search, size = scaled, now.inner(residual, scaled)
    first = size
    for iteration in range(max_iterations):
        if size <= tol**2 * first:
            return solution, iteration, True
        image = operator(search)
        bend = now.inner(search, image)
        if bend <= 0.0:
            return (search if iteration == 0 else solution), iteration + 1, False
        length = size / bend
        solution, residual = solution + length * search, residual - length * image
        scaled = precondition(residual)
        size, previous = now.inner(residual, scaled), size
        search = scaled + (size / previous) * search
    return solution, max_iterations, True
