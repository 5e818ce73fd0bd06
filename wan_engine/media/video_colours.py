"""Reads which colours a video has, and makes ffmpeg take them as players do.

Levels were compared with Chromium 156.
"""

from __future__ import annotations

import re

from wan_engine.schema import Colours

_MATRIX, _TRANSFER, _PRIMARIES = b"\x55\xb1", b"\x55\xba", b"\x55\xbb"
_CLUSTER = b"\x1f\x43\xb6\x75"
READ = (
    *("-vf", "crop=16:16:0:0", "-frames:v", "1", "-map_metadata", "-1", "-map_chapters", "-1"),
    *("-c:v", "ffv1", "-f", "matroska"),
)
"""ffmpeg's arguments for a file that `of` understands. It has no text of the given video, which
might look like a header."""

# ITU-T H.273, tables 2 to 4.
_BT709, _SMPTE170M, _SRGB, _UNKNOWN = 1, 6, 13, 2
_HDR_TRANSFERS = (16, 18)
_PRIMARIES_SHOWN = (4, 5, 8, 9, 10, 11, 12, 22)
_TRANSFERS_SHOWN = (4, 5, 8, *_HDR_TRANSFERS)
_LEAST_HD_LINES = 720


def of(matroska: bytes, lines: int) -> Colours:
    """The colours of a video of so many lines, of which ffmpeg made `matroska` (RFC 9559, 5.1.4.1).

    A video that does not name its matrix has that of BT.709 from 720 lines on. The primaries of
    SMPTE 170M are taken for those of BT.709, and all transfers of cameras for that of sRGB.
    """
    header = matroska.partition(_CLUSTER)[0]
    matrix = _number(header, _MATRIX)
    if matrix == _UNKNOWN:
        matrix = _BT709 if lines >= _LEAST_HD_LINES else _SMPTE170M
    primaries, transfer = _number(header, _PRIMARIES), _number(header, _TRANSFER)
    return Colours(
        matrix=matrix,
        primaries=primaries if primaries in _PRIMARIES_SHOWN else _BT709,
        transfer=transfer if transfer in _TRANSFERS_SHOWN else _SRGB,
    )


def is_hdr(colours: Colours) -> bool:
    """Whether they have more than standard dynamic range."""
    return colours.transfer in _HDR_TRANSFERS


def tagged(colours: Colours) -> str:
    """The filter that tags frames with `colours`, whatever the file says."""
    return (
        f"setparams=colorspace={colours.matrix}:color_primaries={colours.primaries}"
        f":color_trc={colours.transfer}"
    )


def to_srgb(colours: Colours) -> str:
    """The filters that bring frames with BT.709's matrix and limited range from other primaries and
    another transfer to sRGB's. They are for standard dynamic range."""
    if (colours.primaries, colours.transfer) == (_BT709, _SRGB):
        return "null"
    return (
        "format=yuv444p10,colorspace=ispace=bt709:irange=tv"
        f":iprimaries={colours.primaries}:itrc={colours.transfer}"
        ":space=bt709:range=tv:primaries=bt709:trc=iec61966-2-1"
    )


def _number(header: bytes, name: bytes) -> int:
    """An integer of one byte in the header of a Matroska file."""
    found = re.search(re.escape(name) + rb"\x81(.)", header, re.DOTALL)
    return found[1][0] if found else _UNKNOWN
