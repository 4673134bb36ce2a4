"""What a saved file promises: whole or absent, JSON and tensors only, and nothing in it is ever executed."""

import io
import json
import os
import pathlib
import pickle
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from core_toys import assert_same_parameters
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule

from otbaselines.common.saving.algorithm import JsonSaveMixin, atomic_write, read_zip, write_zip
from otbaselines.common.saving.archive import versions

th.set_num_threads(1)


class JsonPPO(JsonSaveMixin, PPO):
    """The smallest class that the mixin can be put before."""


class Evil:
    """An object whose unpickling creates a file."""

    def __init__(self, marker: pathlib.Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (pathlib.Path.touch, (pathlib.Path(self.marker),))


@pytest.fixture(scope="module")
def trained() -> JsonPPO:
    return JsonPPO(
        "MlpPolicy", "CartPole-v1", LinearSchedule(1e-3, 1e-4, 0.8), n_steps=32, batch_size=16, n_epochs=2, device="cpu"
    ).learn(64)


@pytest.fixture
def saved(trained: JsonPPO, tmp_path: pathlib.Path) -> pathlib.Path:
    trained.save(tmp_path / "model")
    return tmp_path / "model.zip"


def rewrite(path: pathlib.Path, **entries: bytes | None) -> None:
    """Replace, add or (None) remove entries of a zip; ``__`` in a name stands for a dot."""
    with zipfile.ZipFile(path) as archive:
        contents: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    contents |= {name.replace("__", "."): content for name, content in entries.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            if content is not None:
                archive.writestr(name, content)


def edit_data(path: pathlib.Path, **values: Any) -> None:
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    rewrite(path, data=json.dumps({**data, **values}).encode())


# ---------------------------------------------------------------- nothing is executed


def test_every_entry_is_json_text_or_a_weights_only_tensor_file(saved: pathlib.Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        names = set(archive.namelist())
        assert names == {
            *("data", "otbaselines.json", "_stable_baselines3_version", "system_info.txt"),
            *("policy.pth", "policy.optimizer.pth"),
        }
        for name in ("data", "otbaselines.json"):
            text = archive.read(name).decode()
            assert ":serialized:" not in text
            json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
        for name in ("policy.pth", "policy.optimizer.pth"):
            th.load(io.BytesIO(archive.read(name)), weights_only=True)
        manifest = json.loads(archive.read("otbaselines.json"))
    assert manifest["policy"] == "MlpPolicy"
    assert manifest["class"].endswith(".JsonPPO")
    assert manifest["schedules"]["learning_rate"]["form"] == "linear"
    assert set(manifest["versions"]) >= {"otbaselines", "torch", "stable_baselines3", "python"}


def test_sb3_sets_parameters_from_our_file(trained: JsonPPO, saved: pathlib.Path) -> None:
    plain = PPO("MlpPolicy", "CartPole-v1", policy_kwargs=trained.policy_kwargs, device="cpu")
    plain.set_parameters(str(saved), device="cpu")
    assert_same_parameters(trained.get_parameters(), plain.get_parameters())


def test_a_pickled_payload_runs_under_sb3_and_not_here(tmp_path: pathlib.Path) -> None:
    marker = tmp_path / "executed"
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").learn(8)
    model.payload = Evil(marker)
    model.save(tmp_path / "sb3")
    with pytest.raises(ValueError, match=r"sb3.zip.*payload.*`set_parameters`"):
        JsonPPO.load(tmp_path / "sb3")
    # What the message says: the tensors alone, of SB3's own file.
    ours = JsonPPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    ours.set_parameters(tmp_path / "sb3")
    assert_same_parameters(model.get_parameters(), ours.get_parameters())
    assert not marker.exists()
    # The payload is live.
    PPO.load(tmp_path / "sb3", device="cpu")
    assert marker.exists()


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_malicious_tensor_file_is_refused_and_not_executed(saved: pathlib.Path, tmp_path: pathlib.Path, form: str) -> None:
    marker = tmp_path / "executed"
    content = io.BytesIO()
    if form == "torch":
        th.save({"weight": Evil(marker)}, content)
    else:
        content.write(pickle.dumps(Evil(marker), protocol=2))
    rewrite(saved, policy__pth=content.getvalue())
    whole = JsonPPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    for load in (JsonPPO.load, whole.set_parameters):
        with pytest.raises(ValueError, match=r"model.zip' cannot be loaded"):
            load(saved)
    assert not marker.exists()
    # The payload is live.
    pickle.loads(pickle.dumps(Evil(marker), protocol=2))
    assert marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "torch.nn.modules.module.os.system",
        "stable_baselines3.common.utils.subprocess",
        "subprocess.Popen",
        "stable_baselines3.common.logger.HumanOutputFormat",
    ],
)
def test_a_malicious_class_name_is_refused(saved: pathlib.Path, name: str) -> None:
    for values in (
        {"policy_kwargs": {"activation_fn": {":kind:": "class", "name": name}}},
        {"policy_class": {":kind:": "class", "name": name}},
        {"rollout_buffer_class": {":kind:": "class", "name": name}},
    ):
        edit_data(saved, **values)
        with pytest.raises(ValueError, match=r"model.zip.*is refused"):
            JsonPPO.load(saved)


def test_unknown_entries_and_keys_are_refused(saved: pathlib.Path) -> None:
    whole = saved.read_bytes()
    for entries, message in (
        ({"payload__pkl": b"cos\nsystem\n"}, "payload.pkl"),
        ({"evil__py": b"import os"}, "evil.py"),
        ({"logger__pth": b""}, "no file of tensors"),
    ):
        saved.write_bytes(whole)
        rewrite(saved, **entries)
        with pytest.raises(ValueError, match=message):
            JsonPPO.load(saved)
    for values, message in (
        ({"predict": "x"}, "predict"),
        ({"gamma": {":serialized:": "gASVKg=="}}, "pickled or unknown"),
        ({"gamma": {":kind:": "call", "name": "os.system"}}, "`gamma` cannot be read"),
        ({"observation_space": "x"}, "`observation_space` must be a Gymnasium space"),
    ):
        saved.write_bytes(whole)
        edit_data(saved, **values)
        with pytest.raises(ValueError, match=message):
            JsonPPO.load(saved)


def test_a_file_cannot_hide_a_method_of_the_class(saved: pathlib.Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        manifest = json.loads(archive.read("otbaselines.json"))
    edit_data(saved, predict="x")
    rewrite(saved, otbaselines__json=json.dumps({**manifest, "included": ["predict"]}).encode())
    for include in ((), ("predict",)):
        with pytest.raises(ValueError, match="holds predict, which JsonPPO does not know"):
            JsonPPO.load(saved, include=include)


def test_a_file_cannot_name_the_attributes_to_be_set(saved: pathlib.Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        manifest = json.loads(archive.read("otbaselines.json"))
    edit_data(saved, planted=1)
    rewrite(saved, otbaselines__json=json.dumps({**manifest, "included": ["planted"]}).encode())
    with pytest.raises(ValueError, match="holds planted, which JsonPPO does not know"):
        JsonPPO.load(saved)


def test_a_log_directory_outside_the_working_directory_is_neither_stored_nor_believed(tmp_path: pathlib.Path) -> None:
    for given, expected in ((str(tmp_path), None), ("runs/tb", "runs/tb"), ("../elsewhere", None)):
        JsonPPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, tensorboard_log=given, device="cpu").save(
            tmp_path / "log"
        )
        assert JsonPPO.load(tmp_path / "log", device="cpu").tensorboard_log == expected
    edit_data(tmp_path / "log.zip", tensorboard_log="/etc")
    assert JsonPPO.load(tmp_path / "log", device="cpu").tensorboard_log is None


# ---------------------------------------------------------------- damage


def test_a_missing_file_names_what_was_tried(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent' and '.*absent.zip'"):
        JsonPPO.load(tmp_path / "absent")


@pytest.mark.parametrize("entry", ["data", "otbaselines__json", "policy__pth", "policy__optimizer__pth"])
def test_a_missing_entry_is_a_value_error_with_the_file(saved: pathlib.Path, entry: str) -> None:
    rewrite(saved, **{entry: None})
    with pytest.raises(ValueError, match=r"model.zip.*(missing|holds the tensors).*(again)"):
        JsonPPO.load(saved)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18), b"PK\x03\x04" + bytes(200)])
