"""Streams one clip: segments to latents to frames to mp4.

    plan.shots ─ segment ─ conditions ─ family ─> chunks of frames, and their sound
                               ^                       │             │
                               └── carry ──────────────┤ join        │ join
                                                       v             v
       mp4 <─ encode <─ retime <─ upscale <─ look at one frame a     made.wav, muxed when
                                             second                  the last frame is in

Everything after the latents is a generator, so that no more than one chunk of a clip is held. If a
model makes sound for finished frames, `with_made_sound` continues from the mp4.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wan_engine.catalog import ModelSpec
from wan_engine.choice import Track
from wan_engine.control import Control
from wan_engine.errors import (
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    EncodeFailed,
    EngineError,
)
from wan_engine.media.framing import cropped
from wan_engine.media.images import fit
from wan_engine.media.joins import Joined
from wan_engine.media.loudness import levelled
from wan_engine.media.made_sound import make_sound
from wan_engine.media.postprocess import Postprocess
from wan_engine.media.previews import Previews
from wan_engine.media.soundtrack import Soundtrack, after
from wan_engine.media.video import EncodeOptions, Sound, add_sound, encode
from wan_engine.runtime.faults import device_answers, is_device_fault
from wan_engine.schema import (
    AudioTrack,
    Carry,
    Clip,
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
    Task,
)

if TYPE_CHECKING:
    from wan_engine.families.base import Family, SoundFamily

log = logging.getLogger(__name__)

Watch = Callable[[Generator[Frames, None, None], int, Control], Generator[Frames, None, None]]
"""Passes frames through unchanged, given their fps, and raises if they are unsafe."""

Load = Callable[[Task], "Family"]
"""Returns the model of a task, ready on the device. The caller must first release the previous
model."""

Negative = Callable[[ModelSpec], str]
"""Returns the negative prompt for a model."""

LoadSound = Callable[[], "SoundFamily"]
"""Returns the model that makes sound for frames, ready on the device."""

RunSound = Callable[[Callable[[], AudioTrack]], AudioTrack]
"""Runs work with that model, again with less on the device if memory runs out."""

_NO_SOUND = "The sound could not be made: the clip has a silent track"


@dataclass(frozen=True)
class RenderOptions:
    """How a clip is made, besides its plan. `watch` checks its frames, or is None. `made_here`: the
    sound is made together with the frames. `previews` get frames of it meanwhile."""

    negative_prompt: Negative
    track: Track
    made_here: bool
    watch: Watch | None
    postprocess: Postprocess
    encoding: EncodeOptions
    previews: Previews | None = None


def render(
    load: Load, plan: Plan, media: Media, options: RenderOptions, folder: Path, control: Control
) -> EncodedVideo:
    """Render the clip of `plan` into the job's `folder`. Raises the errors of all stages."""
    made = Soundtrack(plan.source_fps)
    frames = model_frames(
        load, plan, media, options.negative_prompt, control, folder, made, options.previews
    )
    if options.watch is not None:
        frames = options.watch(frames, plan.source_fps, control)
    stream, shown = options.postprocess.apply(frames, plan, control)
    first = media.first_clip if plan.given_frames else None
    kept = first.sound if first else None
    sounds: dict[Track, Sound] = {"given": media.audio, "silent": kept or "silence"}
    # The traceback of an error keeps a generator alive, which would clear the VAE's state in the
    # next job.
    with closing(stream):
        sound = sounds.get(options.track)
        path, how = folder / "clip.mp4", options.encoding
        video = encode(stream, shown, sound, path, how, control, after=first)
    if options.track == "made" and options.made_here:
        sound = made.write(folder / "made.wav")
        if sound is None:  # the row promises sound, so silence would hide an error
            raise EncodeFailed("The model returned no sound")
        video = add_sound(video, levelled(sound, control), plan, control)
    return video


def with_made_sound(
    load: LoadSound,
    run: RunSound,
    plan: Plan,
    media: Media,
    video: EncodedVideo,
    control: Control,
    device: str,
) -> EncodedVideo:
    """Return the clip with the sound that a model makes for its frames, after the sound of the clip
    that it continues.

    The frames are rendered already. If the model fails, the clip gets a silent track and a warning,
    unless `device` is broken. Raises the errors of `control`, and `ConfigurationError`.
    """
    first = media.first_clip.sound if media.first_clip and plan.given_frames else None

    def once() -> AudioTrack:
        control.enter("load")
        family = load()
        made = make_sound(family.hear, family.spec, plan, video, control)
        if first is None:
            return made
        path = video.path.with_name("sound.wav")
        return after(first, made, plan.given_frames / plan.fps, path)

    warnings = video.warnings
    try:
        sound: Sound = run(once)
    except (Cancelled, DeadlineExceeded, ConfigurationError):
        raise
    except Exception as error:
        if is_device_fault(error) and not device_answers(device):
            raise  # no later job can work in this process
        is_bug = not isinstance(error, EngineError)
        log.error(
            "the sound of job %s could not be made: %r", control.job_id, error, exc_info=is_bug
        )
        sound, warnings = first or "silence", (*warnings, _NO_SOUND)
    return replace(add_sound(video, sound, plan, control), warnings=warnings)


