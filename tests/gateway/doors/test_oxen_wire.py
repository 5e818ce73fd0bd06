"""Oxen's requests and answers compared with its documented examples."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from wan_engine.gateway.doors.oxen import models, parameters, wire
from wan_engine.gateway.doors.oxen.parameters import ReferenceParameters, VideoParameters
from wan_engine.gateway.job import Job
from wan_engine.schema import SEED_MAX, ReferenceRequest, VideoRequest
from wan_engine.schema.pricing import HOSTED_PRICES

SAMPLE: dict[str, Any] = {
    "model": "wan-v2-6-image-to-video",
    "prompt": "Zoom into the ox, while it is walking forward on the road, in cinematic fashion",
    "input_image": "https://example.com/ox_zoom_out_1926_1076.png",
}
ID = "7cf9b23a-1234-5678-9abc-def012345678"


def job(**values: Any) -> Job:
    known: dict[str, Any] = {
        "id": ID,
        "door": "oxen",
        "model": "wan-v2-6-image-to-video",
        "owner": "ann",
        "state": "queued",
        "payload": SAMPLE,
        "base_url": "http://127.0.0.1",
        "webhook": None,
        "run_seconds": None,
        "ttl_seconds": 86_400,
        "created_ms": 1_775_091_431_900,
        "queued_ms": 1_775_091_431_900,
        "expires_ms": 1_775_177_831_900,
    }
    return Job(**{**known, **values})


def request(**changes: Any) -> VideoRequest:
    return VideoRequest.parse(VideoParameters.parse({**SAMPLE, **changes}).fields())


def reference_request(**changes: Any) -> ReferenceRequest:
    asked = ReferenceParameters.parse({"prompt": "An ox slowly walking down the road.", **changes})
    return ReferenceRequest.parse(asked.fields())


# --- requests ------------------------------------------------------------------------------------


def test_the_minimal_sample_is_five_seconds_at_1080p_with_an_expanded_prompt() -> None:
    found = request()
    assert (found.duration, found.size) == (5, "1920*1080")
    assert (found.prompt, found.image) == (SAMPLE["prompt"], SAMPLE["input_image"])
    assert found.enable_prompt_expansion is True
    assert (found.shot_type, found.seed, found.audio) == ("single", -1, None)


def test_a_prompt_alone_is_text_to_video_at_1080p_16_to_9() -> None:
    found = reference_request()
    assert (found.references, found.duration, found.size) == ((), 5, "1920*1080")
    assert (found.aspect_ratio, found.seed) == ("16:9", -1)
    assert found.enable_prompt_expansion is True
    assert found.shot_type == "multi"


def test_fields_passed_on_with_references_are_honoured() -> None:
    found = reference_request(
        input_videos=["https://example.com/a.mp4", "data:video/mp4;base64,AAAA"],
        duration="15",
        aspect_ratio="3:4",
        resolution="720p",
        negative_prompt="blur",
        multi_shots=False,
        enable_prompt_expansion=False,
        enable_safety_checker=False,
        seed=42,
        audio_url="https://example.com/ignored.mp3",
    )
    assert found == ReferenceRequest(
        prompt=found.prompt,
        references=("https://example.com/a.mp4", "data:video/mp4;base64,AAAA"),
        duration=15,
        aspect_ratio="3:4",
        size="1280*720",
        negative_prompt="blur",
        enable_safety_checker=False,
        seed=42,
        generate_audio=True,
    )


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "prompt",
            None,
            "Value error, Either 'prompt' or 'multi_prompt' must be provided.",
        ),
        ("input_videos", "https://example.com/a.mp4", "input_videos: Input should be a valid list"),
        ("input_videos", [1], "input_videos.0: Input should be a valid string"),
        ("input_videos", ["https://example.com/a.mp4", "a.mp4"], "input_videos.1: Invalid URL"),
        (
            "input_videos",
            ["https://example.com/a.mp4"] * 4,
            "input_videos: List should have at most 3 items, not 4",
        ),
        ("duration", 7, "duration: Input should be 5, 10 or 15"),
        (
            "aspect_ratio",
            "2:1",
            "aspect_ratio: Input should be '16:9', '9:16', '1:1', '4:3' or '3:4'",
        ),
    ],
)
def test_wrong_references_are_refused_in_the_provider_s_words(
    name: str, value: object, sentence: str
) -> None:
    with pytest.raises(parameters.ProviderError) as refused:
        reference_request(**{name: value})
    assert str(refused.value) == f"Getting model response error: 422 - {sentence}"


def test_the_first_frame_of_a_gif_is_taken() -> None:
    assert request().first_frame is True


@pytest.mark.parametrize("duration", [10, "10", 10.0])
def test_a_duration_may_be_a_string_of_an_integer(duration: object) -> None:
    assert request(duration=duration).duration == 10


def test_fields_passed_on_to_the_provider_are_honoured() -> None:
    found = request(
        audio_url="https://example.com/a.mp3",
        resolution="720p",
        seed=0,
        negative_prompt="blur",
        multi_shots=True,
        enable_prompt_expansion=False,
        enable_safety_checker=False,
        generate_audio=False,
        aspect_ratio="16:9",
    )
    assert found == VideoRequest(
        prompt=SAMPLE["prompt"],
        image=SAMPLE["input_image"],
        audio="https://example.com/a.mp3",
        size="1280*720",
        seed=0,
        negative_prompt="blur",
        shot_type="multi",
        enable_prompt_expansion=False,
        enable_safety_checker=False,
        first_frame=True,
        generate_audio=False,
    )


def test_an_array_of_one_image_is_that_image() -> None:
    assert request(input_image=[SAMPLE["input_image"]]) == request()


def test_null_means_absent() -> None:
    assert request(duration=None, seed=None, audio_url=None) == request()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        (
            "prompt",
            None,
            "Value error, Either 'prompt' or 'multi_prompt' must be provided.",
        ),
        ("prompt", "", "prompt: String should have at least 1 character"),
        ("prompt", ["x"], "prompt: Input should be a valid string"),
        ("input_image", None, "input_image: Field required"),
        ("input_image", "ox.png", "input_image: Invalid URL"),
        ("input_image", [], "input_image: Input should be one image"),
        ("input_image", {}, "input_image: Input should be a valid string"),
        ("duration", 7, "duration: Input should be 5, 10 or 15"),
        ("duration", "five", "duration: Input should be 5, 10 or 15"),
        ("duration", True, "duration: Input should be 5, 10 or 15"),
        ("duration", 5.5, "duration: Input should be 5, 10 or 15"),
        ("duration", {}, "duration: Input should be 5, 10 or 15"),
        ("audio_url", "file:///etc/passwd", "audio_url: Invalid URL"),
        ("resolution", "480p", "resolution: Input should be '720p' or '1080p'"),
        ("seed", -1, f"seed: Input should be from 0 to {SEED_MAX}"),
        ("seed", "x", "seed: Input should be a valid integer"),
        ("multi_shots", 1, "multi_shots: Input should be a valid boolean"),
    ],
)
def test_a_wrong_parameter_is_named(name: str, value: object, why: str) -> None:
    with pytest.raises(parameters.ProviderError) as refused:
        VideoParameters.parse({**SAMPLE, name: value})
    assert str(refused.value) == f"Getting model response error: 422 - {why}"


def test_several_generations_with_a_seed_are_several_clips() -> None:
    seeded = VideoParameters.parse({**SAMPLE, "seed": SEED_MAX})
    assert [seeded.fields(number)["seed"] for number in range(3)] == [SEED_MAX, 0, 1]
    assert VideoParameters.parse(SAMPLE).fields(3)["seed"] == -1


@pytest.mark.parametrize(("asked", "expected"), [(None, 1), (1, 1), (4, 4), ("3", 3), (2.0, 2)])
def test_one_to_four_generations(asked: object, expected: int) -> None:
    assert parameters.number_of_generations({"num_generations": asked}) == expected


@pytest.mark.parametrize("asked", [0, 13, -1, "many", 1.5, True, [], {}])
def test_other_numbers_of_generations_are_refused(asked: object) -> None:
    assert parameters.number_of_generations({"num_generations": asked}) is None


def test_a_video_comes_as_a_link_or_inline() -> None:
    assert parameters.response_format({}) == "url"
    assert parameters.response_format({"response_format": "b64_json"}) == "b64_json"
    with pytest.raises(parameters.ProviderError, match="'url' or 'b64_json'"):
        parameters.response_format({"response_format": "mp4"})


# --- answers -------------------------------------------------------------------------------------


def test_the_sync_answer_is_the_page_s() -> None:
    assert wire.videos(SAMPLE["model"], 1775090508, {"url": "https://example.com/v.mp4"}) == {
        "model": "wan-v2-6-image-to-video",
        "created": 1775090508,
        "videos": [{"url": "https://example.com/v.mp4"}],
    }


def test_the_queue_s_answer_is_the_page_s() -> None:
    assert wire.enqueued([ID]) == {"generations": [{"generation_id": ID, "status": "queued"}]}


def test_a_generation_has_ten_keys_and_what_was_submitted() -> None:
    payload = {**SAMPLE, "duration": 10, "num_generations": 2, "target_namespace": "ann"}
    running = job(state="running", started_ms=1_775_091_432_001, payload=payload)
    assert wire.generation(running, None) == {
        "generation_id": ID,
        "model_name": "wan-v2-6-image-to-video",
        "prompt": SAMPLE["prompt"],
        "media_type": "video",
        "status": "processing",
        "result_url": None,
        "error_message": None,
        "enqueued_at": 1775091431,
        "started_at": 1775091432,
        "completed_at": None,
        "target_namespace": "ann",
        "target_repo": None,
        "target_directory": None,
        "duration": 10,
        "input_image": SAMPLE["input_image"],
    }


def test_submitted_fields_replace_none_of_the_ten_keys() -> None:
    forged = job(payload={**SAMPLE, "status": "succeeded", "result_url": "https://evil.example"})
    shown = wire.generation(forged, None)
    assert (shown["status"], shown["result_url"]) == ("queued", None)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("queued", "queued"),
        ("running", "processing"),
        ("completed", "succeeded"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
        ("expired", "failed"),
    ],
)
def test_states_have_this_api_s_names(state: Any, status: str) -> None:
    shown = wire.generation(job(state=state), "https://example.com/v.mp4")
    assert shown["status"] == status
    assert (shown["result_url"] is not None) == (status == "succeeded")
    assert (shown["error_message"] is not None) == (status == "failed")


def test_the_event_of_a_finished_clip_is_compact_and_ends_its_lines_with_lf() -> None:
    wired = wire.event(job(state="completed"), "https://example.com/v.mp4")
    assert wired is not None
    assert wired.decode() == (
        "event: media_generation_completed\n"
        f'data: {{"generation_id":"{ID}","status":"succeeded","media_type":"video",'
        '"model":"wan-v2-6-image-to-video","url":"https://example.com/v.mp4"}\n\n'
    )


def test_the_event_of_a_failure_has_the_error_and_no_model() -> None:
    wired = wire.event(job(state="failed", error="no\r\nroom \u2028"), None)
    assert wired is not None
    lines = wired.decode().split("\n")
    assert len(lines) == 4 and b"\r" not in wired
    assert json.loads(lines[1].removeprefix("data: ")) == {
        "generation_id": ID,
        "status": "failed",
        "media_type": "video",
        "error": "no\r\nroom \u2028",
    }


@pytest.mark.parametrize("state", ["cancelled", "queued", "running"])
def test_there_is_no_event_for_cancelled_or_unfinished_generations(state: Any) -> None:
    assert wire.event(job(state=state), None) is None


def test_an_unknown_generation_gets_the_documented_body() -> None:
    assert wire.failure("resource_not_found") == {
        "error": {
            "type": "resource_not_found",
            "title": "The requested resource could not be found",
        },
        "status": "error",
        "status_message": "resource_not_found",
    }


def test_wrong_parameters_of_the_api_itself_get_the_documented_body() -> None:
    assert wire.failure("invalid_params", "Specific error details") == {
        "error": {
            "type": "invalid_params",
            "title": "Invalid parameters supplied, please check your request and try again.",
            "detail": "Specific error details",
        },
        "status": "error",
        "status_message": "invalid_params",
    }


def test_an_unknown_model_gets_the_documented_body() -> None:
    assert wire.model_not_found("bad-model-name") == {
        "error": {"message": "Model not found: bad-model-name"}
    }


# --- models --------------------------------------------------------------------------------------


def described(name: str) -> dict[str, Any]:
    return models.described(models.MODELS[name], HOSTED_PRICES)


def test_a_model_has_its_schema_under_both_names() -> None:
    found = described("wan-v2-6-image-to-video")
    schema = found["json_request_schema"]
    assert schema == found["request_schema"]
    assert schema["required"] == ["prompt", "input_image"]
    assert list(schema["properties"]) == ["prompt", "input_image", "duration", "audio_url"]
    assert schema["properties"]["duration"]["enum"] == [5, 10, 15]
    assert schema["properties"]["duration"]["default"] == 5
    assert schema["properties"]["input_image"]["format"] == "uri"
    assert json.loads(json.dumps(found)) == found


def test_a_model_has_the_documented_keys() -> None:
    assert sorted(described("wan-v2-6-image-to-video")) == sorted(
        [
            *("id", "object", "created", "owned_by", "display_name", "description", "summary"),
            *("model_type", "endpoint", "capabilities", "pricing", "fine_tuning", "deployments"),
            *("developer", "source_model", "image_url", "released_at", "showcase"),
            *("request_schema", "json_request_schema"),
        ]
    )


def test_prices_are_the_gateway_s() -> None:
    prices = {"1280*720": Decimal("0.01"), "1920*1080": Decimal("0.02")}
    found = models.described(models.MODELS[models.IMAGE_TO_VIDEO], prices)
    assert found["pricing"]["cost_per_second"] == 0.01
    assert found["pricing"]["cost_per_second_high_res"] == 0.02


def test_models_are_found_by_part_of_their_name() -> None:
    assert [model.name for model in models.found("IMAGE-to")] == ["wan-v2-6-image-to-video"]
    assert models.found("kling") == []


def test_the_schema_of_references_has_the_page_s_texts_and_accepts_its_examples() -> None:
    shown = models.MODELS[models.REFERENCE_TO_VIDEO].schema
    assert shown["required"] == ReferenceParameters.model_json_schema()["required"] == ["prompt"]
    videos = shown["properties"]["input_videos"]
    assert videos["description"] == "Videos to use as reference."
    examples = {name: field["default"] for name, field in shown["properties"].items()}
    assert reference_request(**examples).references == tuple(videos["default"])


def test_the_published_schema_and_the_checked_one_agree() -> None:
    shown = models.MODELS[models.IMAGE_TO_VIDEO].schema
    checked = VideoParameters.model_json_schema()
    assert checked["required"] == shown["required"]
    for name, field in shown["properties"].items():
        assert name in checked["properties"]
        # A default of a required field is the page's example, and is not used for a missing field.
        for key in ("enum", "default") if name not in shown["required"] else ("enum",):
            assert field.get(key) == checked["properties"][name].get(key)


def test_what_could_not_be_done_is_reported_in_every_answer() -> None:
    url, said = "https://example.com/clip.mp4", ["the clip has a silent track"]
    done = job(state="completed", result={"warnings": said})
    assert wire.generation(done, url)["warnings"] == said
    assert wire.videos(done.model, 1, {"url": url}, done.warnings)["warnings"] == said
    assert b'"warnings":["the clip has a silent track"]' in (wire.event(done, url) or b"")
    clean = job(state="completed", result={})
    assert "warnings" not in wire.generation(clean, url)
    assert "warnings" not in wire.videos(clean.model, 1, {"url": url}, clean.warnings)
    assert b"warnings" not in (wire.event(clean, url) or b"")
