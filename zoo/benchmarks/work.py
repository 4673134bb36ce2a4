"""
Work that the code of two checkouts can be asked to do, one piece at a time: what :mod:`zoo.benchmarks.beside` starts.

Run as a script with a checkout on Python's path. It uses the package alone, and of that what older code has too.
It prints the names of the pieces, and then for every name that it reads how often a CPU second sufficed for it.
"""

import inspect
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th

from otbaselines import IPPO, WBC, make_vec_env, ot

# What to call again and again, and how much of the unit is done by a call.
Work = tuple[Callable[[], Any], int]

SPREAD = "otbaselines/SimpleSpread-v0"
TENSOR = {SPREAD: "native spread", "otbaselines/Navigation-v0": "Navigation"}


def _training(
    algorithm: Any, *, n_agents: int = 3, n_copies: int = 80, env: str = SPREAD, backend: str = "tensor", **options: Any
) -> Work:
    """An iteration: five passes over ten minibatches, of 2,000 joint steps or one episode of every copy."""
    n_steps = max(25, 2000 // n_copies)
    rollout = n_steps * n_copies * n_agents
    env_kwargs = {"N": n_agents, "max_cycles": 25} if backend == "parallel" else {"N": n_agents}
    venv = make_vec_env(env, n_copies, seed=0, backend=backend, env_kwargs=env_kwargs)
    sizes = {"n_steps": n_steps, "batch_size": rollout // 10, "n_epochs": 5, "policy_kwargs": {"net_arch": [64, 64]}}
    model = algorithm("MlpPolicy", venv, seed=0, device="cpu", **sizes, **options)
    # Schedules stay where they begin: annealed consensus costs nothing at the end.
    vars(model)["_update_current_progress_remaining"] = lambda num_timesteps, total_timesteps: None
    return partial(model.learn, rollout, reset_num_timesteps=False), rollout


def _wbc(**options: Any) -> Work:
    # Older code takes the size of the support as an argument of its own, and has another default.
    takes_it = "n_support" in inspect.signature(WBC.__init__).parameters
    size: dict[str, Any] = {"n_support": 64} if takes_it else {"estimator_kwargs": {"n_support": 64}}
    return _training(WBC, **options, **size)


def _steps(env: str, n_copies: int) -> Work:
    venv: Any = make_vec_env(env, n_copies, seed=0, backend="tensor")
    actions = th.randint(5, (25, venv.n_copies, venv.n_agents), generator=th.Generator().manual_seed(0))
    venv.reset_tensor()
    return lambda: [venv.step_tensor(row) for row in actions], 25 * n_copies


def _histograms(n_agents: int, n_bins: int) -> tuple[th.Tensor, th.Tensor]:
    """Measures on random points, nearly half of their bins empty, and the cost over its median."""
    generator = th.Generator().manual_seed(0)
    points = th.rand(n_bins, 2, generator=generator, dtype=th.float64)
    drawn = th.randint(n_bins, (n_agents, 4 * n_bins // 5), generator=generator)
    counts = th.zeros(n_agents, n_bins, dtype=th.float64).scatter_add_(1, drawn, th.ones_like(drawn).double())
    cost = ot.pairwise(points)
    return counts / counts.sum(1, keepdim=True), cost / cost.median()


def _barycenter(n_agents: int, n_bins: int, reg: float) -> Work:
    measures, cost = _histograms(n_agents, n_bins)
    return partial(ot.barycenter, measures, cost, reg=reg, tol=1e-6), 1


def _pairs() -> Work:
    return partial(ot.pairwise_sinkhorn, *_histograms(8, 512), reg=0.1, tol=1e-6), 1


def _sliced() -> Work:
    points = th.randn(32, 1024, 4, generator=th.Generator().manual_seed(0), dtype=th.float64)
    return partial(ot.sliced_pairwise, points, n_projections=50, seed=0), 1


def _exact(metric: str) -> Work:
    generator = th.Generator().manual_seed(0)
    p, q = th.randn(2, 2048, 5, generator=generator, dtype=th.float64).softmax(-1)
    cost = ot.pairwise(th.randn(5, 1 if metric == "line" else 2, generator=generator, dtype=th.float64))
    return partial(ot.discrete_w1, p, q, 1 - th.eye(5, dtype=th.float64) if metric == "0/1" else cost), 1


def pieces() -> dict[str, Callable[[], Work]]:
    """:return: what makes each piece of work ready, by its name"""
    found: dict[str, Callable[[], Work]] = {
        "IPPO, mpe2, 16 copies": partial(_training, IPPO, n_copies=16, env="mpe2/simple_spread_v3", backend="parallel"),
        "IPPO, shared parameters, 80 copies": partial(_training, IPPO, share_parameters=True),
    }
    sizes: list[dict[str, Any]] = [*({"n_copies": n} for n in (16, 80, 1024)), *({"n_agents": n} for n in (8, 16, 32))]
    for size in sizes:
        where = f"N = {size['n_agents']}" if "n_agents" in size else f"{size['n_copies']:,} copies"
        found[f"IPPO, {where}"] = partial(_training, IPPO, **size)
        found[f"WBC, {where}"] = partial(_wbc, **size)
    for env, label in TENSOR.items():
        for n_copies in (80, 1024, 16384):
            found[f"steps of {label}, {n_copies:,} copies"] = partial(_steps, env, n_copies)
    for problem in ((3, 128, 0.1), (3, 512, 0.1), (8, 512, 0.1), (8, 512, 0.01), (32, 1024, 0.1)):
        found["barycenter of {} x {}, reg {}".format(*problem)] = partial(_barycenter, *problem)
    found["Sinkhorn divergences of all pairs of 8 x 512"] = _pairs
    found["sliced W1 of all pairs of 32"] = _sliced
    for metric in ("plane", "line", "0/1"):
        found[f"exact W1 of 2,048 x 5, {metric}"] = partial(_exact, metric)
    return found


def main() -> None:
    """Do what is asked for on the standard input: a name and the least CPU seconds a line."""
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    # Libraries greet on the standard output when they are imported.
    answers, sys.stdout = sys.stdout, sys.stderr
    makers, ready = pieces(), dict[str, Work]()
    print(json.dumps(list(makers)), file=answers, flush=True)
    for line in sys.stdin:
        name, seconds = json.loads(line)
        if name not in ready:
            ready[name] = makers[name]()
            ready[name][0]()
        call, amount = ready[name]
        n_calls, start = 0, time.process_time()
        while n_calls == 0 or time.process_time() - start < seconds:
            call()
            n_calls += 1
        print(json.dumps(n_calls * amount / (time.process_time() - start)), file=answers, flush=True)


if __name__ == "__main__":
    main()
