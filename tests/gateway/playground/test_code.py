"""The code that the page shows is what a user runs: each text is taken from the page and run as it
is, except for the key. The request that arrives is compared with the page's own."""

from __future__ import annotations

import base64
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from benchmarks.services.instant import CLIP
from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import PHOTO, SOUND, Open, fill, pick
from tests.gateway.test_clients import run
from wan_engine.gateway.keys import new_entry

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]
KEY, ENTRY = new_entry("ann")
APIS = ("Runpod", "AI/ML API", "Oxen")
ALL_APIS = (*APIS, "DashScope", "OpenAI")
PROGRAMS = {
    "curl": (["bash", "-eu"], ".sh"),
    "Python": ([sys.executable], ".py"),
    "JavaScript": (["node"], ".mjs"),
}
HOSTILE = 'It\'s "$HOME" `id` $(id) \\n \\ ${x}\nJSON\n%s {a} — 你好 🎬'


def code(page: Page, api: str, language: str) -> str:
    """The code, with a real key in it."""
    pick(page, "API", api)
    pick(page, "Language", language)
    text = page.locator("#code").text_content() or ""
    assert text.count("YOUR_API_KEY") >= 1 and KEY not in text
    return text.replace("YOUR_API_KEY", KEY)


def printed_url(text: str) -> str:
    """The clip's URL in the output of a client: the output itself, or part of an answer."""
    (url,) = set(re.findall(r"http://[^\s\"]+/results/[^\s\"]+", text))
    return url


def clip_of(api: str, printed: str, folder: Path) -> bytes:
    """OpenAI's API has no link, so its code saves the clip."""
    if api == "OpenAI":
        return (folder / "clip.mp4").read_bytes()
    return httpx.get(printed_url(printed)).content


def the_request(here: Listening) -> dict[str, Any]:
    (request,) = here.backend.requests.values()
    assert isinstance(request, dict)
    return {key: value for key, value in request.items() if value is not None}


@pytest.mark.parametrize("language", PROGRAMS)
@pytest.mark.parametrize("api", ALL_APIS)
def test_it_runs_with_a_url_and_every_option(
    listen: Listen, open_page: Open, tmp_path: Path, api: str, language: str
) -> None:
    here = listen(api_keys=ENTRY)
    page = open_page(here.url, allowed=("Failed to load resource",))
    page.get_by_label("URL of the picture").fill(f"{here.url}/none.jpg?a='1'&b=\"2\"")
    page.get_by_label("URL of the sound").fill(f"{here.url}/none.mp3")
    fill(page, HOSTILE, picture=None)
    page.get_by_label("Negative prompt").fill("it's $blur")
    pick(page, "Size", "1080p")
    pick(page, "Length", "10 s")
    pick(page, "Shots", "Several")
    page.get_by_label("Seed").fill("42")
    page.get_by_label("Expand the prompt").check()
    command, suffix = PROGRAMS[language]
    printed = run(command, code(page, api, language), tmp_path, suffix)
    assert clip_of(api, printed, tmp_path) == CLIP
    request = the_request(here)
    request |= {"duration": int(request.pop("seconds", request.get("duration")))}
    assert request.pop("first_frame", True) is True
    assert request.pop("generate_audio", True) is True
    assert request == {
        "prompt": HOSTILE,
        "image": f"{here.url}/none.jpg?a='1'&b=\"2\"",
        "audio": f"{here.url}/none.mp3",
        "negative_prompt": "it's $blur",
        "size": "1920*1080",
        "duration": 10,
        "shot_type": "multi",
        "seed": 42,
        "enable_prompt_expansion": True,
        "enable_safety_checker": True,
    }


@pytest.mark.parametrize("language", PROGRAMS)
@pytest.mark.parametrize("api", APIS)
def test_it_runs_with_files_beside_it(
    listen: Listen, open_page: Open, tmp_path: Path, api: str, language: str
) -> None:
    here = listen(api_keys=ENTRY)
    photo = tmp_path / "it's my $photo (1).jpg"
    shutil.copy(PHOTO, photo)
    shutil.copy(SOUND, tmp_path)
    page = open_page(here.url)
    fill(page, HOSTILE, picture=photo)
    page.locator("#audio-file").set_input_files(SOUND)
    page.locator("audio.preview").wait_for()
    text = code(page, api, language)
    assert len(text) < 3000  # the files themselves are not in the code
    command, suffix = PROGRAMS[language]
    printed = run(command, text, tmp_path, suffix)
    assert httpx.get(printed_url(printed)).content == CLIP
    request = the_request(here)
    for name, path, kind in (("image", PHOTO, "image/jpeg"), ("audio", SOUND, "audio/mpeg")):
        assert request[name] == f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    assert request["prompt"] == HOSTILE
    # Every option has the form's value, even where an API has another default.
    assert (request["size"], request["duration"], request["seed"]) == ("1280*720", 5, -1)
    assert request["shot_type"] == "single" and request["enable_prompt_expansion"] is False


@pytest.mark.parametrize(
    ("api", "language"),
    [
        *((api, language) for api in APIS for language in ("Python", "JavaScript")),
        ("DashScope", "Python"),
        ("OpenAI", "JavaScript"),
    ],
)
def test_a_failure_is_printed_and_ends_the_program(
    listen: Listen, open_page: Open, tmp_path: Path, api: str, language: str
) -> None:
    here = listen(api_keys=ENTRY)
    page = open_page(here.url)
    fill(page, "fail:out_of_memory:The GPU is full", picture=None)
    command, suffix = PROGRAMS[language]
    text = code(page, api, language)
    assert "The GPU is full" in run(command, text, tmp_path, suffix, fails=True)
    denied = run(command, text.replace(KEY, "wrong"), tmp_path, suffix, fails=True)
    assert re.search("valid API key|authenticated|not valid|[Ii]ncorrect|[Ii]nvalid API", denied)


