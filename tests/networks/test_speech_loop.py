"""The loop of Wan2.2-S2V compared with its authors' own: recorded numbers of two consecutive
clips."""

from __future__ import annotations

import torch

from tests.networks import loop
from tests.networks.recorded import MOST, difference
from wan_engine.families.sound_features import of_frames


def test_each_frame_of_two_clips_hears_what_the_authors_loop_gives_it() -> None:
    found = of_frames(loop.hidden(), 0.0, 2 * loop.CLIP, 16)
    assert difference(found, "features of two clips") < MOST


def test_two_clips_equal_those_of_the_authors_loop() -> None:
    with torch.inference_mode():
        assert difference(loop.run(), "two clips") < MOST
