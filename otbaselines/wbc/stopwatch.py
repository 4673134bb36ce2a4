"""How much of an iteration one part of it took, by the clock of the device that does the work."""

import time
from typing import Any, Self

import torch as th


class Stopwatch:
    """
    Times what is done inside ``with watch``, as a share of what was done since :meth:`restart`.

    Work on a GPU goes on while the host has long moved on, so that there the device's own events are the clock; they are
    read once, in :meth:`share`.

    :param device: where the work is done
    """

    def __init__(self, device: th.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forget everything and start anew."""
        self._parts: list[tuple[Any, Any]] = []
        self._start = self._now()

    def __enter__(self) -> Self:
        self._entered = self._now()
        return self

    def __exit__(self, *exception: object) -> None:
        self._parts.append((self._entered, self._now()))

    def share(self) -> float:
        """:return: share of the parts in the time since the restart, in [0, 1]"""
        now = self._now()
        if self._device.type == "cuda":
            now.synchronize()
        parts = sum(self._between(*part) for part in self._parts)
        return parts / max(self._between(self._start, now), 1e-9)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = th.cuda.Event(enable_timing=True)
        event.record(th.cuda.current_stream(self._device))
        return event

    def _between(self, start: Any, end: Any) -> float:
        return float(end - start if self._device.type != "cuda" else 1e-3 * start.elapsed_time(end))
