"""Which model is meant, and where on this machine its files are. Never downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from wan_engine.catalog import CATALOG, FALLBACK, Expert, LoraFile, ModelSpec, infer
from wan_engine.errors import ConfigurationError, ModelMissing
from wan_engine.settings import Settings
from wan_engine.weights.built import built
from wan_engine.weights.files import cached_file, missing_files, read_json, snapshots


@dataclass(frozen=True)
class LoraWeights:
    """A LoRA file on disk, for one expert or both."""

    path: Path
    scale: float
    expert: Expert


@dataclass(frozen=True)
class Located:
    """A model that is complete on this machine."""

    spec: ModelSpec
    folder: Path
    loras: tuple[LoraWeights, ...] = ()


def resolve(name: str, settings: Settings) -> Located:
    """Find the model that `name` means: a catalogue row, a folder or a Hub id.

    Builds the tiny ones; never downloads. Raises `ModelMissing` with what to do.
    """
    spec = CATALOG.get(name)
    if spec is not None:
        located = locate(spec, settings)
        if located is None:
            raise ModelMissing(
                f"The files of {name} are not on this machine ({spec.download_gb:g} GB). "
                f"Fetch them with `python -m wan_engine download {name}`, or name a folder in "
                "WAN_MODEL."
            )
        return located
    folder = Path(name).expanduser()
    if not folder.is_dir():
        found = next(snapshots(name, None), None) if name.count("/") == 1 else None
        if found is None:
            raise ModelMissing(
                f"WAN_MODEL={name} is no catalogue name ({', '.join(CATALOG)}), no folder, "
                f"and no Hub id whose files are here. `python -m wan_engine download {name}` "
                "fetches a Hub id."
            )
        folder = found
    _require_complete(name, folder)
    # A folder's path is nobody's business but the operator's: the name goes into clips and records.
    shown = name if name.count("/") == 1 and not Path(name).is_dir() else folder.resolve().name
    spec = infer(shown, read_json(folder / "model_index.json"))
    return Located(spec, folder, own_loras(settings))


def select(
    settings: Settings, fits: Callable[[ModelSpec], bool], *, fallback: bool
) -> tuple[Located, str]:
    """The model that WAN_MODEL means, and why. `auto` is the first row that `fits` and is present.

    With none, `auto` is the tiny model where `fallback` allows that, else `ModelMissing`.
    """
    if settings.model != "auto":
        return resolve(settings.model, settings), "named by WAN_MODEL"
    for spec in CATALOG.values():
        if not spec.built and fits(spec):
            located = locate(spec, settings)
            if located is not None:
                return located, "auto: the best model whose files are here and that fits this GPU"
    if not fallback:
        raise ModelMissing(
            "No model was found: WAN_MODEL is `auto` and no catalogue model is present that fits "
            "this GPU. List them with `python -m wan_engine models`, set the endpoint's cached "
            "model or "
            f"fetch one with `download`; WAN_MODEL={FALLBACK} runs without weights, for tests only."
        )
    return resolve(FALLBACK, settings), "auto: no real model is present that fits this machine"


def locate(spec: ModelSpec, settings: Settings) -> Located | None:
    """The files of a catalogue row, or None while one is missing."""
    if spec.built:
        return Located(spec, built(spec.name, settings), own_loras(settings))
    # Rows that differ only in LoRA files and settings share a folder.
    source = spec.repo, spec.revision
    same = [row.name for row in CATALOG.values() if (row.repo, row.revision) == source]
    folders = (settings.models_dir / name for name in dict.fromkeys((spec.name, *same)))
    cached = snapshots(spec.repo, spec.revision) if spec.repo else iter(())
    folder = next((one for one in chain(folders, cached) if not missing_files(one)), None)
    if folder is None:
        return None
    files = [_lora_path(lora, settings) for lora in spec.loras]
    loras = tuple(
        LoraWeights(path, lora.scale, lora.expert)
        for path, lora in zip(files, spec.loras, strict=True)
        if path is not None
    )
    return None if len(loras) < len(files) else Located(spec, folder, loras + own_loras(settings))


def own_loras(settings: Settings) -> tuple[LoraWeights, ...]:
    """The files that WAN_LORA names. Raises `ConfigurationError` for one that is not there."""
    for lora in settings.lora:
        if not lora.path.is_file():
            raise ConfigurationError(f"WAN_LORA names {lora.path}, which is not a file")
    return tuple(LoraWeights(lora.path, lora.scale, lora.expert) for lora in settings.lora)


def _lora_path(lora: LoraFile, settings: Settings) -> Path | None:
    beside = settings.models_dir / "loras" / Path(lora.path).name
    if beside.is_file():
        return beside
    return cached_file(lora.repo, lora.path)


def _require_complete(name: str, folder: Path) -> None:
    missing = missing_files(folder)
    if missing:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise ModelMissing(
            f"The model {name} is incomplete, {len(missing)} files are missing or cut off: "
            f"{shown}. Fetch or copy them again."
        )
