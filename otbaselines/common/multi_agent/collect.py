"""Filling a rollout buffer: on the device of a tensor environment, or through SB3's interface."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.multi_agent.buffers import AgentRolloutBuffer
from otbaselines.common.multi_agent.row_policy import TeamPolicy
from otbaselines.common.multi_agent.sb3_policy import SB3TeamPolicy
from otbaselines.common.vec_env.info_keywords import RESERVED
from otbaselines.common.vec_env.layout import TeamLayout
from otbaselines.common.vec_env.statistics import DeviceEpisodeStatistics
from otbaselines.common.vec_env.tensor import TensorVecEnv

# A rollout's values are computed in one pass after it; this many rows at a time bound the memory of that pass.
VALUE_ROWS = 1 << 19


class TeamRollouts(OnPolicyAlgorithm):
    """The half of an on-policy team algorithm that meets the environment."""

    policy: Any
    rollout_buffer: AgentRolloutBuffer  # type: ignore[assignment]
    layout: TeamLayout
    _statistics: DeviceEpisodeStatistics | None = None

    @property
    def team_policy(self) -> TeamPolicy:
        """The policy as the collectors and losses see it: teams of rows, whatever class the user chose."""
        policy: Any = self.policy
        return policy if isinstance(policy, TeamPolicy) else SB3TeamPolicy(policy, self.layout)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """
        Actions for rows of observations, or for a dict of agents as PettingZoo gives it.

        :param observation: rows ``(n_copies * n_agents, ...)``, or ``{agent: observation}``
        :param state: unused; returned as given
        :param episode_start: unused
        :param deterministic: the most probable actions instead of samples
        :return: the actions in the form of the observation, and ``state``
        """
        return self.team_policy.predict(observation, state, episode_start, deterministic)

    def collect_rollouts(  # type: ignore[override]
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: AgentRolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """
        Fill the buffer with the current policies' experience.

        A :class:`TensorVecEnv` is stepped without leaving its device; every other environment through SB3's interface.

        :param env: the training environment
        :param callback: called at each step
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: environment steps per copy
        :return: ``False`` when a callback stopped the training
        """
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        # An environment on another device than the learner's is stepped through NumPy: slower, and right.
        on_device = isinstance(env, TensorVecEnv) and env.device.type == self.device.type
        collect = self._collect_on_device if on_device else self._collect_from_vec_env
        try:
            last = collect(env, callback, rollout_buffer, n_rollout_steps)  # type: ignore[arg-type]
        except BaseException:
            # Copies may be out of step with what was recorded; without a last observation SB3 resets before it goes on.
            self._last_obs = None
            raise
        if last is None:
            return False
        check_rollout(rollout_buffer, self.layout, self.num_timesteps)
        values = rollout_buffer.values if rollout_buffer.has_values else self._rollout_values(rollout_buffer.observations)
        with th.no_grad():
            last_values = self.team_policy.team_values(*last)
        rollout_buffer.compute_returns_and_advantages(values, last_values)
        if rollout_buffer.states is not None:
            # Only now, so that a rollout's values, and those after it, are of one scale, the one that was trained.
            self.team_policy.track_states(rollout_buffer.states)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write the log, in which what episodes' results hold beyond SB3's entries has a mean as theirs do: an environment's
        ``info_keywords``, and those of SB3's monitors.

        :param iteration: number of the rollout
        """
        results: dict[str, list[float]] = {}
        for episode in self.ep_info_buffer or ():
            for name, value in episode.items():
                if name not in RESERVED and isinstance(value, int | float | np.number):
                    results.setdefault(name, []).append(float(value))
        for name, values in results.items():
            self.logger.record(f"rollout/ep_{name}_mean", float(np.mean(values)))
        super().dump_logs(iteration)

    def _draw_noise(self, env: VecEnv, step: int) -> None:
        """New matrices for state-dependent exploration, at the start of a rollout and every ``sde_sample_freq`` steps."""
        if self.use_sde and (step == 0 or (self.sde_sample_freq > 0 and step % self.sde_sample_freq == 0)):
            self.team_policy.reset_noise(env.num_envs)

    def _collect_on_device(
        self, env: TensorVecEnv, callback: BaseCallback, buffer: AgentRolloutBuffer, n_steps: int
    ) -> tuple[th.Tensor, th.Tensor | None] | None:
        """
        Step a tensor environment; no number reaches the host unless a callback asks for it.

        :return: the last observation and state, or ``None`` when a callback stopped the training
        """
        statistics = self._device_statistics(env)
        obs = env.observe()
        states = None if buffer.states is None else env.observe_state()
        for n_steps_done in range(n_steps):
            self._draw_noise(env, n_steps_done)
            actions, log_probs, values = self.team_policy.act(obs)
            step = env.step_tensor(self.team_policy.env_actions(actions))
            self.num_timesteps += env.num_envs
            new_obs, rewards = step.obs, step.rewards
            infos, dones = statistics.record(step)
            callback.update_locals(locals())
            if not callback.on_step():
                statistics.flush(self.ep_info_buffer)
                return None
            # A host `False` says that nobody was cut off: no episode ended, or all of them terminated.
            if step.truncated is not False:
                self._bootstrap_on_device(buffer, step)
            buffer.add(obs, actions, log_probs, rewards, step.done, values=values, states=states)
            obs, states = new_obs, None if states is None else step.state
        statistics.flush(self.ep_info_buffer)
        return obs, states

    def _device_statistics(self, env: TensorVecEnv) -> DeviceEpisodeStatistics:
        """The running episodes of this environment; they outlive a rollout, but not a reset."""
        if self._statistics is None or self._statistics.env is not env:
            self._statistics = DeviceEpisodeStatistics(env)
        # The environment keeps its own observations; what SB3 keeps here is only a mark that no reset is due.
        self._last_obs = np.empty(0, dtype=np.float32)
        return self._statistics

    def _bootstrap_on_device(self, buffer: AgentRolloutBuffer, step: Any) -> None:
        """The value of the last observation of every episode that was cut off, not finished."""
        values = self._final_values(step.final_obs, None if buffer.states is None else step.final_state)
        if not isinstance(step.truncated, bool):
            cut = step.truncated.unsqueeze(1)
            values = th.where(cut if step.terminated is None else cut & ~step.terminated, values, 0.0)
        buffer.bootstrap[buffer.pos] = values

    def _collect_from_vec_env(
        self, env: VecEnv, callback: BaseCallback, buffer: AgentRolloutBuffer, n_steps: int
    ) -> tuple[PyTorchObs, th.Tensor | None] | None:
        """
        Step an ordinary SB3 vector environment.

        :return: the last observation and state, or ``None`` when a callback stopped the training
        """
        has_active = hasattr(env, "agent_active")
        cut_off: list[tuple[int, int, Any]] = []
        mates: dict[tuple[int, int], Any] = {}
        obs, states = self._team_tensor(self._last_obs), self._states(env)
        for n_steps_done in range(n_steps):
            check_rows(self._last_obs, n_steps_done, self.layout, self.num_timesteps)
            active = np.array(getattr(env, "agent_active", None)) if has_active else None
            self._draw_noise(env, n_steps_done)
            actions, log_probs, values = self.team_policy.act(obs)
            env_actions = self.team_policy.env_actions(actions).flatten(0, 1).cpu().numpy()
            new_obs, rewards, dones, infos = env.step(env_actions.reshape(-1, *self.action_space.shape))  # type: ignore[misc]
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return None
            self._update_info_buffer(infos, dones)
            cut_off += [(n_steps_done, int(slot), infos[slot]) for slot in np.flatnonzero(dones)]
            if self.team_policy.reads_team:
                mates |= self._team_mates(env, n_steps_done, self._last_obs, new_obs, dones)
            buffer.add(
                obs,
                actions,
                log_probs,
                th.as_tensor(rewards, dtype=th.float32, device=self.device).view_as(log_probs),
                th.as_tensor(dones, dtype=th.bool, device=self.device).view_as(log_probs),
                None if active is None or active.all() else th.as_tensor(active, device=self.device),
                values,
                states,
            )
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            obs, states = self._team_tensor(new_obs), self._states(env)
        check_rows(self._last_obs, n_steps, self.layout, self.num_timesteps)
        self._bootstrap_from_infos(buffer, cut_off, mates)
        return obs, states

    def _states(self, env: VecEnv) -> th.Tensor | None:
        """The teams' states as the critic reads them, shape ``(n_copies, state_dim)``."""
        if self.rollout_buffer.states is None:
            return None
        return th.as_tensor(env.team_states(), dtype=th.float32, device=self.device)  # type: ignore[attr-defined]

    def _team_mates(self, env: VecEnv, step: int, before: Any, after: Any, dones: np.ndarray) -> dict[tuple[int, int], Any]:
        """
        What the team-mates of agents whose episode ended saw at that moment, for a critic that reads whole teams.

        Where a copy goes on, that is what they see now. A copy has restarted where an agent is done and there again; then
        only those are left out who had gone before, and their rows are as they were.
        """
        teams = dones.reshape(-1, self.layout.n_agents)
        restarted = np.logical_and(teams, getattr(env, "agent_active", True)).any(1)
        n = self.layout.n_agents
        rows = {int(copy): slice(copy * n, (copy + 1) * n) for copy in np.flatnonzero(teams.any(1))}
        return {(step, copy): _rows_at(before if restarted[copy] else after, part) for copy, part in rows.items()}

    def _bootstrap_from_infos(
        self,
        buffer: AgentRolloutBuffer,
        ended: list[tuple[int, int, dict[str, Any]]],
        mates: dict[tuple[int, int], Any],
    ) -> None:
        """The value of the last observation of every episode that was cut off, all in one forward pass."""
        n_agents = buffer.n_agents
        ended = [(step, slot, info) for step, slot, info in ended if info.get("terminal_observation") is not None]
        cut = [(step, slot, info) for step, slot, info in ended if info.get("TimeLimit.truncated", False)]
        if not cut:
            return
        # Critics are evaluated for whole teams; unless they read whole teams, the rows of others are not looked at.
        infos = {(step, slot // n_agents): info for step, slot, info in cut}
        teams = {key: row for row, key in enumerate(infos)}
        seen = [(step, slot, info) for step, slot, info in ended if (step, slot // n_agents) in teams] if mates else cut
        rows_seen = np.array([teams[step, slot // n_agents] * n_agents + slot % n_agents for step, slot, _ in seen])
        among = [mates[key] for key in teams] if mates else []
        final_obs = _scatter_rows([info["terminal_observation"] for *_, info in seen], rows_seen, len(teams) * n_agents, among)
        states = None
        if buffer.states is not None:
            states = th.as_tensor(np.stack([info["terminal_state"] for info in infos.values()]), device=self.device)
        values = self._final_values(self._team_tensor(final_obs), states).flatten()
        rows = np.array([teams[step, slot // n_agents] * n_agents + slot % n_agents for step, slot, _ in cut])
        slots = th.as_tensor(
            np.array([(step, slot // n_agents, slot % n_agents) for step, slot, _ in cut]), device=self.device
        )
        steps, copies, agents = slots.unbind(1)
        buffer.bootstrap[steps, copies, agents] = values[th.as_tensor(rows, device=self.device)]

    @th.no_grad()
    def _final_values(self, obs: PyTorchObs, states: th.Tensor | None) -> th.Tensor:
        """The critics at episodes' last observations or states; NaN, which :func:`check_rollout` reports, where these are."""
        values = self.team_policy.team_values(obs, states)
        # Bounded activations would turn an infinity into an ordinary value, and a critic of whole teams would blame everyone.
        named = (states.unsqueeze(1),) if states is not None else obs.values() if isinstance(obs, dict) else (obs,)
        for part in named:
            if part.is_floating_point():
                bad = ~th.isfinite(part).flatten(2).all(-1)
                values = values.masked_fill(bad.any(1, keepdim=True), 0.0).masked_fill(bad, th.nan)
        return values

    def _team_tensor(self, rows: Any) -> PyTorchObs:
        """Rows of slots as a tensor ``(n_copies, n_agents, ...)`` on the learner's device."""
        return self.team_policy.split_rows(obs_as_tensor(rows, self.device))

    def _rollout_values(self, observations: PyTorchObs) -> th.Tensor:
        """The critics at every step of the rollout, shape ``(n_steps, n_copies, n_agents)``."""
        buffer = self.rollout_buffer
        rows = max(1, VALUE_ROWS // buffer.n_agents)
        chunks = []
        with th.no_grad():
            for start in range(0, buffer.size(), rows):
                part = slice(start, start + rows)
                states = None if buffer.states is None else buffer.states.flatten(0, 1)[part]
                if isinstance(observations, dict):
                    obs: PyTorchObs = {k: v.flatten(0, 1)[part] for k, v in observations.items()}
                else:
                    obs = observations.flatten(0, 1)[part]
                chunks.append(self.team_policy.team_values(obs, states))
        return th.cat(chunks).view_as(buffer.values)


def _rows_at(rows: Any, part: slice) -> Any:
    return {key: value[part] for key, value in rows.items()} if isinstance(rows, dict) else rows[part]


def _scatter_rows(observations: list[Any], rows: np.ndarray, n_rows: int, among: list[Any]) -> Any:
    """Observations of some slots, placed among the rows of their teams, or among zeros where there are none of these."""
    if isinstance(observations[0], dict):
        return {
            key: _scatter_rows([obs[key] for obs in observations], rows, n_rows, [team[key] for team in among])
            for key in observations[0]
        }
    stacked = np.stack([np.asarray(obs) for obs in observations])
    placed = np.concatenate(among) if among else np.zeros((n_rows, *stacked.shape[1:]), dtype=stacked.dtype)
    placed[rows] = stacked
    return placed


def check_rollout(buffer: AgentRolloutBuffer, layout: TeamLayout, num_timesteps: int) -> None:
    """
    Check the rewards and observations of a rollout, terminal ones included, with one look at the device.

    :param buffer: the rollout
    :param layout: the team
    :param num_timesteps: agent-steps so far
    :raises ValueError: if one is NaN or infinite; names the quantity, the agent, its copy and the step
    """
    observations = buffer.observations if isinstance(buffer.observations, dict) else {"observations": buffer.observations}
    # Which of the two makes a last value not finite is what the critic reads; a state is nobody's in particular.
    last = "terminal_observation" if buffer.states is None else "terminal_state"
    quantities = {
        "rewards": buffer.rewards,
        **({} if buffer.states is None else {"states": buffer.states.unsqueeze(2)}),
        last: buffer.bootstrap,
        **{k: v for k, v in observations.items() if v.is_floating_point()},
    }
    # The sum of absolute values is finite exactly when every entry is (and is far from overflow): one number each.
    sums = th.stack([tensor.abs().sum(dtype=th.float64) for tensor in quantities.values()])
    if bool(th.isfinite(sums).all()):
        return
    for name, tensor in quantities.items():
        bad = (~th.isfinite(tensor)).flatten(3).any(-1) if tensor.ndim > 3 else ~th.isfinite(tensor)
        if bool(bad.any()):
            step, copy, agent = (int(index) for index in bad.nonzero()[0])
            raise _not_finite(name, step, copy, None if name in ("states", "terminal_state") else agent, layout, num_timesteps)


def check_rows(rows: Any, step: int, layout: TeamLayout, num_timesteps: int) -> None:
    """
    Check what a vector environment returned, before continuous actions, which would be NaN too, are blamed for it.

    :param rows: observations, one row per slot, or a dict of them
    :param step: step of the rollout
    :param layout: the team
    :param num_timesteps: agent-steps so far
    :raises ValueError: if one is NaN or infinite; names the quantity, the agent, its copy and the step
    """
    for name, part in (rows if isinstance(rows, dict) else {"observations": rows}).items():
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            slot = int(np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(1))[0])
            raise _not_finite(name, step, *divmod(slot, layout.n_agents), layout, num_timesteps)


def _not_finite(name: str, step: int, copy: int, agent: int | None, layout: TeamLayout, num_timesteps: int) -> ValueError:
    owner = f"copy {copy}" if agent is None else f"agent {layout.possible_agents[agent]!r} in copy {copy}"
    return ValueError(
        f"`{name}` of {owner} became NaN or infinite at step {step} of the "
        f"rollout that reached {num_timesteps} agent-steps; the policy was left as it was. Check the environment, for example "
        "with stable_baselines3.common.vec_env.VecCheckNan"
    )
