"""Data from strangers: nothing is executed, no other file is read, and no small file takes a large memory."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from recordings import d4rl, recording, write_hdf5

from otbaselines import OfflineDataset

h5py = pytest.importorskip("h5py")


class Bomb:
    """Would raise when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def _write(path, columns, **changes):
    return write_hdf5(path, {**d4rl(columns, successors=True), **changes})


def test_objects_in_npz_are_not_unpickled(tmp_path):
    bomb = np.empty(8, object)
    bomb[:] = [Bomb()] * 8
    np.savez(tmp_path / "a.npz", **{**d4rl(recording()), "rewards": bomb})
    with pytest.raises(ValueError, match="needs a pickle"):
        OfflineDataset.load(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["npz", "hdf5"])
def test_a_pickle_by_another_name_is_no_data(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"not a whole zip file|cannot be read as HDF5"):
        OfflineDataset.load(path)


def test_a_compressed_npz_may_not_grow_without_permission(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **{**d4rl(recording(), successors=True), "noise": np.zeros(10**6)})
    with pytest.raises(ValueError, match="allow it with `max_bytes`"):
        OfflineDataset.load(path)
    assert len(OfflineDataset.from_npz(path, max_bytes=10**7)) == 8


def test_an_hdf5_header_may_not_announce_what_the_file_does_not_hold(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(_write(path, recording()), "a") as file:
        del file["observations"]
        # Nothing of it is written: the file stays small, and reading would make zeros of 80 GB.
        file.create_dataset("observations", shape=(10**9, 10), dtype="f8", chunks=(1000, 10))
    assert path.stat().st_size < 10**5
    with pytest.raises(ValueError, match=r"would unpack from \d+ to 80\d+ bytes, more than the 67108864 that are allowed"):
        OfflineDataset.load(path)


def test_a_file_larger_than_the_machine_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = _write(tmp_path / "a.hdf5", recording())
    monkeypatch.setattr("otbaselines.common.memory.machine_memory", lambda: 100.0)
    with pytest.raises(ValueError, match="GiB of memory, but this machine has"):
        OfflineDataset.load(path)


@pytest.mark.parametrize("link", ["external", "soft", "raw", "virtual"])
def test_hdf5_that_points_elsewhere_is_not_followed(tmp_path, link):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.arange(8, dtype=np.float32).tobytes())
    other = write_hdf5(tmp_path / "other.hdf5", {"rewards": np.arange(8.0)})
    path = _write(tmp_path / "a.hdf5", recording())
    with h5py.File(path, "a") as file:
        del file["rewards"]
        if link == "external":
            file["rewards"] = h5py.ExternalLink(str(other), "rewards")
        elif link == "soft":
            file["rewards"] = h5py.SoftLink("/observations")
        elif link == "raw":
            file.create_dataset("rewards", (8,), "f4", external=[(str(secret), 0, 32)])
        else:
            layout = h5py.VirtualLayout((8,), "f8")
            layout[:] = h5py.VirtualSource(str(other), "rewards", shape=(8,))
            file.create_virtual_dataset("rewards", layout)
    with pytest.raises(ValueError, match=r"has a link for `rewards`|keeps `rewards` in other files"):
        OfflineDataset.load(path)


@pytest.mark.parametrize("content", [np.array([b"text"] * 8), "a string", np.zeros(8, [("a", "f4")])])
def test_hdf5_of_anything_but_numbers_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"`rewards`.* no (numbers|array of numbers)"):
        OfflineDataset.load(_write(tmp_path / "a.hdf5", recording(), rewards=content))


def test_a_group_in_place_of_a_column_and_a_scalar_are_refused(tmp_path):
    path = _write(tmp_path / "a.hdf5", recording(), rewards=np.float32(1))
    with pytest.raises(ValueError, match=r"`observations` of the shape \(8, 2\), but 0 rewards"):
        OfflineDataset.load(path)
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file.create_group("rewards")
    with pytest.raises(ValueError, match="`rewards` that is no array of numbers"):
        OfflineDataset.load(path)


