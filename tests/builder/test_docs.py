"""Generated files match the code, and one command writes all of them."""

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
from wan_engine.settings.retired import RetiredSettings

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
    assert "\t$(BIN)/zensical build --strict --clean\n" in recipes["check"]


def test_stale_files_are_named_and_rewritten(pages: Path) -> None:
    page, hub = pages / "docs" / "settings.md", pages / ".runpod" / "hub.json"
    drawing = pages / "docs" / "line.svg"
    right = {path: path.read_text("utf-8") for path in (page, hub, drawing)}
    page.write_text(right[page].replace("| `WAN_MODEL` |", "| `WAN_MODELS` |"), "utf-8")
    hub.unlink()
    drawing.unlink()
    assert docs.stale(pages) == ["docs/settings.md", ".runpod/hub.json", "docs/line.svg"]
    docs.write(pages)
    assert docs.stale(pages) == []
    assert {path: path.read_text("utf-8") for path in right} == right


def test_a_check_writes_nothing() -> None:
    command = [sys.executable, "-m", "builder.docs", "--check"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_a_table_may_move_to_another_page(pages: Path) -> None:
    (pages / "docs" / "settings.md").unlink()
    with pytest.raises(ValueError, match="the table settings needs one place, and has 0"):
        docs.generated(pages)
    page = pages / "docs" / "variables.md"
    page.write_text("# Settings\n\n<!-- settings --><!-- /settings -->\nend\n", "utf-8")
    docs.write(pages)
    written = page.read_text("utf-8")
    assert written.startswith("# Settings\n\n<!-- settings -->\n## Model\n\n| variable |")
    assert written.endswith("\n<!-- /settings -->\nend\n")


def test_a_missing_mark_is_reported() -> None:
    with pytest.raises(ValueError, match="needs <!-- a --> and <!-- /a -->, once each"):
        docs.with_table("<!-- a --> text", "a", "x")


@pytest.mark.parametrize("name", docs.TABLES)
def test_a_table_has_the_same_cells_in_every_row(name: str) -> None:
    lines = [line for line in docs.TABLES[name]().splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_every_file_of_code_has_its_line() -> None:
    listed = docs.files_tables()
    for path in (*(ROOT / "wan_engine").rglob("*.py"), *(ROOT / "builder").rglob("*.py")):
        if path.name != "__init__.py" and path.parent.name != "versions":
            folder = path.parent.relative_to(ROOT).as_posix()
            assert f"| `{path.name}` |" in listed.partition(f"### {folder}\n")[2], path


def test_the_first_sentence_of_a_file_is_its_line() -> None:
    assert (
        docs.first_sentence('"""One line,\nand its end. More of it."""') == "One line, and its end."
    )
    assert (
        docs.first_sentence('"""`x.y`: a thing e.g. this\n\nMore."""') == "`x.y`: a thing e.g. this"
    )
    assert docs.first_sentence("import os") == ""


def test_a_table_has_one_row_for_each_item() -> None:
    rows = {name: len(render().splitlines()) - 2 for name, render in docs.TABLES.items()}
    del rows["files"]
    rows["settings"] = docs.settings_tables().count("\n| `")
    assert rows == {
        "tiers": len(docs.TIERS),
        "settings": len(described()) + len(RetiredSettings.model_fields),
        "models": len(CATALOG),
        "classifiers": len(CLASSIFIERS),
        "gpus": len(gpu_table.CARDS),
    }


def test_a_bar_in_a_cell_does_not_end_the_cell() -> None:
    assert docs.table(["a"], [["x|y"]]).splitlines()[-1] == r"| x\|y |"
