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

from otbaselines.common.learner import Learner
from otbaselines.common.saving.archive import atomic_write
from zoo.config.entries import dotted, merge
from zoo.runs.fingerprint import fingerprint
from zoo.runs.job import Job
from zoo.runs.keeping import Stopped, save_agent, stop_signals

Array = np.ndarray[Any, Any]

#: Of an evaluation, unless the command line says otherwise.
EVAL_EPISODES = 200


@dataclass(frozen=True, kw_only=True)
class Method:
    """
    One line of a comparison.

    :param label: in figures and tables
    :param algo: whose hyperparameter file
    :param variants: of the entry in that file
    :param changes: merged over the entry
    :param learner: as for :class:`zoo.runs.job.Job`
    """

    label: str
    algo: str
    variants: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
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
    :param data: of recorded data, their :func:`~zoo.runs.fingerprint.fingerprint`; empty in files that know none
    """

    timesteps: Array
    rewards: Array
    evaluation: Array
    cpu_seconds: float
    entry: dict[str, Any]
    data: str = ""
    recorder: ClassVar[type[LearningCurve]] = LearningCurve
    may_be_nan: ClassVar[tuple[str, ...]] = ()

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

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """:return: of the arrays that tables and figures read, by name; None where any length will do"""
        n = len(self.timesteps)
        return {"timesteps": (n,), "rewards": (n,), "evaluation": (None,)}

    @classmethod
    def load(cls, path: Path) -> Self:
        """
        Read what :func:`run_job` wrote.

        :param path: the file
        :return: the results
        :raises ValueError: if an array is not of the shape that it was written in, or no array of finite numbers
        """
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            values: dict[str, Any] = {name: stored[name] for name in stored.files}
        values.update(entry=json.loads(str(values["entry"])), cpu_seconds=float(values["cpu_seconds"]))
        values["data"] = str(values.get("data", ""))
        found = cls(**values)
        if not isinstance(found.entry, dict):
            raise ValueError(f"`entry` must be a dictionary, got {found.entry!r}")
        if not np.isfinite(found.cpu_seconds):
            raise ValueError(f"`cpu_seconds` must be finite, got {found.cpu_seconds}")
        for name, shape in found.shapes().items():
            array = getattr(found, name)
            fits = len(shape) == array.ndim and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
            if not fits or array.dtype.kind not in "fiu":
                wanted = str(shape).replace("None", "any")
                raise ValueError(f"`{name}` must be numbers of the shape {wanted}, got {array.dtype} of {array.shape}")
            if name not in cls.may_be_nan and not np.isfinite(array).all():
                raise ValueError(f"`{name}` has NaN or infinite entries")
        return found

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
    :param changes: merged over every method's entry
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
    changes: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "auto"

    def job(
        self,
        method: str,
        seed: int,
        folder: Path,
        team: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Job:
        """
        :param method: a name in ``methods``
        :param seed: of everything random
        :param folder: where its files go
        :param team: a name in ``teams``
        :param overrides: hyperparameters, merged over everything
        :param options: of :meth:`zoo.runs.job.Job.read`
        :return: the run
        """
        chosen = self.methods[method]
        return Job.read(
            chosen.algo,
            self.env_id,
            variants=(*([team] if team else []), *chosen.variants),
            overrides=merge(merge(self.changes, chosen.changes), overrides or {}),
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


def run_job(job: Job, result: type[ResultT], *, n_episodes: int = EVAL_EPISODES, progress: bool = False) -> ResultT:
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
    data = fingerprint(job.entry.get("dataset"))
    model, curve = job.build(), result.recorder()
    start = time.process_time()
    model.learn(job.config.n_timesteps, callback=curve, progress_bar=progress)
    seconds = time.process_time() - start
    measured = result.measure(job, model, n_episodes)
    kept = result(cpu_seconds=seconds, entry=dict(job.entry), data=data, **curve.fields(), **measured)
    if job.learner is None:
        save_agent(job, model)
    if model.env is not None:
        model.env.close()
    # Written last: a run whose results exist is finished.
    kept.store(results_path(job))
    return kept


def finished_run(job: Job, result: type[ResultT], n_episodes: int = EVAL_EPISODES) -> ResultT | None:
    """
    :param job: a run
    :param result: what was kept
    :param n_episodes: of the evaluation
    :return: its results, if it exists
    :raises ValueError: if its file is damaged, or tells of other hyperparameters, data or evaluations than it would now
    """
    path = results_path(job)
    if not path.is_file():
        return None
    try:
        found = result.load(path)
    except Exception as error:
        raise ValueError(f"{str(path)!r} holds no results of a run ({error}); remove it to train the run again") from error
    there, here = dotted(found.entry), dotted(json.loads(json.dumps(dict(job.entry))))
    there["--eval-episodes"], here["--eval-episodes"] = len(found.evaluation), n_episodes
    now = fingerprint(job.entry.get("dataset"))
    if found.data and now:
        # The content is the data, and a path only one of their names.
        if found.data == now:
            here["dataset"] = there.get("dataset")
        else:
            there["dataset"] = f"{there.get('dataset')} with another content"
    elif all(isinstance(options.get("dataset"), str) for options in (there, here)):
        there["dataset"], here["dataset"] = (str(Path(options["dataset"]).resolve()) for options in (there, here))
    names = sorted(name for name in {**there, **here} if there.get(name, _UNSET) != here.get(name, _UNSET))
    if names:
        differences = ", ".join(f"`{name}` is {_shown(there, name)} there and {_shown(here, name)} here" for name in names)
        raise ValueError(
            f"{str(path)!r} holds this run with other options: {differences}; take another --out, or remove the file "
            "to train the run anew, or give the options that it was trained with"
        )
    return found


_UNSET = object()


def _shown(options: Mapping[str, Any], name: str) -> str:
    text = repr(options[name]) if name in options else "not set"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _check_distinct(jobs: Sequence[Job]) -> None:
    paths: set[Path] = set()
    for job in jobs:
        path = results_path(job)
        if path in paths:
            raise ValueError(f"two of the runs would be kept in {str(path)!r}; ask for each once")
        paths.add(path)


def finished_runs(
    jobs: Sequence[tuple[KeyT, Job]], result: type[ResultT], n_episodes: int = EVAL_EPISODES
) -> dict[KeyT, list[ResultT]]:
    """
    :param jobs: runs, each with what it is to be found by
    :param result: what was kept of each
    :param n_episodes: of each evaluation
    :return: those that are finished
    :raises ValueError: if none is, or as :func:`finished_run` does
    """
    _check_distinct([job for _, job in jobs])
    runs: dict[KeyT, list[ResultT]] = {}
    for key, job in jobs:
        found = finished_run(job, result, n_episodes)
        if found is not None:
            runs.setdefault(key, []).append(found)
    if not runs:
        folders = ", ".join(sorted({str(job.folder) for _, job in jobs}))
        raise ValueError(f"no finished runs in {folders}; add --train")
    return runs


def waiting_jobs(
    jobs: Sequence[Job], result: type[ResultT], n_episodes: int = EVAL_EPISODES, *, build: bool = False
) -> list[Job]:
    """
    Notice what is wrong with any of the runs before the first of them starts, and make their folders.

    :param jobs: runs
    :param result: what is to be kept of each
    :param n_episodes: of each evaluation
    :param build: construct every learner once, seeds apart; for commands that take hyperparameters
    :return: those that are not finished
    :raises ValueError: as :func:`finished_run` does, or if a learner cannot be made
    :raises OSError: if nothing can be written there
    """
    _check_distinct(jobs)
    waiting = [job for job in jobs if finished_run(job, result, n_episodes) is None]
    built = set()
    for job in waiting:
        kind = json.dumps([job.algo, job.learner, job.env_id, dict(job.entry)], sort_keys=True)
        if build and kind not in built:
            built.add(kind)
            _try(job)
    for folder in {job.folder for job in waiting}:
        folder.mkdir(parents=True, exist_ok=True)
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished", flush=True)
    return waiting


def _try(job: Job) -> None:
    try:
        model = job.build()
        if isinstance(model, Learner):
            model.check_before_learning()
        if model.env is not None:
            model.env.close()
    except Exception as error:
        raise ValueError(f"the run {job.name!r} cannot be made: {error}") from error


def train_jobs(
    waiting: Sequence[Job], result: type[ResultT], *, n_episodes: int = EVAL_EPISODES, n_processes: int = 1
) -> None:
    """
    Train several runs at a time, each in a process with one thread.

    :param waiting: the runs, as :func:`waiting_jobs` returns them
    :param result: what to keep of each
    :param n_episodes: of each evaluation
    :param n_processes: how many at a time; with one they are trained in this process
    :raises SystemExit: if a signal ended the training; finished runs are kept
    """
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
