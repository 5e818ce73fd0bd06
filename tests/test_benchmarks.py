"""The benchmarks run: both sides at the smallest size. No test checks times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline

from benchmarks import (
    end_to_end,
    gateway_hostile,
    gateway_load,
    gpu,
    media_path,
    overlap,
    safety,
    seams,
    stages,
)
from tests.small import FEWEST
from wan_engine.catalog import CATALOG
from wan_engine.control import Control
from wan_engine.media.video import EncodeOptions, encode
from wan_engine.schema import Plan, Segment, Shot


@pytest.fixture
def few_frames(small_clips: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and small ones: encoding takes most of the time."""
    small = replace(CATALOG["wan-tiny"], **FEWEST)
    monkeypatch.setitem(CATALOG, "wan-tiny", small)  # type: ignore[misc]


def test_the_media_path_is_measured_on_both_sides(tiny_cache: Path) -> None:
    case = media_path.Case(5, render=(64, 64), output=(64, 64), preset="superfast")
    ours, plain = (media_path.measure(side, case, tiny_cache) for side in media_path.SIDES)
    assert ours.clip_bytes == pytest.approx(plain.clip_bytes, rel=0.05)  # the same picture
    assert min(ours.seconds, plain.seconds) > 0
    assert min(ours.peak_mib, plain.peak_mib) > -1  # a clip this small needs almost no memory


@pytest.mark.usefixtures("few_frames")
def test_a_whole_clip_is_the_same_on_both_sides(tiny_cache: Path, tmp_path: Path) -> None:
    case = end_to_end.Case(5, "superfast", render_area=1024)
    job = end_to_end.Job.of(case, cache_dir=tiny_cache, output_dir=tmp_path)
    clips = []
    for name, side in (("ours", end_to_end.ours), ("plain", end_to_end.plain)):
        folder = tmp_path / name
        folder.mkdir()
        pipeline = media_path.pipeline_of(name, job.engine)
        assert (type(pipeline) is WanImageToVideoPipeline) == (name == "plain")
        frames = seams.read_frames(side(job, pipeline, folder))
        clips.append(np.concatenate([frame[:, ::2, ::2] for frame in frames]))
    assert len(clips[0]) == len(clips[1]) == 20
    difference = clips[0].astype(int) - clips[1]  # one side rounds, the other truncates
    assert 0 < difference.mean() < 1 and abs(difference).mean() < 1.5


@pytest.mark.usefixtures("few_frames")
def test_a_whole_clip_is_measured(tiny_cache: Path) -> None:
    case = end_to_end.Case(5, "superfast", render_area=1024)
    took = end_to_end.measure("ours", case, tiny_cache)
    assert took.seconds > 0 and took.peak_mib > -1 and took.clip_bytes > 0


def test_longer_clips_are_segments_here_and_one_run_there(tiny_cache: Path, tmp_path: Path) -> None:
    sampled = []
    for seconds in (5, 10, 15):
        case = end_to_end.Case(seconds, "superfast")
        plan = end_to_end.Job.of(case, cache_dir=tiny_cache, output_dir=tmp_path).plan
        assert (plan.frames, plan.fps) == (16 * seconds, plan.source_fps)
        segments = [segment.frames for segment in plan.segments]
        sampled.append((segments, end_to_end.frames_of_one_run(plan)))
    # as the script formats them
    assert sampled == [([81], 81), ([57] * 3, 161), ([65] * 4, 241)]


def test_the_table_of_whole_clips_has_both_ratios() -> None:
    sampled = {"duration": 15, "ours_sampled": [65] * 4, "plain_sampled": 241}
    seconds = {"ours_seconds": [2.0, 1.0, 3.0], "plain_seconds": [4.0], "ratio": 0.5}
    peaks = {"ours_peak_mib": 10.4, "plain_peak_mib": 40.0, "memory_ratio": 0.26}
    *_, row = end_to_end.table([sampled | seconds | peaks])
    assert row == "| 15 s | 4 x 65 | 241 | 2.00 | 4.00 | 0.50 | 10 | 40 | 0.26 |"


SLOW = [
    pytest.param(part, marks=pytest.mark.system)
    for part in ("attention", "checks", "errors", "encode", "decode")
]


@pytest.mark.parametrize("part", ["ceilings", *SLOW])
def test_a_part_of_the_gpu_figures_is_measured_at_a_tiny_size(part: str) -> None:
    rows = list(gpu.part(part, "tiny", ()))
    failed = {row["case"] for row in rows if "error" in row}
    needs_gpu = {"cudnn", "float8", "flash 4"} if part == "attention" else set()
    assert rows and failed == (needs_gpu if not torch.cuda.is_available() else set())


