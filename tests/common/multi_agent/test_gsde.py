"""State-dependent exploration: distributions against SB3's, noise that stays until it is drawn anew."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.distributions import StateDependentNoiseDistribution

from otbaselines import IPPO, WBC, make_vec_env
from otbaselines.common.multi_agent.gsde import StateDependentNoise

LATENT, ACTIONS, ROWS = 7, 3, 5
CONTINUOUS = {"continuous_actions": True}


def _navigation(n_copies=4):
    return make_vec_env("otbaselines/Navigation-v0", n_copies, seed=0, env_kwargs=CONTINUOUS)


@pytest.mark.parametrize("use_expln", [False, True], ids=["exp", "expln"])
@pytest.mark.parametrize("full_std", [True, False], ids=["full", "rows"])
def test_every_agents_distribution_is_sb3s(full_std, use_expln):
    n_agents = 2
    log_std = th.randn(n_agents, LATENT, ACTIONS if full_std else 1)
    latent = th.randn(n_agents, ROWS, LATENT)
    ours = StateDependentNoise(n_agents, ACTIONS, use_expln=use_expln)
    log_stds = ours.action_log_std(latent, log_std)
    ours.reset(log_std, ROWS)
    noise = ours.noise(latent.transpose(0, 1), log_std)
    for agent in range(n_agents):
        theirs = StateDependentNoiseDistribution(ACTIONS, full_std=full_std, use_expln=use_expln)
        theirs.proba_distribution_net(LATENT)
        theirs.proba_distribution(th.zeros(ROWS, ACTIONS), log_std[agent], latent[agent])
        th.testing.assert_close(log_stds[agent].exp(), theirs.distribution.stddev, rtol=1e-4, atol=1e-6)
        theirs.exploration_matrices = ours._matrices[:, agent]
        th.testing.assert_close(noise[:, agent], theirs.get_noise(latent[agent]))


def test_the_matrices_have_the_deviations_that_the_density_says():
    log_std = th.randn(1, LATENT, ACTIONS)
    exploration = StateDependentNoise(1, ACTIONS, use_expln=False)
    exploration.reset(log_std, 20_000)
    latent = th.randn(1, 1, LATENT)
    noise = exploration.noise(latent.expand(20_000, -1, -1), log_std)
    expected = exploration.action_log_std(latent, log_std).exp().flatten()
    np.testing.assert_allclose(noise.std(0).flatten(), expected, rtol=0.03)


def test_a_slow_deviation_has_finite_gradients():
    log_std = th.tensor([[[-200.0, 200.0, 0.5]]], requires_grad=True)
    StateDependentNoise(1, 3, use_expln=True).deviations(log_std).sum().backward()
    assert bool(log_std.grad.isfinite().all())


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_the_same_state_gets_the_same_noise_until_it_is_drawn_anew(shared):
    model = IPPO("MlpPolicy", _navigation(), n_steps=8, use_sde=True, share_parameters=shared, seed=0)
    observation = np.tile(model.env.reset()[:3], (4, 1))
    model.policy.reset_noise(12)
    first, _ = model.predict(observation)
    again, _ = model.predict(observation)
    np.testing.assert_array_equal(first, again)
    # Every copy has a matrix of its own.
    assert not np.allclose(first[:3], first[3:6])
    model.policy.reset_noise(12)
    assert not np.allclose(first, model.predict(observation)[0])


@pytest.mark.parametrize(("freq", "expected"), [(-1, 2), (3, 6), (1, 16)])
def test_matrices_are_drawn_at_the_start_and_every_so_many_steps(freq, expected):
    for env, batch_size in ((_navigation(), 6), ("Pendulum-v1", 8)):
        model = IPPO("MlpPolicy", env, n_steps=8, batch_size=batch_size, use_sde=True, sde_sample_freq=freq, seed=0)
        drawn, reset = [], model.policy.reset_noise
        model.policy.reset_noise = lambda n, drawn=drawn, reset=reset: (drawn.append(n), reset(n))
        model.learn(2 * 8 * model.n_envs)
        assert drawn == [model.n_envs] * expected


@pytest.mark.parametrize("algorithm", [IPPO, WBC])
def test_a_team_learns_saves_and_loads(algorithm, tmp_path):
    model = algorithm("MlpPolicy", _navigation(), n_steps=8, batch_size=24, use_sde=True, sde_sample_freq=4, seed=0)
    before = model.policy.log_std.detach().clone()
    model.learn(200)
    assert not th.equal(before, model.policy.log_std)
    model.save(tmp_path / "team")
    loaded = algorithm.load(tmp_path / "team", env=_navigation())
    assert loaded.use_sde
    assert loaded.sde_sample_freq == 4
    observation = loaded.env.reset()
    np.testing.assert_array_equal(
        model.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )
    loaded.learn(100, reset_num_timesteps=False)


def test_the_ratio_is_one_before_the_first_step():
    # What the rollout stored is what the update evaluates: the density does not depend on the matrices.
    model = IPPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, n_epochs=1, use_sde=True, learning_rate=0.0, seed=0)
    model.learn(16)
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert model.logger.name_to_value["train/clip_fraction"] == 0.0


@pytest.mark.parametrize("algorithm", [IPPO, WBC])
def test_a_team_learns_saves_and_loads_squashed_actions(algorithm, tmp_path):
    kwargs = {"squash_output": True, "log_std_init": 1.0, "net_arch": [8]}
    model = algorithm("MlpPolicy", _navigation(), n_steps=8, batch_size=24, use_sde=True, seed=0, policy_kwargs=kwargs)
    model.learn(200)
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())
    model.save(tmp_path / "team")
    loaded = algorithm.load(tmp_path / "team", env=_navigation())
    assert loaded.policy.squash_output
    model.policy.save(tmp_path / "policy")
    assert type(model.policy).load(tmp_path / "policy").squash_output
    observation = loaded.env.reset()
    actions = model.predict(observation, deterministic=True)[0]
    np.testing.assert_array_equal(actions, loaded.predict(observation, deterministic=True)[0])
    # By rows and by agents, the distribution's mode stretched over the box.
    mode = model.policy.get_distribution(th.as_tensor(observation)).mode().flatten(0, 1).detach().numpy()
    low, high = model.action_space.low, model.action_space.high
    np.testing.assert_allclose(actions, low + (mode + 1.0) / 2.0 * (high - low), atol=1e-6)
    agents = model.layout.possible_agents
    own = model.predict({agent: observation[k] for k, agent in enumerate(agents)}, deterministic=True)[0]
    np.testing.assert_allclose(np.stack([own[agent] for agent in agents]), actions[:3], atol=1e-6)


def test_squashing_is_for_state_dependent_exploration():
    with pytest.raises(ValueError, match="`squash_output=True` is for state-dependent exploration; set `use_sde=True`"):
        IPPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"squash_output": True})


def test_it_is_for_continuous_actions():
    with pytest.raises(ValueError, match="only be used with continuous actions"):
        IPPO("MlpPolicy", "CartPole-v1", use_sde=True)
    with pytest.raises(ValueError, match=r"`use_sde=True` needs continuous actions.*Discrete\(2\)"):
        IPPO("MlpPolicy", "CartPole-v1", policy_kwargs={"use_sde": True})
    plain = IPPO("MlpPolicy", gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match="`reset_noise` is for policies with `use_sde=True`"):
        plain.policy.reset_noise()
