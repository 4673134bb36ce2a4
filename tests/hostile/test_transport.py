"""
Bad and extreme inputs for every public function of the transport layer, made by a generator.

Each answer is either an error of the right kind that names an argument, or a result that is finite and keeps what it
promises, and comes soon.
"""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ot as pot
import pytest
import torch as th

from otbaselines import ot

Arguments = dict[str, Any]
N, TEAM, DIM = 4, 3, 2
SECONDS = 2.0
LIMIT = 200


def uniform(*shape: int) -> th.Tensor:
    return th.full(shape, 1.0 / shape[-1], dtype=th.float64)


def spread(*shape: int) -> th.Tensor:
    """Some measures, the first bin of each row empty."""
    weights = th.rand(*shape, generator=th.Generator().manual_seed(sum(shape)), dtype=th.float64)
    weights[..., 0] = 0.0
    return weights / weights.sum(-1, keepdim=True)


def points(*shape: int) -> th.Tensor:
    return th.randn(*shape, generator=th.Generator().manual_seed(sum(shape)), dtype=th.float64)


def cost(n: int = N) -> th.Tensor:
    return ot.pairwise(points(n, DIM))


def unit(measure: th.Tensor) -> th.Tensor:
    return measure.detach() / measure.detach().sum(-1, keepdim=True)


def gap(x: th.Tensor, y: th.Tensor) -> float:
    return float((x.double() - y.double()).abs().sum(-1).max())


def rounding(result: Any, tol: float) -> float:
    """The tolerance, and what the returned precision adds: potentials are rounded, and divided by the strength."""
    eps = th.finfo(result.value.dtype if hasattr(result, "value") else result.weights.dtype).eps
    held = result.potential_a if hasattr(result, "value") else result.potentials_a
    return tol + 16 * eps * (1.0 + float(held.abs().max()) / result._reg)


def keeps_coupling(result: ot.OTResult, given: Arguments) -> None:
    plan, matrix = result.plan, given["cost"].detach()
    assert bool((plan >= 0).all())
    assert bool(result.potential_a.isfinite().all())
    assert bool(result.potential_b.isfinite().all())
    assert bool(result.value_linear.isfinite().all())
    allowed = rounding(result, given.get("tol", 1e-6))
    a, b = unit(given["a"]), unit(given.get("b", given["a"]))
    if bool(result.converged.all()):
        for axis, marginal in ((-1, a), (-2, b)):
            assert gap(plan.sum(axis), marginal.expand_as(plan.sum(axis))) <= allowed
        # The product of the marginals is a coupling, and its entropic cost is its cost.
        product = (a.unsqueeze(-1) * b.unsqueeze(-2) * matrix).sum((-1, -2))
        assert bool(
            (result.value.detach() <= product + (allowed + 1e-9) * (1.0 + float(matrix.max())) + 1e-9 * result._reg).all()
        )


def keeps_divergence(result: ot.DivergenceResult, given: Arguments) -> None:
    assert result.converged.dtype == th.bool
    assert result.error.shape == result.value.shape
    assert bool((~result.converged | (result.error <= given.get("tol", 1e-6) * (1 + 1e-6))).all())
    if "measures" in given:
        assert th.equal(result.value, result.value.mT)


def keeps_barycenter(result: ot.BarycenterResult, given: Arguments) -> None:
    assert bool((result.weights >= 0).all())
    assert gap(result.weights.sum(-1, keepdim=True), th.ones(1)) < 1e-5
    allowed = rounding(result, given.get("tol", 1e-6))
    team = unit(given["measures"])
    for i in range(team.shape[-2]):
        plan = result.plan(i)
        if bool(result.converged.all()):
            assert gap(plan.sum(-1), result.weights) <= allowed
            assert gap(plan.sum(-2), team[..., i, :].expand_as(result.weights)) <= allowed


def keeps_scaling(result: ot.ScalingBarycenter, given: Arguments) -> None:
    assert gap(result.weights.sum(-1, keepdim=True), th.ones(1)) < 1e-5
    for value in (result.weights, result.gradient, result.divergences, result.error):
        assert bool(value.isfinite().all())


