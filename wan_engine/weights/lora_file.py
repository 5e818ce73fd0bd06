"""Reads a LoRA file: its tensors by name and its metadata, or the reason why it is not one.

Only the header is read, without torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from wan_engine.errors import LoraRefused
from wan_engine.weights.files import read_json

Shape = tuple[int, ...]

_BEGINNINGS = (
    (b"<", "it is a web page, as a link that needs a login gives one"),
    (b"version https://git-lfs", "it is a pointer of git-lfs, and not the file itself"),
    (
        b"PK",
        "it is a pickle of torch; only safetensors files are loaded, because a pickle can run code",
    ),
    (b"\x80", "it is a pickle; only safetensors files are loaded, because a pickle can run code"),
    (b"GGUF", "it is a GGUF file"),
    (b"{", "it is JSON, as a server's error is"),
)
"""Magic bytes of files that people mistake for a LoRA, in the order of the check."""

_PEFT_WEIGHTS, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Tensor:
    """A tensor in the header; `dtype` is safetensors' name, such as `BF16`."""

    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Adapter:
    """The configuration of a peft adapter, from `adapter_config.json` or from the metadata that
    diffusers writes. Other files have an `.alpha` per layer, or none."""

    alpha: float | None = None
    rank: int | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)  # by pattern of the layer's name
    root: bool = False  # rank-stabilised: alpha is divided by the root of the rank

    def factor(self, names: Iterable[str], rank: int | None) -> float:
        """The factor for the matrix product of a layer without its own alpha. `names` are the
        layer's names; `rank` is the rank of its matrices, or None if they are full."""
        known = list(names)
        # As peft does (`get_pattern_key`): a regular expression for the end of a name.
        fits = (
            pattern
            for pattern in self.alphas
            if any(re.match(rf"(.*\.)?({pattern})$", name) for name in known)
        )
        found = next(fits, None)
        alpha = self.alpha if found is None else self.alphas[found]
        divisor = rank or self.rank
        if alpha is None or divisor is None:
            return 1.0
        return alpha / (math.sqrt(divisor) if self.root else divisor)


@dataclass(frozen=True)
class Header:
    """The tensors of a file by key, and the adapter's configuration."""

    tensors: Mapping[str, Tensor]
    adapter: Adapter


def read_header(path: Path) -> Header:
    """Read the header of a LoRA file. Raises `LoraRefused` with the reason if it is not
    one."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            tensors = {
                key: Tensor(str(one.get_dtype()), tuple(one.get_shape()))
                for key, one in slices.items()
            }
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise LoraRefused(f"{path.name} is not a LoRA file: {_why(path, error)}") from error
    if not tensors:
        raise LoraRefused(f"{path.name} is not a LoRA file: it has no tensor")
    return Header(tensors, _adapter(path, metadata))


def shapes(folder: Path) -> dict[str, Tensor]:
    """The parameters of a network in diffusers layout, by name, from the headers of its files."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(read_header(path).tensors)
    return found


def _why(path: Path, error: Exception) -> str:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
            if size == 0:
                return "it is empty"
            for beginning, words in _BEGINNINGS:
                if head.lstrip().startswith(beginning) and _is_long(head, size):
                    return words
            return _where_cut(file, size) or f"it is damaged ({error})"
    except OSError as unreadable:
        return f"it cannot be read ({unreadable.strerror or unreadable})"


def _is_long(head: bytes, size: int) -> bool:
    """Whether the header length at the start of a file is impossible. Other files may begin with a
    plausible one."""
    return int.from_bytes(head[:8], "little") > size


def _where_cut(file: Any, size: int) -> str | None:
    """The bytes missing at the end of a truncated file."""
    file.seek(0)
    header_bytes = int.from_bytes(file.read(8), "little")
    if size < 8 or size < 8 + header_bytes < size + 100_000_000:  # the format's longest header
        return f"it is cut off in its header, after {size} bytes. Fetch it again"
    if 8 + header_bytes > size:  # not a length, so it must not be read, even for an error
        return None
    try:
        header = json.loads(file.read(header_bytes))
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        end = 8 + header_bytes + max(int(entry["data_offsets"][1]) for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return f"it is cut off, {size} of {end} bytes are here. Fetch it again" if size < end else None


def _adapter(path: Path, metadata: Mapping[str, str]) -> Adapter:
    # `ss_network_alpha` of kohya's trainers is ignored on purpose. Their converters multiply it
    # into the weights and keep the entry; in other files, each layer has its `.alpha`.
    written = metadata.get("lora_adapter_metadata")
    beside = path.with_name(_PEFT_CONFIG)
    try:
        if written is not None:
            config = {
                key.removeprefix("transformer."): value
                for key, value in json.loads(written).items()
            }
        elif path.name == _PEFT_WEIGHTS and beside.is_file():
            config = read_json(beside)
        else:
            return Adapter()
        alpha = config.get("lora_alpha", config.get("alpha"))
        return Adapter(
            None if alpha is None else float(alpha),
            int(config["r"]) if config.get("r") else None,
            {
                re.compile(str(pattern)).pattern: float(one)
                for pattern, one in (config.get("alpha_pattern") or {}).items()
            },
            bool(config.get("use_rslora")),
        )
    except (
        *(OSError, ValueError, TypeError, AttributeError),
        *(OverflowError, RecursionError, re.error),
    ) as error:
        raise LoraRefused(
            f"{path.name} cannot be fused: its alpha cannot be read ({error})"
        ) from error
