"""Enlarges the model's frames with a network, a few at a time.

Its frames have exactly the clip's size, and no frame is made from two shots. Without a network, the
encoder scales (Lanczos) and this module does nothing. `weights/upscaler.py` decides which network.
torch and the packages are imported on first use.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from itertools import islice, pairwise
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wan_engine.control import Control
from wan_engine.errors import ConfigurationError, OutOfMemory
from wan_engine.media.frames import Frame, blend, ended, of_shot, one_by_one
from wan_engine.runtime import compiler
from wan_engine.runtime.faults import is_out_of_memory
from wan_engine.runtime.finite import require_finite
from wan_engine.schema import Frames, Plan

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_STAGE = "upscale"
_NO_ROOM = "The worker has too little GPU memory for the larger picture"
_TILE_PIXELS = 640  # a tile of this side takes about half a gigabyte in half precision
_TILE_MARGIN = 16  # pixels around a tile that are computed and discarded, against seams


class Upscaler(Protocol):
    """A loaded network. It gets `window` frames at a time. The first `overlap` of them are the last
    ones of the previous window."""

    window: int
    overlap: int

    def enlarge(self, frames: torch.Tensor, scale: float) -> torch.Tensor:
        """[n, 3, h, w] in 0..1 on its device, larger by `scale` or more."""
        ...


def load(kind: str, weights: Path, device: str) -> Upscaler:
    """Load the network of a `kind`, `realesrgan` or `kandinsky-sr`. Raises `ConfigurationError` if
    the weights are of another kind, and `OutOfMemory`."""
    try:
        return (KandinskySr if kind == "kandinsky-sr" else RealEsrgan)(weights, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_NO_ROOM) from error


def is_larger(plan: Plan) -> bool:
    """Whether the clip is larger than the model's render."""
    return plan.width > plan.crop_width or plan.height > plan.crop_height


def upscaled(plan: Plan) -> Plan:
    """The plan of a clip whose frames have its final size."""
    width, height = plan.width, plan.height
    return replace(
        plan, render_width=width, render_height=height, crop_width=width, crop_height=height
    )


def upscale(
    frames: Iterable[Frames], plan: Plan, upscaler: Upscaler, control: Control
) -> Generator[Frames, None, None]:
    """The middle of each frame as the plan crops it, enlarged to `plan.width` x `plan.height`. The
    number of frames stays the same. Raises `EncodeFailed` for another number than planned,
    `OutOfMemory` and `NotFinite`."""
    with closing(one_by_one(frames)) as source:
        for shot in plan.shots:
            own = of_shot(source, shot)
            for made in _windows(own, shot.source_frames, plan, upscaler, control):
                yield made
                control.enter(_STAGE)
        ended(source, plan)


def _windows(
    source: Iterator[Frame], count: int, plan: Plan, upscaler: Upscaler, control: Control
) -> Iterator[Frames]:
    """Cross-fade windows over the frames that they share."""
    overlap, held = upscaler.overlap, list[Frame]()
    before: list[Frame] = []
    for start in range(0, max(1, count - overlap), upscaler.window - overlap):
        held = held[len(held) - overlap :] if overlap else []
        held += islice(source, upscaler.window - len(held))
        control.enter(_STAGE)
        control.checkpoint()
        made = _enlarged(np.stack(held), plan, upscaler)
        for index, frame in enumerate(before):
            made[index] = blend(frame, made[index], (index + 1) / (overlap + 1))
        kept = len(made) if start + len(made) >= count else len(made) - overlap
        before = list(made[kept:])
        yield made[:kept]


def _enlarged(frames: Frames, plan: Plan, upscaler: Upscaler) -> Frames:
    import torch

    device = getattr(upscaler, "device", "cpu")
    target = np.empty((len(frames), plan.height, plan.width, 3), np.uint8)
    scale = max(plan.width / plan.crop_width, plan.height / plan.crop_height)
    try:
        with torch.inference_mode():
            pixels = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float().div(255)
            for index, made in enumerate(upscaler.enlarge(pixels, scale)):
                target[index] = _to_target(made, plan)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_NO_ROOM) from error
    return target


def _to_target(frame: torch.Tensor, plan: Plan) -> Frame:
    """Crop [3, H, W] as the plan crops the render, and scale it to the clip's size."""
    import torch
    from torch.nn.functional import interpolate

    require_finite(frame, "the network that enlarges")
    height, width = frame.shape[1:]
    inner_width = round(width * plan.crop_width / plan.render_width)
    inner_height = round(height * plan.crop_height / plan.render_height)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    inner = frame[None, :, top : top + inner_height, left : left + inner_width].float()
    if inner.shape[2:] != (plan.height, plan.width):
        size = (plan.height, plan.width)
        inner = interpolate(inner, size=size, mode="bicubic", antialias=True)
    pixels = inner[0].clamp(0, 1).mul(255).round_().to(torch.uint8)
    result: Frame = pixels.permute(1, 2, 0).cpu().numpy()
    return result


# --- frame by frame ------------------------------------------------------------------------------


