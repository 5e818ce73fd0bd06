"""Reads how a prompt names its references: `character1`, `@Video1`, `@Image1`, numbered in their
order.

The hosted APIs bind references by these names. Open models bind them by description, so the names
become words.
"""

from __future__ import annotations

import re
from dataclasses import replace

from wan_engine.errors import InvalidRequest
from wan_engine.schema import Order, Script

# Chinese has no spaces after a name, so only a Latin letter or a digit continues it.
_NAME = re.compile(
    r"(?<![A-Za-z0-9@])(?:@(?:video|image|character)|character)(\d{1,4})(?![A-Za-z0-9])", re.I
)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_ENGLISH_WORDS = ("first", "second", "third", "fourth", "fifth")
_CHINESE_WORDS = "一二三四五"


def check_subjects(order: Order) -> None:
    """Raise `InvalidRequest` if the prompt names a reference that the order lacks. Prompts of
    image-to-video have no such names."""
    if order.references is None:
        return
    count = len(order.references)
    for found in _NAME.finditer(order.prompt):
        if not 1 <= int(found[1]) <= count:
            there = "is 1 reference" if count == 1 else f"are {count} references"
            raise InvalidRequest(f'field "prompt" names {found[0]}, but there {there}')


def with_words(script: Script, order: Order) -> Script:
    """The script with descriptions instead of the names of references."""
    if not order.references:
        return script
    shots = (
        replace(
            shot,
            prompt=_in_words(shot.prompt),
            camera=_in_words(shot.camera),
            sound=_in_words(shot.sound),
        )
        for shot in script.shots
    )
    return Script(tuple(shots))


def _in_words(text: str) -> str:
    chinese = _CHINESE.search(text) is not None

    def word(found: re.Match[str]) -> str:
        number = int(found[1])
        if not 1 <= number <= len(_ENGLISH_WORDS):
            return found[0]  # a name that a prompt writer invented
        if chinese:
            return f"第{_CHINESE_WORDS[number - 1]}个主体"
        words = f"the {_ENGLISH_WORDS[number - 1]} subject"
        begins = text[: found.start()].rstrip().endswith((".", "!", "?")) or not found.start()
        return words[0].upper() + words[1:] if begins else words

    return _NAME.sub(word, text)
