"""The stacked action values whose slopes the particles climb."""

from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from otbaselines.common.offline.policies import StackedCritic


class FlowCritic(nn.Module):
    """
    Features of observations, and stacked action values of these.

    :param features_extractor: of preprocessed observations
    :param action_dim: of a flat action
    :param net_arch: widths of the hidden layers
    :param activation_fn: between them
    :param n_critics: how many values
    """

    def __init__(
        self,
        features_extractor: BaseFeaturesExtractor,
        action_dim: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        *,
        n_critics: int,
    ) -> None:
        super().__init__()
        self.features_extractor = features_extractor
        self.head = StackedCritic(n_critics, features_extractor.features_dim + action_dim, net_arch, activation_fn)

    def forward(self, seen: Any, actions: th.Tensor) -> th.Tensor:
        """
        :param seen: preprocessed observations
        :param actions: scaled to [-1, 1], shape ``(batch, action_dim)``
        :return: of all critics, shape ``(n_critics, batch)``
        """
        return self.values(self.features_extractor(seen), actions)

    def values(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param features: shape ``(batch, n_features)``
        :param actions: scaled to [-1, 1], shape ``(batch, action_dim)``
        :return: of all critics, shape ``(n_critics, batch)``
        """
        values: th.Tensor = self.head(th.cat([features, actions], 1))
        return values

    def values_by_parts(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Every critic speaks of a part of the rows, so that all together cost what one would. Over the draw of a minibatch it is
        the critics' mean.

        :param features: shape ``(batch, n_features)``
        :param actions: scaled to [-1, 1], shape ``(batch, action_dim)``
        :return: one value a row, shape ``(batch,)``; rows that cannot be shared out evenly have the mean of all critics
        """
        rows, n = th.cat([features, actions], 1), self.head.n_critics
        even = len(rows) // n * n
        values: th.Tensor = self.head(rows[:even].view(n, even // n, rows.shape[1])).flatten()
        return values if even == len(rows) else th.cat([values, self.head(rows[even:]).mean(0)])
