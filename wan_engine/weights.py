"""Where a model's files are, whether they are all there, and how they get there.

It knows folders and the Hub's cache layout; it does not load weights into memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from wan_engine import hub
from wan_engine.catalog import (
    CATALOG,
    CLASSIFIERS,
    FALLBACK,
    WELL_KNOWN_UNSAFE,
    WRITERS,
    ClassifierKind,
    ClassifierSpec,
    Expert,
    LoraFile,
    ModelSpec,
    WriterSpec,
    infer,
)
from wan_engine.errors import ConfigurationError, ModelMissing
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

RUNPOD_HUB_CACHE = Path("/runpod-volume/huggingface-cache/hub")
"""Where Runpod puts an endpoint's cached model (docs.runpod.io,
serverless/endpoints/model-caching)."""

_HASH_CHUNK_BYTES = 8 * 1024 * 1024
_DOWNLOAD_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_OWN_THRESHOLD = 0.5


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


@dataclass(frozen=True)
class LocatedClassifier:
    """A classifier of the safety checker that is complete on this machine."""

    spec: ClassifierSpec
    folder: Path


@dataclass(frozen=True)
class LocatedWriter:
    """A prompt writer that is complete on this machine."""

    folder: Path
    resident_gb: float
    built: bool = False


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
        found = _snapshot(name, None, settings) if name.count("/") == 1 else None
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
    spec = infer(shown, _read_json(folder / "model_index.json"))
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
        return Located(spec, _built(spec.name, settings), own_loras(settings))
    # Rows that differ only in LoRA files and settings share a folder.
    source = spec.repo, spec.revision
    same = [row.name for row in CATALOG.values() if (row.repo, row.revision) == source]
    folders = (settings.models_dir / name for name in dict.fromkeys((spec.name, *same)))
    folder = next((folder for folder in folders if not missing_files(folder)), None)
    if folder is None:
        snapshot = _snapshot(spec.repo, spec.revision, settings) if spec.repo else None
        if snapshot is None or missing_files(snapshot):
            return None
        folder = snapshot
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


def missing_files(folder: Path) -> list[str]:
    """What a checkpoint in diffusers layout lacks, relative to `folder`; empty when it is
    complete."""
    if not (folder / "model_index.json").is_file():
        return ["model_index.json"]
    missing = []
    for component, entry in _read_json(folder / "model_index.json").items():
        # An entry is [library, class]; [null, null] says that the pipeline goes without.
        if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None:
            missing += [f"{component}/{name}" for name in _missing_in(folder / component)]
    return missing


def locate_writer(settings: Settings) -> LocatedWriter | None:
    """The files of WAN_PROMPT_MODEL, or None while one is missing. Builds the tiny one."""
    name = settings.prompt_model
    spec = WRITERS.get(name, WriterSpec(name, f"own checkpoint {name}"))
    if spec.built:
        return LocatedWriter(_built_writer(settings), spec.resident_gb, built=True)
    folder = plain_checkpoint(name, spec.repo or name, spec.revision, settings)
    if folder is None:
        return None
    # What a checkpoint of somebody's own takes: its files, and room for an answer.
    size_gb = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    return LocatedWriter(folder, spec.resident_gb or size_gb * 1.1 + 1.5)


def resolve_writer(settings: Settings) -> LocatedWriter:
    """The files of WAN_PROMPT_MODEL. Raises `ModelMissing` with what to do."""
    located = locate_writer(settings)
    if located is None:
        name = settings.prompt_model
        raise ModelMissing(
            f"WAN_PROMPT_MODEL={name} is not on this machine. Fetch it with `python -m wan_engine "
            f"download {name}`, name a folder, or set WAN_PROMPT_BACKEND to `auto` or `template`."
        )
    return located


def plain_checkpoint(name: str, repo: str, revision: str | None, settings: Settings) -> Path | None:
    """The folder of a complete transformers checkpoint: named itself, in WAN_MODELS_DIR, or in a
    Hub cache."""
    folders = [Path(name).expanduser(), settings.models_dir / name]
    if repo.count("/") == 1:
        snapshot = _snapshot(repo, revision, settings)
        folders += [snapshot] if snapshot else []
    complete = (
        folder
        for folder in folders
        if (folder / "config.json").is_file() and not _missing_in(folder)
    )
    return next(complete, None)


def download_writer(name: str, settings: Settings, on_file: Callable[[str], None]) -> Path:
    """Fetch a prompt writer of the catalogue at its pinned revision into the Hub's cache."""
    from huggingface_hub import snapshot_download

    spec = WRITERS[name]
    if spec.repo is None:
        return _built_writer(settings)
    on_file(f"{spec.repo} at {spec.revision}")
    with hub.translated(spec.repo):
        snapshot_download(
            spec.repo, revision=spec.revision, allow_patterns=list(_DOWNLOAD_PATTERNS)
        )
    return resolve_writer(settings.model_copy(update={"prompt_model": name})).folder


