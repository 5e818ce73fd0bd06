"""The checks of `doctor` and of a worker's start: each fault says what is wrong and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wan_engine import Settings, toy
from wan_engine.checks import Check, machine_checks, require, start_checks
from wan_engine.engine import Engine
from wan_engine.errors import ConfigurationError
from wan_engine.runtime.recipes import Gpu
from wan_engine.runtime.startup import Startup

MakeSettings = Callable[..., Settings]


def found(settings: Settings) -> dict[str, Check]:
    return {check.what: check for check in machine_checks(settings)}


def test_a_complete_machine_passes(make_settings: MakeSettings) -> None:
    checks = found(make_settings())
    assert [check for check in checks.values() if not check.ok] == []
    assert set(checks) >= {"gpu", "ffmpeg", "scratch", "model", "memory", "recipe", "storage"}
    require(make_settings())


def test_a_failed_start_is_one_line_that_says_why(make_settings: MakeSettings) -> None:
    (check,) = start_checks(make_settings(interpolation="rife"), Startup())
    assert (check.what, check.level) == ("start", "fail") and "WAN_RIFE_WEIGHTS" in check.found


def broken_model(tiny_cache: Path, folder: Path, *, cut: bool) -> Path:
    shutil.copytree(toy.build("wan-tiny", tiny_cache / "whole" / "wan-tiny"), folder)
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
    monkeypatch.setattr("wan_engine.runtime.recipes.detect", lambda _: gpu)
    folder = tmp_path / "models" / "wan2.2-ti2v-5b"
    shutil.copytree(toy.build("wan-tiny-ti2v", tiny_cache / "whole" / "wan-tiny-ti2v"), folder)
    settings = make_settings(model="wan2.2-ti2v-5b", models_dir=folder.parent)
    check = found(settings)["memory"]
    assert check.ok == ok and "wan2.2-ti2v-5b needs 18 GB" in check.found


# --- checks of the Runpod loop --------------------------------------------------------------------


def bare(make_settings: MakeSettings, tmp_path: Path, **overrides: Any) -> Settings:
    """A machine with neither model, classifiers nor bucket."""
    absent = {"safety_prompt_model": str(tmp_path / "no"), "safety_image_model": "no/model"}
    return make_settings(**{"model": "auto", **absent, **overrides})


def test_a_worker_reports_everything_that_is_missing_at_once(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = bare(make_settings, tmp_path, scratch_dir=tmp_path / "absent")
    rows = machine_checks(settings, worker=True)
    assert [row.what for row in rows if row.level == "fail"] == [
        "scratch",
        "model",
        "storage",
        "safety",
    ]
    with pytest.raises(ConfigurationError) as caught:
        require(settings, worker=True)
    told = str(caught.value)
    assert told.startswith("4 things are missing or wrong:\n- scratch: ")
    for word in ("WAN_SCRATCH_DIR", "BUCKET_ENDPOINT_URL", str(tmp_path / "no"), "no/model"):
        assert word in told


def test_a_worker_with_part_of_the_bucket_settings_reports_the_rest(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings(bucket_endpoint_url="https://s3.example.com/clips")
    row = {row.what: row for row in machine_checks(settings, worker=True)}["storage"]
    assert row.level == "fail"
    assert "Set BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY, or WAN_STORAGE" in row.found


def test_the_list_fails_where_the_engine_of_a_worker_would(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """The list refuses everything that the constructor refuses."""
    cases: list[dict[str, Any]] = [
        {},
        {"storage": "local"},
        {"storage": "local", "model": "wan-tiny"},
        {"storage": "local", "model": "wan-tiny", "safety": "auto"},
        {"storage": "local", "model": "wan-tiny", "safety": "off"},
        {"storage": "s3", "model": "wan-tiny", "safety": "off"},
    ]
    for worker in (False, True):
        for case in cases:
            settings = bare(make_settings, tmp_path, **case)
            assert refuses(lambda s=settings, w=worker: require(s, worker=w)) == refuses(
                lambda s=settings, w=worker: Engine(s, serverless=w)
            )


def refuses(work: Callable[[], object]) -> bool:
    try:
        work()
    except ConfigurationError:
        return True
    return False


def test_a_working_setting_that_breaks_a_promise_is_a_warning(
    make_settings: MakeSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = bare(make_settings, tmp_path, models_dir=tmp_path / "absent")
    rows = {row.what: row for row in machine_checks(settings)}
    warned = [row.what for row in rows.values() if row.level == "warn"]
    assert warned == ["folders", "model", "prompts", "safety"]
    assert "a toy" in rows["model"].found and "which does not exist" in rows["folders"].found
    require(settings)
    assert "safety: prompts are not checked" in caplog.text
    settings = make_settings(storage="local")
    rows = {row.what: row for row in machine_checks(settings, worker=True)}
    assert rows["storage"].level == "warn" and "lost with this worker" in rows["storage"].found


@pytest.mark.parametrize(
    ("setting", "level", "variable"),
    [
        ("models_dir", "fail", "WAN_MODELS_DIR"),
        ("cache_dir", "warn", "WAN_CACHE_DIR"),
        ("compile_cache_dir", "warn", "WAN_COMPILE_CACHE_DIR"),
    ],
)
def test_a_file_in_place_of_a_folder_is_reported(
    make_settings: MakeSettings, tmp_path: Path, setting: str, level: str, variable: str
) -> None:
    (tmp_path / "file").touch()
    row = found(make_settings(**{setting: tmp_path / "file"}))["folders"]
    assert row.level == level and variable in row.found and str(tmp_path / "file") in row.found


@pytest.mark.parametrize(
    "setting",
    [
        "scratch_dir",
        "output_dir",
        "spool_dir",
        "models_dir",
        "cache_dir",
        "compile_cache_dir",
        "rife_weights",
        "upscale_weights",
    ],
)
@pytest.mark.parametrize("path", ["/proc/x", "a" * 300, "nul\0", "~nobody-of-that-name/x"])
def test_no_path_of_a_setting_fails_more_than_its_row(
    make_settings: MakeSettings, setting: str, path: str
) -> None:
    settings = make_settings(**{setting: Path(path)})
    rows = {row.what: row for row in machine_checks(settings)}
    assert set(rows) >= {"model", "storage", "safety"}  # the other rows are still checked
    if setting != "models_dir":
        assert any(row.level != "ok" and row.what in ROWS[setting] for row in rows.values())


ROWS = {
    "scratch_dir": ("scratch",),
    "output_dir": ("storage",),
    "spool_dir": ("storage",),
    "cache_dir": ("folders", "model"),
    "compile_cache_dir": ("folders",),
    "rife_weights": ("fps",),
    "upscale_weights": ("upscale",),
}


def test_an_unread_variable_is_reported_with_the_nearest_name(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(make_settings())["variables"].level == "ok"
    monkeypatch.setenv("WAN_MODLE", "wan-tiny")
    monkeypatch.setenv("wan_steps", "4")  # read in any case
    monkeypatch.setenv("BUCKET_ENDPOINT", "x")
    monkeypatch.setenv("WAN_XYZZY", "x")
    row = found(make_settings())["variables"]
    assert row.level == "warn" and row.found == (
        "BUCKET_ENDPOINT is not known, did you mean BUCKET_ENDPOINT_URL?; "
        "WAN_MODLE is not known, did you mean WAN_MODEL?; WAN_XYZZY is not known"
    )
