"""Encodes frames to mp4: one ffmpeg process crops, scales, encodes and muxes while frames
arrive."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wan_engine.control import Control
from wan_engine.errors import EncodeFailed
from wan_engine.media import ffmpeg
from wan_engine.media.audio import SAMPLE_RATE_HZ
from wan_engine.schema import AudioTrack, EncodedVideo, Frames, Plan

log = logging.getLogger(__name__)


_SENTENCE = "The clip could not be encoded"


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
    audio: AudioTrack | None,
    path: Path,
    options: EncodeOptions,
    control: Control,
) -> EncodedVideo:
    """Write exactly `plan.frames` frames to `path`, H.264 High yuv420p BT.709, together with
    `audio`.

    `frames` yields chunks of the rendered size as the model makes them; nothing is kept. The sound
    is cut or padded with silence to the length of the picture. If it fails, no file stays behind;
    raises `EncodeFailed`, or what `frames` or `control` raised.
    """
    count, shape = 0, (plan.render_height, plan.render_width, 3)
    try:
        with ffmpeg.running(_arguments(plan, audio, path, options), control) as pipe:
            for chunk in frames:
                control.enter("encode")  # until another stage says that it goes on
                assert chunk.shape[1:] == shape, f"a chunk of {chunk.shape}, not {shape}"
                count += len(chunk)
                try:
                    pipe.write(np.ascontiguousarray(chunk).data)
                except BrokenPipeError:
                    break  # ffmpeg closed its input; its status or the count says why
        if count != plan.frames:
            log.error("the model gave %d frames, the plan has %d", count, plan.frames)
            raise EncodeFailed(_SENTENCE)
    except ffmpeg.Failed as error:
        log.error("ffmpeg failed after %d frames: %s", count, error)
        path.unlink(missing_ok=True)
        raise EncodeFailed(_SENTENCE) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return EncodedVideo(path, frames=count, bytes=path.stat().st_size)


def _arguments(
    plan: Plan, audio: AudioTrack | None, path: Path, options: EncodeOptions
) -> list[str]:
    seconds = f"{plan.frames / plan.fps:.6f}"
    arguments = [
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{plan.render_width}x{plan.render_height}"),
        *("-framerate", str(plan.fps), "-i", "pipe:0"),
    ]
    if audio is not None:
        arguments += ["-protocol_whitelist", "file", "-f", "wav", "-i", str(audio.path)]
        arguments += ["-map", "0:v:0", "-map", "1:a:0", "-af", f"apad,atrim=end={seconds}"]
        arguments += ["-c:a", "aac", "-b:a", "192k", "-ar", str(SAMPLE_RATE_HZ), "-ac", "2"]
    arguments += [
        *("-vf", _filters(plan), "-c:v", "libx264", "-profile:v", "high", "-pix_fmt", "yuv420p"),
        *("-preset", options.preset, "-crf", str(options.crf)),
        *("-g", str(plan.fps), "-x264-params", "open-gop=0"),  # a player seeks from key frames
        *("-t", seconds, "-movflags", "+faststart"),
    ]
    if options.comment:
        arguments += ["-metadata", f"comment={options.comment}"]
    return [*arguments, "-f", "mp4", "-y", str(path)]


def _filters(plan: Plan) -> str:
    """Crop the middle, scale it, and convert to BT.709 in one pass of swscale."""
    left = (plan.render_width - plan.crop_width) // 2
    top = (plan.render_height - plan.crop_height) // 2
    return (
        f"crop={plan.crop_width}:{plan.crop_height}:{left}:{top},"
        f"scale={plan.width}:{plan.height}:flags=lanczos+accurate_rnd+full_chroma_int"
        ":out_color_matrix=bt709:out_range=tv,format=yuv420p,setsar=1,"
        # The encoder takes its tags from the frames, not from its own options.
        "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
    )
