"""Prepared sets of weights: they give the same frames as loading and fusing, and no partial set is
left."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from builder import prepare
from tests import warm
from wan_engine import toy, weights
from wan_engine.catalog import CATALOG, HubLora, ModelSpec
from wan_engine.errors import ConfigurationError
from wan_engine.families import float8, load_family, loading
from wan_engine.families.float8 import convert_blocks
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import FirstPicture, SegmentInput
from wan_engine.settings import Settings
from wan_engine.weights import files, manifest

ROOT = Path(__file__).parents[2]
NAME = "wan2.2-i2v-a14b-4step"
BLOCK = "blocks.0.attn1.to_q.weight"


def lora(path: Path, seed: int) -> None:
    """A LoRA for one projection, with the keys of the distilled pair."""
    generator = torch.Generator().manual_seed(seed)
    key = "diffusion_model.blocks.0.self_attn.q"
    down, up = torch.randn(2, 24, generator=generator), torch.randn(24, 2, generator=generator)
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, path)


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The four-step row with a pair of small LoRA files made for this test."""
    pair = (
        HubLora("me/l", "high.safetensors", None, "high"),
        HubLora("me/l", "low.safetensors", None, "low", 0.5),
    )
    row = replace(CATALOG[NAME], loras=pair)
    monkeypatch.setitem(CATALOG, NAME, row)  # type: ignore[misc]
    return row


@pytest.fixture
def settings(
    row: ModelSpec,
    tiny_cache: Path,
    tmp_path: Path,
    make_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """A models folder with the LoRA pair, and a tiny checkpoint in place of the published one."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(files, "RUNPOD_HUB_CACHE", tmp_path / "runpod")
    models = tmp_path / "models"
    shutil.copytree(toy.build("wan-tiny", tiny_cache / "wan-tiny"), models / "wan2.2-i2v-a14b")
    (models / "loras").mkdir()
    lora(models / "loras" / "high.safetensors", seed=1)
    lora(models / "loras" / "low.safetensors", seed=2)
    return make_settings(models_dir=models)


def nothing(_: str) -> None:
    """A progress callback that ignores its argument."""


def loaded(located: weights.Located, dtype: str) -> Any:
    return load_family(located.spec, located.folder, Recipe("cpu", dtype), located.loras)


def frames(family: Any) -> np.ndarray[Any, Any]:
    image = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    segment = SegmentInput(
        prompt="a rocket rises",
        negative_prompt="",
        conditions=(FirstPicture(image),),
        width=64,
        height=64,
        frames=5,
        seed=7,
    )
    latents = family.denoise(segment, lambda _: None)
    return np.concatenate(list(family.decode(latents)))


@pytest.mark.system
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prepared_set_gives_the_frames_of_loading_and_fusing(
    row: ModelSpec, settings: Settings, dtype: prepare.Precision
) -> None:
    before = weights.locate(row, settings)
    assert before is not None and len(before.loras) == 2
    expected = frames(loaded(before, dtype))
    assert not np.array_equal(frames(loaded(replace(before, loras=()), dtype)), expected)
    told: list[str] = []
    target = settings.models_dir / NAME
    assert prepare.prepare(NAME, target, settings, told.append, precision=dtype) == target
    assert "transformer_2: " + dtype + ", 1 LoRA files" in told
    shutil.rmtree(settings.models_dir / "loras")
    shutil.rmtree(settings.models_dir / "wan2.2-i2v-a14b")
    after = weights.locate(row, settings)
    assert after == weights.Located(row, target, ())
    assert np.array_equal(frames(loaded(after, dtype)), expected)


def converted(family: Any) -> dict[str, Any]:
    """The parameters of both experts, with their blocks in float8 as at a worker's start."""
    found = {}
    for name in ("transformer", "transformer_2"):
        expert = getattr(family.pipeline, name)
        convert_blocks(expert, torch.device("cpu"))
        found |= {f"{name}.{key}": one for key, one in expert.named_parameters()}
    return found


def test_an_fp8_set_equals_to_the_bit_what_a_worker_makes_of_the_weights(
    row: ModelSpec, settings: Settings
) -> None:
    expected = converted(loaded(weights.resolve(NAME, settings), "bfloat16"))
    ready = prepare.prepare(NAME, settings.models_dir / "ready", settings, nothing, fp8=True)
    made = manifest.read(ready)
    assert made is not None and made.precision == "float8_e4m3fn"
    located = weights.resolve(str(ready), settings)
    float8.check(torch.device("cpu"))  # otherwise blocks would be bfloat16
    # No recipe uses float8 on the CPU.
    recipe = Recipe("cpu", "bfloat16")
    object.__setattr__(recipe, "float8", True)
    family = load_family(located.spec, located.folder, recipe, located.loras)
    found = converted(family)  # there is nothing left to convert
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key].float(), tensor.float()), key
    assert any(one.dtype == torch.float8_e4m3fn for one in found.values())


