"""Barycenters of many small problems against the general solver and POT, and their gradient against finite differences."""

import math
from functools import cache

import ot as pot
import pytest
import torch as th

from otbaselines import ot
from otbaselines.ot._kernels import MAX_RANGE_FIXED

N_AGENTS, N_BINS = 3, 5
# The second is beyond what products in float32 can hold, and is solved in the log domain.
REGS = {"product": 0.05, "log": 0.01}


def _cost() -> th.Tensor:
    """Squared distances of five points on a line from 0 to 1."""
    points = th.linspace(0.0, 1.0, N_BINS, dtype=th.float64)
    return (points[:, None] - points[None, :]).square()


def _measures(n_problems: int = 4, *, empty: bool = False) -> th.Tensor:
    logits = 1.5 * th.randn(n_problems, N_AGENTS, N_BINS, dtype=th.float64)
    if empty:
        logits[:, 0, 3:] = -th.inf
        logits[1, 1, :2] = -th.inf
    return logits.softmax(-1)


def scaling_barycenter(measures, cost, *, n_iter, init=None, **settings):
    return ot.ScalingSolver(cost, **settings).solve(measures, n_iter, init)


WEIGHTS = {
    "uniform": None,
    "unequal": th.tensor([0.2, 0.5, 0.3], dtype=th.float64),
    "per_problem": th.tensor([[0.2, 0.5, 0.3], [1 / 3, 1 / 3, 1 / 3], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8]], dtype=th.float64),
}


def _pot_barycenter(measures: th.Tensor, reg: float, weights: th.Tensor | None) -> th.Tensor:
    return pot.barycenter(measures.T, _cost(), reg, weights=weights, method="sinkhorn_log", numItermax=50_000, stopThr=1e-13)


def test_the_two_domains_are_both_tested():
    spans = {domain: ot.ScalingSolver(_cost(), reg=reg).span for domain, reg in REGS.items()}
    assert spans["product"] < MAX_RANGE_FIXED < spans["log"]


