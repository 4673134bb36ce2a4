"""Evaluation of whole teams: every copy's episode counts once, whatever the number of its agents."""

import contextlib
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import env_util
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from otbaselines.common.evaluation.episodes import EpisodeLedger, EvaluationHook, play_on_device, play_rows
from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy
from otbaselines.common.saving.archive import atomic_write
from otbaselines.common.settings import MANY, Setting, check_settings
from otbaselines.common.vec_env.layout import TeamLayout, check_same_agents, normalizers, normalizes_observations, team_layout
from otbaselines.common.vec_env.make import wrap_team_env
from otbaselines.common.vec_env.tensor import TensorVecEnv

# Longer than any episode of Atari's; a minute or so of a small environment.
MAX_STEPS = 100_000

_SETTINGS = {
    "n_eval_episodes": Setting("integer", low=1, high=MANY),
    "max_steps": Setting("integer", low=1, high=MANY),
    "deterministic": Setting("flag"),
    "render": Setting("flag"),
    "seed": Setting("integer", low=0, high=2**32 - 1, optional=True),
}
_CALLBACK_SETTINGS = {
    "eval_freq": Setting("integer", high=MANY),
    "log_path": Setting((str, os.PathLike), optional=True),
    "best_model_save_path": Setting((str, os.PathLike), optional=True),
    "callback_on_new_best": Setting((BaseCallback,), optional=True),
    "callback_after_eval": Setting((BaseCallback,), optional=True),
}


@dataclass(frozen=True, eq=False)
class TeamEvaluation:
    """
    What a team earned. Returns are undiscounted sums of unnormalised rewards over one episode of one copy.

    :param team_return: return summed over the agents, mean over episodes
    :param agent_returns: each agent's return, mean over episodes
    :param mean_agent_return: mean over agents and episodes
    :param std: standard deviation of the team's return over episodes (population form, as in SB3)
    :param lengths: environment steps of each episode, shape ``(n_episodes,)``
    :param n_episodes: number of episodes
    :param episode_team_returns: the team's return in each episode, shape ``(n_episodes,)``
    :param episode_agent_returns: shape ``(n_episodes, n_agents)``, agents in the order of ``agent_returns``
    """

    team_return: float
    agent_returns: dict[str, float]
    mean_agent_return: float
    std: float
    lengths: np.ndarray = field(repr=False)
    n_episodes: int
    episode_team_returns: np.ndarray = field(repr=False)
    episode_agent_returns: np.ndarray = field(repr=False)


def evaluate_team(
    model: Any,
    env: Any,
    n_eval_episodes: int = 20,
    deterministic: bool = True,
    render: bool = False,
    callback: EvaluationHook | None = None,
    seed: int | None = None,
    max_steps: int = MAX_STEPS,
) -> TeamEvaluation:
    """
    Play whole episodes and report what the team and each agent earned.

    The episodes are divided evenly over the copies beforehand. An episode ends when the copy's last agent leaves; what an
    agent earned before leaving early counts. ``VecNormalize`` normalises the observations, is not updated, and the rewards
    are those from before its normalisation. On a Gymnasium environment, a team of one, the result is that of SB3's
    ``evaluate_policy``. The environment is reset, so evaluate on the training environment only between two trainings that
    reset it.

    :param model: an algorithm or policy with SB3's ``predict``, or a function from rows of observations to rows of actions
    :param env: anything that the constructors of the algorithms accept; a ``TensorVecEnv`` is stepped on its device
    :param n_eval_episodes: episodes over all copies, at least 1
    :param deterministic: the most probable actions instead of samples; functions do not see it
    :param render: call ``env.render()`` after each step
    :param callback: called as in SB3 after each step for every acting slot of the copies that are still counted, with a
        dict of locals (``i`` is the slot, and ``reward``, ``done``, ``info`` are its own) and the module's globals
    :param seed: seed of the episodes, and of the samples that a policy draws; the caller's random stream in torch is left
        as it was. When omitted the environment goes on with its own stream
    :param max_steps: steps, at least 1, after which an episode is taken to be endless
    :return: the statistics
    :raises ValueError: if ``n_eval_episodes`` or ``max_steps`` is not positive, or the environment is not the model's team,
        or observations are normalised here and were not in training, or the other way round
    :raises TypeError: if an argument is of the wrong type, or ``model`` can neither predict nor be called
    :raises RuntimeError: if an episode is longer than ``max_steps``
    """
    check_settings(_SETTINGS, locals())
    if not (hasattr(model, "predict") or callable(model)):
        raise TypeError(f"`model` must have `predict` or be a function of the observations, got {type(model).__name__}")
    policy = _team_policy(model)
    venv = as_evaluation_env(env) if policy is None else _with_images_first(as_evaluation_env(env))
    layout = team_layout(venv)
    if policy is not None:
        _check_same_team(policy, venv, layout)
    _check_same_normalization(_trained_normalized(model), venv, "env")
    ledger = EpisodeLedger(layout, n_eval_episodes, max_steps)
    with _seeded(venv, model, seed), _frozen_normalizer(venv):
        # A callback wants rows and infos, which only the general loop has; and so do two different devices.
        together = isinstance(venv, TensorVecEnv) and policy is not None and policy.device.type == venv.device.type
        if together and callback is None:
            assert isinstance(venv, TensorVecEnv)
            assert policy is not None
            play_on_device(policy, venv, ledger, deterministic=deterministic, render=render)
        else:
            play_rows(model, venv, ledger, deterministic=deterministic, render=render, callback=callback)
    return _summary(ledger)


