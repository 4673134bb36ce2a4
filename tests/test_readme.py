"""What the README and the manual print runs: every Python block, in order, one namespace for each file."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
# A block whose line above says so is an excerpt; everything else must run.
BLOCK = re.compile(r"(?P<excerpt><!-- not run: [^\n]* -->\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
BUDGET = re.compile(r"\.learn\((?:total_timesteps=)?[\d_]+")
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILES = [path for path in FILES if "_build" not in path.parts]


def blocks(path: Path) -> list[str]:
    """Python blocks of a file that are to be run."""
    return [match["code"] for match in BLOCK.finditer(path.read_text(encoding="utf-8")) if not match["excerpt"]]


def run(codes: list[str], source: str) -> dict[str, Any]:
    """Run blocks one after the other, as a reader would."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(codes):
        exec(compile(code, f"{source}, block {number + 1}", "exec"), namespace)
    return namespace


def test_the_readmes_snippet_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    namespace = run(blocks(ROOT / "README.md"), "README.md")
    assert time.process_time() - start < 60
    assert namespace["model"].num_timesteps >= 60_000
    assert (tmp_path / "wbc_navigation.zip").is_file()


# The page on saving shows what a schedule that JSON cannot hold is told.
@pytest.mark.filterwarnings("ignore:.*JSON cannot hold learning_rate")
@pytest.mark.parametrize("path", [path for path in FILES[1:] if blocks(path)], ids=lambda path: path.stem)
def test_the_manuals_snippets_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The budgets that are printed train something; a tenth of a second of training shows that the calls are right.
    run([BUDGET.sub(".learn(2_000", code) for code in blocks(path)], path.name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_links_and_pictures_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{path.name} links to {target}, which does not exist"


def test_the_makefile_has_the_targets_that_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named >= {"train", "test"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_citation_is_of_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{citation["version"]}"' in project


def test_every_constraint_names_one_version_and_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 100
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin), pin
