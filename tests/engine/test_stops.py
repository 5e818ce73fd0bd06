"""Jobs that end early: cancelled, out of time, or refused before the render."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from tests.engine.clips import (
    FEWEST,
    MakeSettings,
    OrderFor,
    RequestFor,
    frame_hashes,
    local,
)
from wan_engine import Control, Engine, Progress, VideoRequest
from wan_engine.errors import (
    Cancelled,
    DeadlineExceeded,
    DiskFull,
    InvalidMedia,
    TimeLimitTooShort,
)
from wan_engine.runtime.recipes import Gpu


@pytest.mark.parametrize("stage", ["prepare", "denoise", "decode", "encode", "publish"])
def test_a_cancel_in_any_stage_leaves_nothing(
    engine: Engine, shortest: OrderFor, tmp_path: Path, stage: str
) -> None:
    control: Control

    def on_progress(progress: Progress) -> None:
        if progress.stage == stage:
            control.cancel()

    control = Control(on_progress=on_progress)
    with pytest.raises(Cancelled):
        engine.generate(shortest(), control)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list(tmp_path.glob("outputs/*.mp4")) == []


PARTS = ("text_encoder", "vae.encoder.mid_block", "transformer", "transformer_2", "vae.decoder")


@pytest.mark.parametrize("part", PARTS)
def test_after_a_cancel_only_the_running_call_is_finished(
    engine: Engine, shortest: OrderFor, part: str
) -> None:
    family: Any = engine.load()
    control, finished = Control(), []

    def cancel(*_: object) -> None:
        control.cancel()

    def note(name: str, *_: object) -> None:
        if control.cancelled:
            finished.append(name)

    hooks = [attrgetter(part)(family.pipeline).register_forward_pre_hook(cancel)]
    for name in PARTS:
        module = attrgetter(name)(family.pipeline)
        hooks.append(module.register_forward_hook(partial(note, name)))
    with pytest.raises(Cancelled):  # a new prompt, because embeddings of the last ones are kept
        engine.generate(shortest(prompt=part), control)
    for hook in hooks:
        hook.remove()
    assert len(finished) <= 1


@pytest.mark.parametrize("model", ["wan-tiny", "wan-tiny-ti2v"])  # with last frames, with latents
@pytest.mark.parametrize("part", ["transformer", "vae.decoder"])
def test_in_a_later_segment_too_only_the_running_call_is_finished(
    make_settings: MakeSettings,
    request_for: RequestFor,
    model: str,
    part: str,
) -> None:
    engine = Engine(make_settings(model=model, render_area=64 * 64))
    engine.pool.main.spec = replace(engine.spec, **FEWEST)
    family: Any = engine.load()
    finished: list[str] = []
    later = False

    def on_progress(progress: Progress) -> None:
        nonlocal later
        later |= progress.stage == "denoise" and progress.step > engine.spec.steps

    control = Control(on_progress=on_progress)

    def cancel(*_: object) -> None:
        if later:
            control.cancel()

    def note(name: str, *_: object) -> None:
        if control.cancelled:
            finished.append(name)

    hooks = [attrgetter(part)(family.pipeline).register_forward_pre_hook(cancel)]
    for name in PARTS:
        if name != "transformer_2" or engine.spec.guidance_scale_2 is not None:
            module = attrgetter(name)(family.pipeline)
            hooks.append(module.register_forward_hook(partial(note, name)))
    with pytest.raises(Cancelled):
        engine.generate(request_for(duration=10), control)
    for hook in hooks:
        hook.remove()
    assert len(finished) <= 1


def test_the_job_after_a_cancelled_one_works(engine: Engine, request_for: RequestFor) -> None:
    clean = frame_hashes(local(engine.generate(request_for()).video_url))
    control: Control

    def on_progress(progress: Progress) -> None:
        if progress.stage == "decode" and progress.step > 5:
            control.cancel()

    control = Control(on_progress=on_progress)
    with pytest.raises(Cancelled):
        engine.generate(request_for(), control)
    assert frame_hashes(local(engine.generate(request_for()).video_url)) == clean


def test_a_job_that_takes_too_long_is_ended(
    whole: Engine, request_for: RequestFor, tmp_path: Path
) -> None:
    # An empty cache: an estimate of earlier tests would refuse the job.
    whole.settings = whole.settings.model_copy(update={"cache_dir": tmp_path / "cache"})
    whole.load()
    with pytest.raises(DeadlineExceeded, match=r"0\.5 seconds"):
        whole.generate(request_for(duration=15), Control(deadline_seconds=0.5))


def test_a_job_that_would_take_too_long_is_refused_before_the_render(
    make_settings: MakeSettings, request_for: RequestFor, tmp_path: Path
) -> None:
    smallest = {"preset": "superfast", "render_area": 64 * 48}
    settings = make_settings(**smallest, cache_dir=tmp_path / "cache")
    first, stages = Engine(settings), list[str]()
    first.generate(request_for(), Control(deadline_seconds=60))  # no estimate: no refusal
    took = first.dry_run(request_for(duration=15))["expected_seconds"]
    second = Engine(settings)  # as another process would
    second.load()
    control = Control(
        deadline_seconds=took / 2, on_progress=lambda progress: stages.append(progress.stage)
    )
    sentence = r"about \d+ s here, and the job has \d+ s: a shorter duration takes less$"
    with pytest.raises(TimeLimitTooShort, match=sentence):
        second.generate(request_for(duration=15), control)
    assert set(stages) == {"prepare"}
    assert list((tmp_path / "scratch").iterdir()) == []
    second.pool.gpu = Gpu("another card", 24.0, (8, 9))
    assert second.dry_run(request_for())["expected_seconds"] is None


def test_a_blocked_download_is_cancelled(make_settings: MakeSettings) -> None:
    engine = Engine(make_settings(allow_private_urls=True))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/photo.jpg"
        request = VideoRequest.parse({"prompt": "x", "image": url})
        control = Control()
        threading.Timer(0.3, control.cancel).start()
        with pytest.raises(Cancelled):
            engine.generate(request, control)


def test_private_addresses_are_refused_by_default(engine: Engine) -> None:
    request = VideoRequest.parse({"prompt": "x", "image": "http://127.0.0.1:1/photo.jpg"})
    with pytest.raises(InvalidMedia, match="Invalid image URL: "):
        engine.generate(request)


def test_a_render_has_a_deadline_if_no_one_set_one(engine: Engine, shortest: OrderFor) -> None:
    control = Control()
    engine.generate(shortest(), control)
    assert control.seconds_left and 0 < control.seconds_left < 24 * 3600


def test_a_full_disk_ends_a_job_before_anything_is_fetched(
    make_settings: MakeSettings, shortest: OrderFor
) -> None:
    engine, seen = Engine(make_settings(scratch_min_gb=10**6)), []
    with pytest.raises(DiskFull):
        engine.generate(shortest(), Control(on_progress=seen.append))
    assert seen == []
