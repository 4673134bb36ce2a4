"""Saved files, tampered with in every place: each loads as it was, or is one ValueError that names it."""

import base64
import copy
import io
import json
import pathlib
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from otbaselines import IPPO, WBC
from otbaselines.common.saving.algorithm import JsonSaveMixin
from otbaselines.common.saving.arrays import load_npz
from otbaselines.common.saving.normalizer import load_normalizer
from otbaselines.common.saving.tensors import read_tensors
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv

th.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore")

# What a value is replaced by. JSON has no NaN, so the codec's form of it stands for all three.
NASTIES: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    "x",
    "lin_1e-3",
    [],
    {},
    [[-3, "x"]],
    {"x": None},
    {":kind:": "float", "value": "nan"},
    {":kind:": "class", "name": "torch.nn.LSTM"},
    {":kind:": "class", "name": "os.system"},
    {":kind:": "array", "dtype": "float32", "shape": [2**40], "data": [0.0]},
    {":kind:": "space", "type": "Box", "dtype": "float64", "shape": [300_000_000], "low": 0.0, "high": 1.0},
    {":kind:": "dict", "items": [[[], 1]]},
    {":kind:": [], "items": 3},
]
BOMB = 200 * 2**20


def trained(algorithm: type[IPPO]) -> dict[str, bytes]:
    """The entries of a small model that has an optimizer with state."""
    env = SimpleSpreadVecEnv(n_copies=2, max_cycles=5)
    model = algorithm("MlpPolicy", env, n_steps=8, batch_size=24, n_epochs=1, seed=0, policy_kwargs={"net_arch": [4]})
    model.learn(48)
    buffer = io.BytesIO()
    model.save(buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module", params=[IPPO, WBC], ids=lambda cls: cls.__name__)
def saved(request: pytest.FixtureRequest) -> tuple[type[IPPO], dict[str, bytes]]:
    return request.param, trained(request.param)


@pytest.fixture(scope="module")
def ippo() -> dict[str, bytes]:
    return trained(IPPO)


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression, compresslevel=1) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in parsed JSON."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*prefix, key)
        yield from paths(child, (*prefix, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if new is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return changed


def parameters(entries: dict[str, bytes]) -> dict[str, th.Tensor]:
    return th.load(io.BytesIO(entries["policy.pth"]), weights_only=True)


def outcome(algorithm: type[IPPO], content: bytes, expected: dict[str, th.Tensor] | None, case: str) -> bool:
    """
    :return: whether the file was refused, rightly worded; otherwise the model is whole and has the parameters expected
    """
    try:
        model = algorithm.load(io.BytesIO(content), device="cpu")
    except ValueError as error:
        message = str(error)
        assert "`path` 'BytesIO'" in message, f"{case}: {message}"
        assert len(message) < 1500, f"{case}: {message[:2000]}"
        return True
    except Exception as error:
        pytest.fail(f"{case}: {type(error).__name__}: {error}")
    state = model.policy.state_dict()
    assert all(th.isfinite(value).all() for value in state.values()), case
    if expected is not None:
        assert state.keys() == expected.keys(), case
        assert all(th.equal(value, expected[name]) for name, value in state.items()), case
    rows = np.zeros((model.layout.n_agents, *model.observation_space.shape), np.float32)
    assert model.predict(rows, deterministic=True)[0].shape[0] == model.layout.n_agents, case
    return False


def peak() -> Callable[[], int]:
    """Start to watch the memory of the process; the function returned says by how many bytes it has risen."""
    status, refs = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
    if not sys.platform.startswith("linux"):
        return lambda: 0

    def read(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    try:
        refs.write_text("5")
    except OSError:
        return lambda: 0
    before = read("VmRSS")
    return lambda: read("VmHWM") - before


# ---------------------------------------------------------------- values


def test_every_value_may_be_replaced_by_anything(saved: tuple[type[IPPO], dict[str, bytes]]) -> None:
    algorithm, entries = saved
    expected, data = parameters(entries), json.loads(entries["data"])
    cases = [(path, new) for path in paths(data) for new in (*NASTIES, KeyError)]
    assert outcome(algorithm, zipped(entries), expected, "untouched") is False
    chosen = np.random.default_rng(0).permutation(len(cases))[:450]
    risen, refused = peak(), 0
    for index in chosen:
        path, new = cases[index]
        content = zipped({**entries, "data": json.dumps(replaced(data, path, new)).encode()})
        refused += outcome(algorithm, content, expected, f"data{list(path)} = {new!r}")
    assert risen() < BOMB
    assert refused > 300


def test_every_value_of_the_manifest_may_be_replaced(ippo: dict[str, bytes]) -> None:
    manifest, expected = json.loads(ippo["otbaselines.json"]), parameters(ippo)
    for path in paths(manifest):
        for new in (None, 10**30, [], "os.system", KeyError):
            content = zipped({**ippo, "otbaselines.json": json.dumps(replaced(manifest, path, new)).encode()})
            outcome(IPPO, content, expected, f"manifest{list(path)} = {new!r}")


# ---------------------------------------------------------------- bytes


def test_files_may_be_cut_anywhere_and_any_byte_may_flip(ippo: dict[str, bytes]) -> None:
    whole, expected, generator = zipped(ippo), parameters(ippo), np.random.default_rng(1)
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        assert outcome(IPPO, whole[:length], expected, f"cut at {length}")
    for position in generator.integers(len(whole), size=200):
        flipped = bytearray(whole)
        flipped[position] ^= int(generator.integers(1, 256))
        outcome(IPPO, bytes(flipped), expected, f"flipped at {position}")


@pytest.mark.parametrize("entry", ["policy.pth", "policy.optimizer.pth", "data"])
def test_entries_may_be_damaged_under_a_right_checksum(ippo: dict[str, bytes], entry: str) -> None:
    generator, content = np.random.default_rng(2), ippo[entry]
    for length in np.linspace(0, len(content) - 1, 12).astype(int):
        assert outcome(IPPO, zipped({**ippo, entry: content[:length]}), None, f"{entry} cut at {length}")
    for position in generator.integers(len(content), size=70):
        flipped = bytearray(content)
        flipped[position] ^= int(generator.integers(1, 256))
        outcome(IPPO, zipped({**ippo, entry: bytes(flipped)}), None, f"{entry} flipped at {position}")
    # Inside of torch's own zip, with its checksums made right again: what torch's parser sees.
    if entry.endswith(".pth"):
        inner = zipfile.ZipFile(io.BytesIO(content))
        records = {name: inner.read(name) for name in inner.namelist()}
        program = next(name for name in records if name.endswith("data.pkl"))
        for position in generator.integers(len(records[program]), size=100):
            flipped = bytearray(records[program])
            flipped[position] ^= int(generator.integers(1, 256))
            damaged = zipped({**records, program: bytes(flipped)})
            outcome(IPPO, zipped({**ippo, entry: damaged}), None, f"{program} flipped at {position}")


# ---------------------------------------------------------------- tensors


def dumped(value: Any) -> bytes:
    file = io.BytesIO()
    th.save(value, file)
    return file.getvalue()


TENSORS: dict[str, Callable[[th.Tensor], Any]] = {
    "of two elements": lambda tensor: th.zeros(2),
    "empty": lambda tensor: th.zeros(0),
    "of one element": lambda tensor: th.zeros(1),
    "with one row more": lambda tensor: th.cat([tensor.reshape(-1), th.zeros(1)]),
    "NaN": lambda tensor: th.full_like(tensor, float("nan")),
    "infinite": lambda tensor: th.full_like(tensor, float("inf")),
    "complex": lambda tensor: tensor.to(th.complex64),
    "whole numbers": lambda tensor: tensor.to(th.int64),
    "sparse": lambda tensor: tensor.to_sparse(),
    "a number": lambda tensor: 0.5,
    "a list": lambda tensor: [tensor],
    "nothing": lambda tensor: None,
}


def test_no_tensor_may_be_anything_else(ippo: dict[str, bytes]) -> None:
    state = parameters(ippo)
    optimizer = th.load(io.BytesIO(ippo["policy.optimizer.pth"]), weights_only=True)
    for case, change in TENSORS.items():
        for name in state:
            content = zipped({**ippo, "policy.pth": dumped({**state, name: change(state[name])})})
            assert outcome(IPPO, content, None, f"{name} {case}"), f"{name} {case} was loaded"
        for key, tensor in optimizer["state"][1].items():
            entry = {**optimizer["state"][1], key: change(tensor)}
            changed = {**optimizer, "state": {**optimizer["state"], 1: entry}}
            content = zipped({**ippo, "policy.optimizer.pth": dumped(changed)})
            assert outcome(IPPO, content, None, f"optimizer {key} {case}"), f"optimizer {key} {case} was loaded"
    for name in state:
        less = {key: value for key, value in state.items() if key != name}
        assert outcome(IPPO, zipped({**ippo, "policy.pth": dumped(less)}), None, f"without {name}")


def test_an_optimizer_may_not_hide_other_settings(ippo: dict[str, bytes]) -> None:
    optimizer = th.load(io.BytesIO(ippo["policy.optimizer.pth"]), weights_only=True)
    group = optimizer["param_groups"][0]
    groups = [{**group, "params": group["params"][::-1]}, {**group, "params": group["params"][:-1]}, {**group, "params": [0]}]
    groups.append({key: value for key, value in group.items() if key != "params"})
    changes = {
        "maximize": (True, 1, None),
        "amsgrad": (True, "x"),
        "fused": (False, None),
        "foreach": (True,),
        "capturable": (True,),
        "betas": ((0.9, 1.5), (0.9,), 0.9, None),
        "eps": (-1.0, 0.0, float("nan")),
        "weight_decay": (-1.0, 1e9),
        "lr": (-1.0, float("nan"), float("inf"), None, "x", th.tensor(1e-3), True, [1e-3]),
        "new": (1,),
    }
    groups += [{**group, key: value} for key, values in changes.items() for value in values]
    wholes = [{**optimizer, "param_groups": [each]} for each in groups]
    wholes += [{**optimizer, "param_groups": each} for each in ([], [group, group], None, "x", [3])]
    entry = optimizer["state"][0]
    states = [{**optimizer["state"], 99: entry}, {**optimizer["state"], "0": entry}, [], None]
    for key, value in (("step", th.tensor(-5.0)), ("exp_avg_sq", -entry["exp_avg_sq"] - 1.0), ("max_exp_avg_sq", th.zeros(2))):
        states.append({**optimizer["state"], 0: {**entry, key: value}})
    # One memory under two tensors, and fewer numbers than the shape has.
    states.append({**optimizer["state"], 0: {**entry, "exp_avg": th.zeros(1, 1, 1).expand(2, 3, 4)}})
    wholes += [{**optimizer, "state": state} for state in states]
    wholes += [{}, [], None, {"state": {}}, {**optimizer, "more": 1}]
    for whole in wholes:
        content = zipped({**ippo, "policy.optimizer.pth": dumped(whole)})
        assert outcome(IPPO, content, None, str(whole)[:300]), f"{str(whole)[:300]} was loaded"


# ---------------------------------------------------------------- bombs


def described(entries: dict[str, bytes], **values: Any) -> bytes:
    return zipped({**entries, "data": json.dumps({**json.loads(entries["data"]), **values}).encode()})


def box(shape: list[int]) -> dict[str, Any]:
    return {":kind:": "space", "type": "Box", "dtype": "float64", "shape": shape, "low": 0.0, "high": 1.0}


def torch_file(program: bytes, **records: bytes) -> bytes:
    """A file of torch's whose pickle is the given one."""
    entries = {"archive/data.pkl": program, "archive/version": b"3\n", "archive/byteorder": b"little"}
    return zipped({**entries, **{f"archive/data/{name[1:]}": record for name, record in records.items()}})


def tensor_program(size: int, n_stored: int = 4) -> bytes:
    """The pickle of ``{"w": tensor}`` with as many elements as it says, over a storage of 16 bytes."""
    number = b"J" + struct.pack("<i", size)
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ" + struct.pack("<i", n_stored) + b"tQK\x00" + number + b"\x85K\x01\x85\x89"
        b"ccollections\nOrderedDict\n)RtRs."
    )


def bombs(entries: dict[str, bytes]) -> dict[str, bytes]:
    zeros, huge = bytes(250 * 2**20), 2 * 10**9
    call = b"\x80\x02c%s\nJ" + struct.pack("<i", huge) + b"\x85R."
    kwargs = json.loads(entries["data"])["policy_kwargs"]
    overlapping = bytearray(zipped({**entries, "a.pth": bytes(2**20), "b.pth": bytes(2**20)}))
    start = overlapping.index(b"b.pth") - 30
    directory = overlapping.rindex(b"b.pth") - 46
    overlapping[directory + 42 : directory + 46] = struct.pack("<I", overlapping.index(b"a.pth") - 30)
    assert start > 0
    nested = json.loads('{"%s":' % ("x" * 10**6) + "[" * 300 + "]" * 300 + "}")
    return {
        "zeros in an entry": zipped({**entries, "policy.pth": zeros}, zipfile.ZIP_DEFLATED),
        "zeros in a record": zipped({**entries, "policy.pth": zipped({"archive/data.pkl": zeros}, zipfile.ZIP_DEFLATED)}),
        "a long text": zipped({**entries, "data": b'{"a": "' + zeros + b'"}'}, zipfile.ZIP_DEFLATED),
        "many small values": zipped({**entries, "data": b"[" + b"{}," * 10**7 + b"{}]"}, zipfile.ZIP_DEFLATED),
        "deep nesting": zipped({**entries, "data": b'{"a":' * 200_000 + b"1" + b"}" * 200_000}),
        "nesting under a long name": described(entries, gamma=nested),
        "overlapping entries": bytes(overlapping),
        "bytearray": zipped({**entries, "policy.pth": torch_file(call % b"__builtin__\nbytearray")}),
        "a tensor class": zipped({**entries, "policy.pth": torch_file(call % b"torch\nFloatTensor")}),
        "a tensor larger than its storage": zipped({**entries, "policy.pth": torch_file(tensor_program(huge), _0=bytes(16))}),
        "a storage larger than its record": zipped(
            {**entries, "policy.pth": torch_file(tensor_program(4, huge), _0=bytes(16))}
        ),
        "a huge box": described(entries, observation_space=box([300_000_000])),
        "many large boxes": described(entries, _extra_data={str(index): box([2**22]) for index in range(100)}),
        "a box of many dimensions": described(entries, observation_space=box([2**20] * 4)),
        "many choices": described(
            entries, action_space={":kind:": "space", "type": "Discrete", "n": 10**9, "start": 0, "dtype": "int64"}
        ),
        "many bits": described(entries, observation_space={":kind:": "space", "type": "MultiBinary", "n": 10**10}),
        "wide networks": described(entries, policy_kwargs={**kwargs, "net_arch": [200_000, 200_000]}),
        "many layers": described(entries, policy_kwargs={**kwargs, "net_arch": [1] * 300_000}),
        "many agents": described(
            entries, _extra_data={**json.loads(entries["data"])["_extra_data"], "possible_agents": list(range(10**5))}
        ),
        "many slots": described(entries, n_envs=10**12),
    }


def test_no_small_file_takes_much_memory(ippo: dict[str, bytes]) -> None:
    for case, content in bombs(ippo).items():
        risen = peak()
        assert outcome(IPPO, content, None, case), f"{case} was loaded"
        assert risen() < BOMB, f"{case}: {risen() / 2**20:.0f} MiB"


def test_a_tensor_never_shows_memory_that_is_not_in_the_file() -> None:
    assert read_tensors(torch_file(tensor_program(4), _0=bytes(16)))["w"].tolist() == [0.0] * 4
    for size, n_stored in ((8, 4), (4, 8), (8, 8), (10**9, 4)):
        with pytest.raises((ValueError, RuntimeError), match=r"resize storage|record size|larger than the file"):
            read_tensors(torch_file(tensor_program(size, n_stored), _0=bytes(16)))


def test_a_file_that_asks_for_a_long_rollout_takes_no_memory_for_it(ippo: dict[str, bytes]) -> None:
    nothing = dict.fromkeys(("_last_obs", "_last_episode_starts", "_last_original_obs"))
    content = described(ippo, n_steps=10**6, n_envs=3 * 10**5, **nothing)
    risen = peak()
    assert IPPO.load(io.BytesIO(content), device="cpu").n_steps == 10**6
    assert risen() < BOMB


# ---------------------------------------------------------------- payloads


class Evil:
    """An object whose unpickling creates a file."""

    def __init__(self, marker: pathlib.Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, (self.marker, "w"))


def payloads(marker: pathlib.Path, entries: dict[str, bytes]) -> dict[str, bytes]:
    """Files that create the marker when somebody unpickles them, in every place where a loader may look."""
    pickled = pickle.dumps(Evil(marker), protocol=2)
    encoded = {":type:": "x", ":serialized:": base64.b64encode(pickled).decode()}
    arrays = io.BytesIO()
    np.savez(arrays, observations=np.array([Evil(marker)], dtype=object), norm_obs=np.array([Evil(marker)], dtype=object))
    return {
        "a pickle": pickled,
        "a file of torch's": dumped(Evil(marker)),
        "an old file of torch's": legacy(Evil(marker)),
        "arrays": arrays.getvalue(),
        "an entry of tensors": zipped({**entries, "policy.pth": dumped({"w": Evil(marker)})}),
        "an entry with a bare pickle": zipped({**entries, "policy.pth": pickled}),
        "torch's pickle": zipped({**entries, "policy.pth": torch_file(pickled)}),
        "a value as in SB3": described(entries, gamma=encoded),
        "a value inside": described(entries, policy_kwargs={"net_arch": encoded}),
        "a foreign entry": zipped({**entries, "payload.pkl": pickled}),
        "loose tensors": zipped({**entries, "pytorch_variables.pth": dumped(Evil(marker))}),
    }


def legacy(value: Any) -> bytes:
    file = io.BytesIO()
    th.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


class SafeSAC(JsonSaveMixin, SAC):
    pass


def loaders(entries: dict[str, bytes]) -> dict[str, Callable[[pathlib.Path], Any]]:
    """Every way in which this package reads a file."""
    model = IPPO.load(io.BytesIO(zipped(entries)), device="cpu")
    off_policy = SafeSAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu", policy_kwargs={"net_arch": [4]})
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1")])
    return {
        "load": lambda path: IPPO.load(path, device="cpu"),
        "set_parameters": model.set_parameters,
        "policy.load": lambda path: type(model.policy).load(path, device="cpu"),
        "load_replay_buffer": off_policy.load_replay_buffer,
        "load_normalizer": lambda path: load_normalizer(env, path, training=True),
        "load_npz": load_npz,
    }


def test_no_loader_executes_anything(ippo: dict[str, bytes], tmp_path: pathlib.Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "file.zip"
    for case, content in payloads(marker, ippo).items():
        path.write_bytes(content)
        for name, load in loaders(ippo).items():
            # The tensors of such a file are sound, and nothing else of it is looked at.
            if name == "set_parameters" and case in ("a value as in SB3", "a value inside", "a foreign entry"):
                load(path)
            else:
                with pytest.raises(ValueError, match=r"file\.zip"):
                    load(path)
            assert not marker.exists(), f"{name} executed {case}"
    # The payload is live.
    pickle.loads(pickle.dumps(Evil(marker), protocol=2)).close()
    assert marker.exists()
