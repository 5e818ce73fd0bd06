"""Decodes an untrusted image or video into pictures of its subject, and the sound of its voice.

A video is handled like a sound (`audio.py`): ffmpeg sees it only as a local file, with a named
demuxer, whitelists of protocols, formats and codecs, and limits of time, pixels and memory. Its
header is checked first, and no track may be in another file.
"""

from __future__ import annotations

import logging
import re
import struct
import wave
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from wan_engine.control import Control
from wan_engine.errors import EncodeFailed, InvalidMedia
from wan_engine.media import best_frames, ffmpeg, mp4, png
from wan_engine.media.audio import SAMPLE_RATE_HZ, decodes_silence
from wan_engine.media.images import ImageLimits, open_image
from wan_engine.media.voices import keep_voice
from wan_engine.schema import AudioTrack, Frames, Media

log = logging.getLogger(__name__)

MOST_PICTURES = 4
"""The number of pictures that models of this kind were trained with (Wan-Video/VACE, README)."""

VOICE_SECONDS = 10.0

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
_MAX_BLOCK_BYTES = 256 * 2**20  # of one allocation of ffmpeg: a file can claim huge tables
_THREADS = 4  # each thread holds frames
_MAX_FPS = 240  # slow motion of phones
_LEAST_SECONDS = 1.0
_LENIENT = 0.05  # of a second, and a part of the frames: containers round
_PADDING_SECONDS = 0.2
_DECODE_SECONDS = 120.0
_LOOKS, _LOOK_EVERY_SECONDS, _LEAST_LOOKS = 120, 0.25, 16
_LOOK_PIXELS = 384  # the longest side of a frame that is analysed
_SAMPLES_A_SECOND = 1
_UNDECODABLE = "the video is damaged, or cannot be decoded"
# ITU-T H.273: what cameras write of sRGB and its kin. Frames are taken as players show them.
_PLAIN_TRANSFERS, _SRGB = (1, 6, 14, 15), 13


@dataclass(frozen=True)
class ReferenceLimits:
    """Limits of a reference. `image` and `image_max_bytes` are for a picture; a video has the same
    smallest side. `first_frame`: use the first frame of an animated picture."""

    image: ImageLimits = field(default_factory=ImageLimits)
    image_max_bytes: int = 20 * 2**20
    max_seconds: float = 30.0
    min_fps: float = 16.0
    first_frame: bool = False


@dataclass(frozen=True)
class Reference:
    """One subject. `pictures`, best first, are upright 8-bit sRGB. `voice` is a part in which it
    may speak, of at most `VOICE_SECONDS`. `samples` are small frames of the whole video, one per
    second, uint8 [n, h, w, 3]; a picture has none."""

    pictures: tuple[Image.Image, ...]
    voice: AudioTrack | None = None
    samples: Frames = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))


@dataclass(frozen=True)
class Chosen:
    """The pictures that are used, and the index of each one's reference. `left_out` are the indices
    of references without a picture."""

    pictures: tuple[Image.Image, ...]
    subjects: tuple[int, ...]
    left_out: tuple[int, ...] = ()


def open_reference(
    data: bytes, folder: Path, limits: ReferenceLimits, control: Control, field: str
) -> Reference:
    """Open `data`, a picture or an MP4 or MOV. The voice is a file in `folder`.

    Raises `InvalidMedia` of `field` for anything else, and `EncodeFailed` if this machine is to
    blame.
    """
    try:
        if not mp4.is_mp4(data):
            return Reference((_open_picture(data, limits),))
        return _Video(data, folder, limits, control, field).reference()
    except InvalidMedia as error:
        raise InvalidMedia(field, error.why) from error


def best_pictures(references: Sequence[Reference], most: int = MOST_PICTURES) -> Chosen:
    """At most `most` pictures in the order of the subjects: the best of each, and the next best
    while there is room. Where there are too many subjects, the last ones are left out."""
    used = references[:most]
    counts = [1] * len(used)
    for rank in range(1, most):
        for index, one in enumerate(used):
            if sum(counts) < most and len(one.pictures) > rank:
                counts[index] = rank + 1
    taken = [
        (picture, index)
        for index, (one, count) in enumerate(zip(used, counts, strict=True))
        for picture in one.pictures[:count]
    ]
    return Chosen(
        pictures=tuple(picture for picture, _ in taken),
        subjects=tuple(index for _, index in taken),
        left_out=tuple(range(len(used), len(references))),
    )


