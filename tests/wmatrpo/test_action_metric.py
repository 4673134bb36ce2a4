"""Ground metrics of actions: Wasserstein-1 distances by hand, and what is no metric."""

import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv
from gymnasium import spaces
from scipy.stats import wasserstein_distance
from trust_region_toys import numbers, rounds

from otbaselines import WMATRPO
from otbaselines.common.multi_agent.distributions import DiagonalGaussian, MaskedCategorical
from otbaselines.common.vec_env.layout import TeamLayout
from otbaselines.envs.navigation_tensor import NavigationVecEnv
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv
from otbaselines.wmatrpo.action_metric import ActionMetric, environment_distances

pytestmark = pytest.mark.filterwarnings("ignore:the rollout of")
SMALL = {"n_steps": 16, "n_critic_updates": 1, "seed": 0, "caatr": False, "policy_kwargs": {"net_arch": [8]}}
LINE = [[0, 1, 2, 3], [1, 0, 1, 2], [2, 1, 0, 1], [3, 2, 1, 0]]


def _layout(*own):
    agents = tuple(f"agent_{k}" for k in range(len(own)))
    return TeamLayout(
        agents, 1, dict.fromkeys(agents, spaces.Box(-1, 1, (2,), np.float32)), dict(zip(agents, own, strict=True))
    )


def _choices(value, *sizes):
    return ActionMetric(value, _layout(*map(spaces.Discrete, sizes)), spaces.Discrete(max(sizes)), th.device("cpu"))


def _vectors(value, *sizes):
    own = [spaces.Box(-1, 1, (size,), np.float32) for size in sizes]
    return ActionMetric(value, _layout(*own), own[int(np.argmax(sizes))], th.device("cpu"))


def _categorical(*probs):
    return MaskedCategorical(th.tensor(probs).clamp_min(1e-12).log().unsqueeze(1))


# ---------------------------------------------------------------- by hand
def test_without_a_metric_choices_are_one_apart():
    old, new = _categorical([0.5, 0.3, 0.2, 0.0]), _categorical([0.1, 0.3, 0.2, 0.4])
    # Of the mass, 0.4 goes elsewhere.
    assert float(_choices(None, 4).w1(new, old, 0)) == pytest.approx(0.4, rel=1e-5)
    assert _choices(None, 4, 2).table(0).tolist() == (1.0 - np.eye(4)).tolist()
    assert _choices(None, 4, 2).table(1).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_choices_on_a_line_are_as_far_apart_as_on_the_line():
    old, new = (
        _categorical([0.5, 0.3, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0]),
        _categorical([0.1, 0.3, 0.2, 0.4], [0.0, 0.0, 0.0, 1.0]),
    )
    # 0.4 over three steps; everything over three steps.
    np.testing.assert_allclose(_choices(LINE, 4).w1(new, old, 0).flatten(), [1.2, 3.0], rtol=1e-5)
    expected = [wasserstein_distance(range(4), range(4), p, q) for p, q in zip(new.probs[:, 0], old.probs[:, 0], strict=True)]
    np.testing.assert_allclose(_choices(LINE, 4).w1(new, old, 0).flatten(), expected, rtol=1e-5)


def test_each_agent_has_its_own_table_of_its_own_choices():
    far = np.array(LINE, dtype=float) * 10
    # What the second agent does not have may be anything.
    far[2:, :] = far[:, 2:] = np.array([[9.0], [9.0], [9.0], [9.0]]).T[:, :1]
    metric = _choices([LINE, far], 4, 2)
    assert metric.table(0).tolist() == LINE
    assert metric.table(1).tolist() == [[0, 10], [10, 0]]
    old, new = _categorical([0.5, 0.5, 0.0, 0.0]), _categorical([0.2, 0.8, 0.0, 0.0])
    assert float(metric.w1(new, old, 0)) == pytest.approx(0.3, rel=1e-5)
    assert float(metric.w1(new, old, 1)) == pytest.approx(3.0, rel=1e-5)


