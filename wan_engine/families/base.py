"""Defines the interface of a model family, and the streamed decode that all Wan VAEs share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from wan_engine.catalog import ModelSpec
from wan_engine.errors import NotServed
from wan_engine.runtime.finite import not_finite
from wan_engine.schema import (
    Clip,
    Condition,
    DrivingSound,
    FirstPicture,
    Frames,
    Input,
    LastPicture,
    OnBytes,
    References,
    SegmentInput,
    SoundInput,
    Waveform,
)
from wan_engine.weights.lora_folder import ChosenLora

_NAMES: Mapping[type[Condition], Input] = {
    FirstPicture: "first_picture",
    LastPicture: "last_picture",
    References: "references",
    DrivingSound: "driving_sound",
}


class Loaded(Protocol):
    """One loaded model. One thread at a time uses it.

    A family is a class with these methods, those of its task, and `load(spec, folder, recipe,
    loras, on_bytes)`. A row of the catalogue names it. The rest of the engine knows neither.
    """

    spec: ModelSpec

    def warm_up(self, width: int, height: int) -> None:
        """Do the work of a clip briefly at this size, so that the first job does not wait for lazy
        loading."""
        ...

    def run_eagerly(self) -> None:
        """Stop using compiled code. Called after work has raised `CompileFailed`."""
        ...

    def move(self, device: str) -> None:
        """Move all weights to `device`: to host memory if another model needs the room, and
        back."""
        ...


class TakesLoras(Loaded, Protocol):
    """A model that takes LoRA files for one clip. A row whose blocks are Wan's (`wan_blocks`)
    promises it."""

    @property
    def loras(self) -> tuple[ChosenLora, ...] | None:
        """The files that are in the weights now. None if a change of them failed halfway and the
        model must be loaded again."""
        ...

    def set_loras(self, loras: Sequence[ChosenLora], on_bytes: OnBytes) -> None:
        """Make the weights have exactly these files, on top of those of the load; without any, they
        are those of the load to the bit.

        `on_bytes` gets the bytes changed so far and the total; an error that it raises stops the
        change. After an error there are no files in the weights, or `loras` is None. Raises
        `LoraRefused` and `OutOfMemory`.
        """
        ...


class SoundFamily(Loaded, Protocol):
    """A model that makes the sound of finished frames: `sound-for-video`."""

    def hear(self, window: SoundInput, on_step: Callable[[int], None]) -> Waveform:
        """The sound of a window, which begins with its first frame and is as long as its frames at
        least. The frames stay as they are.

        `on_step(n)` as for `Family.render`. Raises `OutOfMemory` and `NotFinite`.
        """
        ...


class Family(Loaded, Protocol):
    """A model that makes frames."""

    def render(self, segment: SegmentInput, on_step: Callable[[int], None]) -> Clip:
        """Render a segment. It is denoised when this returns, and decoded while its frames are
        read.

        `on_step(n)` reports n finished steps. It is called between the parts of a step too, and an
        error that it raises stops the run. The clip has as many frames as the segment asks for,
        beginning with those that a later segment shares with the previous one. A later segment
        continues from its `Carry`: the family reads its own part of it, and writes it for the next
        one.

        Raises `NotServed`, before any computation, for a condition that its row does not accept.
        """
        ...


def refuse_others(spec: ModelSpec, segment: SegmentInput) -> None:
    """Raise `NotServed` for a condition that the row does not accept, or that it needs and did not
    get."""
    given = {_NAMES[type(one)] for one in segment.conditions if type(one) in _NAMES}
    for name in given - set(spec.takes):
        raise NotServed(f"The model {spec.name} accepts {spec.taken}, but got {name}")
    for name in set(spec.needs) - given:
        raise NotServed(f"The model {spec.name} needs {name}, but got none")


def stream_decode(
    vae: Any, latents: torch.Tensor, memory: list[Any] | None = None
) -> Generator[torch.Tensor, None, None]:
    """Decode `latents` [1, c, t, h, w] (de-normalised) a latent frame at a time.

    Yields [1, 3, n, H, W] in -1..1, n = 1 and then 4. This is the loop of
    `AutoencoderKLWan._decode` (diffusers 0.42.1) without its growing concatenation: the same
    numbers, memory flat in the length.

    `memory` is what the causal decoder remembers: empty before the first latents of a shot, filled
    when these are decoded. With it, decoding a and then b is decoding the two in one run.
    """
    vae.clear_cache()
    if memory:
        vae._feat_map = list(memory)
    try:
        with torch.inference_mode():
            latents = vae.post_quant_conv(latents)
        for index in range(latents.shape[2]):
            # Not one block around the loop, because a generator would leave its mode to the caller.
            with torch.inference_mode():
                first = index == 0 and not memory
                sample = _decode_frame(vae, latents[:, :, index : index + 1], first=first)
            yield sample
        if memory is not None:
            memory[:] = vae._feat_map
    finally:
        vae.clear_cache()


def _decode_frame(vae: Any, latent: torch.Tensor, *, first: bool) -> torch.Tensor:
    vae._conv_idx = [0]
    arguments = {"first_chunk": True} if first else {}
    sample = vae.decoder(latent, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, **arguments)
    if vae.config.patch_size is not None:
        sample = unpatchify(sample, patch_size=vae.config.patch_size)
    # Infinity would be clamped to white. Times zero it becomes NaN, which stays.
    return torch.clamp(sample + 0 * sample, min=-1.0, max=1.0)


def to_frames(samples: Generator[torch.Tensor, None, None]) -> Iterator[Frames]:
    """Convert each [1, 3, n, H, W] in -1..1 to uint8 [n, H, W, 3] in host memory. Raises
    `NotFinite`.

    On a GPU it runs one sample behind: a sample is copied while the next one is decoded, and the
    encoder gets the previous one meanwhile.
    """
    waiting: _Copied | None = None
    with closing(samples):
        for sample in samples:
            pixels = sample[0].permute(1, 2, 3, 0).float().add(1.0).mul(127.5).round_()
            copied = _Copied(pixels.to(torch.uint8).contiguous(), pixels.isfinite().all())
            if waiting is not None:
                yield waiting.frames()
            waiting = copied if copied.on_its_way else None
            if waiting is None:
                yield copied.frames()
        if waiting is not None:
            yield waiting.frames()


class _Copied:
    """Pixels that are being copied to host memory, and whether all of them are finite."""

    def __init__(self, pixels: torch.Tensor, finite: torch.Tensor) -> None:
        self.on_its_way = pixels.device.type == "cuda"
        self._host, self._finite = pixels, finite
        if not self.on_its_way:
            return
        self._host, self._finite = _sent(pixels), _sent(finite)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(pixels.device))

    def frames(self) -> Frames:
        if self.on_its_way:
            self._arrived.synchronize()
        if not self._finite:
            raise not_finite("the VAE's decoder")
        return self._host.numpy()


def _sent(tensor: torch.Tensor) -> torch.Tensor:
    """The copy of `tensor` in pinned host memory, complete once the stream has reached this
    point."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
