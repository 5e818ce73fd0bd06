"""Computes the embeddings of each prompt once, with the text encoder where the recipe has placed
it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from wan_engine.runtime.finite import require_finite

_KEPT = 8  # texts; an embedding takes 4 MB: 512 tokens of 4096 numbers in bfloat16


class PromptEncoder:
    """Embeds texts with the pipeline's own method and caches the latest, such as the model's
    negative prompt, which is the same in every job."""

    def __init__(
        self, pipeline: Any, device: torch.device, *, tokens: int = 512, moved: bool
    ) -> None:
        self._pipeline = pipeline
        self._device = device
        self._tokens = tokens  # the method's default is 226
        self._moved = moved
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()

    def embed(self, text: str) -> torch.Tensor:
        """Embeddings of `text` [1, tokens, width], in the text encoder's dtype, on the device.
        Raises `NotFinite`."""
        if text not in self._known:
            encoder = self._pipeline.text_encoder
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                in_place(encoder, self._device, moved=self._moved),
            ):
                embeddings, _ = self._pipeline.encode_prompt(
                    prompt=text,
                    do_classifier_free_guidance=False,
                    max_sequence_length=self._tokens,
                    device=self._device,
                )
            require_finite(embeddings, "the text encoder")
            self._known[text] = embeddings
        self._known.move_to_end(text)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return self._known[text]


@contextmanager
def in_place(module: Any, device: torch.device, *, moved: bool) -> Iterator[None]:
    """Move a network to the device, if it waits in host memory (`moved`). The copy on the device is
    dropped afterwards, not copied back."""
    if not moved:
        yield
        return
    tensors = [*module.parameters(), *module.buffers()]
    homes = [tensor.data for tensor in tensors]
    try:
        for tensor, home in zip(tensors, homes, strict=True):
            tensor.data = home.to(device, non_blocking=True)
        yield
    finally:
        for tensor, home in zip(tensors, homes, strict=True):
            tensor.data = home
