"""Drawing: results in, PNG files out. Colours are Okabe and Ito's, which the colour-blind can tell apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from zoo.runs.job import ACTIONS, MAP_TARGET, RunResult

Array = np.ndarray[Any, Any]

# The paper's colours (grey, red, blue, green, orange) in the colour-blind safe palette.
ACTION_COLOURS = ("#BBBBBB", "#D55E00", "#0072B2", "#009E73", "#E69F00")
METHOD_STYLES: dict[str, dict[str, Any]] = {
    "WBC": {"color": "#0072B2", "linestyle": "-"},
    "KL consensus": {"color": "#009E73", "linestyle": "--"},
    "parameter sharing": {"color": "#CC79A7", "linestyle": "-."},
    "IPPO": {"color": "#D55E00", "linestyle": ":"},
}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "savefig.dpi": 160,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_REWARD = "mean reward per agent and step\n(arena half-widths)"


def bootstrap_band(curves: Array, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> tuple[Array, Array]:
    """
    Confidence band of the mean over seeds, by resampling the seeds.

    :param curves: shape ``(n_seeds, n_points)``
    :param level: of confidence
    :param n_resamples: how often the seeds are drawn anew
    :param seed: of the resampling
    :return: lower and upper edge, shape ``(n_points,)`` each
    """
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(curves), size=(n_resamples, len(curves)))
    # Weights instead of indices: the means of all resamples are one matrix product.
    weights = np.stack([np.bincount(draw, minlength=len(curves)) for draw in draws]) / len(curves)
    lower, upper = np.quantile(weights @ curves, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return lower, upper


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


def draw_policy_maps(runs: Mapping[str, RunResult], path: Path) -> None:
    """
    The paper's Figure 1: the most probable action of each agent at each own position, all else fixed.

    :param runs: one run by method; a row each
    :param path: the PNG
    """
    n_agents = max(len(run.policy_maps) for run in runs.values())
    with mpl.rc_context({**_STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(2.1 * n_agents + 0.7, 2.15 * len(runs) + 1.0), layout="constrained")
        axes = figure.subplots(len(runs), n_agents, squeeze=False, sharex=True, sharey=True, gridspec_kw={"hspace": 0.12})
        for row, (label, run) in zip(axes, runs.items(), strict=True):
            for agent, axis in enumerate(row):
                _draw_map(axis, run, agent)
            row[0].set_ylabel(f"{label}\nown y")
        for agent, axis in enumerate(axes[0]):
            axis.set_title(f"agent {agent + 1}")
        for axis in axes[-1]:
            axis.set_xlabel("own x")
        handles = [Patch(color=colour, label=action) for colour, action in zip(ACTION_COLOURS, ACTIONS, strict=True)]
        star = mpl.lines.Line2D([], [], marker="*", linestyle="", color="#F0E442", mec="black", ms=11, label="target")
        mates = mpl.lines.Line2D([], [], marker="o", linestyle="", color="white", mec="black", ms=6, label="team-mates")
        figure.legend(handles=[*handles, star, mates], loc="outside lower center", ncols=7, frameon=False)
        figure.suptitle(
            "Most probable action at each own position, all agents asked about the\n"
            "same observations: the target and the other positions stay where they are"
        )
        _save(figure, path)


def _draw_map(axis: Axes, run: RunResult, agent: int) -> None:
    colours = ListedColormap(list(ACTION_COLOURS))
    norm = BoundaryNorm(np.arange(len(ACTIONS) + 1) - 0.5, len(ACTIONS))
    axis.imshow(
        run.policy_maps[agent], cmap=colours, norm=norm, origin="lower", extent=(-1, 1, -1, 1), interpolation="nearest"
    )
    axis.plot(*MAP_TARGET, marker="*", color="#F0E442", markeredgecolor="black", markersize=13)
    axis.plot(*run.team_mates.T, linestyle="", marker="o", color="white", markeredgecolor="black", markersize=5)
    axis.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])


def draw_state_probabilities(runs: Mapping[str, RunResult], path: Path) -> None:
    """
    The paper's Figure 2: the action probabilities of every agent in the representative states.

    :param runs: one run by method; a row each
    :param path: the PNG
    """
    states = next(iter(runs.values())).states
    with mpl.rc_context({**_STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        n_agents = next(iter(runs.values())).state_probs.shape[1]
        figure = Figure(figsize=(2.3 * len(states) + 0.9, (0.36 * n_agents + 0.95) * len(runs) + 0.5), layout="constrained")
        axes = figure.subplots(len(runs), len(states), squeeze=False, sharex=True, sharey=True)
        image: Any = None
        for row, (label, run) in zip(axes, runs.items(), strict=True):
            for state, axis in enumerate(row):
                image = _draw_heat_map(axis, run.state_probs[state])
            row[0].set_ylabel(label)
        for description, axis in zip(states, axes[0], strict=True):
            axis.set_title(description)
        figure.colorbar(image, ax=axes, label="probability", shrink=0.8, pad=0.01)
        figure.suptitle("Action probabilities of every agent when each is asked about the same observation")
        _save(figure, path)


def _draw_heat_map(axis: Axes, probabilities: Array) -> Any:
    image = axis.imshow(probabilities, cmap="cividis", vmin=0.0, vmax=1.0, aspect="auto")
    for (agent, action), value in np.ndenumerate(probabilities):
        axis.text(action, agent, f"{value:.2f}", ha="center", va="center", fontsize=7, color="k" if value > 0.5 else "w")
    axis.set_xticks(range(len(ACTIONS)), ACTIONS, fontsize=7)
    axis.set_yticks(range(len(probabilities)), [f"agent {i + 1}" for i in range(len(probabilities))], fontsize=7)
    return image


def draw_learning_curves(runs: Mapping[str, Sequence[RunResult]], path: Path, *, title: str, window: int = 5) -> None:
    """
    The paper's Figure 3: mean reward during training, with 95 % bootstrap bands over the seeds.

    :param runs: the runs of all seeds by method
    :param path: the PNG
    :param title: what was trained
    :param window: rollouts over which each point is averaged
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 3.8), layout="constrained")
        axis = figure.subplots()
        for label, seeds in runs.items():
            n_points = min(len(run.rewards) for run in seeds)
            curves = moving_average(np.stack([run.rewards[:n_points] for run in seeds]), window)
            style = METHOD_STYLES.get(label, {})
            steps = seeds[0].timesteps[:n_points] / 1000
            axis.plot(steps, curves.mean(0), label=label, lw=1.8, **style)
            if len(seeds) > 1:
                axis.fill_between(steps, *bootstrap_band(curves), alpha=0.2, lw=0, color=style.get("color"))
        random = np.mean([run.random.mean() for seeds in runs.values() for run in seeds])
        axis.axhline(float(random), color="black", lw=1, linestyle=(0, (1, 3)), label="random policy")
        axis.set(xlabel="agent-steps (thousands)", ylabel=_REWARD, title=f"{title}\n{_seeds(runs)}")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        axis.grid(alpha=0.25)
        _save(figure, path)


def draw_evaluations(curves: Mapping[str, tuple[Array, Array]], path: Path, *, title: str) -> None:
    """
    Learning curves of runs that ``zoo.train`` left, from their evaluations.

    :param curves: agent-steps and mean return per agent of each evaluation, by label
    :param path: the PNG
    :param title: what was trained
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 3.8), layout="constrained")
        axis = figure.subplots()
        for label, (timesteps, returns) in curves.items():
            axis.plot(timesteps / 1000, returns, label=label, lw=1.5, marker=".")
        axis.set(xlabel="agent-steps (thousands)", ylabel="return per agent and episode", title=title)
        axis.legend(frameon=False)
        axis.grid(alpha=0.25)
        _save(figure, path)


def _seeds(runs: Mapping[str, Sequence[RunResult]]) -> str:
    counts = sorted({len(seeds) for seeds in runs.values()})
    if counts == [1]:
        return "one seed"
    return f"mean over {'-'.join(map(str, counts))} seeds, 95 % bootstrap band"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
