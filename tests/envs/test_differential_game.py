"""The differential game: rewards against normal densities, its peaks, one-step episodes, and the agreement of its forms."""

import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from pettingzoo.test import parallel_api_test, parallel_seed_test
from scipy.stats import multivariate_normal
from stable_baselines3.common.logger import configure

from otbaselines import IPPO, MAPPO, evaluate_team, make_vec_env
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.envs import DifferentialGameConfig, DifferentialGameEnv, DifferentialGameVecEnv

GAME = "otbaselines/DifferentialGame-v0"
SIZES = (2, 3, 5, 9)
CASES = [("as_printed", 2), ("as_printed", 3), ("as_printed", 9), ("ancestor", 2), ("corrected", 2), ("corrected", 5)]
every_case = pytest.mark.parametrize(("variant", "n"), CASES)


def joint_actions(n: int, count: int = 500, low: float = 0.0, high: float = 7.0) -> th.Tensor:
    return low + (high - low) * th.rand(count, n, dtype=th.float64, generator=th.Generator().manual_seed(n))


def play(env: DifferentialGameEnv, *actions: float) -> tuple[Any, ...]:
    return env.step({agent: np.array([action], np.float32) for agent, action in zip(env.agents, actions, strict=True)})


def density(actions: th.Tensor, centre: float, widths: list[float]) -> np.ndarray:
    """A normal density with independent coordinates, from SciPy."""
    return multivariate_normal(np.full(len(widths), centre), np.diag(np.square(widths))).pdf(actions.numpy())


# ---------------------------------------------------------------- the reward
@pytest.mark.parametrize("n", SIZES)
def test_the_printed_reward_is_ten_and_six_and_a_half_normal_densities(n: int) -> None:
    actions = joint_actions(n)
    wide = [1.0, 3.0] + [1.0] * (n - 2)
    expected = 10.0 * density(actions, 5.0, wide) + 6.5 * density(actions, 1.0, [1.0] * n)
    np.testing.assert_allclose(DifferentialGameEnv(n_agents=n).reward(actions), expected, rtol=1e-12)


def test_the_ancestors_reward_is_two_densities_and_a_tenth_of_the_first_action() -> None:
    actions = joint_actions(2)
    expected = 10.0 * density(actions, 5.0, [1.0, 3.0]) + 5.3 * density(actions, 1.0, [1.0, 1.0]) + 0.1 * actions[:, 0].numpy()
    np.testing.assert_allclose(DifferentialGameEnv(n_agents=2, variant="ancestor").reward(actions), expected, rtol=1e-12)