class RealEsrgan:
    """Any checkpoint of an image network that spandrel supports: ESRGAN, Compact, SPAN, DAT,
    HAT."""

    window, overlap = 1, 0

    def __init__(self, weights: Path, device: str) -> None:
        """Raises `ConfigurationError` if the file contains no network that enlarges colour
        pictures."""
        import torch

        loader = import_module("spandrel").ModelLoader(device=device)
        try:
            self._model: Any = loader.load_from_file(weights)
        except Exception as error:  # spandrel, torch and pickle raise almost any exception
            if is_out_of_memory(error):
                raise
            raise ConfigurationError(
                f"WAN_UPSCALE_WEIGHTS names {weights}, which spandrel cannot read: {error}"
            ) from error
        channels = (self._model.input_channels, self._model.output_channels)
        if channels != (3, 3) or self._model.scale < 2 or self._model.purpose != "SR":
            raise ConfigurationError(
                f"WAN_UPSCALE_WEIGHTS names {weights}, which is not a network for larger colour "
                f"pictures: scale {self._model.scale}, channels {channels}"
            )
        self.device = torch.device(device)
        half = self.device.type == "cuda" and self._model.supports_half
        self._dtype = torch.float16 if half else torch.float32
        self._model.to(self.device, self._dtype).eval()

    def enlarge(self, frames: torch.Tensor, scale: float) -> torch.Tensor:
        """Enlarge each frame in tiles, by the network's own scale."""
        import torch

        factor = self._model.scale
        count, _, height, width = frames.shape
        made = torch.empty((count, 3, height * factor, width * factor), device=self.device)
        for index in range(count):
            for top, bottom in _tiles(height):
                for left, right in _tiles(width):
                    self._tile(frames[index : index + 1], made[index], (top, bottom, left, right))
        return made

    def _tile(
        self, frame: torch.Tensor, made: torch.Tensor, box: tuple[int, int, int, int]
    ) -> None:
        top, bottom, left, right = box
        above, before = max(0, top - _TILE_MARGIN), max(0, left - _TILE_MARGIN)
        tile = frame[:, :, above : bottom + _TILE_MARGIN, before : right + _TILE_MARGIN]
        factor = self._model.scale
        large = self._model(tile.to(self._dtype))[0]
        made[:, top * factor : bottom * factor, left * factor : right * factor] = large[
            :,
            (top - above) * factor : (bottom - above) * factor,
            (left - before) * factor : (right - before) * factor,
        ]


def _tiles(length: int) -> list[tuple[int, int]]:
    """Start and end of equal parts of `length`, each at most one tile long."""
    count = ceil(length / _TILE_PIXELS)
    edges = [index * length // count for index in range(count + 1)]
    return list(pairwise(edges))


# --- window by window ----------------------------------------------------------------------------


class KandinskySr:
    """Kandinsky 6 SR, the stock pipeline of diffusers, on windows of 33 frames. A whole clip of
    1080p would take 3 GB of the device for every 5 s."""

    window, overlap = 33, 4  # 1 + 4k frames, one latent frame of which is shared

    def __init__(self, weights: Path, device: str) -> None:
        import torch
        from diffusers import Kandinsky6SRPipeline

        self.device = torch.device(device)
        cuda = self.device.type == "cuda"
        dtype = torch.bfloat16 if cuda else torch.float32
        self._pipeline: Any = Kandinsky6SRPipeline.from_pretrained(
            str(weights), dtype=dtype, local_files_only=True
        ).to(self.device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._compiled = False
        if cuda:  # eager flex attention allocates the whole attention matrix
            self.compile()

    def compile(self) -> None:
        """Compile the blocks at their first call. If that fails, then or now, they run uncompiled,
        with a warning."""
        try:
            self._pipeline.transformer.compile_repeated_blocks(fullgraph=True)
            self._compiled = True
        except Exception as error:  # noqa: BLE001 - torch's compiler raises almost anything
            self._run_eagerly(error)

    def _run_eagerly(self, failed: Exception) -> None:
        log.warning("the upscaler runs uncompiled, slower and larger: %s", compiler.reason(failed))
        compiler.leave_uncompiled(self._pipeline.transformer)
        self._compiled = False

    def enlarge(self, frames: torch.Tensor, scale: float) -> torch.Tensor:
        """Enlarge by 2, 2.25 or 4, whichever is enough. The last frames are repeated to 1 + 4k."""
        import torch
        from torch.nn.functional import pad

        factor = next((known for known in (2, 2.25) if scale <= known), 4)
        count, _, height, width = frames.shape
        frames = torch.cat([frames, frames[-1:].expand(-(count - 1) % 4, -1, -1, -1)])
        most = max(max(size) for size in self._pipeline.transformer_tile_sizes)
        smallest = most // (2 if factor == 2.25 else factor)
        edges = (0, max(0, smallest - width), 0, max(0, smallest - height))
        padded = pad(frames, edges, mode="replicate")[None]
        made = self._enlarged(padded, factor)[:count]
        inner_height = round(made.shape[2] * height / (height + edges[3]))
        inner_width = round(made.shape[3] * width / (width + edges[1]))
        return made[:, :, :inner_height, :inner_width]

    def _enlarged(self, video: torch.Tensor, factor: float) -> torch.Tensor:
        import torch

        try:
            output = self._pipeline(
                video=video,
                resolution_scale=factor,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(0),  # each window with the same noise
                output_type="pt",
            )
        except Exception as error:
            compiling = self._compiled and compiler.failed_in_compiled_code(error)
            if is_out_of_memory(error) or not compiling:
                raise
            self._run_eagerly(error)
        else:
            made: torch.Tensor = output.frames[0]
            return made
        return self._enlarged(video, factor)
