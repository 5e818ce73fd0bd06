"""Checks folders of weights for missing and incomplete files, and reads the layout of the Hub's
cache.

It knows nothing about the catalogue.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

RUNPOD_HUB_CACHE = Path("/runpod-volume/huggingface-cache/hub")
"""Where Runpod puts an endpoint's cached model (docs.runpod.io,
serverless/endpoints/model-caching)."""

BAKED_HUB_CACHE = Path("/opt/wan/huggingface/hub")
"""Where the image keeps its built-in models."""

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w.][\w./+-]*))?")
_SHORT_COMMIT = re.compile(r"[0-9a-fA-F]{4,39}")
_HASH_CHUNK_BYTES = 8 * 1024 * 1024


def missing_in_layout(folder: Path) -> list[str]:
    """The files that a checkpoint in diffusers layout lacks, by its own index and headers, relative
    to `folder`."""
    if not (folder / "model_index.json").is_file():
        return ["model_index.json"]
    missing = []
    for component, entry in read_json(folder / "model_index.json").items():
        # An entry is [library, class]; [null, null] means that the pipeline works without it.
        if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None:
            missing += [f"{component}/{name}" for name in missing_in(folder / component)]
    return missing


def missing_in(folder: Path) -> list[str]:
    """Names of the files that are absent or cut off in the folder of one component."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return ["(all files)"]
    if cut := cut_off(folder, "*.safetensors"):
        return cut
    indexes = list(folder.glob("*.safetensors.index.json"))
    if indexes:
        shards = {
            str(name) for index in indexes for name in read_json(index)["weight_map"].values()
        }
        return sorted(name for name in shards if not (folder / name).is_file())
    # A network has config.json with weights next to it; tokenizer and scheduler have neither.
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        return ["*.safetensors"]
    return []


def cut_off(folder: Path, pattern: str = "**/*.safetensors") -> list[str]:
    """The safetensors files in `folder` that are shorter or longer than their headers say."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.glob(pattern)
        if not _is_complete(path)
    )


def _is_complete(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says: eight bytes with the header's
    length, the header, the tensors up to the largest offset (format description of safetensors)."""
    try:
        size = path.stat().st_size  # fails for a broken link
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


class Row(Protocol):
    """The fields that every downloadable row of the catalogue has."""

    @property
    def repo(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def is_toy(self) -> bool: ...


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Wanted(Generic[R]):
    """The meaning of a name that is not a folder: a row of the catalogue or a Hub repository, both
    at a `revision`. `named`: the name has it after `@`, as a branch, a tag or a commit. Lookups
    accept a shortened commit."""

    row: R | None
    repo: str | None
    revision: str | None
    named: bool = False

    @classmethod
    def read(cls, name: str, rows: Mapping[str, R]) -> Wanted[R] | None:
        """Parse `name`. None if it is neither a row nor of the form `owner/name`."""
        if (row := rows.get(name)) is not None:
            return cls(row, row.repo, row.revision)
        base, _, revision = name.partition("@")
        row = rows.get(base)
        if row is not None and row.repo and revision:
            return cls(row, row.repo, revision, named=True)
        found = _HUB_ID.fullmatch(name)
        if found is None:
            return None
        return cls(None, found["repo"], found["revision"], named=found["revision"] is not None)

    def find(self, usable: Callable[[Path], bool]) -> Path | None:
        """The first `usable` folder of the Hub caches: Runpod's, the user's, the image's.

        The pinned revision comes first, then `main`, then the latest download. If the revision is
        `named`, only that revision counts.
        """
        if self.repo is None:
            return None
        for folder in _candidates(self.repo, self.revision, self.named):
            if usable(folder):
                _tell_which(self.repo, self.revision, folder)
                return folder
        return None


def at_revision(repo: str, revision: str) -> Iterator[Path]:
    """The folders of a branch, tag or commit, complete or not, in each cache that knows it."""
    for cache in caches():
        home = _home(cache, repo)
        commit = _read_reference(home / "refs" / revision) or revision
        folder = home / "snapshots" / commit
        if _SHORT_COMMIT.fullmatch(revision) and not folder.is_dir():
            matches = list((home / "snapshots").glob(f"{revision.lower()}*"))
            folder = matches[0] if len(matches) == 1 else folder
        if "/" not in commit and folder.is_dir():
            yield folder


def _candidates(repo: str, revision: str | None, named: bool) -> Iterator[Path]:
    seen = set()
    pinned = at_revision(repo, revision) if revision else ()
    # Copied caches, and repositories downloaded by a commit or tag, have no `main`.
    others = () if named else chain(at_revision(repo, "main"), _newest_first(repo))
    for folder in chain(pinned, others):
        if folder not in seen:
            seen.add(folder)
            yield folder


def _newest_first(repo: str) -> list[Path]:
    found = [
        folder
        for cache in caches()
        for folder in _home(cache, repo).glob("snapshots/*")
        if folder.is_dir()
    ]
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _tell_which(repo: str, revision: str | None, folder: Path) -> None:
    """Log which folder is used, if it is not the pinned one."""
    if revision and folder not in at_revision(repo, revision):
        log.warning("%s is cached at %s, not at the pinned %s", repo, folder.name, revision)
    elif not revision and folder not in at_revision(repo, "main"):
        log.info("%s is cached at %s, which is not known as its `main`", repo, folder.name)


def _read_reference(path: Path) -> str | None:
    """The commit of a branch or tag in the cache, or None if it is not there."""
    try:
        return path.read_text().strip() or None
    except (OSError, ValueError):
        return None


def caches() -> tuple[Path, ...]:
    """The folders in the Hub's cache layout, in the order of lookup."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return RUNPOD_HUB_CACHE, Path(HF_HUB_CACHE), BAKED_HUB_CACHE


def _home(cache: Path, repo: str) -> Path:
    return cache / f"models--{repo.replace('/', '--')}"


def cached_file(repo: str, path: str) -> Path | None:
    """One file of a repository in a Hub cache, of any downloaded revision, `main` first. Another
    download from the repository moves `main`."""
    files = (folder / path for folder in _candidates(repo, None, False))
    return next((file for file in files if file.is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def sha256(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """A file's hash in hexadecimal. `on_bytes` gets the size of each block that was read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()