@pytest.mark.parametrize("n", SIZES)
def test_the_corrected_bumps_are_the_printed_ones_at_heights_of_ten_and_six_and_a_half(n: int) -> None:
    env = DifferentialGameEnv(n_agents=n, variant="corrected")
    centres = th.tensor([[5.0] * n, [1.0] * n], dtype=th.float64)
    # At a centre the other bump is exp(-8 (n - 1) - 8 / 9) or exp(-8 n) of its own height.
    expected = [10.0 + 6.5 * math.exp(-8.0 * n), 6.5 + 10.0 * math.exp(-8.0 * (n - 1) - 8.0 / 9.0)]
    np.testing.assert_allclose(env.reward(centres), expected, rtol=1e-14)
    # Along the second action the first bump is three wide, so that it has exp(-1/2) of its height at 5 - 3.
    aside = th.tensor([5.0, 2.0] + [5.0] * (n - 2), dtype=th.float64)
    expected = 10.0 * math.exp(-0.5) + 6.5 * math.exp(-8.0 * (n - 1) - 0.5)
    assert float(env.reward(aside)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("n", range(2, 10))
def test_the_printed_goal_is_worth_half_of_the_printed_trap_for_every_number_of_agents(n: int) -> None:
    heights = DifferentialGameConfig(n_agents=n).heights
    assert heights[0] / heights[1] == pytest.approx(10.0 / (3.0 * 6.5), rel=1e-14)
    assert heights[1] == pytest.approx(6.5 / math.sqrt(2.0 * math.pi) ** n, rel=1e-14)


@pytest.mark.parametrize("variant", ["as_printed", "corrected"])
def test_all_agents_but_the_second_are_interchangeable(variant: str) -> None:
    env, actions = DifferentialGameEnv(n_agents=4, variant=variant), joint_actions(4)
    for order in itertools.permutations(range(4)):
        permuted = env.reward(actions[:, list(order)])
        same = th.allclose(permuted, env.reward(actions), rtol=1e-12, atol=0.0)
        assert same == (order[1] == 1)


def test_the_reward_takes_any_batch_in_its_type_and_can_be_differentiated() -> None:
    env = DifferentialGameVecEnv(n_copies=2, n_agents=3)
    actions = joint_actions(3, 24).requires_grad_()
    rewards = env.reward(actions)
    assert env.reward(actions.view(2, 3, 4, 3)).flatten().tolist() == rewards.tolist()
    assert env.reward(actions.float()).dtype == th.float32
    assert env.reward(actions[0]).shape == ()
    assert th.autograd.gradcheck(env.reward, (actions[:4],))


@pytest.mark.parametrize("wrong", [th.zeros(4, 2), th.zeros(()), th.zeros(4, 3, dtype=th.int64)])
def test_joint_actions_of_another_team_or_type_are_named(wrong: th.Tensor) -> None:
    env = DifferentialGameEnv(n_agents=3)
    for function in (env.reward, env.distance):
        with pytest.raises(ValueError, match=r"`joint_actions` must be floating-point numbers of shape \(..., 3\), got"):
            function(wrong)


# ---------------------------------------------------------------- the peaks
@pytest.mark.parametrize(("variant", "best", "second"), [("as_printed", 1, 5), ("ancestor", 5, 1), ("corrected", 5, 1)])
def test_a_grid_has_the_two_maxima_that_the_environment_names(variant: str, best: float, second: float) -> None:
    env = DifferentialGameEnv(n_agents=2, variant=variant)
    axis = th.linspace(0.0, 7.0, 701, dtype=th.float64)
    rewards = env.reward(th.cartesian_prod(axis, axis)).view(701, 701)
    # A maximum of the box is at least as high as its eight neighbours, of which the edge has fewer.
    padded = th.nn.functional.max_pool2d(rewards[None, None], 3, stride=1, padding=1)[0, 0]
    places = (rewards == padded).nonzero()
    found = sorted(((float(rewards[i, j]), float(axis[i]), float(axis[j])) for i, j in places.tolist()), reverse=True)
    assert len(found) == 2
    for (height, *actions), optimum, near in zip(found, env.optima, (best, second), strict=True):
        assert optimum.actions == pytest.approx(actions, abs=0.0051)
        assert optimum.actions == pytest.approx([near, near], abs=0.2)
        # Within half a step of a maximum the height falls by less than 2 * 10 / 2 * 0.005^2.
        assert height <= optimum.height < height + 2.5e-4


@every_case
def test_the_optima_have_no_slope_and_curve_downwards(variant: str, n: int) -> None:
    env = DifferentialGameEnv(n_agents=n, variant=variant)
    for optimum in env.optima:
        actions = th.tensor(optimum.actions, dtype=th.float64)
        slope = th.autograd.functional.jacobian(env.reward, actions)
        assert slope.abs().max() < 1e-13 * optimum.height
        assert th.linalg.eigvalsh(th.autograd.functional.hessian(env.reward, actions)).max() < 0.0
        assert float(env.reward(actions)) == optimum.height


@pytest.mark.parametrize("n", SIZES)
def test_nobody_leaves_the_trap_alone(n: int) -> None:
    env = DifferentialGameEnv(n_agents=n, variant="corrected")
    trap = env.optima[1]
    for agent in range(n):
        moves = th.tensor(trap.actions, dtype=th.float64).repeat(1401, 1)
        moves[:, agent] = th.linspace(0.0, 7.0, 1401, dtype=th.float64)
        assert env.reward(moves).max() <= trap.height


def test_what_the_paper_reports_as_its_end_is_worth_less_than_a_tenth_of_the_trap() -> None:
    # W-MATRPO's Table 3 for three and nine agents, with the distances that it gives.
    ends = {
        (3.829, 3.517, 3.466): (2.4335, 0.0291),
        (3.540, 3.565, 3.569, 3.574, 3.577, 3.574, 3.492, 3.525, 3.587): (4.3330, 1.78e-7),
    }
    for end, (distance, reward) in ends.items():
        env, actions = DifferentialGameEnv(n_agents=len(end)), th.tensor(end, dtype=th.float64)
        assert float(env.distance(actions)) == pytest.approx(distance, abs=1e-3)
        assert float(env.reward(actions)) == pytest.approx(reward, rel=5e-3)
        assert float(env.reward(actions)) < 0.1 * env.optima[0].height


# ---------------------------------------------------------------- the two forms
@pytest.mark.parametrize(("variant", "n"), [("as_printed", 2), ("ancestor", 2), ("corrected", 3)])
def test_pettingzoo_accepts_the_environment(variant: str, n: int) -> None:
    parallel_api_test(DifferentialGameEnv(n_agents=n, variant=variant), num_cycles=60)
    parallel_seed_test(lambda: DifferentialGameEnv(n_agents=n, variant=variant), num_cycles=60)


@pytest.mark.parametrize("double_precision", [False, True])
@every_case
def test_both_forms_agree(variant: str, n: int, double_precision: bool) -> None:
    env = DifferentialGameEnv(n_agents=n, variant=variant)
    vec_env = DifferentialGameVecEnv(n_copies=200, n_agents=n, variant=variant, double_precision=double_precision)
    vec_env.reset_tensor()
    # Some of the actions lie outside of the box.
    actions = joint_actions(n, 200, -1.0, 8.0).float()
    step = vec_env.step_tensor(actions.unsqueeze(-1))
    tolerance = {"rtol": 1e-6, "atol": 1e-37} if double_precision else {"rtol": 1e-6, "atol": 1e-6}
    for copy in range(200):
        env.reset()
        _, rewards, _, _, infos = play(env, *actions[copy].tolist())
        np.testing.assert_allclose(step.rewards[copy], list(rewards.values()), **tolerance)
        for name in ("distance", "reward"):
            np.testing.assert_allclose(step.infos[name][copy], [info[name] for info in infos.values()], **tolerance)


def test_an_episode_is_one_step_that_terminates_it() -> None:
    env = DifferentialGameEnv(n_agents=3)
    for _ in range(2):
        observations, _ = env.reset()
        assert env.agents == ["agent_0", "agent_1", "agent_2"]
        final, _, terminations, truncations, _ = play(env, 1.0, 2.0, 3.0)
        assert {float(obs[0]) for obs in (*observations.values(), *final.values())} == {1.0}
        assert set(terminations.values()) == {True}
        assert set(truncations.values()) == {False}
        assert env.agents == []
        assert env.step({}) == ({}, {}, {}, {}, {})

    vec_env = DifferentialGameVecEnv(n_copies=4, n_agents=3)
    vec_env.reset_tensor()
    for _ in range(2):
        step = vec_env.step_tensor(th.ones(4, 3, 1))
        assert step.terminated is True
        assert step.truncated is False
        assert th.equal(step.obs, th.ones(4, 3, 1))
    *_, dones, infos = vec_env.step(np.ones((12, 1)))
    assert dones.all()
    assert not any(info["TimeLimit.truncated"] or "terminal_state" in info for info in infos)


def test_infos_hold_the_teams_reward_and_the_distance_of_the_clipped_joint_action() -> None:
    env = DifferentialGameEnv(n_agents=3)
    env.reset()
    _, rewards, _, _, infos = play(env, 1.0, 1.0, 1.0)
    # 4 sqrt(3), and 6.5 / (2 pi)^(3/2) plus next to nothing.
    assert [info["distance"] for info in infos.values()] == pytest.approx([6.92820323] * 3, abs=1e-8)
    assert [info["reward"] for info in infos.values()] == pytest.approx([0.41270864] * 3, abs=1e-7)
    assert {info["reward"] for info in infos.values()} == set(rewards.values())
    env.reset()
    # Clipped to (0, 7, 5), which is 5 and 2 away from the goal.
    assert play(env, -3.0, 9.0, 5.0)[4]["agent_1"]["distance"] == pytest.approx(math.sqrt(29.0), abs=1e-12)

    vec_env = DifferentialGameVecEnv(n_copies=2, n_agents=3)
    vec_env.reset()
    _, rewards, _, infos = vec_env.step(np.array([1, 1, 1, -3, 9, 5], np.float32).reshape(6, 1))
    assert [info["distance"] for info in infos] == pytest.approx([6.92820323] * 3 + [math.sqrt(29.0)] * 3, abs=1e-6)
    assert [info["reward"] for info in infos] == rewards.tolist()
    step = vec_env.step_tensor(th.tensor([[-3.0, 9.0, 5.0], [5.0, 5.0, 5.0]]).unsqueeze(-1))
    assert step.infos["distance"][:, 0].tolist() == pytest.approx([math.sqrt(29.0), 0.0], abs=1e-6)


def test_the_state_is_a_constant_and_a_central_critic_trains_on_it() -> None:
    env, vec_env = DifferentialGameEnv(), DifferentialGameVecEnv(n_copies=3)
    env.reset()
    vec_env.reset_tensor()
    assert env.state().tolist() == [1.0]
    assert env.state_space.contains(env.state())
    assert vec_env.observe_state().tolist() == [[1.0]] * 3
    for each in (vec_env, ParallelVecEnv(env)):
        assert each.state_space.shape == (1,)
        MAPPO("MlpPolicy", each, n_steps=16, batch_size=8, n_epochs=1, seed=0).learn(32)


def test_actions_that_are_missing_misshapen_or_no_finite_numbers_are_named() -> None:
    env = DifferentialGameEnv(n_agents=2)
    good = np.ones(1, np.float32)
    env.reset()
    with pytest.raises(ValueError, match="`actions` must name every agent, 'agent_1' is missing"):
        env.step({"agent_0": good})
    for wrong in (np.float32(1.0), np.ones(2, np.float32), np.ones((1, 1), np.float32)):
        with pytest.raises(ValueError, match=r"`actions\['agent_1'\]` must have shape \(1,\)"):
            env.step({"agent_0": good, "agent_1": wrong})
    for wrong in (np.array([np.nan]), np.array([np.inf]), np.array(["1"]), np.array([1j])):
        with pytest.raises(ValueError, match=r"`actions\['agent_1'\]` must be finite numbers for Box\(0.0, 7.0"):
            env.step({"agent_0": good, "agent_1": wrong})

    vec_env = DifferentialGameVecEnv(n_copies=2, n_agents=2)
    vec_env.reset()
    with pytest.raises(ValueError, match=r"`actions` must have shape \(2, 2, 1\), got \(2, 2\)"):
        vec_env.step_tensor(th.ones(2, 2))
    with pytest.raises(ValueError, match=r"`actions` must have shape \(4, 1\)"):
        vec_env.step(np.ones(4))
    with pytest.raises(ValueError, match="`actions` must be finite numbers"):
        vec_env.step(np.full((4, 1), np.nan))
    # Tensors are not looked at, which would wait for the device; learners stop at the reward.
    assert vec_env.step_tensor(th.full((2, 2, 1), th.nan)).rewards.isnan().all()


@pytest.mark.parametrize("make", [DifferentialGameEnv, lambda **config: DifferentialGameVecEnv(n_copies=2, **config)])
@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"n_agents": 1}, ValueError, r"`n_agents` must be an integer in \[2, 9\], got 1"),
        ({"n_agents": 10}, ValueError, r"`n_agents` must be an integer in \[2, 9\], got 10"),
        ({"n_agents": "3"}, TypeError, r"`n_agents` must be an integer in \[2, 9\], got '3'"),
        ({"n_agents": 2.0}, TypeError, r"`n_agents` must be an integer in \[2, 9\], got 2.0"),
        ({"n_agents": True}, TypeError, r"`n_agents` must be an integer in \[2, 9\], got True"),
        (
            {"variant": "as_prined"},
            ValueError,
            "`variant` must be one of 'as_printed', 'ancestor', 'corrected', got 'as_prined'",
        ),
        ({"variant": None}, TypeError, "`variant` must be one of"),
        ({"variant": "ancestor"}, ValueError, "`n_agents` must be 2 for the variant 'ancestor', .* got 3; pass n_agents=2"),
        ({"render_mode": "human"}, ValueError, '`render_mode` must be None or "rgb_array"'),
    ],
)
def test_bad_arguments_are_named(make: Any, config: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**config)


