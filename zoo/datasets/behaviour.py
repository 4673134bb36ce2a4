"""The agent whose behaviour becomes data: SB3's SAC, with its checkpoints, their returns and everything it has seen."""

import inspect
import json
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed

from otbaselines.common.saving.archive import atomic_write
from otbaselines.common.saving.replay_buffer import load_buffer, save_buffer
from zoo.datasets.provenance import begin
from zoo.runs.keeping import Stopped, stop_signals

#: Of the replay buffer, which must never go round: its rows are the agent's whole life, in order.
MAX_STEPS = 1_000_000
BUFFER, _STATE, _RETURNS = "replay_buffer.npz", "state.pt", "returns.json"


@dataclass(frozen=True)
class Checkpoint:
    """
    The agent at one moment.

    :param timesteps: environment steps that it had trained for
    :param returns: of its evaluation episodes, most probable actions
    :param seconds: of training until then
    """

    timesteps: int
    returns: list[float]
    seconds: float

    @property
    def mean_return(self) -> float:
        """Over the evaluation episodes."""
        return float(np.mean(self.returns))


def actor_path(folder: Path, timesteps: int) -> Path:
    """
    :param folder: of the training
    :param timesteps: of a checkpoint
    :return: the file of its actor's weights
    """
    return folder / "actors" / f"{timesteps:08d}.pt"


