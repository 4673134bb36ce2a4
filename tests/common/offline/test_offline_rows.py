"""What the networks read of a data set: every row, scaled as the policy scales what it sees."""

import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines import IQL, OfflineDataset


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
