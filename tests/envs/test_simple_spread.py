"""Landmark covering: agreement with mpe2 itself, contact by hand, and the agreement of its two forms."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch as th
from pettingzoo.test import parallel_api_test, parallel_seed_test

from otbaselines.envs import SimpleSpreadEnv, SimpleSpreadVecEnv

simple_spread_v3 = pytest.importorskip("mpe2.simple_spread_v3")

VARIANTS: list[dict[str, Any]] = [
    {},
    {"continuous_actions": True},
    {"N": 5, "local_ratio": 0.2, "max_cycles": 30},
    {"N": 1},
    {"num_agent_neighbors": 1, "num_landmark_neighbors": 2},
    {"num_agent_neighbors": 4, "num_landmark_neighbors": 5},
    {"curriculum": True},
]


@cache
def _reference(n_starts: int, items: tuple[tuple[str, Any], ...]) -> dict[str, np.ndarray]:
    config = dict(items)
    env = simple_spread_v3.parallel_env(**config)
    rng = np.random.default_rng(0)
    records: dict[str, list] = {"actions": [], "obs": [], "rewards": [], "start": []}
    for seed in range(n_starts):
        observations, _ = env.reset(seed=seed)
        records["start"].append(list(observations.values()))
        episode: dict[str, list] = {"actions": [], "obs": [], "rewards": []}
        while env.agents:
            actions = {
                a: rng.random(5).astype(np.float32) if env.action_space(a).shape else int(rng.integers(5)) for a in env.agents
            }
            observations, rewards, _, _, _ = env.step(actions)
            for name, values in (("actions", actions), ("obs", observations), ("rewards", rewards)):
                episode[name].append(list(values.values()))
        for name, values in episode.items():
            records[name].append(values)
    return {name: np.array(values) for name, values in records.items()}


def reference(n_starts: int, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Play mpe2's environment with random actions from seeded starts."""
    return _reference(n_starts, tuple(config.items()))


def tensor_state(seeds: int, config: dict[str, Any]) -> dict[str, th.Tensor]:
    """The starts that the seeds stand for, from the NumPy form, whose starts are compared with mpe2's separately."""
    starts = []
    for seed in range(seeds):
        env = SimpleSpreadEnv(**config)
        env.reset(seed=seed)
        starts.append((env.positions, env.velocities, env.landmarks))
    names = ("positions", "velocities", "landmarks")
    return {name: th.as_tensor(np.array(arrays)) for name, arrays in zip(names, zip(*starts, strict=True), strict=True)}


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_pettingzoo_accepts_the_environment(config: dict[str, Any]) -> None:
    parallel_api_test(SimpleSpreadEnv(**config), num_cycles=60)
    parallel_seed_test(lambda: SimpleSpreadEnv(**config), num_cycles=60)


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_the_numpy_form_plays_the_same_episodes_as_mpe2(config: dict[str, Any]) -> None:
    n_starts = 40 if len(config) < 2 and "N" not in config else 8
    expected = reference(n_starts, config)
    env = SimpleSpreadEnv(**config)
    for seed in range(n_starts):
        observations, _ = env.reset(seed=seed)
        assert np.array_equal(list(observations.values()), expected["start"][seed])
        for t, actions in enumerate(expected["actions"][seed]):
            observations, rewards, terminations, truncations, _ = env.step(
                dict(zip(env.possible_agents, actions, strict=True))
            )
            np.testing.assert_allclose(list(observations.values()), expected["obs"][seed, t], atol=1e-6)
            np.testing.assert_allclose(list(rewards.values()), expected["rewards"][seed, t], atol=1e-6)
            assert not any(terminations.values())
        assert all(truncations.values())


@pytest.mark.parametrize("double_precision", [False, True])
@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_the_tensor_form_follows_mpe2_for_a_whole_episode(config: dict[str, Any], double_precision: bool) -> None:
    n_starts = 40 if len(config) < 2 and "N" not in config else 8
    expected = reference(n_starts, config)
    # Contact magnifies rounding: five agents in the same square touch so often that float32 loses another digit in 30 steps.
    tolerance = 1e-6 if double_precision else 1e-4 if config.get("N") == 5 else 1e-5
    env = SimpleSpreadVecEnv(n_copies=n_starts, double_precision=double_precision, **config)
    env.reset_tensor()
    env.set_state(tensor_state(n_starts, config))
    np.testing.assert_allclose(env.observe().numpy(), expected["start"], atol=1e-6)
    for t in range(env.max_episode_steps):
        step = env.step_tensor(th.as_tensor(expected["actions"][:, t]))
        obs = step.obs if step.final_obs is None else step.final_obs
        assert obs.is_contiguous()
        assert obs.dtype == step.rewards.dtype == th.float32
        np.testing.assert_allclose(obs.numpy(), expected["obs"][:, t], atol=tolerance, rtol=0)
        np.testing.assert_allclose(step.rewards.numpy(), expected["rewards"][:, t], atol=tolerance, rtol=0)
    assert step.truncated


