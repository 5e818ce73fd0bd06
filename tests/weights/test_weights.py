"""Finding the files of a model: folders, caches, missing files, and their messages."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from wan_engine import toy, weights
from wan_engine.catalog import CATALOG, WRITERS, ModelSpec
from wan_engine.errors import ConfigurationError, ModelMissing
from wan_engine.settings import OwnLora, Settings
from wan_engine.weights import LocatedWriter, files

MakeSettings = Callable[..., Settings]
FAST = CATALOG["wan2.2-i2v-a14b-4step"]
QUALITY = CATALOG["wan2.2-i2v-a14b"]
SVI = CATALOG["wan2.2-i2v-a14b-4step-svi"]


@pytest.fixture
def checkpoint(tiny_cache: Path) -> Path:
    return toy.build("wan-tiny", tiny_cache / "wan-tiny")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and no cache of Runpod."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(files, "RUNPOD_HUB_CACHE", tmp_path / "runpod")
    return tmp_path / "hub"


def cached(hub: Path, repo: str, revision: str, source: Path, *, main: bool = False) -> Path:
    home = hub / f"models--{repo.replace('/', '--')}"
    folder = home / "snapshots" / revision
    shutil.copytree(source, folder)
    if main:
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(revision)
    return folder


def with_lora_pair(settings: Settings, row: ModelSpec = FAST) -> None:
    for lora in row.loras:
        path = settings.models_dir / "loras" / Path(lora.path).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")


def everything_fits(_spec: ModelSpec) -> bool:
    return True


def test_a_complete_folder_lacks_nothing(checkpoint: Path) -> None:
    assert weights.missing_files(checkpoint) == []


@pytest.mark.parametrize(
    ("gone", "reported"),
    [
        ("model_index.json", "model_index.json"),
        ("vae", "vae/(all files)"),
        ("transformer_2/diffusion_pytorch_model.safetensors", "transformer_2/*.safetensors"),
    ],
)
def test_missing_files_are_named(
    checkpoint: Path, tmp_path: Path, gone: str, reported: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    target = folder / gone
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert weights.missing_files(folder) == [reported]


def test_a_missing_shard_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002"}}
    (folder / "transformer" / "m.safetensors.index.json").write_text(json.dumps(index))
    (folder / "transformer" / "model-00002-of-00002").touch()
    assert weights.missing_files(folder) == ["transformer/model-00001-of-00002.safetensors"]


def test_a_built_model_is_built_when_it_is_requested(make_settings: MakeSettings) -> None:
    located = weights.resolve("wan-tiny", make_settings())
    assert weights.missing_files(located.folder) == []


def test_auto_uses_svi_if_its_pair_is_there(
    make_settings: MakeSettings, checkpoint: Path, hub: Path, tmp_path: Path
) -> None:
    settings = make_settings(model="auto", models_dir=tmp_path / "models")
    shutil.copytree(checkpoint, settings.models_dir / QUALITY.name)
    with_lora_pair(settings)
    located, _ = weights.select(settings, everything_fits, fallback=False)
    assert located.spec == FAST
    with_lora_pair(settings, SVI)
    located, _ = weights.select(settings, everything_fits, fallback=False)
    assert located.spec == SVI and located.spec.continuation == "svi"
    assert [lora.expert for lora in located.loras] == ["high", "low", "high", "low"]


def test_a_cache_that_cannot_be_written_does_not_fail_the_start(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = make_settings(cache_dir=tmp_path / "file" / "cache")
    assert weights.resolve("wan-tiny", settings).folder.is_relative_to(
        tmp_path / f"wan_engine-{os.getuid()}"
    )


def test_an_own_folder_gets_the_settings_of_its_kind(
    make_settings: MakeSettings, checkpoint: Path
) -> None:
    located = weights.resolve(str(checkpoint), make_settings())
    assert located.folder == checkpoint
    assert (located.spec.steps, located.spec.flow_shift, located.spec.is_toy) == (40, 5.0, False)


def test_an_incomplete_own_folder_is_refused(make_settings: MakeSettings, tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"1 files are missing or cut off: model_index\.json"):
        weights.resolve(str(tmp_path), make_settings())


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(
    make_settings: MakeSettings, checkpoint: Path, tmp_path: Path, keep: int
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(checkpoint, folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelMissing, match=r"cut off: transformer/diffusion_pytorch_model\.saf"):
        weights.resolve(str(folder), make_settings())


def test_an_unknown_name_lists_the_models(make_settings: MakeSettings, hub: Path) -> None:
    with pytest.raises(ModelMissing, match=r"wan2\.2-ti2v-5b.*not a folder"):
        weights.resolve("wan9", make_settings())


def test_a_hub_id_is_found_in_the_cache(
    make_settings: MakeSettings, hub: Path, checkpoint: Path
) -> None:
    folder = cached(hub, "me/mine", "abc", checkpoint, main=True)
    assert weights.resolve("me/mine", make_settings()).folder == folder


def test_a_row_is_found_at_its_pinned_revision(
    make_settings: MakeSettings, hub: Path, checkpoint: Path
) -> None:
    assert QUALITY.repo and QUALITY.revision
    cached(hub, QUALITY.repo, "newer", checkpoint, main=True)
    pinned = cached(hub, QUALITY.repo, QUALITY.revision, checkpoint)
    assert weights.resolve(QUALITY.name, make_settings()).folder == pinned


def test_another_cached_revision_is_used_with_a_warning(
    make_settings: MakeSettings, hub: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert QUALITY.repo
    folder = cached(hub, QUALITY.repo, "newer", checkpoint, main=True)
    assert weights.resolve(QUALITY.name, make_settings()).folder == folder
    assert "not at the pinned" in caplog.text


COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "0123fedcba98765432100123fedcba9876543210"


def refer(hub: Path, repo: str, name: str, commit: str) -> None:
    reference = hub / f"models--{repo.replace('/', '--')}" / "refs" / name
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)


@pytest.mark.parametrize("name", [QUALITY.repo, QUALITY.name])
def test_in_a_snapshot_without_main_the_newest_complete_one_is_used(
    make_settings: MakeSettings,
    hub: Path,
    checkpoint: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """A download by commit or tag leaves no ref, and neither does a copied cache."""
    assert QUALITY.repo
    caplog.set_level("INFO")
    older = cached(hub, QUALITY.repo, OTHER, checkpoint)
    newer = cached(hub, QUALITY.repo, COMMIT, checkpoint)
    os.utime(older, (1, 1))
    assert weights.resolve(name, make_settings()).folder == newer
    assert COMMIT in caplog.text
    (newer / "vae" / "config.json").unlink()
    (newer / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (newer / "vae" / "diffusion_pytorch_model.safetensors").symlink_to("../../blobs/gone")
    assert weights.resolve(name, make_settings()).folder == older


@pytest.mark.parametrize("base", [QUALITY.repo, QUALITY.name])
def test_a_revision_after_an_at_sign_is_a_branch_a_tag_or_a_commit(
    make_settings: MakeSettings, hub: Path, checkpoint: Path, base: str
) -> None:
    assert QUALITY.repo and QUALITY.revision
    pinned = cached(hub, QUALITY.repo, QUALITY.revision, checkpoint, main=True)
    wanted = cached(hub, QUALITY.repo, COMMIT, checkpoint)
    cached(hub, QUALITY.repo, OTHER, checkpoint)
    for reference in ("v1.0", "release/2", "refs/pr/3"):
        refer(hub, QUALITY.repo, reference, COMMIT)
        assert weights.resolve(f"{base}@{reference}", make_settings()).folder == wanted
    for commit in (COMMIT, COMMIT[:7], COMMIT[:7].upper()):
        assert weights.resolve(f"{base}@{commit}", make_settings()).folder == wanted
    assert weights.resolve(f"{base}@main", make_settings()).folder == pinned
    for absent in ("0123", "v2", "f" * 40):  # two begin with the first
        with pytest.raises(ModelMissing, match="download"):
            weights.resolve(f"{base}@{absent}", make_settings())


def test_an_at_sign_in_the_path_of_a_folder_is_part_of_it(
    make_settings: MakeSettings,
    hub: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "me" / "mine@v2"
    shutil.copytree(checkpoint, folder)
    cached(hub, "me/mine", COMMIT, checkpoint)
    refer(hub, "me/mine", "v2", COMMIT)
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "me/mine@v2"):
        located = weights.resolve(name, make_settings())
        assert located.folder.resolve() == folder and located.spec.name == "mine@v2"


def test_an_incomplete_snapshot_lists_what_it_lacks(
    make_settings: MakeSettings, hub: Path, checkpoint: Path
) -> None:
    folder = cached(hub, "me/mine", COMMIT, checkpoint)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelMissing, match=r"incomplete.*vae"):
        weights.resolve("me/mine", make_settings())


def test_a_ref_without_a_target_is_skipped(
    make_settings: MakeSettings, hub: Path, checkpoint: Path
) -> None:
    folder = cached(hub, "me/mine", COMMIT, checkpoint)
    for broken in ("", OTHER, "\n"):
        refer(hub, "me/mine", "main", broken)
        assert weights.resolve("me/mine", make_settings()).folder == folder


def test_a_lora_file_of_main_wins_over_that_of_another_revision(hub: Path, tmp_path: Path) -> None:
    for commit in (OTHER, COMMIT):
        folder = tmp_path / commit
        folder.mkdir()
        (folder / "a.safetensors").write_text(commit)
        cached(hub, "me/loras", commit, folder)
    refer(hub, "me/loras", "main", COMMIT)
    found = files.cached_file("me/loras", "a.safetensors")
    assert found is not None and found.read_text() == COMMIT


def test_a_classifier_and_a_writer_are_found_at_a_revision_and_without_main(
    make_settings: MakeSettings, hub: Path, writer: Path, tiny_cache: Path
) -> None:
    guard = toy.build("tiny-prompt-guard", tiny_cache / "whole" / "tiny-prompt-guard")
    for name, source in (("me/guard", guard), ("me/writer", writer)):
        cached(hub, name, OTHER, source)
        refer(hub, name, "v1", OTHER)
        cut = cached(hub, name, COMMIT, source)
        next(cut.glob("*.safetensors")).write_bytes(b"cut")
    for at in ("", "@v1", f"@{OTHER[:8]}"):
        found = weights.resolve_classifier(f"me/guard{at}", "prompt", make_settings())
        located = weights.locate_writer(make_settings(prompt_model=f"me/writer{at}"))
        assert located is not None
        assert found.folder.name == located.folder.name == OTHER
    with pytest.raises(ModelMissing, match="cut off"):
        weights.resolve_classifier(f"me/guard@{COMMIT}", "prompt", make_settings())


def test_runpods_cached_model_comes_first(
    make_settings: MakeSettings, hub: Path, checkpoint: Path
) -> None:
    assert QUALITY.repo and QUALITY.revision
    cached(hub, QUALITY.repo, QUALITY.revision, checkpoint)
    mounted = cached(files.RUNPOD_HUB_CACHE, QUALITY.repo, QUALITY.revision, checkpoint)
    assert weights.resolve(QUALITY.name, make_settings()).folder == mounted


def test_a_row_without_its_lora_pair_is_not_available(
    make_settings: MakeSettings, hub: Path, checkpoint: Path, tmp_path: Path
) -> None:
    settings = make_settings(models_dir=tmp_path / "models")
    shutil.copytree(checkpoint, settings.models_dir / FAST.name)
    assert weights.locate(FAST, settings) is None
    with_lora_pair(settings)
    located = weights.locate(FAST, settings)
    assert located is not None
    assert [(lora.expert, lora.scale) for lora in located.loras] == [("high", 1.0), ("low", 1.0)]


def test_a_missing_row_says_how_to_download_it(make_settings: MakeSettings, hub: Path) -> None:
    with pytest.raises(ModelMissing, match=r"126\.2 GB.*download wan2\.2-i2v-a14b"):
        weights.resolve(QUALITY.name, make_settings())


def test_auto_uses_the_first_row_that_is_available_and_fits(
    make_settings: MakeSettings, hub: Path, checkpoint: Path
) -> None:
    assert QUALITY.repo and QUALITY.revision
    cached(hub, QUALITY.repo, QUALITY.revision, checkpoint)
    settings = make_settings(model="auto")
    located, reason = weights.select(settings, everything_fits, fallback=True)
    assert located.spec == QUALITY and "auto" in reason
    located, _ = weights.select(settings, lambda _spec: False, fallback=True)
    assert located.spec.name == "wan-tiny"


def test_auto_without_a_model_refuses_where_a_toy_is_not_acceptable(
    make_settings: MakeSettings, hub: Path
) -> None:
    with pytest.raises(ModelMissing, match="No model was found"):
        weights.select(make_settings(model="auto"), everything_fits, fallback=False)


def test_an_own_lora_file_must_exist(make_settings: MakeSettings, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    settings = make_settings(lora=(OwnLora(path=path, scale=0.8, expert="high"),))
    with pytest.raises(ConfigurationError, match="WAN_LORA"):
        weights.resolve("wan-tiny", settings)
    path.touch()
    assert weights.resolve("wan-tiny", settings).loras == (weights.LocatedLora(path, 0.8, "high"),)


# --- prompt writers ------------------------------------------------------------------------------


@pytest.fixture
def writer(tmp_path: Path) -> Path:
    return toy.build("tiny-prompt-writer", tmp_path / "writer")


def test_a_writer_is_found_in_its_folder_the_models_folder_and_the_hub_cache(
    make_settings: MakeSettings, hub: Path, writer: Path, tmp_path: Path
) -> None:
    row = WRITERS["qwen3-vl-4b"]
    assert row.repo and row.revision
    settings = make_settings(models_dir=tmp_path / "models")
    assert weights.locate_writer(settings) is None
    folder = cached(hub, row.repo, row.revision, writer)
    assert weights.resolve_writer(settings) == LocatedWriter(folder, row.resident_gb)
    by_id = make_settings(prompt_model=row.repo)
    by_id_found = weights.locate_writer(by_id)
    assert by_id_found is not None and by_id_found.folder == folder
    shutil.copytree(writer, tmp_path / "models" / row.name)
    assert weights.resolve_writer(settings).folder == tmp_path / "models" / row.name
    own = weights.resolve_writer(make_settings(prompt_model=str(writer)))
    assert own.folder == writer and 1.5 <= own.resident_gb < 2


def test_a_writer_whose_weights_are_missing_is_not_found(
    make_settings: MakeSettings, writer: Path
) -> None:
    (writer / "model.safetensors").unlink()
    assert weights.locate_writer(make_settings(prompt_model=str(writer))) is None


def test_the_tiny_writer_is_built_once(make_settings: MakeSettings) -> None:
    settings = make_settings(prompt_model="tiny-prompt-writer")
    first = weights.resolve_writer(settings)
    assert first.is_toy and (first.folder / "config.json").is_file()
    assert weights.download_writer("tiny-prompt-writer", settings, print) == first.folder
