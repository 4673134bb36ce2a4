"""Small data sets for the tests of learners on data."""

import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines import OfflineDataset

LOW, HIGH = np.array([-2.0, -0.5], np.float32), np.array([2.0, 1.5], np.float32)


def toy_dataset(n: int = 400, horizon: int = 20, seed: int = 0, **changes) -> OfflineDataset:
    """
    Random observations; actions that follow them with noise; rewards for actions near a goal; every other episode terminates.

    :param n: transitions, a multiple of ``2 * horizon``
    :param horizon: steps of an episode
    :param seed: of everything random
    :param changes: columns that take the place of these
    :return: the data
    """
    rng = np.random.default_rng(seed)
    observations = rng.normal(1.0, 3.0, (n, 3)).astype(np.float32)
    scaled = np.clip(0.3 * np.tanh(observations[:, :2]) + 0.3 * rng.normal(size=(n, 2)), -1, 1)
    actions = (LOW + 0.5 * (scaled + 1.0) * (HIGH - LOW)).astype(np.float32)
    ends = np.arange(1, n + 1) % horizon == 0
    terminal = np.arange(1, n + 1) % (2 * horizon) == 0
    columns = {
        "observations": observations,
        "actions": np.clip(actions, LOW, HIGH),
        "rewards": (1.0 - np.square(scaled - 0.5).sum(1)).astype(np.float32),
        "next_observations": np.roll(observations, -1, axis=0),
        "terminations": terminal,
        "truncations": ends & ~terminal,
    }
    return OfflineDataset(
        **{**columns, **changes},
        observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float32),
        action_space=spaces.Box(LOW, HIGH, dtype=np.float32),
    )


def state(model) -> dict[str, th.Tensor]:
    """Every parameter, buffer and moment of a model."""
    tensors = {name: value.clone() for name, value in model.policy.state_dict().items()}
    for name in model._get_torch_save_params()[0][1:]:
        for key, moments in model.get_parameters()[name]["state"].items():
            tensors |= {f"{name}/{key}/{part}": th.as_tensor(value).clone() for part, value in moments.items()}
    return tensors


def same(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    return first.keys() == second.keys() and all(th.equal(value, second[name]) for name, value in first.items())
