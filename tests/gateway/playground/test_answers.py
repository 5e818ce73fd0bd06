"""The page's own API over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from PIL import Image

from tests.gateway.conftest import Serve, Served, eventually, wish
from wan_engine.catalog import known_models
from wan_engine.control import Progress
from wan_engine.gateway.excerpt import beginning
from wan_engine.gateway.jobs.fair_queue import FairQueue
from wan_engine.gateway.jobs.run_times import RunTimes
from wan_engine.gateway.keys import Share, new_entry
from wan_engine.gateway.playground.made_from import file_of, made_from
from wan_engine.gateway.playground.sizes import sizes_of
from wan_engine.plan import PlanLimits, make_plan
from wan_engine.schema import Media, Order, Script, ScriptShot

RUN = "/v2/wan-2-6-i2v/run"
API = "/playground/api"


def told(serve: Serve, line: Callable[[Served], Awaitable[None]], **settings: Any) -> None:
    async def whole() -> None:
        async with serve(**settings) as served:
            await line(served)

    asyncio.run(whole())


async def sent(served: Served, prompt: str = "Leaves sway", key: str = "", **fields: Any) -> str:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"input": wish(prompt=prompt, **fields)}
    answer = await served.http.post(RUN, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def shown(served: Served, job_id: str, key: str = "") -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = await served.http.get(f"{API}/jobs/{job_id}", headers=headers)
    return {**answer.json(), "code": answer.status_code}


def test_a_waiting_job_has_its_place_and_its_expected_seconds(serve: Serve) -> None:
    async def line(served: Served) -> None:
        first = await sent(served)
        await eventually(lambda: served.backend.rendered)
        await eventually(lambda: served.jobs.run_times.known())
        (kind,) = served.jobs.run_times.known()
        assert kind == "image-to-video, 1280*720, 5 s, one shot, no sound"
        served.jobs.run_times.learn(kind, {"denoise": 10.0, "queue": 99.0}, 200)
        assert (await shown(served, first))["status"] == "COMPLETED"
        served.backend.hold()
        ids = [await sent(served) for _ in range(3)]
        await eventually(lambda: served.backend.requests.get(ids[0]))
        running, second, third = [await shown(served, job_id) for job_id in ids]
        assert running["status"] == "IN_PROGRESS" and running["before"] is None
        assert running["progress"] == {"stage": "denoise", "step": 1, "steps": 4}
        assert running["seconds_left"] == pytest.approx(7.5)
        assert running["now"] >= running["started"] >= running["created"]
        assert (second["before"], third["before"]) == (0, 1)
        assert second["seconds_left"] == pytest.approx(17.5)
        assert third["seconds_left"] == pytest.approx(27.5)
        served.backend.release()

    told(serve, line)


def test_nothing_is_estimated_before_a_first_job_has_ended(serve: Serve) -> None:
    async def line(served: Served) -> None:
        served.backend.hold()
        job_id = await sent(served)
        await eventually(lambda: served.backend.requests)
        assert (await shown(served, job_id))["seconds_left"] is None
        served.backend.release()

    told(serve, line)


def test_a_key_does_not_see_jobs_of_others(serve: Serve) -> None:
    ann, ann_entry = new_entry("ann")
    bob, bob_entry = new_entry("bob")

    async def line(served: Served) -> None:
        job_id = await sent(served, key=ann)
        await eventually(lambda: served.backend.rendered)
        assert (await shown(served, job_id, ann))["code"] == 200
        one = f"{API}/jobs/{job_id}"
        for path in (one, f"{one}/still", f"{one}/request", f"{one}/request/image"):
            other = await served.http.get(path, headers={"Authorization": f"Bearer {bob}"})
            assert other.status_code == 404
            assert other.json() == {"error": "There is no job of yours with this id"}
            assert (await served.http.get(path)).status_code == 401
        for path in ("server", "sizes?width=640&height=360&task=image-to-video"):
            assert (await served.http.get(f"{API}/{path}")).status_code == 401

    told(serve, line, api_keys=f"{ann_entry},{bob_entry}")


def test_a_job_tells_what_it_was_made_from_and_its_file_until_it_has_a_clip(serve: Serve) -> None:
    picture = "data:image/png;base64," + "A" * 100_000

    async def line(served: Served) -> None:
        served.backend.hold()
        loras = [{"name": "anna", "scale": 0.8}, "motion"]
        rest = {"negative_prompt": "blur", "duration": 10, "loras": loras, "webhookV2": "secret"}
        job_id = await sent(served, image=picture, audio="https://example.com/a.mp3", **rest)
        one = f"{API}/jobs/{job_id}/request"
        seen = (await served.http.get(one)).json()
        assert seen["options"] == {
            "prompt": "Leaves sway",
            "negative_prompt": "blur",
            "duration": 10,
            "loras": [{"name": "anna", "scale": 0.8}, {"name": "motion"}],
        }
        sound = {"url": "https://example.com/a.mp3"}
        assert seen["media"] == {"image": {"type": "image/png", "kept": True}, "audio": sound}
        file = await served.http.get(f"{one}/image")
        assert file.text == picture and file.headers["content-type"].startswith("text/plain")
        for other in ("audio", "prompt", "references", "references?at=3"):
            assert (await served.http.get(f"{one}/{other}")).status_code == 404
        served.backend.release()
        await eventually(lambda: served.backend.rendered)
        while (await served.http.get(f"{one}/image")).status_code == 200:
            await asyncio.sleep(0.01)
        assert (await served.http.get(one)).json() == {
            "options": seen["options"],
            "media": {"image": {"type": "image/png", "kept": False}, "audio": sound},
        }

    told(serve, line)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"prompt": 7, "image": None, "references": "x", "loras": {"a": 1}, "seed": True},
        {"prompt": ["a"], "loras": [1, {}, {"name": ""}, None], "references": [None, 3, ""]},
    ],
)
def test_what_is_wrong_in_a_request_is_not_told(request_: dict[str, Any]) -> None:
    found = made_from(request_, all_kept=True)
    assert found["options"] == {"prompt": ""}
    assert set(found["media"]) <= {"references"} and found["media"].get("references", []) == []


def test_references_are_told_in_their_order() -> None:
    short, cut = "data:image/webp;base64,AA", beginning("data:video/mp4," + "x" * 100)
    request = {"prompt": "a", "references": [short, "https://a/b.png", cut]}
    assert made_from(request, all_kept=False)["media"]["references"] == [
        {"type": "image/webp", "kept": True},
        {"url": "https://a/b.png"},
        {"type": "video/mp4", "kept": False},
    ]
    files = [file_of(request, "references", at) for at in range(4)]
    assert files == [short, None, None, None]


def test_the_server_says_what_its_models_accept_and_the_prices_that_were_set(serve: Serve) -> None:
    async def line(served: Served) -> None:
        served.backend.models = {
            "image-to-video": "wan-tiny",
            "reference-to-video": "a checkpoint of mine",
        }
        body = (await served.http.get(f"{API}/server")).json()
        assert body["takes"] == {"image-to-video": list(known_models()["wan-tiny"].takes)}
        assert body["models"] == served.backend.models
        assert body["prices"]["image-to-video"] == {"1280*720": 0.02, "1920*1080": 0.15}

    told(serve, line, prices={"1280*720": "0.02"})


def test_the_loras_are_told_by_task_or_that_nobody_knows_them(serve: Serve) -> None:
    async def line(served: Served) -> None:
        known: list[Any] = [{}, {"image-to-video": ["people/anna"]}, None]
        for loras in known:
            served.backend.loras = loras
            assert (await served.http.get(f"{API}/server")).json()["loras"] == loras

    told(serve, line)


def test_without_a_price_of_the_operator_none_is_shown(serve: Serve) -> None:
    async def line(served: Served) -> None:
        assert (await served.http.get(f"{API}/server")).json()["prices"] is None

    told(serve, line)


@pytest.mark.parametrize("model", ["wan-tiny", "wan2.2-i2v-a14b", "wan2.2-ti2v-5b"])
@pytest.mark.parametrize("picture", [(640, 360), (1000, 1000), (333, 999), (3000, 1000)])
def test_the_size_shown_is_that_of_the_plan(model: str, picture: tuple[int, int]) -> None:
    row = known_models()[model]
    for size in ("1280*720", "1920*1080"):
        order = Order(prompt="a", image="a", size=size, duration=5, seed=1)  # type: ignore[arg-type]
        script = Script((ScriptShot("a", 5),))
        media = Media(image=Image.new("RGB", picture))
        plan = make_plan(order, script, media, row, PlanLimits())
        found = sizes_of(*picture, size, row, "image")
        assert (found["width"], found["height"]) == (plan.width, plan.height)
        assert found["rendered"] == [plan.render_width, plan.render_height]
        wide, high = found["shown"]
        # The clip's shape, which touches at least two sides of the render.
        shape = wide * picture[0] / (high * picture[1])
        assert shape == pytest.approx(plan.width / plan.height, rel=0.03)
        assert 0.8 < min(wide, high) <= max(wide, high) <= 1


def test_impossible_sizes_are_refused(serve: Serve) -> None:
    async def line(served: Served) -> None:
        for query in ("width=0&height=5&task=image-to-video", "width=5&height=5&task=other", ""):
            assert (await served.http.get(f"{API}/sizes?{query}")).status_code == 400

    told(serve, line)


def test_the_places_shown_are_the_order_in_which_jobs_run() -> None:
    queue = FairQueue(100, {"ann": Share(weight=2), "bob": Share(), "eve": Share()})
    for number in range(5):
        for owner in ("ann", "bob", "eve"):
            queue.put(f"{owner}{number}", owner)
    for _ in range(4):
        queue.take()
    queue.put_back("lost", "bob")
    ids = ["lost", *(f"{owner}{n}" for owner in ("ann", "bob", "eve") for n in range(5))]
    expected = {job_id: queue.before(job_id, 100) for job_id in ids}
    assert queue.before("ann4", 2) == (expected["ann4"] or [])[:2]
    taken: list[str] = []
    while len(queue):
        job_id = queue.take()
        assert expected[job_id] == taken
        taken.append(job_id)
    assert queue.before("ann0", 100) is None


def test_the_remaining_time_shrinks_with_each_stage() -> None:
    times = RunTimes()
    assert times.expected_seconds("a") is None and times.left("a", None, 3) is None
    times.learn("a", {"prepare": 1, "denoise": 10, "decode": 4, "encode": 1, "load": 60}, 80)
    assert times.expected_seconds("a") == 16 and times.expected_seconds("unheard of") == 16
    seen = [
        times.left("a", progress, 5)
        for progress in (
            Progress("queue", 0, 1),
            Progress("denoise", 0, 4),
            Progress("denoise", 2, 4),
            Progress("decode", 2, 4),
            Progress("encode", 0, 1),
        )
    ]
    assert seen == [15, 15, 10, 8, 1]
    assert times.left("a", Progress("unheard of", 0, 1), 20) == 0
