"""Batched team environments that live on a device and are ordinary Stable-Baselines3 vector environments as well."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines.common.settings import COUNT
from otbaselines.common.vec_env.info_keywords import info_keywords
from otbaselines.common.vec_env.tensor_rows import TensorRows, TensorStep


class TensorVecEnv(TensorRows):
    """
    ``n_copies`` copies of one team's environment, stepped together as tensors on ``device``.

    Learners that know this class use :meth:`reset_tensor` and :meth:`step_tensor`, and no number leaves the device.
    For everyone else it is a Stable-Baselines3 ``VecEnv`` of ``n_copies * n_agents`` slots
    (``slot = copy * n_agents + agent``) with NumPy in and out.

    A subclass stores its state in tensors and implements :meth:`_reset_state`, :meth:`_observe` and
    :meth:`_transition`; counting steps, truncation, restarting and final observations are done here.
    :meth:`_observe_global`, :meth:`_infos`, :meth:`_state`, :meth:`_load_state` and :meth:`_draw` are optional. Randomness
    must come from ``self.generator``.

    A team's episode ends as one: if any agent of a copy terminates the copy restarts, and team-mates who had not
    terminated are truncated. Teams whose members leave at different times belong in a ``ParallelVecEnv``.

    :param n_copies: number of independent copies, at least 1
    :param agent_observation_spaces: one-dimensional float32 ``Box`` of every agent, in slot order; all of one shape
    :param agent_action_spaces: ``Discrete`` or one-dimensional ``Box`` of every agent; all equal
    :param max_episode_steps: steps after which an episode is over, at least 1: truncated, unless
        ``terminates_in_lockstep``
    :param terminates_early: whether :meth:`_transition` may report termination. Without it all copies run in lockstep
        under a counter on the host; with it every copy has a counter on the device, and the environment draws a start
        for all copies at every step, of which only the finished ones use theirs
    :param terminates_in_lockstep: every episode is over for good after exactly ``max_episode_steps`` steps (one-shot
        games, tasks with a fixed horizon), so that nothing is bootstrapped; counted on the host like truncation
    :param state_space: one-dimensional float32 ``Box`` of what :meth:`observe_state` returns; omitted where the
        environment offers no state
    :param device: where the state lives
    :param seed: seed of ``generator``; drawn from the operating system when omitted
    :param render_mode: ``"rgb_array"`` or ``None``
    :param n_render_copies: how many copies, from the first on, :meth:`get_images` draws
    :raises ValueError: if the team is empty, spaces are unsuitable or differ, a number is out of range, or episodes are
        to terminate both early and in lockstep
    """

    #: Which of :meth:`_infos` belong to an episode's result, with their value at its last step; learners log their means.
    info_keywords: tuple[str, ...] = ()
    possible_agents: list[str]
    generator: th.Generator

    def __init__(
        self,
        *,
        n_copies: int,
        agent_observation_spaces: Mapping[str, spaces.Space[Any]],
        agent_action_spaces: Mapping[str, spaces.Space[Any]],
        max_episode_steps: int,
        terminates_early: bool = False,
        terminates_in_lockstep: bool = False,
        state_space: spaces.Box | None = None,
        device: th.device | str = "cpu",
        seed: int | None = None,
        render_mode: str | None = None,
        n_render_copies: int = 1,
    ) -> None:
        for name, value in (
            ("n_copies", n_copies),
            ("max_episode_steps", max_episode_steps),
            ("n_render_copies", n_render_copies),
        ):
            COUNT.check(name, value)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'`render_mode` must be None or "rgb_array", got {render_mode!r}')
        if terminates_early and terminates_in_lockstep:
            raise ValueError("`terminates_early` and `terminates_in_lockstep` exclude each other; choose one")
        info_keywords(self)
        observation_space = _common_space("agent_observation_spaces", agent_observation_spaces)
        action_space = _common_space("agent_action_spaces", agent_action_spaces)
        _check_spaces(observation_space, action_space, state_space)
        if list(agent_observation_spaces) != list(agent_action_spaces):
            raise ValueError(
                "`agent_observation_spaces` and `agent_action_spaces` must name the same agents in the same order, got "
                f"{list(agent_observation_spaces)} and {list(agent_action_spaces)}"
            )
        self.n_copies = n_copies
        self.possible_agents = list(agent_observation_spaces)
        self.n_agents = len(self.possible_agents)
        self.agent_observation_spaces = dict(agent_observation_spaces)
        self.agent_action_spaces = dict(agent_action_spaces)
        self.max_episode_steps = max_episode_steps
        self.terminates_early = terminates_early
        self.terminates_in_lockstep = terminates_in_lockstep
        self.state_space = state_space
        self.n_render_copies = min(n_render_copies, n_copies)
        self.device = _resolve(device)
        self.generator = th.Generator(device=self.device)
        self.render_mode = render_mode
        self._discrete = isinstance(action_space, spaces.Discrete)
        self._action_shape = (n_copies, self.n_agents, *(action_space.shape or ()))
        self._obs: th.Tensor | None = None
        self._global: th.Tensor | None = None
        self._elapsed = 0
        self._elapsed_of_copy = th.zeros(n_copies if terminates_early else 0, dtype=th.int64, device=self.device)
        self._pending: np.ndarray[Any, Any] | None = None
        self._closed = False
        # The parent builds three lists of one dict per slot, which at millions of slots costs seconds and gigabytes that
        # the tensor path never looks at. It is told of one slot, and `reset` fills in `reset_infos` for those who read it.
        super().__init__(1, observation_space, action_space)
        self.num_envs = n_copies * self.n_agents
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    # ------------------------------------------------------------------ hooks for subclasses

    @abstractmethod
    def _reset_state(self, mask: th.Tensor | None) -> None:
        """
        Draw new starting states.

        :param mask: ``(n_copies,)`` bool, the copies to restart; ``None`` restarts all. Select with ``th.where``, which
            does not wait for the device, and not by indexing with the mask, which does
        """

    @abstractmethod
    def _observe(self) -> th.Tensor:
        """
        Return the observation of every agent, ``(n_copies, n_agents, obs_dim)`` float32, in a tensor that later steps
        leave alone: learners keep it.
        """

    @abstractmethod
    def _transition(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """
        Advance every copy by one step.

        :param actions: ``(n_copies, n_agents)`` int64, or ``(n_copies, n_agents, act_dim)`` float within the box
        :return: rewards ``(n_copies, n_agents)`` float32, and terminations ``(n_copies, n_agents)`` bool, or ``None``
            if the environment was not declared to terminate early
        """

    def _observe_global(self, obs: th.Tensor) -> th.Tensor:
        """
        Return what a critic that sees everything is shown; called only if ``state_space`` was given.

        :param obs: what :meth:`_observe` has just returned, ``(n_copies, n_agents, obs_dim)``
        :return: ``(n_copies, state_dim)`` float32, in a tensor that later steps leave alone; here the team's observations
            one after the other
        """
        return obs.flatten(1)

    def _infos(self) -> Mapping[str, th.Tensor] | None:
        """
        Return what the step just taken, before any restart, adds to the infos: tensors ``(n_copies, n_agents)`` by name,
        which later steps leave alone. They stay on the device until somebody looks.
        """
        return None

    def _state(self) -> dict[str, th.Tensor]:
        """Return every tensor that the next step depends on; copies are taken by the caller."""
        raise NotImplementedError(f"{type(self).__name__} does not implement `_state`, which `get_state` needs")

    def _load_state(self, state: Mapping[str, th.Tensor]) -> None:
        """Take over the tensors of :meth:`_state`, already on the right device, without keeping references to them."""
        raise NotImplementedError(f"{type(self).__name__} does not implement `_load_state`, which `set_state` needs")

    def _draw(self, copy: int) -> np.ndarray[Any, Any]:
        """Return a picture of one copy, ``(height, width, 3)`` uint8."""
        raise NotImplementedError(f"{type(self).__name__} does not implement `_draw`, which rendering needs")

    # ------------------------------------------------------------------ the tensor interface

    def reset_tensor(self) -> th.Tensor:
        """
        Restart every copy.

        :return: observations ``(n_copies, n_agents, obs_dim)`` float32
        """
        if self._closed:
            raise self._not_ready()
        self._reset_state(None)
        self._elapsed = 0
        self._elapsed_of_copy.zero_()
        self._obs = self._observe()
        self._global = self._global_of(self._obs)
        return self._obs

    def _global_of(self, obs: th.Tensor) -> th.Tensor | None:
        return None if self.state_space is None else self._observe_global(obs)

    @property
    def is_reset(self) -> bool:
        """Whether there are observations to go on from."""
        return self._obs is not None

    def observe(self) -> th.Tensor:
        """
        Return the current observations ``(n_copies, n_agents, obs_dim)`` without stepping.

        :raises RuntimeError: before the first reset
        """
        if self._obs is None:
            raise self._not_ready()
        return self._obs

    def _not_ready(self) -> RuntimeError:
        return RuntimeError(
            "the environment is closed; make a new one"
            if self._closed
            else "the environment was never reset; call `reset` or `reset_tensor` first"
        )

    def observe_state(self) -> th.Tensor | None:
        """
        Return the current state ``(n_copies, state_dim)`` float32 without stepping; ``None`` where ``state_space`` is.

        :raises RuntimeError: before the first reset
        """
        self.observe()
        return self._global

    def step_tensor(self, actions: th.Tensor) -> TensorStep:
        """
        Step every copy, and restart those that finish.

        :param actions: ``(n_copies, n_agents)`` int64, or ``(n_copies, n_agents, act_dim)`` float within the box. Ranges
            are not checked here, because that would wait for the device
        :return: the step's tensors
        :raises ValueError: if ``actions`` has another shape
        :raises RuntimeError: before the first reset
        """
        if actions.shape != self._action_shape:
            raise ValueError(f"`actions` must have shape {self._action_shape}, got {tuple(actions.shape)}")
        if self._obs is None:
            raise self._not_ready()
        rewards, terminated = self._transition(actions)
        obs, infos = self._observe(), self._infos()
        if self.terminates_early:
            return replace(self._restart_finished(obs, rewards, terminated), infos=infos)
        if terminated is not None:
            raise ValueError("`_transition` reported terminations; pass `terminates_early=True` to the constructor")
        self._elapsed += 1
        ends, state = self._elapsed >= self.max_episode_steps, self._global_of(obs)
        if ends:
            self.reset_tensor()
        else:
            self._obs, self._global = obs, state
        assert self._obs is not None
        return TensorStep(
            obs=self._obs,
            rewards=rewards,
            terminated=ends if self.terminates_in_lockstep else None,
            truncated=ends and not self.terminates_in_lockstep,
            final_obs=obs if ends else None,
            state=self._global,
            final_state=state if ends else None,
            infos=infos,
        )

    def _restart_finished(self, obs: th.Tensor, rewards: th.Tensor, terminated: th.Tensor | None) -> TensorStep:
        """Restart the copies in which an agent terminated or time ran out, without asking the device which they are."""
        if terminated is None:
            raise ValueError("`_transition` returned no terminations although the environment terminates early")
        self._elapsed_of_copy += 1
        any_terminated = terminated.any(dim=1)
        finished = (self._elapsed_of_copy >= self.max_episode_steps) | any_terminated
        truncated = finished & ~terminated.all(dim=1)
        self._elapsed_of_copy.masked_fill_(finished, 0)
        state = self._global_of(obs)
        self._reset_state(finished)
        fresh = self._observe()
        self._obs = th.where(finished[:, None, None], fresh, obs)
        if state is not None:
            self._global = th.where(finished[:, None], self._observe_global(fresh), state)
        return TensorStep(self._obs, rewards, terminated, truncated, final_obs=obs, state=self._global, final_state=state)

    def get_state(self) -> dict[str, th.Tensor]:
        """
        Return a copy of everything that decides the future: the subclass's tensors, ``elapsed`` (steps since the last
        restart, ``(n_copies,)`` int64) and the generator's state.
        """
        state = {name: value.clone() for name, value in self._state().items()}
        elapsed = self._elapsed_of_copy if self.terminates_early else th.full((self.n_copies,), self._elapsed)
        return {**state, "elapsed": elapsed.clone(), "generator": self.generator.get_state()}

    def set_state(self, state: Mapping[str, th.Tensor]) -> None:
        """
        Continue from ``state``; entries that are left out keep their present values.

        :param state: as :meth:`get_state` returned it, or a part of it
        :raises ValueError: if an entry is unknown or misshapen, or ``elapsed`` differs between copies in lockstep
        """
        current = self._state()
        own = dict(state)
        generator, elapsed = own.pop("generator", None), own.pop("elapsed", None)
        for name, value in own.items():
            if name not in current:
                raise ValueError(f"`state` has the unknown entry {name!r}; known are {sorted(current)}")
            if value.shape != current[name].shape:
                raise ValueError(f"`state[{name!r}]` must have shape {tuple(current[name].shape)}, got {tuple(value.shape)}")
        self._load_state({name: own.get(name, value).to(value) for name, value in current.items()})
        if elapsed is not None:
            self._load_elapsed(elapsed)
        if generator is not None:
            # Generator states are byte tensors on the host, whatever the generator's own device is.
            self.generator.set_state(generator.cpu())
        self._obs = self._observe()
        self._global = self._global_of(self._obs)

    def _load_elapsed(self, elapsed: th.Tensor) -> None:
        if elapsed.shape != (self.n_copies,):
            raise ValueError(f"`state['elapsed']` must have shape {(self.n_copies,)}, got {tuple(elapsed.shape)}")
        if self.terminates_early:
            self._elapsed_of_copy.copy_(elapsed)
            return
        if not bool((elapsed == elapsed[0]).all()):
            raise ValueError("`state['elapsed']` must be the same for all copies, which run in lockstep here")
        self._elapsed = int(elapsed[0])


def _resolve(device: th.device | str) -> th.device:
    """Give a CUDA device its index, so that comparing it with a tensor's device works."""
    resolved = th.device(device)
    if resolved.type == "cuda" and not th.cuda.is_available():
        raise ValueError(f"`device` is {str(device)!r}, but torch finds no CUDA device here; use 'cpu'")
    if resolved.type == "cuda" and resolved.index is None:
        return th.device("cuda", th.cuda.current_device())
    return resolved


