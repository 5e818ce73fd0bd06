"""Runs every command line of README, CONTRIBUTING and docs as written, if it can run here.

Every command line that is not listed below runs. Those that start a server, import torch or render
are system tests.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import imageio_ffmpeg
import numpy as np
import pytest
import typer
from safetensors.numpy import save_file

from tests.docs.pages import PAGES, ROOT, commands, name
from wan_engine.cli.app import app

PYTHON = ".venv/bin/python"
ENGINE = f"{PYTHON} -m wan_engine"
SECONDS = 300.0

NOT_HERE = {
    "make run": "installs from the Python index; test_handler_process.py has what it runs then",
    "make test": "runs these tests",
    "make check": "is run beside the tests",
    "make docs": "writes into this checkout; tests/builder/test_docs.py has it",
    "make format": "writes into this checkout",
    "make site": "is run by make check",
    f"{ENGINE} download": "downloads gigabytes; tests/weights has it with a local Hub",
    "python -m wan_engine download": "downloads gigabytes, in the image",
    f"{PYTHON} -m builder.prepare": "needs 127 GB of weights; tests/builder/test_prepare.py has it",
    "python -m builder.prepare": "needs 127 GB of weights, in the image",
    "rm -r /workspace": "on the pod's volume",
    "python3 -m venv": "installs from the Python index",
    ".venv/bin/pip install": "installs from the Python index",
    "vllm serve": "needs vLLM and a GPU",
    "docker ": "needs Docker",
    "curl -s https://api.runpod.ai": "needs a Runpod account",
    "aws s3api": "needs a bucket; tests/storage/test_lifecycle_rule.py gives the rule to one",
    f"{PYTHON} benchmarks/gpu.py": "needs a GPU",
    f"{PYTHON} benchmarks/": "takes minutes; tests/test_benchmarks.py runs each of them small",
    "curl -fs --retry 90": "asks what docker compose started",
    "curl -s http://127.0.0.1:8000/v2/wan-2-6-i2v/run -H": "has a key to be filled in",
    "export WAN_API_KEYS=ann:<hash>": "has a key to be filled in",
    "WAN_MODELS_DIR=~/models WAN_API_KEYS=ann:<hash>": "has a key to be filled in",
    "WAN_API_KEYS=alice:5e88...": "has a key to be filled in",
}
"""Beginnings of command lines that cannot run in a test, and the reason."""

FAILS = {f"{ENGINE} doctor --worker": "there is no bucket"}
"""Command lines that exit with code 1 and say why."""

QUICK = (*(f"{ENGINE} {word}" for word in ("schema", "settings", "models", "key")), "export ")

Shell = Callable[..., "subprocess.CompletedProcess[str]"]

ALL = {command: name(page) for page in PAGES for command in commands(page)}
RUN = [command for command in ALL if not command.startswith(tuple(NOT_HERE))]
SERVED = [command for command in RUN if re.search(r"wan_engine serve|^curl", command)]
ALONE = [command for command in RUN if command not in SERVED]


def marked(command: str) -> Any:
    slow = () if command.startswith(QUICK) else (pytest.mark.system,)
    return pytest.param(command, id=f"{ALL[command]}: {command}", marks=slow)


def environment(folder: Path, cache: Path) -> dict[str, str]:
    """The environment of a user without settings, except those that make a clip of the tiny model
    quick."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "WAN_CACHE_DIR": str(cache),
        "WAN_RENDER_AREA": "3072",
        "WAN_PRESET": "superfast",
        "WAN_INTERPOLATION": "blend",
    }