def with_references(media: Media, references: Sequence[Reference]) -> Media:
    """`media` with the pictures of `best_pictures`, and a warning if some were left out."""
    chosen = best_pictures(references)
    used = len(references) - len(chosen.left_out)
    warning = f"Only the first {used} of {len(references)} references were used"
    return replace(
        media,
        references=chosen.pictures,
        subjects=chosen.subjects,
        voices=tuple(one.voice for one in references[:used]),
        warnings=(*media.warnings, warning) if chosen.left_out else media.warnings,
    )


def _open_picture(data: bytes, limits: ReferenceLimits) -> Image.Image:
    if len(data) > limits.image_max_bytes:
        raise InvalidMedia(
            "image", f"the picture is larger than {limits.image_max_bytes / 2**20:g} MB"
        )
    try:
        return open_image(data, limits.image, first_frame=limits.first_frame)
    except InvalidMedia as error:
        if "is not a" not in error.why:
            raise
        raise InvalidMedia("image", f"{error.why}, or an MP4 or MOV video") from error


@dataclass(frozen=True)
class _Stream:
    """The facts in the packets of the video, without decoding a frame."""

    codec: str
    width: int
    height: int
    frames: int
    seconds: float


class _Video:
    """One video while it is read. Its files in `folder` are removed afterwards, except the
    voice."""

    def __init__(
        self, data: bytes, folder: Path, limits: ReferenceLimits, control: Control, field: str
    ) -> None:
        self._data, self._folder, self._limits, self._control = data, folder, limits, control
        self._name = re.sub(r"\W+", "-", field).strip("-")
        self._source = folder / f"{self._name}.mp4"

    def reference(self) -> Reference:
        tracks = self._checked_tracks()
        self._source.write_bytes(self._data)
        try:
            stream = self._probed()
            spacing = self._spacing(stream)
            looks, samples = self._looked_at(spacing)
            chosen = best_frames.best(looks, MOST_PICTURES)
            if not chosen:
                raise _refused("no frame of the video shows anything")
            pictures = self._full_size(spacing, chosen)
            heard = any(track.kind == b"soun" for track in tracks)
            return Reference(pictures, self._voice() if heard else None, samples)
        finally:
            self._source.unlink()

    # --- before anything is decoded --------------------------------------------------------------

    def _checked_tracks(self) -> list[mp4.Track]:
        used = [track for track in mp4.tracks(self._data) if track.kind in (b"vide", b"soun")]
        if not mp4.is_whole(self._data):
            raise _refused("the video is damaged or cut")
        if not any(track.kind == b"vide" for track in used):
            raise _refused("the file holds no video")
        if any(track.locked for track in used):
            raise _refused("the video is encrypted")
        if any(track.elsewhere for track in used):
            raise _refused("the video points to another file")
        for track in used:
            if track.kind == b"vide" and min(track.sides) > 0:
                self._check_size(*track.sides)
        return used

    def _probed(self) -> _Stream:
        most_seconds = self._limits.max_seconds + _PADDING_SECONDS
        most_frames = round(_MAX_FPS * most_seconds)
        arguments = ("-c", "copy", "-t", f"{most_seconds + 1:g}", "-frames:v", f"{most_frames}")
        with self._made("packets", "-map", "0:V:0", *arguments, "-f", "framecrc") as path:
            stream = _stream(path.read_text("ascii", "replace"))
        if stream.codec not in _CODECS:
            *others, last = _CODECS.values()
            raise _refused(f"the video's codec must be {', '.join(others)} or {last}")
        if not stream.frames or not stream.width:
            raise _refused(_UNDECODABLE)
        self._check_size(stream.width, stream.height)
        self._check_length(stream, most_seconds)
        if stream.frames >= most_frames or stream.frames > _MAX_FPS * (stream.seconds + 1):
            raise _refused(f"the video has more than {_MAX_FPS} frames a second")
        return stream

    def _check_size(self, width: int, height: int) -> None:
        least = self._limits.image.min_side
        if not all(least <= side <= _MAX_SIDE for side in (width, height)):
            allowed = f"{least} to {_MAX_SIDE} pixels"
            raise _refused(f"each side must be {allowed}, got {width}x{height}")
        if width * height > _MAX_PIXELS:
            raise _refused(f"the video has too many pixels, {width}x{height}")

    def _check_length(self, stream: _Stream, most_seconds: float) -> None:
        limits = self._limits
        if stream.seconds > most_seconds:
            raise _refused(f"the video is longer than {limits.max_seconds:g} seconds")
        if stream.seconds < _LEAST_SECONDS - _LENIENT:
            raise _refused(f"the video is shorter than {_LEAST_SECONDS:g} second")
        if stream.frames / stream.seconds < limits.min_fps * (1 - _LENIENT):
            fps = f"{stream.frames / stream.seconds:.3g}"
            raise _refused(
                f"the video must have at least {limits.min_fps:g} frames a second, got {fps}"
            )

    # --- what it shows ---------------------------------------------------------------------------

    def _spacing(self, stream: _Stream) -> float:
        """Seconds between two analysed frames."""
        usual = min(_LOOK_EVERY_SECONDS, stream.seconds / _LEAST_LOOKS)
        return max(usual, stream.seconds / _LOOKS)

    def _looked_at(self, spacing: float) -> tuple[list[best_frames.Look], Frames]:
        longest = f"min(1,{_LOOK_PIXELS}/max(iw*sar,ih))"
        sides = (f"'max(3,round({side}*{longest}))'" for side in ("iw*sar", "ih"))
        shown = f"{_every(spacing)},scale={':'.join(sides)}:flags=area"
        looks: list[best_frames.Look] = []
        samples: list[Frames] = []
        with self._decoded("looks", shown, _LOOKS + 1, "ppm") as path:
            for index, frame in enumerate(_portable_pixmaps(path)):
                self._control.checkpoint()
                looks.append(best_frames.look(frame))
                if index * spacing >= len(samples) / _SAMPLES_A_SECOND:
                    samples.append(np.asarray(frame))
        if not samples:
            raise _refused(_UNDECODABLE)
        return looks, np.stack(samples)

    def _full_size(self, spacing: float, chosen: Sequence[int]) -> tuple[Image.Image, ...]:
        """The frames with these indices among the analysed ones, in this order."""
        ordered = sorted(chosen)
        picked = "+".join(f"eq(n,{index})" for index in ordered)
        square = f"scale='clip(round(iw*sar),1,{_MAX_SIDE})':ih:flags=lanczos,setsar=1"
        shown = f"{_every(spacing)},select='{picked}',{square}"
        with self._decoded("chosen", shown, len(ordered), "png") as path:
            files = path.read_bytes().split(png.SIGNATURE)[1:]
        if len(files) != len(ordered):
            raise _refused(_UNDECODABLE)
        sides = ImageLimits(self._limits.image.min_side, _MAX_SIDE)
        pictures = [open_image(_as_players_show(png.SIGNATURE + file), sides) for file in files]
        return tuple(pictures[ordered.index(index)] for index in chosen)

    @contextmanager
    def _decoded(self, what: str, shown: str, most: int, codec: str) -> Iterator[Path]:
        # It ends at the first frame with errors: others would be mended with what was there before.
        arguments = [
            *("-xerror", "-map", "0:V:0", "-t", f"{self._limits.max_seconds + 1:g}", "-vf", shown),
            *("-fps_mode", "passthrough", "-frames:v", f"{most}", "-pix_fmt", "rgb24"),
            *("-c:v", codec, *(("-compression_level", "1") if codec == "png" else ())),
        ]
        with self._made(what, *arguments, "-f", "image2pipe") as path:
            yield path

    # --- what is heard ---------------------------------------------------------------------------

    def _voice(self) -> AudioTrack | None:
        """A part in which it may speak. If the sound cannot be decoded, the video counts as
        silent."""
        path = self._folder / f"{self._name}.voice.wav"
        arguments = (
            *("-map", "0:a:0", "-t", f"{self._limits.max_seconds:g}", "-map_metadata", "-1"),
            *("-ac", "2", "-ar", str(SAMPLE_RATE_HZ), "-c:a", "pcm_s16le", "-f", "wav"),
        )
        try:
            self._run(path, *arguments)
            with wave.open(str(path)) as file:
                seconds = file.getnframes() / SAMPLE_RATE_HZ
            return keep_voice(AudioTrack(path, seconds), VOICE_SECONDS)
        except (ffmpeg.Failed, wave.Error, EOFError, FileNotFoundError) as error:
            path.unlink(missing_ok=True)
            if isinstance(error, ffmpeg.Failed) and error.here and not error.late:
                raise EncodeFailed("The sound of a reference could not be decoded") from error
            log.info("the sound of %s could not be decoded: %s", self._name, error)
            return None

    # --- ffmpeg ----------------------------------------------------------------------------------

    @contextmanager
    def _made(self, what: str, *arguments: str) -> Iterator[Path]:
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
                raise _refused(
                    f"the video takes longer than {_DECODE_SECONDS:g} seconds to decode"
                ) from error
            if error.here or not decodes_silence(self._folder, self._control):
                log.error("a reference video could not be decoded here: %s", error)
                raise EncodeFailed("A reference video could not be decoded") from error
            log.info("%s could not be decoded: %s", self._name, error)
            raise _refused(_UNDECODABLE) from error
        finally:
            path.unlink(missing_ok=True)

    def _run(self, path: Path, *arguments: str) -> None:
        command = [*input_arguments(self._source), *arguments, "-y", str(path)]
        with ffmpeg.running(command, self._control, seconds=_DECODE_SECONDS):
            pass


