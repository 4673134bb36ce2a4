r"""
Theorem 3.1 of the WBC paper (Baheri 2025), measured: ``python -m zoo.theory contraction``.

Without rewards, steps of size :math:`\alpha` on :math:`\lambda W(\mu_i, \mu^*)` make the largest divergence :math:`D_t`
between two agents fall geometrically.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch as th
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import linregress
from stable_baselines3.common.callbacks import BaseCallback

from otbaselines import WBC, ot
from otbaselines.common.multi_agent.distributions import MaskedCategorical
from otbaselines.envs import NavigationVecEnv
from otbaselines.wbc.consensus import draw_states
from zoo.drawing.tables import Table

Array = np.ndarray[Any, Any]

# Gain of the last layer of the policies at the start. SB3's 0.01 would start the team in agreement.
INITIAL_GAIN = 1.5
# Products of step size and consensus weight, and how far each is followed in units of their product times t.
RATES = {0.05: 12.0, 0.1: 12.0, 0.2: 12.0, 0.4: 40.0, 0.8: 40.0}
SUPPORTS: dict[str, dict[str, Any]] = {
    "conditional": {},
    "pooled": {"estimator": "pooled", "n_support": 96},
    "own (paper)": {"estimator": "own", "n_support": 96},
}
# Written out, because WBC's defaults are those that learn best and may move.
REG = 0.5
METRIC: dict[str, Any] = {"beta": 0.8, "p": 2, "debiased": True, "action_embedding": "one_hot"}
SUPPORT_RATE, SUPPORT_ITERATIONS = 0.2, 60
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class UnrewardedNavigation(NavigationVecEnv):
    """Cooperative navigation with the reward switched off, so that consensus is all there is."""

    def _transition(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        rewards, terminated = super()._transition(actions)
        return th.zeros_like(rewards), terminated


class Disagreement(BaseCallback):
    r"""
    Keep what WBC logs about the team's disagreement, one number for each iteration.

    :param probe: measure the policies at equal states as well, which costs as much as WBC's own report
    :ivar max_divergence: :math:`D_t` as WBC logs it
    :ivar mean_divergence: :math:`\frac1N \sum_i W(\mu_i, \mu^*)` as WBC logs it
    :ivar policy_divergence: :math:`D_t` between the policies at equal states, whatever the consensus compares; empty
        without ``probe``
    """

    def __init__(self, *, probe: bool = False) -> None:
        super().__init__()
        self.probe = probe
        self.max_divergence: list[float] = []
        self.mean_divergence: list[float] = []
        self.policy_divergence: list[float] = []
        self._generator = th.Generator().manual_seed(0)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._read()

    def _on_rollout_end(self) -> None:
        if self.probe:
            assert isinstance(self.model, WBC)
            self.policy_divergence.append(policy_divergence(self.model, self._generator))

    def _on_training_end(self) -> None:
        self._read()

    def _read(self) -> None:
        # What an update records stays in the logger until the end of the next rollout.
        logged = self.logger.name_to_value
        if "consensus/max_divergence" in logged:
            self.max_divergence.append(logged["consensus/max_divergence"])
            names = [name for name in logged if name.startswith("consensus/divergence_")]
            self.mean_divergence.append(float(np.mean([logged[name] for name in names])))


def policy_divergence(model: WBC, generator: th.Generator, n_states: int = 128) -> float:
    """
    The largest debiased divergence between two agents' action probabilities, mean over states of the last rollout.

    :param model: a team with discrete actions, whose rollout is complete
    :param generator: draws the states
    :param n_states: how many
    :return: in the unit of the model's ground cost between actions
    """
    states, _ = draw_states(model.rollout_buffer, n_states, generator)
    with th.no_grad():
        distribution = model.policy.policies_at(states)
    assert isinstance(distribution, MaskedCategorical)
    probs = distribution.log_probs.double().softmax(-1)
    cost = ot.action_cost(ot.one_hot_embedding(probs.shape[-1], dtype=th.float64), beta=METRIC["beta"], p=METRIC["p"])
    return float(ot.pairwise_sinkhorn(probs, cost, reg=REG, debiased=True).value.mean(0).amax())


def consensus_only(
    *,
    step_size: float,
    consensus_coef: float,
    seed: int,
    n_agents: int = 3,
    n_support: int = 512,
    net_arch: Sequence[int] = (64, 64),
    estimator: str = "conditional",
) -> WBC:
    r"""
    A team whose every update is one plain gradient step on consensus.

    :math:`\theta_i \leftarrow \theta_i - \alpha \lambda \nabla_{\theta_i} W(\mu_i, \mu^*)`: one minibatch and one
    epoch make one step an iteration, stochastic gradient descent makes the learning rate :math:`\alpha`, no reward and a
    critic that says zero leave no advantage, and the norm of the gradient is not bounded.

    :param step_size: :math:`\alpha`
    :param consensus_coef: :math:`\lambda`
    :param seed: of the environment, the networks and the support
    :param n_agents: N
    :param n_support: states on which the agents are compared
    :param net_arch: hidden widths of the policies; empty makes them linear in the observation
    :param estimator: of the disagreement
    :return: a model whose agents disagree
    """
    env = UnrewardedNavigation(n_copies=64, n_agents=n_agents, seed=seed)
    model = WBC(
        "MlpPolicy",
        env,
        learning_rate=step_size,
        n_steps=5,
        batch_size=64 * 5 * n_agents,
        n_epochs=1,
        gamma=0.0,
        ent_coef=0.0,
        vf_coef=0.0,
        max_grad_norm=1e9,
        normalize_advantage=False,
        consensus_coef=consensus_coef,
        policy_kwargs={"optimizer_class": th.optim.SGD, "net_arch": list(net_arch)},
        seed=seed,
        reg=REG,
        estimator=estimator,
        estimator_kwargs={"n_support": n_support, **METRIC},
    )
    with th.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.zero_()
        model.policy.action_net.orthogonal_(INITIAL_GAIN)
    return model


def disagreement(model: WBC, n_iterations: int, *, probe: bool = False) -> Disagreement:
    """
    Train and keep the divergences.

    :param model: from :func:`consensus_only`
    :param n_iterations: steps
    :param probe: measure the policies at equal states as well
    :return: the record
    """
    record = Disagreement(probe=probe)
    buffer = model.rollout_buffer
    model.learn(n_iterations * buffer.size() * buffer.n_agents, callback=record)
    return record


@dataclass(frozen=True)
class Fit:
    r"""
    A straight line through :math:`\log D_t`.

    :param kappa: :math:`\kappa`, the factor per iteration
    :param r_squared: share of the variance of :math:`\log D_t` that the line explains
    :param first: first iteration of the range
    :param last: last iteration of the range, included
    """

    kappa: float
    r_squared: float
    first: int
    last: int


def fit_geometric(values: Array, *, start: float = 0.5, floor: float = 0.02) -> Fit:
    r"""
    Fit :math:`D_t = c \kappa^t` by least squares on :math:`\log D_t`.

    The range is chosen by the height of the curve, and not by how well it fits: from the first iteration at or below
    ``start * D_0`` to the last before the curve first falls below ``floor * D_0``.

    :param values: :math:`D_t`, shape ``(n,)``, positive
    :param start: of :math:`D_0`, in (0, 1]
    :param floor: of :math:`D_0`, below ``start``
    :return: the fit
    :raises ValueError: if fewer than three points lie in the range
    """
    first = int(np.argmax(values <= start * values[0]))
    below = np.flatnonzero(values < floor * values[0])
    last = int(below[0]) - 1 if len(below) else len(values) - 1
    if values[first] > start * values[0] or last - first < 2:
        raise ValueError(
            f"`values` has fewer than three entries between {start:g} and {floor:g} of its first; record more iterations, or "
            "take smaller steps"
        )
    line = linregress(np.arange(first, last + 1), np.log(values[first : last + 1]))
    return Fit(float(np.exp(line.slope)), float(line.rvalue**2), first, last)


@dataclass(frozen=True, eq=False)
class Contraction:
    """
    Everything that the figure and the table of Theorem 3.1 show.

    :param curves: :math:`D_t` of every seed by :math:`\\alpha\\lambda`, shape ``(n_seeds, n_iterations)`` each
    :param objectives: the same of the mean divergence from the barycenter
    :param supports: of every seed by support: what WBC logged, and the policies at equal states, shape
        ``(2, n_seeds, n_iterations)`` each
    """

    curves: dict[float, Array]
    objectives: dict[float, Array]
    supports: dict[str, Array]


def measure_contraction(*, n_seeds: int, quick: bool = False) -> Contraction:
    r"""
    Run every :math:`\alpha\lambda` and every support.

    :param n_seeds: seeds 0, 1, ...
    :param quick: the two largest rates, briefly, and few iterations of the supports
    :return: the curves
    """
    curves, objectives, supports = {}, {}, {}
    for rate, horizon in RATES.items():
        if quick and rate < 0.4:
            continue
        iterations = round((8.0 if quick else horizon) / rate)
        records = [
            disagreement(consensus_only(step_size=rate, consensus_coef=1.0, seed=seed), iterations) for seed in range(n_seeds)
        ]
        curves[rate] = np.array([record.max_divergence for record in records])
        objectives[rate] = np.array([record.mean_divergence for record in records])
    for label, options in SUPPORTS.items():
        both = []
        for seed in range(n_seeds):
            model = consensus_only(step_size=SUPPORT_RATE, consensus_coef=1.0, seed=seed, **options)
            record = disagreement(model, 4 if quick else SUPPORT_ITERATIONS, probe=True)
            both.append((record.max_divergence, record.policy_divergence))
        supports[label] = np.array(both).swapaxes(0, 1)
    return Contraction(curves, objectives, supports)


def contraction_tables(result: Contraction) -> list[Table]:
    """
    :param result: the runs
    :return: the fits by rate, and how far each support got
    """
    fits = Table(
        "Theorem 3.1: D_t = c kappa^t, fitted from half of D_0 down to a fiftieth; mean +/- standard deviation over "
        f"{len(next(iter(result.curves.values())))} seeds",
        (
            "alpha lambda",
            "kappa of D",
            "(1 - kappa) / (alpha lambda)",
            "kappa of the objective",
            "least R^2",
            "iterations in fit",
        ),
    )
    for rate, curves in result.curves.items():
        ours = [fit_geometric(curve) for curve in curves]
        kappa = np.array([fit.kappa for fit in ours])
        objective = np.array([fit_geometric(curve).kappa for curve in result.objectives[rate]])
        lengths = [fit.last - fit.first + 1 for fit in ours]
        fits.rows.append(
            (
                f"{rate:g}",
                _mean_and_deviation(kappa, 3),
                _mean_and_deviation((1 - kappa) / rate, 2),
                _mean_and_deviation(objective, 3),
                f"{min(fit.r_squared for fit in ours):.3f}",
                f"{min(lengths)}-{max(lengths)}",
            )
        )
    ends = Table(
        f"What each support contracts in {next(iter(result.supports.values())).shape[-1]} iterations, alpha lambda = "
        f"{SUPPORT_RATE:g}: last over first value",
        ("support", "D_t as logged, at the start", "last / first", "D_t of the policies at equal states, last / first"),
    )
    for label, (logged, policies) in result.supports.items():
        cells = [_mean_and_deviation(values[:, -1] / values[:, 0], 3) for values in (logged, policies)]
        ends.rows.append((label, _mean_and_deviation(logged[:, 0], 3), *cells))
    return [fits, ends]


def _mean_and_deviation(values: Array, digits: int) -> str:
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.{digits}f} +/- {deviation:.{digits}f}"


def draw_contraction(result: Contraction, path: Path) -> None:
    """
    The figure of Theorem 3.1.

    :param result: the runs
    :param path: the PNG
    """
    style: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 160}
    with mpl.rc_context(style):
        figure = Figure(figsize=(11.0, 3.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 0.8, 1.0))
        _draw_curves(left, result)
        _draw_rates(middle, result)
        _draw_supports(right, result)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _draw_curves(axis: Axes, result: Contraction) -> None:
    for (rate, curves), colour in zip(result.curves.items(), COLOURS, strict=False):
        relative = curves / curves[:, :1]
        scaled = rate * np.arange(curves.shape[1])
        axis.fill_between(scaled, relative.min(0), relative.max(0), color=colour, alpha=0.15, lw=0)
        label = rf"$\alpha\lambda = {rate:g}$"
        axis.plot(scaled, np.exp(np.log(relative).mean(0)), color=colour, lw=1.3, label=label)
    axis.axhspan(0.02, 0.5, color="black", alpha=0.05, lw=0)
    axis.text(0.98, 0.5, "range of the fits", transform=axis.get_yaxis_transform(), ha="right", va="top", fontsize=8)
    axis.set(yscale="log", xlabel=r"$\alpha\lambda t$", ylabel=r"$D_t / D_0$", title="disagreement without rewards")
    axis.legend(frameon=False, fontsize=8)


def _draw_rates(axis: Axes, result: Contraction) -> None:
    rates = np.array(list(result.curves))
    kappas = np.array([[fit_geometric(curve).kappa for curve in curves] for curves in result.curves.values()])
    loss = 1 - kappas
    deviation = loss.std(1, ddof=1) if loss.shape[1] > 1 else np.zeros(len(rates))
    constant = float((loss[0] / rates[0]).mean())
    axis.plot(rates, constant * rates, color="black", lw=1, linestyle="--", label=f"{constant:.2f} $\\alpha\\lambda$")
    axis.errorbar(rates, loss.mean(1), deviation, color=COLOURS[0], marker="o", lw=0, elinewidth=1.2, capsize=3)
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axis.set_yticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
    axis.minorticks_off()
    axis.set(xlabel=r"$\alpha\lambda$", ylabel=r"$1 - \kappa$", title="rate of contraction")
    axis.legend(frameon=False)


def _draw_supports(axis: Axes, result: Contraction) -> None:
    lines = ((":", "as logged, on its support"), ("-", "of the policies at equal states"))
    for (label, both), colour in zip(result.supports.items(), COLOURS, strict=False):
        for values, (line, _) in zip(both, lines, strict=True):
            relative = np.exp(np.log(values / values[:, :1]).mean(0))
            axis.plot(relative, color=colour, linestyle=line, lw=1.4)
        axis.plot([], color=colour, lw=4, label=label)
    for line, what in lines:
        axis.plot([], color="black", linestyle=line, lw=1.4, label=what)
    axis.set(
        yscale="log", xlabel="iteration $t$", ylabel=r"$D_t / D_0$", title=rf"supports, $\alpha\lambda = {SUPPORT_RATE:g}$"
    )
    # Room for the legend below the curves.
    axis.set_ylim(bottom=4e-4)
    axis.legend(frameon=False, fontsize=8, loc="lower left")


def contraction(args: argparse.Namespace) -> list[Table]:
    """Measure and draw Theorem 3.1, as the command line of ``zoo.theory`` says."""
    result = measure_contraction(n_seeds=args.seeds, quick=args.quick)
    draw_contraction(result, args.out / "theorem31.png")
    return contraction_tables(result)
