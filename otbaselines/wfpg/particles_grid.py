r"""
Control problems on a grid of states, with particles for actions: objective, gradient and Hessian in closed form.

A policy is a cloud of ``K`` actions at each state, which have equal shares. With the smooth kernel :math:`P(s' | s, a)` on the
grid, and :math:`P_\pi, r_\pi` the means over the particles, everything comes from one factorisation of an ``S x S`` matrix:

- the long-run average: :math:`\mu P_\pi = \mu`, :math:`J = \mu \cdot r_\pi`, and Poisson's equation
  :math:`(I - P_\pi) h = r_\pi - J`, :math:`\mu \cdot h = 0`;
- the discounted objective, times :math:`1 - \gamma`: :math:`J = (1 - \gamma) \rho_0 \cdot V`,
  :math:`(I - \gamma P_\pi) V = r_\pi`, and the occupancy :math:`d = (1 - \gamma) \rho_0 (I - \gamma P_\pi)^{-1}` in the
  place of :math:`\mu`.

:math:`Q(s, a) = r(s, a) - J + E[h(s')]`, or :math:`r + \gamma E[V(s')]`. In the metric on policies that weights states by
:math:`\mu` the gradient of :math:`J` is :math:`\nabla_a Q` (Dus 2026, arXiv:2604.14765): :math:`\mu` cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch as th

from otbaselines.common.settings import Setting

#: Beyond it the dense ``S x S`` matrix takes gigabytes, and its factorisation minutes.
MAX_STATES = 10_000
#: States that are visited less than this, relative to the most visited one, have no reliable weights in double precision.
RARE = 1e-12
#: Condition of the linear system beyond which the stationary law is rounding: symmetric problems then have lopsided laws.
MAX_CONDITION = 1e11
_DISCOUNT = Setting("number", low=0.0, high=1.0, above="always", remedy="1 is the long-run average")


_OF_PROBLEMS = ("action_dim", "noise_std", "periods", "drift", "cost")


class ControlProblem(Protocol):
    r"""
    What a grid is laid over: :math:`s' = f(s, a) + \sigma \xi` at the cost :math:`c(s, a)`; the regulators of
    :mod:`otbaselines.envs.regulators` are such problems. ``drift`` and ``cost`` are functions of torch that can be
    differentiated twice by the actions.
    """

    @property
    def action_dim(self) -> int:
        """Number of actions."""

    @property
    def noise_std(self) -> tuple[float, ...]:
        """Standard deviation of the noise on each state variable, above 0."""

    @property
    def periods(self) -> tuple[float | None, ...]:
        """Period of each state variable that is an angle."""

    def drift(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """States ``(..., d)`` and actions ``(..., m)`` to the mean of the next states ``(..., d)``."""

    def cost(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """States ``(..., d)`` and actions ``(..., m)`` to costs ``(...)``."""


@dataclass(frozen=True)
class Kernel:
    """
    Probabilities of the next state for each particle, as a product over the first axis of the grid and all others.

    :param first: shape ``(S, K, n_1)``, rows summing to one
    :param rest: shape ``(S, K, n_2 ... n_d)``, rows summing to one
    """

    first: th.Tensor
    rest: th.Tensor

    def expect(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: of the states, shape ``(S,)``
        :return: their means after a step, shape ``(S, K)``
        """
        table = values.view(self.first.shape[-1], self.rest.shape[-1])
        return ((self.first @ table) * self.rest).sum(-1)

    def push(self, masses: th.Tensor) -> th.Tensor:
        """
        :param masses: of the particles, shape ``(S, K)``
        :return: where they are after a step, shape ``(S,)``
        """
        first, rest = self.first.flatten(0, 1), self.rest.flatten(0, 1)
        return (first.T @ (masses.reshape(-1, 1) * rest)).flatten()

    def chain(self) -> th.Tensor:
        """:return: the transition matrix of the particles' mean, shape ``(S, S)``"""
        return (self.first.transpose(1, 2) @ self.rest).flatten(1) / self.first.shape[1]


