"""One copy of a team's environment: stepping it, restarting it, and keeping its agents' episode statistics."""

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from otbaselines.common.vec_env.copies import TeamEnv
from otbaselines.common.vec_env.info_keywords import info_keywords
from otbaselines.common.vec_env.rows import ObservationWriter, as_array
from otbaselines.common.vec_env.spaces import Array

Infos = list[dict[str, Any]]


class TeamCopy:
    """
    Runs one ``ParallelEnv`` and writes what its agents see into their rows.

    An environment may name entries of its infos in ``info_keywords``, as SB3's ``Monitor`` has them: their values at an
    agent's last step are part of its episode's result, and learners log their means.

    An agent that leaves is done once; until the copy's episode ends its row is zero and ``live`` says ``False``. The
    copy restarts by itself when no agent is left. An agent that is done and still listed in ``env.agents`` has left all the
    same: it may join again after it was missing there.

    :param env: the environment
    :param agents: identifiers of all agents as the environment spells them, in slot order
    :param writer: writes observations into rows
    """

    def __init__(self, env: TeamEnv, agents: Sequence[Any], writer: ObservationWriter) -> None:
        self.env = env
        self.live = [False] * len(agents)
        self.reset_infos: Infos = [{} for _ in agents]
        self._agents = list(agents)
        self._known = set(agents)
        self._writer = writer
        self._keywords = info_keywords(env)
        self._returns = [0.0] * len(agents)
        self._lengths = [0] * len(agents)
        self._started = time.time()
        self._keeps_states = False
        # Agents who are done and still listed by the environment.
        self._lingering: set[Any] = set()
        self._has_warned = False
        self._rows: Any = None

    def reset(self, rows: Any, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """
        Start a new episode.

        :param rows: zeros, to be filled with the first observations, one row per agent
        :param seed: seed handed to the environment, if any
        :param options: options handed to the environment, if any
        :raises ValueError: if the environment starts without agents, or what it returns is not what PettingZoo asks for
        """
        if seed is None and options is None:
            result = self.env.reset()
        else:
            result = self.env.reset(seed=seed, options=options)
        observations, infos = _dicts("reset", result, "observations and infos")
        present = self._present()
        if not present:
            raise ValueError(f"{self.env} has no agents after `reset`; an episode needs at least one")
        self.reset_infos = [_info(infos, agent) for agent in self._agents]
        for index, agent in enumerate(self._agents):
            if agent in present:
                self._writer.write(rows, index, self._entry("observation", observations, agent))
        self._rows = rows
        self.live = [agent in present for agent in self._agents]
        self._returns, self._lengths = [0.0] * len(self._agents), [0] * len(self._agents)
        self._lingering.clear()

    def step(self, actions: Sequence[Any], rows: Any, rewards: Array, dones: Array) -> Infos:
        """
        Step the environment, and start the next episode if this one is over.

        :param actions: one native action per agent; those of absent agents are ignored
        :param rows: zeros, to be filled with the agents' observations
        :param rewards: zeros, to be filled with the rewards of this step
        :param dones: ``False``, to be set where an agent's own episode is over
        :return: one info per agent
        :raises ValueError: if the environment names an unknown agent, leaves out something of a living one, or returns what
            is no observation, reward or flag
        """
        agents, live = self._agents, self.live
        acting = {agents[index]: actions[index] for index, is_live in enumerate(live) if is_live}
        observations, step_rewards, terminations, truncations, step_infos = _dicts(
            "step", self.env.step(acting), "observations, rewards, terminations, truncations and infos"
        )
        remaining = self._present()
        infos: Infos = []
        for index, agent in enumerate(agents):
            info = _info(step_infos, agent)
            info["TimeLimit.truncated"] = False
            infos.append(info)
            if not live[index]:
                if agent not in remaining:
                    self._lingering.discard(agent)
                elif agent not in self._lingering:
                    self._join(index, self._entry("observation", observations, agent), rows)
                continue
            is_gone = agent not in remaining
            # An agent that vanishes without a word is taken as terminated: nothing after it can be bootstrapped.
            reward = 0.0 if is_gone and agent not in step_rewards else self._entry("reward", step_rewards, agent)
            if not isinstance(reward, float):
                reward = _number("the reward", agent, reward)
            rewards[index] = reward
            self._returns[index] += reward
            self._lengths[index] += 1
            terminated, truncated = terminations.get(agent), truncations.get(agent)
            if not (terminated is False or terminated is True):
                terminated = self._flag("termination", terminated, agent, is_gone)
            if not (truncated is False or truncated is True):
                truncated = self._flag("truncation", truncated, agent, is_gone)
            if terminated or truncated or is_gone:
                if agent in observations:
                    self._writer.write(rows, index, observations[agent])
                else:
                    self._writer.copy_row(self._rows, rows, index)
                # Who vanishes without a word has no last info.
                named = self._named(agent, info) if agent in step_infos else {}
                self._leave(index, rows, dones, info, truncated=truncated and not terminated, named=named)
                if not is_gone:
                    self._linger(agent)
            else:
                self._writer.write(rows, index, self._entry("observation", observations, agent))
        self._rows = rows
        if self._keeps_states:
            self._add_terminal_states(infos)
        if True not in self.live:
            self.reset(rows)
        return infos

    def state(self) -> Array:
        """
        Return the environment's state; those who ask once also find ``terminal_state`` in the infos of truncated agents.

        :return: float32 vector
        :raises ValueError: if it contradicts the environment's ``state_space``
        """
        self._keeps_states = True
        return self._writer.state(self.env.state())

    def _add_terminal_states(self, infos: Infos) -> None:
        cut_off = [info for info in infos if info["TimeLimit.truncated"]]
        if cut_off:
            state = self.state()
            for info in cut_off:
                info["terminal_state"] = state

    def _join(self, index: int, observation: Any, rows: Any) -> None:
        # `live` is replaced, not changed, so that its owner sees from its identity that the team has changed.
        self.live = [*self.live[:index], True, *self.live[index + 1 :]]
        self._returns[index], self._lengths[index] = 0.0, 0
        self._writer.write(rows, index, observation)

    def _leave(
        self, index: int, rows: Any, dones: Array, info: dict[str, Any], *, truncated: bool, named: dict[str, float]
    ) -> None:
        """Close an agent's episode, whose last observation is in its row and whose result has ``named``, and clear the row."""
        self.live = [*self.live[:index], False, *self.live[index + 1 :]]
        dones[index] = True
        info["TimeLimit.truncated"] = truncated
        info["terminal_observation"] = self._writer.row(rows, index)
        seconds = round(time.time() - self._started, 6)
        info["episode"] = {**named, "r": round(self._returns[index], 6), "l": self._lengths[index], "t": seconds}
        self._writer.clear(rows, index)

    def _named(self, agent: Any, info: dict[str, Any]) -> dict[str, float]:
        """The entries of an agent's last info that belong to its episode's result."""
        for key in self._keywords:
            if key not in info:
                raise ValueError(
                    f"`info_keywords` of {self.env} names {key!r}, but the last info of agent {agent!r} has only "
                    f"{sorted(set(info) - {'TimeLimit.truncated'}, key=str)}; return it there, or take it out"
                )
        return {key: _number(f"`{key}` in the info", agent, info[key]) for key in self._keywords}

    def _linger(self, agent: Any) -> None:
        """Remember an agent whose episode is over and who is still in ``env.agents``, lest it join again at every step."""
        self._lingering.add(agent)
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"agent {agent!r} was terminated or truncated but is still in `agents` of {self.env}; it is taken to have "
                "left until it is missing there once, or the episode is over. Remove agents from `agents` when they are done",
                UserWarning,
                stacklevel=2,
            )

    def _present(self) -> set[Any]:
        """The agents that the environment lists, all of them known."""
        agents = self.env.agents
        try:
            present = set(agents)
        except TypeError:
            raise ValueError(f"`agents` of {self.env} is {agents!r}; make it a list of agents") from None
        if not present <= self._known:
            raise ValueError(
                f"{self.env} has the agent {min(present - self._known, key=str)!r}, which `possible_agents` {self._agents} "
                "does not list; list every agent that can ever appear"
            )
        return present

    def _entry(self, what: str, values: Mapping[Any, Any], agent: Any) -> Any:
        try:
            return values[agent]
        except KeyError:
            raise ValueError(
                f"{self.env} returned no {what} for agent {agent!r}, which is listed in `agents`; every living agent needs one"
            ) from None

    def _flag(self, what: str, flag: Any, agent: Any, is_gone: bool) -> bool:
        """What is neither `True` nor `False` may still be one number that means it, or missing for an agent who is gone."""
        if isinstance(flag, np.bool_):
            return bool(flag)
        if flag is None and is_gone:
            return False
        array = as_array(f"the {what} of agent {agent!r} is", flag)
        if array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
            raise ValueError(f"{self.env} returned the {what} {flag!r} for agent {agent!r}; return True or False")
        return bool(array.item())


