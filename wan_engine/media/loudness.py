"""Brings a made sound to one loudness, with ffmpeg's EBU R128 filter."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from wan_engine.control import Control
from wan_engine.errors import EncodeFailed
from wan_engine.media import ffmpeg
from wan_engine.media.audio import SAMPLE_RATE_HZ
from wan_engine.schema import AudioTrack

log = logging.getLogger(__name__)

LOUDNESS_LUFS = -16.0
"""The loudness that web players expect, and that podcasts are made at (AES TD1008)."""

_PEAK_DBTP = -1.5  # AAC can raise a peak above the original
_RANGE_LU = 11.0
_LOWEST_LUFS = -70.0  # the absolute gate of EBU R128; softer sound counts as silence


def levelled(track: AudioTrack, control: Control) -> AudioTrack:
    """Return `track` at `LOUDNESS_LUFS`, in a file beside it. One gain applies to all of it. If the
    peaks leave no room for that gain, the dynamics are reduced. Silence stays as it is. Raises
    `EncodeFailed`."""
    try:
        return _levelled(track, track.path.with_suffix(".level.wav"), control)
    except ffmpeg.Failed as error:
        log.error("the loudness of a sound could not be changed: %s", error)
        raise EncodeFailed("The sound of the clip could not be made") from error


def _levelled(track: AudioTrack, path: Path, control: Control) -> AudioTrack:
    measured = _measured(track, path.with_suffix(".json"), control)
    if not _LOWEST_LUFS < float(measured["input_i"]) <= 0:
        return track
    values = {
        "measured_I": measured["input_i"],
        "measured_TP": measured["input_tp"],
        "measured_LRA": measured["input_lra"],
        "measured_thresh": measured["input_thresh"],
        "offset": measured["target_offset"],
        "linear": "true",
    }
    named = "".join(f":{name}={value}" for name, value in values.items())
    # The filter works at 192 kHz when it changes the dynamics.
    output = ["-ar", str(SAMPLE_RATE_HZ), "-c:a", "pcm_s16le", "-f", "wav", "-y", str(path)]
    _run(track, f"{_TARGET}{named}", output, control)
    return AudioTrack(path, track.seconds)


_TARGET = f"loudnorm=I={LOUDNESS_LUFS:g}:TP={_PEAK_DBTP:g}:LRA={_RANGE_LU:g}"


def _measured(track: AudioTrack, report: Path, control: Control) -> dict[str, Any]:
    escaped = str(report).replace("\\", "\\\\").replace(":", "\\:").replace("'", "\\'")
    filters = f"{_TARGET}:print_format=json:stats_file='{escaped}'"
    try:
        _run(track, filters, ["-f", "null", "-"], control)
        measured: dict[str, Any] = json.loads(report.read_text())
        float(measured["input_i"])
    except (OSError, ValueError, KeyError) as error:
        raise ffmpeg.Failed(f"the loudness could not be read: {error!r}", here=True) from error
    finally:
        report.unlink(missing_ok=True)
    return measured


def _run(track: AudioTrack, filters: str, output: list[str], control: Control) -> None:
    source = ["-nostdin", "-protocol_whitelist", "file", "-f", "wav", "-i", str(track.path)]
    with ffmpeg.running([*source, "-af", filters, *output], control):
        pass
