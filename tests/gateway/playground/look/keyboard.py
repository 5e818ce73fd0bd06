"""What the keyboard reaches of the page as it is now, and whether the focus is seen there."""

from __future__ import annotations

from playwright.sync_api import Page

_MOST_STOPS = 150

_BEGIN = """() => {
    window.reached = new Set();
    document.querySelector(".skip").focus();
}"""

# What has the focus now: null at the end of the page, else what is wrong with it.
_STOP = """() => {
    const field = document.activeElement;
    if (!field || field === document.body || field.matches(".skip")) return null;
    if (window.reached.has(field)) return []; // the controls of a player are stops within it
    window.reached.add(field);
    const hidden = field.matches(".visually-hidden, .segments input");
    const shown = hidden ? field.nextElementSibling : field;
    const style = getComputedStyle(shown);
    const box = shown.getBoundingClientRect();
    const seenAt = share => {
        const y = Math.min(Math.max(box.y + box.height * share, 0), innerHeight - 1);
        const top = document.elementFromPoint(box.x + box.width / 2, y);
        return shown.contains(top) || top?.contains(shown) || field === top;
    };
    const name = field.id || field.name || field.ariaLabel || field.textContent.trim();
    const wrong = [];
    if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 2)
        wrong.push(`the focus on ${name} is not seen`);
    if (![0.1, 0.5, 0.9].some(seenAt))
        wrong.push(`${name} is covered while it has the focus`);
    return wrong;
}"""

_UNREACHED = """() => {
    const worked = "a[href], button, input, textarea, select, [tabindex='0'], [controls]";
    const wanted = [...document.querySelectorAll(worked)].filter(one =>
        one.checkVisibility() && !one.matches(".skip, [type=radio]:not(:checked)"));
    return wanted.filter(one => !window.reached.has(one))
        .map(one => `${one.id || one.name || one.textContent.trim()} is not reached by Tab`);
}"""


def faults_of_keys(page: Page) -> list[str]:
    """Walk through the page by Tab: a sentence for each control that is not reached, and for each
    whose focus is not seen. The focus is at the top afterwards."""
    page.evaluate(_BEGIN)
    found: list[str] = []
    for _ in range(_MOST_STOPS):
        page.keyboard.press("Tab")
        wrong = page.evaluate(_STOP)
        if wrong is None:
            break
        found += wrong
    found += page.evaluate(_UNREACHED)
    page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
    return found
