"""Previews of one job: when they are made, what they look like, and what stops them."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from wan_engine.control import Control, Preview
from wan_engine.errors import Cancelled
from wan_engine.media import previews
from wan_engine.media.previews import Previews

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 90, 160, 3), np.uint8)
SMOOTH = np.full((3, 18, 32, 3), (200, 60, 20), np.uint8)


class Maker:
    """Counts the computed previews."""

    def __init__(self, frames: np.ndarray | None = SMOOTH) -> None:
        self.frames = frames
        self.calls = 0

    def __call__(self) -> np.ndarray | None:
        self.calls += 1
        return self.frames


def opened(
    passes: Callable[[list[Image.Image]], bool] | None = None, share: float = 1e9
) -> tuple[Control, Previews, list[Preview]]:
    told: list[Preview] = []
    control = Control(on_preview=told.append)
    return control, Previews(control, passes, share=share), told


def test_nothing_is_computed_while_nobody_looks() -> None:
    make = Maker()
    Previews(Control()).show(1, make)
    control, shown, told = opened()
    control.preview_until = time.monotonic() - 1
    shown.show(1, make)
    assert (make.calls, told) == (0, [])
    control.preview_until = time.monotonic() + 60
    shown.show(2, make)
    assert (make.calls, [one.step for one in told]) == (1, [2])


def test_a_preview_is_a_small_moving_picture_of_the_frames() -> None:
    _, shown, told = opened()
    shown.show(1, Maker())
    assert told[0].uri.startswith("data:image/webp;base64,")
    picture = Image.open(io.BytesIO(told[0].content))
    assert picture.format == "WEBP" and picture.size == (192, 108)
    assert abs(np.asarray(picture.convert("RGB"), int) - SMOOTH[0, 0, 0]).max() < 12


def test_a_preview_of_noise_stays_within_the_limit_of_bytes() -> None:
    _, shown, told = opened()
    shown.show(1, Maker(FRAMES))
    assert 1000 < len(told[0].content) <= 32 * 1024


def test_an_error_ends_previews_and_not_the_job(caplog: pytest.LogCaptureFixture) -> None:
    _, shown, told = opened()
    broken = Maker(np.zeros((1, 2, 2, 7), np.uint8))
    with caplog.at_level(logging.ERROR):
        for step in range(3):
            shown.show(step, broken)
    assert (broken.calls, told, len(caplog.records)) == (1, [], 1)
    assert "goes on without previews" in caplog.text


def test_a_listener_that_fails_does_not_end_the_job() -> None:
    def fail(_preview: Preview) -> None:
        raise OSError("the disk is full")

    Previews(Control(on_preview=fail)).show(1, Maker())


def test_a_cancelled_job_is_not_held_up() -> None:
    control, shown, _ = opened()
    control.cancel()

    def make() -> np.ndarray:
        control.checkpoint()
        return SMOOTH

    with pytest.raises(Cancelled):
        shown.show(1, make)


def test_flagged_content_is_not_shown_and_nothing_after_it() -> None:
    looked: list[int] = []

    def passes(pictures: list[Image.Image]) -> bool:
        looked.append(len(pictures))
        return len(looked) < 2

    _, shown, told = opened(passes)
    for step in range(4):
        shown.show(step, Maker())
    assert looked == [3, 3]  # every frame of the first preview, and of the flagged one
    assert [one.step for one in told] == [0]


def test_previews_take_their_share_of_the_time_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(previews.time, "monotonic", lambda: now[0])

    class Slow(Maker):
        def __call__(self) -> np.ndarray | None:
            now[0] += 0.1
            return super().__call__()

    _, shown, _ = opened(share=0.01)
    make = Slow()
    for step in range(101):  # half a second each
        shown.show(step, make)
        now[0] += 0.5
    assert now[0] - 100 == pytest.approx(0.5 * 101 + 0.1 * make.calls)
    assert make.calls == 6  # at the beginning, and then one for each ten seconds


def test_a_preview_that_shows_nothing_costs_nothing() -> None:
    _, shown, told = opened(share=0)
    shown.show(0, Maker(None))
    shown.show(1, Maker())
    assert [one.step for one in told] == [1]
