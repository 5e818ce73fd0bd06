"""The page before a request is sent: the example, the size and crop, the part of a sound, the
price."""

from __future__ import annotations

import base64
import subprocess
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from playwright.sync_api import expect

from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import (
    DATA,
    NO_CLIP,
    PHOTO,
    Open,
    fill,
    finished,
    generate,
    pick,
)
from wan_engine.plan import target_size

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]
ASTRONAUT = DATA / "astronaut_360x480.png"


def content(data_uri: str) -> bytes:
    return base64.b64decode(data_uri.partition(";base64,")[2])


def only_request(here: Listening) -> dict[str, Any]:
    (request,) = here.backend.requests.values()
    assert isinstance(request, dict)
    return request


def test_one_click_makes_a_clip_of_the_example(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    page.get_by_role("button", name="Make this clip").click()
    finished(page)
    request = only_request(here)
    assert content(request["image"]) == PHOTO.read_bytes()
    assert request["prompt"].startswith("The rocket lifts off")


def test_the_clip_of_the_example_is_seen_before_it_is_made(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url)
    clip = page.get_by_label("The video of the example")
    expect(clip).to_have_js_property("ended", True)
    assert clip.evaluate("clip => [clip.videoWidth, clip.videoHeight]") == [640, 360]
    assert 4.5 < clip.evaluate("clip => clip.duration") < 5.5
    expect(page.locator("#example")).to_contain_text("Made by wan-tiny")


def test_the_clip_of_the_example_stands_still_for_who_wants_little_motion(
    listen: Listen, open_page: Open
) -> None:
    page = open_page(listen().url, reduced_motion="reduce")
    clip = page.get_by_label("The video of the example")
    expect(clip).to_have_js_property("readyState", 4)
    assert clip.evaluate("clip => clip.paused && clip.currentTime === 0")


def test_the_example_can_be_changed_before_it_is_sent(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url)
    page.get_by_role("button", name="Use the example").click()
    expect(page.locator("#image-note")).to_contain_text("example.jpg, 640 × 360")
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.get_by_role("button", name="Use the example")).to_be_hidden()  # nothing is lost
    assert here.backend.requests == {}


def test_the_real_size_and_the_crop_are_shown_before_a_request_is_sent(
    listen: Listen, open_page: Open
) -> None:
    here = listen(frame="exact")
    page = open_page(here.url)
    fill(page, picture=ASTRONAUT)
    expect(page.locator("#size-note")).to_have_text(
        "The video has 1280 × 720 pixels. 58 % of its height is cut off."
    )
    picture = page.locator("#image .preview").bounding_box()
    kept = page.locator("#kept-part").bounding_box()
    assert picture and kept
    assert kept["width"] == pytest.approx(picture["width"], abs=1)
    assert kept["height"] == pytest.approx(picture["height"] * (360 * 9 / 16) / 480, abs=2)


def test_the_pixels_are_those_of_the_plan(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url)
    expect(page.locator("#price-note")).to_have_text("5 s at 720p")
    fill(page, picture=ASTRONAUT)
    for name, size in (("720p", "1280*720"), ("1080p", "1920*1080")):
        width, height = target_size(360, 480, size, "image")
        pick(page, "Size", name)
        expect(page.locator("#size-note")).to_contain_text(f"{width} × {height} pixels")
        expect(page.locator("#price-note")).to_have_text(f"5 s at {width} × {height}")
        button = page.locator(f'input[value="{size}"] + span')
        expect(button).to_have_attribute("data-pixels", f"{width}×{height}")


def test_a_part_of_a_sound_can_be_chosen(listen: Listen, open_page: Open, tmp_path: Path) -> None:
    """Silence and then a tone: the part that is sent begins in the tone."""
    source = "aevalsrc='if(gte(t,20),sin(2*PI*440*t),0)':d=40"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source]
    path = tmp_path / "late.m4a"
    subprocess.run([*command, str(path)], check=True, timeout=60)
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    page.locator("#audio-file").set_input_files(path)
    expect(page.locator("#audio-note")).to_contain_text("its first 15 s are sent as a WAV file")
    start, seconds = page.get_by_label("From"), page.locator("#part-seconds")
    expect(seconds).to_have_attribute("max", "30.0")
    start.fill("25")
    expect(page.locator("#audio-note")).to_contain_text("15.0 s from 25.0 s on are sent as a WAV")
    expect(seconds).to_have_attribute("max", "15.0")
    seconds.press("Home")
    for _ in range(15):
        seconds.press("ArrowRight")
    expect(page.locator("#audio-note")).to_contain_text("2.0 s from 25.0 s on are sent")
    generate(page)
    finished(page)
    sent = tmp_path / "sent.wav"
    sent.write_bytes(content(only_request(here)["audio"]))
    with wave.open(str(sent)) as file:
        assert file.getsampwidth() == 2
        assert file.getnframes() / file.getframerate() == pytest.approx(2, abs=0.01)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)
    assert np.sqrt((samples**2).mean()) > 10_000
    page.reload()
    expect(page.locator("#audio-note")).to_contain_text("late.m4a, 2.0 s")


def test_no_price_is_shown_if_the_operator_has_set_none(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url, allowed=NO_CLIP)
    fill(page)
    generate(page)
    finished(page)
    for place in ("form", "result", "history"):
        assert "$" not in page.locator(f"#{place}").inner_text()


def test_the_operator_s_price_is_shown(listen: Listen, open_page: Open) -> None:
    page = open_page(listen(prices={"1280*720": "0.02"}).url, allowed=NO_CLIP)
    expect(page.locator("#price")).to_have_text("$0.10")
    fill(page)
    generate(page)
    finished(page)
    expect(page.locator("#facts")).to_contain_text("Cost$0.50")
    expect(page.locator("#history li")).to_contain_text("$0.50 · seed 7")


def test_no_key_is_asked_for_or_shown_if_the_server_has_none(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    page = open_page(here.url)
    page.evaluate("sessionStorage.setItem('wan-playground-key', 'of an earlier server')")
    page.reload()
    expect(page.locator("#key-card")).to_be_hidden()
    for language in ("curl", "Python", "JavaScript"):
        pick(page, "Language", language)
        for api in ("Runpod", "AI/ML API", "Oxen", "DashScope", "OpenAI"):
            pick(page, "API", api)
            code = page.locator("#code").inner_text()
            assert "YOUR_API_KEY" not in code and "Authorization" not in code
            if language == "Python":
                compile(code, api, "exec")
    expect(page.locator("#code-note")).not_to_contain_text("YOUR_API_KEY")


def test_control_and_enter_send_the_form(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    finished(page)
    assert only_request(here)["prompt"] == "Leaves sway"


def test_no_field_makes_a_phone_zoom(listen: Listen, open_page: Open) -> None:
    page = open_page(listen(api_keys="").url, viewport={"width": 390, "height": 800})
    sizes = page.locator(
        "textarea, input:not([type=radio], [type=checkbox], [type=range], [type=file])"
    )
    found = sizes.evaluate_all("all => all.map(one => parseFloat(getComputedStyle(one).fontSize))")
    assert len(found) >= 8 and min(found) >= 16
