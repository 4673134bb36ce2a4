"""
How maps of noise stretch volumes: logarithms of determinants, with slopes that are written out.

A pushforward's Jacobian matrix is a small matrix for each row of a minibatch. Left to automatic differentiation, its dozens of
operations on few numbers cost more than the networks' products.
"""

import functools
import math
from typing import Any

import torch as th
from torch.nn import functional as F

from otbaselines.common.networks.layers import FastTanh

# As in SB3's SAC.
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
# Below it, to the power of the number of actions, a determinant counts as that of a fold, whose logarithm would be infinite.
# The power of three is still a normal number in single precision; a Gaussian's narrowest stretch, exp(-20), is not touched.
_SMALLEST_STRETCH = 1e-12
# So many actions have their determinants by cofactors.
_FEW = 3
_tanh = FastTanh()


def clamp_log_std(log_std: th.Tensor) -> th.Tensor:
    """
    :param log_std: logarithms of standard deviations, any shape
    :return: kept where SB3's SAC keeps them
    """
    return log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


def bent_with_log_det(
    heads: th.Tensor, noise: th.Tensor, bend_noise: th.Tensor, bend_out: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    r"""
    :math:`T = m + \sigma z + W \tanh(A + B z)` and :math:`\log |\det \partial T / \partial z|`; differentiable once.

    :param heads: what the state says, :math:`m`, :math:`\log \sigma` and :math:`A`, side by side, shape
        ``(batch, 2 n + width)``
    :param noise: :math:`z`, shape ``(batch, n)``
    :param bend_noise: :math:`B`, shape ``(width, n)``
    :param bend_out: :math:`W`, shape ``(n, width)``
    :return: shapes ``(batch, n)`` and ``(batch,)``; at a fold, where there is no logarithm, it is bounded from below and has
        no slope
    """
    if th.is_grad_enabled():
        found: tuple[th.Tensor, th.Tensor] = _Bent.apply(heads, noise, bend_noise, bend_out)  # type: ignore[no-untyped-call]
        return found
    u, jacobian, _ = _bent(heads, noise, bend_noise, bend_out)
    return u, _log_abs_det(jacobian)[0]


def squash_log_det(u: th.Tensor) -> th.Tensor:
    r"""
    :math:`\sum_j \log(1 - \tanh^2 u_j)`, by how much squashing stretches volumes, in a form that does not underflow.

    :param u: actions before they are squashed, shape ``(batch, action_dim)``
    :return: shape ``(batch,)``
    """
    return (2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))).sum(-1)


def log_abs_det(matrices: th.Tensor) -> th.Tensor:
    """
    Logarithms of determinants, whatever these would underflow or overflow to. At a fold, where there is none, it is bounded
    from below and has no slope. Differentiable once.

    :param matrices: square, shape ``(batch, n, n)``
    :return: logarithms of the absolute determinants, shape ``(batch,)``
    """
    found: th.Tensor = _LogAbsDet.apply(matrices)  # type: ignore[no-untyped-call]
    return found


def _refuse_second_derivatives() -> None:
    # Torch's decorator for this lets a slope pass as a constant where what it is multiplied by needs no gradient.
    if th.is_grad_enabled() and not th.compiler.is_compiling():
        raise RuntimeError("logarithms of determinants are differentiable once here, got create_graph=True; leave it out")


class _LogAbsDet(th.autograd.Function):
    """Torch's own has NaN for the slope at a singular matrix, whatever follows it."""

    @staticmethod
    def forward(ctx: Any, matrices: th.Tensor) -> th.Tensor:
        found, *kept = _log_abs_det(matrices.permute(1, 2, 0) if matrices.shape[-1] <= _FEW else matrices)
        ctx.save_for_backward(*kept)
        return found

    @staticmethod
    def backward(ctx: Any, *slopes: th.Tensor) -> th.Tensor:
        _refuse_second_derivatives()
        return _slopes(slopes[0], *ctx.saved_tensors)


