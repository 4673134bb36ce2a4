"""Implicit Q-learning's values, which never ask what an action outside of the data is worth."""

import warnings
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from otbaselines.common.datasets import OfflineDataset
from otbaselines.common.offline.algorithm import DatasetAlgorithm
from otbaselines.common.offline.losses import advantage_weights, effective_share, expectile_loss, td_targets
from otbaselines.common.offline.policies import ImplicitQPolicy
from otbaselines.common.offline.rows import Leaps, OfflineBatch, Rows
from otbaselines.common.schedules import parse_schedule
from otbaselines.common.settings import MANY, Setting, arguments_of, check_settings, settings_of

# What the difference between the best and the worst episode of the data becomes.
RETURN_RANGE = 1000.0


class ImplicitQLearning(DatasetAlgorithm):
    r"""
    Implicit Q-learning (Kostrikov et al. 2022): :math:`V` is an expectile of :math:`Q` over the data's actions, :math:`Q` is
    learned from :math:`V`, and the policy imitates the data's actions, weighted by their advantages.

    All losses of a gradient step are of the parameters before it, and share one backward pass.

    :param actor_learning_rate: of the policy, a number or a function of the remaining progress
    :param gamma: the discount
    :param tau: how far the slow copies of the critics go towards them in each step
    :param expectile: of :math:`Q` over the data's actions that :math:`V` estimates; 0.5 is the mean, 1 would be the maximum
    :param inverse_temperature: :math:`\beta` of the weights :math:`e^{\beta A}`; 0 clones the data
    :param max_weight: largest weight
    :param return_share: share, in the critics' targets, of the data's own returns to the ends of their episodes, with
        :math:`V` where an episode was cut off; 0 are the one-step targets of implicit Q-learning, 1 is one step of improvement
        on the behaviour that was recorded (Brandfonbrener et al. 2021)
    :param reward_scale: factor on rewards; ``"return_range"`` scales them so that the returns of the data's episodes span 1000
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "actor_learning_rate": Setting("schedule", low=0.0),
        "gamma": Setting("number", low=0.0, high=1.0),
        "tau": Setting("number", low=0.0, high=1.0),
        "expectile": Setting(
            "number", low=0.0, high=1.0, fits=lambda value: 0.0 < value < 1.0, what="a number inside of (0, 1), within"
        ),
        "inverse_temperature": Setting("number", low=0.0),
        "max_weight": Setting("number", low=0.0, above="always", high=float(MANY)),
        "return_share": Setting("number", low=0.0, high=1.0),
    }
    metric_names: ClassVar[tuple[str, ...]] = (
        *("value_loss", "critic_loss", "actor_loss", "value", "q", "advantage", "weight", "effective_share"),
    )
    optimizer_names: ClassVar[tuple[str, ...]] = ("optimizer", "critic_optimizer")
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": ImplicitQPolicy}
    policy: ImplicitQPolicy

    def __init__(
        self,
        policy: str | type,
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
        actor_learning_rate: float | str | Schedule = "cosine_3e-4",
        dataset: Any = None,
        batch_size: int = 256,
        gamma: float = 0.99,
        tau: float = 0.005,
        expectile: float = 0.7,
        inverse_temperature: float = 3.0,
        max_weight: float = 100.0,
        return_share: float = 0.0,
        reward_scale: float | str = "return_range",
        normalize_observations: bool = True,
        compile: bool = False,
        cuda_graph: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.actor_learning_rate = actor_learning_rate
        self.gamma = gamma
        self.tau = tau
        self.expectile = expectile
        self.inverse_temperature = inverse_temperature
        self.max_weight = max_weight
        self.return_share = return_share
        self.reward_scale = reward_scale
        check_settings(settings_of(type(self)), {**vars(self), **locals()})
        self._check_reward_scale()
        super().__init__(**arguments_of(super().__init__, locals()))

    def _check_reward_scale(self) -> None:
        if not isinstance(self.reward_scale, str) or self.reward_scale != "return_range":
            Setting("number", low=0.0, above="always", remedy="or use 'return_range'").check("reward_scale", self.reward_scale)

    def check_before_learning(self) -> None:
        self._check_reward_scale()
        super().check_before_learning()

    def _setup_model(self) -> None:
        if not issubclass(self.policy_class, self.policy_aliases["MlpPolicy"]):
            needed = self.policy_aliases["MlpPolicy"]
            raise ValueError(
                f"`policy` must be 'MlpPolicy' or a subclass of {needed.__module__}.{needed.__name__}, got "
                f"{self.policy_class.__name__}"
            )
        self.actor_learning_rate = parse_schedule(self.actor_learning_rate)
        super()._setup_model()

    def _fit_scales(self, dataset: OfflineDataset) -> None:
        super()._fit_scales(dataset)
        factor = self.reward_scale
        if isinstance(factor, str):
            try:
                factor = RETURN_RANGE / dataset.return_range()
            except ValueError as error:
                warnings.warn(
                    f"`reward_scale`='return_range' leaves the rewards as they are: {error}; give a number",
                    RuntimeWarning,
                    stacklevel=2,
                )
                factor = 1.0
        self.policy.reward_factor.fill_(factor)

    def _reward_factor(self) -> float:
        return float(self.policy.reward_factor)

    def _make_rows(self, dataset: OfflineDataset) -> Rows:
        rows = super()._make_rows(dataset)
        return rows.with_returns(dataset.episodes, self.gamma) if self.return_share > 0.0 else rows

    def _learning_rates(self) -> list[float]:
        rates = super()._learning_rates()
        return [self.schedule_value("actor_learning_rate"), *rates[1:]]

    # ------------------------------------------------------------------ the losses
    def _losses(self, batch: OfflineBatch) -> tuple[th.Tensor, th.Tensor]:
        policy = self.policy
        values, next_values = policy.value(batch.observations), self._next_values(batch)
        target_q = policy.target_value(batch.observation_actions)
        value_loss = expectile_loss(target_q - values, self.expectile)
        critic_loss = self._critic_loss(batch, next_values)
        advantages = target_q - values.detach()
        weights = advantage_weights(advantages, self.inverse_temperature, self.max_weight)
        actor_loss = -(weights * policy.log_prob(batch.observations, batch.actions)).mean()
        scalars = (
            *(value_loss, critic_loss, actor_loss, values.mean(), target_q.mean(), advantages.mean(), weights.mean()),
            effective_share(weights),
        )
        return value_loss + critic_loss + actor_loss, th.stack(scalars).detach()

    @th.no_grad()
    def _next_values(self, batch: OfflineBatch) -> th.Tensor:
        return self.policy.value(batch.next_observations)

    @th.no_grad()
    def _returns(self, leaps: Leaps) -> th.Tensor:
        return leaps.rewards + leaps.discounts * self.policy.value(leaps.next_observations)

    def _critic_loss(self, batch: OfflineBatch, next_values: th.Tensor) -> th.Tensor:
        """Squared errors of all critics, summed (Kostrikov et al. 2022, Eq. 6)."""
        q = self.policy.critic(batch.observation_actions)
        targets = td_targets(batch.rewards, batch.continues, next_values, self.gamma)
        if batch.to_the_end is not None:
            targets = th.lerp(targets, self._returns(batch.to_the_end), float(self.return_share))
        loss: th.Tensor = (q - targets).square().mean(1).sum()
        return loss

    def _after_step(self) -> None:
        self.policy.update_target(self.tau)
