"""``python -m zoo.plots wfpg-paper``: the policy flow with particles, as figures and tables."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from zoo.config.command import count, mistakes, n_seeds
from zoo.drawing.tables import one_thread, show_tables
from zoo.papers.wfpg.figures import draw_flow, draw_maps, draw_orders, draw_paths
from zoo.papers.wfpg.orders import compare, orders_table, times_table
from zoo.papers.wfpg.systems import SYSTEMS

FOLDER = "runs/wfpg-paper"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add = parser.add_argument
    add("--parts", nargs="+", choices=[*PARTS], default=[*PARTS], help="flow: clouds, paths and maps; orders: steps needed")
    add("--systems", nargs="+", choices=[*SYSTEMS], default=[*SYSTEMS], help="on which steps are counted")
    add("--seeds", type=n_seeds, default=5, help="seeds 0 .. SEEDS - 1 of the first particles where steps are counted")
    add("--particles", type=count, default=5, help="actions at each state")
    add("--steps", type=count, default=50, help="most that a walk has where steps are counted")
    add("--out", default=FOLDER, help="folder for figures")
    add("--tables", type=Path, default=None, help="write the tables to this file as well")
    parser.set_defaults(draw=draw)


def draw(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Compute the parts that were asked for, one after the other, on one thread."""
    with mistakes(parser):
        Path(args.out).mkdir(parents=True, exist_ok=True)
    with one_thread():
        texts = [text for part in args.parts if (text := PARTS[part](args))]
    if texts:
        show_tables(texts, args)
    print(f"The figures are in {args.out}")


def flow(args: argparse.Namespace) -> str:
    """Clouds over states, paths of particles, maps of the pendulum's policy: figures only."""
    out = Path(args.out)
    draw_flow(args.particles, 0, out / "wfpg_flow.png")
    draw_paths(args.particles, 0, out / "wfpg_paths.png")
    draw_maps(args.particles, 0, out / "wfpg_pendulum.png")
    return ""


def orders(args: argparse.Namespace) -> str:
    """How many steps of first and second order it takes: a figure and two tables."""
    found = {
        name: compare(SYSTEMS[name], particles=args.particles, seeds=args.seeds, n_steps=args.steps) for name in args.systems
    }
    draw_orders(found, Path(args.out) / "wfpg_orders.png")
    return "\n\n".join([orders_table(found, args.steps).markdown(), times_table(found).markdown()])


#: What the command makes, in this order; each part returns its tables, or nothing.
PARTS: Mapping[str, Callable[[argparse.Namespace], str]] = {"flow": flow, "orders": orders}
