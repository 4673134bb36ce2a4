"""
This code beside that of another checkout: ``python -m zoo.benchmark --beside DIR``.

Two processes live side by side and work in turns, so that both meet the same moments of the machine.
"""

import json
import os
import statistics
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from zoo.benchmarks import work
from zoo.drawing.tables import Table

SECONDS = 0.2


class Worker:
    """
    A process that works with the code of one checkout.

    :param folder: the checkout
    :raises ValueError: if it does not hold the package, or an older one than can be asked
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "otbaselines").is_dir():
            raise ValueError(f"`--beside` must be a checkout with the folder otbaselines, got {folder}")
        self._process = subprocess.Popen(
            # Without the script's own folder on the path, only what the checkout holds.
            [sys.executable, "-P", work.__file__],
            env={**os.environ, "PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.names: list[str] = self._answer()
        except BaseException:
            self.close()
            raise

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError("the code of a checkout could not do its work; what it said is above")
        return json.loads(line)

    def rate(self, name: str, seconds: float) -> float:
        """
        :param name: of a piece of work
        :param seconds: CPU seconds that it is repeated for
        :return: how much of it a CPU second was enough for
        :raises ValueError: if the process has ended
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, seconds]) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def beside_table(other: Path, *, quick: bool = False, rounds: int = 9) -> Table:
    """
    :param other: the checkout with the other code
    :param quick: three pieces of work, once
    :param rounds: turns of each piece
    :return: what a CPU second does with either code, and the ratio
    :raises ValueError: if ``other`` is no checkout, or its code fails
    """
    with closing(Worker(Path(__file__).parents[2])) as ours, closing(Worker(other)) as theirs:
        names = ours.names[-3:] if quick else ours.names
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for turn in range(1 if quick else rounds):
            for name in names:
                # Whoever comes second finds the machine a little warmer.
                order = (ours, theirs) if turn % 2 else (theirs, ours)
                found = {worker: worker.rate(name, 0.0 if quick else SECONDS) for worker in order}
                rates[name].append((found[ours], found[theirs]))
    table = Table(
        "This code beside that of another checkout, in turns: what a CPU second of one thread was enough for",
        ("work", "unit", "there", "here", "here / there, median (range)"),
    )
    for name, pairs in rates.items():
        unit = "agent-steps" if name.startswith(("IPPO", "WBC")) else "env-steps" if name.startswith("steps") else "calls"
        here, there = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratios = [ours / theirs for ours, theirs in pairs]
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.2f}-{max(ratios):.2f})"
        table.rows.append((name, unit, _four_digits(there), _four_digits(here), spread))
    return table


def _four_digits(rate: float) -> str:
    return f"{float(f'{rate:.4g}'):,.10g}"
