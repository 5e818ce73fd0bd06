"""`encode` with the real ffmpeg: the contents of the mp4, and that nothing is left after a
failure."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from tests.warm import children
from wan_engine.control import Control
from wan_engine.errors import Cancelled, DeadlineExceeded, EncodeFailed, EngineError
from wan_engine.media.audio import SAMPLE_RATE_HZ
from wan_engine.media.video import EncodeOptions, add_sound, encode
from wan_engine.schema import AudioTrack, EncodedVideo, FirstClip, Frames, Plan
from wan_engine.settings import Settings

FAST = EncodeOptions(preset="superfast")
GREEN, RED = (0, 255, 0), (255, 0, 0)
SENTENCE = "The clip could not be encoded"
SOON_SECONDS = 1.0
TONE_HZ = 440


# --- clips ---------------------------------------------------------------------------------------


def plan(
    frames: int = 80,
    *,
    render: tuple[int, int] = (64, 36),
    crop: tuple[int, int] | None = None,
    target: tuple[int, int] = (128, 72),
    fps: int = 16,
) -> Plan:
    return Plan(*target, *render, *(crop or render), fps, frames, 0, (), fps)


def chunks(picture: Callable[[int], np.ndarray], frames: int) -> Iterator[Frames]:
    """`picture(index)` for each frame, in the chunks of a Wan VAE: 1 frame, then 4 at a time."""
    start, end = 0, 1
    while start < frames:
        yield np.stack([picture(index) for index in range(start, min(end, frames))])
        start, end = end, end + 4


def square(index: int, width: int = 64, height: int = 36) -> np.ndarray:
    """A white square that moves over a gradient by one pixel per frame."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, :, 2] = np.linspace(0, 200, width, dtype=np.uint8)
    left = index % (width - 8)
    picture[10:18, left : left + 8] = 255
    return picture


def solid(colour: tuple[int, int, int], width: int = 64, height: int = 36) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def clip(
    folder: Path,
    plan: Plan,
    picture: Callable[[int], np.ndarray] = square,
    *,
    audio: AudioTrack | None = None,
    options: EncodeOptions = FAST,
) -> Path:
    """An encoded clip of `picture`s."""
    frames = chunks(picture, plan.frames)
    video = encode(frames, plan, audio, folder / "clip.mp4", options, Control())
    assert video == EncodedVideo(folder / "clip.mp4", plan.frames, video.path.stat().st_size)
    return video.path


def tone(folder: Path, seconds: float) -> AudioTrack:
    times = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return track(folder, 0.5 * np.sin(2 * np.pi * TONE_HZ * times))


