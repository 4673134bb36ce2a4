"""The loop that every on-policy team algorithm shares: collect a rollout of all agents, then train on it."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.multi_agent.buffers import AgentRolloutBuffer
from otbaselines.common.multi_agent.finite import check_rollout, check_rows
from otbaselines.common.multi_agent.policies import (
    MultiAgentActorCriticCnnPolicy,
    MultiAgentActorCriticPolicy,
    MultiAgentMultiInputPolicy,
)
from otbaselines.common.saving.algorithm import JsonSaveMixin
from otbaselines.common.vec_env.layout import TeamLayout, team_layout
from otbaselines.common.vec_env.make import wrap_team_env
from otbaselines.common.vec_env.spaces import check_spaces
from otbaselines.common.vec_env.statistics import DeviceEpisodeStatistics
from otbaselines.common.vec_env.tensor import TensorVecEnv

# A rollout's values are computed in one pass after it; this many rows at a time bound the memory of that pass.
VALUE_ROWS = 1 << 19
# Without `n_steps`, copies share this many joint steps a rollout, which for one copy is SB3's own default.
JOINT_STEPS = 2048
MIN_STEPS = 16


class MultiAgentOnPolicyAlgorithm(JsonSaveMixin, OnPolicyAlgorithm):
    """
    Base of the on-policy team algorithms, a drop-in for SB3's ``OnPolicyAlgorithm``.

    ``num_timesteps`` counts agent-steps (slots), as SB3 does with vectorised teams.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a policy class
    :param env: a PettingZoo ``ParallelEnv``, an id such as ``"mpe2/simple_spread_v3"``, a SuperSuit vector environment, a
        ``TensorVecEnv``, any SB3 ``VecEnv``, or a Gymnasium environment (a team of one)
    :param learning_rate: a number, or a function of the remaining progress (from 1 to 0)
    :param n_steps: environment steps per copy and rollout; when omitted, about 2,048 joint steps shared by the copies and
        at least 16
    :param gamma: discount in [0, 1]
    :param gae_lambda: bias-variance trade-off of generalized advantage estimation in [0, 1]
    :param ent_coef: weight of the entropy bonus
    :param vf_coef: weight of the value loss
    :param max_grad_norm: bound on the norm of each parameter set's gradient
    :param use_sde: generalized state-dependent exploration, for continuous actions
    :param sde_sample_freq: with it, draw new noise matrices every so many steps; once per rollout when -1
    :param share_parameters: one network for all agents instead of one each
    :param stats_window_size: episodes over which returns and lengths are averaged in the log
    :param tensorboard_log: folder of the TensorBoard log, if any
    :param policy_kwargs: keyword arguments of the policy, as in SB3
    :param verbose: 0 silent, 1 information, 2 debug
    :param seed: seed of every random stream
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"``
    :param _init_setup_model: whether to build the networks at once
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MultiAgentActorCriticPolicy,
        "CnnPolicy": MultiAgentActorCriticCnnPolicy,
        "MultiInputPolicy": MultiAgentMultiInputPolicy,
    }
    policy: MultiAgentActorCriticPolicy  # type: ignore[assignment]
    rollout_buffer: AgentRolloutBuffer  # type: ignore[assignment]
    layout: TeamLayout

    def __init__(
        self,
        policy: str | type[MultiAgentActorCriticPolicy],
        env: GymEnv | str | Any,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        share_parameters: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        _check_range("gamma", gamma, 0.0, 1.0)
        _check_range("gae_lambda", gae_lambda, 0.0, 1.0)
        if n_steps is not None and n_steps < 1:
            raise ValueError(f"`n_steps` must be at least 1, got {n_steps}")
        if env is not None:
            # Ids of Gymnasium's are built here already, so that all spaces are checked before SB3 asserts about them.
            env = maybe_make_env(_as_vec_env(env), verbose)
            check_spaces(env.observation_space, env.action_space)
            device = _learner_device(env, device)
        self.share_parameters = share_parameters
        # Settings that were left to the algorithm, and what it chose.
        self._automatic: dict[str, int] = {}
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            n_steps=n_steps,  # type: ignore[arg-type]
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        if self.env is not None:
            self.layout = team_layout(self.env)
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ set-up
    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return OnPolicyAlgorithm._wrap_env(maybe_make_env(_as_vec_env(env), verbose), verbose, monitor_wrapper)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """
        Take another environment with the same team, spaces and number of slots.

        :param env: anything that the constructor accepts
        :param force_reset: reset before training goes on
        :raises ValueError: if the team or its spaces differ
        """
        wrapped = self._wrap_env(env, self.verbose)
        layout = self._same_team(wrapped)
        super().set_env(wrapped, force_reset)
        self.layout = layout

    def _same_team(self, env: VecEnv) -> TeamLayout:
        layout = team_layout(env)
        if layout.possible_agents != self.layout.possible_agents:
            raise ValueError(
                f"`env` has the agents {list(layout.possible_agents)}, but the model was built for "
                f"{list(self.layout.possible_agents)}"
            )
        return layout

    def _check_env(self, env: VecEnv) -> None:
        super()._check_env(env)
        layout = self._same_team(env)
        if layout.n_copies != self.layout.n_copies:
            # What was derived from the number of copies, and not chosen by the user, is derived anew.
            for name, value in self._automatic.items():
                if getattr(self, name) == value:
                    setattr(self, name, None)
        self.layout = layout

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        n_copies = max(1, self.n_envs // self.layout.n_agents)
        if self.n_steps is None:
            self.n_steps = self._automatic["n_steps"] = max(MIN_STEPS, JOINT_STEPS // n_copies)
        self._check_setup(n_copies)
        self.rollout_buffer = AgentRolloutBuffer(
            self.n_steps,
            n_copies,
            self.layout.n_agents,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
        )
        policy_class: Any = self.policy_class
        self.policy = policy_class(
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            layout=self.layout,
            share_parameters=self.share_parameters,
            **({"use_sde": True} if self.use_sde else {}),
            **self.policy_kwargs,
        ).to(self.device)

    def _check_setup(self, n_copies: int) -> None:
        """Raise for settings that only make sense together; called before anything is built."""

    def _extra_data(self) -> dict[str, Any]:
        layout = self.layout
        return {
            **super()._extra_data(),
            "automatic": dict(self._automatic),
            "possible_agents": list(layout.possible_agents),
            "agent_observation_spaces": dict(layout.agent_observation_spaces),
            "agent_action_spaces": dict(layout.agent_action_spaces),
        }

    def _load_extra_data(self, data: dict[str, Any]) -> None:
        super()._load_extra_data(data)
        self._automatic = dict(data.get("automatic", {}))
        agents = tuple(data["possible_agents"])
        self.layout = TeamLayout(
            agents,
            max(1, self.n_envs // len(agents)),
            dict(data["agent_observation_spaces"]),
            dict(data["agent_action_spaces"]),
        )

    # ------------------------------------------------------------------ rollouts
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
        last_obs = collect(env, callback, rollout_buffer, n_rollout_steps)  # type: ignore[arg-type]
        if last_obs is None:
            return False
        check_rollout(rollout_buffer, self.layout, self.num_timesteps)
        values = self._rollout_values(rollout_buffer.observations)
        with th.no_grad():
            last_values = self.policy.team_values(last_obs)
        rollout_buffer.compute_returns_and_advantages(values, last_values)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _draw_noise(self, env: VecEnv, step: int) -> None:
        """New matrices for state-dependent exploration, at the start of a rollout and every ``sde_sample_freq`` steps."""
        if self.use_sde and (step == 0 or (self.sde_sample_freq > 0 and step % self.sde_sample_freq == 0)):
            self.policy.reset_noise(env.num_envs)

    @th.no_grad()
    def _act(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Sampled actions and their log-likelihoods, shapes ``(n_copies, n_agents, ...)`` and ``(n_copies, n_agents)``."""
        distribution = self.policy.team_distribution(obs)
        actions = distribution.sample()
        return actions, distribution.log_prob(actions)

    def _collect_on_device(
        self, env: TensorVecEnv, callback: BaseCallback, buffer: AgentRolloutBuffer, n_steps: int
    ) -> th.Tensor | None:
        """
        Step a tensor environment; no number reaches the host unless a callback asks for it.

        :return: the last observation, or ``None`` when a callback stopped the training
        """
        statistics = self._device_statistics(env)
        obs = env.observe()
        for n_steps_done in range(n_steps):
            self._draw_noise(env, n_steps_done)
            actions, log_probs = self._act(obs)
            step = env.step_tensor(self._env_actions(actions))
            self.num_timesteps += env.num_envs
            new_obs, rewards = step.obs, step.rewards
            infos, dones = statistics.record(step)
            callback.update_locals(locals())
            if not callback.on_step():
                statistics.flush(self.ep_info_buffer)
                return None
            if step.final_obs is not None:
                self._bootstrap_on_device(buffer, step)
            buffer.add(obs, actions, log_probs, rewards, step.done)
            obs = new_obs
        statistics.flush(self.ep_info_buffer)
        return obs

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # Whole rollouts are finished, so the last one may overshoot; a schedule that falls to zero would turn negative, and
        # a negative learning rate climbs the loss.
        self._current_progress_remaining = max(0.0, self._current_progress_remaining)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        reset_num_timesteps = kwargs.get("reset_num_timesteps", args[2] if len(args) > 2 else True)
        if reset_num_timesteps or self._last_obs is None:
            # The environment is about to be reset, so no episode is under way.
            self._statistics: DeviceEpisodeStatistics | None = None
        return super()._setup_learn(*args, **kwargs)

    def _device_statistics(self, env: TensorVecEnv) -> DeviceEpisodeStatistics:
        """The running episodes of this environment; they outlive a rollout, but not a reset."""
        if self._statistics is None or self._statistics.env is not env:
            self._statistics = DeviceEpisodeStatistics(env)
        # The environment keeps its own observations; what SB3 keeps here is only a mark that no reset is due.
        self._last_obs = np.empty(0, dtype=np.float32)
        return self._statistics

    def _bootstrap_on_device(self, buffer: AgentRolloutBuffer, step: Any) -> None:
        """The value of the last observation of every episode that was cut off, not finished."""
        with th.no_grad():
            values = self.policy.team_values(step.final_obs)
        if not isinstance(step.truncated, bool):
            cut = step.truncated.unsqueeze(1)
            values = th.where(cut if step.terminated is None else cut & ~step.terminated, values, 0.0)
        buffer.bootstrap[buffer.pos] = values

    def _collect_from_vec_env(
        self, env: VecEnv, callback: BaseCallback, buffer: AgentRolloutBuffer, n_steps: int
    ) -> PyTorchObs | None:
        """
        Step an ordinary SB3 vector environment.

        :return: the last observation, or ``None`` when a callback stopped the training
        """
        has_active = hasattr(env, "agent_active")
        cut_off: list[tuple[int, int, Any]] = []
        obs = self._team_tensor(self._last_obs)
        for n_steps_done in range(n_steps):
            check_rows(self._last_obs, n_steps_done, self.layout, self.num_timesteps)
            active = np.array(getattr(env, "agent_active", None)) if has_active else None
            self._draw_noise(env, n_steps_done)
            actions, log_probs = self._act(obs)
            env_actions = self._env_actions(actions).flatten(0, 1).cpu().numpy()
            new_obs, rewards, dones, infos = env.step(env_actions.reshape(-1, *self.action_space.shape))  # type: ignore[misc]
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return None
            self._update_info_buffer(infos, dones)
            cut_off += [(n_steps_done, int(slot), infos[slot]) for slot in np.flatnonzero(dones)]
            buffer.add(
                obs,
                actions,
                log_probs,
                th.as_tensor(rewards, dtype=th.float32, device=self.device).view_as(log_probs),
                th.as_tensor(dones, dtype=th.bool, device=self.device).view_as(log_probs),
                None if active is None or active.all() else th.as_tensor(active, device=self.device),
            )
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            obs = self._team_tensor(new_obs)
        check_rows(self._last_obs, n_steps, self.layout, self.num_timesteps)
        self._bootstrap_from_infos(buffer, cut_off)
        return obs

    def _bootstrap_from_infos(self, buffer: AgentRolloutBuffer, ended: list[tuple[int, int, dict[str, Any]]]) -> None:
        """The value of the last observation of every episode that was cut off, all in one forward pass."""
        n_agents = buffer.n_agents
        cut = [
            (step, slot, info["terminal_observation"])
            for step, slot, info in ended
            if info.get("TimeLimit.truncated", False) and info.get("terminal_observation") is not None
        ]
        if not cut:
            return
        # Critics are evaluated for whole teams; the rows of agents whose episode goes on are not looked at.
        teams = {key: row for row, key in enumerate(dict.fromkeys((step, slot // n_agents) for step, slot, _ in cut))}
        rows = np.array([teams[step, slot // n_agents] * n_agents + slot % n_agents for step, slot, _ in cut])
        final_obs = _scatter_rows([obs for _, _, obs in cut], rows, len(teams) * n_agents)
        with th.no_grad():
            values = self.policy.predict_values(obs_as_tensor(final_obs, self.device)).flatten()
        slots = th.as_tensor(
            np.array([(step, slot // n_agents, slot % n_agents) for step, slot, _ in cut]), device=self.device
        )
        steps, copies, agents = slots.unbind(1)
        buffer.bootstrap[steps, copies, agents] = values[th.as_tensor(rows, device=self.device)]

    def _team_tensor(self, rows: Any) -> PyTorchObs:
        """Rows of slots as a tensor ``(n_copies, n_agents, ...)`` on the learner's device."""
        return self.policy.split_rows(obs_as_tensor(rows, self.device))

    def _env_actions(self, actions: th.Tensor) -> th.Tensor:
        """Sampled actions as the environment wants them: within the box, or counted from the space's start."""
        if isinstance(self.action_space, spaces.Box):
            actions = actions.reshape(*actions.shape[:-1], *self.action_space.shape)
            return actions.clamp(self.policy.action_low, self.policy.action_high)
        return actions + self.policy.action_start if self.policy.action_start else actions

    def _rollout_values(self, observations: PyTorchObs) -> th.Tensor:
        """The critics at every step of the rollout, shape ``(n_steps, n_copies, n_agents)``."""
        buffer = self.rollout_buffer
        rows = max(1, VALUE_ROWS // buffer.n_agents)
        chunks = []
        with th.no_grad():
            for start in range(0, buffer.size, rows):
                part = slice(start, start + rows)
                if isinstance(observations, dict):
                    chunks.append(self.policy.team_values({k: v.flatten(0, 1)[part] for k, v in observations.items()}))
                else:
                    chunks.append(self.policy.team_values(observations.flatten(0, 1)[part]))
        return th.cat(chunks).view_as(buffer.values)


def _as_vec_env(env: Any) -> VecEnv | Any:
    """A team as a vector environment; Gymnasium's own environments stay as they are, for SB3 to wrap."""
    wrapped = wrap_team_env(env)
    return env if wrapped is None else wrapped


def _scatter_rows(observations: list[Any], rows: np.ndarray, n_rows: int) -> Any:
    """Observations of some slots, placed among zeros for all the slots of their teams."""
    if isinstance(observations[0], dict):
        return {key: _scatter_rows([obs[key] for obs in observations], rows, n_rows) for key in observations[0]}
    stacked = np.stack([np.asarray(obs) for obs in observations])
    placed = np.zeros((n_rows, *stacked.shape[1:]), dtype=stacked.dtype)
    placed[rows] = stacked
    return placed


def _learner_device(env: Any, device: th.device | str) -> th.device | str:
    """With ``"auto"`` the learner goes where a tensor environment lives, so that no step crosses between devices."""
    return env.device if isinstance(env, TensorVecEnv) and device == "auto" else device


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"`{name}` must lie in [{low}, {high}], got {value}")
