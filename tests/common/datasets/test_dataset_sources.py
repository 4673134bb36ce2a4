"""Every source leads to the same transitions: D4RL's columns, Minari, replay buffers, agents at work."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from recordings import d4rl, recording, write_hdf5
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from otbaselines import OfflineDataset
from otbaselines.common.datasets.replay import buffer_arrays
from otbaselines.common.saving.replay_buffer import save_buffer

COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
BOX, UNIT = spaces.Box(-9.0, 99.0, (2,), np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32)


def _same(data, columns, rows=slice(None)):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(data, name), columns[name][rows], err_msg=name)


# ------------------------------------------------------------------ D4RL
def test_hdf5_with_next_observations_is_taken_as_it_is(tmp_path):
    pytest.importorskip("h5py")
    path = write_hdf5(tmp_path / "walk.hdf5", d4rl(recording(), successors=True), compression="gzip")
    data = OfflineDataset.load(path)
    _same(data, recording())
    assert (data.name, data.action_space) == ("walk", UNIT)


def test_next_observations_are_rebuilt_within_episodes_and_rows_without_successor_are_left_out(tmp_path):
    pytest.importorskip("h5py")
    # A terminal episode of three, a timeout of one, a timeout of four, and a part of two.
    columns = recording((3, 1, 4, 2), (True, False, False, False))
    columns["truncations"][-1] = False
    data = OfflineDataset.load(write_hdf5(tmp_path / "walk.hdf5", d4rl(columns)))
    # Rows 3 and 7 are timeouts, 9 is the end of the file; row 6 is now where the third episode was truncated.
    kept = [0, 1, 2, 4, 5, 6, 8]
    for name in ("observations", "actions", "rewards", "terminations"):
        np.testing.assert_array_equal(getattr(data, name), columns[name][kept], err_msg=name)
    assert data.truncations.tolist() == [False] * 5 + [True, False]
    # What follows a terminal state has no value; the state itself stands in.
    expected = columns["next_observations"][kept]
    expected[2] = columns["observations"][2]
    np.testing.assert_array_equal(data.next_observations, expected)
    # 0+1+2, and 0+1+2 without the last reward of 3.
    assert data.episode_returns().tolist() == [3.0, 3.0]


def test_npz_with_d4rls_or_gymnasiums_names_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", **d4rl(recording(), successors=True))
    np.savez(tmp_path / "b.npz", **recording())
    for name in ("a", "b"):
        _same(OfflineDataset.load(str(tmp_path / f"{name}.npz")), recording())


def test_rewards_as_a_column_of_a_matrix_are_understood(tmp_path):
    columns = d4rl(recording(), successors=True)
    np.savez(tmp_path / "a.npz", **columns | {"rewards": columns["rewards"][:, None]})
    assert OfflineDataset.load(tmp_path / "a.npz").rewards.shape == (8,)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("observations", "has no `observations`; it has"),
        ("terminals", "has no `terminals`"),
    ],
)
def test_a_missing_column_is_named(tmp_path, missing, message):
    columns = d4rl(recording())
    del columns[missing]
    np.savez(tmp_path / "a.npz", **columns)
    with pytest.raises(ValueError, match=message):
        OfflineDataset.load(tmp_path / "a.npz")


def test_next_observations_that_cannot_be_rebuilt_are_refused(tmp_path):
    columns = d4rl(recording())
    del columns["timeouts"]
    np.savez(tmp_path / "a.npz", **columns | {"terminals": np.zeros(8, bool)})
    with pytest.raises(ValueError, match="next observations cannot be rebuilt"):
        OfflineDataset.load(tmp_path / "a.npz")


def test_episodes_that_may_be_joined_for_want_of_timeouts_are_warned_of(tmp_path):
    columns = d4rl(recording((3, 3), (False, True)))
    del columns["timeouts"]
    np.savez(tmp_path / "joined.npz", **columns)
    with pytest.warns(RuntimeWarning, match=r"joined\.npz' has no `timeouts`: every row .* add `timeouts` or") as caught:
        data = OfflineDataset.from_npz(tmp_path / "joined.npz")
    # It is told of the line that read the file.
    assert caught[0].filename == __file__
    # This is what the warning is about: the last row of the first episode goes on into the second.
    assert data.next_observations[2].tolist() == [1.0, 0.0]


def test_without_timeouts_next_observations_tell_whether_returns_are_joined(tmp_path):
    columns = d4rl(recording((3, 3), (False, True)), successors=True)
    del columns["timeouts"]
    np.savez(tmp_path / "two.npz", **columns)
    with pytest.warns(RuntimeWarning, match=r"row 2 and 0 others do not go on .* the transitions are right"):
        data = OfflineDataset.load(tmp_path / "two.npz")
    assert data.next_observations[2].tolist() == [0.0, 3.0]
    # Nothing is joined where every row but the terminal ones goes on; a warning would be an error here.
    whole = d4rl(recording((3, 3), (True, True)), successors=True)
    del whole["timeouts"]
    np.savez(tmp_path / "whole.npz", **whole)
    assert OfflineDataset.load(tmp_path / "whole.npz").episode_returns().tolist() == [3.0, 3.0]


def test_an_action_space_that_is_given_must_be_the_files(tmp_path):
    OfflineDataset(**recording()).save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"recorded with the action space .* take the environment that the data are of"):
        OfflineDataset.load(tmp_path / "a.npz", action_space=spaces.Box(-2.0, 2.0, (1,)))
    # Bounds of observations and their precision are nobody's business.
    seen = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    assert OfflineDataset.load(tmp_path / "a.npz", seen, UNIT).observation_space == seen


# ------------------------------------------------------------------ Minari
@pytest.fixture
def minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari")


def _buffers(minari, columns, lengths):
    from minari.data_collector import EpisodeBuffer

    ends = np.cumsum(lengths)
    for number, (start, stop) in enumerate(zip(ends - lengths, ends, strict=True)):
        rows = {name: values[start:stop] for name, values in columns.items()}
        seen = np.concatenate([rows["observations"], rows["next_observations"][-1:]])
        flags = {name: rows[name].tolist() for name in ("rewards", "terminations", "truncations")}
        yield EpisodeBuffer(id=number, observations=seen, actions=rows["actions"], infos={}, **flags)


def _create(minari, columns=None, lengths=(3, 1, 4), name="toys/walk-v0", **options):
    columns = recording(lengths, (True, False, False)) if columns is None else columns
    meta = dict.fromkeys(("algorithm_name", "author", "author_email", "code_permalink", "description"), "test")
    options = {"observation_space": BOX, "action_space": UNIT, "data_format": "hdf5", **meta, **options}
    with pytest.warns(UserWarning, match="None"):
        return minari.create_dataset_from_buffers(name, list(_buffers(minari, columns, lengths)), **options)


def test_a_minari_data_set_is_read_by_object_id_and_folder(minari, tmp_path):
    dataset = _create(minari)
    for source in (dataset, "toys/walk-v0", tmp_path / "minari" / "toys" / "walk-v0"):
        data = OfflineDataset.load(source)
        _same(data, recording())
        assert (data.name, data.observation_space, data.action_space) == ("toys/walk-v0", BOX, UNIT)
        assert data.episode_returns().tolist() == [3.0, 0.0, 6.0]


def test_a_selection_of_minaris_episodes_is_taken_alone(minari):
    chosen = _create(minari).filter_episodes(lambda episode: episode.id != 0)
    _same(OfflineDataset.from_minari(chosen), recording(), slice(3, None))


def test_a_minari_episode_without_an_end_is_not_whole(minari):
    columns = recording()
    columns["truncations"][-1] = False
    data = OfflineDataset.load(_create(minari, columns))
    assert data.episodes.tolist() == [0, 0, 0, 1, -1, -1, -1, -1]


def test_an_id_that_is_not_here_is_no_download(minari):
    with pytest.raises(FileNotFoundError, match=r"minari download D4RL/none-v0.* MINARI_DATASETS_PATH"):
        OfflineDataset.load("D4RL/none-v0")
    with pytest.raises(FileNotFoundError, match=r"'hopper' is not on this machine, and no file of that name either"):
        OfflineDataset.load("hopper")


def test_other_formats_of_minaris_are_refused(minari, monkeypatch):
    dataset = _create(minari)
    monkeypatch.setattr(type(dataset.storage), "FORMAT", "arrow")
    with pytest.raises(ValueError, match=r"is stored as 'arrow'.* `data_format='hdf5'`"):
        OfflineDataset.load(dataset)


def test_minari_data_of_other_spaces_are_refused(minari):
    discrete = _create(minari, recording() | {"actions": np.zeros(8, int)}, action_space=spaces.Discrete(2))
    with pytest.raises(ValueError, match="no discrete actions"):
        OfflineDataset.load(discrete)
    with pytest.raises(ValueError, match=r"is given as `observation_space`"):
        OfflineDataset.load(_create(minari, name="toys/walk-v1"), spaces.Box(-1, 1, (5,)), UNIT)


# ------------------------------------------------------------------ replay buffers
def _filled(buffer, n_steps, *, n_envs=1, limit=3):
    """Environment k's observations are (k, time), its episodes have three steps and are truncated."""
    for time in range(n_steps):
        seen = np.stack([np.arange(n_envs), np.full(n_envs, time)], 1).astype(np.float32)
        dones = np.full(n_envs, time % limit == limit - 1)
        actions = np.full((n_envs, 1), time / 100, np.float32)
        infos = [{"TimeLimit.truncated": bool(done)} for done in dones]
        buffer.add(seen, np.add(seen, [0, 1]), actions, np.full(n_envs, float(time)), dones, infos)
    return buffer


