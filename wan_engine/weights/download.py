"""Downloads pinned revisions from the Hub into its cache, and shows size, licence and free disk
space first.

huggingface_hub resumes downloads, locks files between processes and renames complete files. It
reads HF_TOKEN, HF_ENDPOINT (a mirror) and HF_HOME (the folder of the cache).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from wan_engine import toy
from wan_engine.catalog import ClassifierKind, HubLora, Part
from wan_engine.errors import ModelMissing
from wan_engine.settings import Settings
from wan_engine.weights import hub_errors, manifest
from wan_engine.weights.files import Wanted, at_revision, cut_off, sha256
from wan_engine.weights.manifest import Manifest
from wan_engine.weights.small_models import (
    LocatedClassifier,
    has_classifier,
    locate_writer,
    resolve_classifier,
    resolve_writer,
    wanted_classifier,
    wanted_writer,
)
from wan_engine.weights.video_models import Located, locate, resolve, wanted_model

log = logging.getLogger(__name__)
Tell = Callable[[str], None]
"""A function that shows one line to the user."""

_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_SPARE_BYTES = 200_000_000  # room for the system and for the cache's own files


@dataclass(frozen=True)
class _Source:
    """A repository, or one file of it. `revision` None means the newest. `patterns` selects the
    files to fetch."""

    repo: str
    revision: str | None = None
    path: str | None = None
    patterns: tuple[str, ...] = _PATTERNS

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.path or f"{self.repo} at {self.revision or 'its newest revision'}"


def download(name: str, settings: Settings, tell: Tell) -> Located:
    """Download a catalogue row at its pinned revision, or a Hub id, into the Hub's cache.

    Raises `ModelMissing` with what to do if the download fails, and before it if the disk is too
    small.
    """
    wanted = wanted_model(name)
    spec = wanted.row if wanted else None
    if wanted and spec is not None:
        located = locate(spec, settings, named=wanted.named)
        fetched = located and (located.fetched or located.folder)
        if spec.is_toy or (fetched and _is_pinned(fetched, spec.revision, settings, tell)):
            return resolve(name, settings)
    loras = spec.loras if spec else ()
    source = _source(name, wanted)
    others = _others(spec.parts if spec else ())
    sources = [source, *others, *(_Source(lora.repo, path=lora.path) for lora in loras)]
    _announce(spec.title if spec else name, spec.licence if spec else "", sources, tell)
    if spec and spec.opt_in:
        tell(f"`auto` never takes it: {spec.opt_in}. Read its page before you use it")
    if spec and source.revision is None:
        tell(
            f"{source.repo} is not pinned: no commit of it is known here, so this is the newest, "
            f"which nobody may have tried. {name}@COMMIT fetches the one that you name"
        )
    folder = _fetch(source, tell)
    for other in others:
        _fetch(other, tell)
    for lora in loras:
        _fetch_lora(lora, tell)
    _describe(folder, Manifest(name, source.repo, folder.name, ()))
    return resolve(name, settings)


def download_writer(name: str, settings: Settings, tell: Tell) -> Path:
    """Download a prompt writer of the catalogue at its pinned revision into the Hub's cache. Raises
    `ModelMissing` as `download` does."""
    wanted = wanted_writer(name)
    assert wanted is not None and wanted.row is not None
    if wanted.repo is None:
        return toy.cached(name, settings)
    settings = settings.model_copy(update={"prompt_model": name})
    located = locate_writer(settings)
    if located and _is_pinned(located.folder, wanted.revision, settings, tell):
        return located.folder
    source = _source(name, wanted)
    _announce(wanted.row.title, wanted.row.licence, [source], tell)
    _fetch(source, tell)
    return resolve_writer(settings).folder


def download_classifier(
    name: str, kind: ClassifierKind, settings: Settings, tell: Tell
) -> LocatedClassifier:
    """Download a classifier at its pinned revision, or a Hub id, into the Hub's cache. A folder is
    used as it is. Raises `ModelMissing` as `download` does."""
    wanted = wanted_classifier(name)
    spec = wanted.row if wanted else None
    if spec.is_toy if spec else Path(name).expanduser().is_dir():
        return resolve_classifier(name, kind, settings)
    if spec is not None and has_classifier(name, settings):
        located = resolve_classifier(name, kind, settings)
        if wanted and _is_pinned(located.folder, wanted.revision, settings, tell):
            return located
    source = _source(name, wanted)
    _announce(spec.title if spec else name, spec.licence if spec else "", [source], tell)
    _fetch(source, tell)
    return resolve_classifier(name, kind, settings)


def verify(folder: Path, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Compare every file in `folder` with the hash in its manifest. `on_bytes` gets the size of
    each block that was read. A damaged file in the Hub's cache is deleted, so that the next
    download fetches it again.

    Raises `ModelMissing` with the files that are absent or damaged, or without a manifest.
    """
    found = manifest.read(folder)
    if found is None:
        raise ModelMissing(
            f"{folder.name} has no {manifest.NAME} to compare with. `python -m wan_engine "
            "download` writes one for what it downloads. For a set of your own, run `python -m "
            "builder.prepare` in a clone of the repository: the installed package has no `builder`."
        )
    if damaged := manifest.damaged(folder, found.files, on_bytes):
        gone = "they were removed: download again" if discard(folder, damaged) else "replace them"
        raise ModelMissing(f"Absent or damaged in {folder}: {', '.join(damaged)}; {gone}")


