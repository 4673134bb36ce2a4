"""The price of a round of trust regions: timed from outside, and by the zoo's own entries."""

from typing import Any

import pytest

from otbaselines import HATRPO, WMATRPO
from otbaselines.hatrpo import hatrpo
from otbaselines.wmatrpo import wmatrpo
from zoo.benchmarks.rounds import PARTS, learner, round_seconds, rounds_table, watched


@pytest.mark.parametrize("algorithm", [HATRPO, WMATRPO])
def test_a_round_of_a_team_is_one_update_for_each_agent(algorithm: type) -> None:
    for n_agents in (2, 4):
        model = learner(algorithm, n_agents, quick=True)
        with watched(model) as clock:
            round_seconds(model, clock)
            assert {part: len(clock._spans[part]) for part in ("rollout", "direction", "check")} == {
                "rollout": 1,
                "direction": n_agents,
                "check": n_agents,
            }


@pytest.mark.parametrize("algorithm", [HATRPO, WMATRPO])
def test_no_part_of_a_round_is_counted_twice(algorithm: type) -> None:
    model = learner(algorithm, 2, quick=True)
    with watched(model) as clock:
        parts = round_seconds(model, clock)
    assert tuple(parts) == PARTS
    assert parts["rest"] > 0.0
    assert all(parts[part] > 0.0 for part in ("rollout", "critics", "direction", "check"))
    assert (parts["fit"] > 0.0) == (algorithm is WMATRPO)


def test_watching_leaves_the_library_as_it_was() -> None:
    before = hatrpo.natural_step, hatrpo.backtrack, wmatrpo.backtrack
    models: list[Any] = [learner(algorithm, 2, quick=True) for algorithm in (HATRPO, WMATRPO)]
    with watched(models[0]), watched(models[1]):
        assert hatrpo.natural_step is not before[0]
    assert (hatrpo.natural_step, hatrpo.backtrack, wmatrpo.backtrack) == before


def test_both_learners_get_the_same_rollouts_and_minibatches() -> None:
    for n_agents in (3, 8):
        for quick, joint_steps in ((True, 200), (False, 2000)):
            models = [learner(algorithm, n_agents, quick=quick) for algorithm in (HATRPO, WMATRPO)]
            assert {model.n_steps * model.env.n_copies for model in models} == {joint_steps}
            assert {model.batch_size // n_agents for model in models} == {200}


def test_the_table_has_a_row_for_each_learner_and_team() -> None:
    table = rounds_table(quick=True)
    assert [row[:2] for row in table.rows] == [("2", "HATRPO"), ("2", "WMATRPO"), ("3", "HATRPO"), ("3", "WMATRPO")]
    fit = table.columns.index("fit")
    assert [row[fit] == "-" for row in table.rows] == [True, False, True, False]
