"""The gallery shows clips by their first frame, and two of them side by side."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import pytest
from playwright.sync_api import Page, expect

from benchmarks.services.gateway import until
from tests.gateway.conftest import Listening
from tests.gateway.playground.conftest import Open, fill, finished, generate

pytestmark = pytest.mark.system

Listen = Callable[..., Listening]


@pytest.fixture
def here(listen: Listen, tmp_path: Path) -> Listening:
    """A gateway whose clips are blue."""
    path = tmp_path / "clip.mp4"
    source = "color=c=blue:duration=3:size=640x360:rate=12"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source]
    more = ["-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    subprocess.run([*command, *more], check=True, timeout=60)
    begun = listen()
    begun.backend.clip = path.read_bytes()
    return begun


def made(page: Page, *prompts: str) -> None:
    for prompt in prompts:
        fill(page, prompt)
        generate(page)
        expect(page.locator("#shown")).to_have_text(f"“{prompt}”")
        finished(page)


def test_a_clip_is_shown_by_its_first_frame_which_is_made_once(
    here: Listening, open_page: Open
) -> None:
    page = open_page(here.url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    made(page, "Blue")
    still = page.locator("#history .thumb.clip")
    still.wait_for()
    size = still.evaluate(
        "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    )
    assert size == [480, 270]
    expect(page.locator("#history li")).to_contain_text("640 × 360")  # the actual size of the clip
    page.reload()
    still.wait_for()
    assert len([url for url in asked if url.endswith("/still")]) == 1
    made(page, "Another")
    still.last.click()
    expect(page.locator("#shown")).to_have_text("“Blue”")


def test_two_clips_are_played_side_by_side(here: Listening, open_page: Open) -> None:
    page = open_page(here.url)
    made(page, "One", "Two", "Three")
    expect(page.locator("#compare")).to_be_hidden()
    for name in ("One", "Two", "Three"):
        page.get_by_role("button", name=f"Compare: {name}").click()
    videos = page.locator("#compared video")
    expect(videos).to_have_count(2)
    expect(page.locator("#compared figcaption")).to_have_text(["Two · seed 7", "Three · seed 7"])
    pressed = page.locator('#history [aria-pressed="true"]')
    expect(pressed).to_have_count(2)
    page.get_by_role("button", name="Play both").click()
    moved = "videos => videos.every(video => video.currentTime > 0.1)"
    until(lambda: videos.evaluate_all(moved))
    assert videos.evaluate_all("videos => videos.map(video => video.muted)") == [False, True]
    page.get_by_role("button", name="Pause both").click()
    page.get_by_role("button", name="Remove: Two").click()
    expect(page.locator("#compare")).to_be_hidden()


def test_a_clip_that_is_gone_is_named_in_a_comparison(here: Listening, open_page: Open) -> None:
    page = open_page(here.url, allowed=("404",))
    made(page, "One", "Two")
    page.route("**/results/**", lambda route: route.fulfill(status=404))
    for name in ("One", "Two"):
        page.get_by_role("button", name=f"Compare: {name}").click()
    expect(page.locator("#compared figcaption")).to_have_text(
        ["It cannot be played. One · seed 7", "It cannot be played. Two · seed 7"]
    )
