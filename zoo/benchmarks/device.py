"""
Training where the environment lives: agent-steps per second, where the time goes, and how often the host waits.

Run by ``python -m zoo.benchmark --device cuda``. On a GPU time is wall time between two synchronisations, and the shares are
measured by CUDA events, so that nothing waits because it is watched. On a CPU the same code runs with CPU seconds.
"""

import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th

from otbaselines import IPPO, WBC
from zoo.benchmarks.throughput import NAVIGATION, SPREAD, Setting, at_the_start, native
from zoo.drawing.tables import Table

PARTS = ("environment", "forward", "transport", "update", "rest")


class Clock:
    """
    Seconds spent in named parts of a program.

    :param device: what computes; CUDA events are used on a GPU, CPU seconds elsewhere
    """

    def __init__(self, device: th.device) -> None:
        self.device = device
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.process_time()
        event = th.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def span(self, part: str) -> Iterator[None]:
        """Count what happens inside to ``part``."""
        start = self._now()
        yield
        self._spans[part].append((start, self._now()))

    def watch(self, part: str, owner: Any, method: str) -> None:
        """
        Count every call of a method to ``part``.

        :param part: name
        :param owner: the object, whose attribute is replaced
        :param method: name of the method
        """
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.span(part):
                return original(*args, **kwargs)

        setattr(owner, method, timed)

    def reset(self) -> None:
        """Forget everything."""
        self._spans.clear()

    def seconds(self) -> dict[str, float]:
        """:return: seconds by part; waits for the device"""
        if self.device.type != "cuda":
            return {part: sum(end - start for start, end in spans) for part, spans in self._spans.items()}
        th.cuda.synchronize(self.device)
        return {part: sum(start.elapsed_time(end) for start, end in spans) / 1e3 for part, spans in self._spans.items()}


def watched(model: Any) -> Clock:
    """
    Time the parts of a learner's iteration.

    :param model: an IPPO or WBC on a ``TensorVecEnv``, not to be saved afterwards
    :return: the clock
    """
    clock = Clock(model.device)
    clock.watch("environment", model.get_env(), "step_tensor")
    # Everything of the rollout that asks the networks: actions, the values of the rollout and of cut-off episodes.
    clock.watch("forward", model.team_policy, "act")
    clock.watch("forward", model, "_rollout_values")
    clock.watch("forward", model, "_bootstrap_on_device")
    if isinstance(model, WBC):
        clock.watch("transport", model._consensus, "prepare")
        clock.watch("transport", model._consensus, "loss")
    clock.watch("train", model, "train")
    return clock


def shares(clock: Clock) -> dict[str, float]:
    """
    Shares of the span ``"total"``.

    :param clock: whose spans are read
    :return: by the names of :data:`PARTS`; they sum to one
    """
    seconds = defaultdict(float, clock.seconds())
    # Transport happens inside of `train`, and is no part of the update here.
    update = seconds["train"] - seconds["transport"]
    parts = {name: seconds[name] for name in ("environment", "forward", "transport")} | {"update": update}
    parts["rest"] = seconds["total"] - sum(parts.values())
    return {name: value / seconds["total"] for name, value in parts.items()}


def count_syncs(model: Any, rollout: int) -> int | None:
    """
    How often one iteration makes the host wait for the device.

    :param model: the learner
    :param rollout: agent-steps per iteration
    :return: the number of synchronising calls; ``None`` on a CPU, which has nothing to wait for
    """
    if model.device.type != "cuda":
        return None
    th.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.learn(rollout, reset_num_timesteps=False)
    finally:
        th.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def iteration_seconds(model: Any, rollout: int) -> float:
    """Seconds of one iteration: wall time between synchronisations on a GPU, CPU seconds elsewhere."""
    if model.device.type != "cuda":
        start = time.process_time()
        model.learn(rollout, reset_num_timesteps=False)
        return time.process_time() - start
    th.cuda.synchronize(model.device)
    start = time.perf_counter()
    model.learn(rollout, reset_num_timesteps=False)
    th.cuda.synchronize(model.device)
    return time.perf_counter() - start


def device_table(device: str, *, quick: bool = False, rounds: int = 5) -> Table:
    """
    IPPO and WBC on both native environments, on one device.

    :param device: ``"cpu"`` or ``"cuda"``
    :param quick: few copies, one round
    :param rounds: iterations that are timed, after one that warms up
    :return: the table
    """
    gpu = th.device(device).type == "cuda"
    unit = "s" if gpu else "CPU-s"
    where = f"one {th.cuda.get_device_name()}" if gpu else "the CPU, one thread"
    table = Table(
        f"Training on {where}: N = 3, rollout of 25 steps a copy, ten minibatches, 5 epochs",
        ("task", "learner", "copies", f"thousand agent-steps/{unit}", *PARTS, "host syncs an iteration"),
    )
    if quick:
        sizes: tuple[int, ...] = (16,)
    else:
        sizes = (4096, 16384, 65536) if gpu else (256, 4096)
    for env in (SPREAD, NAVIGATION):
        for n_copies in sizes:
            for algorithm in (IPPO, WBC):
                row = _device_row(algorithm, env, Setting(n_copies=n_copies), device, 1 if quick else rounds)
                table.rows.append((env.split("/")[1], algorithm.__name__, f"{n_copies:,}", *row))
    return table


def _device_row(algorithm: Any, env: str, setting: Setting, device: str, rounds: int) -> tuple[str, ...]:
    model: Any = at_the_start(native(setting, algorithm, env=env, device=device))
    model.learn(setting.rollout)
    seconds = statistics.median(iteration_seconds(model, setting.rollout) for _ in range(rounds))
    syncs = count_syncs(model, setting.rollout)
    # The shares come from an iteration of their own: what watches it must not slow the ones above.
    clock = watched(model)
    with clock.span("total"):
        model.learn(setting.rollout, reset_num_timesteps=False)
    parts = shares(clock)
    cells = tuple(f"{parts[name]:.0%}" for name in PARTS)
    return (f"{setting.rollout / seconds / 1e3:,.0f}", *cells, "-" if syncs is None else str(syncs))
