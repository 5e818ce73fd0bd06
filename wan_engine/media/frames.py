"""Passes frames on one by one, as `upscale` and `retime` need them: shot by shot, and as many as
the plan has."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from wan_engine.errors import EncodeFailed
from wan_engine.schema import Frames, Plan, Shot

log = logging.getLogger(__name__)

Frame = NDArray[np.uint8]
"""uint8 [height, width, 3], RGB."""

_SENTENCE = "The clip could not be encoded"


def one_by_one(frames: Iterable[Frames]) -> Generator[Frame, None, None]:
    """Yield each frame by itself. Closes `frames`, if it is a generator, when it is closed."""
    try:
        for chunk in frames:
            yield from chunk
    finally:
        if isinstance(frames, Generator):
            frames.close()


def of_shot(source: Iterator[Frame], shot: Shot) -> Iterator[Frame]:
    """The frames of `shot`, which come next in `source`. Raises `EncodeFailed` if they end
    early."""
    count = 0
    for frame in islice(source, shot.source_frames):
        count += 1
        yield frame
    if count < shot.source_frames:
        log.error("the model returned %d frames, the shot has %d", count, shot.source_frames)
        raise EncodeFailed(_SENTENCE)


def ended(source: Iterator[Frame], plan: Plan) -> None:
    """Raise `EncodeFailed` if there are more frames than the plan has."""
    if next(source, None) is not None:
        log.error("the model returned more than the %d frames of the plan", plan.source_frames)
        raise EncodeFailed(_SENTENCE)


def blend(earlier: Frame, later: Frame, weight: float) -> Frame:
    """The weighted mean of two frames, correctly rounded."""
    mean = np.subtract(later, earlier, dtype=np.float32)
    mean *= np.float32(weight)
    mean += earlier
    return np.rint(mean, out=mean).astype(np.uint8)
