"""The loop of learners that take gradient steps on data, and act in no environment."""

import copy
import time
from typing import Any, ClassVar, Self

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import DummyVecEnv

from otbaselines.common.learner import Learner
from otbaselines.common.settings import LEARN_SETTINGS, arguments_of, check_settings, settings_of, with_plain_widths
from otbaselines.common.training import Metrics, Snapshot, check_finite, largest_moment, parameter_sum

# Gradient steps between looks at the losses where there is no log.
_UNLOGGED = 1000


class _SpacesEnv(gym.Env[Any, Any]):
    """Spaces that can be asked for a first observation, and for nothing else."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        raise RuntimeError("this learner was given data and no environment; pass `env=` to act in one")


def spaces_only_env(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> DummyVecEnv:
    """
    What stands in for an environment where there are only data: SB3's callbacks, logger and ``load`` ask it for its spaces.

    :param observation_space: what the policy sees
    :param action_space: what it does
    :return: a vector environment of one copy, which refuses to be stepped
    """
    return DummyVecEnv([lambda: _SpacesEnv(observation_space, action_space)])


class OfflineAlgorithm(Learner):
    """
    Base of the learners without experience of their own; ``num_timesteps`` counts gradient steps.

    A subclass keeps its data in a parameter that it names in ``_json_skip``, and implements :meth:`train_step`. It draws
    minibatches from a generator among its attributes, which is saved with the model: a run that was saved and loaded goes on
    to the last bit as if it had not been interrupted. Several optimizers are named by ``_get_torch_save_params``, as in SB3.

    :param policy: the name of a policy, or a policy class
    :param env: an environment, for its spaces; :func:`spaces_only_env` where there is none
    """

    _saves_random_state: ClassVar[bool] = True
    #: Parameters of the algorithm by what they are called in :meth:`_policy_settings`, where the names differ.
    settings_behind: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        policy: str | type,
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        check_settings(settings_of(type(self)), {**vars(self), **locals()})
        super().__init__(**arguments_of(super().__init__, locals()), support_multi_env=True)
        self.policy_kwargs = _with_plain_widths(self.policy_kwargs)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.env is None:
            self.env, self.n_envs = spaces_only_env(self.observation_space, self.action_space), 1
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        policy_class: Any = self.policy_class
        own = self._policy_settings()
        for name in own.keys() & self.policy_kwargs.keys():
            # A loaded model says the same twice.
            if self.policy_kwargs[name] != own[name]:
                raise ValueError(
                    f"`policy_kwargs[{name!r}]`={self.policy_kwargs[name]!r} contradicts what {type(self).__name__} tells its "
                    f"policy, {own[name]!r}; leave it out, and set the algorithm's own parameters"
                )
        settings = self._built_with = copy.deepcopy({**self.policy_kwargs, **own})
        self.policy = policy_class(self.observation_space, self.action_space, self.lr_schedule, **settings)
        self.policy = self.policy.to(self.device)

    def _policy_settings(self) -> dict[str, Any]:
        """What the policy has to know of the algorithm's own parameters."""
        return {}

    def check_before_learning(self) -> None:
        super().check_before_learning()
        own = self._policy_settings()
        asked = {**_with_plain_widths(self.policy_kwargs), **own}
        for name in {**self._built_with, **asked}:
            value, built = asked.get(name), self._built_with.get(name)
            if value != built:
                setting = self.settings_behind.get(name, name)
                if name not in own:
                    because, remedy = f"`policy_kwargs[{name!r}]`", ""
                else:
                    because = f"`{name}`" if setting == name else f"`{setting}`={getattr(self, setting)!r} asks for `{name}`"
                    remedy = f", or, where the networks are of the same form, save this one and load it with `{setting}=...`"
                raise ValueError(
                    f"{because}={value!r}, but the networks were built for {built!r}; construct a new model with it{remedy}"
                )

    def train_step(self, metrics: Metrics) -> None:
        """
        One gradient step.

        :param metrics: takes the scalars to be logged, which stay on the device until then
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `train_step`")

    def _parts(self) -> list[Any]:
        """The modules and optimizers that are saved."""
        return [recursive_getattr(self, name) for name in self._get_torch_save_params()[0]]

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        Train.

        :param total_timesteps: gradient steps
        :param callback: one callback, a list, or a function; called after each gradient step
        :param log_interval: gradient steps between log entries; None for no log
        :param tb_log_name: name of the run; the class's name when omitted
        :param reset_num_timesteps: start counting anew; ``False`` continues schedules and the log
        :param progress_bar: show a progress bar
        :return: the model
        :raises TypeError: if an argument is of the wrong type
        :raises ValueError: if one is out of range, or a loss or parameter became NaN or infinite; those of the last log entry
            are restored then
        """
        check_settings(LEARN_SETTINGS, locals())
        name = tb_log_name or type(self).__name__
        total_timesteps, callback = self._setup_learn(int(total_timesteps), callback, reset_num_timesteps, name, progress_bar)
        optimizers = [part for part in self._parts() if isinstance(part, th.optim.Optimizer)]
        metrics, snapshot = Metrics(), Snapshot(*self._parts())
        callback.on_training_start(locals(), globals())
        self.policy.set_training_mode(True)
        while self.num_timesteps < total_timesteps:
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            self._update_learning_rate(optimizers)
            try:
                self.train_step(metrics)
            except ValueError:
                # torch's distributions refuse NaN, which an earlier step has made, before the guard looks.
                self._check_and_record(metrics, snapshot)
                raise
            self.num_timesteps += 1
            self._n_updates += 1
            callback.update_locals(locals())
            goes_on = callback.on_step()
            is_last = not goes_on or self.num_timesteps >= total_timesteps
            if is_last or self.num_timesteps % (log_interval or _UNLOGGED) == 0:
                self._check_and_record(metrics, snapshot)
                metrics, snapshot = Metrics(), Snapshot(*self._parts())
                if log_interval is not None:
                    self.dump_logs()
            if not goes_on:
                break
            # An evaluation leaves the policy in another mode.
            self.policy.set_training_mode(True)
        callback.on_training_end()
        return self

    def _check_and_record(self, metrics: Metrics, snapshot: Snapshot) -> None:
        for part in self._parts():
            if isinstance(part, th.nn.Module):
                metrics.add("parameters", parameter_sum(part))
            elif isinstance(part, th.optim.Optimizer):
                metrics.add("moments", largest_moment(part).to(self.device))
        numbers = metrics.means()
        check_finite(numbers, snapshot, f"{self.num_timesteps} gradient steps")
        for name in ("parameters", "moments"):
            numbers.pop(name, None)
        for name, value in numbers.items():
            self.logger.record(name, value)

    def dump_logs(self) -> None:
        """Write what was recorded, under SB3's names."""
        elapsed = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)


def _with_plain_widths(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same, with a dictionary in a list, which SB3 once had, as the dictionary."""
    net_arch = policy_kwargs.get("net_arch")
    if isinstance(net_arch, list) and len(net_arch) == 1 and isinstance(net_arch[0], dict):
        policy_kwargs = {**policy_kwargs, "net_arch": net_arch[0]}
    return with_plain_widths(policy_kwargs)
