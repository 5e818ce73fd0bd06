"""Two external families: one gives dark frames with flashes, the other a click for each flash that
it sees."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.errors import OutOfMemory
from wan_engine.schema import Clip, Frames, SegmentInput, SoundInput, Waveform

EVERY_FRAMES, LONG_FRAMES = 13, 2
ROWS = (
    replace(
        CATALOG["wan-tiny"],
        name="probe-flash",
        title="is dark, and flashes",
        family="probe_flash:Flash",
        is_toy=False,
        caveat="",
        max_area=64 * 48,
        steps=2,
    ),
    replace(
        CATALOG["kandinsky-6-lite-sound"],
        name="probe-click",
        title="clicks for each flash",
        family="probe_flash:Click",
        opt_in="",
        max_area=64 * 48,
        size_multiple=16,
        steps=2,
    ),
)


class Probe:
    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @classmethod
    def load(cls, spec: ModelSpec, folder: Path, recipe: Any, loras: Any, on_bytes: Any) -> Any:
        return cls(spec)

    def warm_up(self, width: int, height: int) -> None: ...

    def run_eagerly(self) -> None: ...

    def move(self, device: str) -> None: ...


class Flash(Probe):
    def render(self, segment: SegmentInput, on_step: Callable[[int], None]) -> Clip:
        on_step(self.spec.steps)
        return Clip(self._frames(segment))

    def _frames(self, segment: SegmentInput) -> Generator[Frames, None, None]:
        for index in range(segment.frames):
            bright = 255 * (5 <= index % EVERY_FRAMES < 5 + LONG_FRAMES)
            yield np.full((1, segment.height, segment.width, 3), bright, np.uint8)


class Click(Probe):
    """`full` is how often it runs out of memory first."""

    full = 0
    seen: list[SoundInput]

    def hear(self, window: SoundInput, on_step: Callable[[int], None]) -> Waveform:
        if self.full:
            self.full -= 1
            raise OutOfMemory("The worker has too little GPU memory for probe-click")
        self.seen = [*getattr(self, "seen", ()), window]
        on_step(1)
        bright = window.frames.mean(axis=(1, 2, 3)) > 127
        rate = 44_100
        samples = np.zeros((rate * len(bright) // self.spec.fps, 1), np.float32)
        for index in np.flatnonzero(bright & ~np.roll(bright, 1)):
            at = index * rate // self.spec.fps
            samples[at : at + rate // 200] = 0.4
        on_step(2)
        return Waveform(samples, rate)
