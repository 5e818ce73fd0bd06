"""Finds the model that a setting names, and its files on this machine. Never downloads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wan_engine import toy
from wan_engine.catalog import FALLBACK, Expert, HubLora, ModelSpec, infer, known_models
from wan_engine.errors import ConfigurationError, ModelMissing
from wan_engine.schema import Task
from wan_engine.settings import Settings, env_name
from wan_engine.weights import manifest
from wan_engine.weights.files import Wanted, cached_file, missing_in_layout, read_json
from wan_engine.weights.parts import composed

TASK_SETTINGS: Mapping[Task, str] = {
    "image-to-video": "model",
    "reference-to-video": "reference_model",
    "speech-to-video": "speech_model",
    "image-to-video-with-sound": "video_sound_model",
    "sound-for-video": "sound_model",
}
"""The setting that names the row of each task."""


@dataclass(frozen=True)
class LocatedLora:
    """A LoRA file on disk, for one expert or both. `unused` is the allowed share of its weights
    that match no layer of the model."""

    path: Path
    scale: float
    expert: Expert
    unused: float = 0.0


@dataclass(frozen=True)
class Located:
    """A model that is complete on this machine. `fetched` is the folder of its repository, if
    `folder` consists of links to that and to others."""

    spec: ModelSpec
    folder: Path
    loras: tuple[LocatedLora, ...] = ()
    fetched: Path | None = None


def resolve(name: str, settings: Settings, variable: str = "WAN_MODEL") -> Located:
    """Find the model that `name` names, the value of `variable`: a catalogue row or a Hub id, each
    with or without `@revision`, or a folder.

    Builds the tiny models; never downloads. Raises `ModelMissing` with what to do.
    """
    wanted = wanted_model(name)
    if wanted is not None and wanted.row is not None:
        located = locate(wanted.row, settings, named=wanted.named)
        if located is None:
            raise ModelMissing(
                f"The files of {name} are not on this machine ({wanted.row.download_gb:g} GB). "
                f"Fetch them with `python -m wan_engine download {name}`, or name a folder in "
                f"{variable}."
            )
        return located
    folder = Path(name).expanduser()
    # Clips and records show the name, and only the operator may see the folder's path.
    shown = folder.resolve().name
    if wanted is not None and not folder.is_dir():
        # If none is complete, an incomplete one tells what is missing.
        found = wanted.find(lambda one: not missing_files(one)) or wanted.find(lambda _: True)
        folder, shown = found or folder, name
    if not folder.is_dir():
        raise ModelMissing(
            f"{variable}={name} is not a catalogue name ({', '.join(known_models())}), not a "
            "folder, and not a Hub id with files on this machine. "
            f"`python -m wan_engine download {name}` fetches a Hub id."
        )
    _require_complete(name, folder)
    if prepared := _prepared_as(folder):
        return Located(prepared, folder, own_loras(settings, prepared))
    spec = infer(shown, read_json(folder / "model_index.json"))
    return Located(spec, folder, own_loras(settings, spec))


def wanted_model(name: str) -> Wanted[ModelSpec] | None:
    """The meaning of a `name` that is not a folder. A row gets the named revision."""
    wanted = Wanted.read(name, {**known_models(), **toy.MODELS})
    if wanted is None or wanted.row is None:
        return None if Path(name).expanduser().is_dir() else wanted
    return replace(wanted, row=replace(wanted.row, revision=wanted.revision))


def configured(
    settings: Settings, fits: Callable[[ModelSpec], bool], *, fallback: bool
) -> dict[Task, tuple[Located, str]]:
    """The model of each task that has one, and the reason. Raises `ModelMissing` and
    `ConfigurationError`."""
    chosen = {task: select(settings, fits, fallback=fallback, task=task) for task in TASK_SETTINGS}
    found = {task: one for task, one in chosen.items() if one is not None}
    if not found.keys() - {"sound-for-video"}:
        raise ConfigurationError(
            "WAN_MODEL is `none`, and no other task has a model that makes frames. Set it "
            "to `auto`, or to a name that `python -m wan_engine models` lists."
        )
    return found


def select(
    settings: Settings,
    fits: Callable[[ModelSpec], bool],
    *,
    fallback: bool,
    task: Task = "image-to-video",
) -> tuple[Located, str] | None:
    """The model of `task` and the reason, or None if the task has none. `auto` takes the first row
    that `fits` and is present.

    If there is none, `auto` takes the tiny model for image-to-video if `fallback` allows it, and
    raises `ModelMissing` otherwise. Other tasks are then not served.
    """
    name: str = getattr(settings, TASK_SETTINGS[task])
    variable = env_name(TASK_SETTINGS[task])
    if name == "none":
        return None
    if name != "auto":
        located = resolve(name, settings, variable)
        _require_task(located.spec, task, variable)
        return located, f"named by {variable}"
    for spec in known_models().values():
        if spec.task == task and not (spec.is_toy or spec.opt_in) and fits(spec):
            located_row = locate(spec, settings)
            if located_row is not None:
                why = "auto: the best model whose files are here and that fits this GPU"
                return located_row, why
    if task != "image-to-video":
        return None
    if not fallback:
        raise ModelMissing(
            "No model was found: WAN_MODEL is `auto` and no catalogue model is present that fits "
            "this GPU. List them with `python -m wan_engine models`, set the endpoint's cached "
            "model or "
            f"fetch one with `download`; WAN_MODEL={FALLBACK} runs without weights, for tests only."
        )
    return resolve(FALLBACK, settings), "auto: no real model is present that fits this machine"


def _require_task(spec: ModelSpec, task: Task, variable: str) -> None:
    if spec.task != task:
        right = env_name(TASK_SETTINGS[spec.task])
        raise ConfigurationError(
            f"{variable} names {spec.name}, a model for {spec.task}. Name it in {right}, and in "
            f"{variable} one for {task}, `auto` or `none`."
        )


def locate(spec: ModelSpec, settings: Settings, *, named: bool = False) -> Located | None:
    """The files of a catalogue row, or None if one is missing. With `named`, only files of the
    row's revision count."""
    if spec.is_toy:
        return Located(spec, toy.cached(spec.name, settings), own_loras(settings, spec))
    loras: tuple[LocatedLora, ...] | None = None
    ready: Path | None = None

    def usable(folder: Path) -> bool:
        nonlocal loras, ready
        ready = composed(spec, folder, settings) if missing_files(folder) else folder
        if ready is None:
            return False
        loras = _loras(spec, folder, settings)
        return loras is not None

    folders = [settings.models_dir / name for name in _shared(spec)]
    own = (folder for folder in folders if not named or _is_at(folder, spec.revision))
    cached = Wanted(spec, spec.repo, spec.revision, named)
    folder = next(filter(usable, own), None) or cached.find(usable)
    if folder is None or ready is None or loras is None:
        return None
    fetched = None if ready == folder else folder
    return Located(spec, ready, loras + own_loras(settings, spec), fetched)


