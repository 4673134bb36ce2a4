"""Tables of results, as Markdown."""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


def show_tables(parts: Sequence[str | Table], args: argparse.Namespace) -> None:
    """
    Print what a command found, under the command itself, and keep it where ``--tables`` says.

    :param parts: tables and other Markdown, in this order
    :param args: with ``command``, what makes them again, and ``tables``
    """
    shown = (each.markdown() if isinstance(each, Table) else each.strip("\n") for each in parts)
    text = "\n\n".join([f"`{args.command}`", *shown]) + "\n"
    print(text)
    write_text(text, args.tables)


def write_text(text: str, path: Path | None) -> None:
    """
    Keep what was printed.

    :param text: Markdown
    :param path: the file; its folder is made, and nothing is written when it is ``None``
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def student_half_width(values: np.ndarray) -> Any:
    """
    Half of Student's 95 % interval of the mean over the first axis.

    :param values: shape ``(n_seeds, ...)``
    :return: shape ``(...)``; zero where there is one seed
    """
    n = len(values)
    return student_t.ppf(0.975, n - 1) * values.std(0, ddof=1) / math.sqrt(n) if n > 1 else np.zeros_like(values[0])


def mean_and_interval(values: Sequence[float] | np.ndarray, form: str = ".2f") -> str:
    """
    :param values: one of each seed
    :param form: how to write numbers
    :return: their mean, half of Student's 95 % interval of it where there are several, and their range
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) == 1:
        return f"{x[0]:{form}}"
    half = student_half_width(x)
    return f"{x.mean():{form}} ± {half:{form}} ({x.min():{form}} to {x.max():{form}})"


@dataclass(frozen=True)
class Interval:
    """
    :param mean: of the seeds
    :param low: lower end of Student's 95 % interval of it; the mean where there is one seed
    :param high: upper end
    """

    mean: float
    low: float
    high: float

    def text(self, form: str = ".3f") -> str:
        """The mean, and the interval in brackets."""
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


def student_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """
    :param values: one of each seed
    :return: their mean with Student's 95 % interval
    """
    x = np.asarray(values, dtype=np.float64)
    mean, half = float(x.mean()), float(student_half_width(x))
    return Interval(mean, mean - half, mean + half)


def paired_verdict(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> tuple[Interval, str]:
    """
    One rule of evidence for every claim: the interval of the differences seed by seed, and on which side of zero it is.

    :param first: one of each seed
    :param second: the same seeds of what it is compared with
    :return: the difference, first less second; and "ahead", "behind", or "not told apart" where the interval holds zero
    :raises ValueError: if the numbers of seeds differ
    """
    x, y = (np.asarray(each, dtype=np.float64) for each in (first, second))
    if x.shape != y.shape:
        raise ValueError(f"`first` and `second` must be of the same seeds, got {len(x)} and {len(y)}")
    found = student_interval(x - y)
    if len(x) == 1:
        return found, "one seed"
    return found, "ahead" if found.low > 0 else "behind" if found.high < 0 else "not told apart"


def paired_table(
    values: Mapping[str, np.ndarray], reference: str, measures: Mapping[str, str], n_seeds: int, *, title: str
) -> Table:
    """
    One method less each of the others, seed by seed.

    :param values: by label, one row a seed and one column a measure
    :param reference: the label of the one
    :param measures: names of the columns, and how to write a difference of each
    :param n_seeds: how many there should be: where two methods have all of them, the seeds are the same
    :param title: of the table
    :return: differences with Student's 95 % intervals, and what they say of the reference
    """
    table = Table(title, ("compared with", *measures))
    for label, found in values.items():
        if label == reference:
            continue
        if len(values[reference]) == len(found) == n_seeds:
            verdicts = (paired_verdict(*pair) for pair in zip(values[reference].T, found.T, strict=True))
            cells = [f"{x.text(form)}: {said}" for (x, said), form in zip(verdicts, measures.values(), strict=True)]
        else:
            cells = ["not all seeds are finished"] * len(measures)
        table.rows.append((label, *cells))
    return table


@contextmanager
def one_thread() -> Iterator[None]:
    """Measure on one thread of torch, and leave the number as it was."""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(threads)
