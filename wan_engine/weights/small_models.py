"""Finds the small models next to the video model: safety classifiers and prompt writers. Never
downloads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from wan_engine import toy
from wan_engine.catalog import (
    CLASSIFIERS,
    WELL_KNOWN_UNSAFE,
    WRITERS,
    ClassifierKind,
    ClassifierSpec,
    WriterSpec,
)
from wan_engine.errors import ConfigurationError, ModelMissing
from wan_engine.settings import Settings
from wan_engine.weights.files import Wanted, missing_in, read_json

_OWN_THRESHOLD = 0.5


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
    is_toy: bool = False


def wanted_writer(name: str) -> Wanted[WriterSpec] | None:
    """The meaning of a `name` that is not a folder."""
    return Wanted.read(name, {**WRITERS, **toy.WRITERS})


def wanted_classifier(name: str) -> Wanted[ClassifierSpec] | None:
    """The meaning of a `name` that is not a folder."""
    return Wanted.read(name, {**CLASSIFIERS, **toy.CLASSIFIERS})


def locate_writer(settings: Settings) -> LocatedWriter | None:
    """The files of WAN_PROMPT_MODEL, or None if one is missing. Builds the tiny model."""
    name = settings.prompt_model
    wanted = wanted_writer(name)
    spec = (wanted and wanted.row) or WriterSpec(name, f"own checkpoint {name}")
    if spec.is_toy:
        return LocatedWriter(toy.cached(name, settings), spec.resident_gb, is_toy=True)
    folder = _plain_checkpoint(name, wanted, settings)
    if folder is None:
        return None
    # The memory of an unknown checkpoint: the size of its files, and room for an answer.
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


def _plain_checkpoint(
    name: str, wanted: Wanted[WriterSpec] | None, settings: Settings
) -> Path | None:
    """The folder of a complete transformers checkpoint: a folder that is named, one in
    WAN_MODELS_DIR, or one in a Hub cache."""
    for folder in (Path(name).expanduser(), settings.models_dir / name):
        if _is_checkpoint(folder):
            return folder
    return wanted.find(_is_checkpoint) if wanted else None


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not missing_in(folder)


def configured_classifiers(settings: Settings) -> dict[ClassifierKind, str]:
    """The names of the classifiers in the settings, by kind."""
    return {"prompt": settings.safety_prompt_model, "image": settings.safety_image_model}


def resolve_classifier(name: str, kind: ClassifierKind, settings: Settings) -> LocatedClassifier:
    """Find the classifier that `name` names: a catalogue row, a folder or a Hub id.

    Builds the tiny ones; never downloads. Raises `ModelMissing` if files are missing, and
    `ConfigurationError` if the classifier lacks a configured label.
    """
    wanted = wanted_classifier(name)
    spec = wanted.row if wanted else None
    variable = f"WAN_SAFETY_{kind.upper()}_MODEL"
    if spec is not None and spec.kind != kind:
        raise ConfigurationError(f"{variable} is {name}, which is a classifier of {spec.kind}s")
    own = settings.models_dir / name if spec is not None else Path(name).expanduser()
    if spec is not None and spec.is_toy:
        folder: Path | None = toy.cached(name, settings)
    elif own.is_dir() and (spec is None or not missing_classifier_files(own, kind)):
        folder = own
    else:
        folder = _cached_classifier(wanted, kind)
    spec = spec or ClassifierSpec(name, f"own classifier {name}", kind, licence="unknown")
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


def _cached_classifier(wanted: Wanted[ClassifierSpec] | None, kind: ClassifierKind) -> Path | None:
    """The complete folder in a Hub cache, or an incomplete one, which tells what is missing."""
    if wanted is None:
        return None
    found = wanted.find(lambda folder: not missing_classifier_files(folder, kind))
    return found or wanted.find(lambda _: True)


def has_classifier(name: str, settings: Settings) -> bool:
    """Whether the files of a configured or known classifier are on this machine."""
    configured = {used: kind for kind, used in configured_classifiers(settings).items()}
    wanted = wanted_classifier(name)
    kind = wanted.row.kind if wanted and wanted.row else configured[name]
    try:
        resolve_classifier(name, kind, settings)
    except ModelMissing:
        return False
    except ConfigurationError:  # its labels are wrong, but its files are here
        return True
    return True


def missing_classifier_files(folder: Path, kind: ClassifierKind) -> list[str]:
    """The files that a classifier in transformers layout lacks; empty if it is complete."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    missing = missing_in(folder)
    needed = ["tokenizer.json", "tokenizer_config.json"]
    if kind == "image":
        needed = ["preprocessor_config.json"]
    missing += [name for name in needed if not (folder / name).is_file()]
    # Newer repositories have the template in a separate file, others in the configuration.
    if kind == "prompt" and not missing and not (folder / "chat_template.jinja").is_file():
        config = read_json(folder / "tokenizer_config.json")
        missing += [] if config.get("chat_template") else ["chat_template.jinja"]
    return missing


def _flagged(spec: ClassifierSpec, folder: Path, settings: Settings) -> dict[str, float]:
    """The labels that count as unsafe, in lower case: from the setting, the row or their names."""
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
    config = read_json(folder / "config.json")
    # Without names, transformers gives these to two labels.
    return [
        str(label) for label in (config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).values()
    ]
