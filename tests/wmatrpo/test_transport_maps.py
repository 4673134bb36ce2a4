"""The optimal move within a trust region: linear programmes and dense grids say what it is."""

import numpy as np
import pytest
import torch as th
from gymnasium import Env, spaces
from scipy.optimize import linprog, minimize_scalar
from trust_region_toys import collect, rounds

from otbaselines import WMATRPO
from otbaselines.common.vec_env.layout import TeamLayout
from otbaselines.wmatrpo.action_metric import ActionMetric
from otbaselines.wmatrpo.advantages import Box, MarginalAdvantage
from otbaselines.wmatrpo.transport import BoxSearch


# ---------------------------------------------------------------- tables: one agent, as Terpin et al. (2022)
class RandomMDP(Env):
    """Five states that are observed, four actions, random transitions and rewards."""

    def __init__(self) -> None:
        self.observation_space = spaces.Discrete(5)
        self.action_space = spaces.Discrete(4)
        rng = np.random.default_rng(3)
        self.next = rng.dirichlet(np.ones(5), size=(5, 4))
        self.reward = rng.normal(size=(5, 4))
        self.rng = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        self.state, self.t = int(self.rng.integers(5)), 0
        return self.state, {}

    def step(self, action):
        reward = self.reward[self.state, action]
        self.state, self.t = int(self.rng.choice(5, p=self.next[self.state, action])), self.t + 1
        return self.state, float(reward), False, self.t >= 40, {}


TABLE = [[0.0, 1.0, 2.0, 1.5], [1.0, 0.0, 1.0, 1.2], [2.0, 1.0, 0.0, 1.0], [1.5, 1.2, 1.0, 0.0]]


def _tabular(**kwargs):
    # Observations are one-hot and there is no hidden layer, so that the actor is a table of logits.
    settings = {"n_steps": 160, "n_critic_updates": 5, "seed": 1, "policy_kwargs": {"net_arch": []}, "ground_metric": TABLE}
    return WMATRPO("MlpPolicy", RandomMDP(), **{**settings, **kwargs})


def _programme(share, probs, advantages, cost, radius):
    """
    The best policy whose mean transport cost is at most the radius: mass x[s, a, a'] goes from a to a' in state s.

    :return: its probabilities and its value
    """
    n_states, n = probs.shape
    objective = np.broadcast_to((share[:, None, None] * advantages[:, None, :]), (n_states, n, n)).ravel()
    cost_row = (share[:, None, None] * cost[None]).ravel()
    sources = np.kron(np.eye(n_states * n), np.ones(n))
    result = linprog(-objective, A_ub=[cost_row], b_ub=[radius], A_eq=sources, b_eq=probs.ravel(), method="highs")
    assert result.status == 0
    return result.x.reshape(n_states, n, n).sum(1), -result.fun, -result.ineqlin.marginals[0]


@pytest.mark.parametrize("radius", [0.02, 0.1, 0.2, 5.0])
def test_the_transport_of_a_table_is_the_optimum_of_the_linear_programme_and_is_fitted(radius, monkeypatch):
    model = _tabular(trust_radius=radius, actor_learning_rate=0.05, n_actor_updates=200)
    # Away from uniform, by its own learning.
    rounds(model, 2)
    collect(model)
    seen = {}

    def watch(problem, advantage, old):
        seen["transport"] = solve(problem, advantage, old)
        seen["old"] = old.probs[:, 0].detach()
        seen["advantages"] = advantage(advantage.sets[0].grid(5).unsqueeze(0))
        return seen["transport"]

    solve = model._transport
    monkeypatch.setattr(model, "_transport", watch)
    states = model.rollout_buffer.observations.flatten().numpy()
    model.train()
    transport = seen["transport"]
    share = np.array([(states == state).mean() for state in range(5)])
    first = [int(np.flatnonzero(states == state)[0]) for state in range(5)]
    old, advantages = (tensor.double().numpy()[first] for tensor in (seen["old"], seen["advantages"]))
    old /= old.sum(1, keepdims=True)
    probs, value, price = _programme(share, old, advantages, np.array(TABLE), radius)
    targets = np.stack([transport.targets[states == state].double().numpy().sum(0) for state in range(5)]) / share[:, None]
    np.testing.assert_allclose(targets, probs, atol=1e-5)
    assert transport.value == pytest.approx(value, abs=1e-5)
    assert transport.multiplier == pytest.approx(price, abs=1e-4)
    assert (transport.multiplier > 0.0) == (price > 0.0) == (radius < 5.0)
    # The network follows: nearly all of what there is to be gained, within the radius.
    with th.no_grad():
        new = model.policy.team_distribution(th.arange(5).unsqueeze(1)).probs[:, 0].double().numpy()
    gain = float((share[:, None] * (new - old) * advantages).sum())
    best = value - float((share[:, None] * old * advantages).sum())
    assert 0.95 * best <= gain <= best * 1.002
    # The least cost of moving the old probabilities to the new.
    moved = sum(s * _least_cost(a, b, np.array(TABLE)) for s, a, b in zip(share, old, new, strict=True))
    log = model.logger.name_to_value
    assert log["trust_region/w1_0"] == pytest.approx(moved, abs=1e-5)
    assert moved <= radius * 1.001 + 1e-6
    assert radius == 5.0 or moved >= 0.9 * radius