def download(name: str, settings: Settings, on_file: Callable[[str], None]) -> Located:
    """Fetch a catalogue row at its pinned revision, or a Hub id, into the Hub's cache.

    Raises `ModelMissing` with what to do when that fails.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    spec = CATALOG.get(name)
    if spec is not None and spec.built:
        return resolve(name, settings)
    repo, revision = (spec.repo or name, spec.revision) if spec else (name, None)
    on_file(f"{repo} at {revision or 'its newest revision'}")
    with hub.translated(repo):
        snapshot_download(repo, revision=revision, allow_patterns=list(_DOWNLOAD_PATTERNS))
    for lora in spec.loras if spec else ():
        on_file(f"{lora.repo}: {lora.path}" + ("" if lora.sha256 else " (checksum not pinned)"))
        with hub.translated(lora.repo):
            path = Path(hf_hub_download(lora.repo, lora.path))
        if lora.sha256 is not None and _sha256(path) != lora.sha256:
            path.resolve().unlink()
            raise ModelMissing(
                f"{lora.path} of {lora.repo} is not the file that was pinned "
                f"(sha256 {lora.sha256}); it was removed. Fetch it again, or report the change."
            )
    return resolve(name, settings)


# --- the safety checker's classifiers ------------------------------------------------------------


def configured_classifiers(settings: Settings) -> dict[ClassifierKind, str]:
    """The names that the settings give, by kind."""
    return {"prompt": settings.safety_prompt_model, "image": settings.safety_image_model}


def resolve_classifier(name: str, kind: ClassifierKind, settings: Settings) -> LocatedClassifier:
    """Find the classifier that `name` means: a catalogue row, a folder or a Hub id.

    Builds the tiny ones; never downloads. Raises `ModelMissing` when files are missing, and
    `ConfigurationError` for labels that the classifier does not have.
    """
    spec = CLASSIFIERS.get(name)
    variable = f"WAN_SAFETY_{kind.upper()}_MODEL"
    if spec is not None and spec.kind != kind:
        raise ConfigurationError(f"{variable} is {name}, which is a classifier of {spec.kind}s")
    if spec is not None and spec.built:
        folder: Path | None = _built(name, settings)
    elif spec is not None:
        folder = settings.models_dir / name
        if missing_classifier_files(folder, kind):
            folder = _snapshot(spec.repo, spec.revision, settings) if spec.repo else None
    else:
        spec = ClassifierSpec(name, f"own classifier {name}", kind, licence="unknown")
        folder = Path(name).expanduser()
        if not folder.is_dir():
            folder = _snapshot(name, None, settings) if name.count("/") == 1 else None
    if folder is None:
        raise ModelMissing(
            f"The safety classifier {name} is not on this machine. Fetch it with `python -m "
            f"wan_engine download safety`, or name a folder in {variable}."
        )
    if missing := missing_classifier_files(folder, kind):
        raise ModelMissing(
            f"The safety classifier {name} is incomplete, missing or cut off: "
            f"{', '.join(missing)}. Fetch it again with `python -m wan_engine download safety`."
        )
    if kind == "image":
        spec = replace(spec, flagged=_flagged(spec, folder, settings))
    return LocatedClassifier(spec, folder)


def has_classifier(name: str, settings: Settings) -> bool:
    """Whether the files of a configured or known classifier are on this machine."""
    configured = {used: kind for kind, used in configured_classifiers(settings).items()}
    kind = CLASSIFIERS[name].kind if name in CLASSIFIERS else configured[name]
    try:
        resolve_classifier(name, kind, settings)
    except ModelMissing:
        return False
    except ConfigurationError:  # its labels are wrong; its files are here
        return True
    return True


def missing_classifier_files(folder: Path, kind: ClassifierKind) -> list[str]:
    """What a classifier in transformers layout lacks; empty when it is complete."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    missing = _missing_in(folder)
    needed = ["tokenizer.json", "tokenizer_config.json"]
    if kind == "image":
        needed = ["preprocessor_config.json"]
    missing += [name for name in needed if not (folder / name).is_file()]
    # The template is a file of its own in newer repositories, and in the configuration of others.
    if kind == "prompt" and not missing and not (folder / "chat_template.jinja").is_file():
        config = _read_json(folder / "tokenizer_config.json")
        missing += [] if config.get("chat_template") else ["chat_template.jinja"]
    return missing


def download_classifier(
    name: str, kind: ClassifierKind, settings: Settings, on_file: Callable[[str], None]
) -> LocatedClassifier:
    """Fetch a classifier at its pinned revision, or a Hub id, into the Hub's cache. A folder is
    taken as it is.

    Raises `ModelMissing` with what to do when that fails.
    """
    from huggingface_hub import snapshot_download

    spec = CLASSIFIERS.get(name)
    if not (spec.built if spec else Path(name).expanduser().is_dir()):
        repo, revision = (spec.repo or name, spec.revision) if spec else (name, None)
        on_file(f"{repo} at {revision or 'its newest revision'}")
        with hub.translated(repo):
            snapshot_download(repo, revision=revision, allow_patterns=list(_DOWNLOAD_PATTERNS))
    return resolve_classifier(name, kind, settings)


