"""The tiny checkpoints: small, reproducible, and complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import warm
from wan_engine import toy
from wan_engine.catalog import GUARD_CATEGORIES, GUARD_VERDICTS, ClassifierKind
from wan_engine.toy import checkpoints, classifiers, networks
from wan_engine.weights import missing_classifier_files, missing_files

ROOT = Path(__file__).parents[2]
MODELS = {"wan-tiny": 30_000_000, "wan-tiny-random": 4_000_000, "wan-tiny-ti2v": 4_000_000}
"""The largest size in bytes of each checkpoint."""


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_complete_and_small(tmp_path: Path, name: str) -> None:
    folder = toy.build(name, tmp_path / name)
    assert missing_files(folder) == []
    assert sum(path.stat().st_size for path in folder.rglob("*")) < MODELS[name]


@pytest.mark.parametrize(
    ("name", "kind"), [("tiny-prompt-guard", "prompt"), ("tiny-image-classifier", "image")]
)
def test_a_classifier_is_complete_and_small(
    tmp_path: Path, name: str, kind: ClassifierKind
) -> None:
    folder = toy.build(name, tmp_path / name)
    assert missing_classifier_files(folder, kind) == []
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 300_000


def test_the_prompt_writer_is_small(tmp_path: Path) -> None:
    folder = toy.build("tiny-prompt-writer", tmp_path / "writer")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000


def test_an_existing_folder_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert toy.build("tiny-prompt-writer", tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_guard_knows_the_labels_that_are_read() -> None:
    assert classifiers._VERDICTS == GUARD_VERDICTS
    assert classifiers._CATEGORIES == GUARD_CATEGORIES


def test_another_process_builds_the_same_bytes(tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(
        "import sys; from pathlib import Path; from wan_engine import toy\n"
        "for name in sys.argv[2:]: toy.build(name, Path(sys.argv[1]) / name)"
    )
    command = [str(script), str(tmp_path / "other"), *checkpoints.NAMES]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = warm.shared().run(command, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in checkpoints.NAMES:
        here = toy.build(name, tmp_path / "here" / name)
        assert digest(here) == digest(tmp_path / "other" / name)


def test_several_threads_build_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "wan-tiny"
    failures: list[Exception] = []

    def build() -> None:
        try:
            toy.build("wan-tiny-random", folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and missing_files(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["wan-tiny"]


def test_the_trained_weights_are_small_enough_for_a_repository() -> None:
    files = [path for path in checkpoints.WEIGHTS.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000


def test_the_trained_weights_are_read_as_they_were_written(tmp_path: Path) -> None:
    parts = networks.read_weights(checkpoints.WEIGHTS)
    tokenizer = parts.pop("tokenizer")
    networks.write_weights(tmp_path / "copy.safetensors", parts, {})
    again = load_file(tmp_path / "copy.safetensors")
    wanted = load_file(checkpoints.WEIGHTS)
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in wanted.items())
    assert parts["text_encoder"].config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("zoom in", ["▁zoom", "▁in"]),
        ("Pans to the left", ["▁Pans", "▁to", "▁the", "▁left"]),
        ("the rye", ["▁the", "▁", "r", "y", "e"]),
    ],
)
def test_words_of_camera_moves_are_one_token_each(text: str, pieces: list[str]) -> None:
    assert networks.make_tokenizer().tokenize(text) == pieces


def test_the_checkpoint_has_the_wrong_flow_shift_of_converted_repositories(
    tmp_path: Path,
) -> None:
    folder = toy.build("wan-tiny-random", tmp_path / "wan-tiny")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert config["flow_shift"] == 3.0
