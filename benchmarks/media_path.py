"""Measures the engine from latents to mp4 against plain diffusers: wall time and host memory.

Ours is `Engine.render` with existing latents: a streamed decode into one ffmpeg, with the
convolutions by oneDNN whatever their size (families/convolution.py). Plain is the code of
`WanImageToVideoPipeline` and `export_to_video` (diffusers 0.42.1): `vae.decode` of all latents,
`postprocess_video(output_type="np")`, and a list of uint8 frames, each written to ffmpeg.

Both sides have the same latents, VAE (wan-tiny's), ffmpeg binary, filters and x264 options. This is
why plain does not call `export_to_video`: it accepts neither filters nor crf and preset, and it
needs imageio, which the worker does not have. Its loop is repeated here on
`imageio_ffmpeg.write_frames`, which imageio's plugin also calls.

Each measurement runs in a new process, and the two sides take turns. Memory is the growth of the
process over its start (VmHWM - VmRSS), without ffmpeg's, which is the same on both sides. It is
measured separately from time, with a malloc that returns every large block: glibc keeps blocks
below 32 MB, which changes the result by a third between runs at this size, and not at all at 720p.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio_ffmpeg

sys.path.insert(0, str(Path(__file__).parents[1]))  # if this file runs as a script

from wan_engine.control import Control
from wan_engine.engine import Engine
from wan_engine.media import video
from wan_engine.schema import Media, Plan, Segment, Shot, VideoRequest
from wan_engine.settings import Settings

if TYPE_CHECKING:
    import torch

SIDES = ("ours", "plain")
_STRIDE = 8  # pixels per latent, in wan-tiny's VAE
_FPS = 16
_SEED = 7


@dataclass(frozen=True)
class Case:
    """The clip to decode and encode. `render` and `output` are width and height in pixels."""

    frames: int
    render: tuple[int, int]
    output: tuple[int, int]
    preset: str

    @property
    def plan(self) -> Plan:
        segment = Segment(_SEED, self.frames, repeated=0, shown=self.frames)
        sizes = *self.output, *self.render, *self.render
        shot = Shot("", (segment,), self.frames)
        return Plan(*sizes, _FPS, self.frames, _SEED, (shot,), _FPS)


@dataclass(frozen=True)
class Measured:
    """The result of one process: seconds from latents to a finished mp4, and MiB of host memory."""

    seconds: float
    peak_mib: float
    clip_bytes: int


# --- one side, in its own process ----------------------------------------------------------------


class GivenLatents:
    """A family that returns given latents."""

    def __init__(self, family: Any, latents: torch.Tensor) -> None:
        self.spec, self.decode, self._latents = family.spec, family.decode, latents

    def render(self, segment: Any, _on_step: Any) -> Any:
        from wan_engine.schema import Clip

        return Clip(self.decode(self._latents, segment.carry, continued=segment.continued))


def pipeline_of(side: str, engine: Engine) -> Any:
    """The model of one side: the engine's, or stock with weights loaded separately, because the
    engine changes how its own networks compute."""
    if side == "ours":
        return engine.load().pipeline  # type: ignore[attr-defined]
    from diffusers import WanImageToVideoPipeline

    from wan_engine.families.i2v import make_scheduler

    pipeline = WanImageToVideoPipeline.from_pretrained(
        str(engine.pool.main.located.folder), local_files_only=True
    )
    pipeline.scheduler = make_scheduler(engine.spec)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ours(engine: Engine, _pipeline: Any, latents: torch.Tensor, case: Case, folder: Path) -> Path:
    from PIL import Image

    engine.load()
    engine.pool.main.family = GivenLatents(engine.pool.main.family, latents)
    order = VideoRequest(prompt="a benchmark", image="data:,", generate_audio=False).order()
    media, choice = Media(Image.new("RGB", case.render)), engine.choose(order)
    return engine.render(order, choice, case.plan, media, folder, Control()).path


def plain(engine: Engine, pipeline: Any, latents: torch.Tensor, case: Case, folder: Path) -> Path:
    path = folder / "clip.mp4"
    frames = _decode_all(pipeline, latents)
    export_to_video(frames[0], path, case.plan, engine.settings)
    return path


def _decode_all(pipe: Any, latents: torch.Tensor) -> Any:
    """The end of `WanImageToVideoPipeline.__call__`. Its memory is free when it returns."""
    import torch

    with torch.no_grad():
        latents = latents.to(pipe.vae.device, pipe.vae.dtype)
        shape = (1, pipe.vae.config.z_dim, 1, 1, 1)
        mean = torch.tensor(pipe.vae.config.latents_mean).view(shape).to(latents)
        std = 1.0 / torch.tensor(pipe.vae.config.latents_std).view(shape).to(latents)
        latents = latents / std + mean
        decoded = pipe.vae.decode(latents, return_dict=False)[0]
        return pipe.video_processor.postprocess_video(decoded, output_type="np")


def export_to_video(frames: Any, path: Path, plan: Plan, settings: Settings) -> None:
    """The loop of diffusers' `export_to_video`, `frames` float32 [n, height, width, 3] in 0..1."""
    import numpy as np

    options = video.EncodeOptions(settings.crf, settings.preset)
    words = video._arguments(plan, None, path, options)
    output = words[words.index("pipe:0") + 1 : words.index("mp4") - 1]
    pictures = [(frame * 255).astype(np.uint8) for frame in frames]
    writer = imageio_ffmpeg.write_frames(
        path,
        (plan.render_width, plan.render_height),
        fps=plan.fps,
        quality=None,
        codec="libx264",
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=output,
    )
    writer.send(None)
    for picture in pictures:
        writer.send(np.ascontiguousarray(picture))  # as imageio's plugin does
    writer.close()


