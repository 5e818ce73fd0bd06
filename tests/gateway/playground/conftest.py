"""The page in the system's Chromium. A test fails if the browser logs an error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

DATA = Path(__file__).parents[2] / "data"
PHOTO = DATA / "rocket_640x360.jpg"
SOUND = DATA / "chime_4s.mp3"
NO_CLIP = ("DEMUXER", "Failed to load resource")
"""Chromium's message about the instant backend's clip, which is no video."""
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Has the scope of a module: while it is open, this thread has a running loop, and other tests
    want their own."""
    expect.set_options(timeout=20_000)  # five seconds are too short on two busy cores
    with chromium() as browser:
        yield browser


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine."""
    found = [path for name in PROGRAMS if (path := shutil.which(name))]
    assert found, "apt-get install chromium"
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """`open_page(url, viewport=..., allowed=("401",))` opens a window of its own, without history.
    Messages of the browser that contain an `allowed` text do not fail the test. `before` is a
    script that runs before those of the page."""
    complaints: list[str] = []
    contexts = []

    def open_(url: str, *, allowed: tuple[str, ...] = (), before: str = "", **options: Any) -> Page:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        context = browser.new_context(locale="en-GB", **options)
        contexts.append(context)
        context.set_default_timeout(15_000)
        context.add_init_script(before)
        page = context.new_page()

        def complain(text: str) -> None:
            if not any(part in text for part in allowed):
                complaints.append(text)

        def log(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                complain(message.text)

        page.on("console", log)
        page.on("pageerror", lambda error: complain(str(error)))
        page.goto(url)
        page.locator("#ready[data-state]:not([data-state=unknown])").wait_for()
        return page

    yield open_
    for context in contexts:
        for page in context.pages:  # an answer on its way would fail the next test
            page.unroute_all(behavior="ignoreErrors")
        context.close()
    assert complaints == []


def fill(page: Page, prompt: str = "Leaves sway", picture: Path | None = PHOTO) -> None:
    """Fills in the required fields."""
    if picture is not None:
        page.locator("#image-file").set_input_files(picture)
        page.locator("#image .preview").wait_for()
    page.get_by_label("Prompt", exact=True).fill(prompt)


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()


def pick(page: Page, group: str, name: str) -> None:
    """One of the buttons in a row, by its label."""
    page.get_by_role("group", name=group).get_by_label(name, exact=True).check()


def finished(page: Page) -> None:
    page.get_by_role("link", name="Download").wait_for()
