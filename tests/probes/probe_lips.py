"""An external family, in one file with its row: a picture that is as bright as its sound is loud.

It hears the sound as the model that moves lips does, so its frames show whether picture and sound
are in time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.families.base import refuse_others
from wan_engine.schema import Clip, DrivingSound, Frames, SegmentInput

ROWS = (
    replace(
        CATALOG["wan2.2-s2v-14b"],
        name="probe-lips",
        title="as bright as its sound is loud",
        family="probe_lips:Lips",
        parts=(),
        max_area=128 * 64,
        steps=2,
    ),
)


class Lips:
    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @classmethod
    def load(cls, spec: ModelSpec, folder: Path, recipe: Any, loras: Any, on_bytes: Any) -> Lips:
        return cls(spec)

    def render(self, segment: SegmentInput, on_step: Callable[[int], None]) -> Clip:
        refuse_others(self.spec, segment)
        sound = segment.find(DrivingSound)
        assert sound is not None
        for step in range(self.spec.steps):
            on_step(step + 1)
        return Clip(self._frames(segment, sound))

    def _frames(self, segment: SegmentInput, sound: DrivingSound) -> Generator[Frames, None, None]:
        from wan_engine.families.sound_features import loudness

        first = round(sound.start_seconds * self.spec.fps)
        loud = np.array(loudness(sound.track, self.spec.fps, first + segment.frames)[first:])
        levels = np.clip(40 + loud * 800, 0, 250).astype(np.uint8)
        for at in range(0, segment.frames, 4):
            yield levels[at : at + 4, None, None, None] * np.ones(
                (1, segment.height, segment.width, 3), np.uint8
            )

    def warm_up(self, width: int, height: int) -> None: ...

    def run_eagerly(self) -> None: ...

    def move(self, device: str) -> None: ...
