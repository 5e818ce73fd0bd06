"""The stream of one clip: segments to latents to frames to mp4.

    plan.shots ─ segment ─ denoise ─> latents ─ decode ─> chunks of frames
                    ^                                          │
                    └── carry: what the next one goes on from ─┤ join
                                                               v
               mp4 <─ encode <─ retime <─ upscale <─ look at one frame a second

Everything after the latents is a generator, so that no more than one chunk of a clip is held.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from wan_engine.control import Control
from wan_engine.media.framing import cropped
from wan_engine.media.images import fit
from wan_engine.media.joins import Joined
from wan_engine.media.postprocess import Postprocess
from wan_engine.media.video import EncodeOptions, encode
from wan_engine.schema import Carry, EncodedVideo, Frames, Media, Plan, SegmentInput

if TYPE_CHECKING:
    from wan_engine.families.base import Family

Watch = Callable[[Generator[Frames, None, None], int, Control], Generator[Frames, None, None]]
"""Passes frames of a number of fps through as they are, and raises for what must not be shown."""


def render(
    family: Family,
    plan: Plan,
    media: Media,
    negative_prompt: str,
    path: Path,
    control: Control,
    *,
    watch: Watch | None,
    postprocess: Postprocess,
    options: EncodeOptions,
) -> EncodedVideo:
    """The clip of `plan`, written to `path`. Raises what any stage of it raises."""
    frames = model_frames(family, plan, media.image, negative_prompt, control)
    if watch is not None:
        frames = watch(frames, plan.source_fps, control)
    stream, shown = postprocess.apply(frames, plan, control)
    # A generator that an error's traceback keeps would clear the VAE under the next job.
    with closing(stream):
        return encode(stream, shown, media.audio, path, options, control)


def model_frames(
    family: Family, plan: Plan, image: Image.Image, negative_prompt: str, control: Control
) -> Generator[Frames, None, None]:
    """Frames of the whole clip as the model makes them, uint8 [n, height, width, 3]; never more
    than one chunk is held."""
    size = plan.render_width, plan.render_height
    steps, decoded = family.spec.steps, 0
    all_steps, done_steps = steps * len(plan.segments), 0

    def on_step(count: int) -> None:
        control.progress("denoise", done_steps + count, all_steps)

    for shot in plan.shots:
        start, carry = fit(cropped(image, shot.crop), *size), Carry()
        joined = Joined(blend=family.spec.continuation == "last_frames")
        for segment in shot.segments:
            on_step(0)
            numbers = *size, segment.frames, segment.seed
            asked = SegmentInput(shot.prompt, negative_prompt, start, *numbers, carry)
            latents = family.denoise(asked, on_step)
            done_steps += steps
            joined.begin(segment)
            for chunk in family.decode(latents, carry, continued=segment.carried > 0):
                control.progress("decode", decoded, plan.source_frames)
                shown = joined.add(chunk)
                decoded += len(shown)
                if len(shown):
                    yield shown
                    control.enter("decode")
                # Before the last segment the decoder must come to its end, to be gone on from.
                if joined.complete and not segment.carried:
                    break
            if segment.carried:
                carry.frames = joined.tail
    control.progress("encode", 0, 1)