def _summary(ledger: EpisodeLedger) -> TeamEvaluation:
    returns = ledger.returns
    team = returns.sum(1)
    return TeamEvaluation(
        team_return=float(team.mean()),
        agent_returns=dict(zip(ledger.layout.possible_agents, returns.mean(0).tolist(), strict=True)),
        mean_agent_return=float(returns.mean()),
        std=float(team.std()),
        lengths=ledger.lengths,
        n_episodes=len(team),
        episode_team_returns=team,
        episode_agent_returns=returns,
    )


def as_evaluation_env(env: Any) -> VecEnv:
    """
    Turn whatever the algorithms accept as environment into a vector environment, without adding a monitor.

    :param env: an id, a PettingZoo or Gymnasium environment, or a vector environment
    :return: the vector environment
    """
    wrapped = wrap_team_env(env)
    if wrapped is not None:
        return wrapped
    if isinstance(env, gym.Env):
        return DummyVecEnv([lambda: env])
    return env_util.make_vec_env(env, n_envs=1)


# ------------------------------------------------------------------ checks and contexts
def _team_policy(model: Any) -> MultiAgentActorCriticPolicy | None:
    policy = getattr(model, "policy", model)
    return policy if isinstance(policy, MultiAgentActorCriticPolicy) else None


def _check_same_team(policy: MultiAgentActorCriticPolicy, env: VecEnv, layout: TeamLayout) -> None:
    if layout.n_agents != policy.n_agents:
        raise ValueError(
            f"`env` has the {layout.n_agents} agents {list(layout.possible_agents)}, but the model was trained for the "
            f"{policy.n_agents} agents {list(policy.layout.possible_agents)}; evaluate on the same team"
        )
    _check_agents(layout, policy)
    # What wrappers make of the spaces; those of the agents are the same.
    for role in ("observation", "action"):
        ours, theirs = getattr(policy, f"{role}_space"), getattr(env, f"{role}_space")
        if type(ours) is not type(theirs) or ours.shape != theirs.shape or getattr(ours, "n", 0) != getattr(theirs, "n", 0):
            raise ValueError(
                f"`env` has the {role} space {theirs}, but the model was trained with {ours}; make the environment with the "
                "same arguments and wrappers"
            )


def _check_agents(theirs: TeamLayout, policy: MultiAgentActorCriticPolicy) -> None:
    """
    As :func:`~otbaselines.common.vec_env.layout.check_same_agents`, but for bounds and number types of observations.

    Spaces padded to the team's common ones, as wrappers such as SuperSuit's do, are what the policy saw in training.
    """

    def alike(kind: str, given: spaces.Space[Any], wanted: spaces.Space[Any]) -> bool:
        if kind == "action":
            return given in (wanted, policy.action_space)
        return _form(given) in (_form(wanted), _form(policy.observation_space))

    check_same_agents(theirs, policy.layout, known="trained for", alike=alike)


def _form(space: spaces.Space[Any]) -> Any:
    """What decides how an observation is read: everything but bounds and number types."""
    if isinstance(space, spaces.Dict):
        return {name: _form(part) for name, part in space.spaces.items()}
    sizes = [np.asarray(getattr(space, name, 0)).tolist() for name in ("n", "nvec", "start")]
    return type(space).__name__, space.shape, sizes


