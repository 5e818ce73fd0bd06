"""All files of a request fit in it together, whatever their order; and none is lost on the way."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

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
)
from tests.gateway.playground.test_page import save_tone
from wan_engine.gateway.doors.runpod.door import RUN_MAX_BYTES

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]
LAST = DATA / "astronaut_360x480.png"
ALL: Any = {"image-to-video": "wan2.2-i2v-a14b", "reference-to-video": "wan2.2-vace-fun-a14b"}

SLOW = """
    for (const [of, name] of [[window, "createImageBitmap"],
                              [OfflineAudioContext.prototype, "decodeAudioData"]]) {
        const read = of[name];
        of[name] = async function (...given) {
            await new Promise(done => setTimeout(done, 700));
            return read.apply(this, given);
        };
    }
"""


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A picture of about 5 MB, so that two do not fit."""
    pixels = np.random.default_rng(1).integers(0, 256, (1250, 1333, 3), np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(pixels).save(path, compress_level=0)
    assert 4.9e6 < path.stat().st_size < 5.2e6
    return path


def only_request(here: Listening) -> dict[str, Any]:
    (request,) = here.backend.requests.values()
    assert isinstance(request, dict)
    return request


def content(data_uri: str) -> bytes:
    return base64.b64decode(data_uri.partition(";base64,")[2])


def bytes_of(request: dict[str, Any]) -> int:
    texts = [value for value in request.values() if isinstance(value, str)]
    return sum(map(len, [*texts, *request.get("references", [])]))


def begun(open_page: Open, here: Listening) -> Page:
    """The page with references selected, on a server that also takes a last picture."""
    here.backend.models = ALL
    page = open_page(here.url, allowed=NO_CLIP)
    page.get_by_label("Text or references", exact=True).check()
    expect(page.locator("#last")).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("character1 waves")
    return page


@pytest.mark.parametrize("first", ["last", "references"])
def test_a_last_picture_and_references_fit_in_one_request(
    listen: Listen, open_page: Open, noise: Path, first: str
) -> None:
    here = listen()
    page = begun(open_page, here)
    for name in sorted(["last", "references"], key=lambda one: one != first):
        page.locator(f"#{name}-file").set_input_files(noise)
        shown = page.locator("#references-list" if name == "references" else "#last-note")
        expect(shown).to_contain_text("noise.png")
    generate(page)
    finished(page)
    request = only_request(here)
    assert bytes_of(request) < RUN_MAX_BYTES
    for uri in (request["last_image"], *request["references"]):
        assert Image.open(io.BytesIO(content(uri))).size[0] > 240


def test_a_sound_leaves_references_their_room(
    listen: Listen, open_page: Open, tmp_path: Path
) -> None:
    film = tmp_path / "anna.mp4"
    film.write_bytes(b"\0\0\0\x18ftypisom" + bytes(4 * 2**20))
    save_tone(tmp_path / "a.wav", 29)
    here = listen()
    page = begun(open_page, here)
    page.locator("#references-file").set_input_files(film)
    expect(page.locator("#references-list")).to_contain_text("anna.mp4")
    page.locator("#audio-file").set_input_files(tmp_path / "a.wav")
    expect(page.locator("#audio-note")).to_contain_text("as a WAV file")
    generate(page)
    finished(page)
    request = only_request(here)
    assert bytes_of(request) < RUN_MAX_BYTES
    assert content(request["references"][0]) == film.read_bytes()


def test_files_that_cannot_be_made_smaller_are_named_before_they_are_sent(
    listen: Listen, open_page: Open, tmp_path: Path
) -> None:
    """The sound was chosen for a picture, which may be made smaller; a reference may not."""
    film = tmp_path / "anna.mp4"
    film.write_bytes(b"\0\0\0\x18ftypisom" + bytes(4 * 2**20))
    save_tone(tmp_path / "a.wav", 29)
    here = listen()
    page = begun(open_page, here)
    page.locator("#references-file").set_input_files(film)
    expect(page.locator("#references-list")).to_contain_text("anna.mp4")
    page.get_by_label("Picture", exact=True).check()
    page.locator("#audio-file").set_input_files(tmp_path / "a.wav")
    expect(page.locator("#audio-note")).to_contain_text("a.wav, 29.0 s")
    page.get_by_label("Text or references", exact=True).check()
    generate(page)
    expect(page.locator("#form-error")).to_have_text(
        "The files have 8.9 MB; a request has room for 7.5 MB: make one smaller, or give its URL"
    )
    assert here.backend.requests == {}


# --- nothing is lost -----------------------------------------------------------------------------


def test_files_that_are_still_read_are_sent(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP, before=SLOW)
    page.get_by_label("Prompt", exact=True).fill("Leaves sway")
    page.locator("#image-file").set_input_files(PHOTO)
    page.locator("#audio-file").set_input_files(SOUND)
    generate(page)
    finished(page)
    request = only_request(here)
    assert content(request["image"]) == PHOTO.read_bytes()
    assert content(request["audio"]) == SOUND.read_bytes()


def test_a_sound_that_is_still_decoded_is_sent(
    listen: Listen, open_page: Open, tmp_path: Path
) -> None:
    save_tone(tmp_path / "a.ogg", 3)
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP, before=SLOW)
    fill(page)
    page.locator("#audio-file").set_input_files(tmp_path / "a.ogg")
    generate(page)
    finished(page)
    assert "audio" in only_request(here)


