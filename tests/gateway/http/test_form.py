"""Forms: their fields, bodies that are not forms, and the cost of hostile ones."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_engine.gateway.http.form import Form, Upload, is_form, parse_form
from wan_engine.gateway.refusals import Refusal

TYPE = "multipart/form-data; boundary=xyz"


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"\r\nContent-Type: image/png' if filename else ""
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def parsed(*parts: bytes) -> Form:
    return parse_form(TYPE, b"".join(parts) + b"--xyz--\r\n")


def test_texts_and_files_have_their_names() -> None:
    form = parsed(
        part("prompt", "Grüße".encode()),
        part("input_reference", b"\x89PNG\r\n\x1a\n", "a.png"),
        part("twice", b"1"),
        part("twice", b"2"),
    )
    upload = form["input_reference"][0]
    assert form["prompt"] == ["Grüße"] and form["twice"] == ["1", "2"]
    assert isinstance(upload, Upload) and not upload.is_video
    assert upload.url == "data:application/octet-stream;base64,iVBORw0KGgo="
    assert Upload.of(b"\0\0\0\x18ftypmp42").is_video


@settings(max_examples=100, deadline=None, database=None)
@given(data=st.binary(max_size=300).filter(lambda data: b"\r\n--xyz" not in data))
def test_a_file_arrives_unchanged(data: bytes) -> None:
    (upload,) = parsed(part("file", data, "a"))["file"]
    assert isinstance(upload, Upload)
    assert base64.b64decode(upload.url.partition(",")[2]) == data


def test_the_media_type_that_a_caller_claims_is_ignored() -> None:
    head = b'--xyz\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n'
    (upload,) = parsed(head + b"Content-Type: text/html,<b>\r\n\r\nx\r\n")["a"]
    assert upload == Upload("data:application/octet-stream;base64,eA==")


def test_a_form_may_be_urlencoded() -> None:
    kind = "application/x-www-form-urlencoded; charset=utf-8"
    assert is_form(kind) and is_form(TYPE) and not is_form("application/json")
    form = parse_form(kind, b"prompt=a+fox%21&seconds=4&empty=")
    assert form == {"prompt": ["a fox!"], "seconds": ["4"], "empty": [""]}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--xyz--\r\n"),
        (TYPE, b""),
        (TYPE, part("prompt", b"a fox")),  # without its end
        (TYPE, part("prompt", b"a fox")[:-8]),
        (TYPE, b'{"prompt": "a fox"}'),
        (TYPE, b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xyz--\r\n"),
        (TYPE, b"--xyz\r\nX: " + b"x" * 9000 + b"\r\n\r\nx\r\n--xyz--\r\n"),
        (TYPE, b"".join(part(str(number), b"") for number in range(101)) + b"--xyz--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 5000, b"x"),
        ("application/x-www-form-urlencoded", b"&".join([b"a=1"] * 101)),
        ("application/x-www-form-urlencoded", b"\xff=1"),
    ],
)
def test_a_body_that_is_not_a_form_is_refused(kind: str, body: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse_form(kind, body)
    assert (refused.value.status, refused.value.message) == (400, "The body is not a valid form")


@pytest.mark.parametrize("filling", [b"\r", b"\r\n", b"\r\n--xy", b"-", b"\n"])
def test_no_content_makes_a_form_slow(filling: bytes) -> None:
    """A megabyte of possible beginnings of a boundary takes minutes with a quadratic search."""
    begun = time.process_time()
    (upload,) = parsed(part("file", filling * (2**20 // len(filling)), "a"))["file"]
    assert isinstance(upload, Upload) and time.process_time() - begun < 10
