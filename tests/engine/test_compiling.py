"""Blocks that cannot be compiled run uncompiled, unless the settings require compiling."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.engine.clips import (
    RequestFor,
    frame_hashes,
    local,
)
from wan_engine import Engine
from wan_engine.errors import (
    CompileFailed,
)


@pytest.fixture
def engine(unloaded: Engine) -> Engine:
    """A family that reads its weights when it first needs them."""
    return unloaded


def test_without_an_importable_compiler_blocks_run_uncompiled(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/tmp/torchinductor_wan")

    monkeypatch.setattr("diffusers.WanTransformer3DModel.compile_repeated_blocks", fails)
    engine.pool.main.recipe = replace(engine.recipe, compiled=True)
    engine.load()
    assert not engine.recipe.compiled
    assert "uncompiled, slower: PermissionError" in engine.pool.main.recipe_reason
    assert "uncompiled, slower: PermissionError" in caplog.text
    engine.pool.main.family = None
    engine.pool._settings = engine.settings.model_copy(update={"compile": "required"})
    engine.pool.main.recipe = replace(engine.recipe, compiled=True)
    with pytest.raises(CompileFailed):
        engine.load()


@pytest.mark.system
def test_blocks_that_stop_compiling_in_a_later_job_run_uncompiled(
    engine: Engine, request_for: RequestFor, caplog: pytest.LogCaptureFixture
) -> None:
    """Uses torch's own tracer with a backend that fails."""
    eager = frame_hashes(local(engine.generate(request_for()).video_url))
    broken = threading.Event()
    compiled = []

    def backend(graph: Any, _inputs: Any) -> Any:
        if broken.is_set():
            raise OSError(28, "No space left on device")
        compiled.append(graph)
        return graph.forward

    family: Any = engine.load()
    for expert in (family.pipeline.transformer, family.pipeline.transformer_2):
        expert.compile_repeated_blocks(fullgraph=True, dynamic=True, backend=backend)
    family._compiled, engine.pool.main.recipe = True, replace(engine.recipe, compiled=True)
    engine.generate(request_for())
    assert compiled and engine.recipe.compiled and "compiling failed" not in caplog.text
    torch.compiler.reset()
    broken.set()
    again = engine.generate(request_for())
    assert frame_hashes(local(again.video_url)) == eager
    assert not engine.recipe.compiled and "compiling failed: OSError" in caplog.text
    assert "No space left on device" in engine.pool.main.recipe_reason
