"""The wheel: all of the engine and nothing else, and it works outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from email.parser import HeaderParser
from importlib.metadata import EntryPoint
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from wan_engine.settings import VERSION

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
INFO = f"wan_engine-{VERSION}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, without files of an earlier build."""
    source = tmp_path_factory.mktemp("source")
    for path in ("pyproject.toml", "README.md", "LICENSE", *map(str, ROOT.glob("requirements*"))):
        shutil.copy(ROOT / path, source)
    for folder in ("wan_engine", "builder", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    program = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-c", program, str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def test_the_wheel_has_every_file_of_the_engine_and_nothing_else(wheel: Path) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "wan_engine").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }
    with ZipFile(wheel) as file:
        names = {name for name in file.namelist() if not name.startswith(f"{INFO}/")}
    assert names == wanted
    assert "wan_engine/py.typed" in names and "wan_engine/toy/wan-tiny.safetensors" in names


def test_the_wheel_states_version_licence_and_requirements(installed: Path) -> None:
    said = HeaderParser().parsestr((installed / INFO / "METADATA").read_text("utf-8"))
    assert (said["Name"], said["Version"]) == ("wan-engine", VERSION)
    assert said["License-Expression"] == "Apache-2.0" and said["Requires-Python"] == ">=3.11"
    needed = [Requirement(line) for line in said.get_all("Requires-Dist", [])]
    optional = [one for one in needed if "extra ==" in str(one.marker)]
    plain = {str(one) for one in needed if one not in optional}
    assert plain == {str(one) for one in pins("requirements.txt")}
    extra = {f"{one.name}{one.specifier}" for one in optional}
    assert extra == {str(one) for one in pins("requirements-extra.txt")}


def pins(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_command_is_installed(installed: Path) -> None:
    assert "[console_scripts]" in (installed / INFO / "entry_points.txt").read_text("utf-8")
    for name, value in PROJECT["project"]["scripts"].items():
        assert callable(EntryPoint(name, value, "console_scripts").load())


def test_the_version_is_written_in_one_place() -> None:
    assert "version" not in PROJECT["project"] and "version" in PROJECT["project"]["dynamic"]


def test_the_tests_use_the_build_tools_of_an_installation() -> None:
    [backend] = PROJECT["build-system"]["requires"]
    assert backend in (ROOT / "tests" / "requirements.txt").read_text("utf-8").splitlines()


def test_it_runs_in_an_empty_folder_far_from_the_repository(
    installed: Path, tmp_path: Path
) -> None:
    program = (
        "import wan_engine; from wan_engine import Engine, toy\n"
        "from wan_engine.toy.checkpoints import WEIGHTS\n"
        "print(wan_engine.__file__, WEIGHTS.is_file())"
    )
    shown = [
        subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.strip()
        for arguments in (["-c", program], ["-m", "wan_engine", "--version"])
    ]
    assert shown == [f"{installed / 'wan_engine' / '__init__.py'} True", VERSION]
