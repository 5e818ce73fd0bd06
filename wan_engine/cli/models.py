"""`models`: lists the catalogue, and which models are on this machine."""

from __future__ import annotations

import json

from rich.table import Column, Table

from wan_engine import weights
from wan_engine.catalog import CLASSIFIERS, known_models
from wan_engine.cli.options import AsJson
from wan_engine.cli.terminal import failing_clearly, load_settings, out
from wan_engine.errors import ConfigurationError
from wan_engine.runtime import recipes
from wan_engine.settings import Settings

EXAMPLE = "--json"


def models(as_json: AsJson = False) -> None:
    """List the models, and which of them are on this machine."""
    with failing_clearly():
        settings = load_settings()
        gpu = recipes.detect(settings.device)
        used = _used(settings, gpu)
        rows = [
            {
                "name": spec.name,
                "title": spec.title,
                "task": spec.task,
                "used": spec.name in used,
                "present": spec.is_toy or weights.locate(spec, settings) is not None,
                "fits": recipes.fits(spec, gpu),
                "download_gb": spec.download_gb,
                "gpu_gb": round(recipes.least_gb(spec), 1),
                "licence": spec.licence,
                "opt_in": spec.opt_in,
                "repo": spec.repo,
                "revision": spec.revision,
            }
            for spec in known_models().values()
        ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(
        Column("name", no_wrap=True),
        *("here", "fits", "download", "GPU", "what"),
        show_edge=False,
    )
    for row in rows:
        here = "used" if row["used"] else "yes" if row["present"] else "no"
        marks = [here, "yes" if row["fits"] else "no"]
        sizes = [f"{row[key]:g} GB" if row["repo"] else "-" for key in ("download_gb", "gpu_gb")]
        table.add_row(str(row["name"]), *marks, *sizes, str(row["title"]))
    out.print(table)
    out.print()
    out.print(_classifiers(settings))


def _used(settings: Settings, gpu: recipes.Gpu | None) -> set[str]:
    """The rows that the settings select. Empty if a setting names a missing model."""
    try:
        found = weights.configured(settings, lambda spec: recipes.fits(spec, gpu), fallback=True)
    except ConfigurationError:
        return set()
    return {located.spec.name for located, _ in found.values()}


def _classifiers(settings: Settings) -> Table:
    used = weights.configured_classifiers(settings).values()
    table = Table(
        Column("safety classifier", no_wrap=True),
        *("present", "used", "download", "what"),
        show_edge=False,
    )
    for name in dict.fromkeys((*CLASSIFIERS, *used)):
        spec = CLASSIFIERS.get(name)
        present = weights.has_classifier(name, settings)
        size = f"{spec.download_gb:g} GB" if spec and spec.repo else "-"
        title = spec.title if spec else "named by a setting"
        marks = ["yes" if mark else "no" for mark in (present, name in used)]
        table.add_row(name, *marks, size, title)
    return table
