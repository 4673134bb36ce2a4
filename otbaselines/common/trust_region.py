"""What trust regions of teams share, whatever divergence they bound: radii, importance factors, steps and the way back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch as th
from sb3_contrib.common.utils import conjugate_gradient_solver, flat_grad
from torch import nn

from otbaselines.common.multi_agent.agent_view import set_flat_parameters


@dataclass(frozen=True)
class RadiusRule:
    r"""
    Coordination-aware radii (Salgarkar and Baheri 2025, Eqs. 13-14 and Algorithm 2).

    :param constant: :math:`C > 0`, in the unit of the radius times that of the drift
    :param eps_base: :math:`\epsilon_{base} \ge 0`, the least regularisation, in the unit of the drift
    :param eps_max: :math:`\epsilon_{max}`, the largest that a drift causes
    :param radius_max: bound on every radius; without drift, Eq. 13 has no other than ``constant / eps_base``
    """

    constant: float
    eps_base: float
    eps_max: float
    radius_max: float

    def radii(self, drifts: list[float]) -> list[float]:
        r"""
        :math:`\delta_i = C / (D_{-i} + \epsilon)`,
        :math:`\epsilon = \max(\epsilon_{base}, \min(\epsilon_{max}, D_{-i} / 10))`.

        :param drifts: how far each agent's policy moved in the last round, at least 0
        :return: the radius of each agent, of which :math:`D_{-i}` sums the drifts of all others
        """
        return [self._radius(sum(drifts[:i]) + sum(drifts[i + 1 :])) for i in range(len(drifts))]

    def _radius(self, drift: float) -> float:
        regularised = drift + max(self.eps_base, min(self.eps_max, drift / 10.0))
        return self.radius_max if regularised * self.radius_max <= self.constant else self.constant / regularised


class ImportanceFactor:
    r"""
    The product :math:`\prod_{k} \pi_k^{new}(a_k | o_k) / \pi_k^{old}(a_k | o_k)` over the agents that were updated before.

    It turns an advantage under the old team into one under the present (Kuba et al. 2022; Salgarkar and Baheri 2025,
    Eq. 15). Products of many ratios have heavy tails, so that they are clipped, and divided by their mean.

    :param n_rows: joint steps
    :param clip: factors are kept between ``1 / clip`` and ``clip``
    :param device: where the rows are
    """

    def __init__(self, n_rows: int, clip: float, device: th.device) -> None:
        self._log = th.zeros(n_rows, device=device)
        self._clip = clip
        self.weights = th.ones(n_rows, device=device)

    def multiply(self, log_ratio: th.Tensor) -> None:
        """
        Take another updated agent into the product.

        :param log_ratio: new less old log-likelihood of its actions, zero where it was absent, shape ``(n_rows,)``
        """
        self._log += log_ratio
        weights = self._log.exp().clamp(1.0 / self._clip, self._clip)
        self.weights = weights / weights.mean()

    def effective_share(self) -> th.Tensor:
        r""":return: effective sample size (Kish 1965) over the number of rows, in (0, 1], shape ``()``"""
        return self.weights.sum().square() / (len(self.weights) * self.weights.square().sum())


@dataclass(frozen=True)
class NaturalStep:
    """
    A direction in which a surrogate rises fastest for the divergence that it costs, and how far to go.

    :param parameters: those that the divergence depends on
    :param step: change of the parameters at which the quadratic model of the divergence meets its bound, flat
    """

    parameters: list[nn.Parameter]
    step: th.Tensor


def natural_step(
    surrogate: th.Tensor,
    divergence: th.Tensor,
    parameters: list[nn.Parameter],
    *,
    radius: float,
    cg_max_steps: int,
    cg_damping: float,
) -> NaturalStep:
    r"""
    :math:`\sqrt{2 \delta / x^T H x}\, x` with :math:`H x = g` solved by conjugate gradients (Schulman et al. 2015, App. C).

    :param surrogate: what is to rise, with its graph, shape ``()``
    :param divergence: from the present policy, with its graph; its Hessian is the Fisher matrix, shape ``()``
    :param parameters: of the policy
    :param radius: bound on the divergence
    :param cg_max_steps: steps of the solver
    :param cg_damping: multiple of the identity that is added to the Fisher matrix
    :return: the step; where the surrogate is flat, one in a random direction, where the solver starts, or not finite
    """
    slopes = th.autograd.grad(divergence, parameters, create_graph=True, retain_graph=True, allow_unused=True)
    used = [parameter for parameter, slope in zip(parameters, slopes, strict=True) if slope is not None]
    slope = th.cat([part.flatten() for part in slopes if part is not None])
    gradient = flat_grad(surrogate, used, retain_graph=True)

    def fisher_product(vector: th.Tensor) -> th.Tensor:
        product: th.Tensor = flat_grad((slope * vector).sum(), used, retain_graph=True) + cg_damping * vector
        return product

    direction = conjugate_gradient_solver(fisher_product, gradient, max_iter=cg_max_steps)
    curvature = th.dot(direction, fisher_product(direction))
    return NaturalStep(used, direction * (2.0 * radius / curvature).sqrt())


@th.no_grad()
def backtrack(
    parameters: list[nn.Parameter], start: th.Tensor, step: th.Tensor, attempt: Callable[[], float], *, max_iter: int
) -> float:
    """
    Go from ``start`` along ``step`` as far as is accepted; else back to ``start``, bit for bit.

    :param parameters: what is moved, in place
    :param start: their values, flat
    :param step: the whole step, flat
    :param attempt: judges the parameters as they are: 1 if they will do, else the share of the step to try next
    :param max_iter: trials
    :return: the share of the step that was taken, 0 for none
    """
    share = 1.0
    for _ in range(max_iter):
        set_flat_parameters(parameters, start + share * step)
        shrinking = attempt()
        if shrinking == 1.0:
            return share
        share *= shrinking
    set_flat_parameters(parameters, start)
    return 0.0