def test_contact_pushes_agents_apart_and_positions_follow_one_step_later() -> None:
    # Two agents 0.2 apart overlap by 0.1, so each is pushed by 100 * 0.1 = 10, which in 0.1 s is a velocity of 1.
    positions, landmarks = np.array([[0.0, 0.0], [0.2, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])
    env = SimpleSpreadEnv(N=2)
    env.set_state(positions=positions, velocities=np.zeros((2, 2)), landmarks=landmarks)
    _, rewards, _, _, _ = env.step({"agent_0": 0, "agent_1": 0})
    np.testing.assert_allclose(env.velocities, [[-1.0, 0.0], [1.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(env.positions, positions, atol=1e-12)
    # Half of minus (0 + 0.8) for the landmarks and half of minus one for the collision.
    assert list(rewards.values()) == pytest.approx([-0.9, -0.9], abs=1e-12)
    observations, rewards, _, _, _ = env.step({"agent_0": 0, "agent_1": 0})
    np.testing.assert_allclose(env.positions, [[-0.1, 0.0], [0.3, 0.0]], atol=1e-12)
    assert list(rewards.values()) == pytest.approx([0.5 * -(0.1 + 0.7)] * 2, abs=1e-12)
    # Velocity -0.75 - 1, own position, landmarks relative, team-mate relative, silence.
    assert observations["agent_0"] == pytest.approx([-1.75, 0, -0.1, 0, 0.1, 0, 1.1, 0, 0.4, 0, 0, 0], abs=1e-6)


def test_a_push_to_the_right_is_half_a_unit_of_velocity() -> None:
    env = SimpleSpreadVecEnv(n_copies=1, N=1)
    env.reset_tensor()
    env.set_state({"positions": th.zeros(1, 1, 2), "velocities": th.zeros(1, 1, 2)})
    for action, velocity in ((2, [0.5, 0.0]), (1, [-0.125, 0.0]), (4, [-0.09375, 0.5]), (3, [-0.0703125, -0.125])):
        obs = env.step_tensor(th.tensor([[action]])).obs
        assert obs[0, 0, :2].tolist() == pytest.approx(velocity, abs=1e-6)


@pytest.mark.parametrize("form", ["numpy", "tensor"])
def test_agents_in_the_same_place_give_finite_numbers(form: str) -> None:
    zeros = np.zeros((2, 2))
    if form == "numpy":
        env = SimpleSpreadEnv(N=2)
        env.set_state(positions=zeros, velocities=zeros, landmarks=zeros)
        observations, rewards, _, _, _ = env.step({"agent_0": 0, "agent_1": 0})
        assert np.isfinite(list(observations.values())).all()
        assert list(rewards.values()) == pytest.approx([-0.5, -0.5], abs=1e-6)
    else:
        vec_env = SimpleSpreadVecEnv(n_copies=1, N=2)
        vec_env.reset_tensor()
        vec_env.set_state({name: th.zeros(1, 2, 2) for name in ("positions", "velocities", "landmarks")})
        step = vec_env.step_tensor(th.zeros(1, 2, dtype=th.int64))
        assert step.obs.isfinite().all()
        assert step.rewards[0].tolist() == pytest.approx([-0.5, -0.5], abs=1e-6)


def test_the_curriculum_starts_without_collision_penalties() -> None:
    state = {"positions": np.array([[0.0, 0.0], [0.1, 0.1]]), "velocities": np.zeros((2, 2)), "landmarks": np.ones((2, 2))}
    env = SimpleSpreadEnv(N=2, local_ratio=1.0, curriculum=True)
    vec_env = SimpleSpreadVecEnv(n_copies=1, N=2, local_ratio=1.0, curriculum=True)
    vec_env.reset_tensor()
    for expected in (0.0, -1.0, -1.0):
        env.set_state(**state)
        vec_env.set_state({name: th.as_tensor(value)[None] for name, value in state.items()})
        assert list(env.step({"agent_0": 0, "agent_1": 0})[1].values()) == [expected] * 2
        assert vec_env.step_tensor(th.zeros(1, 2, dtype=th.int64)).rewards.tolist() == [[expected] * 2]
        env.advance_curriculum()
        vec_env.env_method("advance_curriculum")
    assert env.curriculum_stage == vec_env.curriculum_stage == 1
    env.set_curriculum_stage(-3)
    assert env.curriculum_stage == 0


def test_success_terminates_as_in_mpe2_and_restarts_only_that_copy() -> None:
    config = {"N": 2, "terminate_on_success": True, "max_cycles": 3}
    landmarks = np.array([[0.5, 0.5], [-0.5, -0.5]])
    vec_env = SimpleSpreadVecEnv(n_copies=3, seed=0, **config)
    vec_env.reset_tensor()
    env, theirs = SimpleSpreadEnv(**config), simple_spread_v3.parallel_env(**config)
    theirs.reset(seed=0)
    # At speed 2 agents drift by 0.2, 0.15 and 0.1125, so gaps of 0.25, 0.4 and 0.55 first fall below 0.1 in the first, second
    # and third step, of which the third is also the last and therefore counts as running out of time.
    outcomes = []
    starts = [landmarks - [gap, 0.0] for gap in (0.25, 0.4, 0.55)]
    velocities = np.tile([2.0, 0.0], (2, 1))
    vec_env.set_state(
        {
            "positions": th.as_tensor(np.array(starts)),
            "velocities": th.as_tensor(np.tile(velocities, (3, 1, 1))),
            "landmarks": th.as_tensor(np.tile(landmarks, (3, 1, 1))),
        }
    )
    for start in starts:
        theirs.reset(seed=0)
        world = theirs.unwrapped.world
        for i in range(2):
            world.agents[i].state.p_pos, world.agents[i].state.p_vel = start[i].copy(), velocities[i].copy()
            world.landmarks[i].state.p_pos = landmarks[i].copy()
        env.set_state(positions=start, velocities=velocities, landmarks=landmarks)
        ends = []
        while env.agents:
            ours, reference_step = (e.step({"agent_0": 0, "agent_1": 0}) for e in (env, theirs))
            assert ours[2] == reference_step[2]
            assert ours[3] == reference_step[3]
            ends.append((ours[2]["agent_0"], ours[3]["agent_0"]))
        outcomes.append(ends)
    assert [len(ends) for ends in outcomes] == [1, 2, 3]
    assert [ends[-1] for ends in outcomes] == [(True, False), (True, False), (False, True)]
    for t in range(3):
        step = vec_env.step_tensor(th.zeros(3, 2, dtype=th.int64))
        for copy, ends in enumerate(outcomes):
            if t < len(ends):
                assert (step.terminated[copy].tolist(), bool(step.truncated[copy])) == ([ends[t][0]] * 2, ends[t][1])
                restarted = not th.equal(step.obs[copy], step.final_obs[copy])
                assert restarted is (t == len(ends) - 1)


@pytest.mark.parametrize("terminate_on_success", [False, True])
def test_restarted_copies_are_at_rest_within_the_arena(terminate_on_success: bool) -> None:
    env = SimpleSpreadVecEnv(n_copies=64, seed=0, max_cycles=4, terminate_on_success=terminate_on_success)
    env.reset_tensor()
    for _ in range(4):
        step = env.step_tensor(th.full((64, 3), 2))
    # No copy succeeds in four steps to the right, so all run out of time together.
    assert step.truncated if isinstance(step.truncated, bool) else step.truncated.all()
    assert (step.obs[..., :2] == 0).all()
    assert (step.obs[..., 2:4].abs() <= 1).all()
    assert (step.final_obs[..., 0] > 0.5).any()


@pytest.mark.parametrize(
    "make", [SimpleSpreadEnv, lambda **config: SimpleSpreadVecEnv(n_copies=2, **config)], ids=["numpy", "tensor"]
)
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"N": 0}, "`N` must be an integer of at least 1, got 0"),
        ({"max_cycles": 0}, "`max_cycles` must be an integer of at least 1"),
        ({"local_ratio": 1.5}, "`local_ratio` is a share .* got 1.5"),
        ({"num_agent_neighbors": 0}, "`num_agent_neighbors` must be an integer of at least 1"),
        ({"num_landmark_neighbors": -2}, "`num_landmark_neighbors` must be an integer of at least 1, got -2"),
    ],
)
def test_bad_arguments_are_named(make: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**config)