def _dicts(method: str, result: Any, names: str) -> tuple[Mapping[Any, Any], ...]:
    """What ``reset`` or ``step`` returned, if it is a tuple of dicts, as many as PettingZoo asks for."""
    n_wanted = 2 if method == "reset" else 5
    if not isinstance(result, tuple | list) or len(result) != n_wanted:
        raise ValueError(f"`{method}` of the environment returned {_kind(result)}; return {names}, a dict of agents each")
    for values in result:
        if type(values) is not dict and not isinstance(values, Mapping):
            raise ValueError(f"`{method}` of the environment returned {_kind(values)} among {names}; return a dict of agents")
    return tuple(result)


def _kind(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, tuple | list) else f"a value of type {type(value).__name__}"


def _info(infos: Mapping[Any, Any], agent: Any) -> dict[str, Any]:
    info = infos.get(agent)
    if info is not None and not isinstance(info, Mapping):
        raise ValueError(f"the info of agent {agent!r} is {info!r}; return a dict")
    # Statistics of an episode are counted here; an environment's own entry of that name would be taken for them.
    return {key: value for key, value in info.items() if key != "episode"} if info else {}


def _number(what: str, agent: Any, value: Any) -> float:
    array = as_array(f"{what} of agent {agent!r} is", value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"{what} of agent {agent!r} is {value!r}; return a number")
    return float(array.item())
