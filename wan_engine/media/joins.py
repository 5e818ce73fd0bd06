"""Joins the overlapping segments of a shot into one sequence of frames: nothing repeated, nothing
missing.

It is pure arithmetic on frames in host memory, and holds the overlap and one chunk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wan_engine.schema import Frames, Segment

# At a join within a clip, levels differ by a few. A larger difference is another picture.
_MOST_GAIN = 1.1
_MOST_SHIFT_LEVELS = 10.0

ColourTable = NDArray[np.uint8]
"""uint8 [256, 3]: the new value of each level of each channel."""


class Joined:
    """Takes the frames of one segment after the other and returns those that are shown.

    The last `Segment.carried` frames wait for the next segment, whose first `repeated` frames show
    the same. With `blend` these are cross-faded, and the whole segment takes the colours of the one
    before. Without it, the older frames are shown and the newer ones are dropped.

    `before` are the last frames of a clip that is continued. The first segment takes their colours
    in any case, and they are not returned.
    """

    def __init__(self, *, blend: bool, before: Frames | None = None) -> None:
        self._blend, self._before = blend, before
        self._waiting: Frames | None = None
        self._segment: Segment
        self._seen = 0  # frames of the segment
        self._repeated: Frames | None = None
        self._table: ColourTable | None = None

    def begin(self, segment: Segment) -> None:
        """Announce that `add` gets frames of `segment` from now on."""
        self._segment, self._seen, self._repeated, self._table = segment, 0, None, None

    @property
    def tail(self) -> Frames:
        """The waiting frames, uint8 [hold, height, width, 3], with which the next segment
        begins."""
        assert self._waiting is not None, "no frame came yet"
        return self._waiting

    @property
    def complete(self) -> bool:
        """Whether all frames of the segment that are shown have come. The rest was sampled only to
        fill whole latents."""
        return self._seen >= self._segment.repeated + self._segment.shown

    def add(self, chunk: Frames) -> Frames:
        """Take frames of the segment, and return frames to show. The numbers may differ."""
        segment, before = self._segment, self._seen
        self._seen += len(chunk)
        repeated = chunk[: max(0, segment.repeated - before)]
        new = chunk[len(repeated) : max(0, segment.repeated + segment.shown - before)]
        if len(repeated):
            self._repeated = _after(self._repeated, repeated)
            if len(self._repeated) == segment.repeated:
                self._join(self._repeated)
        if self._seen < segment.repeated:
            return chunk[:0]  # waiting frames are not final before the whole overlap is here
        waiting = _after(self._waiting, self._coloured(new))
        ready = max(0, len(waiting) - segment.carried)
        self._waiting = waiting[ready:]
        return waiting[:ready]

    def _join(self, newer: Frames) -> None:
        self._repeated = None
        if self._before is not None:
            self._table, self._before = colour_table(newer, self._before), None
        elif self._blend:
            older = self.tail[-len(newer) :]
            self._table = colour_table(newer, older)
            mixed = cross_fade(older, self._coloured(newer))
            self._waiting = np.concatenate([self.tail[: -len(newer)], mixed])

    def _coloured(self, frames: Frames) -> Frames:
        if self._table is None or not len(frames):
            return frames
        # Pillow looks levels up four times as fast as numpy, while the device waits.
        levels = self._table.T.ravel().tolist()
        column = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
        return np.array(column.point(levels)).reshape(frames.shape)


def _after(first: Frames | None, second: Frames) -> Frames:
    if first is None or not len(first):
        return second
    return np.concatenate([first, second])


def colour_table(source: Frames, target: Frames) -> ColourTable:
    """Levels that give `source` the mean and the standard deviation of `target`, for each channel
    (Reinhard et al. 2001, without their colour space), as far as the limits allow.

    Both must show the same scene, so that any difference is one of colour and not of content.
    """
    levels = np.arange(256, dtype=np.float64)[:, None]
    moments = []
    for frames in (source, target):
        pixels = frames.reshape(-1, 3)
        moments.append((pixels.mean(axis=0, dtype=np.float64), pixels.std(axis=0, dtype=float)))
    (mean, deviation), (wanted_mean, wanted_deviation) = moments
    # One level is added to both, so that a flat picture has a gain of one instead of noise.
    gain = np.clip((wanted_deviation + 1) / (deviation + 1), 1 / _MOST_GAIN, _MOST_GAIN)
    shift = np.clip(wanted_mean - mean, -_MOST_SHIFT_LEVELS, _MOST_SHIFT_LEVELS)
    table = (levels - mean) * gain + mean + shift
    rounded: ColourTable = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return rounded


def cross_fade(older: Frames, newer: Frames) -> Frames:
    """From `older` to `newer` with linear weights: of k frames, frame i is (i + 1) / (k + 1) new.

    If both are equal, so is the result.
    """
    count = len(newer)
    weights = (np.arange(1, count + 1, dtype=np.float32) / (count + 1)).reshape(-1, 1, 1, 1)
    mixed = older + (newer.astype(np.float32) - older) * weights
    rounded: Frames = np.rint(mixed).astype(np.uint8)
    return rounded