def test_a_slider_that_was_moved_just_now_counts(
    listen: Listen, open_page: Open, tmp_path: Path
) -> None:
    save_tone(tmp_path / "a.wav", 10)
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    page.locator("#audio-file").set_input_files(tmp_path / "a.wav")
    expect(page.locator("#audio-note")).to_contain_text("a.wav, 10.0 s")
    page.evaluate(
        """() => {
            const slider = document.getElementById("part-seconds");
            slider.value = 2;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
            document.getElementById("form").requestSubmit();
        }"""
    )
    finished(page)
    (tmp_path / "sent.wav").write_bytes(content(only_request(here)["audio"]))
    with wave.open(str(tmp_path / "sent.wav")) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(2, abs=0.01)


def test_an_address_that_is_only_typed_is_sent(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    page.get_by_label("Prompt", exact=True).fill("Leaves sway")
    url = f"{here.url}/none.jpg"
    page.get_by_label("URL of the picture").press_sequentially(url)
    page.keyboard.press("Control+Enter")
    finished(page)
    assert only_request(here)["image"] == url


def test_a_reference_whose_address_was_not_added_is_sent(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = begun(open_page, here)
    url = f"{here.url}/none.jpg"
    page.get_by_label("URL of a reference").fill(url)
    generate(page)
    finished(page)
    assert only_request(here)["references"] == [url]


def test_all_files_that_are_dropped_become_references(listen: Listen, open_page: Open) -> None:
    page = begun(open_page, listen())
    page.evaluate(
        """async (files) => {
            const transfer = new DataTransfer();
            for (const [name, data] of files) {
                const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            }
            const options = { bubbles: true, cancelable: true, dataTransfer: transfer };
            document.querySelector("#references label").dispatchEvent(
                new DragEvent("drop", options));
        }""",
        [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in (PHOTO, LAST)],
    )
    expect(page.locator("#references-list li")).to_have_count(2)
    expect(page.locator("#references-list")).to_contain_text(LAST.name)


def test_a_file_that_cannot_be_used_can_be_left_out(
    listen: Listen, open_page: Open, tmp_path: Path
) -> None:
    (tmp_path / "large.mp4").write_bytes(bytes(9 * 2**20))
    (tmp_path / "text.png").write_text("no picture")
    here = listen()
    page = begun(open_page, here)
    page.locator("#references-file").set_input_files([tmp_path / "large.mp4", PHOTO])
    expect(page.locator("#references-list li")).to_have_count(1)
    expect(page.locator("#references-error")).to_contain_text("This video has 9.0 MB")
    page.locator("#last-file").set_input_files(tmp_path / "text.png")
    expect(page.locator("#last-error")).to_contain_text("cannot read “text.png”")
    generate(page)
    expect(page.locator("#references-file")).to_be_focused()
    page.get_by_role("button", name="Leave it out").click()
    page.get_by_role("button", name="Remove the last picture").click()
    generate(page)
    finished(page)
    request = only_request(here)
    assert len(request["references"]) == 1 and "last_image" not in request


def test_the_example_does_not_replace_references(listen: Listen, open_page: Open) -> None:
    page = begun(open_page, listen())
    page.get_by_label("Prompt", exact=True).fill("")
    expect(page.get_by_role("button", name="Use the example")).to_be_visible()
    page.locator("#references-file").set_input_files(PHOTO)
    expect(page.locator("#references-list li")).to_have_count(1)
    expect(page.get_by_role("button", name="Use the example")).to_be_hidden()
    expect(page.locator("#example")).to_be_hidden()


def test_a_file_that_was_deleted_is_named(listen: Listen, open_page: Open, tmp_path: Path) -> None:
    """Chromium refuses to read it, as it refuses a folder."""
    before = """
        Blob.prototype.arrayBuffer = async () => {
            throw new DOMException("gone", "NotReadableError");
        };
    """
    page = open_page(listen().url, before=before)
    page.locator("#audio-file").set_input_files(SOUND)
    expect(page.locator("#audio-error")).to_have_text("The file cannot be read: choose it again")


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_text_stays_with_its_field(listen: Listen, open_page: Open, kind: str) -> None:
    """Some programs copy a picture of a text with it."""
    page = open_page(listen().url)
    taken = page.evaluate(
        """(kind) => {
            const transfer = new DataTransfer();
            transfer.setData("text/plain", "a walk");
            const options = { bubbles: true, cancelable: true };
            if (kind === "paste") transfer.items.add(
                new File(["x"], "x.png", { type: "image/png" }));
            const event = kind === "paste"
                ? new ClipboardEvent("paste", { ...options, clipboardData: transfer })
                : new DragEvent("drop", { ...options, dataTransfer: transfer });
            document.getElementById("prompt").dispatchEvent(event);
            return event.defaultPrevented;
        }""",
        kind,
    )
    assert taken is False
    expect(page.locator("#image-note")).to_be_empty()
    expect(page.locator("#image-error")).to_be_empty()
