"""Actions of unlike agents are matched by optimal assignment: brute force, symmetries, and what consensus makes of it."""

import itertools
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch as th
from core_toys import WanderersEnv

from otbaselines import WBC, ParallelVecEnv, ot
from otbaselines.envs import NavigationConfig, NavigationVecEnv, SimpleSpreadVecEnv
from otbaselines.wbc.metric import have_common_places, matched_table

EVERYBODY = [(0, 1, 2)]
EVERYBODY_OF_FOUR = [(0, 1, 2, 3)]
TURNED = {"turn": 45}


def _brute_force(points: np.ndarray, others: np.ndarray) -> float:
    """Least squared distance of any injection."""
    picks = itertools.permutations(range(len(others)), len(points))
    return min(float(((points - others[list(pick)]) ** 2).sum()) for pick in picks)


def test_the_places_of_two_agents_are_the_middles_of_the_cheapest_matching() -> None:
    generator = np.random.default_rng(0)
    for n in (2, 4, 5):
        table = generator.normal(size=(2, n, 3))
        places = matched_table(table, [(0, 1)])
        # Everybody is half the way from a partner, so that the squared distances of all from their places are half the cost.
        assert 4.0 * ((places[0] - table[0]) ** 2).sum() == pytest.approx(_brute_force(*table))
        assert {tuple(row) for row in places[0].round(9)} == {tuple(row) for row in places[1].round(9)}


def test_other_numbers_of_the_same_places_change_nothing() -> None:
    generator = np.random.default_rng(1)
    places = generator.normal(size=(6, 2))
    table = np.stack([places[generator.permutation(6)] for _ in range(4)])
    np.testing.assert_allclose(matched_table(table, [(0, 1, 2, 3)]), table, atol=1e-12)
    quarter = NavigationConfig(turn=90).agent_action_vectors
    np.testing.assert_allclose(matched_table(quarter, EVERYBODY), quarter, atol=1e-12)


@pytest.mark.parametrize("turn", [22.5, 30, 45, 60, 90, 120])
@pytest.mark.parametrize("n_agents", [2, 3, 5, 8])
def test_equal_moves_have_one_place_whatever_their_numbers_order_and_unit(turn: float, n_agents: int) -> None:
    # Turned by 45 degrees every move is as far from two of another's, so that only one rule for all agents keeps this.
    table, group = NavigationConfig(n_agents=n_agents, turn=turn).agent_action_vectors, [tuple(range(n_agents))]
    places = matched_table(table, group)
    found: dict[tuple[float, ...], set[tuple[float, ...]]] = {}
    for move, place in zip(table.reshape(-1, 2).round(9) + 0.0, places.reshape(-1, 2).round(9) + 0.0, strict=True):
        found.setdefault(tuple(move), set()).add(tuple(place))
    assert {len(each) for each in found.values()} == {1}
    order = np.random.default_rng(2).permutation(n_agents)
    np.testing.assert_allclose(matched_table(table[order], group), places[order], atol=1e-12)
    for unit in (1e-7, 1e200):
        np.testing.assert_allclose(matched_table(table * unit, group) / unit, places, atol=1e-12)
    noise = 1e-13 * np.random.default_rng(3).normal(size=table.shape)
    np.testing.assert_allclose(matched_table(table + noise, group), places, atol=1e-12)


def test_the_reference_is_the_one_that_costs_least() -> None:
    for seed in range(20):
        table = np.random.default_rng(seed).normal(size=(4, 3, 2))
        costs = [sum(_brute_force(table[i], table[reference]) for i in range(4)) for reference in range(4)]
        reference = int(np.argmin(costs))
        expected = np.zeros_like(table)
        picks = [
            min(itertools.permutations(range(3)), key=lambda pick: ((table[i] - table[reference][list(pick)]) ** 2).sum())
            for i in range(4)
        ]
        for i, a in itertools.product(range(4), range(3)):
            expected[i, a] = np.mean([table[j, picks[j].index(picks[i][a])] for j in range(4)], axis=0)
        np.testing.assert_allclose(matched_table(table, EVERYBODY_OF_FOUR), expected, atol=1e-12)


def test_groups_are_matched_apart_and_whoever_is_alone_keeps_its_places() -> None:
    table = np.random.default_rng(3).normal(size=(5, 3, 2))
    places = matched_table(table, [(0, 3), (1, 4)])
    np.testing.assert_array_equal(places[2], table[2])
    np.testing.assert_array_equal(places[[0, 3]], matched_table(table[[0, 3]], [(0, 1)]))
    np.testing.assert_array_equal(places[[1, 4]], matched_table(table[[1, 4]], [(0, 1)]))


def test_padded_actions_take_no_part() -> None:
    table = np.array([[[0.0], [1.0], [2.0]], [[2.2], [0.2], [99.0]]])
    held = np.array([[True, True, True], [True, True, False]])
    places = matched_table(table, [(0, 1)], held)
    np.testing.assert_allclose(places[:, :, 0], [[0.1, 1.0, 2.1], [2.1, 0.1, 99.0]])


