"""The Gymnasium part of the FedIRL paper: the true return of the policy that is trained on each fused reward."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from otbaselines.common.saving.archive import atomic_write
from otbaselines.common.trajectories import Trajectory
from otbaselines.envs import client_variants
from otbaselines.fedirl import Client, demonstrate
from otbaselines.fedirl.features import RBFFeatures, lattice_support, rbf_features
from otbaselines.fedirl.fusion import FUSIONS, aggregate
from otbaselines.fedirl.learners import PayingVecEnv, make_learner, normalizing
from otbaselines.fedirl.maxent import Horizon
from otbaselines.fedirl.sampled import LearningClients
from zoo.config.entries import read_entry
from zoo.drawing.curves import STYLE, save
from zoo.drawing.tables import Table, mean_and_interval
from zoo.papers.fedirl.results import read_result

#: Clients, episodes of an evaluation, and parts of a training that a learning curve has one point for.
N_CLIENTS, N_EVALUATIONS, N_POINTS = 6, 20, 20
#: What stands beside the fusions: the reward of the client in whose environment policies are judged, alone.
METHODS = ("local", *FUSIONS)
TASKS = ("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "LunarLanderContinuous-v3")


@dataclass(frozen=True)
class ControlJob:
    """
    One seed of one task.

    :param task: id of the environment
    :param seed: of demonstrations, learning and policies; demonstrators are the same for all seeds
    :param variant: of the task's entry; none when omitted
    """

    task: str
    seed: int
    variant: str | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.task}{'_' + self.variant if self.variant else ''}_seed{self.seed}"


@dataclass(frozen=True)
class ControlResult:
    """
    True returns in the environment of client 0.

    :param returns: of the policies, by method
    :param demonstrations: mean return of the clients' demonstrations, each in its own environment
    :param feature_gap: largest gap between demonstrator and learner after the last iteration, over clients and features
    :param curves: mean return of the episodes that ended in each of :data:`N_POINTS` parts of a policy's training, by method;
        None where none did
    """

    returns: dict[str, float] = field(default_factory=dict)
    demonstrations: float = 0.0
    feature_gap: float = 0.0
    curves: dict[str, list[float | None]] = field(default_factory=dict)


def entry_of(task: str, variant: str | None = None) -> dict[str, Any]:
    """
    :param task: id of the environment
    :param variant: of its entry
    :return: its settings
    """
    return read_entry("fedirl", task, variants=() if variant is None else (variant,))


def copies(task: str, index: int) -> DummyVecEnv:
    """
    :param task: id of the environment
    :param index: of the client
    :return: as many copies of a client's environment as the entry has
    """
    return DummyVecEnv([lambda: client_variants.make(task, index)] * int(entry_of(task)["n_copies"]))


def demonstrator(task: str, index: int, folder: Path) -> PPO:
    """
    The demonstrator of one client, trained once on its environment's own reward.

    :param task: id of the environment
    :param index: of the client
    :param folder: where its parameters are kept
    :return: the agent
    """
    settings = entry_of(task)["expert"]
    agent = PPO("MlpPolicy", copies(task, index), seed=index, device="cpu", **settings["kwargs"])
    path = folder / f"{task}_expert{index}.pt"
    if path.is_file():
        agent.policy.load_state_dict(th.load(path, weights_only=True))
        return agent
    agent.learn(int(settings["n_timesteps"]))
    with atomic_write(path) as file:
        th.save(agent.policy.state_dict(), file)
    return agent


def return_of(task: str, index: int, episode: Trajectory, seed: int) -> float:
    """
    :param task: id of the environment
    :param index: of the client
    :param episode: from a reset with this seed
    :param seed: of the reset
    :return: the episode's true return, by playing it again
    """
    env = client_variants.make(task, index)
    env.reset(seed=seed)
    return float(sum(float(env.step(action[()])[1]) for action in episode.actions))


def run_control(job: ControlJob, folder: Path) -> ControlResult:
    """
    Demonstrate, learn, fuse, train and judge.

    :param job: the seed
    :param folder: where demonstrators are kept
    :return: true returns of all methods
    """
    entry = entry_of(job.task, job.variant)
    streams = np.random.SeedSequence([job.seed, 17]).generate_state(N_CLIENTS + 2).tolist()
    clients, returns = [], []
    for index in range(N_CLIENTS):
        agent, env = demonstrator(job.task, index, folder), client_variants.make(job.task, index)
        seed = streams[index] % 2**31
        episodes = [demonstrate(agent, env, 1, seed + number)[0] for number in range(int(entry["n_demonstrations"]))]
        clients.append(Client(copies(job.task, index), episodes))
        returns += [return_of(job.task, index, each, seed + number) for number, each in enumerate(episodes)]
    probe = client_variants.make(job.task, 0)
    bounds = client_variants.BOUNDS[job.task]
    features = rbf_features(probe.observation_space, probe.action_space, bounds=bounds, n_centers=int(entry["n_centers"]))
    horizon, logger = Horizon(float(entry["discount"])), Logger(None, [])
    federation = LearningClients(
        clients,
        features,
        make=lambda env, seed: make_learner(
            "ppo", "MlpPolicy", env, discount=horizon.discount, seed=seed, device="cpu", **entry["learner_kwargs"]
        ),
        learning_rate=float(entry["irl_learning_rate"]),
        normalize=bool(entry["normalize_reward"]),
        horizon=horizon,
        l2=float(entry["l2"]),
        n_iterations=[int(entry["irl_iterations"])] * N_CLIENTS,
        tol=0.0,
        n_timesteps=int(entry["irl_timesteps"]),
        seeds=[streams[-2] % 2**31 + index for index in range(N_CLIENTS)],
    )
    gaps: list[float] = []
    logger.record = lambda key, value, exclude=None: gaps.append(value) if key == "irl/feature_gap" else None  # type: ignore[method-assign,assignment,misc]
    thetas = federation.learn(th.zeros(N_CLIENTS, int(entry["n_centers"]), dtype=th.float64), logger)
    support = lattice_support(features, entry["lattice"])
    rewards = {name: aggregate(thetas, support, fusion=name, reg=float(entry["reg"])).theta for name in FUSIONS}
    rewards["local"] = thetas[0]
    found, curves = {}, {}
    for name in METHODS:
        found[name], curves[name] = _judged(job.task, features, rewards[name], horizon, entry, streams[-1] % 2**31)
    return ControlResult(found, float(np.mean(returns)), gaps[-1], curves)


class _Episodes(BaseCallback):
    """Notes when an episode ended, and its true return."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        ended = (info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
        self.ends += [(self.num_timesteps, float(each)) for each in ended]
        return True

    def curve(self, n_timesteps: int) -> list[float | None]:
        """Mean return by part of the training."""
        parts = [min((step - 1) * N_POINTS // n_timesteps, N_POINTS - 1) for step, _ in self.ends]
        by_part = (
            [value for part, (_, value) in zip(parts, self.ends, strict=True) if part == each] for each in range(N_POINTS)
        )
        return [float(np.mean(each)) if each else None for each in by_part]


def _judged(
    task: str, features: RBFFeatures, theta: th.Tensor, horizon: Horizon, entry: dict[str, Any], seed: int
) -> tuple[float, list[float | None]]:
    """The true return of a policy that was trained on a reward, both in the environment of client 0, and its curve."""
    paying = PayingVecEnv(VecMonitor(copies(task, 0)), features, horizon)
    paying.theta = theta
    env = normalizing(paying, horizon.discount) if entry["normalize_reward"] else paying
    learner = make_learner(
        "ppo", "MlpPolicy", env, discount=horizon.discount, seed=seed, device="cpu", **entry["learner_kwargs"]
    )
    episodes, n_timesteps = _Episodes(), int(entry["n_timesteps"])
    learner.learn(n_timesteps, episodes)
    judge = VecMonitor(copies(task, 0))
    judge.seed(seed + 1)
    mean, _ = evaluate_policy(learner, judge, n_eval_episodes=N_EVALUATIONS)
    return float(mean), episodes.curve(n_timesteps)  # type: ignore[arg-type]


def finished(job: ControlJob, folder: Path, *, train: bool) -> ControlResult | None:
    """
    :param job: the seed
    :param folder: where results are kept
    :param train: whether to compute what is not there
    :return: the result, None where there is none
    """
    path = folder / f"{job.name}.json"
    if path.is_file():
        return read_result(ControlResult, path, {"returns": METHODS, "curves": METHODS})
    if not train:
        return None
    result = run_control(job, folder)
    with atomic_write(path) as file:
        file.write(json.dumps(asdict(result), indent=1).encode())
    return result


def _value(result: ControlResult, name: str, *, training: bool) -> float:
    """What a table holds of one method: the return after training, or the mean of its curve."""
    if not training:
        return result.returns[name]
    known = [each for each in result.curves[name] if each is not None]
    return float(np.mean(known))


def returns_table(results: dict[str, list[ControlResult]], *, training: bool = False) -> Table:
    """
    :param results: of all seeds, by task
    :param training: whether to tell the mean of the learning curve, and not what was judged afterwards
    :return: true returns by method: mean, half of Student's 95 % interval, range
    """
    title = "True return of the policy of each reward" + (", mean over its training" if training else "")
    found = Table(title, ("task", "seeds", "demonstrations", *METHODS))
    for task, seeds in results.items():
        cells = [mean_and_interval([_value(each, name, training=training) for each in seeds], ".0f") for name in METHODS]
        found.rows.append((task, str(len(seeds)), f"{np.mean([each.demonstrations for each in seeds]):.0f}", *cells))
    return found


def paired_returns(results: dict[str, list[ControlResult]], *, training: bool = False) -> Table:
    """
    :param results: of all seeds, by task
    :param training: as for :func:`returns_table`
    :return: by how much the barycenter is ahead of each other method, paired by seed
    """
    others: Sequence[str] = [name for name in METHODS if name != "barycenter"]
    title = "Barycenter minus the others, paired by seed, true return" + (", mean over training" if training else "")
    found = Table(title, ("task", *(f"- {name}" for name in others)))
    for task, seeds in results.items():
        own = [_value(each, "barycenter", training=training) for each in seeds]
        gaps = (
            [mine - _value(each, name, training=training) for mine, each in zip(own, seeds, strict=True)] for name in others
        )
        found.rows.append((task, *(mean_and_interval(each, "+.0f") for each in gaps)))
    return found


def draw_curves(results: dict[str, list[ControlResult]], path: Path) -> None:
    """
    Learning curves: the true return of the episodes in which each policy was learned.

    :param results: of all seeds, by task
    :param path: the PNG
    """
    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns, 0.5 + 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for panel, (task, seeds) in zip(panels, results.items(), strict=False):
            steps = (np.arange(N_POINTS) + 0.5) / N_POINTS * int(entry_of(task)["n_timesteps"]) / 1000
            for name in METHODS:
                curves = np.array([each.curves[name] for each in seeds], dtype=float)
                known = np.isfinite(curves).any(0)
                (line,) = panel.plot(steps[known], np.nanmean(curves[:, known], axis=0), label=name, lw=1.4)
                if len(seeds) > 1:
                    low, high = np.nanpercentile(curves[:, known], (25, 75), axis=0)
                    panel.fill_between(steps[known], low, high, alpha=0.12, lw=0, color=line.get_color())
            demonstrated = float(np.mean([each.demonstrations for each in seeds]))
            panel.axhline(demonstrated, color="0.4", lw=1, ls="--", label="demonstrations")
            panel.set(title=f"{task}, {len(seeds)} seeds", xlabel="steps (thousands)", ylabel="true return")
            panel.grid(alpha=0.25)
        for panel in panels[len(results) :]:
            panel.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        save(figure, path)
