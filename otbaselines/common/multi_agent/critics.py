"""What the critics of a team read: each its own observation, one network for all of them, or the state of the whole team."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

#: ``"own"``: each agent's critic at its own observation, with the parameters that ``share_parameters`` says.
#: ``"shared"``: one network for all agents, at each agent's own observation. ``"central"``: one network that reads the
#: state, with a value for each agent.
CRITICS = ("own", "shared", "central")

# As VecNormalize: keeps the scale of a constant finite, and outliers from dominating.
_EPSILON, _CLIP = 1e-8, 10.0


def check_critic(critic: str, *, share_parameters: bool) -> None:
    """
    :param critic: one of :data:`CRITICS`
    :param share_parameters: whether one network serves all agents
    :raises ValueError: if there is no such critic, or it says the same as ``share_parameters``
    """
    if critic not in CRITICS:
        raise ValueError(f"`critic` must be one of {', '.join(map(repr, CRITICS))}, got {critic!r}")
    if critic == "shared" and share_parameters:
        raise ValueError(
            "`critic`='shared' has no meaning with `share_parameters=True`, which shares the critic as well as the actor; "
            "leave one of them off"
        )


def check_state_space(space: Any) -> None:
    """
    :param space: of the states that a critic reads, as a file may give it; ``None`` where it reads none
    :raises ValueError: if it is no vector of float32
    """
    if space is not None and not (isinstance(space, spaces.Box) and space.dtype == np.float32 and len(space.shape) == 1):
        raise ValueError(f"`state_space` must be a one-dimensional float32 Box, got {str(space)[:100]}")


class RunningNormalizer(nn.Module):
    """
    Scales vectors by the mean and variance of all that it was shown, as ``VecNormalize`` does for observations.

    The statistics are buffers, so that they are saved, loaded and moved with the policy. Before the first update it is the
    identity.

    :param size: numbers in a vector
    """

    mean: th.Tensor
    variance: th.Tensor
    count: th.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(size))
        self.register_buffer("variance", th.ones(size))
        # A tensor, because a number would have to be read from the device; a vector, because loading compares shapes.
        self.register_buffer("count", th.zeros(1))

    @th.no_grad()
    def update(self, x: th.Tensor) -> None:
        """
        Add a batch to the statistics (Chan et al. 1979), without waiting for the device.

        :param x: shape ``(..., size)``
        """
        rows = x.reshape(-1, x.shape[-1])
        variance, mean = th.var_mean(rows, 0, correction=0)
        weight = len(rows) / (self.count + len(rows))
        shift = mean - self.mean
        self.mean += shift * weight
        self.variance += (variance - self.variance) * weight + shift.square() * weight * (1.0 - weight)
        self.count += len(rows)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: shape ``(..., size)``
        :return: of the same shape, within [-10, 10]
        """
        return ((x - self.mean) / (self.variance + _EPSILON).sqrt()).clamp(-_CLIP, _CLIP)
