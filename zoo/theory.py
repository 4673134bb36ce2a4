"""
The theorems of the WBC paper (Baheri 2025), measured: ``python -m zoo.theory contraction`` and ``python -m zoo.theory rate``.

Theorem 3.1, that consensus without rewards contracts the team geometrically, is measured by
:mod:`zoo.papers.wbc.contraction`; Theorem 3.2, the error of a barycenter of samples, by :mod:`zoo.papers.wbc.concentration`.
``python -m zoo.theory supports`` shows what consensus on the agents' own states does (:mod:`zoo.papers.wbc.own_support`).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from zoo.config.command import make_parser, mistakes, number, shown_command
from zoo.drawing.tables import Table, one_thread, show_tables
from zoo.papers.wbc.concentration import rate
from zoo.papers.wbc.contraction import contraction
from zoo.papers.wbc.own_support import supports

#: Measurement, its usual number of seeds and what it shows; each takes the command line and returns its tables.
THEOREMS: dict[str, tuple[Callable[[argparse.Namespace], list[Table]], int, str]] = {
    "contraction": (contraction, 5, "Theorem 3.1: disagreement falls geometrically"),
    "rate": (rate, 10, "Theorem 3.2: the error of a barycenter of m samples falls like 1 / m"),
    "supports": (supports, 3, "what consensus on the agents' own states does to their policies"),
}


def parser_of_theorems() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = make_parser("zoo.theory", "Measure the theorems of the WBC paper.")
    theorems = parser.add_subparsers(required=True, metavar="THEOREM")
    for name, (measure, n_seeds, text) in THEOREMS.items():
        theorem = theorems.add_parser(name, help=text, allow_abbrev=False)
        # The spread over the seeds is part of the result.
        theorem.add_argument("--seeds", type=number(2), default=n_seeds, help="seeds 0 .. SEEDS - 1")
        theorem.add_argument("--quick", action="store_true", help="a small part, to see that everything runs")
        theorem.add_argument("--out", type=Path, default=Path("docs/_static"), help="folder of the figure")
        theorem.add_argument("--tables", type=Path, default=None, help="write the tables to this file as well")
        theorem.set_defaults(measure=measure)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``, that of the process when omitted."""
    parser = parser_of_theorems()
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    args.command = shown_command("zoo.theory", argv)
    with mistakes(parser):
        args.out.mkdir(parents=True, exist_ok=True)
    with one_thread():
        tables = args.measure(args)
    show_tables(tables, args)


if __name__ == "__main__":
    main()