def measure(side: str, case: Case, cache: Path) -> Measured:
    """Run one side in this process, which should be a new one."""
    import torch

    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        values = {"cache_dir": cache, "output_dir": scratch, "metadata": False}
        engine = Engine(Settings(model="wan-tiny", device="cpu", preset=case.preset, **values))
        pipeline = pipeline_of(side, engine)
        channels = pipeline.vae.config.z_dim
        steps = (case.frames - 1) // 4 + 1
        width, height = (pixels // _STRIDE for pixels in case.render)
        noise = torch.Generator().manual_seed(_SEED)
        latents = torch.randn(1, channels, steps, height, width, generator=noise)
        _decode_all(pipeline, latents[:, :, :1])  # one-time work of libraries
        make = {"ours": ours, "plain": plain}[side]
        made = partial(make, engine, pipeline, latents, case, Path(scratch))
        return measured(made, case.frames)


def measured(make: Callable[[], Path], frames: int) -> Measured:
    """Measure `make`, which writes an mp4 that must have `frames` frames."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present size
    before, began = _status_mib("VmRSS"), time.perf_counter()
    path = make()
    seconds = time.perf_counter() - began
    peak = _status_mib("VmHWM") - before
    count, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert count == frames, f"the clip has {count} frames instead of {frames}"
    return Measured(seconds, peak, path.stat().st_size)


def _status_mib(name: str) -> float:
    with Path("/proc/self/status").open() as status:
        return int(next(line for line in status if line.startswith(name)).split()[1]) / 1024


# --- all cases -----------------------------------------------------------------------------------


def measure_apart(
    script: Path, arguments: Sequence[str], cache: Path, side: str, **environment: str
) -> Measured:
    """Run one side in a new process: `script` with `arguments` prints its figures."""
    command = [sys.executable, str(script.resolve()), *arguments]
    command += ["--side", side, "--cache", str(cache)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
    return Measured(**json.loads(done.stdout))


def _options(case: Case) -> list[str]:
    sizes = [f"--{name}={width}x{height}" for name, (width, height) in _sizes(case)]
    return [f"--frames={case.frames}", *sizes, f"--preset={case.preset}"]


def _sizes(case: Case) -> list[tuple[str, tuple[int, int]]]:
    return [("render", case.render), ("output", case.output)]


def compare(case: Case, repeats: int, cache: Path) -> dict[str, Any]:
    """Measure both sides of one case with `in_turns`."""
    result: dict[str, Any] = {"frames": case.frames, "preset": case.preset}
    result |= {name: f"{width}x{height}" for name, (width, height) in _sizes(case)}
    apart = partial(measure_apart, Path(__file__), _options(case), cache)
    return result | in_turns(apart, repeats)


def in_turns(apart: Callable[..., Measured], repeats: int) -> dict[str, Any]:
    """Measure both sides in turn, `repeats` times. `ratio` is the median of each turn's ours /
    plain.

    `apart(side, **environment)` measures one side in a new process.
    """
    result: dict[str, Any] = {}
    for side in SIDES:
        held = apart(side, MALLOC_MMAP_THRESHOLD_="131072")
        result[f"{side}_peak_mib"] = round(held.peak_mib, 1)
        result[f"{side}_clip_bytes"] = held.clip_bytes
    turns = [{side: apart(side) for side in SIDES} for _ in range(repeats)]
    for side in SIDES:
        result[f"{side}_seconds"] = [round(turn[side].seconds, 2) for turn in turns]
    ratios = [turn["ours"].seconds / turn["plain"].seconds for turn in turns]
    result["ratio"] = round(statistics.median(ratios), 3)
    return result


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """The cases as a Markdown table, followed by the growth of memory with the length."""
    yield "| frames | ours, s | plain, s | ratio | ours, MiB | plain, MiB |"
    yield "|---|---|---|---|---|---|"
    for row in results:
        cells = [str(row["frames"])]
        cells += [f"{statistics.median(row[f'{side}_seconds']):.2f}" for side in SIDES]
        cells += [f"{row['ratio']:.2f}", *(f"{row[f'{side}_peak_mib']:.0f}" for side in SIDES)]
        yield f"| {' | '.join(cells)} |"
    if len(results) > 1:
        first, last = results[0], results[-1]
        grown = [last[f"{side}_peak_mib"] / first[f"{side}_peak_mib"] for side in SIDES]
        yield ""
        yield (
            f"Memory from {first['frames']} to {last['frames']} frames: ours x{grown[0]:.2f}, "
            f"plain x{grown[1]:.2f}."
        )


def _size(text: str) -> tuple[int, int]:
    width, height = (int(side) for side in text.split("x"))
    return width, height


def add_sides(parser: argparse.ArgumentParser) -> None:
    """Add the options of a comparison of both sides."""
    parser.add_argument("--repeats", type=int, default=3, help="turns of both sides; default 3")
    parser.add_argument(
        "--preset", default="medium", help="x264 preset of both sides; default medium"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON line per case, no table"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # in a child process
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/media_path.py --frames 81 241 --repeats 5",
    )
    parser.add_argument(
        "--frames", type=int, nargs="+", default=[81, 241], help="frames of the clips, 4n + 1 each"
    )
    parser.add_argument(
        "--render", type=_size, default=(256, 144), help="WIDTHxHEIGHT to decode, multiples of 8"
    )
    parser.add_argument("--output", type=_size, default=(512, 288), help="WIDTHxHEIGHT of the mp4")
    add_sides(parser)
    return parser.parse_args(arguments)


def report(
    cases: Sequence[Any],
    given: argparse.Namespace,
    compare: Callable[[Any, int, Path], dict[str, Any]],
    table: Callable[[list[dict[str, Any]]], Iterator[str]],
) -> None:
    """Compare the sides in all cases. Prints a JSON line for each, and a table."""
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-") as cache:
        for case in cases:
            results.append(compare(case, given.repeats, Path(cache)))
            print(json.dumps(results[-1]), flush=True)
    if not given.json:
        print("\n" + "\n".join(table(results)))


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    cases = [Case(count, given.render, given.output, given.preset) for count in given.frames]
    if given.side:
        print(json.dumps(asdict(measure(given.side, cases[0], given.cache))))
        return
    report(cases, given, compare, table)


if __name__ == "__main__":
    main()
