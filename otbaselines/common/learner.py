"""What every algorithm has, wherever its experience comes from: checked settings, schedules, and streams of random numbers."""

import os
from functools import partial
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import set_random_seed

from otbaselines.common.saving.algorithm import JsonSaveMixin
from otbaselines.common.schedules import Schedule, parse_schedule
from otbaselines.common.seeding import child_seeds
from otbaselines.common.settings import (
    MANY,
    POLICY_SETTINGS,
    Setting,
    check_optimizer,
    check_settings,
    inherit_parameters,
    is_device,
    settings_of,
)
from otbaselines.common.training import as_callbacks


class Learner(JsonSaveMixin):
    """
    Put it before an SB3 algorithm: ``class OnPolicy(Learner, OnPolicyAlgorithm)``.

    A class names the values that its own parameters take in ``setting_ranges``, and explains only these: the rest of its
    documentation is completed from its ancestors. It reads schedules by :meth:`schedule_value`.

    :param learning_rate: a number, or a function of the remaining progress (from 1 to 0)
    :param stats_window_size: episodes over which returns and lengths are averaged in the log
    :param tensorboard_log: folder of the TensorBoard log, if any
    :param policy_kwargs: keyword arguments of the policy, as in SB3
    :param verbose: 0 silent, 1 information, 2 debug
    :param seed: seed of every random stream
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"``
    :param _init_setup_model: whether to build the networks at once
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "policy": Setting((str, type), what="the name of a policy, such as 'MlpPolicy', or a policy class"),
        "learning_rate": Setting("schedule", low=0.0),
        "stats_window_size": Setting("integer", low=1, high=MANY),
        "tensorboard_log": Setting((str, os.PathLike), optional=True),
        "policy_kwargs": Setting((dict,), optional=True, entries=POLICY_SETTINGS, together=check_optimizer),
        "verbose": Setting("integer", low=0, high=2),
        "seed": Setting("integer", low=0, high=2**63 - 1, optional=True),
        "device": Setting(
            (str, th.device), fits=is_device, what="'auto', 'cpu', 'cuda' or another device that torch can compute on"
        ),
        "_init_setup_model": Setting("flag"),
    }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inherit_parameters(cls)

    def _keeps(self, name: str) -> bool:
        """Whether a parameter lives on in an attribute, as it was given."""
        return name != "policy" and not vars(self).keys().isdisjoint({name, f"_{name}"})

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if not th.is_grad_enabled() or th.is_inference_mode_enabled():
            raise RuntimeError("`learn` needs gradients; call it outside of torch.no_grad() and torch.inference_mode()")
        # Attributes may have been changed since the constructor looked at them.
        table, present = settings_of(type(self)), vars(self)
        check_settings(table, {name: present.get(name, present.get(f"_{name}")) for name in table if self._keeps(name)})
        self.check_before_learning()
        if self.env is None:
            raise RuntimeError("the model has no environment to learn in; call `set_env`, or `load` it with `env=`")
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def check_before_learning(self) -> None:
        """
        Refuse what only the settings together say, the networks, the data and the machine; ``learn`` does it before anything
        else.

        :raises TypeError: if a setting does not apply to the choice beside it
        :raises ValueError: if settings contradict each other, or what the model was built for, or do not fit into memory
        """

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        return super()._init_callback(as_callbacks(callback, progress_bar=progress_bar))

    def _setup_lr_schedule(self) -> None:
        schedule = parse_schedule(self.learning_rate)
        # No lambda, so that models can be pickled.
        self.lr_schedule = partial(_learning_rate, type(self), schedule)

    def schedule_value(self, name: str) -> float:
        """
        :param name: a parameter that may be a schedule
        :return: its value at the present progress
        :raises ValueError: if that is out of the parameter's range
        """
        return settings_of(type(self))[name].reading(name, getattr(self, name), self._current_progress_remaining)

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Start every random stream: those of :func:`~otbaselines.common.seeding.child_seeds` after the steps so far.

        :param seed: the seed; without one, the streams go on as they are
        """
        if seed is None:
            return
        seeds = child_seeds(seed, self.num_timesteps)
        set_random_seed(seeds["learner"], using_cuda=self.device.type == "cuda")
        self.action_space.seed(seeds["actions"])
        if self.env is not None:
            self.env.seed(seeds["environment"])

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            known = ", ".join(map(repr, self.policy_aliases))
            raise ValueError(f"`policy` must be one of {known} or a policy class, got {policy_name!r}")
        return self.policy_aliases[policy_name]


def _learning_rate(cls: type, schedule: Schedule, progress: float) -> float:
    return settings_of(cls)["learning_rate"].reading("learning_rate", schedule, progress)
