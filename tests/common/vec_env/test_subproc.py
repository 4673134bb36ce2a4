"""Faults of worker processes, and interrupts of the process that owns them: nothing hangs, and nothing is left behind."""

import contextlib
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from toy_teams import DiceEnv

from otbaselines.common.vec_env.make import make_vec_env
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.common.vec_env.subproc import SubprocParallelVecEnv, WorkerTraceback
from otbaselines.ippo import IPPO

# A spawned worker imports everything anew, so that kind is tried with fewer faults.
START_METHODS = ("fork", "forkserver", "spawn")
ZEROS = np.zeros((4, 2), np.float32)


class TiringEnv(DiceEnv):
    """Interrupts the process ``alarms``, sleeps ``nap`` seconds and fails at step ``fails_at`` of an episode."""

    nap, fails_at, extra, alarms = 0.0, None, None, None

    def step(self, actions):
        if self.alarms is not None:
            # By now its owner is waiting for the answer.
            time.sleep(0.1)
            os.kill(self.alarms, signal.SIGINT)
            self.alarms = None
        time.sleep(self.nap)
        if self.t + 1 == self.fails_at:
            raise LookupError("the dice are lost")
        result = super().step(actions)
        if self.extra is not None:
            result[4]["left"]["extra"] = self.extra
        return result

    def take_lock(self):
        self.extra = threading.Lock()


class LockedEnv(TiringEnv):
    """Cannot be pickled."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.fixture(autouse=True)
def _interruptible():
    """Some runners of tests ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def workers(start_method="fork", patience=5.0):
    """Two copies in a process each; whatever happens, no process is left, and closing takes no longer than promised."""
    venv = SubprocParallelVecEnv(TiringEnv, 2, n_workers=2, seed=0, start_method=start_method, patience=patience)
    try:
        venv.reset()
        yield venv
    finally:
        start = time.monotonic()
        venv.close()
        assert time.monotonic() - start < patience + 3.0
        assert_gone(venv._processes)


def assert_gone(processes):
    assert not any(process.is_alive() for process in processes)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def interrupt(venv, call):
    """Ctrl-C for this process alone, in the middle of a step."""
    venv.set_attr("alarms", os.getpid(), indices=[2])
    with pytest.raises(KeyboardInterrupt):
        call()


def assert_in_step(venv):
    """From a fresh seed on, the numbers are those of one process."""
    serial = ParallelVecEnv(TiringEnv, 2, seed=3)
    venv.seed(3)
    np.testing.assert_array_equal(venv.reset(), serial.reset())
    for _ in range(5):
        for mine, other in zip(venv.step(ZEROS)[:3], serial.step(ZEROS)[:3], strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("start_method", START_METHODS)
def test_faults_and_interrupts_leave_the_workers_in_step(start_method):
    with workers(start_method) as venv:
        # An exception inside one worker: the other has stepped, so that a reset is due.
        venv.set_attr("fails_at", 1, indices=[2])
        with pytest.raises(LookupError, match="the dice are lost") as caught:
            venv.step(ZEROS)
        assert isinstance(caught.value.__cause__, WorkerTraceback)
        with pytest.raises(RuntimeError, match=r"copies are out of step; call `reset`"):
            venv.step(ZEROS)
        venv.set_attr("fails_at", None)
        assert_in_step(venv)
        # Something that cannot be pickled, on the way there and on the way back.
        with pytest.raises(TypeError, match="cannot pickle"):
            venv.set_attr("extra", threading.Lock())
        with pytest.raises(AttributeError, match="tuple_iterator"):
            venv.set_attr("extra", type(iter(())))
        venv.env_method("take_lock", indices=[2])
        with pytest.raises(TypeError, match="cannot pickle"):
            venv.step(ZEROS)
        venv.set_attr("extra", None)
        assert_in_step(venv)
        # A second step before the first is done.
        venv.step_async(ZEROS)
        with pytest.raises(RuntimeError, match="already under way; call `step_wait`"):
            venv.step_async(ZEROS)
        with pytest.raises(RuntimeError, match="the workers are busy with a step"):
            venv.get_attr("nap")
        venv.step_wait()
        assert_in_step(venv)
        # Ctrl-C in the middle of a step.
        venv.set_attr("nap", 0.2)
        interrupt(venv, lambda: venv.step(ZEROS))
        with pytest.raises(RuntimeError, match=r"busy with a step: .* `reset` if the step was interrupted"):
            venv.step(ZEROS)
        venv.reset()
        venv.set_attr("nap", 0.0)
        assert_in_step(venv)


@pytest.mark.parametrize("start_method", START_METHODS)
def test_closing_returns_though_one_worker_is_stopped_and_another_dead(start_method):
    with workers(start_method, patience=0.5) as venv:
        venv.set_attr("alarms", os.getpid(), indices=[2])
        os.kill(venv._processes[0].pid, signal.SIGSTOP)
        with pytest.raises(KeyboardInterrupt):
            venv.step(ZEROS)
        os.kill(venv._processes[1].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"worker 0 is still busy 0\.5 s after it was interrupted"):
            venv.reset()


def test_workers_leave_ctrl_c_to_the_process_that_owns_them():
    with workers() as venv:
        for nap in (0.0, 0.3):
            venv.set_attr("nap", nap)
            venv.step_async(ZEROS)
            for process in venv._processes:
                os.kill(process.pid, signal.SIGINT)
            venv.step_wait()
        venv.set_attr("nap", 0.0)
        assert_in_step(venv)


def test_closing_ends_a_worker_that_is_stuck_in_a_step():
    with workers(patience=0.3) as venv:
        venv.set_attr("nap", 1000.0, indices=[0])
        interrupt(venv, lambda: venv.step(ZEROS))


def test_an_interrupt_while_closing_ends_the_workers_at_once():
    with workers(patience=30.0) as venv:
        venv.set_attr("nap", 1000.0, indices=[0])
        interrupt(venv, lambda: venv.step_async(ZEROS) or venv.close())
        assert_gone(venv._processes)


@pytest.mark.parametrize("method", ["step", "reset", "get_attr"])
def test_every_call_reports_a_worker_that_was_killed(method):
    call = {"step": lambda v: v.step(ZEROS), "reset": lambda v: v.reset(), "get_attr": lambda v: v.get_attr("nap")}[method]
    with workers() as venv:
        os.kill(venv._processes[1].pid, signal.SIGKILL)
        venv._processes[1].join()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="worker 1 ended with exit code -9"):
                call(venv)


