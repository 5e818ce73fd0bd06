"""Names of references in a prompt: which reference each name means, and the words that replace
it."""

from __future__ import annotations

from typing import Any

import pytest

from wan_engine.errors import InvalidRequest
from wan_engine.prompts.subjects import check_subjects, with_words
from wan_engine.schema import Order, Script, ScriptShot

URL = "https://example.com/a.mp4"


def order(prompt: str, references: Any = (URL, URL)) -> Order:
    return Order(prompt, references=references)


def words(prompt: str) -> str:
    script = with_words(Script((ScriptShot(prompt, 5),)), order(prompt))
    return script.shots[0].prompt


@pytest.mark.parametrize("name", ["character1", "Character1", "@Video1", "@video1", "@Image1"])
def test_every_spelling_means_the_reference_of_its_number(name: str) -> None:
    assert words(f"On the beach {name} waves") == "On the beach the first subject waves"
    assert words(f"{name} waves. {name} smiles") == (
        "The first subject waves. The first subject smiles"
    )


def test_a_chinese_prompt_gets_chinese_words() -> None:
    assert words("character1在海边和@Video2跳舞") == "第一个主体在海边和第二个主体跳舞"


@pytest.mark.parametrize(
    "text", ["characters10x", "the character 1", "me@video1.com", "video1 plays", "x@Image1"]
)
def test_words_that_only_look_like_a_name_stay(text: str) -> None:
    check_subjects(order(text))
    assert words(text) == text


@pytest.mark.parametrize(
    ("prompt", "references", "said"),
    [
        ("character3 waves", (URL, URL), "names character3, but there are 2 references"),
        ("@Video0 waves", (URL,), "names @Video0, but there is 1 reference"),
        ("@Image1 waves", (), "names @Image1, but there are 0 references"),
        ("character9999 waves", (URL,), "names character9999, but there is 1 reference"),
    ],
)
def test_a_name_without_a_reference_is_an_error(
    prompt: str, references: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=f'^field "prompt" {said}$'):
        check_subjects(order(prompt, references))


def test_the_prompt_of_a_picture_is_not_changed() -> None:
    plain = Order("character9 waves", image=URL)
    check_subjects(plain)
    script = Script((ScriptShot("character9 waves", 5),))
    assert with_words(script, plain) is script
