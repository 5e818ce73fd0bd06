"""Untrusted sound opens no other file or address, its decode can be stopped, and a fault of this
machine is not reported as one of the sound."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from tests.media.opens import opens_of
from tests.media.test_audio import (
    LIMITS,
    UNDECODABLE,
    id3,
    id3_with_picture_address,
    names,
    one_second,
    refusal,
    sound_or_refusal,
    wav,
)
from tests.media.test_audio import sound as sound  # a fixture
from tests.warm import children
from wan_engine.control import Control
from wan_engine.errors import (
    Cancelled,
    DeadlineExceeded,
    EncodeFailed,
    EngineError,
    InvalidMedia,
)
from wan_engine.media import audio
from wan_engine.media.audio import SAMPLE_RATE_HZ, open_audio

SOON_SECONDS = 1.0
STUCK = "#!/bin/sh\nexec sleep 60\n"


# --- access to other files -----------------------------------------------------------------------


class Canary:
    """A file and a server that must not be touched."""

    def __init__(self, folder: Path, opened: Callable[[], bool]) -> None:
        self.file = folder / "canary.wav"
        self.opened = opened
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/canary.wav"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    @property
    def touched(self) -> bool:
        return self.opened() or self.connections > 0


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    file = tmp_path / "canary.wav"
    loud = np.full((SAMPLE_RATE_HZ, 2), 23130, "<i2")  # "ZZ" in every byte
    file.write_bytes(wav(loud.tobytes()))
    with opens_of(file) as opened:
        canary = Canary(tmp_path, opened)
        yield canary
        canary.close()


SCRIPTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile {}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n"
    "a=control:{}\n",
    "ffmetadata": ";FFMETADATA1\ntitle={}\n",
    "mpd": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
    "mediaPresentationDuration='PT1S'><Period><AdaptationSet mimeType='audio/mp4'><Representation "
    "id='0' bandwidth='1'><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("name", ["m3u8", "ffconcat"])
@pytest.mark.parametrize("place", ["file", "url"])
def test_the_attack_scripts_work_without_our_guards(
    canary: Canary, tmp_path: Path, name: str, place: str
) -> None:
    """Otherwise the next test would prove nothing."""
    script = tmp_path / f"script.{name}"
    script.write_text(SCRIPTS[name].format(getattr(canary, place)))
    guards_off = ["-protocol_whitelist", "file,http,tcp", "-f", "hls", "-extension_picky", "0"]
    if name == "ffconcat":
        guards_off = ["-protocol_whitelist", "file,http,tcp", "-f", "concat", "-safe", "0"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *guards_off, "-i", str(script), "-f", "null", "-"]
    subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert canary.touched


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("place", ["file", "url"])
@pytest.mark.parametrize(
    "dress",
    [
        bytes,
        id3,
        lambda script: one_second()[:12] + script,
        lambda script: one_second() + script,
        lambda script: b"\xff\xfb\x90\0" + script,
    ],
    ids=["bare", "after ID3", "after RIFF", "after a WAV", "after an MP3 frame"],
)
def test_the_attack_scripts_open_nothing(
    canary: Canary, tmp_path: Path, name: str, place: str, dress: Callable[[bytes], bytes]
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    script = SCRIPTS[name].format(getattr(canary, place)).encode()
    sound_or_refusal(dress(script), folder)
    assert not canary.touched
    assert not any(b"ZZZZZZZZ" in path.read_bytes() for path in folder.iterdir())


def test_the_address_of_a_cover_is_not_visited(
    sound: Callable[..., bytes], canary: Canary, tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    data = id3_with_picture_address(canary.url, sound("a.mp3", "-id3v2_version", "0"))
    assert open_audio(data, folder, LIMITS, Control()).seconds == pytest.approx(2, abs=0.05)
    assert not canary.touched


# --- cancellation --------------------------------------------------------------------------------


@pytest.fixture
def stuck_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that replaces ffmpeg and never ends; a folder for the job."""
    program, folder = tmp_path / "ffmpeg", tmp_path / "job"
    program.write_text(STUCK)
    program.chmod(0o755)
    folder.mkdir()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    return folder


