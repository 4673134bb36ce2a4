"""Training that keeps the agent, however it ends: finished, by an error, by Ctrl-C or by the end of its time slot."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from otbaselines.common.saving.normalizer import save_normalizer
from zoo.runs.folders import STATUS, write_yaml
from zoo.runs.job import Job

# Ctrl-C, the end of a time slot, a closed terminal.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """
    A signal asked the program to end.

    :param number: of the signal
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def stop_signals(action: Any = None) -> Iterator[None]:
    """
    Raise :class:`Stopped` inside for every signal that asks the program to end.

    :param action: what the signals do instead, such as ``signal.SIG_IGN``
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    # Only the main thread may set handlers, and what is ignored (by nohup, say) stays so.
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (SIGNALS if here else ())}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, action or stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def learn_and_keep(job: Job, model: BaseAlgorithm, **options: Any) -> None:
    """
    Train, and leave the agent and how the training ended.

    :param job: whose folder exists
    :param model: what :meth:`zoo.runs.job.Job.build` returned
    :param options: of ``model.learn``
    :raises SystemExit: if a signal ended the training, with the shell's exit status for it
    """
    status, number = "failed", 0
    _mark(job, model, "running")
    with stop_signals():
        try:
            # A continued run goes on with its schedules and its axis of steps.
            model.learn(job.config.n_timesteps, reset_num_timesteps=job.trained_agent is None, **options)
            status = "finished"
        except Stopped as stopped:
            status, number = "interrupted", stopped.number
        finally:
            # A second Ctrl-C must not cost what the first one kept.
            with stop_signals(signal.SIG_IGN):
                save_agent(job, model)
                _mark(job, model, status)
            if status != "finished":
                steps = f"{model.num_timesteps:,} steps"
                print(f"{status} after {steps}; the agent so far is in {job.folder}", file=sys.stderr)
    if number:
        raise SystemExit(128 + number)


def save_agent(job: Job, model: BaseAlgorithm) -> None:
    """Save the agent and, where there is one, its normaliser."""
    job.folder.mkdir(parents=True, exist_ok=True)
    model.save(str(job.agent))
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        job.parameters.mkdir(exist_ok=True)
        save_normalizer(normalizer, job.normalizer)


def _mark(job: Job, model: BaseAlgorithm, status: str) -> None:
    write_yaml(job.parameters / STATUS, {"status": status, "num_timesteps": int(model.num_timesteps)})
