"""Transitions on the learner's device, and what learners ask of them."""

from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device

from otbaselines.common.datasets.columns import COLUMNS
from otbaselines.common.memory import check_fits

# Rows that are summed up at once, so that statistics of large data need no second copy in float64.
_CHUNK = 2**16
#: Smallest standard deviation that observations are taken to have, in their own unit.
MIN_STD = 1e-3


class OfflineSamples(NamedTuple):
    """
    A minibatch of transitions.

    :param observations: shape ``(batch, *obs_shape)``
    :param actions: shape ``(batch, *action_shape)``, in the environment's own scale
    :param rewards: shape ``(batch,)``
    :param next_observations: as ``observations``
    :param terminations: 1.0 where nothing comes after, which truncations are not; shape ``(batch,)``
    """

    observations: th.Tensor
    actions: th.Tensor
    rewards: th.Tensor
    next_observations: th.Tensor
    terminations: th.Tensor


class Transitions:
    """The columns of :class:`~otbaselines.common.datasets.OfflineDataset`, as tensors on one device, and their statistics."""

    observations: th.Tensor
    actions: th.Tensor
    rewards: th.Tensor
    next_observations: th.Tensor
    terminations: th.Tensor
    truncations: th.Tensor
    observation_space: spaces.Box[Any]
    action_space: spaces.Box[Any]
    name: str
    episodes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def device(self) -> th.device:
        """Where the tensors live."""
        return self.rewards.device

    def to(self, device: th.device | str) -> Self:
        """
        :param device: ``"cpu"``, ``"cuda"``, ``"auto"``
        :return: the same data there; this object where they are there already
        :raises ValueError: if they do not fit
        """
        target = get_device(device)
        if th.zeros(0, device=target).device == self.device:
            return self
        remedy = "train on a part of the data, or on the CPU"
        check_fits(self.n_bytes, f"the data set {self.name!r}", remedy, target)
        moved = object.__new__(type(self))
        # Statistics move along: what was computed once is not computed again.
        vars(moved).update({k: v.to(target) if isinstance(v, th.Tensor) else v for k, v in vars(self).items()})
        return moved

    def sample(self, batch_size: int, generator: th.Generator | None = None) -> OfflineSamples:
        """
        Draw rows with replacement, on the device and without waiting for it.

        :param batch_size: how many
        :param generator: of random numbers, on this device; torch's own when omitted
        :return: the minibatch
        """
        rows = th.randint(len(self), (batch_size,), generator=generator, device=self.device)
        return self.rows(rows)

    def rows(self, rows: th.Tensor) -> OfflineSamples:
        """
        :param rows: numbers of rows, shape ``(batch,)``, on this device
        :return: these transitions
        """
        return OfflineSamples(
            self.observations[rows],
            self.actions[rows],
            self.rewards[rows],
            self.next_observations[rows],
            self.terminations[rows].to(th.float32),
        )

    @cached_property
    def observation_mean(self) -> th.Tensor:
        """Mean of the observations, shape ``obs_shape``."""
        total = th.stack([part.double().sum(0) for part in self.observations.split(_CHUNK)]).sum(0)
        return (total / len(self)).float()

    @cached_property
    def observation_std(self) -> th.Tensor:
        """
        Standard deviation of the observations, shape ``obs_shape``, and at least :data:`MIN_STD`: what never moves in the data
        would otherwise be blown up without limit when it moves in the environment.
        """
        mean = self.observation_mean.double()
        total = th.stack([(part.double() - mean).square().sum(0) for part in self.observations.split(_CHUNK)]).sum(0)
        return (total / len(self)).sqrt().clamp(min=MIN_STD).float()

    @cached_property
    def _returns(self) -> npt.NDArray[np.float64]:
        whole = self.episodes >= 0
        numbers, rewards = self.episodes[whole], self.rewards.cpu().numpy()[whole].astype(np.float64)
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        return np.add.reduceat(rewards, starts) if len(starts) else np.zeros(0)

    def episode_returns(self) -> npt.NDArray[np.float64]:
        """
        Undiscounted returns.

        :return: one for each whole episode, in the data's order
        """
        return self._returns.copy()

    def episode_lengths(self) -> npt.NDArray[np.int64]:
        """
        :return: steps of each whole episode, in the data's order
        """
        numbers = self.episodes[self.episodes >= 0]
        lengths: npt.NDArray[np.int64] = np.diff(np.flatnonzero(np.diff(numbers, prepend=-1)), append=len(numbers))
        return lengths

    def return_range(self) -> float:
        """
        What returns differ by, the scale by which D4RL's locomotion rewards are usually divided.

        :return: the best return of an episode minus the worst
        :raises ValueError: if there are no two whole episodes whose returns differ by a thousandth or more
        """
        returns = self.episode_returns()
        width = float(np.ptp(returns)) if len(returns) else 0.0
        # Returns that differ by rounding, or by next to nothing, would blow rewards up without limit.
        if width <= 1e-3 * float(np.abs(returns).max(initial=0.0)):
            raise ValueError(
                f"the data set {self.name!r} has {len(returns)} whole episodes, whose returns do not differ; a range of "
                "returns needs two that do, so do not scale the rewards by it"
            )
        return width

    @property
    def n_bytes(self) -> int:
        """Bytes of the columns."""
        return sum(column.numel() * column.element_size() for column in (getattr(self, key) for key in COLUMNS))
