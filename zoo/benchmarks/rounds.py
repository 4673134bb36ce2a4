"""
What one round of a trust-region method costs a team, by its size and by its parts.

A round of n agents is n updates, one after the other, each over the whole rollout, and one fit of the critics. Run by
``python -m zoo.benchmark --only rounds``.
"""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from otbaselines import HATRPO, WMATRPO
from zoo.benchmarks.device import Clock
from zoo.benchmarks.throughput import SPREAD, at_the_start
from zoo.drawing.tables import Table
from zoo.runs.job import Job

PARTS = ("rollout", "critics", "direction", "fit", "check", "rest")
#: What is watched: methods of the learner, and functions in the learner's module.
METHODS: dict[type, dict[str, str]] = {
    HATRPO: {"collect_rollouts": "rollout", "_fit_critics": "critics"},
    WMATRPO: {
        "collect_rollouts": "rollout",
        "_before_round": "critics",
        "_fit_critics": "critics",
        "_transport": "direction",
        "_follow_transport": "fit",
        "_descend_lagrangian": "fit",
    },
}
FUNCTIONS: dict[type, dict[str, str]] = {
    HATRPO: {"natural_step": "direction", "backtrack": "check"},
    WMATRPO: {"backtrack": "check"},
}
#: Joint steps of the critics' minibatches, as in the entry for three agents.
MINIBATCH = 200


def learner(algorithm: type, n_agents: int, *, quick: bool = False) -> Any:
    """
    A learner with the zoo's entry for simple_spread, for any number of agents.

    :param algorithm: ``HATRPO`` or ``WMATRPO``
    :param n_agents: N
    :param quick: a tenth of the rollout
    :return: the model
    """
    size = {"n_envs": 4, "n_steps": 50} if quick else {"n_envs": 16, "n_steps": 125}
    changes = {**size, "batch_size": MINIBATCH * n_agents, "env_kwargs": {"N": n_agents}}
    job = Job.read(algorithm.__name__.lower(), SPREAD, overrides=changes, seed=0, folder=Path(), name="rounds")
    return at_the_start(job.build())


@contextmanager
def watched(model: Any) -> Iterator[Clock]:
    """
    Time the parts of a learner's rounds, from outside.

    :param model: what :func:`learner` returned; it times itself ever after
    """
    clock, module = Clock(model.device), sys.modules[type(model).__module__]
    for name, part in METHODS[type(model)].items():
        clock.watch(part, model, name)
    originals = {name: getattr(module, name) for name in FUNCTIONS[type(model)]}
    try:
        for name, part in FUNCTIONS[type(model)].items():
            clock.watch(part, module, name)
        yield clock
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def round_seconds(model: Any, clock: Clock) -> dict[str, float]:
    """
    One round.

    :param model: a learner that has been watched
    :param clock: that of :func:`watched`
    :return: CPU seconds by the names of :data:`PARTS`; they sum to the whole round
    """
    clock.reset()
    start = time.process_time()
    model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
    total = time.process_time() - start
    seconds = defaultdict(float, clock.seconds())
    parts = {part: seconds[part] for part in PARTS[:-1]}
    return {**parts, "rest": total - sum(parts.values())}


def rounds_table(*, quick: bool = False, rounds: int = 5) -> Table:
    """
    Seconds and shares of one round, by the number of agents.

    :param quick: small teams and rollouts, one round
    :param rounds: that are timed, after one that warms up; both learners take turns
    :return: the table
    """
    numbers = (2, 3) if quick else (2, 3, 4, 8, 16, 32)
    joint_steps = 200 if quick else 2000
    table = Table(
        f"One round on the native simple_spread: {joint_steps:,} joint steps, net 2x64, ten passes of the critics, one "
        "thread. Direction: HATRPO's natural gradient, WMATRPO's dual; check: the search back along the step",
        ("N", "learner", "CPU-s a round, median (range)", "CPU-s an agent", "agent-steps/CPU-s", *PARTS),
    )
    for n_agents in numbers:
        found = _turns(n_agents, 1 if quick else rounds, quick)
        for algorithm, records in found.items():
            totals = [sum(parts.values()) for parts in records]
            middle = statistics.median(totals)
            shares = {part: statistics.median(parts[part] for parts in records) / middle for part in PARTS}
            has = {*METHODS[algorithm].values(), *FUNCTIONS[algorithm].values(), "rest"}
            table.rows.append(
                (
                    str(n_agents),
                    algorithm.__name__,
                    f"{middle:.2f} ({min(totals):.2f}-{max(totals):.2f})",
                    f"{middle / n_agents:.3f}",
                    f"{joint_steps * n_agents / middle:,.0f}",
                    *(f"{share:.0%}" if part in has else "-" for part, share in shares.items()),
                )
            )
    return table


def _turns(n_agents: int, rounds: int, quick: bool) -> dict[type, list[dict[str, float]]]:
    """The rounds of both learners, which take turns."""
    found: dict[type, list[dict[str, float]]] = {algorithm: [] for algorithm in METHODS}
    with ExitStack() as stack:
        models = [learner(algorithm, n_agents, quick=quick) for algorithm in METHODS]
        clocks = [stack.enter_context(watched(model)) for model in models]
        for turn in range(1 + rounds):
            for model, clock in zip(models, clocks, strict=True):
                seconds = round_seconds(model, clock)
                if turn > 0:  # the first turn warms up
                    found[type(model)].append(seconds)
    for model in models:
        model.get_env().close()
    return found
