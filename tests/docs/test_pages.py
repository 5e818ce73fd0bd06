"""Every page is reachable, every link has a target, and every name on a page exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from builder import drawings
from tests.docs.pages import PAGES, ROOT, anchors, blocks, links, name, prose
from wan_engine.catalog import CATALOG
from wan_engine.gateway.doors.dashscope import parameters
from wan_engine.settings import Settings, env_name

README = ROOT / "README.md"
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=name)
MOST_LINES = 180
NOT_SETTINGS = {"WAN_MODLE"}


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= MOST_LINES


def in_navigation(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in in_navigation(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = in_navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("start", ["README.md", "docs/index.md"])
def test_every_page_is_reached_by_links(start: str) -> None:
    reached, todo = set(), [ROOT / start]
    while todo:
        page = todo.pop()
        reached.add(page)
        near = ((page.parent / link.partition("#")[0]).resolve() for link in links(page))
        todo += [path for path in near if path.suffix == ".md" and path not in reached]
    others = {page for page in PAGES if page.parent == ROOT / "docs" and page.name != "index.md"}
    assert others <= reached


@EVERY_PAGE
def test_every_link_has_a_target(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{name(page)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{name(page)} links to {link}"


@EVERY_PAGE
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    known = {env_name(field) for field in Settings.model_fields}
    named = set(re.findall(r"\b(?:WAN|BUCKET)_[A-Z0-9_]*[A-Z0-9]\b", page.read_text("utf-8")))
    assert named - known - NOT_SETTINGS == set()


@EVERY_PAGE
def test_every_model_that_a_page_names_is_in_the_catalogue(page: Path) -> None:
    named = set(re.findall(r"\bwan2\.\d-[a-z0-9-]*[a-z0-9]|\bwan-tiny\b", prose(page)))
    assert named <= {*CATALOG, *parameters.MODELS}


@EVERY_PAGE
def test_every_file_of_ours_that_a_page_names_exists(page: Path) -> None:
    for path in re.findall(r"`((?:[\w.]+/)+[\w.]*\w\.(?:py|yaml|txt))(?:::\w+)?`", prose(page)):
        places = (ROOT, ROOT / "wan_engine", ROOT / "wan_engine" / "gateway")
        assert any((place / path).exists() for place in places), f"{name(page)} names {path}"


@EVERY_PAGE
def test_every_json_block_is_valid(page: Path) -> None:
    for block in blocks(page, "json"):
        json.loads(block)


@EVERY_PAGE
def test_every_python_example_runs(page: Path) -> None:
    """`tests/test_handler_process.py` runs the one of the README and that with a `Control`."""
    ran = (*blocks(README, "python"), blocks(ROOT / "docs" / "command-line.md", "python")[-1])
    assert len(ran) == 2 and all(block in ran for block in blocks(page, "python"))


@pytest.mark.parametrize(
    ("rows", "folder"),
    [(drawings.LINE, "wan_engine"), (drawings.GATEWAY, "wan_engine/gateway")],
    ids=["line", "gateway"],
)
def test_every_file_in_a_drawing_exists(rows: tuple[drawings.Row, ...], folder: str) -> None:
    for box in (box for row in rows for box in row.boxes if box.file != "Engine.generate"):
        places = (ROOT / folder / box.file, ROOT / box.file)
        assert any(place.exists() for place in places), box.file
