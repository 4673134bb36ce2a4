"""Wasserstein trust regions for cooperative teams, with radii that know how far team-mates move."""

from collections import deque
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from torch.nn.utils import parameters_to_vector

from otbaselines.common.multi_agent.buffers import AgentRolloutSamples
from otbaselines.common.multi_agent.distributions import TeamDistribution
from otbaselines.common.multi_agent.sequential import (
    AgentProblem,
    AgentUpdate,
    SequentialTrustRegion,
    TeamSteps,
    team_mean,
)
from otbaselines.common.networks.optimizers import clear_gradients, take_step
from otbaselines.common.schedules import parse_schedule
from otbaselines.common.settings import MANY, Setting, arguments_of, check_settings, settings_of
from otbaselines.common.training import Metrics
from otbaselines.common.trust_region import backtrack
from otbaselines.common.vec_env.layout import action_vectors
from otbaselines.wmatrpo.action_metric import ActionMetric, environment_distances
from otbaselines.wmatrpo.actions import (
    action_sets,
    check_actions,
    check_repeated_state,
    check_search_size,
)
from otbaselines.wmatrpo.advantages import JOINT_ROWS, LEADER_ROWS, ActionSet, MarginalAdvantage, optimistic
from otbaselines.wmatrpo.policies import JointCriticCnnPolicy, JointCriticMultiInputPolicy, JointCriticPolicy
from otbaselines.wmatrpo.rollout import DRAWN_CHOICES, DRAWN_VECTORS, JointRollout, TeamMates, can_enumerate
from otbaselines.wmatrpo.transport import BoxSearch, Transport, transport_choices

# An accepted update exceeds its radius by no more than this share of it.
SLACK = 1e-3
# Trials of the way back from a fitted policy that went too far; each aims this much below the radius.
TRIALS, MARGIN, LEAST_SHRINKING = 12, 0.97, 0.1
N_CANDIDATES, N_REFINEMENTS = 64, 1


