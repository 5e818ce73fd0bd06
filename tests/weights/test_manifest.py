"""A manifest beside weights: its entries, the missing or damaged files that it finds, and what is
fused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from wan_engine import toy, weights
from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.errors import ModelMissing
from wan_engine.settings import Settings
from wan_engine.weights import files, manifest
from wan_engine.weights.manifest import Fused, Manifest

MakeSettings = Callable[..., Settings]
FAST = CATALOG["wan2.2-i2v-a14b-4step"]
QUALITY = CATALOG["wan2.2-i2v-a14b"]
SVI = CATALOG["wan2.2-i2v-a14b-4step-svi"]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def checkpoint(tiny_cache: Path, tmp_path: Path) -> Path:
    """A copy of a tiny checkpoint."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(toy.build("wan-tiny", tiny_cache / "wan-tiny"), folder)
    return folder


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(files, "RUNPOD_HUB_CACHE", tmp_path / "runpod")
    return tmp_path / "models"


def write(folder: Path, row: ModelSpec = QUALITY, fused: ModelSpec | None = None) -> Manifest:
    """A manifest of the files in `folder`, with the LoRA files of `fused`."""
    loras = fused.loras if fused else ()
    made = Manifest(
        row.name,
        row.repo,
        row.revision,
        manifest.list_files(folder),
        tuple(Fused(Path(a.path).name, a.sha256 or "0" * 64, a.scale, a.expert) for a in loras),
    )
    made.write(folder)
    return made


def test_a_manifest_is_read_as_it_was_written(checkpoint: Path) -> None:
    made = write(checkpoint, FAST, fused=FAST)
    assert manifest.read(checkpoint) == made and len(made.fused) == 2
    listed = {file.path for file in made.files}
    on_disk = {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()}
    assert listed == on_disk - {"manifest.json"} and WEIGHTS in listed


def test_every_file_of_a_manifest_must_exist_with_its_size(checkpoint: Path) -> None:
    write(checkpoint)
    assert weights.missing_files(checkpoint) == []
    # The layout does not notice these two: an index does not name them.
    (checkpoint / "tokenizer" / "tokenizer.json").unlink()
    with (checkpoint / "vae" / "config.json").open("a") as file:
        file.write(" ")
    assert weights.missing_files(checkpoint) == ["tokenizer/tokenizer.json", "vae/config.json"]


def test_only_the_hash_finds_a_flipped_byte(checkpoint: Path) -> None:
    made, path = write(checkpoint), checkpoint / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    read: list[int] = []
    assert weights.missing_files(checkpoint) == []
    assert manifest.damaged(checkpoint, made.files, read.append) == [WEIGHTS]
    assert sum(read) == sum(file.size for file in made.files)


def test_the_hash_of_a_link_into_the_hubs_cache_is_the_name_of_its_target(checkpoint: Path) -> None:
    path, blob = checkpoint / WEIGHTS, checkpoint.parent / ("a" * 64)
    path.rename(blob)
    path.symlink_to(blob)
    listed = {file.path: file.sha256 for file in manifest.list_files(checkpoint)}
    assert listed[WEIGHTS] == "a" * 64
    assert manifest.damaged(checkpoint, manifest.list_files(checkpoint)) == [WEIGHTS]


@pytest.mark.parametrize("content", ['{"format": "wan-engine-manifest-1"}', ""])
def test_a_damaged_manifest_is_reported(
    make_settings: MakeSettings, checkpoint: Path, content: str
) -> None:
    (checkpoint / "manifest.json").write_text(content)
    assert weights.missing_files(checkpoint) == ["manifest.json"]
    with pytest.raises(ModelMissing, match=r"cut off: manifest\.json"):
        weights.resolve(str(checkpoint), make_settings())


