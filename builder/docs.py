"""Writes every generated file: tables and drawings of the pages, and the files of Runpod's Hub
(`make docs`).

python -m builder.docs          writes them
python -m builder.docs --check  lists outdated files, with exit code 1; writes nothing

A table is between `<!-- name -->` and `<!-- /name -->`, once, in README.md or a page of `docs/`.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic_settings import BaseSettings

from builder import drawings, gpu_table, runpod_hub
from wan_engine.catalog import CATALOG, CLASSIFIERS
from wan_engine.runtime.recipes import least_gb
from wan_engine.settings import Described, described, env_name
from wan_engine.settings.gateway import GatewaySettings
from wan_engine.settings.gpu import GpuSettings
from wan_engine.settings.jobs import JobSettings
from wan_engine.settings.media import InputSettings, OutputSettings, ShapeSettings
from wan_engine.settings.model import ModelSettings
from wan_engine.settings.prompts import PromptSettings, SafetySettings
from wan_engine.settings.retired import RetiredSettings
from wan_engine.settings.storage import StorageSettings

ROOT = Path(__file__).parents[1]

TIERS = {
    "wan2.2-i2v-a14b-4step": "Four steps",
    "wan2.2-i2v-a14b": "40 steps with CFG",
    "wan2.2-ti2v-5b": "Small: 5 billion weights",
}
"""The models of the README, and what each is for."""

TOPICS: Mapping[str, type[BaseSettings]] = {
    "Model": ModelSettings,
    "GPU": GpuSettings,
    "Length and shape": ShapeSettings,
    "Prompts": PromptSettings,
    "Safety": SafetySettings,
    "What a request may bring": InputSettings,
    "The clip": OutputSettings,
    "Storage": StorageSettings,
    "Jobs and logs": JobSettings,
    "Gateway": GatewaySettings,
}
"""The titles of the settings' tables."""

_CODE = ("handler.py", "wan_engine", "builder", "benchmarks")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. Bars in a cell are escaped."""
    lines = [
        head,
        ["---"] * len(head),
        *([cell.replace("|", r"\|") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings_tables() -> str:
    """A table for each topic, in the order of the fields, and one of deprecated settings."""
    rows = {row.variable: row for row in described()}
    retired = [
        Described(env_name(name), str(field.default or ""), field.description or "")
        for name, field in RetiredSettings.model_fields.items()
    ]
    tables = [
        f"## {title}\n\n{settings_table([rows[env_name(field)] for field in topic.model_fields])}"
        for title, topic in TOPICS.items()
    ]
    still = "## Deprecated\n\nThese still work, and log a warning at the start."
    return "\n\n".join([*tables, still, settings_table(retired)])


def settings_table(rows: Sequence[Described]) -> str:
    return table(
        ["variable", "default", "meaning"],
        [
            [f"`{row.variable}`", f"`{row.default}`" if row.default else "", row.meaning]
            for row in rows
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


def tiers_table() -> str:
    return table(
        ["model", "what it is", "download", "GPU memory (estimated)"],
        [
            [f"`{name}`", use, f"{row.download_gb:g} GB", f"from {least_gb(row):.0f} GB"]
            for name, use in TIERS.items()
            for row in [CATALOG[name]]
        ],
    )


def files_tables() -> str:
    """A table per folder of code: each file with the first sentence of its docstring."""
    files = [ROOT / _CODE[0], *(path for top in _CODE[1:] for path in (ROOT / top).rglob("*.py"))]
    folders: dict[str, list[list[str]]] = {}
    for path in sorted(
        files, key=lambda path: (_CODE.index(path.relative_to(ROOT).parts[0]), path)
    ):
        if sentence := first_sentence(path.read_text("utf-8")):
            folder = path.parent.relative_to(ROOT).as_posix()
            folders.setdefault(folder, []).append([f"`{path.name}`", sentence])
    folders.pop("wan_engine/gateway/jobs/migrations/versions", None)  # one file per migration
    return "\n\n".join(
        f"### {'The top' if folder == '.' else folder}\n\n{table(['file', 'what it does'], rows)}"
        for folder, rows in folders.items()
    )


def first_sentence(source: str) -> str:
    """The first sentence of a module's docstring, as one line."""
    text = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
    return re.split(r"(?<=[.]) +(?=[A-Z`])", " ".join(text.split()))[0]


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


TABLES: Mapping[str, Callable[[], str]] = {
    "settings": settings_tables,
    "models": models_table,
    "tiers": tiers_table,
    "files": files_tables,
    "classifiers": classifiers_table,
    "gpus": gpu_table.table,
}


def generated(root: Path = ROOT) -> dict[Path, str]:
    """Every generated file under `root` and its content. Raises `ValueError` if a table has no
    place."""
    paths = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    pages = {path: path.read_text("utf-8") for path in paths}
    for name, render in TABLES.items():
        found = [path for path in pages if f"<!-- {name} -->" in pages[path]]
        if len(found) != 1:
            raise ValueError(f"the table {name} needs one place, and has {len(found)}")
        pages[found[0]] = with_table(pages[found[0]], name, render())
    hub = {"hub.json": runpod_hub.hub(), "tests.json": runpod_hub.tests()}
    files = {root / ".runpod" / name: runpod_hub.text(made) for name, made in hub.items()}
    pictures = {root / "docs" / name: draw() for name, draw in drawings.DRAWINGS.items()}
    return pages | files | pictures


def with_table(page: str, name: str, text: str) -> str:
    """`page` with `text` between the marks of the table `name`. Raises `ValueError` unless each
    mark is there once."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if (page.count(start), page.count(end)) != (1, 1):
        raise ValueError(f"a page with the table {name} needs {start} and {end}, once each")
    before, _, rest = page.partition(start)
    return f"{before}{start}\n{text}\n{end}{rest.partition(end)[2]}"


def stale(root: Path = ROOT) -> list[str]:
    """The generated files whose content differs from the code."""
    return [
        path.relative_to(root).as_posix()
        for path, content in generated(root).items()
        if not path.exists() or path.read_text("utf-8") != content
    ]


def write(root: Path = ROOT) -> None:
    """Write all generated files."""
    for path, content in generated(root).items():
        path.write_text(content, "utf-8")


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(
        prog="python -m builder.docs",
        description="Writes every generated file: tables and drawings of the pages, and the files "
        "of Runpod's Hub.",
        epilog="example: python -m builder.docs --check",
    )
    _parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; name the outdated files, with exit code 1",
    )
    if not _parser.parse_args().check:
        write()
    elif old := stale():
        sys.exit(f"outdated: {', '.join(old)}; `make docs` writes them")