def track(folder: Path, samples: np.ndarray) -> AudioTrack:
    """The result of `open_audio`, from one channel in -1..1."""
    stereo = np.repeat((samples * 32767).astype("<i2")[:, None], 2, axis=1)
    with wave.open(str(folder / "audio.pcm.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(stereo.tobytes())
    return AudioTrack(folder / "audio.pcm.wav", len(samples) / SAMPLE_RATE_HZ)


# --- reading a clip ------------------------------------------------------------------------------


def ffmpeg(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False)


def probe(path: Path) -> str:
    """The output of ffmpeg about a file."""
    return ffmpeg("-i", str(path)).stderr.decode()


def pictures(path: Path, size: tuple[int, int], *filters: str) -> np.ndarray:
    """The frames of a clip, [n, h, w, 3] RGB, converted according to its own tags."""
    raw = ["-fps_mode", "passthrough", *filters, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = ffmpeg("-i", str(path), *raw).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, size[1], size[0], 3)


def heard(path: Path) -> np.ndarray:
    """The sound of a clip, [n, 2] in -1..1."""
    raw = ["-map", "0:a:0", "-f", "s16le", "-ar", str(SAMPLE_RATE_HZ), "-ac", "2", "-"]
    return np.frombuffer(ffmpeg("-i", str(path), *raw).stdout, "<i2").reshape(-1, 2) / 32768


def loudness(samples: np.ndarray, start: float, end: float) -> float:
    """Root mean square between two times in seconds."""
    part = samples[round(start * SAMPLE_RATE_HZ) : round(end * SAMPLE_RATE_HZ)]
    assert len(part)
    return float(np.sqrt(np.mean(part**2)))


def boxes(data: bytes) -> list[tuple[str, bytes]]:
    """Name and content of each box of an mp4, on one level."""
    found, at = [], 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        assert size >= 8
        found.append((name.decode(), data[at + 8 : at + size]))
        at += size
    return found


def seconds_of(path: Path) -> list[float]:
    """The durations that an mp4 declares: of the film, then of each track."""
    film = dict(boxes(path.read_bytes()))["moov"]
    scale, length = struct.unpack_from(">II", dict(boxes(film))["mvhd"], 12)
    tracks = [dict(boxes(content))["tkhd"] for name, content in boxes(film) if name == "trak"]
    lengths = [length, *(struct.unpack_from(">I", head, 20)[0] for head in tracks)]
    return [length / scale for length in lengths]


def signal_children(number: signal.Signals) -> None:
    running = children()
    assert running
    for process in running:
        os.kill(process, number)


# --- the picture ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "fps"), [(80, 16), (240, 16), (120, 24), (1, 16)])
@pytest.mark.parametrize("with_sound", [False, True])
def test_frames_and_duration_are_exact(
    tmp_path: Path, frames: int, fps: int, with_sound: bool
) -> None:
    audio = tone(tmp_path, 7) if with_sound else None
    path = clip(tmp_path, plan(frames, fps=fps), audio=audio)
    assert len(pictures(path, (128, 72))) == frames
    assert seconds_of(path) == [pytest.approx(frames / fps, abs=1e-3)] * (3 if audio else 2)
    assert f" {fps} fps" in probe(path)


def test_frames_keep_their_contents_and_order(tmp_path: Path) -> None:
    same_size = plan(target=(64, 36))
    seen = pictures(clip(tmp_path, same_size), (64, 36))
    for index in range(80):
        lit = np.nonzero(seen[index, 12:16].min(axis=(0, 2)) > 200)[0]
        assert abs(lit.mean() - (index % 56 + 3.5)) < 0.6


@pytest.mark.parametrize("target", [(128, 72), (130, 70), (64, 36), (1270, 726)])
def test_size_and_codec_are_as_set(tmp_path: Path, target: tuple[int, int]) -> None:
    said = probe(clip(tmp_path, plan(5, target=target)))
    assert "Video: h264 (High)" in said
    assert "yuv420p(tv, bt709, progressive)" in said
    assert f"{target[0]}x{target[1]} [SAR 1:1 " in said
    assert "Audio:" not in said


def test_all_four_colour_tags_are_in_the_stream_and_in_the_container(tmp_path: Path) -> None:
    path = clip(tmp_path, plan(5))
    headers = ffmpeg("-i", str(path), "-c", "copy", "-bsf:v", "trace_headers", "-f", "null", "-")
    values = {
        name: int(value)
        for name, value in re.findall(r"(\w+) +[01]+ = (\d+)", headers.stderr.decode())
    }
    assert values["profile_idc"] == 100
    assert values["video_full_range_flag"] == 0
    for name in ("colour_primaries", "transfer_characteristics", "matrix_coefficients"):
        assert values[name] == 1  # BT.709
    assert b"colrnclx" + struct.pack(">HHHB", 1, 1, 1, 0) in path.read_bytes()


def test_the_index_is_before_the_frames(tmp_path: Path) -> None:
    names = [name for name, _ in boxes(clip(tmp_path, plan()).read_bytes())]
    assert names[0] == "ftyp"
    assert names.index("moov") < names.index("mdat")


def key_frames(path: Path) -> list[int]:
    """Numbers of the frames from which a player can start (stss, ISO 14496-12 8.6.2)."""
    data = path.read_bytes()
    at = data.index(b"stss")
    (count,) = struct.unpack_from(">I", data, at + 8)
    return [number - 1 for number in struct.unpack_from(f">{count}I", data, at + 12)]


@pytest.mark.parametrize(("fps", "frames"), [(16, 80), (24, 120), (30, 150), (30, 450)])
def test_a_player_finds_a_key_frame_in_every_second(tmp_path: Path, fps: int, frames: int) -> None:
    for preset in ("superfast", "medium"):
        options = EncodeOptions(preset=preset)
        path = clip(tmp_path, plan(frames, fps=fps), options=options)
        keys = key_frames(path)
        assert keys[0] == 0
        assert np.diff([*keys, frames]).max() <= fps
        # IDR pictures: no later frame needs one before it.
        headers = ffmpeg(
            "-i", str(path), "-c", "copy", "-bsf:v", "trace_headers", "-f", "null", "-"
        )
        kinds = re.findall(r"nal_unit_type +[01]+ = (\d+)", headers.stderr.decode())
        assert kinds.count("5") == len(keys)


def test_a_cut_between_shots_has_a_key_frame_too(tmp_path: Path) -> None:
    cuts = [0, 27, 53]

    def shot(index: int) -> np.ndarray:
        noise = np.random.default_rng(sum(index >= cut for cut in cuts))
        return noise.integers(0, 256, (36, 64, 3), np.uint8)

    options = EncodeOptions(preset="medium")
    keys = key_frames(clip(tmp_path, plan(80), shot, options=options))
    assert set(cuts) <= set(keys) and np.diff([*keys, 80]).max() <= 16


def test_the_comment_is_in_the_file(tmp_path: Path) -> None:
    options = EncodeOptions(preset="superfast", comment="AI-generated; seed 7; café")
    assert "comment         : AI-generated; seed 7; café" in probe(
        clip(tmp_path, plan(5), options=options)
    )
    assert " comment " not in probe(clip(tmp_path, plan(5)))


@cache
def colours() -> list[tuple[int, int, int]]:
    return [RED, GREEN, (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 150, 120)]


def test_colours_survive(tmp_path: Path) -> None:
    path = clip(tmp_path, plan(7), lambda index: solid(colours()[index]))
    by_tags = pictures(path, (128, 72)).astype(int)
    as_bt709 = pictures(path, (128, 72), "-vf", "scale=in_color_matrix=bt709:in_range=tv")
    for index, colour in enumerate(colours()):
        assert np.abs(by_tags[index] - colour).max() <= 3
    assert np.abs(by_tags - as_bt709).max() <= 1


def test_a_circle_stays_round(tmp_path: Path) -> None:
    rows, columns = np.ogrid[:72, :128]
    inside = (columns - 63.5) ** 2 + (rows - 35.5) ** 2 <= 30**2
    disc = np.repeat(inside[:, :, None], 3, axis=2).astype(np.uint8) * 255
    shape = plan(5, render=(128, 72), target=(320, 180))
    seen = pictures(clip(tmp_path, shape, lambda _: disc), (320, 180))[-1, :, :, 1] > 127
    wide, high = (np.ptp(np.nonzero(seen.any(axis=axis))) + 1 for axis in (0, 1))
    assert abs(wide - high) <= 1
    assert abs(wide - 60 * 2.5) <= 3


@pytest.mark.parametrize(
    ("render", "crop"),
    [((72, 36), (64, 36)), ((64, 44), (64, 36)), ((72, 44), (64, 36)), ((64, 36), (61, 35))],
)
def test_the_middle_is_cropped(
    tmp_path: Path, render: tuple[int, int], crop: tuple[int, int]
) -> None:
    left, top = ((whole - part) // 2 for whole, part in zip(render, crop, strict=True))
    picture = solid(RED, *render)
    picture[top : top + crop[1], left : left + crop[0]] = GREEN
    path = clip(tmp_path, plan(5, render=render, crop=crop), lambda _: picture)
    assert np.abs(pictures(path, (128, 72)).astype(int) - GREEN).max() <= 3


@pytest.mark.parametrize(
    "values",
    [
        {"preset": "superfast"},
        {"preset": "veryslow"},
        {"crf": 1},
        {"crf": 40},
    ],
    ids=str,
)
def test_everything_that_the_settings_allow_is_encoded_as_high(
    tmp_path: Path, values: dict[str, object]
) -> None:
    allowed = Settings(**values)
    options = EncodeOptions(allowed.crf, allowed.preset)
    assert "h264 (High)" in probe(clip(tmp_path, plan(20), options=options))


@pytest.mark.parametrize("values", [{"preset": "ultrafast"}, {"crf": 0}], ids=str)
def test_options_that_make_x264_use_another_profile_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Settings(**values)


# --- the sound -----------------------------------------------------------------------------------


def test_longer_sound_is_cut(tmp_path: Path) -> None:
    path = clip(tmp_path, plan(), audio=tone(tmp_path, 8))
    assert "Audio: aac (LC)" in probe(path)
    assert "48000 Hz, stereo" in probe(path)
    samples = heard(path)
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(5, abs=0.03)  # an AAC frame is 0.021 s
    for second in range(5):
        assert loudness(samples, second, second + 0.9) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)


def test_shorter_sound_is_followed_by_silence(tmp_path: Path) -> None:
    samples = heard(clip(tmp_path, plan(), audio=tone(tmp_path, 2)))
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(5, abs=0.03)
    assert loudness(samples, 0.1, 1.9) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)
    assert loudness(samples, 2.1, 4.95) < 1e-4


def test_the_sound_starts_with_the_picture(tmp_path: Path) -> None:
    click = np.zeros(2 * SAMPLE_RATE_HZ)
    click[SAMPLE_RATE_HZ : SAMPLE_RATE_HZ + 48] = 0.9
    samples = heard(clip(tmp_path, plan(), audio=track(tmp_path, click)))
    loudest = np.argmax(np.abs(samples[:, 0])) / SAMPLE_RATE_HZ
    assert loudest == pytest.approx(1, abs=0.005)


def test_titles_of_the_sound_are_not_in_the_clip(tmp_path: Path) -> None:
    audio = tone(tmp_path, 1)
    titled = tmp_path / "titled.wav"
    ffmpeg("-i", str(audio.path), "-metadata", "title=somebody's title", str(titled))
    assert b"somebody's title" in titled.read_bytes()
    path = clip(tmp_path, plan(16), audio=AudioTrack(titled, audio.seconds))
    assert b"somebody's title" not in path.read_bytes()


# --- errors --------------------------------------------------------------------------------------


def failure(
    folder: Path,
    frames: Iterator[Frames],
    control: Control | None = None,
    expected: type[BaseException] = EncodeFailed,
) -> BaseException:
    """The error of an encode. Afterwards neither a file nor a process may be left."""
    path = folder / "clip.mp4"
    with pytest.raises(expected) as caught:
        encode(frames, plan(), None, path, FAST, control or Control())
    assert not path.exists()
    assert not children()
    return caught.value


@pytest.fixture
def pretended_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of ffmpeg."""

    def pretend(script: str) -> None:
        program = tmp_path / "ffmpeg"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))

    return pretend


@pytest.mark.parametrize("frames", [0, 1, 76, 79, 81, 84, 4000])
def test_a_wrong_number_of_frames_fails(
    tmp_path: Path, frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert str(failure(tmp_path, chunks(square, frames))) == SENTENCE
    assert "frames" in caplog.text


def test_empty_chunks_are_allowed(tmp_path: Path) -> None:
    nothing = np.zeros((0, 36, 64, 3), np.uint8)

    def frames() -> Iterator[Frames]:
        for chunk in chunks(square, 80):
            yield nothing
            yield chunk
        yield nothing

    video = encode(frames(), plan(), None, tmp_path / "clip.mp4", FAST, Control())
    assert len(pictures(video.path, (128, 72))) == 80


def test_chunks_that_are_views_are_written_as_they_look(tmp_path: Path) -> None:
    shape = plan(4, target=(64, 36))
    upright = np.stack([square(index) for index in range(4)])
    mirrored = upright[:, :, ::-1]
    assert not mirrored.flags.c_contiguous
    video = encode(iter([mirrored]), shape, None, tmp_path / "clip.mp4", FAST, Control())
    seen = pictures(video.path, (64, 36)).astype(int)
    assert np.abs(seen - mirrored).mean() < 5 < np.abs(seen - upright).mean()


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    flat = chunks(lambda index: square(index, 64, 18), 80)
    with pytest.raises((EncodeFailed, AssertionError)):
        encode(flat, plan(), None, tmp_path / "clip.mp4", FAST, Control())


class ModelFailed(Exception):
    pass


def then_raise(error: BaseException) -> Iterator[Frames]:
    yield from chunks(square, 21)
    raise error


@pytest.mark.parametrize(
    "error", [ModelFailed("x"), Cancelled(), KeyboardInterrupt(), OSError("x")], ids=repr
)
def test_exceptions_of_the_frames_are_raised(tmp_path: Path, error: BaseException) -> None:
    assert failure(tmp_path, then_raise(error), expected=type(error)) is error


def test_a_broken_pipe_of_another_program_is_raised(tmp_path: Path) -> None:
    """For example of a progress bar on a closed terminal."""
    control = Control(deadline_seconds=1)
    failure(tmp_path, then_raise(BrokenPipeError("stdout")), control, expected=BrokenPipeError)


def test_a_killed_ffmpeg_fails_the_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def frames() -> Iterator[Frames]:
        yield from chunks(square, 21)
        signal_children(signal.SIGKILL)
        yield from chunks(square, 59)

    assert str(failure(tmp_path, frames())) == SENTENCE
    assert "ended with status -9" in caplog.text


def test_an_ffmpeg_killed_after_the_last_frame_fails_the_job(tmp_path: Path) -> None:
    def frames() -> Iterator[Frames]:
        yield from chunks(square, 80)
        signal_children(signal.SIGKILL)

    assert str(failure(tmp_path, frames())) == SENTENCE


@pytest.mark.parametrize("when", ["", "head -c 99999 >/dev/null; ", "cat >/dev/null; "])
def test_the_last_output_of_a_failed_ffmpeg_is_logged(
    tmp_path: Path,
    when: str,
    pretended_ffmpeg: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pretended_ffmpeg(f"{when}echo the encoder is tired >&2; exit 3")
    assert str(failure(tmp_path, chunks(square, 80))) == SENTENCE
    assert "the encoder is tired" in caplog.text


def test_a_full_disk_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "clip.mp4"
    path.symlink_to("/dev/full")
    assert str(failure(tmp_path, chunks(square, 80))) == SENTENCE
    assert not path.is_symlink()
    assert Path("/dev/full").exists()
    assert "No space left on device" in caplog.text


def test_a_missing_folder_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert str(failure(tmp_path / "gone", chunks(square, 80))) == SENTENCE
    assert "No such file or directory" in caplog.text


# --- cancellation --------------------------------------------------------------------------------


def stopped(folder: Path, frames: Iterator[Frames], control: Control) -> EngineError:
    """The error of an encode that is cancelled after 0.3 s, or ends at its deadline."""
    timer = threading.Timer(0.3, control.cancel)
    began = time.monotonic()
    timer.start()
    error = failure(folder, frames, control, EngineError)
    assert time.monotonic() - began < 0.3 + SOON_SECONDS
    timer.cancel()
    timer.join()
    assert isinstance(error, EngineError)
    return error


def test_a_paused_ffmpeg_does_not_hold_a_cancelled_job(tmp_path: Path) -> None:
    def frames() -> Iterator[Frames]:
        yield from chunks(square, 5)
        signal_children(signal.SIGSTOP)
        yield from chunks(square, 10**6)  # blocks as soon as the pipe is full

    assert isinstance(stopped(tmp_path, frames(), Control()), Cancelled)


@pytest.mark.parametrize("when", ["in the middle", "after the last frame"])
def test_an_ffmpeg_that_stops_working_is_given_up(
    tmp_path: Path, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    def frames() -> Iterator[Frames]:
        yield from chunks(square, 5 if when == "in the middle" else 80)
        signal_children(signal.SIGSTOP)
        yield from chunks(square, 10**6 if when == "in the middle" else 0)

    error = failure(tmp_path, frames(), Control(hang_seconds=0.5))
    assert str(error) == SENTENCE and "did nothing for 0.5 seconds" in caplog.text


def test_a_slow_ffmpeg_is_waited_for(
    tmp_path: Path, pretended_ffmpeg: Callable[[str], None]
) -> None:
    """This one needs a second of CPU time to finish."""
    pretended_ffmpeg(
        "cat >/dev/null\n"
        f"exec {sys.executable} -c 'import time\nwhile time.process_time() < 1: pass\nexit(3)'"
    )
    failure(tmp_path, chunks(square, 80), Control(hang_seconds=0.5))


def test_a_deadline_ends_the_encode(tmp_path: Path) -> None:
    def frames() -> Iterator[Frames]:
        yield from chunks(square, 5)
        signal_children(signal.SIGSTOP)
        yield from chunks(square, 10**6)

    control = Control(deadline_seconds=0.2)
    assert isinstance(stopped(tmp_path, frames(), control), DeadlineExceeded)


def test_an_ffmpeg_that_does_not_finish_is_stopped(
    tmp_path: Path, pretended_ffmpeg: Callable[[str], None]
) -> None:
    pretended_ffmpeg("while read -r line; do :; done; exec sleep 60")
    assert isinstance(stopped(tmp_path, chunks(square, 80), Control()), Cancelled)


def test_frames_that_check_the_control_end_at_once(tmp_path: Path) -> None:
    control = Control()

    def frames() -> Iterator[Frames]:
        yield from chunks(square, 5)
        while True:
            time.sleep(0.01)
            control.checkpoint()

    assert isinstance(stopped(tmp_path, frames(), control), Cancelled)


def test_a_cancel_ends_ffmpeg_at_once_and_the_job_with_the_next_chunk(tmp_path: Path) -> None:
    """Nothing can interrupt a running kernel: `encode` waits for the frames, but not for ffmpeg."""
    control = Control()

    def frames() -> Iterator[Frames]:
        yield from chunks(square, 5)
        waited_until = time.monotonic() + 30
        while set(children().values()) != {"Z"}:  # ended, and not yet waited for
            assert time.monotonic() < waited_until
            time.sleep(0.01)
        yield from chunks(square, 75)

    assert isinstance(stopped(tmp_path, frames(), control), Cancelled)


# --- memory --------------------------------------------------------------------------------------

_FIVE_HUNDRED_CHUNKS = """
import sys
from pathlib import Path
import numpy as np
from wan_engine.control import Control
from wan_engine.media.video import EncodeOptions, add_sound, encode
from wan_engine.schema import Plan

def kib(name):
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(name)).split()[1])