def test_vectors_are_the_weighted_sum_of_their_differences_apart():
    metric = _vectors([1.0, 3.0], 2)
    sources, candidates = th.tensor([[[0.0, 0.0], [1.0, 1.0]]]), th.tensor([[[1.0, 0.0], [0.0, -2.0], [1.0, 1.0]]])
    assert metric.distances(0, sources, candidates).tolist() == [[[1.0, 6.0, 4.0], [3.0, 10.0, 0.0]]]
    assert _vectors(None, 2).distances(0, sources, candidates).tolist() == [[[1.0, 2.0, 2.0], [1.0, 4.0, 0.0]]]
    old = DiagonalGaussian(th.zeros(1, 1, 2), th.tensor([[0.1, -0.3]]))
    # The same shape elsewhere moves by the difference of the means, 0.5 + 3 * 0.25.
    moved = DiagonalGaussian(th.tensor([[[0.5, -0.25]]]), th.tensor([[0.1, -0.3]]))
    assert float(metric.w1(moved, old, 0)) == pytest.approx(1.25, rel=1e-6)
    # In the same place, by the difference of the deviations times the mean of |z|, which is sqrt(2 / pi).
    wide = DiagonalGaussian(th.zeros(1, 1, 2), th.tensor([[0.1, 0.4]]))
    by_hand = 3.0 * (np.exp(0.4) - np.exp(-0.3)) * np.sqrt(2 / np.pi)
    assert float(metric.w1(wide, old, 0)) == pytest.approx(by_hand, rel=1e-5)


def test_dimensions_that_an_agent_lacks_are_not_weighed():
    metric = _vectors([[1.0, 3.0], [2.0, 5.0]], 2, 1)
    a, b = th.tensor([[[0.0, 0.0]]]), th.tensor([[[0.5, 7.0]]])
    assert metric.distances(1, a, b).item() == 1.0
    mask = th.tensor([[True, False]])
    old = DiagonalGaussian(th.zeros(1, 1, 2), th.zeros(1, 2), mask)
    new = DiagonalGaussian(th.tensor([[[0.5, 7.0]]]), th.tensor([[0.0, 3.0]]), mask)
    assert float(metric.w1(new, old, 1)) == pytest.approx(1.0, rel=1e-6)


def test_actions_that_do_opposite_things_are_twice_as_far_apart_as_from_doing_nothing():
    # Stay, left, right, down, up; the second agent is turned and half as fast, which changes no ratio.
    first = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=float)
    table = np.array(environment_distances(np.stack([first, 0.5 * first[:, ::-1]])))
    # In units of the median of all distances between different actions: 4 of 1, 4 of sqrt(2), 2 of 2, and the halves.
    every = sorted([1.0] * 4 + [np.sqrt(2)] * 4 + [2.0] * 2 + [0.5] * 4 + [np.sqrt(0.5)] * 4 + [1.0] * 2)
    unit = np.median(every)
    np.testing.assert_allclose(table[0, 0], np.array([0, 1, 1, 1, 1]) / unit)
    np.testing.assert_allclose(table[0, 1], np.array([1, 0, 2, np.sqrt(2), np.sqrt(2)]) / unit)
    np.testing.assert_allclose(table[1], table[0] / 2)


