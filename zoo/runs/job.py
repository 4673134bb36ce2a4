"""Training runs on cooperative navigation, kept as files, so that figures are drawn without training again."""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import get_device

from otbaselines.common.evaluation.team import evaluate_team
from otbaselines.common.saving.archive import atomic_write
from otbaselines.common.vec_env.make import make_vec_env
from otbaselines.envs.navigation import MOVES
from otbaselines.ippo import IPPO
from otbaselines.wbc import WBC
from zoo.config.entries import merge, read_entry, split_entry

NAVIGATION = "otbaselines/Navigation-v0"
ACTIONS = ("stay", "right", "left", "up", "down")
# Where the policy maps put the target: off the centre, so that a map that ignores it is seen to be wrong.
MAP_TARGET = (0.0, 0.2)
EVALUATION_EPISODES = 200
_CLASSES: dict[str, Any] = {"ippo": IPPO, "wbc": WBC}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """
    One line of the comparison.

    :param name: in file names
    :param label: in figures
    :param algo: whose hyperparameter file
    :param variants: of the entry in that file
    """

    name: str
    label: str
    algo: str
    variants: tuple[str, ...] = ()


#: The methods that the paper compares, in the order of the legend.
METHODS = {
    method.name: method
    for method in (
        Method(name="wbc", label="WBC", algo="wbc"),
        Method(name="kl", label="KL consensus", algo="wbc", variants=("kl",)),
        Method(name="sharing", label="parameter sharing", algo="ippo", variants=("sharing",)),
        Method(name="ippo", label="IPPO", algo="ippo"),
    )
}

#: Further forms of the consensus, for the table of estimators.
ESTIMATORS = {
    name: Method(name=name, label=label, algo="wbc", variants=(name,))
    for name, label in (
        ("paper", "as printed: own samples, plan, no debiasing, reg 0.1, 0.5"),
        ("sampled-plan", "own samples, plan, debiased"),
        ("sampled-potential", "own samples, potential, debiased"),
        ("sliced", "own samples, sliced, plan"),
        ("sliced-potential", "own samples, sliced, potential"),
        ("own", "expected, own states"),
        ("pooled", "expected, pooled states"),
        ("biased", "conditional, not debiased"),
        ("sharp", "conditional, reg 0.2"),
        ("by-return", "conditional, weighted by return"),
        ("moves", "conditional, actions placed by their displacements"),
    )
}

_ALL = {**METHODS, **ESTIMATORS}


@dataclass(frozen=True, kw_only=True)
class Job:
    """
    One training run.

    :param method: a name in :data:`METHODS` or :data:`ESTIMATORS`
    :param seed: of everything random
    :param folder: where its files go
    :param n_timesteps: agent-steps instead of the entry's
    :param team: a variant of every method's entry that says how the agents differ, if they do
    :param env_kwargs: further changes of the environment
    :param device: where environment and learner live
    :param resolution: points along each axis of the policy maps
    :param progress: show a progress bar
    """

    method: str
    seed: int
    folder: str
    n_timesteps: int | None = None
    team: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    resolution: int = 41
    progress: bool = False

    @property
    def stem(self) -> str:
        """Name of its files without their endings."""
        return f"{self.method}-seed{self.seed}"

    @property
    def path(self) -> Path:
        """File of the results."""
        return Path(self.folder) / f"{self.stem}.npz"

    def entry(self) -> dict[str, Any]:
        """Hyperparameters of this run, as plain values."""
        method = _ALL[self.method]
        overrides: dict[str, Any] = {"env_kwargs": self.env_kwargs}
        if self.n_timesteps is not None:
            overrides["n_timesteps"] = self.n_timesteps
        variants = (*([self.team] if self.team else []), *method.variants)
        return merge(read_entry(method.algo, NAVIGATION, variants=variants), overrides)


@dataclass(frozen=True, eq=False, kw_only=True)
class RunResult:
    """
    What figures need of one run.

    :param timesteps: agent-steps at the end of each rollout, shape ``(n_rollouts,)``
    :param rewards: mean reward per agent and step in each rollout, shape ``(n_rollouts,)``
    :param policy_maps: most probable direction of each agent at each position, shape ``(n_agents, resolution, resolution)``,
        indices of :data:`ACTIONS`, first row at the lower edge
    :param team_mates: where the team-mates stand in the maps, shape ``(n_agents - 1, 2)``
    :param state_probs: probability of each direction, shape ``(n_states, n_agents, 5)``
    :param states: descriptions of these states
    :param evaluation: mean reward per agent and step of the most probable actions, each episode's, shape ``(n_episodes,)``
    :param random: the same of uniformly random actions
    :param cpu_seconds: processor time of the training
    :param entry: the hyperparameters
    """

    timesteps: Array
    rewards: Array
    policy_maps: Array
    team_mates: Array
    state_probs: Array
    states: tuple[str, ...]
    evaluation: Array
    random: Array
    cpu_seconds: float
    entry: dict[str, Any]


