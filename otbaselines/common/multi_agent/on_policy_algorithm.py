"""The loop that every on-policy team algorithm shares: collect a rollout of all agents, then train on it."""

from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from otbaselines.common.learner import Learner
from otbaselines.common.memory import check_rollout_size
from otbaselines.common.multi_agent.buffers import AgentRolloutBuffer
from otbaselines.common.multi_agent.collect import VALUE_ROWS, TeamRollouts
from otbaselines.common.multi_agent.critics import CRITICS, check_critic, check_state_space
from otbaselines.common.multi_agent.policies import (
    MultiAgentActorCriticCnnPolicy,
    MultiAgentActorCriticPolicy,
    MultiAgentMultiInputPolicy,
)
from otbaselines.common.multi_agent.sb3_policy import check_policy_class
from otbaselines.common.settings import (
    LEARN_SETTINGS,
    MANY,
    Setting,
    arguments_of,
    check_settings,
    settings_of,
    with_plain_widths,
)
from otbaselines.common.vec_env.layout import TeamLayout, check_same_agents, normalizes_observations, team_layout
from otbaselines.common.vec_env.make import wrap_team_env
from otbaselines.common.vec_env.spaces import check_spaces
from otbaselines.common.vec_env.tensor import TensorVecEnv

# Without `n_steps`, copies share this many joint steps a rollout, which for one copy is SB3's own default.
JOINT_STEPS = 2048
MIN_STEPS = 16
# Without `batch_size`, a rollout is cut into at most this many equal minibatches.
MAX_MINIBATCHES = 10


