"""The loop of a learner from a replay buffer: SB3's collection, and gradient steps that never wait for the device."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TrainFreq
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.learner import Learner
from otbaselines.common.offline.algorithm import check_cuda_graph
from otbaselines.common.offline.graphs import GraphedStep, make_capturable, set_learning_rate, without_capture
from otbaselines.common.saving.archive import SavePath
from otbaselines.common.saving.replay_buffer import load_buffer
from otbaselines.common.settings import (
    LEARN_SETTINGS,
    MANY,
    Setting,
    arguments_of,
    check_settings,
    settings_of,
    with_plain_widths,
)
from otbaselines.common.training import Snapshot, check_finite, parameter_sum
from otbaselines.wfpg import checks
from otbaselines.wfpg.buffers import buffer_choice, check_buffer_settings, new_buffer

_ALIASES = ("actor", "critic", "critic_target")
# Gradient steps between looks at the losses where no episode ends.
_UNLOGGED = 1000


@dataclass(frozen=True)
class ReplayBatch:
    """
    A minibatch, and the noise of its update.

    :param seen: preprocessed observations
    :param actions: scaled to [-1, 1], shape ``(batch, action_dim)``
    :param rewards: of one or several steps, shape ``(batch,)``
    :param continues: 0 after a terminal step and 1 elsewhere, shape ``(batch,)``
    :param discounts: on the value of the next state, without ``continues``, shape ``(batch,)``
    :param next_seen: preprocessed observations
    :param noise: standard normal, shape ``(2, batch, latent_dim)``
    :param kicks: standard normal, shape ``(2, batch, action_dim)``
    """

    seen: Any
    actions: th.Tensor
    rewards: th.Tensor
    continues: th.Tensor
    discounts: th.Tensor
    next_seen: Any
    noise: th.Tensor
    kicks: th.Tensor

    def first(self, n: int) -> "ReplayBatch":
        """
        :param n: how many
        :return: the first transitions, which are as random as any
        """
        parts: dict[str, Any] = {}
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if isinstance(value, dict):
                parts[part.name] = {key: rows[:n] for key, rows in value.items()}
            else:
                parts[part.name] = value[:, :n] if part.name in ("noise", "kicks") else value[:n]
        return ReplayBatch(**parts)


class ReplayLearner(Learner, OffPolicyAlgorithm):
    """
    SB3's off-policy learner behind :class:`~otbaselines.common.learner.Learner`; a subclass implements ``_gradient_step``.

    :param env: a Gymnasium environment or its id, or a vector environment
    :param buffer_size: transitions that are remembered
    :param learning_starts: environment steps with random actions before the first gradient step
    :param batch_size: of a gradient step
    :param tau: how far slow copies go towards the critics in each step
    :param gamma: the discount
    :param train_freq: environment steps between updates, or with a unit such as ``(2, "episode")``
    :param gradient_steps: of an update; -1 for as many as there were environment steps
    :param action_noise: added to actions that are collected, as in SB3
    :param replay_buffer_class: another buffer, as in SB3
    :param replay_buffer_kwargs: its settings
    :param optimize_memory_usage: store every observation once, as in SB3
    :param n_steps: rewards that are summed before the critic is asked
    :param compile: let ``torch.compile`` fuse the losses, which takes a minute at the first step and a C++ compiler on CPUs
    :param cuda_graph: capture the whole gradient step as one CUDA graph; on CUDA only
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "buffer_size": Setting("integer", low=1, high=MANY),
        "learning_starts": Setting("integer", low=0, high=MANY),
        "batch_size": Setting("integer", low=1, high=MANY),
        "tau": Setting("number", low=0.0, high=1.0),
        "gamma": Setting("number", low=0.0, high=1.0),
        "train_freq": Setting(
            (int, np.integer, tuple, TrainFreq), fits=checks.is_frequency, what="a count, or a pair such as (1, 'episode')"
        ),
        "gradient_steps": Setting("integer", low=-1, high=MANY),
        "action_noise": Setting((ActionNoise,), optional=True),
        "replay_buffer_class": Setting(
            (type,), fits=lambda cls: issubclass(cls, ReplayBuffer), what="a class of replay buffers", optional=True
        ),
        "replay_buffer_kwargs": Setting((dict,), optional=True),
        "optimize_memory_usage": Setting("flag"),
        "n_steps": Setting("integer", low=1, high=MANY),
        "compile": Setting("flag"),
        "cuda_graph": Setting("flag"),
    }
    #: Names of the scalars that ``_gradient_step`` returns.
    metric_names: ClassVar[tuple[str, ...]]
    #: Optimizers, as attributes of the policy.
    optimizer_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        policy: str | type,
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float | None = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
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
        self._check_together(gamma, n_steps)
        if _init_setup_model:
            # A model that was trained so may be loaded anywhere.
            check_cuda_graph(cuda_graph, get_device(device))
            if env is None:
                raise TypeError(
                    f"`env` must be an environment or its id, got None; a saved model needs none: {type(self).__name__}.load"
                )
        self.compile, self.cuda_graph = compile, cuda_graph
        train_freq, stats_window_size = checks.plain_frequency(train_freq), int(stats_window_size)
        if env is not None:
            checks.check_env(env)
            env = maybe_make_env(env, verbose)
            checks.check_action_space(env.action_space)
            checks.check_observation_space(env.observation_space)
            checks.check_noise(action_noise, env.action_space.shape or ())
        given = {**locals(), "sde_support": False, "support_multi_env": True}
        given["policy_kwargs"] = with_plain_widths(policy_kwargs or {})
        super().__init__(**arguments_of(super().__init__, given))
        self._scalars: list[th.Tensor] = []
        if _init_setup_model:
            self._setup_model()

    def _check_together(self, gamma: float | None, n_steps: int) -> None:
        """Refuse settings that contradict each other; each by itself is sound, and a subclass's own are attributes already."""

    # ------------------------------------------------------------------ set-up
    @staticmethod
    def _wrap_env(env: GymEnv | str, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # SB3 takes ids in the constructor alone; `load` and `set_env` come through here.
        return OffPolicyAlgorithm._wrap_env(maybe_make_env(env, verbose), verbose, monitor_wrapper)

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """
        Go on in another environment.

        :param env: of the model's spaces and number of copies, or its id
        :param force_reset: start new episodes
        """
        super().set_env(maybe_make_env(env, self.verbose), force_reset)

    def _setup_model(self) -> None:
        chosen, settings, self.policy_kwargs = (
            self.replay_buffer_class,
            dict(self.replay_buffer_kwargs),
            dict(self.policy_kwargs),
        )
        checks.check_precision()
        checks.check_sizes(
            observation_space=self.observation_space,
            action_dim=int(np.prod(self.action_space.shape or ())),
            batch_size=int(self.batch_size),
            # A model that is loaded for its predictions fills no buffer.
            buffer_size=None if self.env is None else int(self.buffer_size),
            halves=self.optimize_memory_usage,
            device=self.device,
        )
        check_buffer_settings(chosen, settings, self.n_steps, self.gamma)
        if chosen is NStepReplayBuffer:
            # SB3 makes it where there are several steps, and warns where it is asked for beside them.
            _, self.replay_buffer_kwargs = buffer_choice(self)
            self.replay_buffer_class = None
        if isinstance(self.observation_space, spaces.Dict) and self.n_steps > 1:
            raise ValueError(
                f"`n_steps` must be 1 for dictionaries of observations, got {self.n_steps}; SB3 has no such buffer"
            )
        own = self._policy_settings()
        for name in own.keys() & self.policy_kwargs.keys():
            raise ValueError(
                f"`policy_kwargs[{name!r}]`={self.policy_kwargs[name]!r} is for {type(self).__name__} itself to say, and it "
                f"says {own[name]!r}; leave it out, and set the algorithm's own parameters"
            )
        self.policy_kwargs.update(own)
        super()._setup_model()
        if self.n_envs > 1 and self.train_freq.unit.value == "episode":  # type: ignore[union-attr]
            raise ValueError(
                f"`train_freq` in episodes works with one environment, and there are {self.n_envs}, whose episodes end at "
                "different times; count steps"
            )
        for name in own:
            del self.policy_kwargs[name]
        # SB3's names; they are saved as parts of the policy.
        for name in _ALIASES:
            setattr(self, name, getattr(self.policy, name))
        # What was chosen for the user is chosen again after `load`.
        self.replay_buffer_class, self.replay_buffer_kwargs = chosen, settings

    def _policy_settings(self) -> dict[str, Any]:
        """What the policy has to know of the algorithm's own parameters."""
        return {}

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"policy.{name}" for name in self.optimizer_names)], []

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_ALIASES]

    def load_replay_buffer(self, path: SavePath, truncate_last_traj: bool = True) -> None:
        """
        Fill the replay buffer from what ``save_replay_buffer`` has written; a model without one gets it.

        :param path: the file, with or without ``.npz``
        :param truncate_last_traj: part of SB3's signature, and about ``HerReplayBuffer`` alone, which is refused
        :raises ValueError: if the file is damaged, or of a buffer of other size or spaces
        """
        buffer = new_buffer(self) if self.replay_buffer is None else self.replay_buffer
        load_buffer(buffer, path)
        # The model may have moved since the buffer was made.
        buffer.device, self.replay_buffer = self.device, buffer

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [getattr(self.policy, name) for name in self.optimizer_names]

    def get_parameters(self) -> dict[str, dict[Any, Any]]:
        """
        :return: the state dicts by name, as SB3's. What a CUDA graph needs of an optimizer is left out, so that the model
            loads everywhere
        """
        return without_capture(super().get_parameters())

    # ------------------------------------------------------------------ learning
    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        Act and train in turns.

        :param total_timesteps: environment steps, of all copies together
        :param callback: one callback, a list, or a function; called after each step of all copies
        :param log_interval: episodes between log entries; None for no log
        :param tb_log_name: name of the run; the class's name when omitted
        :param reset_num_timesteps: start counting anew; ``False`` continues schedules and the log
        :param progress_bar: show a progress bar
        :return: the model
        :raises TypeError: if an argument is of the wrong type
        :raises ValueError: if one is out of range, or an observation, a reward, a loss or a parameter became NaN or infinite;
            the parameters of the last log entry are restored then
        """
        check_settings(LEARN_SETTINGS, locals())
        name = tb_log_name or type(self).__name__
        super().learn(int(total_timesteps), callback, log_interval, name, reset_num_timesteps, progress_bar)  # type: ignore[arg-type]
        self._check_updates()
        return self

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(*args, **kwargs)
        checks.check_finite_rows("observations", self._last_obs, self.num_timesteps)
        # Made anew: a graph knows the tensors of the optimizers' states, and a restored state has others.
        self._batch: ReplayBatch | None = None
        self._step: Callable[[], th.Tensor] = self._gradient_step
        self._compile_losses()
        check_cuda_graph(self.cuda_graph, self.device)
        if self.cuda_graph:
            make_capturable(self._optimizers(), self.device)
            self._step = GraphedStep(self._gradient_step)
        self._remember()
        return result

    def _compile_losses(self) -> None:
        """Replace the losses by compiled ones where the user asked for it."""

    def _gradient_step(self) -> th.Tensor:
        """One update by ``self._batch``; returns the scalars named in ``metric_names``, shape ``(n_metrics,)``."""
        raise NotImplementedError(f"{type(self).__name__} does not implement `_gradient_step`")

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        :param gradient_steps: how many
        :param batch_size: transitions of each
        """
        self.policy.set_training_mode(True)
        rate = self.lr_schedule(self._current_progress_remaining)
        for optimizer in self._optimizers():
            set_learning_rate(optimizer, rate)
        for _ in range(gradient_steps):
            self._take(self._draw(batch_size))
            self._scalars.append(self._step())
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/learning_rate", rate)
        if len(self._scalars) >= _UNLOGGED:
            self._check_updates()

    def _draw(self, batch_size: int) -> ReplayBatch:
        """A minibatch of the buffer, normalised as the environment is."""
        assert self.replay_buffer is not None
        policy: Any = self.policy
        rows = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        rewards = rows.rewards.flatten()
        # Without a discount, the objective is an average.
        discount = 1.0 if self.gamma is None else self.gamma
        discounts = th.full_like(rewards, discount) if rows.discounts is None else rows.discounts.flatten()
        return ReplayBatch(
            seen=policy.preprocess(rows.observations),
            actions=rows.actions,
            rewards=rewards,
            continues=1.0 - rows.dones.flatten(),
            discounts=discounts,
            next_seen=policy.preprocess(rows.next_observations),
            noise=th.randn(2, batch_size, policy.latent_dim, device=self.device),
            kicks=th.randn(2, batch_size, policy.action_dim, device=self.device),
        )

    def _take(self, batch: ReplayBatch) -> None:
        """Put a minibatch where the step looks for it; a captured step looks at the same tensors for ever."""
        if self._batch is None or not self.cuda_graph:
            self._batch = batch
            return
        for part in dataclasses.fields(batch):
            own, given = getattr(self._batch, part.name), getattr(batch, part.name)
            pairs = [(own[key], given[key]) for key in own] if isinstance(own, dict) else [(own, given)]
            for tensor, value in pairs:
                tensor.copy_(value, non_blocking=True)

    def _sample_action(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        actions, stored = super()._sample_action(*args, **kwargs)
        if not np.isfinite(actions).all():
            # Most likely an update went wrong, which is then told and undone.
            self._check_updates()
            raise ValueError(f"`actions` became NaN or infinite at step {self.num_timesteps}; check `action_noise`")
        return actions, stored

    def _store_transition(
        self, replay_buffer: ReplayBuffer, buffer_action: Any, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        checks.check_transition(new_obs, reward, dones, infos, self.num_timesteps)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    # ------------------------------------------------------------------ guard and log
    def _parts(self) -> list[Any]:
        return [self.policy, *self._optimizers()]

    def _remember(self) -> None:
        self._scalars, self._snapshot, self._n_kept = [], Snapshot(*self._parts()), self._n_updates

    def _check_updates(self) -> dict[str, float]:
        """Read what the steps since the last look have said, and go back to there if it is not finite."""
        if not self._scalars:
            return {}
        sums = [parameter_sum(self.policy)]
        means = th.cat([th.stack(self._scalars).mean(0), th.stack(sums)]).tolist()
        numbers = dict(zip((*self.metric_names, "parameters"), means, strict=True))
        n_updates, self._n_updates = self._n_updates, self._n_kept
        check_finite(numbers, self._snapshot, f"{n_updates} gradient steps")
        self._n_updates = n_updates
        del numbers["parameters"]
        self._remember()
        return numbers

    def dump_logs(self) -> None:
        """Write what was recorded, under SB3's names."""
        for name, value in self._check_updates().items():
            self.logger.record(f"train/{name}", value)
        super().dump_logs()
