"""Wasserstein-barycenter consensus for cooperative teams."""

import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.multi_agent.buffers import AgentRolloutBuffer
from otbaselines.common.multi_agent.losses import agent_mean
from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy
from otbaselines.common.multi_agent.ppo import MultiAgentPPO
from otbaselines.common.multi_agent.row_policy import TeamActionEvaluation
from otbaselines.common.schedules import parse_schedule
from otbaselines.common.seeding import child_seeds
from otbaselines.common.settings import Setting, arguments_of, check_settings, settings_of
from otbaselines.common.vec_env.layout import action_vectors
from otbaselines.wbc.consensus import ConsensusReport
from otbaselines.wbc.estimators import ESTIMATORS, Streams, make_estimator
from otbaselines.wbc.groups import GroupedConsensus, check_groups, groups_of
from otbaselines.wbc.metric import TeamSpaces, have_common_places, matched_table, normalised_table
from otbaselines.wbc.stopwatch import Stopwatch


class WBC(MultiAgentPPO):
    r"""
    Wasserstein-barycenter consensus (Baheri 2025): independent PPO learners, each pulled towards the entropic Wasserstein
    barycenter of the team's behaviours.

    Agent i maximises its clipped PPO objective minus :math:`\lambda W_{p,\varepsilon}(\mu_i, \mu^*)`, where
    :math:`\mu^*` is the barycenter of the visitation measures :math:`\mu_j` under
    :math:`d = |s-s'| + \beta |a-a'|`. With ``consensus_coef=0`` it is
    :class:`~otbaselines.ippo.IPPO`, bit for bit. All parameters but these four are those of
    :class:`~otbaselines.common.multi_agent.ppo.MultiAgentPPO`; agents always keep separate networks, and actions must be
    discrete or continuous vectors.

    :param consensus_coef: the paper's :math:`\lambda \ge 0`, a number or a schedule; ``"lin_1.0"`` falls linearly to zero
    :param reg: entropic strength :math:`\varepsilon > 0`, in the unit of the ground cost, a number or a schedule; when
        omitted, 0.6 for the estimators that have one. Below the cost of changing an action the pull near agreement stiffens
        steeply (20 times from 0.6 to 0.2 under the one-hot metric), so ``consensus_coef`` must fall with it, and every
        minibatch takes more scaling steps
    :param estimator: what is compared: ``"conditional"``, ``"pooled"``, ``"own"``, ``"sampled"`` (as printed in the paper),
        ``"sliced"``; or ``"kl"`` and ``"energy"`` for pulls to the team's mixture without transport (the baselines)
    :param estimator_kwargs: options of that estimator, see :mod:`otbaselines.wbc.estimators`
    :param consensus_groups: who agrees with whom, lists of agents' names: each group has a barycenter of its own, and agents
        who are alone, or in no list, are not pulled. When omitted, agents with equal observation and action spaces form a
        group
    :raises ValueError: if a setting is out of range or does not go with another or with the spaces
    :raises TypeError: if an option does not apply to the estimator
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "consensus_coef": Setting("schedule", low=0.0, remedy="0 switches consensus off"),
        "reg": Setting(
            "schedule",
            low=0.0,
            above="always",
            optional=True,
            remedy="let it fall to something above 0, as in 'linear_0.5_0.1'",
        ),
        "estimator": Setting("text", choices=tuple(ESTIMATORS)),
        "estimator_kwargs": Setting((dict,), optional=True, what="a dict of options"),
        "consensus_groups": Setting(
            (list, tuple), optional=True, what="a list of lists of agents' names", together=check_groups
        ),
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
        critic: str = "own",
        consensus_coef: float | str | Schedule = "lin_50.0",
        reg: float | str | Schedule | None = None,
        estimator: str = "conditional",
        estimator_kwargs: dict[str, Any] | None = None,
        consensus_groups: Sequence[Sequence[str]] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.consensus_coef = consensus_coef
        self.reg = reg
        self.estimator = estimator
        self.estimator_kwargs = estimator_kwargs
        self.consensus_groups = consensus_groups
        # Before an environment is made; with its spaces the options are checked once more.
        check_settings(settings_of(WBC), vars(self))
        make_estimator(estimator, estimator_kwargs)
        super().__init__(**arguments_of(super().__init__, locals()))

    # ------------------------------------------------------------------ set-up
    def _warn_about_groups(self, groups: list[tuple[int, ...]]) -> None:
        names = self.layout.possible_agents
        if self.consensus_groups is None and not groups and len(names) > 1:
            warnings.warn(
                "no two agents have equal spaces, so that nobody is pulled and WBC is IPPO; `consensus_groups` names agents "
                "who are to agree all the same",
                UserWarning,
                stacklevel=6,
            )
        spaces_of = (self.layout.agent_observation_spaces, self.layout.agent_action_spaces)
        if any(team[names[i]] != team[names[group[0]]] for team in spaces_of for group in groups for i in group):
            warnings.warn(
                "agents of a group have different observation or action spaces, and WBC compares what they would do entry by "
                "entry of the padded ones; leave `consensus_groups` out, or give an `action_embedding` for each agent",
                UserWarning,
                stacklevel=6,
            )

    def _setup_model(self) -> None:
        if not isinstance(self.action_space, spaces.Discrete | spaces.Box):
            raise ValueError(
                f"WBC compares policies over Discrete or Box actions, but the action space is {self.action_space}; "
                "flatten it with a wrapper, or use IPPO"
            )
        n_agents = self.layout.n_agents
        team = TeamSpaces(self.action_space, self.observation_space, n_agents, self.device)
        groups = groups_of(self.layout, self.consensus_groups)
        self._settle_embedding(groups)
        self.options = make_estimator(self.estimator, self.estimator_kwargs, discrete=team.discrete)
        self._warn_about_groups(groups)
        super()._setup_model()
        self.consensus_coef = parse_schedule(self.consensus_coef)
        self.reg = self._reg_schedule()
        self._streams = Streams(th.Generator(device=self.device), th.Generator())
        self._seed_streams(self.seed)
        if not groups:
            # Nobody is compared, but the options must fit the spaces all the same.
            self.options.build(team, self._streams)
        parts = [self.options.build(replace(team, members=group), self._streams) for group in groups]
        self._consensus = GroupedConsensus(groups, parts, n_agents, self.device)
        self._chunk = 0
        self._watch = Stopwatch(self.device)

    def _reg_schedule(self) -> Schedule | None:
        default = self.options.default_reg
        if default is not None:
            return parse_schedule(default if self.reg is None else self.reg)
        if self.reg is not None:
            raise TypeError(f"`reg` does not apply to `estimator={self.estimator!r}`, got {self.reg!r}; leave it out")
        return None

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        # At the first call, from the constructor, there is nothing to seed yet.
        if hasattr(self, "_streams") and seed is not None:
            self._seed_streams(seed)

    def _seed_streams(self, seed: int | None) -> None:
        for stream, name in ((self._streams.states, "consensus"), (self._streams.directions, "slicing")):
            if seed is None:
                stream.seed()
            else:
                stream.manual_seed(child_seeds(seed, self.num_timesteps)[name])

    def _settle_embedding(self, groups: list[tuple[int, ...]]) -> None:
        """Put the embedding that is asked for by a word or by silence in its place, so that it is saved with the model."""
        given = self.estimator_kwargs
        known = {option.name: option.default for option in fields(ESTIMATORS[self.estimator])}
        if not isinstance(self.action_space, spaces.Discrete) or "action_embedding" not in known:
            return
        options = {} if given is None else dict(given)
        wanted = options.get("action_embedding", known["action_embedding"])
        if wanted is not None and not (isinstance(wanted, str) and wanted in ("environment", "matched")):
            return
        vectors = action_vectors(self.env)
        table: Any = "one_hot"
        if vectors is not None:
            table = normalised_table(self._places(vectors, groups, as_they_are=wanted == "environment"))
        elif wanted is not None:
            raise ValueError(
                f"`action_embedding={wanted!r}` needs an environment with an attribute `agent_action_vectors`, one row "
                "per agent and action; pass such a table instead"
            )
        self.estimator_kwargs = {**options, "action_embedding": table}

    def _places(self, vectors: Any, groups: list[tuple[int, ...]], *, as_they_are: bool) -> Any:
        mask = self.layout.action_mask(self.action_space)
        if not as_they_are:
            return matched_table(vectors, groups, mask)
        if not have_common_places(vectors, groups, mask):
            warnings.warn(
                "agents of a group have actions that lead where no action of a team-mate does; what all have in common, such "
                "as staying where they are, is then the only perfect agreement, and a strong pull ends there. "
                "`action_embedding='matched'` gives matched actions one place",
                UserWarning,
                stacklevel=7,
            )
        return vectors

    # ------------------------------------------------------------------ training
    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._warned = False
        return super()._setup_learn(*args, **kwargs)

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: AgentRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        self._watch.restart()
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def train(self) -> None:
        """One iteration of Algorithm 1 (Baheri 2025): support, barycenter and divergences, then the regularised updates."""
        super().train()
        self.logger.record("time/transport_share", self._watch.share())

    def _before_updates(self) -> None:
        self._coef = self.schedule_value("consensus_coef")
        if not self._consensus.parts:
            return
        with self._watch:
            reg = None if self.reg is None else self.schedule_value("reg")
            self._chunk = 0
            reports = self._consensus.prepare(
                self.policy, self.rollout_buffer, n_chunks=self._minibatches(), reg=reg, weights=self._barycenter_weights()
            )
            self._record(reports, reg)

    def _minibatches(self) -> int:
        assert self.batch_size is not None
        return -(-self.rollout_buffer.size() // (self.batch_size // self.layout.n_agents))

    def _barycenter_weights(self) -> th.Tensor:
        """Weights of the agents in their groups' barycenters, shape ``(n_agents,)``; zero for those who are alone."""
        buffer = self.rollout_buffer
        # Of the steps in which an agent was there.
        active = None if buffer.all_active else buffer.active.flatten(0, 1)
        rewards = agent_mean(buffer.rewards.flatten(0, 1), active, pooled=False)
        weights = th.zeros_like(rewards)
        for group in map(list, self._consensus.groups):
            own = rewards[group]
            if self.options.weights == "uniform":
                weights[group] = 1.0 / len(group)
            else:
                weights[group] = ((own - own.mean()) / (own.std() + 1e-8)).softmax(0)
        return weights

    def _record(self, reports: list[ConsensusReport], reg: float | None) -> None:
        errors = [report.solver_error for report in reports if report.solver_error is not None]
        parts = [th.stack([report.max_divergence for report in reports]), *(report.divergences for report in reports), *errors]
        numbers = th.cat([part.flatten().float() for part in parts]).tolist()
        if not np.isfinite(numbers).all():
            raise ValueError(
                f"the agents' divergences became NaN or infinite after {self.num_timesteps} agent-steps, with `reg`={reg}; "
                "the policy was left as it was. Raise `reg`, or check the observations"
            )
        if errors:
            self._report_solver(max(numbers[-len(errors) :]), reports[0].tolerance)
        largest, numbers = numbers[: len(reports)], numbers[len(reports) :]
        self.logger.record("consensus/max_divergence", max(largest))
        for group, number in enumerate(largest if len(reports) > 1 else ()):
            self.logger.record(f"consensus/max_divergence_group_{group}", number)
        # The logger cuts long keys and refuses two that become equal, so agents go by number.
        agents = [agent for group in self._consensus.groups for agent in group]
        for agent, number in zip(agents, numbers, strict=False):
            self.logger.record(f"consensus/divergence_{agent}", number)
        self.logger.record("consensus/coef", self._coef)
        if reg is not None:
            self.logger.record("consensus/reg", reg)

    def _report_solver(self, error: float, tolerance: float) -> None:
        self.logger.record("consensus/solver_error", error)
        if error > tolerance and not self._warned:
            self._warned = True
            warnings.warn(
                f"a transport solver of the consensus stopped early after {self.num_timesteps} agent-steps: its marginals are "
                f"off by {error:.1e}, where {tolerance:.0e} was asked for; raise `reg`. What follows is logged as "
                "`consensus/solver_error`, without another warning",
                RuntimeWarning,
                stacklevel=2,
            )

    def _common_states(self) -> PyTorchObs | None:
        if self._coef == 0.0 or not self._consensus.parts:
            return None
        return self._consensus.states(self._chunk)

    def _auxiliary_loss(self, evaluation: TeamActionEvaluation) -> th.Tensor | None:
        chunk, self._chunk = self._chunk, (self._chunk + 1) % self._minibatches()
        if evaluation.common is None:
            return None
        with self._watch:
            return self._coef * self._consensus.loss(evaluation.common, chunk).sum()
