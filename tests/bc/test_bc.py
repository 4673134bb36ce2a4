"""Behaviour cloning against the maximum likelihood of a model that has a closed form."""

import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines import BC, OfflineDataset


def test_cloning_a_linear_normal_behaviour_is_least_squares():
    """Of a linear mean, the likeliest weights are those of least squares, and the likeliest deviation is the residuals'."""
    rng = np.random.default_rng(0)
    n = 3000
    observations = rng.normal(2.0, 3.0, (n, 2)).astype(np.float32)
    # Small enough that tanh is a line, within its third power.
    mean = 0.01 * (observations - 2.0) @ np.array([[0.6, -0.2], [0.1, 0.4]]) + 0.02
    actions = (mean + 0.03 * rng.normal(size=(n, 2))).astype(np.float32)
    ends = np.arange(1, n + 1) % 100 == 0
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    data = OfflineDataset(observations, actions, np.zeros(n), observations, np.zeros(n, bool), ends, action_space=box)
    model = BC("MlpPolicy", dataset=data, seed=0, device="cpu", learning_rate="lin_1e-2", policy_kwargs={"net_arch": []})
    model.learn(1000)
    design = np.column_stack([observations, np.ones(n)]).astype(np.float64)
    solution, *_ = np.linalg.lstsq(design, np.arctanh(actions.astype(np.float64)), rcond=None)
    fitted = np.tanh(design @ solution)
    predicted, _ = model.predict(observations, deterministic=True)
    # In units of the mean's own spread, which is a third of the noise's.
    assert np.abs(predicted - fitted).mean() < 0.1 * fitted.std(0).mean()
    residuals = np.sqrt(np.square(actions - fitted).mean(0))
    np.testing.assert_allclose(model.policy.log_std.exp().detach(), residuals, rtol=0.05)


def test_rewards_do_not_matter():
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(60, 2)), rng.uniform(-1, 1, (60, 2))
    ends = np.arange(1, 61) % 10 == 0
    weights = []
    for rewards in (np.zeros(60), rng.normal(size=60)):
        data = OfflineDataset(observations, actions, rewards, observations, np.zeros(60, bool), ends)
        model = BC("MlpPolicy", dataset=data, seed=0, device="cpu", batch_size=8, policy_kwargs={"net_arch": [4]}).learn(5)
        weights.append(th.nn.utils.parameters_to_vector(model.policy.parameters()))
    assert th.equal(*weights)
