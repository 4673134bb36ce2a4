r"""
Maximum-entropy inverse reinforcement learning on finite decision processes, for many clients at once.

The reward is linear, :math:`r_\theta(s, a) = \theta^\top \phi(s, a)`. Among the policies with the demonstrator's expected
features the one of largest causal entropy is the soft-optimal policy of the :math:`\theta` that maximises the concave

.. math:: L(\theta) = \theta^\top \mu_E - (1 - \gamma) \, E[V_\theta(s_0)] - \tfrac{\lambda}{2} |\theta|^2, \qquad
          \nabla L = \mu_E - \mu_{\pi_\theta} - \lambda \theta

(Ziebart et al. 2010; Millard and Baheri 2026, Eq. 2), where :math:`\mu` are discounted feature averages and
:math:`V_\theta` soft values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch as th

from otbaselines.common.settings import COUNT, Setting, check_settings
from otbaselines.common.tabular import (
    TabularModel,
    occupancy,
    occupancy_finite,
    soft_values,
    soft_values_finite,
)
from otbaselines.common.trajectories import Trajectory

#: Share of the slope that a step has to keep its promise of (Armijo), and how often a step is halved for it.
_SUFFICIENT, _MAX_HALVINGS = 1e-4, 40
_HORIZON_SETTINGS = {
    "discount": Setting("number", low=0.0, high=1.0),
    "n_steps": Setting("integer", low=1, high=COUNT.high, optional=True),
}


@dataclass(frozen=True)
class Horizon:
    """
    How far an episode is looked at.

    :param discount: in [0, 1); up to 1 with a number of steps
    :param n_steps: length at which every episode is cut off; None for endless ones
    :raises TypeError: if one of them is no number
    :raises ValueError: if the discount is out of range, or ``n_steps`` not positive
    """

    discount: float = 0.95
    n_steps: int | None = None

    def __post_init__(self) -> None:
        check_settings(_HORIZON_SETTINGS, vars(self))
        if self.discount == 1.0 and self.n_steps is None:
            raise ValueError(f"`discount` must be in [0, 1), or up to 1 with a number of steps, got {self.discount}")


#: What :func:`fit` can be told beside processes and demonstrators.
_FIT_SETTINGS = {
    "horizon": Setting((Horizon,)),
    "l2": Setting("number", low=0.0),
    "tol": Setting("number", low=0.0),
    "learning_rate": Setting("number", low=0.0, above="always", optional=True),
}


@dataclass(frozen=True)
class Likelihood:
    """
    The concave objective of every client at given parameters.

    :param value: shape ``(n_clients,)``
    :param gradient: shape ``(n_clients, k)``
    :param policy_features: :math:`\\mu_{\\pi_\\theta}`, shape ``(n_clients, k)``
    :param values: soft values of the states, to start the next solution from
    """

    value: th.Tensor
    gradient: th.Tensor
    policy_features: th.Tensor
    values: th.Tensor


@dataclass(frozen=True)
class MaxEntResult:
    r"""
    What inverse reinforcement learning has found.

    :param theta: shape ``(n_clients, k)``
    :param expert_features: :math:`\mu_E`, shape ``(n_clients, k)``
    :param policy_features: :math:`\mu_{\pi_\theta}`, shape ``(n_clients, k)``
    :param n_iter: steps of each client, shape ``(n_clients,)``
    :param error: largest entry of each client's gradient, shape ``(n_clients,)``
    :param converged: whether it is below the tolerance, shape ``(n_clients,)``
    """

    theta: th.Tensor
    expert_features: th.Tensor
    policy_features: th.Tensor
    n_iter: th.Tensor
    error: th.Tensor
    converged: th.Tensor


def rewards_of(model: TabularModel, theta: th.Tensor) -> th.Tensor:
    """
    :param model: shape ``(..., S, A, S)``
    :param theta: shape ``(..., k)``
    :return: linear rewards, shape ``(..., S, A)``
    """
    rewards: th.Tensor = (model.features * theta[..., None, None, :]).sum(-1)
    return rewards


def likelihood(
    model: TabularModel,
    expert_features: th.Tensor,
    theta: th.Tensor,
    *,
    horizon: Horizon,
    l2: float,
    init: th.Tensor | None = None,
) -> Likelihood:
    """
    :math:`L` and its gradient, every client at its own parameters.

    :param model: the clients' processes, shape ``(n_clients, S, A, S)``
    :param expert_features: shape ``(n_clients, k)``
    :param theta: shape ``(n_clients, k)``
    :param horizon: discount and length
    :param l2: the ridge, at least 0
    :param init: values to start from
    :return: objective and gradient
    """
    rewards = rewards_of(model, theta)
    if horizon.n_steps is None:
        solution = soft_values(model, rewards, discount=horizon.discount, init=init)
        start = (1 - horizon.discount) * (model.initial * solution.values).sum(-1)
        visits = occupancy(model, solution.log_policy.exp(), discount=horizon.discount)
        values = solution.values
    else:
        solution = soft_values_finite(model, rewards, horizon=horizon.n_steps, discount=horizon.discount)
        start = (model.initial * solution.values[0]).sum(-1) / horizon.n_steps
        visits = occupancy_finite(model, solution.log_policy.exp(), discount=horizon.discount)
        values = solution.values[0]
    policy_features = (visits.unsqueeze(-1) * model.features).sum((-3, -2))
    value = (theta * expert_features).sum(-1) - start - 0.5 * l2 * theta.square().sum(-1)
    return Likelihood(value, expert_features - policy_features - l2 * theta, policy_features, values)


def expert_features(model: TabularModel, trajectories: Sequence[Trajectory], horizon: Horizon) -> th.Tensor:
    r"""
    The demonstrator's discounted feature average :math:`\mu_E`, in the unit of :func:`~otbaselines.common.tabular.occupancy`.

    A terminal state that is its own successor (:meth:`~otbaselines.common.tabular.TabularModel.absorbing`) is visited for ever
    by an episode that ended there. The unseen rest of an episode that was cut off is taken to be like what was seen of it.

    :param model: one process, shape ``(S, A, S)``
    :param trajectories: of numbers of states and actions
    :param horizon: discount and length
    :return: shape ``(k,)``
    :raises ValueError: if there is no trajectory, or a number is not a state or an action
    """
    if not trajectories:
        raise ValueError("`demonstrations` must have at least one trajectory, got none")
    total = th.zeros(model.features.shape[-1], dtype=model.features.dtype)
    for trajectory in trajectories:
        total += _discounted(model, trajectory, horizon)
    return total / len(trajectories)


def _discounted(model: TabularModel, trajectory: Trajectory, horizon: Horizon) -> th.Tensor:
    states = numbers_of(trajectory.observations, model.n_states, "observations")
    actions = numbers_of(trajectory.actions, model.n_actions, "actions")
    seen = model.features[states[:-1], actions]
    n_steps, last = horizon.n_steps, int(states[-1])
    stays = trajectory.terminated and float(model.transition[last, 0, last]) == 1.0
    if stays and n_steps is None:
        own = discounted_average(seen, horizon, terminated=True)
        return own + horizon.discount ** len(seen) * model.features[last, 0]
    if stays and n_steps is not None and len(seen) < n_steps:
        seen = th.cat((seen, model.features[last, 0].expand(n_steps - len(seen), -1)))
    return discounted_average(seen, horizon, terminated=trajectory.terminated)


def discounted_average(seen: th.Tensor, horizon: Horizon, *, terminated: bool) -> th.Tensor:
    r"""
    :math:`(1 - \gamma) \sum_t \gamma^t \phi_t` of one episode, or :math:`\frac1T \sum_{t < T} \gamma^t \phi_t` with a horizon.

    After an episode that ended nothing counts. The unseen rest of one that was cut off is taken to be like what was seen.

    :param seen: features of its steps, shape ``(n_steps, k)``
    :param horizon: discount and length
    :param terminated: whether the episode ended by itself
    :return: shape ``(k,)``
    """
    if horizon.n_steps is not None:
        seen = seen[: horizon.n_steps]
    weights = horizon.discount ** th.arange(len(seen), dtype=seen.dtype)
    if horizon.n_steps is None:
        weights = (1 - horizon.discount) * weights
        return (weights @ seen) / (1.0 if terminated else 1.0 - horizon.discount ** len(seen))
    whole = float((horizon.discount ** th.arange(horizon.n_steps, dtype=seen.dtype)).sum())
    return (weights @ seen) / (horizon.n_steps if terminated else horizon.n_steps * float(weights.sum()) / whole)


def numbers_of(array: object, limit: int, name: str) -> th.Tensor:
    """
    :param array: what was recorded
    :param limit: how many states or actions there are
    :param name: which of them they are, for the message
    :return: the same as integers, shape ``(n,)``
    :raises ValueError: if they are no row of integers, or one is out of range
    """
    found = np.asarray(array)
    if found.dtype.kind not in "iub" or found.ndim != 1:
        raise ValueError(
            f"`{name}` of a tabular demonstration must be a row of integers, got {found.dtype}, {found.ndim} axes"
        )
    if len(found) and not (found.min() >= 0 and found.max() < limit):
        raise ValueError(f"`{name}` must be in [0, {limit}), got {int(found.min())} to {int(found.max())}")
    return th.as_tensor(found.astype(np.int64))


# ---------------------------------------------------------------- ascent


Objective = Callable[[th.Tensor], Likelihood]


def ascend_bfgs(objective: Objective, start: th.Tensor, n_iterations: th.Tensor, tol: float) -> tuple[th.Tensor, th.Tensor]:
    r"""
    Maximise the objectives of all clients by BFGS with a backtracking line search, each client at its own pace.

    It has no learning rate, which a reward whose features are of any unit would have to be tuned to.

    :param objective: of parameters ``(n_clients, k)``
    :param start: shape ``(n_clients, k)``
    :param n_iterations: steps after which each client stops, shape ``(n_clients,)``
    :param tol: largest entry of a gradient at which a client is done
    :return: parameters, and the steps that each client has made
    """
    n_clients, k = start.shape
    eye = th.eye(k, dtype=start.dtype).expand(n_clients, k, k)
    theta, here, inverse = start, objective(start), eye
    done = th.zeros(n_clients, dtype=th.long)
    stuck = th.zeros(n_clients, dtype=th.bool)
    while True:
        active = (here.gradient.abs().amax(-1) > tol) & (done < n_iterations) & ~stuck
        if not bool(active.any()):
            return theta, done
        direction = (inverse @ here.gradient.unsqueeze(-1)).squeeze(-1)
        slope = (direction * here.gradient).sum(-1)
        step, there = _line_search(objective, theta, here, direction, slope, active)
        moved = step * direction
        change = here.gradient - there.gradient
        curvature = (moved * change).sum(-1)
        # Rounding leaves nothing to gain: the step that was accepted last is where the client stays.
        stuck = stuck | (active & (step.squeeze(-1) == 0))
        sound = active & (curvature > 1e-14 * moved.norm(dim=-1) * change.norm(dim=-1))
        inverse = th.where(sound.view(-1, 1, 1), _update(inverse, moved, change, curvature, done == 0), inverse)
        theta, here, done = theta + moved, there, done + active.long()


def _line_search(
    objective: Objective, theta: th.Tensor, here: Likelihood, direction: th.Tensor, slope: th.Tensor, active: th.Tensor
) -> tuple[th.Tensor, Likelihood]:
    """Step lengths, shape ``(n_clients, 1)``, zero where no step helps, and the objectives there."""
    step = active.to(theta).unsqueeze(-1)
    # Near the maximum differences of the objective are lost in rounding, and slopes are not: there the condition is that of
    # Hager and Zhang (2005, Eq. 4.1), which says the same of a quadratic.
    slack = 1e-9 * here.value.abs().clamp_min(1.0)
    for _ in range(_MAX_HALVINGS):
        there = objective(theta + step * direction)
        better = there.value >= here.value + _SUFFICIENT * step.squeeze(-1) * slope
        flatter = (there.gradient * direction).sum(-1) >= (2 * _SUFFICIENT - 1) * slope
        good = better | (flatter & (there.value >= here.value - slack))
        if bool((good | ~active).all()):
            return step, there
        step = th.where((good | ~active).unsqueeze(-1), step, 0.5 * step)
    step = th.where((good | ~active).unsqueeze(-1), step, 0.0)
    return step, objective(theta + step * direction)


def _update(inverse: th.Tensor, moved: th.Tensor, change: th.Tensor, curvature: th.Tensor, first: th.Tensor) -> th.Tensor:
    """BFGS's update of the inverse Hessian of the negative objective (Nocedal and Wright 2006, Eqs. 6.17, 6.20)."""
    s, y = moved.unsqueeze(-1), change.unsqueeze(-1)
    rho = 1.0 / curvature.clamp_min(1e-300).view(-1, 1, 1)
    eye = th.eye(moved.shape[-1], dtype=moved.dtype)
    scale = curvature / change.square().sum(-1).clamp_min(1e-300)
    inverse = th.where(first.view(-1, 1, 1), scale.view(-1, 1, 1) * eye, inverse)
    left = eye - rho * s @ y.mT
    updated: th.Tensor = left @ inverse @ left.mT + rho * s @ s.mT
    return updated


