"""Frames at exact times: what each backend shows and when, that cuts stay cuts, and that memory
stays flat."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from PIL import Image

from wan_engine.control import Control
from wan_engine.errors import Cancelled, ConfigurationError, EncodeFailed
from wan_engine.media.frames import blend
from wan_engine.media.retime import Between, _windows_at_once, choose, retime
from wan_engine.media.rife import Rife
from wan_engine.plan import frames_to_cover
from wan_engine.runtime import cores, memory
from wan_engine.schema import Frames, Plan, Segment, Shot
from wan_engine.settings import Settings

Method = Between | Literal["mci"]
METHODS: list[Method] = [blend, "mci"]
NAMES = ["blend", "mci"]
WIDTH, HEIGHT = 64, 48


def plan(
    *seconds: int, source_fps: int = 16, fps: int = 30, width: int = WIDTH, height: int = HEIGHT
) -> Plan:
    """One shot for each of `seconds`, with the frame after its end if it is needed."""
    shots = []
    for length in seconds:
        kept = frames_to_cover(length * fps, fps, source_fps)
        shots.append(Shot("", (Segment(0, kept, 0, kept),), length * fps))
    sides = (width, height) * 3
    frames = sum(shot.frames for shot in shots)
    return Plan(*sides, fps, frames, 0, tuple(shots), source_fps)


def chunks(frames: list[np.ndarray]) -> Iterator[Frames]:
    """Chunks as a Wan VAE gives them: one frame, then four at a time."""
    start, end = 0, 1
    while start < len(frames):
        yield np.stack(frames[start:end])
        start, end = end, end + 4


def grey(value: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def bar(left: float, width: int = 128, height: int = 96) -> np.ndarray:
    """A textured bar, 32 pixels wide, at `left` whole pixels on a dark ground."""
    picture = np.full((height, width, 3), 20, np.uint8)
    texture = np.random.default_rng(1).integers(120, 255, (height // 8, 4, 3), np.uint8)
    picture[:, int(left) : int(left) + 32] = texture.repeat(8, 0).repeat(8, 1)
    return picture


@cache
def photograph() -> Image.Image:
    return Image.open(Path(__file__).parents[1] / "data" / "rocket_640x360.jpg").convert("RGB")


def panned(pixels: float, width: int = 320, height: int = 192) -> np.ndarray:
    """A crop of a photograph, `pixels` to the right of its left edge; fractions of pixels too."""
    box = (pixels, 100, pixels + width, 100 + height)
    size = (width, height)
    return np.asarray(photograph().resize(size, Image.Resampling.BICUBIC, box=box))


def shift_of(frame: np.ndarray) -> float:
    """The position of the crop that `frame` shows, to a quarter of a pixel: the one that differs
    least."""
    inner = frame[:, 32:-32].astype(float)
    places = [index / 4 for index in range(4 * 72)]
    errors = [np.abs(panned(place)[:, 32:-32] - inner).mean() for place in places]
    return places[int(np.argmin(errors))]


def run(plan: Plan, frames: list[np.ndarray], method: Method) -> np.ndarray:
    return np.concatenate(list(retime(chunks(frames), plan, method, Control())))


# --- times and counts ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
@pytest.mark.parametrize("fps", [8, 24, 25, 30, 60])
@pytest.mark.parametrize("source_fps", [16, 24])
def test_every_second_has_exactly_its_frames(source_fps: int, fps: int, method: Method) -> None:
    if source_fps == fps:
        pytest.skip("nothing to make")
    shape = plan(2, source_fps=source_fps, fps=fps)
    frames = [grey(index % 200) for index in range(shape.source_frames)]
    assert len(run(shape, frames, method)) == 2 * fps


@pytest.mark.parametrize("seconds", [5, 10, 15])
@pytest.mark.parametrize("source_fps", [16, 24])
@pytest.mark.parametrize("fps", [8, 23, 24, 25, 30, 50, 60])
def test_each_frame_is_at_its_exact_time(seconds: int, source_fps: int, fps: int) -> None:
    """Frames carry their number: the number that is shown tells the time between two of them."""
    shape = plan(seconds, source_fps=source_fps, fps=fps)
    times: list[Fraction] = []

    def note(earlier: np.ndarray, later: np.ndarray, weight: float) -> np.ndarray:
        first, second = (int(frame.view(np.uint16)[0, 0, 0]) for frame in (earlier, later))
        assert second == first + 1
        times.append(first + Fraction(weight).limit_denominator(60))
        return earlier

    numbers = np.arange(shape.source_frames, dtype=np.uint16)
    frames = [np.full((1, 1, 1), number).view(np.uint8) for number in numbers]
    assert sum(len(chunk) for chunk in retime(chunks(frames), shape, note, Control())) == (
        seconds * fps
    )
    wanted = [Fraction(index * source_fps, fps) for index in range(seconds * fps)]
    assert times == [position for position in wanted if position.denominator > 1]


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_a_model_frame_at_a_time_of_the_clip_is_shown_there(method: Method) -> None:
    frames = [bar(4 + 2 * (index % 40)) for index in range(17)]
    shown = run(plan(1, width=128, height=96), frames, method)
    for second_half in (0, 1):
        error = shown[15 * second_half].astype(int) - frames[8 * second_half]
        assert np.abs(error).max() <= 2  # converted to YUV and back


# --- motion --------------------------------------------------------------------------------------


def test_a_blend_is_the_correctly_rounded_mean_of_its_neighbours() -> None:
    shown = run(plan(1), [grey(10 * index) for index in range(17)], blend)
    wanted = [round(10 * 16 * index / 30) for index in range(30)]
    assert shown[:, 0, 0, 0].tolist() == wanted
    assert (shown == shown[:, :1, :1, :1]).all()


@pytest.mark.parametrize("values", [(0, 255), (255, 0), (100, 101), (7, 7)])
@pytest.mark.parametrize("weight", [1 / 15, 0.25, 8 / 15, 14 / 15])
def test_a_blend_never_overshoots(values: tuple[int, int], weight: float) -> None:
    low, high = values
    wanted = round(low + (high - low) * weight)
    assert (blend(grey(low), grey(high), weight) == wanted).all()


def test_motion_compensation_shows_the_positions_between_and_not_two_frames_at_once() -> None:
    frames = [panned(4 * index) for index in range(17)]  # 64 pixels a second
    shape = plan(1, width=320, height=192)
    compensated, blended = run(shape, frames, "mci"), run(shape, frames, blend)
    for index in range(1, 30, 4):
        truth = 64 * index / 30
        assert shift_of(compensated[index]) == pytest.approx(truth, abs=0.8)  # whole pixels
    between = [index for index in range(30) if index % 15]
    truths = np.stack([panned(64 * index / 30) for index in between]).astype(int)
    errors = [
        np.abs(shown[between] - truths)[:, :, 32:-32].mean() for shown in (compensated, blended)
    ]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_motion_continues_to_the_last_frame(method: Method) -> None:
    """Without the source frame after the last one that native clips show, motion would stop."""
    frames = [bar(4 + 4 * index) for index in range(17)]
    shown = run(plan(1, width=128, height=96), frames, method)
    steps = np.abs(np.diff(shown[-8:].astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert steps.min() > 0.2 * steps.max() > 0


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_without_a_frame_after_the_end_the_last_one_stays(method: Method) -> None:
    kept = Segment(0, 17, 0, 16)
    shape = Plan(*(WIDTH, HEIGHT) * 3, 30, 30, 0, (Shot("", (kept,), 30),), 16)
    shown = run(shape, [grey(10 * index) for index in range(16)], method)
    assert len(shown) == 30
    assert abs(int(shown[-1, 0, 0, 0]) - 150) <= 2
    assert int(shown[-2, 0, 0, 0]) < 150


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_colours_survive(method: Method) -> None:
    for colour in ((255, 0, 0), (0, 255, 0), (12, 34, 200), (128, 128, 128), (255, 255, 255)):
        frames = [np.full((HEIGHT, WIDTH, 3), colour, np.uint8)] * 17
        assert np.abs(run(plan(1), frames, method).astype(int) - colour).max() <= 2


@pytest.mark.parametrize("sides", [(48, 16), (16, 48), (16, 16)], ids=str)
def test_a_strip_is_interpolated_too(sides: tuple[int, int]) -> None:
    """ffmpeg's filter takes no side below 32."""
    width, height = sides
    shape = plan(1, width=width, height=height)
    frames = [np.full((height, width, 3), 10 * index, np.uint8) for index in range(17)]
    shown = run(shape, frames, "mci")
    assert shown.shape == (30, height, width, 3)
    assert np.abs(shown[15].astype(int) - 80).max() <= 2


