"""The table and the figure of the comparison on recorded data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from zoo.datasets.references import reference
from zoo.drawing.curves import STYLE, confidence_band, save
from zoo.drawing.tables import Table, mean_and_interval
from zoo.papers.qdot.runs import OfflineResult

Runs = Mapping[tuple[str, str], Sequence[OfflineResult]]


def scores_table(runs: Runs) -> Table:
    """
    :param runs: of all seeds, by data and method
    :return: normalised returns after training, what the curve looked like, and how far actions were moved
    """
    columns = ("data", "method", "gradient steps", "seeds", "after training", "halfway", "collapsed", "moved", "CPU s a run")
    table = Table(
        "normalised returns after training, mean ± half of Student's 95 % interval (range) over the seeds",
        columns,
    )
    for (data, method), seeds in runs.items():
        steps = int(seeds[0].timesteps[-1])
        halfway = [run.rewards[(len(run.rewards) - 1) // 2] for run in seeds]
        moved = [run.displacements[-1] for run in seeds]
        table.rows.append(
            (
                data,
                method,
                f"{steps:,}",
                str(len(seeds)),
                mean_and_interval([float(np.mean(scaled(data, run.evaluation))) for run in seeds], ".1f"),
                f"{np.mean(scaled(data, np.array(halfway))):.1f}",
                f"{sum(run.collapsed for run in seeds)} of {len(seeds)}",
                "-" if np.isnan(moved).any() else f"{np.mean(moved):.3f}",
                f"{np.median([run.cpu_seconds for run in seeds]):.0f}",
            )
        )
    return table


def draw_curves(runs: Runs, path: Path) -> None:
    """
    Learning curves, one panel for each data set.

    :param runs: as for the table
    :param path: the PNG
    """
    panels = list(dict.fromkeys(data for data, _ in runs))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(7.0, 1.0 + 3.4 * len(panels)), 4.2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        methods = list(dict.fromkeys(method for _, method in runs))
        for axis, data in zip(axes, panels, strict=True):
            for (found, method), seeds in runs.items():
                if found != data:
                    continue
                curves = np.stack([scaled(data, run.rewards) for run in seeds])
                steps, color = seeds[0].timesteps / 1000, f"C{methods.index(method)}"
                axis.plot(steps, curves.mean(0), label=method, lw=1.5, color=color)
                if len(seeds) > 1:
                    axis.fill_between(steps, *confidence_band(curves), alpha=0.15, lw=0, color=color)
            axis.set(xlabel="gradient steps (thousands)", ylabel="normalised return", title=data)
            axis.grid(alpha=0.25)
        handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
        save(figure, path)


def scaled(data: str, returns: np.ndarray) -> np.ndarray:
    """
    :param data: its name, which begins with that of the task
    :param returns: any shape
    :return: in per cent of the task's scale, where it has one
    """
    scale = reference(data.split(",")[0])
    return np.asarray(returns) if scale is None else scale.normalized(returns)
