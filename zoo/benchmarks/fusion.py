"""
What one fusion of rewards costs the server, by the number of clients and of lattice points.

Run by ``python -m zoo.benchmark --only fusion``. Every cell is a process of its own, whose peak of memory is then its own too.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines.fedirl.features import RBFFeatures, rbf_features
from otbaselines.fedirl.fusion import lattice_cost
from otbaselines.fedirl.multigrid import barycenter
from zoo.drawing.tables import Table

#: Clients, and points along each of three axes.
CELLS = ((2, 10), (10, 10), (100, 10), (1000, 10), (6, 22), (100, 22), (6, 46), (20, 46), (6, 100))
QUICK = ((2, 5), (3, 6))
#: Marginal error to stop at, and that of a million points, where an iteration takes seconds.
TOL, LARGEST_TOL = 1e-4, 1e-3
N_FEATURES = 64


def rewards_on(features: RBFFeatures, thetas: th.Tensor, side: int) -> th.Tensor:
    """
    :param features: of two coordinates and an action
    :param thetas: of the clients, shape ``(N, k)``
    :param side: points along each axis
    :return: rewards on the grid, shape ``(N, side ** 3)``
    """
    axes = [th.linspace(float(low), float(high), side) for low, high in zip(features.low, features.high, strict=True)]
    points = th.cartesian_prod(*axes)
    # The table of features, k numbers a point, is never held as a whole.
    rows = [features(part[:, :2], part[:, 2:]) @ thetas.T for part in points.split(100_000)]
    return th.cat(rows).T.contiguous()


def measure(n_clients: int, side: int) -> dict[str, float]:
    """
    One cell, in this process.

    :param n_clients: N
    :param side: points along each axis
    :return: CPU seconds, iterations, marginal error, and megabytes at the peak and before
    """
    th.set_num_threads(1)
    box = spaces.Box(-1.0, 1.0, (2,), np.float64)
    features = rbf_features(box, spaces.Box(-1.0, 1.0, (1,), np.float64), n_centers=N_FEATURES)
    rng = np.random.default_rng(0)
    thetas = th.as_tensor(rng.normal(size=N_FEATURES) + 0.3 * rng.normal(size=(n_clients, N_FEATURES)))
    rewards = rewards_on(features, thetas, side)
    low, high = map(float, th.aminmax(rewards))
    measures = rewards.add_(0.01 * (high - low) - low)
    measures /= measures.sum(-1, keepdim=True)
    before, start = _peak(), time.process_time()
    tol = LARGEST_TOL if side >= 100 else TOL
    solved = barycenter(measures, lattice_cost([side] * 3), reg=0.5, tol=tol)
    seconds = time.process_time() - start
    return {
        "seconds": seconds,
        "iterations": solved.n_iter,
        "error": float(solved.error),
        "peak": _peak(),
        "before": before,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fusion_table(*, quick: bool = False) -> Table:
    """
    :param quick: tiny lattices
    :return: seconds and memory of one barycenter
    """
    table = Table(
        "One barycenter of the clients' rewards on a cube, reg 0.5 lattice spacings squared, debiased, tolerance 1e-4 "
        "(1e-3 for a million points), float64, one thread; 64 radial basis functions. Memory is that of the whole process, "
        "before and at its peak",
        ("clients", "lattice points", "CPU-s", "iterations on the finest grid", "error", "MB before", "MB peak"),
    )
    for n_clients, side in QUICK if quick else CELLS:
        command = [sys.executable, "-m", "zoo.benchmarks.fusion", str(n_clients), str(side)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        table.rows.append(
            (
                str(n_clients),
                f"{side**3:,}",
                f"{found['seconds']:.2f}",
                f"{found['iterations']}",
                f"{found['error']:.1e}",
                f"{found['before']:,.0f}",
                f"{found['peak']:,.0f}",
            )
        )
    return table


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
