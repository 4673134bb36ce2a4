"""Policies of learners on data: densities, stacked critics, and what they act in the environment's own scale."""

import io

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from offline_toys import HIGH, LOW

from otbaselines.common.offline.policies import ImplicitQPolicy, OfflineActorPolicy, StackedCritic

SEES, DOES = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(LOW, HIGH, dtype=np.float32)


def _rate(_progress):
    return 3e-4


def test_stacked_critics_are_as_many_networks_of_their_own():
    critic = StackedCritic(2, 5, [7, 6], th.nn.ReLU)
    x = th.randn(11, 5)
    layers = [critic.body.layers[0], critic.body.layers[2], critic.head]
    target, loss_of_both = th.randn(11), 0.0
    for k in range(2):
        alone = th.nn.Sequential(*[th.nn.Linear(layer.in_features, layer.out_features) for layer in layers])
        with th.no_grad():
            for mine, theirs in zip(alone, layers, strict=True):
                mine.weight.copy_(theirs.weight[k].T)
                mine.bias.copy_(theirs.bias[k, 0])
        y = alone[2](alone[1](alone[0](x).relu()).relu()).squeeze(1)
        np.testing.assert_allclose(critic(x)[k].detach(), y.detach(), atol=1e-6)
        (y - target).square().mean().backward()
        loss_of_both = loss_of_both + (critic(x)[k] - target).square().mean()
        critic.zero_grad()
        (critic(x) - target).square().mean(1).sum().backward()
        np.testing.assert_allclose(layers[0].weight.grad[k].T, alone[0].weight.grad, atol=1e-6)


def test_densities_are_those_of_torch():
    policy = OfflineActorPolicy(SEES, DOES, _rate, log_std_init=-0.7)
    observations, actions = th.randn(9, 3), th.rand(9, 2)
    with th.no_grad():
        policy.log_std[1] = 0.4
        expected = th.distributions.Normal(policy.actor(observations), policy.log_std.exp()).log_prob(actions).sum(1)
        np.testing.assert_allclose(policy.log_prob(observations, actions), expected, rtol=1e-5)


def test_the_standard_deviation_has_a_floor():
    policy = OfflineActorPolicy(SEES, DOES, _rate, log_std_init=-50.0)
    expected = th.distributions.Normal(policy.actor(th.zeros(1, 3)), np.exp(-5.0)).log_prob(th.zeros(1, 2)).sum(1)
    np.testing.assert_allclose(policy.log_prob(th.zeros(1, 3), th.zeros(1, 2)).detach(), expected.detach(), rtol=1e-4)


def test_actions_are_in_the_environments_own_scale():
    policy = OfflineActorPolicy(SEES, DOES, _rate)
    with th.no_grad():
        # tanh(1) of the way from the middle to the edge, in both dimensions.
        policy.actor[-2].weight.zero_()
        policy.actor[-2].bias.fill_(1.0)
    action, _ = policy.predict(np.zeros(3, np.float32), deterministic=True)
    np.testing.assert_allclose(action, 0.5 * (LOW + HIGH) + 0.5 * np.tanh(1.0) * (HIGH - LOW), rtol=1e-5)
    drawn, _ = policy.predict(np.zeros((500, 3), np.float32))
    assert all(DOES.contains(each) for each in drawn)
    assert drawn.std(0).min() > 0.1


def test_observations_are_normalised_inside():
    policy = OfflineActorPolicy(SEES, DOES, _rate)
    seen = np.array([3.0, -2.0, 5.0], np.float32)
    plain, _ = policy.predict((seen - 1.0) / 2.0, deterministic=True)
    policy.observation_mean.fill_(1.0)
    policy.observation_std.fill_(2.0)
    np.testing.assert_allclose(policy.predict(seen, deterministic=True)[0], plain, rtol=1e-6)


def test_the_slow_copy_goes_its_share_of_the_way():
    policy = ImplicitQPolicy(SEES, DOES, _rate)
    before = [p.clone() for p in policy.critic_target.parameters()]
    assert all(th.equal(old, new) for old, new in zip(before, policy.critic.parameters(), strict=True))
    with th.no_grad():
        for parameter in policy.critic.parameters():
            parameter.add_(1.0)
    policy.update_target(0.25)
    for old, new in zip(before, policy.critic_target.parameters(), strict=True):
        np.testing.assert_allclose(new, old + 0.25, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in policy.critic_target.parameters())


def test_the_smallest_of_the_slow_copies_counts():
    policy = ImplicitQPolicy(SEES, DOES, _rate, n_critics=3)
    x = th.randn(8, 5)
    assert th.equal(policy.target_value(x), policy.critic_target(x).min(0).values)


def test_a_policy_by_itself_is_saved_and_loaded():
    policy = ImplicitQPolicy(SEES, DOES, _rate, net_arch={"pi": [8], "qf": [6, 5]})
    policy.observation_mean.fill_(0.3)
    file = io.BytesIO()
    policy.save(file)
    file.seek(0)
    loaded = ImplicitQPolicy.load(file)
    seen = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(seen, deterministic=True)[0], policy.predict(seen, deterministic=True)[0])


@pytest.mark.parametrize(
    ("sees", "does", "message"),
    [
        (spaces.Discrete(3), DOES, "take Box observations"),
        (SEES, spaces.Discrete(3), "take actions in a Box"),
        (SEES, spaces.Box(-np.inf, 1.0, (2,)), "not bounded on all sides"),
        (SEES, spaces.Box(np.zeros(2, np.float32), np.array([0.0, 1.0], np.float32)), "a dimension with a single value"),
    ],
)
def test_spaces_that_cannot_be_learned_are_refused(sees, does, message):
    with pytest.raises(ValueError, match=message):
        OfflineActorPolicy(sees, does, _rate)