@dataclass(frozen=True)
class Evaluation:
    r"""
    A policy, evaluated.

    :param actions: the particles, shape ``(S, K, m)``
    :param objective: :math:`J`, minus the average cost, or minus :math:`1 - \gamma` times the discounted one
    :param weights: stationary law or occupancy, shape ``(S,)``, summing to one
    :param values: :math:`h` or :math:`V`, shape ``(S,)``
    :param gradient: :math:`\nabla_a Q` at the particles, shape ``(S, K, m)``
    :param factors: of the linear system, as :func:`torch.linalg.lu_factor` gives them
    """

    actions: th.Tensor
    objective: float
    weights: th.Tensor
    values: th.Tensor
    gradient: th.Tensor
    factors: tuple[th.Tensor, th.Tensor]

    def inner(self, v: th.Tensor, w: th.Tensor) -> float:
        r"""
        The metric :math:`\langle v, w \rangle = \sum_s \mu(s) \tfrac1K \sum_k v(s, k) \cdot w(s, k)`.

        :param v: a field of directions, shape ``(S, K, m)``
        :param w: another one
        :return: their product
        """
        return float(self.weights @ (v * w).sum(-1).mean(-1))

    def solve(self, right: th.Tensor, *, adjoint: bool = False) -> th.Tensor:
        """
        :param right: shape ``(S,)``
        :param adjoint: whether the transposed system is meant
        :return: the solution of the linear system that the values solve, shape ``(S,)``
        """
        solution: th.Tensor = th.linalg.lu_solve(*self.factors, right.unsqueeze(1), adjoint=adjoint)
        return solution.squeeze(1)


