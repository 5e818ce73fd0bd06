"""Clips that end with a picture: only the last segment gets it, and the clip's last frame is the
model's last frame."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.clips import SMALLEST, MakeSettings, RequestFor, clip_frames, few_frames
from wan_engine import Control, Engine, data_uri
from wan_engine.errors import NotServed
from wan_engine.schema import Clip, LastPicture, SegmentInput

MULTI = {"shot_type": "multi", "enable_prompt_expansion": True}


class Counting:
    """A family whose frames are as bright as their number. It keeps its inputs."""

    def __init__(self, spec: Any) -> None:
        self.spec, self.given, self.count = spec, [], 0  # type: ignore[var-annotated]

    def render(self, segment: SegmentInput, on_step: Any) -> Clip:
        self.given.append(segment)
        return Clip(self._frames(segment))

    def _frames(self, segment: SegmentInput) -> Generator[np.ndarray, None, None]:
        for index in range(segment.frames):
            yield np.full((1, segment.height, segment.width, 3), 2 * index, np.uint8)


def shown(engine: Engine, request: Any, folder: Path) -> tuple[Counting, Any]:
    order = replace(request.order(), seed=1)
    choice = engine.choose(order)
    prepared = engine.prepare(order, choice, folder, Control())
    media, expansion = prepared.media, prepared.expansion
    plan = engine.plan(order, choice, expansion.script, media)
    family = Counting(engine.spec)
    engine.pool.main.family = family  # type: ignore[assignment]
    video = engine.render(order, choice, plan, media, folder, Control())
    return family, (plan, video)


@pytest.fixture
def end(data: Path) -> str:
    return data_uri(data / "astronaut_360x480.png")


@pytest.mark.parametrize("more", [{"seconds": 5}, {"seconds": 15}, {"seconds": 15, **MULTI}])
def test_only_the_last_segment_of_the_last_shot_gets_the_picture(
    engine: Engine, request_for: RequestFor, tmp_path: Path, end: str, more: dict[str, Any]
) -> None:
    family, (plan, _) = shown(engine, request_for(last_image=end, **more), tmp_path)
    *others, last = family.given
    assert all(segment.find(LastPicture) is None for segment in others)
    assert len(family.given) == len(plan.segments)
    picture = last.find(LastPicture)
    assert picture is not None and picture.image.size == (plan.render_width, plan.render_height)


@pytest.mark.parametrize("fps", ["native", 30])
@pytest.mark.parametrize("seconds", [2, 5, 7, 10, 15])
def test_the_last_frame_is_the_last_one_of_the_model(
    make_settings: MakeSettings,
    request_for: RequestFor,
    tmp_path: Path,
    end: str,
    fps: Any,
    seconds: int,
) -> None:
    engine = few_frames(make_settings(**SMALLEST, fps=fps, interpolation="blend", safety="off"))
    # Not `last_frames`: with it, a segment takes the colours of the segment before.
    engine.pool.main.spec = replace(engine.spec, continuation="latents")
    family, (plan, video) = shown(engine, request_for(last_image=end, seconds=seconds), tmp_path)
    frames = clip_frames(video.path, plan.width // 8, plan.height // 8)
    assert len(frames) == seconds * plan.fps == plan.frames
    bright = frames.mean(axis=(1, 2, 3))
    last = family.given[-1].frames - 1
    assert bright[-1] == pytest.approx(2 * last, abs=2.5)
    assert plan.segments[-1].repeated + plan.segments[-1].shown == plan.segments[-1].frames


def test_a_picture_of_another_shape_is_cropped_with_a_warning(
    engine: Engine, request_for: RequestFor, tmp_path: Path, end: str, data: Path
) -> None:
    cut = "The last picture has another shape than the clip: its edges are cut off"
    for last, warnings in ((end, (cut,)), (data_uri(data / "rocket_640x360.jpg"), ())):
        order = request_for(last_image=last).order()
        media = engine.prepare(order, engine.choose(order), tmp_path, Control()).media
        assert media.warnings == warnings


def test_a_model_that_cannot_end_with_a_picture_refuses_it_before_anything_is_fetched(
    make_settings: MakeSettings, request_for: RequestFor
) -> None:
    engine = Engine(make_settings(**SMALLEST, model="wan-tiny-ti2v"))
    with pytest.raises(NotServed) as caught:
        engine.generate(request_for(last_image="https://nowhere.invalid/end.png"))
    assert str(caught.value) == (
        'field "last_image" cannot be used: the model wan-tiny-ti2v takes a first picture, '
        "a clip to continue"
    )
