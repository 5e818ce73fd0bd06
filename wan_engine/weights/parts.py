"""Builds a checkpoint in diffusers layout from links, for a row whose repository has another layout
and lacks parts that a second repository has."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from wan_engine.catalog import ModelSpec, Part, known_models
from wan_engine.settings import Settings
from wan_engine.toy.cache import own_folder
from wan_engine.weights import manifest
from wan_engine.weights.files import Wanted, missing_in

log = logging.getLogger(__name__)


def composed(spec: ModelSpec, own: Path, settings: Settings) -> Path | None:
    """Return the folder with the parts of `spec`. The row's own parts are in `own`. Returns None
    while a part is missing or incomplete. Copies nothing."""
    if not spec.parts or manifest.absent(own):
        return None
    folders = {part.name: _folder(part, own, settings) for part in spec.parts}
    found = {name: folder for name, folder in folders.items() if folder is not None}
    return _linked(spec, found, settings) if len(found) == len(folders) else None


def _folder(part: Part, own: Path, settings: Settings) -> Path | None:
    def usable(folder: Path) -> bool:
        return not missing_in(folder / part.path)

    if part.repo is None:
        return own / part.path if usable(own) else None
    beside = next(filter(usable, _named_folders(part, settings)), None)
    found = beside or Wanted(None, part.repo, part.revision).find(usable)
    return None if found is None else found / part.path


def _named_folders(part: Part, settings: Settings) -> Iterator[Path]:
    """Yield the folders in which an operator may have put the repository of a part, by the names of
    its rows."""
    for row in known_models().values():
        if row.repo == part.repo:
            yield settings.models_dir / row.name


def _linked(spec: ModelSpec, folders: Mapping[str, Path], settings: Settings) -> Path:
    targets = {name: str(folder.absolute()) for name, folder in folders.items()}
    digest = hashlib.sha256(json.dumps(targets, sort_keys=True).encode()).hexdigest()[:12]
    place = Path("composed", f"{spec.name}-{digest}")
    try:
        return _made(settings.cache_dir.expanduser() / place, targets)
    except OSError as error:
        fallback = own_folder() / place
        log.info("%s is not writable (%s); using %s", settings.cache_dir, error, fallback)
        return _made(fallback, targets)


def _made(folder: Path, targets: Mapping[str, str]) -> Path:
    """Make `folder` with a link to each target and an index of them, completely or not at all."""
    if (folder / "model_index.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".composed-", dir=folder.parent))
    try:
        for name, target in targets.items():
            (scratch / name).symlink_to(target, target_is_directory=True)
        index = {name: ["wan_engine", name] for name in targets}
        (scratch / "model_index.json").write_text(json.dumps(index, indent=1))
        scratch.chmod(0o755)
        scratch.rename(folder)
    except OSError:
        if not (folder / "model_index.json").is_file():  # otherwise another process has made it
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
