"""The study of where transport matters: every method means what its label says, and the search is the same for all."""

from pathlib import Path

import numpy as np
import pytest

from otbaselines import WBC
from otbaselines.envs import NavigationConfig
from zoo import plots
from zoo.config.entries import read_yaml
from zoo.papers.wbc.coefficients import FACTORS, CoefficientResult
from zoo.papers.wbc.study import CONTESTANTS, FEW_COMMON_PLACES, SETTINGS, StudyResult, contestants, study_job
from zoo.papers.wbc.tuning import FIRST_SEED, SPACE, draw, keep_best, overrides_of

pytestmark = pytest.mark.filterwarnings("ignore:agents of a group have actions that lead where")
SMALL = {"n_envs": 2, "batch_size": 75}


def _build(setting: str, method: str, tmp_path: Path) -> WBC:
    return study_job(setting, method, 0, tmp_path, name="x", overrides=SMALL).build()  # type: ignore[return-value]


@pytest.mark.parametrize("setting", ["turn45", "dynamics", "headings9", "sigma0.3"])
def test_every_method_of_a_setting_is_built_as_its_label_says(setting: str, tmp_path: Path) -> None:
    models = {name: _build(setting, name, tmp_path) for name in contestants(setting, [*CONTESTANTS])}
    continuous = setting.startswith("sigma")
    left_out = {"one-hot", "zero-one"} if continuous else set()
    assert set(models) >= {"wbc", "kl", "reverse-kl", "energy", "sharing", "ippo"}
    assert not left_out & set(models)
    assert ("matched" in models) == (setting in FEW_COMMON_PLACES)
    for model in models.values():
        assert model.n_steps == 25
        if continuous:
            assert float(model.policy.log_std.detach().exp().mean()) == pytest.approx(0.3, abs=0.01)
    assert models["sharing"].share_parameters
    assert models["sharing"].policy.append_agent_id
    assert not models["ippo"].share_parameters
    consensus = {name: model._consensus.parts[0] for name, model in models.items() if isinstance(model, WBC)}
    assert consensus["reverse-kl"].reverse is True
    assert consensus["kl"].reverse is False
    if continuous:
        return
    n_actions = int(models["wbc"].action_space.n)
    # To stay, and the moves of the agents: at 45 degrees the first and the third share theirs, at three speeds nobody does.
    n_points = 13 if setting == "dynamics" else 9
    assert len(consensus["wbc"].metric.codebook) == len(consensus["energy"].metric.codebook) == n_points
    assert len(consensus["zero-one"].metric.codebook) == n_points
    assert len(consensus["zero-one"].cost.unique().round(decimals=3).unique()) == 2
    assert consensus["one-hot"].metric.placement is None
    if setting in FEW_COMMON_PLACES:
        assert len(consensus["matched"].metric.codebook) == len(consensus["energy-matched"].metric.codebook) == n_actions
        assert int(consensus["kl-matched"].placement.max()) + 1 == n_actions
    assert len(consensus["one-hot"].metric.codebook) == n_actions
    assert int(consensus["kl"].placement.max()) + 1 == n_points
    np.testing.assert_allclose(consensus["wbc"].metric.codebook, consensus["energy"].metric.codebook)


def test_the_nulls_are_the_tasks_that_they_are_called() -> None:
    jobs = {name: study_job(name, "ippo", 0, Path(), name="x", overrides={}) for name in SETTINGS}
    assert NavigationConfig(**jobs["headings5"].config.env_kwargs) == NavigationConfig(**jobs["equal"].config.env_kwargs)
    assert jobs["turn90"].config.env_kwargs["turn"] == 90


