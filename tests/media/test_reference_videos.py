"""`open_reference` with the real ffmpeg: what it accepts, which frames it chooses, what it refuses,
and that nothing inside a file makes ffmpeg open anything else."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.media.opens import opens_of
from wan_engine.control import Control
from wan_engine.errors import Cancelled, EncodeFailed, InvalidMedia
from wan_engine.media import untrusted_videos
from wan_engine.media.best_frames import best, look
from wan_engine.media.framing import prominence
from wan_engine.media.images import ImageLimits
from wan_engine.media.reference_videos import (
    Reference,
    ReferenceLimits,
    best_pictures,
    open_reference,
    with_references,
)
from wan_engine.media.untrusted_videos import input_arguments
from wan_engine.schema import Media

LIMITS = ReferenceLimits()
X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
Make = Callable[..., bytes]


# --- files ---------------------------------------------------------------------------------------


def ffmpeg(*arguments: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]
    subprocess.run([*command, *arguments], check=True, timeout=120, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes ffmpeg's moving test picture as the file `name`, with ffmpeg's own `options`."""
    folder = tmp_path_factory.mktemp("videos")

    @cache
    def make(
        name: str = "a.mp4",
        *options: str,
        seconds: float = 1.2,
        size: str = "320x240",
        fps: int = 25,
        source: str = "testsrc2=",
    ) -> bytes:
        shown = f"{source}{'' if source.endswith('=') else ':'}s={size}:r={fps}:d={seconds}"
        path = folder / name
        encoded = options if "-c:v" in options else (*X264, *options)
        ffmpeg("-f", "lavfi", "-i", shown, *encoded, str(path))
        return path.read_bytes()

    return make


def of_frames(folder: Path, frames: list[Image.Image], *options: str, fps: int = 20) -> bytes:
    """A video of these frames."""
    pixels = b"".join(frame.tobytes() for frame in frames)
    raw, path = folder / "frames.rgb", folder / "frames.mp4"
    raw.write_bytes(pixels)
    size = "{}x{}".format(*frames[0].size)
    arguments = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", str(raw))
    ffmpeg(*arguments, *X264, "-crf", "12", *options, str(path))
    data = path.read_bytes()
    raw.unlink()
    path.unlink()
    return data


def opened(
    data: bytes, folder: Path, limits: ReferenceLimits = LIMITS, control: Control | None = None
) -> Reference:
    return open_reference(data, folder, limits, control or Control(), "references[0]")


def refusal(data: bytes, folder: Path, limits: ReferenceLimits = LIMITS) -> str:
    """The reason of the refusal. Nothing of the file is left."""
    with pytest.raises(InvalidMedia) as caught:
        opened(data, folder, limits)
    assert caught.value.field == "references[0]"
    assert str(caught.value) == f"Invalid references[0] URL: {caught.value.why}"
    assert str(folder) not in str(caught.value)
    assert list(folder.iterdir()) == []
    return caught.value.why


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def scene(data: Path, name: str) -> Image.Image:
    with Image.open(data / name) as image:
        return image.convert("RGB").resize((320, 240))


def apart(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, float) - np.asarray(other.resize(one.size), float)).mean())


# --- accepted files ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_a_picture_is_accepted_like_a_picture_of_a_request(tmp_path: Path, kind: str) -> None:
    reference = opened(encoded(Image.new("RGB", (300, 400), "red"), kind), tmp_path)
    assert [picture.size for picture in reference.pictures] == [(300, 400)]
    assert len(reference.samples) == 0
    assert list(tmp_path.iterdir()) == []


