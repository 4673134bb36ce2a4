"""A dataset as the networks read it: scaled, on the device, and one row a step, so that a minibatch is one gather."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces


@dataclass(frozen=True)
class OfflineBatch:
    """
    A minibatch of steps; the parts are views of one matrix.

    :param observations: normalised, flat, shape ``(batch, obs_dim)``
    :param observation_actions: the same beside the actions, as critics read them, shape ``(batch, obs_dim + action_dim)``
    :param actions: in units of the box, from -1 to 1, shape ``(batch, action_dim)``
    :param next_observations: shape ``(batch, obs_dim)``
    :param rewards: scaled, shape ``(batch,)``
    :param continues: 0 after a terminal step and 1 elsewhere, shape ``(batch,)``
    :param to_the_end: where the rows know their returns, the same steps as leaps to the ends of their episodes
    """

    observations: th.Tensor
    observation_actions: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    rewards: th.Tensor
    continues: th.Tensor
    to_the_end: "Leaps | None" = None


@dataclass(frozen=True)
class Leaps:
    r"""
    What follows the steps of a minibatch until the ends of their episodes.

    :param rewards: discounted sums of the scaled rewards until there, shape ``(batch,)``
    :param discounts: :math:`\gamma^n` after :math:`n` steps, 0 where the episode terminated, shape ``(batch,)``
    :param next_observations: the last ones, normalised, shape ``(batch, obs_dim)``
    """

    rewards: th.Tensor
    discounts: th.Tensor
    next_observations: th.Tensor


@dataclass(frozen=True)
class Rows:
    """
    All steps of a dataset in one matrix: observation, action, next observation, reward, and whether the episode goes on; with
    returns, the last observation, the sum of rewards and the discount of a leap to the end besides.

    :param matrix: shape ``(n, 2 * obs_dim + action_dim + 2)``; with returns, ``obs_dim + 2`` columns more
    :param obs_dim: of a flat observation
    :param action_dim: of a flat action
    :param has_returns: whether these columns are there
    """

    matrix: th.Tensor
    obs_dim: int
    action_dim: int
    has_returns: bool = False

    @classmethod
    def of(
        cls,
        dataset: Any,
        *,
        mean: th.Tensor,
        std: th.Tensor,
        reward_factor: float,
        device: th.device,
    ) -> Self:
        """
        :param dataset: an :class:`~otbaselines.OfflineDataset`
        :param mean: subtracted from observations, shape ``(obs_dim,)``
        :param std: observations are divided by it, shape ``(obs_dim,)``
        :param reward_factor: on rewards
        :param device: where the matrix goes
        :return: the rows
        """
        low, high = action_bounds(dataset.action_space, device)
        observations, next_observations = (
            (part.to(device).flatten(1).float() - mean) / std for part in (dataset.observations, dataset.next_observations)
        )
        # Rounding may carry the edge of the box beyond one.
        actions = (2.0 * (dataset.actions.to(device).flatten(1).float() - low) / (high - low) - 1.0).clamp_(-1.0, 1.0)
        rewards = reward_factor * dataset.rewards.to(device).float()
        # Truncated episodes would have gone on: only terminations end the sum of rewards.
        continues = 1.0 - dataset.terminations.to(device).float()
        parts = [observations, actions, next_observations, rewards.unsqueeze(1), continues.unsqueeze(1)]
        return cls(th.cat(parts, 1), observations.shape[1], actions.shape[1])

    def __len__(self) -> int:
        return len(self.matrix)

    def with_returns(self, episodes: npt.NDArray[np.int64], gamma: float) -> Self:
        """
        :param episodes: number of each row's episode, below 0 where it is not known whole; such a row leads one step far
        :param gamma: the discount
        :return: the same rows, which know their returns
        """
        after = 2 * self.obs_dim + self.action_dim
        ends, rewards = self.matrix[:, self.obs_dim + self.action_dim : after].clone(), self.matrix[:, -2].clone()
        discounts = gamma * self.matrix[:, -1]
        whole = np.flatnonzero(episodes >= 0)
        if len(whole) > 0:
            starts = np.flatnonzero(np.diff(episodes[whole], prepend=-1))
            lengths = np.diff(starts, append=len(whole))
            last = starts + lengths - 1
            sums = rewards.double().cpu().numpy()[whole]
            # All episodes at once, from their ends to their starts.
            for k in range(1, int(lengths.max())):
                at = last[lengths > k] - k
                sums[at] += gamma * sums[at + 1]
            ends_of = np.repeat(last, lengths)
            rows, final = (th.as_tensor(index, device=self.matrix.device) for index in (whole, whole[ends_of]))
            further = th.as_tensor(gamma ** (ends_of - np.arange(len(whole))), device=self.matrix.device)
            rewards[rows] = th.as_tensor(sums, device=self.matrix.device).to(rewards.dtype)
            ends[rows], discounts[rows] = ends[final], further.to(discounts.dtype) * discounts[final]
        parts = [self.matrix[:, :after], ends, rewards.unsqueeze(1), discounts.unsqueeze(1), self.matrix[:, after:]]
        return replace(self, matrix=th.cat(parts, 1), has_returns=True)

    def spread(self, n_rows: int) -> th.Tensor:
        """
        :param n_rows: how many, at most
        :return: numbers of rows at even distances from the first to the last, on the device
        """
        return th.linspace(0, len(self) - 1, min(n_rows, len(self)), dtype=th.float64, device=self.matrix.device).long()

    def batch(self, index: th.Tensor) -> OfflineBatch:
        """
        :param index: which rows, shape ``(batch,)``, on the device
        :return: the minibatch
        """
        rows, sees, does = self.matrix.index_select(0, index), self.obs_dim, self.action_dim
        leaps = None
        if self.has_returns:
            leaps = Leaps(rewards=rows[:, -4], discounts=rows[:, -3], next_observations=rows[:, 2 * sees + does : -4])
        return OfflineBatch(
            observations=rows[:, :sees],
            observation_actions=rows[:, : sees + does],
            actions=rows[:, sees : sees + does],
            next_observations=rows[:, sees + does : 2 * sees + does],
            rewards=rows[:, -2],
            continues=rows[:, -1],
            to_the_end=leaps,
        )


def action_bounds(space: spaces.Space[Any], device: th.device) -> tuple[th.Tensor, th.Tensor]:
    """
    :param space: a bounded box
    :param device: where the bounds go
    :return: the lower and the upper bounds, flat, shape ``(action_dim,)``
    """
    low, high = (th.as_tensor(bound, dtype=th.float32, device=device).flatten() for bound in (space.low, space.high))  # type: ignore[attr-defined]
    return low, high
