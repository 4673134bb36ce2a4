"""Episode statistics of environments that live on a device."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch as th

from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.common.vec_env.tensor_rows import TensorStep, slot_infos


class LazyInfos(Sequence[dict[str, Any]]):
    """
    SB3's list of info dicts, made only when a callback looks at it.

    :param n_slots: number of slots
    :param values: what the environment adds to the infos of this step, by name, ``(n_copies, n_agents)`` each
    :param episodes: results of each slot's finished episode, by name, of the same shape; ``None`` when none finished
    :param dones: which slots finished
    """

    def __init__(
        self,
        n_slots: int,
        values: Mapping[str, th.Tensor] | None = None,
        episodes: Mapping[str, th.Tensor] | None = None,
        dones: np.ndarray | None = None,
    ) -> None:
        self._n_slots = n_slots
        self._values = values
        self._episodes = episodes
        self._dones = dones
        self._infos: list[dict[str, Any]] | None = None

    def _materialise(self) -> list[dict[str, Any]]:
        if self._infos is None:
            self._infos = slot_infos(self._n_slots, self._values)
            if self._episodes is not None and self._dones is not None:
                episodes = slot_infos(self._n_slots, self._episodes)
                for slot in np.flatnonzero(self._dones):
                    self._infos[slot]["episode"] = _episode(episodes[slot])
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
    Returns and lengths of running episodes as tensors, and the environment's ``info_keywords``; the host reads them once a
    rollout.

    :param env: the environment whose episodes are followed
    """

    def __init__(self, env: TensorVecEnv) -> None:
        self.env = env
        self._returns = th.zeros(env.n_copies, env.n_agents, device=env.device)
        self._lengths = th.zeros(env.n_copies, env.n_agents, device=env.device)
        self._finished: list[tuple[dict[str, th.Tensor], th.Tensor | None]] = []
        self._idle_infos = LazyInfos(env.num_envs)
        self._no_dones = np.zeros(env.num_envs, dtype=bool)

    def record(self, step: TensorStep) -> tuple[Sequence[dict[str, Any]], np.ndarray]:
        """
        Add one step.

        In lockstep environments nothing is read from the device. Where copies end on their own, the done flags are read
        each step, because SB3's callbacks count them.

        :param step: what the environment returned
        :return: infos and done flags for the callbacks, one per slot
        :raises ValueError: if the environment does not return what its ``info_keywords`` name
        """
        self._returns = self._returns + step.rewards
        self._lengths = self._lengths + 1.0
        done = step.done
        dones = (~self._no_dones if done else self._no_dones) if isinstance(done, bool) else done.flatten().cpu().numpy()
        if not dones.any():
            return (LazyInfos(self.env.num_envs, step.infos) if step.infos else self._idle_infos), dones
        episodes = {**self._keywords(step), "r": self._returns, "l": self._lengths}
        self._finished.append((episodes, None if isinstance(done, bool) else done))
        if isinstance(done, bool):
            self._returns, self._lengths = th.zeros_like(self._returns), th.zeros_like(self._lengths)
        else:
            self._returns, self._lengths = self._returns.masked_fill(done, 0.0), self._lengths.masked_fill(done, 0.0)
        return LazyInfos(self.env.num_envs, step.infos, episodes, dones), dones

    def _keywords(self, step: TensorStep) -> dict[str, th.Tensor]:
        infos = step.infos or {}
        for name in self.env.info_keywords:
            if name not in infos:
                raise ValueError(
                    f"`info_keywords` of {type(self.env).__name__} names {name!r}, but `_infos` returns {sorted(infos)}; "
                    "return it there, or take it out"
                )
        return {name: infos[name] for name in self.env.info_keywords}

    def flush(self, ep_info_buffer: deque[dict[str, Any]] | None) -> None:
        """
        Hand the last finished episodes to SB3's buffer and forget them.

        :param ep_info_buffer: the algorithm's buffer, of which at most ``maxlen`` entries are filled
        """
        if ep_info_buffer is not None:
            room = ep_info_buffer.maxlen or 100
            newest: list[dict[str, Any]] = []
            for episodes, done in reversed(self._finished):
                if len(newest) >= room:
                    break
                results = [result.flatten() if done is None else result[done] for result in episodes.values()]
                rows = th.stack(results)[:, -(room - len(newest)) :].tolist()
                newest = [_episode(dict(zip(episodes, row, strict=True))) for row in zip(*rows, strict=True)] + newest
            ep_info_buffer.extend(newest)
        self._finished.clear()


def _episode(results: dict[str, float]) -> dict[str, Any]:
    """One episode's results in SB3's form."""
    return {**results, "l": int(results["l"]), "t": time.time()}