@pytest.mark.system
def test_an_fp8_set_takes_half_the_bytes_and_is_widened_for_bfloat16(
    row: ModelSpec, settings: Settings
) -> None:
    expected = loaded(weights.resolve(NAME, settings), "bfloat16").pipeline.transformer_2
    full = prepare.prepare(NAME, settings.models_dir / "full", settings, nothing)
    ready = prepare.prepare(NAME, settings.models_dir / "ready", settings, nothing, fp8=True)
    sizes = []
    for folder in (full, ready):
        path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        with safe_open(path, "pt") as file:
            sizes.append(file.get_tensor(BLOCK).nbytes)
            assert file.get_tensor("blocks.0.attn1.to_q.bias").dtype is torch.bfloat16
    assert sizes[1] * 2 == sizes[0]
    after = loaded(weights.resolve(str(ready), settings), "bfloat16").pipeline.transformer_2
    query, before = (one.blocks[0].attn1.to_q.weight for one in (after, expected))
    values, scale = float8.to_float8(before)
    assert query.dtype is torch.bfloat16
    assert torch.equal(query, (values.float() * scale).bfloat16())
    error = (query.float() - before.float()).norm() / before.float().norm()
    assert 0 < error < 0.04


def test_an_older_set_without_scales_is_read_too(row: ModelSpec, settings: Settings) -> None:
    ready = prepare.prepare(NAME, settings.models_dir / "ready", settings, nothing)
    path = ready / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    cast = state[BLOCK] = state[BLOCK].to(torch.float8_e4m3fn)
    save_file(state, path)
    pipeline = loading.load_pipeline(ready, Recipe("cpu", "bfloat16"))
    assert torch.equal(pipeline.transformer.get_parameter(BLOCK), cast.bfloat16())


def test_the_manifest_says_what_the_set_was_made_from(row: ModelSpec, settings: Settings) -> None:
    target = prepare.prepare(NAME, settings.models_dir / NAME, settings, nothing)
    made = manifest.read(target)
    assert made is not None
    assert (made.model, made.repo, made.revision) == (NAME, row.repo, row.revision)
    assert [(one.file, one.scale, one.expert) for one in made.fused] == [
        ("high.safetensors", 1.0, "high"),
        ("low.safetensors", 0.5, "low"),
    ]
    assert made.precision == "bfloat16" and made.made_with["torch"] == version("torch")
    weights.verify(target)


def test_an_existing_set_is_not_overwritten(settings: Settings, row: ModelSpec) -> None:
    target = settings.models_dir / NAME
    target.mkdir()
    with pytest.raises(ConfigurationError, match="exists already"):
        prepare.prepare(NAME, target, settings, nothing)


def test_a_failure_leaves_nothing_behind(
    settings: Settings, row: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "_describe", full)
    before = sorted(settings.models_dir.iterdir())
    with pytest.raises(OSError, match="No space"):
        prepare.prepare(NAME, settings.models_dir / NAME, settings, nothing)
    assert sorted(settings.models_dir.iterdir()) == before


def test_a_partial_set_of_a_killed_run_is_no_model_and_is_removed(
    settings: Settings, row: ModelSpec
) -> None:
    left = settings.models_dir / f".{NAME}.partial"
    shutil.copytree(settings.models_dir / "wan2.2-i2v-a14b", left)
    (left / "stale").touch()
    located = weights.locate(row, settings)
    assert located is not None and located.folder.name == "wan2.2-i2v-a14b"
    target = prepare.prepare(NAME, settings.models_dir / NAME, settings, nothing)
    assert not left.exists() and not (target / "stale").exists()


def test_two_processes_do_not_prepare_the_same_set(settings: Settings, row: ModelSpec) -> None:
    with (settings.models_dir / f".{NAME}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="Another process is preparing"):
            prepare.prepare(NAME, settings.models_dir / NAME, settings, nothing)


def test_a_disk_that_is_too_small_is_reported_before_anything_is_read(
    settings: Settings, row: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(settings.models_dir)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigurationError, match=r"needs 0\.0 GB and its disk has 0\.0 GB free"):
        prepare.prepare(NAME, settings.models_dir / NAME, settings, nothing)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "builder.prepare", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_has_an_example_and_says_what_is_missing(tmp_path: Path) -> None:
    shown = command("--help")
    assert shown.returncode == 0 and "python -m builder.prepare wan2.2" in shown.stdout
    done = command(NAME, "--out", str(tmp_path / "set"), WAN_MODELS_DIR=str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith("The files of wan2.2-i2v-a14b-4step")
    assert "Traceback" not in done.stderr and not (tmp_path / "set").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, tiny_cache: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "set"
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    environment["WAN_CACHE_DIR"] = str(tiny_cache)
    program = ["-m", "builder.prepare", "wan-tiny", "--out", str(target)]
    done = warm.shared().run(program, env=environment, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(f"{target} was not")


def test_without_locks_each_process_fills_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    told: list[str] = []
    target = tmp_path / "set"
    with (
        prepare._alone(target, told.append) as first,
        prepare._alone(target, told.append) as second,
    ):
        assert first != second and first.is_dir() and second.is_dir()
    assert str(first) in told[0] and list(tmp_path.iterdir()) == []