# --- cuts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_no_frame_is_made_from_two_shots(method: Method) -> None:
    shape = plan(1, 2, 1)
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    frames = [
        np.full((HEIGHT, WIDTH, 3), colour, np.uint8)
        for shot, colour in zip(shape.shots, colours, strict=True)
        for _ in range(shot.source_frames)
    ]
    shown = run(shape, frames, method).astype(int)
    for start, end, colour in ((0, 30, colours[0]), (30, 90, colours[1]), (90, 120, colours[2])):
        assert np.abs(shown[start:end] - colour).max() <= 2


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
@pytest.mark.parametrize("count", [0, 1, 8, 15, 16, 18, 40])
def test_a_wrong_number_of_frames_fails(
    count: int, method: Method, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EncodeFailed):
        run(plan(1), [grey(index) for index in range(count)], method)
    assert "the model returned" in caplog.text


def ffmpeg_children() -> int:
    """The number of ffmpeg processes that this process has started and not waited for."""
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += name.startswith("ffmpeg") and int(rest.split()[1]) == os.getpid()
    return found


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_a_cancelled_job_stops_and_its_source_is_closed(method: Method) -> None:
    control, closed = Control(), []

    def source() -> Iterator[Frames]:
        try:
            for index in range(241):
                yield bar(index % 90)[None]
        finally:
            closed.append(True)

    stream = retime(source(), plan(15, width=128, height=96), method, control)
    next(stream)
    control.cancel()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        list(stream)
    assert time.monotonic() - began < 1
    assert closed == [True]


