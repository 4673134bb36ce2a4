"""Tables of results, as Markdown."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """
    :param title: what was measured
    :param columns: headings
    :param rows: one tuple of cells each
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return f"**{self.title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_tables(text: str, path: Path | None) -> None:
    """
    Keep what was printed.

    :param text: the tables
    :param path: the file; its folder is made, and nothing is written when it is ``None``
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
