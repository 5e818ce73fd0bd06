"""Measures loading from files to the device, and its peak of host memory: stock diffusers for one
expert, the worker's loader for a whole model.

Both experts of the folder are links to one, which halves the disk space and leaves the work
unchanged.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_networks import (
    Scale,
    device,
    peak_gb,
    synchronize,
    text_encoder,
    transformer,
    vae,
)
from benchmarks.gpu_parts import Case, attempt
from wan_engine.families.loading import load_pipeline
from wan_engine.families.placement import able
from wan_engine.runtime import memory
from wan_engine.runtime.recipes import Recipe
from wan_engine.weights.files import read_json

_LAYERS = 10  # of 40: enough to see the cost of a block, with 7 GB instead of 29
_SPARE = 1.2
_INDEX = {
    "_class_name": "WanImageToVideoPipeline",
    "boundary_ratio": 0.9,
    "expand_timesteps": False,
    "image_encoder": [None, None],
    "image_processor": [None, None],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def loading(scale: Scale) -> Iterator[Case]:
    """Measure with ten layers per expert, or with all of them if the cases name `full size` and the
    disk has room."""
    yield from _of(scale, min(_LAYERS, scale.layers), "")


def loading_full(scale: Scale) -> Iterator[Case]:
    """Measure at full size: 29 GB of bfloat16 per expert, 11 for the text encoder."""
    yield from _of(scale, scale.layers, ", full size")


def _of(scale: Scale, layers: int, size: str) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        write(scale, layers, folder)
        files = [path for path in folder.rglob("*.safetensors") if not path.parent.is_symlink()]
        yield {
            "case": f"save{size}",
            "seconds": time.perf_counter() - started,
            "gb": sum(path.stat().st_size for path in files) / 1e9,
            "layers": layers,
        }
        for cold in (True, False):
            case = {"case": f"stock, one expert{size}", "cold": cold}
            yield attempt(case, lambda cold=cold: _stock(folder, cold=cold))
        for kind, recipe in _recipes().items():
            for cold in (True, False):
                case = {"case": f"line, {kind}{size}", "cold": cold}
                yield attempt(case, lambda r=recipe, c=cold: _line(folder, r, cold=c))


def _recipes() -> dict[str, Recipe]:
    on = device().type
    if on == "cpu":
        return {"resident": Recipe("meta", "bfloat16"), "on the CPU": Recipe(on, "bfloat16")}
    return {
        "resident": Recipe(on, "bfloat16"),
        "resident, float8": Recipe(on, "bfloat16", float8=True),
        "streamed, float8": Recipe(on, "bfloat16", "stream", "moved", float8=True),
    }


def write(scale: Scale, layers: int, folder: Path) -> None:
    """A checkpoint in diffusers layout with random weights."""
    from diffusers import UniPCMultistepScheduler

    from wan_engine.toy.checkpoints import tokenizer

    (folder / "model_index.json").write_text(json.dumps(_INDEX))
    tokenizer().save_pretrained(folder / "tokenizer")
    UniPCMultistepScheduler(use_flow_sigmas=True).save_pretrained(folder / "scheduler")
    for name, make in {
        "transformer": lambda: transformer(scale, layers),
        "text_encoder": lambda: text_encoder(scale),
        "vae": lambda: vae(scale, torch.float32),
    }.items():
        network: Any = make()
        need = sum(one.nbytes for one in network.parameters()) * _SPARE
        if need > shutil.disk_usage(folder).free:
            raise OSError(f"{name} needs {need / 1e9:.0f} GB of disk")
        network.save_pretrained(folder / name, max_shard_size="5GB")
        del network
        gc.collect()
    (folder / "transformer_2").symlink_to(folder / "transformer")


def _stock(folder: Path, *, cold: bool) -> Case:
    from diffusers import WanTransformer3DModel

    def work() -> Any:
        return WanTransformer3DModel.from_pretrained(
            folder / "transformer", torch_dtype=torch.bfloat16
        ).to(device())

    return _timed(folder, work, cold=cold)


def _line(folder: Path, recipe: Recipe, *, cold: bool) -> Case:
    config = read_json(folder / "transformer" / "config.json")
    return _timed(folder, lambda: load_pipeline(folder, able(recipe, config)), cold=cold)


def _timed(folder: Path, work: Any, *, cold: bool) -> Case:
    """Time a load. `host_gb` is the peak of the process above its start, including pages of mapped
    files."""
    if cold:
        _drop_page_cache(folder)
    memory.free_accelerator()
    memory.reset_peaks()
    before = memory.peaks()["host"]
    started = time.perf_counter()
    made = work()
    synchronize()
    took = time.perf_counter() - started
    found = {
        "seconds": took,
        "host_gb": (memory.peaks()["host"] - before) / 1e3,
        "peak_gb": peak_gb(),
    }
    del made
    return found


def _drop_page_cache(folder: Path) -> None:
    """Drop these files from the page cache, so that the next read comes from the disk."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
