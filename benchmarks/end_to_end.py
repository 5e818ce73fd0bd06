"""Measures the engine against plain diffusers, from a request to its mp4: wall time and host
memory.

Both sides begin with a prompt, a decoded photo and loaded weights of `wan-tiny`, and end with a
finished mp4. Ours is `Engine.render` with the engine's plan for the duration. Plain is the code
that a user of diffusers would write: the stock `WanImageToVideoPipeline` with the same weights,
called once with `output_type="np"`, then the loop of `export_to_video` (as in media_path.py). Both
sides have the same photo, prompt, seed, scheduler, steps, guidance, rendered size, fps, output
size, ffmpeg binary, filters and x264 options. No frames are interpolated, and no sound is added.

The sides differ in their output and in how they make it:

- The trained length is 81 frames, and both sides sample it for 5 s. For a longer clip, ours makes
  several segments. Each continues from the last 5 frames of the one before, takes its colours and
  is cross-faded with it: 3 segments of 57 frames for 10 s, 4 of 65 for 15 s. That is 171 and 260
  sampled frames for 160 and 240 shown. Plain samples 161 and 241 frames in one run, at two and
  three times the trained length.
- One run of 241 frames has three times the tokens of one of 81, and attention grows with their
  square, so plain's time grows faster than the clip. This is no fault of diffusers.
- Ours computes the VAE's convolutions by oneDNN whatever their size (families/convolution.py), and
  encodes grey once (families/first_frames.py). The frames are equal up to rounding.
- Ours rounds to the nearest of 255 levels. The loop of `export_to_video` rounds down.
- Ours can be cancelled and reports progress, with one callback per step and a watching thread.

Neither side includes the safety checker, downloads, storage or metadata. Each measurement runs in a
new process, the two sides take turns, and memory is measured separately from time, as in
media_path.py. A clip of 5 frames at 32x32 runs before the clock starts, so that one-time work of
libraries is not measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # if this file runs as a script

from benchmarks.media_path import (
    SIDES,
    Measured,
    add_sides,
    export_to_video,
    in_turns,
    measure_apart,
    measured,
    pipeline_of,
    report,
)
from wan_engine.control import Control
from wan_engine.engine import Engine
from wan_engine.plan import PlanLimits, make_plan
from wan_engine.prompts import Expansion
from wan_engine.schema import Duration, Media, Order, Plan, VideoRequest
from wan_engine.settings import Settings

_MODEL = "wan-tiny"
_PHOTO = Path(__file__).parents[1] / "tests" / "data" / "astronaut_360x480.png"
_PROMPT = "The camera pans left, slowly"
_SEED = 7
_STRIDE = 4  # frames per latent, in all Wan VAEs
_WARM = {"width": 32, "height": 32, "num_frames": 5}


@dataclass(frozen=True)
class Case:
    """A clip of `duration` seconds. `render_area` is in pixels; None means the model's."""

    duration: int
    preset: str
    render_area: int | None = None


@dataclass(frozen=True)
class Job:
    """A case for the engine: its request, media and plan, and the engine itself."""

    engine: Engine
    order: Order
    media: Media
    plan: Plan

    @classmethod
    def of(cls, case: Case, **folders: Path) -> Job:
        settings = Settings(
            model=_MODEL,
            device="cpu",
            fps="native",
            safety="off",
            metadata=False,
            preset=case.preset,
            render_area=case.render_area,
            **folders,
        )
        engine = Engine(settings)
        fields = {"duration": case.duration, "seed": _SEED, "enable_safety_checker": False}
        order = VideoRequest(prompt=_PROMPT, image="data:,", **fields).order()
        media = Media(Image.open(_PHOTO).convert("RGB"))
        script = Expansion.none(order).script
        plan = make_plan(order, script, media, engine.spec, PlanLimits(settings.frame))
        return cls(engine, order, media, plan)


# --- one side, in its own process ----------------------------------------------------------------


def ours(job: Job, _pipeline: Any, folder: Path) -> Path:
    choice = job.engine.choose(job.order)
    return job.engine.render(job.order, choice, job.plan, job.media, folder, Control()).path


