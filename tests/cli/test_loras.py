"""`loras`, `generate --lora` and `plan --lora`, as an operator uses them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.cli.conftest import Wan

LAYER = "diffusion_model.blocks.0.self_attn.q"


def lora(path: Path, width: int = 24) -> None:
    half = np.full((2, width), 0.3, np.float32)
    save_file({f"{LAYER}.lora_A.weight": half, f"{LAYER}.lora_B.weight": half.T.copy()}, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "loras"
    (made / "people").mkdir(parents=True)
    for name in ("people/anna", "motion-high", "motion-low"):
        lora(made / f"{name}.safetensors")
    lora(made / "other.safetensors", 48)
    return made


def test_loras_lists_names_pairs_and_the_models_that_take_them(wan: Wan, folder: Path) -> None:
    done = wan("loras", "--json", WAN_LORA_DIR=str(folder))
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert list(rows) == ["motion", "motion-high", "motion-low", "other", "people/anna"]
    assert rows["motion"] == {
        "name": "motion",
        "files": ["motion-high.safetensors", "motion-low.safetensors"],
        "fits": ["wan-tiny"],
        "refused": {},
    }
    assert rows["people/anna"]["fits"] == ["wan-tiny"] and rows["other"]["fits"] == []
    why = rows["other"]["refused"]["wan-tiny"]
    assert why.startswith("other.safetensors has nothing for this model") and "48 x 48" in why
    shown = wan("loras", WAN_LORA_DIR=str(folder)).stdout
    assert "people/anna" in shown and "has nothing for this model" in shown


def test_without_a_folder_or_files_it_says_so(wan: Wan, tmp_path: Path) -> None:
    assert wan("loras").stdout == "WAN_LORA_DIR is not set: set it to a folder of LoRA files\n"
    (tmp_path / "empty").mkdir()
    assert wan("loras", WAN_LORA_DIR="empty").stdout == "empty has no LoRA files\n"
    assert json.loads(wan("loras", "--json").stdout) == []
    done = wan("loras", WAN_LORA_DIR="nowhere")
    assert done.returncode == 1 and "WAN_LORA_DIR names nowhere, which is not a f" in done.stderr


def test_doctor_lists_lora_files(wan: Wan, folder: Path, tmp_path: Path) -> None:
    rows = json.loads(wan("doctor", "--json", WAN_LORA_DIR=str(folder)).stdout)
    [row] = [row for row in rows if row["what"] == "loras"]
    assert row["found"].startswith("requests may name 5: motion, motion-high, ")
    (tmp_path / "empty").mkdir()
    rows = json.loads(wan("doctor", "--json", WAN_LORA_DIR="empty").stdout)
    [row] = [row for row in rows if row["what"] == "loras"]
    assert row["level"] == "warn"


def test_generate_and_plan_accept_lora_files(
    wan: Wan, folder: Path, tmp_path: Path, data: Path
) -> None:
    shutil.copy(data / "rocket_640x360.jpg", tmp_path / "a.jpg")
    asked = ("--image", "a.jpg", "--prompt", "x", "--duration", "2", "--seed", "1")
    loras = ("--lora", "people/anna:0.5", "--lora", "motion::low")
    done = wan("plan", *asked, *loras, "--json", WAN_LORA_DIR=str(folder))
    assert json.loads(done.stdout)["loras"] == [
        {"name": "people/anna", "scale": 0.5, "expert": None},
        {"name": "motion", "scale": 1.0, "expert": "low"},
    ]
    assert "people/anna at 0.5, motion at 1 (low)" in (
        wan("plan", *asked, *loras, WAN_LORA_DIR=str(folder)).stdout
    )
    clips = []
    for given in ((), loras):
        done = wan("generate", *asked, *given, "--out", "a.mp4", WAN_LORA_DIR=str(folder))
        assert done.returncode == 0, done.stderr
        clips.append((tmp_path / "a.mp4").read_bytes())
    assert clips[0] != clips[1] and b"LoRA people/anna at 0.5, motion at 1 (low);" in clips[1]


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ("x:a lot", 'field "loras[0].scale" must be a number from -4 to 4, got string "a lot"'),
        ("x:1:left", 'field "loras[0].expert" must be one of ["both", "high", "low"], got string'),
        (":1", 'field "loras[0].name" is required'),
        ("../x", 'field "loras[0].name" must be a name without its folder'),
        ("nobody", 'field "loras[0].name" must be one of ["motion", "motion-high", '),
        ("other", 'field "loras[0].name" cannot be used with wan-tiny, got string "other": other.'),
    ],
)
def test_an_error_is_one_sentence(
    wan: Wan, folder: Path, tmp_path: Path, data: Path, lora: str, sentence: str
) -> None:
    shutil.copy(data / "rocket_640x360.jpg", tmp_path / "a.jpg")
    done = wan("plan", "--image", "a.jpg", "--prompt", "x", "--lora", lora, WAN_LORA_DIR="loras")
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
