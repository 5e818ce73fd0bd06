"""Opens an untrusted MP4 or MOV: its header is checked before anything is decoded, and ffmpeg sees
it only as a local file.

A video is handled like a sound (`audio.py`): ffmpeg gets a named demuxer, whitelists of protocols,
formats and codecs, and limits of time, pixels and memory. No track may be in another file.
"""

from __future__ import annotations

import logging
import re
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from wan_engine.control import Control
from wan_engine.errors import EncodeFailed, InvalidMedia
from wan_engine.media import ffmpeg, mp4, png, video_colours
from wan_engine.media.audio import SAMPLE_RATE_HZ, decodes_silence
from wan_engine.media.images import ImageLimits, open_image
from wan_engine.schema import AudioTrack, Colours

log = logging.getLogger(__name__)

_FORMAT = "mov"
_CODECS = {
    "h264": "H.264",
    "hevc": "HEVC",
    "av1": "AV1",
    "vp9": "VP9",
    "mpeg4": "MPEG-4",
    "prores": "ProRes",
    "mjpeg": "Motion JPEG",
}
_DECODERS = (
    *("h264", "hevc", "libdav1d", "av1", "vp9", "mpeg4", "prores", "mjpeg"),
    *("aac", "mp3float", "mp3", "alac", "ac3", "eac3", "opus", "libopus"),
    *("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_f32le"),
)
_MAX_SIDE = 4096
_MAX_PIXELS = 4096 * 2304
SQUARE_WIDTH = f"'clip(round(iw*sar),1,{_MAX_SIDE})'"
"""The width of a frame with square pixels, limited because a file can claim that its pixels are a
thousand times as wide as high."""
_MAX_BLOCK_BYTES = 256 * 2**20  # per allocation of ffmpeg, because a file can claim huge tables
_THREADS = 4  # each thread holds frames
_MAX_FPS = 240  # slow motion of phones
_LENIENT = 0.05  # of a second, and a part of the frames: containers round
_PADDING_SECONDS = 0.2
_DECODE_SECONDS = 120.0
_LOOK_PIXELS = 384  # the longest side of a small frame
UNDECODABLE = "the video is damaged, or cannot be decoded"


@dataclass(frozen=True)
class VideoLimits:
    """`min_side` is the smallest side in pixels."""

    min_side: int
    least_seconds: float
    max_seconds: float
    min_fps: float


@dataclass(frozen=True)
class Stream:
    """The facts in the packets of the video, without decoding a frame."""

    codec: str
    width: int
    height: int
    frames: int
    seconds: float
    heard: bool = False
    """Whether the file has sound too."""


