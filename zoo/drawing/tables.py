"""Tables of results, as Markdown."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch as th


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


@contextmanager
def one_thread() -> Iterator[None]:
    """Measure on one thread of torch, and leave the number as it was."""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(threads)
