"""Reads and writes the `manifest.json` of a set of weights: its files with sizes and hashes, its
source, and the LoRA files that are fused into it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from wan_engine.catalog import HubLora
from wan_engine.errors import ModelMissing
from wan_engine.weights.files import read_json, sha256

NAME = "manifest.json"
_FORMAT = "wan-engine-manifest-1"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """A file of the set. Its path is relative to the folder, with `/`."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Fused:
    """A LoRA that was fused into the weights. `file` is its name without folder."""

    file: str
    sha256: str
    scale: float
    expert: str

    def is_from(self, lora: HubLora) -> bool:
        """Whether this is the LoRA file of a catalogue row, at its scale."""
        same = (self.file, self.scale, self.expert)
        pinned = lora.sha256 is None or lora.sha256 == self.sha256
        return pinned and same == (Path(lora.path).name, lora.scale, lora.expert)


@dataclass(frozen=True)
class Manifest:
    """A manifest. `model` is the catalogue's name or the Hub id, `precision` that of the stored
    experts, `made_with` the versions by package of a prepared set."""

    model: str
    repo: str | None
    revision: str | None
    files: tuple[File, ...]
    fused: tuple[Fused, ...] = ()
    precision: str = "as published"
    made_with: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`, completely or not at all."""
        scratch = folder / f".{NAME}.{os.getpid()}"
        content = {"format": _FORMAT, **asdict(self)}
        scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        scratch.replace(folder / NAME)


def read(folder: Path) -> Manifest | None:
    """Read the manifest in `folder`. None if there is none, or if another program wrote it.

    Raises `ModelMissing` if it cannot be read.
    """
    if not (folder / NAME).is_file():
        return None
    try:
        content = read_json(folder / NAME)
        if content.pop("format", None) != _FORMAT:
            return None
        files = tuple(File(**entry) for entry in content.pop("files"))
        fused = tuple(Fused(**entry) for entry in content.pop("fused"))
        return Manifest(files=files, fused=fused, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelMissing(
            f"{NAME} in {folder.name} is damaged. Fetch or prepare the model again."
        ) from error


def is_float8(folder: Path) -> bool:
    """Whether `folder` is a prepared set with its experts in float8."""
    found = read(folder)
    return found is not None and found.precision.startswith("float8")


def absent(folder: Path) -> list[str]:
    """The files of the manifest that are absent or have another size; empty without a manifest."""
    try:
        manifest = read(folder)
    except ModelMissing:
        return [NAME]
    return [file.path for file in manifest.files if not _has(folder, file)] if manifest else []


def list_files(folder: Path, on_bytes: Callable[[int], None] = lambda _: None) -> tuple[File, ...]:
    """Every file below `folder`, with its hash. `on_bytes` gets the size of each block that was
    read.

    In the Hub's cache a large file is a link whose target is named by its hash on the Hub. That
    hash is used, which avoids reading 100 GB.
    """
    return tuple(_files(folder, on_bytes))


def damaged(
    folder: Path, files: Sequence[File], on_bytes: Callable[[int], None] = lambda _: None
) -> list[str]:
    """The files that are absent or whose content differs from the manifest. Reads all of them."""
    return [
        file.path
        for file in files
        if not _has(folder, file) or sha256(folder / file.path, on_bytes) != file.sha256
    ]


def _has(folder: Path, file: File) -> bool:
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.size


def _files(folder: Path, on_bytes: Callable[[int], None]) -> Iterator[File]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name.startswith(".") or name == NAME:
            continue
        published = path.resolve().name if path.is_symlink() else ""
        digest = published if _SHA256.fullmatch(published) else sha256(path, on_bytes)
        yield File(name, path.stat().st_size, digest)
