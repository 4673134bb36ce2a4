"""Several methods on one task over several seeds, each run kept as a file, so that figures cost no second training."""

import argparse
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from otbaselines.common.saving.archive import atomic_write
from zoo.runs.job import Job
from zoo.runs.keeping import Stopped, save_agent, stop_signals

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """
    One line of a comparison.

    :param label: in figures and tables
    :param algo: whose hyperparameter file
    :param variants: of the entry in that file
    :param learner: as for :class:`zoo.runs.job.Job`
    """

    label: str
    algo: str
    variants: tuple[str, ...] = ()
    learner: str | None = None


class LearningCurve(BaseCallback):
    """Remember the mean reward of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.points.append((self.num_timesteps, self._mean_reward()))

    def _mean_reward(self) -> float:
        return float(self.locals["rollout_buffer"].rewards.mean())

    def fields(self) -> dict[str, Any]:
        """:return: what training itself gives of a :class:`RunResult`"""
        timesteps, rewards = np.array(self.points, dtype=np.float64).reshape(-1, 2).T
        return {"timesteps": timesteps, "rewards": rewards}


@dataclass(frozen=True, eq=False, kw_only=True)
class RunResult:
    """
    What figures and tables need of one run. A comparison adds fields, and measures them in :meth:`measure` after training, or
    by a ``recorder`` of its own during it.

    :param timesteps: agent-steps at the end of each rollout, shape ``(n_rollouts,)``
    :param rewards: mean reward per agent and step in each rollout, shape ``(n_rollouts,)``
    :param evaluation: what each episode of the evaluation earned, shape ``(n_episodes,)``
    :param cpu_seconds: processor time of the training
    :param entry: the hyperparameters
    """

    timesteps: Array
    rewards: Array
    evaluation: Array
    cpu_seconds: float
    entry: dict[str, Any]
    recorder: ClassVar[type[LearningCurve]] = LearningCurve

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """
        Evaluate a trained agent.

        :param job: how it was trained
        :param model: the agent
        :param n_episodes: of the evaluation
        :return: the fields that training itself does not give, ``evaluation`` among them
        """
        raise NotImplementedError

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :func:`run_job` wrote."""
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            values: dict[str, Any] = {name: stored[name] for name in stored.files}
        values.update(entry=json.loads(str(values["entry"])), cpu_seconds=float(values["cpu_seconds"]))
        return cls(**values)

    def store(self, path: Path) -> None:
        """Write the results, whole or not at all."""
        with atomic_write(path) as file:
            np.savez_compressed(file, **{**vars(self), "entry": json.dumps(self.entry)})


ResultT = TypeVar("ResultT", bound=RunResult)
KeyT = TypeVar("KeyT")


@dataclass(frozen=True, kw_only=True)
class Comparison(Generic[ResultT]):
    """
    A figure or table, drawn by ``python -m zoo.plots <its name>``.

    :param help: what it shows
    :param env_id: the task
    :param methods: by name in files, in the order of legends and tables
    :param result: what is kept of each run
    :param report: draws from the runs by label, and returns a Markdown table
    :param seeds: how many are usual
    :param folder: where runs and figures go
    :param teams: variants of every method's entry that say how the agents differ, and what titles say of them
    :param backend: of the environments, as for :class:`zoo.runs.job.Job`
    """

    help: str
    env_id: str
    methods: Mapping[str, Method]
    result: type[ResultT]
    report: Callable[[Mapping[str, Sequence[ResultT]], argparse.Namespace], str]
    seeds: int = 10
    folder: str
    teams: Mapping[str, str] = field(default_factory=dict)
    backend: str = "auto"

    def job(self, method: str, seed: int, folder: Path, team: str | None = None, **options: Any) -> Job:
        """
        :param method: a name in ``methods``
        :param seed: of everything random
        :param folder: where its files go
        :param team: a name in ``teams``
        :param options: of :meth:`zoo.runs.job.Job.read`
        :return: the run
        """
        chosen = self.methods[method]
        return Job.read(
            chosen.algo,
            self.env_id,
            variants=(*([team] if team else []), *chosen.variants),
            learner=chosen.learner,
            seed=seed,
            folder=folder,
            name=f"{method}-seed{seed}",
            backend=self.backend,
            **options,
        )


def results_path(job: Job) -> Path:
    """File of a run's results."""
    return job.folder / f"{job.name}.npz"


