"""Maps of noise whose images are actions, and how they stretch volumes."""

import math
from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F

from otbaselines.common.networks.layers import StackedMLP

FORMS = ("pushforward", "gaussian")
# As in SB3's SAC.
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
# Below it, to the power of the number of actions, a determinant counts as that of a fold, whose logarithm would be infinite.
# The power of three is still a normal number in single precision; a Gaussian's narrowest stretch, exp(-20), is not touched.
_SMALLEST_STRETCH = 1e-12


class MapActor(nn.Module):
    r"""
    :math:`u = T_\theta(s, z)`, the map of noise :math:`z \sim N(0, I)` whose images, squashed by :math:`a = \tanh u`, are the
    policy's actions.

    With the features :math:`h(s)` of the trunk, ``"gaussian"`` is :math:`u = m(h) + \sigma(h) z`, and ``"pushforward"`` adds
    :math:`W \tanh(A h + B z + c)`, which bends the law: it may have several modes. The noise enters behind the trunk, so that
    a second action in the same state, or a derivative by :math:`z`, costs a small layer only.

    :param extractor: of features from preprocessed observations
    :param action_dim: of a flat action
    :param net_arch: widths of the trunk
    :param activation_fn: in the trunk
    :param policy_form: one of :data:`FORMS`
    :param latent_dim: of the noise; a Gaussian's is ``action_dim``
    :param bend_width: of the layer that the noise passes, for pushforwards
    """

    def __init__(
        self,
        extractor: BaseFeaturesExtractor,
        action_dim: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        *,
        policy_form: str,
        latent_dim: int,
        bend_width: int,
    ) -> None:
        super().__init__()
        self.action_dim, self.latent_dim = action_dim, latent_dim
        self.features_extractor = extractor
        self.trunk = StackedMLP(1, extractor.features_dim, net_arch, activation_fn)
        width = self.trunk.out_features
        # Where there is one noise an action, it is stretched as a Gaussian's; else it only passes the layer below.
        self.is_stretched, self.is_bent = latent_dim == action_dim, policy_form == "pushforward"
        self.parts = [action_dim, action_dim * self.is_stretched, bend_width * self.is_bent]
        # Means, logarithms of standard deviations and what the state adds to the noise's layer, as one product.
        self.heads = nn.Linear(width, sum(self.parts))
        if self.is_bent:
            self.bend_noise = nn.Linear(latent_dim, bend_width, bias=False)
            self.bend_out = nn.Linear(bend_width, action_dim, bias=False)

    def forward(self, seen: Any, noise: th.Tensor) -> th.Tensor:
        """
        :param seen: preprocessed observations of a batch
        :param noise: shape ``(batch, latent_dim)``
        :return: actions before they are squashed, shape ``(batch, action_dim)``
        """
        return self.bend(self.hidden(seen), noise)

    def hidden(self, seen: Any) -> th.Tensor:
        """
        :param seen: preprocessed observations of a batch
        :return: what the last layers read of them, shape ``(batch, width)``
        """
        hidden: th.Tensor = self.trunk(self.features_extractor(seen).unsqueeze(0))
        return hidden.squeeze(0)

    def bend(self, hidden: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        :param hidden: shape ``(batch, width)``
        :param noise: shape ``(batch, latent_dim)``
        :return: actions before they are squashed, shape ``(batch, action_dim)``
        """
        return self._bend(hidden, noise)[0]

    def with_log_det(self, hidden: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        r"""
        :param hidden: shape ``(batch, width)``
        :param noise: shape ``(batch, action_dim)``
        :return: actions before they are squashed, shape ``(batch, action_dim)``, and
            :math:`\log |\det \partial T / \partial z|`, shape ``(batch,)``
        """
        u, stretch, slope = self._bend(hidden, noise)
        assert stretch is not None, "there are as many noises as actions"
        if slope is None:
            return u, stretch.log().sum(-1)
        # The Jacobian matrix: diag(stretch) + W diag(slope) B, for all rows by one product.
        products = th.einsum("ok,kz->koz", self.bend_out.weight, self.bend_noise.weight).flatten(1)
        jacobian = (slope @ products).view(-1, self.action_dim, self.action_dim) + stretch.diag_embed()
        return u, log_abs_det(jacobian)

    def _bend(self, hidden: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor | None, th.Tensor | None]:
        """The image, the diagonal stretch of the noise, and the slopes of the layer that the noise passes."""
        u, log_std, shift = self.heads(hidden).split(self.parts, 1)
        stretch = slope = None
        if self.is_stretched:
            stretch = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()
            u = th.addcmul(u, stretch, noise)
        if self.is_bent:
            bent = (shift + self.bend_noise(noise)).tanh()
            u, slope = u + self.bend_out(bent), 1.0 - bent * bent
        return u, stretch, slope


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
    from below and has no slope.

    :param matrices: square, shape ``(batch, n, n)``
    :return: logarithms of the absolute determinants, shape ``(batch,)``
    """
    n = matrices.shape[-1]
    if n > 3:
        found: th.Tensor = _LogAbsDet.apply(matrices)  # type: ignore[no-untyped-call]
        return found
    if n == 1:
        det = matrices[:, 0, 0]
    elif n == 2:
        det = matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0]
    else:
        det = (matrices[:, 0] * th.linalg.cross(matrices[:, 1], matrices[:, 2])).sum(-1)
    return det.abs().clamp(min=_SMALLEST_STRETCH**n).log()


class _LogAbsDet(th.autograd.Function):
    """By one factorisation both ways; torch's own has NaN for the slope at a singular matrix, whatever follows it."""

    @staticmethod
    def forward(ctx: Any, matrices: th.Tensor) -> th.Tensor:
        factors, pivots, _ = th.linalg.lu_factor_ex(matrices)
        logarithms: th.Tensor = factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        lowest = matrices.shape[-1] * math.log(_SMALLEST_STRETCH)
        ctx.save_for_backward(factors, pivots, logarithms > lowest)
        return logarithms.clamp(min=lowest)

    @staticmethod
    def backward(ctx: Any, *slopes: th.Tensor) -> th.Tensor:
        # The slope of log |det A| is the transposed inverse of A.
        factors, pivots, is_free = ctx.saved_tensors
        ones = th.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device).expand_as(factors)
        inverse = th.linalg.lu_solve(factors, pivots, ones, adjoint=True)
        found: th.Tensor = th.where(is_free[:, None, None], slopes[0][:, None, None] * inverse, 0.0)
        return found
