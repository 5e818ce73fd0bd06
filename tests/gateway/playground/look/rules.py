"""The rules that a machine can check of the page as it is shown now."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page

AXE = Path(__file__).parents[3] / "system" / "node_modules" / "axe-core" / "axe.min.js"
"""The accessibility rules of Deque's axe (MPL-2.0), from npm; the page itself never loads them."""
_RULES = Path(__file__).with_name("rules.js").read_text("utf-8")
_RUN_AXE = """async () => {
    const { violations } = await axe.run(document, { resultTypes: ["violations"] });
    return violations.flatMap(({ id, nodes }) =>
        nodes.map(({ target, failureSummary }) =>
            `axe ${id}: ${target.join(" ")}: ${failureSummary.replace(/\\s+/g, " ")}`));
}"""


def faults(page: Page, width: int) -> list[str]:
    """What is wrong in a window of `width` pixels: a sentence each."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text("utf-8"))
    found: list[str] = [*page.evaluate(_RULES, width), *page.evaluate(_RUN_AXE)]
    return found
