"""Helpers of the engine's tests: clips and their frames, and families that replace the model."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from PIL import Image

from tests.small import FEWEST
from wan_engine import Control, Engine, Settings, VideoRequest
from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.families import load_family
from wan_engine.media import ffmpeg
from wan_engine.prompts import Expansion
from wan_engine.render import model_frames
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import Carry, Clip, FirstPicture, Media, Order, Plan, SegmentInput

ROOT = Path(__file__).parents[2]


MakeSettings = Callable[..., Settings]
SMALLEST: dict[str, Any] = {"preset": "superfast", "render_area": 64 * 48}


RequestFor = Callable[..., VideoRequest]
OrderFor = Callable[..., Order]


def few_frames(settings: Settings, **options: Any) -> Engine:
    """An engine with `options`, on `wan-tiny` with few frames (`tests.small`)."""
    engine = Engine(settings, **options)
    engine.pool.main.spec = replace(engine.spec, **FEWEST)
    return engine


def chunks_of(family: Any, plan: Plan, media: Media) -> Iterator[np.ndarray]:
    """The frames of a clip that `family` makes alone."""
    return model_frames(lambda _task: family, plan, media, lambda _spec: "", Control())


def local(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def probe(path: Path) -> str:
    command = [ffmpeg.executable(), "-hide_banner", "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def frame_hashes(path: Path) -> list[str]:
    command = [
        ffmpeg.executable(),
        "-v",
        "error",
        "-i",
        str(path),
        "-map",
        "0:v",
        "-f",
        "framemd5",
        "-",
    ]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split(",")[-1].strip() for line in lines if not line.startswith("#")]


def clip_frames(path: Path, width: int, height: int) -> np.ndarray:
    command = [ffmpeg.executable(), "-v", "error", "-i", str(path), "-vf"]
    command += [f"scale={width}:{height}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def visible(original: Image.Image, plan: Plan) -> np.ndarray:
    """The part in the middle of the picture that crops leave, at the picture's own size, with one
    scale for both axes."""
    width, height = original.size
    scale = max(plan.render_width / width, plan.render_height / height)
    half_width, half_height = plan.crop_width / scale / 2, plan.crop_height / scale / 2
    box = (width / 2 - half_width, height / 2 - half_height)
    box += (width / 2 + half_width, height / 2 + half_height)
    return np.asarray(original.resize(original.size, Image.Resampling.BILINEAR, box=box))


class Double:
    """The methods of a family other than `denoise` and `decode`."""

    spec: ModelSpec

    def render(self, segment: SegmentInput, on_step: Callable[[int], None]) -> Clip:
        latents = self.denoise(segment, on_step)
        return Clip(self.decode(latents, segment.carry, continued=segment.continued))

    def denoise(self, segment: SegmentInput, on_step: Callable[[int], None]) -> Any:
        raise NotImplementedError

    def decode(
        self, latents: Any, carry: Carry | None = None, *, continued: bool = False
    ) -> Generator[np.ndarray, None, None]:
        raise NotImplementedError


def prepared(engine: Engine, request: VideoRequest, folder: Path) -> tuple[Media, Expansion]:
    order = request.order()
    made = engine.prepare(order, engine.choose(order), folder, Control())
    return made.media, made.expansion


def first_picture(segment: SegmentInput) -> Image.Image:
    found = segment.find(FirstPicture)
    assert found is not None
    return found.image


class LongRun(Double):
    """A family whose frame t is a picture of t alone, however it is split into segments.

    A later segment begins with the last frames of the segment before. The joined segments must
    equal one long run to the bit. The family records its inputs.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.asked: list[SegmentInput] = []
        self.ends = 0  # the number of the frame after the last sampled one
        self.decoded = 0

    def denoise(self, segment: SegmentInput, on_step: Callable[[int], None]) -> Any:
        self.asked.append(segment)
        for step in range(self.spec.steps):
            on_step(step + 1)
        return segment

    def decode(
        self, latents: Any, carry: Carry | None = None, *, continued: bool = False
    ) -> Generator[np.ndarray, None, None]:
        assert carry is latents.carry
        first = 0 if self.spec.overlap_frames else self.ends  # continues without a common frame
        if carry.frames is not None:
            first = self.ends - len(carry.frames)
        self.ends = first + latents.frames
        size = latents.height, latents.width
        frames = np.stack([self.picture(number, *size) for number in range(first, self.ends)])
        assert carry.frames is None or np.array_equal(carry.frames, frames[: len(carry.frames)])
        for start, end in ((0, 1), *((start, start + 4) for start in range(1, len(frames), 4))):
            self.decoded += len(frames[start:end])
            yield frames[start:end]

    @staticmethod
    def picture(number: int, height: int, width: int) -> np.ndarray:
        """`number` as bytes in the corner of a texture that changes with it."""
        picture = np.random.default_rng(number).integers(60, 200, (height, width, 3), np.uint8)
        picture[0, 0] = number // 256, number % 256, 7
        return picture


class SlidingPicture(Double):
    """A family that shows the user's picture and moves it left by one pixel every eight frames."""

    def __init__(self) -> None:
        self.spec = CATALOG["wan-tiny"]
        self.ends = 0

    def denoise(self, segment: SegmentInput, on_step: Callable[[int], None]) -> Any:
        on_step(self.spec.steps)
        return segment

    def decode(
        self, latents: Any, carry: Carry | None = None, *, continued: bool = False
    ) -> Generator[np.ndarray, None, None]:
        first = 0 if carry is None or carry.frames is None else self.ends - len(carry.frames)
        self.ends = first + latents.frames
        picture = np.asarray(first_picture(latents))
        numbers = range(first, self.ends)
        frames = [np.roll(picture, -(number // 8), axis=1) for number in numbers]
        yield np.stack(frames[:1])
        for start in range(1, len(frames), 4):
            yield np.stack(frames[start : start + 4])


class Card:
    """Loads on the CPU as if on a GPU. While `full` returns true, the part of the task's model
    named by `fails` raises the out-of-memory error of CUDA."""

    def __init__(self, full: Callable[[Recipe], bool], fails: str) -> None:
        self._full, self._fails = full, fails
        self.tried: list[str] = []

    def load(self, spec: Any, folder: Any, recipe: Recipe, loras: Any, on_bytes: Any) -> Any:
        family: Any = load_family(spec, folder, Recipe("cpu", "float32"), loras, on_bytes)
        if spec.task == self._fails:
            self.tried.append(recipe.text_encoder)

            def fail(*_: object) -> None:
                if self._full(recipe):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

            family.pipeline.vae.encoder.conv_out.register_forward_pre_hook(fail)
        return family
