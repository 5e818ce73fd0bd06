"""The AI/ML API's requests and answers compared with its documented examples."""

from __future__ import annotations

import base64
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from wan_engine.gateway.doors.aiml import wire
from wan_engine.gateway.job import Job
from wan_engine.schema import SEED_MAX, ReferenceRequest, VideoRequest
from wan_engine.schema.pricing import cost

SAMPLE: dict[str, Any] = {
    "model": "alibaba/wan-2-6-i2v",
    "prompt": "Mona Lisa puts on glasses with her hands.",
    "image_url": "https://example.com/mona_lisa_extended.jpg",
    "duration": "5",
}


def job(**values: Any) -> Job:
    known: dict[str, Any] = {
        "id": "V2cdWP9kao8xiofM-OvwG",
        "door": "aiml",
        "model": "alibaba/wan-2-6-i2v",
        "owner": "ann",
        "state": "queued",
        "payload": SAMPLE,
        "base_url": "http://127.0.0.1",
        "webhook": None,
        "run_seconds": None,
        "ttl_seconds": 86_400,
        "created_ms": 1_767_718_000_000,
        "queued_ms": 1_767_718_000_000,
        "expires_ms": 1_767_804_400_000,
    }
    return Job(**{**known, **values})


def request(**changes: Any) -> VideoRequest:
    return VideoRequest.parse(wire.parse({**SAMPLE, **changes}).fields())


REFERENCES: dict[str, Any] = {
    "model": "alibaba/wan-2-6-r2v",
    "prompt": "character1 hands character2 her glasses.",
    "video_urls": ["https://example.com/ann.mp4", "https://example.com/bob.mov"],
}


def reference_request(**changes: Any) -> ReferenceRequest:
    return ReferenceRequest.parse(wire.parse({**REFERENCES, **changes}).fields())


def credits_used(**changes: Any) -> object:
    parsed = wire.parse({**SAMPLE, **changes})
    answer = wire.created("x", cost(parsed.size, parsed.duration))
    return answer["meta"]["usage"]["credits_used"]


# --- requests ------------------------------------------------------------------------------------


def test_the_page_s_sample_is_five_seconds_at_1080p_with_an_expanded_prompt() -> None:
    found = request()
    assert (found.duration, found.size) == (5, "1920*1080")
    assert (found.prompt, found.image) == (SAMPLE["prompt"], SAMPLE["image_url"])
    assert found.enable_prompt_expansion is True
    assert found.shot_type == "single"
    assert found.seed == -1
    assert found.enable_safety_checker is True


def test_without_a_duration_it_is_ten_seconds() -> None:
    assert request(duration=None).duration == 10


@pytest.mark.parametrize("duration", [5, "5", 5.0, " 5 "])
def test_a_duration_may_be_a_number_or_its_text(duration: object) -> None:
    assert request(duration=duration).duration == 5


@pytest.mark.parametrize(
    ("duration", "received"),
    [(8, "8"), ("8", "'8'"), ("five", "'five'"), (5.5, "5.5"), (True, "boolean"), ([5], "array")],
)
def test_another_duration_is_refused(duration: object, received: str) -> None:
    with pytest.raises(wire.BodyError) as refused:
        wire.parse({**SAMPLE, "duration": duration})
    assert str(refused.value) == (
        "Body validation error\n"
        f'Invalid enum value. Expected 5 | 10 | 15, received {received} at "duration"'
    )


@pytest.mark.parametrize(
    "name", ["alibaba/wan-2-6-i2v", "alibaba/wan2.6-i2v", "alibaba/wan2-6-i2v"]
)
def test_all_names_of_the_model_are_the_model(name: str) -> None:
    assert request(model=name) == request()


def test_the_flash_model_has_its_own_default_resolution() -> None:
    flash = "alibaba/wan-2-6-image-to-video-flash"
    assert request(model=flash).size == "1280*720"
    assert request(model=flash, resolution="1080p").size == "1920*1080"


def test_references_are_ten_seconds_at_1080p_with_an_expanded_prompt() -> None:
    found = reference_request()
    assert found.references == tuple(REFERENCES["video_urls"])
    assert (found.duration, found.size, found.aspect_ratio) == (10, "1920*1080", "16:9")
    assert found.enable_prompt_expansion is True
    assert (found.shot_type, found.seed) == ("single", -1)


