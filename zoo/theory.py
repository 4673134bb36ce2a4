"""
The theorems of the WBC paper (Baheri 2025), measured: ``python -m zoo.theory contraction`` and ``python -m zoo.theory rate``.

Theorem 3.1, that consensus without rewards contracts the team geometrically, is measured by
:mod:`zoo.papers.wbc.contraction`; Theorem 3.2, the error of a barycenter of samples, by :mod:`zoo.papers.wbc.concentration`.
``python -m zoo.theory supports`` shows what consensus on the agents' own states does (:mod:`zoo.papers.wbc.own_support`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch as th

from zoo.drawing.tables import Table, write_tables
from zoo.papers.wbc.concentration import draw_rate, measure_rate, rate_table
from zoo.papers.wbc.contraction import contraction_tables, draw_contraction, measure_contraction
from zoo.papers.wbc.own_support import support_tables


def contraction(args: argparse.Namespace) -> list[Table]:
    """
    Measure and draw Theorem 3.1.

    :param args: the command line
    :return: the tables
    """
    result = measure_contraction(n_seeds=args.seeds, quick=args.quick)
    draw_contraction(result, args.out / "theorem31.png")
    return contraction_tables(result)


def rate(args: argparse.Namespace) -> list[Table]:
    """
    Measure and draw Theorem 3.2.

    :param args: the command line
    :return: the table
    """
    fits = [fit for p in (1.0, 2.0) for fit in measure_rate(p, n_seeds=args.seeds, quick=args.quick)]
    draw_rate(fits, args.out / "theorem32.png")
    return [rate_table(fits)]


def supports(args: argparse.Namespace) -> list[Table]:
    """
    Show what consensus on the agents' own states does.

    :param args: the command line
    :return: the tables
    """
    return support_tables(n_seeds=args.seeds, quick=args.quick)


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m zoo.theory", description="Measure the theorems of the WBC paper.")
    theorems = parser.add_subparsers(required=True, metavar="THEOREM")
    for name, function, n_seeds, text in (
        ("contraction", contraction, 5, "Theorem 3.1: disagreement falls geometrically"),
        ("rate", rate, 10, "Theorem 3.2: the error of a barycenter of m samples falls like 1 / m"),
        ("supports", supports, 3, "what consensus on the agents' own states does to their policies"),
    ):
        theorem = theorems.add_parser(name, help=text)
        theorem.add_argument("--seeds", type=int, default=n_seeds, help="seeds 0 .. SEEDS - 1")
        theorem.add_argument("--quick", action="store_true", help="a small part, to see that everything runs")
        theorem.add_argument("--out", type=Path, default=Path("docs/_static"), help="folder of the figure")
        theorem.add_argument("--tables", type=Path, default=None, help="write the tables to this file as well")
        theorem.set_defaults(run=function)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    :param argv: the arguments; those of the process when omitted
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {args.seeds}: the spread is part of the result")
    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        text = "\n\n".join(table.markdown() for table in args.run(args)) + "\n"
    finally:
        th.set_num_threads(threads)
    print(text)
    write_tables(text, args.tables)


if __name__ == "__main__":
    main()
