"""PettingZoo teams as Stable-Baselines3 vector environments, one slot per copy and agent."""

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from otbaselines.common.vec_env.copies import (
    build_copies,
    check_distinct_streams,
    inner_envs,
    native_action_space,
    owner_of,
    stream_fingerprint,
)
from otbaselines.common.vec_env.episode import TeamCopy
from otbaselines.common.vec_env.lean_mpe import make_team_copy
from otbaselines.common.vec_env.rows import ActionReader, ObservationWriter
from otbaselines.common.vec_env.spaces import Array, TeamSpaces, team_spaces


class TeamVecEnv(VecEnv):
    """
    What :class:`ParallelVecEnv` and its multi-process sibling have in common: the layout, seeding and checking actions.

    :param team: native and shared spaces of the agents
    :param n_copies: number of copies of the team
    :param metadata: metadata of the environment
    :param seed: seed of the first reset; drawn from NumPy's global generator when omitted
    """

    def __init__(self, team: TeamSpaces, n_copies: int, metadata: dict[str, Any], seed: int | None) -> None:
        self.n_copies = n_copies
        self.n_agents = len(team.agents)
        self.possible_agents = list(team.agents)
        self.agent_observation_spaces = team.agent_observation_spaces
        self.agent_action_spaces = team.agent_action_spaces
        self.state_space = team.state_space
        self.agent_active: Array = np.zeros((n_copies, self.n_agents), dtype=np.bool_)
        self._team = team
        self._reader = ActionReader(team, n_copies)
        self._pending: list[Any] | None = None
        self._has_reset = False
        self._closed = False
        super().__init__(n_copies * self.n_agents, team.observation_space, team.action_space)
        # Recorders take the frame rate from the metadata, the parent keeps only the render modes.
        self.metadata = {**metadata, **self.metadata}
        self.seed(seed)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Choose the seeds of the next reset: copy ``c`` is reset with ``seed + c``.

        :param seed: the first copy's seed; drawn from NumPy's global generator when omitted, as in Stable-Baselines3
        :return: the seed of every slot's copy
        """
        first = VecEnv.seed(self, seed)[0]
        assert first is not None
        self._seeds = [first + slot // self.n_agents for slot in range(self.num_envs)]
        return self._seeds

    def _take_seeds(self) -> tuple[list[int | None], list[dict[str, Any] | None]]:
        """Return and forget the seeds and options that wait for the next reset, one per copy."""
        seeds = self._seeds[:: self.n_agents]
        options = [given or None for given in self._options[:: self.n_agents]]
        self._reset_seeds()
        self._reset_options()
        return seeds, options

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("the environment is closed; make a new one")

    def _read_actions(self, actions: Array) -> list[Any]:
        self._require_open()
        if not self._has_reset:
            raise RuntimeError("the environment was never reset; call `reset` before `step`")
        if self._pending is not None:
            raise RuntimeError("a step is already under way; call `step_wait` before the next `step_async`")
        return self._reader.read(actions, self.agent_active.reshape(-1))

    def _take_pending(self) -> list[Any]:
        if self._pending is None:
            raise RuntimeError("`step_wait` needs actions; call `step_async` first, or `step`")
        pending, self._pending = self._pending, None
        return pending

    def _copies_of(self, indices: VecEnvIndices) -> list[int]:
        """Return the copy that each of the slots belongs to."""
        slots: Iterable[int] = self._get_indices(indices)
        return [range(self.num_envs)[slot] // self.n_agents for slot in slots]

    @abstractmethod
    def _call_copies(self, method: str, copies: Sequence[int], *args: Any, **kwargs: Any) -> dict[int, Any]:
        """Call one of ``_COPY_METHODS`` on some copies and return the results by copy."""

    def team_states(self) -> Array | None:
        """
        Return the state of every copy, as the environment's ``state()`` gives it: of the new episode where one has begun.

        Environments are asked only when somebody calls this. From the first call on, ``infos[slot]["terminal_state"]``
        holds the state before the restart wherever an agent was truncated; team-mates share the array.

        :return: ``(n_copies, *state_space.shape)`` float32; ``None`` where ``state_space`` is
        :raises ValueError: if a state contradicts ``state_space`` or is not finite
        :raises RuntimeError: before the first reset
        """
        if self.state_space is None:
            return None
        if not self._has_reset:
            raise RuntimeError("the environment was never reset; call `reset` before `team_states`")
        return np.stack(list(self._call_copies("state", range(self.n_copies)).values()))

    def _for_slots(self, method: str, indices: VecEnvIndices, *args: Any, **kwargs: Any) -> list[Any]:
        # Team-mates share their copy, which is therefore asked once, however many of its slots are named.
        copies = self._copies_of(indices)
        results = self._call_copies(method, sorted(set(copies)), *args, **kwargs)
        return [results[copy] for copy in copies]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Return an attribute of the environment behind each slot, looked up through its wrappers.

        :param attr_name: name of the attribute; ``render_mode`` is ``None`` where the environment has none
        :param indices: slots to ask; all when omitted
        :return: one value per slot
        :raises AttributeError: if an environment does not have the attribute
        """
        return self._for_slots("get", indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute where it is defined, or on the innermost environment if it is new.

        :param attr_name: name of the attribute
        :param value: the value
        :param indices: slots whose copies are changed, and with them all team-mates; all when omitted
        """
        self._for_slots("set", indices, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the environments, once per copy.

        :param method_name: name of the method
        :param method_args: positional arguments
        :param indices: slots whose copies are called; all when omitted
        :param method_kwargs: keyword arguments
        :return: one result per slot; team-mates get the same one
        :raises AttributeError: if an environment does not have the method
        """
        return self._for_slots("call", indices, method_name, *method_args, **method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        Tell whether the environment behind each slot is wrapped in a class, for ``Monitor`` always ``True``.

        Episode statistics are already in the infos, which is what Stable-Baselines3 wants to know when it asks.
        """
        if wrapper_class is Monitor:
            return [True] * len(self._copies_of(indices))
        return self._for_slots("wrapped", indices, wrapper_class)

    def get_images(self) -> Sequence[Array | None]:
        """Return one picture per copy."""
        return list(self._call_copies("call", range(self.n_copies), "render").values())


class ParallelVecEnv(TeamVecEnv):
    """
    Copies of a PettingZoo ``ParallelEnv`` as the slots of a Stable-Baselines3 vector environment.

    ``slot = copy * n_agents + agent``. Each slot has its own rewards, dones and ``infos``: ``terminal_observation`` and
    ``TimeLimit.truncated`` at the end of the agent's own episode, and ``episode`` with its return, length and time, so
    that no monitor is needed. A copy restarts when none of its agents is left. Until then the rows of agents that have
    left are zero with ``done`` false, and ``agent_active`` says so; learners that do not look at it (those of
    Stable-Baselines3) take these rows for experience, and ``VecMonitor`` counts them in its lengths.

    ``state_space`` and :meth:`team_states` give the environment's own ``state()`` to critics that see everything. The
    space is ``None`` for environments without a ``state_space`` that is a ``Box``.

    Teams whose spaces differ share padded ones (:func:`~otbaselines.common.vec_env.spaces.team_spaces`).

    :param env_or_factories: a factory, a list of factories (one per copy), or an environment, which is then copied
    :param n_copies: number of copies of the team; taken from a list's length
    :param pad: whether agents may have different spaces
    :param seed: copy ``c`` is first reset with ``seed + c``; drawn from NumPy's global generator when omitted
    :raises TypeError: if something else than a PettingZoo environment is passed
    :raises ValueError: if the team is empty, copies differ or are not independent, or spaces cannot be padded
    """

    def __init__(self, env_or_factories: Any, n_copies: int = 1, *, pad: bool = True, seed: int | None = None) -> None:
        self.envs = build_copies(env_or_factories, n_copies)
        team = _spaces_of(self.envs[0], pad=pad)
        for index, env in enumerate(self.envs[1:], start=1):
            if _spaces_of(env, pad=pad) != team:
                raise ValueError(
                    f"copies 0 and {index} differ in their agents or spaces; make all factories build the same team"
                )
        agents = list(self.envs[0].possible_agents)
        self._writer = ObservationWriter(team)
        self._copies = [make_team_copy(env, agents, self._writer) for env in self.envs]
        super().__init__(team, len(self.envs), dict(getattr(self.envs[0], "metadata", None) or {}), seed)

    def reset(self) -> VecEnvObs:
        """
        Start a new episode in every copy.

        :return: observations, one row per slot
        :raises ValueError: if observations contradict their spaces, or copies play the same random stream
        """
        self._require_open()
        seeds, options = self._take_seeds()
        observations = self._writer.empty(self.num_envs)
        for index, copy in enumerate(self._copies):
            rows = self._writer.rows(observations, index * self.n_agents, (index + 1) * self.n_agents)
            copy.reset(rows, seed=seeds[index], options=options[index])
            self._note_reset(index)
        if not self._has_reset:
            check_distinct_streams([stream_fingerprint(env) for env in self.envs])
        self._note_active()
        self._has_reset, self._pending = True, None
        return observations  # type: ignore[no-any-return]

    def step_async(self, actions: Array) -> None:
        """
        Keep the actions for :meth:`step_wait`.

        :param actions: one row per slot in the padded action space; rows of absent agents are ignored
        :raises ValueError: if a shape is wrong, or an action is not in its agent's own space
        """
        self._pending = self._read_actions(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step every copy with the actions kept by :meth:`step_async`; copies without agents restart.

        :return: observations, rewards (float32), dones (bool) and infos, one row each per slot
        """
        actions = self._take_pending()
        n_agents, writer = self.n_agents, self._writer
        observations = writer.empty(self.num_envs)
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        dones = np.zeros(self.num_envs, dtype=np.bool_)
        infos: list[dict[str, Any]] = []
        is_changed = False
        for index, copy in enumerate(self._copies):
            start, stop = index * n_agents, (index + 1) * n_agents
            live = copy.live
            rows = writer.rows(observations, start, stop)
            infos += copy.step(actions[start:stop], rows, rewards[start:stop], dones[start:stop])
            if copy.live is not live:
                is_changed = True
                self._note_reset(index)
        if is_changed:
            self._note_active()
        return observations, rewards, dones, infos

    def _note_reset(self, copy: int) -> None:
        self.reset_infos[copy * self.n_agents : (copy + 1) * self.n_agents] = self._copies[copy].reset_infos

    def _note_active(self) -> None:
        # A new array each time: a learner that kept the last one must not see it change.
        self.agent_active = np.array([copy.live for copy in self._copies], dtype=np.bool_)

    def close(self) -> None:
        """Close every copy; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            with contextlib.ExitStack() as stack:
                # One that fails does not keep the others open.
                for env in reversed(self.envs):
                    stack.callback(env.close)

    def _call_copies(self, method: str, copies: Sequence[int], *args: Any, **kwargs: Any) -> dict[int, Any]:
        function = _COPY_METHODS[method]
        return {copy: function(self._copies[copy], *args, **kwargs) for copy in copies}


def _spaces_of(env: Any, *, pad: bool) -> TeamSpaces:
    agents = getattr(env, "possible_agents", None)
    if not isinstance(agents, Iterable):
        raise ValueError(
            f"{env} has no `possible_agents`, or no list of them ({agents!r}); list every agent that can ever appear, because "
            "slots are fixed"
        )
    _check_names(agents)
    return team_spaces(
        {str(agent): env.observation_space(agent) for agent in agents},
        {str(agent): native_action_space(env, agent) if pad else env.action_space(agent) for agent in agents},
        pad=pad,
        state_space=getattr(env, "state_space", None),
    )


def _check_names(agents: Iterable[Any]) -> None:
    names: dict[str, Any] = {}
    for agent in agents:
        try:
            hash(agent)
        except TypeError:
            raise ValueError(
                f"`possible_agents` holds {agent!r}, which cannot be the key of a dict; use names or numbers"
            ) from None
        same = [other for name, other in names.items() if name == str(agent) or other == agent]
        if same:
            raise ValueError(
                f"`possible_agents` holds {same[0]!r} and {agent!r}, which are one key of a dict or have one name; give every "
                "agent its own"
            )
        names[str(agent)] = agent


def _get(copy: TeamCopy, name: str) -> Any:
    env = copy.env
    owner = owner_of(env, name)
    if owner is None:
        if name == "render_mode":
            return None
        raise AttributeError(f"{env} has no attribute {name!r}")
    return getattr(owner, name)


def _set(copy: TeamCopy, name: str, value: Any) -> None:
    setattr(owner_of(copy.env, name) or copy.env.unwrapped, name, value)


def _call(copy: TeamCopy, name: str, *args: Any, **kwargs: Any) -> Any:
    return _get(copy, name)(*args, **kwargs)


def _wrapped(copy: TeamCopy, wrapper_class: type) -> bool:
    return any(isinstance(inner, wrapper_class) for inner in inner_envs(copy.env))


_COPY_METHODS: dict[str, Callable[..., Any]] = {
    "get": _get,
    "set": _set,
    "call": _call,
    "wrapped": _wrapped,
    "state": TeamCopy.state,
}
