"""The result of a job: its clip, output, progress and log, and the same frames for the same
seed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.engine.clips import (
    MakeSettings,
    OrderFor,
    RequestFor,
    frame_hashes,
    local,
    prepared,
    probe,
)
from wan_engine import Control, Engine, Progress, data_uri
from wan_engine.errors import (
    Cancelled,
    InvalidMedia,
)


def test_a_job_returns_the_documented_output(engine: Engine, request_for: RequestFor) -> None:
    output = engine.generate(request_for()).output()
    assert output.pop("warnings")
    url = output["video_url"]
    assert output == {"video_url": url, "result": url, "cost": 0.5, "seed": 3}
    assert url.startswith("file:///")


@pytest.mark.full_size
def test_the_clip_is_what_was_requested(whole: Engine, request_for: RequestFor, data: Path) -> None:
    request = request_for(audio=data_uri(data / "chime_4s.mp3"))
    path = local(whole.generate(request).video_url)
    facts = probe(path)
    assert "Duration: 00:00:05.00" in facts
    assert re.search(r"h264 \(High\).*yuv420p\(tv, bt709.*1280x720.*16 fps", facts)
    assert re.search(r"aac \(LC\).*48000 Hz, stereo", facts)
    assert "AI-generated video; model wan-tiny; seed 3" in facts
    assert len(frame_hashes(path)) == 80


@pytest.mark.full_size
def test_a_portrait_keeps_its_shape(engine: Engine, shortest: OrderFor, data: Path) -> None:
    request = shortest(image=data_uri(data / "astronaut_360x480.png"))
    assert "832x1108" in probe(local(engine.generate(request).video_url))


@pytest.mark.full_size
def test_exact_frames_have_the_named_size(
    make_settings: MakeSettings, shortest: OrderFor, data: Path
) -> None:
    engine = Engine(make_settings(preset="superfast", render_area=64 * 48, frame="exact"))
    request = shortest(image=data_uri(data / "astronaut_360x480.png"))
    assert "1280x720" in probe(local(engine.generate(request).video_url))


def test_the_same_seed_gives_the_same_frames(engine: Engine, shortest: OrderFor) -> None:
    first, other, again = (
        frame_hashes(local(engine.generate(shortest(seed=seed)).video_url)) for seed in (11, 12, 11)
    )
    assert first == again != other


def test_a_random_seed_is_in_the_output(engine: Engine, request_for: RequestFor) -> None:
    with pytest.raises(Cancelled):
        engine.generate(request_for(seed=-1), cancelled_control())
    plan_seeds = {engine.generate(request_for(seed=-1)).seed for _ in range(2)}
    assert len(plan_seeds) == 2 and all(0 <= seed < 2**31 for seed in plan_seeds)


def cancelled_control() -> Control:
    control = Control()
    control.cancel()
    return control


def test_progress_runs_through_all_stages_in_order(engine: Engine, request_for: RequestFor) -> None:
    seen: list[Progress] = []
    engine.generate(request_for(duration=10), Control(on_progress=seen.append))
    stages = [item.stage for item in seen]
    assert list(dict.fromkeys(stages)) == ["prepare", "denoise", "decode", "encode", "publish"]
    for stage in dict.fromkeys(stages):
        steps = [item.step for item in seen if item.stage == stage]
        assert steps == sorted(steps)
    denoised = [item for item in seen if item.stage == "denoise"]
    assert denoised[-1] == Progress("denoise", 12, 12)  # three segments of four steps


def test_nothing_is_left_in_scratch(
    engine: Engine, shortest: OrderFor, data: Path, tmp_path: Path
) -> None:
    engine.generate(shortest(audio=data_uri(data / "chime_1s.wav")))
    with pytest.raises(InvalidMedia):
        engine.generate(shortest(audio="data:audio/wav;base64,AAAA"))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_animated_image_starts_the_clip_with_its_first_frame_where_the_request_says_so(
    engine: Engine, request_for: RequestFor, tmp_path: Path
) -> None:
    frames = [Image.new("RGB", (320, 240), colour) for colour in ("red", "blue")]
    gif = tmp_path / "a.gif"
    frames[0].save(gif, save_all=True, append_images=frames[1:])
    request = request_for(image=data_uri(gif), first_frame=True)
    media, _ = prepared(engine, request, tmp_path)
    red, green, blue = media.image.getpixel((160, 120))
    assert red > 200 and max(green, blue) < 50
    with pytest.raises(InvalidMedia, match="not a JPEG, PNG, BMP or WEBP image"):
        prepared(engine, request_for(image=data_uri(gif)), tmp_path)


def test_short_audio_is_a_warning(engine: Engine, shortest: OrderFor, data: Path) -> None:
    result = engine.generate(shortest(audio=data_uri(data / "chime_1s.wav")))
    assert "The audio is only 1.0 seconds long" in result.warnings


def test_what_could_not_be_done_is_a_warning(engine: Engine, shortest: OrderFor) -> None:
    text = " ".join(engine.generate(shortest(enable_safety_checker=True)).warnings)
    assert "safety" in text and "wan-tiny is a toy trained on drawings" in text
    request = shortest(enable_safety_checker=False)
    assert "safety" not in " ".join(engine.generate(request).warnings)


def test_a_finished_job_is_not_rendered_again(engine: Engine, shortest: OrderFor) -> None:
    first = engine.generate(shortest(), Control("job-1"))
    seen: list[Progress] = []
    again = engine.generate(shortest(), Control("job-1", on_progress=seen.append))
    assert again.output() == first.output() and seen == []
    other = engine.generate(shortest(), Control("job-2"))
    assert other.video_url != first.video_url


@pytest.mark.full_size
def test_the_summary_of_a_job_has_its_stages_and_peak_memory_and_no_prompt(
    engine: Engine, request_for: RequestFor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        engine.generate(request_for(prompt="a secret wish"), Control("job-7"))
    line = next(line for line in caplog.messages if line.startswith("job job-7: 1280"))
    pattern = (
        r"job job-7: 1280\*720 5s 1280x720 seed 3 model wan-tiny "
        r"\(image-to-video: the request has an image\), attention native, 20 frames at 4 fps, "
        r"57x32 enlarged by lanczos, \d+ bytes; "
        r"prepare .*s denoise .*s decode .*s encode .*s publish .*s; peak memory host \d+ MB"
    )
    assert re.fullmatch(pattern, line), line
    assert "secret wish" not in caplog.text