def test_damaged_hdf5_is_one_kind_of_error(tmp_path):
    whole = _write(tmp_path / "a.hdf5", recording()).read_bytes()
    path = tmp_path / "b.hdf5"
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole[: rng.integers(len(whole) // 2, len(whole) + 1)])
        for place in rng.integers(len(damaged), size=4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            OfflineDataset.load(path)
        except ValueError as error:
            assert "`path`" in str(error) or "data set" in str(error)  # noqa: PT017


def _rewritten(source, target, **changes):
    """A saved data set with other arrays."""
    with np.load(source) as stored:
        np.savez(target, **{**dict(stored), **changes})
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation_space": '{"type": "Discrete", "n": 3, "start": 0, "dtype": "int64"}'}, "take a Box"),
        ({"observation_space": '{"type": "Nonsense"}'}, "damaged space"),
        ({"action_space": "[" * 100_000}, "damaged space"),
        ({"action_space": json.dumps({"type": "Box", "dtype": "float32", "shape": [10**12], "low": -1, "high": 1})}, "space"),
        ({"episodes": np.zeros(3, int)}, "`episodes`"),
        ({"episodes": np.arange(8.0) + np.nan}, "`episodes`"),
        ({"rewards": np.array(["a"] * 8)}, "which are no numbers"),
        ({"terminations": np.full(8, np.nan)}, "neither booleans nor zeros and ones"),
    ],
)
def test_a_tampered_data_set_is_refused(tmp_path, changes, message):
    OfflineDataset(**recording()).save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=message):
        OfflineDataset.load(_rewritten(tmp_path / "a.npz", tmp_path / "b.npz", **changes))


def test_a_name_cannot_command_the_terminal(tmp_path):
    OfflineDataset(**recording()).save(tmp_path / "a.npz")
    data = OfflineDataset.load(_rewritten(tmp_path / "a.npz", tmp_path / "b.npz", name="\x1b[2Jgood" + "x" * 1000))
    assert data.name.startswith("[2Jgood")
    assert data.name.isprintable()
    assert len(data.name) <= 200


def test_a_replay_buffer_that_contradicts_itself_is_refused(tmp_path):
    from gymnasium import spaces
    from stable_baselines3.common.buffers import ReplayBuffer

    from otbaselines.common.saving.replay_buffer import save_buffer

    seen, done = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,))
    save_buffer(ReplayBuffer(10, seen, done, device="cpu"), tmp_path / "a.npz")
    for changes in ({"pos": np.int64(99)}, {"n_envs": np.float64(1)}, {"rewards": np.zeros((1, 3))}, {"full": np.bool_(True)}):
        with pytest.raises(ValueError, match="`path`"):
            OfflineDataset.load(_rewritten(tmp_path / "a.npz", tmp_path / "b.npz", **changes), seen, done)


def test_minari_with_a_link_or_a_bomb_is_refused(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    columns = recording((8,), (True,))
    episode = EpisodeBuffer(
        id=0,
        observations=np.concatenate([columns["observations"], columns["next_observations"][-1:]]),
        actions=columns["actions"],
        rewards=columns["rewards"].tolist(),
        terminations=columns["terminations"].tolist(),
        truncations=columns["truncations"].tolist(),
        infos={},
    )
    from gymnasium import spaces

    meta = dict.fromkeys(("algorithm_name", "author", "author_email", "code_permalink", "description"), "test")
    both = {"observation_space": spaces.Box(-9, 9, (2,)), "action_space": spaces.Box(-1, 1, (1,))}
    with pytest.warns(UserWarning, match="None"):
        minari.create_dataset_from_buffers("toys/walk-v0", [episode], data_format="hdf5", **both, **meta)
    file_path = next((tmp_path / "minari").rglob("main_data.hdf5"))
    with h5py.File(file_path, "a") as file:
        del file["episode_0/rewards"]
        file["episode_0"].create_dataset("rewards", shape=(10**10,), dtype="f8", chunks=(1000,))
    with pytest.raises(ValueError, match="allow it with `max_bytes`"):
        OfflineDataset.load("toys/walk-v0")
    with h5py.File(file_path, "a") as file:
        del file["episode_0/rewards"]
        file["episode_0/rewards"] = h5py.ExternalLink(str(tmp_path / "x.hdf5"), "rewards")
    with pytest.raises(ValueError, match=r"has a link for `rewards`"):
        OfflineDataset.load("toys/walk-v0")
    with h5py.File(file_path, "a") as file:
        del file["episode_0/rewards"]
        file["episode_0"].create_dataset("rewards", data=np.zeros(3))
    with pytest.raises(ValueError, match="9 observations and 8 actions for the 3 steps of episode 0"):
        OfflineDataset.load("toys/walk-v0")


def test_zip_entries_that_lie_about_their_shape_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **d4rl(recording(), successors=True))
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    entries["rewards.npy"] = header.getvalue() + b"\0" * 32
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    with pytest.raises(ValueError, match="does not go with its size"):
        OfflineDataset.load(path)
