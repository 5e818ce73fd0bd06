"""Runpod's Hub files: they are made from the settings, and their test is a job that works."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder import runpod_hub
from builder.gpu_table import CARDS, HOST
from tests.engine.clips import SMALLEST, few_frames
from wan_engine import VideoRequest
from wan_engine.catalog import CATALOG
from wan_engine.runtime.recipes import Gpu, choose, fits
from wan_engine.settings import Settings, described
from wan_engine.settings.gateway import GatewaySettings

ROOT = Path(__file__).parents[2]
ENTRIES: list[dict[str, Any]] = runpod_hub.hub()["config"]["env"]
TYPES = {"string", "number", "boolean"}


@pytest.mark.parametrize(
    ("name", "made"), [("hub.json", runpod_hub.hub()), ("tests.json", runpod_hub.tests())]
)
def test_the_file_is_what_the_code_makes(name: str, made: dict[str, Any]) -> None:
    written = (ROOT / ".runpod" / name).read_text("utf-8")
    assert written == runpod_hub.text(made), "run `make docs`, which writes it"


def test_the_required_fields_exist_with_the_right_types() -> None:
    hub = runpod_hub.hub()
    assert (hub["type"], hub["category"], hub["config"]["runsOn"]) == ("serverless", "video", "GPU")
    assert hub["title"] and hub["description"] and isinstance(hub["config"]["gpuCount"], int)
    assert isinstance(hub["config"]["containerDiskInGb"], int)
    assert all(isinstance(version, str) for version in hub["config"]["allowedCudaVersions"])
    for entry in ENTRIES:
        shown = entry["input"]
        assert shown["type"] in TYPES and shown["name"] and shown["description"]
        for option in shown.get("options", []):
            assert set(option) == {"label", "value"} and isinstance(option["value"], str)


def test_every_setting_is_on_the_form_or_left_out_by_name() -> None:
    keys = [entry["key"] for entry in ENTRIES]
    named = (*runpod_hub._LEFT_OUT, *GatewaySettings.model_fields, *runpod_hub._SELDOM)
    left_out = {runpod_hub.env_name(name) for name in named}
    assert len(keys) == len(set(keys))
    assert set(keys) | left_out == {row.variable for row in described()}
    assert not set(keys) & left_out and left_out <= {row.variable for row in described()}
    assert len(keys) <= 50  # the most that a Runpod template holds


def test_the_defaults_shown_are_those_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for entry in ENTRIES:
        value = entry["input"].get("default", "")
        if isinstance(value, bool):
            value = entry["input"]["trueValue" if value else "falseValue"]
        monkeypatch.setenv(entry["key"], str(value))
    assert Settings.load() == Settings()


def test_options_are_values_that_a_setting_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [entry for entry in ENTRIES if "options" in entry["input"]]
    assert {"WAN_SAFETY", "WAN_UPSCALE", "WAN_STORAGE"} <= {entry["key"] for entry in choices}
    for entry in choices:
        for option in entry["input"]["options"]:
            with monkeypatch.context() as patched:
                patched.setenv(entry["key"], option["value"])
                Settings.load()


def test_the_limits_of_a_number_are_values_that_its_setting_accepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {
        entry["key"]: {name: entry["input"].get(name) for name in ("min", "max")}
        for entry in ENTRIES
        if entry["input"]["type"] == "number"
    }
    assert limits["WAN_STEPS"] == {"min": 1, "max": 200}
    assert limits["WAN_STEP_CACHE"] == {"min": 0.01, "max": 0.99}  # it refuses 0 and 1
    assert limits["WAN_FLOW_SHIFT"] == {"min": 0.01, "max": 50}
    for key, pair in limits.items():
        for limit in pair.values():
            if limit is not None:
                with monkeypatch.context() as patched:
                    patched.setenv(key, str(limit))
                    Settings.load()


def test_a_label_has_the_usual_capitals() -> None:
    labels = {entry["key"]: entry["input"]["name"] for entry in ENTRIES}
    assert labels["WAN_LORA"] == "LoRA" and labels["WAN_PROMPT_API_KEY"] == "Prompt API key"
    assert labels["WAN_PROMPT_URL"] == "Prompt URL" and labels["WAN_JOB_SECONDS"] == "Job seconds"


def test_presets_name_models_of_the_catalogue_and_settings_that_exist() -> None:
    presets = {one["name"]: one["defaults"] for one in runpod_hub.hub()["config"]["presets"]}
    assert list(presets) == ["40-step A14B", "Fast four-step", "24 GB 5B", "Smoke"]
    variables = {row.variable for row in described()}
    for defaults in presets.values():
        assert defaults["WAN_MODEL"] in CATALOG and set(defaults) <= variables
    assert CATALOG[presets["Fast four-step"]["WAN_MODEL"]].steps == 4
    card = Gpu("a card of 24 GB", 24.0, (8, 9))
    recipe, _ = choose(CATALOG[presets["24 GB 5B"]["WAN_MODEL"]], card, Settings(), HOST)
    assert recipe.offload == "none"


@pytest.mark.parametrize(
    "preset", runpod_hub.hub()["config"]["presets"], ids=lambda one: one["name"]
)
@pytest.mark.parametrize("pool", runpod_hub.POOLS)
def test_every_presets_model_fits_every_listed_card(preset: dict[str, Any], pool: str) -> None:
    assert pool in runpod_hub.hub()["config"]["gpuIds"].split(",")
    spec = CATALOG[preset["defaults"]["WAN_MODEL"]]
    assert fits(spec, runpod_hub.POOLS[pool], HOST)


def test_a_card_that_is_not_listed_could_not_hold_a_preset() -> None:
    left_out = Gpu("RTX A5000", 25.3, (8, 6))  # of AMPERE_24
    models = [one["WAN_MODEL"] for one in runpod_hub._PRESETS.values()]
    assert not all(fits(CATALOG[name], left_out, HOST) for name in models)


def test_the_hubs_test_is_a_job_that_works_without_network_weights_and_bucket(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runpod_hub.tests()
    environment = {entry["key"]: entry["value"] for entry in made["config"]["env"]}
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    loaded = Settings.load()
    assert (loaded.model, loaded.storage) == ("wan-tiny", "local")
    [card] = [card.gpu for card in CARDS if card.gpu.name in made["config"]["gpuTypeId"]]
    recipe, _ = choose(CATALOG["wan-tiny"], card, loaded, HOST)
    assert (loaded.compile, recipe.compiled) == ("required", True)  # the path that real models take
    [test] = made["tests"]
    assert test["input"]["image"].startswith("data:") and test["timeout"] >= 300_000
    settings = make_settings(**SMALLEST, storage="local", compile="off")
    engine = few_frames(settings, serverless=True)
    output = engine.generate(VideoRequest.parse(test["input"])).output()
    assert output["video_url"].startswith("file://") and output["seed"] == test["input"]["seed"]


def test_both_files_are_json() -> None:
    for name in ("hub.json", "tests.json"):
        assert isinstance(json.loads((ROOT / ".runpod" / name).read_text("utf-8")), dict)
