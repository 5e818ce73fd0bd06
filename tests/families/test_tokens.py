"""The tokenizer's ids are those of its file, with any version of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import T5Tokenizer

from wan_engine.errors import ConfigurationError
from wan_engine.families import tokens
from wan_engine.toy.checkpoints import tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer with a normalizer, like UMT5's."""
    tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}
    path.write_text(json.dumps(content), "utf-8")
    return tmp_path


def test_a_tokenizer_that_lost_its_normalizer_is_replaced(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read = T5Tokenizer.from_pretrained(folder)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert read("A Rocket").input_ids != own.encode("A Rocket").ids
    made = tokens.faithful(read, folder)
    assert made("A Rocket").input_ids == own.encode("A Rocket").ids
    assert "transformers changes the tokenizer" in caplog.text
    padded = made("a", padding="max_length", max_length=6, truncation=True)
    assert padded.attention_mask == [1, 1, 1, 0, 0, 0] and padded.input_ids[3:] == [0, 0, 0]


def test_a_tokenizer_that_matches_its_file_stays(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    read = T5Tokenizer.from_pretrained(tmp_path)
    assert tokens.faithful(read, tmp_path) is read


def test_a_tokenizer_without_such_a_file_stays(tmp_path: Path) -> None:
    assert tokens.faithful("of another kind", tmp_path) == "of another kind"


def test_ids_that_never_match_the_file_are_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_same", lambda *_: False)
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json has other ids"):
        tokens.faithful(T5Tokenizer.from_pretrained(folder), folder)