def read_checkpoints(folder: Path) -> list[Checkpoint]:
    """
    :param folder: of a training
    :return: its checkpoints, first to last
    """
    path = folder / _RETURNS
    return [Checkpoint(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def agent_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """
    :param settings: hyperparameters of SAC that a task asks for
    :return: all that :func:`make_agent` passes on; where it passes none, SB3's defaults hold
    """
    defaults: dict[str, Any] = {
        "learning_starts": 10_000,
        "buffer_size": MAX_STEPS,
        # The same arithmetic as the usual Adam's, in one call.
        "policy_kwargs": {"optimizer_kwargs": {"fused": True}},
    }
    return {**defaults, **settings}


def unusual_settings(settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """
    :param settings: as for :func:`agent_settings`
    :return: ours and SB3's of each hyperparameter in which the two differ, by name
    """
    parameters = inspect.signature(SAC.__init__).parameters
    pairs = {name: (value, parameters[name].default) for name, value in agent_settings(settings).items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def make_agent(env_id: str, seed: int, **settings: Any) -> SAC:
    """
    SAC on one copy of an environment, with SB3's hyperparameters but for those of :func:`unusual_settings`: random actions
    for the first 10,000 steps where SB3 takes 100, and Adam's fused form.

    :param env_id: of Gymnasium
    :param seed: of everything random
    :param settings: other hyperparameters
    :return: the untrained agent
    """
    env = Monitor(gym.make(env_id))
    return SAC("MlpPolicy", env, seed=seed, device="cpu", **agent_settings(settings))


def load_actor(agent: SAC, folder: Path, timesteps: int) -> None:
    """
    Give an agent the actor of a checkpoint.

    :param agent: what :func:`make_agent` returned; changed
    :param folder: of the training
    :param timesteps: of the checkpoint
    """
    agent.actor.load_state_dict(th.load(actor_path(folder, timesteps), weights_only=True))


def _save(path: Path, values: Any) -> None:
    with atomic_write(path) as file:
        th.save(values, file)


def save_state(agent: SAC, folder: Path, seconds: float) -> None:
    """
    Write everything that a training needs to go on, but the environment's state.

    :param agent: in training
    :param folder: of the training
    :param seconds: that it has taken
    """
    assert agent.replay_buffer is not None
    assert agent.log_ent_coef is not None
    save_buffer(agent.replay_buffer, folder / BUFFER)
    # After the buffer: one that is ahead of the state is cut when both are read.
    state = {
        "parameters": agent.get_parameters(),
        "log_ent_coef": agent.log_ent_coef.detach(),
        "timesteps": agent.num_timesteps,
        "n_updates": agent._n_updates,
        "episodes": agent._episode_num,
        "seconds": seconds,
    }
    _save(folder / _STATE, state)


def load_state(agent: SAC, folder: Path) -> float:
    """
    Go on where :func:`save_state` was called. The episode that was under way then counts as truncated, and the random
    numbers are others than those of a training that was never interrupted.

    :param agent: new; changed
    :param folder: of the training
    :return: seconds that it has taken; zero where there is nothing to go on with
    """
    if not (folder / _STATE).is_file():
        return 0.0
    state = th.load(folder / _STATE, weights_only=True)
    buffer = agent.replay_buffer
    assert buffer is not None
    assert agent.log_ent_coef is not None
    load_buffer(buffer, folder / BUFFER)
    # Rows behind the state, of a buffer that was saved alone before the process died, are not to be drawn.
    buffer.pos, buffer.full = state["timesteps"], False
    if buffer.pos > 0 and not buffer.dones[buffer.pos - 1].any():
        buffer.dones[buffer.pos - 1] = buffer.timeouts[buffer.pos - 1] = 1
    agent.set_parameters(state["parameters"])
    with th.no_grad():
        agent.log_ent_coef.copy_(state["log_ent_coef"])
    agent.num_timesteps, agent._n_updates, agent._episode_num = state["timesteps"], state["n_updates"], state["episodes"]
    set_random_seed((agent.seed or 0) + agent.num_timesteps)
    agent.action_space.seed((agent.seed or 0) + agent.num_timesteps)
    agent.env.seed((agent.seed or 0) + agent.num_timesteps)  # type: ignore[union-attr]
    return float(state["seconds"])


@dataclass(frozen=True)
class Keeping:
    """
    What is kept of a training, and how long it may take.

    :param checkpoint_every: environment steps between kept actors
    :param save_every: environment steps between saved states, from which an interrupted training goes on
    :param eval_episodes: played with each kept actor
    :param max_minutes: after which training ends where it is
    """

    checkpoint_every: int = 10_000
    save_every: int = 50_000
    eval_episodes: int = 10
    max_minutes: float = float("inf")


def _evaluate(agent: SAC, env: Monitor[Any, Any], n_episodes: int) -> tuple[list[float], list[int]]:
    played: Any = evaluate_policy(agent, env, n_episodes, return_episode_rewards=True)
    returns, lengths = played
    return [float(value) for value in returns], [int(value) for value in lengths]


class _Keeper(BaseCallback):
    """Evaluates and keeps the actor every so many steps, and the whole state more rarely."""

    def __init__(self, folder: Path, env_id: str, before: float, keeping: Keeping, report: Callable[[str], None]) -> None:
        super().__init__()
        self.folder, self.report, self.keeping = folder, report, keeping
        self.eval_env = Monitor(gym.make(env_id))
        self.started = time.monotonic() - before
        self.deadline = time.monotonic() + 60 * keeping.max_minutes

    @property
    def seconds(self) -> float:
        """That the training has taken, with the parts before an interruption."""
        return time.monotonic() - self.started

    def _on_step(self) -> bool:
        if self.num_timesteps % self.keeping.checkpoint_every == 0:
            self._keep_actor()
        if self.num_timesteps % self.keeping.save_every == 0:
            self.keep_state()
        return time.monotonic() < self.deadline

    def _keep_actor(self) -> None:
        agent: Any = self.model
        seconds = self.seconds
        # Every checkpoint plays the same starts.
        self.eval_env.reset(seed=agent.seed + 1_000_000)
        n_episodes = self.keeping.eval_episodes
        returns, lengths = _evaluate(agent, self.eval_env, n_episodes)
        path = actor_path(self.folder, self.num_timesteps)
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(path, agent.actor.state_dict())
        # Those of a training that was interrupted behind its last saved state are played again.
        kept = [row for row in read_checkpoints(self.folder) if row.timesteps < self.num_timesteps]
        kept.append(Checkpoint(self.num_timesteps, returns, seconds))
        with atomic_write(self.folder / _RETURNS) as file:
            file.write(json.dumps([asdict(row) for row in kept]).encode())
        self.report(
            f"{self.num_timesteps:>9,} steps  return {np.mean(returns):8.1f} +/- {np.std(returns):6.1f}  "
            f"length {np.mean(lengths):6.1f}  {seconds:7.0f} s"
        )

    def keep_state(self) -> None:
        """Save what the training goes on from."""
        agent: Any = self.model
        save_state(agent, self.folder, self.seconds)


def train_behaviour(
    env_id: str,
    timesteps: int,
    folder: Path,
    *,
    seed: int = 0,
    report: Callable[[str], None] = print,
    keeping: Keeping | None = None,
    **settings: Any,
) -> int:
    """
    Train SAC, or go on with a training that was interrupted, and keep what it was and saw on the way.

    :param env_id: of Gymnasium
    :param timesteps: environment steps in all, at most :data:`MAX_STEPS`
    :param folder: of the training
    :param seed: of everything random
    :param report: takes one line for each kept actor
    :param keeping: what is kept and how long it may take
    :param settings: other hyperparameters of SAC
    :return: environment steps that it has been trained for
    :raises ValueError: if the folder's training was begun with another seed, other settings or other checkpoints
    :raises SystemExit: if a signal ended the training, with the shell's exit status for it; the state is saved
    """
    if not 0 < timesteps <= MAX_STEPS:
        raise ValueError(f"`timesteps` must lie between 1 and {MAX_STEPS}, got {timesteps}")
    keeping = keeping or Keeping()
    folder.mkdir(parents=True, exist_ok=True)
    agent = make_agent(env_id, seed, **settings)
    asked = {"env": env_id, "seed": seed, "settings": agent_settings(settings)}
    asked |= {"checkpoint_every": keeping.checkpoint_every, "eval_episodes": keeping.eval_episodes}
    begin(folder, asked, is_new=not any((folder / name).exists() for name in (_STATE, _RETURNS)))
    before = load_state(agent, folder)
    if agent.num_timesteps >= timesteps:
        return agent.num_timesteps
    keeper = _Keeper(folder, env_id, before, keeping, report)
    stopped: Stopped | None = None
    with stop_signals():
        try:
            # SB3 adds the steps that were taken before to those asked for.
            remaining = timesteps - agent.num_timesteps
            agent.learn(remaining, callback=keeper, log_interval=2**31, reset_num_timesteps=False)
        except Stopped as error:
            stopped = error
        with stop_signals(signal.SIG_IGN):
            keeper.keep_state()
    keeper.eval_env.close()
    if stopped is not None:
        report(f"stopped by {stopped} after {agent.num_timesteps:,} steps; the same command goes on from there")
        raise SystemExit(128 + stopped.number)
    return agent.num_timesteps
