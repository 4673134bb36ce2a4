"""HATRPO: sb3-contrib's TRPO on a team of one, and what is its own."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv, copy_to_sb3
from gymnasium import spaces
from sb3_contrib import TRPO
from trust_region_toys import numbers, rounds

from otbaselines import HATRPO
from otbaselines.common.multi_agent.distributions import (
    DiagonalGaussian,
    IndependentBernoulli,
    MaskedCategorical,
    MultiCategorical,
)
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv

STEPS = 192
SETTINGS = {
    "batch_size": 64,
    "n_critic_updates": 2,
    "target_kl": 0.02,
    "cg_damping": 0.05,
    "line_search_shrinking_factor": 0.7,
    "seed": 0,
    "device": "cpu",
}


def _pair(env_id, **changed):
    """TRPO and HATRPO with the same parameters and the same rollout, and settings that may differ."""
    kwargs = {"n_steps": STEPS, "policy_kwargs": {"net_arch": [16, 16]}}
    trpo = TRPO("MlpPolicy", env_id, **kwargs, **SETTINGS)
    ours = HATRPO("MlpPolicy", env_id, **kwargs, **{**SETTINGS, **changed})
    with th.no_grad():
        # Policies start near uniform, where every distance is small.
        ours.policy.action_net.weight.mul_(30.0)
    copy_to_sb3(ours.policy, trpo.policy)
    for model in (trpo, ours):
        _, callback = model._setup_learn(STEPS)
        if model is trpo:
            trpo.collect_rollouts(trpo.env, callback, trpo.rollout_buffer, STEPS)
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        mine = getattr(ours.rollout_buffer, name)
        mine.copy_(th.as_tensor(getattr(trpo.rollout_buffer, name)).reshape(mine.shape))
    ours.rollout_buffer.pos = STEPS
    return trpo, ours


def _train(trpo, ours):
    """One update of each; the largest differences of the actors' and the critics' parameters."""
    for model in (trpo, ours):
        # sb3-contrib's conjugate gradients start at a draw.
        th.manual_seed(3)
        model.train()
    expected = {name: value.clone() for name, value in trpo.policy.state_dict().items()}
    copy_to_sb3(ours.policy, trpo.policy)
    difference = {"actor": 0.0, "critic": 0.0}
    for name, value in trpo.policy.state_dict().items():
        part = "critic" if "value" in name else "actor"
        difference[part] = max(difference[part], float((value - expected[name]).abs().max()))
    return difference


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_team_of_one_takes_the_step_of_trpo(env_id, monkeypatch):
    trpo, ours = _pair(env_id)
    start = [parameter.detach().clone() for parameter in ours.policy.actor_parameters()]
    # In the order of the minibatches the two differ, as one asks NumPy for it and the other torch.
    monkeypatch.setattr(np.random, "permutation", np.arange)
    monkeypatch.setattr(th, "randperm", th.arange)
    difference = _train(trpo, ours)
    assert difference["actor"] <= 1e-5
    assert difference["critic"] <= 1e-5
    theirs, mine = trpo.logger.name_to_value, ours.logger.name_to_value
    assert mine["trust_region/kl_0"] == pytest.approx(theirs["train/kl_divergence_loss"], rel=1e-3)
    assert mine["train/is_update_accepted"] == 1.0
    assert 0.2 * SETTINGS["target_kl"] < mine["trust_region/kl_0"] < SETTINGS["target_kl"]
    # The step is far longer than the tolerance.
    moved = max(
        float((new.detach() - old).abs().max()) for new, old in zip(ours.policy.actor_parameters(), start, strict=True)
    )
    assert moved > 1e-2


@pytest.mark.parametrize(
    "changed",
    [
        {"target_kl": 0.018},
        {"cg_damping": 0.06},
        {"cg_max_steps": 2},
        {"normalize_advantage": False, "line_search_max_iter": 1, "target_kl": 5.0},
    ],
    ids=["kl", "damping", "solver", "line search"],
)
def test_the_comparison_with_trpo_sees_every_setting_of_the_step(changed):
    assert _train(*_pair("CartPole-v1", **changed))["actor"] > 1e-4


def test_the_line_search_of_a_team_of_one_is_that_of_trpo():
    # Without damping the model of the divergence is off, and several trials are needed.
    trpo, ours = _pair("CartPole-v1")
    for model in (trpo, ours):
        model.cg_damping = 1e-3
    trpo.target_kl = 0.9
    ours.target_kl = 0.9
    difference = _train(trpo, ours)
    log = ours.logger.name_to_value
    assert 0.0 < log["trust_region/share_0"] < 1.0
    assert log["trust_region/kl_0"] == pytest.approx(trpo.logger.name_to_value["train/kl_divergence_loss"], rel=1e-2)
    assert difference["actor"] <= 1e-3


def test_a_single_agent_learns_with_its_own_critic_as_well():
    model = HATRPO("MlpPolicy", "CartPole-v1", critic="own", n_steps=256, seed=0)
    logs = rounds(model, 3)
    assert sum(log["train/is_update_accepted"] for log in logs) >= 2.0


# ---------------------------------------------------------------- what caatr assumes of a divergence
def _random_pairs(kind):
    generator = th.Generator().manual_seed(0)

    def draw(width):
        return 2.0 * th.randn(500, 3, width, dtype=th.float64, generator=generator)

    if kind == "normals":
        log_std = 0.5 * draw(4)[0]
        return DiagonalGaussian(0.3 * draw(4), log_std + 0.2 * draw(4)), DiagonalGaussian(0.3 * draw(4), log_std)
    families = {
        "choices": lambda: MaskedCategorical(draw(5)),
        "several choices": lambda: MultiCategorical(draw(7), [3, 4]),
        "coin flips": lambda: IndependentBernoulli(draw(3)),
    }
    return families[kind](), families[kind]()


SPACES = {
    "choices": spaces.Discrete(5),
    "several choices": spaces.MultiDiscrete([3, 4]),
    "coin flips": spaces.MultiBinary(3),
    "normals": spaces.Box(-1, 1, (4,), np.float32),
}


@pytest.mark.parametrize("kind", SPACES)
def test_no_policy_within_the_divergence_is_farther_than_the_assumed_drift(kind):
    model = HATRPO("MlpPolicy", AnySpacesEnv(spaces.Box(-1, 1, (2,), np.float32), SPACES[kind]), caatr=True)
    new, old = _random_pairs(kind)
    kl, w1 = new.kl(old), new.w1(old)
    closest = 0.0
    for agent in range(3):
        if kind == "normals":
            model.policy.log_std.data = old.log_std[agent : agent + 1].float()
        for row in range(500):
            model.target_kl = float(kl[row, agent])
            share = float(w1[row, agent]) / model.fixed_drift
            assert share <= 1.0 + 1e-6
            closest = max(closest, share)
    # Not so far above that it says nothing.
    assert closest > 0.8


@pytest.mark.parametrize("continuous", [False, True])
def test_radii_of_caatr_stay_near_the_bound_on_the_divergence(continuous):
    env = SimpleSpreadVecEnv(n_copies=4, max_cycles=25, seed=0, continuous_actions=continuous)
    logs = rounds(HATRPO("MlpPolicy", env, n_steps=50, n_critic_updates=2, seed=0, caatr=True), 4)
    for log in logs[1:]:
        assert all(0.5 * 0.01 < radius < 3.0 * 0.01 for radius in numbers(log, "radius"))


# ---------------------------------------------------------------- bad input
def test_a_constant_of_caatr_is_asked_for_where_it_has_no_default():
    env = SimpleSpreadVecEnv(n_copies=2, continuous_actions=True)
    with pytest.raises(TypeError, match="`caatr_constant` has no default with `use_sde=True`"):
        HATRPO("MlpPolicy", env, use_sde=True, caatr=True)
    model = HATRPO("MlpPolicy", env, use_sde=True, caatr=True, caatr_constant=0.01, n_steps=16, seed=0)
    assert all(math.isfinite(radius) for log in rounds(model, 2) for radius in numbers(log, "radius"))


def test_sb3s_own_policies_are_refused():
    from stable_baselines3.common.policies import ActorCriticPolicy

    with pytest.raises(ValueError, match="HATRPO needs a policy that can be taken apart by agents, but ActorCriticPolicy is"):
        HATRPO(ActorCriticPolicy, gym.make("CartPole-v1"), critic="own")
    with pytest.raises(ValueError, match="`policy` ActorCriticPolicy has one set of parameters"):
        HATRPO(ActorCriticPolicy, SimpleSpreadVecEnv(n_copies=2))
