"""The LoRA files that the server has, in the form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import NO_CLIP, Open, fill, finished, generate, pick

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]


def row(page: Page, number: int) -> Locator:
    return page.get_by_role("combobox", name=f"LoRA {number}", exact=True)


def newest(here: Listening) -> dict[str, Any]:
    request = list(here.backend.requests.values())[-1]
    assert isinstance(request, dict)
    return request


def test_loras_of_the_server_are_chosen_sent_and_sent_again(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    here.backend.loras = {"image-to-video": ["motion", "people/anna"]}
    page = open_page(here.url, allowed=NO_CLIP)
    first, second = (row(page, number) for number in (1, 2))
    expect(first).to_be_visible()
    assert first.locator("option").all_inner_texts() == ["None", "motion", "people/anna"]
    expect(second).to_be_hidden()
    fill(page)
    first.select_option("people/anna")
    page.get_by_label("Scale of LoRA 1").fill("0.8")
    second.select_option("motion")
    generate(page)
    finished(page)
    chosen = [{"name": "people/anna", "scale": 0.8}, {"name": "motion", "scale": 1}]
    assert newest(here)["loras"] == chosen
    expect(page.locator("#facts")).to_contain_text("LoRApeople/anna at 0.8, motion at 1")
    page.reload()
    expect(second).to_have_value("motion")
    first.select_option("")
    page.get_by_role("button", name="Use again").first.click()
    expect(first).to_have_value("people/anna")
    expect(page.get_by_label("Scale of LoRA 1")).to_have_value("0.8")
    code = page.locator("#code")
    expect(code).to_contain_text('"loras"')
    pick(page, "API", "OpenAI")
    expect(code).to_contain_text('"lora"')
    pick(page, "API", "Oxen")
    expect(page.locator("#code-note")).to_contain_text("Oxen takes no LoRA.")


def test_what_cannot_be_sent_is_said(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.loras = {"image-to-video": ["motion", "style"]}
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    row(page, 1).select_option("motion")
    row(page, 2).select_option("motion")
    error = page.locator("#loras-error")
    generate(page)
    expect(error).to_have_text("The same LoRA is chosen twice")
    row(page, 2).select_option("style")
    expect(error).to_be_empty()
    page.get_by_label("Scale of LoRA 2").fill("5")
    generate(page)
    expect(error).to_have_text("The scale is a number from -4 to 4")
    expect(page.get_by_label("Scale of LoRA 2")).to_be_focused()
    assert here.backend.requests == {}
    page.get_by_label("Scale of LoRA 2").fill("-4")
    here.backend.loras = {"image-to-video": ["motion"]}
    page.reload()
    generate(page)
    expect(error).to_contain_text("The server has no LoRA “style”")
    row(page, 2).select_option("")
    generate(page)
    finished(page)
    assert newest(here)["loras"] == [{"name": "motion", "scale": 1}]


def test_nothing_is_shown_where_the_server_has_none(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    generate(page)
    finished(page)
    expect(page.locator("#loras")).to_be_hidden()
    assert "loras" not in newest(here)


def test_names_are_typed_where_an_endpoint_does_not_tell_them(
    listen: Listen, open_page: Open
) -> None:
    here = listen()
    here.backend.loras = None
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    page.get_by_role("textbox", name="LoRA 1", exact=True).fill("anna")
    expect(page.get_by_role("textbox", name="LoRA 2", exact=True)).to_be_visible()
    generate(page)
    finished(page)
    assert newest(here)["loras"] == [{"name": "anna", "scale": 1}]


def test_each_kind_of_clip_has_the_loras_of_its_model(listen: Listen, open_page: Open) -> None:
    here = listen()
    here.backend.models = {
        "image-to-video": "wan2.2-i2v-a14b",
        "reference-to-video": "wan2.2-vace-fun-a14b",
    }
    here.backend.loras = {"image-to-video": ["motion"], "reference-to-video": []}
    page = open_page(here.url)
    expect(page.locator("#loras")).to_be_visible()
    page.get_by_label("Text or references", exact=True).check()
    expect(page.locator("#loras")).to_be_hidden()
