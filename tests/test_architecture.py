"""The shape of the package: layers, light imports, public names, and the README's tables.

`python tests/test_architecture.py` writes those tables into README.md.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # where this file is run as a script
    sys.path.insert(0, str(ROOT))

import wan_engine  # noqa: E402
from builder import gpu_table  # noqa: E402
from wan_engine.catalog import CATALOG, CLASSIFIERS  # noqa: E402
from wan_engine.runtime.recipes import least_gb  # noqa: E402
from wan_engine.settings import described  # noqa: E402

PACKAGE = ROOT / "wan_engine"
README = ROOT / "README.md"

LAYERS = {
    "errors": 0,
    "settings": 1,
    "control": 1,
    "schema": 1,
    "pricing": 1,
    "catalog": 2,
    "logs": 2,
    "plan": 3,
    "runtime": 3,
    "weights": 4,
    "storage": 5,
    "media": 5,
    "safety": 5,
    "prompts": 5,
    "families": 6,
    "pool": 7,
    "render": 7,
    "engine": 8,
    "__init__": 9,
    "checks": 9,
    "worker": 10,
    "gateway": 10,
    "cli": 11,
    "__main__": 12,
}
"""A unit, which is a module or a folder of the package, may import from lower layers only."""

HEAVY = ("torch", "diffusers", "transformers", "boto3", "runpod")
NEEDS_TORCH = (
    "wan_engine.families.attention8",
    "wan_engine.families.base",
    "wan_engine.families.continuation",
    "wan_engine.families.convolution",
    "wan_engine.families.first_frames",
    "wan_engine.families.float8",
    "wan_engine.families.i2v",
    "wan_engine.families.lora",
    "wan_engine.families.placement",
    "wan_engine.families.prompt_embeddings",
)


# --- reading the source --------------------------------------------------------------------------


def module_name(path: Path) -> str:
    """`media/fetch.py` is `wan_engine.media.fetch`, `media/__init__.py` is `wan_engine.media`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def unit(module: str) -> str:
    """The part of a module's name that has a layer."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def nodes(tree: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    """All of `tree`, or what runs when the module is imported: no functions, no TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from nodes(node, at_import=at_import)


