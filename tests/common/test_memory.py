"""Models that cannot fit into the machine are refused by the names of the settings, before anything is built."""

import time

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from otbaselines import IPPO, MAPPO
from otbaselines.common import memory
from otbaselines.common.memory import check_networks, check_rollout_size
from otbaselines.envs.navigation_tensor import NavigationVecEnv

GIB = 2**30


class Endless(gym.Env):
    """Nothing but its spaces."""

    action_space = spaces.Discrete(2)

    def __init__(self, observation_space):
        self.observation_space = observation_space

    def reset(self, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture
def machine(monkeypatch):
    """Sets the machine's memory."""

    def has(n_bytes):
        monkeypatch.setattr(memory, "machine_memory", lambda: float(n_bytes))

    return has


def test_this_machine_has_memory():
    assert memory.machine_memory() > GIB / 4


def test_parameters_are_counted_with_their_gradients_and_moments(machine):
    # Three actors 8 -> 10 -> 5 and one critic 24 -> 1: 3 (9 * 10 + 11 * 5) + 25 = 460 numbers of 16 bytes.
    networks = [(3, (8, 10, 5)), (1, (24, 1))]
    machine(460 * 16)
    check_networks(networks, {}, spaces.Discrete(8))
    machine(460 * 16 - 1)
    with pytest.raises(
        ValueError, match=r"training 460 parameters \(`net_arch`=.*Discrete\(8\)\) would take .* GiB of memory"
    ):
        check_networks(networks, {}, spaces.Discrete(8))


@pytest.mark.parametrize(("critic", "algorithm"), [("own", IPPO), ("shared", IPPO), ("central", MAPPO)])
def test_the_count_is_that_of_the_policy(critic, algorithm, machine):
    env = NavigationVecEnv(n_copies=2)
    build = lambda: algorithm("MlpPolicy", env, critic=critic, n_steps=2, batch_size=12)  # noqa: E731
    n_bytes = 16 * sum(parameter.numel() for parameter in build().policy.parameters())
    machine(n_bytes)
    build()
    machine(n_bytes - 1)
    with pytest.raises(ValueError, match="`net_arch`"):
        build()


@pytest.mark.parametrize(
    ("space", "n_bytes"),
    [
        # Per observation: what is stored, and what a network is shown of it in float32.
        (spaces.Discrete(1000), 8 + 4000),
        (spaces.Box(-1, 1, (5,), np.float32), 20 + 20),
        (spaces.Box(0, 255, (3, 4, 4), np.uint8), 48 + 192),
        (spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,), np.float64)}), 24 + 12 + 8),
    ],
    ids=["choices", "vector", "image", "dict"],
)
def test_a_rollout_is_counted_as_it_is_kept_and_as_it_is_shown(space, n_bytes, machine):
    cpu = th.device("cpu")
    machine(20 * n_bytes)
    check_rollout_size(10, 2, space, rows_at_once=20, device=cpu)
    machine(20 * n_bytes - 1)
    with pytest.raises(ValueError, match="`n_steps`=10 for 2 agents in all copies"):
        check_rollout_size(10, 2, space, rows_at_once=20, device=cpu)
    # Shown in parts.
    check_rollout_size(10, 2, space, rows_at_once=19, device=cpu)


@pytest.mark.parametrize(
    ("space", "settings", "named"),
    [
        (spaces.Discrete(2), {"policy_kwargs": {"net_arch": [10**7]}}, "`net_arch`"),
        (spaces.Discrete(2), {"policy_kwargs": {"net_arch": {"pi": [4], "vf": [10**6, 10**6]}}}, "`net_arch`"),
        (spaces.Discrete(10**7), {"n_steps": 2}, "`net_arch`"),
        (spaces.Discrete(10**6), {}, "`n_steps`"),
        (spaces.MultiDiscrete([10**6] * 50), {}, "`n_steps`"),
        (spaces.Box(-1, 1, (10**5,), np.float32), {"n_steps": 10**5}, "`n_steps`"),
    ],
)
def test_what_no_small_machine_can_hold_is_refused_at_once(space, settings, named, machine):
    machine(GIB)
    start = time.process_time()
    with pytest.raises(ValueError, match=named + r".* GiB of memory, but this machine has 1\.0 GiB"):
        IPPO("MlpPolicy", Endless(space), **settings)
    assert time.process_time() - start < 2.0


def test_a_saved_model_is_loaded_for_prediction_where_its_rollouts_would_not_fit(machine, tmp_path):
    env = NavigationVecEnv(n_copies=2)
    IPPO("MlpPolicy", env, n_steps=10_000, batch_size=60).save(tmp_path / "model")
    machine(2**20)
    assert IPPO.load(tmp_path / "model").n_steps == 10_000
    with pytest.raises(ValueError, match="`n_steps`=10000"):
        IPPO.load(tmp_path / "model", env=env)
