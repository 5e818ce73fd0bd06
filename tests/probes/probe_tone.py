"""An external family, in one file with its row: a picture gives frames and sound.

The picture stands still. The sound is a tone of 440 Hz whose phase starts at the segment's own
start.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.families.base import refuse_others
from wan_engine.media.audio import SAMPLE_RATE_HZ
from wan_engine.schema import AudioTrack, Clip, FirstPicture, Frames, SegmentInput

HZ = 440
ROWS = (
    replace(
        CATALOG["wan-tiny"],
        name="probe-tone",
        title="stands still and hums",
        family="probe_tone:Tone",
        task="image-to-video-with-sound",
        gives_sound=True,
        is_toy=False,
        caveat="",
        max_area=64 * 48,
        max_frames=33,
        steps=2,
    ),
)


class Tone:
    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @classmethod
    def load(cls, spec: ModelSpec, folder: Path, recipe: Any, loras: Any, on_bytes: Any) -> Tone:
        return cls(spec)

    def render(self, segment: SegmentInput, on_step: Callable[[int], None]) -> Clip:
        refuse_others(self.spec, segment)
        found = segment.find(FirstPicture)
        assert found is not None and segment.folder is not None
        for step in range(self.spec.steps):
            on_step(step + 1)
        seconds = segment.frames / self.spec.fps
        times = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        tone = np.sin(2 * np.pi * HZ * times) * 8000
        path = segment.folder / f"tone-{segment.seed}.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((2, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
            file.writeframes(np.stack([tone, tone], axis=1).astype("<i2").tobytes())
        frames = self._frames(np.asarray(found.image), segment.frames)
        return Clip(frames, AudioTrack(path, seconds))

    def _frames(self, picture: Frames, count: int) -> Generator[Frames, None, None]:
        for _ in range(count):
            yield picture[None]

    def warm_up(self, width: int, height: int) -> None: ...

    def run_eagerly(self) -> None: ...

    def move(self, device: str) -> None: ...