def test_every_option_of_references_arrives() -> None:
    found = reference_request(
        aspect_ratio="9:16",
        resolution="720p",
        duration="15",
        negative_prompt="blur",
        shot_type="multi",
        seed=42,
        enhance_prompt=False,
        audio_url="https://example.com/ignored.mp3",
    )
    assert found == ReferenceRequest(
        prompt=REFERENCES["prompt"],
        references=tuple(REFERENCES["video_urls"]),
        aspect_ratio="9:16",
        size="1280*720",
        duration=15,
        negative_prompt="blur",
        shot_type="multi",
        seed=42,
        generate_audio=True,
    )


@pytest.mark.parametrize(
    ("videos", "hint"),
    [
        (None, 'Required at "video_urls"'),
        ([], 'Array must contain at least 1 element(s) at "video_urls"'),
        (
            ["https://example.com/a.mp4"] * 4,
            'Array must contain at most 3 element(s) at "video_urls"',
        ),
        ("https://example.com/a.mp4", 'Expected array, received string at "video_urls"'),
        (["https://example.com/a.mp4", "a.mp4"], 'Invalid url at "video_urls[1]"'),
        ([7], 'Expected string, received number at "video_urls[0]"'),
    ],
)
def test_wrong_references_are_refused(videos: object, hint: str) -> None:
    with pytest.raises(wire.BodyError) as refused:
        reference_request(video_urls=videos)
    assert str(refused.value) == f"Body validation error\n{hint}"


@pytest.mark.parametrize("model", ["alibaba/wan-2-6-i2v", "alibaba/nope", None])
def test_only_configured_models_are_known(model: str | None) -> None:
    with pytest.raises(wire.BodyError) as refused:
        wire.parse({**SAMPLE, "model": model}, lambda task: task == "reference-to-video")
    received = "undefined" if model is None else f"'{model}'"
    assert str(refused.value) == (
        "Body validation error\n"
        f"Invalid enum value. Expected 'alibaba/wan-2-6-r2v', received {received} at \"model\""
    )


def test_every_option_arrives() -> None:
    found = request(
        audio_url="https://example.com/a.mp3",
        resolution="720p",
        duration=15,
        negative_prompt="blur",
        shot_type="multi",
        generate_audio=False,
        seed=42,
        enhance_prompt=False,
    )
    assert found == VideoRequest(
        prompt=SAMPLE["prompt"],
        image=SAMPLE["image_url"],
        audio="https://example.com/a.mp3",
        size="1280*720",
        duration=15,
        negative_prompt="blur",
        shot_type="multi",
        seed=42,
        enable_prompt_expansion=False,
        generate_audio=False,
    )


def test_the_audio_switch_does_not_mute_a_given_sound() -> None:
    url = "https://example.com/a.mp3"
    assert request(audio_url=url, generate_audio=False).audio == url


def test_unknown_keys_are_ignored() -> None:
    assert request(tail_image_url="https://example.com/t.png", size="640*480") == request()


def test_null_means_absent() -> None:
    names = ("resolution", "duration", "seed", "audio_url", "enhance_prompt", "shot_type")
    found = request(**dict.fromkeys(names))
    assert (found.duration, found.size, found.enable_prompt_expansion) == (10, "1920*1080", True)


def test_a_picture_may_be_a_data_uri() -> None:
    uri = "data:image/jpeg;base64,/9j/4AAQ"
    assert request(image_url=uri).image == uri


def test_a_picture_may_be_bare_base64(data: Path) -> None:
    for name in ("rocket_640x360.jpg", "astronaut_360x480.png"):
        text = base64.b64encode((data / name).read_bytes()).decode()
        assert request(image_url=text).image == f"data:application/octet-stream;base64,{text}"


@pytest.mark.parametrize("url", ["ftp://example.com/a.jpg", "a.jpg", "file:///etc/passwd", "Zm9v"])
def test_another_kind_of_link_is_refused(url: str) -> None:
    with pytest.raises(wire.BodyError, match='Invalid url at "image_url"'):
        wire.parse({**SAMPLE, "image_url": url})