def solve_small(measures: Any, cost: Any, *, reg: Any, n_iter: Any, weights: Any = None) -> ot.ScalingBarycenter:
    return ot.ScalingSolver(cost, reg=reg, weights=weights).solve(measures, n_iter)


def small_pairs(measures: Any, cost: Any, *, reg: Any) -> ot.DivergenceResult:
    solver = ot.ScalingSolver(cost, reg=reg)
    return solver.pair_divergences(measures, solver.solve(measures, 4).state)


def small_pairs_hold(result: ot.DivergenceResult, given: Arguments) -> None:
    assert bool((~result.converged | (result.error < 1e-4)).all())


def between_lattice(a: Any, b: Any, *, reg: Any, first: Any, second: Any) -> ot.OTResult:
    return ot.sinkhorn(ot.LatticeCost([first, second]), a, b, reg=reg, max_iter=LIMIT)


def is_distance(result: th.Tensor, given: Arguments) -> None:
    assert bool((result >= 0).all())


def rows(x: th.Tensor, like: th.Tensor) -> np.ndarray[Any, Any]:
    """One row of numbers for each entry of ``like``."""
    return x.detach().double().expand(*like.shape, -1).reshape(-1, x.shape[-1]).numpy()


def is_linear_programme(result: th.Tensor, given: Arguments) -> None:
    matrix = given["cost"].detach().double().numpy()
    for value, p, q in zip(result.flatten().tolist(), rows(given["p"], result), rows(given["q"], result), strict=True):
        expected = pot.emd2(p / p.sum(), q / q.sum(), matrix / matrix.max()) * matrix.max() if matrix.max() else 0.0
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-6 * matrix.max())


def is_quantile_distance(result: th.Tensor, given: Arguments) -> None:
    p, unit = float(given["p"]), max(float(given[name].detach().abs().max()) for name in "xy")
    weights = [given.get(a) if given.get(a) is not None else th.ones(given[x].shape[-1]) for a, x in ("ax", "by")]
    columns = [rows(given["x"], result), rows(given["y"], result), *(rows(row, result) for row in weights)]
    for value, x, y, a, b in zip(result.flatten().tolist(), *columns, strict=True):
        expected = pot.emd2_1d(x / unit, y / unit, a / a.sum(), b / b.sum(), metric="minkowski", p=p) if unit else 0.0
        assert value == pytest.approx(unit * expected ** (1 / p), rel=1e-4, abs=1e-3 * unit)


def nearly_non_negative(result: th.Tensor, given: Arguments) -> None:
    eps = th.finfo(result.dtype).eps
    result = result.detach()
    sizes = [x.detach().square().max() for x in given.values() if isinstance(x, th.Tensor)]
    assert float(result.min()) >= -8 * eps * float(
        max(sizes) + given.get("reg", 0.0) * (1.0 + abs(math.log(given["reg"] or 1)))
    )


def is_certified(result: ot.TrustRegionResult, given: Arguments) -> None:
    """The mixture is within the budget, and a dual value that is no larger than its own shows that nothing is better."""
    shape = (*given["weights"].shape, given["values"].shape[-1])
    values, cost = (given[name].detach().double().expand(shape) for name in ("values", "cost"))
    weights = unit(given["weights"].flatten()).double().view(shape[:-1])
    multiplier, share, radius = float(result.multiplier), float(result.mixing), float(given["radius"])
    maps = [index.unsqueeze(-1) for index in (result.nearest, result.furthest)]
    value, spent = (
        sum(
            float((weights * x.gather(-1, index)[..., 0]).sum()) * t for index, t in zip(maps, (share, 1 - share), strict=True)
        )
        for x in (values, cost)
    )
    dual = multiplier * radius + float((weights * (values - multiplier * cost).amax(-1)).sum())
    scale = float(values.abs().max()) + multiplier * radius
    eps = th.finfo(result.value.dtype).eps
    assert spent <= radius * (1 + 8 * eps) + 8 * eps * float((weights * cost.amax(-1)).sum())
    assert bool((result.mass >= 0).all())
    if result.converged:
        assert dual - value <= (2 * given["tol"] + 64 * eps) * scale


