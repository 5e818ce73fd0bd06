"""The GitHub workflows: pinned, with few rights, and with commands that exist. `make check` runs
their linters."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from wan_engine.settings import described

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.iterdir())
PINNED = re.compile(r"uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def workflow(name: str) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load((FOLDER / name).read_text("utf-8"))
    return found


def events(found: dict[Any, Any]) -> set[str]:
    return set(found[True])  # YAML 1.1 reads `on` as true


def commands(job: dict[Any, Any]) -> list[list[str]]:
    """The commands of all steps."""
    scripts = [step["run"].replace("\\\n", " ") for step in job["steps"] if "run" in step]
    lines = [line for script in scripts for line in script.splitlines() if line.strip()]
    return [shlex.split(line) for line in lines]


@every_file
def test_every_action_is_pinned_by_commit_with_a_version_comment(path: Path) -> None:
    uses = [line for line in path.read_text("utf-8").splitlines() if "uses:" in line]
    assert uses and [line for line in uses if not PINNED.search(line)] == []


@every_file
def test_rights_and_time_are_limited(path: Path) -> None:
    found = workflow(path.name)
    assert found["permissions"] == {"contents": "read"}
    for job in found["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert set(job.get("permissions", {})) <= {"contents", "packages"}


def test_every_push_and_pull_request_is_checked_with_commands_that_exist() -> None:
    found = workflow("check.yaml")
    assert events(found) == {"push", "pull_request"}
    ran = commands(found["jobs"]["check"])
    assert ran == [
        [".ci/run", "packages"],
        ["make", "check"],
        ["make", "test"],
        ["make", "test-system"],
    ]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {line[1] for line in ran if line[0] == "make"} <= set(targets)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_every_python_version_that_the_readme_names_runs_the_tests() -> None:
    jobs = workflow("check.yaml")["jobs"]
    oldest = [
        step["with"]["python-version"]
        for step in jobs["check"]["steps"]
        if "setup-python" in step.get("uses", "")
    ]
    newer = jobs["newer-python"]
    assert commands(newer) == [["make", "test"]]
    versions = [*oldest, *newer["strategy"]["matrix"]["python"]]
    assert versions == [f"3.{minor}" for minor in range(11, 15)]
    named = re.search(r"Python (3\.\d+) to (3\.\d+)", (ROOT / "README.md").read_text("utf-8"))
    assert named is not None and named.groups() == (versions[0], versions[-1])
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert re.findall(r"Language :: Python :: (3\.\d+)", project) == versions


def test_a_release_is_pushed_only_after_the_image_has_rendered() -> None:
    found = workflow("image.yaml")
    assert found[True] == {"release": {"types": ["published"]}}
    docker = [line[1:] for line in commands(found["jobs"]["image"]) if line[0] == "docker"]
    order = [line[0] for line in docker]
    assert order.index("build") < order.index("run") < order.index("login") < order.index("push")
    [smoke] = [line for line in docker if line[0] == "run"]
    assert smoke[-2:] == ["python", "handler.py"]
    assert smoke[smoke.index("--network") + 1] == "none"
    names = {smoke[at + 1].partition("=")[0] for at, word in enumerate(smoke) if word == "--env"}
    known = {row.variable for row in described()}
    assert names == {"WAN_MODEL", "WAN_SAFETY", "WAN_COMPILE"} <= known
    assert "WAN_COMPILE=required" in smoke  # like real models; it fails if the image cannot compile
    assert ROOT.joinpath("handler.py").is_file() and ROOT.joinpath("test_input.json").is_file()
