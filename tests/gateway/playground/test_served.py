"""The page at `/` over HTTP. Other tests open it in a real browser."""

from __future__ import annotations

import asyncio
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import Serve
from wan_engine.gateway.doors.runpod.door import RUN_MAX_BYTES
from wan_engine.gateway.keys import new_entry
from wan_engine.gateway.playground import page

STATIC = Path(page.__file__).parent / "static"


def limits_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<meta name="limits" content="([^"]+)">', text)
    return dict(json.loads(html.unescape(found)))


def assets_of(text: str) -> str:
    (found,) = set(re.findall(r'(?:src|href)="(playground/[0-9a-f]+)/', text))
    return f"/{found}"


def get(
    serve: Serve, *paths: str, known: Mapping[str, str] | None = None, **settings: Any
) -> list[httpx.Response]:
    """The page, then each of `paths`, where `{assets}` is the folder that the page names."""

    async def line() -> list[httpx.Response]:
        async with serve(**settings) as served:
            found = [await served.http.get("/", headers=dict(known or {}))]
            for path in paths:
                folder = assets_of(found[0].text)
                found.append(await served.http.get(path.replace("{assets}", folder)))
            return found

    return asyncio.run(line())


def test_the_page_is_revalidated_and_its_files_are_cached_for_ever(serve: Serve) -> None:
    files = [path for path in sorted(STATIC.iterdir()) if path.suffix != ".html"]
    index, *assets = get(serve, *(f"{{assets}}/{path.name}" for path in files))
    assert index.status_code == 200
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    assert index.headers["cache-control"] == "no-cache"
    (again,) = get(serve, known={"If-None-Match": index.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for path, answer in zip(files, assets, strict=True):
        assert answer.content == path.read_bytes()
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_head_is_supported(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            whole, head = await served.http.get("/"), await served.http.head("/")
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers == whole.headers

    asyncio.run(line())


@pytest.mark.parametrize(
    "path",
    [
        "/playground/0123456789abcdef/app.js",
        "{assets}/index.html",
        "{assets}/page.py",
        "{assets}/..%2Fpage.py",
        "{assets}/../../page.py",
        "{assets}/",
        "/playground/",
    ],
)
def test_there_are_no_other_files(serve: Serve, path: str) -> None:
    assert get(serve, path)[1].status_code == 404


def test_only_scripts_and_styles_of_this_server_run(serve: Serve) -> None:
    for answer in get(serve, "{assets}/app.js"):
        policy = dict(
            part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'"
        for source in ("script-src", "style-src", "connect-src"):
            assert policy[source] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_loaded_from_other_hosts_and_nothing_is_inline() -> None:
    media = (".jpg", ".mp4")
    texts = {
        path.name: path.read_text("utf-8") for path in STATIC.iterdir() if path.suffix not in media
    }
    index = texts["index.html"]
    assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=", index) == []
    assert re.findall(r'(?:src|href|poster)="(?!#|{{assets}}/)[^"]*"', index) == []
    sheets = [text for name, text in texts.items() if name.endswith(".css")]
    assert len(sheets) == 4 and re.findall(r"url\(|@import", "".join(sheets)) == []
    assert all(".innerHTML" not in text and "eval(" not in text for text in texts.values())


def test_the_page_has_this_gateway_s_limits(serve: Serve) -> None:
    settings = {"endpoints": ("mine", "other"), "image_min_side": 99, "audio_max_seconds": 7.5}
    known = limits_of(get(serve, **settings)[0].text)
    assert (known["endpoint"], known["imageMinSide"], known["audioMaxSeconds"]) == ("mine", 99, 7.5)
    assert known["requestMaxBytes"] == RUN_MAX_BYTES and known["asksForKey"] is False


def test_the_page_needs_no_key_because_it_asks_for_one(serve: Serve) -> None:
    (answer,) = get(serve, request_max_bytes=1 << 20, api_keys=new_entry("ann")[1])
    known = limits_of(answer.text)
    assert answer.status_code == 200
    assert known["requestMaxBytes"] == 1 << 20 and known["asksForKey"] is True
    assert "ann" not in json.dumps(known)


def test_a_setting_cannot_break_out_of_the_page(serve: Serve) -> None:
    name = '"><script>alert(1)</script>'
    (answer,) = get(serve, endpoints=(name,))
    assert "<script>alert" not in answer.text
    assert limits_of(answer.text)["endpoint"] == name


def test_the_page_is_not_part_of_the_openapi_document(serve: Serve) -> None:
    paths = get(serve, "/openapi.json")[1].json()["paths"]
    assert "/" not in paths and not any(path.startswith("/playground") for path in paths)


def test_lines_of_the_page_have_at_most_100_characters() -> None:
    texts = [path for path in STATIC.iterdir() if path.suffix in (".js", ".css")]
    lines = [line for path in texts for line in path.read_text("utf-8").splitlines()]
    assert [line for line in lines if len(line) > 100] == []
