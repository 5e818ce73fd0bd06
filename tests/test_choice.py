"""The model that serves each request, as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.choice import Choice, choose, served
from wan_engine.errors import InvalidRequest, NotServed
from wan_engine.schema import Order, Task

PICTURE = replace(CATALOG["wan2.2-i2v-a14b-4step"], takes=("first_picture",))
MODELS: dict[str, ModelSpec] = {
    "picture": PICTURE,
    "ends": replace(PICTURE, name="ends", takes=("first_picture", "last_picture")),
    "on": replace(PICTURE, name="on", takes=("first_picture", "first_clip")),
    "references": replace(
        PICTURE, name="references", task="reference-to-video", takes=("references",), needs=()
    ),
    "slower": replace(
        PICTURE, name="slower", task="reference-to-video", takes=("references",), needs=(), fps=8
    ),
    "speech": replace(
        PICTURE,
        name="speech",
        task="speech-to-video",
        takes=("first_picture", "driving_sound"),
        needs=("first_picture", "driving_sound"),
    ),
    "sounding": replace(
        PICTURE, name="sounding", task="image-to-video-with-sound", gives_sound=True
    ),
    "listener": CATALOG["kandinsky-6-lite-sound"],
}
IMAGE, AUDIO = "https://example.com/a.png", "https://example.com/a.wav"
PLAIN = {"image": IMAGE}
SPOKEN = {**PLAIN, "audio": AUDIO}
CLIP = {"first_clip": "https://example.com/a.mp4"}
LOUD, SILENT = {**PLAIN, "sound": True}, {**PLAIN, "sound": False}


def chosen(here: str, *, generate_audio: bool = True, **fields: Any) -> Choice:
    rows: dict[Task, ModelSpec] = {MODELS[name].task: MODELS[name] for name in here.split()}
    return choose(Order("x", **fields), rows, generate_audio=generate_audio)


@pytest.mark.parametrize(
    ("here", "fields", "name", "track"),
    [
        ("picture", PLAIN, PICTURE.name, "silent"),
        ("picture", SPOKEN, PICTURE.name, "given"),
        ("picture", LOUD, PICTURE.name, "silent"),
        ("picture", SILENT, PICTURE.name, "none"),
        ("picture", {**SPOKEN, "sound": False}, PICTURE.name, "given"),
        ("picture speech", SPOKEN, "speech", "given"),
        ("picture speech", {**SPOKEN, "sound": False}, "speech", "given"),
        ("picture speech", PLAIN, PICTURE.name, "silent"),
        ("picture sounding", PLAIN, "sounding", "made"),
        ("picture sounding", LOUD, "sounding", "made"),
        ("picture sounding", SILENT, PICTURE.name, "none"),
        ("picture sounding", SPOKEN, PICTURE.name, "given"),
        ("sounding", PLAIN, "sounding", "made"),
        ("sounding", SILENT, "sounding", "none"),
        ("sounding", SPOKEN, "sounding", "given"),
        ("picture listener", PLAIN, PICTURE.name, "made"),
        ("picture listener", LOUD, PICTURE.name, "made"),
        ("picture listener", SILENT, PICTURE.name, "none"),
        ("picture listener", SPOKEN, PICTURE.name, "given"),
        ("picture sounding listener", LOUD, "sounding", "made"),
        ("picture references", {"references": (IMAGE,)}, "references", "silent"),
        ("references", {"references": ()}, "references", "silent"),
        ("references listener", {"references": ()}, "references", "made"),
        ("references", {"references": (), "sound": False}, "references", "none"),
        ("ends", {**PLAIN, "last_image": IMAGE}, "ends", "silent"),
        ("on", CLIP, "on", "silent"),
        ("on speech", {**CLIP, "audio": AUDIO}, "on", "given"),
        ("ends speech", {**SPOKEN, "last_image": IMAGE}, "ends", "given"),
    ],
)
def test_the_model_and_the_sound_of_a_request(
    here: str, fields: dict[str, Any], name: str, track: str
) -> None:
    found = chosen(here, **fields)
    assert (found.spec.name, found.track) == (name, track)
    assert found.reason
    maker = "listener" in here and name != "sounding" and track == "made"
    assert (found.sound_spec is not None) == maker
    made_by = (MODELS["listener"].name if maker else name) if track == "made" else None
    assert found.described()["sound_model"] == made_by


@pytest.mark.parametrize(
    ("here", "fields", "track"),
    [
        ("picture", PLAIN, "none"),
        ("picture", LOUD, "silent"),
        ("picture", SPOKEN, "given"),
        ("picture listener", PLAIN, "none"),
        ("picture listener", LOUD, "made"),
        ("picture sounding", PLAIN, "none"),
    ],
)
def test_an_operator_can_turn_off_the_track_unless_the_request_wants_one(
    here: str, fields: dict[str, Any], track: str
) -> None:
    assert chosen(here, generate_audio=False, **fields).track == track


@pytest.mark.parametrize(
    ("here", "fields", "said"),
    [
        (
            "picture",
            {"references": (IMAGE,)},
            'field "references" cannot be used: no model is configured for reference-to-video, '
            f"only for image-to-video ({PICTURE.name})",
        ),
        (
            "references",
            PLAIN,
            'field "image" cannot be used: no model is configured for image-to-video, only for '
            "reference-to-video (references)",
        ),
        (
            "references",
            CLIP,
            'field "first_clip" cannot be used: no model is configured for image-to-video, only '
            "for reference-to-video (references)",
        ),
        (
            "picture",
            {**PLAIN, "last_image": IMAGE},
            f'field "last_image" cannot be used: the model {PICTURE.name} takes a first picture',
        ),
        (
            "picture",
            CLIP,
            f'field "first_clip" cannot be used: the model {PICTURE.name} takes a first picture',
        ),
        (
            "speech",
            PLAIN,
            'field "image" cannot be used: no model is configured for image-to-video, only for '
            "speech-to-video (speech)",
        ),
    ],
)
def test_a_request_that_no_model_accepts_is_refused_by_its_field(
    here: str, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(NotServed) as caught:
        chosen(here, **fields)
    assert str(caught.value) == said and isinstance(caught.value, InvalidRequest)


def test_what_cannot_be_done_is_reported_and_a_warning_if_it_was_requested() -> None:
    muxed = chosen("picture", **SPOKEN)
    assert "does not move lips" in muxed.undone[0] and muxed.warnings == muxed.undone
    unasked = chosen("picture", **PLAIN)  # the endpoint's page does not promise generated sound
    assert "silent track" in unasked.undone[0] and unasked.warnings == ()
    silent = chosen("picture", **LOUD)
    assert (
        silent.undone
        == silent.warnings
        == ("No sound model is configured, so the clip has a silent track",)
    )
    assert chosen("picture speech", **SPOKEN).undone == ()


SEVERAL = {**PLAIN, "shot_type": "multi", "expand_prompt": True}


@pytest.mark.parametrize(
    ("here", "fields", "name", "reason"),
    [
        ("picture references", SEVERAL, "references", "the image is their reference"),
        ("picture references", {**SEVERAL, **SPOKEN}, "references", "the image is their"),
        ("speech references", {**SEVERAL, **SPOKEN}, "speech", "picture and sound together"),
        ("sounding references", {**SEVERAL, **LOUD}, "sounding", "picture and sound together"),
        ("sounding references", {**SEVERAL, **SILENT}, "references", "the image is their"),
        ("picture slower", SEVERAL, PICTURE.name, "slower makes 8 fps, and wan"),
        ("ends references", {**SEVERAL, "last_image": IMAGE}, "ends", 'field "last_image" cannot'),
        ("ends references", SEVERAL, "references", "the image is their reference"),
    ],
)
def test_the_model_of_later_shots_and_why(
    here: str, fields: dict[str, Any], name: str, reason: str
) -> None:
    later = chosen(here, **fields).described()["later_shots"]
    assert later["model"] == name and reason in later["reason"]


@pytest.mark.parametrize(
    ("here", "fields"),
    [
        ("picture", SEVERAL),
        ("picture references", PLAIN),
        ("picture references", {**SEVERAL, "expand_prompt": False}),
        (
            "picture references",
            {"references": (IMAGE,), "shot_type": "multi", "expand_prompt": True},
        ),
    ],
)
def test_without_a_choice_later_shots_are_not_mentioned(here: str, fields: dict[str, Any]) -> None:
    found = chosen(here, **fields)
    assert found.later is None and "later_shots" not in found.described()


def test_models_are_shown_by_their_tasks() -> None:
    rows: dict[Task, ModelSpec] = {"image-to-video": PICTURE}
    assert served(rows) == {"image-to-video": PICTURE.name}