class UntrustedVideo:
    """One video while it is read. Its files are in `folder`, and `source` is the video itself,
    which its owner removes. Methods raise `InvalidMedia`, or `EncodeFailed` if this machine is to
    blame."""

    def __init__(
        self, data: bytes, folder: Path, limits: VideoLimits, control: Control, field: str
    ) -> None:
        self._data, self._folder, self._limits, self._control = data, folder, limits, control
        self._name = re.sub(r"\W+", "-", field).strip("-")
        self.source = folder / f"{self._name}.mp4"
        self.colours = Colours()
        """As players take them. `open` finds out."""

    def open(self) -> Stream:
        """Check the header, write `source` and read its packets."""
        tracks = self._checked_tracks()
        self.source.write_bytes(self._data)
        stream = self._probed()
        with self.made("colours", "-map", "0:V:0", *video_colours.READ) as path:
            self.colours = video_colours.of(path.read_bytes(), stream.height)
        return replace(stream, heard=any(track.kind == b"soun" for track in tracks))

    def pictures(self, shown: str, count: int) -> list[Image.Image]:
        """The `count` frames that the filter `shown` passes, with square pixels, as players show
        them."""
        square = f"scale={SQUARE_WIDTH}:ih:flags=lanczos+accurate_rnd+full_chroma_int,setsar=1"
        with self.decoded("chosen", f"{shown},{square}", count, "png") as path:
            files = path.read_bytes().split(png.SIGNATURE)[1:]
        if len(files) != count:
            raise refused(UNDECODABLE)
        sides = ImageLimits(self._limits.min_side, _MAX_SIDE)
        return [open_image(png.SIGNATURE + file, sides) for file in files]

    def small(self, spacing: float, most: int) -> Iterator[Image.Image]:
        """Small frames, one every `spacing` seconds, for checks and statistics."""
        longest = f"min(1,{_LOOK_PIXELS}/max(iw*sar,ih))"
        sides = (f"'max(3,round({side}*{longest}))'" for side in ("iw*sar", "ih"))
        shown = f"{every(spacing)},scale={':'.join(sides)}:flags=area"
        with self.decoded("looks", shown, most, "ppm") as path:
            for frame in _portable_pixmaps(path):
                self._control.checkpoint()
                yield frame

    def sound(self, seconds: float, name: str, *, start: float = 0.0) -> AudioTrack | None:
        """The sound from `start` on, for `seconds`, in a file of ours. If it cannot be decoded, the
        video counts as silent."""
        path = self._folder / f"{self._name}.{name}.wav"
        filled = f"aresample=async=1:first_pts=0,atrim={start:.6f},asetpts=PTS-STARTPTS"
        arguments = (
            *("-map", "0:a:0", "-t", f"{seconds:g}", "-map_metadata", "-1"),
            # It may begin before the picture, or after it: hours later, too. Those are not filled.
            *("-af", f"atrim=end={start + seconds:.6f},{filled}"),
            *("-ac", "2", "-ar", str(SAMPLE_RATE_HZ), "-c:a", "pcm_s16le", "-f", "wav"),
        )
        try:
            self._run(path, *arguments)
            with wave.open(str(path)) as file:
                return AudioTrack(path, file.getnframes() / SAMPLE_RATE_HZ)
        except (ffmpeg.Failed, wave.Error, EOFError, FileNotFoundError) as error:
            path.unlink(missing_ok=True)
            if isinstance(error, ffmpeg.Failed) and error.here and not error.late:
                raise EncodeFailed("The sound of a video could not be decoded") from error
            log.info("the sound of %s could not be decoded: %s", self._name, error)
            return None

    def _checked_tracks(self) -> list[mp4.Track]:
        used = [track for track in mp4.tracks(self._data) if track.kind in (b"vide", b"soun")]
        if not mp4.is_complete(self._data):
            raise refused("the video is damaged or cut")
        if not any(track.kind == b"vide" for track in used):
            raise refused("the file holds no video")
        if any(track.locked for track in used):
            raise refused("the video is encrypted")
        if any(track.elsewhere for track in used):
            raise refused("the video points to another file")
        for track in used:
            if track.kind == b"vide" and min(track.sides) > 0:
                self._check_size(*track.sides)
        return used

    def _probed(self) -> Stream:
        most_seconds = self._limits.max_seconds + _PADDING_SECONDS
        most_frames = round(_MAX_FPS * most_seconds)
        arguments = ("-c", "copy", "-t", f"{most_seconds + 1:g}", "-frames:v", f"{most_frames}")
        with self.made("packets", "-map", "0:V:0", *arguments, "-f", "framecrc") as path:
            stream = _stream(path.read_text("ascii", "replace"))
        if stream.codec not in _CODECS:
            *others, last = _CODECS.values()
            raise refused(f"the video's codec must be {', '.join(others)} or {last}")
        if not stream.frames or not stream.width:
            raise refused(UNDECODABLE)
        self._check_size(stream.width, stream.height)
        self._check_length(stream, most_seconds)
        if stream.frames >= most_frames or stream.frames > _MAX_FPS * (stream.seconds + 1):
            raise refused(f"the video has more than {_MAX_FPS} frames a second")
        return stream

    def _check_size(self, width: int, height: int) -> None:
        least = self._limits.min_side
        if not all(least <= side <= _MAX_SIDE for side in (width, height)):
            allowed = f"{least} to {_MAX_SIDE} pixels"
            raise refused(f"each side must be {allowed}, got {width}x{height}")
        if width * height > _MAX_PIXELS:
            raise refused(f"the video has too many pixels, {width}x{height}")

    def _check_length(self, stream: Stream, most_seconds: float) -> None:
        limits = self._limits
        if stream.seconds > most_seconds:
            raise refused(f"the video is longer than {limits.max_seconds:g} seconds")
        if stream.seconds < limits.least_seconds - _LENIENT:
            least = limits.least_seconds
            raise refused(f"the video is shorter than {least:g} second{'s' * (least != 1)}")
        if stream.frames / stream.seconds < limits.min_fps * (1 - _LENIENT):
            fps = f"{stream.frames / stream.seconds:.3g}"
            raise refused(
                f"the video must have at least {limits.min_fps:g} frames a second, got {fps}"
            )

    @contextmanager
    def decoded(self, what: str, shown: str, most: int, codec: str) -> Iterator[Path]:
        """At most `most` frames that the filter `shown` passes, in one file."""
        shown = f"{video_colours.tagged(self.colours)},{shown}"
        # It ends at the first frame with errors, because ffmpeg would repair the others from
        # earlier ones.
        arguments = [
            *("-xerror", "-map", "0:V:0", "-t", f"{self._limits.max_seconds + 1:g}", "-vf", shown),
            *("-fps_mode", "passthrough", "-frames:v", f"{most}", "-pix_fmt", "rgb24"),
            *("-c:v", codec, *(("-compression_level", "1") if codec == "png" else ())),
        ]
        with self.made(what, *arguments, "-f", "image2pipe") as path:
            yield path

    # --- ffmpeg ----------------------------------------------------------------------------------

    @contextmanager
    def made(self, what: str, *arguments: str) -> Iterator[Path]:
        """A file that ffmpeg makes of the video, removed afterwards. Raises `InvalidMedia`, or
        `EncodeFailed` if this machine is to blame."""
        path = self._folder / f"{self._name}.{what}"
        try:
            self._run(path, *arguments)
            if not path.exists():
                raise ffmpeg.Failed("it wrote nothing")
            yield path
        except ffmpeg.Failed as error:
            if error.late:
                log.info("%s took too long: %s", self._name, error)
                raise refused(
                    f"the video takes longer than {_DECODE_SECONDS:g} seconds to decode"
                ) from error
            if error.here or not decodes_silence(self._folder, self._control):
                log.error("a video could not be decoded here: %s", error)
                raise EncodeFailed("A video could not be decoded") from error
            log.info("%s could not be decoded: %s", self._name, error)
            raise refused(UNDECODABLE) from error
        finally:
            path.unlink(missing_ok=True)

    def _run(self, path: Path, *arguments: str) -> None:
        command = [*input_arguments(self.source), *arguments, "-y", str(path)]
        with ffmpeg.running(command, self._control, seconds=_DECODE_SECONDS):
            pass


