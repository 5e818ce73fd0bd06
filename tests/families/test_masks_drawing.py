"""The drawing of the segments' inputs (docs/masks.svg) matches the inputs of the pipelines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from builder.drawings import MASKS, MaskRow
from tests.rows import ROWS
from wan_engine import toy
from wan_engine.families import load_family
from wan_engine.families.continuation import ContinuingPipeline, Start
from wan_engine.runtime.recipes import Recipe

NAMES = {"A14B": "wan-tiny", "TI2V": "wan-tiny-ti2v"}
SIZE, FRAMES = 64, 17  # five latents


def start_of(segment: MaskRow, clean: torch.Tensor) -> Start | None:
    """The start of the segment, for the continuation that is drawn."""
    if segment.way == "last_frames":
        frames = np.random.default_rng(3).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
        return Start(frames=frames)
    if segment.way == "latents":
        return Start(latents=clean)
    return Start(latents=clean[:, :, :1], anchored=True) if segment.way == "svi" else None


def condition_and_mask(
    pipeline: ContinuingPipeline, start: Start | None, last: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each latent: its condition, and 1 where the mask says that it is known."""
    pipeline.start = start
    channels = pipeline.vae.config.z_dim
    with torch.no_grad():
        made = pipeline.prepare_latents(
            torch.linspace(-1, 1, 3 * SIZE * SIZE).view(1, 3, SIZE, SIZE),
            1,
            channels,
            SIZE,
            SIZE,
            FRAMES,
            torch.float32,
            torch.device("cpu"),
            torch.Generator().manual_seed(4),
            last_image=last,
        )
    if pipeline.config.expand_timesteps:
        _, condition, mask = made
        return condition, 1 - mask
    return made[1][:, 4:], made[1][:, :4]


@pytest.mark.parametrize("segment", MASKS, ids=lambda segment: f"{segment.kind} {segment.way}")
def test_the_drawing_shows_the_inputs_of_the_pipeline(segment: MaskRow, tiny_cache: Path) -> None:
    name = NAMES[segment.kind]
    folder = toy.build(name, tiny_cache / name)
    pipeline = load_family(ROWS[name], folder, Recipe("cpu", "float32", "none")).pipeline
    channels = pipeline.vae.config.z_dim
    side = SIZE // pipeline.vae_scale_factor_spatial
    clean = torch.randn(1, channels, 2, side, side, generator=torch.Generator().manual_seed(5))
    last = torch.ones(1, 3, SIZE, SIZE) if "end" in segment.latents else None
    condition, known = condition_and_mask(pipeline, start_of(segment, clean), last)
    for number, kind in enumerate(segment.latents):
        frames = known[0, :, number].mean(dim=(1, 2))
        assert frames.unique().tolist() in ([0.0], [1.0], [0.0, 1.0])
        assert float(frames.mean()) == segment.known[number]
        assert kind != "end" or frames.tolist() == [0, 0, 0, 1]
        if kind == "noise":  # the mask excludes the condition here, whatever its value
            continue
        here = condition[:, :, number]
        assert bool(here.any()) == (kind != "zero")
        if kind == "latent":
            assert any(torch.equal(here, clean[:, :, index]) for index in range(2))
