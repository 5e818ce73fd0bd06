"""Reads the tensors of a folder of safetensors files, several at a time.

Files are read and not mapped: over a network, a mapped file arrives in small pieces, and its memory
is freed with its tensor. Besides the tensors that it returned, it holds a few that are being read.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from wan_engine.errors import ConfigurationError

_READERS = 8  # as many as diffusers uses for the files of a network
_AHEAD = 2 * _READERS  # tensors, because the consumer may be slower
_LENGTH_BYTES = 8  # the length of the header, before it (format description of safetensors)

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """A tensor's place in its file, its dtype and its shape."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def entries(folder: Path) -> dict[str, Entry]:
    """The tensors of all safetensors files in `folder` by name, in the order of the files. Raises
    `ConfigurationError` for a file that is damaged or has numbers of another kind."""
    found: dict[str, Entry] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found.update(_header(path))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ConfigurationError(_damaged(path)) from error
    return found


def _header(path: Path) -> dict[str, Entry]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
    start = _LENGTH_BYTES + length
    header.pop("__metadata__", None)
    in_order = sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0]))
    return {
        name: Entry(
            path,
            start + int(given["data_offsets"][0]),
            _DTYPES[given["dtype"]],
            tuple(given["shape"]),
        )
        for name, given in in_order
    }


def read(
    wanted: Mapping[str, Entry], dtype_of: Callable[[str, torch.dtype], torch.dtype]
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """Read each tensor into host memory, in order, in the dtype that `dtype_of(name, its own)`
    returns.

    Closing the iterator stops the reading. Raises `ConfigurationError` for a file that is cut off.
    """

    def one(name: str) -> tuple[str, torch.Tensor]:
        entry = wanted[name]
        return name, _tensor(entry).to(dtype_of(name, entry.dtype))

    ahead: deque[Future[tuple[str, torch.Tensor]]] = deque()
    with ThreadPoolExecutor(_READERS, "weights") as pool:
        try:
            for name in wanted:
                ahead.append(pool.submit(one, name))
                if len(ahead) == _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _tensor(entry: Entry) -> torch.Tensor:
    raw = torch.empty(entry.size_bytes, dtype=torch.uint8)
    left: Any = memoryview(raw.numpy())  # type: ignore[arg-type]  # numpy's stubs know no buffer
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.offset)
        while left:
            count = file.readinto(left)  # the kernel reads at most 2 GB at a time
            if not count:
                raise ConfigurationError(_damaged(entry.path))
            left = left[count:]
    return raw.view(entry.dtype).reshape(entry.shape)


def _damaged(path: Path) -> str:
    return f"{path.parent.name}/{path.name} is damaged or cut off: fetch or prepare the model again"