def test_what_is_no_model_is_a_value_error_with_the_file(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "broken.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken.zip.*(copy, download or save it again)"):
        JsonPPO.load(tmp_path / "broken")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000])
def test_broken_json_is_a_value_error_with_the_file(saved: pathlib.Path, data: bytes) -> None:
    rewrite(saved, data=data)
    with pytest.raises(ValueError, match=r"model.zip"):
        JsonPPO.load(saved)


def test_the_nan_literal_is_refused_though_python_would_read_it(saved: pathlib.Path) -> None:
    edit_data(saved, gamma=float("nan"))
    with pytest.raises(ValueError, match="NaN is not JSON"):
        JsonPPO.load(saved)


def test_truncated_and_flipped_files_load_or_say_which_file_is_broken(saved: pathlib.Path) -> None:
    whole = saved.read_bytes()
    generator = np.random.default_rng(0)
    messages = []
    for length in np.linspace(0, len(whole) - 1, 12).astype(int):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model.zip"):
            read_zip(saved)
    for position in generator.integers(len(whole), size=150):
        flipped = bytearray(whole)
        flipped[position] ^= int(generator.integers(1, 256))
        saved.write_bytes(flipped)
        try:
            read_zip(saved)
        except ValueError as error:
            messages.append(str(error))
    # A few bytes of a zip (dates, attributes) mean nothing; all contents are under a checksum.
    assert len(messages) > 100
    assert all("model.zip" in message for message in messages)