BAD: dict[str, object] = {
    "flat": [[0.0, 1.0]],
    "nan": np.full((2, 2, 1), np.nan),
    "few": np.zeros((1, 2, 1)),
    "none": np.full((2, 2, 1), None),
    "ragged": [[[0.0], [1.0]], [[0.0]]],
    "words": "left",
    "nothing": None,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
@pytest.mark.parametrize("mask", [None, np.ones((2, 2), dtype=bool)], ids=["all", "mask"])
def test_what_is_no_table_of_the_team_is_left_for_the_check_that_names_it(bad: object, mask: np.ndarray | None) -> None:
    assert matched_table(bad, [(0, 1)], mask) is bad
    assert have_common_places(bad, [(0, 1)], mask)


class Teleporters(WanderersEnv):
    """Agents of which an attribute says what actions do."""

    vectors: ClassVar[object] = None

    @property
    def agent_action_vectors(self) -> object:
        return self.vectors


@pytest.mark.parametrize("word", ["matched", "environment"])
@pytest.mark.parametrize(
    "vectors", [np.zeros((1, 2, 1)), np.full((2, 2, 1), np.nan), [[0.0, 1.0]]], ids=["few", "nan", "flat"]
)
def test_an_environment_whose_table_is_wrong_is_named_by_either_word(vectors: object, word: str) -> None:
    kind = type("Wrong", (Teleporters,), {"vectors": vectors})
    with pytest.raises(ValueError, match="`action_embedding`"):
        WBC("MlpPolicy", ParallelVecEnv([kind] * 2), n_steps=4, batch_size=12, estimator_kwargs={"action_embedding": word})


def test_places_are_common_where_everybody_has_each() -> None:
    twice = np.array([[[0.0], [0.0], [1.0]], [[0.0], [1.0], [1.0]]])
    assert have_common_places(twice, [(0, 1)])
    assert have_common_places(NavigationConfig(turn=90).agent_action_vectors, EVERYBODY)
    assert not have_common_places(NavigationConfig(turn=45).agent_action_vectors, EVERYBODY)
    assert have_common_places(NavigationConfig(turn=45).agent_action_vectors, [(0, 2)])
    assert not have_common_places(twice, [(0, 1)], np.array([[True, True, True], [True, False, False]]))


def test_only_those_are_matched_who_are_to_agree() -> None:
    env = NavigationVecEnv(n_copies=4, seed=0, turn=45)
    groups = [["agent_0", "agent_2"]]
    model = WBC("MlpPolicy", env, n_steps=5, batch_size=30, consensus_groups=groups, seed=0)
    settled = np.asarray(model.estimator_kwargs["action_embedding"])
    moves = NavigationConfig(turn=45).agent_action_vectors
    # Those two share all their moves, and the third keeps its own: the table is that of the moves but for its unit.
    np.testing.assert_allclose(settled / settled[0, 1, 0] * moves[0, 1, 0], moves, atol=1e-12)


def _model(env_kwargs: dict[str, object], **options: object) -> WBC:
    env = NavigationVecEnv(n_copies=4, seed=0, **env_kwargs)
    return WBC("MlpPolicy", env, n_steps=5, batch_size=30, estimator_kwargs=options or None, seed=0)


@pytest.mark.parametrize("env_kwargs", [TURNED, {"turn": 30}, {"heterogeneous": "dynamics"}], ids=str)
def test_by_default_unlike_agents_have_all_their_places_in_common(env_kwargs: dict[str, object]) -> None:
    metric = _model(env_kwargs)._consensus.parts[0].metric
    assert len(metric.codebook) == 5
    assert all(sorted(row) == list(range(5)) for row in metric.placement.tolist())
    with pytest.warns(UserWarning, match="lead where no action of a team-mate does"):
        apart = _model(env_kwargs, action_embedding="environment")
    assert len(apart._consensus.parts[0].metric.codebook) > 5


def test_agents_of_different_speed_match_the_actions_of_equal_numbers() -> None:
    placement = _model({"heterogeneous": "dynamics"})._consensus.parts[0].metric.placement
    assert (placement == placement[0]).all()


@pytest.mark.parametrize("env_kwargs", [{}, {"turn": 90}], ids=str)
def test_where_places_are_common_matching_is_the_environments_own_metric(env_kwargs: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = _model(env_kwargs, action_embedding="environment")._consensus.parts[0].metric
    matched = _model(env_kwargs, action_embedding="matched")._consensus.parts[0].metric
    assert th.equal(own.codebook, matched.codebook)
    assert th.equal(own.placement, matched.placement)


def _pull(model: WBC, probs: th.Tensor) -> tuple[float, th.Tensor]:
    """Divergence of the team whose policies are these in all states, and what its gradient does to each probability."""
    part, n = model._consensus.parts[0], 64
    probs = probs.expand(n, -1, -1).clone().requires_grad_()
    measures = part.metric.place(probs)
    solver = ot.ScalingSolver(part.cost, reg=0.6, weights=th.full((3,), 1 / 3), debiased=True)
    solved = solver.solve(measures.detach(), 400)
    (solved.gradient * measures).sum().backward()
    return float(solved.divergences.mean()), probs.grad[0]


def test_only_matched_places_let_a_team_agree_on_more_than_standing_still() -> None:
    # What the strong pull of the default coefficient does with moves turned by 45 degrees.
    uniform = th.full((3, 5), 0.2)
    staying = th.nn.functional.one_hot(th.zeros(3, dtype=th.long), 5).float()
    divergence, _ = _pull(_model(TURNED), uniform)
    assert divergence == pytest.approx(0.0, abs=1e-5)
    with pytest.warns(UserWarning, match="lead where no action"):
        apart = _model(TURNED, action_embedding="environment")
    divergence, gradient = _pull(apart, uniform)
    assert divergence > 0.02
    # Losses fall along the negative gradient: everybody is pulled away from moves, towards staying.
    assert (gradient[:, 0] < gradient[:, 1:].min(1).values).all()
    assert _pull(apart, staying)[0] == pytest.approx(0.0, abs=1e-5)


def test_matching_needs_an_environment_that_says_what_actions_do() -> None:
    with pytest.raises(ValueError, match=r"`action_embedding='matched'` needs an environment with an attribute"):
        WBC(
            "MlpPolicy",
            SimpleSpreadVecEnv(n_copies=2),
            n_steps=4,
            batch_size=12,
            estimator_kwargs={"action_embedding": "matched"},
        )