class LearningCurve(BaseCallback):
    """Remember the mean reward of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        rewards: th.Tensor = self.locals["rollout_buffer"].rewards
        self.points.append((self.num_timesteps, float(rewards.mean())))


def team_probabilities(model: BaseAlgorithm, observations: Array) -> Array:
    """
    Action probabilities of every agent at the same observations.

    :param model: a team with discrete actions
    :param observations: shape ``(n, obs_dim)``
    :return: shape ``(n, n_agents, n_actions)``
    :raises ValueError: if actions are continuous
    """
    if not isinstance(model.action_space, spaces.Discrete):
        raise ValueError(f"policy maps need discrete actions, got {model.action_space}; leave `continuous_actions` off")
    policy: Any = model.policy
    rows = th.as_tensor(observations, device=model.device).unsqueeze(1).expand(-1, policy.n_agents, -1)
    with th.no_grad():
        probabilities: Array = policy.team_distribution(rows).probs.cpu().numpy()
    return probabilities


def as_directions(probabilities: Array, action_vectors: Array) -> Array:
    """
    Turn probabilities of action numbers into probabilities of directions, for teams whose moves are turned.

    :param probabilities: shape ``(n, n_agents, 5)``
    :param action_vectors: displacement by each action of each agent, shape ``(n_agents, 5, 2)``
    :return: the same shape, the last axis in the order of :data:`ACTIONS`
    """
    lengths = np.linalg.norm(action_vectors, axis=-1, keepdims=True)
    headings = action_vectors / np.where(lengths > 0, lengths, 1.0)
    # direction[agent, action] is the entry of MOVES in which that action takes that agent.
    direction = np.linalg.norm(headings[:, :, None] - MOVES, axis=-1).argmin(-1)
    turned = np.empty_like(probabilities)
    for agent, order in enumerate(direction):
        turned[:, agent, order] = probabilities[:, agent]
    return turned


def train_run(job: Job) -> RunResult:
    """
    Train, evaluate, and write the agent (``.zip``) and the results (``.npz``).

    :param job: what to train
    :return: the results
    """
    th.set_num_threads(1)
    entry = job.entry()
    config = split_entry(entry)
    device = get_device(job.device)
    env = make_vec_env(NAVIGATION, n_copies=config.n_envs, seed=job.seed, device=device, env_kwargs=config.env_kwargs)
    model = _CLASSES[_ALL[job.method].algo](env=env, seed=job.seed, device=device, **config.model_kwargs)
    curve = LearningCurve()
    start = time.process_time()
    model.learn(config.n_timesteps, callback=curve, progress_bar=job.progress)
    cpu_seconds = time.process_time() - start
    result = _describe(model, job, entry, curve, cpu_seconds)
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    model.save(str(Path(job.folder) / job.stem))
    # Written last: a run whose results exist is finished.
    _store(result, job.path)
    return result


def _describe(model: BaseAlgorithm, job: Job, entry: dict[str, Any], curve: LearningCurve, cpu_seconds: float) -> RunResult:
    env_kwargs = entry.get("env_kwargs", {})
    # Evaluations of all methods and seeds play the same starts.
    env: Any = make_vec_env(NAVIGATION, n_copies=50, seed=0, device=model.device, env_kwargs=env_kwargs)
    horizon = env.config.max_episode_steps
    generator = np.random.default_rng(0)
    n_actions = len(ACTIONS)

    def random_policy(rows: Array) -> Array:
        return generator.integers(n_actions, size=len(rows))

    played = evaluate_team(model, env, n_eval_episodes=EVALUATION_EPISODES, seed=1)
    random = evaluate_team(random_policy, env, n_eval_episodes=EVALUATION_EPISODES, seed=1)
    situations = env.representative_states()
    maps = env.policy_map_observations(job.resolution, 0, target=MAP_TARGET)
    vectors = env.agent_action_vectors
    directions = as_directions(team_probabilities(model, maps), vectors).argmax(-1)
    state_probs = as_directions(team_probabilities(model, np.stack(list(situations.values()))), vectors)
    timesteps, rewards = np.array(curve.points, dtype=np.float64).reshape(-1, 2).T
    env.close()
    return RunResult(
        timesteps=timesteps,
        rewards=rewards,
        policy_maps=directions.T.reshape(-1, job.resolution, job.resolution).astype(np.int8),
        team_mates=maps[0, 4:].reshape(-1, 2),
        state_probs=state_probs,
        states=tuple(situations),
        evaluation=played.episode_agent_returns.mean(1) / horizon,
        random=random.episode_agent_returns.mean(1) / horizon,
        cpu_seconds=cpu_seconds,
        entry=entry,
    )


def _store(result: RunResult, path: Path) -> None:
    arrays: dict[str, Any] = {**vars(result), "states": list(result.states), "entry": json.dumps(result.entry)}
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def load_run(path: Path) -> RunResult:
    """
    Read the results of a finished run.

    :param path: what :func:`train_run` wrote
    :return: the results
    """
    with np.load(path, allow_pickle=False) as stored:
        values: dict[str, Any] = {name: stored[name] for name in stored.files}
    values.update(
        states=tuple(str(name) for name in values["states"]),
        entry=json.loads(str(values["entry"])),
        cpu_seconds=float(values["cpu_seconds"]),
    )
    return RunResult(**values)


def is_finished(job: Job) -> bool:
    """
    Tell whether a run exists with the hyperparameters that it would be trained with now.

    :param job: the run
    """
    return job.path.is_file() and load_run(job.path).entry == job.entry()


def train_runs(jobs: Sequence[Job], *, n_processes: int = 1) -> None:
    """
    Train the runs that are not finished, several at a time, each in a process with one thread.

    :param jobs: the runs
    :param n_processes: how many at a time
    """
    waiting = [job for job in jobs if not is_finished(job)]
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished", flush=True)
    if n_processes <= 1:
        for job in waiting:
            _announce(job, train_run(job))
        return
    # Forked children of a process that has used torch's threads can hang, so they are spawned.
    with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as pool:
        for job, result in zip(waiting, pool.map(train_run, waiting), strict=True):
            _announce(job, result)


def _announce(job: Job, result: RunResult) -> None:
    print(
        f"{job.stem}: mean reward {result.rewards[-10:].mean():.3f} in the last rollouts, "
        f"{result.evaluation.mean():.3f} evaluated, {result.cpu_seconds:.0f} CPU seconds",
        flush=True,
    )