def test_tensors_that_do_not_fit_are_a_value_error_with_the_file(saved: pathlib.Path) -> None:
    content = io.BytesIO()
    th.save({"weight": th.zeros(3)}, content)
    rewrite(saved, policy__pth=content.getvalue())
    with pytest.raises(ValueError, match=r"model.zip.*`policy` lacks .*another model"):
        JsonPPO.load(saved)


@pytest.mark.parametrize("changes", [{"lineage": 5}, {"lineage": []}, {"lineage": [3]}, {"format": "1"}, {"format": True}])
def test_a_damaged_manifest_is_a_value_error(saved: pathlib.Path, changes: dict[str, Any]) -> None:
    with zipfile.ZipFile(saved) as archive:
        manifest = json.loads(archive.read("otbaselines.json"))
    rewrite(saved, otbaselines__json=json.dumps({**manifest, **changes}).encode())
    with pytest.raises(ValueError, match=r"model.zip"):
        JsonPPO.load(saved)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("num_timesteps", [-1, 1.5, "3", True, None, [1], 10**30]),
        ("_n_updates", [-1, None, {}, 10**30]),
        ("_current_progress_remaining", [2.0, None, "x", {":kind:": "float", "value": "nan"}]),
        (
            "ep_info_buffer",
            [[], 3, {":kind:": "deque", "items": [3], "maxlen": 5}, {":kind:": "deque", "items": [], "maxlen": -1}],
        ),
        ("ep_success_buffer", [{":kind:": "deque", "items": ["x"], "maxlen": 5}]),
        ("_last_obs", [3, [1.0], {":kind:": "array", "dtype": "float32", "shape": [2], "data": [0, 0]}]),
        ("n_envs", [0, -1, 1.0, True, "1", 10**12]),
        ("n_epochs", ["x", [], None, 1.5]),
        ("gamma", [{":kind:": "float", "value": "nan"}, "x", None]),
        ("policy_kwargs", [3, {"net_arch": "x"}, {"net_arch": [8], "log_std_init": "x"}, {"net_arch": [8], "nothing": 1}]),
        ("tensorboard_log", [{":kind:": "class", "name": "torch.nn.Tanh"}, 3]),
        ("_extra_data", [3, []]),
    ],
)
def test_an_impossible_value_is_a_value_error_with_file_and_entry(saved: pathlib.Path, name: str, values: list[Any]) -> None:
    whole = saved.read_bytes()
    for value in values:
        saved.write_bytes(whole)
        edit_data(saved, **{name: value})
        with pytest.raises(ValueError, match=rf"model.zip' cannot be loaded: .*`{name}"):
            JsonPPO.load(saved, device="cpu")