class _Bent(th.autograd.Function):
    """:func:`bent_with_log_det`, forwards and backwards."""

    @staticmethod
    def forward(
        ctx: Any, heads: th.Tensor, noise: th.Tensor, bend_noise: th.Tensor, bend_out: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        u, jacobian, layers = _bent(heads, noise, bend_noise, bend_out)
        log_det, *kept = _log_abs_det(jacobian)
        ctx.save_for_backward(heads, noise, bend_noise, bend_out, *layers, *kept)
        return u, log_det

    @staticmethod
    def backward(ctx: Any, *slopes: th.Tensor) -> tuple[th.Tensor | None, ...]:
        _refuse_second_derivatives()
        heads, noise, bend_noise, bend_out, bent, slope, stretch, products, *kept = ctx.saved_tensors
        n, (d_u, d_log_det) = noise.shape[1], slopes
        d_jacobian = _slopes(d_log_det, *kept).flatten(1)
        d_products = (slope.T @ d_jacobian).view(-1, n, n)
        d_slope = d_jacobian @ products.T
        d_shift = (d_u @ bend_out).sub_(bent * d_slope, alpha=2.0).mul_(slope)
        log_std = heads[:, n : 2 * n]
        is_free = (log_std >= LOG_STD_MIN) & (log_std <= LOG_STD_MAX)
        d_log_std = th.addcmul(d_jacobian[:, :: n + 1], d_u, noise) * stretch * is_free
        d_bend_noise = th.addmm((d_products * bend_out.T[:, :, None]).sum(1), d_shift.T, noise)
        d_bend_out = th.addmm((d_products * bend_noise[:, None, :]).sum(2).T, d_u.T, bent)
        d_noise = th.addmm(d_u * stretch, d_shift, bend_noise) if ctx.needs_input_grad[1] else None
        return th.cat([d_u, d_log_std, d_shift], 1), d_noise, d_bend_noise, d_bend_out


def _bent(
    heads: th.Tensor, noise: th.Tensor, bend_noise: th.Tensor, bend_out: th.Tensor
) -> tuple[th.Tensor, th.Tensor, tuple[th.Tensor, ...]]:
    """The images, their Jacobian matrices as :func:`_log_abs_det` wants them, and what the way back needs."""
    n = noise.shape[1]
    stretch = clamp_log_std(heads[:, n : 2 * n]).exp_()
    bent = _tanh(th.addmm(heads[:, 2 * n :], noise, bend_noise.T))
    u = th.addmm(heads[:, :n], bent, bend_out.T).addcmul_(stretch, noise)
    # diag(stretch) + W diag(slope) B, for all rows by one product.
    slope = th.addcmul(bent.new_ones(()), bent, bent, value=-1.0)
    # What each unit of the layer adds where its slope is one.
    products = (bend_out.T[:, :, None] * bend_noise[:, None, :]).flatten(1)
    if n <= _FEW:
        jacobian = products.T @ slope.T
        jacobian[:: n + 1].add_(stretch.T)
        return u, jacobian.view(n, n, -1), (bent, slope, stretch, products)
    jacobian = slope @ products
    jacobian[:, :: n + 1].add_(stretch)
    return u, jacobian.view(-1, n, n), (bent, slope, stretch, products)


def _log_abs_det(matrices: th.Tensor) -> tuple[th.Tensor, ...]:
    """
    Logarithms of determinants, and what :func:`_slopes` needs besides.

    :param matrices: for up to :data:`_FEW` actions shape ``(n, n, batch)``, so that entries lie side by side; else
        ``(batch, n, n)``, as factorisations want them
    """
    n = matrices.shape[1]
    if n <= _FEW:
        cofactors = _cofactors(matrices)
        det = (matrices[0] * cofactors[0]).sum(0)
        return det.abs().clamp_(min=_SMALLEST_STRETCH**n).log_(), cofactors, det
    factors, pivots, _ = th.linalg.lu_factor_ex(matrices)
    logarithms = factors.diagonal(dim1=-2, dim2=-1).abs().log_().sum(-1)
    return logarithms.clamp(min=n * math.log(_SMALLEST_STRETCH)), factors, pivots, logarithms


def _cofactors(matrices: th.Tensor) -> th.Tensor:
    """Of at most 3 x 3 matrices, shape ``(n, n, batch)``."""
    n = len(matrices)
    if n == 1:
        return th.ones_like(matrices)
    if n == 2:
        swapped = matrices.flip(0, 1)
        swapped[0, 1].neg_()
        swapped[1, 0].neg_()
        return swapped
    first, second, third, fourth = matrices.reshape(9, -1).index_select(0, _minors(matrices.device)).view(4, 3, 3, -1)
    found: th.Tensor = first * second - third * fourth
    return found


@functools.cache
def _minors(device: th.device) -> th.Tensor:
    """
    Of a 3 x 3 matrix, where the entries of a cofactor's two products stand: those of the rows and columns that follow its own,
    going round, where the sign is always plus.
    """
    rows, columns = (th.arange(9) // 3, th.arange(9) % 3)
    shifts = ((1, 1), (2, 2), (1, 2), (2, 1))
    return th.cat([(rows + down) % 3 * 3 + (columns + right) % 3 for down, right in shifts]).to(device)


def _slopes(given: th.Tensor, *kept: th.Tensor) -> th.Tensor:
    """
    The slope of log |det A| is the transposed inverse of A; there is none at a fold.

    :param given: factors, shape ``(batch,)``
    :param kept: what :func:`_log_abs_det` has returned besides the logarithms
    :return: shape ``(batch, n, n)``
    """
    n = kept[0].shape[1]
    if n <= _FEW:
        cofactors, det = kept
        return th.where(det.abs() > _SMALLEST_STRETCH**n, cofactors * (given / det), 0.0).permute(2, 0, 1)
    factors, pivots, logarithms = kept
    ones = th.eye(n, dtype=factors.dtype, device=factors.device).expand_as(factors)
    inverse = th.linalg.lu_solve(factors, pivots, ones, adjoint=True)
    return th.where((logarithms > n * math.log(_SMALLEST_STRETCH))[:, None, None], given[:, None, None] * inverse, 0.0)
