"""Hyperparameters are plain values: nothing in a file or on the command line is executed."""

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch as th
import yaml

from zoo.config.command import StoreAssignments, parse_value
from zoo.config.entries import HYPERPARAMS, merge, read_entry, split_entry
from zoo.config.registry import ALGOS


def _assignments(*values: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--params", nargs="+", action=StoreAssignments)
    parsed: dict[str, Any] = parser.parse_args(["--params", *values]).params
    return parsed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("64", 64),
        ("[64, 64]", [64, 64]),
        ("{'N': 5}", {"N": 5}),
        ("True", True),
        ("false", False),
        ("None", None),
        ("lin_0.5", "lin_0.5"),
        ("inf", math.inf),
        ("-.inf", -math.inf),
        (".inf", math.inf),
        ("torch.nn.ReLU", "torch.nn.ReLU"),
    ],
)
def test_command_line_values_are_literals_or_text(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["__import__('os').system('true')", "dict(a=1)", "[1, 2", "lambda x: x()"])
def test_code_on_the_command_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a plain value"):
        parse_value(text)


def test_dots_in_a_key_reach_into_nested_dictionaries() -> None:
    parsed = _assignments("policy_kwargs.net_arch:[32]", "policy_kwargs.ortho_init:False", "gamma:0.9")
    assert parsed == {"policy_kwargs": {"net_arch": [32], "ortho_init": False}, "gamma": 0.9}


def test_a_value_keeps_the_colons_after_the_first() -> None:
    assert _assignments("id:package:function") == {"id": "package:function"}


def test_an_assignment_without_a_colon_ends_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _assignments("gamma=0.9")
    assert "expected key:value" in capsys.readouterr().err


def test_merging_changes_neither_argument() -> None:
    base, changes = {"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}
    assert merge(base, changes) == {"a": {"b": 1, "c": 3}}
    assert base == {"a": {"b": 1, "c": 2}}
    assert changes == {"a": {"c": 3}}


@pytest.mark.parametrize("algo", sorted(ALGOS))
def test_every_algorithm_has_a_complete_file(algo: str) -> None:
    entries = yaml.safe_load((HYPERPARAMS / f"{algo}.yml").read_text(encoding="utf-8"))
    assert "default" in entries
    for env_id, entry in entries.items():
        for variants in ((), *((name,) for name in entry.get("variants", {}))):
            config = split_entry(read_entry(algo, env_id, variants=variants))
            assert config.n_timesteps > 0
            assert config.n_envs > 0


@pytest.mark.parametrize("algo", sorted(ALGOS))
def test_every_entry_says_where_it_comes_from(algo: str) -> None:
    lines = (HYPERPARAMS / f"{algo}.yml").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line and not line.startswith((" ", "#")):
            comment = itertools.takewhile(lambda text: text.startswith("#"), reversed(lines[:number]))
            assert any("Provenance:" in text for text in comment), f"{line} has no provenance above it"


def test_both_spellings_of_an_mpe_task_are_one_entry() -> None:
    assert read_entry("ippo", "mpe2/simple_spread_v3") == read_entry("ippo", "mpe2/simple_spread-v3")


def test_an_environment_without_an_entry_gets_the_default() -> None:
    assert read_entry("ippo", "CartPole-v1") == read_entry("ippo", "default")


def test_overrides_win_over_variants_and_variants_over_the_entry(tmp_path: Path) -> None:
    file = tmp_path / "some.yml"
    file.write_text("x-v0: {n_timesteps: 10, gamma: 0.1, lam: 1, variants: {fast: {gamma: 0.2, lam: 2}}}")
    entry = read_entry("any", "x-v0", variants=["fast"], overrides={"lam": 3}, path=file)
    assert entry == {"n_timesteps": 10, "gamma": 0.2, "lam": 3}
    with pytest.raises(ValueError, match=r"'slow' .* is unknown .*\['fast'\]"):
        read_entry("any", "x-v0", variants=["slow"], path=file)


def test_a_number_that_yaml_reads_as_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "some.yml"
    file.write_text("default: {n_timesteps: 10, policy_kwargs: {lr: 3e-4}}")
    with pytest.raises(ValueError, match=r"`policy_kwargs.lr` is the text '3e-4'.*3.0e-4"):
        read_entry("any", "x-v0", path=file)
    file.write_text("default: {n_timesteps: 10, alpha: inf}")
    with pytest.raises(ValueError, match=r"`alpha` is the text 'inf', because YAML wants a point before it: write .inf"):
        read_entry("any", "x-v0", path=file)
    file.write_text("default: {n_timesteps: 10, alpha: .inf}")
    assert read_entry("any", "x-v0", path=file)["alpha"] == math.inf


def test_a_file_that_would_build_objects_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "some.yml"
    file.write_text(f"default: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(ValueError, match="some"):
        read_entry("any", "x-v0", path=file)
    assert not (tmp_path / "made").exists()


def test_a_python_file_of_hyperparameters_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text("hyperparams = {}")
    with pytest.raises(ValueError, match="YAML"):
        read_entry("any", "x-v0", path=file)


def test_policy_keywords_name_classes_of_trusted_packages_only() -> None:
    entry = {"n_timesteps": 1, "policy_kwargs": {"activation_fn": "torch.nn.ReLU", "net_arch": [8]}}
    assert split_entry(entry).model_kwargs["policy_kwargs"] == {"activation_fn": th.nn.ReLU, "net_arch": [8]}
    with pytest.raises(ValueError, match="refused"):
        split_entry({"n_timesteps": 1, "policy_kwargs": {"activation_fn": "os.system"}})


@pytest.mark.parametrize("name", ["normalize", "policy_kwargs", "env_kwargs"])
def test_text_where_a_dictionary_belongs_is_refused_instead_of_evaluated(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a dictionary"):
        split_entry({"n_timesteps": 1, name: "dict(norm_obs=True)"})


def test_the_normaliser_uses_the_discount_of_the_learner() -> None:
    assert split_entry({"n_timesteps": 1, "normalize": True, "gamma": 0.9}).normalize == {"gamma": 0.9}
    assert split_entry({"n_timesteps": 1, "normalize": False, "gamma": 0.9}).normalize is None
    assert split_entry({"n_timesteps": 1}).normalize is None
