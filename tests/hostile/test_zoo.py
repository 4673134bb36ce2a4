"""Command lines and files that make no sense: one line that names what is wrong, exit status 2, and no run left behind."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings_of_pendulum import pendulum_file

from zoo import benchmark, demo, enjoy, plots, theory, train
from zoo.config.entries import read_entry, split_entry

NAME = "otbaselines-Navigation-v0"
COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "train": train.train,
    "enjoy": enjoy.enjoy,
    "plots": plots.main,
    "theory": theory.main,
    "demo": demo.main,
    "benchmark": benchmark.main,
}

# What no option with a number takes, and what each option takes least.
NO_NUMBERS = ["", "x", "1.5", "nan", "inf", "1e3", "--", "99999999999999999999999"]
NUMBERS: dict[tuple[str, ...], dict[str, list[str]]] = {
    ("train",): {
        "--seed": ["-2", "4294967296", "99999999999"],
        "--n-timesteps": ["0", "-2"],
        "--eval-freq": ["0", "-2"],
        "--eval-episodes": ["0", "-1"],
        "--n-eval-envs": ["0", "-1"],
        "--save-freq": ["0"],
        "--log-interval": ["0", "-3"],
        "--num-threads": ["0", "100000"],
        "--verbose": ["3", "-1"],
    },
    ("enjoy",): {
        "--exp-id": ["-1"],
        "--n-eval-episodes": ["0", "-3"],
        "--max-frames": ["0"],
        "--seed": ["-1", "99999999999"],
        "--load-checkpoint": ["0"],
    },
    ("plots", "wbc-paper"): {"--seeds": ["0"], "--jobs": ["0", "-1"], "--n-timesteps": ["0"], "--eval-episodes": ["0"]},
    ("plots", "spread"): {"--seeds": ["-1"]},
    ("plots", "wbc-transport"): {"--seeds": ["0"], "--jobs": ["0"], "--n-timesteps": ["0"]},
    ("plots", "wbc-tuning"): {"--trials": ["0", "-3"], "--seeds": ["0"]},
    ("theory", "rate"): {"--seeds": ["1", "0"]},
    ("demo",): {"--seed": ["-1", "99999999999"], "--n-timesteps": ["0"]},
}

# Command, and what its message must say.
LINES: list[tuple[str, str]] = [
    ("train --algo ppo", "--algo"),
    ("train --alg wbc", "--alg"),
    ("train --see 3", "--see"),
    ("train --device foo", "--device"),
    ("train --device cuda:99", "--device"),
    ("train --device meta", "--device"),
    ("train --vec-env fast", "--vec-env"),
    ("train --env", "--env"),
    ("train --env otbaselines/Navigaton-v0", "Navigation-v0"),
    ("train --env no/such-thing", "no/such-thing"),
    ("train --env mpe2/simple_spred_v3", "simple_spred"),
    ("train --variant fast", "fast"),
    ("train --variant kl fast", "fast"),
    ("train --algo ippo --variant kl", "kl"),
    ("train -i missing.zip", "missing.zip"),
    ("train -i {tmp}", "--trained-agent"),
    ("train -i {tmp}/text.zip", "text.zip"),
    ("train --conf-file missing.yml", "missing.yml"),
    ("train --conf-file {tmp}", "YAML"),
    ("train --conf-file {tmp}/text.zip", "text.zip"),
    ("train --gym-packages no_such_package", "no_such_package"),
    ("train -f {tmp}/text.zip", "text.zip"),
    ("train -f /dev/null/logs", "/dev/null"),
    ("train -tb {tmp}/text.zip", "text.zip"),
    ("train surplus", "surplus"),
    ("train -params gamma", "key:value"),
    ("train -params gamma=0.9", "key:value"),
    ("train -params :0.9", "key:value"),
    ("train -params gamma:", "key:value"),
    ("train -params policy_kwargs..net_arch:[8]", "key:value"),
    ("train -params gamma:0.9 gamma:0.8", "twice"),
    ("train -params gamma:0.9 gamma.x:0.8", "gamma"),
    ("train -params policy_kwargs:{'net_arch':[8]} policy_kwargs.net_arch:[9]", "net_arch"),
    ("train -params learning_rat:0.1", "learning_rat"),
    ("train -params learning_rate:__import__('os')", "plain value"),
    ("train -params gamma:{1,2}", "plain value"),
    ("train -params gamma:[1,", "plain value"),
    ("train -params gamma:[b'x']", "plain value"),
    ("train -params gamma:" + "[" * 3000, "plain value"),
    ("train -params learning_rate:3e-4x", "schedule '3e-4x'"),
    ("train -params learning_rate:lin_", "schedule 'lin_'"),
    ("train -params gamma:'0.9'", "gamma"),
    ("train -params batch_size:100000", "batch_size"),
    ("train -params n_envs:0", "n_envs"),
    ("train -params n_envs:2.5", "n_envs"),
    ("train -params n_envs:many", "n_envs"),
    ("train -params n_envs:None", "n_envs"),
    ("train -params n_timesteps:True", "n_timesteps"),
    ("train -params n_timesteps:-5", "n_timesteps"),
    ("train -params n_timesteps:inf", "n_timesteps"),
    ("train -n 5 -params n_timesteps:5", "-params n_timesteps: is what -n says"),
    ("train -params gamma:nan", "`gamma` must be a number in [0, 1], got nan"),
    ("train --algo bc --dataset a.npz -params dataset:b.npz", "-params dataset: is what --dataset says"),
    ("train --algo bc -params dataset:b.npz", "-params dataset: is what --dataset says"),
    (
        "train --algo qdot --env Pendulum-v1 --dataset {tmp}/medium.npz -params policy_kwargs.map_arch:7",
        "`policy_kwargs['map_arch']`",
    ),
    ("plots spread --seeds 10001", "at most 10000"),
    ("plots spread --train --out {tmp}/text.zip", "text.zip"),
    ("train -params normalize:yes", "normalize"),
    ("train -params normalize:[1]", "normalize"),
    ("train -params normalize.norm_ob:True", "norm_ob"),
    ("train -params policy_kwargs:5", "policy_kwargs"),
    ("train -params policy_kwargs.net_arc:[8]", "net_arc"),
    ("train -params policy_kwargs.activation_fn:os.system", "os.system"),
    ("train -params policy_kwargs.activation_fn:torch.nn.ReLUU", "ReLUU"),
    ("train -params env_kwargs:5", "env_kwargs"),
    ("train -params policy:Mlp", "Mlp"),
    ("train -params seed:5", "seed"),
    ("train -params device:cpu", "device"),
    ("train -params env:x", "env"),
    ("train --env-kwargs n_agents:0", "n_agents"),
    ("train --env-kwargs n_agents:x", "n_agents"),
    ("train --env-kwargs n_agent:3", "n_agent"),
    ("train --env-kwargs heterogeneous:much", "heterogeneous"),
    ("train --eval-env-kwargs n_agents:0", "n_agents"),
    ("train --eval-env-kwargs nothing:1", "nothing"),
    ("enjoy -f {tmp}/nothing", "zoo.train"),
    ("enjoy -f {tmp}/logs --exp-id 7", "zoo.train"),
    ("enjoy -f {tmp}/logs --algo ippo", "zoo.train"),
    ("enjoy -f {tmp}/logs --exp-id 2", "run 2"),
    ("enjoy -f {tmp}/logs --load-best", "run 1"),
    ("enjoy -f {tmp}/logs --load-best --load-last-checkpoint", "--load-last-checkpoint"),
    ("enjoy -f {tmp}/logs --load-checkpoint 5", "run 1"),
    ("enjoy -f {tmp}/logs --stochastic --deterministic", "--deterministic"),
    ("enjoy -f {tmp}/logs --env-kwargs n_agents:5", "agents"),
    ("enjoy -f {tmp}/logs --env-kwargs nothing:5", "nothing"),
    ("enjoy -f {tmp}/logs --render-dir {tmp}/text.zip", "text.zip"),
    ("enjoy -f {tmp}/logs --device foo", "--device"),
    ("enjoy -f {tmp}/logs --exp-id 3", "zip"),
    ("enjoy -f {tmp}/logs --exp-id 4", "config.yml"),
    ("enjoy -f {tmp}/logs --exp-id 5", "norm"),
    ("plots", "FIGURE"),
    ("plots nothing", "nothing"),
    ("plots wbc-paper --out {tmp}/nothing", "--train"),
    ("plots wbc-paper --out {tmp}/text.zip --train", "text.zip"),
    ("plots wbc-paper --methods sac", "--methods"),
    ("plots wbc-paper --heterogeneous much", "--heterogeneous"),
    ("plots wbc-paper --device foo", "--device"),
    ("plots spread --heterogeneous roles", "--heterogeneous"),
    ("plots wbc-transport --settings turn31", "--settings"),
    ("plots wbc-transport --tuned {tmp}/nothing.yml", "nothing.yml"),
    ("plots wbc-tuning --out {tmp}/nothing", "--train"),
    ("plots learning-curve -f {tmp}/nothing", "zoo.train"),
    ("plots learning-curve -f {tmp}/logs", "zoo.train"),
    ("plots learning-curve -f {tmp}/curves --env some/Task-v0", "evaluations.npz"),
    ("theory", "THEOREM"),
    ("theory rates", "rates"),
    ("theory rate --out {tmp}/text.zip", "text.zip"),
    ("demo --device foo", "--device"),
    ("demo --out {tmp}/text.zip", "text.zip"),
    ("demo --progres", "--progres"),
    ("benchmark --only nothing", "--only"),
    ("benchmark --device foo", "--device"),
    ("benchmark --device cpu --only env", "--only"),
    ("benchmark --out {tmp}/text.zip/table.md", "text.zip"),
]

FILES = {
    "broken": "default: {n_timesteps: 10",
    "a list": "- default",
    "text": "default",
    "a number": "5",
    "numbers as keys": "5: {n_timesteps: 10}",
    "an entry that is text": "default: n_timesteps",
    "an entry that is a list": "default: [1, 2]",
    "no entry": "other-v0: {n_timesteps: 10}",
    "nothing": "",
    "no steps": "default: {gamma: 0.9}",
    "steps that are none": "default: {n_timesteps: }",
    "steps that are a list": "default: {n_timesteps: [1]}",
    "infinite steps": "default: {n_timesteps: .inf}",
    "no number of steps": "default: {n_timesteps: .nan}",
    "a number as text": "default: {n_timesteps: 10, learning_rate: 3e-4}",
    "variants that are a list": "default: {n_timesteps: 10, variants: [sharing]}",
    "a variant that is text": "default: {n_timesteps: 10, variants: {sharing: x}}",
    "an object": "default: !!python/object/apply:os.system ['true']",
    "an entry that contains itself": "default: &a {n_timesteps: 10, policy_kwargs: *a}",
    "anchors that multiply": "".join(
        f"k{i}: &a{i} {{{', '.join(f'x{j}: *a{i - 1}' for j in range(9))}}}\n" for i in range(1, 9)
    ),
    "a tab": "default:\n\tn_timesteps: 10",
    "two documents": "--- {}\n--- {}",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six runs: the first and the last are whole, one has no agent, and three have a damaged file each."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "text.zip").write_text("no zip")
    pendulum_file(folder / "medium.npz")
    (folder / "curves" / "wbc" / "some-Task-v0_1").mkdir(parents=True)
    (folder / "curves" / "wbc" / "some-Task-v0_1" / "evaluations.npz").write_text("no arrays")
    train.train(
        ["-f", str(folder / "logs"), "--seed", "0", "-n", "600", "--eval-freq", "-1", "--verbose", "0", "-params", "n_envs:8"]
    )
    runs = folder / "logs" / "wbc"
    (runs / f"{NAME}_2").mkdir()
    for number in (3, 4, 5, 6):
        shutil.copytree(runs / f"{NAME}_1", runs / f"{NAME}_{number}")
    whole = (runs / f"{NAME}_3" / f"{NAME}.zip").read_bytes()
    (runs / f"{NAME}_3" / f"{NAME}.zip").write_bytes(whole[: len(whole) // 2])
    (runs / f"{NAME}_4" / NAME / "config.yml").write_text("a: [")
    np.savez(runs / f"{NAME}_5" / NAME / "vecnormalize.npz", nothing=1)
    return folder


def _lines() -> Iterator[tuple[str, list[str], str]]:
    for (command, *figure), options in NUMBERS.items():
        for option, values in options.items():
            for value in (*values, *NO_NUMBERS):
                yield command, [*figure, option, value], option
    for line, said in LINES:
        command, *arguments = line.split()
        yield command, arguments, said


def test_bad_command_lines_are_refused_in_one_line_that_names_the_mistake(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever is left behind would be left in the current folder.
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    cases = list(_lines())
    assert len(cases) > 250
    wrong = []
    for command, arguments, said in cases:
        arguments = [argument.replace("{tmp}", str(place)) for argument in arguments]
        try:
            COMMANDS[command](arguments)
            status: Any = "no error"
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            status = f"{type(error).__name__}: {error}"
        last = [*capsys.readouterr().err.strip().splitlines(), ""][-2:][0]
        told = last.startswith(f"python -m zoo.{command}") and said in last
        if status != 2 or not told or list(Path.cwd().iterdir()):
            wrong.append(f"zoo.{command} {' '.join(arguments)[:150]}\n    gave {status}: {last}\n    without {said!r}")
    assert not wrong, "\n".join(wrong)
    assert len(list((place / "logs" / "wbc").iterdir())) == 6


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("os:system", ["command:touch {}"]),
        ("subprocess:Popen", ["args:['touch', '{}']"]),
        ("subprocess:run", ["args:['touch', '{}']"]),
        ("subprocess:getoutput", ["cmd:touch {}"]),
        ("os:mkdir", ["path:{}"]),
        ("tempfile:mkdtemp", ["dir:{}/.."]),
        ("functools:partial", []),
        ("builtins:exec", []),
        ("os:sep", []),
        ("numpy:ndarray", ["shape:3"]),
        ("stable_baselines3:PPO", []),
    ],
)
def test_what_makes_no_environments_is_refused_without_a_call(
    name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    options = ["--env-kwargs", *(each.replace("{}", str(tmp_path / "called")) for each in arguments)] if arguments else []
    for command in (train.train, enjoy.enjoy):
        with pytest.raises(SystemExit) as end:
            command(["--env", name, "-f", str(tmp_path / "runs"), *options])
        assert end.value.code == 2
        assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
        if command is train.train:
            assert f"the id {name!r} names" in capsys.readouterr().err


@pytest.mark.parametrize("kind", FILES)
def test_bad_files_of_hyperparameters_are_named(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "some.yml"
    file.write_text(FILES[kind])
    with pytest.raises(ValueError, match=r"some\.yml|`\w+`"):
        split_entry(read_entry("any", "any-v0", variants=["sharing"] if "variant" in kind else [], path=file))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    for content in (b"\xff\xfe\x00", b"a: \x00", bytes(range(256))):
        (tmp_path / "some.yml").write_bytes(content)
        with pytest.raises(ValueError, match=r"some\.yml"):
            read_entry("any", "any-v0", path=tmp_path / "some.yml")
