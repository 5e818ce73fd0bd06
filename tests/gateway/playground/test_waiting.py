"""What the page shows while a job waits and runs, and whether the server answers."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import NO_CLIP, PHOTO, Open, fill, finished, generate

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]
ONE_JOB = re.compile(r"/playground/api/jobs/[^/]+$")


def told(**changes: Any) -> Callable[[Route], None]:
    """A route handler that changes fields of the gateway's answer."""

    def answer(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=json.dumps(response.json() | changes))

    return answer


def test_a_job_s_place_in_the_queue_and_its_expected_seconds_are_shown(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    generate(page)
    finished(page)
    here.backend.hold()
    for _ in range(3):
        generate(page)
        expect(page.locator("#send")).to_have_text("Generate")
    expect(page.locator("#wait")).to_have_text("1 job is before it")
    page.locator("#history li").nth(1).get_by_role("button", name="Cancel").click()
    expect(page.locator("#wait")).to_have_text("Next in the queue")
    page.route(ONE_JOB, told(before=4, seconds_left=181))
    expect(page.locator("#wait")).to_have_text("4 jobs are before it, about 3 min left")
    page.unroute(ONE_JOB)
    here.backend.release()
    finished(page)


def test_the_reason_why_a_job_waits_is_shown(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url)
    here.backend.hold()
    fill(page)
    generate(page)
    page.route(ONE_JOB, told(status="IN_QUEUE", before=0, waiting_for="the engine is starting"))
    expect(page.locator("#wait")).to_have_text("Next in the queue, the engine is starting")
    here.backend.release()


def test_the_form_shows_how_long_such_a_clip_took(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    expect(page.locator("#price-note")).to_have_text("5 s at 1280 × 720")
    generate(page)
    finished(page)
    expect(page.locator("#price-note")).to_have_text(
        "5 s at 1280 × 720, the last one took under 10 s"
    )
    page.locator("input[value='15']").check()
    expect(page.locator("#price-note")).to_have_text("15 s at 1280 × 720")


def test_every_tab_shows_the_same_time(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.hold()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    generate(page)
    expect(page.locator("#stage")).to_have_text("Rendering, 1 of 4")
    minutes = 61_000 + 600_000
    page.route(ONE_JOB, lambda route: late(route, minutes))
    expect(page.locator("#elapsed")).to_have_text(re.compile(r"11:\d\d"))
    other = page.context.new_page()
    other.clock.set_system_time("2020-01-01T00:00:00")  # the tab's clock is wrong
    other.route(ONE_JOB, lambda route: late(route, minutes))
    other.goto(page.url)
    expect(other.locator("#elapsed")).to_have_text(re.compile(r"11:\d\d"))


def late(route: Route, milliseconds: int) -> None:
    """A job that began earlier."""
    response = route.fetch()
    body = response.json()
    if body["started"] is not None:
        body["started"] -= milliseconds
    route.fulfill(response=response, body=json.dumps(body))


def test_a_live_preview_is_shown_during_the_render(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.hold()
    page = open_page(here.url, allowed=NO_CLIP)
    dot = f"data:image/jpeg;base64,{base64.b64encode(PHOTO.read_bytes()).decode()}"
    fill(page)
    generate(page)
    expect(page.locator("#stage")).to_have_text("Rendering, 1 of 4")
    expect(page.locator("#live-preview")).to_be_hidden()
    page.route(ONE_JOB, told(preview="https://example.com/spy.png", preview_step=1))
    page.wait_for_timeout(1000)
    expect(page.locator("#live-preview")).to_be_hidden()
    page.unroute(ONE_JOB)
    page.route(ONE_JOB, told(preview=dot, preview_step=3))
    expect(page.get_by_role("img", name="Preview of step 3 of 4")).to_be_visible()
    assert (
        page.locator("#live-preview").evaluate("image => image.decode().then(() => image.src)")
        == dot
    )
    page.unroute(ONE_JOB)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(1000)  # polls without a newer preview keep the last one
    assert any(url.endswith("?preview=3") for url in asked)
    expect(page.locator("#live-preview")).to_be_visible()
    here.backend.release()
    finished(page)
    expect(page.locator("#live-preview")).to_be_hidden()


def test_the_badge_follows_the_state_of_the_server(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=("ERR_CONNECTION", "503", "ERR_EMPTY_RESPONSE"))
    expect(page.locator("#ready")).to_have_text("Ready")
    here.backend.why = "the engine is starting again"
    expect(page.locator("#ready")).to_have_text("Not ready: the engine is starting again")
    here.backend.why = None
    expect(page.locator("#ready")).to_have_text("Ready")
    here.stop()
    expect(page.locator("#ready")).to_have_text("The server does not answer", timeout=10_000)
    expect(page.locator("#ready")).to_have_attribute("data-state", "away")


def test_the_badge_shows_an_outage_as_soon_as_any_request_gets_no_answer(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    page = open_page(here.url, allowed=("ERR_CONNECTION",))
    page.clock.install()  # stops the clock, so the page no longer polls by itself
    fill(page)
    here.stop()
    generate(page)
    expect(page.locator("#form-error")).to_have_text("The server does not answer")
    expect(page.locator("#ready")).to_have_text("The server does not answer")


def test_that_nobody_answered_is_no_longer_told_once_somebody_does(
    listen: Listen, open_page: Open
) -> None:
    page = open_page(listen().url, allowed=("ERR_FAILED",))
    fill(page)
    page.route("**/*", lambda route: route.abort())
    generate(page)
    expect(page.locator("#form-error")).to_have_text("The server does not answer")
    page.unroute("**/*")
    expect(page.locator("#ready")).to_have_text("Ready")
    expect(page.locator("#form-error")).to_be_empty()
