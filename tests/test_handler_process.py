"""The handler as a process: the SDK's local run, starts that are refused, and the examples of the
pages."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest

from tests import warm

ROOT = Path(__file__).parents[1]


def sdk_run(
    tmp_path: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    program = [str(ROOT / "handler.py"), *arguments]
    env = {
        **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
        "OMP_NUM_THREADS": "1",
        "WAN_OUTPUT_DIR": str(tmp_path / "outputs"),
        "WAN_SCRATCH_DIR": str(tmp_path / "scratch"),
        "WAN_CACHE_DIR": str(tmp_path / "cache"),
        "WAN_PRESET": "superfast",
        "WAN_FPS": "native",
        **environment,
    }
    return warm.shared().run(program, env=env, cwd=tmp_path)


def test_the_sdks_local_run_prints_the_result(tmp_path: Path) -> None:
    job = json.loads((ROOT / "test_input.json").read_text())
    (tmp_path / "test_input.json").write_text(json.dumps(job))
    done = sdk_run(tmp_path, WAN_RENDER_AREA="3072")
    assert done.returncode == 0, done.stderr
    assert "'cost': 0.5" in done.stdout and len(list(tmp_path.glob("outputs/*.mp4"))) == 1
    # The SDK's default prints the whole job, base64 included.
    assert job["input"]["image"][-40:] not in done.stdout + done.stderr


def test_the_sdks_local_run_of_a_bad_value_ends_with_one(tmp_path: Path, tiny_cache: Path) -> None:
    job = json.dumps({"input": {"prompt": "x"}})
    done = sdk_run(tmp_path, "--test_input", job, WAN_CACHE_DIR=str(tiny_cache))
    assert done.returncode == 1
    assert 'failed with error: field "image" is required' in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"WAN_STEPS": "zero"}, "WAN_STEPS"),
        ({"WAN_MODEL": "wan9"}, "WAN_MODEL=wan9"),
        ({"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/job-take/$ID?x"}, "BUCKET_ENDPOINT_URL"),
    ],
)
def test_a_wrong_setting_refuses_to_start(
    tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    done = sdk_run(tmp_path, **environment)
    assert done.returncode == 1 and "Cannot start: " in done.stderr
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_a_worker_that_cannot_start_names_everything_that_is_missing_and_tells_runpod(
    tmp_path: Path,
) -> None:
    told: list[str] = []

    class Ping(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.append(unquote_plus(self.path))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Do not log requests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Ping) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        done = sdk_run(
            tmp_path,
            RUNPOD_WEBHOOK_GET_JOB="http://127.0.0.1:9/job-take/$ID?x",
            RUNPOD_WEBHOOK_PING=f"http://127.0.0.1:{server.server_port}/ping/$RUNPOD_POD_ID",
            RUNPOD_AI_API_KEY="key",
            WAN_SCRATCH_DIR=str(tmp_path / "absent"),
            WAN_MODEL="wan-tiny",
            WAN_SAFETY_IMAGE_MODEL="no/such",
        )
        server.shutdown()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    rows = done.stderr.partition("Cannot start: 3 things are missing or wrong:\n- ")[2]
    assert [row.partition(":")[0] for row in rows.split("\n- ")] == ["scratch", "storage", "safety"]
    (ping,) = told
    assert "status=unhealthy" in ping and "3 things are missing" in ping


@pytest.mark.parametrize(("page", "tells"), [("README.md", False), ("docs/command-line.md", True)])
def test_the_last_python_example_of_a_page_runs(
    tmp_path: Path, data: Path, page: str, tells: bool
) -> None:
    example = (ROOT / page).read_text().split("```python\n")[-1].partition("```")[0]
    (tmp_path / "photo.jpg").write_bytes((data / "rocket_640x360.jpg").read_bytes())
    (tmp_path / "example.py").write_text(example)
    done = warm.shared().run(
        [str(ROOT / "tests" / "small.py"), str(tmp_path / "example.py")],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        | {"OMP_NUM_THREADS": "1", "WAN_RENDER_AREA": "3072", "WAN_PRESET": "superfast"},
    )
    assert done.returncode == 0, done.stderr
    *progress, result = done.stdout.strip().splitlines()
    assert result.startswith("file:///") and len(list(tmp_path.rglob("*.mp4"))) == 1
    assert bool(progress) == tells
