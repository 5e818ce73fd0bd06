"""Measures how visible the joins of a long clip are: the jump at each join against the jumps
between neighbours.

A jump is the mean absolute difference of two neighbouring frames, in levels of 255. Joins are
compared with the pairs inside segments: `ratio` is the join's jump divided by their median, and
`rank` is the share of them that is smaller. An invisible join has a ratio near 1, and a rank that
is not near 1. `colour_shift` is the change of each channel's mean at the join, and `colour_ratio`
is the largest of the three divided by the median inside segments.

A cross-fade spreads the change over the overlap. The largest of its k pairs counts, and its rank is
k / (k + 1) by chance alone. Clips of the toys (wan-tiny, wan-tiny-ti2v) test this script, and say
nothing about the joins of a real model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # if this file runs as a script

from wan_engine.control import Control
from wan_engine.engine import Engine
from wan_engine.media import ffmpeg
from wan_engine.plan import PlanLimits, make_plan
from wan_engine.render import model_frames
from wan_engine.schema import (
    Frames,
    Plan,
    VideoRequest,
)
from wan_engine.settings import Settings

_LEAST = 1e-6  # levels; divides a ratio if nothing moves


@dataclass(frozen=True)
class Seam:
    """One join. `frame` is the first new frame after it, counted from 0. Jumps are in levels of
    255."""

    frame: int
    jump: float
    inside_median: float
    inside_p95: float
    ratio: float
    rank: float
    colour_shift: tuple[float, float, float]
    colour_ratio: float


def measure(frames: Iterable[Frames], joins: Sequence[int], overlap: int = 1) -> list[Seam]:
    """The seams of a clip.

    `frames` are chunks of uint8 [n, height, width, 3], `joins` the first new frame of each later
    segment, and `overlap` the number of cross-faded frames before it.

    Keeps two frames in memory. Raises `ValueError` for a join that is not in the clip, or a clip
    whose pairs are all at joins.
    """
    jumps, colours = _differences(frames)
    near = {join: range(max(1, join - overlap + 1), join + 1) for join in joins}
    if outside := [join for join in joins if not 1 <= join <= len(jumps)]:
        raise ValueError(f"no join can be at frame {outside[0]} of {len(jumps) + 1}")
    taken = {index for pairs in near.values() for index in pairs}
    inside = [index for index in range(1, len(jumps) + 1) if index not in taken]
    if not inside:
        raise ValueError("every pair of frames is at a join: there is nothing to compare with")
    usual = np.array([jumps[index - 1] for index in inside])
    usual_colour = np.array([np.abs(colours[index - 1]).max() for index in inside])
    median, p95 = np.median(usual), np.percentile(usual, 95)
    seams = []
    for join, pairs in near.items():
        index = max(pairs, key=lambda index: jumps[index - 1])
        jump, shift = jumps[index - 1], colours[index - 1]
        seams.append(
            Seam(
                frame=join,
                jump=_rounded(jump),
                inside_median=_rounded(median),
                inside_p95=_rounded(p95),
                ratio=_rounded(jump / max(median, _LEAST)),
                rank=_rounded((usual < jump).mean()),
                colour_shift=(_rounded(shift[0]), _rounded(shift[1]), _rounded(shift[2])),
                colour_ratio=_rounded(np.abs(shift).max() / max(np.median(usual_colour), _LEAST)),
            )
        )
    return seams


def _differences(frames: Iterable[Frames]) -> tuple[list[float], list[np.ndarray]]:
    """The mean absolute difference and the change of each channel's mean, for each pair of
    neighbours."""
    jumps: list[float] = []
    colours: list[np.ndarray] = []
    last: np.ndarray | None = None
    for chunk in frames:
        for frame in chunk:
            now = frame.astype(np.float32)
            if last is not None:
                jumps.append(float(np.abs(now - last).mean()))
                colours.append((now - last).mean(axis=(0, 1)))
            last = now
    return jumps, colours


def _rounded(value: float) -> float:
    return round(float(value), 4)


def joins_of(plan: Plan) -> tuple[list[int], int]:
    """The first new frame of each later segment of a plan, and the overlap in frames. Cuts between
    shots are no joins."""
    joins, before = [], 0
    for shot in plan.shots:
        ends = list(accumulate(segment.shown for segment in shot.segments))
        joins += [before + end for end in ends[:-1]]
        before += ends[-1]
    return joins, max((segment.repeated for segment in plan.segments), default=0) or 1


def read_frames(path: Path) -> Iterator[Frames]:
    """The frames of a video file, one per chunk. Raises `ValueError` for a file that is not a
    video."""
    command = [ffmpeg.executable(), "-v", "error", "-i", str(path), "-map", "0:v:0"]
    # PPM contains its size, so the size need not be known before.
    command += ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        while running.stdout.readline() == b"P6\n":
            width, height = (int(side) for side in running.stdout.readline().split())
            running.stdout.readline()  # the largest level, 255
            data = running.stdout.read(width * height * 3)
            yield np.frombuffer(data, np.uint8).reshape(1, height, width, 3)
    if running.returncode:
        raise ValueError(f"{path} is no video that ffmpeg can read")


def from_engine(image: Path, prompt: str, duration: int, seed: int) -> list[Seam]:
    """Render a clip with the settings of this environment, and measure it before it is encoded."""
    from wan_engine import data_uri

    engine, control = Engine(Settings.load()), Control()
    fields = {"prompt": prompt, "image": data_uri(image), "duration": duration, "seed": seed}
    request = VideoRequest.parse(fields)
    with tempfile.TemporaryDirectory(prefix="seams-") as folder:
        order = request.order()
        prepared = engine.prepare(order, engine.choose(order), Path(folder), control)
        media, expansion = prepared.media, prepared.expansion
    limits = PlanLimits(engine.settings.frame)
    plan = make_plan(order, expansion.script, media, engine.spec, limits)
    family = engine.load()
    frames = model_frames(
        lambda _task: family, plan, media, lambda spec: spec.negative_prompt, control
    )
    joins, overlap = joins_of(plan)
    faded = engine.spec.continuation == "last_frames"  # otherwise the newer frames are left out
    return measure(frames, joins, overlap if faded else 1)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python benchmarks/seams.py --video clip.mp4 --joins 57 109 --overlap 5\n"
        "  WAN_MODEL=wan2.2-ti2v-5b python benchmarks/seams.py --image photo.jpg "
        '--prompt "She turns and smiles" --duration 15',
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", type=Path, help="measure this clip; needs --joins")
    source.add_argument("--image", type=Path, help="render a clip from this picture")
    parser.add_argument(
        "--joins", type=int, nargs="+", help="number of the first new frame of each segment"
    )
    parser.add_argument(
        "--overlap",
        type=int,
        default=1,
        help="frames that are cross-faded before a join; default 1",
    )
    parser.add_argument("--prompt", default="slow motion of the scene", help="prompt for --image")
    parser.add_argument(
        "--duration", type=int, choices=(10, 15), default=10, help="seconds, for --image"
    )
    parser.add_argument("--seed", type=int, default=7, help="seed for --image; default 7")
    given = parser.parse_args(arguments)
    if given.video and not given.joins:
        parser.error("--video needs --joins")
    return given


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    if given.video:
        seams = measure(read_frames(given.video), given.joins, given.overlap)
    else:
        seams = from_engine(given.image, given.prompt, given.duration, given.seed)
    for seam in seams:
        print(json.dumps(asdict(seam)), flush=True)


if __name__ == "__main__":
    main()