@pytest.fixture
def checkout(tmp_path: Path, data: Path) -> Path:
    """What the pages assume: a checkout after `make run`, and some files of the user."""
    program = tmp_path / PYTHON
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    shutil.copy(ROOT / "test_input.json", tmp_path)
    for picture in ("photo.jpg", "end.jpg"):
        shutil.copy(data / "rocket_640x360.jpg", tmp_path / picture)
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i"]
    clip = ["testsrc2=s=320x240:r=24:d=2", "-pix_fmt", "yuv420p", str(tmp_path / "clip.mp4")]
    subprocess.run([*ffmpeg, *clip], check=True)
    shutil.copy(data / "chime_4s.mp3", tmp_path / "voice.mp3")
    (tmp_path / "loras").mkdir()
    for file in ("anna", "motion_high", "motion_low"):
        layer = "diffusion_model.blocks.0.self_attn.q"
        halves = {"lora_A": np.ones((2, 24), np.float32), "lora_B": np.ones((24, 2), np.float32)}
        save_file(
            {f"{layer}.{half}.weight": values for half, values in halves.items()},
            tmp_path / "loras" / f"{file}.safetensors",
        )
    lines = [{"prompt": f"Leaves sway, {way}", "image": "photo.jpg"} for way in ("left", "right")]
    (tmp_path / "requests.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


@pytest.fixture
def shell(checkout: Path, tiny_cache: Path) -> Shell:
    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=checkout,
            env=environment(checkout, tiny_cache),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    return run


@pytest.mark.parametrize("command", [marked(command) for command in ALONE])
def test_a_command_does_what_its_page_says(command: str, shell: Shell, checkout: Path) -> None:
    done = shell(command)
    failing = command in FAILS
    assert done.returncode == failing, done.stderr
    assert "Traceback" not in done.stderr
    if command.startswith("export"):
        return
    assert done.stdout.strip()
    for option, magic in (("--out", b"ftyp"), ("--sheet", b"PNG")):
        if written := re.search(rf"{option} (\S+)", command):
            assert magic in (checkout / written[1]).read_bytes()[:12]


@pytest.mark.system
@pytest.mark.parametrize("page", ["README.md", "docs/gateway.md", "docs/apis.md"])
def test_a_served_clip_is_made_as_the_page_says(
    page: str, checkout: Path, tiny_cache: Path, shell: Shell
) -> None:
    """Uses another port than 8000, which may be taken here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = [command for command in SERVED if command in set(commands(ROOT / page))]
    [serve, *_] = [command for command in here if "serve" in command]
    [curl] = [command for command in here if command.startswith("curl")]
    url = f"http://127.0.0.1:{port}"
    with (checkout / "log").open("w") as log:
        gateway = subprocess.Popen(
            ["bash", "-c", f"exec {serve} --port {port}"],
            cwd=checkout,
            env=environment(checkout, tiny_cache),
            stderr=log,
        )
        try:
            wait_for(f"{url}/readyz", gateway)
            assert httpx.get(url).headers["content-type"].startswith("text/html")
            done = shell(curl.replace("http://127.0.0.1:8000", url))
            assert done.returncode == 0, done.stderr
            if "--output" in curl:
                clip = (checkout / curl.split()[-1]).read_bytes()
            else:
                clip = httpx.get(json.loads(done.stdout)["output"]["video_url"]).content
            assert clip[4:8] == b"ftyp"
        finally:
            gateway.terminate()
            gateway.wait(SECONDS)


def wait_for(url: str, gateway: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert gateway.poll() is None
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail("the gateway did not become ready")


@pytest.mark.parametrize("start", list(NOT_HERE))
def test_commands_listed_as_not_runnable_are_on_a_page(start: str) -> None:
    assert any(command.startswith(start) for command in ALL)


@pytest.mark.parametrize("target", sorted({c.split()[1] for c in ALL if c.startswith("make ")}))
def test_every_make_target_that_a_page_names_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in ALL if "-m wan_engine " in command])
def test_every_option_of_our_commands_that_a_page_names_exists(command: str) -> None:
    """Includes command lines that cannot run here."""
    joined = command.replace("\\\n", " ")
    name_, *arguments = shlex.split(joined.split("-m wan_engine ")[1], comments=True)
    group: Any = typer.main.get_command(app)
    assert group.commands[name_].make_context(name_, arguments).command.name == name_
