"""What `doctor` and a worker's start look at: each fault says what is wrong and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder import tiny
from wan_engine import Settings
from wan_engine.acceleration import Gpu
from wan_engine.checks import Check, machine_checks, require, start_checks
from wan_engine.errors import ConfigurationError
from wan_engine.startup import Startup

MakeSettings = Callable[..., Settings]


def found(settings: Settings) -> dict[str, Check]:
    return {check.what: check for check in machine_checks(settings)}


def test_a_machine_with_all_it_needs_passes(make_settings: MakeSettings) -> None:
    checks = found(make_settings())
    assert [check for check in checks.values() if not check.ok] == []
    assert set(checks) >= {"gpu", "ffmpeg", "scratch", "model", "memory", "recipe", "storage"}
    require(make_settings())


def test_a_start_that_fails_is_one_line_that_says_why(make_settings: MakeSettings) -> None:
    (check,) = start_checks(make_settings(interpolation="rife"), Startup())
    assert (check.what, check.level) == ("start", "fail") and "WAN_RIFE_WEIGHTS" in check.found


def broken_model(tiny_cache: Path, folder: Path, *, cut: bool) -> Path:
    shutil.copytree(tiny.build("wan-tiny", tiny_cache / "whole" / "wan-tiny"), folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    if cut:
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    return folder


@pytest.mark.parametrize(
    ("fault", "what", "advice"),
    [
        ("device", "gpu", "Set it to `auto` or `cpu`"),
        ("scratch", "scratch", "Set WAN_SCRATCH_DIR"),
        ("full", "scratch", "Make room"),
        ("model", "model", "Fetch or copy them again"),
        ("cut", "model", "Fetch or copy them again"),
        ("absent", "model", "python -m wan_engine download"),
        ("bucket", "storage", "correct BUCKET_ENDPOINT_URL or open the network"),
        ("folder", "storage", "set WAN_OUTPUT_DIR"),
        ("guidance", "settings", "Set both to 1"),
    ],
)
def test_a_fault_is_found_and_says_what_to_do(
    make_settings: MakeSettings,
    tiny_cache: Path,
    tmp_path: Path,
    fault: str,
    what: str,
    advice: str,
) -> None:
    (tmp_path / "file").touch()
    wrong: dict[str, Any] = {
        "device": lambda: {"device": "cuda:7"},
        "scratch": lambda: {"scratch_dir": tmp_path / "absent"},
        "full": lambda: {"scratch_min_gb": 10**6},
        "model": lambda: {"model": str(broken_model(tiny_cache, tmp_path / "m", cut=False))},
        "cut": lambda: {"model": str(broken_model(tiny_cache, tmp_path / "m", cut=True))},
        "absent": lambda: {"model": "wan2.2-ti2v-5b"},
        "bucket": lambda: {
            "bucket_endpoint_url": "http://127.0.0.1:1/clips",
            "bucket_access_key_id": "id",
            "bucket_secret_access_key": "key",
        },
        "folder": lambda: {"output_dir": tmp_path / "file" / "outputs"},
        "guidance": lambda: {"guidance_scale": 1, "guidance_scale_2": 3},
    }
    settings = make_settings(**wrong[fault]())
    failed = [check for check in found(settings).values() if not check.ok]
    assert [check.what for check in failed] == [what]
    assert advice in failed[0].found
    with pytest.raises(ConfigurationError, match=what):
        require(settings)


@pytest.mark.parametrize(
    ("gpu", "ok"),
    [
        (Gpu("RTX 4090", 25.3, (8, 9)), True),
        (Gpu("RTX 4080", 17.0, (8, 9)), False),
        (Gpu("V100", 34.0, (7, 0)), False),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_a_card_must_hold_the_model(
    make_settings: MakeSettings,
    tiny_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu: Gpu,
    ok: bool,
) -> None:
    monkeypatch.setattr("wan_engine.acceleration.detect", lambda _: gpu)
    folder = tmp_path / "models" / "wan2.2-ti2v-5b"
    shutil.copytree(tiny.build("wan-tiny-ti2v", tiny_cache / "whole" / "wan-tiny-ti2v"), folder)
    settings = make_settings(model="wan2.2-ti2v-5b", models_dir=folder.parent)
    check = found(settings)["memory"]
    assert check.ok == ok and "wan2.2-ti2v-5b needs 18 GB" in check.found