def _common_space(name: str, agent_spaces: Mapping[str, spaces.Space[Any]]) -> spaces.Space[Any]:
    """Return the space that all agents share, or explain which agent differs."""
    if not agent_spaces:
        raise ValueError(f"`{name}` is empty; a team needs at least one agent")
    first, *others = agent_spaces
    for agent in others:
        if agent_spaces[agent] != agent_spaces[first]:
            raise ValueError(
                f"`{name}` must be the same for all agents, but {agent!r} has {agent_spaces[agent]} and {first!r} has "
                f"{agent_spaces[first]}; pad them to a common shape"
            )
    return agent_spaces[first]


def _check_spaces(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], state_space: spaces.Space[Any] | None
) -> None:
    """Raise unless observations and states are float vectors, and actions are numbers or float vectors."""
    for role, space in (("observations", observation_space), ("states", state_space or observation_space)):
        if not (isinstance(space, spaces.Box) and len(space.shape) == 1):
            raise ValueError(f"{role} must be one-dimensional Boxes, got {space}")
        if space.dtype != np.float32:
            raise ValueError(f"{role} must be float32, got {space.dtype}")
    if not isinstance(action_space, spaces.Discrete | spaces.Box) or len(action_space.shape or ()) > 1:
        raise ValueError(f"actions must be Discrete or one-dimensional Boxes, got {action_space}")
