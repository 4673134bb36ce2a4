"""Figures of the particle flow: clouds over states, paths of particles, costs against steps, and maps of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch as th
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otbaselines.wfpg import ParticleFlow
from zoo.drawing.curves import STYLE, save
from zoo.papers.wfpg.orders import Comparison
from zoo.papers.wfpg.systems import SYSTEMS

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8a8f98"
METHOD_STYLES: tuple[dict[str, Any], ...] = (
    {"color": ORANGE},
    {"color": ORANGE, "linestyle": "--", "lw": 1.0},
    {"color": ORANGE, "linestyle": ":", "lw": 1.0},
    {"color": BLUE, "marker": "o", "ms": 3},
    {"color": GREEN, "marker": "s", "ms": 3},
)
#: After which steps the clouds are shown, the step size, and the heat of the second row.
MOMENTS, STEP_SIZE, HEAT = (0, 1, 2, 4, 40), 0.5, 0.02
#: States at which the paths of particles are shown.
PLACES = (-1.5, 0.0, 1.5)


def draw_flow(particles: int, seed: int, path: Path) -> None:
    """
    Clouds of actions over the states of the nonlinear scalar regulator as the flow goes on, without heat and with it.

    :param particles: actions at each state
    :param seed: of first particles and heat
    :param path: the PNG
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 5.2), layout="constrained")
        axes = figure.subplots(2, len(MOMENTS) + 1, width_ratios=[1.0] * len(MOMENTS) + [1.25])
        for row, ent in zip(axes, (0.0, HEAT), strict=True):
            flow, costs = SYSTEMS["scalar"].flow(particles, seed), []
            for step in range(max(MOMENTS) + 1):
                if step in MOMENTS:
                    _draw_clouds(row[MOMENTS.index(step)], flow, f"step {step}")
                costs.append(flow.cost)
                flow.step(STEP_SIZE, ent=ent)
            row[0].set_ylabel("action, " + (f"heat {ent:g}" if ent else "without heat"))
            for axis in row[1:-1]:
                axis.set_yticklabels([])
            row[-1].loglog(np.arange(1, len(costs) + 1), costs, color=ORANGE, lw=1.6, marker=".")
            row[-1].set(title="long-run cost of a step")
            row[-1].set_xticks([step + 1 for step in MOMENTS], labels=map(str, MOMENTS), minor=False)
            row[-1].set_yticks([0.1, 0.2, 0.5, 1.0, 2.0, 5.0], labels=["0.1", "0.2", "0.5", "1", "2", "5"], minor=False)
            row[-1].minorticks_off()
            row[-1].grid(alpha=0.25)
        for axis in axes[-1, :-1]:
            axis.set_xlabel("state")
        axes[-1, -1].set_xlabel("steps")
        figure.suptitle("The policy flow on the nonlinear scalar regulator; grey: how often states are visited")
        save(figure, path)


def _draw_clouds(axis: Axes, flow: ParticleFlow, title: str) -> None:
    states, weights = flow.states[:, 0].numpy(), flow.evaluation.weights.numpy()
    axis.fill_between(states, -4.2, -4.2 + 2.0 * weights / weights.max(), color=GREY, alpha=0.35, lw=0)
    actions = flow.actions[..., 0].numpy()
    axis.plot(states.repeat(actions.shape[1]), actions.ravel(), linestyle="", marker=".", ms=2.2, color=BLUE)
    axis.set(title=title, xlim=(-4, 4), ylim=(-4.2, 4.2))


def draw_paths(particles: int, seed: int, path: Path) -> None:
    """
    Paths of particles: at three states of the nonlinear scalar regulator, without heat and with it, and in a double well.

    :param particles: actions at each state
    :param seed: of first particles and heat
    :param path: the PNG
    """
    n_steps = 60
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 3.2), layout="constrained")
        axes = figure.subplots(1, 3)
        for axis, ent in zip(axes, (0.0, HEAT), strict=False):
            flow = SYSTEMS["scalar"].flow(particles, seed)
            rows = [int((flow.states[:, 0] - place).abs().argmin()) for place in PLACES]
            actions = _actions(flow, n_steps, STEP_SIZE, ent)[:, rows]
            for i, colour in enumerate((BLUE, GREEN, ORANGE)):
                lines = axis.plot(actions[:, i], color=colour, lw=0.9, alpha=0.8)
                lines[0].set_label(f"state {PLACES[i]:g}")
            axis.set(xlabel="steps", ylabel="action", title=f"scalar regulator, heat {ent:g}" if ent else "scalar regulator")
        axes[0].legend(frameon=False, loc="lower right")
        well = ParticleFlow(DoubleWell(), [[0.0]], particles=24, seed=seed)
        axes[2].plot(_actions(well, n_steps, 0.1, 0.0)[:, 0], color=BLUE, lw=0.9, alpha=0.8)
        for mode in (-np.sqrt(50.0), np.sqrt(50.0)):
            axes[2].axhline(mode, color="black", lw=1, linestyle=(0, (1, 3)))
        axes[2].set(xlabel="steps", title=r"one state, $Q = -a^4/100 + a^2$")
        for axis in axes:
            axis.grid(alpha=0.25)
        save(figure, path)


