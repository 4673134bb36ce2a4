"""Playing whole episodes of a team: the loops under :mod:`otbaselines.common.evaluation.team`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped

from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy
from otbaselines.common.vec_env.layout import TeamLayout, normalizers
from otbaselines.common.vec_env.tensor import TensorVecEnv

EvaluationHook = Callable[[dict[str, Any], dict[str, Any]], None]


class EpisodeLedger:
    """
    Episodes that were finished, with a fixed quota for each copy.

    Without quotas, copies that happen to finish early would supply more episodes, and short ones would be over-represented.

    :param layout: the team
    :param n_episodes: episodes wanted from all copies together
    :param max_steps: steps after which an episode is taken to be endless
    """

    def __init__(self, layout: TeamLayout, n_episodes: int, max_steps: int) -> None:
        self.layout = layout
        self._max_steps = max_steps
        self._n_waited = 0
        self.left = (n_episodes + np.arange(layout.n_copies)) // layout.n_copies
        self._returns: list[np.ndarray] = []
        self._lengths: list[int] = []

    @property
    def is_open(self) -> bool:
        """Whether any copy owes an episode."""
        return bool((self.left > 0).any())

    def count_step(self) -> None:
        """
        Note that every copy is about to make a step.

        :raises RuntimeError: if no episode that is owed has ended in ``max_steps`` steps
        """
        self._n_waited += 1
        if self._n_waited > self._max_steps:
            copy = int(np.flatnonzero(self.left > 0)[0])
            raise RuntimeError(
                f"no episode of copy {copy} has ended in `max_steps`={self._max_steps} steps; give the environment a time "
                "limit (its own, or gymnasium.wrappers.TimeLimit), or raise `max_steps`"
            )

    def close(self, copies: np.ndarray, returns: np.ndarray, lengths: np.ndarray) -> None:
        """
        Book the finished episodes of the copies that still owe some.

        :param copies: indices of the copies whose episode is over
        :param returns: shape ``(n_copies, n_agents)``
        :param lengths: shape ``(n_copies,)``
        """
        for copy in copies:
            if self.left[copy] > 0:
                self.left[copy] -= 1
                self._n_waited = 0
                self._returns.append(np.array(returns[copy], dtype=np.float64))
                self._lengths.append(int(lengths[copy]))

    @property
    def returns(self) -> np.ndarray:
        """Return of every agent in every booked episode, shape ``(n_episodes, n_agents)``."""
        return np.stack(self._returns)

    @property
    def lengths(self) -> np.ndarray:
        """Environment steps of every booked episode, shape ``(n_episodes,)``."""
        return np.array(self._lengths)


def play_rows(
    model: Any,
    env: VecEnv,
    ledger: EpisodeLedger,
    *,
    deterministic: bool,
    render: bool,
    callback: EvaluationHook | None,
) -> None:
    """Play through SB3's interface, rows of NumPy arrays in and out, until every copy has delivered its episodes."""
    shape = (ledger.layout.n_copies, ledger.layout.n_agents)
    layers, monitored = normalizers(env), _has_monitored_agent(env)
    returns, lengths = np.zeros(shape), np.zeros(shape[0], dtype=np.int64)
    observations: Any = env.reset()
    states, episode_starts = None, np.ones(env.num_envs, dtype=bool)
    while ledger.is_open:
        ledger.count_step()
        live = _live(env, shape)
        actions, states = _actions(model, observations, states, episode_starts, deterministic)
        new_observations, rewards, dones, infos = env.step(actions)
        raw = layers[-1].get_original_reward() if layers else rewards
        returns += np.where(live, np.reshape(raw, shape), 0.0)
        lengths += 1
        if callback is not None:
            counted = np.flatnonzero(live & (ledger.left > 0)[:, None])
            _call_hook(callback, counted, {**locals(), "n_envs": env.num_envs})
        over = np.flatnonzero(~(live & ~dones.reshape(shape)).any(1))
        if monitored:
            over = _replace_by_monitor(over, infos, returns, lengths)
        ledger.close(over, returns, lengths)
        returns[over], lengths[over] = 0.0, 0
        observations, episode_starts = new_observations, dones
        if render:
            env.render()


def play_on_device(
    policy: MultiAgentActorCriticPolicy, env: TensorVecEnv, ledger: EpisodeLedger, *, deterministic: bool, render: bool
) -> None:
    """Play on a tensor environment's own device; the host reads flags and sums only where an episode may have ended."""
    policy.set_training_mode(False)
    returns = th.zeros(env.n_copies, env.n_agents, dtype=th.float64, device=env.device)
    lengths = th.zeros(env.n_copies, dtype=th.int64, device=env.device)
    obs = env.reset_tensor()
    while ledger.is_open:
        ledger.count_step()
        with th.no_grad():
            actions = policy.env_actions(policy.team_distribution(obs.to(policy.device)).get_actions(deterministic))
        step = env.step_tensor(actions.to(env.device))
        returns += step.rewards
        lengths += 1
        if render:
            env.render()
        obs, done = step.obs, step.done
        if isinstance(done, bool):
            over = np.arange(env.n_copies if done else 0)
        else:
            over = np.flatnonzero(done.all(1).cpu().numpy())
        if len(over):
            ledger.close(over, returns.cpu().numpy(), lengths.cpu().numpy())
            index = th.as_tensor(over, device=env.device)
            returns[index] = 0.0
            lengths[index] = 0


def _actions(model: Any, observations: Any, states: Any, episode_starts: np.ndarray, deterministic: bool) -> tuple[Any, Any]:
    if hasattr(model, "predict"):
        actions, states = model.predict(observations, state=states, episode_start=episode_starts, deterministic=deterministic)
        return actions, states
    return model(observations), None


def _live(env: VecEnv, shape: tuple[int, int]) -> np.ndarray:
    """Which agents act in the coming step; all of them where the environment does not say."""
    active = getattr(env, "agent_active", None)
    return np.ones(shape, dtype=bool) if active is None else np.array(active, dtype=bool)


def _has_monitored_agent(env: VecEnv) -> bool:
    """Whether it is the monitor that says, in the infos of a team of one, what an episode was."""
    if getattr(env, "possible_agents", None) is not None:
        return False
    return is_vecenv_wrapped(env, VecMonitor) or bool(env.env_is_wrapped(Monitor)[0])


def _replace_by_monitor(over: np.ndarray, infos: Any, returns: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """
    Take the monitor's figures, from below the wrappers that change rewards, in place of the sums.

    A done without the monitor's word is not an episode's end: Atari wrappers report one at every lost life.

    :return: the copies whose episode really ended
    """
    ended = [copy for copy in over if "episode" in infos[copy]]
    for copy in ended:
        returns[copy], lengths[copy] = infos[copy]["episode"]["r"], infos[copy]["episode"]["l"]
    return np.array(ended, dtype=np.int64)


def _call_hook(callback: EvaluationHook, slots: np.ndarray, frame: dict[str, Any]) -> None:
    for slot in slots:
        own = {"reward": frame["rewards"][slot], "done": frame["dones"][slot], "info": frame["infos"][slot]}
        callback({**frame, "i": int(slot), **own}, globals())
