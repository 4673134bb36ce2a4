"""Transport maps as gradients of convex networks: Brenier's theorem as an architecture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import torch as th
import torch.nn.functional as F
from torch import nn

from otbaselines.ot._validation import check_alike, check_tensor, finite


def squareplus(x: th.Tensor) -> th.Tensor:
    r"""
    A smooth, convex, increasing and positive stand-in for the positive part: :math:`(x + \sqrt{x^2 + 4}) / 2`.

    It has softplus' shape without its exponentials, and is one at zero (Barron 2021).

    :param x: any shape
    :return: of the same shape
    """
    return 0.5 * (x + (x * x + 4.0).sqrt())


def _squareplus_with_slope(x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """The function and its derivative, which is itself increasing, from 0 to 1."""
    root = (x * x + 4.0).sqrt()
    y = 0.5 * (x + root)
    return y, y / root


class ConvexPotential(nn.Module):
    r"""
    A partially input-convex network (Amos et al. 2017, Eqs. 3-4) :math:`f(x; s)`, convex in :math:`x` and free in the context
    :math:`s`, with its gradient :math:`T(x; s) = \nabla_x f(x; s)` written out.

    By Brenier's theorem such gradients are the optimal maps of the squared Euclidean cost, and no others: whatever the
    parameters and the distribution of :math:`x`, no other coupling takes it to that of :math:`T(x; s)` more cheaply. With
    :math:`u_k` the layers of an ordinary network of the context,

    .. math::
        f &= \tfrac12 |L(u_K)^\top x|^2 + h(u_K) \cdot x + \langle w, p_{K+1}(u_K) \circ z_K \rangle, \\
        z_k &= \sigma\left(W_k (p_k(u_k) \circ z_{k-1}) + A_k (q_k(u_k) \circ x) + c_k(u_k)\right), \quad z_0 = 0,

    where :math:`\sigma` is convex and increasing, the gates :math:`p` are positive, and :math:`W, w` are squares of
    parameters, so that nothing has to be clipped after a step. :math:`L = I` and :math:`A = h = 0` at the start: the map is
    the identity to the last bit, whatever the seed. :math:`L` is a full matrix, so that affine maps with a symmetric positive
    matrix, and with them those between normal distributions, are represented exactly, contractions included.

    :meth:`transport` is a closed form of a few matrix products, so that training takes one ordinary backward pass. In float32,
    layers whose inputs lie beyond about a thousand below zero are flat to rounding.

    :param dim: of :math:`x`
    :param context_dim: of :math:`s`; 0 for a single map
    :param net_arch: widths of the layers, of the context's and of the convex network's
    :raises TypeError: if a size is no integer
    :raises ValueError: if one is out of range
    """

    def __init__(self, dim: int, context_dim: int = 0, net_arch: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        sizes = {"dim": dim, "context_dim": context_dim, **{f"net_arch[{k}]": n for k, n in enumerate(net_arch)}}
        for name, size in sizes.items():
            if not isinstance(size, Integral) or isinstance(size, bool):
                raise TypeError(f"`{name}` must be an integer, got {size!r}")
            if size < (name != "context_dim"):
                raise ValueError(f"`{name}` must be at least {int(name != 'context_dim')}, got {size}")
        if not net_arch:
            raise ValueError("`net_arch` must have at least one layer; use [128, 128]")
        self.dim, self.context_dim, self.net_arch = int(dim), int(context_dim), [int(n) for n in net_arch]
        widths = [self.context_dim, *self.net_arch]
        self.context_layers = nn.ModuleList(_Affine(*pair) for pair in pairwise(widths))
        # What the context says of a layer comes from one product: its offset, the gate of its input and that of x.
        gated = [0, *self.net_arch]
        self._parts = [[width, before, self.dim] for before, width in zip(gated, self.net_arch, strict=False)]
        self._last_parts = [self.net_arch[-1], self.dim, self.dim**2]
        self.heads = nn.ModuleList(_Affine(width, sum(parts)) for width, parts in zip(self.net_arch, self._parts, strict=True))
        self.last_head = _Affine(self.net_arch[-1], sum(self._last_parts))
        with th.no_grad():
            # The shift h and the matrix L - I.
            self.last_head.weight[self.net_arch[-1] :].zero_()
            self.last_head.bias[self.net_arch[-1] :].zero_()
        self.slopes = nn.ParameterList(nn.Parameter(th.zeros(width, self.dim)) for width in self.net_arch)
        # Squares of mean 1 / n keep the size of the layers.
        self.roots = nn.ParameterList(
            nn.Parameter(th.randn(width, before) * before**-0.5)
            for before, width in zip(self.net_arch, [*self.net_arch[1:], 1], strict=True)
        )
        self.register_buffer("_identity", th.eye(self.dim), persistent=False)

    _identity: th.Tensor

    def _check(self, x: th.Tensor, context: th.Tensor | None) -> th.Tensor:
        if context is None and self.context_dim == 0:
            context = x.new_zeros(len(x), 0)
        shape = None if context is None else tuple(context.shape)
        if context is None or x.dim() != 2 or x.shape[1] != self.dim or shape != (len(x), self.context_dim):
            raise ValueError(
                f"`x` must be of shape (batch, {self.dim}) and `context` of shape (batch, {self.context_dim}), "
                f"got {tuple(x.shape)} and {shape}"
            )
        return context

    def _context(self, context: th.Tensor) -> tuple[list[tuple[th.Tensor, ...]], tuple[th.Tensor, ...]]:
        """What the context says of every layer, and of the end."""
        layers, features = [], context
        for layer, head, parts in zip(self.context_layers, self.heads, self._parts, strict=True):
            features = layer(features).relu()
            layers.append(head(features).split(parts, -1))
        return layers, self.last_head(features).split(self._last_parts, -1)

    def _matrix(self, entries: th.Tensor) -> th.Tensor:
        return entries.view(-1, self.dim, self.dim) + self._identity

    def forward(self, x: th.Tensor, context: th.Tensor | None = None) -> th.Tensor:
        """
        The potential.

        :param x: shape ``(batch, dim)``
        :param context: shape ``(batch, context_dim)``; none where that is 0
        :return: shape ``(batch,)``
        :raises ValueError: if the shapes do not fit
        """
        layers, (gate, shift, matrix) = self._context(self._check(x, context))
        z = x.new_zeros(len(x), 0)
        for k, (offset, gate_z, gate_x) in enumerate(layers):
            pre = offset + F.linear((1.0 + gate_x) * x, self.slopes[k])
            if k > 0:
                pre = pre + F.linear(z * squareplus(gate_z), self.roots[k - 1].square())
            z = squareplus(pre)
        convex = F.linear(z * squareplus(gate), self.roots[-1].square()).squeeze(-1)
        squares = (self._matrix(matrix) * x.unsqueeze(-1)).sum(-2).square().sum(-1)
        value: th.Tensor = 0.5 * squares + (shift * x).sum(-1) + convex
        return value

    def transport(self, x: th.Tensor, context: th.Tensor | None = None) -> th.Tensor:
        r"""
        Where the points go: :math:`\nabla_x f(x; s)`.

        :param x: shape ``(batch, dim)``
        :param context: shape ``(batch, context_dim)``; none where that is 0
        :return: shape ``(batch, dim)``
        :raises ValueError: if the shapes do not fit
        """
        layers, (gate, shift, matrix) = self._context(self._check(x, context))
        weights = [root.square() for root in self.roots]
        gates: list[th.Tensor] = []
        slopes: list[th.Tensor] = []
        z = x
        for k, (offset, gate_z, gate_x) in enumerate(layers):
            pre = offset + F.linear((1.0 + gate_x) * x, self.slopes[k])
            if k > 0:
                gates.append(squareplus(gate_z))
                pre = pre + F.linear(z * gates[-1], weights[k - 1])
            z, slope = _squareplus_with_slope(pre)
            slopes.append(slope)
        gates.append(squareplus(gate))
        # Backwards through the layers: `upper` is the gradient with respect to what enters the layer's activation.
        upper = slopes[-1] * gates[-1] * weights[-1]
        moved = shift + _apply_twice(self._matrix(matrix), x)
        for k in range(len(layers) - 1, -1, -1):
            moved = moved + (1.0 + layers[k][2]) * th.mm(upper, self.slopes[k])
            if k > 0:
                upper = th.mm(upper, weights[k - 1]) * gates[k - 1] * slopes[k - 1]
        return moved

    def extra_repr(self) -> str:
        return f"dim={self.dim}, context_dim={self.context_dim}, net_arch={self.net_arch}"


class _Affine(nn.Module):
    """``torch.nn.Linear``, which may have no inputs."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = max(in_features, 1) ** -0.5
        self.weight = nn.Parameter(th.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(th.empty(out_features).uniform_(-bound, bound))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return F.linear(x, self.weight, self.bias)


def _apply_twice(matrix: th.Tensor, x: th.Tensor) -> th.Tensor:
    r""":math:`L L^\top x`; sums of products, because batched products of matrices this small are slow."""
    inner = (matrix * x.unsqueeze(-1)).sum(-2, keepdim=True)
    return (matrix * inner).sum(-1)


def displacement_cost(x: th.Tensor, y: th.Tensor, *, order: int = 2, validate: bool = True) -> th.Tensor:
    r"""
    What it costs to move each point: :math:`|x - y|^{order}`.

    The mean over :math:`y = \nabla f(x)` is :math:`W_2^2` for ``order=2``. For ``order=1`` it is a bound on :math:`W_1`, which
    the gradients of convex functions need not attain.

    :param x: shape ``(..., dim)``
    :param y: of the same shape
    :param order: 1 or 2
    :param validate: look for NaN and infinities, which a GPU has to be waited for
    :return: shape ``(...)``; its gradient is zero where the points are the same
    :raises ValueError: if ``order`` is another, the shapes differ, or numbers are not finite
    """
    if order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2, got {order!r}")
    check_alike({"x": x, "y": y})
    check_tensor(x, "x")
    check_tensor(y, "y")
    if x.shape != y.shape:
        raise ValueError(f"`x` and `y` must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    if order == 2:
        cost = (x - y).square().sum(-1)
    else:
        cost = th.linalg.vector_norm(x - y, dim=-1)
    return finite(cost, x=x, y=y) if validate else cost