def test_an_unknown_case_of_a_part_is_an_error() -> None:
    with pytest.raises(ValueError, match="Part ceilings has no case producs"):
        list(gpu.part("ceilings", "tiny", ("producs",)))


def test_a_step_at_480p_is_measured_beside_one_at_720p() -> None:
    rows = list(gpu.part("whole", "tiny", ("eager", "eager, 480p")))
    assert [row["case"] for row in rows] == ["eager", "eager, 480p"]
    assert all(row["seconds"] > 0 for row in rows)


def test_streamed_blocks_are_measured_beside_resident_ones() -> None:
    rows = list(gpu.part("offload", "tiny", ("resident", "streamed")))
    assert [row["case"] for row in rows] == ["resident", "streamed"]
    assert not any("error" in row for row in rows)


@pytest.mark.system  # it takes 15 s
def test_each_part_of_the_gpu_figures_has_its_process_and_its_rows(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "gpu.jsonl"
    gpu.main(["--scale", "tiny", "--out", str(out), "--parts", "loading"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["part"] == "about" and rows[0]["torch"]
    assert (rows[-1]["case"], rows[-1]["exit"]) == ("end", 0)
    assert not any("error" in row for row in rows)
    assert {row["case"] for row in rows} >= {"line, resident", "line, on the CPU"}
    assert "| loading | save |" in capfd.readouterr().out


@pytest.mark.system  # it takes a minute
def test_both_starts_of_a_worker_and_8_bits_are_measured_at_a_tiny_size() -> None:
    rows = list(gpu.part("start", "tiny", ()))
    assert [row["case"] for row in rows] == ["written", "first start", "second start"]
    eight = ("ours, set up", "8-bit attention, set up", "ours, 8-bit attention")
    rows += [row for row in gpu.part("job", "tiny", eight) if row["case"] in eight]
    assert not [row for row in rows if "error" in row]


@pytest.mark.system  # it takes half a minute
def test_a_whole_clip_of_the_engine_is_measured_at_a_tiny_size(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    cases = ["--cases", "ours, set up", "ours, native fps"]
    gpu.main(["--scale", "tiny", "--out", str(out), "--parts", "job", *cases])
    rows = {row["case"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows["end"]["exit"] == 0
    assert {"denoise", "decode", "encode"} <= set(rows["ours, native fps"]["stages"])


def test_the_table_shows_how_memory_grows() -> None:
    seconds = {"ours_seconds": [2.0, 1.0, 3.0], "plain_seconds": [4.0]}
    rows = [
        {"frames": frames, **seconds, "ratio": 0.5, "ours_peak_mib": 10, "plain_peak_mib": peak}
        for frames, peak in ((81, 20), (241, 60))
    ]
    lines = list(media_path.table(rows))
    assert lines[2] == "| 81 | 2.00 | 4.00 | 0.50 | 10 | 20 |"
    assert lines[-1] == "Memory from 81 to 241 frames: ours x1.00, plain x3.00."


@pytest.mark.parametrize(
    "script", [end_to_end, gateway_hostile, gateway_load, gpu, media_path, overlap, safety, stages]
)
def test_the_help_has_an_example(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    name = script.__name__.rpartition(".")[2]
    assert f"example: python benchmarks/{name}.py" in capsys.readouterr().out


def test_all_parts_of_the_safety_checker_are_measured(tmp_path: Path) -> None:
    result = safety.measure(safety.prepare(tmp_path, small=True), "cpu", repeats=1)
    parts = ["load", "prompt", "image", "5_frames", "10_frames", "15_frames"]
    assert list(result["seconds"]) == list(result["cpu_seconds"]) == parts
    assert min(result["seconds"].values()) > 0
    assert result["prompt_tokens"] == pytest.approx(safety._TOKENS, abs=3)


@pytest.mark.usefixtures("few_frames")
def test_a_whole_job_is_measured_stage_by_stage(tiny_cache: Path) -> None:
    values = {"model": "wan-tiny", "render_area": 1024, "preset": "superfast", "fps": 8}
    line = stages.measure("1280*720", 5, {**values, "cache_dir": tiny_cache})
    assert {"denoise", "decode", "interpolate", "encode"} <= set(line["stages"])
    # Time between the stages is in none of them, and a busy machine can make it long.
    assert 0 < sum(line["stages"].values()) <= line["seconds"] + 0.2
    assert 0 < line["of_it_ffmpeg_mib"] <= line["host_peak_mib"] < 2500
    assert (line["fps"], line["interpolation"], line["upscale"]) == (8, "mci", "lanczos")


def test_growth_is_from_the_shortest_to_the_longest() -> None:
    rows = [
        {
            "size": "720",
            "duration": duration,
            "seconds": seconds,
            "cpu_seconds": 2 * seconds,
            "host_peak_mib": peak,
        }
        for duration, seconds, peak in ((5, 10.0, 100), (15, 30.0, 110), (10, 20.0, 200))
    ]
    grown = {"720": {"duration": 3.0, "seconds": 3.0, "cpu_seconds": 3.0, "host_peak": 1.1}}
    assert stages.growth(rows) == {"growth": grown}


# --- seams ---------------------------------------------------------------------------------------


def moving(count: int) -> np.ndarray:
    """Frames that grow brighter by two levels each, so neighbours are two levels apart
    everywhere."""
    levels = 2 * np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return np.broadcast_to(levels, (count, 16, 16, 3)).copy()


def test_a_join_without_a_jump_cannot_be_told_from_the_rest() -> None:
    (seam,) = seams.measure([moving(20)], [10])
    assert (seam.frame, seam.jump, seam.inside_median, seam.ratio) == (10, 2, 2, 1)
    assert seam.rank == 0 and seam.colour_ratio == 1


def test_a_known_jump_is_measured_at_its_join_and_nowhere_else() -> None:
    frames = moving(30)
    frames[10:] += np.array([6, 3, 0], np.uint8)  # a colour cast from frame 10 on
    first, second = seams.measure([frames[:4], frames[4:17], frames[17:]], [10, 20])
    assert (first.jump, first.ratio, first.rank) == (5, 2.5, 1)
    assert first.colour_shift == (8, 5, 2) and first.colour_ratio == 4
    assert (second.jump, second.ratio, second.colour_shift) == (2, 1, (2, 2, 2))


def test_a_jump_that_is_faded_over_the_overlap_is_found_there() -> None:
    frames = moving(20)
    frames[7:] += np.uint8(9)
    assert seams.measure([frames], [10], overlap=5)[0].jump == 11
    assert seams.measure([frames], [10], overlap=1)[0].jump == 2


def test_a_still_clip_has_finite_figures() -> None:
    frames = np.zeros((9, 8, 8, 3), np.uint8)
    (seam,) = seams.measure([frames], [4])
    assert (seam.jump, seam.ratio, seam.colour_ratio) == (0, 0, 0)


@pytest.mark.parametrize("join", [0, 20, -1])
def test_a_join_outside_the_clip_is_refused(join: int) -> None:
    with pytest.raises(ValueError, match=f"frame {join} of 20"):
        seams.measure([moving(20)], [join])


def test_the_joins_of_a_plan_are_inside_its_shots() -> None:
    def shot(*keeps: int) -> Shot:
        segments = (Segment(1, 81, 5 if index else 0, keep) for index, keep in enumerate(keeps))
        return Shot("", tuple(segments), sum(keeps))

    plan = Plan(64, 64, 64, 64, 64, 64, 16, 240, 1, (shot(57, 52, 19), shot(60, 52)), 16)
    assert seams.joins_of(plan) == ([57, 109, 188], 5)


def test_seams_of_a_file_are_one_line_of_json_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames, path = moving(40), tmp_path / "clip.mp4"
    frames[25:] += np.uint8(30)
    segment = Segment(1, 41, 0, 40)
    plan = Plan(16, 16, 16, 16, 16, 16, 16, 40, 1, (Shot("", (segment,), 40),), 16)
    encode([frames], plan, None, path, EncodeOptions(crf=1), Control())
    seams.main(["--video", str(path), "--joins", "12", "25"])
    plain, jumped = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (plain["frame"], jumped["frame"]) == (12, 25)
    assert plain["jump"] == pytest.approx(2, abs=1.5)
    assert jumped["jump"] == pytest.approx(32, abs=2)
    assert jumped["rank"] == 1 and jumped["ratio"] > 8


def test_seams_are_measured_from_the_engine_too(
    monkeypatch: pytest.MonkeyPatch, tiny_cache: Path, data: Path
) -> None:
    values = {"MODEL": "wan-tiny-ti2v", "CACHE_DIR": tiny_cache, "STEPS": 1, "RENDER_AREA": 1024}
    for name, value in values.items():
        monkeypatch.setenv(f"WAN_{name}", str(value))
    found = seams.from_engine(data / "rocket_640x360.jpg", "lift-off", 10, 7)
    assert [seam.frame for seam in found] == [85, 165]
    assert all(seam.inside_median > 0 for seam in found)


def test_a_file_that_is_not_a_video_has_no_seams(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_text("not a video")
    with pytest.raises(ValueError, match="is no video"):
        list(seams.read_frames(path))


def test_the_help_of_seams_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        seams.main(["--help"])
    assert ended.value.code == 0
    assert "python benchmarks/seams.py --video clip.mp4" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        seams.main(["--video", "clip.mp4"])