def input_arguments(source: Path) -> list[str]:
    """ffmpeg's arguments for opening an untrusted MP4 or MOV, without opening any other file."""
    return [
        *("-nostdin", "-max_alloc", str(_MAX_BLOCK_BYTES), "-protocol_whitelist", "file"),
        *("-format_whitelist", _FORMAT, "-codec_whitelist", ",".join(_DECODERS)),
        *("-max_pixels", str(_MAX_PIXELS), "-threads", str(_THREADS)),
        *("-enable_drefs", "0", "-use_absolute_path", "0", "-f", _FORMAT, "-i", str(source)),
    ]


def every(seconds: float) -> str:
    """The filter that passes one frame per interval of seconds, beginning with the first frame."""
    least = seconds - 0.001  # times may be any fraction
    return f"select='isnan(prev_selected_t)+gte(t-prev_selected_t,{least:.6f})'"


def refused(why: str) -> InvalidMedia:
    """The error for a video that is not accepted."""
    return InvalidMedia("video", why)


def _stream(packets: str) -> Stream:
    """The first stream in ffmpeg's framecrc (libavformat/framecrcenc.c)."""
    noted = dict(re.findall(r"^#(\w+) 0: (\S+)", packets, re.MULTILINE))
    rows = re.findall(r"^0, +-?\d+, +(-?\d+), +(\d+),", packets, re.MULTILINE)
    width, _, height = noted.get("dimensions", "0x0").partition("x")
    numerator, _, denominator = noted.get("tb", "1/1").partition("/")
    begins = [int(begin) for begin, _ in rows]
    ends = [int(begin) + int(lasts) for begin, lasts in rows]
    ticks = max(ends) - min(begins) if rows else 0
    seconds = ticks * int(numerator) / max(1, int(denominator))
    return Stream(noted.get("codec_id", ""), int(width), int(height), len(rows), seconds)


def _portable_pixmaps(path: Path) -> Iterator[Image.Image]:
    """The frames in a sequence of ffmpeg's binary PPM files (libavcodec/pnmenc.c)."""
    with path.open("rb") as file:
        while file.readline() == b"P6\n":
            width, height = (int(side) for side in file.readline().split())
            file.readline()  # 255
            pixels = file.read(width * height * 3)
            if len(pixels) < width * height * 3:
                return
            yield Image.frombytes("RGB", (width, height), pixels)
