"""What a job was made from, in a browser that did not send it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
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
LAST = DATA / "astronaut_360x480.png"


def content(data_uri: str) -> bytes:
    return base64.b64decode(data_uri.partition(";base64,")[2])


def newest(here: Listening, count: int) -> dict[str, Any]:
    until(lambda: len(here.backend.requests) == count)
    request = list(here.backend.requests.values())[-1]
    assert isinstance(request, dict)
    return request


def send(page: Page, prompt: str) -> None:
    fill(page, prompt)
    page.locator("#audio-file").set_input_files(SOUND)
    expect(page.locator("#audio-note")).to_contain_text(SOUND.name)
    page.get_by_label("Negative prompt").fill("blur")
    pick(page, "Length", "10 s")
    row = page.get_by_role("combobox", name="LoRA 1", exact=True)
    row.select_option("anna")
    generate(page)


def use_again(page: Page) -> None:
    page.locator("#shared").get_by_role("button", name="Use again").click()
    expect(page.locator("#prompt")).to_be_focused()


def test_a_job_that_failed_is_sent_again_by_another_browser_with_the_same_files(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    here.backend.loras = {"image-to-video": ["anna"]}
    page = open_page(here.url)
    send(page, "fail:internal_error:Out of film")
    expect(page.locator("#failure")).to_be_visible()
    first = newest(here, 1)
    elsewhere = open_page(page.url)
    expect(elsewhere.locator("#failure")).to_have_text("Out of film")
    shared = elsewhere.locator("#shared")
    expect(shared.locator("#shared-prompt")).to_have_text("fail:internal_error:Out of film")
    expect(shared.locator("#shared-options")).to_have_text(
        "720p, 10 s, one shot, a random seed, LoRA anna at 1, negative prompt: blur"
    )
    picture = shared.get_by_alt_text("Its picture")
    expect(picture).to_have_js_property("naturalWidth", 640)
    expect(shared.locator("#shared-missing")).to_be_empty()
    use_again(elsewhere)
    expect(elsewhere.locator("#image-note")).to_contain_text("picture.jpeg, 640 × 360")
    expect(elsewhere.locator("#audio-note")).to_contain_text("sound.mpeg, 4.0 s")
    generate(elsewhere)
    assert newest(here, 2) == first


def test_what_the_gateway_no_longer_has_of_a_finished_job_must_be_chosen_again(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    here.backend.loras = {"image-to-video": ["anna"]}
    page = open_page(here.url, allowed=NO_CLIP)
    send(page, "Finished")
    finished(page)
    first = newest(here, 1)
    elsewhere = open_page(page.url, allowed=NO_CLIP)
    finished(elsewhere)
    expect(elsewhere.locator("#shared-prompt")).to_have_text("Finished")
    expect(elsewhere.locator("#shared-missing")).to_have_text(
        "The server keeps files only until a clip is finished, "
        "so its picture and its sound must be chosen again."
    )
    use_again(elsewhere)
    for kind, name in (("image", "picture"), ("audio", "sound")):
        expect(elsewhere.locator(f"#{kind}-error")).to_have_text(
            f"Choose the {name} again: the server does not have it any longer"
        )
    generate(elsewhere)
    assert len(here.backend.requests) == 1
    elsewhere.locator("#image-file").set_input_files(PHOTO)
    elsewhere.locator("#audio-file").set_input_files(SOUND)
    expect(elsewhere.locator("#audio-note")).to_contain_text(SOUND.name)
    generate(elsewhere)
    assert newest(here, 2) == first


def test_a_picture_that_was_seen_while_the_job_ran_is_used_again_after_its_end(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    here.backend.hold()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page, "Watched")
    generate(page)
    expect(page.locator("#stage")).to_have_text("Rendering, 1 of 4")
    elsewhere = open_page(page.url, allowed=NO_CLIP)
    expect(elsewhere.get_by_alt_text("Its picture")).to_have_js_property("naturalWidth", 640)
    here.backend.release()
    finished(elsewhere)
    expect(elsewhere.get_by_alt_text("Its picture")).to_be_visible()
    elsewhere.get_by_role("button", name="Same seed again").click()
    expect(elsewhere.locator("#image-note")).to_contain_text("640 × 360")
    generate(elsewhere)
    request = newest(here, 2)
    assert content(request["image"]) == PHOTO.read_bytes() and request["seed"] == 7


def test_references_come_back_in_their_order(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.models = {"reference-to-video": "wan2.2-vace-fun-a14b"}
    page = open_page(here.url)
    for file in (PHOTO, LAST):
        page.locator("#references-file").set_input_files(file)
        expect(page.locator("#references-list")).to_contain_text(file.name)
    page.get_by_label("Prompt", exact=True).fill("fail:internal_error:No")
    pick(page, "Shape", "1:1")
    generate(page)
    expect(page.locator("#failure")).to_be_visible()
    first = newest(here, 1)
    elsewhere = open_page(page.url)
    expect(elsewhere.get_by_alt_text("Its character2")).to_have_js_property("naturalWidth", 360)
    use_again(elsewhere)
    expect(elsewhere.locator("#references-list li")).to_have_count(2)
    generate(elsewhere)
    assert newest(here, 2) == first


def test_a_portrait_of_a_program_is_used_again_with_its_size_and_shape(
    listen: Listen, open_page: Open
) -> None:
    """The form has such a size as a size and a shape, and the request has no seed and no shots."""
    here = listen()
    here.backend.models = {"reference-to-video": "wan2.2-vace-fun-a14b"}
    wanted = {"prompt": "fail:internal_error:No", "size": "1080*1920", "duration": 10}
    job_id = httpx.post(f"{here.url}/v2/wan-2-6-t2v/run", json={"input": wanted}).json()["id"]
    page = open_page(f"{here.url}/?job={job_id}")
    expect(page.locator("#failure")).to_be_visible()
    use_again(page)
    for name in ("1080p", "10 s", "9:16"):
        expect(page.get_by_label(name, exact=False).and_(page.locator(":checked"))).to_have_count(1)
    generate(page)
    request = newest(here, 2)
    assert (request["prompt"], request["duration"]) == (wanted["prompt"], 10)
    assert (request["size"], request["aspect_ratio"]) == ("1920*1080", "9:16")


def test_the_facts_of_a_clip_whose_request_named_no_size(listen: Listen, open_page: Open) -> None:
    here = listen()
    picture = f"data:image/jpeg;base64,{base64.b64encode(PHOTO.read_bytes()).decode()}"
    wanted = {"prompt": "x", "image": picture}
    job_id = httpx.post(f"{here.url}/v2/wan-2-6-i2v/run", json={"input": wanted}).json()["id"]
    page = open_page(f"{here.url}/?job={job_id}", allowed=NO_CLIP)
    finished(page)
    expect(page.locator("#facts")).to_contain_text("Length")
    expect(page.locator("#shared-options")).to_contain_text("720p, 5 s")


def posted(here: Listening, **wanted: Any) -> str:
    """The id of a job that a program has sent."""
    answer = httpx.post(f"{here.url}/v2/wan-2-6-i2v/run", json={"input": wanted})
    return str(answer.json()["id"])


def uri_of(content: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_a_missing_reference_has_its_own_name(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.models = {"reference-to-video": "wan2.2-vace-fun-a14b"}
    url = f"{here.url}/none.jpg"
    job_id = posted(here, prompt="x", references=[url, uri_of(PHOTO.read_bytes())])
    page = open_page(f"{here.url}/?job={job_id}", allowed=NO_CLIP)
    finished(page)
    use_again(page)
    expect(page.locator("#references-list")).to_contain_text(f"character1 {url}")
    expect(page.locator("#references-error")).to_have_text(
        "Choose the character2 again: the server does not have it any longer"
    )


def test_a_reference_that_is_missing_is_named_though_another_comes_from_the_server(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    here.backend.models = {"reference-to-video": "wan2.2-vace-fun-a14b"}
    references = [uri_of(PHOTO.read_bytes()), uri_of(LAST.read_bytes())]
    job_id = posted(here, prompt="fail:internal_error:No", references=references)
    page = open_page(f"{here.url}/?job={job_id}", allowed=("404",))
    expect(page.get_by_alt_text("Its character1")).to_have_js_property("naturalWidth", 640)
    page.route("**/request/references?at=1", lambda route: route.fulfill(status=404, json={}))
    page.reload()
    expect(page.get_by_alt_text("Its character1")).to_have_js_property("naturalWidth", 640)
    use_again(page)
    expect(page.locator("#references-list li")).to_have_count(1)
    expect(page.locator("#references-error")).to_contain_text("Choose the character2 again")


def test_a_picture_comes_back_whole_though_the_form_was_full(
    listen: Listen, open_page: Open, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1250, 1333, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png", compress_level=0)
    noise = (tmp_path / "noise.png").read_bytes()
    here = listen()
    here.backend.models = {"image-to-video": "wan2.2-i2v-a14b"}
    wanted = {"prompt": "fail:internal_error:No", "image": uri_of(noise, "image/png")}
    page = open_page(f"{here.url}/?job={posted(here, **wanted)}")
    expect(page.locator("#shared-prompt")).not_to_be_empty()
    page.locator("#last-file").set_input_files(tmp_path / "noise.png")
    expect(page.locator("#last-note")).to_contain_text("noise.png")
    use_again(page)
    expect(page.locator("#image-note")).to_contain_text("picture.png, 1333 × 1250")
    generate(page)
    assert content(newest(here, 2)["image"]) == noise


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_a_type_that_is_code_is_not_part_of_the_code(
    listen: Listen, open_page: Open, language: str
) -> None:
    """Someone with the same key sends it, and another one copies the code of its form."""
    here = listen()
    here.backend.models = {"reference-to-video": "wan2.2-vace-fun-a14b"}
    shell, text = "video/$(touch stolen)", "image/x\nJSON\ntouch stolen\n"
    quotes = 'video/mp4", touch("stolen'
    files = [uri_of(b"no film", shell), uri_of(PHOTO.read_bytes(), text), uri_of(b"no", quotes)]
    job_id = posted(here, prompt="fail:internal_error:No", references=files)
    page = open_page(f"{here.url}/?job={job_id}")
    expect(page.locator("#failure")).to_be_visible()
    use_again(page)
    expect(page.locator("#references-list li").first).to_be_visible()
    pick(page, "Language", language)
    assert "touch" not in (page.locator("#code").text_content() or "")
