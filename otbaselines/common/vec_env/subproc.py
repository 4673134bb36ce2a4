"""Teams stepped in several processes, with the same numbers as in one."""

import contextlib
import itertools
import multiprocessing as mp
import os
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any

import cloudpickle
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from otbaselines.common.settings import COUNT
from otbaselines.common.vec_env.copies import check_distinct_streams
from otbaselines.common.vec_env.parallel import TeamVecEnv
from otbaselines.common.vec_env.rows import ObservationWriter
from otbaselines.common.vec_env.spaces import Array
from otbaselines.common.vec_env.worker import Greeting, work

# Seconds that workers are given when the vector environment is collected as garbage instead of being closed.
_GARBAGE_TIMEOUT = 0.5


class WorkerTraceback(Exception):
    """The traceback, as text, of an exception that a worker process raised."""


class SubprocParallelVecEnv(TeamVecEnv):
    """
    A :class:`~otbaselines.common.vec_env.parallel.ParallelVecEnv` whose copies are shared out among processes.

    Observations, rewards, dones and infos equal those of the serial one bit for bit, save the clock in the episode
    statistics, for environments that keep their own random stream; those that draw from NumPy's global generator are
    reproducible, but different. Worth its pipes where one step of an environment takes milliseconds.

    As with ``SubprocVecEnv`` of Stable-Baselines3, scripts need ``if __name__ == "__main__":`` around what they run,
    unless ``start_method="fork"``, which is unsafe once threads run.

    Workers ignore Ctrl-C, which is for the process that owns them. After an interrupt in the middle of a step, ``reset``
    begins anew. A worker that dies is an error of the call that notices it and of every later one; ``close`` works always.

    :param env_or_factories: a factory, a list of factories (one per copy), or an environment; the copies of the latter
        are all built in the workers, and it is itself never stepped
    :param n_copies: number of copies of the team; taken from a list's length
    :param n_workers: number of processes; as many as there are CPUs, but no more than copies, when omitted
    :param pad: whether agents may have different spaces
    :param seed: copy ``c`` is first reset with ``seed + c``; drawn from NumPy's global generator when omitted
    :param start_method: of :mod:`multiprocessing`; ``forkserver`` where there is one, else ``spawn``, when omitted
    :param patience: seconds, > 0, that ``close`` gives the workers to close their environments before it ends them, and
        that ``reset`` waits for the answers to a step that was interrupted
    :raises ValueError: if the numbers of copies or workers are wrong, or the team is unsuitable, or cannot be pickled
    """

    def __init__(
        self,
        env_or_factories: Any,
        n_copies: int = 1,
        *,
        n_workers: int | None = None,
        pad: bool = True,
        seed: int | None = None,
        start_method: str | None = None,
        patience: float = 5.0,
    ) -> None:
        n_copies = _count_copies(env_or_factories, n_copies)
        if n_workers is not None:
            COUNT.check("n_workers", n_workers)
        if not patience > 0:
            raise ValueError(f"`patience` must be a positive number of seconds, got {patience}")
        n_workers = min(n_copies, n_workers or _n_cpus())
        bounds = [n_copies * worker // n_workers for worker in range(n_workers + 1)]
        self._shares = [range(start, stop) for start, stop in itertools.pairwise(bounds)]
        self._patience = patience
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        # Workers from whom an answer is due, and those with whom no more can be exchanged, with the reason.
        self._awaited: set[int] = set()
        self._lost: dict[int, str] = {}
        self._in_step = False
        # Runs when this object is closed, is garbage, or when the interpreter ends; never in a forked child.
        ends = (self._pipes, self._processes, self._awaited, self._lost)
        self._end_workers = Finalize(self, _end_workers, (*ends, _GARBAGE_TIMEOUT), exitpriority=10)
        try:
            self._start(env_or_factories, pad, start_method)
            greetings: list[Greeting] = self._receive(range(n_workers))
            for share, greeting in zip(self._shares, greetings, strict=True):
                if greeting.team != greetings[0].team:
                    raise ValueError(
                        f"copies 0 and {share[0]} differ in their agents or spaces; make all factories build one team"
                    )
            self._writer = ObservationWriter(greetings[0].team)
            super().__init__(greetings[0].team, n_copies, greetings[0].metadata, seed)
        except BaseException:
            self.close()
            raise

    def _start(self, env_or_factories: Any, pad: bool, start_method: str | None) -> None:
        if start_method is None:
            start_method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        context: Any = mp.get_context(start_method)
        if start_method == "forkserver":
            # The server imports the package once; otherwise every worker would spend seconds on it.
            context.set_forkserver_preload(["__main__", __name__])
        payloads = [_payload(env_or_factories, share, pad) for share in self._shares]
        for worker, payload in enumerate(payloads):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            # A forked process inherits all of our ends so far, and would keep them open for the others.
            inherited = list(self._pipes) if start_method == "fork" else []
            process = context.Process(target=work, args=(theirs, inherited, payload), daemon=True)
            self._processes.append(process)
            process.start()
            theirs.close()
            self._awaited.add(worker)

    def reset(self) -> VecEnvObs:
        """
        Start a new episode in every copy.

        :return: observations, one row per slot
        :raises ValueError: if observations contradict their spaces, or copies play the same random stream
        :raises RuntimeError: if the environment is closed, or a worker is lost, or does not answer after an interrupt
        """
        self._require_open()
        self._settle()
        seeds, options = self._take_seeds()
        replies = self._ask(
            {
                worker: ("reset", (seeds[share[0] : share[-1] + 1], options[share[0] : share[-1] + 1]))
                for worker, share in enumerate(self._shares)
            }
        )
        observations = self._writer.empty(self.num_envs)
        fingerprints: list[str | None] = []
        for share, (rows, infos, active, prints) in zip(self._shares, replies, strict=True):
            start, stop = self._slots(share)
            self._writer.assign(observations, start, stop, rows)
            self.reset_infos[start:stop] = infos
            self.agent_active = _with_rows(self.agent_active, share, active)
            fingerprints += prints
        if not self._has_reset:
            check_distinct_streams(fingerprints)
        self._has_reset, self._pending, self._in_step = True, None, False
        return observations  # type: ignore[no-any-return]

    def _settle(self) -> None:
        """Let the workers finish what an interrupt left them with, and forget their answers."""
        deadline = time.monotonic() + self._patience
        for worker in sorted(self._awaited):
            if not self._poll(worker, max(0.0, deadline - time.monotonic())):
                raise RuntimeError(
                    f"worker {worker} is still busy {self._patience} s after it was interrupted; call `reset` again later, or "
                    "`close`"
                )
            self._take_answer(worker)

    def step_async(self, actions: Array) -> None:
        """
        Send the actions to the workers, which start at once.

        :param actions: one row per slot in the padded action space; rows of absent agents are ignored
        :raises ValueError: if a shape is wrong, or an action is not in its agent's own space
        :raises RuntimeError: if a step is already under way, or was interrupted, or the environment is closed
        """
        pending = self._read_actions(actions)
        rows = np.asarray(actions)
        self._require_idle()
        if self._in_step:
            raise RuntimeError("the last step failed or was interrupted, so that copies are out of step; call `reset`")
        self._in_step = True
        self._send({worker: ("step", rows[slice(*self._slots(share))]) for worker, share in enumerate(self._shares)})
        self._pending = pending

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for the workers.

        :return: observations, rewards (float32), dones (bool) and infos, one row each per slot
        :raises RuntimeError: without a preceding :meth:`step_async`, or if a worker is lost
        """
        self._take_pending()
        observations = self._writer.empty(self.num_envs)
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        dones = np.zeros(self.num_envs, dtype=np.bool_)
        infos: list[dict[str, Any]] = []
        replies = self._receive(range(len(self._shares)))
        for share, (rows, their_rewards, their_dones, their_infos, change) in zip(self._shares, replies, strict=True):
            start, stop = self._slots(share)
            self._writer.assign(observations, start, stop, rows)
            rewards[start:stop], dones[start:stop] = their_rewards, their_dones
            infos += their_infos
            if change is not None:
                active, self.reset_infos[start:stop] = change
                self.agent_active = _with_rows(self.agent_active, share, active)
        self._in_step = False
        return observations, rewards, dones, infos

    def _slots(self, share: range) -> tuple[int, int]:
        return share[0] * self.n_agents, (share[-1] + 1) * self.n_agents

    def _call_copies(self, method: str, copies: Sequence[int], *args: Any, **kwargs: Any) -> dict[int, Any]:
        messages = {}
        for worker, share in enumerate(self._shares):
            wanted = [copy - share[0] for copy in copies if copy in share]
            if wanted:
                messages[worker] = ("copies", (method, wanted, args, kwargs))
        replies = zip(messages, self._ask(messages), strict=True)
        return {self._shares[worker][0] + copy: value for worker, reply in replies for copy, value in reply.items()}

    # ------------------------------------------------------------------ messages
    # A worker has at most one message to answer. It leaves `_awaited` as it answers, so that whatever interrupts the
    # parent, and wherever, it is known from whom an answer is due. A message that was cut in half makes its worker lost.

    def _ask(self, messages: Mapping[int, tuple[str, Any]]) -> list[Any]:
        self._send(messages)
        return self._receive(messages)

    def _require_idle(self) -> None:
        self._require_open()
        for worker, reason in self._lost.items():
            raise RuntimeError(f"worker {worker} {reason}; close this environment and make a new one")
        if self._awaited:
            raise RuntimeError("the workers are busy with a step: call `step_wait`, or `reset` if the step was interrupted")

    def _send(self, messages: Mapping[int, tuple[str, Any]]) -> None:
        """
        Send one message each to some of the workers.

        :raises RuntimeError: if the environment is closed, a worker is lost, or answers are due
        """
        self._require_idle()
        # What cannot be pickled is noticed before anybody has been told anything.
        payloads = {worker: cloudpickle.dumps(message) for worker, message in messages.items()}
        for worker, payload in payloads.items():
            # A worker that is gone is reported when its reply is due.
            with self._transfer(worker):
                self._awaited.add(worker)
                self._pipes[worker].send_bytes(payload)

    @contextlib.contextmanager
    def _transfer(self, worker: int) -> Iterator[None]:
        """Whatever breaks off a message makes its worker lost; only the death of a worker is no exception."""
        self._lost[worker] = "was interrupted in the middle of a message"
        try:
            yield
        except (EOFError, OSError):
            process = self._processes[worker]
            process.join(1)
            self._lost[worker] = f"ended with exit code {process.exitcode}"
            self._awaited.discard(worker)
        else:
            del self._lost[worker]

    def _poll(self, worker: int, timeout: float | None = None) -> bool:
        """Wait until a worker answers or dies, without taking anything from its pipe."""
        pipe, process = self._pipes[worker], self._processes[worker]
        return worker in self._lost or bool(wait([pipe, process.sentinel], timeout))

    def _take_answer(self, worker: int) -> tuple[bool, Any]:
        """Take the answer that :meth:`_poll` has announced: whether it is an error, and its content."""
        if worker not in self._lost:
            with self._transfer(worker):
                # Of a dead worker, whose pipe others may hold open, only what it has sent in time is read.
                if not self._pipes[worker].poll(0):
                    raise EOFError
                payload = self._pipes[worker].recv_bytes()
                self._awaited.discard(worker)
        if worker in self._lost:
            return True, (None, f"worker {worker} {self._lost[worker]}")
        try:
            answer: tuple[bool, Any] = pickle.loads(payload)
        except Exception as error:
            return True, (None, f"worker {worker} sent what cannot be unpickled here ({error!r})")
        return answer

    def _receive(self, workers: Iterable[int]) -> list[Any]:
        """Receive the replies of these workers, and raise the first error only after all have answered."""
        answers = []
        for worker in workers:
            self._poll(worker)
            answers.append(self._take_answer(worker))
        for is_error, value in answers:
            if is_error:
                payload, text = value
                if payload is None:
                    raise RuntimeError(f"a worker process failed: {text}")
                raise cloudpickle.loads(payload) from WorkerTraceback(text)
        return [value for _, value in answers]

    def __reduce__(self) -> Any:
        # Before anything of it is copied: a half-made copy would close the pipes that it shares with the original.
        raise TypeError(
            f"a {type(self).__name__} has processes of its own and cannot be copied or pickled; save the model, which leaves "
            "the environment out, or make a second environment"
        )

    def close(self) -> None:
        """
        Close every copy and end the workers; closing twice does nothing.

        Returns within ``patience``, give or take a second: workers that are stuck, or stopped, are ended by force.
        """
        self._closed = True
        if self._end_workers.still_active():
            self._end_workers.cancel()
            _end_workers(self._pipes, self._processes, self._awaited, self._lost, self._patience)


def _end_workers(
    pipes: Sequence[Connection], processes: Sequence[Any], awaited: set[int], lost: dict[int, str], timeout: float
) -> None:
    """Ask the workers to end, and then make them; nothing here waits without bound."""
    running = [process for process in processes if process.pid is not None]
    try:
        for worker, pipe in enumerate(pipes):
            # Only an idle worker's pipe is known to have room. The others see that their pipe is closed.
            if worker not in awaited and worker not in lost:
                with contextlib.suppress(OSError):
                    pipe.send_bytes(cloudpickle.dumps(("close", None)))
            with contextlib.suppress(OSError):
                pipe.close()
        _wait_for_end(running, timeout)
    finally:
        # A stopped process notices a termination only once it goes on, hence the kill.
        for end, seconds in (("terminate", 0.2), ("kill", 5.0)):
            alive = [process for process in running if process.is_alive()]
            for process in alive:
                getattr(process, end)()
            _wait_for_end(alive, seconds)


def _wait_for_end(processes: Sequence[Any], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


def _payload(env_or_factories: Any, share: range, pad: bool) -> bytes:
    is_list = isinstance(env_or_factories, list | tuple)
    part = [env_or_factories[copy] for copy in share] if is_list else env_or_factories
    try:
        payload: bytes = cloudpickle.dumps((part, len(share), pad))
    except Exception as error:
        raise ValueError(
            f"`env_or_factories` cannot be pickled ({error}), which sending it to another process needs; pass a factory, as "
            "in `lambda: MyEnv(...)`, instead"
        ) from error
    return payload


def _n_cpus() -> int:
    # A container may own fewer processors than the machine has; not every system can tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count_copies(env_or_factories: Any, n_copies: int) -> int:
    if isinstance(env_or_factories, list | tuple):
        if not env_or_factories or n_copies not in (1, len(env_or_factories)):
            raise ValueError(
                f"`env_or_factories` has {len(env_or_factories)} entries but `n_copies` is {n_copies}; leave it out"
            )
        return len(env_or_factories)
    COUNT.check("n_copies", n_copies)
    return n_copies


def _with_rows(active: Array, share: range, rows: Array) -> Array:
    changed = active.copy()
    changed[share[0] : share[-1] + 1] = rows
    return changed
