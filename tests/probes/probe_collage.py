"""An external family, in one file with its row: it takes three references and no picture.

Its clip shows the references side by side, in their order, and moves them by one pixel per frame.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np

from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.families.base import refuse_others
from wan_engine.schema import Clip, Frames, References, SegmentInput

_FIELDS: dict[str, Any] = {
    **{name: getattr(CATALOG["wan-tiny"], name) for name in ("fps", "size_multiple", "sampler")},
    **{"max_frames": 33, "max_area": 64 * 48, "steps": 2, "guidance_scale": 1.0},
    **{"guidance_scale_2": None, "flow_shift": 1.0, "continuations": ("last_frames",)},
}
ROWS = (
    ModelSpec(
        name="probe-collage",
        title="shows its references side by side",
        family="probe_collage:Collage",
        task="reference-to-video",
        takes=("references",),
        needs=("references",),
        **_FIELDS,
    ),
)


class Collage:
    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @classmethod
    def load(cls, spec: ModelSpec, folder: Path, recipe: Any, loras: Any, on_bytes: Any) -> Collage:
        on_bytes(0, 2_000_000)
        on_bytes(2_000_000, 2_000_000)
        return cls(spec)

    def render(self, segment: SegmentInput, on_step: Callable[[int], None]) -> Clip:
        refuse_others(self.spec, segment)
        found = segment.find(References)
        assert found is not None
        for step in range(self.spec.steps):
            on_step(step + 1)
        count = len(found.images)
        width = segment.width // count
        parts = [np.asarray(one.resize((width, segment.height))) for one in found.images]
        picture = np.concatenate(parts, axis=1)
        rest = segment.width - picture.shape[1]
        return Clip(self._frames(np.pad(picture, ((0, 0), (0, rest), (0, 0))), segment))

    def _frames(self, picture: Frames, segment: SegmentInput) -> Generator[Frames, None, None]:
        for number in range(segment.frames):
            yield np.roll(picture, number % 2, axis=0)[None]

    def warm_up(self, width: int, height: int) -> None: ...

    def run_eagerly(self) -> None: ...

    def move(self, device: str) -> None: ...
