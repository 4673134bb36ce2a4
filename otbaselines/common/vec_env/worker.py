"""What runs in a worker process of :class:`~otbaselines.common.vec_env.subproc.SubprocParallelVecEnv`."""

import contextlib
import random
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import numpy as np

from otbaselines.common.vec_env.copies import stream_fingerprint
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.common.vec_env.spaces import TeamSpaces


@dataclass(frozen=True)
class Greeting:
    """What a worker says of its copies once it has built them."""

    team: TeamSpaces
    metadata: dict[str, Any]


def work(pipe: Connection, inherited: Sequence[Connection], payload: bytes) -> None:
    """
    Build a share of the copies and obey the parent until it says ``close`` or is gone.

    :param pipe: where messages come from and answers go
    :param inherited: the parent's ends of pipes, which this process must not keep open
    :param payload: the pickled environment or factories, number of copies, and whether spaces are padded
    """
    # Ctrl-C reaches every process of a terminal; what is to be done about it is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for parents_end in inherited:
        parents_end.close()
    try:
        env, n_copies, pad = cloudpickle.loads(payload)
        venv = ParallelVecEnv(env, n_copies, pad=pad)
        answer = cloudpickle.dumps((False, Greeting(venv._team, venv.metadata)))
    except Exception as error:
        pipe.send_bytes(_failure(error))
        return
    # The pipe breaks when the parent is gone, or has closed it because it no longer waits.
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(answer)
            message = pipe.recv_bytes()
            try:
                command, argument = cloudpickle.loads(message)
                if command == "close":
                    break
                answer = cloudpickle.dumps((False, _obey(venv, command, argument)))
            except Exception as error:
                answer = _failure(error)
    venv.close()


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
    method, copies, args, kwargs = argument
    return venv._call_copies(method, copies, *args, **kwargs)


def _failure(error: Exception) -> bytes:
    try:
        payload = cloudpickle.dumps(error)
        cloudpickle.loads(payload)
    except Exception:
        # What cannot be pickled is still reported, by its traceback.
        payload = None
    answer: bytes = cloudpickle.dumps((True, (payload, traceback.format_exc())))
    return answer
