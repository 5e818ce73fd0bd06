"""Compiled code from one start to the next, through processes that share nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wan_engine import Settings
from wan_engine.runtime import compile_cache
from wan_engine.runtime.recipes import Gpu, Recipe

_PROCESS = """
import json, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from wan_engine.runtime.compile_cache import Kept

torch.set_num_threads(1)
kept = Kept(Path(sys.argv[1]))
wave = torch.compile(lambda x: torch.sin(x).mul(2).add(1))
assert torch.allclose(wave(torch.ones(8)), torch.sin(torch.ones(8)) * 2 + 1)
kept.keep()
cache = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}
print(json.dumps({"found": kept.found, **cache}))
"""


def started(path: Path, inductor: Path) -> dict[str, Any]:
    """What a process with an empty cache of its own had to compile."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(inductor), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PROCESS, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_later_start_compiles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "volume" / "torch.bin"
    assert started(path, tmp_path / "first") == {"found": False, "hit": 0, "miss": 1}
    assert started(path, tmp_path / "second") == {"found": True, "hit": 1, "miss": 0}
    assert [entry.name for entry in path.parent.iterdir()] == ["torch.bin"]


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "torch.bin"
    path.write_bytes(b"not what torch wrote")
    assert started(path, tmp_path / "first") == {"found": False, "hit": 0, "miss": 1}
    assert path.stat().st_size > 1000


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.compiler.save_cache_artifacts", lambda: (b"compiled", None))
    (tmp_path / "file").write_text("no folder")
    compile_cache.Kept(tmp_path / "file" / "torch.bin").keep()
    assert "is not kept" in caplog.text


def test_torch_without_a_place_for_its_code_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "torch.bin"
    started(path, tmp_path / "first")
    (tmp_path / "file").touch()
    program = (
        "import sys; from wan_engine.runtime.compile_cache import Kept; from pathlib import Path\n"
    )
    program += "kept = Kept(Path(sys.argv[1])); kept.keep(); print(kept.found)"
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "False\n", done.stderr
    assert "cannot be used: compiling anew" in done.stderr


@pytest.mark.parametrize(
    ("gpu", "recipe"),
    [
        (Gpu("H100", 85.0, (9, 0)), Recipe("cuda", "bfloat16", compiled=True)),
        (Gpu("H200", 150.1, (9, 0)), Recipe("cuda", "bfloat16", compiled=True, float8=True)),
    ],
)
def test_another_card_or_recipe_has_a_file_of_its_own(
    gpu: Gpu, recipe: Recipe, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    known = compile_cache.file_for(
        settings, Gpu("H200", 150.1, (9, 0)), Recipe("cuda", "bfloat16", compiled=True)
    )
    assert compile_cache.file_for(settings, gpu, recipe) != known


def test_the_file_is_on_the_volume_where_there_is_one(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    settings = make_settings(models_dir=volume / "models", cache_dir=tmp_path / "cache")
    assert compile_cache.folder(settings) == tmp_path / "cache" / "compiled"
    (volume / "models").mkdir(parents=True)
    assert compile_cache.folder(settings) == volume / "compiled"
    named = make_settings(compile_cache_dir=tmp_path / "named")
    assert compile_cache.folder(named) == tmp_path / "named"
