"""Reads the requests of `generate` and `plan`, which may name local files, and the output files of
their clips. Finds all errors in them before anything is rendered."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_engine.errors import InvalidMedia, InvalidRequest
from wan_engine.runtime import paths
from wan_engine.runtime.paths import PathRefused
from wan_engine.schema import Request, parse_request
from wan_engine.settings import Settings
from wan_engine.storage import uses_bucket

_OURS = ("out", "sheet", "preview")
_ADDRESSES = ("http:", "https:", "data:")
_SIZES = ("720p", "1080p")
_MEDIA = ("image", "last_image", "first_clip", "audio")


@dataclass(frozen=True)
class LocalRequest:
    """A request with fields of the command line: `out`, the file for its clip, `sheet` and
    `preview`. `wrong` says why a line is not a request, and `place` is the line."""

    payload: Mapping[str, Any]
    place: str = ""
    wrong: str | None = None

    def look(self, settings: Settings) -> str | None:
        """The error in the request, in a sentence. None if it can be rendered."""
        try:
            self.request(settings)
            out, sheet = self.target("out"), self.target("sheet")
            preview = self.target("preview")
        except InvalidRequest as error:
            return str(error)
        if preview is not None and preview in (out, sheet):
            other = "--out" if preview == out else "--sheet"
            return f"--preview: {paths.shown(preview)} is the file of {other} too"
        if sheet is not None and sheet == out:
            return f"--sheet: {paths.shown(sheet)} is the file of --out too"
        if sheet is not None and out is None and uses_bucket(settings):
            return "--sheet: the clip goes to the bucket; keep it here with --out"
        return None

    def request(self, settings: Settings) -> Request:
        """The request, with local files as data URIs, because a request may carry nothing else.
        Raises `InvalidRequest`."""
        if self.wrong is not None:
            raise InvalidRequest(self.wrong)
        fields = {name: value for name, value in self.payload.items() if name not in _OURS}
        fields |= {name: _inline(name, self.payload[name], settings) for name in self._local}
        if isinstance(references := self.payload.get("references"), list):
            fields["references"] = [
                _inline(f"references[{index}]", one, settings) if _is_local(one) else one
                for index, one in enumerate(references)
            ]
        if isinstance(fields.get("size"), str):
            fields["size"] = fields["size"].lower().replace("x", "*")
        if "duration" in fields:  # the hosted pages allow three lengths, the command line all
            fields["seconds"] = fields.pop("duration")
        try:
            return parse_request(fields)
        except InvalidRequest as error:
            said = str(error).replace('field "seconds"', 'field "duration"', 1)
            if said.startswith('field "size"'):
                said += f"; {' and '.join(_SIZES)} also work"
            raise InvalidRequest(said) from error

    @contextmanager
    def naming_files(self) -> Iterator[None]:
        """Report a wrong local file as a file, not as a URL."""
        try:
            yield
        except InvalidMedia as error:
            given = self._given(error.field)
            if not _is_local(given):
                raise
            name = paths.shown(given)
            raise InvalidRequest(f"{error.field}: {name}: {error.why}") from error

    def target(self, field: str) -> Path | None:
        """The output file that a field names. Raises `InvalidRequest` unless it can be written
        now."""
        value = self.payload.get(field)
        if not value:
            return None
        if not isinstance(value, str):
            raise InvalidRequest(f"--{field}: it must be a path, got {json.dumps(value)[:60]}")
        try:
            return paths.to_write(value)
        except PathRefused as refused:
            raise InvalidRequest(f"--{field}: {refused}") from refused

    @property
    def _local(self) -> list[str]:
        """The fields with the name of a local file."""
        return [name for name in _MEDIA if _is_local(self.payload.get(name))]

    def _given(self, field: str) -> Any:
        """The value of a field that an error names, including `references[0]`."""
        name, _, index = field.rstrip("]").partition("[")
        value = self.payload.get(name)
        return value[int(index)] if index and isinstance(value, list) else value


def _is_local(value: object) -> bool:
    """Whether the value names a local file."""
    return isinstance(value, str) and value != "" and not value.lower().startswith(_ADDRESSES)


def _max_bytes(field: str, settings: Settings) -> int:
    if field.startswith("references") or field == "first_clip":
        return settings.reference_max_bytes
    return settings.audio_max_bytes if field == "audio" else settings.image_max_bytes


def read_jobs(source: str) -> list[LocalRequest]:
    """One request per line of a file of JSON objects, or of stdin if it is `-`. Paths in them are
    relative to the working directory. A line that is not a request becomes a wrong request.

    Raises `InvalidRequest` for a file that cannot be read or contains no request.
    """
    name = "stdin" if source == "-" else paths.shown(source)
    try:
        if source == "-":
            data = sys.stdin.buffer.read()
        else:
            data = paths.to_read(source, pipes=True).read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeError as error:
        raise InvalidRequest(f"{name} is not text: {error}") from error
    except (PathRefused, OSError) as error:
        raise InvalidRequest(str(error)) from error
    requests = [
        _local_request(line, f"line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if all(request.wrong for request in requests):
        first = requests[0].wrong if requests else "it is empty"
        raise InvalidRequest(f"{name} has no request in it: {first}")
    return requests


def _local_request(line: str, place: str) -> LocalRequest:
    try:
        payload = json.loads(line)
    except (ValueError, RecursionError) as error:
        return LocalRequest({}, place, f"{place} is not JSON: {error}")
    if not isinstance(payload, dict):
        return LocalRequest({}, place, f"{place} is not an object")
    return LocalRequest(payload, place)


def _inline(field: str, name: str, settings: Settings) -> str:
    """The file `name` as a data URI."""
    limit = _max_bytes(field, settings)
    try:
        with paths.refusing(name), paths.to_read(name).open("rb") as file:
            data = file.read(limit + 1)
    except PathRefused as refused:
        raise InvalidRequest(f"{field}: {refused}") from refused
    if len(data) > limit:
        raise InvalidRequest(f"{field}: {paths.shown(name)} is larger than {limit / 2**20:g} MB")
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