@pytest.mark.parametrize("api", ALL_APIS)
def test_a_last_picture_is_in_the_code(
    listen: Listen, open_page: Open, tmp_path: Path, api: str
) -> None:
    here = listen(api_keys=ENTRY)
    here.backend.models = {"image-to-video": "wan2.2-i2v-a14b"}
    page = open_page(here.url, allowed=("Failed to load resource",))
    field = page.get_by_role("textbox", name="API key")
    field.fill(KEY)
    field.press("Enter")
    page.get_by_label("URL of the picture", exact=True).fill(f"{here.url}/first.jpg")
    page.get_by_label("URL of the last picture").fill(f"{here.url}/last.jpg")
    fill(page, picture=None)
    text = code(page, api, "curl")
    printed = run(["bash", "-eu"], text, tmp_path, ".sh")
    assert clip_of(api, printed, tmp_path) == CLIP
    request = the_request(here)
    assert request["image"] == f"{here.url}/first.jpg"
    assert request["last_image"] == f"{here.url}/last.jpg"


@pytest.mark.parametrize("api", ["DashScope", "OpenAI"])
@pytest.mark.parametrize("begin", ["Clip", "Text or references"])
def test_a_clip_and_references_are_in_the_code(
    listen: Listen, open_page: Open, tmp_path: Path, api: str, begin: str
) -> None:
    here = listen(api_keys=ENTRY)
    models = {"image-to-video": "wan2.2-i2v-a14b", "reference-to-video": "wan-tiny-vace"}
    here.backend.models = models  # type: ignore[assignment]
    page = open_page(here.url, allowed=("Failed to load resource",))
    field = page.get_by_role("textbox", name="API key")
    field.fill(KEY)
    field.press("Enter")
    page.get_by_label(begin, exact=True).check()
    url = f"{here.url}/none.mp4"
    if begin == "Clip":
        page.get_by_label("URL of the clip to continue").fill(url)
    else:
        page.get_by_label("URL of a reference").fill(url)
        page.get_by_role("button", name="Add the reference").click()
        pick(page, "Shape", "3:4")
    fill(page, picture=None)
    printed = run([sys.executable], code(page, api, "Python"), tmp_path, ".py")
    assert clip_of(api, printed, tmp_path) == CLIP
    request = the_request(here)
    if begin == "Clip":
        assert request["first_clip"] == url and "image" not in request
    else:
        assert list(request["references"]) == [url]
        assert (request["aspect_ratio"], request["size"]) == ("3:4", "1280*720")


@pytest.mark.parametrize("api", ALL_APIS)
def test_a_sound_with_references_is_in_the_code(
    listen: Listen, open_page: Open, tmp_path: Path, api: str
) -> None:
    here = listen(api_keys=ENTRY)
    here.backend.models = {"reference-to-video": "wan-tiny-vace"}
    page = open_page(here.url, allowed=("Failed to load resource",))
    field = page.get_by_role("textbox", name="API key")
    field.fill(KEY)
    field.press("Enter")
    page.get_by_label("URL of a reference").fill(f"{here.url}/none.mp4")
    page.get_by_role("button", name="Add the reference").click()
    page.get_by_label("URL of the sound").fill(f"{here.url}/none.mp3")
    fill(page, picture=None)
    printed = run([sys.executable], code(page, api, "Python"), tmp_path, ".py")
    assert clip_of(api, printed, tmp_path) == CLIP
    request = the_request(here)
    assert list(request["references"]) == [f"{here.url}/none.mp4"]
    assert request["audio"] == f"{here.url}/none.mp3"


def test_the_code_is_copied(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url, permissions=["clipboard-read", "clipboard-write"])
    pick(page, "Language", "Python")
    page.get_by_role("button", name="Copy the code").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#code").text_content()
    compile(copied, "copied", "exec")
    expect(page.locator("#copy")).to_have_text("Copy")


def test_the_code_names_the_host_of_the_page(listen: Listen, open_page: Open) -> None:
    port = listen(api_keys=ENTRY).url.rpartition(":")[2]
    page = open_page(f"http://localhost:{port}/")
    for api in ALL_APIS:
        for language in PROGRAMS:
            hosts = set(re.findall(r"https?://[\w.:]+", code(page, api, language)))
            assert hosts == {f"http://localhost:{port}", "https://example.com"}


def test_what_does_not_fit_in_a_request_is_reported(
    listen: Listen, open_page: Open, tmp_path: Path
) -> None:
    large = tmp_path / "large.bmp"
    Image.new("RGB", (2000, 1500)).save(large)
    page = open_page(listen().url)
    fill(page, picture=large)
    expect(page.locator("#code-note")).to_contain_text("does not fit in a request (7.5 MB)")


def test_a_link_is_copied_where_the_browser_has_no_clipboard_for_the_page(
    listen: Listen, open_page: Open
) -> None:
    """As at http://192.168.1.2:8000."""
    before = "Object.defineProperty(navigator, 'clipboard', { value: undefined });"
    page = open_page(listen().url, allowed=("Failed to load", "DEMUXER"), before=before)
    fill(page)
    page.get_by_role("button", name="Generate").click()
    share = page.get_by_role("button", name="Copy link")
    share.click()
    expect(page.locator("#share")).to_have_text("Copied")
    expect(page.locator("#share")).to_be_focused()
    field = page.get_by_label("Negative prompt")
    field.focus()
    page.keyboard.press("Control+V")
    expect(field).to_have_value(page.url)
