"""Fetching from the Hub: pinned revisions into its cache, and what has to be known before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wan_engine import hub
from wan_engine.catalog import CATALOG, CLASSIFIERS, WRITERS, ClassifierKind
from wan_engine.errors import ModelMissing
from wan_engine.settings import Settings
from wan_engine.weights.built import built_writer
from wan_engine.weights.files import sha256
from wan_engine.weights.models import Located, resolve
from wan_engine.weights.small import LocatedClassifier, resolve_classifier, resolve_writer

_DOWNLOAD_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


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
        if lora.sha256 is not None and sha256(path) != lora.sha256:
            path.resolve().unlink()
            raise ModelMissing(
                f"{lora.path} of {lora.repo} is not the file that was pinned "
                f"(sha256 {lora.sha256}); it was removed. Fetch it again, or report the change."
            )
    return resolve(name, settings)


def download_writer(name: str, settings: Settings, on_file: Callable[[str], None]) -> Path:
    """Fetch a prompt writer of the catalogue at its pinned revision into the Hub's cache."""
    from huggingface_hub import snapshot_download

    spec = WRITERS[name]
    if spec.repo is None:
        return built_writer(settings)
    on_file(f"{spec.repo} at {spec.revision}")
    with hub.translated(spec.repo):
        snapshot_download(
            spec.repo, revision=spec.revision, allow_patterns=list(_DOWNLOAD_PATTERNS)
        )
    return resolve_writer(settings.model_copy(update={"prompt_model": name})).folder


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