def test_abandoning_a_stream_ends_its_processes() -> None:
    frames = [bar(index % 90) for index in range(241)]
    stream = retime(chunks(frames), plan(15, width=128, height=96), "mci", Control())
    next(stream)
    stream.close()
    assert ffmpeg_children() == 0


def test_a_failure_of_the_filter_is_a_sentence_and_its_output_is_logged(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\ncat >/dev/null; echo the filter is tired >&2; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(EncodeFailed, match="could not be encoded"):
        run(plan(1), [grey(index) for index in range(17)], "mci")
    assert "the filter is tired" in caplog.text


def test_a_filter_that_stops_working_is_given_up(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nkill -STOP $$\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    stream = retime(chunks([grey(0)] * 17), plan(1), "mci", Control(hang_seconds=0.5))
    with pytest.raises(EncodeFailed, match="could not be encoded"):
        list(stream)
    assert "did nothing for 0.5 seconds" in caplog.text and ffmpeg_children() == 0


# --- choice of the method ------------------------------------------------------------------------


def test_without_weights_edges_are_moved_and_not_doubled() -> None:
    assert choose(Settings())[0] == "mci"


def test_a_named_method_is_used() -> None:
    assert [choose(Settings(interpolation=name))[0] for name in ("mci", "blend")] == [
        "mci",
        "blend",
    ]


@pytest.fixture
def ffmpeg_without_the_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho Unknown filter\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


@pytest.mark.usefixtures("ffmpeg_without_the_filter")
def test_an_ffmpeg_without_motion_compensation_blends_and_says_so() -> None:
    assert choose(Settings()) == ("blend", "this ffmpeg has no motion compensation")
    with pytest.raises(ConfigurationError, match="no filter `minterpolate`"):
        choose(Settings(interpolation="mci"))


def test_rife_without_weights_says_where_they_belong() -> None:
    with pytest.raises(ConfigurationError, match="needs WAN_RIFE_WEIGHTS"):
        choose(Settings(interpolation="rife"))


@pytest.mark.parametrize("interpolation", ["auto", "rife"])
def test_missing_weights_are_not_silently_ignored(interpolation: Any, tmp_path: Path) -> None:
    settings = Settings(interpolation=interpolation, rife_weights=tmp_path / "rife.pkl")
    with pytest.raises(ConfigurationError, match="which is not a file"):
        choose(settings)


def test_a_missing_package_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ccvfi", cast(Any, None))
    weights = tmp_path / "rife.pkl"
    weights.touch()
    with pytest.raises(ConfigurationError, match=r"requirements-extra\.txt"):
        choose(Settings(rife_weights=weights))


# --- memory --------------------------------------------------------------------------------------

_FIFTEEN_SECONDS = """
import sys
import numpy as np
from wan_engine.control import Control
from wan_engine.media.frames import blend
from wan_engine.media.retime import retime
from wan_engine.schema import Plan, Segment, Shot

def kib(name):
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(name)).split()[1])

def frames(count):
    for index in range(count):
        yield np.full((1, 1080, 1920, 3), index % 256, np.uint8)

count = int(sys.argv[1])
shot = Shot("", (Segment(0, 16 * count + 1, 0, 16 * count + 1),), 30 * count)
plan = Plan(*(1920, 1080) * 3, 30, 30 * count, 0, (shot,), 16)
before = kib("VmRSS")
made = retime(frames(16 * count + 1), plan, blend, Control())
assert sum(len(chunk) for chunk in made) == 30 * count
print(kib("VmHWM") - before)
"""


def test_memory_is_a_few_frames_at_any_length() -> None:
    frame_kib = 1080 * 1920 * 3 // 1024
    for seconds in ("1", "5"):
        command = [sys.executable, "-c", _FIFTEEN_SECONDS, seconds]
        done = subprocess.run(command, capture_output=True, check=True, timeout=120)
        assert int(done.stdout) < 20 * frame_kib  # one frame in float32 is four in uint8


@pytest.mark.parametrize(
    ("width", "height", "memory_gb", "most"),
    [
        (256, 144, 24, 64),
        (1280, 720, 24, 3),
        (1920, 1080, 24, 1),
        (3840, 2160, 24, 1),
        (1280, 720, 128, 20),
        (1920, 1080, 128, 8),
    ],
)
def test_memory_limits_the_windows_in_progress(
    width: int, height: int, memory_gb: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "count", lambda: 64)
    monkeypatch.setattr(memory, "host_bytes", lambda: memory_gb * 10**9)
    window = np.lib.stride_tricks.as_strided(grey(0), (9, height, width, 3), (0, 0, 0, 1))
    assert _windows_at_once(window, 15) == most


# --- RIFE, where ccvfi is installed --------------------------------------------------------------


@pytest.fixture
def rife_weights(tmp_path: Path) -> Path:
    """The network with random weights, in the layout of the file."""
    pytest.importorskip("ccvfi")
    from ccvfi.arch import IFNet

    torch.manual_seed(0)
    weights = {f"module.{name}": tensor for name, tensor in IFNet().state_dict().items()}
    torch.save(weights, tmp_path / "rife.pkl")
    return tmp_path / "rife.pkl"


def test_rife_interpolates_frames_of_any_size(rife_weights: Path) -> None:
    assert choose(Settings(rife_weights=rife_weights))[0] == "rife"
    network = Rife(rife_weights, "cpu")
    shown = run(
        plan(1, width=70, height=56), [bar(index, 70, 56) for index in range(17)], network.between
    )
    assert shown.shape == (30, 56, 70, 3)
    assert (shown[15] == bar(8, 70, 56)).all()
    assert (shown[14] != shown[15]).any()


def test_rife_between_two_equal_frames_gives_that_frame(rife_weights: Path) -> None:
    """Whatever motion it finds in a plain picture, the picture and its edge stay the same."""
    made = Rife(rife_weights, "cpu").between(grey(99), grey(99), 0.4)
    assert made.shape == (HEIGHT, WIDTH, 3)
    assert (made == 99).all()


def test_rife_keeps_no_grids_of_earlier_sizes(rife_weights: Path) -> None:
    from ccvfi.arch.arch_utils.warplayer import backwarp_tenGrid

    network = Rife(rife_weights, "cpu")
    network.between(grey(0), grey(9), 0.5)
    assert backwarp_tenGrid
    network.forget()
    assert not backwarp_tenGrid


@pytest.mark.parametrize("content", [{}, {"module.weight": 1}, [1, 2]], ids=str)
def test_a_file_that_is_not_rife_is_refused(rife_weights: Path, content: Any) -> None:
    torch.save(content, rife_weights)
    with pytest.raises(ConfigurationError, match="does not hold RIFE"):
        Rife(rife_weights, "cpu")
