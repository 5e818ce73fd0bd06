"""The output of `doctor`, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Wan


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


def test_doctor_makes_the_checks_of_the_runpod_loop(wan: Wan) -> None:
    """Without a bucket and classifiers, that loop refuses to start."""
    missing = {"WAN_MODEL": "wan-tiny", "WAN_SAFETY_IMAGE_MODEL": "no/such"}
    loop = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/x"}
    done = wan("doctor", "--json", **missing, **loop)
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert [name for name, row in rows.items() if not row["ok"]] == ["storage", "safety"]
    assert rows["storage"]["level"] == "fail" and rows["model"]["level"] == "warn"
    done = wan("doctor", "--no-worker", **missing, **loop)
    assert done.returncode == 0 and "warn" in done.stdout and "FAIL" not in done.stdout


def test_doctor_says_how_long_each_part_of_a_start_takes(wan: Wan) -> None:
    done = wan("doctor", "--json", "--timing", WAN_DEVICE="cpu")
    assert done.returncode == 0, done.stderr
    found = {check["what"]: check["found"] for check in json.loads(done.stdout)}
    stages = ["imports", "checks", "choice", "libraries", "safety", "model", "writer", "warm-up"]
    assert [what for what in found if what.startswith("start: ")] == [f"start: {s}" for s in stages]
    each = [float(found[f"start: {stage}"].removesuffix(" s")) for stage in stages]
    in_all = float(found["start"].removesuffix(" s in total"))
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


def test_doctor_says_what_is_checked_and_what_is_missing(wan: Wan, tmp_path: Path) -> None:
    empty = str(tmp_path / "empty")
    done = wan("doctor", "--json", WAN_SAFETY_PROMPT_MODEL="qwen3guard-gen-0.6b", HF_HOME=empty)
    found = {check["what"]: check for check in json.loads(done.stdout)}["safety"]["found"]
    assert "images and frames are checked with tiny-image-classifier (nsfw from 0.6)" in found
    assert "prompts are not checked" in found and "download safety" in found
    done = wan("doctor", "--json", WAN_SAFETY_PROMPT_MODEL=empty, WAN_SAFETY="required")
    check = {check["what"]: check for check in json.loads(done.stdout)}["safety"]
    assert done.returncode == 1 and not check["ok"]


def test_doctor_says_what_a_named_prompt_backend_lacks(wan: Wan) -> None:
    done = wan("doctor", "--json", WAN_DEVICE="cpu", WAN_PROMPT_BACKEND="openai")
    checks = {check["what"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 1 and not checks["prompts"]["ok"]
    assert "WAN_PROMPT_URL" in checks["prompts"]["found"]
