"""Renders a whole clip with full-size random networks: the engine against stock diffusers.

Both sides have the same networks, prompt, picture, steps and frames. Ours is `Engine.generate`,
from a data URI to a stored mp4. Stock is `WanImageToVideoPipeline` as its documentation uses it,
with `export_to_video`, from an opened picture.
"""

from __future__ import annotations

import base64
import gc
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import gpu_parts
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
from wan_engine.runtime import memory

if TYPE_CHECKING:
    from wan_engine import Engine
    from wan_engine.families.i2v import ImageToVideo

_PROMPT = "The camera moves slowly towards the mountains while clouds drift over the lake."
_ROW = "wan2.2-i2v-a14b-4step"


def pipeline(scale: Scale, *, on: torch.device) -> Any:
    """The parts of a four-step A14B, on the device `on`."""
    from diffusers import AutoencoderKLWan

    from wan_engine.catalog import CATALOG
    from wan_engine.families.continuation import ContinuingPipeline
    from wan_engine.families.i2v import make_scheduler
    from wan_engine.toy.checkpoints import tokenizer

    assert AutoencoderKLWan  # imported before the networks, so that no import is timed
    return ContinuingPipeline(
        tokenizer=tokenizer(),
        text_encoder=text_encoder(scale).to(on),
        vae=vae(scale, torch.float32).to(on),
        scheduler=make_scheduler(CATALOG[_ROW]),
        transformer=transformer(scale).to(on),
        transformer_2=transformer(scale).to(on),
        boundary_ratio=0.9,
    )


def job(scale: Scale) -> Iterator[Case]:
    """Seconds and memory of one clip: ours with exact attention, ours in 8 bits, stock. Compare the
    second job of each."""
    started = time.perf_counter()
    parts = pipeline(scale, on=device())
    synchronize()
    yield {"case": "networks made", "seconds": time.perf_counter() - started}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made: list[Engine] = []

        def set_up(precision: str) -> Case:
            started = time.perf_counter()
            engine = _engine(parts, scale, folder, None, precision=precision)
            set_up = time.perf_counter()
            engine.pool.warm_up(engine.limits)
            synchronize()
            made.append(engine)
            return {"set_up_s": set_up - started, "warm_up_s": time.perf_counter() - set_up}

        yield attempt({"case": "ours, set up"}, lambda: set_up("auto"))
        if not made:  # float8 does not work on this machine
            parts = pipeline(scale, on=device())
            yield attempt({"case": "ours, set up"}, lambda: set_up("bfloat16"))
        for case, fps in _JOBS.items():
            yield attempt({"case": f"ours, {case}"}, lambda f=fps: clip(made[0], scale, f))
        yield attempt({"case": "8-bit attention, set up"}, lambda: _in_8_bits(made[0], parts))
        for case in ("ours, 8-bit attention", "ours, 8-bit attention, second job"):
            yield attempt({"case": case}, lambda: clip(made[0], scale))
        short = replace(scale, frames=5)
        if made and _chosen("stock"):  # our engine uses its networks now
            made.clear()
            parts = None
            gc.collect()
            parts = pipeline(scale, on=device())
        yield attempt({"case": "stock, short"}, lambda: _stock(parts, short, folder / "s.mp4", 1))
        yield attempt({"case": "stock"}, lambda: _stock(parts, scale, folder / "stock.mp4", 4))


_JOBS = {"30 fps": "30", "30 fps, second job": "30", "native fps": "native"}


def _chosen(case: str) -> bool:
    return not gpu_parts.chosen or case in gpu_parts.chosen


def _in_8_bits(engine: Engine, parts: Any) -> Case:
    """The same networks with 8-bit attention, once its test has passed; without a GPU, with
    torch's."""
    from wan_engine.families import attention8
    from wan_engine.families.placement import set_attention

    started = time.perf_counter()
    config = parts.transformer.config
    heads, width = config.num_attention_heads, config.attention_head_dim
    wanted = "float8" if _gpu() else "native"
    errors = attention8.check(heads, width, device()) if _gpu() else {}
    for expert in (parts.transformer, parts.transformer_2):
        set_attention(expert, wanted)
    family = family_of(engine)
    family.recipe = replace(family.recipe, attention=wanted)
    engine.pool.warm_up(engine.limits)
    synchronize()
    took = time.perf_counter() - started
    return {"warm_up_s": took, "errors": dict(errors), "attention": family.attention}