def test_two_actions_that_do_the_same_are_at_no_distance():
    table = environment_distances([[[0.0], [1.0], [1.0]]])
    assert table == [[[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]
    assert float(_choices(table, 3).w1(_categorical([0.0, 0.9, 0.1]), _categorical([0.0, 0.2, 0.8]), 0)) < 1e-6
    assert environment_distances([[[2.0], [2.0]]]) == [[[0.0, 0.0], [0.0, 0.0]]]


# ---------------------------------------------------------------- in training
@pytest.mark.parametrize("heterogeneous", [False, "roles", "dynamics", "both"])
def test_teams_are_trained_in_the_metric_of_what_their_moves_do(heterogeneous, tmp_path):
    env = NavigationVecEnv(n_copies=4, heterogeneous=heterogeneous, seed=0)
    model = WMATRPO("MlpPolicy", env, **SMALL, ground_metric="environment")
    logs = rounds(model, 2)
    assert logs[-1]["train/is_update_accepted"] > 0.0
    assert all(0.0 <= w1 <= 1.01 * 0.1 for log in logs for w1 in numbers(log, "w1"))
    vectors = env.agent_action_vectors
    for agent in range(env.n_agents):
        table = model._metric.table(agent).numpy()
        expected = np.linalg.norm(vectors[agent][:, None] - vectors[agent][None], axis=-1)
        # Up to the unit, which is common to the team.
        np.testing.assert_allclose(table / model._metric.table(0).max().item(), expected / _span(vectors[0]), atol=1e-6)
    model.save(tmp_path / "model")
    # Neither the environment nor its table is asked for again.
    loaded = WMATRPO.load(tmp_path / "model")
    assert loaded.ground_metric == model.ground_metric
    assert all(th.equal(loaded._metric.table(k), model._metric.table(k)) for k in range(env.n_agents))


def _span(vectors):
    return np.linalg.norm(vectors[:, None] - vectors[None], axis=-1).max()


@pytest.mark.parametrize("update", ["transport", "lagrangian"])
@pytest.mark.parametrize("continuous", [False, True])
def test_twice_the_metric_and_twice_the_radius_are_the_same_training(continuous, update):
    table = [1.0, 0.5, 2.0, 1.0, 1.0] if continuous else (np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)))).tolist()
    states, logs = [], []
    # The descent of the multiplier, value per distance and step of distance, has a unit of its own.
    rates = (1.0, 0.25) if update == "lagrangian" else (None, None)
    for factor, rate in zip((1.0, 2.0), rates, strict=True):
        env = SimpleSpreadVecEnv(n_copies=4, max_cycles=8, seed=0, continuous_actions=continuous)
        metric = (factor * np.array(table)).tolist()
        settings = {"update": update, "ground_metric": metric, "trust_radius": 0.1 * factor, "dual_learning_rate": rate}
        model = WMATRPO("MlpPolicy", env, **SMALL, **settings)
        logs.append(rounds(model, 2))
        states.append(model.policy.state_dict())
    for name, value in states[0].items():
        th.testing.assert_close(states[1][name], value, atol=1e-4, rtol=1e-3)
    for single, double in zip(*logs, strict=True):
        assert numbers(double, "w1") == pytest.approx([2 * w1 for w1 in numbers(single, "w1")], rel=1e-3)
        assert numbers(double, "lambda") == pytest.approx([x / 2 for x in numbers(single, "lambda")], rel=1e-3)
        assert numbers(double, "dual") == pytest.approx(numbers(single, "dual"), rel=1e-3)
        assert max(numbers(single, "w1")) > 0.01


# ---------------------------------------------------------------- bad input
GOOD = (1.0 - np.eye(5)).tolist()


def _changed(*entries):
    table = np.array(GOOD)
    for row, column, value in entries:
        table[row, column] = value
    return table.tolist()


NO_METRICS = {
    "asymmetric": (_changed((0, 1, 0.9)), "must be symmetric"),
    "negative": (_changed((0, 1, -1.0), (1, 0, -1.0)), "must be non-negative"),
    "not zero to itself": (_changed((2, 2, 0.5)), r"\[2, 2\]` must be zero"),
    "no triangle": (_changed((0, 1, 3.0), (1, 0, 3.0)), "must be at most 2, the way over point 2, got 3"),
}


