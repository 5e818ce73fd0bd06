"""The page with a keyboard, for a screen reader, in dark mode and on a phone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import NO_CLIP, PHOTO, Open, fill, finished, generate

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]

# The focused element: its name, and whether the focus is visible on it or on its label.
FOCUSED = """() => {
    const field = document.activeElement;
    const hidden = field.matches(".visually-hidden, .segments input");
    const shown = hidden ? field.nextElementSibling : field;
    const style = getComputedStyle(shown);
    const box = shown.getBoundingClientRect();
    const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return {
        id: field.id || field.name || field.textContent.trim(),
        outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
        seen: shown.contains(top) || top?.contains(shown) || field === top,
    };
}"""

# Every visible text, with its colour and the colour behind it.
CONTRASTS = """() => {
    const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = channel => {
        const part = channel / 255;
        return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    };
    const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
    const behind = element => {
        for (let one = element; one; one = one.parentElement) {
            const [r, g, b, alpha = 1] = rgb(getComputedStyle(one).backgroundColor);
            if (alpha === 1) return [r, g, b];
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const text = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!(text || element.placeholder) || !element.checkVisibility()) continue;
        const pseudo = element.placeholder && !element.value ? "::placeholder" : null;
        const [one, other] = [rgb(getComputedStyle(element, pseudo).color), behind(element)]
            .map(luminance).sort((a, b) => b - a);
        const name = element.id || element.className || element.tagName;
        found.push([(one + 0.05) / (other + 0.05), name, element.textContent.trim().slice(0, 40)]);
    }
    return found;
}"""


def everything_shown(page: Page) -> None:
    """A page with a cancelled, a failed and a running job, and an error in the form."""
    for prompt, state in (("fail:internal_error:Out of film", "failed"), ("hang", "working")):
        fill(page, prompt)
        generate(page)
        expect(page.locator("#history .state").first).to_have_text(state)
    page.get_by_role("button", name="Show: fail").click()
    expect(page.locator("#failure")).to_be_visible()
    page.get_by_role("group", name="Shots").get_by_label("Several").check()
    page.get_by_label("Prompt", exact=True).fill("x" * 1501)
    page.get_by_label("Seed").fill("-5")
    generate(page)
    expect(page.locator("#seed-error")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(
    listen: Listen, open_page: Open, scheme: Literal["light", "dark"]
) -> None:
    page = open_page(listen().url, color_scheme=scheme)
    everything_shown(page)
    page.locator("#send").blur()
    page.mouse.move(0, 0)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 50
    assert [one for one in found if one[0] < 4.5] == []


def test_it_is_dark_where_the_system_is_dark(listen: Listen, open_page: Open) -> None:
    here = listen()
    grounds = {}
    for scheme in ("light", "dark"):
        page = open_page(here.url, color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        grounds[scheme] = [int(part) for part in colour[4:-1].split(",")]
    assert min(grounds["light"]) > 230 and max(grounds["dark"]) < 40


@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_is_wider_than_a_narrow_screen(listen: Listen, open_page: Open, width: int) -> None:
    page = open_page(
        listen().url, viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True
    )
    everything_shown(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.locator(
        "button:visible, input:visible, textarea:visible, p:visible"
    ).evaluate_all(
        """(all, width) => all.filter(one => !one.matches(".visually-hidden")).filter(one => {
            const box = one.getBoundingClientRect();
            return box.left < 0 || box.right > width;
        }).map(one => one.outerHTML)""",
        width,
    )
    assert outside == []
    small = page.locator("button:visible, a.button:visible, .segments label:visible").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).filter(box => box.height < 28)"
    )
    assert small == []


def test_on_a_phone_the_result_scrolls_into_view(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url, viewport={"width": 360, "height": 740})
    fill(page, "hang")
    generate(page)
    expect(page.locator("#stage")).to_be_in_viewport()


def test_a_video_can_be_made_with_the_keyboard_alone(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP, viewport={"width": 1280, "height": 700})
    # Chromium hands over file choosers a moment after the first listener asks for them.
    page.on("filechooser", lambda _chooser: None)
    page.wait_for_load_state("networkidle")  # the form shows what the server's models take
    reached = []

    def tab_to(wanted: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            focused = page.evaluate(FOCUSED)
            reached.append(focused["id"])
            assert focused["outline"], f"the focus on {focused['id']} is not seen"
            assert focused["seen"], f"{focused['id']} is covered while it has the focus"
            if focused["id"] == wanted:
                return
        raise AssertionError(f"{wanted} is not reached: {reached}")

    tab_to("Skip to the form")
    tab_to("image-file")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(PHOTO)
    expect(page.locator("#image-note")).to_contain_text("640 × 360")
    tab_to("prompt")
    page.keyboard.type("By hand")
    tab_to("size")
    page.keyboard.press("ArrowRight")
    tab_to("duration")
    page.keyboard.press("ArrowRight")
    tab_to("seed")
    page.keyboard.press("Control+A")
    page.keyboard.type("5")
    tab_to("expansion")
    page.keyboard.press("Space")
    tab_to("send")
    page.keyboard.press("Enter")
    expect(page.locator("#result")).to_be_focused()
    finished(page)
    page.wait_for_load_state("networkidle")  # the card is drawn again once its size is known
    tab_to("download")
    tab_to("again")
    page.keyboard.press("Enter")
    expect(page.locator("#seed")).to_be_focused()
    expect(page.locator("#seed")).to_have_value("7")
    (request,) = here.backend.requests.values()
    assert isinstance(request, dict)
    chosen = {name: request[name] for name in ("prompt", "size", "duration", "seed")}
    assert chosen == {"prompt": "By hand", "size": "1920*1080", "duration": 10, "seed": 5}


def test_removing_from_the_history_keeps_the_focus(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url)
    for number in range(3):
        fill(page, f"fail:internal_error:Number {number}")
        generate(page)
        expect(page.locator("#failure")).to_have_text(f"Number {number}")
    page.get_by_role("button", name="Remove: fail:internal_error:Number 1").focus()
    page.keyboard.press("Enter")
    focused = "document.activeElement.ariaLabel"
    assert page.evaluate(focused) == "Remove: fail:internal_error:Number 0"
    page.keyboard.press("Enter")
    assert page.evaluate(focused) == "Remove: fail:internal_error:Number 2"
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_be_focused()


def test_every_field_has_a_name(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url)
    nameless = page.locator("input, textarea, button, select, audio, video, progress").evaluate_all(
        """all => all.filter(one => !(one.labels?.length || one.getAttribute("aria-label")
            || one.textContent.trim())).map(one => one.outerHTML)"""
    )
    assert nameless == []
    described = page.locator("[aria-describedby], [aria-labelledby]").evaluate_all(
        """all => all.flatMap(one => [one.getAttribute("aria-describedby"),
            one.getAttribute("aria-labelledby")]).filter(Boolean).flatMap(ids => ids.split(" "))
            .filter(id => !document.getElementById(id))"""
    )
    assert described == []
    assert page.locator("h1").count() == 1 and page.locator("main").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
