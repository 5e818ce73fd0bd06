"""The structure of the code: layers of all top folders, light imports, public names."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import wan_engine

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wan_engine"

MOST_UNITS = 26
"""With more units than this, the package is hard to find your way in."""

LAYERS = {
    "errors": 0,
    "settings": 1,
    "control": 1,
    "schema": 1,
    "catalog": 2,
    "networks": 2,
    "runtime": 3,
    "plan": 3,
    "toy": 4,
    "weights": 5,
    "media": 5,
    "choice": 6,
    "storage": 6,
    "safety": 6,
    "prompts": 6,
    "families": 7,
    "prepare": 8,
    "pool": 8,
    "render": 8,
    "engine": 9,
    "__init__": 10,
    "checks": 10,
    "worker": 11,
    "gateway": 11,
    "cli": 12,
    "__main__": 13,
    # beside the package
    "handler": 14,
    "builder": 14,
    "benchmarks": 15,
    "tests": 16,
}
"""A unit may import from lower layers only. A unit is a module or folder of the package, or a top
file or folder. So neither the package nor the handler imports the builder, which the image of a
worker does not need, and only tests import tests."""

HEAVIES = ("wan_engine.families.", "wan_engine.networks.")
HEAVY = ("torch", "diffusers", "transformers", "boto3", "runpod")


# --- reading the source --------------------------------------------------------------------------


def module_name(path: Path) -> str:
    """The module of a file: `media/fetch.py` is `wan_engine.media.fetch`, `media/__init__.py` is
    `wan_engine.media`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(folder: str) -> dict[str, Path]:
    return {module_name(path): path for path in sorted((ROOT / folder).rglob("*.py"))}


MODULES = modules_of("wan_engine")
BESIDE = {"handler": ROOT / "handler.py", **modules_of("builder"), **modules_of("benchmarks")}
ALL = MODULES | BESIDE
TARGETS = ALL.keys() | modules_of("tests").keys()


def unit(module: str) -> str:
    """The part of a module's name that has a layer."""
    top, *rest = module.split(".")
    if top != "wan_engine":
        return top
    return rest[0] if rest else "__init__"


def nodes(tree: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    """All nodes of `tree`, or those that run on import: no functions and no TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from nodes(node, at_import=at_import)


def imported(node: ast.AST) -> Iterator[str]:
    """The modules of this repository that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names if name.name in TARGETS)
    elif isinstance(node, ast.ImportFrom):
        for name in node.names:
            inner = f"{node.module}.{name.name}"
            found = inner if inner in TARGETS else node.module
            if found in TARGETS:
                yield found


@cache
def edges(*, at_import: bool) -> frozenset[tuple[str, str]]:
    """The imports of each module, in all of its code or at import time only."""
    return frozenset(
        (module, target)
        for module, path in ALL.items()
        for node in nodes(ast.parse(path.read_text("utf-8")), at_import=at_import)
        for target in imported(node)
        if target != module
    )


# --- layers --------------------------------------------------------------------------------------


def test_every_unit_has_a_layer_and_every_layer_its_unit() -> None:
    beside = {path.stem if path.parent == ROOT else path.parent.name for path in tops()}
    units = {unit(module) for module in MODULES}
    assert units | beside - {"wan_engine"} == set(LAYERS)


def tops() -> list[Path]:
    """The top Python files, and the top folders with Python files."""
    return [*ROOT.glob("*.py"), *ROOT.glob("[!.]*/*.py")]


def test_the_package_has_few_units() -> None:
    assert len({unit(module) for module in MODULES}) <= MOST_UNITS


def test_imports_point_down() -> None:
    upwards = {
        (source, target)
        for source, target in edges(at_import=False)
        if unit(source) != unit(target) and LAYERS[unit(source)] <= LAYERS[unit(target)]
    }
    assert upwards == set()


def test_neither_the_package_nor_the_handler_imports_the_builder_or_benchmarks() -> None:
    others = {
        (source, target)
        for source, target in edges(at_import=False)
        if unit(source) not in ("builder", "benchmarks")
        if unit(target) in ("builder", "benchmarks", "tests")
    }
    assert others == set()


def test_no_folder_of_the_gateway_imports_one_that_imports_it() -> None:
    """Its folders and the files beside them: `jobs` imports `job`, and `app` imports all of
    them."""
    rooms: dict[str, set[str]] = {}
    for module, target in edges(at_import=False):
        if unit(module) == unit(target) == "gateway":
            room, needed = (name.split(".")[2:3] or ["__init__"] for name in (module, target))
            rooms.setdefault(room[0], set()).update({needed[0]} - {room[0]})
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as error:
        pytest.fail(" needs ".join(reversed(error.args[1])))
    assert {"doors", "jobs", "http", "backends", "playground"} <= rooms["app"]


def test_the_search_for_imports_finds_them() -> None:
    found = edges(at_import=False)
    assert ("wan_engine", "wan_engine.engine") in found
    assert ("wan_engine.pool", "wan_engine.weights") in found
    assert ("wan_engine.media.video", "wan_engine.media.ffmpeg") in found
    assert ("handler", "wan_engine.settings.environment") in found
    assert ("builder.docs", "wan_engine.catalog") in found
    assert ("wan_engine.toy", "wan_engine.toy.cache") in found
    assert ("wan_engine.pool", "wan_engine.families.base") in found
    assert ("wan_engine.pool", "wan_engine.families.base") not in edges(at_import=True)


def test_imports_use_the_whole_path() -> None:
    others = [
        f"{module} line {node.lineno}"
        for module, path in ALL.items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.level or node.names[0].name == "*")
    ]
    assert others == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in ALL}
    for module, target in edges(at_import=True):
        graph[module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


# --- cost of imports -----------------------------------------------------------------------------


def run(program: str) -> str:
    """The output of a new interpreter, which keeps its compiled files."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_but_families_and_networks_can_be_imported_without_the_heavy_libraries() -> None:
    light = [module for module in MODULES if not module.startswith(HEAVIES)]
    program = f"""
import importlib, sys
for name in {HEAVY!r}:
    sys.modules[name] = None
for name in {light!r}:
    importlib.import_module(name)
print("imported")
"""
    assert run(program) == "imported"


def test_importing_the_package_loads_none_of_the_heavy_libraries() -> None:
    loaded = f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert run(f"import sys, wan_engine; {loaded}") == ""


def test_importing_the_package_takes_less_than_a_second_of_cpu_time() -> None:
    program = "import time; begun = time.process_time(); import wan_engine; "
    program += "print(time.process_time() - begun)"
    # The first import may compile. Half a second on a busy machine; torch alone takes three.
    assert any(float(run(program)) < 1 for _ in range(8))


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", wan_engine.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(wan_engine, name) is not None


def test_public_names_are_sorted_and_unique() -> None:
    assert list(wan_engine.__all__) == sorted(set(wan_engine.__all__))


def test_every_module_has_a_docstring() -> None:
    written = {name: path.read_text("utf-8") for name, path in ALL.items()}
    silent = [name for name, text in written.items() if text and not docstring(text)]
    assert silent == []


def docstring(source: str) -> str | None:
    return ast.get_docstring(ast.parse(source))
