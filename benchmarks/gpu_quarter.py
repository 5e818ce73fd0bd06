"""Spends a quarter of an hour on a GPU on the most important measurements, in order.

`pack` puts the packages that the measurement needs beside torch and transformers into one folder.
That folder and the repository together stay below 64 MiB. `run` takes the packages from there. It
prints a JSON line for each figure, adds it to a file, and skips figures that the file already has,
so that an interrupted run continues. The table is written beside the file after every step.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # if this file runs as a script

from benchmarks import gpu

ROOT = Path(__file__).parents[1]
PACK = ROOT / "build" / "pack"
SITE = ROOT / "build" / "site"
MOST_BYTES = 64 * 1024 * 1024
FFMPEG = "ffmpeg.xz"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "any")

PACKAGES = (
    "accelerate",
    "annotated-types",
    "charset-normalizer",
    "diffusers",
    "ftfy",
    "idna",
    "nvidia-cudnn-frontend",
    "pydantic",
    "pydantic-core",
    "pydantic-settings",
    "python-dotenv",
    "requests",
    "typing-inspection",
    "urllib3",
    "wcwidth",
)
"""Imports of the engine that an image with torch and transformers may lack, in the versions of
requirements.lock."""

BESIDE = {"imageio": "2.38.1"}
"""Stock diffusers writes clips with it. The engine does not use it."""

WITH_FFMPEG = "imageio-ffmpeg==0.6.0"
"""`pack` splits this package. Its ffmpeg is older than the one of requirements.lock and less than
half its size: the newer one alone takes 46 MiB when compressed."""


@dataclass(frozen=True)
class Step:
    """`cases` of a part. It begins if `least` seconds are left, and `limit` ends it."""

    name: str
    part: str
    cases: Sequence[str] = ()
    least: float = 30
    limit: float = 120


_LOW_STEP = ("compiled, float8", "compiled, float8, 480p")


@dataclass
class Plan:
    """Steps, the most useful first."""

    steps: Sequence[Step] = field(
        default=(
            Step("checks", "checks", least=15, limit=90),
            Step(
                "job",
                "job",
                (
                    *("ours, set up", "ours, 30 fps", "ours, 30 fps, second job"),
                    *("8-bit attention, set up", "ours, 8-bit attention"),
                    "ours, 8-bit attention, second job",
                ),
                least=150,
                limit=270,
            ),
            Step(
                "block",
                "block",
                (
                    "compiled, dynamic",
                    "compiled, dynamic, float8",
                    "compiled, dynamic, float8 and its attention",
                ),
                least=60,
                limit=100,
            ),
            Step("errors", "errors", least=15, limit=40),
            Step("decode", "decode", least=40, limit=80),
            Step("encode", "encode", least=30, limit=60),
            Step("offload", "offload", least=50, limit=100),
            Step("stock", "job", ("stock, short", "stock"), least=90, limit=150),
            Step("start", "start", least=120, limit=240),
            Step("loading", "loading", least=60, limit=120),
            Step("card", "cards", ("25.3 GB",), least=120, limit=240),
            Step("low step", "whole", _LOW_STEP, least=60, limit=150),
        )
    )


# --- packing -------------------------------------------------------------------------------------


def pack(to: Path, python: str) -> int:
    """Fill `to`. Returns its size in bytes. Raises `ValueError` if it is too large to be sent
    together with the repository."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    pinned = _locked() | BESIDE
    for name in (*PACKAGES, *BESIDE):
        _wheel(f"{name}=={pinned[name]}", to, python)
    with tempfile.TemporaryDirectory() as scratch:
        _take_apart(_wheel(WITH_FFMPEG, Path(scratch), python), to)
    size = sum(path.stat().st_size for path in to.iterdir())
    refuse_if_too_large(size, repository_bytes())
    return size


def refuse_if_too_large(pack_bytes: int, repository_bytes: int) -> None:
    """Raise `ValueError` if both together are too large to be sent."""
    if pack_bytes + repository_bytes > MOST_BYTES:
        pack_mib, repository_mib = pack_bytes / 2**20, repository_bytes / 2**20
        raise ValueError(
            f"The pack has {pack_mib:.1f} MiB and the repository {repository_mib:.1f}: together "
            f"{MOST_BYTES / 2**20:.0f} are allowed"
        )


