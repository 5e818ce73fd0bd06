"""The field `loras`: valid values, and the sentence for each invalid one."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_engine.errors import InvalidRequest
from wan_engine.schema import Lora, parse_request

PICTURE = {"prompt": "x", "image": "https://a.io/a.png"}
PAGES: list[dict[str, Any]] = [
    PICTURE,
    {"prompt": "x", "references": []},
    {"prompt": "x", "first_clip": "https://a.io/a.mp4"},
]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    ("said", "loras"),
    [
        (["anna"], (Lora("anna"),)),
        ([" people/anna.safetensors "], (Lora("people/anna"),)),
        ([{"name": "anna", "scale": -4}], (Lora("anna", -4.0),)),
        ([{"name": "anna", "scale": None, "expert": None}], (Lora("anna"),)),
        (
            [{"name": "a", "scale": 0.5, "expert": "both"}, "b", "c", "d"],
            (Lora("a", 0.5, "both"), Lora("b"), Lora("c"), Lora("d")),
        ),
        (
            [{"name": "a", "expert": "high"}, {"name": "a", "scale": 0.5, "expert": "low"}],
            (Lora("a", 1.0, "high"), Lora("a", 0.5, "low")),
        ),
        ([], ()),
        (None, ()),
        ("", ()),  # as forms send it
    ],
)
def test_names_and_objects_of_each_page_are_accepted(
    page: dict[str, Any], said: Any, loras: tuple[Lora, ...]
) -> None:
    assert parse_request({**page, "loras": said}).order().loras == loras


NAME = "must be a name without its folder's path, such as style or people/anna, got"
WRONG: list[tuple[Any, str]] = [
    ("anna", '"loras" must be an array of at most 4 names or objects, got string "anna"'),
    ({"name": "anna"}, '"loras" must be an array of at most 4 names or objects, got object'),
    (["a", "b", "c", "d", "e"], '"loras" must have at most 4 entries, got 5'),
    ([7], '"loras[0]" must be a name or an object, got number 7'),
    ([[]], '"loras[0]" must be a name or an object, got array'),
    ([{}], '"loras[0].name" is required'),
    ([{"name": 7}], f'"loras[0].name" {NAME} number 7'),
    (
        [{"name": "a", "strength": 1}],
        '"loras[0]" must have name, scale, expert and nothing else, got string "strength"',
    ),
    ([{"name": "a", "scale": 4.5}], '"loras[0].scale" must be a number from -4 to 4, got number '),
    ([{"name": "a", "scale": math.nan}], '"loras[0].scale" must be a number from -4 to 4, got '),
    ([{"name": "a", "scale": math.inf}], '"loras[0].scale" must be a number from -4 to 4, got '),
    ([{"name": "a", "scale": 10**400}], '"loras[0].scale" must be a number from -4 to 4, got '),
    ([{"name": "a", "scale": True}], '"loras[0].scale" must be a number from -4 to 4, got bool'),
    ([{"name": "a", "scale": "1"}], '"loras[0].scale" must be a number from -4 to 4, got string'),
    (
        ["b", {"name": "a", "expert": "mid"}],
        '"loras[1].expert" must be one of ["both", "high", "low"], got string "mid"',
    ),
    (["a", {"name": "a"}], '"loras[1].name" must differ from that of "loras[0]", got string "a"'),
    (
        [{"name": "a", "expert": "high"}, "b", {"name": "a", "expert": "both"}],
        '"loras[2].name" must differ from that of "loras[0]", got string "a"',
    ),
    *(
        ([name], f'"loras[0]" {NAME} string ')
        for name in (
            *("", " ", "..", "../a", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "a\\b"),
            *("a\0", "a\nb", "\ud800", "x" * 201, ".safetensors"),
        )
    ),
]


@pytest.mark.parametrize(("said", "sentence"), WRONG)
def test_an_error_is_one_sentence_with_field_and_value(said: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request({**PICTURE, "loras": said})
    assert str(caught.value).startswith(f"field {sentence}")
    assert str(caught.value).isascii() and "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["name", "scale", "expert", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_value_is_accepted_or_refused_in_a_sentence(said: Any) -> None:
    try:
        for one in parse_request({**PICTURE, "loras": said}).order().loras:
            assert -4 <= one.scale <= 4 and one.expert in (None, "both", "high", "low")
            assert not one.name.startswith("/") and ".." not in one.name.split("/")
    except InvalidRequest as error:
        assert str(error).startswith('field "loras')


def test_a_lora_is_described_in_words() -> None:
    assert [str(one) for one in (Lora("a"), Lora("a", 0.25, "low"), Lora("a", -1, "both"))] == [
        "a at 1",
        "a at 0.25 (low)",
        "a at -1",
    ]
