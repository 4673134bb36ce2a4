r"""
Finite decision processes as tensors, solved exactly: values, soft values and occupancies, batched over processes.

Everything is float64. A terminal state has no successor, so that its rows of the transition tensor are zero; with
:meth:`TabularModel.absorbing` it is its own successor for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch as th


@dataclass(frozen=True)
class TabularModel:
    r"""
    A finite decision process, or a batch of them.

    :param transition: :math:`P(s' | s, a)`, shape ``(..., S, A, S)``; rows sum to one, those of terminal states to zero
    :param rewards: expected reward of a step, shape ``(..., S, A)``
    :param features: :math:`\phi(s, a)`, shape ``(..., S, A, k)``
    :param initial: distribution of the first state, shape ``(..., S)``
    :param terminal: where episodes end, shape ``(..., S)``, bool
    :raises ValueError: if shapes disagree, a probability is negative, a row does not sum to what it should, or an entry is
        NaN or infinite
    """

    transition: th.Tensor
    rewards: th.Tensor
    features: th.Tensor
    initial: th.Tensor
    terminal: th.Tensor

    def __post_init__(self) -> None:
        n_states, n_actions = self.transition.shape[-3:-1]
        shapes = {
            "transition": (n_states, n_actions, n_states),
            "rewards": (n_states, n_actions),
            "features": (n_states, n_actions, self.features.shape[-1]),
            "initial": (n_states,),
            "terminal": (n_states,),
        }
        batch = self.transition.shape[:-3]
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tuple(tensor.shape) != (*batch, *shape):
                raise ValueError(f"`{name}` must have the shape {(*batch, *shape)}, got {tuple(tensor.shape)}")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"`{name}` holds NaN or infinite entries")
        sums = self.transition.sum(-1)
        # Rows of terminal states may be zero, or stay where they are.
        off = (sums - 1).abs()
        off = th.where(self.terminal.unsqueeze(-1), th.minimum(off, sums.abs()), off)
        if bool((self.transition < 0).any()) or float(off.amax()) > 1e-9:
            raise ValueError(
                "`transition` must be non-negative with rows that sum to one (zero in terminal states), got rows off by "
                f"up to {float(off.amax()):g}"
            )
        if bool((self.initial < 0).any()) or float((self.initial.sum(-1) - 1).abs().amax()) > 1e-9:
            raise ValueError("`initial` must be non-negative and sum to one")

    @property
    def n_states(self) -> int:
        """Number of states."""
        return int(self.transition.shape[-1])

    @property
    def n_actions(self) -> int:
        """Number of actions."""
        return int(self.transition.shape[-2])

    def absorbing(self) -> TabularModel:
        """
        The same process, in which a terminal state is its own successor for ever: what its features are then counts, as their
        mean over the actions, none of which is taken any more.
        """
        stays = th.eye(self.n_states, dtype=self.transition.dtype).unsqueeze(-2) * self.terminal[..., None, None]
        moves = self.transition * ~self.terminal[..., None, None]
        features = th.where(self.terminal[..., None, None], self.features.mean(-2, keepdim=True), self.features)
        return replace(self, transition=moves + stays, features=features)


def stack_models(models: Sequence[TabularModel]) -> TabularModel:
    """
    :param models: processes with equally many states, actions and features
    :return: all of them, along a new first axis
    :raises ValueError: if the sizes differ
    """
    sizes = {(model.n_states, model.n_actions, model.features.shape[-1]) for model in models}
    if len(sizes) != 1:
        raise ValueError(f"`models` must have the same numbers of states, actions and features, got {sorted(sizes)}")
    fields = ("transition", "rewards", "features", "initial", "terminal")
    return TabularModel(*(th.stack([getattr(model, name) for model in models]) for name in fields))


@dataclass(frozen=True)
class SoftSolution:
    """
    What maximises return plus entropy.

    :param values: soft values of the states, shape ``(..., S)``; with a horizon ``(T, ..., S)``
    :param log_policy: log-probabilities of the actions, shape ``(..., S, A)``; with a horizon ``(T, ..., S, A)``
    :param n_iter: Newton steps, or the horizon
    :param error: largest residual of the soft Bellman equation, relative to the largest value above one
    :param converged: whether it is below the tolerance
    """

    values: th.Tensor
    log_policy: th.Tensor
    n_iter: int
    error: float
    converged: bool


def expected_next(transition: th.Tensor, values: th.Tensor) -> th.Tensor:
    """
    :param transition: shape ``(..., S, A, S)``
    :param values: of the states, shape ``(..., S)``
    :return: their expectation after each state and action, shape ``(..., S, A)``
    """
    n_states, n_actions = transition.shape[-3:-1]
    rows = (transition.flatten(-3, -2) @ values.unsqueeze(-1)).squeeze(-1)
    return rows.reshape(*rows.shape[:-1], n_states, n_actions)


def soft_bellman(transition: th.Tensor, rewards: th.Tensor, discount: float, values: th.Tensor) -> th.Tensor:
    r"""
    :math:`Q(s, a) = r(s, a) + \gamma \sum_{s'} P(s' | s, a) V(s')`; soft values are its log-sum-exp over actions.

    :param transition: shape ``(..., S, A, S)``
    :param rewards: shape ``(..., S, A)``
    :param discount: :math:`\gamma` in [0, 1]
    :param values: shape ``(..., S)``
    :return: shape ``(..., S, A)``
    """
    return rewards + discount * expected_next(transition, values)


def _pad_terminal(q: th.Tensor, terminal: th.Tensor | None) -> th.Tensor:
    # Where an episode is over nothing is chosen, so that there is no entropy to gain either.
    values = q.logsumexp(-1)
    return values if terminal is None else values.masked_fill(terminal, 0.0)


def soft_values(
    model: TabularModel,
    rewards: th.Tensor,
    *,
    discount: float,
    init: th.Tensor | None = None,
    tol: float = 1e-12,
    max_iter: int = 200,
) -> SoftSolution:
    r"""
    The fixed point :math:`V = \log \sum_a e^{r + \gamma P V}` by Newton's method, which is soft policy iteration.

    The map is convex and increasing, so that Newton's steps increase after the first one and converge from anywhere,
    quadratically: each solves :math:`(I - \gamma P_\pi) \delta = T V - V` (Puterman 1994, Sec. 6.4, for the hard case).

    :param model: shape ``(..., S, A, S)``; where an episode is over, neither rewards nor entropy are counted
    :param rewards: shape ``(..., S, A)``
    :param discount: :math:`\gamma` in [0, 1)
    :param init: values to start from, shape ``(..., S)``
    :param tol: residual to stop at, relative to the largest value above one
    :param max_iter: steps to stop at
    :return: values and policy
    :raises ValueError: if the discount is not in [0, 1), or a reward is not finite
    """
    if not 0.0 <= discount < 1.0:
        raise ValueError(f"`discount` must be in [0, 1), got {discount}; give a horizon for undiscounted problems")
    _check_rewards(rewards)
    over = _over(model)
    values = th.zeros_like(rewards[..., 0]) if init is None else init
    eye = th.eye(model.n_states, dtype=rewards.dtype)
    n_iter, error = 0, float("inf")
    while True:
        q = soft_bellman(model.transition, rewards, discount, values)
        residual = _pad_terminal(q, over) - values
        error = float(residual.abs().amax() / values.abs().amax().clamp_min(1.0))
        if error <= tol or n_iter >= max_iter:
            break
        chain = policy_transition(model.transition, q.softmax(-1))
        values = values + th.linalg.solve(eye - discount * chain, residual)
        n_iter += 1
    return SoftSolution(values, q.log_softmax(-1), n_iter, error, error <= tol)


def soft_values_finite(model: TabularModel, rewards: th.Tensor, *, horizon: int, discount: float = 1.0) -> SoftSolution:
    """
    Soft values of episodes that are cut off after ``horizon`` steps, by backward recursion.

    :param model: shape ``(..., S, A, S)``
    :param rewards: shape ``(..., S, A)``
    :param horizon: number of steps
    :param discount: in [0, 1]
    :return: values and policies of each step, in the order of time
    :raises ValueError: if the horizon is not positive, or a reward is not finite
    """
    if horizon < 1:
        raise ValueError(f"`horizon` must be at least 1, got {horizon}")
    _check_rewards(rewards)
    over = _over(model)
    values, found = th.zeros_like(rewards[..., 0]), []
    for _ in range(horizon):
        q = soft_bellman(model.transition, rewards, discount, values)
        values = _pad_terminal(q, over)
        found.append((values, q.log_softmax(-1)))
    found.reverse()
    return SoftSolution(th.stack([v for v, _ in found]), th.stack([p for _, p in found]), horizon, 0.0, True)


def optimal_values(
    model: TabularModel, rewards: th.Tensor, *, discount: float, tol: float = 1e-12
) -> tuple[th.Tensor, th.Tensor]:
    """
    Optimal values by policy iteration, and the policy that divides itself equally between the best actions.

    :param model: shape ``(..., S, A, S)``
    :param rewards: shape ``(..., S, A)``
    :param discount: in [0, 1)
    :param tol: by how much less good an action may be, relatively, and still count as one of the best
    :return: values ``(..., S)`` and probabilities ``(..., S, A)``
    :raises ValueError: if the discount is not in [0, 1), or a reward is not finite
    """
    if not 0.0 <= discount < 1.0:
        raise ValueError(f"`discount` must be in [0, 1), got {discount}")
    _check_rewards(rewards)
    values, eye = th.zeros_like(rewards[..., 0]), th.eye(model.n_states, dtype=rewards.dtype)
    chosen = None
    while True:
        q = soft_bellman(model.transition, rewards, discount, values)
        q = q.masked_fill(_over(model).unsqueeze(-1), 0.0)
        slack = max(tol, 1e-10) * float(q.abs().amax().clamp_min(1.0))
        best = q.argmax(-1)
        if chosen is not None:
            # An action is left only for one that is really better: rounding alone would let ties alternate for ever.
            kept = q.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
            best = th.where(q.amax(-1) > kept + slack, best, chosen)
            if th.equal(best, chosen):
                ties = (q >= q.amax(-1, keepdim=True) - slack).to(q)
                return values, ties / ties.sum(-1, keepdim=True)
        chosen = best
        greedy = th.nn.functional.one_hot(chosen, model.n_actions).to(q)
        own = (greedy * rewards).sum(-1).masked_fill(_over(model), 0.0)
        values = th.linalg.solve(eye - discount * policy_transition(model.transition, greedy), own)


def policy_transition(transition: th.Tensor, policy: th.Tensor) -> th.Tensor:
    """
    :param transition: shape ``(..., S, A, S)``
    :param policy: probabilities, shape ``(..., S, A)``
    :return: the Markov chain of the policy, shape ``(..., S, S)``
    """
    return (policy.unsqueeze(-2) @ transition).squeeze(-2)


def occupancy(model: TabularModel, policy: th.Tensor, *, discount: float) -> th.Tensor:
    r"""
    Discounted visits :math:`(1 - \gamma) \sum_t \gamma^t P(s_t = s, a_t = a)`, from one linear system.

    :param model: shape ``(..., S, A, S)``
    :param policy: probabilities, shape ``(..., S, A)``
    :param discount: :math:`\gamma` in [0, 1)
    :return: shape ``(..., S, A)``; sums to one where episodes do not end, and to less where they do
    """
    eye = th.eye(model.n_states, dtype=policy.dtype)
    system = (eye - discount * policy_transition(model.transition, policy)).transpose(-1, -2)
    states: th.Tensor = th.linalg.solve(system, (1 - discount) * model.initial)
    return states.masked_fill(_over(model), 0.0).unsqueeze(-1) * policy


def occupancy_finite(model: TabularModel, policies: th.Tensor, *, discount: float = 1.0) -> th.Tensor:
    r"""
    Visits :math:`\frac1T \sum_{t < T} \gamma^t P(s_t = s, a_t = a)`.

    :param model: shape ``(..., S, A, S)``
    :param policies: probabilities at each step, shape ``(T, ..., S, A)``
    :param discount: :math:`\gamma` in [0, 1]
    :return: shape ``(..., S, A)``
    """
    states, total, weight = model.initial, th.zeros_like(policies[0]), 1.0
    for policy in policies:
        pairs = states.masked_fill(_over(model), 0.0).unsqueeze(-1) * policy
        total = total + weight * pairs
        states = (pairs.flatten(-2).unsqueeze(-2) @ model.transition.flatten(-3, -2)).squeeze(-2)
        weight *= discount
    return total / len(policies)


def _over(model: TabularModel) -> th.Tensor:
    """States in which nothing more happens, shape ``(..., S)``."""
    return model.terminal & (model.transition.sum((-1, -2)) == 0)


def _check_rewards(rewards: th.Tensor) -> None:
    if not bool(rewards.isfinite().all()):
        raise ValueError("`rewards` holds NaN or infinite entries; lower the learning rate, or scale the features")