class GridProcess:
    r"""
    A control problem on the product of ``axes``, with a Gaussian kernel, wrapped around angles, and normalised in each row.

    The grid stands for the continuous states where its steps are below about 1.5 standard deviations of the noise and it
    reaches beyond where the system goes: at a step of two deviations a sum over the grid is off by up to 1.4 % already.

    :param problem: dynamics and costs
    :param axes: one increasing sequence of grid points for each state variable; of an angle, one period without its end
    :param discount: :math:`\gamma` in (0, 1]; 1 is the long-run average
    :param start: weights of the first states, shape ``(S,)``, for a discount below 1; uniform when omitted
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if axes, start and problem do not go together, the grid is too coarse for the noise, or has more than
        :data:`MAX_STATES` states
    """

    def __init__(
        self,
        problem: ControlProblem,
        axes: Sequence[Any],
        *,
        discount: float = 1.0,
        start: th.Tensor | None = None,
    ) -> None:
        _DISCOUNT.check("discount", discount)
        if absent := [name for name in _OF_PROBLEMS if not hasattr(problem, name)]:
            raise TypeError(
                f"`problem` must be a control problem, such as otbaselines.envs.ScalarRegulator(), got {str(problem)[:100]!r} "
                f"without {', '.join(absent)}"
            )
        if not isinstance(axes, Sequence | np.ndarray):
            raise TypeError(f"`axes` must be a list with the grid points of each state variable, got {str(axes)[:100]!r}")
        self.problem, self.discount = problem, float(discount)
        self.axes = [_axis(i, axis) for i, axis in enumerate(axes)]
        self._check_axes()
        self.n_states = math.prod(len(axis) for axis in self.axes)
        if self.n_states > MAX_STATES:
            raise ValueError(
                f"`axes` make {self.n_states} states, of which at most {MAX_STATES} can be solved; use fewer points"
            )
        self.states = th.cartesian_prod(*self.axes).reshape(self.n_states, len(self.axes))
        if start is not None and discount == 1.0:
            raise ValueError("`start` has no effect on the long-run average; omit it, or pass a `discount` below 1")
        uniform = th.full((self.n_states,), 1.0 / self.n_states, dtype=th.float64)
        self.start = uniform if start is None else _weights(start, self.n_states)
        # The growth of a vector of random signs tells the condition, from below and seldom by far.
        self._probe = th.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], self.n_states))

    def _check_axes(self) -> None:
        deviations, periods = self.problem.noise_std, self.problem.periods
        if len(self.axes) != len(deviations):
            raise ValueError(f"`axes` must have one entry for each of {len(deviations)} state variables, got {len(self.axes)}")
        for i, (axis, deviation, period) in enumerate(zip(self.axes, deviations, periods, strict=True)):
            if not deviation > 0.0:
                raise ValueError(f"`problem.noise_std[{i}]` must be above 0 for a smooth kernel, got {deviation}")
            step = float(axis.diff().max()) if len(axis) > 1 else 0.0
            if step > 2.5 * deviation:
                raise ValueError(
                    f"`axes[{i}]` must have steps of at most 2.5 standard deviations of the noise, {2.5 * deviation:g}, got "
                    f"{step:g}; use more points"
                )
            if period is not None and deviation > 0.25 * period:
                raise ValueError(
                    f"`problem.noise_std[{i}]` must be at most a quarter of the period {period:g}, got {deviation:g}"
                )
            if period is not None and float(axis[-1] - axis[0]) >= period * (1.0 - 1e-9):
                raise ValueError(f"`axes[{i}]` must be shorter than its period {period:g}, got {float(axis[-1] - axis[0]):g}")

    # ------------------------------------------------------------------ the process

    def kernel(self, actions: th.Tensor) -> Kernel:
        """
        :param actions: shape ``(S, K, m)``
        :return: where the particles lead, differentiable by ``actions``
        """
        means = self.problem.drift(self.states.unsqueeze(1), actions)
        factors = []
        settings = zip(self.axes, self.problem.noise_std, self.problem.periods, strict=True)
        for i, (axis, deviation, period) in enumerate(settings):
            offsets = axis - means[..., i : i + 1]
            if period is None:
                logits = -0.5 * (offsets / deviation) ** 2
            else:
                # The nearest image alone would leave a kink half a turn away; with its neighbours it is below e^-18.
                nearest = th.remainder(offsets + 0.5 * period, period) - 0.5 * period
                images = th.stack([nearest - period, nearest, nearest + period])
                logits = th.logsumexp(-0.5 * (images / deviation) ** 2, 0)
            factors.append(th.softmax(logits, -1))
        first, *others = factors
        rest = th.ones_like(first[..., :1])
        for factor in others:
            rest = (rest.unsqueeze(-1) * factor.unsqueeze(-2)).flatten(-2)
        return Kernel(first, rest)

    def rewards(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: shape ``(S, K, m)``
        :return: minus the costs, shape ``(S, K)``
        """
        return -self.problem.cost(self.states.unsqueeze(1), actions)

    def q_values(self, actions: th.Tensor, evaluation: Evaluation) -> th.Tensor:
        r"""
        :math:`r(s, a) - J + E[h(s')]`, or :math:`r(s, a) + \gamma E[V(s')]` with a discount.

        :param actions: any number of them at each state, shape ``(S, K, m)``
        :param evaluation: of the policy that is followed afterwards
        :return: shape ``(S, K)``, differentiable by ``actions``
        """
        return self._q_values(actions, evaluation.values, evaluation.objective)

    def _q_values(self, actions: th.Tensor, values: th.Tensor, objective: float) -> th.Tensor:
        offset = objective if self.discount == 1.0 else 0.0
        return self.rewards(actions) - offset + self.discount * self.kernel(actions).expect(values)

    def evaluate(self, actions: th.Tensor) -> Evaluation:
        """
        Solve for the weights of states and their values, and differentiate Q at the particles.

        :param actions: shape ``(S, K, m)``
        :return: the evaluation
        :raises ValueError: if the result is not finite, or the policy goes so seldom from one class of states to another that
            the stationary law cannot be told
        """
        chain, rewards = self.kernel(actions).chain(), self.rewards(actions).mean(1)
        eye = th.eye(self.n_states, dtype=th.float64)
        averaged = self.discount == 1.0
        # With a rank-one term I - P is regular where the stationary law is unique, and its solutions still solve Poisson's
        # equation: from the left by the law itself, the term vanishes.
        uniform = th.full((self.n_states,), 1.0 / self.n_states, dtype=th.float64)
        factors = th.linalg.lu_factor(eye - chain + uniform if averaged else eye - self.discount * chain)

        def solve(right: th.Tensor, *, adjoint: bool = False) -> th.Tensor:
            solution: th.Tensor = th.linalg.lu_solve(*factors, right.unsqueeze(1), adjoint=adjoint).squeeze(1)
            return solution

        condition = float(solve(self._probe).abs().max())
        if averaged and condition > MAX_CONDITION:
            raise ValueError(
                f"the stationary law of `actions` cannot be told in double precision (condition {condition:.1g}): the policy "
                "hardly ever goes between some states; use more noise, other actions, or a `discount` below 1"
            )
        start = uniform if averaged else (1.0 - self.discount) * self.start
        # Rounding leaves entries of about -1e-18 where nobody goes.
        weights = solve(start, adjoint=True).clamp_min(0.0)
        weights = weights / weights.sum()
        objective = float(weights @ rewards)
        values = solve(rewards - objective if averaged else rewards)
        if averaged:
            values = values - weights @ values
        if not (math.isfinite(objective) and bool(values.isfinite().all())):
            raise ValueError(f"the objective of `actions` is {objective}; use smaller steps, or bounds on the actions")
        leaf = actions.detach().requires_grad_()
        (gradient,) = th.autograd.grad(self._q_values(leaf, values, objective).sum(), leaf)
        return Evaluation(actions, objective, weights, values, gradient, factors)

    # ------------------------------------------------------------------ derivatives

    def curvature(self, evaluation: Evaluation) -> th.Tensor:
        r"""
        :math:`\nabla_a^2 Q` at the particles.

        :param evaluation: of the policy
        :return: shape ``(S, K, m, m)``
        """
        leaf = evaluation.actions.detach().requires_grad_()
        (slope,) = th.autograd.grad(self.q_values(leaf, evaluation).sum(), leaf, create_graph=True)
        rows = [th.autograd.grad(slope[..., i].sum(), leaf, retain_graph=True)[0] for i in range(slope.shape[-1])]
        return th.stack(rows, -2)

    def hessian_vector(self, direction: th.Tensor, evaluation: Evaluation, curvature: th.Tensor) -> th.Tensor:
        r"""
        The Hessian of :math:`J` times a field of directions, in the metric: :math:`\langle w, H v \rangle` is the mixed second
        derivative along :math:`a + t v + u w`. For :math:`w = v` it is curvature plus transport,

        .. math:: J'' = E[v^\top \nabla_a^2 Q \, v] + 2 \gamma E[v \cdot \nabla_a (P \psi)], \qquad
           (I - \gamma P_\pi) \psi = g - \mu \cdot g, \quad g = E_\pi[\nabla_a Q \cdot v]

        (Dus 2026; :math:`\mu \cdot g` is left out with a discount). As an operator the transport term has two halves: how the
        values change with :math:`v`, and how the weights do, relative to themselves, times the gradient.

        :param direction: :math:`v`, shape ``(S, K, m)``
        :param evaluation: of the policy
        :param curvature: what :meth:`curvature` returned for it
        :return: :math:`H v`, shape ``(S, K, m)``
        """
        weights, gradient, n_particles = evaluation.weights, evaluation.gradient, direction.shape[1]
        gain = (gradient * direction).sum(-1).mean(-1)
        # Without taking off mu . g the system gives psi plus a constant, which has no slope.
        psi = evaluation.solve(gain)
        leaf = evaluation.actions.detach().requires_grad_()
        kernel = self.kernel(leaf)
        (by_values,) = th.autograd.grad(self.discount * kernel.expect(psi).sum(), leaf, retain_graph=True)
        moved = self._moved_masses(kernel, leaf, direction * (weights / n_particles)[:, None, None])
        shift = evaluation.solve(self.discount * moved, adjoint=True)
        is_seen = weights > RARE * weights.max()
        relative = th.where(is_seen, shift / weights.clamp_min(th.finfo(th.float64).tiny), 0.0)
        local = (curvature @ direction.unsqueeze(-1)).squeeze(-1)
        return local + by_values + relative[:, None, None] * gradient

    def _moved_masses(self, kernel: Kernel, leaf: th.Tensor, direction: th.Tensor) -> th.Tensor:
        """How the masses after a step change along ``direction``, shape ``(S,)``, by differentiating backwards twice."""
        dual = th.zeros(self.n_states, dtype=th.float64, requires_grad=True)
        (slope,) = th.autograd.grad(kernel.expect(dual).sum(), leaf, create_graph=True)
        (moved,) = th.autograd.grad((slope * direction).sum(), dual)
        return moved


def _axis(index: int, axis: Any) -> th.Tensor:
    name = f"`axes[{index}]`"
    try:
        points = th.as_tensor(np.asarray(axis, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a sequence of numbers, got {axis!r}") from error
    if points.ndim != 1 or len(points) == 0 or not bool(points.isfinite().all()) or not bool((points.diff() > 0).all()):
        raise ValueError(f"{name} must be finite and increasing, of at least one point, got {axis!r}")
    return points


def _weights(start: Any, n_states: int) -> th.Tensor:
    if not isinstance(start, th.Tensor):
        raise TypeError(f"`start` must be a tensor, got {type(start).__name__}")
    given = start.detach().to(th.float64)
    if given.shape != (n_states,) or not bool((given >= 0.0).all()) or abs(float(given.sum()) - 1.0) > 1e-9:
        raise ValueError(f"`start` must be {n_states} non-negative weights summing to one, got the shape {tuple(start.shape)}")
    return given
