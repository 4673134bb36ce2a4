"""What the networks read of a data set: every row, scaled as the policy scales what it sees."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from otbaselines import IQL, OfflineDataset
from otbaselines.common.offline.rows import Rows


def _model(n=30, **kwargs):
    rng = np.random.default_rng(1)
    data = OfflineDataset(
        observations=5 + 3 * rng.normal(size=(n, 3)),
        actions=rng.uniform(-2, 6, (n, 2)),
        rewards=rng.normal(size=n),
        next_observations=-4 + 2 * rng.normal(size=(n, 3)),
        terminations=np.arange(n) % 5 == 4,
        truncations=np.arange(n) % 5 == 2,
        action_space=spaces.Box(-2, 6, (2,), np.float32),
    )
    return data, IQL("MlpPolicy", dataset=data, policy_kwargs={"net_arch": [8]}, seed=0, **kwargs).learn(1)


def test_rows_are_the_data_in_the_units_of_the_networks():
    data, model = _model(reward_scale=3.0)
    batch = model._rows.batch(th.arange(len(data)))
    with th.no_grad():
        th.testing.assert_close(batch.observations, model.policy.normalize(data.observations))
        th.testing.assert_close(batch.next_observations, model.policy.normalize(data.next_observations))
    th.testing.assert_close(batch.actions, (data.actions - 2) / 4)
    th.testing.assert_close(batch.observation_actions, th.cat([batch.observations, batch.actions], 1))
    th.testing.assert_close(batch.rewards, 3 * data.rewards)
    # A truncated row goes on, a terminal one does not.
    th.testing.assert_close(batch.continues, 1 - data.terminations.float())


def test_every_row_is_drawn():
    data, model = _model(batch_size=1000)
    assert model._drawn.unique().tolist() == list(range(len(data)))


def test_rows_that_know_their_returns_know_them_as_a_loop_over_episodes_does():
    data, model = _model(reward_scale=3.0, return_share=0.5, gamma=0.9)
    # Episodes end at rows 2 and 4 of every five; of the last one nothing is known but its row.
    plain = _model(reward_scale=3.0)[1]._rows.batch(th.arange(len(data)))
    batch = model._rows.batch(th.arange(len(data)))
    leaps = batch.to_the_end
    for row in range(len(data)):
        last = next(end for end in range(row, len(data)) if end % 5 in (2, 4))
        rewards = sum(0.9**k * float(plain.rewards[row + k]) for k in range(last - row + 1))
        assert float(leaps.rewards[row]) == pytest.approx(rewards, rel=1e-5, abs=1e-6)
        rest = 0.0 if last % 5 == 4 else 0.9 ** (last - row + 1)
        assert float(leaps.discounts[row]) == pytest.approx(rest, rel=1e-5)
        assert th.equal(leaps.next_observations[row], plain.next_observations[last])
    for name in ("observations", "observation_actions", "actions", "next_observations", "rewards", "continues"):
        assert th.equal(getattr(batch, name), getattr(plain, name)), name


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_returns_are_found_wherever_incomplete_episodes_lie(gamma):
    """Parts before, between and after whole episodes; one episode of a single step, one of a thousand."""
    episodes = np.concatenate([np.full(3, -1), np.full(4, 2), np.full(2, -1), [3], np.full(1000, 5), [-1]])
    n, rng = len(episodes), np.random.default_rng(0)
    matrix = th.as_tensor(rng.normal(10.0, 1.0, (n, 2 + 1 + 2 + 2)), dtype=th.float32)
    matrix[:, -1] = 1.0
    matrix[6, -1] = 0.0
    rows = Rows(matrix, 2, 1).with_returns(episodes, gamma)
    leaps = rows.batch(th.arange(n)).to_the_end
    whole = {2: 6, 3: 9, 5: 1009}
    for row in (0, 2, 3, 5, 6, 7, 9, 10, 500, 1009, 1010):
        last = whole.get(int(episodes[row]), row)
        powers = gamma ** np.arange(last - row + 1)
        rewards = float(powers @ matrix[row : last + 1, -2].double().numpy())
        # Sums of a thousand rewards are rounded once.
        assert float(leaps.rewards[row]) == pytest.approx(rewards, rel=2e-7)
        assert float(leaps.discounts[row]) == pytest.approx(0.0 if last == 6 else gamma ** (last - row + 1), rel=1e-6)
        assert th.equal(leaps.next_observations[row], matrix[last, 3:5])


def test_targets_with_returns_by_hand():
    data, model = _model(return_share=0.25, gamma=0.9, reward_scale=2.0)
    batch, policy = model._rows.batch(th.arange(len(data))), model.policy
    with th.no_grad():
        one_step = batch.rewards + 0.9 * batch.continues * policy.value(batch.next_observations)
        leaps = batch.to_the_end
        whole = leaps.rewards + leaps.discounts * policy.value(leaps.next_observations)
        assert (whole - one_step).abs().max() > 0.1
        both = policy.critic(batch.observation_actions)
        expected = (both - 0.75 * one_step - 0.25 * whole).square().mean(1).sum()
    loss = model._critic_loss(batch, model._next_values(batch))
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    # Targets are no way for the critics' loss into the values.
    policy.zero_grad()
    loss.backward()
    assert all(parameter.grad is None for parameter in policy.value_net.parameters())


def test_rows_at_even_distances_reach_both_ends():
    model = _model()[1]
    assert model._rows.spread(4).tolist() == [0, 9, 19, 29]
    assert model._rows.spread(1000).tolist() == list(range(30))


def test_rows_of_incomplete_episodes_lead_one_step_far():
    data, model = _model(reward_scale=1.0)
    rows = model._rows.with_returns(np.full(len(data), -1), 0.9)
    batch = rows.batch(th.arange(len(data)))
    assert th.equal(batch.to_the_end.rewards, batch.rewards)
    th.testing.assert_close(batch.to_the_end.discounts, 0.9 * batch.continues)
    assert th.equal(batch.to_the_end.next_observations, batch.next_observations)


def test_critics_of_returns_learn_the_behaviours_values_many_times_sooner():
    """A chain of 200 steps with a reward of one at each: the return from its start is 86.6, nine tenths of it far away."""
    n, horizon = 4000, 200
    place = np.arange(n) % horizon
    data = OfflineDataset(
        observations=np.stack([place / horizon, np.ones(n)], 1),
        actions=np.random.default_rng(0).uniform(-1, 1, (n, 1)),
        rewards=np.ones(n),
        next_observations=np.stack([(place + 1) / horizon, np.ones(n)], 1),
        terminations=place == horizon - 1,
        truncations=np.zeros(n, bool),
        action_space=spaces.Box(-1, 1, (1,), np.float32),
    )
    exact = (1 - 0.99 ** (horizon - place)) / 0.01
    errors = {}
    for share in (0.0, 0.2, 1.0):
        kwargs = {"return_share": share, "reward_scale": 1.0, "learning_rate": 3e-3, "policy_kwargs": {"net_arch": [32, 32]}}
        model = IQL("MlpPolicy", dataset=data, seed=0, device="cpu", batch_size=64, **kwargs).learn(1200)
        with th.no_grad():
            values = model.policy.value(model.policy.normalize(data.observations)).numpy()
        errors[share] = np.abs(values - exact).mean()
    assert errors[1.0] < 5.0
    assert errors[0.2] < 25.0
    assert errors[0.0] > 40.0
