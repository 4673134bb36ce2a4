"""Command lines of the comparisons on recorded data: every run counts once, is found again, and is lost to no mistake."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from recordings_of_pendulum import pendulum_file

from zoo import plots
from zoo.papers.qdot import runs
from zoo.papers.qdot.extractions import FanResult, _name
from zoo.papers.qdot.options import price_text
from zoo.papers.qdot.runs import OfflineResult, offline_jobs
from zoo.runs import comparison
from zoo.runs.comparison import finished_run, results_path
from zoo.runs.fingerprint import fingerprint
from zoo.runs.job import Job

SMALL = ["--jobs", "1", "-params", "policy_kwargs.net_arch:[8]"]
FAN = "qdot-extractions"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runs, "EPISODES", 1)
    monkeypatch.setattr(runs, "EVALUATIONS", 1)
    monkeypatch.chdir(tmp_path)
    for name in ("medium.npz", "a/d.npz", "b/d.npz"):
        Path(name).parent.mkdir(exist_ok=True)
        pendulum_file(tmp_path / name)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "busy" / "prices.png").mkdir(parents=True)
    (tmp_path / "busy" / "learning_curves.png").mkdir()
    return tmp_path


def _refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        plots.main(words)
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2
    assert "Traceback" not in "".join(lines)
    return lines[-1]


# Command, further words, and what the message says; whether training is asked for or not.
BOTH = [
    ("--alphas 0.3 0.3", "--alphas has the same value twice, got 0.3 0.3"),
    ("--alphas 0", "`--alphas` must be a number in (0, 1e+15], got 0.0"),
    ("--alphas -1", "`--alphas` must be a number in (0, 1e+15], got -1.0"),
    ("--alphas nan", "`--alphas` must be a number in (0, 1e+15], got nan"),
    ("--datasets a/d.npz a/d.npz", "--datasets has the same value twice"),
    ("--datasets a/d.npz a/../a/d.npz", "--datasets has the same value twice"),
    ("--datasets a/d.npz b/d.npz", "a/d.npz and b/d.npz would both be called Pendulum-v1, d; rename one of the files"),
    ("--datasets .", "--datasets must be files of recorded data, got the folder '.'"),
    ("--datasets ''", "--datasets must be files of recorded data, got the folder '.'"),
    ("--seeds 4294967297", "--seeds: must be at most 10000"),
    ("--first-seed 4294967295 --seeds 2", "--first-seed 4294967295 and --seeds 2 go beyond the largest seed"),
    ("-params nonsense:1", "-params nonsense: "),
    ("-params dataset:zzz", "-params dataset: is what --datasets says; use that"),
    ("-params alpha:1", "-params alpha: is what --alphas says; use that"),
    ("-params n_timesteps:5", "-params n_timesteps: is what -n says; use that"),
    ("-params seed:3", "-params seed: is what --seeds says; use that"),
    ("-params ways:[1]", "-params ways: "),
    ("-params n_envs:3", "-params n_envs: "),
]
# What is noticed when the learners are made, before the first training.
TRAIN = [
    ("-params policy_kwargs:3", "`policy_kwargs` must be a dictionary"),
    ("-params policy_kwargs.net_arch:[0]", "`policy_kwargs['net_arch']` must be widths"),
    ("-params batch_size:2147483647", "would take"),
    ("--out file", "file"),
    ("--out busy", "is a folder, and no file to write"),
    ("--env Nope-v0", "Nope"),
    ("--env MountainCarContinuous-v0", "space"),
]


def test_mistakes_are_one_line_and_nothing_is_trained(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "run_job", None)
    cases = [(figure, "", *case) for figure in ("qdot --methods qdot bc", FAN) for case in BOTH]
    cases += [(figure, "--train", *case) for figure in ("qdot --methods qdot", FAN) for case in (*BOTH, *TRAIN)]
    cases += [
        ("qdot", "--train", "--methods bc bc", "--methods has the same value twice, got bc bc"),
        (
            "qdot",
            "--train",
            "--methods iql bc -params return_share:0.2",
            "-params return_share: bc has no such setting; choose",
        ),
        ("qdot", "--train", "--methods qdot -params return_share:2", "`return_share` must be a number in [0, 1], got 2"),
        ("qdot", "--train", "--methods weighted -params policy_kwargs.n_critics:1", "leaves nobody to disagree with"),
        (
            "qdot",
            "--train",
            "--methods qdot -params policy_kwargs.map_arch:7",
            "`policy_kwargs['map_arch']` must be at least one",
        ),
        ("qdot", "--train", "--methods qdot -params extraction:awr", "-params extraction: is what --methods says; use that"),
        (FAN, "--train", "-params prices:[1.0]", "-params prices: is what --alphas says; use that"),
        (FAN, "--train", "-params device:cpu", "-params device: is what --device says; use that"),
        (FAN, "", "--divergences 0", "`--divergences` must be a number in (0, 100], got 0.0"),
    ]
    before = {*here.rglob("*")}
    for figure, train, words, message in cases:
        given = shlex.split(f"{figure} {train} --seeds 1 -n 2 --jobs 1")
        given += [] if "--datasets" in words else ["--datasets", "medium.npz"]
        found = _refused([*given, *shlex.split(words)], capsys)
        assert message in found, f"{figure} {train} {words}\n    gave {found}"
    # Where the figure cannot go, the folders of the runs are made before that is noticed.
    assert {path for path in {*here.rglob("*")} - before if here / "busy" not in path.parents} == set()


def test_a_run_of_other_options_is_named_and_never_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["qdot", "--datasets", "medium.npz", "--methods", "bc", "--seeds", "1", "--out", "out", *SMALL, "--train"]
    usual = ["-n", "2", "--eval-episodes", "1"]
    plots.main([*words, *usual])
    file = here / "out/runs/Pendulum-v1/medium/bc-seed0.npz"
    kept = file.read_bytes()
    for changes, said in (
        (["-n", "3", "--eval-episodes", "1"], "`n_timesteps` is 2 there and 3 here"),
        (["-n", "2", "--eval-episodes", "2"], "`--eval-episodes` is 1 there and 2 here"),
        ([*usual, "-params", "gamma:0.5"], "-params gamma: bc has no such setting"),
        ([*usual, "-params", "batch_size:8"], "`batch_size` is not set there and 8 here"),
    ):
        for train in (words, words[:-1]):
            found = _refused([*train, *changes], capsys)
            assert said in found
            if said.startswith("`"):
                assert "bc-seed0.npz' holds this run with other options" in found
                assert "take another --out, or remove the file" in found
    # The file by another path, or at another place, is the same data.
    (here / "elsewhere").mkdir()
    (here / "elsewhere/medium.npz").write_bytes((here / "medium.npz").read_bytes())
    for path in (here / "medium.npz", "elsewhere/medium.npz"):
        words[2] = str(path)
        capsys.readouterr()
        plots.main([*words, *usual])
        assert "1 of 1 runs are finished" in capsys.readouterr().out
    # Other data in its place are not.
    words[2] = "medium.npz"
    with np.load(here / "medium.npz") as stored:
        arrays = dict(stored)
    np.savez(here / "medium.npz", **{**arrays, "rewards": arrays["rewards"] + 1.0})
    assert "medium.npz with another content" in _refused([*words, *usual], capsys)
    assert file.read_bytes() == kept


def test_runs_of_before_have_no_fingerprint_and_are_found(here: Path) -> None:
    job = _job(here)
    _result(job, data="").store(results_path(job))
    with np.load(results_path(job)) as stored:
        np.savez(results_path(job), **{name: stored[name] for name in stored.files if name != "data"})
    assert finished_run(_job(here), OfflineResult, 2) is not None
    absolute = _job(here, here / "medium.npz")
    assert finished_run(absolute, OfflineResult, 2) is not None
    other = _job(here, here / "a/d.npz")
    with pytest.raises(ValueError, match=r"`dataset` is .* there and .* here"):
        finished_run(Job(**{**vars(job), "entry": other.entry}), OfflineResult, 2)


def _job(here: Path, path: Path = Path("medium.npz")) -> Job:
    return offline_jobs([path], ["bc"], seeds=1, alphas=[], folder=here / "kept")[0][1]


def _result(job: Job, **changes) -> OfflineResult:
    job.folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.zeros(3) for name in ("timesteps", "rewards", "displacements")}
    values = {"evaluation": np.zeros(2), "cpu_seconds": 1.0, "entry": dict(job.entry), **arrays}
    return OfflineResult(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": np.zeros((1, 2))},
        {"evaluation": np.array(["a", "b"])},
        {"evaluation": np.array([1.0, np.nan])},
        {"rewards": np.zeros((3, 2))},
        {"rewards": np.zeros(2)},
        {"rewards": np.array([0.0, np.inf, 1.0])},
        {"displacements": np.zeros(4)},
        {"timesteps": np.zeros(0), "rewards": np.zeros(0), "displacements": np.zeros(0)},
        {"entry": [1]},
        {"cpu_seconds": np.nan},
    ],
)
def test_results_of_impossible_shapes_are_named_when_they_are_read(changes, here: Path) -> None:
    job = _job(here)
    _result(job).store(results_path(job))
    assert finished_run(job, OfflineResult, 2) is not None
    _result(job, **changes).store(results_path(job))
    with pytest.raises(ValueError, match=r"bc-seed0.npz' holds no results of a run \(`(\w+)`.*\); remove it"):
        finished_run(job, OfflineResult, 2)


def test_the_columns_of_a_fan_are_those_of_its_prices(tmp_path: Path) -> None:
    entry = {"prices": [0.3, float("inf")], "weights": ["plain", 0.05]}
    # Cloning, IQL, weights at both prices, regression, the map of cloned actions, the best of several at both prices.
    whole = {"rewards": np.zeros((2, 8)), "evaluation": np.zeros((5, 8)), "moves": np.zeros((2, 1)), "gains": np.zeros((2, 1))}
    for changes in ({}, {"rewards": np.zeros((2, 7))}, {"evaluation": np.zeros(5)}, {"moves": np.zeros((2, 2))}):
        run = FanResult(timesteps=np.arange(2.0), cpu_seconds=1.0, entry=entry, **{**whole, **changes})
        run.store(tmp_path / "run.npz")
        if changes:
            with pytest.raises(ValueError, match=f"`{next(iter(changes))}` must be numbers of the shape"):
                FanResult.load(tmp_path / "run.npz")
        else:
            FanResult.load(tmp_path / "run.npz")


def test_prices_are_named_to_the_last_digit(here: Path) -> None:
    jobs = offline_jobs([Path("medium.npz")], ["qdot"], seeds=1, alphas=[0.3, 0.3000001, 1.0, 1e-5], folder=here)
    names = [job.name for _, job in jobs]
    assert names == ["qdot-alpha0.3-seed0", "qdot-alpha0.3000001-seed0", "qdot-alpha1-seed0", "qdot-alpha1e-05-seed0"]
    assert len({key for key, _ in jobs}) == 4
    for price in (0.3, 0.3000001, 1.0, 1e6, 123456789.0, 1e-300, 1 / 3):
        assert float(price_text(price)) == price


def test_names_of_many_prices_are_short_and_differ() -> None:
    few, many = [0.1, 1.0], [1 / k for k in range(1, 40)]
    assert _name(few, [0.05], 3) == "alpha-0.1-1.0-nats-0.05-seed3"
    assert len(_name(many, [0.05], 3)) < 100
    assert len({_name(many, [0.05], 3), _name(many, [0.05], 4), _name(many[:-1], [0.05], 3), _name(many, [0.1], 3)}) == 4


def test_first_seeds_are_those_of_the_runs(here: Path) -> None:
    jobs = offline_jobs([Path("medium.npz")], ["bc"], seeds=2, first_seed=7, alphas=[], folder=here)
    assert [(job.seed, job.name) for _, job in jobs] == [(7, "bc-seed7"), (8, "bc-seed8")]


def test_fingerprints_tell_contents_and_not_names_or_dates(tmp_path: Path) -> None:
    arrays = {"x": np.arange(3.0), "y": np.zeros(2)}
    for name, values in (("a.npz", arrays), ("b.npz", dict(reversed(arrays.items()))), ("c.npz", {**arrays, "y": np.ones(2)})):
        np.savez(tmp_path / name, **values)
    (tmp_path / "d.hdf5").write_bytes(b"1")
    a, b, c, d = (fingerprint(str(tmp_path / name)) for name in ("a.npz", "b.npz", "c.npz", "d.hdf5"))
    assert a == b
    assert len({a, c, d}) == 3
    assert fingerprint("mujoco/hopper/medium-v0") == fingerprint(None) == ""
