"""
Gradient steps per CPU second of learners on recorded data: BC, IQL and QDOT, and d3rlpy's IQL where a Python has it.

All have data of Hopper's size, batches of 256 and two layers of 256, and take turns. ``python -m zoo.benchmark --only
offline``; for d3rlpy's row, ``OTBASELINES_D3RLPY`` names the Python of an environment with d3rlpy, whose pins fit beside no
others.
"""

import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from otbaselines import BC, IQL, QDOT, OfflineDataset
from zoo.drawing.tables import Table

D3RLPY = "OTBASELINES_D3RLPY"
OBSERVATIONS, ACTIONS = 11, 3
SCRIPT = Path(__file__).parent / "d3rlpy_iql.py"


def recorded(n: int = 20_000, horizon: int = 100) -> OfflineDataset:
    """
    Random data of Hopper's size.

    :param n: transitions
    :param horizon: steps of an episode
    :return: the data
    """
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(n + 1, OBSERVATIONS)).astype(np.float32)
    return OfflineDataset(
        observations[:-1],
        rng.uniform(-1, 1, (n, ACTIONS)),
        rng.normal(size=n),
        observations[1:],
        np.zeros(n, bool),
        np.arange(1, n + 1) % horizon == 0,
        action_space=spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32),
        name="random data of Hopper's size",
    )


def contenders(data: OfflineDataset) -> dict[str, Callable[[], Any]]:
    """
    :param data: what they learn from
    :return: by name, what makes each
    """

    def make(algorithm: type, **options: Any) -> Callable[[], Any]:
        return lambda: algorithm("MlpPolicy", dataset=data, seed=0, device="cpu", **options)

    return {
        "IQL": make(IQL),
        "QDOT": make(QDOT),
        "QDOT, map off": make(QDOT, alpha=math.inf),
        "BC": make(BC),
    }


def d3rlpy_rate(python: str, data: Path, steps: int) -> float | None:
    """
    :param python: of an environment with d3rlpy
    :param data: a file
    :param steps: gradient steps that are timed
    :return: gradient steps per CPU second; None where there is no d3rlpy, which is said
    """
    command = [python, str(SCRIPT), "--dataset", str(data), "--steps", str(steps), "--warm-up", str(steps // 10)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""})
        return float(json.loads(done.stdout.splitlines()[-1])["steps_per_cpu_second"])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as error:
        said = getattr(error, "stderr", None) or str(error)
        print(f"d3rlpy's row is left out: {python!r} could not run it ({said.strip().splitlines()[-1]})", flush=True)
        return None


def offline_table(*, quick: bool) -> Table:
    """
    :param quick: few steps, to see that everything runs
    :return: the table
    """
    steps, rounds = (5, 2) if quick else (150, 7)
    data = recorded(2_000 if quick else 20_000)
    models = {name: make().learn(5, log_interval=None) for name, make in contenders(data).items()}
    rates: dict[str, list[float]] = {name: [] for name in models}
    python = os.environ.get(D3RLPY)
    if python is None:
        print(f"d3rlpy's row is left out: {D3RLPY} names no Python that has it", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        data.save(file)
        for _ in range(rounds):
            for name, model in models.items():
                start = time.process_time()
                model.learn(steps, log_interval=None, reset_num_timesteps=False)
                rates[name].append(steps / (time.process_time() - start))
            if python is not None:
                rate = d3rlpy_rate(python, file, steps)
                python = None if rate is None else python
                rates.setdefault("d3rlpy's IQL", []).extend([] if rate is None else [rate])
    reference = statistics.median(rates["IQL"])
    table = Table(
        f"gradient steps per CPU second, {OBSERVATIONS} observations, {ACTIONS} actions, batches of 256, two layers of 256, "
        f"median of {rounds} rounds in turns",
        ("learner", "gradient steps per CPU second", "range", "beside our IQL"),
    )
    for name, found in rates.items():
        if found:
            middle = statistics.median(found)
            table.rows.append((name, f"{middle:.1f}", f"{min(found):.1f} to {max(found):.1f}", f"{middle / reference:.2f}"))
    return table