def test_a_replay_buffer_is_unrolled_environment_by_environment():
    buffer = _filled(ReplayBuffer(20, BOX, UNIT, n_envs=2, device="cpu"), 7, n_envs=2)
    data = OfflineDataset.load(buffer)
    assert data.observations[:, 0].tolist() == [0.0] * 7 + [1.0] * 7
    assert data.observations[:, 1].tolist() == [*range(7)] * 2
    np.testing.assert_array_equal(data.next_observations - data.observations, np.tile([0, 1], (14, 1)))
    assert data.episodes.tolist() == [0, 0, 0, 1, 1, 1, -1, 2, 2, 2, 3, 3, 3, -1]
    assert data.truncations.nonzero().flatten().tolist() == [2, 5, 9, 12]
    assert not data.terminations.any()
    np.testing.assert_allclose(data.actions[:7, 0], np.arange(7) / 100, rtol=1e-6)


def test_a_ring_that_went_round_starts_with_its_oldest_row():
    # Ten slots, of two environments each, and 14 steps: 4 to 13 are left, and 4 and 5 are the rest of an episode.
    buffer = _filled(ReplayBuffer(20, BOX, UNIT, n_envs=2, device="cpu"), 14, n_envs=2)
    data = OfflineDataset.load(buffer)
    assert data.observations[:10, 1].tolist() == [*range(4, 14)]
    assert data.episodes[:10].tolist() == [-1, -1, 1, 1, 1, 2, 2, 2, -1, -1]
    assert data.episode_returns().tolist() == [6 + 7 + 8, 9 + 10 + 11] * 2


