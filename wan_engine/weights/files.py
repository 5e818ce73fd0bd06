"""Folders of weights: which files belong there, whether they are whole, and the Hub's cache layout.

It knows nothing of the catalogue.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

RUNPOD_HUB_CACHE = Path("/runpod-volume/huggingface-cache/hub")
"""Where Runpod puts an endpoint's cached model (docs.runpod.io,
serverless/endpoints/model-caching)."""

BAKED_HUB_CACHE = Path("/opt/wan/huggingface/hub")
"""Where the image has the models that are part of it."""

_HASH_CHUNK_BYTES = 8 * 1024 * 1024


def missing_in_layout(folder: Path) -> list[str]:
    """What a checkpoint in diffusers layout lacks by its own index and headers, relative to
    `folder`."""
    if not (folder / "model_index.json").is_file():
        return ["model_index.json"]
    missing = []
    for component, entry in read_json(folder / "model_index.json").items():
        # An entry is [library, class]; [null, null] says that the pipeline goes without.
        if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None:
            missing += [f"{component}/{name}" for name in missing_in(folder / component)]
    return missing


def missing_in(folder: Path) -> list[str]:
    """Names of what is absent or cut off in the folder of one component."""
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
    # A network has config.json and weights beside it; tokenizer and scheduler have neither.
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        return ["*.safetensors"]
    return []


def cut_off(folder: Path, pattern: str = "**/*.safetensors") -> list[str]:
    """The safetensors files in `folder` that are not as long as their headers say."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.glob(pattern) if not _is_whole(path)
    )


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


def snapshots(repo: str, revision: str | None) -> Iterator[Path]:
    """A repository's folders in Runpod's and the user's Hub cache, complete or not: the pinned
    revision first, then `main`."""
    homes = [_home(cache, repo) for cache in caches()]
    if revision:
        pinned = (home / "snapshots" / revision for home in homes)
        yield from (folder for folder in pinned if folder.is_dir())
    for home in homes:
        reference = home / "refs" / "main"
        if reference.is_file():
            folder = home / "snapshots" / reference.read_text().strip()
            if folder.name == revision:
                continue
            if revision:
                log.warning("%s is cached at %s, not at the pinned %s", repo, folder.name, revision)
            yield folder


def caches() -> tuple[Path, ...]:
    """The folders in the Hub's cache layout, in the order in which they are looked at."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return RUNPOD_HUB_CACHE, Path(HF_HUB_CACHE), BAKED_HUB_CACHE


def _home(cache: Path, repo: str) -> Path:
    return cache / f"models--{repo.replace('/', '--')}"


def cached_file(repo: str, path: str) -> Path | None:
    """One file of a repository in a Hub cache, of any revision that was fetched: another download
    from the repository moves its `main`."""
    found = (
        folder / path for cache in caches() for folder in _home(cache, repo).glob("snapshots/*")
    )
    return next((file for file in sorted(found) if file.is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def sha256(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """A file's hash in hexadecimal; `on_bytes` is told the size of each block that was read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()