def plain(job: Job, pipeline: Any, folder: Path) -> Path:
    import torch

    plan, spec, path = job.plan, job.engine.spec, folder / "clip.mp4"
    size = plan.render_width, plan.render_height
    frames = pipeline(
        image=job.media.image.resize(size),
        prompt=job.order.prompt,
        width=plan.render_width,
        height=plan.render_height,
        num_frames=frames_of_one_run(plan),
        num_inference_steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        generator=torch.Generator().manual_seed(plan.seed),
        output_type="np",
    ).frames[0]
    export_to_video(frames[: plan.frames], path, plan, job.engine.settings)
    return path


def frames_of_one_run(plan: Plan) -> int:
    """The smallest 4n + 1 that covers the clip."""
    return -(-(plan.frames - 1) // _STRIDE) * _STRIDE + 1


def measure(side: str, case: Case, cache: Path) -> Measured:
    """Run one side in this process, which should be a new one."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        job = Job.of(case, cache_dir=cache, output_dir=folder)
        pipeline, spec = pipeline_of(side, job.engine), job.engine.spec
        picture = job.media.image.resize((_WARM["width"], _WARM["height"]))
        guidance = spec.guidance_scale
        steps = spec.steps  # of both experts
        pipeline(picture, "x", num_inference_steps=steps, guidance_scale=guidance, **_WARM)
        make = partial({"ours": ours, "plain": plain}[side], job, pipeline, folder)
        return measured(make, job.plan.frames)


# --- all cases -----------------------------------------------------------------------------------


def compare(case: Case, repeats: int, cache: Path) -> dict[str, Any]:
    """Measure both sides of one case with `in_turns`, and add the number of sampled frames."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        job = Job.of(case, cache_dir=cache, output_dir=Path(folder))
    plan = job.plan
    apart = partial(measure_apart, Path(__file__), _options(case), cache)
    result = {
        "duration": case.duration,
        "frames": plan.frames,
        "ours_sampled": [segment.frames for segment in plan.segments],
        "plain_sampled": frames_of_one_run(plan),
        "steps": job.engine.spec.steps,
        "render": f"{plan.render_width}x{plan.render_height}",
        "output": f"{plan.width}x{plan.height}",
        "preset": case.preset,
    }
    result |= in_turns(apart, repeats)
    peaks = [result[f"{side}_peak_mib"] for side in SIDES]
    result["memory_ratio"] = round(peaks[0] / peaks[1], 3)
    return result


def _options(case: Case) -> list[str]:
    area = [] if case.render_area is None else [f"--render-area={case.render_area}"]
    return [f"--durations={case.duration}", f"--preset={case.preset}", *area]


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The cases as a Markdown table; ratios are ours / plain."""
    names = ["clip", "ours samples", "plain samples", "ours, s", "plain, s", "time"]
    names += ["ours, MiB", "plain, MiB", "memory"]
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for row in results:
        segments = row["ours_sampled"]
        cells = [f"{row['duration']} s", f"{len(segments)} x {segments[0]}"]
        cells.append(str(row["plain_sampled"]))
        cells += [f"{statistics.median(row[f'{side}_seconds']):.2f}" for side in SIDES]
        cells += [f"{row['ratio']:.2f}", *(f"{row[f'{side}_peak_mib']:.0f}" for side in SIDES)]
        cells.append(f"{row['memory_ratio']:.2f}")
        yield f"| {' | '.join(cells)} |"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/end_to_end.py --durations 5 15 --repeats 5",
    )
    durations = get_args(Duration)
    parser.add_argument(
        "--durations",
        type=int,
        nargs="+",
        choices=durations,
        default=list(durations),
        help="seconds of the clips; default all three",
    )
    parser.add_argument("--render-area", type=int, help="pixels to render; default the model's own")
    add_sides(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    cases = [Case(seconds, given.preset, given.render_area) for seconds in given.durations]
    if given.side:
        print(json.dumps(asdict(measure(given.side, cases[0], given.cache))))
        return
    report(cases, given, compare, table)


if __name__ == "__main__":
    main()
