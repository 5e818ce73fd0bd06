"""The LoRA files that the gateway knows of, by name, while the folder changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from wan_engine import weights
from wan_engine.gateway.backends.lora_names import LoraNames
from wan_engine.schema import Task
from wan_engine.settings import Settings
from wan_engine.weights import Located

LAYER = "diffusion_model.blocks.0.self_attn.q"


def lora(path: Path, width: int = 24) -> None:
    """A file for `wan-tiny`, or of another `width` for none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = np.full((2, width), 0.3, np.float32)
    save_file({f"{LAYER}.lora_A.weight": half, f"{LAYER}.lora_B.weight": half.T.copy()}, path)


@pytest.fixture
def models(make_settings: Callable[..., Settings]) -> dict[Task, Located]:
    found = weights.configured(make_settings(), lambda _spec: True, fallback=True)
    return {task: located for task, (located, _) in found.items()}


def test_names_are_told_for_the_model_that_takes_them_and_again_when_the_folder_changes(
    make_settings: Callable[..., Settings], models: dict[Task, Located], tmp_path: Path
) -> None:
    folder, told = tmp_path / "loras", list[dict[str, Any]]()
    for name in ("people/anna", "motion-high", "motion-low"):
        lora(folder / f"{name}.safetensors")
    lora(folder / "other.safetensors", width=48)
    names = LoraNames(make_settings(lora_dir=folder), models, told.append)
    names.look()
    fit = ["motion", "motion-high", "motion-low", "people/anna"]
    assert told == [{"told": "loras", "loras": {"image-to-video": fit}}]
    names.look()
    assert len(told) == 1
    (folder / "people" / "anna.safetensors").unlink()
    lora(folder / "bob.safetensors")
    names.look()
    assert told[1]["loras"] == {"image-to-video": ["bob", *fit[:3]]}
    assert str(tmp_path) not in str(told)


def test_a_folder_that_is_gone_has_no_names(
    make_settings: Callable[..., Settings], models: dict[Task, Located], tmp_path: Path
) -> None:
    folder, told = tmp_path / "loras", list[dict[str, Any]]()
    lora(folder / "anna.safetensors")
    names = LoraNames(make_settings(lora_dir=folder), models, told.append)
    names.look()
    (folder / "anna.safetensors").unlink()
    folder.rmdir()
    names.look()
    names.look()
    assert [one["loras"] for one in told[1:]] == [{}]
