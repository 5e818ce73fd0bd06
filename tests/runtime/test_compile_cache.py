"""Compiled code is kept from one start to the next, through processes that share nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import warm
from wan_engine import Settings
from wan_engine.runtime import compile_cache
from wan_engine.runtime.recipes import Gpu, Recipe

ROOT = Path(__file__).parents[2]
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


def run(folder: Path, program: str, path: Path, inductor: Path) -> tuple[str, str]:
    """Both outputs of `program` run with `path`, in a process with its own cache in `inductor`."""
    script = folder / "program.py"
    script.write_text(program)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(inductor)}
    done = warm.shared().run([str(script), str(path)], env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def started(path: Path, inductor: Path) -> dict[str, Any]:
    """What a process with an empty cache had to compile."""
    found: dict[str, Any] = json.loads(run(inductor.parent, _PROCESS, path, inductor)[0])
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache file of a first start."""
    folder = tmp_path_factory.mktemp("kept")
    path = folder / "volume" / "torch.bin"
    assert started(path, folder / "first") == {"found": False, "hit": 0, "miss": 1}
    return path


@pytest.mark.system  # g++
def test_a_later_start_compiles_nothing(kept: Path, tmp_path: Path) -> None:
    assert started(kept, tmp_path / "second") == {"found": True, "hit": 1, "miss": 0}
    assert [entry.name for entry in kept.parent.iterdir()] == ["torch.bin"]


@pytest.mark.system  # g++
def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "torch.bin"
    path.write_bytes(b"not what torch wrote")
    assert started(path, tmp_path / "first") == {"found": False, "hit": 0, "miss": 1}
    assert path.stat().st_size > 1000


def compiled(patch: pytest.MonkeyPatch, keys: list[str], *, known: Sequence[str] = ()) -> None:
    """As if torch had compiled `keys` and read `known` from a file."""

    def told(names: Iterable[str]) -> SimpleNamespace:
        return SimpleNamespace(artifacts={"inductor": list(names)})

    patch.setattr("torch.compiler.save_cache_artifacts", lambda: (b"compiled", told(keys)))
    patch.setattr("torch.compiler.load_cache_artifacts", lambda _: told(known))


@pytest.mark.parametrize(
    ("keys", "written"), [(["a"], False), (["a", "b"], False), (["a", "c"], True)]
)
def test_code_that_had_to_be_compiled_again_is_written_too(
    keys: list[str], written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "torch.bin"
    path.write_bytes(b"of an earlier start")
    compiled(monkeypatch, keys, known=["a", "b"])
    kept = compile_cache.Kept(path)
    assert kept.found
    kept.keep()
    assert (path.read_bytes() == b"compiled") is written


def test_a_folder_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled(monkeypatch, ["a"])
    (tmp_path / "file").write_text("no folder")
    compile_cache.Kept(tmp_path / "file" / "torch.bin").keep()
    assert "is not kept" in caplog.text


@pytest.mark.system  # g++
def test_torch_without_a_cache_folder_is_no_error(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = (
        "import sys; from wan_engine.runtime.compile_cache import Kept; from pathlib import Path\n"
    )
    program += "kept = Kept(Path(sys.argv[1])); kept.keep(); print(kept.found)"
    out, err = run(tmp_path, program, kept, tmp_path / "file" / "cache")
    assert out == "False\n", err
    assert "cannot be used: compiling anew" in err


@pytest.mark.parametrize(
    ("gpu", "recipe"),
    [
        (Gpu("H100", 85.0, (9, 0)), Recipe("cuda", "bfloat16", compiled=True)),
        (Gpu("H200", 150.1, (9, 0)), Recipe("cuda", "bfloat16", compiled=True, float8=True)),
    ],
)
def test_another_card_or_recipe_has_its_own_file(
    gpu: Gpu, recipe: Recipe, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    known = compile_cache.file_for(
        settings, Gpu("H200", 150.1, (9, 0)), Recipe("cuda", "bfloat16", compiled=True)
    )
    assert compile_cache.file_for(settings, gpu, recipe) != known


def test_each_model_and_version_has_its_own_file(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def file(model: str) -> Path:
        recipe = Recipe("cuda", "bfloat16", compiled=True)
        return compile_cache.file_for(make_settings(), Gpu("H200", 150.1, (9, 0)), recipe, model)

    files = {file("wan2.2-i2v-a14b"), file("wan2.2-ti2v-5b")}
    for package in ("diffusers", "triton"):
        with monkeypatch.context() as patch:
            patch.setattr(
                compile_cache, "version", lambda name, package=package: f"{name == package}"
            )
            files.add(file("wan2.2-i2v-a14b"))
    assert len(files) == 4


def test_the_file_is_on_the_volume_if_there_is_one(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    settings = make_settings(models_dir=volume / "models", cache_dir=tmp_path / "cache")
    assert compile_cache.folder(settings) == tmp_path / "cache" / "compiled"
    (volume / "models").mkdir(parents=True)
    assert compile_cache.folder(settings) == volume / "compiled"
    named = make_settings(compile_cache_dir=tmp_path / "named")
    assert compile_cache.folder(named) == tmp_path / "named"
