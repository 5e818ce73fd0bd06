"""The benchmarks still run: both sides at the smallest size. No test looks at the clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import media_path, safety, stages


def test_the_media_path_is_measured_on_both_sides(tiny_cache: Path) -> None:
    case = media_path.Case(5, render=(64, 64), output=(64, 64), preset="superfast")
    ours, plain = (media_path.measure(side, case, tiny_cache) for side in media_path.SIDES)
    assert ours.clip_bytes == pytest.approx(plain.clip_bytes, rel=0.05)  # the same picture
    assert min(ours.seconds, plain.seconds) > 0
    assert min(ours.peak_mib, plain.peak_mib) > -1  # a clip this small needs next to nothing


def test_the_table_tells_how_memory_grows() -> None:
    seconds = {"ours_seconds": [2.0, 1.0, 3.0], "plain_seconds": [4.0]}
    rows = [
        {"frames": frames, **seconds, "ratio": 0.5, "ours_peak_mib": 10, "plain_peak_mib": peak}
        for frames, peak in ((81, 20), (241, 60))
    ]
    lines = list(media_path.table(rows))
    assert lines[2] == "| 81 | 2.00 | 4.00 | 0.50 | 10 | 20 |"
    assert lines[-1] == "Memory from 81 to 241 frames: ours x1.00, plain x3.00."


@pytest.mark.parametrize("script", [media_path, safety, stages])
def test_the_help_has_an_example(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    name = script.__name__.rpartition(".")[2]
    assert f"example: python benchmarks/{name}.py" in capsys.readouterr().out


def test_the_safety_checker_is_measured_in_all_of_its_parts(tmp_path: Path) -> None:
    result = safety.measure(safety.prepare(tmp_path, small=True), "cpu", repeats=1)
    parts = ["load", "prompt", "image", "5_frames", "10_frames", "15_frames"]
    assert list(result["seconds"]) == list(result["cpu_seconds"]) == parts
    assert min(result["seconds"].values()) > 0
    assert result["prompt_tokens"] == pytest.approx(safety._TOKENS, abs=3)


def test_a_whole_job_is_measured_stage_by_stage(tiny_cache: Path) -> None:
    values = {"model": "wan-tiny", "render_area": 1024, "preset": "superfast"}
    line = stages.measure("1280*720", 5, {**values, "cache_dir": tiny_cache})
    assert {"denoise", "decode", "interpolate", "encode"} <= set(line["stages"])
    assert sum(line["stages"].values()) == pytest.approx(line["seconds"], rel=0.1, abs=0.2)
    assert 0 < line["of_it_ffmpeg_mib"] <= line["host_peak_mib"] < 2500
    assert (line["fps"], line["interpolation"], line["upscale"]) == (30, "mci", "lanczos")


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
