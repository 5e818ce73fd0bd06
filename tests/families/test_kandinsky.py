"""The sound made for finished frames: the picture stays fixed, and the sound follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wan_engine.errors import Cancelled, NotFinite, OutOfMemory
from wan_engine.families import kandinsky, load_family
from wan_engine.families.kandinsky import prompt_of
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import SoundInput

CPU = Recipe("cpu", "float32")


STEPS = 3


@pytest.fixture(scope="module")
def family(load: Callable[..., Any]) -> Any:
    return load("wan-tiny-sound", steps=STEPS)


def window(kind: int = 0, *, prompt: str = "a dog", frames: int = 25) -> SoundInput:
    noise = np.random.default_rng(kind).integers(0, 256, (frames, 32, 48, 3), np.uint8)
    return SoundInput(prompt, "", noise, seed=4)


def heard(family: Any, asked: SoundInput) -> np.ndarray:
    samples: np.ndarray = family.hear(asked, lambda _step: None).samples
    return samples


def test_the_picture_is_unchanged(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture has the noise level of each step, and no noise at the end."""
    seen: list[torch.Tensor] = []
    pipeline = family.pipeline
    transformer = pipeline.transformer.forward

    def watched(*args: Any, **given: Any) -> Any:
        seen.append(given["hidden_states"][..., :4].clone())
        return transformer(*args, **given)

    monkeypatch.setattr(pipeline.transformer, "forward", watched)
    ended: list[torch.Tensor] = []
    call = type(pipeline).__call__

    def kept(self: Any, *args: Any, **given: Any) -> Any:
        output = call(self, *args, **given)
        ended.append(output.frames)
        return output

    monkeypatch.setattr(type(pipeline), "__call__", kept)
    asked = window()
    heard(family, asked)
    with torch.no_grad():
        clean = family._encoded(asked.frames)
    generator = torch.Generator().manual_seed(asked.seed)
    noise = torch.randn(clean.shape, generator=generator)
    for step, latents in enumerate(seen):
        sigma = pipeline.scheduler.sigmas[step]
        wanted = ((1 - sigma) * clean + sigma * noise).permute(0, 2, 3, 4, 1)
        assert torch.allclose(latents, wanted, atol=1e-6), step
    assert len(seen) == STEPS
    assert torch.equal(ended[0], clean)  # the last level is without noise


def test_the_sound_depends_on_picture_prompt_and_seed_and_on_nothing_else(
    family: Any,
) -> None:
    one = heard(family, window())
    assert one.shape[1] == 1 and len(one) >= 25 / 24 * 44_100
    assert np.array_equal(one, heard(family, window()))
    assert np.abs(one - heard(family, window(1))).max() > 0.01
    assert not np.array_equal(one, heard(family, window(prompt="a cat")))
    assert not np.array_equal(one, heard(family, replace(window(), seed=5)))


@pytest.mark.parametrize(
    "recipe",
    [
        replace(CPU, offload="stream"),
        replace(CPU, offload="model"),
        replace(CPU, offload="layer"),
        replace(CPU, text_encoder="moved", attention="_native_math"),
    ],
    ids=lambda one: f"{one.offload}-{one.text_encoder}",
)
def test_every_recipe_gives_the_same_sound(
    family: Any, load: Callable[..., Any], recipe: Recipe
) -> None:
    other = load("wan-tiny-sound", recipe=recipe, steps=STEPS)
    assert np.allclose(heard(family, window()), heard(other, window()), atol=1e-5)  # type: ignore[arg-type]


def test_options_for_wan_s_blocks_are_left_out(load: Callable[..., Any]) -> None:
    compiled = replace(CPU, compiled=True, step_cache=0.1)
    family = load("wan-tiny-sound", recipe=compiled, steps=STEPS)
    assert (family.recipe.compiled, family.recipe.step_cache) == (False, None)
    family.warm_up(48, 32)
    assert family.spec.steps == STEPS


def test_bytes_are_reported_while_it_loads_and_end_at_the_total(
    family: Any, tiny_cache: Path
) -> None:
    told: list[tuple[int, int]] = []
    folder = tiny_cache / "wan-tiny-sound"
    load_family(family.spec, folder, CPU, on_bytes=lambda done, total: told.append((done, total)))
    assert told[0][0] == 0 and told[-1][0] == told[-1][1] > 10**6


def test_it_can_be_cancelled_in_every_part(family: Any) -> None:
    calls = 0

    def count(_step: int) -> None:
        nonlocal calls
        calls += 1

    family.hear(window(), count)
    assert calls > 2 * STEPS  # also between the parts of a step
    for stop_at in range(1, calls + 1):
        left = stop_at

        def stop(_step: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Cancelled

        with pytest.raises(Cancelled):
            family.hear(window(), stop)
    assert np.array_equal(heard(family, window()), heard(family, window()))


@pytest.mark.parametrize("part", ["vae", "transformer", "vocoder", "text_encoder"])
def test_numbers_that_are_not_finite_fail(load: Callable[..., Any], part: str) -> None:
    family = load("wan-tiny-sound", steps=STEPS)
    for parameter in getattr(family.pipeline, part).parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(NotFinite):
        heard(family, window())


def test_out_of_memory_is_reported_as_out_of_memory(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(family.pipeline.vae, "encode", full)
    with pytest.raises(OutOfMemory, match="too little GPU memory for wan-tiny-sound"):
        heard(family, window())


@pytest.mark.parametrize(
    ("prompt", "sound", "told"),
    [
        ("A dog barks", "", "A dog barks"),
        ('She says: "Come in", and waves', "", "She says: <S>Come in<E>, and waves"),
        ('A sign reads "OPEN"', "", 'A sign reads "OPEN"'),
        (
            "A dog barks",
            "rain on a roof, “come in”",
            "A dog barks <S>come in<E> <AUDCAP>rain on a roof,<ENDAUDCAP>",
        ),
        ("Hi <AUDCAP>rain<ENDAUDCAP>", "wind", "Hi <AUDCAP>rain<ENDAUDCAP>"),
    ],
)
def test_video_speech_and_sound_have_the_model_s_markers(
    prompt: str, sound: str, told: str
) -> None:
    assert prompt_of(SoundInput(prompt, sound, np.zeros((1, 2, 2, 3), np.uint8), 0)) == told


def test_a_prompt_is_embedded_once_for_all_windows_of_a_clip(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    stock = kandinsky.Kandinsky6TI2VAPipeline.encode_prompt

    def counted(self: Any, prompt: Any, *args: Any, **options: Any) -> Any:
        calls.append(prompt)
        return stock(self, prompt, *args, **options)

    monkeypatch.setattr(kandinsky.Kandinsky6TI2VAPipeline, "encode_prompt", counted)
    for prompt in ("one", "one", "two"):
        heard(family, window(prompt=prompt))
    assert calls == [["one"], ["two"]]