@pytest.mark.parametrize("name", ["prompt", "image_url"])
def test_a_missing_required_field_is_named(name: str) -> None:
    for body in (
        {key: value for key, value in SAMPLE.items() if key != name},
        {**SAMPLE, name: None},
    ):
        with pytest.raises(wire.BodyError) as refused:
            wire.parse(body)
        assert str(refused.value) == f'Body validation error\nRequired at "{name}"'


def test_an_unknown_model_is_refused_in_the_documented_words() -> None:
    with pytest.raises(wire.BodyError) as refused:
        wire.parse({**SAMPLE, "model": "alibaba/nope"})
    assert str(refused.value) == (
        "Body validation error\nInvalid enum value. Expected 'alibaba/wan-2-6-i2v' | "
        "'alibaba/wan2.6-i2v' | 'alibaba/wan2-6-i2v' | 'alibaba/wan-2-6-image-to-video-flash' | "
        "'alibaba/wan-2-6-r2v', received 'alibaba/nope' at \"model\""
    )
    with pytest.raises(wire.BodyError, match="received undefined at"):
        wire.parse({**SAMPLE, "model": None})


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("prompt", 7, "Expected string, received number"),
        ("prompt", "  ", "String must contain at least 1 character(s)"),
        ("image_url", {}, "Expected string, received object"),
        (
            "resolution",
            "480p",
            "Invalid enum value. Expected '720p' | '1080p', received '480p'",
        ),
        ("resolution", 720, "Invalid enum value. Expected '720p' | '1080p', received 720"),
        ("shot_type", "dual", "Invalid enum value. Expected 'single' | 'multi', received 'dual'"),
        ("generate_audio", "yes", "Expected boolean, received string"),
        ("enhance_prompt", 1, "Expected boolean, received number"),
        ("seed", "abc", "Expected integer, received string"),
        ("seed", True, "Expected integer, received boolean"),
        ("seed", 1.5, "Expected integer, received number"),
        ("seed", -1, "Number must be greater than or equal to 0"),
        ("seed", SEED_MAX + 1, f"Number must be less than or equal to {SEED_MAX}"),
    ],
)
def test_a_wrong_field_is_named(name: str, value: object, hint: str) -> None:
    with pytest.raises(wire.BodyError) as refused:
        wire.parse({**SAMPLE, name: value})
    assert str(refused.value) == f'Body validation error\n{hint} at "{name}"'


def test_all_wrong_fields_are_named() -> None:
    with pytest.raises(wire.BodyError) as refused:
        wire.parse({"model": "alibaba/wan-2-6-i2v", "prompt": 1, "duration": 7})
    lines = str(refused.value).splitlines()
    assert [line.rpartition(" at ")[2] for line in lines[1:]] == [
        '"prompt"',
        '"image_url"',
        '"duration"',
    ]


@pytest.mark.parametrize("body", [[], "text", 5, None, True])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    with pytest.raises(wire.BodyError, match="Expected object, received"):
        wire.parse(body)


def test_a_long_value_is_shortened_in_the_error() -> None:
    with pytest.raises(wire.BodyError) as refused:
        wire.parse({**SAMPLE, "shot_type": "x" * 10_000})
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("seed", [0, SEED_MAX, "42"])
def test_zero_and_the_largest_are_seeds(seed: object) -> None:
    assert request(seed=seed).seed == int(str(seed))


# --- answers -------------------------------------------------------------------------------------


def test_the_answer_to_the_sample_is_the_page_s() -> None:
    assert wire.created("V2cdWP9kao8xiofM-OvwG", Decimal("0.75")) == {
        "id": "V2cdWP9kao8xiofM-OvwG",
        "status": "queued",
        "meta": {"usage": {"credits_used": 1575000}},
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1_575_000),
        ({"duration": None}, 3_150_000),
        ({"duration": 5, "resolution": "720p"}, 1_050_000),
        ({"duration": 15}, 4_725_000),
    ],
)
def test_credits_follow_resolution_and_seconds(changes: dict[str, Any], expected: int) -> None:
    found = credits_used(**changes)
    assert found == expected
    assert type(found) is int


