"""The validation of requests: the documented `input`, error by error, and arbitrary values."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import FrozenInstanceError
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from wan_engine.errors import InvalidRequest
from wan_engine.schema import (
    SECONDS,
    ContinuationRequest,
    Lora,
    Plan,
    ReferenceRequest,
    Segment,
    Shot,
    VideoRequest,
    VideoResult,
    parse_request,
)

MINIMAL = {"prompt": "Leaves sway", "image": "https://example.com/a.jpg"}

SIZES = 'one of ["1280*720", "1920*1080"]'
DURATIONS = "one of [5, 10, 15]"
SHOT_TYPES = 'one of ["single", "multi"]'
SEEDS = "an integer from -1 to 2147483647"

WRONG_TYPE = {
    "prompt": "a string",
    "image": "a string",
    "audio": "a string",
    "negative_prompt": "a string",
    "size": SIZES,
    "duration": DURATIONS,
    "shot_type": SHOT_TYPES,
    "seed": "an integer",
    "enable_prompt_expansion": "a boolean",
    "enable_safety_checker": "a boolean",
    "first_frame": "a boolean",
    "last_image": "a string",
    "loras": "an array of at most 4 names or objects",
    "seconds": "an integer from 2 to 15",
    "generate_audio": "a boolean",
}
"""Every field in the order of the page, then ours, with the error for a useless value."""

OF_EACH_TYPE: list[tuple[Any, str]] = [
    (True, "boolean true"),
    (False, "boolean false"),
    (7, "number 7"),
    (5.5, "number 5.5"),
    ("abc", 'string "abc"'),
    ([], "array"),
    ([5], "array"),
    ({}, "object"),
    ({"url": "https://example.com/a.jpg"}, "object"),
]

FITTING: dict[str, type | None] = dict.fromkeys(("size", "duration", "shot_type"))
FITTING |= dict.fromkeys(("prompt", "image", "last_image", "audio", "negative_prompt"), str)
FITTING |= dict.fromkeys(("seed", "seconds"), int)
FLAGS = ("enable_prompt_expansion", "enable_safety_checker", "first_frame", "generate_audio")
FITTING |= dict.fromkeys(FLAGS, bool)
FITTING["loras"] = list
MISFITS = [
    (field, value, f'field "{field}" must be {allowed}, got {shown}')
    for field, allowed in WRONG_TYPE.items()
    for value, shown in OF_EACH_TYPE
    if type(value) is not FITTING[field]
]

fuzz = settings(max_examples=300, deadline=None, database=None)


def parse(**fields: Any) -> VideoRequest:
    return VideoRequest.parse({**MINIMAL, **fields})


def refusal(payload: object) -> str:
    with pytest.raises(InvalidRequest) as caught:
        VideoRequest.parse(payload)
    return str(caught.value)


# --- documented fields ---------------------------------------------------------------------------


def test_a_minimal_request_gets_the_defaults_of_the_page() -> None:
    assert parse().model_dump() == {
        **MINIMAL,
        "audio": None,
        "negative_prompt": None,
        "size": "1280*720",
        "duration": 5,
        "shot_type": "single",
        "seed": -1,
        "enable_prompt_expansion": False,
        "enable_safety_checker": True,
        "first_frame": False,
        "last_image": None,
        "loras": (),
        "seconds": None,
        "generate_audio": None,
    }


def test_the_sample_of_the_page_is_accepted() -> None:
    sample = {
        "prompt": "A person walking through a sunny park, leaves gently swaying",
        "image": "https://example.com/person-park.jpg",
        "size": "1280*720",
        "duration": 5,
        "shot_type": "single",
        "seed": -1,
        "enable_prompt_expansion": False,
    }
    assert VideoRequest.parse(sample).model_dump(include=set(sample)) == sample


def test_a_full_request_is_accepted_unchanged() -> None:
    full = {
        "prompt": "Leaves sway",
        "image": "data:image/png;base64,AAAA",
        "audio": "https://example.com/a.mp3",
        "negative_prompt": "blurry",
        "size": "1920*1080",
        "duration": 15,
        "shot_type": "multi",
        "seed": 42,
        "enable_prompt_expansion": True,
        "enable_safety_checker": False,
        "first_frame": True,
        "last_image": "https://example.com/end.png",
        "loras": (Lora("anna", 0.5, "high"),),
        "seconds": 7,
        "generate_audio": False,
    }
    assert dict(VideoRequest.parse(full)) == full


def test_the_fields_are_in_the_order_of_the_page() -> None:
    assert list(VideoRequest.model_fields) == list(WRONG_TYPE)


def test_the_exported_schema_matches_the_page() -> None:
    text, truth = {"type": "string"}, {"type": "boolean"}
    maybe_text = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    exported = VideoRequest.model_json_schema()
    told = {
        name: {key: field[key] for key in field if key not in ("title", "description")}
        for name, field in exported["properties"].items()
    }
    assert told == {
        "prompt": text,
        "image": text,
        "audio": maybe_text,
        "negative_prompt": maybe_text,
        "size": {**text, "enum": ["1280*720", "1920*1080"], "default": "1280*720"},
        "duration": {"type": "integer", "enum": [5, 10, 15], "default": 5},
        "shot_type": {**text, "enum": ["single", "multi"], "default": "single"},
        "seed": {"type": "integer", "minimum": -1, "maximum": 2147483647, "default": -1},
        "enable_prompt_expansion": {**truth, "default": False},
        "enable_safety_checker": {**truth, "default": True},
    }
    assert (exported["type"], exported["required"]) == ("object", ["prompt", "image"])


def test_every_exported_field_has_a_description() -> None:
    fields = VideoRequest.model_json_schema()["properties"]
    assert [name for name, field in fields.items() if not field.get("description")] == []


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse().seed = 1


def test_the_constructor_accepts_the_same_values() -> None:
    assert VideoRequest(**MINIMAL, seed=7) == parse(seed=7)


def test_the_constructor_refuses_the_same_values() -> None:
    with pytest.raises(ValidationError, match=re.escape(f'field "duration" must be {DURATIONS}')):
        VideoRequest(**MINIMAL, duration=7)


# --- error messages ------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "value", "sentence"), MISFITS)
def test_a_value_of_the_wrong_type_is_named(field: str, value: object, sentence: str) -> None:
    assert refusal({**MINIMAL, field: value}) == sentence


@pytest.mark.parametrize(
    ("field", "value", "allowed", "shown"),
    [
        ("prompt", "", "a string that is not blank", 'string ""'),
        ("prompt", " \t\n ", "a string that is not blank", r'string " \t\n "'),
        ("prompt", "\0", "a string that is not blank", r'string "\u0000"'),
        ("size", "640*480", SIZES, 'string "640*480"'),
        ("size", "1280x720", SIZES, 'string "1280x720"'),
        ("size", "720*1280", SIZES, 'string "720*1280"'),
        ("size", "480p", SIZES, 'string "480p"'),
        ("size", "", SIZES, 'string ""'),
        ("duration", 0, DURATIONS, "number 0"),
        ("duration", 6, DURATIONS, "number 6"),
        ("duration", -5, DURATIONS, "number -5"),
        ("duration", "7", DURATIONS, 'string "7"'),
        ("duration", "five", DURATIONS, 'string "five"'),
        ("duration", "5.5", DURATIONS, 'string "5.5"'),
        ("duration", 5.1, DURATIONS, "number 5.1"),
        ("duration", float("nan"), DURATIONS, "number NaN"),
        ("duration", float("inf"), DURATIONS, "number Infinity"),
        ("duration", 10**400, DURATIONS, "number too large"),
        ("shot_type", "dual", SHOT_TYPES, 'string "dual"'),
        ("shot_type", "Single", SHOT_TYPES, 'string "Single"'),
        ("seed", "5.5", "an integer", 'string "5.5"'),
        ("seed", "1e3", "an integer", 'string "1e3"'),
        ("seed", "0x10", "an integer", 'string "0x10"'),
        ("seed", "1_000", "an integer", 'string "1_000"'),
        ("seed", "٣", "an integer", r'string "\u0663"'),
        ("seed", "\x1c5", "an integer", r'string "\u001c5"'),
        ("seed", 0.5, "an integer", "number 0.5"),
        ("seed", float("-inf"), "an integer", "number -Infinity"),
        ("seed", -2, SEEDS, "number -2"),
        ("seed", 2**31, SEEDS, "number 2147483648"),
        ("seed", "-2", SEEDS, 'string "-2"'),
        ("seed", -(10**400), SEEDS, "number too large"),
        ("enable_prompt_expansion", "true", "a boolean", 'string "true"'),
        ("enable_prompt_expansion", 1, "a boolean", "number 1"),
        ("enable_safety_checker", 0, "a boolean", "number 0"),
        ("enable_safety_checker", "false", "a boolean", 'string "false"'),
    ],
)
def test_a_value_that_is_not_allowed_is_named(
    field: str, value: object, allowed: str, shown: str
) -> None:
    assert refusal({**MINIMAL, field: value}) == f'field "{field}" must be {allowed}, got {shown}'


@pytest.mark.parametrize("field", ["image", "audio"])
@pytest.mark.parametrize(
    "value",
    [
        "photo.jpg",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://example.com/a.jpg",
        "example.com/a.jpg",
        "//example.com/a.jpg",
        "http:/example.com",
        "s3://bucket/a.jpg",
        "C:\\a.jpg",
    ],
)
def test_media_is_a_url_or_a_data_uri(field: str, value: str) -> None:
    sentence = f"Invalid {field} URL: it must start with http://, https:// or data:"
    assert refusal({**MINIMAL, field: value}) == sentence


@pytest.mark.parametrize("field", ["prompt", "image"])
@pytest.mark.parametrize("absent", [{}, {"prompt": None, "image": None}])
def test_a_missing_field_is_named(field: str, absent: dict[str, None]) -> None:
    payload = {key: value for key, value in MINIMAL.items() if key != field}
    sentence = refusal({**{key: absent[key] for key in absent if key == field}, **payload})
    assert sentence == f'field "{field}" is required'


def test_an_empty_image_is_named() -> None:
    assert "image" in refusal({**MINIMAL, "image": ""})


@pytest.mark.parametrize(
    ("payload", "shown"),
    [([], "array"), ([MINIMAL], "array"), ("{}", 'string "{}"'), (5, "number 5")],
)
def test_an_input_that_is_no_object_is_named(payload: object, shown: str) -> None:
    assert refusal(payload) == f'field "input" must be an object, got {shown}'


def test_a_missing_input_is_named() -> None:
    assert refusal(None) == 'field "input" is required'


@pytest.mark.parametrize("count", range(1, len(WRONG_TYPE) + 1))
def test_of_several_errors_the_first_in_the_order_of_the_page_is_reported(count: int) -> None:
    wrong = list(WRONG_TYPE)[-count:]
    payload = {**MINIMAL, **{field: {} for field in reversed(wrong)}}
    assert refusal(payload).startswith(f'field "{wrong[0]}" must be ')


def test_a_missing_field_before_a_wrong_one_is_reported() -> None:
    assert refusal({"duration": 7, "image": "a.jpg"}) == 'field "prompt" is required'


def test_a_wrong_field_before_a_missing_one_is_reported() -> None:
    assert refusal({"duration": 7, "prompt": " "}).startswith('field "prompt" must be ')


def test_long_values_are_shortened_in_errors() -> None:
    sentence = refusal({**MINIMAL, "size": "x" * 61})
    assert sentence == f'field "size" must be {SIZES}, got string "{"x" * 60}..."'


# --- accepted values -----------------------------------------------------------------------------


@pytest.mark.parametrize("field", list(WRONG_TYPE)[2:])
def test_null_means_absent(field: str) -> None:
    assert parse(**{field: None}) == parse()


@pytest.mark.parametrize("field", ["audio", "negative_prompt"])
def test_an_optional_text_may_be_empty(field: str) -> None:
    assert parse(**{field: ""}) == parse()


def test_a_blank_negative_prompt_is_none() -> None:
    assert parse(negative_prompt=" \n").negative_prompt is None


@pytest.mark.parametrize("seconds", [5, 10, 15])
@pytest.mark.parametrize("written", ["{}", " {} ", "+{}", "0{}"])
def test_a_duration_may_be_a_string_of_an_integer(seconds: int, written: str) -> None:
    assert parse(duration=written.format(seconds)).duration == seconds


@pytest.mark.parametrize(
    ("written", "seed"),
    [(0, 0), (-1, -1), (2147483647, 2147483647), ("42", 42), ("-1", -1), ("0", 0), (42.0, 42)],
)
def test_a_seed_may_be_any_integer_in_range(written: object, seed: int) -> None:
    taken = parse(seed=written).seed
    assert (taken, type(taken)) == (seed, int)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1280*720", "1280*720"),
        ("1920*1080", "1920*1080"),
        ("720p", "1280*720"),
        ("1080p", "1920*1080"),
        ("720P", "1280*720"),
        (" 1080P ", "1920*1080"),
    ],
)
def test_a_size_may_be_a_name(written: str, size: str) -> None:
    assert parse(size=written).size == size


@pytest.mark.parametrize("field", ["image", "audio"])
@pytest.mark.parametrize("value", ["http://a", "HTTPS://A/b", "data:;base64,AA", "DATA:x,y"])
def test_media_may_be_a_url_or_inline(field: str, value: str) -> None:
    assert getattr(parse(**{field: f" {value}\n"}), field) == value


@pytest.mark.parametrize(("field", "most"), [("prompt", 1500), ("negative_prompt", 500)])
def test_a_cut_text_is_reported(field: str, most: int) -> None:
    whole = {"prompt": "x", "image": "https://a.b/c.png", field: "y" * most}
    assert VideoRequest.parse(whole).order().cuts == ()
    cut = {**whole, field: "y" * (most + 7)}
    name = field.replace("_", " ")
    said = f"The {name} was cut after {most} of its {most + 7} characters: no more are taken"
    for request in (VideoRequest.parse(cut), VideoRequest(**cut)):
        assert request.order().cuts == (said,)
        assert request.model_copy(update={"seed": 3}).order().cuts == (said,)
    assert "cuts" not in json.dumps(VideoRequest.model_json_schema())


@pytest.mark.parametrize(("field", "most"), [("prompt", 1500), ("negative_prompt", 500)])
@pytest.mark.parametrize("excess", [0, 1, 100_000])
def test_a_long_text_is_cut(field: str, most: int, excess: int) -> None:
    text = "é" * (most + excess)
    assert getattr(parse(**{field: text}), field) == "é" * most


@pytest.mark.parametrize(("field", "most"), [("prompt", 1500), ("negative_prompt", 500)])
def test_removed_characters_do_not_count(field: str, most: int) -> None:
    text = "\0" * most + "é" * most
    assert getattr(parse(**{field: text}), field) == "é" * most


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    ("text", "cleaned"), [("a\0b", "ab"), ("a\ud83db", "a?b"), ("😀 日本\n", "😀 日本\n")]
)
def test_a_text_keeps_the_characters_that_every_tokenizer_accepts(
    field: str, text: str, cleaned: str
) -> None:
    assert getattr(parse(**{field: text}), field) == cleaned


def test_unknown_fields_are_ignored() -> None:
    assert parse(resolution="4k", model_config={}, n=[1]) == parse()


def test_unknown_fields_are_logged_by_name_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    parse(watermark="secret", resolution="4k")
    assert caplog.messages == ["ignored unknown input fields: resolution, watermark"]


def test_known_fields_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    parse(seed=1, negative_prompt="blurry")
    assert caplog.messages == []


def test_the_log_does_not_grow_with_the_number_of_unknown_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    parse(**{f"{number:04d}" * 100: number for number in range(5000)})
    assert len("".join(caplog.messages)) < 1500


@pytest.mark.parametrize("name", ["a\nERROR: b", "\x1b[31m", "\ud800", "\0"])
def test_the_name_of_an_unknown_field_cannot_break_its_line_of_the_log(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parse(**{name: 1})
    assert [message for message in caplog.messages if not message.isprintable()] == []


# --- arbitrary input -----------------------------------------------------------------------------

SENTENCE = re.compile(
    r'field "(\w+|loras\[\d\]\.name)" is required'
    r'|field "(\w+|loras\[\d\](\.\w+)?)" must be (a|an|one of) .+, '
    r"got ((string|number|boolean) .+|array|object|null)"
    r'|field "loras(\[\d\](\.name)?)?" must (have|differ) .+, got (string .+|\d+)'
    r"|Invalid (image|last_image|first_clip|audio) URL: .+"
)
PIECES = (
    *("1280*720", "1080p", "single", "5", "10", "-1", "+", "http://", "data:", "true", "e", "."),
    *(" ", "\n", "\0", "\x1c", "\ud800", "\udfff", "\u2028", "😀", "٣"),
)

odd_text = st.text(st.characters(exclude_categories=())) | (
    st.lists(st.sampled_from(PIECES)).map("".join)
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 5, 10, 15, 2**31 - 1, 2**31, -(2**63), 2**64, 10**400])
    | st.floats()
    | odd_text,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(odd_text, values, max_size=3),
    max_leaves=8,
)


def outcome(payload: object) -> VideoRequest | str:
    """Checks that the result is a usable request, or a sentence that can be shown."""
    try:
        request = VideoRequest.parse(payload)
    except InvalidRequest as error:
        sentence = str(error)
        assert SENTENCE.fullmatch(sentence)
        assert len(sentence) < 300
        assert sentence.isprintable()
        return sentence
    for text, most in ((request.prompt, 1500), (request.negative_prompt or "-", 500)):
        assert text.strip()
        assert len(text) <= most
        assert "\0" not in text
        text.encode()
    for url in (request.image, request.audio or "data:"):
        assert url.lower().startswith(("http://", "https://", "data:"))
    assert request.size in ("1280*720", "1920*1080")
    assert (type(request.duration), type(request.seed)) == (int, int)
    assert request.duration in (5, 10, 15)
    assert -1 <= request.seed < 2**31
    assert request.shot_type in ("single", "multi")
    return request


@fuzz
@given(field=st.sampled_from(list(WRONG_TYPE)), value=json_values)
def test_any_value_in_any_field_ends_in_a_request_or_a_sentence(field: str, value: object) -> None:
    outcome({**MINIMAL, field: value})


@fuzz
@given(st.dictionaries(st.sampled_from(list(WRONG_TYPE)) | odd_text, json_values))
def test_any_object_ends_in_a_request_or_a_sentence(payload: dict[str, Any]) -> None:
    outcome(payload)


@fuzz
@given(json_values)
def test_any_input_ends_in_a_request_or_a_sentence(payload: object) -> None:
    outcome(payload)


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("field", WRONG_TYPE)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("x" * 2**20, id="a megabyte of text"),
        pytest.param("9" * 2**20, id="a megabyte of digits"),
        pytest.param(" " * 2**20, id="a megabyte of spaces"),
        pytest.param("\0" * 2**20, id="a megabyte of NUL"),
        pytest.param("😀" * 100, id="emoji"),
        pytest.param("\ud800" * 100, id="halves of surrogate pairs"),
        pytest.param("\x1c5", id="a space that int does not accept"),
        pytest.param(10**4000, id="a huge integer"),
        pytest.param(-(10**4000), id="a huge negative integer"),
        pytest.param(1e308, id="a huge float"),
        pytest.param(5e-324, id="a tiny float"),
        pytest.param(-0.0, id="minus zero"),
        pytest.param(float("nan"), id="NaN"),
        pytest.param(_nested(10_000), id="a deep array"),
        pytest.param({"a": _nested(100)}, id="a deep object"),
        pytest.param([0] * 100_000, id="a long array"),
    ],
)
def test_an_extreme_value_ends_in_a_request_or_a_sentence(field: str, value: object) -> None:
    outcome({**MINIMAL, field: value})


@fuzz
@given(st.integers() | st.integers(-2, 20))
def test_an_integer_means_the_same_however_it_is_written(number: int) -> None:
    plain, quoted = (outcome({**MINIMAL, "seed": form}) for form in (number, str(number)))
    assert quoted == plain or (isinstance(quoted, str) and isinstance(plain, str))


# --- results, and copies for other processes -----------------------------------------------------


def test_the_output_has_the_documented_keys() -> None:
    result = VideoResult("https://example.com/a.mp4", Decimal("0.50"), 42, model="wan-tiny")
    assert json.loads(json.dumps(result.output())) == {
        "video_url": "https://example.com/a.mp4",
        "result": "https://example.com/a.mp4",
        "cost": 0.5,
        "seed": 42,
    }


def test_the_output_has_warnings_if_there_are_any() -> None:
    output = VideoResult("https://example.com/a.mp4", Decimal(1), 0, ("texture", "short")).output()
    assert output["warnings"] == ["texture", "short"]


def test_the_cost_of_an_output_is_a_number_without_a_rounding_error() -> None:
    assert repr(VideoResult("u", Decimal("0.15") * 15, 0).output()["cost"]) == "2.25"


@pytest.mark.parametrize("seconds", SECONDS)
def test_seconds_win_over_duration(seconds: int) -> None:
    assert parse(duration=10, seconds=seconds).order().duration == seconds
    text = ReferenceRequest.parse({"prompt": "A fox", "references": [], "seconds": str(seconds)})
    assert text.order().duration == seconds
    assert parse(duration=10).order().duration == 10


@pytest.mark.parametrize("seconds", [1, 16, 2.5])
def test_a_clip_has_2_to_15_whole_seconds(seconds: float) -> None:
    allowed = "an integer from 2 to 15"
    assert refusal({**MINIMAL, "seconds": seconds}) == (
        f'field "seconds" must be {allowed}, got number {seconds}'
    )


def test_objects_for_other_processes_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Segment(1, 81, 0, 80).seed = 2  # type: ignore[misc]


def test_the_segments_of_a_plan_are_those_of_its_shots_in_order() -> None:
    first, second, third = (Segment(seed, 81, 0, 80) for seed in range(3))
    shots = (Shot("a", (first, second), 160), Shot("b", (third,), 80))
    plan = Plan(
        1280, 720, 1280, 720, 1280, 720, fps=16, frames=240, seed=0, shots=shots, source_fps=16
    )
    assert plan.segments == (first, second, third)


# --- text-to-video and reference-to-video --------------------------------------------------------

TEXT = {"prompt": "x", "references": []}


@pytest.mark.parametrize(
    ("asked", "size", "aspect_ratio"),
    [
        ({}, "1280*720", "16:9"),
        ({"size": "720*1280"}, "1280*720", "9:16"),
        ({"size": "1080*1920"}, "1920*1080", "9:16"),
        ({"size": "1080p", "aspect_ratio": "4:3"}, "1920*1080", "4:3"),
        ({"size": "720*1280", "aspect_ratio": "9:16"}, "1280*720", "9:16"),
    ],
)
def test_a_size_of_the_text_page_may_be_portrait(
    asked: dict[str, str], size: str, aspect_ratio: str
) -> None:
    order = parse_request({**TEXT, **asked}).order()
    assert (order.size, order.aspect_ratio) == (size, aspect_ratio)


@pytest.mark.parametrize("size", ["960*960", "1088*832", "720*1281", "720x1280", "1440*1440"])
def test_other_sizes_are_not_on_that_page(size: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request({**TEXT, "size": size})
    assert str(caught.value) == (
        'field "size" must be one of ["1280*720", "720*1280", "1920*1080", "1080*1920"], '
        f'got string "{size}"'
    )


def test_a_portrait_size_and_another_aspect_ratio_contradict_each_other() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request({**TEXT, "size": "720*1280", "aspect_ratio": "1:1"})
    assert str(caught.value) == (
        'field "aspect_ratio" must be "9:16" where "size" is "720*1280", got "1:1"'
    )


# --- a clip that continues another one -----------------------------------------------------------

CLIP = "https://example.com/clip.mp4"


def test_a_first_clip_makes_another_kind_of_request() -> None:
    request = parse_request({"prompt": "On", "first_clip": CLIP, "seconds": 7})
    assert isinstance(request, ContinuationRequest)
    order = request.order()
    assert (order.first_clip, order.keep_first_clip, order.duration) == (CLIP, True, 7)
    assert order.gives == ("first_clip",) and order.task == "image-to-video"
    assert parse_request({"prompt": "On", "first_clip": "", "image": CLIP}).order().image == CLIP


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image": CLIP}, 'field "first_clip" cannot be given with field "image"'),
        ({"references": [CLIP]}, 'field "first_clip" cannot be given with field "references"'),
        ({"keep_first_clip": "maybe"}, 'field "keep_first_clip" must be a boolean, got string'),
        ({"first_clip": 7}, 'field "first_clip" must be a string, got number 7'),
        ({"first_clip": "clip.mp4"}, "Invalid first_clip URL: it must start with http://"),
        ({"prompt": None}, 'field "prompt" is required'),
    ],
)
def test_an_error_of_a_first_clip_is_one_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request({"prompt": "On", "first_clip": CLIP, **fields})
    assert str(caught.value).startswith(said)


def test_a_continued_clip_has_one_shot() -> None:
    request = parse_request({"prompt": "On", "first_clip": CLIP, "shot_type": "multi"})
    assert request.order().shot_type == "single"
    assert request.order().cuts == ("A clip that continues another one has one shot",)
