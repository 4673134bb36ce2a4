"""Navigation: rewards and collisions by hand, its variants, and the agreement of its two forms."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from pettingzoo.test import parallel_api_test, parallel_seed_test

from otbaselines.envs import NavigationConfig, NavigationEnv, NavigationVecEnv

VARIANTS: list[dict[str, Any]] = [
    {},
    {"continuous_actions": True},
    {"heterogeneous": True},
    {"heterogeneous": "both", "n_agents": 5, "team_reward": True},
    {"heterogeneous": "roles", "continuous_actions": True},
    {"n_agents": 1, "max_episode_steps": 7},
    {"n_agents": 8, "collision_threshold": 0.4, "collision_penalty": 0.25, "step_size": 0.3},
    {"headings": 9, "turn": 45},
    {"headings": 2, "heterogeneous": "dynamics", "turn": [0, 30, -101.5]},
    {"turn": 30.0, "continuous_actions": True},
]
STAY, RIGHT, LEFT, UP, DOWN = range(5)


def placed(positions: list[list[float]], targets: list[list[float]], **config: Any) -> NavigationEnv:
    env = NavigationEnv(n_agents=len(positions), **config)
    env.set_state(positions=np.array(positions), targets=np.array(targets))
    return env


def act(env: NavigationEnv, *actions: Any) -> tuple[Any, ...]:
    return env.step(dict(zip(env.possible_agents, actions, strict=True)))


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_pettingzoo_accepts_the_environment(config: dict[str, Any]) -> None:
    parallel_api_test(NavigationEnv(**config), num_cycles=60)
    parallel_seed_test(lambda: NavigationEnv(**config), num_cycles=60)


def test_the_reward_is_minus_the_distance_after_the_move() -> None:
    env = placed([[0.0, 0.0]], [[0.4, 0.3]])
    # One step to the right leaves (0.3, 0.3) to go, one up from there (0.3, 0.2).
    assert act(env, RIGHT)[1]["agent_0"] == pytest.approx(-np.hypot(0.3, 0.3), abs=1e-12)
    assert act(env, UP)[1]["agent_0"] == pytest.approx(-np.hypot(0.3, 0.2), abs=1e-12)
    assert act(env, LEFT)[1]["agent_0"] == pytest.approx(-np.hypot(0.4, 0.2), abs=1e-12)
    assert act(env, DOWN)[1]["agent_0"] == pytest.approx(-np.hypot(0.4, 0.3), abs=1e-12)
    assert act(env, STAY)[1]["agent_0"] == pytest.approx(-0.5, abs=1e-12)


def test_every_team_mate_within_the_threshold_costs_one_penalty() -> None:
    # After the moves the agents stand at x = 0.0, 0.1 and 0.2: the middle one touches both, the outer ones one each.
    env = placed([[-0.1, 0.0], [0.1, 0.0], [0.3, 0.0]], [[0.0, 0.0], [0.1, 0.0], [0.2, 0.0]], collision_penalty=2.0)
    assert list(act(env, RIGHT, STAY, LEFT)[1].values()) == pytest.approx([-2.0, -4.0, -2.0], abs=1e-12)


def test_agents_at_more_than_the_threshold_do_not_collide() -> None:
    env = placed([[0.0, 0.0], [0.1501, 0.0]], [[0.0, 0.0], [0.1501, 0.0]])
    assert list(act(env, STAY, STAY)[1].values()) == pytest.approx([0.0, 0.0], abs=1e-12)
    env = placed([[0.0, 0.0], [0.1499, 0.0]], [[0.0, 0.0], [0.1499, 0.0]])
    assert list(act(env, STAY, STAY)[1].values()) == pytest.approx([-1.0, -1.0], abs=1e-12)


def test_team_reward_pays_everyone_the_mean() -> None:
    env = placed([[0.0, 0.0], [0.5, 0.5]], [[0.4, 0.3], [0.5, 0.5]], team_reward=True)
    assert list(act(env, STAY, STAY)[1].values()) == pytest.approx([-0.25, -0.25], abs=1e-12)


def test_moves_end_at_the_edge_of_the_arena() -> None:
    env = placed([[0.95, -0.95]], [[0.0, 0.0]])
    act(env, RIGHT)
    observations = act(env, DOWN)[0]
    assert observations["agent_0"][:2].tolist() == [1.0, -1.0]


def test_an_observation_is_own_position_own_target_and_the_others() -> None:
    env = placed([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[-0.1, -0.2], [-0.3, -0.4], [-0.5, -0.6]])
    observations = act(env, STAY, STAY, STAY)[0]
    expected = [0.3, 0.4, -0.3, -0.4, 0.1, 0.2, 0.5, 0.6]
    assert observations["agent_1"] == pytest.approx(expected, abs=1e-6)
    assert env.state().shape == env.state_space.shape == (24,)
    assert env.state()[8:16] == pytest.approx(expected, abs=1e-6)


def test_continuous_moves_are_clipped_and_scaled_by_the_step() -> None:
    env = placed([[0.0, 0.0]], [[0.0, 0.0]], continuous_actions=True)
    assert act(env, np.array([0.5, -7.0]))[0]["agent_0"][:2] == pytest.approx([0.05, -0.1], abs=1e-7)


@pytest.mark.parametrize("wrong", [[0.0, np.nan], [np.inf, 0.0], ["0", "1"]])
def test_continuous_moves_that_are_no_finite_numbers_are_errors(wrong: list[Any]) -> None:
    env = placed([[0.0, 0.0]], [[0.0, 0.0]], continuous_actions=True)
    with pytest.raises(ValueError, match=r"`actions\['agent_0'\]` must be finite numbers for Box"):
        act(env, np.array(wrong))


def test_dynamics_differ_in_speed_and_size() -> None:
    config = NavigationConfig(heterogeneous=True)
    assert config.speeds == pytest.approx([0.05, 0.1, 0.15])
    assert config.radii == pytest.approx([0.1125, 0.075, 0.0375])
    # The two largest collide below 0.1875, the two smallest below 0.1125.
    start = [[0.0, 0.0], [0.187, 0.0], [0.187, 0.113]]
    rewards = act(placed(start, start, heterogeneous=True), STAY, STAY, STAY)[1]
    assert list(rewards.values()) == pytest.approx([-1.0, -1.0, 0.0], abs=1e-12)
    observations = act(placed([[0, 0], [0, 0.5], [0, -0.5]], [[0, 0]] * 3, heterogeneous="dynamics"), RIGHT, RIGHT, RIGHT)[0]
    assert [float(obs[0]) for obs in observations.values()] == pytest.approx([0.05, 0.1, 0.15], abs=1e-7)


def test_roles_turn_the_moves_by_quarters() -> None:
    start = [[0.0, 0.0], [0.5, 0.5], [-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5]]
    env = placed(start, start, heterogeneous="roles")
    observations = act(env, *[RIGHT] * 5)[0]
    moved = np.array([obs[:2] for obs in observations.values()]) - np.array(start)
    # Right, up, left, down, and right again.
    np.testing.assert_allclose(moved, [[0.1, 0], [0, 0.1], [-0.1, 0], [0, -0.1], [0.1, 0]], atol=1e-7)
    np.testing.assert_allclose(env.agent_action_vectors[:, RIGHT], moved, atol=1e-7)


@pytest.mark.parametrize("n_agents", [1, 3, 6])
def test_a_turn_of_ninety_degrees_is_the_quarter_turn_of_roles_to_the_bit(n_agents: int) -> None:
    turned, roles = (NavigationConfig(n_agents=n_agents, **each) for each in ({"turn": 90}, {"heterogeneous": "roles"}))
    np.testing.assert_array_equal(turned.agent_action_vectors, roles.agent_action_vectors)
    np.testing.assert_array_equal(turned.turns, roles.turns)
    other = NavigationConfig(n_agents=n_agents, turn=[90.0 * i - 360.0 for i in range(n_agents)])
    np.testing.assert_array_equal(other.agent_action_vectors, roles.agent_action_vectors)


def test_headings_are_evenly_around_the_circle_and_staying_is_the_first() -> None:
    config = NavigationConfig(headings=9, n_agents=1)
    assert NavigationEnv(headings=9).action_space("agent_0").n == 9
    # East, north-east, north, ...: neighbours are 45 degrees apart, all at a step from where the agent is.
    c = np.sqrt(0.5)
    circle = [[1, 0], [c, c], [0, 1], [-c, c], [-1, 0], [-c, -c], [0, -1], [c, -c]]
    np.testing.assert_allclose(config.action_vectors, 0.1 * np.array([[0, 0], *circle]), atol=1e-12)
    np.testing.assert_allclose(config.agent_action_vectors[0], config.action_vectors, atol=1e-12)


def test_angles_turn_the_moves_anticlockwise() -> None:
    start = [[0.0, 0.0], [0.5, 0.5], [-0.5, -0.5]]
    for turn in (30, [0.0, 30.0, 60.0]):
        env = placed(start, start, turn=turn)
        observations = act(env, RIGHT, RIGHT, UP)[0]
        moved = np.array([obs[:2] for obs in observations.values()]) - np.array(start)
        # Up, turned by 60 degrees, is 150 degrees from the right.
        angles = np.deg2rad([0.0, 30.0, 150.0])
        np.testing.assert_allclose(moved, 0.1 * np.stack([np.cos(angles), np.sin(angles)], 1), atol=1e-6)
    continuous = placed(start, start, turn=30, continuous_actions=True)
    observations = act(continuous, *[np.array([1.0, 0.0])] * 3)[0]
    angles = np.deg2rad([0.0, 30.0, 60.0])
    moved = np.array([obs[:2] for obs in observations.values()]) - np.array(start)
    np.testing.assert_allclose(moved, 0.1 * np.stack([np.cos(angles), np.sin(angles)], 1), atol=1e-6)


def test_a_configuration_is_hashable_whatever_sequence_the_angles_come_in() -> None:
    assert NavigationConfig(turn=[0, 1, 2]) == NavigationConfig(turn=np.array([0.0, 1.0, 2.0]))
    assert hash(NavigationConfig(turn=[0, 1, 2])) == hash(NavigationConfig(turn=(0, 1, 2)))


def test_a_lone_agent_is_never_heterogeneous_in_its_dynamics() -> None:
    config = NavigationConfig(n_agents=1, heterogeneous="both")
    np.testing.assert_allclose(config.agent_action_vectors[0], NavigationConfig().action_vectors)
    assert config.radii.tolist() == [0.075]


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_both_forms_agree_step_by_step(config: dict[str, Any]) -> None:
    vec_env = NavigationVecEnv(n_copies=12, seed=0, **config)
    vec_env.reset_tensor()
    n, generator = vec_env.n_agents, th.Generator().manual_seed(1)
    state = vec_env.get_state()
    envs = [NavigationEnv(**config) for _ in range(12)]
    for env, positions, targets in zip(envs, state["positions"], state["targets"], strict=True):
        env.set_state(positions=positions.numpy(), targets=targets.numpy())
    for _ in range(vec_env.max_episode_steps):
        if config.get("continuous_actions"):
            actions = th.rand(12, n, 2, generator=generator) * 2 - 1
        else:
            actions = th.randint(0, config.get("headings", 5), (12, n), generator=generator)
        step = vec_env.step_tensor(actions)
        obs = step.obs if step.final_obs is None else step.final_obs
        assert obs.is_contiguous()
        assert obs.dtype == step.rewards.dtype == th.float32
        for copy, env in enumerate(envs):
            observations, rewards, _, truncations, _ = act(env, *actions[copy].numpy())
            np.testing.assert_allclose(obs[copy].numpy(), list(observations.values()), atol=1e-6)
            np.testing.assert_allclose(step.rewards[copy].numpy(), list(rewards.values()), atol=2e-6)
            assert set(truncations.values()) == {step.truncated}
    assert step.truncated


def test_starts_are_uniform_and_differ_between_copies_and_episodes() -> None:
    env = NavigationVecEnv(n_copies=4000, seed=0)
    first, second = env.reset_tensor(), env.reset_tensor()
    for obs in (first, second):
        # 4000 starts: the mean of U(-1, 1) has a standard error of 0.0091 and the variance is 1/3 +- 0.0047.
        assert obs.mean(dim=(0,)).abs().max() < 5 * 0.0091
        assert (obs.var(dim=(0,)) - 1 / 3).abs().max() < 5 * 0.0047
    assert not th.equal(first, second)
    assert len(th.unique(first[:, 0, 0])) > 3990


def test_without_a_seed_two_environments_differ() -> None:
    a, b = NavigationVecEnv(n_copies=2), NavigationVecEnv(n_copies=2)
    assert not th.equal(a.reset_tensor(), b.reset_tensor())
    assert not np.array_equal(NavigationEnv().reset()[0]["agent_0"], NavigationEnv().reset()[0]["agent_0"])


def test_resets_without_a_seed_continue_the_seeded_stream() -> None:
    env, twin = NavigationEnv(), NavigationEnv()
    for e in (env, twin):
        e.reset(seed=5)
    first, second = env.reset()[0]["agent_0"], twin.reset()[0]["agent_0"]
    assert np.array_equal(first, second)
    assert not np.array_equal(first, env.reset()[0]["agent_0"])


def test_environments_survive_pickling() -> None:
    env = pickle.loads(pickle.dumps(NavigationEnv(n_agents=4, heterogeneous="both")))
    assert env.config == NavigationConfig(n_agents=4, heterogeneous="both")


def test_representative_states_are_five_valid_observations_that_say_what_they_show() -> None:
    for config in VARIANTS:
        env = NavigationEnv(**config)
        states = env.representative_states()
        assert len(states) == 5
        assert all(env.observation_space("agent_0").contains(obs) for obs in states.values())
    states = NavigationEnv().representative_states()
    assert (states["target to the right"][2:4] - states["target to the right"][:2]).tolist() == [1.0, 0.0]
    assert (states["target above"][2:4] - states["target above"][:2]).tolist() == [0.0, 1.0]
    assert (states["at the target"][:2] == states["at the target"][2:4]).all()
    blocked = states["team-mate in the way"]
    gap = float(blocked[4] - blocked[0])
    assert 0.15 < gap < 0.15 + 0.1  # free now, a collision after one step to the right


def test_a_policy_map_covers_the_arena_and_fixes_the_rest() -> None:
    env = NavigationEnv(n_agents=4)
    rows = env.policy_map_observations(5, agent=1)
    assert rows.shape == (25, 10)
    assert rows.dtype == np.float32
    assert rows[:6, :2].tolist() == [[-1, -1], [-0.5, -1], [0, -1], [0.5, -1], [1, -1], [-1, -0.5]]
    assert (rows[:, 2:] == rows[0, 2:]).all()
    # Agent 1 of four has its target to the left; its team-mates stand on theirs: above, below, to the right.
    np.testing.assert_allclose(rows[0, 2:], [-0.6, 0, 0, 0.6, 0, -0.6, 0.6, 0], atol=1e-6)
    assert env.policy_map_observations(3, agent=2, target=(0.25, 0.5))[0, 2:4].tolist() == [0.25, 0.5]
    with pytest.raises(ValueError, match=r"`agent` must be a number in 0\.\.3, got 4"):
        env.policy_map_observations(5, agent=4)
    with pytest.raises(ValueError, match="`resolution` must be at least 2"):
        env.policy_map_observations(1, agent=0)


@pytest.mark.parametrize(
    "make", [NavigationEnv, lambda **config: NavigationVecEnv(n_copies=2, **config)], ids=["numpy", "tensor"]
)
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_agents": 0}, "`n_agents` must be an integer of at least 1, got 0"),
        ({"max_episode_steps": 0}, "`max_episode_steps` must be an integer of at least 1"),
        ({"step_size": -0.1}, "`step_size` must be positive, got -0.1"),
        ({"step_size": float("nan")}, "`step_size` must be positive, got nan"),
        ({"collision_threshold": -1.0}, "`collision_threshold` must not be negative"),
        ({"collision_penalty": -1.0}, "`collision_penalty` must not be negative"),
        ({"heterogeneous": "speed"}, "`heterogeneous` must be a bool or one of .*, got 'speed'"),
        ({"render_mode": "human"}, "`render_mode` must be None or"),
        ({"headings": 1}, "`headings` must be an integer .* got 1; to stay counts"),
        ({"headings": 9, "continuous_actions": True}, "`headings` are discrete actions, got 9 with `continuous_actions`"),
        ({"turn": float("inf")}, "`turn` must be a finite number of degrees"),
        ({"turn": True}, "`turn` must be a finite number of degrees"),
        ({"turn": [0.0, 1.0]}, "or one for each of the 3 agents, got"),
        ({"turn": 45, "heterogeneous": "roles"}, "`heterogeneous='roles'` turns the moves already, got `turn`=45"),
    ],
)
def test_bad_arguments_are_named(make: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**config)


def test_bad_actions_are_named() -> None:
    env = NavigationEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="'agent_2' is missing"):
        env.step({"agent_0": 0, "agent_1": 0})
    with pytest.raises(ValueError, match=r"`actions\['agent_1'\]` must lie in Discrete\(5\), got 5"):
        env.step({"agent_0": 0, "agent_1": 5, "agent_2": 0})
    with pytest.raises(ValueError, match=r"must have shape \(\), got \(1,\)"):
        env.step({"agent_0": np.array([0]), "agent_1": 0, "agent_2": 0})
    with pytest.raises(ValueError, match=r"`targets` must have shape \(3, 2\), got \(2, 2\)"):
        env.set_state(positions=np.zeros((3, 2)), targets=np.zeros((2, 2)))


@pytest.mark.parametrize("config", [{"headings": 9.0}, {"headings": "9"}, {"turn": {"agent_0": 1}}, {"turn": "a"}], ids=str)
def test_headings_and_turns_of_the_wrong_type_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"`{next(iter(config))}` must be"):
        NavigationEnv(**config)


def test_a_team_reward_that_is_no_flag_is_refused():
    with pytest.raises(TypeError, match="`team_reward` must be True or False"):
        NavigationEnv(team_reward="x")
