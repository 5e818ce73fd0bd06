"""One gateway and one window for one state, and the clips that are shown in it."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import imageio_ffmpeg
from playwright.sync_api import Browser, Page, Route, expect

from tests.gateway.conftest import Listening, listening
from tests.gateway.playground.conftest import DATA, PHOTO

LAST = DATA / "astronaut_360x480.png"
SOUND = DATA / "chime_4s.mp3"
ONE_JOB = "**/playground/api/jobs/*"


@dataclass
class Stand:
    """`open` begins the gateway and shows its page, once; `close` ends both."""

    browser: Browser
    folder: Path = field(default_factory=lambda: Path(mkdtemp(prefix="look-")))
    _stops: list[Callable[[], None]] = field(default_factory=list)
    _here: Listening | None = None
    _page: Page | None = None

    @property
    def here(self) -> Listening:
        assert self._here is not None
        return self._here

    @property
    def page(self) -> Page:
        assert self._page is not None
        return self._page

    def serve(self, **settings: Any) -> Listening:
        self._here = listening(self.folder, self._stops, **settings)
        self.here.backend.clip = clip("landscape")
        return self.here

    def open(self, path: str = "", **settings: Any) -> Page:
        """A window without a history. Settings are the gateway's."""
        if self._here is None:
            self.serve(**settings)
        self._close_page()
        context = self.browser.new_context(
            locale="en-GB", viewport={"width": 1280, "height": 900}, reduced_motion="reduce"
        )
        context.set_default_timeout(15_000)
        self._page = context.new_page()
        self.page.goto(self.here.url + path)
        self.page.locator("body[data-restored]").wait_for()
        self.page.locator("#ready[data-state]:not([data-state=unknown])").wait_for()
        return self.page

    def tell(self, **changes: Any) -> None:
        """From now on the gateway's answers about jobs have these fields."""

        def answer(route: Route) -> None:
            response = route.fetch()
            route.fulfill(response=response, json=response.json() | changes)

        self.page.route(ONE_JOB, answer)
        with self.page.expect_response(ONE_JOB):
            pass

    def _close_page(self) -> None:
        if self._page is not None:
            self._page.unroute_all(behavior="ignoreErrors")  # an answer may be on its way
            self._page.context.close()

    def close(self) -> None:
        self._close_page()
        for stop in self._stops:
            stop()


# --- what people do ------------------------------------------------------------------------------


def fill(page: Page, prompt: str = "Leaves sway in the wind", picture: Path = PHOTO) -> None:
    """A picture and a prompt: what a request needs at least."""
    page.locator("#image-file").set_input_files(picture)
    page.locator("#image .preview").wait_for()
    page.get_by_label("Prompt", exact=True).fill(prompt)


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()


def finished(page: Page) -> None:
    page.get_by_role("link", name="Download").wait_for()
    expect(page.locator("#facts")).to_contain_text("×")


def make(page: Page, prompt: str = "Leaves sway in the wind", picture: Path = PHOTO) -> None:
    """A clip, until it is seen."""
    fill(page, prompt, picture)
    generate(page)
    expect(page.locator("#shown")).to_contain_text(prompt[:40])
    finished(page)
    page.locator("#history .thumb.clip").first.wait_for()


# --- media ---------------------------------------------------------------------------------------


@cache
def clip(shape: str) -> bytes:
    """3 s of a picture that comes nearer, with a tone: "landscape" or "portrait"."""
    picture, size = {"landscape": (PHOTO, "640x360"), "portrait": (LAST, "360x480")}[shape]
    path = Path(mkdtemp(prefix="clip-")) / "clip.mp4"
    zoom = f"zoompan=z='1+on/200':d=36:s={size}:fps=12"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(picture)]
    sound = ["-f", "lavfi", "-i", "sine=frequency=330:duration=3", "-vf", zoom, "-shortest"]
    kind = ["-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    subprocess.run([*command, *sound, *kind], check=True, timeout=60)
    return path.read_bytes()


@cache
def film() -> Path:
    """A clip as a file, to be chosen."""
    path = Path(mkdtemp(prefix="clip-")) / "a walk along the river, second take.mp4"
    path.write_bytes(clip("landscape"))
    return path


def as_uri(path: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"