def test_environments_survive_pickling() -> None:
    env = pickle.loads(pickle.dumps(DifferentialGameEnv(n_agents=2, variant="ancestor")))
    assert env.config == DifferentialGameConfig(n_agents=2, variant="ancestor")
    assert env.optima[0].height > env.optima[1].height


# ---------------------------------------------------------------- learning
@pytest.mark.parametrize("backend", ["auto", "parallel"])
def test_the_distance_is_in_the_log_of_a_training(backend: str, tmp_path: Any) -> None:
    kwargs = {"n_agents": 3, "variant": "corrected"}
    env = make_vec_env(GAME, n_copies=30, seed=0, env_kwargs=kwargs, backend=backend)
    assert isinstance(env, DifferentialGameVecEnv) == (backend == "auto")
    model = IPPO("MlpPolicy", env, n_steps=2, batch_size=30, n_epochs=1, seed=0, stats_window_size=180)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    played: list[Any] = []
    model.learn(180, callback=lambda local, _: played.append(local["infos"][0:90]) is None)
    header, row = (line.split(",") for line in (tmp_path / "progress.csv").read_text().splitlines())
    logged = dict(zip(header, row, strict=True))
    distances = [info["distance"] for infos in played for info in infos]
    assert len(distances) == 180
    assert np.std(distances) > 0.5
    assert float(logged["rollout/ep_distance_mean"]) == pytest.approx(np.mean(distances), rel=1e-5)
    rewards = [info["reward"] for infos in played for info in infos]
    assert float(logged["rollout/ep_rew_mean"]) == pytest.approx(np.mean(rewards), rel=1e-5)
    assert float(logged["rollout/ep_len_mean"]) == 1.0


