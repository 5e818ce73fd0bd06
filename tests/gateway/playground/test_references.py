"""The page where clips can be made from references, or from text alone."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from benchmarks.services.instant import CLIP
from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import NO_CLIP, PHOTO, Open, finished, generate, pick
from tests.gateway.playground.test_code import ENTRY, HOSTILE, PROGRAMS, code, printed_url
from tests.gateway.test_clients import run

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]
BOTH: Any = {"image-to-video": "wan-tiny", "reference-to-video": "wan-tiny-vace"}


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A file that the page takes for a video, because it checks only the type."""
    path = tmp_path / "anna.mp4"
    path.write_bytes(b"\0\0\0\x18ftypisom" + bytes(2000))
    return path


def begun(open_page: Open, here: Listening) -> Page:
    """The page with references selected."""
    here.backend.models = BOTH
    page = open_page(here.url, allowed=NO_CLIP)
    page.get_by_label("Text or references", exact=True).check()
    return page


def the_request(here: Listening) -> dict[str, Any]:
    (request,) = here.backend.requests.values()
    assert isinstance(request, dict)
    return request


def test_references_are_offered_if_a_model_accepts_them(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.models = {"image-to-video": "wan-tiny"}
    page = open_page(here.url)
    expect(page.locator("#begin-references")).to_be_hidden()
    expect(page.locator("#image")).to_be_visible()
    here.backend.models = BOTH
    page = open_page(here.url)
    expect(page.locator("#begin")).to_be_visible()
    expect(page.locator("#references")).to_be_hidden()
    here.backend.models = {"reference-to-video": "wan-tiny-vace"}
    page = open_page(here.url)
    expect(page.locator("#begin")).to_be_hidden()
    expect(page.locator("#references")).to_be_visible()
    expect(page.locator("#image")).to_be_hidden()


def test_files_and_urls_are_sent_in_the_order_of_their_names(
    listen: Listen, open_page: Open, film: Path
) -> None:
    here = listen()
    page = begun(open_page, here)
    page.locator("#references-file").set_input_files([film, PHOTO])
    page.locator("#references-list li").nth(1).wait_for()
    url = f"{here.url}/none.mov"
    page.get_by_label("URL of a reference").fill(url)
    page.get_by_role("button", name="Add the reference").click()
    called = page.locator("#references-list b").all_text_contents()
    assert called == ["character1", "character2", "character3"]
    page.get_by_role("button", name="Remove character2").click()
    expect(page.locator("#references-list")).to_contain_text(f"character2 {url}")
    pick(page, "Shape", "9:16")
    page.get_by_label("Prompt", exact=True).fill("character1 waves to character2")
    generate(page)
    finished(page)
    data = base64.b64encode(film.read_bytes()).decode()
    assert the_request(here) == {
        "prompt": "character1 waves to character2",
        "references": [f"data:video/mp4;base64,{data}", url],
        "size": "1280*720",
        "aspect_ratio": "9:16",
        "duration": 5,
        "shot_type": "single",
        "seed": -1,
        "enable_prompt_expansion": False,
        "enable_safety_checker": True,
    }
    page.get_by_label("Picture", exact=True).check()
    page.get_by_role("button", name="Use again").click()
    names = page.locator("#references-list .grow")
    expect(names).to_have_text(["character1 anna.mp4, 2 KB", f"character2 {url}"])
    expect(page.get_by_label("9:16")).to_be_checked()


def test_text_alone_is_enough(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = begun(open_page, here)
    page.get_by_label("Prompt", exact=True).fill("a street in the rain")
    generate(page)
    finished(page)
    request = the_request(here)
    assert request["references"] == [] and "image" not in request


def test_a_video_that_does_not_fit_in_a_request_is_reported_at_once(
    listen: Listen, open_page: Open, film: Path
) -> None:
    page = begun(open_page, listen())
    film.write_bytes(bytes(9 * 2**20))
    page.locator("#references-file").set_input_files(film)
    expect(page.locator("#references-error")).to_have_text(
        "This video has 9.0 MB; 7.5 MB are left: give its URL"
    )
    page.get_by_label("URL of a reference").fill("anna.mp4")
    page.get_by_label("URL of a reference").press("Enter")
    expect(page.locator("#references-error")).to_have_text("It must start with http:// or https://")


@pytest.mark.parametrize(
    ("api", "language"), [("Runpod", "curl"), ("AI/ML API", "Python"), ("Oxen", "JavaScript")]
)
def test_the_code_of_the_page_runs(
    listen: Listen, open_page: Open, film: Path, tmp_path: Path, api: str, language: str
) -> None:
    here = listen(api_keys=ENTRY)
    page = begun(open_page, here)
    page.locator("#references-file").set_input_files(film)
    url = f"{here.url}/none.mov?a='1'&b=\"2\""
    page.get_by_label("URL of a reference").fill(url)
    page.get_by_role("button", name="Add the reference").click()
    pick(page, "Shape", "3:4")
    page.get_by_label("Prompt", exact=True).fill(HOSTILE)
    command, suffix = PROGRAMS[language]
    printed = run(command, code(page, api, language), tmp_path, suffix)
    assert httpx.get(printed_url(printed)).content == CLIP
    request = the_request(here)
    data = base64.b64encode(film.read_bytes()).decode()
    assert request["references"] == [f"data:video/mp4;base64,{data}", url]
    assert (request["aspect_ratio"], request["size"]) == ("3:4", "1280*720")
    assert request["prompt"] == HOSTILE
