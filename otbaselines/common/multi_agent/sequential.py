"""Trust regions for teams: the agents' policies are updated one after the other, each knowing what the earlier ones did."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule

from otbaselines.common.multi_agent.buffers import AgentRolloutSamples
from otbaselines.common.multi_agent.distributions import TeamDistribution
from otbaselines.common.multi_agent.losses import agent_mean, explained_variance, normalize_advantages
from otbaselines.common.multi_agent.on_policy_algorithm import MultiAgentOnPolicyAlgorithm
from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy
from otbaselines.common.networks.optimizers import clear_gradients, take_step
from otbaselines.common.settings import MANY, Setting, arguments_of, check_settings, settings_of
from otbaselines.common.training import Metrics, Snapshot, check_finite, parameter_sum
from otbaselines.common.trust_region import ImportanceFactor, RadiusRule

# Rewards of an agent that fall when those of the others rise are no common cause: a correlation below this, over enough steps.
OPPOSED, ENOUGH = -0.3, 100


@dataclass(frozen=True)
class TeamSteps:
    """
    A rollout as one batch of joint steps.

    :param observations: shape ``(n_rows, n_agents, ...)``
    :param actions: shape ``(n_rows, n_agents, ...)``
    :param old_log_prob: shape ``(n_rows, n_agents)``
    :param active: ``False`` where the agent had left its episode, shape ``(n_rows, n_agents)``; ``None`` when all stay
    :param states: of the teams, shape ``(n_rows, state_dim)``; ``None`` where no critic reads them
    :param advantages: of the team: the mean over its agents, to which absent ones add zero, shape ``(n_rows,)``
    :param returns: of the team, likewise
    """

    observations: PyTorchObs
    actions: th.Tensor
    old_log_prob: th.Tensor
    active: th.Tensor | None
    states: th.Tensor | None
    advantages: th.Tensor
    returns: th.Tensor


@dataclass(frozen=True)
class AgentProblem:
    """
    What one agent is to solve.

    :param index: its number
    :param view: its policy as that of a team of one, on the team's memory
    :param observations: its own, shape ``(n_rows, 1, ...)``
    :param actions: its own, shape ``(n_rows, 1, ...)``
    :param old_log_prob: shape ``(n_rows, 1)``
    :param active: shape ``(n_rows, 1)``; ``None`` when it stays
    :param weights: product of the earlier agents' likelihood ratios, clipped, with mean one; shape ``(n_rows, 1)``
    :param signal: the team's advantages times the weights, shape ``(n_rows, 1)``
    :param radius: of the trust region
    :param later: the agents that are updated after it, in their order
    """

    index: int
    view: MultiAgentActorCriticPolicy
    observations: PyTorchObs
    actions: th.Tensor
    old_log_prob: th.Tensor
    active: th.Tensor | None
    weights: th.Tensor
    signal: th.Tensor
    radius: float
    later: tuple[int, ...]

    def mean(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: shape ``(n_rows, 1)``
        :return: the mean over the rows in which the agent acted, shape ``()``
        """
        return agent_mean(x, self.active, pooled=True)

    def surrogate(self, policies: TeamDistribution) -> th.Tensor:
        """
        :param policies: the agent's, at its observations
        :return: the mean of likelihood ratio times signal, shape ``()``
        """
        return self.mean((policies.log_prob(self.actions) - self.old_log_prob).exp() * self.signal)


@dataclass(frozen=True)
class AgentUpdate:
    """
    What became of one agent's policy.

    :param accepted: whether it moved at all
    :param old: before the update, at the rollout's observations, as a constant
    :param policies: after the update, at the rollout's observations
    :param numbers: what is logged, by name
    """

    accepted: bool
    old: TeamDistribution
    policies: TeamDistribution
    numbers: dict[str, float] = field(default_factory=dict)


