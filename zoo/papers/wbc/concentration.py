"""
Theorem 3.2 of the WBC paper (Baheri 2025), measured: how the error of a barycenter of samples falls with their number.

Run by ``python -m zoo.theory rate``.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch as th
from matplotlib.figure import Figure

from otbaselines import ot
from zoo.drawing.tables import Table

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RateFit:
    """
    Error of the barycenter of samples against their number, and the slope of its logarithm.

    :param name: which error
    :param sizes: samples per agent, shape ``(S,)``
    :param errors: shape ``(S, n_seeds)``
    """

    name: str
    sizes: Array
    errors: Array

    def slopes(self) -> Array:
        """One least-squares slope in log-log for each seed."""
        slopes: Array = np.polyfit(np.log(self.sizes), np.log(np.maximum(self.errors, 1e-300)), 1)[0]
        return slopes


def measure_rate(p: float, *, n_seeds: int = 10, side: int = 14, n_agents: int = 3, quick: bool = False) -> list[RateFit]:
    r"""
    Theorem 3.2 (Baheri 2025): with :math:`\varepsilon_m = D^p / m` the barycenter of samples errs by :math:`O(1/m)`.

    Three smooth densities, bounded below, on a grid of the unit square; the error is the theorem's
    :math:`W_{p,\varepsilon_m}(\hat\mu^*, \mu^*)`, and the divergence that subtracts its value at equality. As a control the
    divergence is measured at a fixed strength, that of m = 64, too.

    :param p: exponent of the distance
    :param n_seeds: independent draws, solved as one batch
    :param side: points along one side of the grid
    :param n_agents: N
    :param quick: whether to leave out the large samples
    :return: one fit for each of the three errors
    """
    axis = th.linspace(0, 1, side, dtype=th.float64)
    points = th.cartesian_prod(axis, axis)
    cost, diameter_p = ot.pairwise(points, p=p), 2 ** (0.5 * p)
    generator = th.Generator().manual_seed(0)
    centres = th.rand(n_agents, 1, 2, generator=generator, dtype=th.float64)
    densities = 0.2 + th.exp(-8 * (points - centres).square().sum(-1))
    truth = densities / densities.sum(-1, keepdim=True)
    sizes = [16, 32, 64] if quick else [16, 32, 64, 128, 256, 512]
    errors: dict[str, list[Array]] = {"W": [], "debiased": [], "debiased, fixed eps": []}
    for m in sizes:
        draws = th.multinomial(truth.repeat(n_seeds, 1), m, replacement=True, generator=generator)
        counts = th.zeros(n_seeds * n_agents, len(points), dtype=th.float64)
        counts.scatter_add_(1, draws, th.ones(draws.shape, dtype=th.float64))
        empirical = (counts / m).view(n_seeds, n_agents, -1)
        plain, debiased = barycenter_errors(truth, empirical, cost, diameter_p / m)
        errors["W"].append(plain)
        errors["debiased"].append(debiased)
        errors["debiased, fixed eps"].append(barycenter_errors(truth, empirical, cost, diameter_p / 64)[1])
    x = np.array(sizes, dtype=float)
    return [RateFit(f"{name}, p={p:g}", x, np.stack(values)) for name, values in errors.items()]


def barycenter_errors(truth: th.Tensor, empirical: th.Tensor, cost: th.Tensor, reg: float) -> tuple[Array, Array]:
    """
    :param truth: the measures, shape ``(N, n)``
    :param empirical: samples of them, shape ``(n_seeds, N, n)``
    :param cost: shape ``(n, n)``
    :param reg: entropic strength of barycenters and errors
    :return: entropic transport between the two barycenters, and the same debiased, each of shape ``(n_seeds,)``
    """
    exact = ot.barycenter(truth, cost, reg=reg, tol=1e-7)
    estimate = ot.barycenter(empirical, cost, reg=reg, tol=1e-7)
    target = exact.weights.expand(len(empirical), -1)
    cross = ot.sinkhorn(cost, estimate.weights, target, reg=reg, tol=1e-7).value
    own = [ot.self_transport(cost, measure, reg=reg, tol=1e-7).value for measure in (estimate.weights, target)]
    return cross.numpy(), (cross - 0.5 * (own[0] + own[1])).numpy()


def rate_table(fits: list[RateFit]) -> Table:
    """
    The slopes, mean and standard deviation over the seeds.

    :param fits: of :func:`measure_rate`
    :return: one row an error
    """
    table = Table(
        "Theorem 3.2: slope of log error against log m, eps = D^p / m (the theorem says -1)",
        ("error", "slope", "spread over seeds", *(f"m={int(m)}" for m in fits[0].sizes)),
    )
    for fit in fits:
        slopes = fit.slopes()
        cells = (f"{slopes.mean():.2f}", f"{slopes.std(ddof=1):.2f}", *(f"{e:.2e}" for e in fit.errors.mean(1)))
        table.rows.append((fit.name, *cells))
    return table


def draw_rate(fits: list[RateFit], path: Path) -> None:
    """
    Draw the errors with their spread, and a line of slope -1.

    :param fits: of :func:`measure_rate`
    :param path: the PNG
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True)
    titles = {
        "W": "Entropic W, as in the theorem",
        "debiased": "The same, debiased",
        "debiased, fixed eps": "Debiased, eps held at D^p / 64",
    }
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        for fit in (f for f in fits if f.name.rpartition(", ")[0] == kind):
            slopes, mean = fit.slopes(), fit.errors.mean(1)
            label = f"{fit.name.rpartition(', ')[2]}: slope {slopes.mean():.2f} ± {slopes.std(ddof=1):.2f}"
            (line,) = axis.loglog(fit.sizes, mean, "o-", label=label)
            axis.fill_between(fit.sizes, fit.errors.min(1), fit.errors.max(1), color=line.get_color(), alpha=0.2, lw=0)
        anchor = max(float(f.errors[0].mean()) for f in fits if f.name.rpartition(", ")[0] == kind)
        axis.loglog(fits[0].sizes, 1.5 * anchor * fits[0].sizes[0] / fits[0].sizes, "k--", lw=1, label="slope -1")
        axis.set(title=title, xlabel="samples per agent, m", ylabel="error of the barycenter")
        axis.set_xticks(fits[0].sizes, [f"{m:.0f}" for m in fits[0].sizes])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def rate(args: argparse.Namespace) -> list[Table]:
    """Measure and draw Theorem 3.2, as the command line of ``zoo.theory`` says."""
    fits = [fit for p in (1.0, 2.0) for fit in measure_rate(p, n_seeds=args.seeds, quick=args.quick)]
    draw_rate(fits, args.out / "theorem32.png")
    return [rate_table(fits)]
