"""Checks on a GPU, in seconds: the accuracy of 8 bits, the memory that recipes count, stored float8
weights against this card's own, and texts as this version of transformers reads them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_errors import kernel
from benchmarks.gpu_loading import write
from benchmarks.gpu_networks import TINY, Scale, device, seconds_of, synchronize, transformer
from benchmarks.gpu_parts import Case, attempt
from wan_engine.families import attention8, float8
from wan_engine.families.loading import load_pipeline
from wan_engine.families.placement import embed_times_in_tf32
from wan_engine.runtime import cores, memory
from wan_engine.runtime.recipes import Recipe

_PINNED_BYTES = 1_100_000_000  # a power of two is 2.1 GB
_TI2V_TOKENS = 27_280  # of 1280x704x121


def checks(scale: Scale) -> Iterator[Case]:
    """The checks, one case each. A case that fails has its error."""
    for work in (cores_here, front_end, matrices, attention, pinned, stored, texts):
        yield attempt({"case": work.__name__}, work)
    yield attempt({"case": "times"}, lambda: times(scale))
    yield attempt({"case": "handles"}, handles)  # slow to build, so last


def cores_here() -> Case:
    """The cores of the container, and those that the host shows."""
    return {"cores": cores.count(), "host_cores": os.cpu_count()}


def front_end() -> Case:
    """cuDNN's front end. Without it, attention is exact."""
    version = importlib.metadata.version("nvidia-cudnn-frontend")
    if torch.cuda.is_available():
        import cudnn

        return {"version": version, "cudnn": cudnn.backend_version()}
    return {"version": version}


def matrices() -> Case:
    """A worker's start test of float8 matrices."""
    return {"off": float8.check(device())}


def attention() -> Case:
    """A worker's start test of 8-bit attention, with the heads of A14B, or with fewer if it is
    emulated."""
    heads = 40 if torch.cuda.is_available() else 2
    with kernel():
        return dict(attention8.check(heads, 128, device()))


def handles() -> Case:
    """Device memory after attention at as many sizes as cuDNN's plans are kept for, and at twice
    as many. A second figure well above the first means that old plans are not freed."""
    used = []
    with kernel():
        for count in (attention8.GRAPHS_KEPT, 2 * attention8.GRAPHS_KEPT):
            for index in range(count):
                shape = (1, 128 * (index + 1), 2, 128)
                states = torch.ones(shape, device=device(), dtype=torch.bfloat16)
                attention8.attention(states, states, states)
            used.append(_device_gb())
    return {"gb": used[0], "later_gb": used[1]}


def _device_gb() -> float:
    if not torch.cuda.is_available():
        return 0.0
    synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9


def pinned() -> Case:
    """Host memory of pinned tensors, and after their release. Twice the size means that the
    allocator's options did not reach torch."""
    if not torch.cuda.is_available():
        return {"asked_gb": 0.0}
    torch.cuda.init()
    before = _resident_gb()
    block = torch.empty(_PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    block.fill_(1)
    taken = _resident_gb() - before
    allocated = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0) / 1e9
    del block
    memory.free_accelerator()
    left = _resident_gb() - before
    return {
        "asked_gb": _PINNED_BYTES / 1e9,
        "taken_gb": taken,
        "allocated_gb": allocated,
        "left_gb": left,
        "setting": os.environ.get("PYTORCH_ALLOC_CONF", ""),
    }


def _resident_gb() -> float:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    line = next(line for line in lines if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e9


def stored() -> Case:
    """Whether a matrix that a CPU converts, as `builder.prepare` does, equals this card's result
    bit for bit."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(512, 1024, generator=generator).mul(0.02).bfloat16()
    there, here = float8.to_float8(rows), float8.to_float8(rows.to(device()))
    pairs = zip(there, here, strict=True)
    same = [torch.equal(one.float(), other.cpu().float()) for one, other in pairs]
    if not all(same):
        raise ValueError(f"weights alike: {same[0]}, scales alike: {same[1]}")
    return {"alike": True}


def times(scale: Scale) -> Case:
    """A time embedded for every token, as in TI2V: float32 and TF32."""
    embedder: Any = transformer(scale, layers=1).condition_embedder.time_embedder
    count = _TI2V_TOKENS if torch.cuda.is_available() else 8
    given = torch.randn(count, int(scale.transformer["freq_dim"]), device=device())
    with torch.inference_mode():
        exact = embedder(given)
        before = seconds_of(lambda: embedder(given))
        embed_times_in_tf32(embedder)
        after = seconds_of(lambda: embedder(given))
        error = float((embedder(given) - exact).norm() / exact.norm())
    return {"float32_ms": before * 1e3, "tf32_ms": after * 1e3, "off": error}


def texts() -> Case:
    """Whether the worker's loader keeps the text encoder's tied weights one tensor, and the
    tokenizer's ids those of its file, although the file has a normalizer."""
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(TINY, 1, folder)
        file = folder / "tokenizer" / "tokenizer.json"
        content = json.loads(file.read_text("utf-8"))
        content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}
        file.write_text(json.dumps(content), "utf-8")
        pipeline = load_pipeline(folder, Recipe("cpu", "bfloat16"))
        ids = pipeline.tokenizer("A Rocket").input_ids
        alike = ids == Tokenizer.from_file(str(file)).encode("A Rocket").ids
    encoder = pipeline.text_encoder
    tied = encoder.encoder.embed_tokens.weight is encoder.shared.weight
    if not (tied and alike):
        raise ValueError(f"weights tied: {tied}, ids alike: {alike}")
    return {"tied": True, "ids_alike": True}
