"""What the browser keeps: the jobs of its history, and a key for one tab."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Route, expect

from benchmarks.services.instant import CLIP
from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import NO_CLIP, Open, fill, finished, generate, pick
from wan_engine.gateway.keys import new_entry

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]


# --- the history ---------------------------------------------------------------------------------


def test_the_history_survives_a_reload_and_entries_are_removed(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page, "The first")
    page.get_by_label("Seed").fill("9")
    pick(page, "Length", "10 s")
    generate(page)
    finished(page)
    fill(page, "fail:invalid_media:Not like this")
    generate(page)
    expect(page.locator("#failure")).to_have_text("Not like this")
    page.reload()
    items = page.locator("#history li")
    expect(items).to_have_count(2)
    expect(page.locator("#failure")).to_have_text("Not like this")
    expect(items.nth(1)).to_contain_text("The first")
    expect(items.nth(1)).to_contain_text("10 s · 1280 × 720 · seed 7")
    items.nth(1).get_by_role("button", name="Show").click()
    link = page.get_by_role("link", name="Download").get_attribute("href")
    assert link and page.request.get(link).body() == CLIP
    items.nth(1).get_by_role("button", name="Use again").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("The first")
    expect(page.get_by_label("Seed")).to_have_value("9")
    assert page.get_by_role("group", name="Length").get_by_label("10 s").is_checked()
    expect(page.locator("#image-note")).to_contain_text("rocket_640x360.jpg, 640 × 360")
    items.nth(0).get_by_role("button", name="Remove").click()
    expect(items).to_have_count(1)
    page.reload()
    expect(items).to_have_count(1)
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator("#history-empty")).to_be_visible()
    page.reload()
    expect(page.locator("#history-empty")).to_be_visible()


def test_a_running_job_is_followed_again_after_a_reload(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.hold()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    generate(page)
    expect(page.locator("#stage")).to_have_text("Rendering, 1 of 4")
    page.reload()
    expect(page.locator("#stage")).to_have_text("Rendering, 1 of 4")
    here.backend.release()
    finished(page)
    expect(page.locator("#history .state")).to_have_text("finished")


def test_another_tab_sees_the_same_history(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    other = page.context.new_page()
    other.goto(here.url)
    fill(page, "Seen by both")
    generate(page)
    expect(other.locator("#history li")).to_contain_text("Seen by both")


def test_a_job_that_the_server_deleted_is_shown_as_gone(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url, allowed=("404",))
    page.evaluate(
        """() => localStorage.setItem("wan-playground-history", JSON.stringify([
            { id: "gone-u1", endpoint: "wan-2-6-i2v", at: Date.now(), state: "IN_PROGRESS",
              options: { prompt: "Long ago", duration: 5, size: "1280*720" } },
            { id: 5 }, null, { id: "of another release" },
        ]))"""
    )
    page.reload()
    expect(page.locator("#history li")).to_have_count(1)
    expect(page.locator("#history .state")).to_have_text("no longer kept")
    expect(page.locator("#failed-title")).to_have_text("Not found")


def test_a_finished_job_is_asked_for_once_while_the_server_is_away(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    page = open_page(here.url, allowed=(*NO_CLIP, "ERR_CONNECTION_REFUSED"))
    fill(page)
    generate(page)
    finished(page)
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.abort("connectionrefused")

    page.route(re.compile(r"/api/jobs/[^/]+$"), refuse)
    page.reload()
    expect(page.locator("#warnings")).to_have_text("The server does not answer")
    expect(page.get_by_role("link", name="Download")).to_be_hidden()
    page.wait_for_timeout(1000)
    assert len(asked) == 1
    page.unroute(re.compile(r"/api/jobs/[^/]+$"))
    page.get_by_role("button", name="Show: Leaves sway").click()
    finished(page)


# --- the key -------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_used_and_never_stored(listen: Listen, open_page: Open) -> None:
    key, entry = new_entry("ann")
    here = listen(api_keys=entry)
    page = open_page(here.url, allowed=(*NO_CLIP, "401"))
    field = page.get_by_role("textbox", name="API key")
    field.fill("wrong")
    field.press("Enter")
    expect(page.locator("#key-note")).to_have_text("This key is not valid.")
    fill(page, "With a key")
    generate(page)
    expect(page.locator("#form-error")).to_have_text("The API key is not valid")
    expect(field).to_be_focused()
    field.fill(key)
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("#key-note")).to_contain_text("The key is used")
    generate(page)
    finished(page)
    assert key in page.evaluate("Object.values(sessionStorage)")
    assert key not in page.evaluate("JSON.stringify(Object.values(localStorage))")
    assert key not in page.content() and key not in page.locator("#code").inner_text()
    page.reload()
    finished(page)
    page.get_by_role("button", name="Forget").click()
    assert key not in page.evaluate("JSON.stringify(Object.values(sessionStorage))")
    expect(page.locator("#key-card")).to_be_visible()


def test_a_key_with_other_letters_is_not_valid(listen: Listen, open_page: Open) -> None:
    key, entry = new_entry("ann")
    page = open_page(listen(api_keys=entry).url, allowed=("401",))
    field = page.get_by_role("textbox", name="API key")
    field.fill(f"“{key}”")
    field.press("Enter")
    expect(page.locator("#key-note")).to_have_text("This key is not valid.")
    page.reload()
    expect(page.locator("#key-note")).to_have_text("This key is not valid.")
    field.fill(key)
    field.press("Enter")
    expect(page.locator("#key-note")).to_contain_text("The key is used")


def test_a_running_job_without_its_key_says_so(listen: Listen, open_page: Open) -> None:
    key, entry = new_entry("ann")
    here = listen(api_keys=entry)
    page = open_page(here.url, allowed=("401",))
    page.get_by_role("textbox", name="API key").fill(key)
    page.get_by_role("button", name="Use key").click()
    fill(page, "hang")
    generate(page)
    expect(page.locator("#stage")).to_have_text("Rendering, 1 of 4")
    page.get_by_role("button", name="Forget").click()
    expect(page.locator("#away")).to_have_text("The server asks for the key of this job")
    page.get_by_role("textbox", name="API key").fill(key)
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("#away")).to_be_empty()


# --- storage, and other tabs ---------------------------------------------------------------------

OFF = """
    for (const name of ["localStorage", "sessionStorage", "indexedDB"]) {
        Object.defineProperty(window, name, { get() {
            throw new DOMException("off", "SecurityError");
        } });
    }
