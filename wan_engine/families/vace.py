"""Runs reference-to-video on the stock VACE pipeline, with two experts (Wan2.2-VACE-Fun-A14B) or
one (Wan2.1-VACE-14B), and text-to-video if there are no references.

The condition of diffusers 0.42.1, which has 96 channels, the references in front on the time axis:

    time      reference 1 | reference 2 | frame 0 ... kept | ... to be made
    16        the picture | the picture | the kept frames  | grey
    16        0           | 0           | grey             | grey
    64 mask   0           | 0           | 0                | 1

Only the contents differ from stock. Layout, loop, schedule and experts are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import WanVACEPipeline
from diffusers.utils.torch_utils import get_module_execution_device
from PIL import Image

from wan_engine.families.continuation import latent_moments, to_pixels
from wan_engine.families.first_frames import encode_then_grey
from wan_engine.families.i2v import ImageToVideo
from wan_engine.runtime.finite import require_finite
from wan_engine.schema import Condition, Frames, LastPicture, References, SegmentInput


class ReferencePipeline(WanVACEPipeline):
    """`WanVACEPipeline` with references of any shape in their order, with the first frames `kept`,
    and without computing known grey.

    The stock pipeline puts the last reference first in time. VACE's authors keep the order, with
    which the model was trained (ali-vilab/VACE `vace/models/wan/wan_vace.py`,
    `vace_encode_frames`).
    """

    kept: Frames | None = None
    """uint8 [4m + 1, H, W, 3]: the first frames, from the end of the previous segment."""

    last: Image.Image | None = None
    """The last frame."""

    def preprocess_conditions(
        self,
        video: Any = None,
        mask: Any = None,
        reference_images: Any = None,
        batch_size: int = 1,
        height: int = 480,
        width: int = 832,
        num_frames: int = 81,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, list[list[torch.Tensor]]]:
        """Pixels [1, 3, n, H, W] in -1..1, grey where nothing is kept; the mask, 1 where frames are
        generated; and the references on white, [3, H, W] each, the last one first."""
        pixels = torch.zeros(1, 3, num_frames, height, width, dtype=dtype, device=device)
        wanted = torch.ones_like(pixels)
        if self.kept is not None:
            pixels[:, :, : len(self.kept)] = to_pixels(self.kept).to(pixels)
            wanted[:, :, : len(self.kept)] = 0
        if self.last is not None:
            pixels[:, :, -1:] = to_pixels(np.array(self.last.convert("RGB"))[None]).to(pixels)
            wanted[:, :, -1:] = 0
        canvases = [letterboxed(one, width, height).to(pixels) for one in reference_images or ()]
        return pixels, wanted, [canvases[::-1]]

    def prepare_video_latents(
        self,
        video: torch.Tensor,
        mask: torch.Tensor,
        reference_images: Any = None,
        generator: Any = None,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """Normalised latents [1, 32, references + t, h, w], as in the stock pipeline."""
        count = 0 if self.kept is None else len(self.kept)
        frames = video.shape[2]
        kept = video[:, :, : max(1, count)]  # without kept frames, one frame of grey
        grey = torch.zeros_like(video[:, :, :1])
        last = None if self.last is None else video[:, :, -1:]
        first = self._encoded(kept, frames, last)
        latents = torch.cat([first, self._encoded(grey, frames)], dim=1)
        for canvas in (reference_images or [[]])[0]:
            picture = self._encoded(canvas[None, :, None], 1)
            reference = torch.cat([picture, torch.zeros_like(picture)], dim=1)
            latents = torch.cat([reference, latents], dim=2)
        return latents

    def prepare_masks(
        self, mask: torch.Tensor, reference_images: Any = None, generator: Any = None
    ) -> torch.Tensor:
        """Masks [1, 64, references + t, h, w]. The stock method has no room for more references
        than t."""
        masks: torch.Tensor = super().prepare_masks(mask, [[]], generator)
        shape = list(masks.shape)
        shape[2] = len((reference_images or [[]])[0])
        return torch.cat([masks.new_zeros(shape), masks], dim=2)

    def _encoded(
        self, pixels: torch.Tensor, frames: int, last: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Latents of `pixels` [1, 3, n, H, W] followed by grey, `frames` in total, with the `last`
        one at the end."""
        vae = self.vae
        pixels = pixels.to(device=get_module_execution_device(vae), dtype=vae.dtype)
        last = None if last is None else last.to(pixels)
        latents = encode_then_grey(vae, pixels, frames, last).float()
        mean, std = latent_moments(vae, latents)
        require_finite(latents, "the VAE's encoder")
        # In the order of the stock pipeline, for the same bits.
        normalised: torch.Tensor = (latents - mean) * (1.0 / std)
        return normalised.to(vae.dtype)


def letterboxed(image: Image.Image, width: int, height: int) -> torch.Tensor:
    """The whole picture in the middle of a white one, [3, H, W] in -1..1, as in the stock
    pipeline."""
    values = np.array(image.convert("RGB"))
    pixels = torch.from_numpy(values).permute(2, 0, 1)[None].float() / 255.0 * 2.0 - 1.0
    scale = min(height / image.height, width / image.width)
    # A strip keeps one pixel of its short side.
    size = max(1, int(image.height * scale)), max(1, int(image.width * scale))
    shown = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear")[0]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    canvas = torch.ones(3, height, width)
    canvas[:, top : top + size[0], left : left + size[1]] = shown
    return canvas


class ReferenceToVideo(ImageToVideo):
    """A loaded VACE pipeline with the settings of its row. Implements `Family`."""

    pipeline_class = ReferencePipeline

    def _given(self, segment: SegmentInput) -> dict[str, Any]:
        self.pipeline.kept = segment.carry.frames
        last = segment.find(LastPicture)
        self.pipeline.last = last.image if last else None
        found = segment.find(References)
        return {"reference_images": list(found.images) if found else None}

    def _forget(self) -> None:
        self.pipeline.kept = self.pipeline.last = None

    def _of_the_clip(self, latents: torch.Tensor, segment: SegmentInput) -> torch.Tensor:
        """The latents without those of the references, which the stock pipeline leaves in front."""
        found = segment.find(References)
        return latents[:, :, len(found.images) if found else 0 :]

    @contextmanager
    def _warm_conditions(self, width: int, height: int) -> Iterator[tuple[Condition, ...]]:
        yield (References((Image.new("RGB", (width, height)),)),)