def stopped_after(seconds: float, folder: Path, control: Control) -> EngineError:
    """The error of a decode that is stopped after `seconds`."""
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        open_audio(one_second(), folder, LIMITS, control)
    # The caller's timer started a little earlier.
    assert seconds - 0.1 <= time.monotonic() - began < seconds + SOON_SECONDS
    assert not children()
    return caught.value


def test_a_decode_that_takes_too_long_is_stopped(
    stuck_ffmpeg: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audio, "_DECODE_SECONDS", 0.3)
    with caplog.at_level("INFO"):
        assert isinstance(stopped_after(0.3, stuck_ffmpeg, Control()), EncodeFailed)
    assert "it took longer than 0.3 seconds" in caplog.text


def test_a_cancelled_job_stops_its_decode(stuck_ffmpeg: Path) -> None:
    control = Control()
    timer = threading.Timer(0.3, control.cancel)
    timer.start()
    assert isinstance(stopped_after(0.3, stuck_ffmpeg, control), Cancelled)
    timer.join()


def test_a_late_job_stops_its_decode(stuck_ffmpeg: Path) -> None:
    error = stopped_after(0.2, stuck_ffmpeg, Control(deadline_seconds=0.3))
    assert isinstance(error, DeadlineExceeded)


def test_only_our_own_files_stay_after_a_failure(
    sound: Callable[..., bytes], tmp_path: Path
) -> None:
    """The job's scratch folder is deleted as a whole; until then the received file may stay
    there."""
    refusal(id3(bytes(range(256)) * 100), tmp_path)
    assert "audio.mp3" in names(tmp_path) <= {"audio.mp3", "audio.pcm.wav"}
    (tmp_path / "audio.mp3").unlink()
    refusal(sound("a.mp3", seconds=31), tmp_path)
    assert names(tmp_path) == {"audio.pcm.wav"}


def test_the_reason_is_only_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert refusal(b"RIFF\0\0\0\0WAVEjunk", tmp_path) == UNDECODABLE
    assert "Invalid data" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("size", [4, 8])
def test_samples_that_are_not_numbers_are_refused(tmp_path: Path, size: int, value: float) -> None:
    samples = np.zeros(48_000, f"<f{size}")
    for changed in (False, True):
        samples[24_000] = value if changed else 0.5
        body = samples.tobytes()
        head = struct.pack("<HHIIHH", 3, 1, 48_000, 48_000 * size, size, 8 * size)
        chunks = b"fmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(body))
        wav = b"RIFF" + struct.pack("<I", 4 + len(chunks) + len(body)) + b"WAVE" + chunks + body
        if not changed:
            assert open_audio(wav, tmp_path, LIMITS, Control()).seconds == 1.0
            continue
        with pytest.raises(InvalidMedia, match="not numbers"):
            open_audio(wav, tmp_path, LIMITS, Control())


@pytest.mark.parametrize(
    "program",
    {
        "killed": "#!/bin/sh\nkill -9 $$\n",
        "no room": "#!/bin/sh\necho No space left on device >&2; exit 1\n",
        "a library is missing": "#!/bin/sh\necho libav.so.1: cannot open >&2; exit 127\n",
        "writes nothing": "#!/bin/sh\n",
        "no program": "#!/nowhere/sh\n",
        "no room for a process": "",  # ENOEXEC stands for anything that keeps it from starting
    }.items(),
    ids=lambda item: item[0],
)
def test_a_missing_ffmpeg_is_not_reported_as_an_error_of_the_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: tuple[str, str]
) -> None:
    path, folder = tmp_path / "ffmpeg", tmp_path / "job"
    path.write_text(program[1])
    path.chmod(0o755)
    folder.mkdir()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    with pytest.raises(EncodeFailed, match="The sound could not be decoded"):
        open_audio(one_second(), folder, LIMITS, Control())
    assert names(folder) <= {"audio.wav"}


def test_an_ffmpeg_that_does_nothing_is_not_reported_as_an_error_of_the_sound(
    stuck_ffmpeg: Path,
) -> None:
    with pytest.raises(EncodeFailed, match="The sound could not be decoded"):
        open_audio(one_second(), stuck_ffmpeg, LIMITS, Control(hang_seconds=0.3))