def test_transparent_pixels_of_a_picture_become_white(tmp_path: Path) -> None:
    reference = opened(encoded(Image.new("RGBA", (300, 300), (255, 0, 0, 0)), "PNG"), tmp_path)
    assert reference.pictures[0].getpixel((9, 9)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", ()),
        ("fast.mp4", ("-movflags", "+faststart")),
        ("fragments.mp4", ("-movflags", "+frag_keyframe+empty_moov+default_base_moof")),
        ("a.mov", ("-c:v", "prores_ks")),
        ("mpeg4.mp4", ("-c:v", "mpeg4")),
        ("motion.mov", ("-c:v", "mjpeg", "-pix_fmt", "yuvj422p")),
        ("hevc.mp4", ("-c:v", "libx265", "-preset", "ultrafast", "-tag:v", "hvc1")),
        ("vp9.mp4", ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime")),
        ("deep.mp4", ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv422p10le")),
        ("grey.mp4", ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "gray")),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_video_gives_its_best_frame_at_full_size(
    video: Make, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    reference = opened(video(name, *options, size="640x360"), tmp_path)
    assert [(one.mode, one.size) for one in reference.pictures] == [("RGB", (640, 360))]
    assert reference.samples.shape[1:] == (216, 384, 3)
    assert list(tmp_path.iterdir()) == []


def test_one_frame_per_second_is_kept_for_the_safety_checker(video: Make, tmp_path: Path) -> None:
    assert len(opened(video("five.mp4", seconds=5), tmp_path).samples) in (4, 5)


def test_the_rotation_that_a_phone_wrote_is_applied(video: Make, tmp_path: Path) -> None:
    upright, turned = tmp_path / "upright.mp4", tmp_path / "turned.mp4"
    upright.write_bytes(video())
    ffmpeg("-display_rotation", "90", "-i", str(upright), "-c", "copy", str(turned))
    (job := tmp_path / "job").mkdir()
    picture = opened(turned.read_bytes(), job).pictures[0]
    assert picture.size == (240, 320)
    straight = opened(video(), job).pictures[0]
    assert apart(straight.transpose(Image.Transpose.ROTATE_90), picture) < 3


def test_pixels_that_are_not_square_are_made_square(video: Make, tmp_path: Path) -> None:
    data = video("wide.mp4", *X264, "-vf", "setsar=2")
    assert opened(data, tmp_path).pictures[0].size == (640, 240)


def test_extreme_pixel_aspects_do_not_make_a_picture_of_any_size(
    video: Make, tmp_path: Path
) -> None:
    flat = video("flat.mp4", *X264, "-vf", "setsar=200")
    assert opened(flat, tmp_path).pictures[0].size == (4096, 240)
    tall = video("tall.mp4", *X264, "-vf", "setsar=1/200")
    assert refusal(tall, tmp_path).startswith("each side must be 240 to 4096 pixels, got 3x240")


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_is_converted_to_srgb(tmp_path: Path, transfer: str) -> None:
    """White (58 % of PQ, 75 % of HLG: ITU-R BT.2408) leaves room for highlights, as in pictures."""
    level = {"smpte2084": 148, "arib-std-b67": 191}[transfer]
    frame = Image.new("RGB", (320, 240), (level,) * 3)
    frame.paste((20, 20, 20), (0, 0, 160, 120))
    tags = f"setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc={transfer}"
    data = of_frames(tmp_path, [frame] * 24, "-vf", f"scale=out_color_matrix=bt2020,{tags}")
    picture = opened(data, tmp_path).pictures[0]
    assert picture.getpixel((300, 200)) == pytest.approx((185, 185, 185), abs=4)


def test_standard_video_keeps_its_levels(tmp_path: Path) -> None:
    frame = Image.new("RGB", (320, 240), (60, 60, 60))
    frame.paste((200, 200, 200), (0, 0, 160, 120))
    tags = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709"
    data = of_frames(tmp_path, [frame] * 24, "-vf", f"scale=out_color_matrix=bt709,{tags}")
    picture = opened(data, tmp_path).pictures[0]
    shown = [np.array(picture.getpixel(at)) for at in ((300, 200), (50, 50))]
    assert np.abs(shown[0] - 60).max() <= 3 and np.abs(shown[1] - 200).max() <= 3


# --- choice of frames ----------------------------------------------------------------------------


def test_the_sharp_frames_of_a_scene_rank_higher(data: Path, tmp_path: Path) -> None:
    sharp = scene(data, "astronaut_360x480.png")
    soft = sharp.filter(ImageFilter.GaussianBlur(3))
    video = of_frames(tmp_path, [soft] * 20 + [sharp] * 6 + [soft] * 14)
    pictures = opened(video, tmp_path).pictures
    assert len(pictures) == 1
    assert apart(sharp, pictures[0]) < 4 < apart(sharp, soft)


def test_each_scene_gives_one_picture_and_a_repeated_view_gives_none(
    data: Path, tmp_path: Path
) -> None:
    person, rocket = scene(data, "astronaut_360x480.png"), scene(data, "rocket_640x360.jpg")
    video = of_frames(tmp_path, [person] * 30 + [rocket] * 20 + [person] * 20)
    pictures = opened(video, tmp_path).pictures
    assert len(pictures) == 2
    assert apart(person, pictures[0]) < 5 and apart(rocket, pictures[1]) < 5


def test_neither_a_fade_nor_black_is_chosen(data: Path, tmp_path: Path) -> None:
    person, black = scene(data, "astronaut_360x480.png"), Image.new("RGB", (320, 240))
    fade = [Image.blend(black, person, step / 20) for step in range(20)]
    video = of_frames(tmp_path, [black] * 10 + fade + [person] * 15 + fade[::-1] + [black] * 10)
    pictures = opened(video, tmp_path).pictures
    assert len(pictures) == 1
    assert apart(person, pictures[0]) < 5


def test_the_middle_of_a_cross_fade_is_not_chosen(data: Path, tmp_path: Path) -> None:
    person, rocket = scene(data, "astronaut_360x480.png"), scene(data, "rocket_640x360.jpg")
    mixed = [Image.blend(person, rocket, step / 16) for step in range(16)]
    pictures = opened(of_frames(tmp_path, [person] * 40 + mixed + [rocket] * 40), tmp_path).pictures
    nearest = [min(apart(person, one), apart(rocket, one)) for one in pictures]
    assert len(pictures) == 2 and max(nearest) < 6


def test_of_two_sharp_frames_the_one_with_the_larger_subject_ranks_higher() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8)

    def shown(side: int) -> Image.Image:
        """A frame with a subject of that size, and equal detail in all."""
        image = Image.new("RGB", (320, 240), (90, 90, 90))
        image.paste((230, 60, 20), (160 - side, 120 - side, 160 + side, 120 + side))
        image.paste(Image.fromarray(noise).crop((0, 0, 20, 20)), (150, 110))
        return image

    small, large = shown(30), shown(90)
    assert prominence(small) < prominence(large)
    assert best([look(small), look(large), look(small)], 1) == [1]


def test_frames_of_one_colour_are_skipped() -> None:
    assert (
        best([look(Image.new("RGB", (320, 240), colour)) for colour in ("black", "white")], 4) == []
    )
    assert best([], 4) == []


# --- errors --------------------------------------------------------------------------------------

NEITHER = "the file is not a JPEG, PNG, BMP or WEBP image, or an MP4 or MOV video"
DAMAGED = "the video is damaged, or cannot be decoded"
CUT = "the video is damaged or cut"
NO_VIDEO = "the file holds no video"

DISGUISES = {
    "a playlist": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
    "a list": b"ffconcat version 1.0\nfile /etc/hostname\n",
    "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a word": b"video",
}


@pytest.mark.parametrize("name", DISGUISES)
def test_a_file_that_is_neither_picture_nor_video_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(DISGUISES[name], tmp_path) == NEITHER


@pytest.mark.parametrize("name", DISGUISES)
def test_a_file_that_only_begins_like_a_video_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(b"\0\0\0\x10ftypisom\0\0\0\0" + DISGUISES[name], tmp_path) == NO_VIDEO


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.ts"])
def test_other_videos_are_refused(video: Make, tmp_path: Path, name: str) -> None:
    assert refusal(video(name), tmp_path) == NEITHER


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    ffmpeg("-f", "lavfi", "-i", "sine=d=2", "-c:a", "aac", str(path))
    data = path.read_bytes()
    path.unlink()
    assert refusal(data, tmp_path) == NO_VIDEO


@pytest.mark.parametrize(
    ("name", "made", "why"),
    [
        ("long.mp4", {"seconds": 60}, "the video is longer than 30 seconds"),
        ("31.mp4", {"seconds": 31}, "the video is longer than 30 seconds"),
        ("short.mp4", {"seconds": 0.5}, "the video is shorter than 1 second"),
        ("slow.mp4", {"fps": 10}, "the video must have at least 16 frames a second, got 10"),
        ("rapid.mp4", {"fps": 500}, "the video has more than 240 frames a second"),
        ("thin.mp4", {"size": "2x4000"}, "each side must be 240 to 4096 pixels, got 2x4000"),
        ("area.mov", {"size": "4096x4096"}, "the video has too many pixels, 4096x4096"),
        ("black.mp4", {"source": "color=black"}, "no frame of the video shows anything"),
    ],
)
def test_a_video_outside_the_limits_is_refused(
    video: Make, tmp_path: Path, name: str, made: dict[str, object], why: str
) -> None:
    few = ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-frames:v", "1")
    options = few if name.endswith("mov") else ()
    assert refusal(video(name, *options, **made), tmp_path) == why


def claiming(data: bytes, width: int, height: int, codec: bytes = b"avc1") -> bytes:
    """`data` with another size in its header (ISO/IEC 14496-12, 12.1.3)."""
    at = data.index(codec, data.index(b"stsd")) + 4 + 24
    return data[:at] + width.to_bytes(2) + height.to_bytes(2) + data[at + 4 :]


def test_a_size_that_is_only_in_the_header_is_refused(video: Make, tmp_path: Path) -> None:
    data = claiming(video(), 8192, 8192)
    assert refusal(data, tmp_path) == "each side must be 240 to 4096 pixels, got 8192x8192"


@pytest.mark.parametrize("codec", ["mjpeg", "libx264"])
def test_frames_larger_than_the_header_says_are_not_decoded(
    video: Make, tmp_path: Path, codec: str
) -> None:
    options = ("-c:v", codec, "-pix_fmt", "yuvj420p", "-preset", "ultrafast")
    data = video(
        f"lie.{codec}.mov",
        *options[: 4 if codec == "mjpeg" else 6],
        size="4096x4096",
        fps=16,
        seconds=1,
    )
    lie = claiming(data, 320, 240, b"jpeg" if codec == "mjpeg" else b"avc1")
    assert refusal(lie, tmp_path) in (DAMAGED, "the video has too many pixels, 4096x4096")


@pytest.mark.parametrize(("seconds", "fps"), [(30, 16), (1, 30), (2, 240)])
def test_the_limits_themselves_are_accepted(
    video: Make, tmp_path: Path, seconds: float, fps: int
) -> None:
    assert opened(video(f"{seconds}-{fps}.mp4", seconds=seconds, fps=fps), tmp_path).pictures


def test_the_limits_are_settings(video: Make, tmp_path: Path) -> None:
    limits = ReferenceLimits(
        ImageLimits(min_side=300), max_seconds=1, min_fps=30, image_max_bytes=100
    )
    assert refusal(video(), tmp_path, limits) == "each side must be 300 to 4096 pixels, got 320x240"
    longer = video("larger.mp4", size="320x320", seconds=2)
    assert refusal(longer, tmp_path, limits) == "the video is longer than 1 seconds"
    slow = video("slower.mp4", size="320x320", seconds=1)
    assert refusal(slow, tmp_path, limits).startswith("the video must have at least 30 frames")
    picture = encoded(Image.new("RGB", (400, 400)), "BMP")
    assert refusal(picture, tmp_path, limits).startswith("the picture is larger than")


def test_a_strip_of_a_picture_is_refused(tmp_path: Path) -> None:
    why = refusal(encoded(Image.new("RGB", (1, 4000)), "PNG"), tmp_path)
    assert why == "each side must be 240 to 8000 pixels, got 1x4000"


def test_codecs_that_no_camera_writes_are_refused(video: Make, tmp_path: Path) -> None:
    data = video("qtrle.mov", "-c:v", "qtrle", "-pix_fmt", "rgb24")
    assert refusal(data, tmp_path).startswith("the video's codec must be H.264, HEVC")


def test_an_encrypted_video_is_refused(video: Make, tmp_path: Path) -> None:
    key = ("-encryption_key", "0" * 32, "-encryption_kid", "1" * 32)
    data = video("locked.mp4", *X264, "-encryption_scheme", "cenc-aes-ctr", *key)
    assert refusal(data, tmp_path) == "the video is encrypted"


@pytest.mark.parametrize("options", [(), ("-movflags", "+faststart")], ids=["plain", "fast"])
@pytest.mark.parametrize("part", [0.3, 0.7, 0.99])
def test_a_truncated_video_is_refused(
    video: Make, tmp_path: Path, options: tuple[str, ...], part: float
) -> None:
    data = video(f"cut{len(options)}.mp4", *X264, *options)
    assert refusal(data[: int(len(data) * part)], tmp_path) == CUT


@pytest.mark.parametrize("flips", [20, 200, 5000])
def test_a_damaged_video_is_refused_and_not_repaired(
    video: Make, tmp_path: Path, flips: int
) -> None:
    data = bytearray(video("fast.mp4", *X264, "-movflags", "+faststart"))
    chance, begins = np.random.default_rng(7), data.index(b"mdat") + 8
    for at in chance.integers(begins, len(data), flips):
        data[at] = chance.integers(256)
    assert refusal(bytes(data), tmp_path) == DAMAGED


def test_a_header_that_claims_two_thousand_million_frames_costs_nothing(
    video: Make, tmp_path: Path
) -> None:
    data = bytearray(video("fast.mp4", *X264, "-movflags", "+faststart"))
    for table, fields in ((b"stsz", (8, 12)), (b"stts", (12,)), (b"stsc", (16,))):
        for at in fields:
            start = data.index(table) + at
            data[start : start + 4] = (1 if at == 8 else 2**31 - 1).to_bytes(4)
    assert refusal(bytes(data), tmp_path)


def test_parsing_a_header_of_many_boxes_ends(tmp_path: Path) -> None:
    empty = b"\0\0\0\x08free" * 2**20
    assert refusal(b"\0\0\0\x08ftyp" + empty, tmp_path) == NO_VIDEO


# --- access to other files -----------------------------------------------------------------------


def pointing_to(data: bytes, target: Path) -> bytes:
    """`data`, whose header is at its end, as a movie with its frames in `target`: an alias as
    QuickTime writes it (libavformat/mov.c, mov_read_dref)."""
    path = str(target).encode()
    path += b"\0" * (len(path) % 2)
    alias = bytes(4 + 10) + b"\0" + bytes(27 + 12) + b"\0" + bytes(63 + 16)
    alias += bytes(2 + 2 + 16) + b"\0\2" + len(path).to_bytes(2) + path + b"\xff\xff\0\0"
    entry = (len(alias) + 8).to_bytes(4) + b"alis" + alias
    changed, at = bytearray(data), 0
    old = data.index(b"url ", data.index(b"dref")) - 4
    changed[old : old + 12] = entry
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = data.index(box, at)
        size = int.from_bytes(data[at - 4 : at]) + len(entry) - 12
        changed[at - 4 : at] = size.to_bytes(4)
    return bytes(changed)


def test_a_track_in_another_file_is_neither_accepted_nor_opened(
    video: Make, tmp_path: Path
) -> None:
    (job := tmp_path / "job").mkdir()
    (target := tmp_path / "target.mp4").write_bytes(video())
    data = pointing_to(video(), target)
    copy = tmp_path / "points.mp4"
    copy.write_bytes(data)
    decode = ("-map", "0:v", "-frames:v", "1", "-f", "null", "-")
    with opens_of(target) as was_opened:
        assert refusal(data, job) == "the video points to another file"
        with pytest.raises(subprocess.CalledProcessError):
            ffmpeg(*input_arguments(copy), "-xerror", *decode)  # without our check of the header
        assert not was_opened()
        ffmpeg(
            "-enable_drefs", "1", "-use_absolute_path", "1", "-f", "mov", "-i", str(copy), *decode
        )
        assert was_opened()  # ffmpeg opens it, so the file is a real attack


# --- errors of this machine, and cancellation ----------------------------------------------------


def test_an_ffmpeg_that_decodes_nothing_is_not_the_callers_fault(
    video: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = video()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    with pytest.raises(EncodeFailed, match=r"^A video could not be decoded$"):
        opened(data, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_takes_too_long_says_so(
    video: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = video()
    (stuck := tmp_path / "ffmpeg").write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    (job := tmp_path / "job").mkdir()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(stuck))
    monkeypatch.setattr(untrusted_videos, "_DECODE_SECONDS", 0.3)
    assert refusal(data, job) == "the video takes longer than 0.3 seconds to decode"


def test_a_job_that_was_cancelled_stops(video: Make, tmp_path: Path) -> None:
    control = Control()
    control.cancel()
    with pytest.raises(Cancelled):
        opened(video(), tmp_path, control=control)
    assert list(tmp_path.iterdir()) == []


# --- at most four pictures -----------------------------------------------------------------------


def references(*counts: int) -> list[Reference]:
    """References with the given numbers of pictures. A picture's width tells its reference, its
    height its rank."""
    return [
        Reference(tuple(Image.new("RGB", (subject, rank)) for rank in range(1, count + 1)))
        for subject, count in enumerate(counts)
    ]


@pytest.mark.parametrize(
    ("counts", "subjects", "left_out"),
    [
        ((), (), ()),
        ((1,), (0,), ()),
        ((4,), (0, 0, 0, 0), ()),
        ((1, 1, 1), (0, 1, 2), ()),
        ((3, 1), (0, 0, 0, 1), ()),
        ((3, 3), (0, 0, 1, 1), ()),
        ((2, 2, 2), (0, 0, 1, 2), ()),
        ((2, 1, 1, 1, 1), (0, 1, 2, 3), (4,)),
    ],
)
def test_each_subject_has_a_picture_and_there_are_four_in_all(
    counts: tuple[int, ...], subjects: tuple[int, ...], left_out: tuple[int, ...]
) -> None:
    chosen = best_pictures(references(*counts))
    assert chosen.left_out == left_out
    assert tuple(picture.width for picture in chosen.pictures) == subjects
    ranks = [picture.height for picture in chosen.pictures]
    assert all(ranks[subjects.index(subject)] == 1 for subject in subjects)


def test_pictures_that_are_left_out_are_reported(tmp_path: Path) -> None:
    media = with_references(Media(), references(1, 1, 1, 1, 1))
    assert media.warnings == ("Only the first 4 of 5 references were used",)
    assert with_references(Media(), references(1, 2)).warnings == ()
