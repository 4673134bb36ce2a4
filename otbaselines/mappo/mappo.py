"""PPO for teams with a critic that sees everything."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy
from otbaselines.common.multi_agent.ppo import MultiAgentPPO
from otbaselines.common.settings import arguments_of


class MAPPO(MultiAgentPPO):
    """
    Multi-agent PPO (Yu et al. 2022): actors that see their own observations, and a critic that sees the state of the world.

    It is :class:`~otbaselines.ippo.IPPO` with other defaults: ``critic="central"`` and, as in the paper where agents are
    alike, ``share_parameters=True``. Agents whose tasks or bodies differ may be better off with ``share_parameters=False``;
    the critic is common to them even so. Only training needs the state: ``predict`` and ``evaluate_team`` do not.
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
        share_parameters: bool = True,
        critic: str = "central",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(**arguments_of(super().__init__, locals()))