def test_a_full_ring_does_not_say_whether_it_went_round():
    # Nine slots: once with nothing overwritten, once with nine transitions below that ended in the middle of an episode.
    exact = _filled(ReplayBuffer(9, BOX, UNIT, device="cpu"), 9)
    round_twice = ReplayBuffer(9, BOX, UNIT, device="cpu")
    _filled(_filled(round_twice, 9, limit=5), 9)
    stored, other = (buffer_arrays(buffer) for buffer in (exact, round_twice))
    assert all(np.array_equal(stored[name], other[name]) for name in stored)
    # So the first three rows may be the rest of a longer episode, and have no return; they are data all the same.
    for buffer in (exact, round_twice):
        data = OfflineDataset.load(buffer)
        assert data.observations[:, 1].tolist() == [*range(9)]
        assert data.episode_returns().tolist() == [3 + 4 + 5, 6 + 7 + 8]


def test_a_memory_optimised_ring_takes_successors_from_the_next_row():
    buffer = ReplayBuffer(10, BOX, UNIT, device="cpu", optimize_memory_usage=True, handle_timeout_termination=False)
    data = OfflineDataset.load(_filled(buffer, 14))
    # The newest observation has overwritten the oldest transition.
    assert data.observations[:, 1].tolist() == [*range(5, 14)]
    assert data.next_observations[:, 1].tolist() == [*range(6, 15)]
    # Truncations are not known to such a buffer.
    assert data.terminations.nonzero().flatten().tolist() == [0, 3, 6]
    short = OfflineDataset.load(
        _filled(ReplayBuffer(10, BOX, UNIT, device="cpu", optimize_memory_usage=True, handle_timeout_termination=False), 4)
    )
    assert short.next_observations[:, 1].tolist() == [1, 2, 3, 4]


