"""Streams one clip: segments to latents to frames to mp4.

    plan.shots ─ segment ─ conditions ─ family ─> chunks of frames, and their sound
                               ^                       │             │
                               └── carry ──────────────┤ join        │ join
                                                       v             v
       mp4 <─ encode <─ retime <─ upscale <─ look at one frame a     made.wav, muxed when
                                             second                  the last frame is in

Everything after the latents is a generator, so that no more than one chunk of a clip is held.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan_engine.choice import Track
from wan_engine.control import Control
from wan_engine.errors import EncodeFailed
from wan_engine.media.framing import cropped
from wan_engine.media.images import fit
from wan_engine.media.joins import Joined
from wan_engine.media.postprocess import Postprocess
from wan_engine.media.soundtrack import Soundtrack
from wan_engine.media.video import EncodeOptions, Sound, add_sound, encode
from wan_engine.schema import (
    Carry,
    Condition,
    DrivingSound,
    EncodedVideo,
    FirstPicture,
    Frames,
    Input,
    LastPicture,
    Media,
    Plan,
    References,
    Segment,
    SegmentInput,
    Shot,
)

if TYPE_CHECKING:
    from wan_engine.families.base import Family

Watch = Callable[[Generator[Frames, None, None], int, Control], Generator[Frames, None, None]]
"""Passes frames through unchanged, given their fps, and raises if they are unsafe."""


@dataclass(frozen=True)
class RenderOptions:
    """How a clip is made, besides its plan. `watch` checks its frames, if that is wanted."""

    negative_prompt: str
    track: Track
    watch: Watch | None
    postprocess: Postprocess
    encoding: EncodeOptions


def render(
    family: Family, plan: Plan, media: Media, options: RenderOptions, folder: Path, control: Control
) -> EncodedVideo:
    """Render the clip of `plan` into the job's `folder`. Raises the errors of all stages."""
    made = Soundtrack(plan.source_fps)
    frames = model_frames(family, plan, media, options.negative_prompt, control, folder, made)
    if options.watch is not None:
        frames = options.watch(frames, plan.source_fps, control)
    stream, shown = options.postprocess.apply(frames, plan, control)
    sounds: dict[Track, Sound] = {"given": media.audio, "silent": "silence"}
    # An error's traceback keeps a generator alive, which would clear the VAE under the next job.
    with closing(stream):
        sound = sounds.get(options.track)
        video = encode(stream, shown, sound, folder / "clip.mp4", options.encoding, control)
    if options.track == "made":
        sound = made.write(folder / "made.wav")
        if sound is None:  # its row promises sound, so silence would be a fault
            raise EncodeFailed("The model gave no sound")
        video = add_sound(video, sound, plan, control)
    return video


def model_frames(
    family: Family,
    plan: Plan,
    media: Media,
    negative_prompt: str,
    control: Control,
    folder: Path | None = None,
    made: Soundtrack | None = None,
) -> Generator[Frames, None, None]:
    """The frames of the whole clip as the model makes them, uint8 [n, height, width, 3]. At most
    one chunk is held. Their sound goes into `made`."""
    size = plan.render_width, plan.render_height
    steps, decoded = family.spec.steps, 0
    all_steps, done_steps = steps * len(plan.segments), 0

    def on_step(count: int) -> None:
        control.progress("denoise", done_steps + count, all_steps)

    given = _Conditions(plan, media, family.spec.takes)
    for shot in plan.shots:
        carry = Carry()
        joined = Joined(blend=family.spec.continuation == "last_frames")
        for segment in shot.segments:
            on_step(0)
            asked = SegmentInput(
                shot.prompt,
                negative_prompt,
                (*given.of(shot, segment), carry),
                *(*size, segment.frames, segment.seed),
                continued=segment.carried > 0,
                folder=folder,
            )
            clip = family.render(asked, on_step)
            done_steps += steps
            joined.begin(segment)
            if made is not None:
                made.add(clip.sound, segment)
            with closing(clip.frames):
                for chunk in clip.frames:
                    control.progress("decode", decoded, plan.source_frames)
                    shown = joined.add(chunk)
                    decoded += len(shown)
                    if len(shown):
                        yield shown
                        control.enter("decode")
                    # Before the last segment, the decoder must reach its end, so that the next one
                    # can continue.
                    if joined.complete and not segment.carried:
                        break
            if segment.carried:
                carry.frames = joined.tail
    control.progress("encode", 0, 1)


class _Conditions:
    """The conditions of the segments: the media that the row accepts."""

    def __init__(self, plan: Plan, media: Media, takes: tuple[Input, ...]) -> None:
        self._plan, self._media, self._takes = plan, media, takes
        self._shot: Shot | None = None
        self._start: FirstPicture | None = None
        self._shown = 0  # source frames before the segment

    def of(self, shot: Shot, segment: Segment) -> tuple[Condition, ...]:
        """The conditions of the next segment. Call it once per segment, in the order of the
        clip."""
        conditions = tuple(self._all(shot, segment))
        self._shown += segment.shown
        return conditions

    def _all(self, shot: Shot, segment: Segment) -> Iterator[Condition]:
        media, size = self._media, (self._plan.render_width, self._plan.render_height)
        if media.image is not None and "first_picture" in self._takes:
            if self._start is None or shot is not self._shot:
                self._start = FirstPicture(fit(cropped(media.image, shot.crop), *size))
                self._shot = shot
            yield self._start
        if media.last_image is not None and segment.ends_clip and "last_picture" in self._takes:
            yield LastPicture(fit(media.last_image, *size))
        if media.references and "references" in self._takes:
            yield References(media.references)
        if media.audio is not None and "driving_sound" in self._takes:
            first = self._shown - segment.repeated
            yield DrivingSound(media.audio, first / self._plan.source_fps)