class DoubleWell:
    r"""One state, in which an action is worth :math:`-a^4 / 100 + a^2`."""

    action_dim, noise_std, periods = 1, (1.0,), (None,)

    def drift(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """The state stays."""
        return 0.0 * (states + actions)

    def cost(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Of actions ``(..., 1)``."""
        return (actions**4 / 100.0 - actions**2).squeeze(-1)


def _actions(flow: ParticleFlow, n_steps: int, step_size: float, ent: float) -> np.ndarray[Any, Any]:
    """The first action of every particle before the first step and after each one, ``(n_steps + 1, S, K)``."""
    kept = [flow.actions[..., 0]]
    for _ in range(n_steps):
        flow.step(step_size, ent=ent)
        kept.append(flow.actions[..., 0])
    return th.stack(kept).numpy()


def draw_orders(found: Mapping[str, Comparison], path: Path) -> None:
    """
    Cost above the optimum against steps, a panel for each system.

    :param found: by the name of the system
    :param path: the PNG
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(found) + 0.6, 3.6), layout="constrained")
        axes = figure.subplots(1, len(found), squeeze=False)[0]
        for axis, (name, comparison) in zip(axes, found.items(), strict=True):
            for (method, walks), style in zip(comparison.walks.items(), METHOD_STYLES, strict=True):
                for i, each in enumerate(walks):
                    above = (np.array(each.costs) / comparison.optimum - 1.0).clip(1e-5)
                    axis.plot(above, **{"lw": 1.4, "alpha": 0.75, **style}, label=method if i == 0 else None)
            axis.axhline(0.01, color="black", lw=1, linestyle=(0, (1, 3)))
            axis.set(title=SYSTEMS[name].label, xlabel="steps", yscale="log", xlim=(0, 30), ylim=(1e-4, 1e2))
            axis.grid(alpha=0.25)
        axes[0].set_ylabel("cost above the optimum, relative")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        save(figure, path)


def draw_maps(particles: int, seed: int, path: Path, steps: Sequence[int] = (0, 1, 2, 4)) -> None:
    """
    Mean actions over the pendulum's states between Newton steps, with lines where it is found most of the time.

    :param particles: actions at each state
    :param seed: of first particles
    :param path: the PNG
    :param steps: when, in increasing order
    """
    system = SYSTEMS["pendulum"]
    angles, speeds = system.axes
    with mpl.rc_context({**STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(2.7 * len(steps) + 0.8, 3.0), layout="constrained")
        axes = figure.subplots(1, len(steps))
        flow = system.flow(particles, seed)
        image: Any = None
        for axis, step, until in zip(axes, steps, (*steps[1:], steps[-1]), strict=True):
            shape = (len(angles), len(speeds))
            means, weights = flow.actions.mean((1, 2)).view(shape).T, flow.evaluation.weights.view(shape).T
            image = axis.pcolormesh(angles, speeds, means, cmap="RdBu_r", vmin=-10, vmax=10, rasterized=True)
            levels = _mass_levels(weights.flatten().numpy(), (0.9, 0.5))
            axis.contour(angles, speeds, weights, levels=levels, colors="black", linewidths=0.8)
            axis.set(title=f"step {step}, cost {flow.cost:.3f}", xlabel="angle from upright (rad)")
            for _ in range(until - step):
                flow.newton_step()
        axes[0].set_ylabel("speed (rad/s)")
        figure.colorbar(image, ax=axes, label="mean torque (rad/s²)", pad=0.01)
        save(figure, path)


def _mass_levels(weights: np.ndarray[Any, Any], shares: Sequence[float]) -> list[float]:
    """Heights above which the most visited states hold these shares, which fall."""
    falling = np.sort(weights)[::-1]
    return [float(falling[min(int(np.searchsorted(falling.cumsum(), share)), len(falling) - 1)]) for share in shares]
