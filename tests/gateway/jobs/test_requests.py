"""Stored requests: complete while someone needs them, each picture once, within the limits of a
key."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.conftest import Serve, Served, eventually, wish
from tests.gateway.jobs.test_jobs import ended, running_one, submitted
from wan_engine.gateway.doors.aiml import door as aiml_door
from wan_engine.gateway.doors.oxen import door as oxen_door
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.gateway.job import Job, now_ms
from wan_engine.gateway.jobs import database, long_texts
from wan_engine.gateway.jobs.request_parts import joined, split_at_once, verified_text
from wan_engine.gateway.refusals import Refusal

DOORS = (
    runpod_door.door,
    aiml_door.door,
    oxen_door.door,
)

MB = 1 << 20
BASE = "/v2/wan-2-6-i2v"


def picture(name: str, size: int = MB // 2) -> str:
    """A data URI of `size` characters, different for each name."""
    return f"data:image/png;base64,{name}".ljust(size, "A")


def media(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "outputs" / "gateway.db.media").iterdir())


async def failed(served: Served, image: str, **fields: Any) -> Job:
    request = wish(prompt="fail:internal_error:no", image=image)
    return await ended(served, await submitted(served, request=request, **fields))


async def kept(served: Served, job: Job) -> bool:
    return await served.jobs.whole_request(job.id) is not None


# --- parts of a request --------------------------------------------------------------------------

LONG = "data:audio/wav;base64," + "B" * 9000

long_strings = st.sampled_from([LONG, "x" * 5000, "data:image/png;base64," + "é\ud800" * 3000])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | long_strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=20,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=9) | long_strings, values, max_size=12))
def test_a_request_stored_in_parts_is_restored(request: dict[str, Any]) -> None:
    parts = split_at_once(request)
    row = json.loads(json.dumps(parts.row))
    texts = {place: verified_text(one.hash, one.data()) for place, one in parts.long_texts.items()}
    assert joined(row, texts) == request
    assert len(json.dumps(parts.row)) < 10_000


@pytest.mark.parametrize(
    ("request_", "most"),
    [
        (wish(image=LONG), 1),
        (wish(audio={"base64": "C" * 9000, "kind": "wav"}, image=LONG), 2),
        (wish(image=[LONG, LONG]), 2),
        ({f"key {count}": LONG + str(count) for count in range(5000)}, 9),
        ({f"key {count}": "x" * 3000 for count in range(100)}, 1),
        ({"k" * 100_000: LONG}, 2),
        ({"a": [[{"b" * 600: LONG}]]}, 1),
    ],
)
def test_a_request_has_few_parts_and_a_small_row(request_: dict[str, Any], most: int) -> None:
    parts = split_at_once(request_)
    assert 1 <= len(parts.long_texts) <= most
    assert len(json.dumps(parts.row)) < 10_000
    assert (
        joined(parts.row, {place: one.text for place, one in parts.long_texts.items()}) == request_
    )


def test_a_request_that_is_nested_too_deep_is_refused(serve: Serve) -> None:
    async def line() -> None:
        async with serve() as served:
            deep: Any = "x"
            for _ in range(200):
                deep = [deep]
            body = {"input": wish(junk=deep)}
            answer = await served.http.post(f"{BASE}/run", json=body)
            assert answer.status_code == 400 and "64 deep" in answer.json()["error"]

    asyncio.run(line())


# --- storage of media ----------------------------------------------------------------------------


def test_failed_jobs_with_one_picture_keep_it_once_and_not_in_the_database(
    serve: Serve, tmp_path: Path
) -> None:
    async def line() -> None:
        async with serve() as served:
            jobs = [await failed(served, picture("a")) for _ in range(10)]
            assert [path.stat().st_size for path in media(tmp_path)] == [MB // 2]
            stored = sum(path.stat().st_size for path in (tmp_path / "outputs").glob("*.db*"))
            assert stored < 2 * MB
            assert all([await kept(served, job) for job in jobs])
            again = await ended(served, await served.jobs.retry(jobs[0]))
            assert served.backend.requests[again.id]["image"] == picture("a")  # type: ignore[index]

    asyncio.run(line())


def test_only_the_user_of_the_gateway_can_read_the_pictures(serve: Serve, tmp_path: Path) -> None:
    async def line() -> None:
        async with serve() as served:
            await failed(served, picture("a"))
            (path,) = media(tmp_path)
            assert path.stat().st_mode & 0o077 == path.parent.stat().st_mode & 0o077 == 0

    asyncio.run(line())


def test_a_picture_is_deleted_with_the_last_job_that_needs_it(serve: Serve, tmp_path: Path) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            jobs = [
                await submitted(served, request=wish(image=picture(name))) for name in ("a", "a")
            ]
            await served.jobs.cancel(jobs[1])
            await served.gateway.requests.remove_unused()
            assert len(media(tmp_path)) == 1
            served.backend.release()
            await ended(served, jobs[0])
            await served.gateway.requests.remove_unused()
            assert media(tmp_path) == []

    asyncio.run(line())


# --- quotas --------------------------------------------------------------------------------------


def test_a_new_picture_replaces_those_of_failed_jobs_the_oldest_first(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_engine.gateway.jobs.kept_requests._CUT_AT_ONCE", 1)

    async def line() -> None:
        async with serve(media_max_bytes=2 * MB) as served:
            others = await failed(served, picture("other"), owner="bob")
            jobs = [await failed(served, picture(str(count))) for count in range(4)]
            assert all([await kept(served, job) for job in jobs])
            served.backend.hold()
            waiting = await submitted(served, request=wish(image=picture("new")))
            assert [await kept(served, job) for job in jobs] == [False, True, True, True]
            assert await kept(served, waiting) and await kept(served, others)
            assert sum(path.stat().st_size for path in media(tmp_path)) == 5 * MB // 2
            with pytest.raises(Refusal, match="no longer stored") as raised:
                await served.jobs.retry(jobs[0])
            assert raised.value.code == "conflict"
            shown = await served.jobs.request(jobs[0].id)  # for the body of its webhook
            assert shown["image"].startswith("data:image/png;base64,0AA")

    asyncio.run(line())


def test_waiting_and_running_jobs_keep_their_pictures_and_the_next_is_refused_in_the_doors_words(
    serve: Serve,
) -> None:
    async def line() -> None:
        async with serve(media_max_bytes=MB) as served:
            served.backend.hold()
            jobs = [
                await submitted(served, request=wish(image=picture(str(count))), owner="local")
                for count in range(2)
            ]
            await eventually(lambda: running_one(served, jobs[0]))
            body = wish(image=picture("new"))
            runpod = await served.http.post(f"{BASE}/run", json={"input": body})
            assert runpod.status_code == 429 and runpod.headers["retry-after"]
            assert "pictures" in runpod.json()["error"]
            aiml = {"model": "alibaba/wan2.6-i2v", "prompt": "x", "image_url": picture("new")}
            answer = await served.http.post("/v2/video/generations", json=aiml)
            assert answer.status_code == 429 and answer.json()["statusCode"] == "429"
            oxen = {"model": "wan-v2-6-image-to-video", "prompt": "x", "input_image": picture("n")}
            answer = await served.http.post("/api/ai/queue", json=oxen)
            assert answer.status_code == 429
            assert answer.json()["error"]["type"] == "too_many_requests"
            # The same picture again takes no room, and another key has its own room.
            jobs.append(await submitted(served, request=wish(image=picture("1")), owner="local"))
            await submitted(served, request=wish(image=picture("new")), owner="bob")
            served.backend.release()
            for job in jobs:
                assert (await ended(served, job)).state == "completed"

    asyncio.run(line())


def test_nothing_is_deleted_for_a_picture_that_is_refused_anyway(serve: Serve) -> None:
    async def line() -> None:
        async with serve(media_max_bytes=2 * MB) as served:
            old = await failed(served, picture("old"))
            served.backend.hold()
            await submitted(served, request=wish(image=picture("a", MB)))
            for size in (3 * MB, 3 * MB // 2):
                with pytest.raises(Refusal):
                    await submitted(served, request=wish(image=picture("b", size)))
            assert await kept(served, old)

    asyncio.run(line())


def test_a_picture_larger_than_the_quota_of_a_key_is_too_large(serve: Serve) -> None:
    async def line() -> None:
        async with serve(media_max_bytes=MB) as served:
            body = {"input": wish(image=picture("a", 2 * MB))}
            answer = await served.http.post(f"{BASE}/run", json=body)
            assert answer.status_code == 413 and "1 MB" in answer.json()["error"]

    asyncio.run(line())


def test_a_refused_job_without_room_is_told_why_it_is_refused(serve: Serve) -> None:
    async def line() -> None:
        async with serve(media_max_bytes=MB) as served:
            served.backend.hold()
            for count in range(2):
                await submitted(served, request=wish(image=picture(str(count))))
            job = await submitted(served, request=wish(image=picture("new"), duration=7))
            assert job.error_code == "invalid_request" and not await kept(served, job)

    asyncio.run(line())


def test_concurrent_requests_do_not_exceed_the_limit(serve: Serve, tmp_path: Path) -> None:
    async def line() -> None:
        async with serve(media_max_bytes=2 * MB) as served:
            served.backend.hold()
            many = (submitted(served, request=wish(image=picture(str(n)))) for n in range(12))
            told = await asyncio.gather(*many, return_exceptions=True)
            assert sum(isinstance(one, Job) for one in told) == len(media(tmp_path)) == 4

    asyncio.run(line())


def test_the_picture_of_a_failed_job_is_deleted_after_some_time(
    serve: Serve, tmp_path: Path
) -> None:
    async def line() -> None:
        async with serve() as served:
            old = await failed(served, picture("a"))
            served.backend.hold()
            waiting = await submitted(served, request=wish(image=picture("b")))
            await served.gateway.requests.cut(old.finished_ms or 0)
            assert await kept(served, old)
            await served.gateway.requests.cut(now_ms() + 1000)
            assert (await kept(served, old), await kept(served, waiting)) == (False, True)
            assert len(media(tmp_path)) == 1

    asyncio.run(line())


# --- crashes -------------------------------------------------------------------------------------


def test_a_full_disk_is_reported_and_no_partial_file_is_left(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def line() -> None:
        async with serve() as served:
            full = OSError(28, "No space left on device")

            def fsync(_descriptor: int) -> None:
                raise full

            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", fsync)
                body = {"input": wish(image=picture("a"))}
                answer = await served.http.post(f"{BASE}/run", json=body)
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert str(tmp_path) not in answer.text and "cannot store" in answer.json()["error"]
            with monkeypatch.context() as patch:
                patch.setattr(long_texts, "_SPARE_BYTES", 1 << 60)
                answer = await served.http.post(f"{BASE}/run", json=body)
                assert answer.status_code == 503
                small = await served.http.post(f"{BASE}/run", json={"input": wish()})
                assert small.status_code == 200
            assert media(tmp_path) == []
            assert sum((await served.jobs.counts())[0].values()) == 1
            assert (await served.http.post(f"{BASE}/run", json=body)).status_code == 200

    asyncio.run(line())


def test_on_a_full_disk_the_pictures_of_failed_jobs_are_deleted_first(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def line() -> None:
        async with serve() as served:
            old = [await failed(served, picture(str(n)), owner=str(n)) for n in range(4)]
            folder = media(tmp_path)[0].parent

            def disk_usage(_path: Path) -> Any:
                kept = sum(path.stat().st_size for path in folder.iterdir())
                return SimpleNamespace(free=long_texts._SPARE_BYTES + 2 * MB - kept)

            monkeypatch.setattr("shutil.disk_usage", disk_usage)
            served.backend.hold()
            jobs = [await submitted(served, request=wish(image=picture(f"n{n}"))) for n in range(4)]
            with pytest.raises(Refusal, match="cannot store"):
                await submitted(served, request=wish(image=picture("new")))
            assert not any([await kept(served, job) for job in old])
            assert all([await kept(served, job) for job in jobs])

    asyncio.run(line())


def test_bytes_of_a_job_that_could_not_be_stored_are_removed(serve: Serve, tmp_path: Path) -> None:
    async def line() -> None:
        async with serve() as served:
            engine = served.gateway.store._engine

            def refuse(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
                if statement.startswith("INSERT INTO jobs"):
                    raise sa.exc.OperationalError(statement, {}, Exception("the disk is full"))

            sa.event.listen(engine.sync_engine, "before_cursor_execute", refuse)
            with pytest.raises(Refusal):
                await submitted(served, request=wish(image=picture("a")))
            sa.event.remove(engine.sync_engine, "before_cursor_execute", refuse)
            assert len(media(tmp_path)) == 1
            await served.gateway.requests.remove_unused()
            assert media(tmp_path) == []

    asyncio.run(line())


def test_the_next_gateway_keeps_the_needed_pictures_and_removes_the_others(
    serve: Serve, tmp_path: Path
) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            first = await submitted(served, request=wish(image=picture("a")))
            await eventually(lambda: running_one(served, first))
            jobs = [first, await submitted(served, request=wish(image=picture("b")))]
            folder = media(tmp_path)[0].parent
        (folder / ("0" * 64)).write_text("it was stored, and its job was not")
        (folder / ".half.part").write_text("hal")
        os.utime(folder / ".half.part", (0, 0))
        async with serve() as served:
            for job in jobs:
                assert (await ended(served, job)).state == "completed"
            await eventually(lambda: not (folder / ("0" * 64)).exists())
            assert not (folder / ".half.part").exists()
            asked = served.backend.requests
            assert [asked[job.id] for job in jobs] == [
                wish(image=picture("a")),
                wish(image=picture("b")),
            ]

    asyncio.run(line())


@pytest.mark.parametrize("how", ["gone", "cut", "another"])
def test_a_job_whose_picture_is_damaged_fails(serve: Serve, tmp_path: Path, how: str) -> None:
    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            first = await submitted(served)
            await eventually(lambda: running_one(served, first))
            job = await submitted(served, request=wish(image=picture("a")))
            (path,) = media(tmp_path)
            if how == "gone":
                path.unlink()
            else:
                path.write_text(picture("a")[:-1] if how == "cut" else picture("b"))
            served.backend.release()
            job = await ended(served, job)
            assert (job.state, job.error) == ("failed", "The job's request is no longer stored")
            job = await ended(served, await submitted(served, request=wish(image=picture("a"))))
            assert job.state == "completed"  # it was stored again

    asyncio.run(line())


def test_concurrent_jobs_never_remove_a_file_that_is_needed(serve: Serve) -> None:
    chance = random.Random(3)

    async def line() -> None:
        async with serve(media_max_bytes=20 * MB) as served:
            served.backend.hold()
            await submitted(served, "hang")

            async def client(number: int) -> list[tuple[Job, str]]:
                own = []
                for _ in range(8):
                    image = picture(str(chance.randrange(4)), 20_000)
                    job = await submitted(served, request=wish(image=image), owner=str(number % 2))
                    if chance.random() < 0.7:
                        await served.jobs.cancel(job)
                        await served.gateway.requests.remove_unused()
                    else:
                        own.append((job, image))
                return own

            for own in await asyncio.gather(*map(client, range(8))):
                for job, image in own:
                    assert await served.jobs.whole_request(job.id) == wish(image=image)
            assert not served.gateway.requests._needed and not served.gateway.requests._coming

    asyncio.run(line())


def test_requests_stored_by_an_older_gateway_are_complete(serve: Serve, tmp_path: Path) -> None:
    async def line() -> Job:
        async with serve() as served:
            return await failed(served, "https://example.com/a.png")

    job = asyncio.run(line())
    request = wish(prompt="fail:internal_error:no", image=picture("a"))
    with closing(sqlite3.connect(tmp_path / "outputs" / "gateway.db")) as connection, connection:
        for table in ("request_parts", "contents", "content_pieces"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("ALTER TABLE requests DROP COLUMN parts")
        connection.execute("ALTER TABLE jobs DROP COLUMN task")
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
        connection.execute("UPDATE requests SET request = ?", [json.dumps(request)])

    async def next_line() -> None:
        async with serve() as served:
            assert await served.jobs.whole_request(job.id) == request
            again = await ended(served, await served.jobs.retry(job))
            assert served.backend.requests[again.id] == request

    asyncio.run(next_line())


def test_a_large_request_does_not_delay_the_others(serve: Serve) -> None:
    """It is hashed and written outside the event loop."""

    async def line() -> None:
        async with serve() as served:
            served.backend.hold()
            longest, end = 0.0, False

            async def look() -> None:
                nonlocal longest
                while not end:
                    begun = time.thread_time()
                    await asyncio.sleep(0)
                    longest = max(longest, time.thread_time() - begun)

            looker = asyncio.create_task(look())
            image = picture("a", 19 * MB)
            job = await submitted(served, request=wish(image=image))
            assert await served.jobs.whole_request(job.id) == wish(image=image)
            end = True
            await looker
            assert longest < 0.03  # 0.054 s before, 0.003 here

    asyncio.run(line())


# --- Postgres ------------------------------------------------------------------------------------


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from tests.gateway.postgres import running

    with running(tmp_path_factory.mktemp("postgres")) as url:
        yield url


def opened(served: Served) -> database.Database:
    return database.Database(served.gateway.store._engine, served.gateway.ownership)


@pytest.mark.system
def test_with_postgres_the_pictures_are_there_for_a_gateway_on_another_machine(
    serve: Serve, postgres: str, tmp_path: Path
) -> None:
    options = {"database_url": postgres, "media_max_bytes": 3 * MB}
    image = picture("a", 2 * MB + 17)

    async def pieces(served: Served) -> int:
        async with served.gateway.store._engine.connect() as connection:
            count = sa.select(sa.func.count()).select_from(database.long_text_pieces)
            return int((await connection.execute(count)).scalar() or 0)

    async def line() -> None:
        async with serve(**options, output_dir=tmp_path / "here") as served:
            first = await failed(served, picture("old"))
            served.backend.hold()
            jobs = [await submitted(served, request=wish(image=image)) for _ in range(2)]
            assert await pieces(served) == 1 + 3
            await submitted(served, request=wish(image=picture("b")))
            assert not await kept(served, first)
            with pytest.raises(Refusal, match="pictures"):
                await submitted(served, request=wish(image=picture("c", MB)))
        async with serve(**options, output_dir=tmp_path / "there") as served:
            for job in jobs:
                assert (await ended(served, job)).state == "completed"
                assert served.backend.requests[job.id] == wish(image=image)
            await served.gateway.requests.remove_unused()
            served.backend.hold()
            assert await pieces(served) <= 1
            table = long_texts.LongTextTable(opened(served))
            await table.put("0" * 64, b"x")  # its gateway died before its job was stored
            await served.gateway.requests.remove_strays()
            assert "0" * 64 not in await table.names()
        assert not list(tmp_path.glob("*/*.media"))

    asyncio.run(line())