def discard(folder: Path, names: Sequence[str]) -> list[str]:
    """Delete files of a folder in the Hub's cache and the files that they link to, so that the next
    download fetches them again. Returns those that it deleted. Files outside the cache belong to
    the user and stay."""
    links = [folder / name for name in names if (folder / name).is_symlink()]
    for link in links:
        link.resolve().unlink(missing_ok=True)
        link.unlink()
    return [link.relative_to(folder).as_posix() for link in links]


def _source(name: str, wanted: Wanted[Any] | None) -> _Source:
    """The repository of a name. The Hub's client refuses a name that is not a Hub id."""
    return _Source(wanted.repo or name, wanted.revision) if wanted else _Source(name)


def _others(parts: Sequence[Part]) -> list[_Source]:
    """The repositories with parts of a row, each with these parts alone."""
    found: dict[tuple[str, str | None], list[str]] = {}
    for part in parts:
        if part.repo is not None:
            patterns = found.setdefault((part.repo, part.revision), [])
            patterns += [f"{part.path}/{pattern}" for pattern in _PATTERNS]
    return [_Source(*key, patterns=tuple(patterns)) for key, patterns in found.items()]


def _is_pinned(folder: Path, revision: str | None, settings: Settings, tell: Tell) -> bool:
    """Whether a complete folder is the pinned revision. Then the Hub need not be asked."""
    pinned = folder.name == revision or folder.is_relative_to(settings.models_dir)
    if pinned:
        tell(f"complete in {folder}: nothing to fetch")
    return pinned


def _announce(title: str, licence: str, sources: Sequence[_Source], tell: Tell) -> None:
    """Show what will be downloaded and whether it fits on the disk."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder in chain(*(at_revision(one.repo, one.revision or "main") for one in sources)):
        # The client considers an existing file complete, whatever its length.
        if cut := discard(folder, cut_off(folder)):
            tell(f"removed what was cut off: {', '.join(cut)}")
    needed = sum(
        entry.file_size or 0
        for source in sources
        for entry in _contents(source)
        if entry.will_download
    )
    cache = Path(HF_HUB_CACHE)
    there = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    tell(
        f"{title}; licence: {licence or 'see its page on the Hub'}; {_gb(needed)} to fetch, "
        f"{_gb(free)} free in {cache}"
    )
    if needed and needed + _SPARE_BYTES > free:
        raise ModelMissing(
            f"{title} was not fetched: it needs {_gb(needed)} more and {cache} has {_gb(free)} "
            "free. Make room, or set HF_HOME to a larger disk."
        )


def _contents(source: _Source) -> list[Any]:
    """The files that the Hub lists, each with its size and whether it would be downloaded."""
    from huggingface_hub import hf_hub_download, snapshot_download

    with hub_errors.translated(source.repo):
        if source.path is not None:
            return [hf_hub_download(source.repo, source.path, dry_run=True)]
        patterns = list(source.patterns)
        listed: Any = snapshot_download(
            source.repo, revision=source.revision, allow_patterns=patterns, dry_run=True
        )
        return list(listed)


def _fetch(source: _Source, tell: Tell) -> Path:
    from huggingface_hub import snapshot_download

    tell(f"fetching {source.name}")
    patterns = list(source.patterns)
    with hub_errors.translated(source.repo):
        return Path(
            snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns)
        )


def _fetch_lora(lora: HubLora, tell: Tell) -> None:
    from huggingface_hub import hf_hub_download

    tell(f"fetching {lora.repo}: {lora.path}" + ("" if lora.sha256 else " (checksum not pinned)"))
    with hub_errors.translated(lora.repo):
        path = Path(hf_hub_download(lora.repo, lora.path))
    if lora.sha256 is not None and sha256(path) != lora.sha256:
        path.resolve().unlink()
        raise ModelMissing(
            f"{lora.path} of {lora.repo} is not the file that was pinned "
            f"(sha256 {lora.sha256}); it was removed. Fetch it again, or report the change."
        )


def _describe(folder: Path, made: Manifest) -> None:
    """Write the manifest of a downloaded folder, unless it came with one of ours."""
    try:
        found = manifest.read(folder)
    except ModelMissing:  # damaged
        found = None
    if found is None:
        try:
            replace(made, files=manifest.list_files(folder)).write(folder)
        except OSError as error:  # only `--verify` needs it
            log.warning("the manifest cannot be written to %s: %s", folder, error)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
