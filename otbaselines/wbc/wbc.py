"""Wasserstein-barycenter consensus for cooperative teams."""

import contextlib
import time
import warnings
from collections.abc import Sequence
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
from otbaselines.common.settings import MANY, Setting, arguments_of, check_settings, settings_of
from otbaselines.wbc.conditional import CategoricalConsensus, GaussianConsensus, KLConsensus
from otbaselines.wbc.consensus import Consensus, ConsensusReport
from otbaselines.wbc.metric import make_metric, normalised_table
from otbaselines.wbc.visitation import ExpectedConsensus, ReparametrisedConsensus, SampledConsensus, SlicedConsensus

CHOICES = {
    "consensus": ("wasserstein", "kl"),
    "measure": ("expected", "sampled"),
    "support": ("conditional", "pooled", "own"),
    "gradient": ("potential", "plan"),
    "solver": ("sinkhorn", "sliced"),
    "barycenter_weights": ("uniform", "return"),
}


class WBC(MultiAgentPPO):
    r"""
    Wasserstein-barycenter consensus (Baheri 2025): independent PPO learners, each pulled towards the entropic Wasserstein
    barycenter of the team's behaviours.

    Agent i maximises its clipped PPO objective minus :math:`\lambda W_{p,\varepsilon}(\mu_i, \mu^*)`, where
    :math:`\mu^*` is the barycenter of the visitation measures :math:`\mu_j` under
    :math:`d = |s-s'| + \beta |a-a'|`. With ``consensus_coef=0`` it is
    :class:`~otbaselines.ippo.IPPO`, bit for bit. The parameters before ``consensus_coef`` are those of
    :class:`~otbaselines.common.multi_agent.ppo.MultiAgentPPO`; agents always keep separate networks.

    :param consensus_coef: the paper's :math:`\lambda \ge 0`, a number or a schedule; ``"lin_1.0"`` falls linearly to zero
    :param reg: entropic strength :math:`\varepsilon > 0`, in the unit of the ground cost, a number or a schedule. Below the
        cost of changing an action the pull near agreement stiffens steeply (20 times from 0.6 to 0.2 under the default
        metric), so ``consensus_coef`` must fall with it, and every minibatch takes more scaling steps
    :param consensus: ``"wasserstein"``, or ``"kl"`` for a Kullback-Leibler pull to the team's mixture (the baseline)
    :param measure: ``"expected"`` weighs every action by its probability (discrete) or moves it with the parameters
        (continuous); ``"sampled"`` uses sampled actions and the score function, as printed in the paper
    :param support: ``"conditional"`` compares the agents at the same states, without transport between states;
        ``"pooled"`` evaluates every agent on the union of the drawn states; ``"own"`` on its own states, as the paper does
    :param gradient: of the sampled measure: the dual ``"potential"`` (unbiased), or the ``"plan"``'s cost (as printed)
    :param solver: ``"sinkhorn"``, or ``"sliced"`` for large supports (sampled measure only; without ``reg`` and ``debiased``)
    :param debiased: Sinkhorn divergence and debiased barycenter; without it a strong pull shrinks the team to one action
    :param beta: weight of actions against states in the ground metric
    :param p: exponent of the ground metric, 1 or 2
    :param n_support: states in the team's support: per minibatch (conditional), or per rollout, spread over the agents
    :param action_embedding: ``"one_hot"``; one row per discrete action, such as the displacement that it causes; such a
        table for each agent, shape ``(n_agents, n_actions, k)``, which compares teams by what their actions do; or
        ``"environment"``, the environment's own ``agent_action_vectors``, scaled to the distances of one-hot
    :param metric_coordinates: entries of the observation that count in the metric between states; all when omitted
    :param scale_observations: divide them by their standard deviations over the rollout
    :param barycenter_weights: ``"uniform"``, or ``"return"`` for a softmax of the agents' standardised mean rewards
    :raises ValueError: if a setting is out of range or does not go with another or with the spaces
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        **{name: Setting("text", choices=choices) for name, choices in CHOICES.items()},
        "consensus_coef": Setting("schedule", low=0.0, remedy="0 switches consensus off"),
        "reg": Setting("schedule", low=0.0, above="always", remedy="let it fall to something above 0, as in 'linear_0.5_0.1'"),
        "debiased": Setting("flag"),
        "beta": Setting("number", low=0.0, above="always"),
        "p": Setting("integer", choices=(1, 2)),
        "n_support": Setting("integer", low=2, high=MANY),
        "scale_observations": Setting("flag"),
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
        consensus_coef: float | str | Schedule = "lin_50.0",
        reg: float | str | Schedule = 0.6,
        consensus: str = "wasserstein",
        measure: str = "expected",
        support: str = "conditional",
        gradient: str = "potential",
        solver: str = "sinkhorn",
        debiased: bool = True,
        beta: float = 0.8,
        p: int = 2,
        n_support: int = 64,
        action_embedding: str | Sequence[Sequence[float]] = "one_hot",
        metric_coordinates: Sequence[int] | None = None,
        scale_observations: bool = True,
        barycenter_weights: str = "uniform",
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
        self.consensus = consensus
        self.measure = measure
        self.support = support
        self.gradient = gradient
        self.solver = solver
        self.debiased = debiased
        self.beta = beta
        self.p = p
        self.n_support = n_support
        self.action_embedding = action_embedding
        self.metric_coordinates = metric_coordinates
        self.scale_observations = scale_observations
        self.barycenter_weights = barycenter_weights
        check_settings(settings_of(WBC), vars(self))
        self._check_choices()
        super().__init__(**arguments_of(super().__init__, locals()))

    # ------------------------------------------------------------------ set-up
    def _check_choices(self) -> None:
        if self.measure == "sampled" and self.support == "conditional":
            raise ValueError("`measure='sampled'` draws state-action pairs; use it with `support='own'` or 'pooled'")
        if self.solver == "sliced" and self.measure != "sampled":
            raise ValueError(
                f"`solver='sliced'` compares samples, but `measure` is {self.measure!r}; use it with `measure='sampled'` and "
                "`support='own'` or 'pooled'"
            )

    def _check_spaces(self) -> None:
        if not isinstance(self.action_space, spaces.Discrete | spaces.Box):
            raise ValueError(
                f"WBC compares policies over Discrete or Box actions, but the action space is {self.action_space}; "
                "flatten it with a wrapper, or use IPPO"
            )
        if isinstance(self.action_space, spaces.Box) and self.consensus == "wasserstein" and self.support == "conditional":
            if self.p != 2:
                raise ValueError(f"continuous actions at equal states need the closed form of `p=2`, got `p={self.p}`")
            if not self.debiased:
                raise ValueError("`debiased=False` has no finite barycenter of normals; use `debiased=True`")
        compares_states = self.consensus == "wasserstein" and self.support != "conditional"
        if compares_states and not isinstance(self.observation_space, spaces.Box):
            raise ValueError(
                f"`support={self.support!r}` compares observations, which must be vectors, but the observation space is "
                f"{self.observation_space}; use `support='conditional'`"
            )

    def _warn_about_different_spaces(self) -> None:
        spaces_of = (self.layout.agent_observation_spaces, self.layout.agent_action_spaces)
        if any(space != next(iter(team.values())) for team in spaces_of for space in team.values()):
            warnings.warn(
                "the agents have different observation or action spaces, and WBC compares what they would do entry by entry "
                "of the padded ones; lower `consensus_coef`, or give an `action_embedding` for each agent",
                UserWarning,
                stacklevel=4,
            )

    def _setup_model(self) -> None:
        self._check_spaces()
        self._warn_about_different_spaces()
        super()._setup_model()
        self.consensus_coef = parse_schedule(self.consensus_coef)
        self.reg = parse_schedule(self.reg)
        # A stream of its own: whatever consensus draws, the learner's random numbers are those of IPPO.
        generator = th.Generator(device=self.device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(child_seeds(self.seed, self.num_timesteps)["consensus"])
        self._consensus = self._make_consensus(generator)
        self._chunk = 0
        self._consensus_seconds = 0.0
        self._iteration_start: float | None = None

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        # At the first call, from the constructor, there is nothing to seed yet.
        consensus = getattr(self, "_consensus", None)
        if consensus is not None and seed is not None:
            consensus.reseed(child_seeds(seed, self.num_timesteps)["consensus"])

    def _make_consensus(self, generator: th.Generator) -> Consensus:
        """The form of consensus that the settings name."""
        if self.consensus == "kl":
            return KLConsensus(self.n_support, generator)
        metric = make_metric(
            self.action_space,
            self.observation_space,
            n_agents=self.layout.n_agents,
            beta=self.beta,
            p=self.p,
            action_embedding=self._embedding_table(),
            metric_coordinates=self.metric_coordinates,
            scale_observations=self.scale_observations,
            device=self.device,
        )
        discrete = isinstance(self.action_space, spaces.Discrete)
        pooled = self.support == "pooled"
        if self.support == "conditional":
            if discrete:
                return CategoricalConsensus(self.n_support, generator, metric, debiased=self.debiased)
            return GaussianConsensus(self.n_support, generator, metric)
        if self.solver == "sliced":
            return SlicedConsensus(self.n_support, generator, metric, pooled=pooled, gradient=self.gradient)
        if self.measure == "sampled":
            return SampledConsensus(
                self.n_support, generator, metric, pooled=pooled, debiased=self.debiased, gradient=self.gradient
            )
        kind = ExpectedConsensus if discrete else ReparametrisedConsensus
        return kind(self.n_support, generator, metric, pooled=pooled, debiased=self.debiased)

    def _embedding_table(self) -> Any:
        """The table that ``action_embedding`` names; the environment's is kept, so that it is saved with the model."""
        if isinstance(self.action_embedding, str) and self.action_embedding == "environment":
            vectors = None
            if self.env is not None:
                with contextlib.suppress(AttributeError):
                    vectors = self.env.get_attr("agent_action_vectors", [0])[0]
            if vectors is None:
                raise ValueError(
                    "`action_embedding='environment'` needs an environment with an attribute `agent_action_vectors`, one row "
                    "per agent and action; pass such a table instead"
                )
            self.action_embedding = normalised_table(vectors)
        return self.action_embedding

    # ------------------------------------------------------------------ training
    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: AgentRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        self._iteration_start = time.perf_counter()
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def train(self) -> None:
        """One iteration of Algorithm 1 (Baheri 2025): support, barycenter and divergences, then the regularised updates."""
        self._consensus_seconds = 0.0
        super().train()
        if self._iteration_start is not None:
            elapsed = time.perf_counter() - self._iteration_start
            self.logger.record("time/transport_share", self._consensus_seconds / max(elapsed, 1e-9))

    def _before_updates(self) -> None:
        self._coef = self.schedule_value("consensus_coef")
        if self.layout.n_agents == 1:
            return
        start = time.perf_counter()
        reg = self.schedule_value("reg")
        self._chunk = 0
        report = self._consensus.prepare(
            self.policy, self.rollout_buffer, n_chunks=self._minibatches(), reg=reg, weights=self._barycenter_weights()
        )
        self._record(report, reg)
        self._consensus_seconds += time.perf_counter() - start

    def _minibatches(self) -> int:
        assert self.batch_size is not None
        return -(-self.rollout_buffer.size // (self.batch_size // self.layout.n_agents))

    def _barycenter_weights(self) -> th.Tensor:
        """Weights of the agents, shape ``(n_agents,)``."""
        buffer = self.rollout_buffer
        # Of the steps in which an agent was there.
        active = None if buffer.all_active else buffer.active.flatten(0, 1)
        rewards = agent_mean(buffer.rewards.flatten(0, 1), active, pooled=False)
        if self.barycenter_weights == "uniform":
            return th.full_like(rewards, 1.0 / len(rewards))
        return ((rewards - rewards.mean()) / (rewards.std() + 1e-8)).softmax(0)

    def _record(self, report: ConsensusReport, reg: float) -> None:
        numbers = th.cat([report.max_divergence.view(1).float(), report.divergences.float()]).tolist()
        if not np.isfinite(numbers).all():
            raise ValueError(
                f"the agents' divergences became NaN or infinite after {self.num_timesteps} agent-steps, with `reg`={reg}; "
                "the policy was left as it was. Raise `reg`, or check the observations"
            )
        self.logger.record("consensus/max_divergence", numbers[0])
        # The logger cuts long keys and refuses two that become equal, so agents go by number.
        for agent, number in enumerate(numbers[1:]):
            self.logger.record(f"consensus/divergence_{agent}", number)
        self.logger.record("consensus/coef", self._coef)
        self.logger.record("consensus/reg", reg)

    def _common_states(self) -> PyTorchObs | None:
        if self._coef == 0.0 or self.layout.n_agents == 1:
            return None
        return self._consensus.states(self._chunk)

    def _auxiliary_loss(self, evaluation: TeamActionEvaluation) -> th.Tensor | None:
        chunk, self._chunk = self._chunk, (self._chunk + 1) % self._minibatches()
        if evaluation.common is None:
            return None
        start = time.perf_counter()
        loss = self._coef * self._consensus.loss(evaluation.common, chunk).sum()
        self._consensus_seconds += time.perf_counter() - start
        return loss