def _with_images_first(env: VecEnv) -> VecEnv:
    """The environment with channels before rows and columns of images, as the algorithms' constructors make it."""
    wrapped: VecEnv = BaseAlgorithm._wrap_env(env, verbose=0, monitor_wrapper=False)
    return wrapped


def _trained_normalized(model: Any) -> bool | None:
    """Whether a model knows normalised observations only; ``None`` where nothing tells."""
    trained, env = getattr(model, "trained_normalized", None), getattr(model, "env", None)
    return normalizes_observations(env) if trained is None and isinstance(env, VecEnv) else trained


def _check_same_normalization(trained: bool | None, env: VecEnv, name: str) -> None:
    """
    :param trained: whether the policy knows normalised observations only; ``None`` where nothing tells
    :param env: where it is to be evaluated
    :param name: of the argument that was passed
    :raises ValueError: if they do not go together
    """
    if trained is None or trained == normalizes_observations(env):
        return
    problem = "so the policy would see observations it was not trained on"
    if trained:
        raise ValueError(
            f"the model was trained in an environment that is wrapped in VecNormalize and `{name}` is not, {problem}; wrap "
            f"`{name}` in VecNormalize(..., training=False) with the statistics of the training"
        )
    raise ValueError(
        f"`{name}` is wrapped in VecNormalize and the environment that the model was trained in is not, {problem}; pass the "
        "environment inside, or VecNormalize(..., norm_obs=False)"
    )


@contextlib.contextmanager
def _seeded(env: VecEnv, model: Any, seed: int | None) -> Iterator[None]:
    """Seed the environment and torch; afterwards torch's stream goes on where it was."""
    if seed is None:
        yield
        return
    env.seed(seed)
    device = getattr(model, "device", None)
    is_cuda = isinstance(device, th.device) and device.type == "cuda"
    with th.random.fork_rng(devices=[device] if is_cuda else []):
        th.manual_seed(seed)
        yield


@contextlib.contextmanager
def _frozen_normalizer(env: VecEnv) -> Iterator[None]:
    """Keep a ``VecNormalize`` from learning its statistics from the evaluation."""
    before = [(normalizer, normalizer.training) for normalizer in normalizers(env)]
    for normalizer, _ in before:
        normalizer.training = False
    try:
        yield
    finally:
        for normalizer, training in before:
            normalizer.training = training


