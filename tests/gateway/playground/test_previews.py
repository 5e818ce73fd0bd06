"""Previews in the gateway: made while their owner looks, and shown to no other key."""

from __future__ import annotations

from tests.gateway.conftest import Serve, Served, eventually
from tests.gateway.playground.test_answers import API, RUN, sent, told
from wan_engine.control import Preview
from wan_engine.gateway.jobs.latest_previews import Previews
from wan_engine.gateway.keys import new_entry

WEBP = "data:image/webp;base64,AAAA"


def test_a_preview_is_shown_once_to_its_owner_while_the_owner_looks(serve: Serve) -> None:
    ann, ann_entry = new_entry("ann")
    bob, bob_entry = new_entry("bob")

    async def line(served: Served) -> None:
        async def asked(query: str, key: str = ann) -> dict[str, object]:
            headers = {"Authorization": f"Bearer {key}"}
            return dict((await served.http.get(f"{API}/{query}", headers=headers)).json())

        jobs = served.jobs
        served.backend.hold()
        job_id = await sent(served, key=ann)
        await eventually(lambda: served.backend.requests)
        await asked(f"jobs/{job_id}")
        await asked(f"jobs/{job_id}?preview=-1", bob)
        assert not jobs.wants_preview(job_id)
        jobs.put_preview(job_id, Preview(WEBP, 1))  # nobody looks, so it is not kept
        assert "preview" not in await asked(f"jobs/{job_id}?preview=-1")
        assert jobs.wants_preview(job_id)
        jobs.put_preview(job_id, Preview(WEBP, 1))
        jobs.put_preview(job_id, Preview(WEBP, 2))
        body = await asked(f"jobs/{job_id}?preview=-1")
        assert (body["preview"], body["preview_step"]) == (WEBP, 2)
        assert "preview" not in await asked(f"jobs/{job_id}?preview=2")
        assert "preview" not in await asked(f"jobs/{job_id}")
        assert set(await asked(f"jobs/{job_id}?preview=-1", bob)) == {"error"}
        status = await served.http.get(
            RUN.replace("run", f"status/{job_id}"), headers={"Authorization": f"Bearer {ann}"}
        )
        assert status.json()["output"] == {"stage": "denoise", "step": 1, "steps": 4}
        served.backend.release()
        await eventually(lambda: served.backend.rendered)
        await eventually(lambda: not jobs.wants_preview(job_id))
        jobs.put_preview(job_id, Preview(WEBP, 3))
        ended = await asked(f"jobs/{job_id}?preview=-1")
        assert ended["status"] == "COMPLETED" and "preview" not in ended
        assert not jobs.wants_preview(job_id)

    told(serve, line, api_keys=f"{ann_entry},{bob_entry}")


def test_each_job_keeps_one_preview_and_none_that_is_too_large() -> None:
    previews = Previews()
    assert previews.look("a", -1) is None
    for step in range(100):
        previews.put("a", Preview(WEBP, step))
        previews.put("b", Preview(WEBP, step))
    previews.put("a", Preview("data:" + "A" * 70_000, 100))
    assert previews.look("a", -1) == Preview(WEBP, 99)
    assert previews.look("b", -1) is None
    previews.forget("a")
    assert previews._newest == {} and not previews.wanted("a")


def test_a_look_counts_for_some_seconds() -> None:
    previews = Previews()
    previews.look("a", -1)
    assert previews.wanted("a")
    previews._until["a"] -= 11
    assert not previews.wanted("a")
