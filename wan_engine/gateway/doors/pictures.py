"""Pictures as some clients send them: the bare base64 of a file, where a page says a URL."""

from __future__ import annotations

import base64
import binascii

# A picture in bare base64 begins with what its file begins with.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF")


def as_url(text: str) -> str:
    """Bare base64 of a picture as a data URI; anything else as it is, without spaces around it."""
    text = text.strip()
    try:
        first = base64.b64decode(text[:64], validate=True)
    except (binascii.Error, ValueError):
        return text
    return f"data:application/octet-stream;base64,{text}" if first.startswith(_MAGIC) else text