def frames(chunks):
    for index in range(chunks):
        yield np.full((4, 180, 320, 3), index % 256, np.uint8)

plan = Plan(64, 36, 320, 180, 320, 180, 16, 2000, 0, (), 16)
before = kib("VmRSS")
options = EncodeOptions(preset="superfast")
encode(frames(500), plan, None, Path(sys.argv[1]), options, Control())
print(kib("VmHWM") - before)
"""


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FIVE_HUNDRED_CHUNKS, str(tmp_path / "clip.mp4")]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    all_frames_kib = 2000 * 180 * 320 * 3 // 1024
    assert int(done.stdout) < 16 * 1024 < all_frames_kib // 10


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_the_picture_is_the_first_stream_beside_any_sound(
    tmp_path: Path, after: bool, late: bool
) -> None:
    """Also in a continued clip, and if the sound starts later."""
    first = None
    if after:
        given = encode(chunks(square, 20), plan(20), None, tmp_path / "given.mp4", FAST, Control())
        first = FirstClip(given.path, 20 / 16, ())
    shape = replace(plan(40), given_frames=20 if after else 0)
    sound, path = None if late else "silence", tmp_path / "clip.mp4"
    made = chunks(square, shape.made_frames)
    video = encode(made, shape, sound, path, FAST, Control(), after=first)  # type: ignore[arg-type]
    if late:
        video = add_sound(video, "silence", shape, Control())
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(video.path)]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    kinds = re.findall(r"Stream #0:\d.*?: (Video|Audio): ", told)
    assert kinds == ["Video", "Audio"]
