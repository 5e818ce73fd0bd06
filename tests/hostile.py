"""Requests that strangers send: each must end with one sentence, and none may reach a private
address."""

from __future__ import annotations

import base64
import io
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

JSON_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 1.5, float("1e308"), "", " ", "x", "\0", "é\u202e🚀", "9" * 5000,
    [], ["x"], {}, {"a": 1}, [[[[[]]]]],
)  # fmt: skip
FIELDS = (
    "prompt", "image", "audio", "negative_prompt", "size", "duration", "shot_type", "seed",
    "enable_prompt_expansion", "enable_safety_checker", "first_frame", "generate_audio",
    "last_image", "first_clip", "keep_first_clip", "loras", "references", "seconds",
)  # fmt: skip


class Listener:
    """A local server that no request may reach. `visits` counts the requests that did."""

    def __init__(self) -> None:
        self.visits = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.visits += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextmanager
def listening() -> Iterator[Listener]:
    listener = Listener()
    try:
        yield listener
    finally:
        listener.close()


def hostile_inputs(good: dict[str, Any], port: int) -> Iterator[tuple[str, Any]]:
    """Name and `input` of each request. `good` is a valid request, `port` is that of a private
    server."""
    for whole in (None, 0, "x", [], [good], {}):
        yield f"input {type(whole).__name__}", whole
    for field in FIELDS:
        for value in JSON_VALUES:
            if not _is_harmless(field, value):
                yield f"{field} {str(value)[:20]!a}", {**good, field: value}
    imageless = {name: value for name, value in good.items() if name != "image"}
    for value in JSON_VALUES:  # it is read next to references only
        asked = {**imageless, "references": [], "aspect_ratio": value}
        yield f"aspect_ratio {str(value)[:20]!a}", asked
    for url in private_urls(port):
        yield f"image {url[:60]}", {**good, "image": url}
        yield f"audio {url[:60]}", {**good, "audio": url}
        yield f"last_image {url[:60]}", {**good, "last_image": url}
        yield f"first_clip {url[:60]}", {**imageless, "first_clip": url}
    for name, uri in bad_images().items():
        yield f"image {name}", {**good, "image": uri}
        yield f"last_image {name}", {**good, "last_image": uri}
    for name, uri in bad_sounds(port).items():
        yield f"audio {name}", {**good, "audio": uri}


def _is_harmless(field: str, value: Any) -> bool:
    """Allows what is valid: null means absent in an optional field, and any text is a prompt."""
    if value is None:
        return field not in ("prompt", "image")
    if field == "prompt":
        return isinstance(value, str) and bool(value.strip())
    if field in ("negative_prompt", "audio", "last_image") and value == "":
        return True
    if field in ("first_clip", "loras", "references") and value in ("", []):
        return True
    if field == "seed":
        return not isinstance(value, bool) and value in (0, -1)
    if field.startswith("enable_") or field in ("first_frame", "generate_audio"):
        return value is True
    return field == "negative_prompt" and isinstance(value, str)


def private_urls(port: int) -> list[str]:
    hosts = [
        "127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f000001", "0177.0.0.1", "127.1",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0.0.0.0", "127.0.0.1.nip.io", "user@127.0.0.1",
        "example.com@127.0.0.1", "127.0.0.1%23", "①②⑦.⓪.⓪.①",
    ]  # fmt: skip
    others = [
        "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://10.0.0.1/",
        "http://metadata.google.internal/", "file:///etc/passwd", "gopher://127.0.0.1:70/_x",
        "ftp://127.0.0.1/x", "dict://127.0.0.1:11211/", "//127.0.0.1/", "http:///etc/passwd",
        "http://", "http://a b/", "http://[::1", "javascript:alert(1)", "/etc/passwd", "C:\\x.png",
        "concat:/etc/passwd", "pipe:0", "tcp://127.0.0.1:1", "unix:/var/run/docker.sock",
    ]  # fmt: skip
    return [f"http://{host}:{port}/a.png" for host in hosts] + others


def bad_images() -> dict[str, str]:
    whole = io.BytesIO()
    Image.effect_noise((300, 300), 50).convert("RGB").save(whole, "PNG")
    png = whole.getvalue()
    gif, tiff = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (300, 300)).save(gif, "GIF")
    Image.new("RGB", (300, 300)).save(tiff, "TIFF")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    files = {
        "empty": b"",
        "cut": png[: len(png) // 2],
        "header alone": png[:33],
        "bomb": bomb,
        "gif": gif.getvalue(),
        "tiff": tiff.getvalue(),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "html": b"<html><img src=x></html>",
        "zip": b"PK\x03\x04" + bytes(100),
        "noise": bytes(range(256)) * 40,
    }
    uris = {name: data_uri_of(body, "image/png") for name, body in files.items()}
    return uris | {
        "no base64": "data:image/png;base64,@@@@",
        "no comma": "data:image/png;base64",
        "no data": "data:,",
        "text": "data:text/plain,hello",
        "nested": data_uri_of(b"data:image/png;base64,AAAA", "image/png"),
    }


def bad_sounds(port: int) -> dict[str, str]:
    address = f"http://127.0.0.1:{port}/a.ts"
    files = {
        "empty": b"",
        "m3u8": f"#EXTM3U\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n".encode(),
        "concat": f"ffconcat version 1.0\nfile '{address}'\n".encode(),
        "ffmetadata": b";FFMETADATA1\ntitle=x\n",
        "wav header alone": b"RIFF\xff\xff\xff\xffWAVEfmt ",
        "m3u8 behind a wav header": b"RIFF\x24\0\0\0WAVE" + f"#EXTM3U\n{address}\n".encode(),
        "m3u8 behind an mp3 header": b"ID3\x04\0\0\0\0\0\0" + f"#EXTM3U\n{address}\n".encode(),
        "noise": bytes(range(256)) * 40,
        "zip": b"PK\x03\x04" + bytes(100),
    }
    return {name: data_uri_of(body, "audio/mpeg") for name, body in files.items()}


def data_uri_of(body: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"