def imported(node: ast.AST) -> Iterator[str]:
    """The modules of the package that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names if name.name in MODULES)
    elif isinstance(node, ast.ImportFrom):
        for name in node.names:
            inner = f"{node.module}.{name.name}"
            found = inner if inner in MODULES else node.module
            if found in MODULES:
                yield found


@cache
def edges(*, at_import: bool) -> frozenset[tuple[str, str]]:
    """Which module of the package imports which, in all of its code or at import time only."""
    return frozenset(
        (module, target)
        for module, path in MODULES.items()
        for node in nodes(ast.parse(path.read_text("utf-8")), at_import=at_import)
        for target in imported(node)
        if target != module
    )


# --- layers --------------------------------------------------------------------------------------


def test_every_module_has_a_layer() -> None:
    assert sorted({unit(module) for module in MODULES} - set(LAYERS)) == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    upwards = [
        f"{module} imports {target}"
        for source, target in sorted(edges(at_import=False))
        if source == module and unit(module) != unit(target)
        if LAYERS[unit(module)] <= LAYERS[unit(target)]
    ]
    assert upwards == []


def test_the_search_for_imports_finds_them() -> None:
    found = edges(at_import=False)
    assert ("wan_engine", "wan_engine.engine") in found
    assert ("wan_engine.pool", "wan_engine.weights") in found
    assert ("wan_engine.media.video", "wan_engine.media.ffmpeg") in found
    assert ("wan_engine.pool", "wan_engine.families.base") in found
    assert ("wan_engine.pool", "wan_engine.families.base") not in edges(at_import=True)


def test_imports_name_the_whole_path_and_what_they_take() -> None:
    others = [
        f"{module} line {node.lineno}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.level or node.names[0].name == "*")
    ]
    assert others == []


def test_no_module_needs_itself_to_be_imported() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, target in edges(at_import=True):
        graph[module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


# --- what an import costs ------------------------------------------------------------------------


def run(program: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_but_the_families_can_be_imported_without_the_heavy_libraries() -> None:
    light = [module for module in MODULES if module not in NEEDS_TORCH]
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


def test_importing_the_package_takes_less_than_half_a_second_of_the_cpu() -> None:
    program = "import time; begun = time.process_time(); import wan_engine; "
    program += "print(time.process_time() - begun)"
    # A machine that is busy makes some turns slow, but none fast.
    assert any(float(run(program)) < 0.5 for _ in range(8))


def test_the_modules_that_may_need_torch_exist() -> None:
    assert sorted(set(NEEDS_TORCH) - set(MODULES)) == []


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", wan_engine.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(wan_engine, name) is not None


def test_public_names_are_sorted_and_unique() -> None:
    assert list(wan_engine.__all__) == sorted(set(wan_engine.__all__))


@pytest.mark.parametrize("module", [name for name in MODULES if MODULES[name].stat().st_size])
def test_every_module_says_what_it_owns(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text("utf-8")))


# --- the README ----------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [
        head,
        ["---"] * len(head),
        *([cell.replace("|", r"\|") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings_table() -> str:
    return table(
        ["variable", "default", "meaning"],
        [
            [f"`{row.variable}`", f"`{row.default}`" if row.default else "", row.meaning]
            for row in described()
        ],
    )


def models_table() -> str:
    return table(
        ["name", "title", "fps", "max frames", "steps", "download GB", "GPU GB", "licence"],
        [
            [
                f"`{row.name}`",
                row.title,
                *(f"{number:g}" for number in (row.fps, row.max_frames, row.steps)),
                *(f"{number:g}" for number in (row.download_gb, round(least_gb(row), 1))),
                row.licence,
            ]
            for row in CATALOG.values()
        ],
    )


def classifiers_table() -> str:
    return table(
        ["name", "title", "flagged", "download GB", "licence"],
        [
            [
                f"`{row.name}`",
                row.title,
                ", ".join(f"{label} from {least:g}" for label, least in row.flagged.items())
                or "see below",
                f"{row.download_gb:g}",
                row.licence,
            ]
            for row in CLASSIFIERS.values()
        ],
    )


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "models": models_table,
    "classifiers": classifiers_table,
    "gpus": gpu_table.table,
}


def between_markers(text: str, name: str) -> tuple[str, str, str]:
    """What is before, between and after the markers of a table, markers not in the middle."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    assert (text.count(start), text.count(end)) == (1, 1), f"README.md needs {start} and {end}"
    before, _, rest = text.partition(start)
    middle, _, after = rest.partition(end)
    return before + start, middle, end + after


def rewritten(text: str) -> str:
    """The README with the tables as they should be."""
    for name, render in TABLES.items():
        before, _, after = between_markers(text, name)
        text = f"{before}\n{render()}\n{after}"
    return text


@pytest.mark.parametrize("name", TABLES)
def test_the_readme_has_the_table_that_the_code_makes(name: str) -> None:
    expected = TABLES[name]()
    written = between_markers(README.read_text("utf-8"), name)[1].strip() if README.exists() else ""
    advice = "run `python tests/test_architecture.py`, which writes this table into README.md:"
    assert written == expected, f"{advice}\n\n{expected}"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_same_cells_in_every_row(name: str) -> None:
    lines = TABLES[name]().splitlines()
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_a_table_has_a_row_for_each_of_its_things() -> None:
    rows = {name: len(render().splitlines()) - 2 for name, render in TABLES.items()}
    assert rows == {
        "settings": len(described()),
        "models": len(CATALOG),
        "classifiers": len(CLASSIFIERS),
        "gpus": len(gpu_table.CARDS),
    }


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert table(["a"], [["x|y"]]).splitlines()[-1] == r"| x\|y |"


def test_rewriting_the_readme_changes_only_what_is_between_the_markers() -> None:
    text = "a\n<!-- models -->\nold\n<!-- /models -->\nb\n<!-- settings --><!-- /settings -->\nc\n"
    text += "<!-- gpus --><!-- /gpus -->\n<!-- classifiers --><!-- /classifiers -->"
    done = rewritten(text)
    assert done.startswith(f"a\n<!-- models -->\n{models_table()}\n<!-- /models -->\nb\n")
    assert f"b\n<!-- settings -->\n{settings_table()}\n<!-- /settings -->\nc\n" in done
    assert done.endswith(f"<!-- classifiers -->\n{classifiers_table()}\n<!-- /classifiers -->")
    assert rewritten(done) == done


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text("utf-8")), "utf-8")