@pytest.mark.parametrize("empty", [False, True], ids=["positive", "empty_bins"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("debiased", [False, True], ids=["biased", "debiased"])
@pytest.mark.parametrize("domain", REGS)
def test_it_agrees_with_the_general_solver(domain, debiased, weights, empty):
    measures, reg, shares = _measures(empty=empty), REGS[domain], WEIGHTS[weights]
    ours = scaling_barycenter(
        measures, _cost(), reg=reg, n_iter={"product": 500, "log": 2000}[domain], weights=shares, debiased=debiased
    )
    theirs = ot.barycenter(measures, _cost(), reg=reg, weights=shares, debiased=debiased, tol=1e-10)
    th.testing.assert_close(ours.weights, theirs.weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", ["uniform", "unequal"])
@pytest.mark.parametrize("domain", REGS)
def test_it_agrees_with_pot(domain, weights):
    measures, reg, shares = _measures(2), REGS[domain], WEIGHTS[weights]
    ours = scaling_barycenter(measures, _cost(), reg=reg, n_iter=2000, weights=shares, debiased=False).weights
    theirs = th.stack([_pot_barycenter(problem, reg, shares) for problem in measures])
    th.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def test_without_blur_it_agrees_with_pot():
    # POT's is sound for uniform weights only.
    measures = _measures(2)
    ours = scaling_barycenter(measures, _cost(), reg=0.05, n_iter=2000).weights
    theirs = [
        pot.bregman.barycenter_debiased(problem.T, _cost(), 0.05, numItermax=50_000, stopThr=1e-13) for problem in measures
    ]
    th.testing.assert_close(ours, th.stack(theirs), atol=1e-8, rtol=0)


def _divergence(measure: th.Tensor, center: th.Tensor, reg: float, debiased: bool) -> float:
    r"""POT's :math:`\langle P, C\rangle + \varepsilon KL(P | a \otimes b)`, less half the measure's own when debiased."""
    value = _pot_transport(measure, center, reg)
    return value - 0.5 * _pot_transport(measure, measure, reg) if debiased else value


def _pot_transport(a: th.Tensor, b: th.Tensor, reg: float) -> float:
    return _solved_by_pot(tuple(a.tolist()), tuple(b.tolist()), reg)


@cache
def _solved_by_pot(first: tuple[float, ...], second: tuple[float, ...], reg: float) -> float:
    cost, a, b = _cost(), *(th.tensor(weights, dtype=th.float64) for weights in (first, second))
    plan = pot.bregman.sinkhorn_log(a, b, cost, reg, numItermax=100_000, stopThr=1e-11)
    return float((plan * cost).sum() + reg * (plan * (plan / (a[:, None] * b[None, :])).log()).sum())


@pytest.mark.parametrize("debiased", [False, True], ids=["biased", "debiased"])
@pytest.mark.parametrize("reg", [0.1, 0.05])
def test_the_gradient_is_that_of_the_divergence_from_the_fixed_barycenter(debiased, reg):
    measures = _measures(1)
    solved = scaling_barycenter(measures, _cost(), reg=reg, n_iter=1000, weights=WEIGHTS["unequal"], debiased=debiased)
    center, step = solved.weights[0], 1e-4
    # Mass moves from bin to bin, because a measure of another total has no plan.
    for agent, bin_ in ((0, 0), (0, 3), (1, 1), (2, 2)):
        direction = th.zeros(N_BINS, dtype=th.float64)
        direction[bin_], direction[bin_ + 1] = step, -step
        ahead = _divergence(measures[0, agent] + direction, center, reg, debiased)
        behind = _divergence(measures[0, agent] - direction, center, reg, debiased)
        slope = float((solved.gradient[0, agent] * direction).sum() / step)
        assert slope == pytest.approx((ahead - behind) / (2 * step), abs=1e-5)


def _full_divergence(a: th.Tensor, b: th.Tensor, reg: float, debiased: bool) -> float:
    return _divergence(a, b, reg, debiased) - (0.5 * _pot_transport(b, b, reg) if debiased else 0.0)


@pytest.mark.parametrize("debiased", [False, True], ids=["biased", "debiased"])
@pytest.mark.parametrize("domain", REGS)
def test_the_divergences_are_those_of_pots_plans(domain, debiased):
    measures, reg = _measures(1), REGS[domain]
    solver = ot.ScalingSolver(_cost(), reg=reg, weights=WEIGHTS["unequal"], debiased=debiased)
    solved = solver.solve(measures, 3000)
    pairs = solver.pair_divergences(measures, solved.state).value
    for problem in range(1):
        held, center = measures[problem], solved.weights[problem]
        to_center = [_full_divergence(held[agent], center, reg, debiased) for agent in range(N_AGENTS)]
        assert solved.divergences[problem].tolist() == pytest.approx(to_center, abs=1e-6)
        between = [_full_divergence(held[i], held[j], reg, debiased) for i in range(N_AGENTS) for j in range(i + 1, N_AGENTS)]
        # Pairs stop when their marginals are exact to 1e-4.
        assert pairs[problem].tolist() == pytest.approx(between, abs=1e-4)


@pytest.mark.parametrize("n_iter", [1, 50])
@pytest.mark.parametrize("domain", REGS)
def test_the_gradient_vanishes_where_all_agree_unless_it_is_biased(domain, n_iter):
    measures = _measures(2)[:, :1].expand(-1, N_AGENTS, -1)
    solved = {
        debiased: scaling_barycenter(measures, _cost(), reg=REGS[domain], n_iter=n_iter, debiased=debiased)
        for debiased in (True, False)
    }
    th.testing.assert_close(solved[True].weights, measures[:, 0], atol=1e-6, rtol=0)
    # A potential is determined up to a constant.
    assert float(solved[True].gradient.std(-1).max()) < 1e-6
    assert float(solved[False].gradient.std(-1).min()) > 1e-5


@pytest.mark.parametrize("debiased", [False, True], ids=["biased", "debiased"])
@pytest.mark.parametrize("domain", REGS)
def test_a_warm_start_lowers_the_error(domain, debiased):
    measures, reg = _measures(16), REGS[domain]
    first = scaling_barycenter(measures, _cost(), reg=reg, n_iter=200, debiased=debiased)
    nudged = (measures.log() + 0.01 * th.randn_like(measures)).softmax(-1)
    cold = scaling_barycenter(nudged, _cost(), reg=reg, n_iter=3, debiased=debiased)
    warm = scaling_barycenter(nudged, _cost(), reg=reg, n_iter=3, debiased=debiased, init=first.state)
    assert float(warm.error.mean()) < 0.2 * float(cold.error.mean())


def test_a_stopped_iteration_continues_from_its_state():
    measures = _measures()
    whole = scaling_barycenter(measures, _cost(), reg=0.3, n_iter=10)
    part = scaling_barycenter(measures, _cost(), reg=0.3, n_iter=6)
    rest = scaling_barycenter(measures[1:3], _cost(), reg=0.3, n_iter=4, init=part.state.rows(slice(1, 3)))
    # The steps are made in place, but not in the place of where they started.
    once, again = (scaling_barycenter(measures, _cost(), reg=0.3, n_iter=4, init=part.state).gradient for _ in range(2))
    assert th.equal(once, again)
    th.testing.assert_close(rest.weights, whole.weights[1:3], atol=1e-12, rtol=0)
    th.testing.assert_close(rest.gradient, whole.gradient[1:3], atol=1e-12, rtol=0)


def test_the_error_is_that_of_two_bins_by_hand():
    # K = [[1, 1/2], [1/2, 1]] and mirrored agents. From u = 1: K u = 3/2, v_1 = (1/2, 1/6), K v_1 = (7, 5) / 12; the geometric
    # mean over the agents is sqrt(35) / 12 in both bins, hence u_1 = sqrt(35) (1/7, 1/5), K u_1 = sqrt(35) (17, 19) / 70, and
    # the plan's rows are u_1 K (mu_1 / K u_1) = (655, 637) / 1292.
    cost, reg = 1.0 - th.eye(2, dtype=th.float64), 1.0 / math.log(2.0)
    measures = th.tensor([[[0.75, 0.25], [0.25, 0.75]]], dtype=th.float64)
    ones = ot.ScalingState(th.ones(5, 2, 1, dtype=th.float64))
    solved = scaling_barycenter(measures, cost, reg=reg, n_iter=1, debiased=False, init=ones)
    center = math.sqrt(35.0) / 12.0
    assert float(solved.error) == pytest.approx(abs(655 / 1292 - center) + abs(637 / 1292 - center), abs=1e-14)


@pytest.mark.parametrize("exponent", [0.98 * MAX_RANGE_FIXED, 1.02 * MAX_RANGE_FIXED, 20 * MAX_RANGE_FIXED])
@pytest.mark.parametrize("sharpness", [10.0, 100.0])
@pytest.mark.parametrize("n_agents", [3, 16])
def test_single_precision_stays_finite_for_policies_that_are_nearly_deterministic(exponent, sharpness, n_agents):
    measures = (sharpness * th.randn(100, n_agents, N_BINS)).softmax(-1)
    cost = 1.0 - th.eye(N_BINS)
    cold = scaling_barycenter(measures, cost, reg=1.0 / exponent, n_iter=25)
    warm = scaling_barycenter(measures.flip(0), cost, reg=1.0 / exponent, n_iter=3, init=cold.state)
    for value in (cold.weights, cold.gradient, cold.error, warm.weights, warm.gradient, warm.error):
        assert bool(value.isfinite().all())


@pytest.mark.parametrize("debiased", [False, True], ids=["biased", "debiased"])
def test_single_precision_agrees_with_double_where_agents_lack_actions(debiased):
    measures, cost = _measures(empty=True), 1.3 * (1.0 - th.eye(N_BINS, dtype=th.float64))
    single = scaling_barycenter(measures.float(), cost.float(), reg=0.1, n_iter=100, debiased=debiased)
    double = scaling_barycenter(measures, cost, reg=0.1, n_iter=100, debiased=debiased)
    th.testing.assert_close(single.weights.double(), double.weights, atol=1e-4, rtol=0)
    th.testing.assert_close(single.gradient.double(), double.gradient, atol=1e-3, rtol=0)


def test_it_is_constant_for_autograd():
    measures = _measures().requires_grad_()
    assert not scaling_barycenter(measures, _cost(), reg=0.3, n_iter=2).gradient.requires_grad


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reg": 0.0}, r"`reg` must be positive.*got 0\.0"),
        ({"reg": float("nan")}, r"`reg` must be positive.*got nan"),
        ({"n_iter": 0}, r"`n_iter` must be at least 1, got 0"),
        ({"cost": th.zeros(4, 4).double()}, r"`cost` of shape \(4, 4\) needs \[4, 4\] bins in `measures`"),
        ({"measures": th.ones(3, 5).double() / 5}, r"got shapes \(3, 5\) and \(5, 5\)"),
        ({"weights": th.ones(2).double() / 2}, r"`weights` must have one entry per agent, 3, got shape \(2,\)"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    settings = {"measures": _measures(), "cost": _cost(), "reg": 0.3, "n_iter": 5, **kwargs}
    with pytest.raises(ValueError, match=message):
        scaling_barycenter(settings.pop("measures"), settings.pop("cost"), **settings)


# For blunt kernels the estimate is rough, and two or three times the share may be left.
@pytest.mark.parametrize(("reg", "left"), [(0.25, 0.1), (0.6, 0.1), (1.0, 0.12), (2.0, 0.3)])
def test_about_the_share_of_the_error_that_was_asked_for_is_left(reg, left):
    cost = 1.28 * (1.0 - th.eye(N_BINS, dtype=th.float64))
    solver = ot.ScalingSolver(cost, reg=reg)
    measures = _measures(16)
    start = solver.solve(measures, 2000).state
    moved = (measures.log() + 0.05 * th.randn_like(measures)).softmax(-1)
    potentials = solver.potential(start.scalings)
    before = (potentials[:3] - potentials[4:]).permute(2, 0, 1)
    exact = solver.solve(moved, 2000, start).gradient
    after = solver.solve(moved, solver.steps_for(0.1, 1000), start).gradient

    def distance(a, b):
        # A potential is determined up to a constant.
        return float((a - b - (a - b).mean(-1, keepdim=True)).norm())

    assert distance(after, exact) <= left * distance(before, exact)


def test_more_steps_are_asked_for_where_the_kernel_is_sharper_or_blunter_up_to_the_bound():
    cost, regs = 1.0 - th.eye(N_BINS), (10.0, 1.0, 0.5, 0.3, 0.01)
    # By hand: log 0.1 over log x^2 with x = tanh(1 / 2 reg), and over log(1 - y (1 + y) / 2) with y = x^2.5.
    for debiased, expected in ((False, [1, 2, 5, 17, 50]), (True, [50, 27, 5, 17, 50])):
        assert [ot.ScalingSolver(cost, reg=reg, debiased=debiased).steps_for(0.1, 50) for reg in regs] == expected


def test_steps_for_blunt_kernels_leave_little_near_agreement():
    # Five actions at the strength at which two thirds of the bound on the eigenvalue left up to 43 per cent of the error.
    generator = th.Generator().manual_seed(0)
    solver = ot.ScalingSolver(1.28 * (1.0 - th.eye(N_BINS, dtype=th.float64)), reg=2.0)
    base = 1.5 * th.randn(20, 1, N_BINS, generator=generator, dtype=th.float64)
    first, second = (
        (base + 0.02 * th.randn(20, 3, N_BINS, generator=generator, dtype=th.float64)).softmax(-1) for _ in range(2)
    )
    start = solver.solve(first, 3000)
    exact, after = (solver.solve(second, n, start.state).gradient for n in (3000, solver.steps_for(0.1, 64)))

    def size(gradient):
        return (gradient - (gradient * second).sum(-1, keepdim=True)).mul(second.sqrt()).norm(dim=(1, 2))

    assert float((size(after - exact) / size(start.gradient - exact)).max()) < 0.2


def test_the_error_shows_a_debiasing_that_has_not_settled():
    # Blunt kernels: the plans fit at once, and the debiasing scaling takes hundreds of steps.
    solver = ot.ScalingSolver(1.28 * (1.0 - th.eye(N_BINS, dtype=th.float64)), reg=5.0)
    measures = _measures(4)
    few, many = solver.solve(measures, 5), solver.solve(measures, 3000)
    assert float((few.weights - many.weights).abs().max()) > 0.01
    assert float(few.error.max()) > 1e-3
    assert float(many.error.max()) < 1e-9


def test_pairs_say_whether_they_stopped_early():
    # A sharp kernel and agents that disagree: 400 steps are not enough, for a blunt one they are.
    measures = (8.0 * th.randn(4, N_AGENTS, N_BINS, dtype=th.float64)).softmax(-1)
    outcomes = {}
    for reg in (0.5, 1e-4):
        solver = ot.ScalingSolver(_cost(), reg=reg)
        outcomes[reg] = solver.pair_divergences(measures, solver.solve(measures, 4).state)
        assert th.equal(outcomes[reg].converged, outcomes[reg].error < 1e-4)
    assert outcomes[0.5].converged.all()
    assert not outcomes[1e-4].converged.all()
    assert outcomes[0.5].n_iter < outcomes[1e-4].n_iter


def test_contents_are_checked_unless_the_caller_vouches_for_them():
    measures = _measures()
    with pytest.raises(ValueError, match="rows of `measures` must sum to one"):
        ot.ScalingSolver(_cost(), reg=0.3).solve(0.5 * measures, 3)
    with pytest.raises(ValueError, match="`cost` must be symmetric"):
        ot.ScalingSolver(_cost() + th.arange(5.0).double(), reg=0.3)
    with pytest.raises(ValueError, match="rows of `weights` must sum to one"):
        ot.ScalingSolver(_cost(), reg=0.3, weights=th.ones(3).double())
    checked = ot.ScalingSolver(_cost(), reg=0.3).solve(measures, 3)
    vouched = ot.ScalingSolver(_cost(), reg=0.3, validate=False).solve(measures, 3)
    th.testing.assert_close(checked.gradient, vouched.gradient, atol=1e-13, rtol=0)


def test_a_largest_cost_below_the_true_one_is_refused():
    cost = 1.0 - th.eye(3, dtype=th.float64)
    with pytest.raises(ValueError, match=r"`max_cost` must not be below the largest entry of `cost`, 1, got 0\.5"):
        ot.ScalingSolver(cost, reg=0.1, max_cost=0.5)
    assert ot.ScalingSolver(cost, reg=0.1, max_cost=2.0).span == 20.0
