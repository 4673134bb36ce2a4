"""Proximal policy optimisation for teams: every agent's own clipped objective, all agents in one pass."""

import warnings
from functools import partial
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule

from otbaselines.common.multi_agent.agent_view import parameter_groups
from otbaselines.common.multi_agent.buffers import AgentRolloutSamples
from otbaselines.common.multi_agent.losses import (
    agent_mean,
    clipped_surrogate,
    explained_variance,
    kl_estimates,
    normalize_advantages,
    squared_value_error,
)
from otbaselines.common.multi_agent.on_policy_algorithm import MultiAgentOnPolicyAlgorithm
from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy
from otbaselines.common.multi_agent.row_policy import TeamActionEvaluation
from otbaselines.common.networks.optimizers import clear_gradients, take_step
from otbaselines.common.networks.parameter_sets import RunningSets
from otbaselines.common.schedules import parse_schedule
from otbaselines.common.settings import MANY, Setting, arguments_of
from otbaselines.common.training import Metrics, Snapshot, check_finite, parameter_sum


class MultiAgentPPO(MultiAgentOnPolicyAlgorithm):
    """
    PPO (Schulman et al. 2017) for every agent of a team, with SB3's objective and defaults.

    With separate parameters each agent's loss, advantage normalisation, gradient clipping and optimizer state are its
    own, as if it were trained alone; with shared parameters all agents' steps form one batch, as SB3 does with vectorised
    teams.

    :param batch_size: agent-steps per minibatch, rounded down to whole joint steps; when omitted, about a tenth of the rollout
    :param n_epochs: passes over each rollout
    :param clip_range: bound on the change of an action's likelihood ratio, possibly a schedule
    :param clip_range_vf: bound on the change of a value, in the unit of the return; ``None`` for none
    :param normalize_advantage: normalise advantages in each minibatch
    :param target_kl: a parameter set takes no further step of an update once its approximate KL divergence exceeds 1.5 times
        this; with separate parameters one agent stops, and the others go on as if nothing had happened
    :raises ValueError: if a setting is out of range, or ``batch_size`` exceeds the rollout
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "batch_size": Setting("integer", low=1, high=MANY, optional=True),
        "n_epochs": Setting("integer", low=1, high=MANY),
        "clip_range": Setting("schedule", low=0.0, above="start"),
        "clip_range_vf": Setting("schedule", low=0.0, above="start", optional=True, remedy="None switches it off"),
        "normalize_advantage": Setting("flag"),
        "target_kl": Setting("number", low=0.0, above="always", optional=True, remedy="None switches it off"),
    }

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
        critic: str = "own",
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
        super().__init__(**arguments_of(super().__init__, locals()))

    def _setup_model(self) -> None:
        super()._setup_model()
        self._sets = self._all_sets()
        self.clip_range = parse_schedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = parse_schedule(self.clip_range_vf)

    def _check_setup(self, n_copies: int) -> None:
        n_agents = self.layout.n_agents
        rows = self._choose_batch_size(n_copies)
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

    def _all_sets(self) -> RunningSets:
        return RunningSets(self.policy.optimizer, 1 if self.share_parameters else self.layout.n_agents)

    # ------------------------------------------------------------------ training
    def train(self) -> None:
        """Update every agent's policy and critic on the current rollout: PPO's inner loop (Schulman et al. 2017, Alg. 1)."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        snapshot = Snapshot(self.policy, self.policy.optimizer)
        self._before_updates()
        metrics = Metrics(self._summarize)
        assert self.batch_size is not None
        rows = self.batch_size // self.layout.n_agents
        scale = partial(normalize_advantages, pooled=self.share_parameters) if self.normalize_advantage else None
        self._sets = self._all_sets()
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(rows, scale):
                if not self._update(batch, metrics):
                    break
            self._n_updates += 1
            if not any(self._sets.running):
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
        One gradient step of every parameter set that has not exceeded ``target_kl``.

        :return: ``False`` when all have, and no step was taken
        """
        evaluation = self.team_policy.evaluate_team_actions(
            batch.observations, batch.actions, self._common_states(), batch.states
        )
        log_ratio = evaluation.log_prob - batch.old_log_prob
        if batch.active is not None:
            # Weighting an absent agent's row by zero is not enough: where the ratio overflows, 0 * inf is NaN.
            log_ratio = log_ratio.masked_fill(~batch.active, 0.0)
        ratio = log_ratio.exp()
        if not self._go_on(log_ratio.detach(), batch.active):
            metrics.add("train/approx_kl", agent_mean(kl_estimates(log_ratio.detach()), batch.active, pooled=True))
            return False
        loss, told = self._ppo_loss(batch, evaluation, ratio)
        of_rows = [log_ratio.detach(), evaluation.entropy.detach(), *told]
        metrics.add_rows(*of_rows, *([] if batch.active is None else [batch.active]))
        auxiliary = self._auxiliary_loss(evaluation)
        if auxiliary is not None:
            loss = loss + auxiliary
        metrics.add("train/loss", loss.detach())
        clear_gradients(self.policy.optimizer)
        loss.backward()
        self.team_policy.clip_gradients(self.max_grad_norm)
        if self._sets.in_step:
            take_step(self.policy.optimizer)
        else:
            self._sets.step(self.policy.optimizer, *parameter_groups(self.policy))
        return True

    def _summarize(
        self,
        log_ratio: th.Tensor,
        entropy: th.Tensor,
        policy_loss: th.Tensor,
        value_loss: th.Tensor,
        active: th.Tensor | None = None,
    ) -> dict[str, th.Tensor]:
        """What the log says of minibatches, each one entry of the first axis."""
        beyond = (log_ratio.exp() - 1.0).abs() > self.schedule_value("clip_range")
        of_steps = {
            "train/approx_kl": kl_estimates(log_ratio),
            "train/entropy_loss": -entropy,
            "train/clip_fraction": beyond.to(log_ratio.dtype),
        }
        pooled = {name: agent_mean(values, active, pooled=True) for name, values in of_steps.items()}
        losses = {"train/policy_gradient_loss": policy_loss, "train/value_loss": value_loss}
        return {**pooled, **{name: values.view(len(values), -1).mean(1) for name, values in losses.items()}}

    def _go_on(self, log_ratio: th.Tensor, active: th.Tensor | None) -> bool:
        """Stop the parameter sets that have moved too far; whether any goes on. The host reads one small vector."""
        if self.target_kl is None:
            return True
        of_sets = agent_mean(kl_estimates(log_ratio), active, pooled=self.share_parameters).view(-1)
        for k in self._sets.stop((of_sets > 1.5 * self.target_kl).tolist()):
            if self.verbose >= 1:
                who = "" if self.share_parameters else f" of {self.layout.possible_agents[k]}"
                print(f"Early stopping{who} after {self._n_updates} updates due to reaching max kl: {float(of_sets[k]):.2f}")
        return any(self._sets.running)

    def _ppo_loss(
        self,
        batch: AgentRolloutSamples,
        evaluation: TeamActionEvaluation,
        ratio: th.Tensor,
    ) -> tuple[th.Tensor, tuple[th.Tensor, th.Tensor]]:
        """SB3's PPO loss: each parameter set's own mean, summed over the sets; and its two parts for the log."""
        pooled, active = self.share_parameters, batch.active
        clip_range = self.schedule_value("clip_range")
        clip_range_vf = None if self.clip_range_vf is None else self.schedule_value("clip_range_vf")
        policy_loss = -agent_mean(clipped_surrogate(ratio, batch.advantages, clip_range), active, pooled=pooled)
        errors = squared_value_error(evaluation.values, batch.old_values, batch.returns, clip_range_vf)
        # A critic that is not an agent's own learns from everybody's steps as one batch.
        value_loss = agent_mean(errors, active, pooled=pooled or self.critic != "own")
        loss = policy_loss
        if self.ent_coef != 0.0:
            entropy_loss = -agent_mean(evaluation.entropy, active, pooled=pooled)
            loss = loss + self.ent_coef * entropy_loss
        told = policy_loss.detach(), value_loss.detach()
        if loss.shape == value_loss.shape:
            return (loss + self.vf_coef * value_loss).sum(), told
        return loss.sum() + self.vf_coef * value_loss.sum(), told

    def _log_training(self, metrics: Metrics, snapshot: Snapshot) -> None:
        """Read every metric from the device at once, and undo the update if one was not finite."""
        buffer = self.rollout_buffer
        active = None if buffer.all_active else buffer.active.flatten(0, 1)
        explained = explained_variance(buffer.values.flatten(0, 1), buffer.returns.flatten(0, 1), active)
        if hasattr(self.policy, "log_std"):
            metrics.add("train/std", self.policy.log_std.detach().exp().mean())
        metrics.add("parameters", parameter_sum(self.policy))
        numbers = metrics.means()
        check_finite(numbers, snapshot, f"{self.num_timesteps} agent-steps")
        del numbers["parameters"]
        # NaN says that there was nothing to explain, not that the update went wrong.
        numbers["train/explained_variance"] = float(explained)
        for name, value in numbers.items():
            self.logger.record(name, value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", self.schedule_value("clip_range"))
        if self.clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", self.schedule_value("clip_range_vf"))