def _shared(spec: ModelSpec) -> list[str]:
    """The possible names of the row's folder. Rows that differ only in LoRA files and settings
    share one."""
    pinned = known_models().get(spec.name, spec)
    source = pinned.repo, pinned.revision
    rows = known_models().values()
    same = [row.name for row in rows if row.repo and (row.repo, row.revision) == source]
    return list(dict.fromkeys((spec.name, *same)))


def _is_at(folder: Path, revision: str | None) -> bool:
    """Whether the manifest of a folder names this revision."""
    found = manifest.read(folder)
    return bool(found and found.revision and revision and found.revision.startswith(revision))


def missing_files(folder: Path) -> list[str]:
    """The files that a checkpoint in diffusers layout lacks, relative to `folder`; empty if it is
    complete.

    If it has a manifest, each file must exist and have its size. The content is not read.
    """
    return manifest.absent(folder) or missing_in_layout(folder)


def own_loras(settings: Settings, spec: ModelSpec) -> tuple[LocatedLora, ...]:
    """The LoRA files of WAN_LORA, which belong to the model of WAN_MODEL. Raises
    `ConfigurationError` if one does not exist."""
    if spec.task != "image-to-video":
        return ()
    for lora in settings.lora:
        if not lora.path.is_file():
            raise ConfigurationError(f"WAN_LORA names {lora.path}, which is not a file")
    return tuple(
        LocatedLora(lora.path, lora.scale, lora.expert, settings.lora_unused)
        for lora in settings.lora
    )


def _loras(spec: ModelSpec, folder: Path, settings: Settings) -> tuple[LocatedLora, ...] | None:
    """The row's LoRA files that are not fused into the weights in `folder` yet. None if one is
    missing, if the weights contain other LoRA files, or if they are in float8, which cannot be
    changed."""
    left = _left_to_fuse(spec, folder)
    if left is None or (left and manifest.is_float8(folder)):
        return None
    found = [(_lora_path(lora, settings), lora) for lora in left]
    loras = tuple(
        LocatedLora(path, lora.scale, lora.expert, settings.lora_unused)
        for path, lora in found
        if path
    )
    return loras if len(loras) == len(found) else None


def _left_to_fuse(spec: ModelSpec, folder: Path) -> tuple[HubLora, ...] | None:
    found = manifest.read(folder)
    fused = found.fused if found else ()
    left = tuple(lora for lora in spec.loras if not any(one.is_from(lora) for one in fused))
    return left if len(spec.loras) - len(left) == len(fused) else None


def _prepared_as(folder: Path) -> ModelSpec | None:
    """The row that a folder's manifest names, wherever the folder is now."""
    found = manifest.read(folder)
    spec = known_models().get(found.model) if found else None
    return spec if spec and _left_to_fuse(spec, folder) == () else None


def _lora_path(lora: HubLora, settings: Settings) -> Path | None:
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
