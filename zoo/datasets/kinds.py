"""The kinds of data that one training leads to, named as in D4RL: medium, medium-replay, expert and medium-expert."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from otbaselines import OfflineDataset
from otbaselines.common.datasets.columns import COLUMNS
from zoo.datasets.behaviour import BUFFER, Checkpoint, load_actor, make_agent
from zoo.datasets.provenance import begin, made_with
from zoo.datasets.references import Reference
from zoo.runs.comparison import Array

KINDS = ("medium", "medium-replay", "expert", "medium-expert")
# Of the way from random actions to the expert, at which an agent counts as medium: about a third.
MEDIUM_SHARE = 0.3
# Episodes that are recorded before they are written.
EPISODES = 20


@dataclass(frozen=True)
class Choice:
    """
    Which agents the data are of.

    :param medium: the first checkpoint that was about a third of the way from random actions to an expert
    :param expert: the best one
    :param standard: the returns between which ``medium`` was chosen
    """

    medium: Checkpoint
    expert: Checkpoint
    standard: Reference


def choose(checkpoints: Sequence[Checkpoint], random: float, scale: Reference | None = None) -> Choice:
    """
    Choose the agents. The expert of the scale is the standard for the medium one, so that a longer training leads to the same
    medium data; where there is none, or no checkpoint comes so far, the best checkpoint is.

    :param checkpoints: of a training, first to last
    :param random: mean return of random actions
    :param scale: of the task, where there is one
    :return: the agents to record
    :raises ValueError: if none was better than random actions
    """
    best = max(checkpoints, key=lambda checkpoint: checkpoint.mean_return, default=None)
    if best is None or best.mean_return <= random:
        raise ValueError(
            f"none of the {len(checkpoints)} checkpoints is better than random actions, which earn {random:.1f}; train longer"
        )
    own = Reference(random, best.mean_return, "the best checkpoint")
    for standard in (own,) if scale is None else (scale, own):
        reached = [each for each in checkpoints if standard.normalized(each.mean_return) >= 100 * MEDIUM_SHARE]
        if reached:
            return Choice(reached[0], best, standard)
    raise AssertionError("the best checkpoint is as good as itself")


def random_return(env_id: str, *, n_episodes: int = 100, seed: int = 0) -> float:
    """
    :param env_id: of Gymnasium
    :param n_episodes: to play
    :param seed: of the environment and the actions
    :return: mean return of uniformly random actions
    """
    env = gym.make(env_id)
    env.action_space.seed(seed)
    returns = []
    for episode in range(n_episodes):
        env.reset(seed=seed + episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return float(np.mean(returns))


def recording_settings(env_id: str, training: Path, seed: int) -> dict[str, Any]:
    """
    :param env_id: of Gymnasium
    :param training: folder of the training
    :param seed: of the environment and the actions
    :return: what a recording depends on, but for the checkpoint that acts, by name
    """
    return {"env": env_id, "seed": seed, "episodes_of_a_part": EPISODES, "training": made_with(training)}


def record(
    env_id: str,
    training: Path,
    checkpoint: Checkpoint,
    folder: Path,
    *,
    size: int,
    seed: int,
) -> OfflineDataset:
    """
    Record whole episodes of sampled actions of one checkpoint, going on with a recording that was interrupted.

    :param env_id: of Gymnasium
    :param training: folder of the training
    :param checkpoint: who acts
    :param folder: of the recording
    :param size: transitions, at least
    :param seed: of the environment and the actions
    :return: the recording
    :raises ValueError: if the folder's recordings are of another seed or training
    """
    folder.mkdir(parents=True, exist_ok=True)
    begin(folder, recording_settings(env_id, training, seed), is_new=not any(folder.glob("*.npz")))
    agent = make_agent(env_id, seed, buffer_size=1)
    load_actor(agent, training, checkpoint.timesteps)
    parts: list[OfflineDataset] = []
    while sum(map(len, parts)) < size:
        path = folder / f"{checkpoint.timesteps:08d}_{len(parts):04d}.npz"
        if not path.is_file():
            # A seed of its own for each part, so that it does not matter where the recording was interrupted.
            own = int(np.random.SeedSequence([seed, checkpoint.timesteps, len(parts)]).generate_state(1)[0])
            OfflineDataset.from_agent(agent, env_id, n_episodes=EPISODES, seed=own).save(path)
        parts.append(OfflineDataset.from_npz(path))
    return OfflineDataset.concatenate(parts)


def replay(env_id: str, training: Path, checkpoint: Checkpoint) -> OfflineDataset:
    """
    Everything that an agent had seen when it was as good as a checkpoint.

    :param env_id: of Gymnasium
    :param training: folder of the training
    :param checkpoint: the last moment
    :return: the transitions in their order; the last episode may not be whole
    """
    env = gym.make(env_id)
    observation_space, action_space = env.observation_space, env.action_space
    env.close()
    whole = OfflineDataset.from_npz(training / BUFFER, observation_space=observation_space, action_space=action_space)
    n = checkpoint.timesteps
    if len(whole) < n:
        raise ValueError(f"the saved replay buffer has {len(whole)} transitions, and {n} are needed; let the training go on")
    columns = (getattr(whole, name)[:n] for name in COLUMNS)
    return OfflineDataset(*columns, observation_space=observation_space, action_space=action_space)


def make_kind(
    kind: str,
    env_id: str,
    choice: Choice,
    folder: Path,
    *,
    size: int,
    seed: int,
) -> OfflineDataset:
    """
    :param kind: one of :data:`KINDS`
    :param env_id: of Gymnasium
    :param choice: of the agents
    :param folder: of everything about the task
    :param size: transitions of each recorded agent, at least
    :param seed: of what is recorded
    :return: the data
    """
    training, parts = folder / "behaviour", folder / "recordings"
    if kind == "medium-replay":
        data = replay(env_id, training, choice.medium)
    elif kind == "medium-expert":
        both = (choice.medium, choice.expert)
        data = OfflineDataset.concatenate([record(env_id, training, each, parts, size=size, seed=seed) for each in both])
    else:
        data = record(env_id, training, getattr(choice, kind), parts, size=size, seed=seed)
    data.name = f"{env_id} {kind}"
    return data


def spread(returns: Array) -> str:
    """
    :param returns: of episodes
    :return: mean and standard deviation, as text
    """
    return f"{returns.mean():.1f} +/- {returns.std():.1f}"
