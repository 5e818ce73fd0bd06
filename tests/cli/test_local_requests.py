"""The checks of command-line requests before anything is rendered."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wan_engine import Settings
from wan_engine.cli.local_requests import LocalRequest, read_jobs
from wan_engine.errors import InvalidMedia, InvalidRequest

SETTINGS = Settings()


@pytest.fixture
def good(data: Path) -> dict[str, Any]:
    return {"prompt": "lift-off", "image": str(data / "rocket_640x360.jpg")}


def test_a_valid_request_has_no_errors(good: dict[str, Any], tmp_path: Path) -> None:
    fields = {"out": str(tmp_path / "a.mp4"), "sheet": str(tmp_path / "a.png")}
    assert LocalRequest({**good, **fields}).look(SETTINGS) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image": "/proc"}, "image: /proc is a folder, not a file"),
        ({"image": "nowhere.jpg"}, "image: there is no file nowhere.jpg"),
        ({"audio": "no\0sound.wav"}, "audio: .* cannot be used .*null byte"),
        ({"out": "/proc/a.mp4"}, "--out: the folder /proc cannot be written to"),
        ({"sheet": "/proc/a.png"}, "--sheet: the folder /proc cannot be written to"),
        ({"out": "nul\0.mp4"}, "--out: .* cannot be used .*null byte"),
        ({"out": 5}, "--out: it must be a path, got 5"),
        ({"out": "a.mp4", "sheet": "./a.mp4"}, "--sheet: .* is the file of --out too"),
        ({"size": "640x480"}, r'field "size" must be .*; 720p and 1080p also work'),
        ({"duration": 17}, 'field "duration" must be an integer from 2 to 15'),
    ],
)
def test_an_error_is_one_sentence(
    good: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = LocalRequest({**good, **fields}).look(SETTINGS)
    with pytest.raises(InvalidRequest, match=sentence):
        raise InvalidRequest(wrong)


def test_a_sheet_of_a_clip_that_goes_to_a_bucket_is_refused_before_it_is_rendered(
    good: dict[str, Any], tmp_path: Path
) -> None:
    bucket = Settings(storage="s3")
    request = {**good, "sheet": str(tmp_path / "a.png")}
    assert "keep it here with --out" in str(LocalRequest(request).look(bucket))
    assert LocalRequest({**request, "out": str(tmp_path / "a.mp4")}).look(bucket) is None


def test_a_file_may_be_as_large_as_a_picture_may_be(good: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(bytes(2**20 + 1))
    settings = Settings(image_max_bytes=2**20)
    wrong = LocalRequest({**good, "image": str(tmp_path / "large.jpg")}).look(settings)
    assert wrong is not None and wrong.endswith("large.jpg is larger than 1 MB")


@pytest.mark.parametrize("size", ["1920x1080", "1920X1080", "1080p", "1920*1080"])
def test_a_size_may_be_written_with_an_x(good: dict[str, Any], size: str) -> None:
    assert LocalRequest({**good, "size": size}).request(SETTINGS).size == "1920*1080"


def test_errors_of_local_files_are_not_reported_for_urls(good: dict[str, Any]) -> None:
    local, remote = LocalRequest(good), LocalRequest({**good, "image": "https://example.com/a.jpg"})
    with (
        pytest.raises(InvalidRequest, match=r"^image: .*rocket_640x360\.jpg: the file is damaged$"),
        local.naming_files(),
    ):
        raise InvalidMedia("image", "the file is damaged")
    with pytest.raises(InvalidMedia, match=r"^Invalid image URL: "), remote.naming_files():
        raise InvalidMedia("image", "the file is damaged")


def test_an_invalid_line_does_not_lose_the_others(good: dict[str, Any], tmp_path: Path) -> None:
    lines = [json.dumps(good), "not json", "[1]", "", json.dumps(good), "[" * 100_000]
    (tmp_path / "jobs").write_text("\n".join(lines))
    requests = read_jobs(str(tmp_path / "jobs"))
    looks = [request.look(SETTINGS) for request in requests]
    assert [look and look.partition(":")[0] for look in looks] == [
        None,
        "line 2 is not JSON",
        "line 3 is not an object",
        None,
        "line 6 is not JSON",
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"\xff\xd8\xff", "is not text"), (b"", "it is empty"), (b"x\ny", "line 1 is not JSON")],
)
def test_a_file_without_a_request_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "jobs").write_bytes(content)
    with pytest.raises(InvalidRequest, match=sentence):
        read_jobs(str(tmp_path / "jobs"))
    for name in ("/proc", "absent", "a" * 300, "/proc/self/mem"):
        with pytest.raises(InvalidRequest):
            read_jobs(name)


def test_a_dash_is_stdin(good: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = SimpleNamespace(buffer=io.BytesIO(json.dumps(good).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert [request.payload for request in read_jobs("-")] == [good]