def _flagged(spec: ClassifierSpec, folder: Path, settings: Settings) -> dict[str, float]:
    """The labels that are hits, in lower case, from the setting, the row or their names."""
    labels = [label.lower() for label in _labels(folder)]
    given = settings.safety_image_labels or spec.flagged
    flagged = {label.lower(): threshold for label, threshold in given.items()}
    if not flagged:
        flagged = {label: _OWN_THRESHOLD for label in labels if label in WELL_KNOWN_UNSAFE}
    unknown = [label for label in flagged if label not in labels]
    if unknown or not flagged:
        why = f"has no label {', '.join(unknown)}" if unknown else "has no label of a known name"
        raise ConfigurationError(
            f"The image classifier {spec.name} {why}; it has {', '.join(sorted(labels))}. Set "
            'WAN_SAFETY_IMAGE_LABELS to those that are flagged, such as {"nsfw": 0.6}.'
        )
    return flagged


def _labels(folder: Path) -> list[str]:
    config = _read_json(folder / "config.json")
    # Without names, transformers has two labels with these.
    return [
        str(label) for label in (config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).values()
    ]


def quiet_libraries(*, bars: bool) -> None:
    """Loading bars only where they are wanted and somebody watches; no warning about torchvision,
    which is missing here because nothing uses it."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    transformers_logging.set_verbosity_error()
    for logging_module in (diffusers_logging, transformers_logging):
        if bars and sys.stderr.isatty():
            logging_module.enable_progress_bar()
        else:
            logging_module.disable_progress_bar()


def _built(name: str, settings: Settings) -> Path:
    from builder import tiny

    return _in_cache(Path(f"tiny-{tiny.RECIPE}") / name, settings, partial(tiny.build, name))


def _built_writer(settings: Settings) -> Path:
    from builder import tiny_writer

    return _in_cache(Path(f"tiny-writer-{tiny_writer.RECIPE}"), settings, tiny_writer.build)


def _in_cache(name: Path, settings: Settings, build: Callable[[Path], Path]) -> Path:
    quiet_libraries(bars=False)
    try:
        return build(settings.cache_dir.expanduser() / name)
    except OSError as error:
        fallback = Path(tempfile.gettempdir()) / "wan_engine" / name
        log.info("%s is not writable (%s); using %s", settings.cache_dir, error, fallback)
        return build(fallback)


def _snapshot(repo: str, revision: str | None, settings: Settings) -> Path | None:
    """A repository's folder in Runpod's or the user's Hub cache: the pinned revision, else
    `main`."""
    for cache in _caches():
        home = _home(cache, repo)
        if revision and (home / "snapshots" / revision).is_dir():
            return home / "snapshots" / revision
        reference = home / "refs" / "main"
        if reference.is_file():
            folder = home / "snapshots" / reference.read_text().strip()
            if revision:
                log.warning("%s is cached at %s, not at the pinned %s", repo, folder.name, revision)
            return folder
    return None


def _caches() -> tuple[Path, Path]:
    from huggingface_hub.constants import HF_HUB_CACHE

    return RUNPOD_HUB_CACHE, Path(HF_HUB_CACHE)


def _home(cache: Path, repo: str) -> Path:
    return cache / f"models--{repo.replace('/', '--')}"


def _snapshots(cache: Path, repo: str) -> list[Path]:
    return sorted(_home(cache, repo).glob("snapshots/*"))


def _lora_path(lora: LoraFile, settings: Settings) -> Path | None:
    beside = settings.models_dir / "loras" / Path(lora.path).name
    if beside.is_file():
        return beside
    # Any revision that was fetched: another download from the repository moves its `main`.
    found = (folder / lora.path for cache in _caches() for folder in _snapshots(cache, lora.repo))
    return next((path for path in found if path.is_file()), None)


def _missing_in(folder: Path) -> list[str]:
    """Names of what is absent or cut off."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return ["(all files)"]
    if cut := sorted(path.name for path in folder.glob("*.safetensors") if not _is_whole(path)):
        return cut
    indexes = list(folder.glob("*.safetensors.index.json"))
    if indexes:
        shards = {
            str(name) for index in indexes for name in _read_json(index)["weight_map"].values()
        }
        return sorted(name for name in shards if not (folder / name).is_file())
    # A network has config.json and weights beside it; tokenizer and scheduler have neither.
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        return ["*.safetensors"]
    return []


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says: eight bytes with the header's
    length, the header, the tensors up to the largest offset (format description of safetensors)."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 0 < header_bytes < size:
                return False
            header = json.loads(file.read(header_bytes))
        tensors = (entry for name, entry in header.items() if name != "__metadata__")
        end = max(int(entry["data_offsets"][1]) for entry in tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return size == 8 + header_bytes + end


def _require_complete(name: str, folder: Path) -> None:
    missing = missing_files(folder)
    if missing:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise ModelMissing(
            f"The model {name} is incomplete, {len(missing)} files are missing or cut off: "
            f"{shown}. Fetch or copy them again."
        )


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
