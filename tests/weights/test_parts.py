"""A row whose repository has its own layout: how its parts are combined, and what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.weights.test_hub_errors import Hub, hub
from wan_engine import toy, weights
from wan_engine.catalog import CATALOG
from wan_engine.errors import ModelMissing
from wan_engine.settings import Settings
from wan_engine.weights import files
from wan_engine.weights.files import read_json

__all__ = ["hub"]  # a fixture

MakeSettings = Callable[..., Settings]
ROW = CATALOG["wan2.2-s2v-14b"]
OTHER = ROW.parts[-1].repo or ""
SPEECH = ROW.parts[1].path


@pytest.fixture
def made(tiny_cache: Path) -> Path:
    return toy.build("wan-tiny-s2v", tiny_cache / "wan-tiny-s2v")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(files, "RUNPOD_HUB_CACHE", tmp_path / "runpod")
    return tmp_path / "hub"


def as_published(made: Path, own: Path, other: Path) -> None:
    """The layout of the authors' repository, and the parts from another."""
    shutil.copytree(made / "transformer", own)
    shutil.copytree(made / "audio_encoder", own / SPEECH)
    for name in ("text_encoder", "tokenizer", "vae"):
        shutil.copytree(made / name, other / name)


def snapshot(cache: Path, repo: str) -> Path:
    return cache / f"models--{repo.replace('/', '--')}" / "snapshots" / "1a2b"


@pytest.fixture
def published(made: Path, cache: Path) -> tuple[Path, Path]:
    own, other = snapshot(cache, str(ROW.repo)), snapshot(cache, OTHER)
    as_published(made, own, other)
    return own, other


def test_parts_of_two_repositories_make_one_checkpoint(
    published: tuple[Path, Path], make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(cache_dir=tmp_path / "cache")
    located = weights.resolve(ROW.name, settings, "WAN_SPEECH_MODEL")
    assert located.fetched == published[0]
    assert located.folder.is_relative_to(tmp_path / "cache")
    assert weights.missing_files(located.folder) == []
    assert read_json(located.folder / "transformer" / "config.json")["dim"] == 48
    assert (located.folder / "audio_encoder").resolve() == published[0] / SPEECH
    assert (located.folder / "vae").resolve() == published[1] / "vae"
    assert weights.resolve(ROW.name, settings) == located


@pytest.mark.parametrize("name", [part.name for part in ROW.parts])
def test_while_a_part_is_missing_the_row_is_not_available(
    published: tuple[Path, Path], make_settings: MakeSettings, name: str
) -> None:
    own, other = published
    part = next(part for part in ROW.parts if part.name == name)
    folder = (other if part.repo else own) / part.path
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert weights.locate(ROW, make_settings()) is None
    with pytest.raises(ModelMissing, match=r"45\.7 GB.*download wan2\.2-s2v-14b"):
        weights.resolve(ROW.name, make_settings(), "WAN_SPEECH_MODEL")


def test_a_truncated_part_is_missing(
    published: tuple[Path, Path], make_settings: MakeSettings
) -> None:
    weights_file = next(published[1].glob("vae/*.safetensors"))
    weights_file.write_bytes(weights_file.read_bytes()[:-9])
    assert weights.locate(ROW, make_settings()) is None


def test_the_folders_of_a_volume_are_used_too(
    made: Path, cache: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    volume = tmp_path / "models"
    as_published(made, volume / ROW.name, volume / "wan2.2-i2v-a14b")
    located = weights.locate(ROW, make_settings(models_dir=volume))
    assert located is not None
    assert (located.folder / "vae").resolve() == volume / "wan2.2-i2v-a14b" / "vae"


def test_a_folder_in_diffusers_layout_is_used_as_it_is(
    made: Path, cache: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    shutil.copytree(made, tmp_path / "models" / ROW.name)
    located = weights.locate(ROW, make_settings(models_dir=tmp_path / "models"))
    assert located is not None
    assert (located.folder, located.fetched) == (tmp_path / "models" / ROW.name, None)
    own = weights.resolve(str(made), make_settings(), "WAN_SPEECH_MODEL").spec
    assert (own.task, own.max_frames, own.parts) == ("speech-to-video", 84, ())


def test_a_download_gets_both_repositories_and_states_size_and_licence(
    hub: Hub, made: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    hub.folder = tmp_path / "repository"
    as_published(made, hub.folder, hub.folder)
    (hub.folder / "Wan2.1_VAE.pth").write_bytes(b"not read here")
    told: list[str] = []
    located = weights.download(ROW.name, make_settings(), told.append)
    assert weights.missing_files(located.folder) == []
    assert ROW.title in told[0] and "licence: Apache-2.0" in told[0] and "GB to fetch" in told[0]
    assert [line for line in told[1:] if line.startswith("fetching")] == [
        f"fetching {ROW.repo} at its newest revision",
        f"fetching {OTHER} at {ROW.parts[-1].revision}",
    ]
    assert "Wan2.1_VAE.pth" not in hub.served
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    borrowed = next((cache / f"models--{OTHER.replace('/', '--')}").glob("snapshots/*"))
    assert sorted(path.name for path in borrowed.iterdir()) == ["text_encoder", "tokenizer", "vae"]
    assert located.fetched is not None
    weights.verify(located.fetched)


def test_a_row_without_parts_is_not_combined(make_settings: MakeSettings) -> None:
    row = replace(ROW, parts=())
    assert weights.locate(row, make_settings()) is None
