"""Proximal policy optimisation for teams: every agent's own clipped objective, all agents in one pass."""

import warnings
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule

from otbaselines.common.multi_agent.buffers import AgentRolloutSamples
from otbaselines.common.multi_agent.losses import (
    agent_mean,
    clipped_surrogate,
    explained_variance,
    normalize_advantages,
    squared_value_error,
)
from otbaselines.common.multi_agent.on_policy_algorithm import MultiAgentOnPolicyAlgorithm
from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy
from otbaselines.common.multi_agent.row_policy import TeamActionEvaluation
from otbaselines.common.networks.optimizers import clear_gradients, take_step
from otbaselines.common.schedules import parse_schedule
from otbaselines.common.training import Metrics, Snapshot, check_finite, parameter_sum

# Without `batch_size`, a rollout is cut into at most this many equal minibatches.
MAX_MINIBATCHES = 10


class MultiAgentPPO(MultiAgentOnPolicyAlgorithm):
    """
    PPO (Schulman et al. 2017) for every agent of a team, with SB3's objective and defaults.

    With separate parameters each agent's loss, advantage normalisation, gradient clipping and optimizer state are its
    own, as if it were trained alone; with shared parameters all agents' steps form one batch, as SB3 does with vectorised
    teams.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a policy class
    :param env: a PettingZoo ``ParallelEnv``, an id, a SuperSuit vector environment, a ``TensorVecEnv``, an SB3 ``VecEnv`` or
        a Gymnasium environment (a team of one)
    :param learning_rate: a number, or a function of the remaining progress (from 1 to 0)
    :param n_steps: environment steps per copy and rollout; when omitted, about 2,048 joint steps shared by the copies
    :param batch_size: agent-steps per minibatch, rounded down to whole joint steps; when omitted, about a tenth of the rollout
    :param n_epochs: passes over each rollout
    :param gamma: discount in [0, 1]
    :param gae_lambda: bias-variance trade-off of generalized advantage estimation in [0, 1]
    :param clip_range: bound on the change of an action's likelihood ratio, possibly a schedule
    :param clip_range_vf: bound on the change of a value, in the unit of the return; ``None`` for none
    :param normalize_advantage: normalise advantages in each minibatch
    :param ent_coef: weight of the entropy bonus
    :param vf_coef: weight of the value loss
    :param max_grad_norm: bound on the norm of each parameter set's gradient
    :param use_sde: generalized state-dependent exploration, for continuous actions
    :param sde_sample_freq: with it, draw new noise matrices every so many steps; once per rollout when -1
    :param target_kl: stop an update early when the approximate KL divergence exceeds 1.5 times this
    :param share_parameters: one network for all agents instead of one each
    :param stats_window_size: episodes over which returns and lengths are averaged in the log
    :param tensorboard_log: folder of the TensorBoard log, if any
    :param policy_kwargs: keyword arguments of the policy, as in SB3
    :param verbose: 0 silent, 1 information, 2 debug
    :param seed: seed of every random stream
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"``
    :param _init_setup_model: whether to build the networks at once
    :raises ValueError: if a setting is out of range, or ``batch_size`` exceeds the rollout
    """

    def __init__(
        self,
        policy: str | type[MultiAgentActorCriticPolicy],
        env: GymEnv | str | Any,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int | None = None,
        batch_size: int | None = None,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        target_kl: float | None = None,
        share_parameters: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        if n_epochs < 1:
            raise ValueError(f"`n_epochs` must be at least 1, got {n_epochs}")
        if isinstance(clip_range_vf, int | float) and clip_range_vf <= 0:
            raise ValueError(f"`clip_range_vf` must be positive, got {clip_range_vf}; pass None to deactivate it")
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            share_parameters=share_parameters,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        self.clip_range = parse_schedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = parse_schedule(self.clip_range_vf)

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = parse_schedule(self.learning_rate)

    def _check_setup(self, n_copies: int) -> None:
        n_agents = self.layout.n_agents
        rollout = self.n_steps * n_copies * n_agents
        if self.batch_size is None:
            joint = self.n_steps * n_copies
            parts = max(parts for parts in range(1, MAX_MINIBATCHES + 1) if joint % parts == 0)
            self.batch_size = self._automatic["batch_size"] = max(joint // parts, min(2, joint)) * n_agents
        if self.batch_size > rollout:
            raise ValueError(
                f"`batch_size` must not exceed the rollout, got {self.batch_size} > n_steps * n_copies * n_agents = "
                f"{self.n_steps} * {n_copies} * {n_agents} = {rollout}; lower it or raise `n_steps`"
            )
        rows = self.batch_size // n_agents
        samples = rows * n_agents if self.share_parameters else rows
        if rows < 1 or (self.normalize_advantage and samples < 2):
            raise ValueError(
                f"`batch_size`={self.batch_size} leaves {rows} joint steps of {n_agents} agents in a minibatch, and "
                f"normalising advantages needs two samples of each parameter set; use at least {2 * n_agents}"
            )
        remainder = (self.n_steps * n_copies) % rows
        if remainder and self.env is not None:
            warnings.warn(
                f"the rollout of {self.n_steps * n_copies} joint steps is no multiple of the {rows} in a minibatch of "
                f"`batch_size`={self.batch_size}, so each epoch ends with a minibatch of {remainder}",
                UserWarning,
                stacklevel=4,
            )

    # ------------------------------------------------------------------ training
    def train(self) -> None:
        """Update every agent's policy and critic on the current rollout: PPO's inner loop (Schulman et al. 2017, Alg. 1)."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        snapshot = Snapshot(self.policy, self.policy.optimizer)
        self._before_updates()
        metrics = Metrics()
        assert self.batch_size is not None
        rows = self.batch_size // self.layout.n_agents
        for _ in range(self.n_epochs):
            stop = False
            for batch in self.rollout_buffer.get(rows):
                stop = not self._update(batch, metrics)
                if stop:
                    break
            self._n_updates += 1
            if stop:
                break
        self._log_training(metrics, snapshot)

    def _before_updates(self) -> None:
        """Whatever an algorithm prepares once per rollout."""

    def _common_states(self) -> PyTorchObs | None:
        """
        States at which the next minibatch needs every agent's policy.

        :return: rows of observations, shape ``(n, ...)``; ``None`` for none
        """
        return None

    def _auxiliary_loss(self, evaluation: TeamActionEvaluation) -> th.Tensor | None:
        """
        A further loss of the algorithm's own.

        :param evaluation: the current policies on the minibatch and at the common states
        :return: a scalar, summed over agents where parameters are separate; ``None`` for no such loss
        """
        return None

    def _update(self, batch: AgentRolloutSamples, metrics: Metrics) -> bool:
        """
        One gradient step.

        :return: ``False`` when ``target_kl`` was exceeded and the step was not taken
        """
        evaluation = self.team_policy.evaluate_team_actions(batch.observations, batch.actions, self._common_states())
        log_ratio = evaluation.log_prob - batch.old_log_prob
        if batch.active is not None:
            # Weighting an absent agent's row by zero is not enough: where the ratio overflows, 0 * inf is NaN.
            log_ratio = log_ratio.masked_fill(~batch.active, 0.0)
        ratio = log_ratio.exp()
        with th.no_grad():
            # Schulman's low-variance estimator of the reverse divergence.
            approx_kl = agent_mean((ratio - 1.0) - log_ratio, batch.active, pooled=True)
        metrics.add("train/approx_kl", approx_kl)
        if self.target_kl is not None and float(approx_kl) > 1.5 * self.target_kl:
            if self.verbose >= 1:
                print(f"Early stopping after {self._n_updates} updates due to reaching max kl: {float(approx_kl):.2f}")
            return False
        loss = self._ppo_loss(batch, evaluation, ratio, metrics)
        auxiliary = self._auxiliary_loss(evaluation)
        if auxiliary is not None:
            loss = loss + auxiliary
        metrics.add("train/loss", loss.detach())
        clear_gradients(self.policy.optimizer)
        loss.backward()
        self.team_policy.clip_gradients(self.max_grad_norm)
        take_step(self.policy.optimizer)
        return True

    def _ppo_loss(
        self,
        batch: AgentRolloutSamples,
        evaluation: TeamActionEvaluation,
        ratio: th.Tensor,
        metrics: Metrics,
    ) -> th.Tensor:
        """SB3's PPO loss: each parameter set's own mean, summed over the sets."""
        pooled, active = self.share_parameters, batch.active
        clip_range = self._schedule_value(self.clip_range)
        clip_range_vf = None if self.clip_range_vf is None else self._schedule_value(self.clip_range_vf)
        advantages = batch.advantages
        if self.normalize_advantage:
            advantages = normalize_advantages(advantages, active, pooled=pooled)
        policy_loss = -agent_mean(clipped_surrogate(ratio, advantages, clip_range), active, pooled=pooled)
        errors = squared_value_error(evaluation.values, batch.old_values, batch.returns, clip_range_vf)
        value_loss = agent_mean(errors, active, pooled=pooled)
        loss = policy_loss + self.vf_coef * value_loss
        if self.ent_coef != 0.0:
            entropy_loss = -agent_mean(evaluation.entropy, active, pooled=pooled)
            loss = loss + self.ent_coef * entropy_loss
        with th.no_grad():
            entropy = agent_mean(evaluation.entropy, active, pooled=True)
            clipped = agent_mean(((ratio - 1.0).abs() > clip_range).to(ratio.dtype), active, pooled=True)
        metrics.add("train/entropy_loss", -entropy)
        metrics.add("train/policy_gradient_loss", policy_loss.detach().mean())
        metrics.add("train/value_loss", value_loss.detach().mean())
        metrics.add("train/clip_fraction", clipped)
        return loss.sum()

    def _schedule_value(self, schedule: Any) -> float:
        return float(schedule(self._current_progress_remaining)) if callable(schedule) else float(schedule)

    def _log_training(self, metrics: Metrics, snapshot: Snapshot) -> None:
        """Read every metric from the device at once, and undo the update if one was not finite."""
        buffer = self.rollout_buffer
        active = None if buffer.all_active else buffer.active.flatten(0, 1)
        explained = explained_variance(buffer.values.flatten(0, 1), buffer.returns.flatten(0, 1), active)
        metrics.add("train/explained_variance", explained)
        if hasattr(self.policy, "log_std"):
            metrics.add("train/std", self.policy.log_std.detach().exp().mean())
        metrics.add("parameters", parameter_sum(self.policy))
        numbers = metrics.means()
        check_finite(numbers, snapshot, self.num_timesteps)
        del numbers["parameters"]
        for name, value in numbers.items():
            self.logger.record(name, value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", self._schedule_value(self.clip_range))
        if self.clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", self._schedule_value(self.clip_range_vf))

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Any:
        """
        Train.

        :param total_timesteps: agent-steps to collect; whole rollouts are finished
        :param callback: one callback, a list, or a function
        :param log_interval: rollouts between log entries
        :param tb_log_name: name of the run; the class's name when omitted
        :param reset_num_timesteps: start counting anew; ``False`` continues schedules and the log
        :param progress_bar: show a progress bar
        :return: the model
        """
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name or type(self).__name__, reset_num_timesteps, progress_bar
        )