def repository_bytes() -> int:
    """The size in bytes of the files that git tracks or does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    files = (ROOT / name for name in set(listed.stdout.split("\0")) if name)
    return sum(path.stat().st_size for path in files if path.is_file())


def _locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    pins = (line.split()[0].split("==") for line in lines if "==" in line and line[0].isalnum())
    return dict((name, found) for name, found in pins)


def _wheel(wanted: str, to: Path, python: str) -> Path:
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", python, *platforms]
    before = set(to.iterdir())
    subprocess.run([*command, "--dest", str(to), wanted], check=True)
    [found] = set(to.iterdir()) - before
    return found


def _take_apart(wheel: Path, to: Path) -> None:
    """Extract imageio-ffmpeg's program, stripped and compressed to half its size, and the package
    without the program."""
    with (
        zipfile.ZipFile(wheel) as given,
        zipfile.ZipFile(to / wheel.name, "w", zipfile.ZIP_DEFLATED) as kept,
    ):
        for entry in given.infolist():
            if Path(entry.filename).name.startswith("ffmpeg-"):
                _squeeze(given.read(entry), to / FFMPEG)
            elif not entry.filename.endswith("RECORD"):
                kept.writestr(entry, given.read(entry))


def _squeeze(program: bytes, to: Path) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(program)
        file.flush()
        strip = shutil.which("strip")
        if strip:
            subprocess.run([strip, file.name], check=True)
        smaller = Path(file.name).read_bytes()
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**26}]
    to.write_bytes(lzma.compress(smaller, filters=filters))


# --- on the machine with the GPU ------------------------------------------------------------------


def unpack(folder: Path, site: Path) -> dict[str, str]:
    """Install the contents of `folder` for the parts, except packages that are installed in the
    same version. Returns the environment of the parts."""
    if not folder.is_dir():
        return {}
    site.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(folder.glob("*.whl")):
        name, found, *_ = wheel.name.split("-")
        if not _is_here(name, found):
            with zipfile.ZipFile(wheel) as file:
                file.extractall(site)
    program = site / "ffmpeg"
    if not program.is_file():
        program.write_bytes(lzma.decompress((folder / FFMPEG).read_bytes()))
        program.chmod(0o755)
    paths = [str(site), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "IMAGEIO_FFMPEG_EXE": str(program),
    }


def _is_here(name: str, wanted: str) -> bool:
    try:
        return version(name) == wanted
    except PackageNotFoundError:
        return False


def run(
    out: Path, scale: str, seconds: float, steps: Sequence[Step], environment: Mapping[str, str]
) -> None:
    """Run the steps that `out` lacks, as long as time is left."""
    started = time.monotonic()
    done = {row["step"] for row in rows_of(out) if row["case"] == "end" and row["exit"] == 0}
    for step in steps:
        left = seconds - (time.monotonic() - started)
        if step.name in done:
            continue
        if left < step.least:
            _tell(out, {"step": step.name, "part": step.part, "case": "left out", "left_s": left})
            continue

        def seen(row: dict[str, Any], step: Step = step) -> None:
            _tell(out, {"step": step.name, **row, "at_s": time.monotonic() - started})

        limit = min(step.limit, left)
        gpu.run_part(step.part, scale, step.cases, limit, seen, environment)
        out.with_suffix(".md").write_text(table(rows_of(out)) + "\n", "utf-8")


def _tell(out: Path, row: dict[str, Any]) -> None:
    gpu.keep(out, row)
    print(json.dumps(row), flush=True)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the rows of the file. A line that an interrupted run cut off is left out."""
    found = []
    for line in out.read_text("utf-8").splitlines() if out.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures for benchmarks/RESULTS.md, the last of each case, with the hardware and
    versions."""
    about = next((row for row in reversed(rows) if row["part"] == "about"), {})
    on = ", ".join(f"{key} {value}" for key, value in about.items() if key not in ("part", "step"))
    last = {
        (row["step"], row["case"], row.get("cold"), row.get("channels_last")): row
        for row in rows
        if row["part"] != "about" and row["case"] not in ("end", "left out")
    }
    hidden = ("step", "at_s")
    shown = [{k: v for k, v in row.items() if k not in hidden} for row in last.values()]
    return f"{on}\n\n{gpu.table(shown)}"


_VERSIONS = "import json; from benchmarks import gpu; print(json.dumps(gpu.versions()))"


def about(scale: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the card, versions and date, from a process that has the packages."""
    found = subprocess.run(
        [sys.executable, "-c", _VERSIONS],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    versions = json.loads(found.stdout.splitlines()[-1])
    return {"step": "about", "part": "about", "case": scale, "date": now, **versions}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/gpu_quarter.py pack --python 3.12\n"
        "         python benchmarks/gpu_quarter.py run --out gpu.jsonl\n"
        "         python benchmarks/gpu_quarter.py run --scale tiny --out dry.jsonl      anywhere",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack", help="fill a folder with what the parts need")
    packing.add_argument("--to", type=Path, default=PACK, help="folder to fill; default build/pack")
    packing.add_argument(
        "--python", default="3.12", help="Python of the machine with the GPU; default 3.12"
    )
    running = verbs.add_parser("run", help="measure, and continue an earlier run")
    running.add_argument("--out", type=Path, required=True, help="file to add JSON lines to")
    running.add_argument(
        "--scale", default="a14b", help="size of the networks: a14b (default), small or tiny"
    )
    running.add_argument(
        "--seconds", type=float, default=840, help="time for all steps; default 840"
    )
    running.add_argument("--pack", type=Path, default=PACK, help="folder that pack filled")
    running.add_argument("--steps", nargs="+", help="only these steps, by name")
    given = parser.parse_args(words)
    if given.verb == "pack":
        size = pack(given.to, given.python)
        here = repository_bytes()
        print(
            f"{given.to}: {size / 2**20:.1f} MiB in {len(list(given.to.iterdir()))} files, "
            f"{(size + here) / 2**20:.1f} with the repository"
        )
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # parts end too
    environment = unpack(given.pack, SITE)
    if environment:  # this process reads the settings of the parts
        sys.path.append(str(SITE))
    _tell(given.out, about(given.scale, environment))
    steps = [step for step in Plan().steps if not given.steps or step.name in given.steps]
    run(given.out, given.scale, given.seconds, steps, environment)
    print(table(rows_of(given.out)))


if __name__ == "__main__":
    main()