def input_arguments(source: Path) -> list[str]:
    """ffmpeg's arguments for opening an untrusted MP4 or MOV, and nothing that it points to."""
    return [
        *("-nostdin", "-max_alloc", str(_MAX_BLOCK_BYTES), "-protocol_whitelist", "file"),
        *("-format_whitelist", _FORMAT, "-codec_whitelist", ",".join(_DECODERS)),
        *("-max_pixels", str(_MAX_PIXELS), "-threads", str(_THREADS)),
        *("-enable_drefs", "0", "-use_absolute_path", "0", "-f", _FORMAT, "-i", str(source)),
    ]


def _refused(why: str) -> InvalidMedia:
    return InvalidMedia("video", why)


def _every(seconds: float) -> str:
    """The filter that passes one frame in so many seconds, the first one first."""
    least = seconds - 0.001  # times are fractions of all kinds
    return f"select='isnan(prev_selected_t)+gte(t-prev_selected_t,{least:.6f})'"


def _stream(packets: str) -> _Stream:
    """The first stream in ffmpeg's framecrc (libavformat/framecrcenc.c)."""
    noted = dict(re.findall(r"^#(\w+) 0: (\S+)", packets, re.MULTILINE))
    rows = re.findall(r"^0, +-?\d+, +(-?\d+), +(\d+),", packets, re.MULTILINE)
    width, _, height = noted.get("dimensions", "0x0").partition("x")
    numerator, _, denominator = noted.get("tb", "1/1").partition("/")
    begins = [int(begin) for begin, _ in rows]
    ends = [int(begin) + int(lasts) for begin, lasts in rows]
    ticks = max(ends) - min(begins) if rows else 0
    seconds = ticks * int(numerator) / max(1, int(denominator))
    return _Stream(noted.get("codec_id", ""), int(width), int(height), len(rows), seconds)


def _portable_pixmaps(path: Path) -> Iterator[Image.Image]:
    """The frames in a row of ffmpeg's binary PPM files (libavcodec/pnmenc.c)."""
    with path.open("rb") as file:
        while file.readline() == b"P6\n":
            width, height = (int(side) for side in file.readline().split())
            file.readline()  # 255
            pixels = file.read(width * height * 3)
            if len(pixels) < width * height * 3:
                return
            yield Image.frombytes("RGB", (width, height), pixels)


def _as_players_show(picture: bytes) -> bytes:
    """A PNG of ours with the transfer of plain video called sRGB's, which is how a player takes it.
    HDR and wide colours keep theirs."""
    at = picture.find(b"cICP")
    if at < 0 or picture[at + 5] not in _PLAIN_TRANSFERS:
        return picture
    chunk = picture[at : at + 5] + bytes([_SRGB]) + picture[at + 6 : at + 8]
    return picture[:at] + chunk + struct.pack(">I", zlib.crc32(chunk)) + picture[at + 12 :]
