"""Benchmarks: that the commands run and say what they measured."""

import re
from pathlib import Path

import pytest
import torch as th

from otbaselines import WBC, make_vec_env
from zoo import benchmark
from zoo.benchmarks.device import PARTS, Clock, count_syncs, device_table, shares
from zoo.benchmarks.off_policy import contenders, off_policy_table
from zoo.benchmarks.offline import D3RLPY, offline_table
from zoo.benchmarks.throughput import Record, Setting, consensus_tables, growth_table, ratio_cell, throughput_contenders
from zoo.benchmarks.work import pieces


def test_the_command_prints_tables_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "benchmark.md"
    benchmark.main(["--only", "env", "--quick", "--out", str(path)])
    printed, written = capsys.readouterr().out, path.read_text()
    rows = [line for line in written.splitlines() if line.startswith("| ")]
    # A heading, the rule, mpe2 twice, and two environments with two sizes each.
    assert len(rows) == 9
    assert all(row in printed for row in rows)
    assert written.startswith("`python -m zoo.benchmark --only env --quick`")
    assert re.search(r"torch \d+\.\d+", written)


def test_results_name_neither_paths_nor_the_host() -> None:
    text = benchmark.provenance("python -m zoo.benchmark")
    assert str(Path.cwd()) not in text
    assert "/" not in text.replace("CPU/GPU", "")


@pytest.mark.parametrize(
    "arguments", [["--device", "cpu", "--only", "env"], ["--only", "nothing"], ["--beside", ".", "--only", "env"]]
)
def test_a_command_that_makes_no_sense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark.main(arguments)
    assert error.value.code == 2


def test_a_folder_for_the_tables_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark.main(["--only", "env", "--out", str(tmp_path)])
    assert error.value.code == 2


def test_all_contenders_of_the_real_benchmark_get_the_same_work() -> None:
    # 2,000 joint steps of three agents in minibatches of 600, whoever it is and however many copies it has.
    for n_copies, n_steps in ((16, 125), (80, 25)):
        setting = Setting(n_copies=n_copies, n_steps=n_steps)
        assert setting.rollout == 6000
        assert setting.learner()["batch_size"] == 600
    assert {contender.rollout for contender in throughput_contenders()} == {6000}


def test_a_ratio_is_the_median_over_rounds_and_not_the_ratio_of_medians() -> None:
    # Within the rounds: 2, 3 and 1/4; the medians 4 and 3 would give 1.33.
    assert ratio_cell(Record(rates=[2.0, 9.0, 4.0]), Record(rates=[1.0, 3.0, 16.0])) == "2.00"


def test_growth_and_the_price_of_consensus_are_measured_on_small_teams() -> None:
    growth = growth_table(quick=True)
    grid, forms = consensus_tables(quick=True)
    assert [row[:2] for row in growth.rows] == [("2", "8"), ("3", "16")]
    assert len(grid.rows) == 1
    by_form = {row[0]: row for row in forms.rows}
    assert by_form["IPPO"][-1] == "0.0%"
    assert all(float(row[-1].rstrip("%")) > 0 for name, row in by_form.items() if name != "IPPO")


def test_the_device_path_runs_on_the_cpu() -> None:
    table = device_table("cpu", quick=True)
    assert [row[1] for row in table.rows] == ["IPPO", "WBC", "IPPO", "WBC"]
    for row in table.rows:
        parts = [float(cell.rstrip("%")) for cell in row[4 : 4 + len(PARTS)]]
        # Five roundings of half a per cent.
        assert sum(parts) == pytest.approx(100.0, abs=2.5)
        assert parts[3] > 0
        assert (parts[2] > 0) == (row[1] == "WBC")
        assert row[-1] == "-"


@pytest.mark.gpu
@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
def test_host_synchronisations_are_counted_on_a_gpu() -> None:
    env = make_vec_env("otbaselines/Navigation-v0", 16, device="cuda")
    model = WBC("MlpPolicy", env, n_steps=5).learn(240)
    syncs = count_syncs(model, 240)
    assert syncs is not None
    assert syncs > 0  # the metrics are read once an iteration


def test_transport_is_not_counted_to_the_update_as_well() -> None:
    clock = Clock(th.device("cpu"))
    # Seconds: ten in all, of which two in the environment and seven in `train`, three of them in transport.
    spans = {"total": 10.0, "environment": 2.0, "train": 7.0, "transport": 3.0}
    clock._spans.update({name: [(0.0, seconds)] for name, seconds in spans.items()})
    assert shares(clock) == pytest.approx({"environment": 0.2, "forward": 0.0, "transport": 0.3, "update": 0.4, "rest": 0.1})


def test_learners_on_data_are_measured_and_a_missing_one_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(D3RLPY, "no-such-python")
    table = offline_table(quick=True)
    assert [row[0] for row in table.rows] == ["IQL", "QDOT", "QDOT, map off", "BC"]
    assert table.rows[0][-1] == "1.00"
    assert "d3rlpy's row is left out: 'no-such-python' could not run it" in capsys.readouterr().out


def test_learners_from_replay_buffers_are_measured_beside_sb3s() -> None:
    table = off_policy_table(quick=True)
    assert [row[0] for row in table.rows] == [*contenders()]
    assert table.rows[0][0] == "SB3's SAC"
    assert table.rows[0][-1] == "1.00"


def test_a_checkout_beside_itself_does_the_same_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(benchmark.__file__).parents[1]
    benchmark.main(["--beside", str(root), "--quick"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| exact W1")]
    assert [row.split(" | ")[0].rsplit(", ", 1)[1] for row in rows] == ["plane", "line", "0/1"]
    # There is one round, whose ratio is that of the rates, here over there.
    for row in rows:
        there, here = (float(cell.replace(",", "")) for cell in row.split(" | ")[2:4])
        assert float(row.split(" | ")[4].split()[0]) == pytest.approx(here / there, rel=5e-3)


@pytest.mark.parametrize("with_package", [False, True])
def test_what_is_no_checkout_or_cannot_do_the_work_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], with_package: bool
) -> None:
    if with_package:
        (tmp_path / "otbaselines").mkdir()
        (tmp_path / "otbaselines" / "__init__.py").write_text("raise RuntimeError('too old')\n")
    with pytest.raises(SystemExit) as error:
        benchmark.main(["--beside", str(tmp_path), "--quick"])
    assert error.value.code == 2
    said = "could not do its work" if with_package else "must be a checkout with the folder otbaselines"
    assert said in capfd.readouterr().err


def test_every_piece_of_work_that_checkouts_share_is_done() -> None:
    makers = pieces()
    for name in ("IPPO, mpe2, 16 copies", "WBC, 16 copies", "steps of Navigation, 80 copies", "sliced W1 of all pairs of 32"):
        call, amount = makers[name]()
        call()
        assert amount in (6000, 2000, 1)