class MultiAgentOnPolicyAlgorithm(Learner, TeamRollouts):
    """
    Base of the on-policy team algorithms, a drop-in for SB3's ``OnPolicyAlgorithm``.

    ``num_timesteps`` counts agent-steps (slots), as SB3 does with vectorised teams.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a policy class
    :param env: a PettingZoo ``ParallelEnv``, an id such as ``"mpe2/simple_spread_v3"``, a SuperSuit vector environment, a
        ``TensorVecEnv``, any SB3 ``VecEnv``, or a Gymnasium environment (a team of one)
    :param n_steps: environment steps per copy and rollout; when omitted, about 2,048 joint steps shared by the copies and
        at least 16
    :param gamma: discount in [0, 1]
    :param gae_lambda: bias-variance trade-off of generalized advantage estimation in [0, 1]
    :param ent_coef: weight of the entropy bonus
    :param vf_coef: weight of the value loss
    :param max_grad_norm: bound on the norm of each parameter set's gradient
    :param use_sde: generalized state-dependent exploration, for continuous actions
    :param sde_sample_freq: with it, draw new noise matrices every so many steps; once per rollout when -1
    :param share_parameters: one network for all agents instead of one each
    :param critic: whom the values come from: ``"own"`` (each agent's own critic, at its own observation), ``"shared"`` (one
        critic for agents with actors of their own, at each agent's observation) or ``"central"`` (one critic that reads the
        environment's state, or all observations of the team where there is none, with a value for each agent)
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "n_steps": Setting("integer", low=1, high=MANY, optional=True),
        "gamma": Setting("number", low=0.0, high=1.0),
        "gae_lambda": Setting("number", low=0.0, high=1.0),
        "ent_coef": Setting("number", low=0.0),
        "vf_coef": Setting("number", low=0.0, remedy="a negative one would train the critics away from the returns"),
        "max_grad_norm": Setting("number", low=0.0, above="always", endless=True, remedy="use float('inf') for no bound"),
        "use_sde": Setting("flag"),
        "sde_sample_freq": Setting(
            "integer",
            low=-1,
            high=MANY,
            fits=lambda steps: steps != 0,
            what="a number of steps, or -1 for once a rollout,",
        ),
        "share_parameters": Setting("flag"),
        "critic": Setting("text", choices=CRITICS),
    }
    _json_state: ClassVar[tuple[str, ...]] = ("trained_normalized",)
    #: Agent-steps per minibatch, for algorithms that have minibatches.
    batch_size: int | None = None
    #: Whether the environment last trained in normalises observations; ``None`` before the first training.
    trained_normalized: bool | None = None
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MultiAgentActorCriticPolicy,
        "CnnPolicy": MultiAgentActorCriticCnnPolicy,
        "MultiInputPolicy": MultiAgentMultiInputPolicy,
    }

    def __init__(
        self,
        policy: str | type[MultiAgentActorCriticPolicy],
        env: GymEnv | str | Any,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
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
        check_settings(settings_of(type(self)), {**vars(self), **locals()})
        if env is None and _init_setup_model:
            raise TypeError(
                f"`env` must be an environment or its id, got None; a saved model needs none: {type(self).__name__}.load(path)"
            )
        if env is not None:
            # Ids of Gymnasium's are built here already, so that all spaces are checked before SB3 asserts about them.
            env = maybe_make_env(_as_vec_env(env), verbose)
            check_spaces(env.observation_space, env.action_space)
            device = _learner_device(env, device)
        check_critic(critic, share_parameters=share_parameters)
        self.share_parameters = share_parameters
        self.critic = critic
        self.state_space: spaces.Box | None = None
        self.normalize_states = False
        self._statistics = None
        # Settings that were left to the algorithm, and what it chose.
        self._automatic: dict[str, int] = {}
        super().__init__(**{**arguments_of(super().__init__, locals()), "_init_setup_model": False})
        self.policy_kwargs = with_plain_widths(self.policy_kwargs)
        if self.env is not None:
            self.layout = team_layout(self.env)
            self.state_space = self._state_space(self.env)
            # `VecNormalize` scales observations; the state passes it raw, and is scaled by the policy.
            normalizer = unwrap_vec_normalize(self.env)
            self.normalize_states = self.state_space is not None and normalizer is not None and normalizer.norm_obs
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ set-up
    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return OnPolicyAlgorithm._wrap_env(maybe_make_env(_as_vec_env(env), verbose), verbose, monitor_wrapper)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """
        Take another environment with the same team, spaces and number of slots.

        :param env: anything that the constructor accepts
        :param force_reset: reset before training goes on
        :raises ValueError: if the team or its spaces differ
        """
        wrapped = self._wrap_env(env, self.verbose)
        layout = self._same_team(wrapped)
        if wrapped.num_envs != self.n_envs:
            raise ValueError(
                f"`env` has {wrapped.num_envs} slots, but the model was built for {self.n_envs}; use as many copies, or save "
                f"the model and go on with `{type(self).__name__}.load(path, env=env)`"
            )
        super().set_env(wrapped, force_reset)
        self.layout = layout

    def _same_team(self, env: VecEnv) -> TeamLayout:
        layout = team_layout(env)
        check_same_agents(layout, self.layout, known="built for")
        # What wrappers make of the spaces; those of the agents are the same.
        super()._check_env(env)
        own, other = self.state_space, self._state_space(env)
        if own is not None and (other is None or other.shape != own.shape):
            raise ValueError(
                f"`env` has the state space {other}, but the model's critic reads states of {own.shape[0]} numbers; use an "
                "environment with the same `state()`, or a wrapper that gives it"
            )
        return layout

    def _critic_settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("critic", "state_space", "normalize_states")}

    def _state_space(self, env: VecEnv) -> spaces.Box | None:
        """Of what a central critic reads; ``None`` where the critic reads observations."""
        return getattr(env, "state_space", None) if self.critic == "central" else None

    def _check_env(self, env: VecEnv) -> None:
        layout = self._same_team(env)
        if layout.n_copies != self.layout.n_copies:
            # What was derived from the number of copies, and not chosen by the user, is derived anew.
            for name, value in self._automatic.items():
                if getattr(self, name) == value:
                    setattr(self, name, None)
        self.layout = layout

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        n_copies = max(1, self.n_envs // self.layout.n_agents)
        if self.n_steps is None:
            self.n_steps = self._automatic["n_steps"] = max(MIN_STEPS, JOINT_STEPS // n_copies)
        self._check_setup(n_copies)
        if self.env is not None:
            space, n_slots = self.observation_space, self.n_envs
            check_rollout_size(self.n_steps, n_slots, space, rows_at_once=VALUE_ROWS, device=self.device)
        vars(self).pop("rollout_buffer", None)
        policy_class: Any = self.policy_class
        owner = getattr(policy_class, "belongs_to", "")
        if owner and owner not in {cls.__name__ for cls in type(self).__mro__}:
            raise ValueError(
                f"`policy` {policy_class.__name__} is for {owner} only, whose critics it holds; use 'MlpPolicy' or another of "
                f"{type(self).__name__}'s own"
            )
        self._check_observations(policy_class)
        of_team = {"layout": self.layout, "share_parameters": self.share_parameters}
        sharing: dict[str, Any] = {"share_parameters": self.share_parameters, "critic": self.critic}
        if check_policy_class(policy_class, self.layout, self.action_space, **sharing):
            of_team = {}
        self.policy = policy_class(
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            **of_team,
            **({"use_sde": True} if self.use_sde else {}),
            **({} if self.critic == "own" else self._critic_settings()),
            **self.policy_kwargs,
        ).to(self.device)

    def _check_observations(self, policy_class: type) -> None:
        """Refuse one of our policies whose own features extractor cannot read the observations."""
        space, given = self.observation_space, self.policy_kwargs
        if "features_extractor_class" in given:
            return
        # As in SB3, whose extractors then take images of any bounds and dtype.
        scaled = not given.get("normalize_images", True)
        scaled = scaled or bool((given.get("features_extractor_kwargs") or {}).get("normalized_image", False))
        reads = getattr(policy_class, "reads", "")
        if reads == "dict" and not isinstance(space, spaces.Dict):
            wanted, other = "a Dict of observations", "MlpPolicy"
        elif reads == "image" and not is_image_space(space, check_channels=False, normalized_image=scaled):
            wanted, other = "images", "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
        else:
            return
        raise ValueError(f"`policy` {policy_class.__name__} is for {wanted}, but the agents observe {space}; use {other!r}")

    @cached_property
    def rollout_buffer(self) -> AgentRolloutBuffer:  # type: ignore[override]
        """Made when it is first used: a model that only predicts needs none, and a file must not ask for its memory."""
        return AgentRolloutBuffer(
            self.n_steps,
            max(1, self.n_envs // self.layout.n_agents),
            self.layout.n_agents,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            state_dim=0 if self.state_space is None else self.state_space.shape[0],
        )

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        goes_on = isinstance(self.env, TensorVecEnv) and self.env.is_reset
        if isinstance(self._last_obs, np.ndarray) and not self._last_obs.size and not goes_on:
            # The mark of an environment that keeps its own observations; after `load` it may be another one.
            self._last_obs = None
        if reset_num_timesteps or self._last_obs is None:
            # The environment is about to be reset, so no episode is under way.
            self._statistics = None
        if self.env is not None:
            self._check_normalization(normalizes_observations(self.env))
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _check_normalization(self, now: bool) -> None:
        if self.trained_normalized is not None and now != self.trained_normalized:
            is_with, was_with = ("with", "without") if now else ("without", "with")
            remedy = (
                "wrap `env` in VecNormalize with the statistics of the training"
                if self.trained_normalized
                else "pass the environment inside, or VecNormalize(..., norm_obs=False)"
            )
            raise ValueError(
                f"`env` is {is_with} normalised observations, but the model was trained {was_with} them; {remedy}, or set "
                "`model.trained_normalized = None` to train on nevertheless"
            )
        self.trained_normalized = now

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        Train.

        :param total_timesteps: agent-steps to collect; whole rollouts are finished
        :param callback: one callback, a list, or a function
        :param log_interval: rollouts between log entries; None for no log
        :param tb_log_name: name of the run; the class's name when omitted
        :param reset_num_timesteps: start counting anew; ``False`` continues schedules and the log
        :param progress_bar: show a progress bar
        :return: the model
        :raises TypeError: if an argument is of the wrong type
        :raises ValueError: if one is out of range
        :raises RuntimeError: if there is no environment
        """
        check_settings(LEARN_SETTINGS, locals())
        name = tb_log_name or type(self).__name__
        return super().learn(int(total_timesteps), callback, log_interval, name, reset_num_timesteps, progress_bar)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # Whole rollouts are finished, so the last one may overshoot; a schedule that falls to zero would turn negative, and
        # a negative learning rate climbs the loss.
        self._current_progress_remaining = max(0.0, self._current_progress_remaining)

    def _choose_batch_size(self, n_copies: int, n_rollouts: int = 1) -> int:
        """
        Fill in ``batch_size`` where it was left to the algorithm.

        :param n_copies: copies of the environment
        :param n_rollouts: from which minibatches are drawn
        :return: joint steps per minibatch
        :raises ValueError: if it exceeds these rollouts
        """
        n_agents, joint = self.layout.n_agents, self.n_steps * n_copies
        if self.batch_size is None:
            parts = max(parts for parts in range(1, MAX_MINIBATCHES + 1) if joint % parts == 0)
            self.batch_size = self._automatic["batch_size"] = max(joint // parts, min(2, joint)) * n_agents
        if self.batch_size > n_rollouts * joint * n_agents:
            several = f" times the {n_rollouts} rollouts" if n_rollouts > 1 else ""
            raise ValueError(
                f"`batch_size` must not exceed the rollout, got {self.batch_size} > n_steps * n_copies * n_agents = "
                f"{self.n_steps} * {n_copies} * {n_agents} = {joint * n_agents}{several}; lower it or raise `n_steps`"
            )
        return self.batch_size // n_agents

    def _check_setup(self, n_copies: int) -> None:
        """Raise for settings that only make sense together; called before anything is built."""

    def _extra_data(self) -> dict[str, Any]:
        state = {"state_space": self.state_space, "normalize_states": self.normalize_states}
        return {**super()._extra_data(), "automatic": dict(self._automatic), **state, **self.layout.to_data()}

    def _load_extra_data(self, data: dict[str, Any]) -> None:
        super()._load_extra_data(data)
        automatic = data.get("automatic", {})
        if not isinstance(automatic, dict) or not set(automatic) <= {"n_steps", "batch_size"}:
            raise ValueError(f"`automatic` must be numbers of steps, got {str(automatic)[:100]}")
        self._automatic = automatic
        self.layout = TeamLayout.from_data(data, self.n_envs, self.action_space)
        self.state_space, self.normalize_states = data.get("state_space"), data.get("normalize_states") is True
        check_state_space(self.state_space)


def _as_vec_env(env: Any) -> VecEnv | Any:
    """A team as a vector environment; Gymnasium's own environments stay as they are, for SB3 to wrap."""
    wrapped = wrap_team_env(env)
    return env if wrapped is None else wrapped


def _learner_device(env: Any, device: th.device | str) -> th.device | str:
    """With ``"auto"`` the learner goes where a tensor environment lives, so that no step crosses between devices."""
    return env.device if isinstance(env, TensorVecEnv) and device == "auto" else device
