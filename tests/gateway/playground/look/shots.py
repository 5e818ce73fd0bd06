"""Looks at a state in every width and both schemes: what is wrong, and pictures of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page

from tests.gateway.playground.look.keyboard import faults_of_keys
from tests.gateway.playground.look.rules import faults
from tests.gateway.playground.look.sheets import sheet
from tests.gateway.playground.look.stand import Stand
from tests.gateway.playground.look.states import PAGE, State

Scheme = Literal["light", "dark"]
WIDTHS = (320, 390, 768, 1280)
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
_DRAWN = "() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
_BAR = "position => { document.querySelector('.send').style.position = position; }"
_HEIGHTS = {320: 640, 390: 844, 768: 1024, 1280: 900}


@dataclass(frozen=True)
class Look:
    """One state in one window. `wrong` are sentences."""

    width: int
    scheme: Scheme
    wrong: Sequence[str]


def looks(
    page: Page, widths: Sequence[int] = WIDTHS, schemes: Sequence[Scheme] = SCHEMES
) -> Iterator[Look]:
    """Change the window to each width and scheme, and check it there."""
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width in widths:
            page.set_viewport_size({"width": width, "height": _HEIGHTS[width]})
            page.evaluate(
                "() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
            )
            yield Look(width, scheme, faults(page, width))


def keys(page: Page, widths: Sequence[int] = (390, 1280)) -> Iterator[Look]:
    """Walk by the keyboard at each width; the focus is the same in both schemes."""
    for width in widths:
        page.set_viewport_size({"width": width, "height": _HEIGHTS[width]})
        yield Look(width, "light", faults_of_keys(page))


def photograph(state: State, browser: Browser, folder: Path) -> list[Look]:
    """Look at `state` everywhere. `folder` gets a picture of each whole page, and `sheets/` one
    picture of the part that matters in all of them."""
    stand = Stand(browser)
    try:
        state.reach(stand)
        stand.page.mouse.move(0, 0)
        found = []
        parts: dict[Scheme, list[Path]] = {"light": [], "dark": []}
        for look in looks(stand.page):
            found.append(look)
            parts[look.scheme].append(_shoot(stand.page, state, look, folder))
        found += keys(stand.page)
        (folder / "sheets").mkdir(exist_ok=True)
        sheet(list(parts.values()), folder / "sheets" / f"{state.name}.png")
        (folder / "sheets" / f"{state.name}.txt").write_text(_read_aloud(stand.page))
        return found
    finally:
        stand.close()


def _shoot(page: Page, state: State, look: Look, folder: Path) -> Path:
    """The whole page, and the part: of the whole page that is what is seen of it first."""
    page.evaluate("scrollTo(0, 0)")
    whole = folder / f"{state.name}-{look.width}-{look.scheme}.png"
    page.screenshot(path=whole, full_page=True)
    part = folder / "parts" / whole.name
    if state.part == PAGE:
        page.screenshot(path=part)
    else:
        page.evaluate(_BAR, "static")  # or the bar lies over a part of the form
        page.locator(state.part).screenshot(path=part)
        page.evaluate(_BAR, "")
    return part


def _read_aloud(page: Page) -> str:
    """What a screen reader knows of the page."""
    return page.locator("body").aria_snapshot() + "\n"