def run_job(job: Job, result: type[ResultT], *, n_episodes: int = 200, progress: bool = False) -> ResultT:
    """
    Train, evaluate, and write the agent (``.zip``) and the results (``.npz``).

    :param job: what to train
    :param result: what to keep
    :param n_episodes: of the evaluation
    :param progress: show a progress bar
    :return: the results
    """
    th.set_num_threads(1)
    job.folder.mkdir(parents=True, exist_ok=True)
    model, curve = job.build(), result.recorder()
    start = time.process_time()
    model.learn(job.config.n_timesteps, callback=curve, progress_bar=progress)
    seconds = time.process_time() - start
    measured = result.measure(job, model, n_episodes)
    kept = result(cpu_seconds=seconds, entry=dict(job.entry), **curve.fields(), **measured)
    if job.learner is None:
        save_agent(job, model)
    if model.env is not None:
        model.env.close()
    # Written last: a run whose results exist is finished.
    kept.store(results_path(job))
    return kept


def finished_run(job: Job, result: type[ResultT], n_episodes: int = 200) -> ResultT | None:
    """
    :param job: a run
    :param result: what was kept
    :param n_episodes: of the evaluation
    :return: its results, if it exists with the hyperparameters and the evaluation that it would have now
    :raises ValueError: if its file is damaged
    """
    path = results_path(job)
    if not path.is_file():
        return None
    try:
        found = result.load(path)
    except Exception as error:
        raise ValueError(f"{str(path)!r} holds no results of a run ({error}); remove it to train the run again") from error
    return found if found.entry == job.entry and len(found.evaluation) == n_episodes else None


def finished_runs(jobs: Sequence[tuple[KeyT, Job]], result: type[ResultT], n_episodes: int = 200) -> dict[KeyT, list[ResultT]]:
    """
    :param jobs: runs, each with what it is to be found by
    :param result: what was kept of each
    :param n_episodes: of each evaluation
    :return: those that are finished
    :raises ValueError: if none is, or a file is damaged
    """
    runs: dict[KeyT, list[ResultT]] = {}
    for key, job in jobs:
        found = finished_run(job, result, n_episodes)
        if found is not None:
            runs.setdefault(key, []).append(found)
    if not runs:
        folders = ", ".join(sorted({str(job.folder) for _, job in jobs}))
        raise ValueError(f"no finished runs with these hyperparameters in {folders}; add --train")
    return runs


def train_jobs(jobs: Sequence[Job], result: type[ResultT], *, n_episodes: int = 200, n_processes: int = 1) -> None:
    """
    Train the runs that are not finished, several at a time, each in a process with one thread.

    :param jobs: the runs
    :param result: what to keep of each
    :param n_episodes: of each evaluation
    :param n_processes: how many at a time; with one they are trained in this process
    :raises SystemExit: if a signal ended the training; finished runs are kept
    """
    waiting = [job for job in jobs if finished_run(job, result, n_episodes) is None]
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished", flush=True)
    train = partial(run_job, result=result, n_episodes=n_episodes)
    try:
        with stop_signals():
            if n_processes <= 1:
                for job in waiting:
                    _announce(job, train(job))
            elif waiting:
                _train_in_processes(waiting, train, n_processes)
    except Stopped as stopped:
        print("interrupted; the finished runs are kept, the same command goes on with the others", flush=True)
        raise SystemExit(128 + stopped.number) from None


def _train_in_processes(jobs: Sequence[Job], train: Callable[[Job], RunResult], n_processes: int) -> None:
    others = multiprocessing.active_children()
    # Forked children of a process that has used torch's threads can hang, so they are spawned. Ctrl-C reaches them too, and
    # is this process's to answer.
    context, ignore = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(n_processes, mp_context=context, initializer=signal.signal, initargs=ignore) as pool:
        try:
            for job, future in [(job, pool.submit(train, job)) for job in jobs]:
                _announce(job, future.result())
        except BaseException:
            # The pool would wait for the runs in progress.
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
                    process.join(5.0)
                    # What it was writing when it was told to stop.
                    for folder in {job.folder for job in jobs}:
                        for half in folder.glob(f".*.{process.pid}.*.tmp"):
                            half.unlink(missing_ok=True)
            raise


def _announce(job: Job, kept: RunResult) -> None:
    print(
        f"{job.name}: mean reward {kept.rewards[-10:].mean():.4g} in the last rollouts, "
        f"{kept.evaluation.mean():.4g} evaluated, {kept.cpu_seconds:.0f} CPU seconds",
        flush=True,
    )
