"""Implicit Q-learning on problems whose values are known."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from offline_toys import toy_dataset

from otbaselines import IQL, OfflineDataset
from otbaselines.common.training import Metrics

SMALL = {"net_arch": [32]}


def _chain(terminal: bool, n: int = 200) -> OfflineDataset:
    """One state, any action, a reward of one, and an end that is a termination or the recording's."""
    zeros, ends = np.zeros((n, 1), np.float32), np.ones(n, bool)
    actions = np.random.default_rng(0).uniform(-1, 1, (n, 1))
    box = spaces.Box(-1.0, 1.0, (1,), np.float32)
    return OfflineDataset(zeros, actions, np.ones(n), zeros, ends & terminal, ends & (not terminal), action_space=box)


@pytest.mark.parametrize(("terminal", "value"), [(True, 1.0), (False, 2.0)])
def test_truncations_bootstrap_and_terminations_do_not(terminal, value):
    """With a discount of one half, a reward that never ends is worth two, and one that comes once is worth one."""
    model = IQL("MlpPolicy", dataset=_chain(terminal), gamma=0.5, tau=0.1, reward_scale=1.0, seed=0, device="cpu", **_FAST)
    model.learn(400)
    assert float(model.policy.value(th.zeros(1, 1)).detach()) == pytest.approx(value, abs=0.05)


_FAST = {"learning_rate": 3e-3, "batch_size": 32, "policy_kwargs": SMALL}


def test_it_learns_which_of_the_datas_actions_pay():
    """Rewards are highest at scaled actions of one half, which the behaviour only sometimes takes."""
    model = IQL("MlpPolicy", dataset=toy_dataset(2000), gamma=0.0, reward_scale=1.0, seed=0, device="cpu", **_FAST)
    model.inverse_temperature = 10.0
    model.actor_learning_rate = lambda _: 3e-3
    model.learn(400)
    data = toy_dataset(2000)
    with th.no_grad():
        actions = model.policy.act(model.policy.normalize(data.observations), None)
    low, high = (th.as_tensor(bound) for bound in (data.action_space.low, data.action_space.high))
    behaviour = 2.0 * (data.actions - low) / (high - low) - 1.0
    assert (actions - 0.5).square().sum(1).mean() < 0.5 * (behaviour - 0.5).square().sum(1).mean()


def test_rewards_are_scaled_by_the_range_of_returns():
    data = toy_dataset()
    returns = data.episode_returns()
    model = IQL("MlpPolicy", dataset=data, seed=0, device="cpu", policy_kwargs=SMALL).learn(1)
    assert float(model.policy.reward_factor) == pytest.approx(1000.0 / (returns.max() - returns.min()), rel=1e-5)
    np.testing.assert_allclose(model._rows.matrix[:, -2], model.policy.reward_factor * data.rewards, rtol=1e-5)


def test_returns_without_a_range_leave_rewards_alone_with_a_warning():
    with pytest.warns(RuntimeWarning, match="`reward_scale`='return_range' leaves the rewards as they are: .*; give a number"):
        model = IQL("MlpPolicy", dataset=_chain(True), seed=0, device="cpu", policy_kwargs=SMALL).learn(1)
    assert float(model.policy.reward_factor) == 1.0


def test_the_actors_rate_falls_along_a_cosine_and_the_critics_stays():
    model = IQL("MlpPolicy", dataset=toy_dataset(), seed=0, device="cpu", policy_kwargs=SMALL)
    rates = []

    def note(scope, _):
        policy = scope["self"].policy
        rates.append([policy.optimizer.param_groups[0]["lr"], policy.critic_optimizer.param_groups[0]["lr"]])
        return True

    model.learn(4, callback=note)
    expected = 1.5e-4 * (1.0 + np.cos(np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(rates, np.column_stack([expected, np.full(4, 3e-4)]))


def test_one_step_is_the_papers_three_losses_by_hand():
    model = IQL("MlpPolicy", dataset=toy_dataset(), seed=0, device="cpu", batch_size=16, policy_kwargs=SMALL).learn(3)
    policy, rows = model.policy, model._rows
    batch = rows.batch(th.arange(16))
    model._index.copy_(th.arange(16))
    with th.no_grad():
        q = th.minimum(*policy.critic_target(th.cat([batch.observations, batch.actions], 1)))
        v, v_next = policy.value(batch.observations), policy.value(batch.next_observations)
        u = q - v
        value_loss = th.where(u > 0, 0.7, 0.3).mul(u.square()).mean()
        target = batch.rewards + 0.99 * batch.continues * v_next
        both = policy.critic(th.cat([batch.observations, batch.actions], 1))
        critic_loss = (both[0] - target).square().mean() + (both[1] - target).square().mean()
        weights = (3.0 * u).exp().clamp(max=100.0)
        actor_loss = -(weights * policy.log_prob(batch.observations, batch.actions)).mean()
    loss, scalars = model._losses_at(model._index)
    np.testing.assert_allclose(scalars[:3].numpy(), [value_loss, critic_loss, actor_loss], rtol=1e-5)
    assert float(loss.detach()) == pytest.approx(float(value_loss + critic_loss + actor_loss), rel=1e-5)


def test_metrics_are_means_over_the_steps_since_the_last_entry():
    model = IQL("MlpPolicy", dataset=toy_dataset(), seed=0, device="cpu", policy_kwargs=SMALL).learn(1)
    metrics, values = Metrics(), []
    for _ in range(3):
        model.train_step(metrics)
        values.append(float(metrics._values["train/q"][-1]))
    assert metrics.means()["train/q"] == pytest.approx(np.mean(values), rel=1e-5)
