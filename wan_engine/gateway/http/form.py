"""Reads a form, `multipart/form-data` or `application/x-www-form-urlencoded`, as texts and files. A
file becomes a data URI."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from wan_engine.gateway.refusals import Refusal

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks  # imported for type checkers only

MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"

_FIELDS_MOST = 100
_HEADER_BYTES = 1024


@dataclass(frozen=True)
class Upload:
    """A file of a form. Its content decides its type, not the content type that the caller
    gives."""

    url: str

    @classmethod
    def of(cls, data: bytes) -> Upload:
        return cls(f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}")

    @property
    def is_video(self) -> bool:
        """Whether the file begins like an MP4 or MOV."""
        return base64.b64decode(self.url.partition(",")[2][:16])[4:8] == b"ftyp"


Form = dict[str, list[str | Upload]]
"""The values of each name, in their order."""


def is_form(content_type: str) -> bool:
    return _kind(content_type) in (MULTIPART, URLENCODED)


def parse_form(content_type: str, body: bytes) -> Form:
    """Parse a body. Raises `Refusal`."""
    if _kind(content_type) == URLENCODED:
        return _urlencoded(body)
    parts = _Parts()
    try:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise FormParserError("it has no boundary")
        parser = MultipartParser(boundary, parts.callbacks(), max_header_size=_HEADER_BYTES)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        raise _invalid() from None
    if not parts.complete:  # an incomplete form is refused
        raise _invalid()
    return parts.form


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _urlencoded(body: bytes) -> Form:
    form: Form = {}
    try:
        text = body.decode("utf-8")
        for name, value in parse_qsl(text, keep_blank_values=True, max_num_fields=_FIELDS_MOST):
            form.setdefault(name, []).append(value)
    except ValueError:
        raise _invalid() from None
    return form


def _invalid() -> Refusal:
    return Refusal("invalid_request", "The body is not a valid form")


@dataclass
class _Parts:
    """The parts that the parser has found so far."""

    form: Form = field(default_factory=dict)
    complete: bool = False
    _count: int = 0
    _header: bytes = b""
    _value: bytes = b""
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _data: list[bytes] = field(default_factory=list)

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": lambda: setattr(self, "complete", True),
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > _FIELDS_MOST:
            raise FormParserError("too many parts")
        self._headers, self._data = {}, []

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"").decode("utf-8", "replace")
        _, options = parse_options_header(disposition.encode("utf-8").decode("latin-1"))
        name = options.get(b"name")
        if name is None:
            raise FormParserError("a part has no name")
        data = b"".join(self._data)
        self._data = []
        value = Upload.of(data) if b"filename" in options else data.decode("utf-8", "replace")
        self.form.setdefault(name.decode("utf-8", "replace"), []).append(value)