def _least_cost(source, target, cost):
    n = len(source)
    rows, columns = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
    result = linprog(
        cost.ravel(), A_eq=np.vstack([rows, columns])[:-1], b_eq=np.r_[source, target / target.sum()][:-1], method="highs"
    )
    return result.fun


def test_the_lagrangian_of_a_table_gains_within_the_radius():
    model = _tabular(trust_radius=0.2, update="lagrangian", actor_learning_rate=0.05, n_actor_updates=40)
    logs = rounds(model, 4)
    assert sum(log["train/is_update_accepted"] for log in logs) >= 3.0
    for log in logs:
        assert log["trust_region/w1_0"] <= 0.2 * 1.001


# ---------------------------------------------------------------- boxes: a grid so dense that it is the answer
class Known:
    """Critics that are a function of one agent's action, which may differ between states."""

    def __init__(self, function):
        self.function = function

    def responses(self, states, joint, agent, candidates):
        return self.function(states, candidates.expand(len(states), -1, -1)).unsqueeze(0).unsqueeze(2)


def _waves(states, actions):
    # Several maxima, of which the highest is not the next.
    x = actions[..., 0]
    return th.sin(7.0 * x + states) + 0.6 * x - 0.3 * x**2


def _ripples(states, actions):
    x, y = actions[..., 0], actions[..., 1]
    return th.sin(4.0 * x + states) + th.cos(3.0 * y - states) + 0.5 * x * y


def _search(function, dim, sources, weights, radius, *, low, high, ground=None, n_candidates, n_refinements):
    space = spaces.Box(np.full(dim, low, np.float32), np.full(dim, high, np.float32))
    layout = TeamLayout(("one",), 1, {"one": space}, {"one": space})
    metric = ActionMetric(ground, layout, space, th.device("cpu"))
    ends = th.full((dim,), -1.0), th.full((dim,), 1.0)
    states = th.linspace(0.0, 1.0, len(sources)).unsqueeze(1)
    joint = th.zeros(len(sources), 1, 1, dim)
    fixed = (Known(function), states, joint, th.ones(len(sources), 1), 0, th.zeros(len(sources)), th.tensor(1.0), 0.0)
    advantage = MarginalAdvantage(*fixed, (), [Box(*ends)])
    search = BoxSearch(th.full((dim,), low), th.full((dim,), high), n_candidates, n_refinements)
    return search.transport(advantage, sources, metric, radius, weights), search, states


def _dense_dual(function, states, search, sources, weights, radius, dense, ground):
    """The minimum over the multiplier, by SciPy, of what a dense grid says."""
    ends = [np.linspace(float(a), float(b), dense) for a, b in zip(search.low, search.high, strict=True)]
    grid = th.as_tensor(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, len(ends)), dtype=th.float32)
    values = function(states, search.encode(grid).expand(len(states), -1, -1)).double().numpy()
    scale = np.ones(len(ends)) if ground is None else np.array(ground)
    cost = (np.abs(sources.double().numpy()[:, :, None] - grid.double().numpy()[None, None]) * scale).sum(-1)
    # What moves in one dimension alone costs least, and is not on the grid; nor is what stays where it is.
    worth, price = [function(states, search.encode(sources)).double().numpy()], [np.zeros(sources.shape[:2])]
    for axis, points in enumerate(ends):
        for point in points:
            moved = sources.clone()
            moved[..., axis] = float(point)
            worth.append(function(states, search.encode(moved)).double().numpy())
            price.append(scale[axis] * (moved - sources)[..., axis].abs().double().numpy())
    alone, its_cost = np.stack(worth, -1), np.stack(price, -1)

    def dual(multiplier):
        best = np.maximum((values[:, None] - multiplier * cost).max(-1), (alone - multiplier * its_cost).max(-1))
        return multiplier * radius + (weights.double().numpy() * best).sum()

    found = minimize_scalar(dual, bounds=(0.0, 20.0), method="bounded", options={"xatol": 1e-7})
    return found.x, found.fun