def test_independent_learners_climb_the_peak_beside_which_they_start() -> None:
    env = make_vec_env(GAME, n_copies=128, seed=0, env_kwargs={"n_agents": 2, "variant": "corrected"})
    model = IPPO("MlpPolicy", env, n_steps=4, batch_size=256, n_epochs=5, learning_rate=3e-3, seed=0).learn(60 * 4 * 256)
    actions, _ = model.predict({agent: np.ones(1, np.float32) for agent in env.possible_agents}, deterministic=True)
    assert [float(action[0]) for action in actions.values()] == pytest.approx([1.0, 1.0], abs=0.3)
    result = evaluate_team(model, env, n_eval_episodes=10)
    # Both agents are paid the team's 6.5, and its sum is over agents.
    assert result.team_return == pytest.approx(13.0, rel=0.1)


# ---------------------------------------------------------------- pictures
def pixel(frame: np.ndarray, first: float, second: float) -> tuple[int, ...]:
    """What is drawn for a pair of actions: the map is 340 pixels wide, from (56, 14) on."""
    return tuple(frame[14 + int((7.0 - second) / 7.0 * 340), 56 + int(first / 7.0 * 340)].tolist())


def test_a_picture_shows_the_reward_and_the_joint_action() -> None:
    env = DifferentialGameEnv(n_agents=2, variant="corrected", render_mode="rgb_array")
    assert env.render() is None
    env.reset()
    before = env.render()
    assert before.shape == (508, 480, 3)
    assert before.dtype == np.uint8
    # White where there is no reward; from the edge of the higher peak to its flank it gets darker. The centre has a cross.
    assert pixel(before, 0.5, 6.5) == (255, 255, 255)
    shades = [sum(pixel(before, first, 5.0)) for first in (2.5, 3.2, 3.7, 4.2, 4.7)]
    assert shades == sorted(shades, reverse=True)
    assert shades[0] > shades[-1] + 300
    assert sum(pixel(before, 1.3, 1.3)) > sum(pixel(before, 4.7, 4.7))
    play(env, 3.0, 6.0)
    assert pixel(env.render(), 3.0, 6.0) == (213, 94, 0)
    assert pixel(before, 3.0, 6.0) != (213, 94, 0)
    env.reset()
    assert pixel(env.render(), 3.0, 6.0) == (213, 94, 0)
    assert DifferentialGameEnv().render() is None