"""
FULL = """
    Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); };
"""


@pytest.mark.parametrize("storage", [OFF, FULL], ids=["off", "full"])
def test_a_clip_is_made_without_storage(listen: Listen, open_page: Open, storage: str) -> None:
    key, entry = new_entry("ann")
    page = open_page(listen(api_keys=entry).url, allowed=NO_CLIP, before=storage)
    page.get_by_role("textbox", name="API key").fill(key)
    page.get_by_role("button", name="Use key").click()
    fill(page)
    generate(page)
    finished(page)
    expect(page.locator("#history li")).to_have_count(1)


def test_a_form_that_cannot_be_read_is_forgotten(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url)
    for text in ("{", "5", '{"options": {}}'):
        page.evaluate("text => sessionStorage.setItem('wan-playground-form', text)", text)
        page.reload()
        expect(page.locator("body[data-restored]")).to_be_visible()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("")
        expect(page.locator("#image")).to_be_visible()


def test_a_job_is_followed_here_though_the_tab_that_sent_it_is_closed(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    here.backend.hold()
    page = open_page(here.url, allowed=NO_CLIP)
    other = page.context.new_page()
    other.goto(here.url)
    expect(other.locator("#ready")).to_have_text("Ready")
    fill(page, "Left alone")
    generate(page)
    expect(page.locator("#stage")).to_have_text("Rendering, 1 of 4")
    page.close()
    other.get_by_role("button", name="Show: Left alone").click()
    expect(other.locator("#stage")).to_have_text("Rendering, 1 of 4")
    here.backend.release()
    finished(other)


def test_a_job_that_is_not_cancelled_stays(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=("500",))
    fill(page, "hang")
    generate(page)
    expect(page.locator("#stage")).to_have_text("Rendering, 1 of 4")
    refusal = {"status": 500, "json": {"error": "Not now"}}
    page.route("**/cancel/*", lambda route: route.fulfill(**refusal))
    for place in ("#running", "#history"):
        page.locator(place).get_by_role("button", name="Cancel").click()
        expect(page.locator("#away")).to_have_text("It was not cancelled: Not now")
        page.wait_for_timeout(1000)  # the next answer about the job does not hide it
        expect(page.locator("#away")).to_have_text("It was not cancelled: Not now")
    page.unroute("**/cancel/*")
    page.locator("#history").get_by_role("button", name="Cancel").click()
    expect(page.locator("#failed-title")).to_have_text("Cancelled")
