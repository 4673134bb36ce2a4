"""Behaviour cloning."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from otbaselines.common.offline.algorithm import DatasetAlgorithm
from otbaselines.common.offline.policies import OfflineActorPolicy
from otbaselines.common.offline.rows import OfflineBatch
from otbaselines.common.settings import arguments_of, check_settings, settings_of


class BC(DatasetAlgorithm):
    """
    Behaviour cloning (Pomerleau 1991): the policy under which the data's actions are most likely, whatever they earned.

    :param learning_rate: a number, or a function of the remaining progress (from 1 to 0)
    """

    metric_names: ClassVar[tuple[str, ...]] = ("actor_loss",)
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": OfflineActorPolicy}
    policy: OfflineActorPolicy

    def __init__(
        self,
        policy: str | type,
        env: GymEnv | str | None = None,
        learning_rate: float | str | Schedule = "cosine_3e-4",
        dataset: Any = None,
        batch_size: int = 256,
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
        check_settings(settings_of(type(self)), {**vars(self), **locals()})
        super().__init__(**arguments_of(super().__init__, locals()))

    def _losses(self, batch: OfflineBatch) -> tuple[th.Tensor, th.Tensor]:
        """The negative log-likelihood of the data's actions, scaled to [-1, 1], in nats."""
        loss = -self.policy.log_prob(batch.observations, batch.actions).mean()
        return loss, loss.detach().unsqueeze(0)
