"""Measures a whole job for each size and duration: seconds per stage, and peak memory above the
loaded model.

Every case runs in a new process: a job through `Engine.generate`, after an unmeasured one of 5 s
that does the one-time work of libraries. Memory is that of this process and its ffmpeg processes,
sampled every 50 ms, above the value before the job. On a GPU, it is also torch's peak above the
model. The last line shows how both grow from the shortest to the longest duration.

`--costs` measures frame interpolation and upscaling without a model: ms per frame of the clip, at
720p and 1080p. Methods that need weights take part if WAN_RIFE_WEIGHTS and WAN_UPSCALE_WEIGHTS name
them. Other settings are read from the environment as in a job.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # if this file runs as a script

from wan_engine.control import Control
from wan_engine.engine import Engine
from wan_engine.media import ffmpeg, retime, upscale, video
from wan_engine.media.rife import Rife
from wan_engine.plan import frames_to_cover
from wan_engine.runtime.recipes import detect
from wan_engine.schema import (
    Frames,
    Plan,
    Segment,
    Shot,
    VideoRequest,
)
from wan_engine.settings import Settings
from wan_engine.weights import choose_upscaling

SIZES = ("1280*720", "1920*1080")
DURATIONS = (5, 10, 15)
_SAMPLE_SECONDS = 0.05
_MIB = 2**20


# --- whole jobs ----------------------------------------------------------------------------------


def measure(size: str, seconds: int, values: dict[str, Any]) -> dict[str, Any]:
    """Run one job in this process, which should be a new one."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        engine = Engine(Settings(output_dir=folder, scratch_dir=folder, storage="local", **values))
        engine.generate(_request(size, 5))
        _reset_gpu_peak()
        control = Control()
        with peak_memory() as peak:
            began, worked = time.perf_counter(), _cpu_seconds()
            engine.generate(_request(size, seconds), control)
            took, worked = time.perf_counter() - began, _cpu_seconds() - worked
    stages = {name: round(spent, 2) for name, spent in control.stage_seconds.items()}
    fps = engine.spec.fps if engine.settings.fps == "native" else engine.settings.fps
    return {
        "size": size,
        "duration": seconds,
        "model": engine.spec.name,
        "fps": fps,
        "interpolation": None if fps == engine.spec.fps else engine.postprocess.interpolation,
        "upscale": engine.postprocess.upscaling,
        "seconds": round(took, 2),
        "cpu_seconds": round(worked, 2),
        "stages": stages,
        "host_peak_mib": round(peak["all"]),
        "of_it_ffmpeg_mib": round(peak["children"]),
        "gpu_peak_mib": _gpu_peak_mib(),
    }


