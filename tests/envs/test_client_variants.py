"""Clients of the control tasks: what differs between them, and that nothing else does."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from otbaselines.envs import client_variants

TASKS = ["Pendulum-v1", "CartPole-v1", "Acrobot-v1"]


@pytest.mark.parametrize("index", [0, 5])
@pytest.mark.parametrize("task", TASKS)
# The checker warns of every wrapper, and of what Gymnasium's own tasks look like.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasiums_checker_passes_and_spaces_are_those_of_the_task(task, index):
    env, plain = client_variants.make(task, index), gym.make(task)
    check_env(env, skip_render_check=True)
    assert env.observation_space == plain.observation_space
    assert env.action_space == plain.action_space


@pytest.mark.parametrize("task", ["CartPole-v1", "Acrobot-v1"])
def test_client_zero_is_gymnasiums_own_environment(task):
    env, plain = client_variants.make(task, 0), gym.make(task)
    one, other = env.reset(seed=0)[0], plain.reset(seed=0)[0]
    for action in [0, 1, 1, 0, 1]:
        np.testing.assert_array_equal(one, other)
        (one, *rest), (other, *expected) = env.step(action), plain.step(action)
        assert rest[:3] == expected[:3]


def test_the_pendulum_with_gain_one_and_no_damping_is_gymnasiums():
    env, plain = client_variants.ClientPendulum(1.0, 0.0, g=10.0), gym.make("Pendulum-v1").unwrapped
    env.reset(seed=0), plain.reset(seed=0)
    for u in (2.0, -5.0, 0.3):
        (one, reward, *_), (other, expected, *_) = env.step(np.array([u])), plain.step(np.array([u]))
        np.testing.assert_allclose(one, other, rtol=1e-6)
        assert reward == pytest.approx(expected)


def test_a_step_of_the_pendulum_by_hand():
    env = client_variants.make("Pendulum-v1", 3).unwrapped
    env.reset(seed=0)
    env.state = np.array([0.3, 1.5])
    _, reward, *_ = env.step(np.array([1.0], np.float32))
    # 3 g / (2 l) sin(angle) + 3 / (m l^2) gain u - damping speed, over 0.05 s.
    acceleration = 1.5 * (9.81 + 0.6) * np.sin(0.3) + 3 * 1.3 * 1.0 - 0.1 * 1.15 * 1.5
    np.testing.assert_allclose(env.state[1], 1.5 + 0.05 * acceleration)
    np.testing.assert_allclose(env.state[0], 0.3 + 0.05 * env.state[1])
    assert reward == pytest.approx(-(0.3**2 + 0.1 * 1.5**2 + 0.001))


def test_the_cart_pole_of_client_four():
    pole = client_variants.make("CartPole-v1", 4).unwrapped
    assert (pole.force_mag, pole.gravity) == (pytest.approx(14.0), pytest.approx(9.8 * 1.02))
    assert (pole.masscart, pole.masspole, pole.length) == (pytest.approx(1.2), pytest.approx(0.12), pytest.approx(0.6))
    assert (pole.total_mass, pole.polemass_length) == (pytest.approx(1.32), pytest.approx(0.072))


def test_an_acrobot_does_not_change_the_others():
    heavy, plain = client_variants.make("Acrobot-v1", 5).unwrapped, gym.make("Acrobot-v1").unwrapped
    assert (pytest.approx(1.25), 1.0) == (heavy.LINK_MASS_2, plain.LINK_MASS_2)
    assert pytest.approx(0.625) == heavy.LINK_COM_POS_1


def test_the_noise_has_the_stated_spread():
    env = client_variants.make("CartPole-v1", 4)
    env.reset(seed=0)
    state = np.array(env.unwrapped.state)
    noisy = np.array([env.observation(state) for _ in range(4000)])
    np.testing.assert_allclose(noisy.std(0), 0.02, rtol=0.1)
    np.testing.assert_allclose(noisy.mean(0), state, atol=5 * 0.02 / np.sqrt(4000))


def test_a_missing_box2d_is_named(monkeypatch):
    def missing(*args, **kwargs):
        raise gym.error.DependencyNotInstalled("Box2D is not installed")

    monkeypatch.setattr(client_variants.gym, "make", missing)
    with pytest.raises(ImportError, match=r"pip install otbaselines\[box2d\]"):
        client_variants.make("LunarLanderContinuous-v3", 0)


def test_the_lunar_lander_has_the_wind_of_its_index():
    pytest.importorskip("Box2D")
    env = client_variants.make("LunarLanderContinuous-v3", 2)
    assert (env.unwrapped.wind_power, env.unwrapped.turbulence_power) == (12.0, 1.4)
    env.reset(seed=0)
    assert env.step(np.zeros(2))[0].shape == (8,)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`env_id` must be one of 'Pendulum-v1'"):
        client_variants.make("Hopper-v5", 0)
    with pytest.raises(ValueError, match=r"`index` must be in \[0, 5\], got 6"):
        client_variants.make("CartPole-v1", 6)
    with pytest.raises(TypeError, match="`index` must be an integer"):
        client_variants.make("CartPole-v1", 1.0)
    for mode in ("human2", 1, True):
        with pytest.raises(ValueError, match="`render_mode` must be one of 'human', 'rgb_array' or None"):
            client_variants.make("CartPole-v1", 0, render_mode=mode)


def test_noise_is_of_its_index_and_stays_within_the_space():
    for task in ("Pendulum-v1", "CartPole-v1"):
        assert [client_variants.make(task, index).std for index in (0, 2, 5)] == pytest.approx([0.0, 0.01, 0.025])
    env = client_variants.make("Pendulum-v1", 5)
    env.std = 10.0
    seen = np.array([env.reset(seed=seed)[0] for seed in range(20)])
    assert all(env.observation_space.contains(each) for each in seen)
    assert (np.abs(seen) == env.observation_space.high).any()


def test_every_length_and_mass_of_an_acrobot_is_scaled_and_its_moment_of_inertia_is_not():
    plain, scaled = (client_variants.make("Acrobot-v1", index).unwrapped for index in (0, 4))
    for name in ("LINK_LENGTH_1", "LINK_LENGTH_2", "LINK_MASS_1", "LINK_MASS_2", "LINK_COM_POS_1", "LINK_COM_POS_2"):
        assert getattr(scaled, name) == pytest.approx(1.2 * getattr(plain, name))
    assert scaled.LINK_MOI == plain.LINK_MOI
