"""Shares of time, by the host's clock and by a GPU's."""

import time

import pytest
import torch as th

from otbaselines.wbc import stopwatch
from otbaselines.wbc.stopwatch import Stopwatch


def test_a_share_is_that_of_the_parts_since_the_restart(monkeypatch):
    # Restart at 10; parts from 11 to 13 and from 16 to 17; read at 20: three of ten.
    ticks = iter([0.0, 10.0, 11.0, 13.0, 16.0, 17.0, 20.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(ticks))
    watch = Stopwatch(th.device("cpu"))
    watch.restart()
    for _ in range(2):
        with watch:
            pass
    assert watch.share() == pytest.approx(0.3)


def test_a_part_that_raises_is_counted_and_raises():
    watch = Stopwatch(th.device("cpu"))
    with pytest.raises(KeyError), watch:
        raise KeyError
    assert 0.0 < watch.share() < 1.0


class _Event:
    """A CUDA event: its time is known once the device has reached it, which somebody must have waited for."""

    clock, waited, synchronised = 0.0, -1.0, 0

    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self, stream):
        assert stream == "the device's stream"
        self.time = _Event.clock

    def synchronize(self):
        _Event.waited, _Event.synchronised = self.time, _Event.synchronised + 1

    def elapsed_time(self, end):
        assert end.time <= _Event.waited, "read before the device was there"
        return 1e3 * (end.time - self.time)


def test_a_gpu_is_timed_by_its_events_which_are_waited_for_once(monkeypatch):
    monkeypatch.setattr(th.cuda, "Event", _Event)
    monkeypatch.setattr(th.cuda, "current_stream", lambda device: "the device's stream")
    watch = Stopwatch(th.device("cuda", 0))
    for start, end in ((1.0, 2.0), (5.0, 7.0)):
        _Event.clock = start
        with watch:
            _Event.clock = end
    _Event.clock = 12.0
    assert watch.share() == pytest.approx(0.25)
    assert _Event.synchronised == 1


@pytest.mark.gpu
@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
def test_work_that_the_host_does_not_wait_for_is_counted_on_a_gpu():
    device = th.device("cuda")
    matrix = th.randn(4096, 4096, device=device)
    watch = Stopwatch(device)
    started = time.perf_counter()
    with watch:
        for _ in range(50):
            matrix = matrix @ matrix.clamp(-1e-3, 1e-3)
    # The host is done long before the device; all that the device did since the restart was inside.
    assert time.perf_counter() - started < 0.5
    assert watch.share() > 0.8