def nothing(result: Any, given: Arguments) -> None:
    pass


def unit_columns(result: th.Tensor, given: Arguments) -> None:
    assert gap(result.square().sum(0, keepdim=True), th.ones(1)) < 1e-6 * result.shape[1]


Case = tuple[Callable[..., Any], Arguments, Callable[[Any, Arguments], None]]

FUNCTIONS: dict[str, Case] = {
    "sinkhorn": (
        ot.sinkhorn,
        {"cost": cost(), "a": spread(N), "b": spread(2, N), "reg": 0.3, "tol": 1e-6, "max_iter": LIMIT, "init": points(2, N)},
        keeps_coupling,
    ),
    "lattice": (between_lattice, {"a": spread(8), "b": spread(8), "reg": 0.3, "first": cost(4), "second": cost(2)}, nothing),
    "self_transport": (
        ot.self_transport,
        {"cost": cost(), "a": spread(2, N), "reg": 0.3, "tol": 1e-6, "max_iter": LIMIT},
        keeps_coupling,
    ),
    "sinkhorn_divergence": (
        ot.sinkhorn_divergence,
        {
            "cost_ab": cost(),
            "a": spread(N),
            "b": uniform(N),
            "reg": 0.3,
            "cost_aa": cost(),
            "cost_bb": cost(),
            "max_iter": LIMIT,
        },
        keeps_divergence,
    ),
    "pairwise_sinkhorn": (
        ot.pairwise_sinkhorn,
        {"measures": spread(TEAM, N), "cost": cost(), "reg": 0.3, "tol": 1e-6, "max_iter": LIMIT},
        keeps_divergence,
    ),
    "barycenter": (
        ot.barycenter,
        {
            "measures": spread(TEAM, N),
            "cost": cost(),
            "reg": 0.3,
            "weights": uniform(TEAM),
            "reference": uniform(N),
            "reference_strength": 0.3,
            "tol": 1e-6,
            "max_iter": LIMIT,
            "init": points(TEAM, N),
        },
        keeps_barycenter,
    ),
    "debiased barycenter": (
        lambda measures, cost, *, reg, max_iter: ot.barycenter(measures, cost, reg=reg, debiased=True, max_iter=max_iter),
        {"measures": spread(TEAM, N), "cost": cost(), "reg": 0.3, "max_iter": LIMIT},
        keeps_barycenter,
    ),
    "scaling": (
        solve_small,
        {"measures": spread(2, TEAM, N), "cost": cost(), "reg": 0.3, "n_iter": 8, "weights": uniform(TEAM)},
        keeps_scaling,
    ),
    "pair_divergences": (small_pairs, {"measures": spread(2, TEAM, N), "cost": cost(), "reg": 0.3}, small_pairs_hold),
    "free_support_barycenter": (
        lambda points, weights, *, reg, support, agent_weights, tol, max_iter, debiased: ot.free_support_barycenter(
            [points, points],
            [weights, weights],
            reg=reg,
            support=support,
            agent_weights=agent_weights,
            tol=tol,
            max_iter=max_iter,
            debiased=debiased,
        ),
        {
            "points": points(5, DIM),
            "weights": uniform(5),
            "reg": 1.0,
            "support": points(3, DIM),
            "agent_weights": uniform(2),
            "tol": 1e-3,
            "max_iter": 3,
            "debiased": True,
        },
        nothing,
    ),
    "discrete_w1": (ot.discrete_w1, {"p": spread(2, N), "q": uniform(N), "cost": cost()}, is_linear_programme),
    "wasserstein_1d": (
        ot.wasserstein_1d,
        {"x": points(2, 3), "y": points(2, 5), "a": uniform(3), "b": spread(2, 5), "p": 2.0},
        is_quantile_distance,
    ),
    "wasserstein_1d of equal sizes": (
        lambda x, y, *, p: ot.wasserstein_1d(x, y, p=p),
        {"x": points(2, 3), "y": points(2, 3), "p": 1.0},
        is_quantile_distance,
    ),
    "sliced_wasserstein": (
        ot.sliced_wasserstein,
        {"x": points(3, DIM), "y": points(5, DIM), "n_projections": 4, "p": 2.0, "seed": 0},
        is_distance,
    ),
    "sliced_pairwise": (
        ot.sliced_pairwise,
        {"points": points(TEAM, 5, DIM), "n_projections": 4, "p": 2.0, "seed": 0},
        is_distance,
    ),
    "line_potentials": (
        ot.line_potentials,
        {"x": points(2, 5).sort(-1).values, "y": points(2, 5).sort(-1).values, "p": 2.0},
        nothing,
    ),
    "displacement_cost": (ot.displacement_cost, {"x": points(4, DIM), "y": points(4, DIM), "order": 2}, nothing),
    "random_directions": (ot.random_directions, {"dimension": 3, "n_projections": 4, "seed": 0}, unit_columns),
    "gaussian_w1": (
        ot.gaussian_w1,
        {"mean_a": points(2, 3), "std_a": uniform(2, 3), "mean_b": points(3), "std_b": uniform(3)},
        is_distance,
    ),
    "gaussian_w2": (
        ot.gaussian_w2,
        {"mean_a": points(2, 3), "spread_a": uniform(2, 3), "mean_b": points(3), "spread_b": uniform(3)},
        is_distance,
    ),
    "gaussian_w2 of covariances": (
        lambda mean_a, spread_a, mean_b, spread_b: ot.gaussian_w2(mean_a, spread_a, mean_b, spread_b, covariance="full"),
        {
            "mean_a": points(3),
            "spread_a": th.eye(3, dtype=th.float64),
            "mean_b": points(3),
            "spread_b": 2 * th.eye(3, dtype=th.float64),
        },
        is_distance,
    ),
    "gaussian_w2_barycenter": (
        ot.gaussian_w2_barycenter,
        {"means": points(TEAM, 2), "stds": uniform(TEAM, 2), "weights": uniform(TEAM)},
        nothing,
    ),
    "gaussian_sinkhorn_divergence": (
        ot.gaussian_sinkhorn_divergence,
        {"mean_a": points(3), "std_a": uniform(3), "mean_b": points(3), "std_b": uniform(3), "reg": 0.3},
        nearly_non_negative,
    ),
    "gaussian_sinkhorn_barycenter": (
        ot.gaussian_sinkhorn_barycenter,
        {"means": points(TEAM, 2), "stds": uniform(TEAM, 2), "reg": 0.3, "weights": uniform(TEAM), "n_iter": 5},
        nothing,
    ),
    "pairwise": (
        ot.pairwise,
        {"x": points(3, DIM), "y": points(4, DIM), "p": 2.0, "scale": th.ones(DIM).double()},
        is_distance,
    ),
    "one_hot_embedding": (ot.one_hot_embedding, {"n_actions": 3}, nothing),
    "action_cost": (ot.action_cost, {"embedding": points(3, 2), "beta": 0.5, "p": 2.0}, is_distance),
    "state_action_cost": (
        ot.state_action_cost,
        {
            "states": points(3, DIM),
            "actions": th.tensor([0, 1, 1]),
            "other_states": points(4, DIM),
            "other_actions": th.tensor([1, 0, 2, 0]),
            "beta": 0.5,
            "p": 2.0,
            "scale": 1.5,
            "embedding": points(3, 2),
            "additive": True,
        },
        is_distance,
    ),
    "validate_cost": (ot.validate_cost, {"cost": cost()}, nothing),
    "check_metric": (ot.check_metric, {"cost": cost()}, nothing),
    "trust_region_dual": (
        ot.trust_region_dual,
        {
            "values": points(TEAM, 1, N),
            "cost": cost(),
            "weights": spread(TEAM, N) / TEAM,
            "radius": 0.3,
            "tol": 1e-9,
            "max_iter": LIMIT,
        },
        is_certified,
    ),
}