def test_a_newer_format_asks_for_an_update(saved: pathlib.Path) -> None:
    rewrite(saved, otbaselines__json=json.dumps({"format": 999}).encode())
    with pytest.raises(ValueError, match=r"999.*update"):
        JsonPPO.load(saved)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"otbaselines": "0.0.1"}, "an older otbaselines .*'0.0.1'"),
        ({"otbaselines": "999.0"}, "a newer otbaselines .*'999.0'"),
        (versions(), "an older or a newer state"),
        ({"otbaselines": 3 * [10]}, "a newer otbaselines"),
        ("x", "an older or a newer state .*'unknown'"),
        ({"otbaselines": "main"}, "an older or a newer state .*'main'"),
    ],
)
def test_what_another_version_has_stored_is_named_with_both_versions(saved: pathlib.Path, stored: Any, expected: str) -> None:
    with zipfile.ZipFile(saved) as archive:
        manifest = json.loads(archive.read("otbaselines.json"))
    edit_data(saved, former_setting=3)
    rewrite(saved, otbaselines__json=json.dumps({**manifest, "versions": stored}).encode())
    with pytest.raises(
        ValueError, match=rf"holds former_setting, which JsonPPO does not know; .*another class, by {expected}"
    ):
        JsonPPO.load(saved, device="cpu")


def test_a_state_dict_that_could_not_be_loaded_is_refused_at_save(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TypeError, match=r"`policy\['lr'\]` is a float64"):
        write_zip(tmp_path / "refused", data={}, tensors={"policy": {"lr": np.float64(1.0)}}, manifest={})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_zip(tmp_path / "refused", data={"a": np.inf}, tensors={}, manifest={})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- whole or not at all


def test_an_error_inside_the_block_leaves_the_old_file_and_no_other(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(target) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with atomic_write(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_permissions_and_links_are_kept(tmp_path: pathlib.Path) -> None:
    target, link = tmp_path / "file", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    with atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    plain = tmp_path / "plain"
    plain.touch()
    with atomic_write(tmp_path / "fresh"):
        pass
    assert (tmp_path / "fresh").stat().st_mode == plain.stat().st_mode


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_what_is_no_regular_file_is_never_replaced(tmp_path: pathlib.Path) -> None:
    pipe, link, loop = tmp_path / "pipe", tmp_path / "link", tmp_path / "loop"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    loop.symlink_to(loop)
    for path in (pipe, link, loop):
        with pytest.raises(ValueError, match=r"`path` .* is no regular file"), atomic_write(path):
            raise AssertionError("the block must not run")
        with pytest.raises(ValueError, match=r"`path` .* is no regular file"):
            write_zip(path, data={}, tensors={}, manifest={}, suffix="")
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert link.is_symlink()
    assert loop.is_symlink()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("path", ["", ".", "..", "/", "a\0b", pathlib.Path()])
def test_a_path_that_names_no_file_is_refused(trained: JsonPPO, path: Any) -> None:
    for act in (trained.save, JsonPPO.load, trained.set_parameters, lambda name: atomic_write(name).__enter__()):
        with pytest.raises(ValueError, match=r"`path` must (name a file|not have null bytes), got"):
            act(path)


KILLED = """
import sys, time
import torch as th
from otbaselines.common.saving import archive

save = th.save
def slow_save(value, file):
    save(value, file)
    print("writing", flush=True)
    time.sleep(600)

archive.th.save = slow_save
archive.write_zip(sys.argv[1], data={"new": 1}, tensors={"policy": {"weight": th.zeros(200_000)}}, manifest={})
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_kill_in_the_middle_of_a_save_leaves_the_old_file_whole(trained: JsonPPO, saved: pathlib.Path) -> None:
    before = saved.read_bytes()
    root = pathlib.Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", KILLED, str(saved)], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        unfinished = list(saved.parent.glob(".model.zip.*.tmp"))
        assert len(unfinished) == 1
        assert unfinished[0].stat().st_size > 200_000
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    assert saved.read_bytes() == before
    assert_same_parameters(trained.get_parameters(), JsonPPO.load(saved, device="cpu").get_parameters())