CASES = {
    # dimensions, function, box, candidates, refinements, grid of the oracle, tolerance
    "one dimension": (1, _waves, (-2.0, 6.0), 64, 10, 4001, 1e-3),
    "two dimensions": (2, _ripples, (-1.0, 1.0), 256, 20, 61, 2e-2),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("radius", [0.1, 0.3])
def test_the_search_of_a_box_finds_what_a_dense_grid_finds(case, weighted, radius):
    dim, function, (low, high), n_candidates, n_refinements, dense, tolerance = CASES[case]
    ground = [1.5, 0.5][:dim] if weighted else None
    # Many sources, because each is a kink of the dual, between which its minimiser jumps.
    sources = low + (high - low) * th.rand(30, 10, dim)
    weights = th.rand(30, 10)
    weights /= weights.sum()
    settings = {"low": low, "high": high, "ground": ground, "n_candidates": n_candidates, "n_refinements": n_refinements}
    found, search, states = _search(function, dim, sources, weights, radius, **settings)
    multiplier, value = _dense_dual(function, states, search, sources, weights, radius, dense, ground)
    assert found.value == pytest.approx(value, abs=min(tolerance, 5e-3))
    # The multiplier is the slope of the value in the radius, which a search misses by more than the value itself.
    slack = 3 * tolerance if weighted and dim == 2 else tolerance
    assert found.multiplier == pytest.approx(multiplier, abs=slack, rel=slack)
    # The images are in the box or where they were, and the mixture of both maps uses the budget up.
    assert bool(((found.targets >= low) & (found.targets <= high)).all())
    scale = th.tensor(ground or [1.0] * dim)
    costs = ((found.targets - sources).abs() * scale).sum(-1)
    assert float((found.shares[:, None, None] * weights * costs).sum()) == pytest.approx(radius, rel=1e-4)
    assert float(found.shares.sum()) == pytest.approx(1.0)


def test_more_refinements_come_closer():
    sources, weights = -2.0 + 8.0 * th.rand(6, 5, 1), th.full((6, 5), 1 / 30)
    values = []
    for n_refinements in (0, 1, 3, 6):
        settings = {"low": -2.0, "high": 6.0, "n_candidates": 16, "n_refinements": n_refinements}
        found, search, states = _search(_waves, 1, sources, weights, 0.2, **settings)
        values.append(found.value)
    exact = _dense_dual(_waves, states, search, sources, weights, 0.2, 4001, None)[1]
    assert values == sorted(values)
    assert exact - values[-1] < 0.2 * (exact - values[0])


def test_every_refinement_looks_closer_than_the_one_before(monkeypatch):
    spreads, near = [], Box.near

    def watch(self, actions, spread):
        spreads.append(spread)
        return near(self, actions, spread)

    monkeypatch.setattr(Box, "near", watch)
    settings = {"low": -2.0, "high": 6.0, "n_candidates": 16, "n_refinements": 3}
    _search(_waves, 1, th.zeros(1, 4, 1), th.full((1, 4), 0.25), 0.2, **settings)
    # Sixteen candidates on a line are a sixteenth of it apart.
    assert sorted(set(spreads), reverse=True) == pytest.approx([1 / 16, 0.8 / 16, 0.64 / 16])


def test_a_first_order_step_is_not_the_maximum_that_is_looked_for():
    # The slope at zero points to the left, and the highest point is on the right.
    def valley(states, actions):
        return th.where(actions[..., 0] < 0.2, -actions[..., 0], 2.0 * actions[..., 0]) + 0.0 * states

    settings = {"low": -1.0, "high": 1.0, "n_candidates": 64, "n_refinements": 2}
    found, *_ = _search(valley, 1, th.zeros(1, 1, 1), th.ones(1, 1), 1.0, **settings)
    assert float(found.targets[0]) == pytest.approx(1.0, abs=1e-5)
    assert found.value == pytest.approx(2.0, abs=1e-5)


def test_sources_beyond_the_box_stay_where_nothing_is_better():
    # Actions are clipped: the first of the two would have to go 0.7 for nothing, before it gains as the second does at once.
    # What the critic would say beyond the box, where nothing is ever done, is not asked.
    def downhill(states, actions):
        return 0.0 * states - actions[..., 0] - 5.0 * (actions[..., 0] - 1.0).clamp_min(0.0)

    settings = {"low": -1.0, "high": 1.0, "n_candidates": 16, "n_refinements": 2}
    sources, weights = th.tensor([[[1.7], [0.5]]]), th.full((1, 2), 0.5)
    found, *_ = _search(downhill, 1, sources, weights, 0.1, **settings)
    assert float(found.targets[0, 0, 0]) == float(found.targets[1, 0, 0]) == pytest.approx(1.7)
    assert float(found.targets[:, 0, 1].min()) < 0.4
