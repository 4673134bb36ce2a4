"""Tables of what teams earned."""

from collections.abc import Mapping, Sequence

import numpy as np

from zoo.drawing.tables import Table, mean_and_interval
from zoo.runs.played import PlayedBesideRandom, PlayedResult


def returns_table(task: str, runs: Mapping[str, Sequence[PlayedResult]]) -> Table:
    """
    Compare learners by what their teams earned, and by what that cost.

    :param task: for the title
    :param runs: of all seeds by learner
    :return: mean, Student's interval and range over the seeds
    """
    table = Table(
        f"{task}, return per agent and episode, mean ± half of Student's 95 % interval (range) over the seeds",
        ("learner", "seeds", "most probable actions", "sampled actions", "CPU s per run", "agent-steps per CPU s"),
    )
    for label, seeds in runs.items():
        returns = np.array([(run.evaluation.mean(), run.sampled.mean()) for run in seeds]).T
        seconds = float(np.median([run.cpu_seconds for run in seeds]))
        rate = seeds[0].timesteps[-1] / seconds
        cells = (mean_and_interval(each) for each in returns)
        table.rows.append((label, str(len(seeds)), *cells, f"{seconds:.0f}", f"{rate:,.0f}"))
    random = [run.random.mean() for seeds in runs.values() for run in seeds if isinstance(run, PlayedBesideRandom)]
    if random:
        table.rows.append(("uniformly random", "-", "-", f"{np.mean(random):.2f}", "-", "-"))
    return table