def test_a_worker_that_is_killed_in_the_middle_of_a_step_is_noticed_then():
    with workers() as venv:
        venv.set_attr("nap", 1000.0, indices=[2])
        threading.Timer(0.1, os.kill, (venv._processes[1].pid, signal.SIGKILL)).start()
        with pytest.raises(RuntimeError, match="worker 1 ended with exit code -9"):
            venv.step(ZEROS)


def test_a_message_that_an_interrupt_cut_in_half_is_reported_at_once(monkeypatch):
    with workers() as venv:
        venv.step_async(ZEROS)
        receive = type(venv._pipes[0]).recv_bytes
        monkeypatch.setattr(type(venv._pipes[0]), "recv_bytes", lambda pipe: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            venv.step_wait()
        monkeypatch.setattr(type(venv._pipes[0]), "recv_bytes", receive)
        with pytest.raises(RuntimeError, match=r"worker 0 was interrupted in the middle of a message; close this"):
            venv.reset()


def test_garbage_takes_its_stopped_workers_along():
    venv = SubprocParallelVecEnv(TiringEnv, 2, n_workers=2, start_method="fork")
    processes = venv._processes
    os.kill(processes[0].pid, signal.SIGSTOP)
    start = time.monotonic()
    del venv
    gc.collect()
    assert time.monotonic() - start < 4.0
    assert_gone(processes)


SCRIPT = """
import os, signal
from toy_teams import DiceEnv
from otbaselines.common.vec_env.subproc import SubprocParallelVecEnv

venv = SubprocParallelVecEnv(DiceEnv, 2, n_workers=2, start_method="fork")
venv.reset()
os.kill(venv._processes[0].pid, signal.SIGSTOP)
print(*(process.pid for process in venv._processes), flush=True)
"""


def test_the_interpreter_ends_though_a_worker_is_stopped_and_nobody_closed():
    tests = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    path = os.pathsep.join([tests, *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, timeout=60, env=environment, check=True)
    for pid in done.stdout.split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_what_cannot_be_pickled_is_refused_by_name_before_any_process_starts():
    with pytest.raises(ValueError, match=r"`env_or_factories` cannot be pickled .* pass a factory"):
        SubprocParallelVecEnv(LockedEnv(), 2, start_method="fork")
    with pytest.raises(ValueError, match="`patience` must be a positive number of seconds, got 0"):
        SubprocParallelVecEnv(LockedEnv, 2, patience=0)


def test_training_goes_on_after_an_interrupt_in_the_middle_of_a_step():
    with workers() as venv:
        model = IPPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, seed=0).learn(32)
        interrupt(venv, lambda: model.learn(320, reset_num_timesteps=False))
        before = model.num_timesteps
        model.learn(32, reset_num_timesteps=False)
        assert model.num_timesteps == before + 32


# ---------------------------------------------------------------------- closed environments


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_it_is_not_copied_and_lives_on(take):
    env = make_vec_env("otbaselines/Navigation-v0", 2, seed=0, backend="subproc")
    model = IPPO("MlpPolicy", env, n_steps=8, batch_size=24, seed=0)
    for thing in (env, *([] if take is copy.copy else [model])):
        with pytest.raises(TypeError, match="has processes of its own and cannot be copied or pickled"):
            take(thing)
    gc.collect()
    model.learn(env.num_envs * 8)
    env.close()


@pytest.mark.parametrize("make", [ParallelVecEnv, lambda env, n: SubprocParallelVecEnv(env, n, start_method="fork")])
def test_a_closed_environment_says_so(make):
    venv = make(TiringEnv, 2)
    model = IPPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1)
    venv.reset()
    venv.close(), venv.close()
    for call in (venv.reset, lambda: venv.step(ZEROS), lambda: model.learn(32)):
        with pytest.raises(RuntimeError, match="the environment is closed"):
            call()