def model_frames(
    load: Load,
    plan: Plan,
    media: Media,
    negative_prompt: Negative,
    control: Control,
    folder: Path | None = None,
    made: Soundtrack | None = None,
    previews: Previews | None = None,
) -> Generator[Frames, None, None]:
    """Yield the frames of the whole clip from the models, uint8 [n, height, width, 3]. At most one
    chunk is in memory. Their sound goes into `made`."""
    shots = _Shots(plan, media, negative_prompt, control, folder, made, previews)
    for shot in plan.shots:
        yield from shots.frames(load(shot.task), shot)
    control.progress("encode", 0, 1)


class _Shots:
    """Renders the shots of a clip one after the other, and counts their progress."""

    def __init__(
        self,
        plan: Plan,
        media: Media,
        negative_prompt: Negative,
        control: Control,
        folder: Path | None,
        made: Soundtrack | None,
        previews: Previews | None,
    ) -> None:
        self._plan, self._control, self._previews = plan, control, previews
        self._negative_prompt, self._folder, self._made = negative_prompt, folder, made
        self._given = _Conditions(plan, media)
        self._done_steps = 0
        self._decoded = 0
        self._ended = plan.given_frames  # of the clip, with those of the finished shots

    def frames(self, family: Family, shot: Shot) -> Generator[Frames, None, None]:
        """Yield the shown frames of one shot. The generator releases `family` when it ends."""
        carry = Carry(self._given.before(shot))
        joined = Joined(blend=family.spec.continuation == "last_frames", before=carry.frames)
        for segment in shot.segments:
            continued = segment is not shot.segments[-1]
            clip = self._rendered(family, shot, segment, carry, continued=continued)
            joined.begin(segment)
            if self._made is not None:
                self._made.add(clip.sound, segment)
            with closing(clip.frames):
                for chunk in clip.frames:
                    self._control.progress("decode", self._decoded, self._plan.source_frames)
                    shown = joined.add(chunk)
                    self._decoded += len(shown)
                    if len(shown):
                        yield shown
                        self._control.enter("decode")
                    # The decoder must run to its end before the last segment, so that the next
                    # segment can continue.
                    if joined.complete and not continued:
                        break
            if segment.carried:
                carry.frames = joined.tail
        self._ended += shot.frames
        if self._made is not None:
            self._made.end_shot(self._ended / self._plan.fps)

    def _rendered(
        self, family: Family, shot: Shot, segment: Segment, carry: Carry, *, continued: bool
    ) -> Clip:
        def on_step(count: int) -> None:
            self._control.progress("denoise", self._done_steps + count, self._plan.steps)

        def on_preview(count: int, make: Callable[[], Frames | None]) -> None:
            if self._previews is not None:
                self._previews.show(self._done_steps + count, make)

        on_step(0)
        spec, plan = family.spec, self._plan
        asked = SegmentInput(
            shot.prompt,
            self._negative_prompt(spec),
            (*self._given.of(shot, segment, spec.takes), carry),
            *(plan.render_width, plan.render_height, segment.frames, segment.seed),
            continued=continued,
            folder=self._folder,
            on_preview=on_preview,
        )
        clip = family.render(asked, on_step)
        self._done_steps += shot.steps
        return clip


class _Conditions:
    """Returns the conditions of the segments: the media that their model accepts."""

    def __init__(self, plan: Plan, media: Media) -> None:
        self._plan, self._media = plan, media
        self._shot: Shot | None = None
        self._start: FirstPicture | None = None
        self._begun = plan.given_frames  # of the clip before the shot
        self._shown = 0  # source frames of the shot before the segment

    def of(self, shot: Shot, segment: Segment, takes: tuple[Input, ...]) -> tuple[Condition, ...]:
        """Return the conditions of the next segment. Call it once per segment, in the order of the
        clip."""
        if shot is not self._shot:
            self._begun += self._shot.frames if self._shot is not None else 0
            self._shot, self._shown, self._start = shot, 0, None
        conditions = tuple(self._all(shot, segment, takes))
        self._shown += segment.shown
        return conditions

    def before(self, shot: Shot) -> Frames | None:
        """The last frames of the clip that the first shot continues, uint8 [k, height, width, 3],
        or None."""
        plan, clip = self._plan, self._media.first_clip
        if clip is None or shot is not plan.shots[0]:
            return None
        size = plan.render_width, plan.render_height
        return np.stack([np.asarray(fit(picture, *size)) for picture in clip.tail])

    def _all(self, shot: Shot, segment: Segment, takes: tuple[Input, ...]) -> Iterator[Condition]:
        media, size = self._media, (self._plan.render_width, self._plan.render_height)
        references = media.references
        if media.image is not None and "first_picture" in takes:
            if self._start is None:
                self._start = FirstPicture(fit(cropped(media.image, shot.crop), *size))
            yield self._start
        elif media.image is not None:
            references = (media.image, *references)
        if media.last_image is not None and segment.ends_clip and "last_picture" in takes:
            yield LastPicture(fit(media.last_image, *size))
        if references and "references" in takes:
            yield References(references)
        if media.audio is not None and "driving_sound" in takes:
            # A shot may have a source frame after its end, so its start is counted in frames of the
            # clip.
            plan, first = self._plan, self._shown - segment.repeated
            start = self._begun / plan.fps + first / plan.source_fps
            yield DrivingSound(media.audio, start, plan.frames / plan.fps)
