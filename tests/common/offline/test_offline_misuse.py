"""What users get wrong with learners on data: each mistake has an error that names it, and a failed start leaves no trace."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from otbaselines import BC, IQL, QDOT, OfflineDataset

TINY = {"net_arch": [8]}


def _data(scale=1.0, rewards=None, n=60, **changes):
    rng = np.random.default_rng(0)
    columns = {
        "observations": scale * rng.normal(size=(n, 3)),
        "actions": rng.uniform(-1, 1, (n, 2)),
        "rewards": rng.normal(size=n) if rewards is None else rewards,
        "next_observations": scale * rng.normal(size=(n, 3)),
        "terminations": np.arange(n) % 10 == 9,
        "truncations": np.zeros(n, bool),
    }
    return OfflineDataset(**{**columns, **changes}, action_space=spaces.Box(-1, 1, (2,), np.float32))


@pytest.mark.parametrize("kwargs", [{"extraction": "bc_map"}, {"use_map": False}, {"n_candidates": 3}])
def test_what_the_algorithm_tells_its_policy_is_not_overruled(kwargs):
    with pytest.raises(ValueError, match=r"`policy_kwargs\['.*'\]`=.* contradicts what QDOT tells its policy"):
        QDOT("MlpPolicy", dataset=_data(), policy_kwargs={**TINY, **kwargs})


@pytest.mark.parametrize("n_critics", [0, -3, 1.5, "a", True])
def test_a_number_of_critics_that_is_none_is_named(n_critics):
    with pytest.raises((TypeError, ValueError), match=r"policy_kwargs\['n_critics'\].* must be an integer"):
        IQL("MlpPolicy", dataset=_data(), policy_kwargs={**TINY, "n_critics": n_critics})


def test_scales_of_data_that_nothing_could_learn_from_are_forgotten():
    huge = _data(scale=1e-3, next_observations=np.full((60, 3), 3e38))
    model = IQL("MlpPolicy", dataset=huge, policy_kwargs=TINY, reward_scale=1.0, seed=0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.learn(20)
    model.set_dataset(_data())
    model.learn(20)
    th.testing.assert_close(model.policy.observation_std, _data().observation_std)
    # What has been learned with, stays.
    model.set_dataset(_data(scale=5.0))
    model.learn(20, reset_num_timesteps=False)
    th.testing.assert_close(model.policy.observation_std, _data().observation_std)


@pytest.mark.parametrize("difference", [0.0, 1e-9, 1e-4])
def test_returns_that_hardly_differ_are_no_scale(difference):
    rewards = np.ones(60)
    rewards[3] += difference
    with pytest.raises(ValueError, match="whole episodes, whose returns do not differ"):
        _data(rewards=rewards).return_range()
    with pytest.warns(RuntimeWarning, match="leaves the rewards as they are"):
        model = IQL("MlpPolicy", dataset=_data(rewards=rewards), policy_kwargs=TINY).learn(2)
    assert float(model.policy.reward_factor) == 1.0


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"rewards": 3.0}, ValueError, "`rewards` must have one entry for each transition, got the single value 3.0"),
        ({"rewards": None}, ValueError, "`rewards` of object, which are no numbers"),
        ({"actions": np.full((60, 2), "a")}, ValueError, "`actions` of <U1, which are no numbers"),
        ({"actions": [[1.0], [2.0, 3.0]]}, ValueError, "`actions` cannot be read as an array of numbers"),
        ({"terminations": [True, False]}, ValueError, r"`terminations` of the shape \(2,\)"),
        ({"rewards": np.zeros(60, complex)}, ValueError, "`rewards` of complex128, which are no numbers"),
    ],
)
def test_columns_that_are_none_are_named(changes, error, said):
    columns = {
        "observations": np.zeros((60, 3)),
        "actions": np.zeros((60, 2)),
        "rewards": np.zeros(60),
        "next_observations": np.zeros((60, 3)),
        "terminations": np.zeros(60, bool),
        "truncations": np.zeros(60, bool),
    }
    with pytest.raises(error, match=said):
        OfflineDataset(**{**columns, **changes})


def test_half_precision_of_every_kind_is_read():
    halves = {name: th.as_tensor(_data().observations) for name in ("observations", "next_observations")}
    for dtype in (th.bfloat16, th.float16):
        data = _data(**{name: value.to(dtype) for name, value in halves.items()})
        th.testing.assert_close(data.observations, halves["observations"], atol=0.02, rtol=0.01)


def test_single_numbers_are_vectors_of_length_one():
    flat = OfflineDataset(np.zeros((9, 3)), np.zeros(9), np.zeros(9), np.zeros((9, 3)), np.ones(9) > 0, np.zeros(9) > 0)
    with pytest.raises(ValueError, match="need actions of one dimension at least"):
        BC("MlpPolicy", dataset=flat)


def test_a_minibatch_beyond_the_machine_is_refused():
    with pytest.raises(ValueError, match=r"a minibatch of `batch_size`=2147483647 rows would take .* GiB of memory"):
        BC("MlpPolicy", dataset=_data(), batch_size=2**31 - 1, policy_kwargs=TINY).learn(1)


def test_a_price_beyond_single_precision_is_refused():
    with pytest.raises(ValueError, match="`alpha`"):
        QDOT("MlpPolicy", dataset=_data(), alpha=1e39)
    with pytest.raises(TypeError, match="`expectile`"):
        QDOT("MlpPolicy", dataset=_data(), v_target="map", expectile=0.9)
    assert not QDOT("MlpPolicy", dataset=_data(), alpha=math.inf, policy_kwargs=TINY).uses_map


def test_images_have_no_network_here_and_their_error_says_so():
    seen = np.zeros((60, 4, 4, 3))
    images = _data(observations=seen, next_observations=seen, observation_space=spaces.Box(0, 255, (4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"has images of .* which learners on data have no network for"):
        BC("MlpPolicy", dataset=images)


def test_widths_for_half_of_the_networks_are_refused():
    with pytest.raises(ValueError, match="must have widths for 'pi', the actor, and for 'qf', the critics"):
        IQL("MlpPolicy", dataset=_data(), policy_kwargs={"net_arch": {"pi": [8], "vf": [8]}})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_observation_has_no_answer(value):
    model = BC("MlpPolicy", dataset=_data(), policy_kwargs=TINY)
    with pytest.raises(ValueError, match="`observation` is NaN or infinite"):
        model.predict(np.full(3, value, np.float32))


def test_half_precision_as_torchs_default_is_refused():
    data = _data()
    th.set_default_dtype(th.float16)
    try:
        with pytest.raises(ValueError, match=r"torch makes its tensors of torch.float16; call `torch.set_default_dtype"):
            BC("MlpPolicy", dataset=data, policy_kwargs=TINY)
    finally:
        th.set_default_dtype(th.float32)