def test_a_manifest_of_another_program_is_ignored(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text('{"version": 3, "files": ["a"]}')
    assert manifest.read(checkpoint) is None and weights.missing_files(checkpoint) == []


def test_a_set_with_its_pair_fused_needs_no_lora_files(
    make_settings: MakeSettings, checkpoint: Path, empty_caches: Path
) -> None:
    settings = make_settings(models_dir=empty_caches)
    folder = settings.models_dir / FAST.name
    shutil.copytree(checkpoint, folder)
    assert weights.locate(FAST, settings) is None
    write(folder, FAST, fused=FAST)
    assert weights.locate(FAST, settings) == weights.Located(FAST, folder, ())


def test_a_set_with_a_pair_fused_is_not_the_model_without(
    make_settings: MakeSettings, checkpoint: Path, empty_caches: Path
) -> None:
    settings = make_settings(models_dir=empty_caches)
    folder = settings.models_dir / FAST.name
    shutil.copytree(checkpoint, folder)
    assert weights.locate(QUALITY, settings) is not None
    write(folder, FAST, fused=FAST)
    assert weights.locate(QUALITY, settings) is None


def test_missing_lora_files_of_a_set_are_fused_at_the_start(
    make_settings: MakeSettings, checkpoint: Path, empty_caches: Path
) -> None:
    settings = make_settings(models_dir=empty_caches)
    folder = settings.models_dir / FAST.name
    shutil.copytree(checkpoint, folder)
    write(folder, FAST, fused=FAST)
    assert weights.locate(SVI, settings) is None
    (settings.models_dir / "loras").mkdir()
    for lora in SVI.loras[2:]:
        (settings.models_dir / "loras" / Path(lora.path).name).touch()
    located = weights.locate(SVI, settings)
    assert located is not None and [lora.expert for lora in located.loras] == ["high", "low"]
    made = write(folder, FAST, fused=FAST)
    replace(made, precision="float8_e4m3fn").write(folder)  # nothing is added to it
    assert weights.locate(SVI, settings) is None
    assert weights.locate(FAST, settings) is not None


def test_a_pair_with_another_scale_or_hash_is_another_model() -> None:
    lora = FAST.loras[0]
    fused = Fused(Path(lora.path).name, str(lora.sha256), lora.scale, lora.expert)
    assert fused.is_from(lora)
    for change in ({"scale": 0.5}, {"sha256": "0" * 64}, {"expert": "low"}, {"file": "a"}):
        assert not replace(fused, **change).is_from(lora)  # type: ignore[arg-type]


def test_a_prepared_folder_is_its_row_wherever_it_lies(
    make_settings: MakeSettings, checkpoint: Path
) -> None:
    write(checkpoint, FAST, fused=FAST)
    located = weights.resolve(str(checkpoint), make_settings())
    assert located == weights.Located(FAST, checkpoint, ()) and located.spec.steps == 4


def test_a_prepared_set_as_an_endpoints_cached_model_is_its_row(
    make_settings: MakeSettings, checkpoint: Path, empty_caches: Path
) -> None:
    write(checkpoint, FAST, fused=FAST)
    home = files.RUNPOD_HUB_CACHE / "models--me--ready"
    shutil.copytree(checkpoint, home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    located = weights.resolve("me/ready", make_settings())
    assert located == weights.Located(FAST, home / "snapshots" / "abc", ())


def test_a_complete_copy_is_used_if_runpods_is_truncated(
    make_settings: MakeSettings, checkpoint: Path, empty_caches: Path
) -> None:
    assert QUALITY.repo and QUALITY.revision
    name = f"models--{QUALITY.repo.replace('/', '--')}/snapshots/{QUALITY.revision}"
    whole = Path(huggingface_hub.constants.HF_HUB_CACHE) / name
    for folder in (files.RUNPOD_HUB_CACHE / name, whole):
        shutil.copytree(checkpoint, folder)
    (files.RUNPOD_HUB_CACHE / name / WEIGHTS).write_bytes(b"cut")
    located = weights.locate(QUALITY, make_settings(models_dir=empty_caches))
    assert located is not None and located.folder == whole
