"""The focus is never lost when what had it goes away, and what happens is announced once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from playwright.sync_api import Page, expect

from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import NO_CLIP, Open, fill, finished, generate, pick

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]

# Every text that comes into a live region, as a screen reader hears it.
HEARD = """() => {
    window.heard = [];
    const regions = document.querySelectorAll("[role=status], [role=alert], [aria-live]");
    for (const region of regions) {
        const seen = new MutationObserver(() => {
            const text = region.textContent.replace(/\\s+/g, " ").trim();
            if (text && region.checkVisibility()) window.heard.push(`${region.id}: ${text}`);
        });
        seen.observe(region, { childList: true, characterData: true, subtree: true });
    }
}"""


def press(page: Page, name: str) -> None:
    """A button, by the keyboard."""
    page.get_by_role("button", name=name).first.focus()
    page.keyboard.press("Enter")


def test_what_is_cancelled_leaves_the_focus_on_its_card(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url)
    fill(page, "hang")
    generate(page)
    expect(page.locator("#stage")).to_contain_text("Rendering")
    press(page, "Cancel")
    expect(page.locator("#failed-title")).to_have_text("Cancelled")
    expect(page.locator("#result")).to_be_focused()
    press(page, "Use this request again")
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#prompt")).to_have_value("hang")


def test_a_clip_that_is_finished_leaves_the_focus_on_its_card(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    here.backend.hold()
    page = open_page(here.url, allowed=NO_CLIP)
    press(page, "Make this clip")
    page.get_by_role("button", name="Cancel", exact=True).focus()
    here.backend.release()
    finished(page)
    expect(page.locator("#result")).to_be_focused()


def test_escape_closes_the_comparison(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url, allowed=NO_CLIP)
    for prompt in ("One", "Two"):
        fill(page, prompt)
        generate(page)
        expect(page.locator("#shown")).to_have_text(f"“{prompt}”")
        finished(page)
        press(page, f"Compare: {prompt}")
    page.get_by_role("button", name="Play both").focus()
    page.keyboard.press("Escape")
    expect(page.locator("#compare")).to_be_hidden()
    expect(page.get_by_role("button", name="Compare: One")).to_be_focused()
    press(page, "Remove all")
    expect(page.locator("#history-title")).to_be_focused()


def test_the_example_that_is_refused_leaves_the_focus_on_the_form(
    listen: Listen, open_page: Open
) -> None:
    here = listen(queue_max=1)
    here.backend.hold()
    page = open_page(here.url)
    for number in range(2):
        fill(page, f"hang {number}")
        generate(page)
        expect(page.locator("#history li")).to_have_count(number + 1)
    other = open_page(here.url, allowed=("429",))
    press(other, "Make this clip")
    expect(other.locator("#form-error")).to_contain_text("queue is full")
    expect(other.locator("#send")).to_be_focused()
    here.backend.release()


def test_what_happens_is_announced_once(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=("404", *NO_CLIP))
    fill(page)
    page.evaluate(HEARD)
    here.backend.hold()
    generate(page)
    expect(page.locator("#stage")).to_contain_text("Rendering")
    page.wait_for_timeout(1600)  # some polls
    here.backend.release()
    finished(page)
    first: list[str] = page.evaluate("window.heard")
    assert first.count("live: Rendering") == first.count("live: The video is finished") == 1
    fill(page, "fail:internal_error:Out of film")
    generate(page)
    expect(page.locator("#failure")).to_have_text("Out of film")
    pick(page, "Size", "1080p")
    page.wait_for_timeout(800)
    heard: list[str] = page.evaluate("window.heard")
    assert [one for one, after in pairwise(heard) if one == after] == []
    assert sum("Out of film" in one for one in heard) == 1
    assert sum("1920 × 1080" in one for one in heard) == 1