class SequentialTrustRegion(MultiAgentOnPolicyAlgorithm):
    r"""
    Base of the trust-region methods for cooperative teams (Kuba et al. 2022, Alg. 1; Salgarkar and Baheri 2025, Alg. 1).

    Agents keep separate networks, and maximise the team's return, the mean of their rewards. After each rollout they are
    updated in random order. Agent i's signal is the team's advantage times the likelihood ratios of the actions of those
    before it, so that a round of n agents costs n updates of one agent.

    :param learning_rate: of the critics, a number or a function of the remaining progress (from 1 to 0)
    :param batch_size: agent-steps per minibatch of the critics, rounded down to whole joint steps; when omitted, about a tenth
        of the rollout
    :param n_critic_updates: passes of the critics over each rollout, or over all that a replay holds
    :param normalize_advantage: divide the advantages of each rollout by their standard deviation; HATRPO centres them too
    :param importance_clip: products of earlier agents' likelihood ratios are kept between its inverse and it, and divided by
        their mean
    :param caatr: radii that shrink while team-mates move (coordination-aware adaptive trust regions): agent i's is
        :math:`C / (D_{-i} + \epsilon)`, where :math:`D_{-i}` sums how far the others moved in the last round, as mean
        Wasserstein-1 distances
    :param caatr_constant: its :math:`C`; when omitted, such that the fixed radius stays where it is while all agents use it up
    :param caatr_eps_base: its least :math:`\epsilon`, 0.001 when omitted
    :param caatr_eps_max: the largest :math:`\epsilon` that drift causes, 0.1 when omitted
    :param trust_radius_max: the largest radius, ten times the fixed one when omitted
    :raises ValueError: if a setting is out of range, or ``batch_size`` exceeds the rollout
    :raises TypeError: if a setting of ``caatr`` is given without it
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "batch_size": Setting("integer", low=1, high=MANY, optional=True),
        "n_critic_updates": Setting("integer", low=1, high=MANY),
        "normalize_advantage": Setting("flag"),
        "importance_clip": Setting("number", low=1.0, remedy="1 switches the importance weights off"),
        "caatr": Setting("flag"),
        "caatr_constant": Setting("number", low=0.0, above="always", optional=True),
        "caatr_eps_base": Setting("number", low=0.0, optional=True),
        "caatr_eps_max": Setting("number", low=0.0, optional=True),
        "trust_radius_max": Setting("number", low=0.0, above="always", optional=True),
    }
    _json_state: ClassVar[tuple[str, ...]] = ("drifts",)
    #: Rollouts from which minibatches of critics are drawn.
    replay_rollouts: int = 1
    #: How far each agent's policy moved in the last round, as mean Wasserstein-1 distance; ``None`` before the first.
    drifts: list[float] | None = None

    def __init__(
        self,
        policy: str | type[MultiAgentActorCriticPolicy],
        env: GymEnv | str | Any,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int | None = None,
        batch_size: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        n_critic_updates: int = 10,
        normalize_advantage: bool = True,
        importance_clip: float = 10.0,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        critic: str = "central",
        caatr: bool = False,
        caatr_constant: float | None = None,
        caatr_eps_base: float | None = None,
        caatr_eps_max: float | None = None,
        trust_radius_max: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.batch_size = batch_size
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.importance_clip = importance_clip
        self.caatr = caatr
        self.caatr_constant = caatr_constant
        self.caatr_eps_base = caatr_eps_base
        self.caatr_eps_max = caatr_eps_max
        self.trust_radius_max = trust_radius_max
        check_settings(settings_of(type(self)), vars(self))
        self._check_together()
        # Neither an entropy bonus nor a weighted or clipped loss of the critics belongs to these methods.
        fixed = {"ent_coef": 0.0, "vf_coef": 1.0, "max_grad_norm": math.inf, "share_parameters": False}
        super().__init__(**{**arguments_of(super().__init__, locals()), **fixed})

    def _check_together(self) -> None:
        """Raise for settings that contradict each other; when the model is made, and before it learns."""
        for name in ("caatr_constant", "caatr_eps_base", "caatr_eps_max", "trust_radius_max"):
            if not self.caatr and getattr(self, name) is not None:
                raise TypeError(f"`{name}` applies to `caatr=True` only, got {getattr(self, name)}; leave it out")
        low, high = self.caatr_eps_base, self.caatr_eps_max
        if low is not None and high is not None and high < low:
            raise ValueError(
                f"`caatr_eps_max` must be at least `caatr_eps_base`={low}, below which it does nothing, got {high}"
            )

    def _check_setup(self, n_copies: int) -> None:
        if self._choose_batch_size(n_copies, self.replay_rollouts) < 1:
            raise ValueError(
                f"`batch_size` must hold at least one joint step of {self.layout.n_agents} agents, got {self.batch_size}"
            )
        if self.n_steps * n_copies < 2:
            raise ValueError(
                "`n_steps` must make at least two joint steps a rollout, of which a trust region takes the mean, got "
                f"{self.n_steps} with {n_copies} copies"
            )

    def _setup_model(self) -> None:
        super()._setup_model()
        own = getattr(self.policy, "actor_parameters", None)
        if own is None:
            raise ValueError(
                f"{type(self).__name__} needs a policy that can be taken apart by agents, but {type(self.policy).__name__} is "
                "one of SB3's; use 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy' or a subclass of theirs"
            )

    def _load_extra_data(self, data: dict[str, Any]) -> None:
        super()._load_extra_data(data)
        drifts, n_agents = self.drifts, self.layout.n_agents
        if drifts is None:
            return
        if not isinstance(drifts, list) or len(drifts) != n_agents or not all(map(_is_distance, drifts)):
            raise ValueError(f"`drifts` must be a distance for each of the {n_agents} agents, got {str(drifts)[:100]}")

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._warned = False
        # Attributes may have been changed since the constructor looked at them.
        self._check_together()
        return super()._setup_learn(*args, **kwargs)

    # ------------------------------------------------------------------ what each method is
    @property
    @abstractmethod
    def fixed_radius(self) -> float:
        """The radius without ``caatr``."""

    @property
    def fixed_drift(self) -> float:
        """How far an agent moves that uses up the fixed radius, as mean Wasserstein-1 distance."""
        return self.fixed_radius

    @abstractmethod
    def _update_agent(self, problem: AgentProblem) -> AgentUpdate:
        """Move one agent's policy within its trust region."""

    def _before_round(self, steps: TeamSteps, metrics: Metrics) -> None:
        """Whatever an algorithm prepares once per rollout."""

    def _undo_round(self) -> None:
        """Forget what :meth:`_before_round` has kept; policy and critics are back already."""

    def _distance(self, new: TeamDistribution, old: TeamDistribution, agent: int) -> th.Tensor:
        """Wasserstein-1 distance of an agent's policies, shape ``(n_rows, 1)``."""
        return new.w1(old)

    # ------------------------------------------------------------------ training
    def train(self) -> None:
        """One round: every agent's policy once, in random order, then the critics."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        snapshot = Snapshot(self.policy, self.policy.optimizer)
        try:
            self._train_round(snapshot)
        except BaseException:
            # Critics have been fitted, or agents stand at a step that nobody has accepted.
            snapshot.restore()
            self._undo_round()
            raise

    def _train_round(self, snapshot: Snapshot) -> None:
        steps, metrics = self._team_steps(), Metrics()
        self._warn_about_opposed_rewards()
        radii = self._radii()
        self._before_round(steps, metrics)
        n_agents = self.layout.n_agents
        # A team of one draws nothing, so that its stream is that of the single-agent method.
        order = th.randperm(n_agents).tolist() if n_agents > 1 else [0]
        factor = ImportanceFactor(len(steps.advantages), self.importance_clip, self.device)
        updates: dict[int, AgentUpdate] = {}
        drifts = [0.0] * n_agents
        for place, index in enumerate(order):
            share = factor.effective_share()
            problem = self._problem(steps, factor, index, radii[index], tuple(order[place + 1 :]))
            updates[index] = update = self._update_agent(problem)
            with th.no_grad():
                log_ratio = update.policies.log_prob(problem.actions) - problem.old_log_prob
                if problem.active is not None:
                    log_ratio = log_ratio.masked_fill(~problem.active, 0.0)
                drifts[index] = (
                    float(problem.mean(self._distance(update.policies, update.old, index))) if update.accepted else 0.0
                )
                factor.multiply(log_ratio.squeeze(1))
            update.numbers.update(radius=radii[index], w1=drifts[index], ess=float(share))
        self._fit_critics(metrics)
        self._log_round(updates, metrics, snapshot)
        self.drifts = drifts

    def _team_steps(self) -> TeamSteps:
        buffer = self.rollout_buffer
        observations = buffer.observations
        flat: PyTorchObs = (
            {key: value.flatten(0, 1) for key, value in observations.items()}
            if isinstance(observations, dict)
            else observations.flatten(0, 1)
        )
        active = None if buffer.all_active else buffer.active.flatten(0, 1)
        advantages, returns = (team_mean(tensor.flatten(0, 1), active) for tensor in (buffer.advantages, buffer.returns))
        if not bool(th.isfinite(advantages).all()):
            raise ValueError(
                f"the advantages became NaN or infinite after {self.num_timesteps} agent-steps; the policy was left as it "
                "was. Lower `learning_rate`, or scale the rewards"
            )
        if self.normalize_advantage:
            somebody = None if active is None else active.any(1, keepdim=True)
            advantages = normalize_advantages(advantages.unsqueeze(1), somebody, pooled=True).squeeze(1)
        return TeamSteps(
            flat,
            buffer.actions.flatten(0, 1),
            buffer.log_probs.flatten(0, 1),
            active,
            None if buffer.states is None else buffer.states.flatten(0, 1),
            advantages,
            returns,
        )

    def _problem(
        self, steps: TeamSteps, factor: ImportanceFactor, index: int, radius: float, later: tuple[int, ...]
    ) -> AgentProblem:
        own = slice(index, index + 1)
        observations: PyTorchObs = (
            {key: value[:, own] for key, value in steps.observations.items()}
            if isinstance(steps.observations, dict)
            else steps.observations[:, own]
        )
        return AgentProblem(
            index,
            self.policy.agent(index),
            observations,
            steps.actions[:, own],
            steps.old_log_prob[:, own],
            None if steps.active is None else steps.active[:, own],
            factor.weights.unsqueeze(1),
            (steps.advantages * factor.weights).unsqueeze(1),
            radius,
            later,
        )

    def _radii(self) -> list[float]:
        """Line 4 of Algorithm 1 (Salgarkar and Baheri 2025); without team-mates or history, the fixed radius."""
        n_agents, fixed = self.layout.n_agents, self.fixed_radius
        if not self.caatr:
            return [fixed] * n_agents
        rule = self.radius_rule()
        if self.drifts is None or n_agents == 1:
            return [min(fixed, rule.radius_max)] * n_agents
        return rule.radii(self.drifts)

    def radius_rule(self) -> RadiusRule:
        """:return: the rule of ``caatr``, with its defaults filled in"""
        eps_base = 1e-3 if self.caatr_eps_base is None else self.caatr_eps_base
        eps_max = 0.1 if self.caatr_eps_max is None else self.caatr_eps_max
        radius_max = 10.0 * self.fixed_radius if self.trust_radius_max is None else self.trust_radius_max
        constant = self.caatr_constant
        if constant is None:
            drift = (self.layout.n_agents - 1) * self.fixed_drift
            constant = self.fixed_radius * (drift + max(eps_base, min(eps_max, drift / 10.0)))
        return RadiusRule(constant, eps_base, eps_max, radius_max)

    def _fit_critics(self, metrics: Metrics) -> None:
        """Squared error of the values, as SB3's TRPO, without what actors and critics share."""
        assert self.batch_size is not None
        actor: Sequence[th.nn.Parameter] = self.policy.actor_parameters()
        for _ in range(self.n_critic_updates):
            for batch in self.rollout_buffer.get(int(self.batch_size) // self.layout.n_agents):
                values = self._critic_values(batch)
                errors = (batch.returns - values).square()
                loss = agent_mean(errors, batch.active, pooled=self.critic != "own")
                metrics.add("train/value_loss", loss.detach().mean())
                clear_gradients(self.policy.optimizer)
                loss.sum().backward()
                for parameter in actor:
                    parameter.grad = None
                take_step(self.policy.optimizer)

    def _critic_values(self, batch: AgentRolloutSamples) -> th.Tensor:
        """The values that are fitted to the returns, shape ``(batch, n_agents)``."""
        values: th.Tensor = self.policy.team_values(batch.observations, batch.states)
        return values

    def _log_round(self, updates: dict[int, AgentUpdate], metrics: Metrics, snapshot: Snapshot) -> None:
        """Undo the round if a number of it was not finite, else log it."""
        buffer = self.rollout_buffer
        active = None if buffer.all_active else buffer.active.flatten(0, 1)
        explained = explained_variance(buffer.values.flatten(0, 1), buffer.returns.flatten(0, 1), active)
        if hasattr(self.policy, "log_std"):
            metrics.add("train/std", self.policy.log_std.detach().exp().mean())
        metrics.add("parameters", parameter_sum(self.policy))
        numbers = metrics.means()
        # The logger cuts long keys and refuses two that become equal, so agents go by number.
        for index in sorted(updates):
            numbers |= {f"trust_region/{name}_{index}": value for name, value in updates[index].numbers.items()}
        check_finite(numbers, snapshot, f"{self.num_timesteps} agent-steps")
        self._n_updates += 1
        del numbers["parameters"]
        numbers["train/explained_variance"] = float(explained)
        numbers["train/is_update_accepted"] = float(np.mean([update.accepted for update in updates.values()]))
        for index, drift in enumerate(self.drifts or []):
            numbers[f"trust_region/drift_{index}"] = drift
        for name, value in numbers.items():
            self.logger.record(name, value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _warn_about_opposed_rewards(self) -> None:
        # In float64 the mean of a constant is that constant; its rounding would correlate with anything.
        rewards = self.rollout_buffer.rewards.flatten(0, 1).double()
        if not self.rollout_buffer.all_active:
            # Nobody's reward is for an agent that has left.
            rewards = rewards[self.rollout_buffer.active.flatten(0, 1).all(1)]
        if self._warned or rewards.shape[1] == 1 or len(rewards) < ENOUGH:
            return
        others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
        mine, theirs = rewards - rewards.mean(0), others - others.mean(0)
        scale = (mine.square().sum(0) * theirs.square().sum(0)).sqrt()
        correlation = th.where(scale > 0, (mine * theirs).sum(0) / scale, 0.0)
        worst = int(correlation.argmin())
        if float(correlation[worst]) < OPPOSED:
            self._warned = True
            warnings.warn(
                f"the rewards of agent {self.layout.possible_agents[worst]!r} fall when those of its team-mates rise "
                f"(correlation {float(correlation[worst]):.2f}), and {type(self).__name__} maximises the mean of all; use "
                "IPPO for agents with interests of their own",
                UserWarning,
                stacklevel=2,
            )


def _is_distance(value: Any) -> bool:
    return isinstance(value, float) and 0.0 <= value < math.inf


def team_mean(x: th.Tensor, active: th.Tensor | None) -> th.Tensor:
    """
    :param x: of each agent, shape ``(n_rows, n_agents)``
    :param active: ``False`` where the agent had left, of the same shape; ``None`` when all stay
    :return: the mean over all agents, to which absent ones add zero, shape ``(n_rows,)``
    """
    return (x if active is None else x.masked_fill(~active, 0.0)).mean(1)
