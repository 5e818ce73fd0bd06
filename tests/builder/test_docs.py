"""Generated files: they are what the code makes, and one command writes all of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder import docs, gpu_table
from wan_engine.catalog import CATALOG, CLASSIFIERS
from wan_engine.settings import described

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A copy of the files that have generated parts."""
    shutil.copy(ROOT / "README.md", tmp_path)
    for name in ("docs", ".runpod"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def test_make_docs_leaves_no_difference() -> None:
    assert docs.stale() == [], "run `make docs`, which writes them"


def test_make_docs_is_the_command_that_writes_and_make_check_the_one_that_compares() -> None:
    rules = (ROOT / "Makefile").read_text("utf-8")
    target = re.compile(r"^(docs|check):.*\n((?:\t.*\n)+)", re.MULTILINE)
    recipes = {found[1]: found[2] for found in target.finditer(rules)}
    assert recipes["docs"] == "\t$(BIN)/python -m builder.docs\n"
    assert "\t$(BIN)/python -m builder.docs --check\n" in recipes["check"]


def test_stale_files_are_named_and_written_anew(pages: Path) -> None:
    readme, hub = pages / "README.md", pages / ".runpod" / "hub.json"
    right = {path: path.read_text("utf-8") for path in (readme, hub)}
    readme.write_text(right[readme].replace("| `WAN_MODEL` |", "| `WAN_MODELS` |"), "utf-8")
    hub.unlink()
    assert docs.stale(pages) == ["README.md", ".runpod/hub.json"]
    docs.write(pages)
    assert docs.stale(pages) == []
    assert {path: path.read_text("utf-8") for path in right} == right


def test_a_check_writes_nothing() -> None:
    command = [sys.executable, "-m", "builder.docs", "--check"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_a_table_may_move_to_a_page_of_its_own(pages: Path) -> None:
    readme, page = pages / "README.md", pages / "docs" / "settings.md"
    text = readme.read_text("utf-8")
    begun, ended = text.index("<!-- settings -->"), text.index("<!-- /settings -->")
    readme.write_text(text[:begun] + text[ended + len("<!-- /settings -->") :], "utf-8")
    with pytest.raises(ValueError, match="the table settings needs one place, and has 0"):
        docs.generated(pages)
    page.write_text("# Settings\n\n<!-- settings --><!-- /settings -->\nend\n", "utf-8")
    docs.write(pages)
    assert page.read_text("utf-8").startswith("# Settings\n\n<!-- settings -->\n| variable |")
    assert page.read_text("utf-8").endswith("\n<!-- /settings -->\nend\n")


def test_a_mark_that_is_missing_is_told() -> None:
    with pytest.raises(ValueError, match="needs <!-- a --> and <!-- /a -->, once each"):
        docs.with_table("<!-- a --> text", "a", "x")


@pytest.mark.parametrize("name", docs.TABLES)
def test_a_table_has_the_same_cells_in_every_row(name: str) -> None:
    lines = docs.TABLES[name]().splitlines()
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_a_table_has_a_row_for_each_of_its_things() -> None:
    rows = {name: len(render().splitlines()) - 2 for name, render in docs.TABLES.items()}
    assert rows == {
        "settings": len(described()),
        "models": len(CATALOG),
        "classifiers": len(CLASSIFIERS),
        "gpus": len(gpu_table.CARDS),
    }


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert docs.table(["a"], [["x|y"]]).splitlines()[-1] == r"| x\|y |"
