"""A job has its own address, for everyone who has its key."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import NO_CLIP, Open, fill, finished, generate
from wan_engine.gateway.keys import new_entry

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]


def give_key(page: Page, key: str) -> None:
    field = page.get_by_role("textbox", name="API key")
    field.fill(key)
    field.press("Enter")


def test_a_job_s_address_survives_a_reload_and_is_shown_in_another_browser(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page, "Shared")
    generate(page)
    finished(page)
    address = page.url
    assert "?job=" in address
    fill(page, "Another", picture=None)
    generate(page)
    expect(page.locator("#shown")).to_have_text("“Another”")
    page.goto(address)
    finished(page)
    expect(page.locator("#shown")).to_have_text("“Shared”")
    page.get_by_role("button", name="Show: Another").click()
    expect(page.locator("#shown")).to_have_text("“Another”")
    page.go_back()
    expect(page.locator("#shown")).to_have_text("“Shared”")
    elsewhere = open_page(address, allowed=NO_CLIP)  # a browser without a history
    finished(elsewhere)
    link = elsewhere.get_by_role("link", name="Download").get_attribute("href")
    assert link == page.get_by_role("link", name="Download").get_attribute("href")
    expect(elsewhere.locator("#shared-note")).to_be_visible()
    expect(elsewhere.locator("#shared-prompt")).to_have_text("Shared")
    expect(page.locator("#shared")).to_be_hidden()
    expect(elsewhere.locator("#history li")).to_have_count(0)
    phone = open_page(address, allowed=NO_CLIP, viewport={"width": 360, "height": 740})
    finished(phone)
    expect(phone.locator("#result-title")).to_be_in_viewport()


def test_a_running_job_can_be_followed_by_its_address(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.hold()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    generate(page)
    expect(page.locator("#stage")).to_have_text("Rendering, 1 of 4")
    elsewhere = open_page(page.url, allowed=NO_CLIP)
    expect(elsewhere.locator("#stage")).to_have_text("Rendering, 1 of 4")
    here.backend.release()
    finished(elsewhere)


def test_the_job_of_another_key_is_not_found(listen: Listen, open_page: Open) -> None:
    ann, ann_entry = new_entry("ann")
    bob, bob_entry = new_entry("bob")
    here = listen(api_keys=f"{ann_entry},{bob_entry}")
    page = open_page(here.url, allowed=NO_CLIP)
    give_key(page, ann)
    expect(page.locator("#key-note")).to_contain_text("The key is used")
    fill(page)
    generate(page)
    finished(page)
    other = open_page(page.url, allowed=("404", *NO_CLIP))
    expect(other.locator("#failed")).to_be_hidden()
    give_key(other, bob)
    expect(other.locator("#failed-title")).to_have_text("Not found")
    expect(other.get_by_role("link", name="Download")).to_be_hidden()
    other.get_by_role("button", name="Forget").click()
    give_key(other, ann)
    finished(other)


def test_the_link_is_copied(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP, permissions=["clipboard-read", "clipboard-write"])
    fill(page)
    generate(page)
    finished(page)
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#share")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
