"""The W-MATRPO paper's Table 3 and Figure 1, from the runs that are finished."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch as th
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from otbaselines.envs.differential_game import GOAL, HIGH, LOW, TRAP, DifferentialGameConfig
from zoo.drawing.curves import STYLE, save
from zoo.drawing.tables import Table, mean_and_interval
from zoo.papers.wmatrpo.game import METHODS, GameResult, by_seed

Runs = Mapping[tuple[int, str], Sequence[GameResult]]
#: Table 3's distances by number of agents.
PAPER_DISTANCES: Mapping[str, Mapping[int, float]] = {
    "hatrpo": {3: 6.9227, 5: 8.9393, 7: 10.5157, 9: 12.0590},
    "hatrpo-caatr": {3: 6.8623, 5: 8.9534, 7: 10.6361, 9: 11.9741},
    "wmatrpo": {3: 2.4335, 5: 3.2690, 7: 3.8760, 9: 4.3330},
}
#: A team that ends this near (5, ..., 5) has reached it.
REACHED = 0.5
COLOURS = {
    "hatrpo": "#D55E00",
    "hatrpo-caatr": "#E69F00",
    "wmatrpo": "#0072B2",
    "wmatrpo-fixed": "#56B4E9",
    "wmatrpo-optimism": "#CC79A7",
    "wmatrpo-leader": "#009E73",
}
# Points along each axis of the map of rewards.
RESOLUTION = 141


def peaks_table(variant: str, numbers: Sequence[int]) -> Table:
    """
    :param variant: of the game
    :param numbers: of agents
    :return: what the joint actions are worth that the methods tend to
    """
    table = Table(
        f"What joint actions are worth, `{variant}`", ("agents", "(1.5, ..., 1.5), the start", "(1, ..., 1)", "(5, ..., 5)")
    )
    for n_agents in numbers:
        surface = DifferentialGameConfig(n_agents=n_agents, variant=variant).surface(th.float64)
        points = th.tensor([1.5, TRAP, GOAL], dtype=th.float64).unsqueeze(1).expand(-1, n_agents)
        table.rows.append((str(n_agents), *(f"{value:.3g}" for value in surface.reward(points).tolist())))
    return table


def distances_table(runs: Runs, variant: str, *, printed: bool) -> Table:
    """
    The paper's Table 3 with spreads and rewards.

    :param runs: by number of agents and method
    :param variant: of the game
    :param printed: whether the paper's own distances belong beside them
    :return: the table
    """
    table = Table(
        f"Differential game, `{variant}`: mean ± half of Student's 95 % interval (range) over the seeds",
        (
            "agents",
            "method",
            "seeds",
            "mean action",
            "its distance to (5, ..., 5)",
            *(("the paper's",) if printed else ()),
            f"seeds within {REACHED}",
            "its reward",
            "reward as played",
            "CPU s per run",
        ),
    )
    for (n_agents, method), seeds in sorted(runs.items(), key=_order):
        values = by_seed(seeds)
        paper = PAPER_DISTANCES.get(method, {}).get(n_agents)
        ends = np.stack([run.means[-1] for run in seeds])
        table.rows.append(
            (
                str(n_agents),
                METHODS[method].label,
                str(len(seeds)),
                f"{ends.mean():.2f} ({ends.min():.2f} to {ends.max():.2f})",
                mean_and_interval(values["distance"], ".2f"),
                *((f"{paper:.2f}" if paper else "-",) if printed else ()),
                f"{int((values['distance'] < REACHED).sum())} of {len(seeds)}",
                mean_and_interval(values["reward"], ".3g"),
                mean_and_interval(values["mean_reward"], ".3g"),
                f"{np.median([run.cpu_seconds for run in seeds]):.0f}",
            )
        )
    return table


def _order(item: tuple[tuple[int, str], Any]) -> tuple[int, int]:
    (n_agents, method), _ = item
    return n_agents, list(METHODS).index(method)


def draw_paths(runs: Mapping[str, Sequence[GameResult]], variant: str, path: Path) -> None:
    """
    The paper's Figure 1: where the means of two agents go on the surface of rewards, a panel for each method.

    :param runs: by method
    :param variant: of the game
    :param path: the PNG
    """
    methods = sorted(runs, key=list(METHODS).index)
    n_columns = math.ceil(math.sqrt(len(methods)))
    n_rows = -(-len(methods) // n_columns)
    with mpl.rc_context({**STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(2.9 * n_columns + 1.2, 3.3 * n_rows + 0.8), layout="constrained")
        axes = figure.subplots(n_rows, n_columns, squeeze=False)
        image: Any = None
        for axis, method in zip(axes.flat, methods, strict=False):
            image = _draw_surface(axis, variant)
            _draw_runs(axis, runs[method], COLOURS[method])
            axis.set_title(METHODS[method].label.replace(", best", ",\nbest"))
        for axis in axes.flat[len(methods) :]:
            axis.set_visible(False)
        for axis in axes.flat[max(0, len(methods) - n_columns) : len(methods)]:
            axis.set_xlabel("mean action of agent 1")
        for row in axes:
            row[0].set_ylabel("mean action of agent 2")
        figure.colorbar(image, ax=axes, label="reward", shrink=0.8, pad=0.01)
        n_seeds = max(len(seeds) for seeds in runs.values())
        figure.legend(handles=_legend(), loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(f"Differential game of two agents, {variant.replace('_', ' ')}; a line for each of {n_seeds} seeds")
        save(figure, path)


def _draw_surface(axis: Axes, variant: str) -> Any:
    line = th.linspace(LOW, HIGH, RESOLUTION, dtype=th.float64)
    grid = th.stack(th.meshgrid(line, line, indexing="xy"), -1)
    rewards = DifferentialGameConfig(n_agents=2, variant=variant).surface(th.float64).reward(grid).numpy()
    image = axis.contourf(line.numpy(), line.numpy(), rewards, levels=14, cmap="Greys", alpha=0.75)
    axis.set(xlim=(LOW - 0.15, HIGH + 0.15), ylim=(LOW - 0.15, HIGH + 0.15), xticks=range(8), yticks=range(8), aspect="equal")
    return image


def _draw_runs(axis: Axes, seeds: Sequence[GameResult], colour: str) -> None:
    for run in seeds:
        axis.plot(*run.means.T, color=colour, lw=1.1, alpha=0.8, zorder=3)
    ends = np.stack([run.means[-1] for run in seeds])
    axis.plot(*ends.T, linestyle="", marker="o", ms=5, color=colour, mec="black", mew=0.7, zorder=5)
    axis.plot(*seeds[0].means[0], linestyle="", marker="s", ms=6, color="white", mec="black", zorder=6)
    axis.plot(GOAL, GOAL, linestyle="", marker="*", ms=12, color="#F0E442", mec="black", zorder=4)
    axis.plot(TRAP, TRAP, linestyle="", marker="X", ms=8, color="black", mec="white", zorder=4)


def _legend() -> list[Line2D]:
    marks = (("s", "white", "start"), ("o", "grey", "end"), ("*", "#F0E442", "(5, 5)"), ("X", "black", "(1, 1)"))
    return [
        Line2D([], [], linestyle="", marker=marker, color=colour, mec="black", ms=8, label=label)
        for marker, colour, label in marks
    ]