def cards(scale: Scale) -> Iterator[Case]:
    """The recipes that smaller cards get, with this one's memory cut down to theirs: does a clip
    fit, and what does a step cost? Two steps, one for each expert; this card's speed."""
    from wan_engine.runtime.recipes import Gpu

    total = torch.cuda.get_device_properties(0).total_memory / 1e9 if _gpu() else 1.0
    for gb in (25.3, 34.2, 47.7, 85.0):

        def work(gb: float = gb) -> Case:
            card = Gpu(f"a card of {gb:g} GB", gb, (8, 9))
            if _gpu():
                torch.cuda.set_per_process_memory_fraction(1.0)
            parts = pipeline(scale, on=torch.device("cpu"))
            gc.collect()
            if _gpu():
                torch.cuda.empty_cache()
                torch.cuda.set_per_process_memory_fraction(min(1.0, gb / total))
            with tempfile.TemporaryDirectory() as name:
                engine = _engine(parts, scale, Path(name), card if _gpu() else None, steps=2)
                found = clip(engine, scale, "native")
            return {**found, "weights": "random"}

        yield attempt({"case": f"{gb:g} GB"}, work)


def _gpu() -> bool:
    return torch.cuda.is_available()


def _picture(scale: Scale) -> Any:
    from PIL import Image

    generator = torch.Generator().manual_seed(1)
    small = torch.randint(0, 255, (9, 16, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(small).resize((max(scale.width, 320), max(scale.height, 240)))


def _stock(parts: Any, scale: Scale, path: Path, steps: int) -> Case:
    from diffusers import WanImageToVideoPipeline
    from diffusers.utils import export_to_video

    stock = WanImageToVideoPipeline(**parts.components, boundary_ratio=0.9)
    stock.set_progress_bar_config(disable=True)
    synchronize()
    started = time.perf_counter()
    output = stock(
        image=_picture(scale),
        prompt=_PROMPT,
        height=scale.height,
        width=scale.width,
        num_frames=scale.frames,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(1),
    ).frames[0]
    sampled = time.perf_counter()
    export_to_video(output, str(path), fps=16)
    done = time.perf_counter()
    return {
        "seconds": done - started,
        "export_s": done - sampled,
        "peak_gb": peak_gb(),
        "clip_bytes": path.stat().st_size,
    }


def _engine(
    parts: Any,
    scale: Scale,
    folder: Path,
    card: Any,
    steps: int | None = None,
    precision: Any = "auto",
) -> Engine:
    """An engine whose model is `parts`, placed by the recipe for `card` (None: the one here)."""
    from wan_engine import Settings
    from wan_engine.engine import Engine
    from wan_engine.families.i2v import ImageToVideo
    from wan_engine.families.placement import apply
    from wan_engine.runtime import recipes

    settings = Settings(
        model="wan-tiny",
        safety="off",
        precision=precision,
        attention="cudnn" if _gpu() else "auto",
        scratch_dir=folder,
        output_dir=folder / "outputs",
        cache_dir=folder / "cache",
        scratch_min_gb=0.1,
    )
    engine = Engine(settings)
    engine.pool.main.spec = row_of(scale, steps=steps or 4)
    engine.pool.gpu = card or engine.pool.gpu
    engine.pool.main.recipe, engine.pool.main.recipe_reason = recipes.choose(
        engine.spec, engine.pool.gpu, settings
    )
    engine.pool.main.recipe = apply(parts, engine.recipe)
    engine.pool.main.family = ImageToVideo(parts, engine.spec, engine.recipe)
    return engine


def family_of(engine: Engine) -> ImageToVideo:
    """The main model, which is loaded."""
    family: Any = engine.pool.main.family
    loaded: ImageToVideo = family
    return loaded


def row_of(scale: Scale, *, steps: int = 4, **changes: Any) -> Any:
    """The four-step row, at the size of `scale`."""
    from wan_engine.catalog import CATALOG

    return replace(
        CATALOG[_ROW],
        steps=steps,
        max_area=scale.width * scale.height,
        max_frames=max(scale.frames, 81),
        **changes,
    )


def clip(engine: Engine, scale: Scale, fps: str = "30") -> Case:
    """A job of 5 s, from a data URI to an mp4."""
    from wan_engine import VideoRequest

    engine.limits = replace(engine.limits, fps=None if fps == "native" else int(fps))
    buffer = io.BytesIO()
    _picture(scale).save(buffer, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    request = VideoRequest(prompt=_PROMPT, image=uri, seed=1, duration=5)
    peak_gb(reset=True)
    synchronize()
    started = time.perf_counter()
    result = engine.generate(request)
    took = time.perf_counter() - started
    stages = {stage: round(seconds, 2) for stage, seconds in result.stage_seconds.items()}
    return {
        "seconds": took,
        "stages": stages,
        "recipe": str(engine.recipe),
        "attention": family_of(engine).attention,
        "reason": engine.pool.main.recipe_reason,
        "host_gb": memory.peaks()["host"] / 1e3,
        "peak_gb": peak_gb(),
    }
