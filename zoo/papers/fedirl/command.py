"""``python -m zoo.plots fedirl-paper``: figures and tables of the FedIRL paper, with the controls that it lacks."""

import argparse
from pathlib import Path

from zoo.config.command import check_outputs, mistakes, n_seeds
from zoo.drawing.tables import Table, one_thread, show_tables
from zoo.papers.fedirl import control
from zoo.papers.fedirl.control import TASKS, ControlJob, ControlResult, paired_returns, returns_table
from zoo.papers.fedirl.gridworlds import (
    ASCENT_RATES,
    MODES,
    N_CLIENTS,
    PRINTED,
    WorldsJob,
    WorldsResult,
    finished,
    paired_table,
    table,
)
from zoo.papers.fedirl.maps import draw_maps

FOLDER = "runs/fedirl-paper"
#: Shares of weak clients among ten on the smallest grid: the paper's Table 2.
WEAK_SHARES = (0.0, 0.5)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add = parser.add_argument
    add("--train", action="store_true", help="compute the seeds that do not exist yet")
    add("--seeds", type=n_seeds, default=10, help="seeds 0 .. SEEDS - 1 of every row")
    add("--sizes", type=int, nargs="*", choices=sorted(N_CLIENTS), default=sorted(N_CLIENTS), help="of the grids in Table 1")
    add("--weak", type=float, nargs="*", default=list(WEAK_SHARES), help="shares of weak clients in Table 2")
    add("--tasks", nargs="*", choices=TASKS, default=[], help="of the Gymnasium part, which takes minutes a seed")
    add("--variant", default=None, help="of the control tasks' entries, such as the paper's rate")
    add("--map", type=Path, default=None, help="draw Figure 1, recovered reward maps, to this PNG")
    add("--curves", type=Path, default=None, help="draw the learning curves of the control tasks to this PNG")
    add("--out", default=FOLDER, help="folder for results")
    add("--tables", type=Path, default=None, help="write the tables to this file as well")
    parser.set_defaults(draw=compare)


def compare(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Compute if asked to, and tell every result that is there."""
    folder = Path(args.out)
    with mistakes(parser):
        if any(not 0.0 <= share <= 1.0 for share in args.weak):
            raise ValueError(f"`--weak` must be shares from 0 to 1, got {args.weak}")
        check_outputs(args.map, args.curves)
        if args.train:
            folder.mkdir(parents=True, exist_ok=True)
        with one_thread():
            worlds = _worlds(args, folder)
            tasks = _tasks(args, folder)
            if args.map is not None:
                draw_maps(args.map)
        if not worlds and not tasks and args.map is None:
            raise ValueError(f"there are no results in {args.out!r}; compute them with --train")
    if args.curves is not None:
        if not tasks:
            parser.error("`--curves` needs `--tasks` with results")
        control.draw_curves(tasks, args.curves)
    tables: list[Table] = [each(worlds, mode) for mode in MODES for each in (table, paired_table)] if worlds else []
    for training in (False, True) if tasks else ():
        tables += [returns_table(tasks, training=training), paired_returns(tasks, training=training)]
    show_tables([*tables, *([printed()] if worlds else [])], args)


def _worlds(args: argparse.Namespace, folder: Path) -> dict[str, list[WorldsResult]]:
    """Results on grid worlds, by row."""
    rows: dict[str, tuple[int, int, float, float | None]] = {
        f"{size} x {size}, {N_CLIENTS[size]} clients": (size, N_CLIENTS[size], 0.0, None) for size in args.sizes
    }
    rows |= {f"5 x 5, 10 clients, {share:.0%} weak": (5, 10, share, None) for share in args.weak}
    rows |= {
        f"5 x 5, 10 clients, {share:.0%} weak, gradient ascent at {rate:g}": (5, 10, share, rate)
        for rate in ASCENT_RATES
        for share in args.weak
    }
    results: dict[str, list[WorldsResult]] = {}
    for label, (size, n_clients, share, rate) in rows.items():
        jobs = [WorldsJob(size, n_clients, seed, share, rate) for seed in range(args.seeds)]
        found = [result for job in jobs if (result := finished(job, folder, train=args.train)) is not None]
        if found:
            results[label] = found
    return results


def _tasks(args: argparse.Namespace, folder: Path) -> dict[str, list[ControlResult]]:
    """Results on control tasks, by task."""
    results: dict[str, list[ControlResult]] = {}
    for task in args.tasks:
        jobs = [ControlJob(task, seed, args.variant) for seed in range(args.seeds)]
        found = [result for job in jobs if (result := control.finished(job, folder, train=args.train)) is not None]
        if found:
            results[task] = found
    return results


def printed() -> str:
    """The paper's own figures, in one line for each size."""
    lines = ["The paper's (in-distribution local / mean / barycenter, held-out mean / barycenter):", ""]
    lines += [f"- {size} x {size}: {' / '.join(map(str, values))}" for size, values in PRINTED.items()]
    return "\n".join(lines) + "\n"
