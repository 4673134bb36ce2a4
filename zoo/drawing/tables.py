"""Tables of results, as Markdown."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch as th
from scipy.stats import t as student_t


@dataclass(frozen=True)
class Table:
    """
    :param title: what was measured, if it is to be said
    :param columns: headings
    :param rows: one tuple of cells each
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        heading = f"**{self.title}**\n\n" if self.title else ""
        return heading + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_tables(text: str, path: Path | None) -> None:
    """
    Keep what was printed.

    :param text: the tables
    :param path: the file; its folder is made, and nothing is written when it is ``None``
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def mean_and_interval(values: Sequence[float] | np.ndarray, form: str = ".2f") -> str:
    """
    :param values: one of each seed
    :param form: how to write numbers
    :return: their mean, half of Student's 95 % interval of it where there are several, and their range
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) == 1:
        return f"{x[0]:{form}}"
    half = student_t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return f"{x.mean():{form}} ± {half:{form}} ({x.min():{form}} to {x.max():{form}})"


@contextmanager
def one_thread() -> Iterator[None]:
    """Measure on one thread of torch, and leave the number as it was."""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(threads)