def bad_tensors(x: th.Tensor) -> Iterator[tuple[str, Any]]:
    """What is no tensor of numbers of the right kind and shape, and what may be one."""
    yield "none", None
    yield "list", x.tolist()
    yield "array", x.numpy()
    yield "text", "cost"
    yield "number", 0.5
    yield "half", x.half()
    yield "complex", x.to(th.complex64)
    yield "integers", x.long()
    yield "truth", x.bool()
    yield "float32", x.float()
    yield "no numbers", x.to("meta")
    yield "sparse", x.to_sparse()
    yield "scalar", x.flatten()[0]
    yield "one entry less", x[..., :-1]
    yield "one entry more", th.cat((x, x[..., :1]), -1)
    yield "no rows", x[:0]
    yield "no entries", x[..., :0]
    yield "one row", x[:1]
    yield "batch of one", x.unsqueeze(0)
    yield "batch of two", th.stack((x, x))
    yield "batch of no problems", x.unsqueeze(0)[:0]
    yield "batch of five", x.expand(5, *x.shape)
    yield "flat", x.flatten()
    yield "transpose", x.mT if x.dim() > 1 else x.unsqueeze(-1)
    yield "with gradient", x.clone().requires_grad_() if x.is_floating_point() else -x
    if not x.is_floating_point():
        yield "negative", x - 1
        yield "too large", x + 5
        return
    for name, value in (("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf), ("negative", -1.0), ("1e30", 1e30)):
        changed = x.clone()
        changed.view(-1)[-1] = value
        yield f"one entry {name}", changed
    if x.dim() > 1:
        symmetric = x.clone()
        symmetric[..., 0, -1], symmetric[..., -1, 0] = 1e30, 1e30
        yield "two large entries", symmetric
    for factor in (0.0, -1.0, 1e-300, 1e-30, 1e-12, 1 - 1e-5, 1 + 1e-7, 1.001, 2.0, 1e9, 1e30, 1e200, 1e300):
        yield f"times {factor:g}", factor * x
    yield "off in float32", ((1 - 1e-5) * x).float()
    yield "all nan", x * math.nan
    yield "alternating signs", x * (-1.0) ** th.arange(x.shape[-1])


BAD_NUMBERS: list[tuple[str, Any]] = [
    ("text", "0.1"),
    ("none", None),
    ("truth", True),
    ("list", [0.1]),
    ("tensor", th.tensor(0.1)),
    ("complex", 1j),
    ("nan", math.nan),
    ("inf", math.inf),
    ("-inf", -math.inf),
    ("zero", 0.0),
    ("integer zero", 0),
    ("minus two", -2),
    ("negative", -1.0),
    ("fraction", 1.5),
    ("huge", 1e300),
    ("large", 1e12),
    ("hundred", 100),
    ("small", 1e-3),
    ("tiny", 1e-9),
    ("denormal", 1e-310),
    ("numpy", np.float32(0.5)),
    ("integer of numpy", np.int64(3)),
]


def mutations(value: Any) -> Iterator[tuple[str, Any]]:
    yield from bad_tensors(value) if isinstance(value, th.Tensor) else BAD_NUMBERS


def names_an_argument(message: str, function: Callable[..., Any]) -> bool:
    names = [*inspect.signature(function).parameters, "cost", "factors", "init", "generator", "p` and `q"]
    return any(f"`{name}" in message for name in names)


def tensors_of(result: Any) -> Iterator[th.Tensor]:
    if isinstance(result, th.Tensor):
        yield result
    elif isinstance(result, tuple):
        yield from result
    elif hasattr(result, "__dict__"):
        for name, value in vars(result).items():
            if not name.startswith("_") and isinstance(value, th.Tensor):
                yield value


def check(label: str, name: str, given: Arguments) -> str:
    """Run one case; the outcome, or an assertion that says which case it was."""
    function, _, keeps = FUNCTIONS[name]
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = function(**given)
            for value in tensors_of(result):
                assert bool(value.isfinite().all()), f"{name}, {label}: not finite"
            keeps(result, given)
        outcome = "result"
    except (ValueError, TypeError) as error:
        if not names_an_argument(str(error), function):
            raise AssertionError(f"{name}, {label}: {type(error).__name__} names nothing: {error}") from error
        outcome = type(error).__name__
    except Exception as error:
        raise AssertionError(f"{name}, {label}: {type(error).__name__}: {error}") from error
    assert time.process_time() - start < SECONDS, f"{name}, {label}: took {time.process_time() - start:.1f} s"
    return outcome


def single_cases(name: str) -> Iterator[tuple[str, Arguments]]:
    arguments = FUNCTIONS[name][1]
    yield "as it should be", arguments
    for argument, value in arguments.items():
        for label, changed in mutations(value):
            yield f"{argument}: {label}", arguments | {argument: changed}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_bad_argument_is_named_or_the_result_holds(name: str) -> None:
    outcomes = [check(label, name, given) for label, given in single_cases(name)]
    assert outcomes[0] == "result"
    assert {"ValueError", "TypeError"} <= set(outcomes)


def test_two_bad_arguments_are_named_or_the_result_holds() -> None:
    random = np.random.default_rng(0)
    for _ in range(400):
        name = str(random.choice(list(FUNCTIONS)))
        given, labels = dict(FUNCTIONS[name][1]), []
        for argument in random.choice(list(given), size=min(2, len(given)), replace=False):
            choices = list(mutations(given[argument]))
            label, given[argument] = choices[random.integers(len(choices))]
            labels.append(f"{argument}: {label}")
        check(", ".join(labels), name, given)


def extreme_problem(random: np.random.Generator) -> tuple[str, str, Arguments]:
    """A problem that is well posed, with measures, costs and strengths of any size."""
    name = str(
        random.choice(["sinkhorn", "self_transport", "pairwise_sinkhorn", "barycenter", "debiased barycenter", "scaling"])
    )
    n, dtype = int(random.integers(1, 7)), th.float32 if random.random() < 0.3 else th.float64
    log_weights = random.choice([0.1, 1.0, 30.0, 600.0]) * random.normal(size=(2, TEAM, n))
    team = th.tensor(log_weights).softmax(-1).to(dtype)
    unit, blunt = 10.0 ** random.uniform(-20, 20), 10.0 ** random.uniform(-8.5, 8.5)
    matrix = ot.pairwise(th.tensor(random.choice([0.0, 1e-6, 1.0], size=(n, 1)) * random.normal(size=(n, DIM))))
    matrix = (matrix + 1e3 * (matrix > 2)).to(dtype)
    largest = float(matrix.max()) or 1.0
    given: Arguments = {"cost": unit * matrix, "reg": unit * largest * blunt}
    given |= {"a": team[0]} if name in ("sinkhorn", "self_transport") else {"measures": team}
    given |= {"b": team[1]} if name == "sinkhorn" else {}
    given |= {"n_iter": 20} if name == "scaling" else {"max_iter": 50}
    return f"{n} bins, unit {unit:.0e}, reg {blunt:.0e} of the cost, {dtype}", name, given


def test_well_posed_problems_of_any_size_keep_their_promises() -> None:
    random = np.random.default_rng(1)
    for _ in range(250):
        label, name, given = extreme_problem(random)
        check(label, name, given)


def test_there_are_a_thousand_cases_and_every_public_function_has_some() -> None:
    assert sum(1 for name in FUNCTIONS for _ in single_cases(name)) > 1000
    tried = {name.split()[0] for name in FUNCTIONS} | {"LatticeCost", "ScalingSolver"}
    functions = {name for name in ot.__all__ if inspect.isfunction(getattr(ot, name))}
    assert functions <= tried
