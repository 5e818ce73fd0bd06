"""The form shows what the server's models accept: a last picture, a clip to continue, sound."""

from __future__ import annotations

import base64
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from playwright.sync_api import Route, expect

from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import DATA, NO_CLIP, PHOTO, Open, fill, finished, generate

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]
LAST = DATA / "astronaut_360x480.png"
TAKES_ALL: Any = {"image-to-video": "wan2.2-i2v-a14b"}
SLOW_STORAGE = """
    const open = indexedDB.open.bind(indexedDB);
    const settled = new Promise(done => setTimeout(done, 1000));
    indexedDB.open = (...given) => {
        const asked = open(...given);
        const handed = {};
        asked.onupgradeneeded = () => { handed.result = asked.result; handed.onupgradeneeded(); };
        asked.onsuccess = () => settled.then(() => {
            handed.result = asked.result;
            handed.onsuccess();
        });
        return handed;
    };
    const fetched = fetch;
    window.fetch = async (url, ...more) => {
        if (`${url}`.endsWith("api/server")) {
            await new Promise(done => setTimeout(done, 2000));
        }
        return fetched(url, ...more);
    };
"""
"""The form is restored after the models are known, and before their inputs are."""
TAKES_A_CLIP: Any = {"image-to-video": "wan2.2-ti2v-5b"}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`short.mp4` of 1 s and `right.mp4` of 3 s, both 320x240."""
    folder = tmp_path_factory.mktemp("films")
    for name, seconds in (("short", 1), ("right", 3)):
        source = f"testsrc=duration={seconds}:size=320x240:rate=12"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source]
        path = folder / f"{name}.mp4"
        subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], check=True, timeout=60)
    return folder


def content(data_uri: str) -> bytes:
    return base64.b64decode(data_uri.partition(";base64,")[2])


def only_request(here: Listening) -> dict[str, Any]:
    (request,) = here.backend.requests.values()
    assert isinstance(request, dict)
    return request


def test_a_last_picture_is_offered_if_a_model_accepts_one_and_is_sent(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    here.backend.models = TAKES_A_CLIP
    page = open_page(here.url, allowed=NO_CLIP)
    expect(page.locator("#begin-clip")).to_be_visible()
    expect(page.locator("#last")).to_be_hidden()
    here.backend.models = TAKES_ALL
    expect(page.locator("#last")).to_be_visible()  # shown after the next poll of the server
    fill(page)
    page.locator("#last-file").set_input_files(LAST)
    expect(page.locator("#last-note")).to_contain_text("astronaut_360x480.png, 360 × 480")
    generate(page)
    finished(page)
    request = only_request(here)
    assert content(request["image"]) == PHOTO.read_bytes()
    assert content(request["last_image"]) == LAST.read_bytes()
    page.get_by_role("button", name="Remove the last picture").click()
    page.get_by_role("button", name="Use again").click()
    expect(page.locator("#last-note")).to_contain_text("astronaut_360x480.png")


@pytest.mark.parametrize("kept", [True, False])
def test_a_clip_can_be_continued(listen: Listen, open_page: Open, films: Path, kept: bool) -> None:
    here = listen()
    here.backend.models = TAKES_A_CLIP
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page, "It goes on")
    page.get_by_label("Clip", exact=True).check()
    generate(page)
    expect(page.locator("#clip-error")).to_contain_text("A clip is needed")
    page.locator("#clip-file").set_input_files(films / "short.mp4")
    expect(page.locator("#clip-error")).to_have_text(
        "This clip is 1.0 s long; it may be 2 to 10 s long"
    )
    page.locator("#clip-file").set_input_files(films / "right.mp4")
    expect(page.locator("#clip-note")).to_contain_text("right.mp4, 3.0 s")
    expect(page.locator("#size-note")).to_contain_text("The video has 1108 × 832 pixels.")
    page.get_by_label("Begin with this clip").set_checked(kept)
    generate(page)
    finished(page)
    request = only_request(here)
    assert content(request["first_clip"]) == (films / "right.mp4").read_bytes()
    assert request["keep_first_clip"] is kept and "image" not in request


def test_no_clip_is_offered_if_no_known_model_accepts_one(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.models = {"image-to-video": "a checkpoint of mine"}
    page = open_page(here.url)
    page.wait_for_timeout(300)
    for hidden in ("#begin", "#last", "#clip", "#references"):
        expect(page.locator(hidden)).to_be_hidden()
    expect(page.locator("#image")).to_be_visible()


def test_the_page_says_so_if_lips_follow_the_sound(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.models = {"speech-to-video": "wan2.2-s2v-14b"}
    page = open_page(here.url)
    expect(page.locator("#audio-why")).to_have_text("optional; the lips move to it")


def test_references_may_end_with_a_picture_too(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.models = {"reference-to-video": "wan2.2-vace-fun-a14b"}
    page = open_page(here.url, allowed=NO_CLIP)
    expect(page.locator("#last")).to_be_visible()
    page.locator("#last-file").set_input_files(LAST)
    expect(page.locator("#last-note")).to_contain_text("astronaut_360x480.png")
    page.get_by_label("Prompt", exact=True).fill("a street in the rain")
    generate(page)
    finished(page)
    request = only_request(here)
    assert request["references"] == [] and content(request["last_image"]) == LAST.read_bytes()


def test_what_no_model_takes_any_longer_is_named_and_left_out(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    here.backend.models = TAKES_ALL
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    page.locator("#last-file").set_input_files(LAST)
    expect(page.locator("#last-note")).to_contain_text("360 × 480")
    expect(page.locator("#left-out")).to_be_empty()
    here.backend.models = TAKES_A_CLIP
    left_out = "Left out, as no model of this server takes it: the last picture."
    expect(page.locator("#left-out")).to_have_text(left_out)
    generate(page)
    finished(page)
    assert "last_image" not in only_request(here)


def test_a_clip_to_continue_survives_a_reload_before_the_server_has_told_what_it_takes(
    listen: Listen, open_page: Open, films: Path
) -> None:
    here = listen()
    here.backend.models = TAKES_A_CLIP
    page = open_page(here.url)
    page.get_by_label("Clip", exact=True).check()
    page.locator("#clip-file").set_input_files(films / "right.mp4")
    expect(page.locator("#clip-note")).to_contain_text("right.mp4, 3.0 s")
    page.wait_for_timeout(500)  # the form is stored 0.3 s after a change
    held: list[Route] = []
    open_again = threading.Event()

    def hold(route: Route) -> None:
        if open_again.is_set():
            route.continue_()
        else:
            held.append(route)

    page.route("**/playground/api/server", hold)
    page.reload()
    expect(page.locator("#ready")).to_have_text("Ready")
    page.wait_for_timeout(300)
    expect(page.locator("#clip-note")).to_contain_text("right.mp4, 3.0 s")
    open_again.set()
    for route in held:
        route.continue_()
    expect(page.locator("#begin-clip")).to_be_visible()
    expect(page.get_by_label("Clip", exact=True)).to_be_checked()
    expect(page.locator("#clip-note")).to_be_visible()


@pytest.mark.parametrize("slow", [False, True], ids=["", "slow"])
def test_what_another_beginning_hides_survives_a_reload(
    listen: Listen, open_page: Open, slow: bool
) -> None:
    here = listen()
    here.backend.models = TAKES_A_CLIP
    page = open_page(here.url, before=SLOW_STORAGE if slow else "")
    fill(page)
    page.get_by_label("Clip", exact=True).check()
    page.wait_for_timeout(2000 if slow else 500)  # the form is stored 0.3 s after a change
    page.reload()
    expect(page.get_by_label("Clip", exact=True)).to_be_checked()
    page.get_by_label("Picture", exact=True).check()
    expect(page.locator("#image-note")).to_contain_text("rocket_640x360.jpg, 640 × 360")


def test_a_refused_first_request_is_repeated(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.models = TAKES_A_CLIP
    left = [3]

    def refuse(route: Route) -> None:
        left[0] -= 1
        if left[0] < 0:
            route.continue_()
        else:
            route.fulfill(status=429, json={"error": "Too many"}, headers={"Retry-After": "1"})

    page = open_page(here.url, allowed=("429",))
    page.route("**/playground/api/server", refuse)
    page.reload()
    expect(page.locator("#price-note")).to_have_text("Too many")
    expect(page.locator("#begin-clip")).to_be_visible()
    expect(page.locator("#price-note")).to_have_text("5 s at 720p")