def test_sb3s_learners_store_scaled_actions_which_are_scaled_back(tmp_path):
    model = SAC("MlpPolicy", "Pendulum-v1", learning_starts=1000, buffer_size=64, device="cpu", seed=0).learn(40)
    data = OfflineDataset.load(model.replay_buffer)
    # The torque is between -2 and 2, and the buffer's entries between -1 and 1.
    np.testing.assert_allclose(data.actions, 2 * model.replay_buffer.actions[:40, 0], rtol=1e-6)
    env = gym.make("Pendulum-v1").unwrapped
    # The recorded reward is that of the recorded action in the recorded state: -(angle^2 + .1 speed^2 + .001 torque^2).
    seen = data.observations.numpy().astype(np.float64)
    angle = np.arctan2(seen[:, 1], seen[:, 0])
    expected = -(angle**2 + 0.1 * seen[:, 2] ** 2 + 0.001 * data.actions[:, 0].numpy().astype(np.float64) ** 2)
    np.testing.assert_allclose(data.rewards, expected, atol=1e-4)
    raw = OfflineDataset.from_replay_buffer(model.replay_buffer, scaled_actions=False)
    np.testing.assert_array_equal(raw.actions, model.replay_buffer.actions[:40, 0])
    save_buffer(model.replay_buffer, tmp_path / "buffer")
    stored = OfflineDataset.load(tmp_path / "buffer.npz", env.observation_space, env.action_space)
    _same(stored, {name: getattr(data, name) for name in COLUMNS})
    with pytest.raises(ValueError, match="replay buffer with scaled actions; pass the environment's `action_space`"):
        OfflineDataset.load(tmp_path / "buffer.npz")


def test_a_pickled_buffer_is_read_only_when_trusted(tmp_path):
    model = SAC("MlpPolicy", "Pendulum-v1", learning_starts=1000, buffer_size=64, device="cpu", seed=0).learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    path = tmp_path / "buffer.pkl"
    with pytest.raises(ValueError, match="is a pickle, and reading it executes"):
        OfflineDataset.load(path)
    with pytest.raises(ValueError, match="pass `trust_pickle=True`"):
        OfflineDataset.from_replay_buffer(path)
    assert len(OfflineDataset.from_replay_buffer(path, trust_pickle=True)) == 20


def test_other_buffers_are_refused():
    nested = spaces.Dict(a=BOX)
    with pytest.raises(TypeError, match=r"`buffer` must be SB3's ReplayBuffer .* got DictReplayBuffer"):
        OfflineDataset.load(DictReplayBuffer(10, nested, UNIT, device="cpu"))
    with pytest.raises(ValueError, match="has no transitions"):
        OfflineDataset.load(ReplayBuffer(10, BOX, UNIT, device="cpu"))
    with pytest.raises(ValueError, match="no discrete actions"):
        OfflineDataset.load(ReplayBuffer(10, BOX, spaces.Discrete(2), device="cpu"))


# ------------------------------------------------------------------ agents at work
class Swinging:
    """Pushes with the angular speed, or with noise beside it."""

    def predict(self, observation, deterministic=False):
        noise = 0.0 if deterministic else th.randn(1).item()
        return np.clip(observation[2:] / 8 + noise, -2, 2), None