def ascend_gradient(
    objective: Objective, start: th.Tensor, n_iterations: th.Tensor, tol: float, learning_rate: float
) -> tuple[th.Tensor, th.Tensor]:
    """
    Plain gradient ascent, as in the paper.

    :param objective: of parameters ``(n_clients, k)``
    :param start: shape ``(n_clients, k)``
    :param n_iterations: steps after which each client stops, shape ``(n_clients,)``
    :param tol: largest entry of a gradient at which a client is done
    :param learning_rate: positive
    :return: parameters, and the steps that each client has made
    """
    theta, done = start, th.zeros(len(start), dtype=th.long)
    while True:
        gradient = objective(theta).gradient
        active = (gradient.abs().amax(-1) > tol) & (done < n_iterations)
        if not bool(active.any()):
            return theta, done
        theta = theta + learning_rate * active.to(theta).unsqueeze(-1) * gradient
        done = done + active.long()


def fit(
    model: TabularModel,
    expert: th.Tensor,
    *,
    horizon: Horizon,
    l2: float = 0.0,
    n_iterations: int | th.Tensor = 200,
    tol: float = 1e-8,
    learning_rate: float | None = None,
    init: th.Tensor | None = None,
) -> MaxEntResult:
    """
    Inverse reinforcement learning of every client.

    :param model: the clients' processes, shape ``(n_clients, S, A, S)``
    :param expert: their demonstrators' feature averages, see :func:`expert_features`, shape ``(n_clients, k)``
    :param horizon: discount and length
    :param l2: the ridge; 0 lets parameters grow without end where a demonstrator never errs
    :param n_iterations: most steps, of all clients or of each, shape ``(n_clients,)``
    :param tol: largest entry of the gradient at which a client is done, in the unit of the features
    :param learning_rate: of plain gradient ascent; BFGS when omitted
    :param init: parameters to start from, shape ``(n_clients, k)``; zeros when omitted
    :return: the parameters and how the ascent stopped
    :raises TypeError: if an argument is of another type
    :raises ValueError: if shapes disagree, or an argument is out of range
    """
    check_settings(_FIT_SETTINGS, locals())
    n_clients, k = model.transition.shape[0], model.features.shape[-1]
    if not isinstance(expert, th.Tensor):
        raise TypeError(f"`expert` must be a torch tensor, got {type(expert).__name__}")
    if tuple(expert.shape) != (n_clients, k) or not bool(expert.isfinite().all()):
        raise ValueError(f"`expert` must be finite of shape {(n_clients, k)}, got {tuple(expert.shape)}")
    start = th.zeros_like(expert) if init is None else init.to(expert)
    if start.shape != expert.shape or not bool(start.isfinite().all()):
        raise ValueError(f"`init` must be finite of shape {tuple(expert.shape)}, got {tuple(start.shape)}")
    most = iterations_of(n_iterations, n_clients)
    warm: list[th.Tensor | None] = [None]

    def objective(theta: th.Tensor) -> Likelihood:
        found = likelihood(model, expert, theta, horizon=horizon, l2=l2, init=warm[0])
        # Parameters move little from one call to the next, and the values with them.
        warm[0] = found.values if horizon.n_steps is None else None
        return found

    if learning_rate is None:
        theta, done = ascend_bfgs(objective, start, most, tol)
    else:
        theta, done = ascend_gradient(objective, start, most, tol, learning_rate)
    end = objective(theta)
    error = end.gradient.abs().amax(-1)
    return MaxEntResult(theta, expert, end.policy_features, done, error, error <= tol)


def iterations_of(n_iterations: object, n_clients: int) -> th.Tensor:
    """
    :param n_iterations: most steps, of all clients or of each
    :param n_clients: how many there are
    :return: those of each, shape ``(n_clients,)``
    :raises TypeError: if they are no integers
    :raises ValueError: if one is negative, or there are not as many as clients
    """
    given = n_iterations.tolist() if isinstance(n_iterations, th.Tensor) else n_iterations
    each = list(given) if isinstance(given, list | tuple) else [given] * n_clients
    if len(each) != n_clients:
        raise ValueError(f"`n_iterations` must be one number or {n_clients}, got {len(each)}")
    for number in each:
        Setting("integer", low=0, high=COUNT.high).check("n_iterations", number)
    return th.tensor(each)
