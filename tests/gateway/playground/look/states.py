"""Every state of the page, by name: how it is reached, and which part of the page shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Page, expect

from tests.gateway.playground.conftest import PHOTO
from tests.gateway.playground.look.stand import (
    LAST,
    SOUND,
    Stand,
    as_uri,
    clip,
    fill,
    film,
    finished,
    generate,
    make,
)
from wan_engine.control import Preview, Progress
from wan_engine.gateway.keys import new_entry

MEDIA, FORM, JOB = "section[aria-labelledby=media-title]", "#form", "#result"
CODE, HISTORY = "section[aria-labelledby=code-title]", "section[aria-labelledby=history-title]"
PAGE = "body"

ALL: Any = {"image-to-video": "wan2.2-i2v-a14b", "reference-to-video": "wan2.2-vace-fun-a14b"}
CLIPS: Any = {"image-to-video": "wan2.2-ti2v-5b"}
SPEECH: Any = {"speech-to-video": "wan2.2-s2v-14b"}
PRICES: Any = {
    "image-to-video": {"1280*720": 0.1, "1920*1080": 0.15},
    "reference-to-video": {"1280*720": 0.1, "1920*1080": 0.15},
}
LONG = (
    "A woman in a long red coat walks slowly through a narrow street in the old town while the "
    "rain falls; she stops below a lantern, turns to the camera and smiles. The camera follows "
    "her from behind, then circles around her."
)


@dataclass(frozen=True)
class State:
    """`reach` brings a fresh stand into it; `part` is the selector of what a sheet shows of it."""

    name: str
    reach: Callable[[Stand], None]
    part: str


STATES: dict[str, State] = {}


def state(part: str) -> Callable[[Callable[[Stand], None]], Callable[[Stand], None]]:
    def keep(reach: Callable[[Stand], None]) -> Callable[[Stand], None]:
        name = reach.__name__.replace("_", "-")
        STATES[name] = State(name, reach, part)
        return reach

    return keep


# --- the start and the key -----------------------------------------------------------------------


@state(PAGE)
def start(stand: Stand) -> None:
    stand.serve().backend.models = ALL
    stand.open()


@state(PAGE)
def key_wanted(stand: Stand) -> None:
    stand.open(api_keys=new_entry("ann")[1])
    stand.page.locator("#key-card").wait_for()


@state("#key-card")
def key_wrong(stand: Stand) -> None:
    key_wanted(stand)
    stand.page.get_by_role("textbox", name="API key").fill("wan_none")
    stand.page.get_by_role("button", name="Use key").click()
    expect(stand.page.locator("#key-note")).to_contain_text("not valid")


@state(PAGE)
def key_used(stand: Stand) -> None:
    key, entry = new_entry("ann")
    stand.open(api_keys=entry)
    stand.page.get_by_role("textbox", name="API key").fill(key)
    stand.page.get_by_role("button", name="Use key").click()
    expect(stand.page.locator("#key-note")).to_contain_text("The key is used")


# --- the form ------------------------------------------------------------------------------------


@state(FORM)
def example_filled(stand: Stand) -> None:
    start(stand)
    stand.page.get_by_role("button", name="Use the example").click()
    expect(stand.page.locator("#size-note")).to_contain_text("pixels")


@state(FORM)
def picture_cropped(stand: Stand) -> None:
    page = stand.open(frame="exact")
    fill(page, LONG, LAST)
    expect(page.locator("#size-note")).to_contain_text("cut off")
    page.locator("#kept-part").wait_for()


@state(MEDIA)
def picture_by_address(stand: Stand) -> None:
    page = stand.open()
    page.get_by_label("URL of the picture").fill(
        "https://pictures.example.com/2026/11/" + "a-very-long-name-" * 6 + "of-a-picture.jpg"
    )
    page.get_by_label("URL of the picture").press("Tab")
    expect(page.locator("#image-note")).to_contain_text("No preview here")


@state(FORM)
def refused_here(stand: Stand) -> None:
    start(stand)
    stand.page.get_by_label("Seed").fill("-5")
    generate(stand.page)
    expect(stand.page.locator("#seed-error")).to_be_visible()


@state(FORM)
def refused_files(stand: Stand) -> None:
    page = stand.open()
    for name, kind in (("image", "image/jpeg"), ("audio", "audio/mpeg")):
        file: Any = {"name": f"not really a {name} file.bin", "mimeType": kind, "buffer": b"none"}
        page.locator(f"#{name}-file").set_input_files(file)
        expect(page.locator(f"#{name}-error")).to_contain_text("cannot read")


@state(MEDIA)
def refused_reference(stand: Stand) -> None:
    start(stand)
    page = stand.page
    page.get_by_label("Text or references", exact=True).check()
    file: Any = {"name": "a film.mp4", "mimeType": "video/mp4", "buffer": bytes(9 * 2**20)}
    page.locator("#references-file").set_input_files(file)
    page.get_by_role("button", name="Leave it out").wait_for()


@state("#form > .send")
def refused_there(stand: Stand) -> None:
    page = stand.open(queue_max=1)
    stand.here.backend.hold()
    fill(page)
    for number in range(3):
        generate(page)
        if number < 2:
            expect(page.locator("#history li")).to_have_count(number + 1)
    expect(page.locator("#form-error")).not_to_be_empty()


@state(FORM)
def too_long(stand: Stand) -> None:
    start(stand)
    fill(stand.page, "x" * 1501)
    expect(stand.page.locator("#prompt-count")).to_contain_text("cut")


@state(MEDIA)
def last_picture(stand: Stand) -> None:
    start(stand)
    fill(stand.page)
    stand.page.locator("#last-file").set_input_files(LAST)
    expect(stand.page.locator("#last-note")).to_contain_text("360 × 480")


@state(FORM)
def references(stand: Stand) -> None:
    start(stand)
    page = stand.page
    page.get_by_label("Text or references", exact=True).check()
    page.locator("#references-file").set_input_files([PHOTO, LAST, film()])
    expect(page.locator("#references-list li")).to_have_count(3)
    page.get_by_label("URL of a reference").fill("https://example.com/" + "long-" * 20 + "name.png")
    page.get_by_role("button", name="Add the reference").click()
    expect(page.locator("#references-list li")).to_have_count(4)
    page.get_by_label("Prompt", exact=True).fill("character1 lifts off, character2 waves")


@state(MEDIA)
def text_alone(stand: Stand) -> None:
    stand.serve().backend.models = {"reference-to-video": "wan-tiny-vace"}
    stand.open()


@state(MEDIA)
def clip_continued(stand: Stand) -> None:
    stand.serve().backend.models = CLIPS
    page = stand.open()
    page.get_by_label("Clip", exact=True).check()
    page.locator("#clip-file").set_input_files(film())
    expect(page.locator("#clip-note")).to_contain_text("3.0 s")
    expect(page.locator("#size-note")).to_contain_text("pixels")


@state(MEDIA)
def sound_chosen(stand: Stand) -> None:
    stand.serve().backend.models = SPEECH
    page = stand.open()
    fill(page)
    page.locator("#audio-file").set_input_files(SOUND)
    page.locator("#part").wait_for()
    page.get_by_role("slider", name="From").fill("1.2")
    expect(page.locator("#audio-note")).to_contain_text("from 1.2 s on")


@state("section[aria-labelledby=options-title]")
def several_shots(stand: Stand) -> None:
    start(stand)
    stand.page.get_by_role("group", name="Shots").get_by_label("Several").check()
    expect(stand.page.locator("#shots-note")).not_to_be_empty()


@state("section[aria-labelledby=options-title]")
def loras(stand: Stand) -> None:
    here = stand.serve()
    here.backend.models = ALL
    here.backend.loras = {"image-to-video": ["motion", "people/anna in a long red coat, 2026"]}
    page = stand.open()
    page.get_by_role("combobox", name="LoRA 1").select_option(index=2)
    page.get_by_role("combobox", name="LoRA 2").select_option(index=2)
    page.get_by_label("Scale of LoRA 2").fill("9")
    fill(page)
    generate(page)
    expect(page.locator("#loras-error")).not_to_be_empty()


@state(MEDIA)
def not_taken(stand: Stand) -> None:
    """A request of a server that took a last picture, brought back where none is taken."""
    start(stand)
    page = stand.page
    page.locator("#last-file").set_input_files(LAST)
    expect(page.locator("#last-note")).to_contain_text("360 × 480")
    make(page)
    stand.here.backend.models = {"image-to-video": "a checkpoint of mine"}
    expect(page.locator("#begin")).to_be_hidden()
    page.get_by_role("button", name="Use again").click()
    expect(page.locator("#image-note")).to_contain_text("640 × 360")


# --- a job that waits and runs -------------------------------------------------------------------


def held(stand: Stand, **settings: Any) -> Page:
    page = stand.open(**settings)
    stand.here.backend.hold()
    stand.here.backend.at = Progress("denoise", 14, 40)
    fill(page, LONG)
    generate(page)
    page.locator("#running").wait_for()
    return page


@state(JOB)
def queued(stand: Stand) -> None:
    page = held(stand)
    generate(page)
    expect(page.locator("#history li")).to_have_count(2)
    stand.tell(before=4, seconds_left=181)
    expect(page.locator("#wait")).to_have_text("4 jobs are before it, about 3 min left")


@state(PAGE)
def engine_starts(stand: Stand) -> None:
    page = stand.open()
    stand.here.backend.hold()
    stand.here.backend.why = "the engine is starting: loading the weights of wan2.2-i2v-a14b"
    fill(page)
    generate(page)
    stand.tell(status="IN_QUEUE", progress=None, before=0, waiting_for=stand.here.backend.why)
    expect(page.locator("#ready")).to_contain_text("Not ready")
    expect(page.locator("#wait")).to_contain_text("Next in the queue")


@state(JOB)
def rendering(stand: Stand) -> None:
    page = held(stand)
    stand.tell(seconds_left=74)
    expect(page.locator("#stage")).to_have_text("Rendering, 14 of 40")
    expect(page.locator("#wait")).to_contain_text("left")


@state(JOB)
def previewed(stand: Stand) -> None:
    stand.serve().backend.preview = Preview(as_uri(PHOTO), 14)
    page = held(stand)
    page.get_by_role("img", name="Preview of step 14 of 40").wait_for()


@state(PAGE)
def server_away(stand: Stand) -> None:
    page = held(stand)
    stand.here.stop()
    expect(page.locator("#ready")).to_have_text("The server does not answer")
    expect(page.locator("#away")).to_contain_text("trying again")


@state(PAGE)
def server_back(stand: Stand) -> None:
    page = stand.open()
    fill(page)
    page.route("**/*", lambda route: route.abort())
    expect(page.locator("#ready")).to_have_text("The server does not answer")
    generate(page)
    expect(page.locator("#form-error")).to_contain_text("does not answer")
    page.unroute("**/*")
    expect(page.locator("#ready")).to_have_text("Ready")


# --- a job that has ended ------------------------------------------------------------------------


@state(JOB)
def finished_landscape(stand: Stand) -> None:
    make(stand.open(), LONG)


@state(JOB)
def finished_portrait(stand: Stand) -> None:
    page = stand.open()
    stand.here.backend.clip = clip("portrait")
    make(page, "She waves", LAST)


@state(JOB)
def finished_with_warnings(stand: Stand) -> None:
    page = stand.open()
    stand.here.backend.more = {
        "warnings": [
            "The sound is longer than the clip: its end is cut",
            "The prompt was cut at 800 characters",
        ]
    }
    make(page)


@state(PAGE)
def finished_priced(stand: Stand) -> None:
    make(stand.open(prices=PRICES))


@state(JOB)
def failed(stand: Stand) -> None:
    page = stand.open()
    fill(page, "fail:internal_error:The picture has no face that could speak")
    generate(page)
    page.locator("#failed").wait_for()


@state(JOB)
def cancelled(stand: Stand) -> None:
    page = held(stand)
    page.locator("#cancel").click()
    expect(page.locator("#failed-title")).to_have_text("Cancelled")


@state(JOB)
def clip_deleted(stand: Stand) -> None:
    page = stand.open()
    make(page)
    page.route("**/*.mp4*", lambda route: route.fulfill(status=404))
    page.reload()
    expect(page.locator("#warnings")).not_to_be_empty()


@state(JOB)
def job_expired(stand: Stand) -> None:
    page = stand.open()
    make(page)
    page.route("**/playground/api/jobs/*", lambda route: route.fulfill(status=404, json={}))
    page.reload()
    expect(page.locator("#failed-title")).to_have_text("Not found")


@state(JOB)
def shared_finished(stand: Stand) -> None:
    make(stand.open(), LONG)
    stand.open("/?job=" + stand.page.url.rpartition("job=")[2])
    finished(stand.page)


@state(JOB)
def shared_failed(stand: Stand) -> None:
    failed(stand)
    stand.open("/?job=" + stand.page.url.rpartition("job=")[2])
    expect(stand.page.locator("#shared-prompt")).not_to_be_empty()


@state(PAGE)
def shared_unknown(stand: Stand) -> None:
    stand.open("/?job=00000000-0000-0000-0000-000000000000")
    expect(stand.page.locator("#failed-title")).to_have_text("Not found")


# --- the history and the code --------------------------------------------------------------------


@state(HISTORY)
def gallery(stand: Stand) -> None:
    page = stand.open()
    make(page, LONG)
    stand.here.backend.clip = clip("portrait")
    make(page, "She waves", LAST)
    fill(page, "fail:internal_error:The picture has no face that could speak")
    generate(page)
    page.locator("#failed").wait_for()
    stand.here.backend.hold()
    fill(page, "A wave breaks")
    generate(page)
    page.get_by_text("working").wait_for()
    generate(page)
    expect(page.locator("#history li")).to_have_count(5)


@state("#compare")
def compared(stand: Stand) -> None:
    page = stand.open()
    make(page, LONG)
    stand.here.backend.clip = clip("portrait")
    make(page, "She waves", LAST)
    for button in page.get_by_role("button", name="Compare").all():
        button.click()
    expect(page.locator("#compared video")).to_have_count(2)
    page.wait_for_function(
        "[...document.querySelectorAll('#compared video')].every(one => one.readyState >= 2)"
    )


def code_of(api: str, language: str) -> Callable[[Stand], None]:
    def reach(stand: Stand) -> None:
        page = stand.open(api_keys=new_entry("ann")[1])
        fill(page, "She says “hello”")
        page.get_by_label(api, exact=True).check()
        page.get_by_label(language, exact=True).check()

    reach.__name__ = "code_" + api.replace("/", "").split()[0].lower()
    return reach


for one in (
    ("Runpod", "curl"),
    ("AI/ML API", "Python"),
    ("Oxen", "JavaScript"),
    ("DashScope", "curl"),
    ("OpenAI", "Python"),
):
    state(CODE)(code_of(*one))
