"""`open_image` on odd pictures, compared with what the system's Chromium shows."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from tests.media.odd_pictures import pictures
from wan_engine.media.images import ImageLimits, open_image

pytestmark = pytest.mark.system

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
LEVELS = {"CMYK, profile": 12}
"""Pictures for which more than three levels are allowed, because Chromium interpolates between the
inks of a table."""
_SHOW = """
async (text) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([bytes]));
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let shown = "";
  for (let at = 0; at < data.length; at += 32768) {
    shown += String.fromCharCode(...data.subarray(at, at + 32768));
  }
  return btoa(shown);
}
"""

Show = Callable[[bytes], np.ndarray]


@pytest.fixture(scope="module")
def shown() -> Iterator[Show]:
    """The pixels that Chromium shows, uint8 [240, 256, 3], on an sRGB screen."""
    found = [path for name in PROGRAMS if (path := shutil.which(name))]
    assert found, "apt-get install chromium"
    arguments = ["--force-color-profile=srgb"] + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=arguments)
        page = browser.new_page()

        def show(data: bytes) -> np.ndarray:
            pixels = base64.b64decode(page.evaluate(_SHOW, base64.b64encode(data).decode()))
            return np.frombuffer(pixels, np.uint8).reshape(240, 256, 4)[:, :, :3]

        yield show
        browser.close()


def test_colours_match_those_of_a_browser(shown: Show) -> None:
    off = {}
    for name, data in pictures().items():
        ours = np.asarray(open_image(data, ImageLimits())).astype(int)
        levels = int(np.abs(ours - shown(data)).max())
        if levels > LEVELS.get(name, 3):
            off[name] = levels
    assert off == {}
