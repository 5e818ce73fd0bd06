"""Expands prompts on this machine, with a Qwen-VL checkpoint in transformers.

It does not use transformers' processor class, which needs torchvision. The tokenizer and the image
processor for PIL do the same. torch is imported when the weights are loaded.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from wan_engine.control import Control
from wan_engine.prompts.task import Task, WriterFailed, shrunk
from wan_engine.runtime.logs import quiet_libraries

log = logging.getLogger(__name__)


class LocalWriter:
    """Implements `Writer` with the checkpoint in `folder`.

    If `stays`, the weights stay on `device`; otherwise they wait in host memory and move to the
    device for each answer. `turn` gives the device to one job at a time.
    """

    def __init__(
        self,
        folder: Path,
        device: str,
        *,
        stays: bool,
        turn: Callable[[Control], AbstractContextManager[None]],
    ) -> None:
        self._folder, self._device, self._stays, self._turn = folder, device, stays, turn
        self._parts: tuple[Any, Any, Any] | None = None

    def load(self) -> None:
        """Load the weights once."""
        if self._parts is not None:
            return
        from transformers import (
            AutoModelForImageTextToText,
            AutoTokenizer,
            Qwen2VLImageProcessorPil,
        )

        quiet_libraries(bars=True)
        started = time.monotonic()
        tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        legacy = self._folder / "chat_template.json"  # older processors keep it there
        if tokenizer.chat_template is None and legacy.is_file():
            tokenizer.chat_template = json.loads(legacy.read_text("utf-8"))["chat_template"]
        images = Qwen2VLImageProcessorPil.from_pretrained(self._folder, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(
            self._folder, dtype="auto", local_files_only=True
        ).eval()
        if self._stays:
            model.to(self._device)
        self._parts = tokenizer, images, model
        log.info("the prompt writer was loaded in %.1f s", time.monotonic() - started)

    def write(self, task: Task, image: Image.Image | None, seconds: float, control: Control) -> str:
        """See `Writer.write`. The time limit includes neither the first load nor the wait for the
        device."""
        import torch

        with self._turn(control):
            self.load()
            assert self._parts is not None
            tokenizer, images, model = self._parts
            with self._on_device(model), torch.inference_mode():
                inputs = _inputs(task, image, tokenizer, images, model)
                limit = _Limit(seconds, control)
                tokens = model.generate(
                    **{name: value.to(self._device) for name, value in inputs.items()},
                    generation_config=_greedy(model, tokenizer, task.tokens_at_most),
                    stopping_criteria=[limit],
                )
        if limit.expired:
            raise WriterFailed(f"no answer within {seconds:g} seconds")
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        return str(tokenizer.decode(answer, skip_special_tokens=True))

    @contextmanager
    def _on_device(self, model: Any) -> Iterator[None]:
        if not self._stays:
            model.to(self._device)
        try:
            yield
        finally:
            if not self._stays:
                model.to("cpu")


class _Limit:
    """A stopping criterion, called after each token. It raises if the job must end, and stops if
    the time is up."""

    def __init__(self, seconds: float, control: Control) -> None:
        self._end, self._control = time.monotonic() + seconds, control
        self.expired = False

    def __call__(self, input_ids: Any, scores: Any, **ignored: Any) -> Any:
        import torch

        self._control.checkpoint()
        self.expired = time.monotonic() >= self._end
        return torch.full((len(input_ids),), self.expired, device=input_ids.device)


def _inputs(
    task: Task, image: Image.Image | None, tokenizer: Any, images: Any, model: Any
) -> dict[str, Any]:
    """The inputs that `Qwen3VLProcessor` would make. The image's place is filled with one token per
    merged patch, and marked as an image for the positions."""
    content = [{"type": "text", "text": task.wish}]
    pixels: Any = {}
    count = 0
    if image is not None:
        pixels = images(images=[shrunk(image)], return_tensors="pt")
        count = int(pixels["image_grid_thw"].prod()) // images.merge_size**2
        content = [{"type": "image"}, *content]
    messages = [
        {"role": "system", "content": task.instructions},
        {"role": "user", "content": content},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    place = tokenizer.convert_ids_to_tokens(model.config.image_token_id)
    text = text.replace(place, place * count)
    encoded = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    ids = encoded["input_ids"]  # [1, tokens]
    return {
        "input_ids": ids,
        "attention_mask": encoded["attention_mask"],
        "mm_token_type_ids": (ids == model.config.image_token_id).int(),
        **{name: pixels[name] for name in ("pixel_values", "image_grid_thw") if image is not None},
    }


def _greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> Any:
    """A configuration without sampling, for the same answer each time. A checkpoint's own
    configuration samples."""
    from transformers import GenerationConfig

    own = model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    pad = own.pad_token_id if own.pad_token_id is not None else tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad
    )
