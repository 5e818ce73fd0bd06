"""Passes on previews of a clip while it is denoised: a small moving picture after a step.

Previews are optional. Nothing is computed while nobody looks, they take at most a hundredth of the
time, and an error ends the previews and not the job.
"""

from __future__ import annotations

import base64
import io
import logging
import time
from collections.abc import Callable

from PIL import Image, ImageOps

from wan_engine.control import Control, Preview
from wan_engine.errors import Cancelled, DeadlineExceeded
from wan_engine.schema import Frames

log = logging.getLogger(__name__)

MOST_FRAMES = 6
_SHARE = 0.01  # of the time, for all work on previews
_LONG_SIDE = 192  # pixels: a latent is about one
_FRAME_MS = 200
_QUALITY, _POOR_QUALITY = 50, 10
_EFFORT = 2  # of 6: more takes longer and saves little
_MOST_BYTES = 32 * 1024

Passes = Callable[[list[Image.Image]], bool]
"""Whether pictures may be shown."""


class Previews:
    """The previews of one job. `passes` checks every frame first, if the job is checked. After a
    hit, there are no more previews.

    The first preview is always made. After it, none is made while the previous ones have taken more
    than their `share` of the time.
    """

    def __init__(
        self, control: Control, passes: Passes | None = None, *, share: float = _SHARE
    ) -> None:
        self._control = control
        self._passes = passes
        self._share = share
        self._over = False
        self._spent_seconds = 0.0
        self._begun_at: float | None = None

    def show(self, step: int, make: Callable[[], Frames | None]) -> None:
        """Show what `make` returns after `step` of all steps, if anyone looks and it is not too
        soon. `make` may return None if it has nothing to show, which does not count."""
        began = time.monotonic()
        if self._begun_at is None:
            self._begun_at = began
        due = self._spent_seconds <= self._share * (began - self._begun_at)
        if self._over or not due or not self._control.wants_preview:
            return
        try:
            frames = make()
            if frames is None:
                return
            self._tell(step, [Image.fromarray(frame) for frame in frames])
        except (Cancelled, DeadlineExceeded):
            raise
        except Exception:  # of torch or Pillow; a clip must not fail because of its preview
            log.exception("job %s goes on without previews", self._control.job_id)
            self._over = True
        self._spent_seconds += time.monotonic() - began

    def _tell(self, step: int, pictures: list[Image.Image]) -> None:
        pictures = [ImageOps.contain(picture, (_LONG_SIDE, _LONG_SIDE)) for picture in pictures]
        if self._passes is not None and not self._passes(pictures):
            log.info("job %s goes on without previews: one was flagged", self._control.job_id)
            self._over = True
            return
        content = _moving(pictures, _QUALITY)
        if len(content) > _MOST_BYTES:  # noise takes the most bytes, and shows little
            content = _moving(pictures[:1], _POOR_QUALITY)
        uri = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
        self._control.preview(Preview(uri, step))


def _moving(pictures: list[Image.Image], quality: int) -> bytes:
    """The pictures as a looping WEBP."""
    first, *others = pictures
    file = io.BytesIO()
    how = {"duration": _FRAME_MS, "loop": 0, "quality": quality, "method": _EFFORT}
    first.save(file, "WEBP", save_all=True, append_images=others, **how)
    return file.getvalue()
