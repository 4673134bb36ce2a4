"""The learner of Stable-Baselines3 inside of :class:`~otbaselines.fedirl.FedIRL`, and the environment that pays it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from otbaselines.fedirl.features import FeatureFunction, evaluated
from otbaselines.fedirl.maxent import Horizon, discounted_average

#: Those that a model's file can name.
LEARNERS: dict[str, type[BaseAlgorithm]] = {"a2c": A2C, "ddpg": DDPG, "dqn": DQN, "ppo": PPO, "sac": SAC, "td3": TD3}
#: Transitions that are paid again at once.
_ROWS = 16_384
#: What :class:`~otbaselines.fedirl.FedIRL` has parameters of its own for.
_GIVEN = ("policy", "env", "gamma", "seed", "device", "verbose", "policy_kwargs", "tensorboard_log", "_init_setup_model")


def is_learner(value: Any) -> bool:
    """
    :param value: a name, or a class
    :return: whether it stands for a learner
    """
    return value in LEARNERS if isinstance(value, str) else issubclass(value, BaseAlgorithm)


def learner_name(value: str | type | None) -> str | type | None:
    """
    :param value: a name, a class, or None
    :return: the name of a class that has one, so that it can be stored
    """
    return next((name for name, known in LEARNERS.items() if known is value), value)


def check_learner_kwargs(given: Mapping[str, Any]) -> None:
    """
    :param given: arguments of the learner
    :raises ValueError: if one of them is :class:`~otbaselines.fedirl.FedIRL`'s to give
    """
    for name in _GIVEN:
        if name in given:
            remedy = "it is `discount`" if name == "gamma" else f"give `{name}` to FedIRL itself"
            raise ValueError(f"`learner_kwargs` must not have {name!r}, got {given[name]!r}; {remedy}")


def make_learner(
    learner: str | type[BaseAlgorithm], policy: str | type, env: VecEnv, *, discount: float, **settings: Any
) -> BaseAlgorithm:
    """
    :param learner: a name of :data:`LEARNERS`, or a class
    :param policy: the name of a policy, or a class
    :param env: what it acts in
    :param discount: its ``gamma``
    :param settings: further arguments of its constructor
    :return: the learner
    :raises ValueError: if it does not take the arguments, or not the spaces
    """
    kind: Any = LEARNERS[learner] if isinstance(learner, str) else learner
    try:
        made: BaseAlgorithm = kind(policy, env, gamma=discount, **settings)
    except (TypeError, AssertionError) as error:
        # SB3 asserts that it can deal with the spaces.
        raise ValueError(f"`learner` {kind.__name__} does not take `learner_kwargs` or the spaces: {error}") from error
    return made


class PayingVecEnv(VecEnvWrapper):
    """
    Pays the learned reward, and remembers the features of what was done.

    ``info["true_reward"]`` has the environment's own reward, as has what ``Monitor`` counts.

    :param venv: the environment
    :param features: of its observations and actions
    :param horizon: discount and length of feature averages
    """

    def __init__(self, venv: VecEnv, features: FeatureFunction, horizon: Horizon) -> None:
        super().__init__(venv)
        self.features, self.horizon = features, horizon
        #: Parameters of the reward, shape ``(k,)``; nothing is paid without.
        self.theta: th.Tensor | None = None
        #: Whether features are remembered.
        self.remembers = False
        self._last: Any = None
        self._actions: Any = None
        self._open: list[list[th.Tensor]] = [[] for _ in range(venv.num_envs)]
        self._finished: list[th.Tensor] = []

    def _original(self, observations: VecEnvObs) -> Any:
        # Rewards are of observations as the environment gives them.
        return self.venv.get_original_obs() if isinstance(self.venv, VecNormalize) else observations

    def reset(self) -> VecEnvObs:
        observations = self.venv.reset()
        self._last = self._original(observations)
        self._open = [[] for _ in range(self.num_envs)]
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        paid = np.zeros(self.num_envs, dtype=np.float32)
        if self.theta is not None or self.remembers:
            rows = self.features(self._last, self._actions)
            if self.theta is not None:
                paid = (rows @ self.theta).numpy().astype(np.float32)
                if not np.isfinite(paid).all():
                    raise ValueError("the learned reward became NaN or infinite; scale `features` down, or bound observations")
            if self.remembers:
                self._remember(rows, dones, infos)
        for info, reward in zip(infos, rewards, strict=True):
            info["true_reward"] = float(reward)
        self._last = self._original(observations)
        return observations, paid, dones, infos

    def _remember(self, rows: th.Tensor, dones: npt.NDArray[Any], infos: list[dict[str, Any]]) -> None:
        for copy, (done, info) in enumerate(zip(dones, infos, strict=True)):
            self._open[copy].append(rows[copy])
            if done:
                self._finished.append(self._average(copy, terminated=not info.get("TimeLimit.truncated", False)))
                self._open[copy] = []

    def _average(self, copy: int, *, terminated: bool) -> th.Tensor:
        return discounted_average(th.stack(self._open[copy]), self.horizon, terminated=terminated)

    def feature_averages(self) -> th.Tensor:
        """
        :return: discounted feature averages of the episodes that ended since the last call, shape ``(m, k)``; where none
            did, of those that are under way, which count again when they have ended
        :raises RuntimeError: if there has been no step
        """
        averages, self._finished = self._finished, []
        if not averages:
            averages = [self._average(copy, terminated=False) for copy in range(self.num_envs) if self._open[copy]]
        if not averages:
            raise RuntimeError("there has been no step to take features of; set `remembers` and step the environment")
        return th.stack(averages)


def normalizing(paying: PayingVecEnv, discount: float) -> VecNormalize:
    """
    :param paying: pays rewards of any unit
    :param discount: of the returns, by whose standard deviation rewards are divided
    :return: the environment that a learner finds its usual rewards in
    """
    return VecNormalize(paying, norm_obs=False, norm_reward=True, gamma=discount)


def pay_again(learner: BaseAlgorithm, features: FeatureFunction, theta: th.Tensor) -> None:
    """
    Pay what a learner remembers by another reward, as if it had just been done. Learners without a memory are left alone.

    :param learner: whose replay buffer holds the observations that the features are of
    :param features: of observations and actions
    :param theta: parameters of the reward, shape ``(k,)``
    """
    buffer = getattr(learner, "replay_buffer", None)
    if not isinstance(buffer, ReplayBuffer):
        return
    n = buffer.size()
    if n == 0:
        return
    seen, done = buffer.observations[:n], buffer.actions[:n].reshape(-1, *buffer.actions.shape[2:])
    assert isinstance(seen, np.ndarray)
    seen = seen.reshape(-1, *seen.shape[2:])
    if isinstance(learner.action_space, spaces.Box):
        # Off-policy learners remember actions as shares of their range.
        assert isinstance(learner.policy, BasePolicy)
        done = learner.policy.unscale_action(done)
    else:
        done = done.flatten()
    paid = [
        evaluated(features, seen[start : start + _ROWS], done[start : start + _ROWS]) @ theta
        for start in range(0, len(seen), _ROWS)
    ]
    buffer.rewards[:n] = th.cat(paid).numpy().reshape(n, -1)


def forget_returns(env: VecEnv) -> None:
    """
    Start the statistics of returns anew, after the reward has become another.

    :param env: what :func:`normalizing` has returned; others are left alone
    """
    if isinstance(env, VecNormalize):
        env.ret_rms = RunningMeanStd(shape=())
        env.returns = np.zeros(env.num_envs)


class Relay(BaseCallback):
    """
    Tells an outer algorithm and its callbacks what an inner learner does.

    :param outer: the algorithm that the user knows
    :param callback: that of the user, initialised with it
    """

    def __init__(self, outer: BaseAlgorithm, callback: BaseCallback) -> None:
        super().__init__()
        self._outer, self._callback = outer, callback

    def _follow(self) -> None:
        self._outer.num_timesteps = self.model.num_timesteps
        self._outer._n_updates = self.model._n_updates
        self._outer._episode_num = self.model._episode_num
        self._outer._current_progress_remaining = self.model._current_progress_remaining

    def _on_training_start(self) -> None:
        self._outer.ep_info_buffer = self.model.ep_info_buffer
        self._outer.ep_success_buffer = self.model.ep_success_buffer

    def _on_rollout_start(self) -> None:
        self._callback.on_rollout_start()

    def _on_step(self) -> bool:
        self._follow()
        self._callback.update_locals(self.locals)
        return self._callback.on_step()

    def _on_rollout_end(self) -> None:
        self._follow()
        self._callback.update_locals(self.locals)
        self._callback.on_rollout_end()

    def _on_training_end(self) -> None:
        self._follow()
