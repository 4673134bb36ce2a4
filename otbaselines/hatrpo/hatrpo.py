"""Trust-region policy optimisation for teams, one agent after the other."""

import math
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch.nn.utils import parameters_to_vector

from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy
from otbaselines.common.multi_agent.sequential import AgentProblem, AgentUpdate, SequentialTrustRegion
from otbaselines.common.schedules import parse_schedule
from otbaselines.common.settings import MANY, Setting, arguments_of, check_settings, settings_of
from otbaselines.common.trust_region import backtrack, natural_step


class HATRPO(SequentialTrustRegion):
    r"""
    Heterogeneous-agent trust-region policy optimisation (Kuba et al. 2022).

    Agents maximise the team's advantage in turns, each within a Kullback-Leibler divergence of its old policy, by a natural
    gradient step and a line search. On a team of one it is ``sb3_contrib``'s ``TRPO``, whose parameters these are.

    :param target_kl: bound on the mean divergence :math:`KL(\pi_i^{new} \,\|\, \pi_i)` of each agent's update, in nats, a
        number or a schedule
    :param cg_max_steps: steps of the conjugate gradients
    :param cg_damping: multiple of the identity that is added to the Fisher matrix
    :param line_search_shrinking_factor: of each trial's step to the last one's
    :param line_search_max_iter: trials of the line search; when all fail, the policy stays as it was, bit for bit
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "target_kl": Setting(
            "schedule", low=0.0, above="always", remedy="let it fall to something above 0, as in 'linear_0.02_0.002'"
        ),
        "cg_max_steps": Setting("integer", low=1, high=MANY),
        "cg_damping": Setting("number", low=0.0),
        "line_search_shrinking_factor": Setting(
            "number", fits=lambda factor: 0.0 < factor < 1.0, what="a number between 0 and 1, both excluded"
        ),
        "line_search_max_iter": Setting("integer", low=1, high=MANY),
    }

    def __init__(
        self,
        policy: str | type[MultiAgentActorCriticPolicy],
        env: GymEnv | str | Any,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int | None = None,
        batch_size: int | None = None,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        normalize_advantage: bool = True,
        target_kl: float | str | Schedule = 0.01,
        importance_clip: float = 10.0,
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
        self.target_kl = target_kl
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        check_settings(settings_of(HATRPO), {**vars(self), **locals()})
        explores = use_sde or (policy_kwargs or {}).get("use_sde")
        if caatr and explores and caatr_constant is None:
            raise TypeError(
                "`caatr_constant` has no default with `use_sde=True`, where no bound on the divergence bounds how far actions "
                "move; give it, in nats times the unit of the actions"
            )
        super().__init__(**arguments_of(super().__init__, locals()))

    def _setup_model(self) -> None:
        super()._setup_model()
        self.target_kl = parse_schedule(self.target_kl)

    @property
    def fixed_radius(self) -> float:
        return self.schedule_value("target_kl")

    @property
    def fixed_drift(self) -> float:
        r"""
        The most that the divergence allows: for choices by Pinsker's inequality, :math:`W_1 \le \sqrt{KL / 2}` each, for
        normals by Talagrand's (1996, Theorem 1.1), :math:`W_1 \le \sigma \sqrt{2 KL}` each. Of independent ones, whose
        divergences add up, the bounds are combined by Cauchy and Schwarz.
        """
        space = self.action_space
        if isinstance(space, spaces.Box):
            squares = 2.0 * float(self.policy.log_std.detach().exp().square().sum(-1).mean())
        else:
            squares = 0.5 * (1 if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ())))
        return math.sqrt(squares * self.fixed_radius)

    def _update_agent(self, problem: AgentProblem) -> AgentUpdate:
        """A natural gradient step, shortened until the divergence is within its bound and the surrogate rises."""
        view = problem.view
        parameters = view.actor_parameters()
        policies = view.team_distribution(problem.observations)
        old = policies.detach()
        surrogate = problem.surrogate(policies)
        natural = natural_step(
            surrogate,
            problem.mean(policies.kl(old)),
            parameters,
            radius=problem.radius,
            cg_max_steps=self.cg_max_steps,
            cg_damping=self.cg_damping,
        )
        before, new, numbers = float(surrogate.detach()), old, {"kl": 0.0}

        def attempt() -> float:
            nonlocal new
            new = view.team_distribution(problem.observations)
            numbers["kl"] = float(problem.mean(new.kl(old)))
            is_good = numbers["kl"] < problem.radius and float(problem.surrogate(new)) > before
            return 1.0 if is_good else self.line_search_shrinking_factor

        start = parameters_to_vector(natural.parameters).detach().clone()
        share = backtrack(natural.parameters, start, natural.step, attempt, max_iter=self.line_search_max_iter)
        if share == 0.0:
            return AgentUpdate(False, old, old, {"kl": 0.0, "share": 0.0})
        return AgentUpdate(True, old, new, {**numbers, "share": share})
