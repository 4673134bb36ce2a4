"""What ``predict`` refuses, whoever predicts."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from otbaselines import WassersteinFlowPG
from otbaselines.common.observations import as_array, check_observation
from otbaselines.fedirl.policies import TabularPolicy


@pytest.mark.parametrize("infos", [{}, {"agent_0": {}}])
def test_what_reset_returns_is_no_observation(infos):
    with pytest.raises(ValueError, match="you are mixing Gym API with SB3's VecEnv API"):
        check_observation((np.zeros(3), infos))


def test_a_tuple_of_numbers_is_an_observation():
    check_observation((0.0, 1.0, 2.0))
    check_observation((0.0, 1.0))


@pytest.mark.parametrize("observation", [[[0.0], [0.0, 1.0]], [np.zeros(3), {}]])
def test_rows_of_unequal_length_are_refused(observation):
    with pytest.raises(ValueError, match="`observation` must hold rows of one length, got "):
        check_observation(observation)


def test_tensors_become_arrays_wherever_they_come_from():
    leaf = th.ones(2, requires_grad=True)
    assert as_array("x", leaf).tolist() == as_array("x", [1.0, 1.0]).tolist() == [1.0, 1.0]


def test_a_table_of_steps_refuses_what_reset_returns():
    policy = TabularPolicy(gym.spaces.Discrete(3), gym.spaces.Discrete(2), n_steps=2)
    with pytest.raises(ValueError, match="mixing Gym API"):
        policy.predict((0, {}))
    assert policy.predict(0, deterministic=True)[0].shape == ()


def test_policies_of_other_learners_refuse_what_reset_returns():
    model = WassersteinFlowPG("MlpPolicy", "Pendulum-v1", device="cpu")
    with pytest.raises(ValueError, match="mixing Gym API"):
        model.predict(gym.make("Pendulum-v1").reset())
