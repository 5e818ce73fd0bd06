"""The commands of the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Wan
from wan_engine import toy
from wan_engine.catalog import CATALOG, CLASSIFIERS
from wan_engine.cli.app import COMMANDS
from wan_engine.schema import VideoRequest
from wan_engine.settings import VERSION, Settings, described, env_name
from wan_engine.weights import manifest

ROOT = Path(__file__).parents[2]


def test_models_lists_the_catalogue(wan: Wan) -> None:
    rows = json.loads(wan("models", "--json").stdout)
    assert [row["name"] for row in rows] == list(CATALOG)
    assert "wan-tiny" in {row["name"] for row in rows if row["present"]}
    shown = wan("models").stdout
    assert "wan2.2-i2v-a14b-4step" in shown and all(name in shown for name in CLASSIFIERS)


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


def test_schema_prints_the_schema_of_requests(wan: Wan) -> None:
    assert json.loads(wan("schema").stdout) == VideoRequest.model_json_schema()


def test_settings_are_listed(wan: Wan) -> None:
    rows = json.loads(wan("settings", "--json").stdout)
    assert [row["variable"] for row in rows] == [row.variable for row in described()]


def test_version(wan: Wan) -> None:
    assert wan("--version").stdout.strip() == VERSION


def test_a_command_has_the_name_of_its_file() -> None:
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
    script = tmp_path / "wan-engine"  # the console script that pip writes
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
