"""One copy of a team's environment: stepping it, restarting it, and keeping its agents' episode statistics."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from otbaselines.common.vec_env.copies import TeamEnv
from otbaselines.common.vec_env.rows import ObservationWriter
from otbaselines.common.vec_env.spaces import Array

Infos = list[dict[str, Any]]


class TeamCopy:
    """
    Runs one ``ParallelEnv`` and writes what its agents see into their rows.

    An agent that leaves is done once; until the copy's episode ends its row is zero and ``live`` says ``False``. The
    copy restarts by itself when no agent is left.

    :param env: the environment
    :param agents: identifiers of all agents as the environment spells them, in slot order
    :param writer: writes observations into rows
    """

    def __init__(self, env: TeamEnv, agents: Sequence[Any], writer: ObservationWriter) -> None:
        self.env = env
        self.live = [False] * len(agents)
        self.reset_infos: Infos = [{} for _ in agents]
        self._agents = list(agents)
        self._index = {agent: index for index, agent in enumerate(agents)}
        self._writer = writer
        self._returns = [0.0] * len(agents)
        self._lengths = [0] * len(agents)
        self._started = time.time()
        self._checked = False
        self._keeps_states = False
        self._rows: Any = None

    def reset(self, rows: Any, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """
        Start a new episode.

        :param rows: zeros, to be filled with the first observations, one row per agent
        :param seed: seed handed to the environment, if any
        :param options: options handed to the environment, if any
        :raises ValueError: if the environment starts without agents, or observations contradict their spaces
        """
        if seed is None and options is None:
            observations, infos = self.env.reset()
        else:
            observations, infos = self.env.reset(seed=seed, options=options)
        present = self._indices_of(self.env.agents)
        if not present:
            raise ValueError(f"{self.env} has no agents after `reset`; an episode needs at least one")
        for index in present:
            observation = self._observation(observations, index)
            if not self._checked:
                self._writer.check(index, observation)
            self._writer.write(rows, index, observation)
        self._checked = True
        self._rows = rows
        self.live = [index in present for index in range(len(self._agents))]
        self._returns, self._lengths = [0.0] * len(self._agents), [0] * len(self._agents)
        self.reset_infos = [dict(infos.get(agent) or {}) for agent in self._agents]

    def step(self, actions: Sequence[Any], rows: Any, rewards: Array, dones: Array) -> Infos:
        """
        Step the environment, and start the next episode if this one is over.

        :param actions: one native action per agent; those of absent agents are ignored
        :param rows: zeros, to be filled with the agents' observations
        :param rewards: zeros, to be filled with the rewards of this step
        :param dones: ``False``, to be set where an agent's own episode is over
        :return: one info per agent
        :raises ValueError: if the environment leaves out a living agent's observation, or names an unknown agent
        """
        agents, live = self._agents, self.live
        acting = {agents[index]: actions[index] for index, is_live in enumerate(live) if is_live}
        observations, step_rewards, terminations, truncations, step_infos = self.env.step(acting)
        remaining = set(self.env.agents)
        if not remaining <= self._index.keys():
            self._indices_of(remaining)
        infos: Infos = []
        for index, agent in enumerate(agents):
            info = {**(step_infos.get(agent) or {}), "TimeLimit.truncated": False}
            infos.append(info)
            if not live[index]:
                if agent in remaining:
                    self._join(index, self._observation(observations, index), rows)
                continue
            reward = float(step_rewards.get(agent, 0.0))
            rewards[index] = reward
            self._returns[index] += reward
            self._lengths[index] += 1
            terminated, truncated = bool(terminations.get(agent, False)), bool(truncations.get(agent, False))
            if terminated or truncated or agent not in remaining:
                # An agent that vanishes without a word is taken as terminated: nothing after it can be bootstrapped.
                if agent in observations:
                    self._writer.write(rows, index, observations[agent])
                else:
                    self._writer.copy_row(self._rows, rows, index)
                self._leave(index, rows, dones, info, truncated=truncated and not terminated)
            else:
                self._writer.write(rows, index, self._observation(observations, index))
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

    def _leave(self, index: int, rows: Any, dones: Array, info: dict[str, Any], *, truncated: bool) -> None:
        """Close an agent's episode, whose last observation is in its row, and clear the row."""
        self.live = [*self.live[:index], False, *self.live[index + 1 :]]
        dones[index] = True
        info["TimeLimit.truncated"] = truncated
        info["terminal_observation"] = self._writer.row(rows, index)
        seconds = round(time.time() - self._started, 6)
        info["episode"] = {"r": round(self._returns[index], 6), "l": self._lengths[index], "t": seconds}
        self._writer.clear(rows, index)

    def _observation(self, observations: Mapping[Any, Any], index: int) -> Any:
        try:
            return observations[self._agents[index]]
        except KeyError:
            raise ValueError(
                f"{self.env} returned no observation for agent {self._agents[index]!r}, which is listed in `agents`; every "
                "living agent needs one"
            ) from None

    def _indices_of(self, agents: Any) -> list[int]:
        try:
            return [self._index[agent] for agent in agents]
        except KeyError as error:
            raise ValueError(
                f"{self.env} has the agent {error.args[0]!r}, which `possible_agents` {self._agents} does not list; list "
                "every agent that can ever appear"
            ) from None
