"""Preview colours of latents: they are close to the decoder's, and computing them changes
nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wan_engine.catalog import CATALOG
from wan_engine.families import load_family, previews
from wan_engine.families.base import stream_decode
from wan_engine.families.continuation import latent_moments, to_pixels
from wan_engine.families.first_frames import encode_then_grey
from wan_engine.families.i2v import DistilledEulerScheduler, make_scheduler
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import Carry, FirstPicture, SegmentInput

DATA = Path(__file__).parents[1] / "data"
Frames = np.ndarray


@pytest.fixture(scope="module")
def family(trained: Path) -> Any:
    return load_family(CATALOG["wan-tiny"], trained, Recipe("cpu", "float32"))


@pytest.mark.parametrize("name", ["astronaut_360x480.png", "rocket_640x360.jpg"])
def test_colours_are_close_to_the_decoder_s(family: Any, name: str) -> None:
    vae = family.pipeline.vae
    photo = np.asarray(Image.open(DATA / name).convert("RGB").resize((128, 96)))
    with torch.no_grad():
        pixels = to_pixels(np.stack([np.roll(photo, shift, 1) for shift in range(5)]))
        latents = encode_then_grey(vae, pixels, 5)
        mean, std = latent_moments(vae, latents)
        last = list(stream_decode(vae, latents))[-1].mean(2)[0]
    decoded = torch.nn.functional.adaptive_avg_pool2d(last, (12, 16)).permute(1, 2, 0)
    shown = previews.LatentColours.learnt(vae).of((latents - mean) / std)
    assert shown.shape == (2, 12, 16, 3) and shown.dtype == np.uint8
    assert np.corrcoef(shown[-1].ravel(), decoded.numpy().ravel())[0, 1] > 0.95


def asked(**changes: Any) -> SegmentInput:
    picture = Image.open(DATA / "rocket_640x360.jpg").resize((64, 48))
    conditions = (FirstPicture(picture), Carry())
    return SegmentInput("Leaves", "", conditions, 64, 48, 13, 1, **changes)


def test_a_preview_changes_nothing_and_if_nobody_looks_nothing_is_computed(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[int, Frames] = {}

    def look(step: int, make: Callable[[], Frames | None]) -> None:
        frames = make()
        if frames is not None:
            shown[step] = frames

    looked_at = family.denoise(asked(on_preview=look), lambda _step: None)
    assert list(shown) == list(range(1, family.spec.steps + 1))
    assert {frames.shape for frames in shown.values()} == {(3, 6, 8, 3)}  # the new latents

    def refuse(*_: object) -> None:
        raise AssertionError("nobody looks")

    family._colours = None
    monkeypatch.setattr(previews, "estimate", refuse)
    monkeypatch.setattr(previews.LatentColours, "learnt", refuse)
    not_looked_at = family.denoise(asked(on_preview=lambda _step, _make: None), lambda _step: None)
    alone = family.denoise(asked(), lambda _step: None)
    assert torch.equal(looked_at, not_looked_at) and torch.equal(looked_at, alone)


def test_an_offloaded_encoder_is_not_fetched_between_the_steps(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "_colours", None)
    monkeypatch.setattr(family, "_offloaded", True)
    offered: list[tuple[int, str]] = []

    def look(step: int, make: Callable[[], Frames | None]) -> None:
        offered.append((step, make.__name__))

    family.denoise(asked(on_preview=look), lambda _step: None)
    assert offered == [(0, "_learn_colours")]


@pytest.mark.parametrize("sampler", ["unipc", "distilled-euler"])
def test_the_estimate_is_the_clean_latents_from_the_first_step_on(sampler: Any) -> None:
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 2, 3, 3)
    scheduler = make_scheduler(replace(CATALOG["wan-tiny"], sampler=sampler))
    assert isinstance(scheduler, DistilledEulerScheduler) == (sampler != "unipc")
    scheduler.set_timesteps(4)
    latents = noise
    for time in scheduler.timesteps:  # the velocity of a model that knows the clean latents
        latents = scheduler.step(noise - clean, time, latents, return_dict=False)[0]
        found = previews.estimate(scheduler, latents)
        assert torch.allclose(found, clean, atol=2e-3), (found - clean).abs().max()


def test_a_few_latents_are_chosen_from_the_first_to_the_last() -> None:
    latents = torch.arange(20.0).view(1, 1, 20, 1, 1)
    assert previews.evenly(latents, 6).flatten().tolist() == [0, 4, 8, 11, 15, 19]
    assert previews.evenly(latents[:, :, :2], 6).flatten().tolist() == [0, 1]
