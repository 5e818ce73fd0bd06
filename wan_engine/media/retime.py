"""Changes the frame rate from the model's to the clip's: frame i of a shot is at exactly i / fps.

It takes and yields frames one after the other and keeps two of them in memory, or for `mci` some
windows of about half a second. No frame is made from two shots. It works with plans and frames, not
with models or requests.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from math import ceil
from typing import Literal

import numpy as np

from wan_engine.control import Control
from wan_engine.errors import ConfigurationError, EncodeFailed
from wan_engine.media import ffmpeg, rife
from wan_engine.media.frames import Frame, blend, ended, of_shot, one_by_one
from wan_engine.runtime import cores, memory
from wan_engine.schema import Frames, Plan
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

Interpolation = Literal["rife", "mci", "blend"]


Between = Callable[[Frame, Frame, float], Frame]
"""The frame at the fraction `weight` (above 0, below 1) between the first and the second."""

_SENTENCE = "The clip could not be encoded"
_STAGE = "interpolate"
_WINDOW_FRAMES = 4  # at least; ffmpeg takes 50 ms to start and then 200 a frame of 720p
_FILTER_SIDE = 32  # minterpolate accepts no smaller side
_FILTER_BYTES_A_PIXEL = 290  # 32 vectors, weights and references (libavfilter vf_minterpolate.c)
_WORKING_BYTES = 1_500 * 10**6  # for all windows in progress: three of 720p, or one of 1080p
_WORKING_SHARE = 1 / 16  # of the machine's memory, if that is more


def choose(settings: Settings) -> tuple[Interpolation, str]:
    """The method of interpolation, and why it was chosen.

    `auto` prefers RIFE if its weights are named, then motion compensation, because a mean of two
    frames shows every moving edge twice. Raises `ConfigurationError` if a named method cannot work.
    """
    wanted = settings.interpolation
    if wanted == "rife" or (wanted == "auto" and settings.rife_weights):
        rife.check(settings.rife_weights)
        return "rife", f"weights of {settings.rife_weights}"
    if wanted == "blend":
        return "blend", "WAN_INTERPOLATION"
    if ffmpeg.has_filter("minterpolate"):
        return "mci", "WAN_INTERPOLATION" if wanted == "mci" else "no WAN_RIFE_WEIGHTS"
    if wanted == "mci":
        raise ConfigurationError(
            "WAN_INTERPOLATION is `mci`, and this ffmpeg has no filter `minterpolate`. Set it to "
            "`auto` or `blend`, or unset IMAGEIO_FFMPEG_EXE."
        )
    return "blend", "this ffmpeg has no motion compensation"


def retime(
    frames: Iterable[Frames], plan: Plan, method: Between | Literal["mci"], control: Control
) -> Generator[Frames, None, None]:
    """Yield the `plan.frames` of the clip from the `plan.source_frames` of the model.

    If a shot has no source frame after its end, its last one stays. A shot that ends with a picture
    ends with its last source frame, wherever that is. Raises `EncodeFailed` unless there are as
    many `frames` as planned.
    """
    rate = _Rate(plan.source_fps, plan.fps)
    with closing(one_by_one(frames)) as source:
        for shot in plan.shots:
            own = _Remembered(of_shot(source, shot))
            count = shot.frames - shot.ends_on_picture
            if method == "mci" and plan.fps != plan.source_fps:
                yield from _motion_compensated(own, count, rate, control)
            else:
                between = blend if method == "mci" else method  # no frames are interpolated then
                yield from _between_neighbours(own, count, rate, between, control)
            for _ in own:
                pass  # the source frame after the last shown frame
            if shot.ends_on_picture:
                yield own.last[None]
        ended(source, plan)


class _Remembered(Iterator[Frame]):
    """Passes frames on. `last` is the newest frame."""

    last: Frame

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames = frames

    def __next__(self) -> Frame:
        self.last = next(self._frames)
        return self.last


@dataclass(frozen=True)
class _Rate:
    source_fps: int
    fps: int

    @property
    def step(self) -> Fraction:
        """Source frames from one frame of the clip to the next."""
        return Fraction(self.source_fps, self.fps)


def _between_neighbours(
    source: Iterator[Frame], count: int, rate: _Rate, between: Between, control: Control
) -> Iterator[Frames]:
    earlier, later, at = next(source), next(source, None), 0
    for index in range(count):
        position = index * rate.step
        while at < int(position) and later is not None:
            earlier, later, at = later, next(source, None), at + 1
        control.enter(_STAGE)
        control.checkpoint()
        if later is None or position == at:
            yield earlier[None]
        else:
            yield between(earlier, later, float(position - at))[None]


# --- motion compensation by ffmpeg ---------------------------------------------------------------


def _motion_compensated(
    source: Iterator[Frame], count: int, rate: _Rate, control: Control
) -> Iterator[Frames]:
    """Run `minterpolate` on windows, each in its own process, because the filter uses one core.

    A window begins where a source frame and a frame of the clip coincide, so that all windows have
    the same arithmetic, and ends with the first source frame of the next window.
    """
    working: deque[ffmpeg.Filter] = deque()
    first = next(source)
    height, width = first.shape[:2]
    try:
        for held, shown in _windows(first, source, count, rate.step):
            control.enter(_STAGE)
            window = _wide_enough(np.stack(held))
            most = _windows_at_once(window, shown)
            while working and (working[0].done or len(working) >= most):
                yield _result(working, window.shape, control)[:, :height, :width]
                control.enter(_STAGE)
            working.append(ffmpeg.Filter(_arguments(window, shown, rate), window))
        while working:
            yield _result(working, window.shape, control)[:, :height, :width]
            control.enter(_STAGE)
    finally:
        for one in working:
            one.close()


def _windows(
    first: Frame, source: Iterator[Frame], count: int, step: Fraction
) -> Iterator[tuple[list[Frame], int]]:
    """The source frames of each window, and the number of clip frames made from them."""
    periods = ceil(_WINDOW_FRAMES / step.numerator)
    length, shown = periods * step.numerator, periods * step.denominator
    held = [first]
    while count > 0:
        held += islice(source, length)
        yield held, min(shown, count)
        count -= shown
        held = held[-1:]


def _wide_enough(window: Frames) -> Frames:
    """Repeat the last rows and columns of a strip that is too thin for the filter."""
    down, right = (max(0, _FILTER_SIDE - side) for side in window.shape[1:3])
    if not (down or right):
        return window
    return np.pad(window, ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")


def _result(working: deque[ffmpeg.Filter], shape: tuple[int, ...], control: Control) -> Frames:
    try:
        data = working[0].result(control)
    except ffmpeg.Failed as error:
        log.error("ffmpeg's motion compensation failed: %s", error)
        raise EncodeFailed(_SENTENCE) from error
    working.popleft()
    return np.frombuffer(data, np.uint8).reshape(-1, *shape[1:])


def _arguments(window: Frames, shown: int, rate: _Rate) -> list[str]:
    """The arguments of ffmpeg. The filter returns nothing after the second-last frame, so the last
    one is repeated and the surplus is cut off."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24"]
    size = f"{window.shape[2]}x{window.shape[1]}"
    filters = (
        f"format=yuvj444p,tpad=stop_mode=clone:stop=3,minterpolate=fps={rate.fps},"
        f"trim=end_frame={shown}"
    )
    return [
        *("-threads", "1", "-filter_threads", "1"),
        *(*raw, "-s", size, "-framerate", str(rate.source_fps), "-i", "pipe:0"),
        *("-vf", filters, *raw, "pipe:1"),
    ]


def _windows_at_once(window: Frames, shown: int) -> int:
    """As many as there are cores, within the memory limit. On a large machine, a clip that renders
    in a minute should not wait for three cores."""
    frame = window[0]
    raw = 2 * (len(window) + shown) * frame.nbytes  # in this process, and as YUV in ffmpeg's queues
    filtering = frame.shape[0] * frame.shape[1] * _FILTER_BYTES_A_PIXEL
    working = max(_WORKING_BYTES, memory.host_bytes() * _WORKING_SHARE)
    fitting = int(working // (raw + filtering))
    return max(1, min(cores.count(), fitting))
