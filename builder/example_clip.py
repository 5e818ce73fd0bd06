"""Makes the clip that the playground shows beside its example: `wan-tiny` renders the example's
request, and the result is made small.

python -m builder.example_clip          writes `example.mp4` beside the example's picture

Run it when the picture or the prompt of the example changes. It takes a minute on a CPU.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from wan_engine.control import Control
from wan_engine.engine import Engine
from wan_engine.media import ffmpeg
from wan_engine.schema import parse_request
from wan_engine.settings import Settings

STATIC = Path(__file__).parents[1] / "wan_engine/gateway/playground/static"
PICTURE = STATIC / "example.jpg"
CLIP = STATIC / "example.mp4"

MODEL = "wan-tiny"
_SEED = 1
_WIDTH = 640  # as wide as the page shows it
_FPS = 15
_CRF = 26


def prompt() -> str:
    """The prompt of the example, as the page has it."""
    page = (STATIC / "index.html").read_text("utf-8")
    (found,) = re.findall(r'<p id="example-prompt"[^>]*>([^<]+)</p>', page)
    return html.unescape(found)


def picture_hash() -> str:
    """The SHA-256 of the example's picture."""
    return hashlib.sha256(PICTURE.read_bytes()).hexdigest()


def main() -> None:
    """Render the request that the page's button sends, with a fixed seed."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(model=MODEL, safety="off", output_dir=Path(folder))
        image = f"data:image/jpeg;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
        wish = {"prompt": prompt(), "image": image, "seed": _SEED}
        control = Control()
        result = Engine(settings).generate(parse_request(wish), control)
        made = Path(unquote(urlsplit(result.video_url).path))
        small = Path(folder, CLIP.name)
        with ffmpeg.running(_arguments(made, small), control):
            pass
        CLIP.write_bytes(small.read_bytes())
    print(f"{CLIP.name}: {CLIP.stat().st_size:,} bytes")


def _arguments(made: Path, small: Path) -> tuple[str, ...]:
    """The clip keeps its comment, which names the model, and says what it was made from."""
    smaller = f"fps={_FPS},scale={_WIDTH}:-2"
    video = ("-c:v", "libx264", "-preset", "veryslow", "-crf", str(_CRF), "-pix_fmt", "yuv420p")
    told = ("-metadata", f"title={prompt()}", "-metadata", f"description={picture_hash()}")
    return (
        "-i",
        str(made),
        "-an",
        "-vf",
        smaller,
        *video,
        *told,
        "-movflags",
        "+faststart",
        str(small),
    )


if __name__ == "__main__":
    main()