def test_all_methods_get_the_same_draws_and_their_own_unit_of_the_coefficient() -> None:
    for trial in range(40):
        chosen, factor, annealed = draw(trial)
        assert draw(trial) == (chosen, factor, annealed)
        assert 1 / 30 <= factor <= 30
        for name, method in CONTESTANTS.items():
            found = overrides_of("equal", name, trial)
            coefficient = found.pop("consensus_coef", None)
            assert found == chosen
            assert (coefficient is None) == (method.unit is None)
            if method.unit is not None:
                value = float(coefficient.removeprefix("lin_")) if annealed else coefficient
                assert value == pytest.approx(method.unit * factor, rel=1e-2)
    seen = {name: {draw(trial)[0].get(name) for trial in range(1, 60)} for name in SPACE}
    assert seen == {name: set(values) for name, values in SPACE.items()}


def test_coefficients_are_forces_where_agents_have_few_places_in_common() -> None:
    assert set(FEW_COMMON_PLACES) == {"turn30", "turn45", "dynamics"}
    for name, method in CONTESTANTS.items():
        equal, turned = (overrides_of(setting, name, 5).get("consensus_coef") for setting in ("equal", "turn45"))
        assert turned == (pytest.approx(0.01 * equal, rel=1e-2) if method.placed else equal)


def test_search_and_test_go_on_where_they_stopped_and_the_best_is_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--settings", "turn45", "--methods", "wbc", "kl", "ippo", "--jobs", "1", "--eval-episodes", "10", "-n", "2400"]
    search = ["wbc-tuning", "--train", "--trials", "2", "--seeds", "1", "--out", str(tmp_path / "search"), *few]
    plots.main(search)
    assert "0 of 6 runs are finished" in capsys.readouterr().out
    plots.main(search)
    assert "6 of 6 runs are finished" in capsys.readouterr().out
    assert (tmp_path / "search/runs/turn45" / f"wbc-trial1-seed{FIRST_SEED}.npz").is_file()
    best = tmp_path / "search" / "tuned.yml"
    assert read_yaml(best)["turn45"].keys() == {"wbc", "kl", "ippo"}
    plots.main(["wbc-transport", "--train", "--seeds", "2", "--tuned", str(best), "--out", str(tmp_path / "test"), *few])
    printed = capsys.readouterr().out
    assert "**turn45**" in printed
    assert all(CONTESTANTS[name].label in printed for name in ("wbc", "kl", "ippo"))
    assert "greedy walker" in printed
    assert "not told apart" in printed or "ahead" in printed or "behind" in printed


def test_a_file_that_lacks_a_method_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tuned.yml").write_text("turn45: {ippo: {}}\n")
    with pytest.raises(SystemExit):
        plots.main(["wbc-transport", "--settings", "turn45", "--methods", "wbc", "--tuned", str(tmp_path / "tuned.yml")])
    assert "has no values of 'wbc' for 'turn45'" in capsys.readouterr().err


def test_methods_that_mean_nothing_in_a_setting_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plots.main(["wbc-transport", "--settings", "equal", "--methods", "matched", "--out", str(tmp_path)])
    assert "none of matched means anything of its own in 'equal'" in capsys.readouterr().err


def test_values_of_one_setting_are_tested_in_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tuned.yml").write_text("headings65: {ippo: {learning_rate: 0.004}}\n")
    options = ["wbc-transport", "--settings", "headings9", "--methods", "ippo", "--out", str(tmp_path), "-n", "2400"]
    with pytest.raises(SystemExit):
        plots.main([*options, "--values-of", "headings65"])
    assert "--values-of headings65 names hyperparameters of a file" in capsys.readouterr().err
    tuned = ["--tuned", str(tmp_path / "tuned.yml"), "--values-of", "headings65"]
    plots.main([*options, *tuned, "--train", "--seeds", "1", "--jobs", "1", "--eval-episodes", "10"])
    assert "--values-of headings65" in capsys.readouterr().out
    result = StudyResult.load(tmp_path / "runs/headings9/ippo-seed0.npz")
    assert result.entry["learning_rate"] == 0.004
    assert result.entry["env_kwargs"]["headings"] == 9


