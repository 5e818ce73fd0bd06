"""Clips of several segments: joined without a seam, and reproducible."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import warm
from tests.engine.clips import (
    FEWEST,
    ROOT,
    LongRun,
    MakeSettings,
    RequestFor,
    SlidingPicture,
    chunks_of,
    first_picture,
    local,
    visible,
)
from tests.rows import ROWS
from wan_engine import Engine, Settings, VideoRequest, data_uri
from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.media import ffmpeg
from wan_engine.plan import PlanLimits, make_plan
from wan_engine.schema import Media, Script, ScriptShot

LONG_RUNS = (
    ("wan-tiny", "last_frames"),
    ("wan-tiny", "last_frame"),
    ("wan-tiny-ti2v", "latents"),
    ("wan-tiny-ti2v", "last_frames"),
)


def frames_digest(engine: Engine, request: VideoRequest) -> str:
    """SHA-256 of all frames of a clip that the encoder gets."""
    media = Media(Image.linear_gradient("L").convert("RGB").resize((640, 360)))
    script = Script((ScriptShot(request.prompt, request.duration),))
    plan = make_plan(request, script, media, engine.spec, PlanLimits())
    digest, count = hashlib.sha256(), 0
    for chunk in chunks_of(engine.pool.load(engine.pool.main), plan, media):
        digest.update(np.ascontiguousarray(chunk))
        count += len(chunk)
    assert count == request.duration * engine.spec.fps
    return digest.hexdigest()


def long_run(model: str, continuation: Any) -> dict[str, Any]:
    """The settings of a row of `LONG_RUNS`, with few steps and a small size."""
    small = {"render_area": 64 * 64, "steps": 2}
    return {"model": model, "continuation": continuation, **small}


def long_clips(settings: Settings, *seeds: int) -> list[str]:
    """The digests of clips of ten seconds, one job after the other. Another process imports this
    function."""
    engine = Engine(settings)
    engine.pool.main.spec = replace(engine.spec, **FEWEST)
    requests = [
        VideoRequest(prompt="lift-off", image="data:,", seed=seed, duration=10) for seed in seeds
    ]
    return [frames_digest(engine, request) for request in requests]


@pytest.fixture(scope="module")
def elsewhere(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The digests of `LONG_RUNS` from another process."""
    script = tmp_path_factory.mktemp("elsewhere") / "digests.py"
    script.write_text(
        "import sys\n"
        "from tests.engine.test_long_clips import LONG_RUNS, Settings, long_clips, long_run\n"
        "for row in LONG_RUNS:\n"
        "    settings = Settings(cache_dir=sys.argv[1], **long_run(*row))\n"
        "    print(*long_clips(settings, 11))\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = warm.shared().run([str(script), str(tiny_cache)], env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("row", LONG_RUNS, ids="-".join)
def test_a_long_clip_is_reproducible_after_another_job_and_in_another_process(
    make_settings: MakeSettings, elsewhere: list[str], row: tuple[str, str]
) -> None:
    first, other, after = long_clips(make_settings(**long_run(*row)), 11, 12, 11)
    assert first == after != other
    assert elsewhere[LONG_RUNS.index(row)] == first


CONTINUATIONS = [
    pytest.param(spec, setting, id=f"{spec.name}-{setting}")
    for spec in ROWS.values()
    for setting in ("last_frame", *spec.continuations)
    if setting in spec.continuations or "last_frames" in spec.continuations
]


@pytest.mark.parametrize("seconds", [5, 10, 15])
@pytest.mark.parametrize(("spec", "setting"), CONTINUATIONS)
def test_joined_segments_equal_one_long_run(
    engine: Engine,
    request_for: RequestFor,
    spec: ModelSpec,
    setting: str,
    seconds: int,
) -> None:
    overlap = 1 if setting == "last_frame" else spec.overlap_frames
    continuation: Any = "last_frames" if setting == "last_frame" else setting
    changed = replace(spec, max_area=32 * 32, continuation=continuation, overlap_frames=overlap)
    family: Any = LongRun(changed)
    request = request_for(duration=seconds)
    image = Image.new("RGB", (640, 360))
    script = Script((ScriptShot(request.prompt, seconds),))
    plan = make_plan(request, script, Media(image), changed, PlanLimits())
    frames = np.concatenate(list(chunks_of(family, plan, Media(image))))
    size = plan.render_height, plan.render_width
    wanted = np.stack([LongRun.picture(number, *size) for number in range(seconds * spec.fps)])
    assert np.array_equal(frames, wanted)  # exact count, none repeated, none missing, none mixed
    # Each segment gets the user's image and the end of the one before.
    assert len(family.asked) == len(plan.segments)
    if "first_picture" in spec.takes:
        starts = [np.asarray(first_picture(asked)) for asked in family.asked]
        assert all(np.array_equal(start, starts[0]) for start in starts)
    assert len({asked.seed for asked in family.asked}) == len(family.asked)


def test_no_latent_is_decoded_after_the_last_frame(engine: Engine, request_for: RequestFor) -> None:
    spec = replace(CATALOG["wan-tiny"], max_area=32 * 32)
    family: Any = LongRun(spec)
    request = request_for(duration=15)
    image = Image.new("RGB", (640, 360))
    script = Script((ScriptShot(request.prompt, 15),))
    plan = make_plan(request, script, Media(image), spec, PlanLimits())
    frames = np.concatenate(list(chunks_of(family, plan, Media(image))))
    assert len(frames) == 240 and sum(asked.frames for asked in family.asked) == 4 * 65
    assert family.decoded == 3 * 65 + 61  # 60 frames of the last segment are needed, 1 + 4n


def test_every_shot_begins_with_the_image_again(engine: Engine, request_for: RequestFor) -> None:
    spec = replace(CATALOG["wan-tiny"], max_area=32 * 32)
    family: Any = LongRun(spec)
    image = Image.new("RGB", (640, 360))
    script = Script((ScriptShot("one", 8), ScriptShot("two", 7)))
    plan = make_plan(request_for(duration=15), script, Media(image), spec, PlanLimits())
    frames = np.concatenate(list(chunks_of(family, plan, Media(image))))
    numbers = [int(frame[0, 0, 0]) * 256 + int(frame[0, 0, 1]) for frame in frames]
    assert numbers == [*range(8 * 16), *range(7 * 16)]
    first, second = (
        [asked for asked in family.asked if asked.prompt == prompt] for prompt in ("one", "two")
    )
    assert first[0].carry is first[1].carry is not second[0].carry


@pytest.mark.parametrize("name", ["rocket_640x360.jpg", "astronaut_360x480.png"])
def test_the_picture_stays_upright_and_unstretched_through_all_joins(
    make_settings: MakeSettings, request_for: RequestFor, data: Path, tmp_path: Path, name: str
) -> None:
    engine: Any = Engine(make_settings(preset="superfast"))
    engine.pool.main.family = SlidingPicture()
    result = engine.generate(request_for(image=data_uri(data / name), duration=15))
    original = Image.open(data / name).convert("RGB")
    command = [ffmpeg.executable(), "-v", "error", "-i", str(local(result.video_url))]
    command += ["-vf", f"scale={original.width}:{original.height}", "-f", "rawvideo"]
    raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    frames = np.frombuffer(raw.stdout, np.uint8).reshape(240, original.height, original.width, 3)
    script = Script((ScriptShot("", 15),))
    plan = make_plan(request_for(duration=15), script, Media(original), engine.spec, PlanLimits())
    seen = visible(original, plan)
    middle = slice(original.width // 8, -original.width // 4)  # the part that never wraps around
    joins = list(accumulate(segment.shown for segment in plan.segments))
    assert joins == [65, 125, 185, 240]
    for number in (0, 40, *(join + step for join in joins[:-1] for step in (-5, -1, 0)), 239):
        pixels = number // 8
        wanted = np.roll(seen, -round(pixels * original.width / plan.crop_width), axis=1)
        error = frames[number, :, middle].astype(float) - wanted[:, middle]
        assert np.sqrt((error**2).mean()) < 25, number