@pytest.mark.parametrize("kind", NO_METRICS)
def test_tables_that_are_no_metric_are_refused_with_the_entry(kind):
    table, said = NO_METRICS[kind]
    for value in (table, [GOOD, GOOD, table], np.array(table), th.tensor(table)):
        with pytest.raises(ValueError, match=f"`ground_metric.*{said}"):
            WMATRPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=2), ground_metric=value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_does_not_break_a_metric(dtype):
    # Points on a line: every triangle is an equality.
    points = np.random.default_rng(0).normal(size=5)
    table = np.abs(points[:, None] - points).astype(dtype)
    model = WMATRPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=2), ground_metric=table, n_steps=8)
    np.testing.assert_allclose(model._metric.table(2), table, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("continuous", [False, True])
def test_entries_that_are_no_numbers_are_refused(continuous, bad):
    value = [1.0, bad, 1.0, 1.0, 1.0] if continuous else _changed((1, 3, bad), (3, 1, bad))
    with pytest.raises(ValueError, match="`ground_metric` holds NaN or infinite entries"):
        WMATRPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=2, continuous_actions=continuous), ground_metric=value)


@pytest.mark.parametrize("weights", [[1.0, 0.0, 1.0, 1.0, 1.0], [1.0, -2.0, 1.0, 1.0, 1.0]])
def test_weights_of_dimensions_are_positive(weights):
    for value in (weights, [[1.0] * 5, [1.0] * 5, weights]):
        with pytest.raises(
            ValueError, match=r"`ground_metric` must weigh every dimension by a positive number up to 1e\+06, got \["
        ):
            WMATRPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=2, continuous_actions=True), ground_metric=value)


@pytest.mark.parametrize(
    ("continuous", "value", "shape"),
    [
        (False, [[0, 1], [1, 0]], r"\(2, 2\)"),
        (False, [1.0] * 5, r"\(5,\)"),
        (False, [GOOD, GOOD], r"\(2, 5, 5\)"),
        (False, [[GOOD]], r"\(1, 1, 5, 5\)"),
        (True, [1.0] * 4, r"\(4,\)"),
        (True, GOOD[:2], r"\(2, 5\)"),
    ],
)
def test_tables_of_another_shape_are_refused_with_both_shapes(continuous, value, shape):
    wanted = r"\(5,\) of weights of the dimensions" if continuous else r"\(5, 5\) of distances between choices"
    with pytest.raises(
        ValueError, match=f"must have the shape {wanted}, or one such entry for each of the 3 agents, got {shape}"
    ):
        WMATRPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=2, continuous_actions=continuous), ground_metric=value)


@pytest.mark.parametrize("value", [[[0, 1], [1]], [["a"]], [[1j]]])
def test_tables_that_hold_no_numbers_are_refused(value):
    with pytest.raises(TypeError, match="`ground_metric` must be None, 'environment' or a table of real numbers"):
        WMATRPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=2), ground_metric=value)


@pytest.mark.parametrize(("continuous", "value"), [(False, "environment"), (True, "environment"), (False, "euclidean")])
def test_words_that_say_nothing_here_are_refused(continuous, value):
    with pytest.raises(ValueError, match=f"`ground_metric` as a string must be 'environment', for Discrete .* got '{value}'"):
        WMATRPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=2, continuous_actions=continuous), ground_metric=value)
    with pytest.raises(ValueError, match="`ground_metric` as a string must be 'environment', for Discrete actions of an"):
        WMATRPO("MlpPolicy", NavigationVecEnv(n_copies=2, continuous_actions=True), ground_metric="environment")


def test_metrics_of_plain_vector_environments_are_read_as_well():
    class Moves(AnySpacesEnv):
        agent_action_vectors = np.array([[[0.0], [1.0], [3.0]]])

    env = Moves(spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3))
    model = WMATRPO("MlpPolicy", env, ground_metric="environment", n_steps=16)
    # Distances 1, 2 and 3, in units of their median.
    assert model._metric.table(0).tolist() == [[0.0, 0.5, 1.5], [0.5, 0.0, 1.0], [1.5, 1.0, 0.0]]
