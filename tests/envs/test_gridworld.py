"""Grid worlds against their own tabular model, by simulation, by hand and by breadth-first search."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
import torch as th
from gymnasium.utils.env_checker import check_env
from scipy.sparse.csgraph import connected_components

from otbaselines.common.tabular import optimal_values
from otbaselines.envs import gridworld
from otbaselines.envs.gridworld import GridWorldEnv


@pytest.mark.parametrize("size", [3, 5, 10, 20])
def test_every_free_cell_reaches_the_goal(size):
    for seed in range(20):
        env = gridworld.make(size, seed, obstacle_density=0.4 if seed % 2 else 0.15)
        free = np.flatnonzero(~env.obstacles.ravel())
        near = np.abs(np.subtract.outer(free // size, free // size)) + np.abs(np.subtract.outer(free % size, free % size)) == 1
        assert connected_components(near, directed=False)[0] == 1
        assert size**2 - 1 in free
        assert 0.0 <= env.slip <= 0.1


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasiums_checker_has_no_complaint(render_mode):
    env = gym.make("otbaselines/GridWorld-v0", size=5, layout_seed=0, render_mode=render_mode)
    check_env(env.unwrapped, skip_render_check=render_mode is None)
    assert env.spec is not None


def test_the_layout_is_the_seeds_and_episodes_are_of_their_own():
    one, same, other = gridworld.make(10, 3), gridworld.make(10, 3), gridworld.make(10, 4)
    assert (one.obstacles == same.obstacles).all()
    assert one.slip == same.slip
    assert (one.obstacles != other.obstacles).any()
    starts = [one.reset(seed=seed)[0] for seed in range(20)]
    assert len(set(starts)) > 5
    assert starts == [same.reset(seed=seed)[0] for seed in range(20)]


def test_steps_are_drawn_from_the_tabular_model():
    env = gridworld.make(4, 1, slip=0.3)
    model = env.tabular_model
    n = 400
    p_values, rewards = [], []
    env.reset(seed=0)
    for cell, action in itertools.product(np.flatnonzero(~model.terminal.numpy()), range(4)):
        seen = np.zeros(model.n_states)
        paid = 0.0
        for _ in range(n):
            env._cell, env._is_over, env._n_steps = int(cell), False, 0
            arrived, reward, *_ = env.step(np.int64(action))
            seen[arrived] += 1
            paid += reward
        expected = n * model.transition[cell, action].numpy()
        assert (seen[expected == 0] == 0).all()
        if (expected > 0).sum() > 1:
            p_values.append(scipy.stats.chisquare(seen[expected > 0], expected[expected > 0]).pvalue)
        rewards.append((paid / n, float(model.rewards[cell, action])))
    # Under the model the smallest of that many p-values is below this with a probability of one in a thousand.
    assert min(p_values) > 1e-3 / len(p_values)
    found, told = np.array(rewards).T
    assert np.abs(found - told).max() < 5 * np.sqrt(0.25 / n)


def test_first_cells_are_drawn_from_the_tabular_model():
    env = gridworld.make(4, 1)
    env.reset(seed=0)
    seen = np.bincount([env.reset()[0] for _ in range(3000)], minlength=16)
    expected = 3000 * env.tabular_model.initial.numpy()
    assert (seen[expected == 0] == 0).all()
    assert scipy.stats.chisquare(seen[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_moves_slips_ends_and_features_of_a_world_drawn_by_hand():
    # S.#   numbers: 0 1 2
    # ...            3 4 5
    # ..G            6 7 8
    layout = np.zeros((3, 3), bool)
    layout[0, 2] = True
    env = GridWorldEnv(size=3, slip=0.2, layout=layout)
    model = env.tabular_model
    right, up, left, down = range(4)
    # From 4 to the right: 5, or by a slip 1 above and 7 below.
    expected = th.zeros(9, dtype=th.float64)
    expected[[5, 1, 7]] = th.tensor([0.8, 0.1, 0.1], dtype=th.float64)
    assert th.allclose(model.transition[4, right], expected)
    # From the corner 0 upwards: stays, slips to the left stay, to the right arrives at 1.
    assert model.transition[0, up, 0] == pytest.approx(0.9)
    assert model.transition[0, up, 1] == pytest.approx(0.1)
    assert model.terminal.nonzero().flatten().tolist() == [2, 8]
    assert not model.transition[[2, 8]].any()
    assert model.rewards[5, down] == pytest.approx(0.8)
    assert model.rewards[5, up] == pytest.approx(-0.8)
    assert model.rewards[5, left] == pytest.approx(0.1 - 0.1)
    diagonal = 2 * np.sqrt(2)
    np.testing.assert_allclose(model.features[0, right], [1.0, 2 / diagonal])
    np.testing.assert_allclose(model.features[4, down], [np.sqrt(2) / diagonal, np.sqrt(2) / diagonal])


def test_success_is_told_at_the_end_of_the_episode_and_only_there():
    env = GridWorldEnv(size=3, slip=0.0, layout=np.zeros((3, 3), bool), max_steps=5)
    env.reset(seed=0)
    env._cell = 5
    _, reward, terminated, truncated, info = env.step(np.int64(3))
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"is_success": True})
    env.reset(seed=0)
    env._cell = 0
    infos = [env.step(np.int64(1))[2:] for _ in range(5)]
    assert [each[2] for each in infos] == [{}] * 4 + [{"is_success": False}]
    assert infos[-1][:2] == (False, True)
    with pytest.raises(RuntimeError, match="call `reset`"):
        env.step(np.int64(0))


def test_the_hard_expert_succeeds_nearly_always_and_a_hot_one_less_often():
    env = gridworld.make(10, 0)
    cold = gridworld.expert(env, 100, seed=0)
    hot = gridworld.expert(env, 100, seed=0, temperature=1.0)
    assert np.mean([each.success for each in cold]) > 0.9
    assert np.mean([each.success for each in hot]) < 0.5
    again = gridworld.expert(env, 100, seed=0)
    assert all((one.actions == two.actions).all() for one, two in zip(cold, again, strict=True))


def test_without_slip_the_expert_takes_shortest_paths():
    env = gridworld.make(10, 2, slip=0.0)
    values, _ = optimal_values(env.tabular_model, env.tabular_model.rewards, discount=0.99)
    for episode in gridworld.expert(env, 30, seed=1):
        # One reward at the end of the path: its discount gives the length away.
        shortest = 1 + np.log(float(values[episode.observations[0]])) / np.log(0.99)
        assert len(episode) == round(shortest)
        assert episode.success


def test_the_picture_shows_obstacles_goal_and_agent():
    env = gridworld.make(5, 0, render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (120, 120, 3)
    assert picture.dtype == np.uint8
    grey = (picture[2::24, 2::24] == np.array([90, 90, 90])).all(-1)
    assert (grey == env.obstacles).all()
    row, column = divmod(env._cell, 5)
    assert (picture[24 * row + 12, 24 * column + 12] == (0, 114, 178)).all()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"size": 2}, ValueError, r"`size` must be in \[3, 50\], got 2"),
        ({"size": 5.0}, TypeError, "`size` must be an integer, got 5.0"),
        ({"slip": 1.5}, ValueError, r"`slip` must be in \[0, 1\], got 1.5"),
        ({"slip": float("nan")}, ValueError, r"`slip` must be in \[0, 1\], got nan"),
        ({"obstacle_density": 0.9}, ValueError, "`obstacle_density`"),
        ({"render_mode": "human"}, ValueError, "`render_mode` must be 'rgb_array' or None"),
        ({"size": 3, "layout": np.eye(3, dtype=bool)}, ValueError, "`layout` must leave the last cell free"),
        ({"size": 3, "layout": np.zeros((2, 2), bool)}, ValueError, r"`layout` must be bool of shape \(3, 3\)"),
        ({"layout_seed": -1}, ValueError, "`layout_seed`"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        GridWorldEnv(**kwargs)


def test_episodes_are_cut_off_after_eight_steps_a_row_and_without_obstacles_the_nearest_is_one_diagonal_away():
    assert [gridworld.make(size, 0).max_steps for size in (3, 5, 10)] == [24, 40, 80]
    empty = gridworld.GridWorldEnv(5, layout=np.zeros((5, 5), dtype=bool))
    assert (empty.tabular_model.features[..., 1] == 1.0).all()
