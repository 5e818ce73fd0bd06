"""The page on a gateway with the instant backend."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import (
    DATA,
    NO_CLIP,
    PHOTO,
    SOUND,
    Open,
    fill,
    finished,
    generate,
    pick,
)
from wan_engine.control import Control
from wan_engine.media.audio import AudioLimits, open_audio
from wan_engine.schema import Duration, Size
from wan_engine.schema.pricing import cost

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]
SIZES = {"720p": "1280*720", "1080p": "1920*1080"}


def only_request(here: Listening) -> dict[str, Any]:
    (request,) = here.backend.requests.values()
    assert isinstance(request, dict)
    return request


def content(data_uri: str) -> bytes:
    return base64.b64decode(data_uri.partition(";base64,")[2])


# --- requests ------------------------------------------------------------------------------------


def test_all_options_are_sent_as_chosen(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page, "She said “go” \\ $5\nsecond line 🎬")
    page.locator("#audio-file").set_input_files(SOUND)
    page.get_by_label("Negative prompt").fill("blur")
    pick(page, "Size", "1080p")
    pick(page, "Length", "15 s")
    pick(page, "Shots", "Several")
    page.get_by_label("Seed").fill("42")
    page.get_by_label("Expand the prompt").check()
    page.get_by_label("Safety checker").uncheck()
    page.locator("audio.preview").wait_for()
    generate(page)
    finished(page)
    request = only_request(here)
    assert content(request.pop("image")) == PHOTO.read_bytes()
    assert content(request.pop("audio")) == SOUND.read_bytes()
    assert request == {
        "prompt": "She said “go” \\ $5\nsecond line 🎬",
        "negative_prompt": "blur",
        "size": "1920*1080",
        "duration": 15,
        "shot_type": "multi",
        "seed": 42,
        "enable_prompt_expansion": True,
        "enable_safety_checker": False,
    }


def test_untouched_options_are_the_contract_s_defaults(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    page.get_by_label("URL of the picture").fill(f"{here.url}/playground/none.jpg")
    fill(page, picture=None)
    generate(page)
    finished(page)
    assert only_request(here) == {
        "prompt": "Leaves sway",
        "image": f"{here.url}/playground/none.jpg",
        "size": "1280*720",
        "duration": 5,
        "shot_type": "single",
        "seed": -1,
        "enable_prompt_expansion": False,
        "enable_safety_checker": True,
    }
    expect(page.locator("#image-note")).to_have_text(
        "No preview here; the server fetches it by itself."
    )


def test_the_price_is_shown_before_anything_is_sent(listen: Listen, open_page: Open) -> None:
    here = listen(prices={"1280*720": "0.02"})
    page = open_page(here.url)
    values = page.locator("input[name=size], input[name=duration]").evaluate_all(
        "inputs => inputs.map(input => input.value)"
    )
    assert values == [*get_args(Size), *map(str, get_args(Duration))]
    for name, size in SIZES.items():
        for seconds in get_args(Duration):
            pick(page, "Size", name)
            pick(page, "Length", f"{seconds} s")
            rate = 0.02 if size == "1280*720" else float(cost(size, 1))
            expect(page.locator("#price")).to_have_text(f"${rate * seconds:.2f}")
    assert here.backend.requests == {}


def test_a_missing_field_is_named_and_focused(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url)
    page.get_by_label("Seed").fill("3.5")
    generate(page)
    expect(page.locator("#image-error")).to_contain_text("A picture is needed")
    expect(page.locator("#prompt-error")).to_have_text("A prompt is needed")
    expect(page.locator("#seed-error")).to_have_text("An integer from -1 to 2147483647")
    expect(page.locator("#image-file")).to_be_focused()
    fill(page)
    page.get_by_label("Seed").fill("-2")
    generate(page)
    expect(page.get_by_label("Seed")).to_be_focused()
    expect(page.get_by_label("Seed")).to_have_attribute("aria-invalid", "true")
    assert here.backend.requests == {}


def test_characters_are_counted_as_in_the_contract(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url)
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("🎬" * 1500)
    expect(page.locator("#prompt-count")).to_have_text("1500 / 1500")
    prompt.fill("🎬" * 1500 + "abc")
    expect(page.locator("#prompt-count")).to_have_text("1503 / 1500, the last 3 are cut")


# --- pictures and sounds -------------------------------------------------------------------------


def test_a_picture_larger_than_a_request_is_made_smaller(
    listen: Listen, open_page: Open, tmp_path: Path
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (2000, 4000, 3), np.uint8)
    large = tmp_path / "large.png"
    Image.fromarray(noise).save(large, compress_level=0)
    assert large.stat().st_size > 20e6
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page, picture=large)
    expect(page.locator("#image-note")).to_contain_text("4000 × 2000, 22.9 MB; sent as a JPEG of")
    page.locator("#audio-file").set_input_files(SOUND)
    page.locator("audio.preview").wait_for()
    generate(page)
    finished(page)
    request = only_request(here)
    assert len(request["image"]) + len(request["audio"]) < 10 * 2**20 - 1000
    image = Image.open(io.BytesIO(content(request["image"])))
    assert image.format == "JPEG" and 1900 < image.width <= 3840
    assert image.width / image.height == pytest.approx(2, rel=0.01)
    # Noise is the hardest picture for JPEG. Its means over large squares show that it is the same.
    small = np.asarray(image.resize((8, 4), Image.Resampling.BOX), float)
    expected = np.asarray(Image.fromarray(noise).resize((8, 4), Image.Resampling.BOX), float)
    assert np.abs(small - expected).max() < 4


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("long.png", (8400, 1200), (3840, 549)),
        ("longer.png", (9000, 300), (7200, 240)),
        ("a strip.png", (256, 8400), (240, 7875)),
        ("animation.gif", (400, 300), (400, 300)),
    ],
)
def test_a_picture_of_a_wrong_size_or_format_is_converted(
    listen: Listen,
    open_page: Open,
    tmp_path: Path,
    name: str,
    before: tuple[int, int],
    after: tuple[int, int],
) -> None:
    path = tmp_path / name
    Image.new("RGB", before, "teal").save(path)
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page, picture=path)
    expect(page.locator("#image-note")).to_contain_text(f"JPEG of {after[0]} × {after[1]}")
    generate(page)
    finished(page)
    image = Image.open(io.BytesIO(content(only_request(here)["image"])))
    assert (image.format, image.size) == ("JPEG", after)


def test_a_picture_on_its_side_is_sent_upright_when_it_is_made_smaller(
    listen: Listen, open_page: Open, tmp_path: Path
) -> None:
    path = tmp_path / "side.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    Image.new("RGB", (8400, 1200)).save(path, exif=exif)
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page, picture=path)
    generate(page)
    finished(page)
    assert Image.open(io.BytesIO(content(only_request(here)["image"]))).size == (549, 3840)


def save_tone(path: Path, seconds: float, rate: int = 44_100, channels: int = 2) -> None:
    """A sound of 440 Hz, in the format of the file's name."""
    source = f"sine=440:duration={seconds}:sample_rate={rate}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source]
    options = ["-rf64", "always"] if "RF64" in path.name else []
    subprocess.run([*command, "-ac", str(channels), *options, str(path)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "seconds", "channels", "note", "sent"),
    [
        ("a.m4a", 3, 2, "3.0 s", 3),
        ("a.ogg", 3, 1, "3.0 s", 3),
        ("a.flac", 3, 2, "3.0 s", 3),
        ("RF64.wav", 3, 2, "3.0 s", 3),
        ("long.mp3", 40, 2, "its first 15 s are sent as a WAV file", 15),
        ("long.wav", 31, 1, "its first 15 s are sent as a WAV file", 15),
        ("long.m4a", 95, 2, "its first 15 s are sent as a WAV file", 15),
        ("large.wav", 29, 6, "its first 15 s are sent as a WAV file", 15),
    ],
)
def test_a_sound_of_a_wrong_length_or_format_is_converted(
    listen: Listen,
    open_page: Open,
    tmp_path: Path,
    name: str,
    seconds: float,
    channels: int,
    note: str,
    sent: float,
) -> None:
    save_tone(tmp_path / name, seconds, channels=channels)
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    fill(page)
    page.locator("#audio-file").set_input_files(tmp_path / name)
    expect(page.locator("#audio-note")).to_contain_text(note)
    expect(page.locator("#audio-note")).to_contain_text("as a WAV file")
    expect(page.locator("#code-note")).to_contain_text("this code sends it as it is")
    generate(page)
    finished(page)
    data = content(only_request(here)["audio"])
    track = open_audio(data, tmp_path, AudioLimits(), Control())
    assert track.seconds == pytest.approx(sent, abs=0.1)
    with wave.open(str(track.path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")[::2]
    loudest = np.argmax(np.abs(np.fft.rfft(samples))) / track.seconds
    assert loudest == pytest.approx(440, abs=1)


def test_a_valid_sound_is_sent_unchanged(listen: Listen, open_page: Open, tmp_path: Path) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)
    save_tone(tmp_path / "a.mp3", 29)
    fill(page)
    page.locator("#audio-file").set_input_files(tmp_path / "a.mp3")
    expect(page.locator("#audio-note")).to_contain_text("a.mp3, 29")
    generate(page)
    finished(page)
    assert content(only_request(here)["audio"]) == (tmp_path / "a.mp3").read_bytes()


def test_unusable_files_are_refused_at_once(
    listen: Listen, open_page: Open, tmp_path: Path
) -> None:
    small, text, narrow = tmp_path / "small.png", tmp_path / "text.png", tmp_path / "narrow.png"
    Image.new("RGB", (100, 300)).save(small)
    Image.new("RGB", (9000, 250)).save(narrow)
    text.write_text("no picture")
    long = tmp_path / "long.wav"
    save_tone(long, seconds=601, rate=8000, channels=1)
    here = listen()
    page = open_page(here.url)
    picture, sound = page.locator("#image-file"), page.locator("#audio-file")
    picture.set_input_files(small)
    expect(page.locator("#image-error")).to_have_text(
        "This picture has 100 × 300 pixels; each side needs 240 at least"
    )
    picture.set_input_files(narrow)
    expect(page.locator("#image-error")).to_have_text(
        "This picture has 9000 × 250 pixels; one side may be 33 times the other at most: crop it"
    )
    picture.set_input_files(text)
    expect(page.locator("#image-error")).to_have_text(
        "This browser cannot read “text.png” as a picture"
    )
    sound.set_input_files(long)
    expect(page.locator("#audio-error")).to_have_text(
        "This sound is too long to be cut here: save its first 10 minutes at most"
    )
    sound.set_input_files(text)
    expect(page.locator("#audio-error")).to_have_text(
        "This browser cannot read “text.png” as a sound"
    )
    fill(page)
    generate(page)
    expect(sound).to_be_focused()
    assert here.backend.requests == {}


DROP = """([name, type, data, where, kind]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    const options = { bubbles: true, cancelable: true };
    const event = kind === "paste"
        ? new ClipboardEvent("paste", { ...options, clipboardData: transfer })
        : new DragEvent("drop", { ...options, dataTransfer: transfer });
    document.querySelector(where).dispatchEvent(event);
    return event.defaultPrevented;
}"""


def test_files_are_dropped_and_pasted(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=NO_CLIP)

    def give(path: Path, kind: str, where: str, how: str) -> None:
        data = base64.b64encode(path.read_bytes()).decode()
        assert page.evaluate(DROP, [path.name, kind, data, where, how])

    give(DATA / "astronaut_360x480.png", "image/png", "#image .drop-label", "drop")
    expect(page.locator("#image-note")).to_contain_text("astronaut_360x480.png, 360 × 480")
    give(PHOTO, "image/jpeg", "body", "paste")
    expect(page.locator("#image-note")).to_contain_text("rocket_640x360.jpg, 640 × 360")
    give(SOUND, "audio/mpeg", "#result", "drop")
    expect(page.locator("#audio-note")).to_contain_text("chime_4s.mp3, 4.0 s")
    fill(page, picture=None)
    generate(page)
    finished(page)
    request = only_request(here)
    assert content(request["image"]) == PHOTO.read_bytes()
    assert content(request["audio"]) == SOUND.read_bytes()


def test_a_data_uri_in_the_url_field_is_a_file(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url)
    field = page.get_by_label("URL of the picture")
    field.fill(f"data:image/jpeg;base64,{base64.b64encode(PHOTO.read_bytes()).decode()}")
    field.blur()
    expect(page.locator("#image-note")).to_contain_text("image.jpeg, 640 × 360")
    field.fill("ftp://example.com/a.jpg")
    field.blur()
    expect(page.locator("#image-error")).to_have_text("It must start with http:// or https://")


# --- progress and errors -------------------------------------------------------------------------


def test_the_sentence_of_a_failed_job_is_shown_as_text(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url)
    fill(page, "fail:out_of_memory:The GPU is <b>full</b>: take 720p")
    generate(page)
    expect(page.locator("#failure")).to_have_text("The GPU is <b>full</b>: take 720p")
    expect(page.locator("#trouble")).to_have_attribute("role", "alert")
    expect(page.locator("#history .state")).to_have_text("failed")
    assert page.title() == "WAN playground"


def test_progress_is_live_and_a_job_can_be_cancelled(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url)
    fill(page, "hang")
    generate(page)
    expect(page.locator("#stage")).to_have_text("Rendering, 1 of 4")
    expect(page.locator("#live")).to_have_text("Rendering")
    bar = page.get_by_role("progressbar", name="Progress of the video")
    assert bar.evaluate("bar => bar.value") == pytest.approx(0.04 + 0.56 / 4)
    assert page.title() == "18 % · WAN playground"
    page.locator("#running").get_by_role("button", name="Cancel").click()
    expect(page.locator("#failed-title")).to_have_text("Cancelled")
    expect(page.locator("#history .state")).to_have_text("cancelled")
    (job_id,) = here.backend.requests
    assert here.backend.stopped == [job_id]


def test_the_refusal_of_the_gateway_is_shown_below_the_button(
    listen: Listen, open_page: Open
) -> None:
    here = listen(queue_max=1)
    page = open_page(here.url, allowed=("429",))
    fill(page, "hang")
    for waiting in ("working", "in the queue"):
        generate(page)
        expect(page.locator("#history .state").first).to_have_text(waiting)
    generate(page)
    expect(page.locator("#form-error")).to_have_text(re.compile(r"queue.*\(in \d+ s\)$"))
    expect(page.locator("#history li")).to_have_count(2)


def test_a_server_that_is_away_is_asked_again(listen: Listen, open_page: Open) -> None:
    here = listen()
    page = open_page(here.url, allowed=(*NO_CLIP, "ERR_CONNECTION_REFUSED"))
    fill(page, "hang")
    generate(page)
    expect(page.locator("#stage")).to_have_text("Rendering, 1 of 4")
    page.route("**/api/jobs/**", lambda route: route.abort("connectionrefused"))
    expect(page.locator("#away")).to_have_text("The server does not answer; trying again")
    page.unroute("**/api/jobs/**")
    expect(page.locator("#away")).to_be_empty()


# Progress of a clip of two segments, of which two polls miss a part.
TOLD = [
    ("prepare", 0, 1),
    ("denoise", 1, 8),
    ("denoise", 3, 8),
    ("decode", 40, 80),
    ("denoise", 5, 8),
    ("decode", 60, 80),
    ("encode", 0, 1),
    ("publish", 0, 1),
    ("publish", 1, 1),
    ("unheard of", 0, 0),
]


def test_the_progress_bar_never_goes_back(listen: Listen, open_page: Open) -> None:
    page = open_page(listen().url)
    values = page.evaluate(
        """async (told) => {
            const app = document.querySelector("script[type=module]").src;
            const { Bar } = await import(app.replace("app.js", "progress.js"));
            const bar = new Bar();
            return told.map(([stage, step, steps]) => bar.at({ stage, step, steps }));
        }""",
        TOLD,
    )
    assert values == sorted(values) and values[0] == 0
    assert values[3] == pytest.approx(0.04 + 0.56 / 2 + 0.26 / 2)
    assert values[-1] == values[-2] == pytest.approx(1)