def _request(size: str, seconds: int) -> VideoRequest:
    rows, columns = np.mgrid[0:720, 0:1280]
    picture = np.stack([columns // 5, rows // 3, (rows + columns) // 8], axis=2) % 256
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG")
    image = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    fields: dict[str, Any] = {"size": size, "duration": seconds}
    return VideoRequest(prompt="a benchmark", image=image, seed=7, **fields)


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """The peak in MiB above the present value, of this process with its children, and of the
    children alone."""
    peak, done = {"all": 0.0, "children": 0.0}, threading.Event()
    gc.collect()
    with suppress(OSError, AttributeError):  # without memory that the last job freed
        ctypes.CDLL(None).malloc_trim(0)
    before = _resident_mib(os.getpid())

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            children = sum(_resident_mib(child) for child in _children())
            own = max(0, _resident_mib(os.getpid()) - before)
            peak["children"] = max(peak["children"], children)
            peak["all"] = max(peak["all"], own + children)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _resident_mib(process: int) -> float:
    with suppress(OSError, IndexError):
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / _MIB
    return 0.0


def _cpu_seconds() -> float:
    """CPU seconds of this process and its ended children, over all cores, without other work of the
    machine."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _children() -> list[int]:
    """The ffmpeg processes of this one. A child that has not become ffmpeg yet shows the memory
    that it shares with its parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            if name.startswith("ffmpeg") and int(rest.split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


def _reset_gpu_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _gpu_peak_mib() -> int | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return int((torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) / _MIB)


def measure_apart(size: str, seconds: int, arguments: list[str]) -> dict[str, Any]:
    """`measure` in a new process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--case", size, str(seconds)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, *arguments], stdout=subprocess.PIPE, env=environment, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def growth(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The factors by which seconds and memory grow from the shortest to the longest job of each
    size."""
    grown = {}
    for size in dict.fromkeys(row["size"] for row in results):
        rows = sorted((row for row in results if row["size"] == size), key=lambda r: r["duration"])
        first, last = rows[0], rows[-1]
        grown[size] = {
            "duration": last["duration"] / first["duration"],
            "seconds": round(last["seconds"] / first["seconds"], 2),
            "cpu_seconds": round(last["cpu_seconds"] / first["cpu_seconds"], 2),
            "host_peak": round(last["host_peak_mib"] / max(1, first["host_peak_mib"]), 2),
        }
    return {"growth": grown}


# --- cost of each method -------------------------------------------------------------------------


def costs(settings: Settings) -> Iterator[dict[str, Any]]:
    """One line per method and size, in ms per frame of the clip."""
    device = "cuda" if detect(settings.device) else "cpu"
    for width, height in ((1280, 720), (1920, 1080)):
        for name, method in _interpolations(settings, device):
            yield _cost("interpolation", name, (width, height), _retimed(method))
    yield _cost("upscale", "lanczos", (1920, 1080), _scaled)
    if settings.upscale_weights:
        kind, _ = choose_upscaling(settings)
        network = upscale.load(kind, settings.upscale_weights, device)
        yield _cost("upscale", kind, (1920, 1080), _enlarged(network))


def _interpolations(settings: Settings, device: str) -> Iterator[tuple[str, retime.Between | Any]]:
    yield "blend", retime.blend
    yield "mci", "mci"
    if settings.rife_weights:
        yield "rife", Rife(settings.rife_weights, device).between


def _cost(
    what: str, name: str, size: tuple[int, int], work: Callable[[tuple[int, int]], int]
) -> dict[str, Any]:
    with peak_memory() as peak:
        began = time.perf_counter()
        frames = work(size)
        took = time.perf_counter() - began
    ms = round(1000 * took / frames, 1)
    line = {what: name, "size": f"{size[0]}x{size[1]}", "ms_a_frame": ms, "frames": frames}
    return line | {"host_peak_mib": round(peak["all"])}


def _retimed(method: Any) -> Callable[[tuple[int, int]], int]:
    def work(size: tuple[int, int]) -> int:
        plan = _plan(size, size, frames_to_cover(60, 30, 16), shown=60, fps=30)
        made = retime.retime(_moving(size, plan.source_frames), plan, method, Control())
        return sum(len(chunk) for chunk in made)

    return work


def _enlarged(network: upscale.Upscaler) -> Callable[[tuple[int, int]], int]:
    def work(size: tuple[int, int]) -> int:
        frames = max(4, network.window)
        plan = _plan((1280, 720), size, frames)
        made = upscale.upscale(_moving((1280, 720), frames), plan, network, Control())
        return sum(len(chunk) for chunk in made)

    return work


def _scaled(size: tuple[int, int]) -> int:
    """The encoder's own scaling, without encoding."""
    filters = video._filters(_plan((1280, 720), size, 1))
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "1280x720", "-i", "pipe:0"]
    frames = 32
    with ffmpeg.running([*raw, "-vf", filters, "-f", "null", "-"], Control()) as pipe:
        for chunk in _moving((1280, 720), frames):
            pipe.write(np.ascontiguousarray(chunk).data)
    return frames


def _plan(
    render: tuple[int, int],
    target: tuple[int, int],
    kept: int,
    shown: int | None = None,
    fps: int = 16,
) -> Plan:
    shot = Shot("", (Segment(0, kept, 0, kept),), shown or kept)
    return Plan(*target, *render, *render, fps, shot.frames, 0, (shot,), 16)


def _moving(size: tuple[int, int], count: int) -> Iterator[Frames]:
    """A texture that moves by eight pixels per frame."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
    picture = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    for index in range(count):
        yield np.roll(picture, -8 * index, axis=1)[None]


# --- the command ---------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/stages.py --render-area 12288 --preset veryfast",
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES, help="default both")
    parser.add_argument(
        "--durations",
        nargs="+",
        type=int,
        choices=DURATIONS,
        default=DURATIONS,
        help="seconds of the clips; default all three",
    )
    parser.add_argument("--model", default="wan-tiny", help="default wan-tiny")
    parser.add_argument("--render-area", type=int, help="pixels to render; default the model's own")
    parser.add_argument("--preset", default="medium", help="x264 preset; default medium")
    parser.add_argument(
        "--costs", action="store_true", help="interpolation and upscaling alone, without a model"
    )
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)  # what a child process runs
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    if given.costs:
        for line in costs(Settings.load()):
            print(json.dumps(line), flush=True)
        return
    values = {"model": given.model, "render_area": given.render_area, "preset": given.preset}
    if given.case:
        size, seconds = given.case
        print(json.dumps(measure(size, int(seconds), values)))
        return
    passed = [f"--model={given.model}", f"--preset={given.preset}"]
    passed += [f"--render-area={given.render_area}"] if given.render_area else []
    results = []
    for size in given.sizes:
        for seconds in given.durations:
            results.append(measure_apart(size, seconds, passed))
            print(json.dumps(results[-1]), flush=True)
    print(json.dumps(growth(results)))


if __name__ == "__main__":
    main()
