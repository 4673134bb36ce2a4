"""Maps of noise whose images are actions."""

from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from otbaselines.common.networks.layers import FastTanh, StackedMLP
from otbaselines.wfpg.log_det import bent_with_log_det, clamp_log_std

FORMS = ("pushforward", "gaussian")


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
            self.tanh = FastTanh()

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
        u: th.Tensor
        u, log_std, shift = self.heads(hidden).split(self.parts, 1)
        if self.is_stretched:
            u = th.addcmul(u, clamp_log_std(log_std).exp(), noise)
        if self.is_bent:
            u = u + self.bend_out(self.tanh(shift + self.bend_noise(noise)))
        return u

    def with_log_det(self, hidden: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        r"""
        :param hidden: shape ``(batch, width)``
        :param noise: shape ``(batch, action_dim)``
        :return: actions before they are squashed, shape ``(batch, action_dim)``, and
            :math:`\log |\det \partial T / \partial z|`, shape ``(batch,)``
        """
        assert self.is_stretched, "there are as many noises as actions"
        heads = self.heads(hidden)
        if self.is_bent:
            return bent_with_log_det(heads, noise, self.bend_noise.weight, self.bend_out.weight)
        mean, log_std = heads.split(self.parts[:2], 1)
        log_stretch = clamp_log_std(log_std)
        return th.addcmul(mean, log_stretch.exp(), noise), log_stretch.sum(-1)
