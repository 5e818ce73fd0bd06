"""Encodes frames to mp4: one ffmpeg process crops, scales, encodes and muxes while frames
arrive."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from wan_engine.control import Control
from wan_engine.errors import EncodeFailed
from wan_engine.media import ffmpeg
from wan_engine.media.audio import SAMPLE_RATE_HZ
from wan_engine.media.untrusted_videos import SQUARE_WIDTH, input_arguments
from wan_engine.schema import AudioTrack, EncodedVideo, FirstClip, Frames, Plan

log = logging.getLogger(__name__)


_SENTENCE = "The clip could not be encoded"
_BT709 = (
    "format=yuv420p,setsar=1,"
    # The encoder takes its tags from the frames, not from its own options.
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)

Sound = AudioTrack | Literal["silence"] | None
"""The sound of the clip: a track, a silent track, or no track at all."""


@dataclass(frozen=True)
class EncodeOptions:
    """x264's `crf` and `preset`. `comment` goes into the metadata of the file unless it is
    empty."""

    crf: int = 17
    preset: str = "medium"
    comment: str = ""


def encode(
    frames: Iterable[Frames],
    plan: Plan,
    audio: Sound,
    path: Path,
    options: EncodeOptions,
    control: Control,
    after: FirstClip | None = None,
) -> EncodedVideo:
    """Write exactly `plan.frames` frames to `path`, H.264 High yuv420p BT.709, together with
    `audio`.

    `frames` yields chunks of the rendered size as the model makes them, and none is kept in memory.
    They follow the `plan.given_frames` of the clip `after`, if there is one. The sound is cut or
    padded with silence to the length of the picture. After a failure, no file is left. Raises
    `EncodeFailed`, or the errors of `frames` and `control`.
    """
    count, shape = 0, (plan.render_height, plan.render_width, 3)
    try:
        with ffmpeg.running(_arguments(plan, audio, path, options, after), control) as pipe:
            for chunk in frames:
                control.enter("encode")  # until another stage begins
                assert chunk.shape[1:] == shape, f"a chunk of {chunk.shape}, not {shape}"
                count += len(chunk)
                try:
                    pipe.write(np.ascontiguousarray(chunk).data)
                except BrokenPipeError:
                    break  # ffmpeg closed its input; its status or the count says why
        if count != plan.made_frames:
            log.error("the model returned %d frames, the plan has %d", count, plan.made_frames)
            raise EncodeFailed(_SENTENCE)
    except ffmpeg.Failed as error:
        log.error("ffmpeg failed after %d frames: %s", count, error)
        path.unlink(missing_ok=True)
        raise EncodeFailed(_SENTENCE) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return EncodedVideo(path, frames=plan.frames, bytes=path.stat().st_size)


def add_sound(video: EncodedVideo, audio: Sound, plan: Plan, control: Control) -> EncodedVideo:
    """`video` with `audio` and its frames unchanged, to the bit. For sound that is made together
    with the frames, and so is complete only after the last one. Raises `EncodeFailed`."""
    if audio is None:
        return video
    control.enter("encode")
    path = video.path.with_name(f"{video.path.stem}.sound.mp4")
    arguments = ["-protocol_whitelist", "file", "-f", "mov", "-i", str(video.path)]
    arguments += [*_sound(audio), "-map", "0:v:0", "-c:v", "copy", *_heard(plan)]
    arguments += ["-map_metadata", "0"]
    arguments += ["-movflags", "+faststart", "-f", "mp4", "-y", str(path)]
    try:
        with ffmpeg.running(arguments, control):
            pass
        path.replace(video.path)
    except ffmpeg.Failed as error:
        log.error("ffmpeg failed to add the sound: %s", error)
        raise EncodeFailed(_SENTENCE) from error
    finally:
        path.unlink(missing_ok=True)
    return EncodedVideo(video.path, video.frames, bytes=video.path.stat().st_size)


def _sound(audio: AudioTrack | Literal["silence"]) -> list[str]:
    """The input with the sound."""
    if isinstance(audio, AudioTrack):
        return ["-protocol_whitelist", "file", "-f", "wav", "-i", str(audio.path)]
    return ["-f", "lavfi", "-i", f"anullsrc=r={SAMPLE_RATE_HZ}:cl=stereo"]


def _heard(plan: Plan, index: int = 1) -> list[str]:
    """The track of the input `index`, as long as the picture."""
    return [
        *("-map", f"{index}:a:0", "-af", f"apad,atrim=end={_seconds(plan)}"),
        *("-c:a", "aac", "-b:a", "192k", "-ar", str(SAMPLE_RATE_HZ), "-ac", "2"),
    ]


def _seconds(plan: Plan) -> str:
    return f"{plan.frames / plan.fps:.6f}"


def _arguments(
    plan: Plan,
    audio: Sound,
    path: Path,
    options: EncodeOptions,
    after: FirstClip | None = None,
) -> list[str]:
    arguments = [
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{plan.render_width}x{plan.render_height}"),
        *("-framerate", str(plan.fps), "-i", "pipe:0"),
    ]
    if after is not None:
        arguments += input_arguments(after.path)
    if audio is not None:
        arguments += _sound(audio)
    # The picture is the first stream, as players and scripts expect it.
    arguments += _picture(plan) if after is None else _picture_after_clip(plan)
    if audio is not None:
        arguments += _heard(plan, index=1 if after is None else 2)
    arguments += [
        *("-c:v", "libx264", "-profile:v", "high", "-pix_fmt", "yuv420p"),
        *("-preset", options.preset, "-crf", str(options.crf)),
        *("-g", str(plan.fps), "-x264-params", "open-gop=0"),  # a player seeks from key frames
        *("-t", _seconds(plan), "-movflags", "+faststart"),
    ]
    if options.comment:
        arguments += ["-metadata", f"comment={options.comment}"]
    return [*arguments, "-f", "mp4", "-y", str(path)]


def _picture(plan: Plan) -> list[str]:
    return ["-map", "0:v:0", "-vf", _made(plan)]


def _picture_after_clip(plan: Plan) -> list[str]:
    """The frames of the first clip, input 1, followed by those of the model."""
    graph = f"[0:v]{_made(plan)}[made];[1:v]{_given(plan)}[given];[given][made]concat[picture]"
    return ["-filter_complex", graph, "-map", "[picture]"]


def _made(plan: Plan) -> str:
    """Crop the middle and scale it."""
    left = (plan.render_width - plan.crop_width) // 2
    top = (plan.render_height - plan.crop_height) // 2
    crop = f"crop={plan.crop_width}:{plan.crop_height}:{left}:{top}"
    return f"{crop},{_scaled(plan)},{_BT709}"


def _given(plan: Plan) -> str:
    """Convert a clip to the fps, length and size of the plan. The sides are cropped if needed, and
    the last frame repeats if one is missing at the end."""
    fills = f"{_scaled(plan)}:force_original_aspect_ratio=increase"
    return (
        f"setpts=PTS-STARTPTS,fps={plan.fps}:start_time=0,"
        f"tpad=stop_mode=clone:stop={plan.given_frames},trim=end_frame={plan.given_frames},"
        f"scale={SQUARE_WIDTH}:ih,setsar=1,{fills},crop={plan.width}:{plan.height},{_BT709}"
    )


def _scaled(plan: Plan) -> str:
    """Scale to the size of the clip, and convert to BT.709 in the same pass of swscale."""
    return (
        f"scale={plan.width}:{plan.height}:flags=lanczos+accurate_rnd+full_chroma_int"
        ":out_color_matrix=bt709:out_range=tv"
    )
