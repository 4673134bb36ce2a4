"""
The tables of the comparisons on cooperative navigation, and their one rule of evidence.

A method is ahead of another where Student's 95 % interval of the difference, seed by seed, is above zero; where it holds zero,
the two are not told apart, whatever their means are.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from zoo.drawing.tables import Table, paired_table, student_interval
from zoo.runs.comparison import Array


class NavigationRun(Protocol):
    """What the tables need of a run; of rewards per agent and step."""

    @property
    def rewards(self) -> Array: ...
    @property
    def evaluation(self) -> Array: ...
    @property
    def random(self) -> Array: ...
    @property
    def walker(self) -> Array: ...
    @property
    def cpu_seconds(self) -> float: ...


MEASURES = {
    "training, whole curve": lambda run: run.rewards.mean(),
    "training, last 10 rollouts": lambda run: run.rewards[-10:].mean(),
    "evaluation": lambda run: run.evaluation.mean(),
}


def measures(seeds: Sequence[NavigationRun]) -> Array:
    """
    :param seeds: runs of one method
    :return: one row a seed, one column of :data:`MEASURES` each
    """
    return np.array([[float(measure(run)) for measure in MEASURES.values()] for run in seeds])


def evidence_tables(runs: Mapping[str, Sequence[NavigationRun]], *, n_seeds: int) -> list[Table]:
    """
    :param runs: by label; the first method is the one that the others are compared with
    :param n_seeds: how many there should be: where a method has all of them, the seeds are the same
    :return: means with intervals and gaps to the references; paired differences of the first method from the others
    """
    every = [run for seeds in runs.values() for run in seeds]
    low, high = (
        float(np.mean([each.mean() for each in found])) for found in ([r.random for r in every], [r.walker for r in every])
    )
    columns = ("method", "seeds", *MEASURES, "evaluation: over random", "below the greedy walker", "CPU seconds per run")
    table = Table("", columns)
    for label, seeds in runs.items():
        values = measures(seeds)
        cells = [student_interval(column).text() for column in values.T]
        gaps = (f"{values[:, -1].mean() - low:.3f}", f"{high - values[:, -1].mean():.3f}")
        table.rows.append((label, str(len(seeds)), *cells, *gaps, f"{np.mean([run.cpu_seconds for run in seeds]):.0f}"))
    table.rows.append(("greedy walker, blind to collisions", "-", "-", "-", f"{high:.3f}", f"{high - low:.3f}", "0.000", "-"))
    table.rows.append(("uniformly random", "-", "-", "-", f"{low:.3f}", "0.000", f"{high - low:.3f}", "-"))
    first = next(iter(runs))
    pairs = paired_table(
        {label: measures(seeds) for label, seeds in runs.items()},
        first,
        dict.fromkeys(MEASURES, "+.3f"),
        n_seeds,
        title=f"{first} less the others, seed by seed: mean with Student's 95 % interval, and what it says of {first}",
    )
    return [table, pairs] if pairs.rows else [table]