def test_an_agent_is_recorded_as_it_acts():
    data = OfflineDataset.from_agent(Swinging(), "Pendulum-v1", n_episodes=2, deterministic=True, seed=0)
    assert (len(data), data.name) == (400, "Swinging in Pendulum-v1")
    assert data.truncations.nonzero().flatten().tolist() == [199, 399]
    np.testing.assert_allclose(data.actions[:, 0], data.observations[:, 2] / 8, rtol=1e-6)
    within = [row for row in range(399) if row != 199]
    np.testing.assert_array_equal(data.next_observations[within], data.observations[[row + 1 for row in within]])


def test_a_recording_depends_on_its_seed_alone():
    first = OfflineDataset.from_agent(Swinging(), "Pendulum-v1", n_steps=250, seed=4)
    state = th.random.get_rng_state()
    second = OfflineDataset.from_agent(Swinging(), gym.make("Pendulum-v1"), n_steps=250, seed=4)
    assert th.equal(th.random.get_rng_state(), state)
    _same(second, {name: getattr(first, name) for name in COLUMNS})
    assert (len(first), first.episodes.tolist()[-50:]) == (250, [-1] * 50)


def test_what_to_record_must_be_said_once():
    with pytest.raises(ValueError, match="give one of `n_steps` and `n_episodes`, got None and None"):
        OfflineDataset.from_agent(Swinging(), "Pendulum-v1")
    with pytest.raises(TypeError, match="`model` must have SB3's `predict`"):
        OfflineDataset.from_agent(object(), "Pendulum-v1", n_steps=1)
    with pytest.raises(ValueError, match="no discrete actions"):
        OfflineDataset.from_agent(Swinging(), "CartPole-v1", n_steps=1)


class Counting:
    """Pushes with the number of steps since the episode began, which only it remembers."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        count = 0 if episode_start[0] else state + 1
        return np.array([count / 200]), count


def test_a_recurrent_agent_remembers_within_an_episode():
    data = OfflineDataset.from_agent(Counting(), "Pendulum-v1", n_episodes=2, seed=0)
    np.testing.assert_allclose(data.actions[:, 0], np.tile(np.arange(200) / 200, 2), rtol=1e-6)


@pytest.mark.parametrize("answer", ["a", np.zeros(7), np.array([None])])
def test_an_answer_that_is_no_action_is_named(answer):
    class Wrong:
        def predict(self, observation, deterministic=False):
            return answer, None

    with pytest.raises(ValueError, match=r"`model` answers .*, which is no action of Box"):
        OfflineDataset.from_agent(Wrong(), "Pendulum-v1", n_steps=3)


# ------------------------------------------------------------------ what `dataset=` may be
def test_a_data_set_is_itself_and_must_fit_the_environment():
    data = OfflineDataset(**recording())
    assert OfflineDataset.load(data) is data
    with pytest.raises(ValueError, match="the data set 'data' was recorded with the observation space"):
        OfflineDataset.load(data, spaces.Box(-1, 1, (3,)), UNIT)


def test_other_objects_and_files_are_named(tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"data\.csv' must end in \.npz, \.hdf5 or \.h5"):
        OfflineDataset.load(tmp_path / "data.csv")
    with pytest.raises(TypeError, match=r"`dataset` must be an OfflineDataset, .* got dict"):
        OfflineDataset.load(recording())
    for suffix in ("npz", "hdf5"):
        with pytest.raises(FileNotFoundError):
            OfflineDataset.load(tmp_path / f"none.{suffix}")


def test_a_missing_extra_names_its_installation(tmp_path, monkeypatch):
    import sys

    (tmp_path / "a.hdf5").write_bytes(b"")
    for name in ("h5py", "minari"):
        monkeypatch.setitem(sys.modules, name, None)
    for source in (tmp_path / "a.hdf5", "D4RL/hopper/medium-v2"):
        with pytest.raises(ImportError, match=r"pip install otbaselines\[offline\]"):
            OfflineDataset.load(source)
