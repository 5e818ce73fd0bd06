"""Links of clips that the gateway serves itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from benchmarks.services.instant import CLIP
from tests.gateway.conftest import Serve, Served
from tests.gateway.jobs.test_jobs import ended, new, submitted
from wan_engine.control import Control
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.gateway.job import Job
from wan_engine.gateway.links import WEEK_SECONDS, ClipResponse, Links
from wan_engine.gateway.refusals import Refusal
from wan_engine.storage import LocalStorage

DOORS = (runpod_door.door,)


async def linked(served: Served, **fields: Any) -> tuple[Job, str]:
    job = await ended(served, await submitted(served, **fields))
    return job, served.gateway.context.links.url(job)


def test_a_link_serves_the_clip_for_a_week_after_its_end(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            job, url = await linked(served)
            expires = int(parse_qs(urlsplit(url).query)["expires"][0])
            assert expires == (job.finished_ms or 0) // 1000 + WEEK_SECONDS
            assert served.gateway.context.links.url(job) == url  # the same at each poll
            answer = await served.http.get(url)
            assert answer.content == CLIP
            assert answer.headers["content-type"] == "video/mp4"
            assert answer.headers["content-disposition"].startswith("inline")
            assert "private" in answer.headers["cache-control"]

    asyncio.run(line())


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-9", 206, CLIP[:10]),
        ("bytes=100-", 206, CLIP[100:]),
        ("bytes=-5", 206, CLIP[-5:]),
        ("bytes=99999999-", 416, None),
        ("nonsense", 400, None),
    ],
)
def test_a_range_can_be_requested(serve: Serve, asked: str, status: int, part: Any) -> None:
    async def line() -> None:
        async with serve() as served:
            _, url = await linked(served)
            answer = await served.http.get(url, headers={"Range": asked})
            assert answer.status_code == status
            if part is not None:
                assert answer.content == part
                assert answer.headers["content-range"].endswith(f"/{len(CLIP)}")

    asyncio.run(line())


def test_head_has_the_size_and_no_body(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            _, url = await linked(served)
            answer = await served.http.head(url)
            assert (answer.status_code, answer.content) == (200, b"")
            assert answer.headers["content-length"] == str(len(CLIP))
            assert answer.headers["accept-ranges"] == "bytes"

    asyncio.run(line())


def test_a_modified_link_is_refused(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            _, url = await linked(served)
            _, other = await linked(served)
            name, name_2 = urlsplit(url).path, urlsplit(other).path
            expires = parse_qs(urlsplit(url).query)["expires"][0]
            for wrong in (
                url.replace(name, name_2),
                url.replace(f"expires={expires}", f"expires={int(expires) + 1}"),
                url.replace(f"expires={expires}", "expires=never"),
                url.replace(f"expires={expires}", "expires=" + "9" * 50),
                url[:-1] + ("0" if url[-1] != "0" else "1"),
                url.partition("&signature")[0] + "&signature=%C3%A4",
                url.partition("?")[0],
            ):
                answer = await served.http.get(wrong)
                assert answer.status_code == 403, wrong
            outside = url.replace(name, "/results/..%2F..%2Fetc%2Fpasswd")
            assert (await served.http.get(outside)).status_code in (403, 404)

    asyncio.run(line())


def test_a_link_expires_and_a_removed_clip_is_reported(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            job, url = await linked(served)
            links = served.gateway.context.links
            late = links.url(job, -10)
            assert (await served.http.get(late)).status_code == 410
            assert await links.read(job) == CLIP
            links.remove(job)
            assert (await served.http.get(url)).status_code == 404
            with pytest.raises(Refusal) as raised:
                await links.read(job)
            assert raised.value.code == "gone"

    asyncio.run(line())


def test_the_clip_of_a_job_cancelled_at_its_end_is_removed(serve: Serve, tmp_path: Path) -> None:
    async def line() -> None:
        async with serve() as served:
            job, _ = await linked(served)
            clip = tmp_path / "clip.mp4"
            clip.write_bytes(CLIP)
            url = LocalStorage(tmp_path / "outputs").put(clip, job.id, {}, Control())
            served.gateway.context.links.remove(replace(job, state="cancelled", result=None))
            assert not (tmp_path / "outputs" / Path(url).name).exists()

    asyncio.run(line())


def test_links_outlive_the_process_and_not_the_database(serve: Serve, tmp_path: Any) -> None:
    async def line() -> None:
        async with serve() as served:
            _, url = await linked(served)
        async with serve() as served:
            assert (await served.http.get(url)).status_code == 200
        async with serve(database_url=f"sqlite:///{tmp_path}/other.db") as served:
            assert (await served.http.get(url)).status_code == 403

    asyncio.run(line())


def test_a_link_of_a_bucket_is_passed_on(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            job, _ = await linked(served)
            stored = "https://bucket.example/clip.mp4?X-Amz-Signature=abc"
            job = Job(**{**job.__dict__, "result": {"video_url": stored, "cost": 0.5}})
            links = served.gateway.context.links
            assert links.url(job) == stored
            assert links.output(job) == {"video_url": stored, "result": stored, "cost": 0.5}
            links.remove(job)

    asyncio.run(line())


def test_a_clip_that_its_bucket_does_not_return_is_one_sentence(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            job, _ = await linked(served)
            away = replace(job, result={"video_url": "data:video/mp4;base64,"})
            with pytest.raises(Refusal) as raised:
                await served.gateway.context.links.read(away)
            sentence = "The clip cannot be read from its store now, try again later"
            assert (raised.value.code, raised.value.message) == ("unavailable", sentence)

    asyncio.run(line())


@pytest.mark.parametrize(
    ("public_url", "begin"),
    [
        (None, "http://127.0.0.1/results/"),
        ("https://v.example.com/", "https://v.example.com/results/"),
    ],
)
def test_links_use_the_host_by_which_the_caller_reached_the_gateway(
    serve: Serve, public_url: str | None, begin: str
) -> None:
    async def line() -> None:
        async with serve(public_url=public_url) as served:
            body = {"input": new().request}
            answer = await served.http.post("/v2/wan-2-6-i2v/runsync", json=body)
            assert answer.json()["output"]["video_url"].startswith(begin)

    asyncio.run(line())


def test_a_file_url_never_leads_out_of_the_folder_of_clips(serve: Serve, tmp_path: Any) -> None:
    async def line() -> None:
        async with serve() as served:
            job, _ = await linked(served)
            secret = tmp_path / "secret.txt"
            secret.write_text("secret")
            job = Job(**{**job.__dict__, "result": {"video_url": secret.as_uri()}})
            links: Links = served.gateway.context.links
            assert (await served.http.get(links.url(job))).status_code == 404
            links.remove(job)
            assert secret.exists()

    asyncio.run(line())


def test_a_clip_that_is_removed_while_it_is_sent_is_sent_whole(tmp_path: Path) -> None:
    path, sent = tmp_path / "a.mp4", list[dict[str, Any]]()
    scope: dict[str, Any] = {"type": "http", "asgi": {"spec_version": "2.4"}}
    path.write_bytes(CLIP)

    async def send(message: Any) -> None:
        path.unlink(missing_ok=True)
        sent.append(message)

    async def send_it() -> None:
        response = ClipResponse(path, media_type="video/mp4")
        await response({**scope, "method": "GET", "headers": []}, None, send)  # type: ignore[arg-type]

    asyncio.run(send_it())
    assert b"".join(message.get("body", b"") for message in sent) == CLIP
    with pytest.raises(Refusal) as caught:
        asyncio.run(send_it())
    assert (caught.value.code, len(sent)) == ("gone", 2)
