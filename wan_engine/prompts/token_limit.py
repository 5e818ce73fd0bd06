"""Counts the tokens of a prompt as the pipeline counts them, to tell how much of it the text
encoder reads.

transformers and diffusers are imported only if a text is long enough to need counting.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from wan_engine.catalog import ModelSpec
from wan_engine.catalog.with_settings import negative_prompt
from wan_engine.prompts.replies import cut_at_sentence
from wan_engine.schema import Order, ScriptShot, cut_sentence
from wan_engine.settings import Settings


class TokenLimit:
    """The limit of one model. `checkpoint` is its folder in diffusers layout; `tokens` is the
    number that its text encoder reads, including the end-of-text token."""

    def __init__(self, checkpoint: Path, tokens: int) -> None:
        self._folder = checkpoint / "tokenizer"
        self._tokens = tokens

    def fitted(self, shot: ScriptShot) -> ScriptShot:
        """The shot with as many whole sentences of its prompt as the text encoder reads before the
        camera move."""
        if self._surely_fits(shot.text):
            return shot
        prompt, camera = _cleaned(shot.prompt), shot.camera
        taken = self._count(camera) if camera else 0
        if taken > self._tokens // 2:  # the content comes before the camera move
            camera, taken = "", 0
        prompt = cut_at_sentence(prompt, self._read(prompt, self._tokens - taken))
        return replace(shot, prompt=prompt, camera=camera)

    def warning(self, name: str, text: str) -> str | None:
        """A sentence that says where in `text` the text encoder stops, or None if it reads all of
        it."""
        if self._surely_fits(text):
            return None
        text = _cleaned(text)
        read, why = self._read(text, self._tokens), f"the model reads {self._tokens} tokens"
        return cut_sentence(name, read, len(text), why) if read < len(text) else None

    def warnings(
        self, order: Order, spec: ModelSpec, settings: Settings, *, as_written: bool
    ) -> Iterator[str]:
        """Warnings about the words that the model does not read. `as_written`: the model gets the
        prompt as the caller wrote it."""
        guided = spec.guidance_scale > 1
        yield from order.cuts
        if order.negative_prompt and not guided:
            yield f"{spec.name} works without CFG: no negative prompt is used"
        texts = {"prompt": order.prompt} if as_written else {}
        if order.negative_prompt and guided:
            texts["negative prompt"] = negative_prompt(order.negative_prompt, spec, settings)
        for name, text in texts.items():
            if warning := self.warning(name, text):
                yield warning

    def _surely_fits(self, text: str) -> bool:
        """Whether `text` fits in any case: a token stands for at least a byte, and a text has two
        more tokens, for its start and end."""
        return len(unicodedata.normalize("NFKC", text).encode()) + 2 <= self._tokens

    def _read(self, text: str, tokens: int) -> int:
        """The number of characters of `text` in its first `tokens` tokens."""
        if self._count(text) <= tokens:
            return len(text)
        lengths = range(len(text) + 1)
        return max(0, bisect_right(lengths, tokens, key=lambda end: self._count(text[:end])) - 1)

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text, truncation=False).input_ids)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            str(self._folder), local_files_only=True, trust_remote_code=False
        )


def _cleaned(text: str) -> str:
    """The prompt as the Wan pipelines clean it before they count."""
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    cleaned: str = prompt_clean(text)
    return cleaned