def test_the_map_is_that_of_the_first_two_agents_with_the_others_where_they_are() -> None:
    env = DifferentialGameEnv(n_agents=4, variant="corrected", render_mode="rgb_array")
    frames = []
    for others in (1.0, 5.0):
        env.reset()
        play(env, 6.5, 0.5, others, others)
        frames.append(env.render())
    at_trap, at_goal = frames
    # With the others at 1 the map has the lower peak, with the others at 5 the higher one.
    assert sum(pixel(at_trap, 1.3, 1.3)) + 300 < sum(pixel(at_trap, 4.7, 4.7))
    assert sum(pixel(at_goal, 4.7, 4.7)) + 300 < sum(pixel(at_goal, 1.3, 1.3))
    # Each of the others is a disc of its colour on a line of its own.
    for row, colour in enumerate([(0, 158, 115), (204, 121, 167)]):
        y = 14 + 340 + 46 + 11 * row
        assert tuple(at_trap[y, 56 + int(340 / 7.0)].tolist()) == colour
        assert tuple(at_goal[y, 56 + int(5 * 340 / 7.0)].tolist()) == colour


def test_both_forms_draw_the_same_and_several_copies_are_tiles() -> None:
    vec_env = DifferentialGameVecEnv(n_copies=3, render_mode="rgb_array", n_render_copies=3, double_precision=True)
    env = DifferentialGameEnv(render_mode="rgb_array")
    vec_env.reset()
    env.reset()
    assert np.array_equal(vec_env.get_images()[0], env.render())
    actions = np.array([[2.0, 3.0, 4.0], [5.0, 6.0, 7.0], [0.0, 0.0, 0.0]], np.float32)
    vec_env.step(actions.reshape(9, 1))
    for image, joint in zip(vec_env.get_images(), actions, strict=True):
        env.reset()
        play(env, *joint.tolist())
        assert np.array_equal(image, env.render())
    assert vec_env.render().shape == (2 * 508, 2 * 480, 3)
