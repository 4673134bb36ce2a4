"""Episode statistics of environments that live on a device."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch as th

from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.common.vec_env.tensor_rows import TensorStep


class LazyInfos(Sequence[dict[str, Any]]):
    """
    SB3's list of info dicts, made only when a callback looks at it.

    :param n_slots: number of slots
    :param returns: return of each slot's finished episode, ``(n_copies, n_agents)``; ``None`` when none finished
    :param lengths: steps of that episode, of the same shape
    :param dones: which slots finished
    """

    def __init__(self, n_slots: int, returns: th.Tensor | None, lengths: th.Tensor | None, dones: np.ndarray | None) -> None:
        self._n_slots = n_slots
        self._returns = returns
        self._lengths = lengths
        self._dones = dones
        self._infos: list[dict[str, Any]] | None = None

    def _materialise(self) -> list[dict[str, Any]]:
        if self._infos is None:
            self._infos = [{} for _ in range(self._n_slots)]
            if self._returns is not None and self._lengths is not None and self._dones is not None:
                returns, lengths = self._returns.flatten().tolist(), self._lengths.flatten().tolist()
                for slot in np.flatnonzero(self._dones):
                    self._infos[slot]["episode"] = {"r": returns[slot], "l": int(lengths[slot]), "t": time.time()}
        return self._infos

    def __len__(self) -> int:
        return self._n_slots

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._materialise()[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._materialise())


class DeviceEpisodeStatistics:
    """
    Returns and lengths of running episodes as tensors; the host reads them once a rollout.

    :param env: the environment whose episodes are followed
    """

    def __init__(self, env: TensorVecEnv) -> None:
        self.env = env
        self._returns = th.zeros(env.n_copies, env.n_agents, device=env.device)
        self._lengths = th.zeros(env.n_copies, env.n_agents, device=env.device)
        self._finished: list[tuple[th.Tensor, th.Tensor, th.Tensor | None]] = []
        self._idle_infos = LazyInfos(env.num_envs, None, None, None)
        self._no_dones = np.zeros(env.num_envs, dtype=bool)

    def record(self, step: TensorStep) -> tuple[Sequence[dict[str, Any]], np.ndarray]:
        """
        Add one step.

        In lockstep environments nothing is read from the device. Where copies end on their own, the done flags are read
        each step, because SB3's callbacks count them.

        :param step: what the environment returned
        :return: infos and done flags for the callbacks, one per slot
        """
        self._returns = self._returns + step.rewards
        self._lengths = self._lengths + 1.0
        done = step.done
        if isinstance(done, bool):
            if not done:
                return self._idle_infos, self._no_dones
            dones = ~self._no_dones
            infos = LazyInfos(self.env.num_envs, self._returns, self._lengths, dones)
            self._finished.append((self._returns, self._lengths, None))
            self._returns = th.zeros_like(self._returns)
            self._lengths = th.zeros_like(self._lengths)
            return infos, dones
        dones = done.flatten().cpu().numpy()
        if not dones.any():
            return self._idle_infos, dones
        infos = LazyInfos(self.env.num_envs, self._returns, self._lengths, dones)
        self._finished.append((self._returns, self._lengths, done))
        self._returns = self._returns.masked_fill(done, 0.0)
        self._lengths = self._lengths.masked_fill(done, 0.0)
        return infos, dones

    def flush(self, ep_info_buffer: deque[dict[str, Any]] | None) -> None:
        """
        Hand the last finished episodes to SB3's buffer and forget them.

        :param ep_info_buffer: the algorithm's buffer, of which at most ``maxlen`` entries are filled
        """
        if ep_info_buffer is not None:
            room = ep_info_buffer.maxlen or 100
            newest: list[dict[str, Any]] = []
            for returns, lengths, done in reversed(self._finished):
                if len(newest) >= room:
                    break
                returns, lengths = (returns, lengths) if done is None else (returns[done], lengths[done])
                rows = th.stack([returns.flatten(), lengths.flatten()])[:, -(room - len(newest)) :].tolist()
                episodes = [{"r": r, "l": int(n), "t": time.time()} for r, n in zip(*rows, strict=True)]
                newest = episodes + newest
            ep_info_buffer.extend(newest)
        self._finished.clear()
