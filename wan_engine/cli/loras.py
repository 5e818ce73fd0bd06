"""`loras`: lists the LoRA files that requests may name, and the models that take each."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from wan_engine import weights
from wan_engine.cli.options import AsJson, Model
from wan_engine.cli.terminal import failing_clearly, load_settings, out
from wan_engine.errors import InvalidRequest
from wan_engine.runtime import recipes
from wan_engine.schema import Lora
from wan_engine.settings import Settings
from wan_engine.weights.lora_folder import FoundLora, LoraFolder

EXAMPLE = "--json"


def loras(as_json: AsJson = False, model: Model = "") -> None:
    """List the LoRA files of WAN_LORA_DIR, and which models here take each."""
    with failing_clearly():
        settings = load_settings(model)
        rows = _rows(settings)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        folder = settings.lora_dir
        unset = "WAN_LORA_DIR is not set: set it to a folder of LoRA files"
        print(unset if folder is None else f"{folder} has no LoRA files")
        return
    table = Table(Column("name", no_wrap=True), "files", "fits", "not", show_edge=False)
    for row in rows:
        refused = "; ".join(f"{name}: {why}" for name, why in row["refused"].items())
        shown = (row["name"], ", ".join(row["files"]), ", ".join(row["fits"]), refused)
        table.add_row(*map(Text, shown))
    out.print(table)


def _rows(settings: Settings) -> list[dict[str, Any]]:
    folder, gpu = LoraFolder(settings), recipes.detect(settings.device)
    found = folder.found()
    if not found:
        return []
    located = weights.configured(settings, lambda spec: recipes.fits(spec, gpu), fallback=True)
    models = [one for one, _ in located.values() if one.spec.wan_blocks]
    return [_row(name, one, folder, models) for name, one in found.items()]


def _row(
    name: str, found: FoundLora, folder: LoraFolder, models: list[weights.Located]
) -> dict[str, Any]:
    """A LoRA with the models that take it, and the reason for each that does not."""
    fits, refused = list[str](), dict[str, str]()
    for model in models:
        try:
            folder.chosen([Lora(name)], model)
            fits.append(model.spec.name)
        except InvalidRequest as error:
            refused[model.spec.name] = str(error).partition(f'"{name}": ')[2] or str(error)
    files = [path.name for path in found.files.values()]
    return {"name": name, "files": files, "fits": fits, "refused": refused}
