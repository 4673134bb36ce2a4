"""Stable-Baselines3's view of a batched environment: rows of NumPy arrays in and out."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn


@dataclass(frozen=True, slots=True)
class TensorStep:
    """
    What one step of every copy produced. Nothing here forces the host to wait for the device.

    An agent's episode is over where ``terminated | truncated``; the value of its last observation is to be
    bootstrapped where ``truncated & ~terminated``.

    :param obs: observations after finished copies have restarted, ``(n_copies, n_agents, obs_dim)`` float32
    :param rewards: rewards of this step, ``(n_copies, n_agents)`` float32
    :param terminated: agents that reached a terminal state, ``(n_copies, n_agents)`` bool; a host ``bool`` where all
        episodes terminate in lockstep; ``None`` where the environment never terminates
    :param truncated: a host ``bool`` where all copies run in lockstep, else ``(n_copies,)`` bool. It is also true of a
        copy that restarts because some, but not all, of its agents terminated: for the others the episode was cut
    :param final_obs: observations before the restart, shaped as ``obs``, meaningful for the finished copies only;
        ``None`` where it is known that none finished
    :param state: the team's state, belonging to ``obs``, ``(n_copies, state_dim)`` float32; ``None`` where the
        environment has none
    :param final_state: the state that belongs to ``final_obs``; ``None`` with either of the others
    :param infos: what this step adds to the infos, by name, ``(n_copies, n_agents)`` each; ``None`` for nothing
    """

    obs: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor | bool | None
    truncated: bool | th.Tensor
    final_obs: th.Tensor | None
    state: th.Tensor | None = None
    final_state: th.Tensor | None = None
    infos: Mapping[str, th.Tensor] | None = None

    @property
    def done(self) -> bool | th.Tensor:
        """
        Whose episode ended: a host ``bool`` in lockstep, else ``(n_copies, n_agents)`` bool.

        A copy restarts as a whole, so the columns of one row are always equal.
        """
        if not isinstance(self.terminated, th.Tensor):
            return self.terminated or self.truncated
        truncated = self.truncated if isinstance(self.truncated, bool) else self.truncated.unsqueeze(1)
        return self.terminated | truncated


def slot_infos(n_slots: int, values: Mapping[str, th.Tensor] | None) -> list[dict[str, Any]]:
    """
    Make one info of each slot; reading the numbers waits for the device.

    :param n_slots: number of slots
    :param values: tensors with one number for each slot, by name; ``None`` for none
    :return: the infos
    """
    infos: list[dict[str, Any]] = [{} for _ in range(n_slots)]
    for name, tensor in (values or {}).items():
        for info, value in zip(infos, tensor.flatten().tolist(), strict=True):
            info[name] = value
    return infos


class TensorRows(VecEnv):
    """What makes a :class:`~otbaselines.common.vec_env.tensor.TensorVecEnv` a ``VecEnv``, in terms of its tensors."""

    n_copies: int
    n_agents: int
    n_render_copies: int
    device: th.device
    generator: th.Generator
    _discrete: bool
    _action_shape: tuple[int, ...]
    _obs: th.Tensor | None
    _pending: np.ndarray[Any, Any] | None
    _closed: bool

    @abstractmethod
    def reset_tensor(self) -> th.Tensor:
        """Restart every copy and return the observations."""

    @abstractmethod
    def step_tensor(self, actions: th.Tensor) -> TensorStep:
        """Step every copy, and restart those that finish."""

    @abstractmethod
    def observe_state(self) -> th.Tensor | None:
        """Return the current states, if the environment has any."""

    @abstractmethod
    def _draw(self, copy: int) -> np.ndarray[Any, Any]:
        """Return a picture of one copy."""

    def reset(self) -> np.ndarray[Any, Any]:
        """Restart every copy and return the observations as ``(n_copies * n_agents, obs_dim)`` float32."""
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._numpy_rows(self.reset_tensor())

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        """
        Keep the actions for :meth:`step_wait`.

        :param actions: one row per slot; continuous actions are clipped to their box
        :raises ValueError: if the shape or dtype is wrong, a discrete action is out of range, or one is NaN or infinite
        """
        actions = np.asarray(actions)
        shape = (self.num_envs, *self._action_shape[2:])
        if actions.shape != shape:
            raise ValueError(f"`actions` must have shape {shape}, got {actions.shape}")
        if isinstance(self.action_space, spaces.Discrete):
            if actions.dtype.kind not in "iu":
                raise ValueError(f"`actions` must be integers for {self.action_space}, got dtype {actions.dtype}")
            first, last = int(self.action_space.start), int(self.action_space.start + self.action_space.n) - 1
            if actions.min() < first or actions.max() > last:
                raise ValueError(f"`actions` must lie in {first}..{last}, got {actions.min()}..{actions.max()}")
        elif isinstance(self.action_space, spaces.Box):
            if actions.dtype.kind not in "fiu" or not np.isfinite(actions).all():
                raise ValueError(f"`actions` must be finite numbers for {self.action_space}, got {actions}")
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        self._pending = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step with the actions kept by :meth:`step_async`.

        :return: observations, rewards (float32), dones (bool), and infos, which hold what the environment adds to them, for
            finished episodes ``terminal_observation`` and ``TimeLimit.truncated``, and for truncated ones
            ``terminal_state`` where the environment has a state
        :raises RuntimeError: without a preceding :meth:`step_async`
        """
        if self._pending is None:
            raise RuntimeError("`step_wait` needs actions; call `step_async` first, or `step`")
        actions = th.as_tensor(self._pending, dtype=th.int64 if self._discrete else th.float32, device=self.device)
        self._pending = None
        step = self.step_tensor(actions.view(self._action_shape))
        infos = slot_infos(self.num_envs, step.infos)
        dones = self._numpy_flags(step.done)
        if step.final_obs is not None and dones.any():
            final_obs = self._numpy_rows(step.final_obs)
            terminated = self._numpy_flags(False if step.terminated is None else step.terminated)
            for slot in np.flatnonzero(dones):
                infos[slot]["terminal_observation"] = final_obs[slot]
                infos[slot]["TimeLimit.truncated"] = not terminated[slot]
            if step.final_state is not None:
                final_states = step.final_state.cpu().numpy().copy()
                for slot in np.flatnonzero(dones & ~terminated):
                    infos[slot]["terminal_state"] = final_states[slot // self.n_agents]
        rewards = step.rewards.to(device="cpu", dtype=th.float32).reshape(-1).numpy().copy()
        return self._numpy_rows(step.obs), rewards, dones, infos

    def team_states(self) -> np.ndarray[Any, Any] | None:
        """
        Return the state of every copy for the NumPy interface: of the new episode where one has begun.

        :return: ``(n_copies, state_dim)`` float32; ``None`` where ``state_space`` is
        :raises RuntimeError: before the first reset
        """
        state = self.observe_state()
        return None if state is None else state.cpu().numpy().copy()

    def _numpy_rows(self, obs: th.Tensor) -> np.ndarray[Any, Any]:
        # The copy keeps wrappers that normalise in place from writing into the environment's own observation.
        rows: np.ndarray[Any, Any] = obs.reshape(self.num_envs, -1).cpu().numpy().copy()
        return rows

    def _numpy_flags(self, flags: bool | th.Tensor) -> np.ndarray[Any, Any]:
        if isinstance(flags, bool):
            return np.full(self.num_envs, flags, dtype=np.bool_)
        rows: np.ndarray[Any, Any] = flags.reshape(-1).cpu().numpy()
        return rows

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Seed the generator that all copies draw from; the same seed then gives the same episodes, bit for bit.

        Unlike in other vector environments the seed takes effect at once, not at the next reset.

        :param seed: the seed; drawn from NumPy's global generator when omitted, as in Stable-Baselines3
        :return: the seed, once per slot
        """
        if seed is None:
            seed = int(np.random.randint(0, np.iinfo(np.uint32).max, dtype=np.uint32))  # noqa: NPY002 (SB3 seeds this one)
        self.generator.manual_seed(seed)
        return [seed] * self.num_envs

    def close(self) -> None:
        """Refuse further resets and steps; there are no processes or windows to close."""
        self._closed, self._obs = True, None

    def get_images(self) -> Sequence[np.ndarray[Any, Any] | None]:
        """
        Return a picture of each of the first ``n_render_copies`` copies, ``(height, width, 3)`` uint8.

        :raises RuntimeError: if the environment was made without ``render_mode="rgb_array"``
        """
        if self.render_mode != "rgb_array":
            raise RuntimeError('nothing is drawn without `render_mode="rgb_array"`; pass it when making the environment')
        return [self._draw(copy) for copy in range(self.n_render_copies)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute, which all copies share, once per slot asked for."""
        return [getattr(self, attr_name)] * self._count(indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of all copies.

        :raises ValueError: if ``indices`` names some slots only: copies are not separate objects here
        """
        if self._count(indices) != self.num_envs:
            raise ValueError(f"`indices` must name all {self.num_envs} slots or be None, because copies share `{attr_name}`")
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method once, for all copies together, and return its result once per slot asked for."""
        return [getattr(self, method_name)(*method_args, **method_kwargs)] * self._count(indices)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return ``False`` for every slot asked for: there is no Gymnasium environment inside that could be wrapped."""
        return [False] * self._count(indices)

    def _count(self, indices: VecEnvIndices) -> int:
        return len(list(self._get_indices(indices))) if indices is not None else self.num_envs
