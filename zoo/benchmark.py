"""
Every speed that the documentation quotes: ``python -m zoo.benchmark`` (``make benchmark``).

Prints Markdown tables: training throughput against Stable-Baselines3's PPO on SuperSuit, its growth with the team and the
number of copies, the cost of consensus and of trust regions, learners on recorded data and from replay buffers, the
transport layer against POT, the fusion of rewards, and the environments alone.
All are medians over rounds in which the contenders take turns, in CPU seconds of one thread. ``--beside`` takes the code of
another checkout for the other contender; ``--device cuda`` measures training on a GPU instead, in wall time.
"""

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from zoo.benchmarks import transport
from zoo.benchmarks.beside import beside_table
from zoo.benchmarks.device import device_table
from zoo.benchmarks.fusion import fusion_table
from zoo.benchmarks.off_policy import off_policy_table
from zoo.benchmarks.offline import offline_table
from zoo.benchmarks.rounds import rounds_table
from zoo.benchmarks.throughput import consensus_tables, environment_table, growth_table, throughput_table
from zoo.config import command
from zoo.drawing.tables import Table, one_thread, write_text

PACKAGES = ("torch", "numpy", "stable-baselines3", "supersuit", "pettingzoo", "mpe2", "POT")

SECTIONS: dict[str, Callable[[bool], list[Table]]] = {
    "throughput": lambda quick: [throughput_table(quick=quick)],
    "growth": lambda quick: [growth_table(quick=quick)],
    "consensus": lambda quick: consensus_tables(quick=quick),
    "rounds": lambda quick: [rounds_table(quick=quick)],
    "offline": lambda quick: [offline_table(quick=quick)],
    "off-policy": lambda quick: [off_policy_table(quick=quick)],
    "transport": lambda quick: transport.run(quick),
    "fusion": lambda quick: [fusion_table(quick=quick)],
    "env": lambda quick: [environment_table(quick=quick)],
}


def processor() -> str:
    """The CPU's model, as Linux knows it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def provenance(command: str) -> str:
    """
    What the numbers depend on, without naming the machine.

    :param command: that produced them
    :return: a paragraph
    """
    libraries = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"`{command}`, {datetime.date.today().isoformat()}; {processor()}, one thread; "
        f"Python {platform.python_version()}, {libraries}."
    )


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = command.make_parser("zoo.benchmark", "Measure speed, print Markdown tables.")
    parser.add_argument("--quick", action="store_true", help="tiny problems, to see that everything runs")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=None, help="some of the tables")
    parser.add_argument("--device", type=command.device, default=None, help="measure training on this device instead")
    parser.add_argument("--beside", type=Path, default=None, help="measure this code and that of another checkout in turns")
    parser.add_argument("--out", type=Path, default=None, help="write the tables to this file as well")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``, that of the process when omitted."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.device is not None and args.only is not None:
        parser.error("--device measures training on one device and has no sections; leave out --only")
    if args.beside is not None and (args.device is not None or args.only is not None):
        parser.error("--beside measures two checkouts on the CPU and has no sections; leave out --device and --only")
    if args.out is not None:
        with command.mistakes(parser):
            args.out.parent.mkdir(parents=True, exist_ok=True)
            if args.out.is_dir():
                raise ValueError(f"`--out` must be a file, but {args.out} is a folder")
    start = time.process_time()
    with one_thread(), command.mistakes(parser, traceback=args.beside is None):
        text = _measure(args)
    if args.beside is None:
        print(f"Took {time.process_time() - start:.0f} CPU seconds.")
    write_text(text, args.out)


def _measure(args: argparse.Namespace) -> str:
    """Print every table as soon as it is there, and return them all."""
    options = [f"--only {' '.join(args.only)}"] if args.only else []
    options += [f"--device {args.device}"] if args.device else []
    # The folder is the reader's own business.
    options += ["--beside DIR"] if args.beside else []
    options += ["--quick"] if args.quick else []
    text = provenance(" ".join(["python -m zoo.benchmark", *options])) + "\n"
    print(text, flush=True)
    sections = [SECTIONS[name] for name in args.only or SECTIONS]
    if args.device is not None:
        sections = [lambda quick: [device_table(args.device, quick=quick)]]
    if args.beside is not None:
        sections = [lambda quick: [beside_table(args.beside, quick=quick)]]
    for section in sections:
        for table in section(args.quick):
            print(table.markdown(), end="\n\n", flush=True)
            text += f"\n{table.markdown()}\n"
    return text


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":
        # NumPy reads it when it is imported. Its threads spin while they wait, which would count as CPU time.
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "zoo.benchmark", *sys.argv[1:]])
    main()