class WMATRPO(SequentialTrustRegion):
    r"""
    Wasserstein multi-agent trust-region policy optimisation (Salgarkar and Baheri 2025).

    Agents maximise the team's advantage in turns, each within a mean Wasserstein-1 distance of its old policy. The bound's
    multiplier solves a dual problem in one dimension exactly; the policy then follows the optimal transport map, or the
    Lagrangian. Actions must be Discrete, or a bounded Box.

    :param actor_learning_rate: of the fit of each actor, a number or a function of the remaining progress
    :param n_actor_updates: gradient steps of each fit, each over the whole rollout
    :param trust_radius: bound on the mean Wasserstein-1 distance of each agent's update, in the unit of the ground metric, a
        number or a schedule; with ``caatr`` that of the first round
    :param update: ``"transport"`` fits the actor to where the optimal map sends its actions (Corollary 1); ``"lagrangian"``
        descends the Lagrangian from the dual's multiplier (Eqs. 16-18)
    :param dual_learning_rate: of the multiplier, for ``update="lagrangian"`` only; 1 when omitted
    :param leader: what an agent expects of those updated after it: their ``"mean"`` behaviour, or their
        ``"best_response"`` to its action
    :param n_critics: critics of the joint action, which differ in their initial parameters
    :param optimism: standard deviations of these critics that are added to their mean, a number or a schedule; one that
        falls to zero looks around first and settles then
    :param prior_scale: of random networks that are added to these critics and never trained, in the unit of the returns'
        standard deviation, so that they disagree where there are no data (Osband et al. 2018)
    :param replay_rollouts: latest rollouts that the critics of the joint action are fitted to; a loaded model starts with none
    :param tau: share of the online critic that its target takes over after each round
    :param ground_metric: distances between actions: ``None`` for one between different choices, or the sum of absolute
        differences between vectors; ``"environment"`` for those between what choices do (``agent_action_vectors``); or for
        choices a table ``(n_actions, n_actions)``, for vectors the weight of each dimension, or one of these for each agent
    :param n_candidates: for a Box: actions that cover it, among which the inner maximum is looked for; 64 when omitted
    :param n_refinements: for a Box: rounds of closer candidates around the best, 1 when omitted
    :param n_joint: joint actions of the team-mates over which the value of an action is averaged in each state: all, if they
        are no more than this, else draws from their policies; when omitted, all up to 32, else 16 draws of choices or 8 of
        vectors. Where every state of a rollout is the same, so many of its joint actions stand for the draws, 64 when omitted
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "actor_learning_rate": Setting("schedule", low=0.0),
        "n_actor_updates": Setting("integer", low=1, high=MANY),
        "trust_radius": Setting(
            "schedule", low=0.0, above="always", remedy="let it fall to something above 0, as in 'linear_0.1_0.01'"
        ),
        "update": Setting("text", choices=("transport", "lagrangian")),
        "dual_learning_rate": Setting("number", low=0.0, optional=True),
        "leader": Setting("text", choices=("mean", "best_response")),
        "n_critics": Setting("integer", low=1, high=1000),
        "optimism": Setting("schedule", low=0.0),
        "prior_scale": Setting("number", low=0.0),
        "replay_rollouts": Setting("integer", low=1, high=MANY),
        "tau": Setting("number", low=0.0, high=1.0),
        "ground_metric": Setting(
            (str, list, tuple, np.ndarray, th.Tensor), what="'environment' or a table of numbers", optional=True
        ),
        "n_candidates": Setting("integer", low=2, high=10**6, optional=True),
        "n_refinements": Setting("integer", low=0, high=1000, optional=True),
        "n_joint": Setting("integer", low=1, high=10**4, optional=True),
    }
    _replay: deque[tuple[th.Tensor, th.Tensor, th.Tensor]]
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": JointCriticPolicy,
        "CnnPolicy": JointCriticCnnPolicy,
        "MultiInputPolicy": JointCriticMultiInputPolicy,
    }

    def __init__(
        self,
        policy: str | type[JointCriticPolicy],
        env: GymEnv | str | Any,
        learning_rate: float | Schedule = 1e-3,
        actor_learning_rate: float | Schedule = 3e-3,
        n_steps: int | None = None,
        batch_size: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        n_critic_updates: int = 10,
        n_actor_updates: int = 20,
        trust_radius: float | str | Schedule = 0.1,
        update: str = "transport",
        dual_learning_rate: float | None = None,
        leader: str = "mean",
        n_critics: int = 1,
        optimism: float | str | Schedule = 0.0,
        prior_scale: float = 0.0,
        replay_rollouts: int = 1,
        tau: float = 1.0,
        ground_metric: Any = None,
        n_candidates: int | None = None,
        n_refinements: int | None = None,
        n_joint: int | None = None,
        normalize_advantage: bool = True,
        importance_clip: float = 10.0,
        caatr: bool = True,
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
        self.actor_learning_rate = actor_learning_rate
        self.n_actor_updates = n_actor_updates
        self.trust_radius = trust_radius
        self.update = update
        self.dual_learning_rate = dual_learning_rate
        self.leader = leader
        self.n_critics = n_critics
        self.optimism = optimism
        self.prior_scale = prior_scale
        self.replay_rollouts = replay_rollouts
        self.tau = tau
        self.ground_metric = ground_metric
        self.n_candidates = n_candidates
        self.n_refinements = n_refinements
        self.n_joint = n_joint
        check_settings(settings_of(WMATRPO), {**vars(self), **locals()})
        if (policy_kwargs or {}).get("use_sde"):
            raise TypeError(
                "`policy_kwargs['use_sde']` does not apply to WMATRPO, whose exploration is a plain normal; leave it out"
            )
        super().__init__(**arguments_of(super().__init__, {**locals(), "critic": "central"}))

    # ------------------------------------------------------------------ set-up
    def _check_together(self) -> None:
        super()._check_together()
        setting, optimism = settings_of(WMATRPO)["optimism"], parse_schedule(self.optimism)
        if self.n_critics == 1 and any(setting.reading("optimism", optimism, progress) for progress in (1.0, 0.5, 0.0)):
            raise ValueError(f"`optimism`={self.optimism!r} needs critics that can disagree; use `n_critics` of 2 or more")
        if self.leader == "best_response" and self.update == "lagrangian":
            raise ValueError(
                "`leader`='best_response' says where the optimal map sends actions, and `update`='lagrangian' does not follow "
                "that map; use `update='transport'` with it, or `leader='mean'`"
            )
        if self.leader == "best_response" and self.n_joint is not None:
            raise TypeError(f"`n_joint` applies to `leader='mean'` only, got {self.n_joint}; leave it out")
        if self.dual_learning_rate is not None and self.update != "lagrangian":
            raise TypeError(
                f"`dual_learning_rate` applies to `update='lagrangian'` only, got {self.dual_learning_rate}; leave it out"
            )

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        # As with other settings, what was changed since the constructor counts.
        result = super()._setup_learn(*args, **kwargs)
        self._ask_for_metric()
        self._metric = ActionMetric(self.ground_metric, self.layout, self.action_space, self.device)
        self._replay = deque(self._replay, maxlen=int(self.replay_rollouts))
        return result

    def _critic_settings(self) -> dict[str, Any]:
        return {**super()._critic_settings(), "n_joint_critics": self.n_critics, "prior_scale": self.prior_scale}

    def _setup_model(self) -> None:
        policy_class: Any = self.policy_class
        if not issubclass(policy_class, JointCriticPolicy):
            raise ValueError(
                f"WMATRPO needs a policy with critics of the joint action, but {policy_class.__name__} has none; use "
                "'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy' or a subclass of otbaselines.wmatrpo.MlpPolicy"
            )
        space = self.action_space
        check_actions(space)
        if isinstance(space, spaces.Discrete):
            for name in ("n_candidates", "n_refinements"):
                if getattr(self, name) is not None:
                    raise TypeError(f"`{name}` applies to Box actions only, got {getattr(self, name)}; leave it out")
        self._ask_for_metric()
        self._metric = ActionMetric(self.ground_metric, self.layout, space, self.device)
        if self.n_steps is not None:
            candidates = 0 if isinstance(space, spaces.Discrete) else self.n_candidates or N_CANDIDATES
            n_rows = int(self.n_steps) * max(1, self.n_envs // self.layout.n_agents)
            drawn = DRAWN_CHOICES if isinstance(space, spaces.Discrete) else DRAWN_VECTORS
            n_joint = int(self.n_joint or drawn)
            check_search_size(n_rows, int(candidates), n_joint, self.layout.n_agents, space, self.device)
        super()._setup_model()
        self.actor_learning_rate = parse_schedule(self.actor_learning_rate)
        self.trust_radius = parse_schedule(self.trust_radius)
        self.optimism = parse_schedule(self.optimism)
        self._replay = deque(maxlen=int(self.replay_rollouts))

    def _ask_for_metric(self) -> None:
        """Put the environment's own table, where it is asked for, in its place, so that it is saved with the model."""
        if not isinstance(self.ground_metric, str):
            return
        vectors = action_vectors(self.env) if self.ground_metric == "environment" else None
        if vectors is None or not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(
                "`ground_metric` as a string must be 'environment', for Discrete actions of an environment with an attribute "
                f"`agent_action_vectors`, one row per agent and action, got {self.ground_metric!r}; pass a table instead"
            )
        self.ground_metric = environment_distances(vectors)

    @property
    def fixed_radius(self) -> float:
        return self.schedule_value("trust_radius")

    def _distance(self, new: TeamDistribution, old: TeamDistribution, agent: int) -> th.Tensor:
        return self._metric.w1(new, old, agent)

    def action_sets(self) -> list[ActionSet]:
        """:return: every agent's own actions, as the critics read them"""
        own = [self.layout.agent_action_spaces[agent] for agent in self.layout.possible_agents]
        return action_sets(own, self.action_space, self.policy.encode_actions, self.device)

    def _encode(self, actions: th.Tensor, agents: slice) -> th.Tensor:
        encoded: th.Tensor = self.policy.encode_actions(self.policy.as_played(actions, agents))
        return encoded

    # ------------------------------------------------------------------ critics
    def _before_round(self, steps: TeamSteps, metrics: Metrics) -> None:
        """Fit the critics of the joint action, and judge what was done."""
        policy = self.policy
        inputs = policy.critic_inputs(steps.observations, steps.states)
        actions = self._encode(steps.actions, slice(0, self.layout.n_agents))
        self._replay_before = list(self._replay)
        self._replay.append((inputs, actions, steps.returns))
        policy.joint_critics.returns.update(steps.returns.unsqueeze(1))
        self._fit_joint_critics(metrics)
        optimism = self.schedule_value("optimism")
        with th.no_grad():
            values = team_mean(policy.team_values(steps.observations, steps.states), steps.active)
            judged = optimistic(policy.joint_critics(inputs, actions), optimism) - values
        if not bool(th.isfinite(judged).all()):
            raise ValueError(
                f"the advantages of the joint critics became NaN or infinite after {self.num_timesteps} agent-steps; the "
                "parameters from before the update were restored. Lower `learning_rate`, or scale the rewards"
            )
        scale = judged.std() + 1e-8 if self.normalize_advantage else th.ones_like(judged[0])
        self._round = JointRollout(steps, inputs, actions, values, judged / scale, scale, optimism, self.action_sets())
        self._mates = None
        if not self._round.is_one_state:
            self._mates = self._present_policies(steps.observations)
        elif can_enumerate(self._round.sets, self.n_joint):
            seen = steps.observations
            first = {key: value[:1] for key, value in seen.items()} if isinstance(seen, dict) else seen[:1]
            self._mates = self._present_policies(first)
        if self._round.is_one_state and not isinstance(self.action_space, spaces.Discrete):
            check_repeated_state(len(inputs), self.n_candidates or N_CANDIDATES, self.device)

    def _fit_joint_critics(self, metrics: Metrics) -> None:
        """Squared temporal-difference error (Salgarkar and Baheri 2025, Eq. 19), towards returns of the target critic."""
        assert self.batch_size is not None
        inputs, actions, returns = (th.cat(parts) for parts in zip(*self._replay, strict=True))
        rows = int(self.batch_size) // self.layout.n_agents
        for _ in range(self.n_critic_updates):
            for part in th.randperm(len(returns), device=self.device).split(rows):
                loss = self.policy.joint_critics.loss(inputs[part], actions[part], returns[part]).sum()
                metrics.add("train/joint_value_loss", loss.detach() / self.n_critics)
                clear_gradients(self.policy.optimizer)
                loss.backward()
                take_step(self.policy.optimizer)

    @th.no_grad()
    def _present_policies(self, observations: PyTorchObs) -> TeamMates:
        policies = self.policy.team_distribution(observations)
        return TeamMates(policies, self._encode, self._round.sets, self.n_joint)

    def _critic_values(self, batch: AgentRolloutSamples) -> th.Tensor:
        values: th.Tensor = self.policy.online_values(batch.observations, batch.states)
        return values

    def _undo_round(self) -> None:
        # What critics cannot be fitted to must not stay in their replay, nor what it has pushed out be lost.
        before = vars(self).pop("_replay_before", None)
        if before is not None:
            self._replay = deque(before, maxlen=self._replay.maxlen)
        for name in ("_round", "_mates"):
            vars(self).pop(name, None)

    def _fit_critics(self, metrics: Metrics) -> None:
        del self._round, self._mates
        super()._fit_critics(metrics)
        self.policy.update_target(self.tau)

    def _log_round(self, *args: Any) -> None:
        super()._log_round(*args)
        del self._replay_before

    # ------------------------------------------------------------------ actors
    def _update_agent(self, problem: AgentProblem) -> AgentUpdate:
        """Solve the dual, fit the actor, and go back towards where it was as far as the radius asks for."""
        advantage = self._advantage(problem)
        view = problem.view
        parameters = view.actor_parameters()
        with th.no_grad():
            old = view.team_distribution(problem.observations).detach()
        transport = self._transport(problem, advantage, old)
        start = parameters_to_vector(parameters).detach().clone()
        if self.update == "transport":
            self._follow_transport(problem, parameters, transport, old)
        else:
            self._descend_lagrangian(problem, parameters, transport.multiplier, old)
        step = parameters_to_vector(parameters).detach() - start
        new, distances = old, []

        def attempt() -> float:
            nonlocal new
            new = view.team_distribution(problem.observations)
            distances.append(float(problem.mean(self._distance(new, old, problem.index))))
            if distances[-1] <= problem.radius * (1.0 + SLACK):
                return 1.0
            # The distance grows about as the step does; what is no number says nothing about it.
            ratio = MARGIN * problem.radius / distances[-1]
            return ratio if ratio > LEAST_SHRINKING else LEAST_SHRINKING

        share = backtrack(parameters, start, step, attempt, max_iter=TRIALS)
        if share > 0.0 and self._mates is not None:
            self._mates.moved(problem.index, new)
        numbers = {"lambda": transport.multiplier, "dual": transport.value, "fit": distances[0], "share": share}
        return AgentUpdate(True, old, new, numbers) if share > 0.0 else AgentUpdate(False, old, old, numbers)

    def _advantage(self, problem: AgentProblem) -> MarginalAdvantage:
        """Eqs. 8 and 15: what the agent's actions are worth, with what its team-mates do now."""
        now = self._round
        states, baseline = now.inputs, now.values
        later = problem.later if self.leader == "best_response" else ()
        if now.is_one_state:
            states, baseline = states[:1], baseline[:1]
        if self._mates is None:
            # All joint actions were taken in one state, so that each stands for the team-mates' behaviour there.
            n_joint = LEADER_ROWS if later else self.n_joint or JOINT_ROWS
            joint, some = now.actions[:n_joint].unsqueeze(0), problem.weights[:n_joint].T
            weights = some / some.mean()
        else:
            joint, weights = self._mates.joint(problem.index, later)
        return MarginalAdvantage(
            self.policy.joint_critics,
            states,
            joint,
            weights,
            problem.index,
            baseline,
            now.scale,
            now.optimism,
            later,
            now.sets,
        )

    def _transport(self, problem: AgentProblem, advantage: MarginalAdvantage, old: Any) -> Transport:
        n_rows = len(problem.actions)
        rows = th.full((n_rows,), 1.0 / n_rows, device=self.device)
        if problem.active is not None:
            present = problem.active.squeeze(1).to(rows)
            rows = present / present.sum().clamp_min(1.0)
        if isinstance(self.action_space, spaces.Discrete):
            probs = old.probs[:, 0, : self._metric.sizes[problem.index]]
            if self._round.is_one_state:
                probs, rows = probs[:1], th.ones_like(rows[:1])
            return transport_choices(advantage, probs, self._metric, problem.radius, rows)
        low, high = self.policy.box_bounds()
        n_refinements = N_REFINEMENTS if self.n_refinements is None else self.n_refinements
        search = BoxSearch(low, high, self.n_candidates or N_CANDIDATES, n_refinements)
        sources, weights = self.policy.as_played(problem.actions, slice(problem.index, problem.index + 1)), rows.unsqueeze(1)
        if self._round.is_one_state:
            sources, weights = sources.transpose(0, 1), weights.T
        return search.transport(advantage, sources, self._metric, problem.radius, weights)

    def _optimizer(self, parameters: list[th.nn.Parameter]) -> th.optim.Optimizer:
        optimizer: th.optim.Optimizer = self.policy.make_optimizer(parameters, self.schedule_value("actor_learning_rate"))
        return optimizer

    def _follow_transport(
        self, problem: AgentProblem, parameters: list[th.nn.Parameter], transport: Transport, old: Any
    ) -> None:
        """
        Regress the actor onto the transported actions.

        Probabilities by maximum likelihood. Vectors by least squares between what the noise of each source makes now and the
        mean of its images: by Jensen's inequality that mean is no further from the source than the images are, where the
        likelihood would read two distant images as a wide normal.
        """
        optimizer = self._optimizer(parameters)
        if transport.shares is not None:
            noise = (problem.actions - old.mean) / old.std
            images = transport.targets.view(2, len(problem.actions), 1, -1)
            # What is played beyond the box counts as its edge; where the map leaves that alone, so does the fit.
            played = self.policy.as_played(problem.actions, slice(problem.index, problem.index + 1))
            images = th.where(images == played, problem.actions, images)
            means = (transport.shares.view(2, 1, 1, 1) * images).sum(0)
        for _ in range(self.n_actor_updates):
            policies: Any = problem.view.team_distribution(problem.observations)
            if transport.shares is None:
                n = transport.targets.shape[1]
                loss = -(transport.targets * policies.log_probs[:, 0, :n]).sum(1)
                loss = loss.mean() if self._round.is_one_state else loss.sum()
            else:
                loss = problem.mean((policies.reparametrised(noise) - means).square().sum(-1))
            clear_gradients(optimizer)
            loss.backward()
            take_step(optimizer)

    def _descend_lagrangian(
        self, problem: AgentProblem, parameters: list[th.nn.Parameter], multiplier: float, old: TeamDistribution
    ) -> None:
        """Eqs. 16-18, the importance ratio of the agent's own actions included, without which Eq. 16 has no gradient."""
        optimizer = self._optimizer(parameters)
        rate = 1.0 if self.dual_learning_rate is None else self.dual_learning_rate
        judged = self._round.judged
        if self.normalize_advantage:
            # What the critic of the state got wrong everywhere says nothing about actions.
            judged = judged - judged.mean()
        signal = judged.unsqueeze(1) * problem.weights
        for _ in range(self.n_actor_updates):
            policies = problem.view.team_distribution(problem.observations)
            ratio = (policies.log_prob(problem.actions) - problem.old_log_prob).exp()
            distance = problem.mean(self._distance(policies, old, problem.index))
            loss = multiplier * (distance - problem.radius) - problem.mean(ratio * signal)
            clear_gradients(optimizer)
            loss.backward()
            take_step(optimizer)
            multiplier = max(0.0, multiplier + rate * (float(distance.detach()) - problem.radius))