# ------------------------------------------------------------------ callback
class TeamEvalCallback(EvalCallback):
    """
    SB3's ``EvalCallback`` for teams: episodes of copies instead of episodes of slots.

    Logs ``eval/mean_reward`` (mean return per agent), ``eval/team_return`` and ``eval/mean_ep_length``. ``evaluations.npz``
    has SB3's ``timesteps``, ``results`` (mean return per agent) and ``ep_lengths``, one row per evaluation and one column per
    episode, and beside them ``team_returns``, ``agent_returns`` (with the agents on a last axis) and ``agents`` (their
    names); it is replaced as a whole or not at all.

    :param eval_env: anything that the constructors of the algorithms accept, with the model's team
    :param callback_on_new_best: called when ``eval/mean_reward`` is the best so far
    :param callback_after_eval: called after every evaluation
    :param n_eval_episodes: episodes over all copies
    :param eval_freq: calls of this callback (environment steps of all copies at once) between evaluations; never
        when it is not positive, as in SB3
    :param log_path: folder of ``evaluations.npz``; none is written when omitted
    :param best_model_save_path: folder of ``best_model.zip``; none is written when omitted
    :param deterministic: the most probable actions instead of samples
    :param render: render the evaluation
    :param verbose: 1 prints each evaluation
    :param warn: warn if the environments are normalised differently
    :param seed: seed of every evaluation, which then all play the same starts; each continues the stream when omitted
    :param max_steps: steps after which an episode is taken to be endless
    :raises ValueError: if ``n_eval_episodes`` or ``max_steps`` is not positive
    """

    def __init__(
        self,
        eval_env: Any,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        n_eval_episodes: int = 5,
        eval_freq: int = 10000,
        log_path: str | None = None,
        best_model_save_path: str | None = None,
        deterministic: bool = True,
        render: bool = False,
        verbose: int = 1,
        warn: bool = True,
        seed: int | None = None,
        max_steps: int = MAX_STEPS,
    ) -> None:
        check_settings(_SETTINGS | _CALLBACK_SETTINGS, locals())
        super().__init__(
            as_evaluation_env(eval_env),
            callback_on_new_best=callback_on_new_best,
            callback_after_eval=callback_after_eval,
            n_eval_episodes=n_eval_episodes,
            eval_freq=eval_freq,
            log_path=log_path,
            best_model_save_path=best_model_save_path,
            deterministic=deterministic,
            render=render,
            verbose=verbose,
            warn=warn,
        )
        self.seed = seed
        self.max_steps = max_steps
        self.last_evaluation: TeamEvaluation | None = None
        self.evaluations: list[TeamEvaluation] = []

    def _init_callback(self) -> None:
        _check_same_normalization(normalizes_observations(self.training_env), self.eval_env, "eval_env")
        policy = _team_policy(self.model)
        if policy is not None:
            self.eval_env = _with_images_first(self.eval_env)
            _check_same_team(policy, self.eval_env, team_layout(self.eval_env))
        for folder in (self.best_model_save_path, self.log_path and os.path.dirname(self.log_path)):
            if folder:
                os.makedirs(folder, exist_ok=True)
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.init_callback(self.model)

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0:
            return True
        self._share_statistics()
        self._is_success_buffer = []
        # Tensor environments report no successes, and without a hook they are evaluated on their device.
        hook = None if isinstance(self.eval_env, TensorVecEnv) else self._log_success_callback
        result = evaluate_team(
            self.model,
            self.eval_env,
            n_eval_episodes=self.n_eval_episodes,
            deterministic=self.deterministic,
            render=self.render,
            callback=hook,
            seed=self.seed,
            max_steps=self.max_steps,
        )
        self.last_evaluation = result
        self.last_mean_reward = result.mean_agent_return
        self._store(result)
        self._log(result)
        continue_training = self._note_best(result)
        if self.callback is not None:
            continue_training = continue_training and self._on_event()
        return continue_training

    def _share_statistics(self) -> None:
        """Normalise the evaluation as the training is normalised by now."""
        layers = (normalizers(env) for env in (self.training_env, self.eval_env))
        for trained, evaluated in zip(*layers, strict=False):
            evaluated.ret_rms = copy.deepcopy(trained.ret_rms)
            if trained.norm_obs:
                evaluated.obs_rms = copy.deepcopy(trained.obs_rms)

    def _store(self, result: TeamEvaluation) -> None:
        """Rewrite ``evaluations.npz`` with one more row."""
        if self.log_path is None:
            return
        self.evaluations.append(result)
        self.evaluations_timesteps.append(self.num_timesteps)
        self.evaluations_results.append(result.episode_agent_returns.mean(1).tolist())
        self.evaluations_length.append(result.lengths.tolist())
        arrays: dict[str, Any] = {
            "timesteps": self.evaluations_timesteps,
            "results": self.evaluations_results,
            "ep_lengths": self.evaluations_length,
            "team_returns": [each.episode_team_returns for each in self.evaluations],
            "agent_returns": [each.episode_agent_returns for each in self.evaluations],
            "agents": list(result.agent_returns),
        }
        if self._is_success_buffer:
            self.evaluations_successes.append(self._is_success_buffer)
            arrays["successes"] = self.evaluations_successes
        with atomic_write(f"{self.log_path}.npz") as file:
            np.savez(file, **arrays)

    def _log(self, result: TeamEvaluation) -> None:
        length = float(result.lengths.mean())
        if self.verbose >= 1:
            print(
                f"Eval num_timesteps={self.num_timesteps}, episode_reward={result.mean_agent_return:.2f} per agent, "
                f"team_return={result.team_return:.2f} +/- {result.std:.2f}\nEpisode length: {length:.2f}"
            )
        self.logger.record("eval/mean_reward", result.mean_agent_return)
        self.logger.record("eval/team_return", result.team_return)
        self.logger.record("eval/mean_ep_length", length)
        if self._is_success_buffer:
            self.logger.record("eval/success_rate", float(np.mean(self._is_success_buffer)))
        # Dumped at once, so that the figures stand beside the timesteps that they belong to.
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _note_best(self, result: TeamEvaluation) -> bool:
        """Save the model if it is the best so far; ``False`` when the callback for that wants to stop."""
        if result.mean_agent_return <= self.best_mean_reward:
            return True
        if self.verbose >= 1:
            print("New best mean reward!")
        self.best_mean_reward = result.mean_agent_return
        if self.best_model_save_path is not None:
            self.model.save(os.path.join(self.best_model_save_path, "best_model"))
        return self.callback_on_new_best is None or self.callback_on_new_best.on_step()
