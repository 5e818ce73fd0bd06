"""A whole generation in the browser, with `wan-tiny` in the real engine process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from benchmarks.services.gateway import answers, free_port, until
from benchmarks.services.processes import ROOT
from tests.gateway.playground.conftest import PHOTO, SOUND, Open, fill, generate
from wan_engine.catalog import known_models

pytestmark = pytest.mark.system

RENDER_MS = 240_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("gateway")
    port = free_port()
    settings = {
        "WAN_MODEL": "wan-tiny",
        "WAN_SAFETY": "off",
        "WAN_OUTPUT_DIR": str(folder / "outputs"),
        "WAN_SHUTDOWN_SECONDS": "0.2",
        "WAN_RENDER_AREA": "16384",
        "WAN_INTERPOLATION": "blend",
        "WAN_PRESET": "superfast",
    }
    command = [sys.executable, "-m", "wan_engine", "serve", "--port", str(port)]
    environment = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
    with (folder / "gateway.log").open("wb") as log:
        popen = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        until(lambda: popen.poll() is not None or answers(f"http://127.0.0.1:{port}"))
        yield f"http://127.0.0.1:{port}/"
    finally:
        popen.terminate()
        popen.wait(60)


def test_a_picture_becomes_a_video(gateway: str, open_page: Open, tmp_path: Path) -> None:
    page = open_page(gateway, allowed=("503",))  # the engine may still be starting
    expect(page.locator("#ready")).to_have_text("Ready", timeout=RENDER_MS)
    takes = page.request.get(f"{gateway}playground/api/server").json()["takes"]
    assert takes == {"image-to-video": list(known_models()["wan-tiny"].takes)}
    fill(page, "The rocket lifts off, smoke rolls over the ground")
    page.locator("#audio-file").set_input_files(SOUND)
    page.locator("audio.preview").wait_for()
    page.get_by_label("Seed").fill("11")
    page.evaluate(
        """() => {
            window.told = [];
            const look = () => told.push([
                document.getElementById("live").textContent, document.getElementById("bar").value]);
            new MutationObserver(look).observe(document.getElementById("running"),
                { subtree: true, childList: true, characterData: true, attributes: true });
        }"""
    )
    generate(page)
    download = page.get_by_role("link", name="Download")
    download.wait_for(timeout=RENDER_MS)
    told = page.evaluate("told")
    assert {"Rendering", "Decoding"} <= {said for said, _ in told}
    values = [value for _, value in told]
    assert values == sorted(values) and len(set(values)) >= 4
    expect(page.locator("#warnings")).to_contain_text("trained on drawings")
    expect(page.locator("#facts")).to_contain_text("Size1280 × 720Length5 sSeed11Made in")
    video = page.locator("#video")
    video.evaluate("video => { video.muted = true; return video.play(); }")
    until(lambda: video.evaluate("video => video.currentTime") > 0.2)
    shape = video.evaluate("video => [video.videoWidth, video.videoHeight, video.duration]")
    assert shape[:2] == [1280, 720] and shape[2] == pytest.approx(5, abs=0.1)
    with page.expect_download() as downloading:
        download.click()
    file = tmp_path / "clip.mp4"
    downloading.value.save_as(file)
    assert downloading.value.suggested_filename.endswith(".mp4")
    assert file.read_bytes()[4:8] == b"ftyp"
    page.reload()
    expect(page.locator("#history .state")).to_have_text("finished")
    until(lambda: video.evaluate("video => video.readyState") >= 1)


def test_the_page_shows_why_the_engine_refuses_a_picture(
    gateway: str, open_page: Open, tmp_path: Path
) -> None:
    """The browser shows its first frame. The contract accepts no animated pictures."""
    animated = tmp_path / "animated.png"
    frames = [Image.open(PHOTO), Image.new("RGB", (640, 360))]
    frames[0].save(animated, save_all=True, append_images=frames[1:])
    page = open_page(gateway, allowed=("503",))  # the engine may still be starting
    expect(page.locator("#ready")).to_have_text("Ready", timeout=RENDER_MS)
    fill(page, picture=animated)
    generate(page)
    expect(page.locator("#failure")).to_contain_text("Invalid image URL: ", timeout=RENDER_MS)
    expect(page.locator("#failure")).to_contain_text("animated")
    expect(page.locator("#history .state")).to_have_text("failed")
    expect(page.locator("#done")).to_be_hidden()
