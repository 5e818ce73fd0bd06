"""Speech-to-video with Wan2.2-S2V: animates lips and body in a picture to a sound.

Segments hand over unrounded frames. The sound never changes the length of the clip.
"""

from __future__ import annotations

import logging
import tempfile
import wave
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wan_engine.catalog import ModelSpec
from wan_engine.families.base import stream_decode
from wan_engine.families.continuation import to_pixels
from wan_engine.families.i2v import ImageToVideo
from wan_engine.families.sound_features import heard
from wan_engine.families.speech_pipeline import SpeechPipeline, begun_with
from wan_engine.networks.speech_positions import MOTION_FRAMES, MOTION_LATENTS
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import (
    AudioTrack,
    Carry,
    Condition,
    DrivingSound,
    FirstPicture,
    SegmentInput,
)

log = logging.getLogger(__name__)

_SILENCE_SECONDS = 1.0  # after the clip's end: a segment samples a few frames that are not shown
_WARM_SECONDS = 1.0


class SpeechToVideo(ImageToVideo):
    """A loaded S2V pipeline with the settings of its row. Implements `Family`."""

    pipeline_class = SpeechPipeline
    warm_frames = 12

    def __init__(self, pipeline: Any, spec: ModelSpec, recipe: Recipe) -> None:
        super().__init__(pipeline, spec, recipe)
        self.pipeline.fps = spec.fps

    @classmethod
    def _able(cls, recipe: Recipe, folder: Path) -> Recipe:
        if recipe.step_cache is not None:
            # Sound is added between the blocks, and a cache would skip it together with them.
            log.warning("The model that moves lips does not use WAN_STEP_CACHE")
            recipe = replace(recipe, step_cache=None)
        return super()._able(recipe, folder)

    def _given(self, segment: SegmentInput) -> dict[str, Any]:
        first, sound = segment.find(FirstPicture), segment.find(DrivingSound)
        assert first is not None and sound is not None, "render has refused a segment without"
        carry, picture = segment.carry, to_pixels(np.array(first.image)[None])
        if segment.continued and carry.pixels is None:
            carry.pixels = begun_with(picture)
        return {
            "picture": picture,
            "motion": carry.pixels,
            "sound": heard(sound.track, sound.clip_seconds, _SILENCE_SECONDS),
            "start_seconds": sound.start_seconds,
        }

    def _forget(self) -> None:
        """Do nothing, because a segment sets nothing."""

    def _samples(
        self, vae: Any, latents: torch.Tensor, memory: list[Any] | None, kept: Carry | None
    ) -> Generator[torch.Tensor, None, None]:
        """Decode the segment, without the frames before it. Each chunk of those frames yields
        an empty sample, at which the job can end too."""
        left_out = MOTION_FRAMES
        new: deque[torch.Tensor] = deque(maxlen=MOTION_LATENTS)  # of four frames each
        with closing(stream_decode(vae, latents, memory)) as samples:
            for sample in samples:
                before = min(left_out, sample.shape[2])
                left_out -= before
                shown = sample[:, :, before:]
                if kept is not None:
                    new.append(shown)
                yield shown
        if kept is not None:
            all_of_them = torch.cat([kept.pixels.to(new[-1]), *new], dim=2)
            kept.pixels = all_of_them[:, :, -MOTION_FRAMES:].clone()

    @contextmanager
    def _warm_conditions(self, width: int, height: int) -> Iterator[tuple[Condition, ...]]:
        with tempfile.TemporaryDirectory() as folder:
            track = _silence(Path(folder, "silence.wav"))
            picture = FirstPicture(Image.new("RGB", (width, height)))
            yield (picture, DrivingSound(track, 0.0, _WARM_SECONDS))


def _silence(path: Path) -> AudioTrack:
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 48_000, 0, "NONE", ""))
        file.writeframes(bytes(round(_WARM_SECONDS * 48_000) * 4))
    return AudioTrack(path, _WARM_SECONDS)
