"""Fetches and checks the media of an order, and expands its prompt. It needs network and CPU, but
not the device of the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from wan_engine.catalog import ModelSpec
from wan_engine.choice import Choice
from wan_engine.control import Control
from wan_engine.errors import ContentPolicy, InvalidMedia, InvalidRequest
from wan_engine.media.audio import AudioLimits, open_audio
from wan_engine.media.fetch import FetchLimits, fetch
from wan_engine.media.first_clips import LEAST_SECONDS, MOST_SECONDS, open_first_clip
from wan_engine.media.framing import subject
from wan_engine.media.images import ImageLimits, open_image
from wan_engine.media.reference_videos import (
    Reference,
    ReferenceLimits,
    open_reference,
    with_references,
)
from wan_engine.media.untrusted_videos import VideoLimits
from wan_engine.prompts import Expander, Expansion
from wan_engine.prompts.subjects import check_subjects, with_words
from wan_engine.prompts.token_limit import TokenLimit
from wan_engine.safety import Safety
from wan_engine.schema import AudioTrack, Media, Order, Task
from wan_engine.settings import Settings

_SHORT_AUDIO_SECONDS = 3  # the hosted page's minimum; shorter sound is accepted with a warning
_LEAST_NEW_SECONDS = 1
_SAME_SHAPE = 0.02
_CUT_OFF = "The last picture has another shape than the clip: its edges are cut off"

_SOUND_LOST = "The sound of first_clip cannot be decoded: it is left out"


@dataclass(frozen=True)
class Prepared:
    """What an order points to, decoded and checked, its prompt, and the warnings about both."""

    media: Media
    expansion: Expansion
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """Prepares the orders of an engine with its `safety` and `expander`. `token_limits` are those
    of the models of the tasks."""

    settings: Settings
    safety: Safety
    expander: Expander
    token_limits: Mapping[Task, TokenLimit]

    def of(self, order: Order, choice: Choice, folder: Path, control: Control) -> Prepared:
        """Fetch, open and check the media of `order`, and expand its prompt. Decoded sound is in
        the job's `folder`. Raises `InvalidMedia`, `InvalidRequest` and `ContentPolicy`."""
        sources = order.references or ()
        steps = max(1, len(sources)) + bool(order.audio)
        control.progress("prepare", 0, steps)
        check_subjects(order)
        if order.check_content:
            self.safety.check_prompt(order.prompt, control)
        width, height = (int(side) for side in order.aspect_ratio.split(":"))
        media = Media(
            image=self._picture("image", order.image, order, control),
            last_image=self._picture("last_image", order.last_image, order, control),
            aspect=(width, height),
        )
        if order.first_clip is not None:
            media = self._continuing(order.first_clip, media, order, choice.spec, folder, control)
        references = []
        for index, source in enumerate(sources):
            control.progress("prepare", index, steps)
            references.append(self._reference(index, source, order, folder, control))
        media = with_references(media, references)
        if order.audio:
            control.progress("prepare", steps - 1, steps)
            media = replace(media, audio=self._audio(order.audio, folder, control))
        if _shape_differs(media):
            media = replace(media, warnings=(*media.warnings, _CUT_OFF))
        expansion = self._expanded(order, choice, media, control)
        if len(expansion.script.shots) > 1 and media.image is not None:
            media = replace(media, subject=subject(media.image))
        return Prepared(media, expansion, tuple(self._warnings(order, choice, media, expansion)))

    def _picture(
        self, field: str, source: str | None, order: Order, control: Control
    ) -> Image.Image | None:
        """Fetch, open and check a picture of the order. None if the order has none."""
        if source is None:
            return None
        settings = self.settings
        data = fetch(source, field, self._fetch_limits(settings.image_max_bytes), control)
        sides = ImageLimits(settings.image_min_side, settings.image_max_side)
        try:
            image = open_image(data, sides, first_frame=order.any_frames)
        except InvalidMedia as error:
            raise InvalidMedia(field, error.why) from error
        if order.check_content:
            self.safety.check_image(image, control)
        return image

    def _reference(
        self, index: int, source: str, order: Order, folder: Path, control: Control
    ) -> Reference:
        """Fetch, open and check a subject of the order: its pictures, and one frame per second of
        its video."""
        settings, field = self.settings, f"references[{index}]"
        data = fetch(source, field, self._fetch_limits(settings.reference_max_bytes), control)
        limits = ReferenceLimits(
            image=ImageLimits(settings.image_min_side, settings.image_max_side),
            image_max_bytes=settings.image_max_bytes,
            max_seconds=settings.reference_max_seconds,
            min_fps=settings.reference_min_fps,
            first_frame=order.any_frames,
        )
        reference = open_reference(data, folder, limits, control, field)
        if order.check_content:
            for picture in reference.pictures:
                self.safety.check_image(picture, control)
            self.safety.check_frames(reference.samples, control)
        return reference

    def _continuing(
        self,
        source: str,
        media: Media,
        order: Order,
        spec: ModelSpec,
        folder: Path,
        control: Control,
    ) -> Media:
        """Fetch, open and check the clip that the order continues: `media` with it and its last
        frame."""
        settings = self.settings
        data = fetch(
            source, "first_clip", self._fetch_limits(settings.reference_max_bytes), control
        )
        limits = VideoLimits(
            min_side=settings.image_min_side,
            least_seconds=LEAST_SECONDS,
            max_seconds=MOST_SECONDS,
            min_fps=settings.reference_min_fps,
        )
        opened = open_first_clip(
            data, folder, limits, control, frames=spec.overlap_frames, fps=spec.fps
        )
        clip = opened.clip
        if order.keep_first_clip and order.duration - clip.seconds < _LEAST_NEW_SECONDS:
            raise InvalidRequest(
                f'field "duration" must be at least {_LEAST_NEW_SECONDS} second more than '
                f"first_clip, which has {clip.seconds:.2f} seconds, got {order.duration}"
            )
        if order.check_content:
            self.safety.check_image(clip.tail[-1], control)
            self.safety.check_frames(opened.samples, control)
        lost = (_SOUND_LOST,) if opened.sound_lost and order.keep_first_clip else ()
        warnings = (*media.warnings, *lost)
        return replace(media, image=clip.tail[-1], first_clip=clip, warnings=warnings)

    def _audio(self, source: str, folder: Path, control: Control) -> AudioTrack:
        limits = self._fetch_limits(self.settings.audio_max_bytes)
        data = fetch(source, "audio", limits, control)
        return open_audio(data, folder, AudioLimits(self.settings.audio_max_seconds), control)

    def _fetch_limits(self, max_bytes: int) -> FetchLimits:
        return FetchLimits(
            max_bytes=max_bytes,
            seconds=self.settings.fetch_seconds,
            allow_private=self.settings.allow_private_urls,
        )

    def _expanded(self, order: Order, choice: Choice, media: Media, control: Control) -> Expansion:
        expansion = Expansion.none(order)
        if order.expand_prompt:
            control.enter("expand")
            fitted = self.token_limits[choice.spec.task].fitted
            heard = choice.sound_spec is not None
            expansion = self.expander.expand(order, media.image, control, fitted, heard=heard)
            control.enter("prepare")
            if order.check_content:
                expansion = self._checked(expansion, order, control)
        return replace(expansion, script=with_words(expansion.script, order))

    def _warnings(
        self, order: Order, choice: Choice, media: Media, expansion: Expansion
    ) -> Iterator[str]:
        if order.check_content:
            yield from self.safety.warnings()
        if expansion.warning:
            yield expansion.warning
        limit, unchanged = self.token_limits[choice.spec.task], expansion.in_the_callers_words
        yield from limit.warnings(order, choice.spec, self.settings, as_written=unchanged)
        if media.audio and media.audio.seconds < _SHORT_AUDIO_SECONDS:
            yield f"The audio is only {media.audio.seconds:.1f} seconds long"
        yield from media.warnings

    def _checked(self, expansion: Expansion, order: Order, control: Control) -> Expansion:
        """The expansion, or the original prompt if the guard flags the writer's text."""
        try:
            for shot in expansion.script.shots:
                self.safety.check_prompt(f"{shot.text} {shot.sound}".strip(), control)
        except ContentPolicy:
            warning = "The expanded prompt was flagged: the prompt was used as it is"
            return replace(Expansion.none(order), warning=warning)
        return expansion


def _shape_differs(media: Media) -> bool:
    """Whether the last picture is cropped to the shape of the clip."""
    if media.last_image is None:
        return False
    width, height = media.aspect if media.image is None else media.image.size
    last = media.last_image.width / media.last_image.height
    return abs(width / height / last - 1) > _SAME_SHAPE
