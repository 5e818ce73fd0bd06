"""The frame rate of a clip, and larger pictures."""

from __future__ import annotations

import os
import subprocess
import wave
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.clips import (
    SMALLEST,
    MakeSettings,
    OrderFor,
    RequestFor,
    SlidingPicture,
    frame_hashes,
    local,
    probe,
)
from wan_engine import Control, Engine, Settings, data_uri
from wan_engine.errors import Cancelled
from wan_engine.media import ffmpeg


def test_a_clip_has_thirty_fps_unless_set_otherwise(
    thirty: Any, request_for: RequestFor, caplog: pytest.LogCaptureFixture
) -> None:
    assert Settings().fps == 30
    with caplog.at_level("INFO"):
        path = local(thirty.generate(request_for()).video_url)
    assert "30 fps" in probe(path) and "Duration: 00:00:05.00" in probe(path)
    assert len(frame_hashes(path)) == 150
    assert "150 frames at 30 fps, 57x32 enlarged by lanczos, from 16 fps by mci" in caplog.text


class Flashing(SlidingPicture):
    """A family whose frames are black, except one white frame at two seconds."""

    def decode(self, latents: Any, carry: Any = None, **_: Any) -> Iterator[np.ndarray]:
        for index in range(latents.frames):
            value = 255 if index == 2 * self.spec.fps else 0
            yield np.full((1, latents.height, latents.width, 3), value, np.uint8)


@pytest.mark.parametrize("interpolation", ["mci", "blend"])
def test_a_click_and_a_flash_at_two_seconds_coincide(
    make_settings: MakeSettings, request_for: RequestFor, tmp_path: Path, interpolation: str
) -> None:
    rate = 48000
    click = np.zeros(5 * rate, "<i2")
    click[2 * rate : 2 * rate + 480] = 30000
    with wave.open(str(tmp_path / "click.wav"), "wb") as file:
        file.setparams((1, 2, rate, len(click), "NONE", ""))
        file.writeframes(click.tobytes())
    small = {**SMALLEST, "fps": 30}
    engine: Any = Engine(make_settings(interpolation=interpolation, **small))
    engine.pool.main.family = Flashing()
    request = request_for(audio=data_uri(tmp_path / "click.wav"))
    path = local(engine.generate(request).video_url)
    read = [ffmpeg.executable(), "-v", "error", "-i", str(path)]
    shrunk = [*read, "-vf", "scale=1:1:flags=area", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    light = np.frombuffer(subprocess.run(shrunk, capture_output=True, check=True).stdout, np.uint8)
    mono = [*read, "-map", "0:a", "-f", "s16le", "-ac", "1", "-"]
    heard = np.frombuffer(subprocess.run(mono, capture_output=True, check=True).stdout, "<i2")
    flash_seconds = int(np.argmax(light)) / 30
    click_seconds = int(np.argmax(np.abs(heard.astype(int)))) / rate
    assert len(light) == 150 and light.max() > 200
    assert abs(flash_seconds - 2) <= 1 / 30
    assert abs(click_seconds - flash_seconds) <= 1 / 30


def test_forced_blending_is_a_warning_and_chosen_blending_is_not(
    make_settings: MakeSettings, shortest: OrderFor
) -> None:
    small = {**SMALLEST, "fps": 30}
    asked: Any = Engine(make_settings(interpolation="blend", **small))
    forced: Any = Engine(make_settings(**small))
    forced.postprocess.interpolation = "blend"  # as if ffmpeg lacked the other filter
    told = []
    for engine in (asked, forced):
        engine.pool.main.family = SlidingPicture()
        told.append(" ".join(engine.generate(shortest()).warnings))
    assert "moving edges are double" not in told[0]
    assert "moving edges are double" in told[1]


class Doubler:
    """A network without weights that repeats every pixel."""

    window, overlap = 1, 0

    def enlarge(self, frames: torch.Tensor, scale: float) -> torch.Tensor:
        return frames.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.system
@pytest.mark.full_size
def test_frames_are_enlarged_before_new_ones_are_interpolated(
    make_settings: MakeSettings, request_for: RequestFor, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"preset": "superfast", "render_area": 256 * 144, "fps": 30, "interpolation": "blend"}
    engine: Any = Engine(make_settings(**small))
    engine.pool.main.family = SlidingPicture()
    engine.postprocess._upscaler, engine.postprocess.upscaling = Doubler(), "realesrgan"
    with caplog.at_level("INFO"):
        path = local(engine.generate(request_for()).video_url)
    assert len(frame_hashes(path)) == 150 and "1280x720" in probe(path)
    assert "256x144 enlarged by realesrgan, from 16 fps by blend" in caplog.text
    assert "upscale " in caplog.text and "interpolate " in caplog.text


def test_a_cancel_between_frames_leaves_no_process(
    thirty: Any, request_for: RequestFor, tmp_path: Path
) -> None:
    control = Control()

    class Cancelling(SlidingPicture):
        def decode(self, latents: Any, carry: Any = None, **_: Any) -> Iterator[np.ndarray]:
            for index, chunk in enumerate(super().decode(latents)):
                if index == 12:
                    control.cancel()
                yield chunk

    thirty.pool.main.family = Cancelling()
    with pytest.raises(Cancelled):
        thirty.generate(request_for(), control)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert ffmpeg_children() == 0


def ffmpeg_children() -> int:
    """The number of ffmpeg processes that this process has started and not waited for."""
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended meanwhile
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            found += name.startswith("ffmpeg") and int(rest.split()[1]) == os.getpid()
    return found
