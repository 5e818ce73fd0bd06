"""The toy with compiling: with a compiler, without one, and with compilers that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wan_engine import toy
from wan_engine.media import ffmpeg

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
FAILS = "#!/bin/sh\necho 'fatal error: no room' >&2\nexit 1\n"
FAILS_LATER = (
    '#!/bin/sh\ncase "$*" in *--version*|*wan-probe*) exec /usr/bin/g++ "$@";; esac\nexit 1\n'
)
NO_COMPILER = "there is no C++ compiler: install gcc, g++ and Python's headers"


class Rendered:
    """One clip in a process with its own caches."""

    def __init__(self, folder: Path, compiler: str | None, wanted: str) -> None:
        programs, cache = folder / "programs", folder / "inductor"
        for one in (programs, cache):
            one.mkdir()
        if compiler == "g++":
            (programs / "g++").symlink_to("/usr/bin/g++")
        elif compiler is not None:
            (programs / "g++").write_text(compiler)
            (programs / "g++").chmod(0o755)
        # g++ needs programs in /usr/bin. Without a compiler, the path is empty.
        path = str(programs) if compiler is None else f"{programs}:/bin:/usr/bin"
        self.clip = folder / "clip.mp4"
        values = {
            "WAN_MODEL": str(folder.parent / "wan-tiny"),
            "WAN_RENDER_AREA": str(64 * 48),
            "WAN_FPS": "native",
            "WAN_PRESET": "superfast",
            "WAN_SAFETY": "off",
            "WAN_COMPILE": wanted,
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
        }
        picture = ROOT / "tests" / "data" / "rocket_640x360.jpg"
        asked = ["--image", str(picture), "--prompt", "lift-off", "--seed", "3"]
        self.done = subprocess.run(
            [sys.executable, "-m", "wan_engine", "generate", *asked, "--out", str(self.clip)],
            env={**os.environ, **values, "PATH": path},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    @property
    def log(self) -> str:
        return " ".join(self.done.stderr.split())

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.done.stdout)
        return found

    def frames(self) -> str:
        """A hash of the decoded clip."""
        command = [ffmpeg.executable(), "-v", "error", "-i", str(self.clip), "-f", "md5", "-"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the toy in it, small and random."""
    made = tmp_path_factory.mktemp("compiled")
    toy.build("wan-tiny-random", made / "wan-tiny")
    return made


@pytest.fixture(scope="module")
def eager(folder: Path) -> str:
    (folder / "eager").mkdir()
    rendered = Rendered(folder / "eager", "g++", "off")
    assert rendered.done.returncode == 0, rendered.log
    return rendered.frames()


def render(folder: Path, name: str, compiler: str | None, wanted: str) -> Rendered:
    (folder / name).mkdir()
    return Rendered(folder / name, compiler, wanted)


def test_with_a_compiler_the_blocks_are_compiled(folder: Path) -> None:
    rendered = render(folder, "compiled", "g++", "required")
    assert rendered.done.returncode == 0, rendered.log
    assert "recipe float32 on cpu, compiled" in rendered.log
    assert "uncompiled" not in rendered.log and "compiling failed" not in rendered.log
    assert "video_url" in rendered.result
    assert list((folder / "compiled" / "inductor").rglob("*.so"))


@pytest.mark.parametrize(
    ("name", "compiler", "said"),
    [
        ("none", None, f"blocks run uncompiled, slower: {NO_COMPILER}"),
        ("fails", FAILS, "fails (fatal error: no room)"),
        ("fails later", FAILS_LATER, "WARNING| compiling failed"),
    ],
    ids=["none", "one that fails", "one that fails later"],
)
def test_if_compiling_fails_the_clip_is_made_without_and_a_line_says_so(
    folder: Path, eager: str, name: str, compiler: str | None, said: str
) -> None:
    rendered = render(folder, name, compiler, "on")
    assert rendered.done.returncode == 0, rendered.log
    assert said in rendered.log
    assert rendered.frames() == eager
    assert not list((folder / name / "inductor").rglob("*.so"))


@pytest.mark.parametrize(
    ("name", "compiler", "said"),
    [
        ("required, none", None, f"WAN_COMPILE is required, and {NO_COMPILER}."),
        ("required, fails later", FAILS_LATER, "The worker could not compile the model"),
    ],
    ids=["none", "one that fails later"],
)
def test_required_compiling_is_never_skipped(
    folder: Path, name: str, compiler: str | None, said: str
) -> None:
    rendered = render(folder, name, compiler, "required")
    assert rendered.done.returncode == 1
    assert said in rendered.log
    assert not rendered.clip.exists()


def test_doctor_says_that_nothing_can_be_compiled(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wan_engine", "doctor", "--json"],
        env={
            **os.environ,
            "PATH": str(tmp_path),
            "WAN_MODEL": str(folder / "wan-tiny"),
            "WAN_COMPILE": "on",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    [recipe] = [row for row in json.loads(done.stdout) if row["what"] == "recipe"]
    assert recipe["level"] == "warn"
    assert NO_COMPILER in recipe["found"]
