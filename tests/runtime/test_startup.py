"""The parts of a cold start, and the work before the first job."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from wan_engine import Engine, Settings
from wan_engine.runtime import startup
from wan_engine.runtime.startup import Startup
from wan_engine.schema import FirstPicture, SegmentInput


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells")
def test_the_age_of_a_process_includes_the_time_before_the_import() -> None:
    program = "import time; time.sleep(0.5); from wan_engine.runtime import startup; "
    program += "print(startup.age_seconds())"
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.5 <= float(done.stdout) <= time.monotonic() - begun + 0.02  # a tick is 0.01 s


def test_without_proc_the_age_begins_with_the_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(startup, "_STAT", tmp_path / "absent")
    assert startup._age_now() == 0


def test_stages_add_up_to_the_age() -> None:
    found = Startup()
    for stage in ("imports", "model", "checks", "model"):
        time.sleep(0.01)
        found.done(stage)
    age = startup.age_seconds()
    assert list(found.stage_seconds) == ["imports", "model", "checks"]
    assert sum(found.stage_seconds.values()) == pytest.approx(found.seconds)
    assert age - 5 < found.seconds <= age
    assert found.stage_seconds["model"] >= 0.02
    shown = f"{found.seconds:.1f} s after its start (imports {found.stage_seconds['imports']:.1f}, "
    assert str(found).startswith(shown)


@pytest.mark.parametrize(("model", "passes"), [("wan-tiny", 1), ("wan-tiny-ti2v", 2)])
def test_a_gpu_is_warmed_up_by_a_short_clip_and_a_job_is_the_same_after_it(
    make_settings: Callable[..., Settings], model: str, passes: int
) -> None:
    engine = Engine(make_settings(model=model, render_area=3072))
    family: Any = engine.load()
    red = FirstPicture(Image.new("RGB", (64, 64), "red"))
    asked = SegmentInput("x", "", (red,), 64, 64, 5, seed=1)
    before = family.denoise(asked, lambda count: None)
    shapes: list[torch.Size] = []

    def note(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        shapes.append(given["hidden_states"].shape)

    hook = family.pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    engine.pool.warm_up(engine.limits)
    assert shapes == []  # on a CPU there is nothing to load
    engine.pool.main.recipe = replace(engine.recipe, device="cuda")
    engine.pool.warm_up(engine.limits)
    hook.remove()
    assert len(shapes) == passes * len(set(shapes)) > 0  # once for each step of an expert
    assert {shape[2] for shape in shapes} == {3}
    assert torch.equal(before, family.denoise(asked, lambda count: None))
