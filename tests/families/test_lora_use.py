"""LoRA files where they are used: the engine, the checks at a start, prepared sets."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from diffusers import WanTransformer3DModel

from builder import prepare
from tests.engine.clips import SMALLEST, few_frames
from tests.families.lora_files import BIAS, DIFFERENCE, FITS, K, save
from wan_engine import Settings, VideoRequest, toy
from wan_engine.catalog import CATALOG, HubLora
from wan_engine.checks import Check, machine_checks
from wan_engine.errors import ConfigurationError
from wan_engine.families import load_family, tensors
from wan_engine.families.float8 import convert_blocks
from wan_engine.media import ffmpeg
from wan_engine.runtime.recipes import Recipe
from wan_engine.settings import OwnLora
from wan_engine.weights import LocatedLora

MakeSettings = Callable[..., Settings]
NORM = "diffusion_model.blocks.0.norm3.diff"


def frames_with(make_settings: MakeSettings, data: Path, path: Path) -> bytes:
    """The pixels of a clip, as `generate` makes it."""
    settings = make_settings(**SMALLEST, steps=1, lora=(OwnLora(path=path),), upscale="lanczos")
    engine = few_frames(settings)
    image = "data:image/jpeg;base64," + base64.b64encode(
        (data / "rocket_640x360.jpg").read_bytes()
    ).decode("ascii")
    request = VideoRequest.parse({"prompt": "lift-off", "image": image, "seed": 3})
    clip = unquote(urlsplit(engine.generate(request).video_url).path)
    command = [ffmpeg.executable(), "-v", "error", "-i", clip, "-f", "rawvideo", "-"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_the_difference_of_a_norm_changes_the_clip(
    make_settings: MakeSettings, tmp_path: Path, data: Path
) -> None:
    clips = []
    for strength in (0, 3):
        path = tmp_path / f"{strength}.safetensors"
        save({**FITS, NORM: strength * BIAS}, path)
        clips.append(frames_with(make_settings, data, path))
    assert len(clips[0]) == len(clips[1]) > 0
    assert clips[0] != clips[1]


def rows(settings: Settings) -> list[Check]:
    return [check for check in machine_checks(settings) if check.what == "lora"]


def test_doctor_has_a_row_for_each_file(make_settings: MakeSettings, tmp_path: Path) -> None:
    save({**FITS, NORM: BIAS}, tmp_path / "good.safetensors")
    save({**FITS, "blocks.9.modulation.diff": BIAS}, tmp_path / "more.safetensors")
    (tmp_path / "page.safetensors").write_text("<html>Sign in</html>")
    save({f"{K}.diff": DIFFERENCE * float("nan")}, tmp_path / "nan.safetensors")
    files = ("good", "more", "page", "nan")
    asked = [OwnLora(path=tmp_path / f"{name}.safetensors", scale=0.5) for name in files]
    found = rows(make_settings(lora=(*asked, OwnLora(path=asked[0].path, expert="low"))))
    assert [row.ok for row in found] == [True, False, False, False, True]
    said = [row.found for row in found]
    assert said[0] == (
        "good.safetensors at 0.5 into high and low: differences, low-rank, 3 of 3 weights, "
        "2 + 2 layers"
    )
    assert "blocks.*.modulation.diff: this model has no such layer" in said[1]
    assert said[2].endswith("it is a web page, as a link that needs a login gives one")
    assert f"{K}.diff has numbers that are not finite" in said[3]
    assert said[4].startswith("good.safetensors at 1 into low: ")
    (allowed,) = rows(make_settings(lora=(asked[1],), lora_unused=0.4))
    assert allowed.ok and allowed.found.endswith("not used: blocks.*.modulation.diff")


def test_errors_are_reported_before_the_weights_are_read(
    load: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save({**FITS, "blocks.9.modulation.diff": BIAS}, tmp_path / "a.safetensors")

    def read(*_: Any, **__: Any) -> Any:
        pytest.fail("the weights were read")

    monkeypatch.setattr(tensors, "read", read)
    with pytest.raises(ConfigurationError, match="WAN_LORA_UNUSED"):
        load("wan-tiny", (LocatedLora(tmp_path / "a.safetensors", 1.0, "both"),))


def test_unused_keys_are_logged(
    load: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save({**FITS, "blocks.9.modulation.diff": BIAS}, tmp_path / "a.safetensors")
    with caplog.at_level("INFO", "wan_engine"):
        load("wan-tiny", (LocatedLora(tmp_path / "a.safetensors", 1.0, "both", 0.5),))
    [line] = [record.getMessage() for record in caplog.records if "fused" in record.getMessage()]
    assert "2 of 3 weights" in line and line.endswith("not used: blocks.*.modulation.diff")


def test_nothing_is_added_to_a_set_in_float8(
    load: Callable[..., Any], tiny_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "float8"
    shutil.copytree(toy.build("wan-tiny", tiny_cache / "wan-tiny"), folder)
    network = WanTransformer3DModel.from_pretrained(folder / "transformer")
    convert_blocks(network, torch.device("cpu"))
    network.save_pretrained(folder / "transformer")
    save(FITS, tmp_path / "a.safetensors")
    file = LocatedLora(tmp_path / "a.safetensors", 1.0, "both")
    with pytest.raises(ConfigurationError, match=r"a\.safetensors is not fused: .* in float8"):
        load_family(CATALOG["wan-tiny"], folder, Recipe("cpu", "float32"), (file,))


def test_a_prepared_set_has_all_of_a_file_in_it(
    make_settings: MakeSettings, tmp_path: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "wan2.2-i2v-a14b-4step"
    file = HubLora("me/l", "both.safetensors", None, "both", 0.5)
    monkeypatch.setitem(CATALOG, name, replace(CATALOG[name], loras=(file,)))  # type: ignore[misc]
    models = tmp_path / "models"
    shutil.copytree(toy.build("wan-tiny", tiny_cache / "wan-tiny"), models / "wan2.2-i2v-a14b")
    (models / "loras").mkdir()
    save({**FITS, NORM: BIAS}, models / "loras" / "both.safetensors")
    told: list[str] = []
    target = models / name
    prepare.prepare(
        name, target, make_settings(models_dir=models), told.append, precision="float32"
    )
    assert "both.safetensors at 0.5 into high and low: differences, low-rank" in "".join(told)
    for expert in ("transformer", "transformer_2"):
        before, after = (
            dict(WanTransformer3DModel.from_pretrained(folder / expert).named_parameters())
            for folder in (models / "wan2.2-i2v-a14b", target)
        )
        changed = [name for name, one in before.items() if not torch.equal(after[name], one)]
        assert changed == ["blocks.0.attn1.to_q.weight", "blocks.0.norm2.weight"]
        added = after["blocks.0.norm2.weight"] - before["blocks.0.norm2.weight"]
        assert torch.allclose(added, 0.5 * BIAS, atol=1e-6)
