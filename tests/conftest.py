"""What every test needs: one thread, a random stream of its own, and the small environments of other tests."""

import os
import signal
import sys
from pathlib import Path

# Small networks are slower on several threads, and the tests run beside each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import numpy as np
import pytest
import torch as th

HERE = Path(__file__).parent
sys.path.append(str(HERE))

th.set_num_threads(1)

# A shell that starts the tests in the background lets them ignore interrupts, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fixed_random_streams():
    """No test depends on which tests ran before it."""
    np.random.seed(0)  # noqa: NPY002
    th.manual_seed(0)