def test_a_search_keeps_what_its_file_has_of_others(tmp_path: Path) -> None:
    path = tmp_path / "tuned.yml"
    keep_best({"equal": {"kl": {"gamma": 0.9}, "ippo": {"gamma": 0.95}}}, path)
    keep_best({"sigma1": {"kl": {"gamma": 0.95}}}, path)
    keep_best({"equal": {"kl": {"gamma": 0.99}}, "turn45": {"wbc": {"gamma": 0.9}}}, path)
    assert read_yaml(path) == {
        "equal": {"kl": {"gamma": 0.99}, "ippo": {"gamma": 0.95}},
        "sigma1": {"kl": {"gamma": 0.95}},
        "turn45": {"wbc": {"gamma": 0.9}},
    }


@pytest.mark.parametrize("content", ["hello: world", "equal: [1]", "[1, 2]", "a: [", "1: {}", "\0"])
def test_a_search_refuses_a_file_of_something_else_before_it_trains(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tuned.yml").write_text(content)
    command = ["wbc-tuning", "--train", "--settings", "equal", "--methods", "ippo", "--trials", "1", "--seeds", "1"]
    with pytest.raises(SystemExit):
        plots.main([*command, "--out", str(tmp_path)])
    assert "tuned.yml" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "tuned.yml").read_text() == content


def test_coefficients_of_what_means_nothing_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plots.main(["wbc-coefficients", "--settings", "sigma1", "--methods", "one-hot", "--out", str(tmp_path)])
    assert "none of one-hot means anything of its own in 'sigma1'" in capsys.readouterr().err


def test_coefficients_differ_in_nothing_else_and_stand_beside_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [
        "--settings",
        "sigma0.3",
        "--methods",
        "kl",
        "energy",
        "--trial",
        "1",
        "--seeds",
        "2",
        "-n",
        "2400",
        "--out",
        str(tmp_path),
    ]
    command = ["wbc-coefficients", *few, "--jobs", "1", "--eval-episodes", "10"]
    with pytest.raises(SystemExit):
        plots.main(command)
    assert "no finished runs in" in capsys.readouterr().err
    plots.main([*command, "--train", "--tables", str(tmp_path / "t.md")])
    assert "0 of 22 runs are finished" in capsys.readouterr().out
    folder = tmp_path / "runs/trial1/sigma0.3"
    runs = {path.stem: CoefficientResult.load(path) for path in folder.glob("*.npz")}
    assert len(runs) == 2 * (1 + 2 * len(FACTORS))
    entries = {name: dict(run.entry) for name, run in runs.items() if name.startswith("kl")}
    found = sorted(float(entry.pop("consensus_coef").removeprefix("lin_")) for entry in entries.values())
    np.testing.assert_allclose(found, np.repeat([20.0 * factor for factor in FACTORS], 2))
    assert all(entry == entries["kl-1-seed1000"] for entry in entries.values())
    assert runs["ippo-seed1000"].entry["ent_coef"] == draw(1)[0]["ent_coef"]
    # After one update normals are nearly as narrow as they started.
    assert all(0.2 < float(run.deviation) < 0.4 for run in runs.values())
    text = (tmp_path / "t.md").read_text()
    ahead = [float((runs[f"kl-1-seed{s}"].rewards - runs[f"ippo-seed{s}"].rewards).mean()) for s in (1000, 1001)]
    assert f"{np.mean(ahead):+.3f}" in text
    apart = [runs[f"kl-1-seed{s}"].evaluation.mean() - runs[f"energy-1-seed{s}"].evaluation.mean() for s in (1000, 1001)]
    assert f"{np.mean(apart):+.3f}" in text.split("evaluation: reward")[1].split("KL, placed labels less energy distance")[1]
    assert f"{np.mean([runs[f'ippo-seed{s}'].deviation for s in (1000, 1001)]):.3f}" in text
    assert (tmp_path / "coefficients_trial1.png").is_file()
