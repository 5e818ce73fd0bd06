"""Decodes an untrusted image or video into pictures of its subject."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from wan_engine.control import Control
from wan_engine.errors import InvalidMedia
from wan_engine.media import best_frames, mp4
from wan_engine.media.images import ImageLimits, NotAnImage, open_image
from wan_engine.media.untrusted_videos import (
    UNDECODABLE,
    Stream,
    UntrustedVideo,
    VideoLimits,
    every,
    refused,
)
from wan_engine.schema import Frames, Media

log = logging.getLogger(__name__)

MOST_PICTURES = 4
"""The number of pictures that models of this kind were trained with (Wan-Video/VACE, README)."""

_LEAST_SECONDS = 1.0
_LOOKS, _LOOK_EVERY_SECONDS, _LEAST_LOOKS = 120, 0.25, 16
_SAMPLES_A_SECOND = 1


@dataclass(frozen=True)
class ReferenceLimits:
    """Limits of a reference. `image` and `image_max_bytes` are for a picture; a video has the same
    smallest side. `first_frame`: use the first frame of an animated picture."""

    image: ImageLimits = field(default_factory=ImageLimits)
    image_max_bytes: int = 20 * 2**20
    max_seconds: float = 30.0
    min_fps: float = 16.0
    first_frame: bool = False

    @property
    def video(self) -> VideoLimits:
        """The limits of a reference that is a video."""
        return VideoLimits(self.image.min_side, _LEAST_SECONDS, self.max_seconds, self.min_fps)


@dataclass(frozen=True)
class Reference:
    """One subject. `pictures`, best first, are upright 8-bit sRGB. `samples` are small frames of
    the whole video, one per second, uint8 [n, h, w, 3]; a picture has none."""

    pictures: tuple[Image.Image, ...]
    samples: Frames = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))


@dataclass(frozen=True)
class Chosen:
    """The pictures that are used. `left_out` are the indices of references without a picture."""

    pictures: tuple[Image.Image, ...]
    left_out: tuple[int, ...] = ()


def open_reference(
    data: bytes, folder: Path, limits: ReferenceLimits, control: Control, field: str
) -> Reference:
    """Open `data`, a picture or an MP4 or MOV. `folder` is for a video's
    temporary file.

    Raises `InvalidMedia` of `field` for anything else, and `EncodeFailed` if this machine is to
    blame.
    """
    try:
        if not mp4.is_mp4(data):
            return Reference((_open_picture(data, limits),))
        return _Video(data, folder, limits.video, control, field).reference()
    except InvalidMedia as error:
        raise InvalidMedia(field, error.why) from error


def best_pictures(references: Sequence[Reference], most: int = MOST_PICTURES) -> Chosen:
    """At most `most` pictures in the order of the subjects: the best of each, and the next best
    while there is room. If there are too many subjects, the last ones are left out."""
    used = references[:most]
    counts = [1] * len(used)
    for rank in range(1, most):
        for index, one in enumerate(used):
            if sum(counts) < most and len(one.pictures) > rank:
                counts[index] = rank + 1
    taken = (one.pictures[:count] for one, count in zip(used, counts, strict=True))
    return Chosen(tuple(chain.from_iterable(taken)), tuple(range(len(used), len(references))))


def with_references(media: Media, references: Sequence[Reference]) -> Media:
    """`media` with the pictures of `best_pictures`, and a warning if some were left out."""
    chosen = best_pictures(references)
    used = len(references) - len(chosen.left_out)
    warning = f"Only the first {used} of {len(references)} references were used"
    return replace(
        media,
        references=chosen.pictures,
        warnings=(*media.warnings, warning) if chosen.left_out else media.warnings,
    )


def _open_picture(data: bytes, limits: ReferenceLimits) -> Image.Image:
    if len(data) > limits.image_max_bytes:
        raise InvalidMedia(
            "image", f"the picture is larger than {limits.image_max_bytes / 2**20:g} MB"
        )
    try:
        return open_image(data, limits.image, first_frame=limits.first_frame)
    except NotAnImage as error:
        raise InvalidMedia("image", f"{error.why}, or an MP4 or MOV video") from error


class _Video(UntrustedVideo):
    """One reference while it is read."""

    def reference(self) -> Reference:
        try:
            stream = self.open()
            spacing = self._spacing(stream)
            looks, samples = self._looked_at(spacing)
            chosen = best_frames.best(looks, MOST_PICTURES)
            if not chosen:
                raise refused("no frame of the video shows anything")
            pictures = self._full_size(spacing, chosen)
            return Reference(pictures, samples)
        finally:
            self.source.unlink(missing_ok=True)

    def _spacing(self, stream: Stream) -> float:
        """Seconds between two analysed frames."""
        usual = min(_LOOK_EVERY_SECONDS, stream.seconds / _LEAST_LOOKS)
        return max(usual, stream.seconds / _LOOKS)

    def _looked_at(self, spacing: float) -> tuple[list[best_frames.Look], Frames]:
        looks: list[best_frames.Look] = []
        samples: list[Frames] = []
        for index, frame in enumerate(self.small(spacing, _LOOKS + 1)):
            looks.append(best_frames.look(frame))
            if index * spacing >= len(samples) / _SAMPLES_A_SECOND:
                samples.append(np.asarray(frame))
        if not samples:
            raise refused(UNDECODABLE)
        return looks, np.stack(samples)

    def _full_size(self, spacing: float, chosen: Sequence[int]) -> tuple[Image.Image, ...]:
        """The frames with these indices among the analysed ones, in this order."""
        ordered = sorted(chosen)
        picked = "+".join(f"eq(n,{index})" for index in ordered)
        pictures = self.pictures(f"{every(spacing)},select='{picked}'", len(ordered))
        return tuple(pictures[ordered.index(index)] for index in chosen)
