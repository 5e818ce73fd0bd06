"""Text beyond the limit of the text encoder: the result says where a text was cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.clips import SMALLEST, few_frames
from wan_engine import Engine, Settings, VideoRequest, data_uri, toy
from wan_engine.prompts.token_limit import TokenLimit
from wan_engine.schema import ScriptShot

SENTENCE = "A red boat goes by. "  # the tiny tokenizer has one token per character


@pytest.fixture(scope="module")
def limit(tiny_cache: Path) -> TokenLimit:
    return TokenLimit(toy.build("wan-tiny", tiny_cache / "wan-tiny"), 512)


@pytest.fixture
def engine(make_settings: Callable[..., Settings]) -> Engine:
    return few_frames(make_settings(**SMALLEST, steps=1))


def test_a_cut_at_the_end_of_a_long_prompt_is_reported(limit: TokenLimit) -> None:
    said = limit.warning("prompt", SENTENCE * 40)
    assert said is not None
    assert said.startswith("The prompt was cut after 5")
    assert said.endswith(" of its 799 characters: the model reads 512 tokens")


def test_a_prompt_that_fits_has_no_warning(limit: TokenLimit) -> None:
    assert limit.warning("prompt", "") is None
    assert limit.warning("prompt", SENTENCE) is None
    assert limit.warning("prompt", "a" * 505) is None


def test_the_reported_cut_is_that_of_the_pipeline(limit: TokenLimit) -> None:
    text = SENTENCE * 40
    said = limit.warning("prompt", text) or ""
    read = int(said.split()[5])
    tokenizer = limit._tokenizer
    kept = tokenizer(text.strip(), truncation=True, max_length=512).input_ids
    assert tokenizer(text[:read]).input_ids[:-1] == kept[:-1]


def test_a_short_text_is_not_counted(tmp_path: Path) -> None:
    nothing_here = TokenLimit(tmp_path, 512)
    assert nothing_here.warning("prompt", "snow " * 100) is None
    with pytest.raises(OSError, match="tokenizer"):
        nothing_here.warning("prompt", "雪" * 200)  # 600 bytes


@pytest.mark.parametrize("camera", ["", "The camera pans left.", "pan " * 100])
def test_an_expanded_shot_is_cut_at_a_sentence_and_then_fits(
    limit: TokenLimit, camera: str
) -> None:
    shot = limit.fitted(ScriptShot(SENTENCE * 60, 5, camera))
    assert shot.prompt.endswith("boat goes by.")
    assert len(shot.prompt) > 400
    assert limit.warning("prompt", shot.text) is None


def test_a_shot_that_fits_is_not_changed(limit: TokenLimit) -> None:
    shot = ScriptShot(" A boat  &amp; a sail", 5, "still")
    assert limit.fitted(shot) is shot


def test_the_result_says_where_the_prompt_was_cut(engine: Engine, data: Path) -> None:
    asked = {"prompt": SENTENCE * 80, "image": data_uri(data / "rocket_640x360.jpg")}
    request = VideoRequest.parse({**asked, "negative_prompt": "b" * 600, "seed": 1})
    said = engine.generate(request).output()["warnings"]
    assert "The prompt was cut after 1500 of its 1600 characters: no more are taken" in said
    assert "The negative prompt was cut after 500 of its 600 characters: no more are taken" in said
    assert any(text.endswith("of its 1499 characters: the model reads 512 tokens") for text in said)


def test_a_template_that_does_not_fit_is_left_out(engine: Engine, data: Path) -> None:
    prompt = (SENTENCE * 25).strip()  # 499 characters: they fit, with no room for a phrase
    request = VideoRequest(
        prompt=prompt,
        image=data_uri(data / "rocket_640x360.jpg"),
        enable_prompt_expansion=True,
        seed=1,
    )
    result = engine.generate(request)
    assert result.expanded_prompt == prompt
    assert not any("cut" in warning for warning in result.warnings)
