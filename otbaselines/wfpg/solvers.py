r"""
Steps of a flow of particles, taken by the parameters of a map.

The particles are the images :math:`u_i = T_\theta(s_i, z_i)` of a minibatch and have velocities :math:`v_i`. The metric of
the parameters is how far they move the particles, :math:`G = E[\partial_\theta T^\top \partial_\theta T]`, which is the
Gauss-Newton matrix of a regression; the particles of :math:`G^{-1} \nabla_\theta J` move most nearly as the flow says.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch as th
from torch.nn import functional as F

Images = Callable[[tuple[th.Tensor, ...]], th.Tensor]
# What a curvature is at least, so that a search that has converged divides by no zero.
_TINY = 1e-30
# Of a diagonal beside its mean.
_LEAST = 1e-3
# Curvature below this part of the largest one is rounding.
_FLAT = 1e-7


@dataclass(frozen=True)
class FlowStep:
    """
    What a step of the flow says of itself; all of shape ``()``.

    :param speed: root mean square of the slopes at the particles
    :param displacement: how far the particles were to go, root mean square
    :param entropy: of the policy's squashed actions, in nats; without meaning where there are not as many noises as actions
    :param residual: what the natural step's equation lacks, over its right-hand side
    """

    speed: th.Tensor
    displacement: th.Tensor
    entropy: th.Tensor
    residual: th.Tensor


@dataclass(frozen=True)
class CGResult:
    """
    Where conjugate gradients stopped.

    :param solution: shape ``(n,)``
    :param residual: norm of what is left of the right-hand side, over the norm of that, shape ``()``
    """

    solution: th.Tensor
    residual: th.Tensor


def conjugate_gradients(
    product: Callable[[th.Tensor], th.Tensor],
    rhs: th.Tensor,
    *,
    n_steps: int,
    inverse_diagonal: th.Tensor,
    start: th.Tensor | None = None,
) -> CGResult:
    """
    Preconditioned conjugate gradients with a fixed number of steps, so that the host waits for nothing.

    :param product: a symmetric positive definite matrix, applied to a vector
    :param rhs: right-hand side, shape ``(n,)``
    :param n_steps: products that are taken, one more where there is a start
    :param inverse_diagonal: preconditioner, shape ``(n,)``
    :param start: first guess, zero when omitted, shape ``(n,)``
    :return: the solution, and how far it is from solving
    """
    solution = th.zeros_like(rhs) if start is None else start
    residual = rhs if start is None else rhs - product(start)
    scaled = inverse_diagonal * residual
    direction, height = scaled, residual @ scaled
    steepest = th.zeros_like(height)
    for _ in range(n_steps):
        image = product(direction)
        # Curvature beside that of the preconditioner. Along what is flat but for rounding, there is nothing to be found.
        bend, size = direction @ image, (direction * direction / inverse_diagonal).sum()
        steepness = bend / size.clamp(min=_TINY)
        steepest = th.maximum(steepest, steepness)
        length = th.where(steepness > _FLAT * steepest, height / bend.clamp(min=_TINY), 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        scaled = inverse_diagonal * residual
        next_height = residual @ scaled
        direction = scaled + (next_height / height.clamp(min=_TINY)) * direction
        height = next_height
    return CGResult(solution, residual.norm() / rhs.norm().clamp(min=_TINY))


def flatten(parts: tuple[th.Tensor, ...]) -> th.Tensor:
    """
    :param parts: tensors of any shapes
    :return: all their elements, shape ``(n,)``
    """
    return th.cat([part.reshape(-1) for part in parts])


def unflatten(vector: th.Tensor, like: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
    """
    :param vector: shape ``(n,)``
    :param like: tensors whose shapes the parts are to have
    :return: the parts, views of the vector
    """
    parts = vector.split([part.numel() for part in like])
    return tuple(part.view_as(shape) for part, shape in zip(parts, like, strict=True))


class Metric:
    r"""
    :math:`G = \frac{1}{n} \sum_i \partial_\theta T(s_i, z_i)^\top \partial_\theta T(s_i, z_i)` of a minibatch, never formed.

    :param images: the map, from parameters to the particles of the minibatch, shape ``(n, action_dim)``
    :param parameters: where it is taken
    """

    def __init__(self, images: Images, parameters: tuple[th.Tensor, ...]) -> None:
        self._parameters = parameters
        found = th.func.vjp(images, parameters)
        particles, self._pull_back = found[0], found[1]
        # Pulling back is linear in the velocities, and its transpose pushes forward: two backward passes a product, none of
        # which computes the images anew, as forward differentiation would.
        self._push_forward = th.func.vjp(lambda velocities: self._pull_back(velocities)[0], th.zeros_like(particles))[1]

    def push_forward(self, direction: th.Tensor) -> th.Tensor:
        """
        :param direction: of the parameters, flat, shape ``(n_parameters,)``
        :return: how it moves the particles, to first order, shape ``(n, action_dim)``
        """
        moved: th.Tensor = self._push_forward(unflatten(direction, self._parameters))[0]
        return moved

    def pull_back(self, velocities: th.Tensor) -> th.Tensor:
        r"""
        :param velocities: of the particles, shape ``(n, action_dim)``
        :return: :math:`\frac{1}{n} \sum_i \partial_\theta T_i^\top v_i`, flat, shape ``(n_parameters,)``
        """
        return flatten(self._pull_back(velocities)[0]) / len(velocities)

    def product(self, direction: th.Tensor) -> th.Tensor:
        """
        :param direction: of the parameters, flat, shape ``(n_parameters,)``
        :return: the metric applied to it, of the same shape
        """
        return self.pull_back(self.push_forward(direction))

    def diagonal_sample(self, signs: th.Tensor) -> th.Tensor:
        r"""
        An unbiased estimate of the diagonal: the square of :math:`\sum_i \partial_\theta T_i^\top \epsilon_i / \sqrt{n}` for
        independent signs.

        :param signs: random, one or minus one, shape ``(n, action_dim)``
        :return: flat, shape ``(n_parameters,)``
        """
        return self.pull_back(signs).square() * len(signs)


def natural_direction(
    metric: Metric,
    gradient: th.Tensor,
    *,
    damping: th.Tensor | float,
    n_steps: int,
    diagonal: th.Tensor | None = None,
    start: th.Tensor | None = None,
) -> CGResult:
    r"""
    :math:`(G + \lambda I)^{-1} \nabla_\theta J` by conjugate gradients, with :math:`\mathrm{diag}(G) + \lambda` before them.

    :param metric: :math:`G`
    :param gradient: :math:`\nabla_\theta J`, flat, shape ``(n_parameters,)``
    :param damping: :math:`\lambda`, in the unit of the metric
    :param n_steps: of conjugate gradients
    :param diagonal: of the metric, or an estimate; without it there is no preconditioner
    :param start: first guess
    :return: the direction, and how far it is from solving
    """
    inverse = th.ones_like(gradient)
    if diagonal is not None:
        # Parameters that have moved nothing so far are not to be flung by what little they move.
        inverse = 1.0 / (diagonal + damping + _LEAST * diagonal.mean()).clamp(min=_TINY)
    return conjugate_gradients(
        lambda vector: metric.product(vector) + damping * vector,
        gradient,
        n_steps=n_steps,
        inverse_diagonal=inverse,
        start=start,
    )


def flow_targets(particles: th.Tensor, velocities: th.Tensor, rate: th.Tensor | float) -> th.Tensor:
    r"""
    Where the particles go, :math:`u + \eta v`.

    :param particles: shape ``(batch, action_dim)``
    :param velocities: of the same shape
    :param rate: :math:`\eta`
    :return: of the same shape
    """
    return particles + rate * velocities


def proximal_loss(particles: th.Tensor, targets: th.Tensor) -> th.Tensor:
    r"""
    :math:`\frac{1}{2} E|T_\theta(s, z) - u^+|^2`, the transport cost between the map's images and where the particles are to
    go. Its minimiser over all maps is the implicit step of Jordan, Kinderlehrer and Otto (1998) for the linearised gain.

    :param particles: :math:`T_\theta(s, z)`, shape ``(batch, action_dim)``
    :param targets: :math:`u^+`, of the same shape
    :return: shape ``()``
    """
    return F.mse_loss(particles, targets, reduction="sum") * (0.5 / len(targets))


def ascent_loss(particles: th.Tensor, velocities: th.Tensor) -> th.Tensor:
    r"""
    :math:`-E[v \cdot T_\theta(s, z)]`, whose gradient is :math:`-E[\partial_\theta T^\top v] = -\nabla_\theta J`.

    :param particles: :math:`T_\theta(s, z)`, shape ``(batch, action_dim)``
    :param velocities: :math:`v`, held constant, of the same shape
    :return: shape ``()``
    """
    return -(velocities * particles).sum(-1).mean()
