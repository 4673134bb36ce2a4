"""Drawing: results in, PNG files out. Colours are Okabe and Ito's, which the colour-blind can tell apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from zoo.drawing.tables import student_half_width
from zoo.runs.comparison import Array, RunResult

METHOD_STYLES: dict[str, dict[str, Any]] = {
    "WBC": {"color": "#0072B2", "linestyle": "-"},
    "KL consensus": {"color": "#009E73", "linestyle": "--"},
    "parameter sharing": {"color": "#CC79A7", "linestyle": "-."},
    "IPPO": {"color": "#D55E00", "linestyle": ":"},
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "savefig.dpi": 160,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
#: Rollouts over which a point of a learning curve is averaged.
SMOOTHED = 5
_REWARD = "mean reward per agent and step\n(arena half-widths)"


def confidence_band(curves: Array) -> tuple[Array, Array]:
    """
    Student's 95 % interval of the mean over seeds, point by point.

    Percentiles of a bootstrap, which take the few seeds for the whole population, cover less: 90 % with ten of them.

    :param curves: shape ``(n_seeds, n_points)``
    :return: lower and upper edge, shape ``(n_points,)`` each; the curve itself where there is one seed
    """
    mean, half = curves.mean(0), student_half_width(curves)
    return mean - half, mean + half


def moving_average(values: Array, window: int) -> Array:
    """
    Mean over the last ``window`` entries, over fewer at the start.

    :param values: shape ``(..., n)``
    :param window: at least 1
    :return: of the same shape
    """
    sums = np.cumsum(values, axis=-1)
    sums[..., window:] = sums[..., window:] - sums[..., :-window]
    return sums / np.minimum(np.arange(1, values.shape[-1] + 1), window)


def draw_learning_curves(
    runs: Mapping[str, Sequence[RunResult]], path: Path, *, title: str, random: float, window: int = SMOOTHED
) -> None:
    """
    The paper's Figure 3: mean reward during training, with Student's 95 % bands over the seeds.

    :param runs: the runs of all seeds by method
    :param path: the PNG
    :param title: what was trained
    :param random: what uniformly random actions earn
    :param window: rollouts over which each point is averaged
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.8), layout="constrained")
        axis = figure.subplots()
        for label, seeds in runs.items():
            n_points = min(len(run.rewards) for run in seeds)
            curves = moving_average(np.stack([run.rewards[:n_points] for run in seeds]), window)
            style = METHOD_STYLES.get(label, {})
            steps = seeds[0].timesteps[:n_points] / 1000
            axis.plot(steps, curves.mean(0), label=label, lw=1.8, **style)
            if len(seeds) > 1:
                axis.fill_between(steps, *confidence_band(curves), alpha=0.2, lw=0, color=style.get("color"))
        axis.axhline(random, color="black", lw=1, linestyle=(0, (1, 3)), label="random policy")
        axis.set(xlabel="agent-steps (thousands)", ylabel=_REWARD, title=f"{title}\n{_seeds(runs)}")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        axis.grid(alpha=0.25)
        save(figure, path)


def draw_evaluations(curves: Mapping[str, tuple[Array, Array]], path: Path, *, title: str, offline: bool = False) -> None:
    """
    Learning curves of runs that ``zoo.train`` left, from their evaluations.

    :param curves: steps and mean return per agent of each evaluation, by label
    :param path: the PNG
    :param title: what was trained
    :param offline: whether the steps are gradient steps on recorded data instead of agent-steps
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.8), layout="constrained")
        axis = figure.subplots()
        for label, (timesteps, returns) in curves.items():
            axis.plot(timesteps / 1000, returns, label=label, lw=1.5, marker=".")
        steps, earned = ("gradient steps", "return") if offline else ("agent-steps", "return per agent and episode")
        axis.set(xlabel=f"{steps} (thousands)", ylabel=earned, title=title)
        axis.legend(frameon=False)
        axis.grid(alpha=0.25)
        save(figure, path)


def _seeds(runs: Mapping[str, Sequence[RunResult]]) -> str:
    counts = sorted({len(seeds) for seeds in runs.values()})
    if counts == [1]:
        return "one seed"
    return f"mean over {'-'.join(map(str, counts))} seeds, Student's 95 % band"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, into a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
