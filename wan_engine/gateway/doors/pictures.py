"""Reads pictures that some clients send as the bare base64 of a file where a page expects a URL."""

from __future__ import annotations

import base64
import binascii

# The bare base64 of a picture begins with the encoded first bytes of the file.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF")


def as_url(text: str) -> str:
    """Return bare base64 of a picture as a data URI, and any other text without spaces around
    it."""
    text = text.strip()
    try:
        first = base64.b64decode(text[:64], validate=True)
    except (binascii.Error, ValueError):
        return text
    return f"data:application/octet-stream;base64,{text}" if first.startswith(_MAGIC) else text