def test_ids_have_21_characters_of_the_nanoid_alphabet_and_differ() -> None:
    ids = {wire.new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{21}", one) for one in ids)


def test_a_poll_goes_from_queued_to_the_video() -> None:
    url = "https://example.com/v.mp4"
    assert wire.generation(job(), None) == {"id": job().id, "status": "queued"}
    assert wire.generation(job(state="running"), None) == {"id": job().id, "status": "generating"}
    assert wire.generation(job(state="completed", result={"video_url": url}), url) == {
        "id": job().id,
        "status": "completed",
        "video": {"url": url},
    }


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("invalid_media", "InvalidURL"),
        ("invalid_request", "InvalidParameter"),
        ("content_policy", "DataInspectionFailed"),
        ("deadline_exceeded", "InternalError.Timeout"),
        ("time_limit_too_short", "InternalError.Timeout"),
        ("internal_error", "InternalError"),
        ("out_of_memory", "InternalError"),
    ],
)
def test_a_failure_is_an_error_with_name_and_message(code: str, name: str) -> None:
    sentence = "Invalid image URL: the server answered 404"
    failed = job(state="failed", error=sentence, error_code=code)
    assert wire.generation(failed, None) == {
        "id": failed.id,
        "status": "error",
        "error": {"name": name, "message": sentence},
    }


@pytest.mark.parametrize("state", ["cancelled", "expired"])
def test_a_stopped_generation_is_an_error_too(state: Any) -> None:
    answer = wire.generation(job(state=state), None)
    assert answer["status"] == "error"
    assert answer["error"]["message"]


def test_a_failed_call_has_the_five_documented_keys() -> None:
    body = wire.Failure(
        "Too Many Requests", "/v2/video/generations", "798b860e", 429, "2025-03-11T07:13:27.813Z"
    ).body()
    assert body == {
        "message": "Too Many Requests",
        "path": "/v2/video/generations",
        "requestId": "798b860e",
        "statusCode": "429",
        "timestamp": "2025-03-11T07:13:27.813Z",
    }


def test_the_schema_of_references_is_the_page_s() -> None:
    schema = wire.ReferenceGenerationRequest.model_json_schema()
    properties = schema["properties"]
    assert schema["required"] == ["model", "prompt", "video_urls"]
    assert list(properties) == [
        *("model", "prompt", "video_urls", "aspect_ratio", "resolution", "duration"),
        *("negative_prompt", "shot_type", "seed", "enhance_prompt"),
    ]
    videos = properties["video_urls"]
    assert (videos["minItems"], videos["maxItems"]) == (1, 3)
    assert videos["items"] == {"type": "string", "format": "uri"}
    assert properties["aspect_ratio"]["enum"] == ["16:9", "9:16", "1:1", "4:3", "3:4"]
    assert properties["duration"]["enum"] == [5, 10, 15]
    defaults = {name: field.get("default") for name, field in properties.items()}
    assert (defaults["duration"], defaults["resolution"]) == (10, "1080p")
    assert (defaults["aspect_ratio"], defaults["enhance_prompt"]) == ("16:9", True)


def test_the_schema_is_the_page_s() -> None:
    schema = wire.GenerationRequest.model_json_schema()
    properties = schema["properties"]
    assert schema["required"] == ["model", "prompt", "image_url"]
    assert list(properties) == [
        *("model", "prompt", "image_url", "audio_url", "resolution", "duration"),
        *("negative_prompt", "shot_type", "generate_audio", "seed", "enhance_prompt"),
    ]
    assert properties["duration"]["enum"] == [5, 10, 15]
    assert properties["duration"]["default"] == 10
    assert properties["resolution"]["enum"] == ["720p", "1080p"]
    assert properties["resolution"]["default"] == "1080p"
    assert properties["generate_audio"]["default"] is True
    assert properties["enhance_prompt"]["default"] is True


def test_what_could_not_be_done_is_reported_with_the_video() -> None:
    done = job(state="completed", result={"warnings": ["the clip has a silent track"]})
    told = wire.generation(done, "https://example.com/clip.mp4")
    assert told["warnings"] == ["the clip has a silent track"]
    assert "warnings" not in wire.generation(job(state="completed", result={}), "https://e.com/a")
