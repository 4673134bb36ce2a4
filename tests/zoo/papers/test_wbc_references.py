"""What needs no training: the greedy walker, and tables whose claims name their interval."""

from types import SimpleNamespace

import numpy as np
import pytest

from otbaselines import make_vec_env
from otbaselines.envs import NavigationConfig, NavigationEnv
from zoo.papers.wbc.evidence import evidence_tables
from zoo.papers.wbc.walker import mean_rewards, random_policy, walker


def _rows(env: NavigationEnv) -> np.ndarray:
    return env._observations()


@pytest.mark.parametrize(
    "config", [{}, {"turn": 30}, {"headings": 9, "turn": [0, 10, 200]}, {"heterogeneous": "both"}], ids=str
)
def test_the_walker_takes_the_step_that_ends_nearest_to_the_target(config: dict) -> None:
    env = NavigationEnv(**config)
    env.reset(seed=0)
    chosen = walker(env.config)(_rows(env))
    ends = np.clip(env.positions[:, None] + env.agent_action_vectors, -1, 1)
    distances = np.linalg.norm(ends - env.targets[:, None], axis=-1)
    np.testing.assert_array_equal(distances[np.arange(3), chosen], distances.min(1))


@pytest.mark.parametrize("turn", [0, 45])
def test_the_continuous_walker_goes_straight_and_arrives(turn: float) -> None:
    env = NavigationEnv(n_agents=1, continuous_actions=True, turn=[turn])
    env.set_state(positions=np.array([[0.0, 0.0]]), targets=np.array([[0.25, 0.05]]))
    act, seen = walker(env.config), []
    for _ in range(5):
        env.step({"agent_0": act(_rows(env))[0]})
        seen.append(env.positions[0].copy())
    # On the line to the target, and on the target at the end.
    assert np.abs(seen[0][0] * 0.05 - seen[0][1] * 0.25) < 1e-7
    np.testing.assert_allclose(seen[-1], [0.25, 0.05], atol=1e-6)


def test_the_walker_is_far_above_random_on_the_starts_of_the_evaluation() -> None:
    env = make_vec_env("otbaselines/Navigation-v0", n_copies=50, seed=0, env_kwargs={"team_reward": True})
    greedy, random = (mean_rewards(policy(NavigationConfig()), env, 100) for policy in (walker, random_policy))
    assert greedy.mean() > -0.45
    assert random.mean() < -1.0
    np.testing.assert_array_equal(greedy, mean_rewards(walker(NavigationConfig()), env, 100))


def _run(value: float) -> SimpleNamespace:
    return SimpleNamespace(
        rewards=np.full(20, value),
        evaluation=np.array([value]),
        random=np.array([-1.1]),
        walker=np.array([-0.4]),
        cpu_seconds=3.0,
    )


def test_a_table_says_ahead_only_where_the_paired_interval_excludes_zero() -> None:
    noise = np.random.default_rng(0).normal(size=10)
    runs = {
        "ours": [_run(-0.5 + 0.01 * x) for x in noise],
        "worse": [_run(-0.52 + 0.01 * x) for x in noise],
        "other": [_run(-0.5 + 0.01 * x) for x in noise[::-1]],
        "short": [_run(-0.9)] * 3,
    }
    means, pairs = evidence_tables(runs, n_seeds=10)
    assert [row[0] for row in means.rows][-2:] == ["greedy walker, blind to collisions", "uniformly random"]
    ours = means.rows[0]
    assert float(ours[5]) == pytest.approx(0.6 + 0.01 * noise.mean(), abs=1e-3)
    assert float(ours[6]) == pytest.approx(0.1 - 0.01 * noise.mean(), abs=1e-3)
    assert [row[1].split(": ")[-1] for row in pairs.rows] == ["ahead", "not told apart", "not all seeds are finished"]
    assert pairs.rows[0][1].startswith("+0.020 [+0.020, +0.020]")
