"""Prompt embeddings equal the pipeline's and are computed once, whether the text encoder is moved
or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from wan_engine.families.prompt_embeddings import PromptEncoder

CPU = torch.device("cpu")


@pytest.fixture
def pipeline(load: Callable[..., Any]) -> Any:
    return load("wan-tiny").pipeline


def counted(pipeline: Any) -> list[int]:
    calls: list[int] = []
    pipeline.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("moved", [False, True])
def test_the_embeddings_are_those_of_the_pipeline(pipeline: Any, moved: bool) -> None:
    texts = PromptEncoder(pipeline, CPU, moved=moved)
    with torch.no_grad():  # as the pipeline does; with gradients torch uses other kernels
        expected, _ = pipeline.encode_prompt(
            prompt="a red boat", do_classifier_free_guidance=False, max_sequence_length=512
        )
    assert texts.embed("a red boat").shape == (1, 512, 32)
    assert torch.equal(texts.embed("a red boat"), expected)


def test_a_text_is_embedded_once(pipeline: Any) -> None:
    texts, calls = PromptEncoder(pipeline, CPU, moved=False), counted(pipeline)
    for _ in range(3):
        texts.embed("a red boat")
        texts.embed("blurred, ugly")
    assert len(calls) == 2


def test_only_the_last_texts_are_remembered(pipeline: Any) -> None:
    texts, calls = PromptEncoder(pipeline, CPU, moved=False), counted(pipeline)
    for number in range(20):
        texts.embed("blurred, ugly")  # every job uses it, so it is never forgotten
        texts.embed(f"prompt {number}")
    assert len(calls) == 21
    texts.embed("prompt 0")
    assert len(calls) == 22


def test_a_moved_encoder_is_moved_back_after_a_failure(pipeline: Any) -> None:
    texts = PromptEncoder(pipeline, CPU, moved=True)
    before = [parameter.data_ptr() for parameter in pipeline.text_encoder.parameters()]

    def cancelled(*_: object) -> None:
        raise InterruptedError

    hook = pipeline.text_encoder.register_forward_pre_hook(cancelled)
    with pytest.raises(InterruptedError):
        texts.embed("a red boat")
    hook.remove()
    assert [p.data_ptr() for p in pipeline.text_encoder.parameters()] == before
    assert texts.embed("a red boat").isfinite().all()
