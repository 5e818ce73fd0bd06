"""The rules of `look` hold in the states that matter most; the command looks at all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from playwright.sync_api import Browser, Page

from tests.gateway.playground.look.keyboard import faults_of_keys
from tests.gateway.playground.look.rules import faults
from tests.gateway.playground.look.shots import keys, looks
from tests.gateway.playground.look.stand import Stand
from tests.gateway.playground.look.states import STATES

pytestmark = pytest.mark.system

BROKEN = {
    "the page is": "document.querySelector('main').style.width = '2000px'",
    "sticks out of": "Object.assign(of('media-title').style, {width: '9px', whiteSpace: 'nowrap'})",
    "is cut by": "Object.assign(of('media-title').style, {height: '5px', overflow: 'hidden'})",
    "has its word": "Object.assign(of('send').style, {minWidth: 0, width: '70px', flex: 'none', "
    "overflowWrap: 'anywhere'})",
    "placeholder": "Object.assign(of('image-url').style, {width: '60px'})",
    "lie over each other": "of('prompt').style.transform = 'translateY(60px)'",
    "to tap": "Object.assign(of('send').style, {minHeight: 0, height: '15px', padding: 0})",
    "a phone zooms": "of('prompt').style.fontSize = '14px'",
    "axe label": "document.querySelector('label[for=seed]').remove()",
    "axe color-contrast": "of('size-note').style.color = '#ccc'",
}
BROKEN_FOR_KEYS = {
    "the focus on send is not seen": "of('send').style.outline = 'none'",
    "send is not reached by Tab": "of('send').tabIndex = -1",
    "seed is covered": "Object.assign(of('size-note').style, {position: 'fixed', inset: 0})",
}
"""What breaks the page, by what a rule then says."""


@pytest.mark.parametrize(
    "name",
    [
        "start",
        "key-wrong",
        "refused-here",
        "references",
        "sound-chosen",
        "finished-with-warnings",
        "gallery",
    ],
)
def test_nothing_is_wrong(browser: Browser, name: str) -> None:
    stand = Stand(browser)
    try:
        STATES[name].reach(stand)
        found = [
            *looks(stand.page, widths=(320,), schemes=("dark",)),
            *looks(stand.page, widths=(1280,), schemes=("light",)),
            *keys(stand.page, widths=(1280,)),
        ]
        assert [(look.width, look.scheme, look.wrong) for look in found if look.wrong] == []
    finally:
        stand.close()


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        pytest.param(BROKEN, lambda page: faults(page, 390), id="looks"),
        pytest.param(BROKEN_FOR_KEYS, faults_of_keys, id="keys"),
    ],
)
def test_each_rule_finds_what_it_is_for(
    browser: Browser, broken: Mapping[str, str], found: Callable[[Page], list[str]]
) -> None:
    stand = Stand(browser)
    try:
        page = stand.open()
        page.set_viewport_size({"width": 390, "height": 844})
        assert found(page) == []
        for sentence, script in broken.items():
            page.reload()
            page.locator("body[data-restored]").wait_for()
            page.evaluate(f"() => {{ const of = id => document.getElementById(id); {script}; }}")
            assert any(sentence in one for one in found(page)), sentence
    finally:
        stand.close()
