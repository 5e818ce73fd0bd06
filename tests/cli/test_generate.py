"""`generate` and `plan`, from the shell to the file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Wan


@pytest.mark.system
def test_a_clip_from_local_files(wan: Wan, data: Path, tmp_path: Path) -> None:
    done = wan(
        *("generate", "--prompt", "lift-off", "--seed", "5", "--out", "clip.mp4"),
        *("--image", str(data / "rocket_640x360.jpg"), "--audio", str(data / "chime_4s.mp3")),
        cold=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["video_url"] == (tmp_path / "clip.mp4").as_uri()
    assert (result["seed"], result["cost"], result["model"]) == (5, 0.5, "wan-tiny")
    assert "expanded_prompt" not in result
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4"]
    assert "denoise" in done.stderr


def test_an_expanded_prompt_is_shown(wan: Wan, data: Path) -> None:
    done = wan(
        *("generate", "--prompt", "lift-off", "--expand-prompt", "--shot-type", "multi"),
        *("--image", str(data / "rocket_640x360.jpg"), "--out", "clip.mp4"),
    )
    assert done.returncode == 0, done.stderr
    text = json.loads(done.stdout)["expanded_prompt"]
    first, second = text.splitlines()
    assert first.startswith("Shot 1 (0-3 s): lift-off. ") and second.startswith("Shot 2 (3-5 s): ")
    assert first in done.stderr and second in done.stderr  # the log has it too


def test_many_jobs_on_one_loaded_model(wan: Wan, data: Path, tmp_path: Path) -> None:
    good = {"prompt": "lift-off", "image": str(data / "rocket_640x360.jpg"), "out": "a.mp4"}
    lines = [good, {**good, "duration": 17}, {**good, "out": "/proc/b.mp4"}]
    lines += [{**good, "out": "b.mp4", "seed": 1}]
    text = "\n".join(["not json", *map(json.dumps, lines)])
    (tmp_path / "jobs.jsonl").write_text(text + "\n\n")
    # Clips are written elsewhere, so the folder of the settings need not exist.
    done = wan("generate", "--jobs", "jobs.jsonl", WAN_OUTPUT_DIR="/proc/x")
    assert done.returncode == 1, done.stderr
    no_json, first, second, third, last = map(json.loads, done.stdout.splitlines())
    assert first["video_url"].endswith("/a.mp4") and last["video_url"].endswith("/b.mp4")
    assert second == {"error": 'field "duration" must be an integer from 2 to 15, got number 17'}
    assert no_json["error"].startswith("line 1 is not JSON") and "/proc" in third["error"]
    assert done.stderr.count("recipe") == 1
    # Errors are reported before anything is rendered.
    before = done.stderr.partition("recipe")[0]
    assert "line 3: field" in before and "line 4: --out: the folder /proc cannot" in before


def test_a_plan_is_shown_without_rendering(wan: Wan, data: Path, tmp_path: Path) -> None:
    request = ("--prompt", "lift-off", "--image", str(data / "rocket_640x360.jpg"), "--seed", "3")
    multi = ("--duration", "10", "--size", "1920x1080", "--shot-type", "multi", "--expand-prompt")
    multi += (
        "--audio",
        str(data / "chime_4s.mp3"),
        "--negative-prompt",
        "y",
        "--no-safety-checker",
    )
    done = wan("plan", *request, *multi, "--json", whole=True, WAN_FPS="30")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["size"], plan["frames"], plan["fps"], plan["cost"]) == ([1920, 1080], 300, 30, 1.5)
    assert plan["cut_seconds"] == [4.0, 7.0] and len(plan["shots"]) == 3
    assert sum(shot["seconds"] for shot in plan["shots"]) == 10
    assert plan["shots"][0]["crop"] == [0, 0, 1, 1] != plan["shots"][1]["crop"]
    assert plan["shots"][0]["segments"][0]["seed"] == 3
    assert list(tmp_path.iterdir()) == []
    shown = wan("plan", *request, *multi, whole=True, WAN_FPS="30").stdout
    assert "1920x1080, 10 s, 300 frames at 30 fps" in shown and "$1.50, seed 3" in shown
    assert wan("plan", "--prompt", "x").returncode == 1


def test_a_plan_estimates_from_the_time_of_the_last_clip(
    wan: Wan, data: Path, tmp_path: Path
) -> None:
    request = ("--prompt", "lift-off", "--image", str(data / "rocket_640x360.jpg"))
    cache = str(tmp_path / "cache")
    before = json.loads(wan("plan", *request, "--json", WAN_CACHE_DIR=cache).stdout)
    assert before["expected_seconds"] is None
    assert wan("generate", *request, "--out", "a.mp4", WAN_CACHE_DIR=cache).returncode == 0
    after = json.loads(wan("plan", *request, "--json", WAN_CACHE_DIR=cache).stdout)
    assert 0 < after["expected_seconds"] < 300


def test_a_contact_sheet_is_drawn(wan: Wan, data: Path, tmp_path: Path) -> None:
    request = ("--prompt", "lift-off", "--image", str(data / "rocket_640x360.jpg"))
    done = wan("generate", *request, "--out", "clip.mp4", "--sheet", "sheet.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.size == (6 * 244 + 4, 2 * 162 + 4)
    done = wan("generate", *request, "--out", "clip.mp4", "--sheet", "no/such/sheet.png")
    assert done.returncode == 1 and "--sheet: the folder" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--prompt", "x"), 'field "image" is required'),
        (("--prompt", "x", "--image", "nowhere.jpg"), "image: there is no file nowhere.jpg"),
        (("--prompt", "x", "--image", "http://a/b", "--duration", "six"), 'field "duration" must'),
        (("--prompt", "x", "--image", "http://a/b", "--size", "4k"), 'field "size" must'),
    ],
)
def test_a_wrong_value_is_reported_before_the_model_is_loaded(
    wan: Wan, arguments: tuple[str, ...], sentence: str
) -> None:
    done = wan("generate", *arguments)
    assert done.returncode == 1 and done.stderr.startswith(sentence)
    assert "Traceback" not in done.stderr and "model" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        ((), {"WAN_OUTPUT_DIR": "/proc/x"}, "storage: Clips cannot be written to /proc/x"),
        (("--out", "/proc/a.mp4"), {}, "--out: the folder /proc cannot be written to"),
        (("--sheet", "/proc/a.png"), {}, "--sheet: the folder /proc cannot be written to"),
    ],
)
def test_a_folder_that_cannot_be_written_is_reported_before_the_render(
    wan: Wan,
    data: Path,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    sentence: str,
) -> None:
    image = str(data / "rocket_640x360.jpg")
    done = wan("generate", "--prompt", "x", "--image", image, *arguments, **environment)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
    assert "recipe" not in done.stderr and done.stdout == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_if_the_sheet_fails_the_clip_is_kept(
    wan: Wan, data: Path, tmp_path: Path, small_disk: Path
) -> None:
    good = {"prompt": "lift-off", "image": str(data / "rocket_640x360.jpg")}
    lines = [
        {**good, "out": "a.mp4", "sheet": str(small_disk / "a.png")},
        {**good, "out": "b.mp4"},
    ]
    (small_disk / "jobs").write_text("\n".join(map(json.dumps, lines)))
    done = wan("generate", "--jobs", str(small_disk / "jobs"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["video_url"].endswith("/a.mp4") and second["video_url"].endswith("/b.mp4")
    assert "--sheet: " in done.stderr and "(No space left on device)" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "disk"]
    assert [path.name for path in small_disk.iterdir()] == ["jobs"]


def test_wrong_usage_is_exit_code_two(wan: Wan, tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text("not json")
    for arguments in (("generate", "--nonsense"), ("generate", "--jobs", "jobs.jsonl"), ("paint",)):
        done = wan(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_an_output_folder_that_does_not_exist_is_reported(wan: Wan, data: Path) -> None:
    image = str(data / "rocket_640x360.jpg")
    done = wan("generate", "--prompt", "x", "--image", image, "--out", "no/such/clip.mp4")
    assert done.returncode == 1 and "does not exist" in done.stderr
