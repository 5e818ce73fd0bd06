"""The browser that sent a request keeps all of it, and the state of the form."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from benchmarks.services.gateway import until
from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import (
    DATA,
    NO_CLIP,
    PHOTO,
    SOUND,
    Open,
    fill,
    finished,
    generate,
    pick,
)

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]
OTHER_PHOTO = DATA / "astronaut_360x480.png"
OTHER_SOUND = DATA / "chime_1s.wav"
FORGET = """() => new Promise(done => {
    const opened = indexedDB.open("wan-playground");
    opened.onsuccess = () => {
        const change = opened.result.transaction("requests", "readwrite");
        change.objectStore("requests").clear();
        change.oncomplete = () => { opened.result.close(); done(); };
    };
})"""


def content(data_uri: str) -> bytes:
    return base64.b64decode(data_uri.partition(";base64,")[2])


def newest(here: Listening, count: int) -> dict[str, Any]:
    """The last of `count` requests that the page sent."""
    until(lambda: len(here.backend.requests) == count)
    request = list(here.backend.requests.values())[-1]
    assert isinstance(request, dict)
    return request


def choose(page: Page, picture: Path, sound: Path) -> None:
    fill(page, "Something else", picture=picture)
    page.locator("#audio-file").set_input_files(sound)
    expect(page.locator("#audio-note")).to_contain_text(sound.name)
    expect(page.locator("#image-note")).to_contain_text(picture.name)


def test_a_job_s_own_picture_and_sound_are_sent_again_and_not_those_of_the_form(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    choose(page, PHOTO, SOUND)
    page.get_by_label("Prompt", exact=True).fill("The first")
    page.get_by_label("Negative prompt").fill("blur")
    pick(page, "Length", "10 s")
    generate(page)
    finished(page)
    first = newest(here, 1)
    page.reload()
    finished(page)
    for count, (button, seed) in enumerate([("Use again: The first", -1), ("Same seed", 7)]):
        choose(page, OTHER_PHOTO, OTHER_SOUND)
        page.get_by_label("Negative prompt").fill("")
        pick(page, "Length", "15 s")
        page.get_by_role("button", name=button).first.click()
        expect(page.locator("#image-note")).to_contain_text("rocket_640x360.jpg, 640 × 360")
        expect(page.locator("#audio-note")).to_contain_text("chime_4s.mp3, 4.0 s")
        generate(page)
        assert newest(here, count + 2) == {**first, "seed": seed}
        finished(page)


def test_a_job_without_a_sound_is_sent_again_without_one(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    page.get_by_label("URL of the picture").fill(f"{here.url}/none.jpg")
    fill(page, "By its address", picture=None)
    generate(page)
    finished(page)
    first = newest(here, 1)
    choose(page, OTHER_PHOTO, OTHER_SOUND)
    page.get_by_role("button", name="Same seed again").click()
    expect(page.get_by_label("URL of the picture")).to_have_value(f"{here.url}/none.jpg")
    expect(page.locator("#audio-note")).to_be_empty()
    generate(page)
    assert newest(here, 2) == {**first, "seed": 7}


def test_a_picture_that_was_made_smaller_is_sent_again_unchanged(
    listen: Listen, open_page: Open, tmp_path: Path
) -> None:
    Image.new("RGB", (8400, 1200), "teal").save(tmp_path / "long.png")
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page, picture=tmp_path / "long.png")
    generate(page)
    finished(page)
    note = page.locator("#image-note").inner_text()
    page.reload()
    finished(page)
    page.get_by_role("button", name="Use again").click()
    expect(page.locator("#image-note")).to_have_text(note)
    generate(page)
    first, again = newest(here, 2), next(iter(here.backend.requests.values()))
    assert isinstance(again, dict) and first["image"] == again["image"]


def test_media_that_the_browser_no_longer_has_is_reported_and_nothing_else_is_sent(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    choose(page, PHOTO, SOUND)
    generate(page)
    finished(page)
    page.evaluate(FORGET)
    choose(page, OTHER_PHOTO, OTHER_SOUND)
    page.get_by_role("button", name="Same seed again").click()
    for name, kind in (("rocket_640x360.jpg", "image"), ("chime_4s.mp3", "audio")):
        expect(page.locator(f"#{kind}-error")).to_have_text(
            f"Choose {name} again: this browser does not have it any longer"
        )
    generate(page)
    expect(page.locator("#image-file")).to_be_focused()
    assert len(here.backend.requests) == 1
    fill(page, "Without a sound")
    page.get_by_role("button", name="Remove the sound").click()
    generate(page)
    request = newest(here, 2)
    assert content(request["image"]) == PHOTO.read_bytes() and "audio" not in request


def test_the_form_survives_a_reload(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    choose(page, PHOTO, SOUND)
    pick(page, "Size", "1080p")
    page.get_by_label("Expand the prompt").check()
    page.get_by_label("Prompt", exact=True).fill("Half of a tho")
    page.reload()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("Half of a tho")
    expect(page.locator("#image-note")).to_contain_text("rocket_640x360.jpg")
    expect(page.locator("#audio-note")).to_contain_text("chime_4s.mp3")
    expect(page.get_by_label("Expand the prompt")).to_be_checked()
    generate(page)
    finished(page)
    request = newest(here, 1)
    assert content(request["image"]) == PHOTO.read_bytes()
    assert content(request["audio"]) == SOUND.read_bytes()
    assert request["size"] == "1920*1080"


def test_removed_jobs_leave_nothing_behind(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url, allowed=NO_CLIP)
    fill(page)
    generate(page)
    finished(page)
    kept = """() => new Promise(done => {
        const opened = indexedDB.open("wan-playground");
        opened.onsuccess = () => {
            const asked = opened.result.transaction("requests").objectStore("requests").count();
            asked.onsuccess = () => { opened.result.close(); done(asked.result); };
        };
    })"""
    assert page.evaluate(kept) == 1
    page.get_by_role("button", name="Remove: Leaves sway").click()
    until(lambda: page.evaluate(kept) == 0)
    assert page.evaluate("localStorage.getItem('wan-playground-history')") == "[]"
