"""The command line, as a person and as a script use it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests import warm
from wan_engine import toy
from wan_engine.catalog import CATALOG, CLASSIFIERS
from wan_engine.cli.app import COMMANDS
from wan_engine.schema import VideoRequest
from wan_engine.settings import VERSION, Settings, described, env_name
from wan_engine.weights import manifest

ROOT = Path(__file__).parents[2]
Wan = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def wan(tmp_path: Path, tiny_cache: Path) -> Wan:
    """Run `python -m wan_engine ...` in an empty folder; the large libraries are there already,
    unless `cold` or a variable of the Hub's."""

    def run(
        *arguments: str, stdin: str = "", cold: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        env = {
            **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "WAN_CACHE_DIR": str(tiny_cache),
            "OMP_NUM_THREADS": "1",
            "WAN_FPS": "native",
            "WAN_PRESET": "superfast",
            "WAN_RENDER_AREA": "3072",
            "WAN_SAFETY_PROMPT_MODEL": "tiny-prompt-guard",
            "WAN_SAFETY_IMAGE_MODEL": "tiny-image-classifier",
            **environment,
        }
        program = ["-m", "wan_engine", *arguments]
        if not cold and not any(name.startswith("HF_") for name in environment):
            return warm.shared().run(program, env=env, cwd=tmp_path, stdin=stdin)
        return subprocess.run(
            [sys.executable, *program],
            cwd=tmp_path,
            env=env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def test_a_clip_from_local_files(wan: Wan, data: Path, tmp_path: Path) -> None:
    done = wan(
        *("generate", "--prompt", "lift-off", "--seed", "5", "--out", "clip.mp4"),
        *("--image", str(data / "rocket_640x360.jpg"), "--audio", str(data / "chime_4s.mp3")),
        cold=True,
        WAN_FPS="30",
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
    lines = [good, {**good, "duration": 7}, {**good, "out": "/proc/b.mp4"}]
    lines += [{**good, "out": "b.mp4", "seed": 1}]
    text = "\n".join(["not json", *map(json.dumps, lines)])
    (tmp_path / "jobs.jsonl").write_text(text + "\n\n")
    # Clips go elsewhere, so the settings' folder need not be there.
    done = wan("generate", "--jobs", "jobs.jsonl", WAN_OUTPUT_DIR="/proc/x")
    assert done.returncode == 1, done.stderr
    no_json, first, second, third, last = map(json.loads, done.stdout.splitlines())
    assert first["video_url"].endswith("/a.mp4") and last["video_url"].endswith("/b.mp4")
    assert second == {"error": 'field "duration" must be one of [5, 10, 15], got number 7'}
    assert no_json["error"].startswith("line 1 is not JSON") and "/proc" in third["error"]
    assert done.stderr.count("recipe") == 1
    # What is wrong is told before anything is rendered.
    before = done.stderr.partition("recipe")[0]
    assert "line 3: field" in before and "line 4: --out: the folder /proc cannot" in before


def test_a_plan_is_told_without_rendering(wan: Wan, data: Path, tmp_path: Path) -> None:
    request = ("--prompt", "lift-off", "--image", str(data / "rocket_640x360.jpg"), "--seed", "3")
    multi = ("--duration", "10", "--size", "1920x1080", "--shot-type", "multi", "--expand-prompt")
    multi += (
        "--audio",
        str(data / "chime_4s.mp3"),
        "--negative-prompt",
        "y",
        "--no-safety-checker",
    )
    done = wan("plan", *request, *multi, "--json", WAN_FPS="30")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["size"], plan["frames"], plan["fps"], plan["cost"]) == ([1920, 1080], 300, 30, 1.5)
    assert plan["cut_seconds"] == [4.0, 7.0] and len(plan["shots"]) == 3
    assert sum(shot["seconds"] for shot in plan["shots"]) == 10
    assert plan["shots"][0]["crop"] == [0, 0, 1, 1] != plan["shots"][1]["crop"]
    assert plan["shots"][0]["segments"][0]["seed"] == 3
    assert list(tmp_path.iterdir()) == []
    shown = wan("plan", *request, *multi, WAN_FPS="30").stdout
    assert "1920x1080, 10 s, 300 frames at 30 fps" in shown and "$1.50, seed 3" in shown
    assert wan("plan", "--prompt", "x").returncode == 1


def test_a_plan_knows_what_the_last_clip_took(wan: Wan, data: Path, tmp_path: Path) -> None:
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
def test_a_wrong_value_is_told_before_the_model_is_loaded(
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
def test_a_folder_that_cannot_be_written_is_told_before_the_render(
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


def test_a_sheet_that_fails_costs_the_sheet_alone(
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


def test_an_output_folder_that_is_not_there_is_told(wan: Wan, data: Path) -> None:
    image = str(data / "rocket_640x360.jpg")
    done = wan("generate", "--prompt", "x", "--image", image, "--out", "no/such/clip.mp4")
    assert done.returncode == 1 and "does not exist" in done.stderr


def test_doctor_says_what_was_chosen(wan: Wan) -> None:
    done = wan("doctor", "--json", WAN_DEVICE="cpu")
    assert done.returncode == 0, done.stderr
    checks = {check["what"]: check for check in json.loads(done.stdout)}
    assert set(checks) >= {
        "gpu",
        "ffmpeg",
        "scratch",
        "model",
        "recipe",
        "storage",
        "safety",
        "prompts",
    }
    assert "template (auto: " in checks["prompts"]["found"]
    assert "wan-tiny" in checks["model"]["found"] and "a toy" in checks["model"]["found"]
    assert not any(what.startswith("start") for what in checks)  # no model was loaded


def test_doctor_asks_what_the_runpod_loop_asks(wan: Wan) -> None:
    """There, no bucket and no classifiers refuse to start."""
    missing = {"WAN_MODEL": "wan-tiny", "WAN_SAFETY_IMAGE_MODEL": "no/such"}
    loop = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/x"}
    done = wan("doctor", "--json", **missing, **loop)
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert [name for name, row in rows.items() if not row["ok"]] == ["storage", "safety"]
    assert rows["storage"]["level"] == "fail" and rows["model"]["level"] == "warn"
    done = wan("doctor", "--no-worker", **missing, **loop)
    assert done.returncode == 0 and "warn" in done.stdout and "FAIL" not in done.stdout


def test_doctor_says_where_the_seconds_of_a_start_go(wan: Wan) -> None:
    done = wan("doctor", "--json", "--timing", WAN_DEVICE="cpu")
    assert done.returncode == 0, done.stderr
    found = {check["what"]: check["found"] for check in json.loads(done.stdout)}
    stages = ["imports", "checks", "choice", "libraries", "safety", "model", "writer", "warm-up"]
    assert [what for what in found if what.startswith("start: ")] == [f"start: {s}" for s in stages]
    each = [float(found[f"start: {stage}"].removesuffix(" s")) for stage in stages]
    in_all = float(found["start"].removesuffix(" s in all"))
    assert sum(each) == pytest.approx(in_all, abs=0.05) and min(each[0], each[5]) > 0


def test_doctor_fails_when_no_job_could_run(wan: Wan, tmp_path: Path) -> None:
    done = wan("doctor", WAN_MODEL="wan2.2-ti2v-5b", HF_HOME=str(tmp_path / "empty"))
    assert done.returncode == 1
    assert "FAIL" in done.stdout and "download" in done.stdout


def test_doctor_fails_when_a_lora_file_cannot_be_fused(wan: Wan, tmp_path: Path) -> None:
    path = tmp_path / "page.safetensors"
    path.write_text("<!DOCTYPE html>")
    done = wan("doctor", "--json", WAN_LORA=json.dumps([{"path": str(path)}]))
    assert done.returncode == 1
    [row] = [row for row in json.loads(done.stdout) if row["what"] == "lora"]
    assert row["found"].startswith("page.safetensors is not a LoRA file: it is a web page")


def test_models_lists_the_catalogue(wan: Wan) -> None:
    rows = json.loads(wan("models", "--json").stdout)
    assert [row["name"] for row in rows] == list(CATALOG)
    assert "wan-tiny" in {row["name"] for row in rows if row["present"]}
    shown = wan("models").stdout
    assert "wan2.2-i2v-a14b-4step" in shown and all(name in shown for name in CLASSIFIERS)


def test_doctor_says_what_is_checked_and_what_is_missing(wan: Wan, tmp_path: Path) -> None:
    empty = str(tmp_path / "empty")
    done = wan("doctor", "--json", WAN_SAFETY_PROMPT_MODEL="qwen3guard-gen-0.6b", HF_HOME=empty)
    found = {check["what"]: check for check in json.loads(done.stdout)}["safety"]["found"]
    assert "images and frames are checked with tiny-image-classifier (nsfw from 0.6)" in found
    assert "prompts are not checked" in found and "download safety" in found
    done = wan("doctor", "--json", WAN_SAFETY_PROMPT_MODEL=empty, WAN_SAFETY="required")
    check = {check["what"]: check for check in json.loads(done.stdout)}["safety"]
    assert done.returncode == 1 and not check["ok"]


def test_download_safety_gives_both_folders(wan: Wan, tiny_cache: Path) -> None:
    done = wan("download", "safety")
    assert done.returncode == 0, done.stderr
    names = [Path(line).name for line in done.stdout.splitlines()]
    assert names == ["tiny-prompt-guard", "tiny-image-classifier"]


def test_verify_reads_every_file_of_a_folder(wan: Wan, tiny_cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(toy.build("wan-tiny", tiny_cache / "wan-tiny"), folder)
    manifest.Manifest("own", None, None, manifest.list_files(folder)).write(folder)
    done = wan("download", str(folder), "--verify")
    assert done.stdout == f"{folder}\n" and done.returncode == 0, done.stderr
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = wan("download", str(folder), "--verify")
    assert done.returncode == 1 and "damaged" in done.stderr


def test_a_download_without_a_network_is_one_sentence(wan: Wan, tmp_path: Path) -> None:
    done = wan("download", "qwen3guard-gen-0.6b", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "HF_HUB_OFFLINE is set" in done.stderr


def test_schema_is_the_requests(wan: Wan) -> None:
    assert json.loads(wan("schema").stdout) == VideoRequest.model_json_schema()


def test_settings_are_listed(wan: Wan) -> None:
    rows = json.loads(wan("settings", "--json").stdout)
    assert [row["variable"] for row in rows] == [row.variable for row in described()]


def test_version(wan: Wan) -> None:
    assert wan("--version").stdout.strip() == VERSION


def test_a_command_is_found_by_its_files_name() -> None:
    files = {path.stem for path in (ROOT / "wan_engine" / "cli").glob("*.py")}
    no_commands = {"__init__", "app", "local_requests", "options", "plan_table", "terminal"}
    assert sorted(COMMANDS) == sorted(files - no_commands)


def test_help_needs_no_heavy_library() -> None:
    heavy = ("torch", "diffusers", "transformers", "boto3", "runpod", "fastapi", "sqlalchemy")
    program = f"""
import sys
from wan_engine.cli.app import app
try:
    app(["--help"], prog_name="x")
except SystemExit as end:
    print(end.code, [name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "0 []" and "generate" in done.stdout


def test_help_names_the_program_that_was_typed(wan: Wan, tmp_path: Path) -> None:
    assert "Usage: python -m wan_engine key " in wan("key", "--help").stdout
    script = tmp_path / "wan-engine"  # as pip writes a console script
    script.write_text("import sys\nfrom wan_engine.__main__ import main\nsys.exit(main())\n")
    done = subprocess.run(
        [sys.executable, str(script), "key", "--help"],
        env={"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: wan-engine key " in done.stdout
    assert "wan-engine key alice" in done.stdout and "python -m" not in done.stdout


def test_no_secret_of_the_settings_is_shown(wan: Wan) -> None:
    secrets = {
        "BUCKET_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "BUCKET_SECRET_ACCESS_KEY": "hidden-1",
        "WAN_PROMPT_API_KEY": "hidden-2",
        "WAN_PROMPT_URL": "http://127.0.0.1:1/v1?key=hidden-3",
        "WAN_RUNPOD_KEY": "hidden-4",
        "WAN_DATABASE_URL": "postgresql://wan:hidden-5@127.0.0.1:1/wan",
    }
    assert set(secrets) == {
        env_name(name)
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    rest = {"BUCKET_ENDPOINT_URL": "http://me:hidden-6@127.0.0.1:1/clips", "WAN_LOG_LEVEL": "DEBUG"}
    for arguments in (("settings", "--json"), ("doctor", "--json")):
        done = wan(*arguments, **secrets, **rest, WAN_DEVICE="cpu")
        shown = done.stdout + done.stderr
        assert done.stdout and "hidden" not in shown and "AKIDEXAMPLE" not in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(wan: Wan, command: str) -> None:
    done = wan(command, "--help")
    assert done.returncode == 0 and f"python -m wan_engine {command}" in done.stdout


def test_doctor_says_what_a_named_prompt_backend_lacks(wan: Wan) -> None:
    done = wan("doctor", "--json", WAN_DEVICE="cpu", WAN_PROMPT_BACKEND="openai")
    checks = {check["what"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 1 and not checks["prompts"]["ok"]
    assert "WAN_PROMPT_URL" in checks["prompts"]["found"]
