"""Teams stepped in several processes, with the same numbers as in one."""

import contextlib
import itertools
import multiprocessing as mp
import os
import random
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from otbaselines.common.vec_env.copies import check_distinct_streams, stream_fingerprint
from otbaselines.common.vec_env.parallel import ParallelVecEnv, TeamVecEnv
from otbaselines.common.vec_env.rows import ObservationWriter
from otbaselines.common.vec_env.spaces import Array, TeamSpaces


@dataclass(frozen=True)
class _Greeting:
    """What a worker says of its copies once it has built them."""

    team: TeamSpaces
    metadata: dict[str, Any]


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

    :param env_or_factories: a factory, a list of factories (one per copy), or an environment; the copies of the latter
        are all built in the workers, and it is itself never stepped
    :param n_copies: number of copies of the team; taken from a list's length
    :param n_workers: number of processes; as many as there are CPUs, but no more than copies, when omitted
    :param pad: whether agents may have different spaces
    :param seed: copy ``c`` is first reset with ``seed + c``; drawn from NumPy's global generator when omitted
    :param start_method: of :mod:`multiprocessing`; ``forkserver`` where there is one, else ``spawn``, when omitted
    :raises ValueError: if the numbers of copies or workers are wrong, or the team is unsuitable
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
    ) -> None:
        self._closed = True
        self._awaited: list[int] = []
        n_copies = _count_copies(env_or_factories, n_copies)
        if n_workers is not None and n_workers < 1:
            raise ValueError(f"`n_workers` must be at least 1, got {n_workers}")
        n_workers = min(n_copies, n_workers or _n_cpus())
        bounds = [n_copies * worker // n_workers for worker in range(n_workers + 1)]
        self._shares = [range(start, stop) for start, stop in itertools.pairwise(bounds)]
        self._start(env_or_factories, pad, start_method)
        try:
            greetings: list[_Greeting] = self._receive()
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
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._closed = False
        for share in self._shares:
            given = env_or_factories
            part = [given[copy] for copy in share] if isinstance(given, list | tuple) else given
            ours, theirs = context.Pipe()
            payload = cloudpickle.dumps((part, len(share), pad))
            process = context.Process(target=_work, args=(theirs, ours, payload), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._awaited = list(range(len(self._pipes)))

    def reset(self) -> VecEnvObs:
        """
        Start a new episode in every copy.

        :return: observations, one row per slot
        :raises ValueError: if observations contradict their spaces, or copies play the same random stream
        """
        if self._awaited:
            self._receive()
        seeds, options = self._take_seeds()
        self._send(
            {
                worker: ("reset", (seeds[share[0] : share[-1] + 1], options[share[0] : share[-1] + 1]))
                for worker, share in enumerate(self._shares)
            }
        )
        observations = self._writer.empty(self.num_envs)
        fingerprints: list[str | None] = []
        for share, (rows, infos, active, prints) in zip(self._shares, self._receive(), strict=True):
            start, stop = self._slots(share)
            self._writer.assign(observations, start, stop, rows)
            self.reset_infos[start:stop] = infos
            self.agent_active = _with_rows(self.agent_active, share, active)
            fingerprints += prints
        if not self._has_reset:
            check_distinct_streams(fingerprints)
        self._has_reset, self._pending = True, None
        return observations  # type: ignore[no-any-return]

    def step_async(self, actions: Array) -> None:
        """
        Send the actions to the workers, which start at once.

        :param actions: one row per slot in the padded action space; rows of absent agents are ignored
        :raises ValueError: if a shape is wrong, or an action is not in its agent's own space
        """
        self._pending = self._read_actions(actions)
        rows = np.asarray(actions)
        self._send({worker: ("step", rows[slice(*self._slots(share))]) for worker, share in enumerate(self._shares)})

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for the workers.

        :return: observations, rewards (float32), dones (bool) and infos, one row each per slot
        """
        self._take_pending()
        observations = self._writer.empty(self.num_envs)
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        dones = np.zeros(self.num_envs, dtype=np.bool_)
        infos: list[dict[str, Any]] = []
        for share, (rows, their_rewards, their_dones, their_infos, change) in zip(self._shares, self._receive(), strict=True):
            start, stop = self._slots(share)
            self._writer.assign(observations, start, stop, rows)
            rewards[start:stop], dones[start:stop] = their_rewards, their_dones
            infos += their_infos
            if change is not None:
                active, self.reset_infos[start:stop] = change
                self.agent_active = _with_rows(self.agent_active, share, active)
        return observations, rewards, dones, infos

    def _slots(self, share: range) -> tuple[int, int]:
        return share[0] * self.n_agents, (share[-1] + 1) * self.n_agents

    def _call_copies(self, method: str, copies: Sequence[int], *args: Any, **kwargs: Any) -> dict[int, Any]:
        if self._awaited:
            raise RuntimeError("the workers are busy with a step; call `step_wait` before asking for anything else")
        messages = {}
        for worker, share in enumerate(self._shares):
            wanted = [copy - share[0] for copy in copies if copy in share]
            if wanted:
                messages[worker] = ("copies", cloudpickle.dumps((method, wanted, args, kwargs)))
        self._send(messages)
        replies = zip(messages, self._receive(), strict=True)
        return {self._shares[worker][0] + copy: value for worker, reply in replies for copy, value in reply.items()}

    def _send(self, messages: Mapping[int, tuple[str, Any]]) -> None:
        """Send one message each to some of the workers."""
        for worker, message in messages.items():
            # A worker that is gone is reported when its reply is due.
            with contextlib.suppress(OSError):
                self._pipes[worker].send(message)
        self._awaited = list(messages)

    def _receive(self) -> list[Any]:
        """Receive the replies that are due, and raise the first error only after all have answered."""
        values: list[Any] = []
        errors: list[tuple[bytes | None, str]] = []
        for worker in self._awaited:
            try:
                is_error, value = self._pipes[worker].recv()
            except (EOFError, OSError):
                process = self._processes[worker]
                process.join(1)
                is_error, value = True, (None, f"worker {worker} ended with exit code {process.exitcode}")
            (errors if is_error else values).append(value)
        self._awaited = []
        if errors:
            payload, text = errors[0]
            if payload is None:
                raise RuntimeError(f"a worker process failed: {text}")
            raise cloudpickle.loads(payload) from WorkerTraceback(text)
        return values

    def close(self) -> None:
        """Close every copy and end the workers; closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        for worker, pipe in enumerate(self._pipes):
            with contextlib.suppress(OSError, EOFError):
                if worker in self._awaited:
                    pipe.recv()
                pipe.send(("close", None))
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            process.join(10)
            if process.is_alive():
                process.terminate()
                process.join()
            pipe.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


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
    if n_copies < 1:
        raise ValueError(f"`n_copies` must be at least 1, got {n_copies}")
    return n_copies


def _with_rows(active: Array, share: range, rows: Array) -> Array:
    changed = active.copy()
    changed[share[0] : share[-1] + 1] = rows
    return changed


def _work(pipe: Connection, parents_end: Connection, payload: bytes) -> None:
    """Build a share of the copies and obey the parent until it says ``close`` or is gone."""
    parents_end.close()
    venv: ParallelVecEnv | None = None
    try:
        env, n_copies, pad = cloudpickle.loads(payload)
        venv = ParallelVecEnv(env, n_copies, pad=pad)
        pipe.send((False, _Greeting(venv._team, venv.metadata)))
    except Exception as error:
        pipe.send(_failure(error))
    while True:
        try:
            command, argument = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            break
        if command == "close" or venv is None:
            break
        try:
            pipe.send((False, _obey(venv, command, argument)))
        except Exception as error:
            pipe.send(_failure(error))
    if venv is not None:
        venv.close()
    pipe.close()


def _obey(venv: ParallelVecEnv, command: str, argument: Any) -> Any:
    if command == "step":
        active = venv.agent_active
        reply = venv.step(argument)
        return (*reply, None if venv.agent_active is active else (venv.agent_active, venv.reset_infos))
    if command == "reset":
        seeds, options = argument
        if seeds[0] is not None:
            # For environments that draw from the global generators, which every process has for itself.
            np.random.seed(seeds[0] % 2**32)  # noqa: NPY002
            random.seed(seeds[0])
        venv._seeds = [seed for seed in seeds for _ in range(venv.n_agents)]
        venv._options = [given or {} for given in options for _ in range(venv.n_agents)]
        observations = venv.reset()
        return observations, venv.reset_infos, venv.agent_active, [stream_fingerprint(env) for env in venv.envs]
    method, copies, args, kwargs = cloudpickle.loads(argument)
    return venv._call_copies(method, copies, *args, **kwargs)


def _failure(error: Exception) -> tuple[bool, tuple[bytes | None, str]]:
    try:
        payload = cloudpickle.dumps(error)
        cloudpickle.loads(payload)
    except Exception:
        # What cannot be pickled is still reported, by its traceback.
        payload = None
    return True, (payload, traceback.format_exc())
