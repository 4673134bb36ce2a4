"""Benchmarks and theorems: that the commands run and say what they measured, and the arithmetic behind the figures."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch as th

from otbaselines import WBC, make_vec_env
from zoo import benchmark, own_support, theory
from zoo.benchmark_device import PARTS, Clock, count_syncs, device_table, shares
from zoo.benchmark_throughput import Record, Setting, consensus_tables, growth_table, ratio_cell, throughput_contenders
from zoo.contraction import UnrewardedNavigation, consensus_only, disagreement, fit_geometric


def test_the_command_prints_tables_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "benchmark.md"
    benchmark.main(["--only", "env", "--quick", "--out", str(path)])
    printed, written = capsys.readouterr().out, path.read_text()
    rows = [line for line in written.splitlines() if line.startswith("| ")]
    # A heading, the rule, mpe2 twice, and two environments with two sizes each.
    assert len(rows) == 8
    assert all(row in printed for row in rows)
    assert written.startswith("`python -m zoo.benchmark --only env --quick`")
    assert re.search(r"torch \d+\.\d+", written)


def test_results_name_neither_paths_nor_the_host() -> None:
    text = benchmark.provenance("python -m zoo.benchmark")
    assert str(Path.cwd()) not in text
    assert "/" not in text.replace("CPU/GPU", "")


@pytest.mark.parametrize("arguments", [["--device", "cpu", "--only", "env"], ["--only", "nothing"]])
def test_a_command_that_makes_no_sense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark.main(arguments)
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


def test_a_geometric_sequence_is_fitted_exactly() -> None:
    values = 3.0 * 0.8 ** np.arange(60)
    fit = fit_geometric(values)
    assert fit.kappa == pytest.approx(0.8, abs=1e-12)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-12)
    # 0.8^t <= 1/2 from t = 4 (0.41); 0.8^t >= 1/50 until t = 17 (0.0225).
    assert (fit.first, fit.last) == (4, 17)


def test_the_fit_leaves_out_a_slow_start_and_a_floor() -> None:
    head, fall, floor = np.ones(10), 0.5 ** np.arange(1, 6), np.full(30, 1e-3)
    assert fit_geometric(np.concatenate([head, fall, floor])).kappa == pytest.approx(0.5, abs=1e-12)


def test_a_sequence_that_hardly_falls_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than three"):
        fit_geometric(np.linspace(1.0, 0.9, 50))


def test_only_the_product_of_step_size_and_consensus_weight_matters() -> None:
    # Plain gradient descent multiplies the two, so the curves agree up to float32's rounding.
    one = disagreement(consensus_only(step_size=0.8, consensus_coef=0.5, seed=3), 8).max_divergence
    other = disagreement(consensus_only(step_size=0.2, consensus_coef=2.0, seed=3), 8).max_divergence
    assert len(one) == 8
    np.testing.assert_allclose(one, other, rtol=1e-4)
    assert one[-1] < 0.5 * one[0]


def test_without_consensus_the_unrewarded_team_stays_as_it_is() -> None:
    model = consensus_only(step_size=1.0, consensus_coef=0.0, seed=0)
    assert isinstance(model.get_env(), UnrewardedNavigation)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    disagreement(model, 3)
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, before[name]), name


def test_the_theorems_are_drawn_and_tabulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theory.main(["contraction", "--quick", "--seeds", "2", "--out", str(tmp_path)])
    theory.main(["rate", "--quick", "--seeds", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / "theorem31.png").stat().st_size > 10_000
    assert (tmp_path / "theorem32.png").stat().st_size > 10_000
    kappas = [float(row.split("|")[2].split()[0]) for row in printed.splitlines() if re.match(r"\| 0\.[48] ", row)]
    assert len(kappas) == 2
    assert 0 < kappas[1] < kappas[0] < 1  # twice the step contracts more


def test_what_own_supports_do_is_tabulated(capsys: pytest.CaptureFixture[str]) -> None:
    theory.main(["supports", "--quick", "--seeds", "2"])
    printed = capsys.readouterr().out
    rows = [row for row in printed.splitlines() if row.startswith(("| no consensus", "| expected", "| conditional"))]
    assert [row.count("|") for row in rows] == [6] * 6


def test_a_team_that_ignores_its_states_carries_no_information_about_them() -> None:
    model = own_support.train(None, 0.0, seed=0, n_timesteps=2400)
    with th.no_grad():
        head = model.policy.action_net
        head.weight.zero_()
        # The first two agents always do one thing each, the third draws.
        head.bias.copy_(th.tensor([[50.0, 0, 0, 0, 0], [0, 50.0, 0, 0, 0], [0, 0, 0, 0, 0]]).unsqueeze(1))
    found = own_support.behaviour(model)
    assert found.information == pytest.approx(0.0, abs=1e-5)
    assert found.entropy == pytest.approx(np.log(5) / 3, rel=1e-5)
    # Total variation 1 between the first two, and 4/5 with the third.
    assert found.disagreement == pytest.approx((1.0 + 0.8 + 0.8) / 3, rel=1e-5)
    nearest, mean, actions = own_support.distances(model)
    assert actions == pytest.approx(0.8 * np.sqrt(2))
    assert actions < nearest < mean


def test_a_single_seed_has_no_spread_and_is_refused() -> None:
    with pytest.raises(SystemExit):
        theory.main(["contraction", "--seeds", "1"])
