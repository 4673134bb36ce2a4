"""Columns become tensors that learners draw from; statistics and returns are those computed by hand."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from recordings import LENGTHS, recording

import otbaselines
from otbaselines import OfflineDataset
from otbaselines.common.datasets.transitions import MIN_STD

COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")


@pytest.fixture
def data():
    return OfflineDataset(**recording(), name="steps")


def test_columns_have_the_promised_dtypes_and_are_not_the_callers_memory():
    columns = recording()
    data = otbaselines.OfflineDataset(**columns)
    assert [getattr(data, name).dtype for name in COLUMNS] == [th.float32] * 4 + [th.bool] * 2
    before = data.observations.clone()
    columns["observations"][:] = 7
    assert th.equal(data.observations, before)
    assert len(data) == 8


def test_returns_are_sums_of_whole_episodes_in_order(data):
    # Rewards are the steps: 0+1+2, 0, 0+1+2+3.
    assert data.episode_returns().tolist() == [3.0, 0.0, 6.0]
    assert data.episode_lengths().tolist() == list(LENGTHS)
    assert data.return_range() == 6.0


def test_an_episode_that_goes_on_after_the_data_is_not_whole():
    columns = {name: values[:-1] for name, values in recording().items()}
    data = OfflineDataset(**columns)
    assert data.episode_returns().tolist() == [3.0, 0.0]
    assert data.episodes.tolist() == [0, 0, 0, 1, -1, -1, -1]


def test_a_range_needs_returns_that_differ():
    with pytest.raises(ValueError, match="has 1 whole episodes, whose returns do not differ"):
        OfflineDataset(**recording((3,), (True,))).return_range()


def test_statistics_are_numpys_in_float64_and_the_spread_has_a_floor():
    columns = recording()
    # The second entry stands still; far from zero, sums of squares in float32 would lose the first one's spread.
    columns["observations"][:, 0] += 1e4
    columns["observations"][:, 1] = 5
    data = OfflineDataset(**columns)
    exact = columns["observations"].astype(np.float64)
    np.testing.assert_allclose(data.observation_mean, exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(data.observation_std, [exact[:, 0].std(), MIN_STD], rtol=1e-6)


def test_samples_are_rows_drawn_evenly_with_the_given_generator(data):
    samples = data.sample(4000, th.Generator().manual_seed(3))
    again = data.sample(4000, th.Generator().manual_seed(3))
    assert all(map(th.equal, samples, again))
    np.testing.assert_array_equal(samples.next_observations - samples.observations, np.tile([0, 1], (4000, 1)))
    np.testing.assert_allclose(samples.actions[:, 0], samples.rewards / 10)
    assert (samples.rewards.shape, samples.terminations.shape, samples.terminations.dtype) == ((4000,), (4000,), th.float32)
    # Every row of eight is expected 500 times, with a deviation of 21.
    counts = np.unique(samples.observations, axis=0, return_counts=True)[1]
    assert len(counts) == 8
    assert np.abs(counts - 500).max() < 5 * 21


def test_only_terminations_end_the_future(data):
    every = data.rows(th.arange(len(data)))
    assert every.terminations.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]


def test_without_a_generator_the_global_stream_decides(data):
    th.manual_seed(5)
    first = data.sample(16).rewards
    th.manual_seed(5)
    assert th.equal(data.sample(16).rewards, first)


def test_moving_to_where_it_is_costs_nothing(data):
    assert data.to("cpu") is data


@pytest.mark.gpu
@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
def test_it_lives_on_the_gpu_with_its_statistics(data):
    mean = data.observation_mean
    moved = data.to("cuda")
    assert all(getattr(moved, name).is_cuda for name in COLUMNS)
    assert moved.observation_mean.is_cuda
    assert th.equal(moved.observation_mean.cpu(), mean)
    assert data.observations.device.type == "cpu"
    batch = moved.sample(8, th.Generator("cuda").manual_seed(0))
    assert all(part.is_cuda for part in batch)


def test_concatenation_keeps_episodes_apart():
    whole = OfflineDataset(**recording(), name="a")
    cut = OfflineDataset(**{name: values[:-1] for name, values in recording().items()}, name="b")
    both = OfflineDataset.concatenate([cut, whole])
    assert both.name == "b + a"
    assert both.episode_returns().tolist() == [3.0, 0.0, 3.0, 0.0, 6.0]
    assert th.equal(both.observations, th.cat([cut.observations, whole.observations]))
    assert th.equal(both.terminations, th.cat([cut.terminations, whole.terminations]))


def test_concatenation_refuses_other_spaces(data):
    wide = OfflineDataset(**recording(), action_space=spaces.Box(-2.0, 2.0, (1,)))
    with pytest.raises(ValueError, match=r"recorded with the action space Box\(-2\.0"):
        OfflineDataset.concatenate([data, wide])
    with pytest.raises(ValueError, match="`datasets` must hold at least one"):
        OfflineDataset.concatenate([])


def test_what_is_saved_is_read_to_the_last_bit(tmp_path):
    columns = {name: values[:-1] for name, values in recording().items()}
    data = OfflineDataset(**columns, name="walk", observation_space=spaces.Box(-9.0, np.inf, (2,), np.float64))
    data.save(tmp_path / "walk")
    loaded = OfflineDataset.load(tmp_path / "walk.npz")
    assert all(th.equal(getattr(loaded, name), getattr(data, name)) for name in COLUMNS)
    assert (loaded.name, loaded.observation_space, loaded.action_space) == ("walk", data.observation_space, data.action_space)
    assert loaded.episodes.tolist() == data.episodes.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["walk.npz"]


def test_the_description_says_what_is_inside(data):
    text = data.describe()
    for part in (
        "steps\n",
        "transitions     8 on cpu",
        "3 whole",
        "mean 3.0, std 2.4, 0.0 to 6.0",
        "10/25/50/75/90 %: 0.6 1.5 3.0 4.5 5.4",
        "mean 2.7, 1 to 4 steps",
        "1 terminations, 2 truncations",
        "0.000 to 0.300, 0.0% of entries at the edge",
        "Box(-1.0, 1.0, (1,), float32)",
    ):
        assert part in text, part


def test_actions_at_the_edge_are_counted():
    columns = recording()
    columns["actions"][:2] = [[1.0], [-0.9995]]
    # A two-hundredth of the range away is not at the edge.
    columns["actions"][2] = 0.99
    assert "25.0% of entries at the edge" in OfflineDataset(**columns).describe()


def test_an_end_is_counted_once_and_a_termination_at_the_limit_is_one():
    columns = recording()
    columns["truncations"][2] = True
    assert "1 terminations, 2 truncations" in OfflineDataset(**columns).describe()


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "next_observations"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_numbers_that_float32_cannot_hold_are_refused_with_their_row(name, value):
    columns = {key: values.astype(np.float64) if values.dtype.kind == "f" else values for key, values in recording().items()}
    columns[name][5] = value
    space = spaces.Box(-1.0, 1.0, (1,))
    with pytest.raises(ValueError, match=rf"NaN, infinite or too large `{name}` in 1 of its 8 rows, the first of them row 5"):
        OfflineDataset(**columns, action_space=space)


def test_no_data_are_refused():
    with pytest.raises(ValueError, match="has no transitions"):
        OfflineDataset(**{name: values[:0] for name, values in recording().items()})


def test_actions_that_rounding_moved_are_clipped_with_a_warning():
    columns = recording()
    columns["actions"][3] = 1.0001
    with pytest.warns(UserWarning, match=r"1 of 8 actions missed the action space by up to 1\.0e-04.* clipped"):
        data = OfflineDataset(**columns)
    assert data.actions[3].item() == 1.0


def test_actions_outside_of_the_space_are_refused():
    columns = recording()
    with pytest.raises(ValueError, match=r"actions from 0 to 0\.3, up to 0\.1 outside of the action space"):
        OfflineDataset(**columns, action_space=spaces.Box(-0.2, 0.2, (1,)))
    columns["actions"][0] = -3
    with pytest.raises(ValueError, match="does not say what the action space is, and its actions reach 3"):
        OfflineDataset(**columns)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("observations", lambda x: x[:-1], r"`observations` of the shape \(7, 2\), but \(8, 2\)"),
        ("next_observations", lambda x: x[:, :1], r"`next_observations` of the shape \(8, 1\)"),
        ("actions", lambda x: x[:, :, None].repeat(2, 2), "`actions` of the shape"),
        ("terminations", lambda x: x[:-1], r"`terminations` of the shape \(7,\)"),
        ("truncations", lambda x: x + 2, "`truncations` that are neither booleans nor zeros and ones"),
        ("rewards", lambda x: x.astype(str), "`rewards` of <U32, which are no numbers"),
    ],
)
def test_columns_that_do_not_go_together_are_named(name, change, message):
    columns = recording()
    columns[name] = change(columns[name])
    spaces_ = {"observation_space": spaces.Box(-9, 9, (2,)), "action_space": spaces.Box(-1, 1, (1,))}
    with pytest.raises(ValueError, match=message):
        OfflineDataset(**columns, **spaces_, episodes=np.full(8, -1))


@pytest.mark.parametrize(
    ("which", "space", "message"),
    [
        ("action_space", spaces.Discrete(3), "no discrete actions"),
        ("action_space", spaces.Box(-np.inf, np.inf, (1,)), "unbounded action space"),
        ("action_space", spaces.Box(0, 255, (1,), np.uint8), "Box of floating-point numbers"),
        ("observation_space", spaces.Dict(a=spaces.Box(-1, 1, (2,))), "FlattenObservation"),
        ("observation_space", spaces.Box(-1, 1, (3,)), r"`observations` of the shape \(8, 2\), but \(8, 3\)"),
    ],
)
def test_spaces_that_offline_learners_do_not_take_are_refused(which, space, message):
    with pytest.raises(ValueError, match=message):
        OfflineDataset(**recording(), **{which: space})


@pytest.mark.parametrize("episodes", [[0, 0, 1], [1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, -1, 0, 0, 0, 0]])
def test_episodes_must_be_stretches_in_order(episodes):
    with pytest.raises(ValueError, match="`episodes` that are not one ascending whole number for each"):
        OfflineDataset(**recording(), episodes=episodes)


def test_data_that_exceed_the_device_are_refused(data, monkeypatch):
    monkeypatch.setattr("otbaselines.common.memory.machine_memory", lambda: 10.0)
    with pytest.raises(ValueError, match=r"the data set 'steps' would take .* train on a part of the data"):
        data.to("meta")
