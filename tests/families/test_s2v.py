"""Speech-to-video on a tiny pipeline: its inputs, its continuation, and the sound it hears."""

from __future__ import annotations

import json
import re
import shutil
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2ForCTC, Wav2Vec2Model

from tests.rows import ROWS
from wan_engine.errors import Cancelled, EncodeFailed, NotServed
from wan_engine.families import load_family
from wan_engine.families.base import stream_decode
from wan_engine.families.continuation import latent_moments, to_pixels
from wan_engine.families.sound_features import HEARD_HZ, heard, loudness, of_frames
from wan_engine.families.speech_pipeline import begun_with
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import AudioTrack, Carry, DrivingSound, FirstPicture, SegmentInput

NAME = "wan-tiny-s2v"
WIDTH, HEIGHT = 64, 64
PICTURE = Image.linear_gradient("L").convert("RGB").resize((WIDTH, HEIGHT))
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def family(load: Load) -> Any:
    return load(NAME, steps=2)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> AudioTrack:
    """Three seconds of sound: a tone that is loud in every second half second."""
    return written(tmp_path_factory.mktemp("sound") / "a.wav", pulses(3.0))


def pulses(seconds: float) -> np.ndarray[Any, Any]:
    times = np.arange(round(seconds * 48_000)) / 48_000
    return np.sin(2 * np.pi * 220 * times) * np.where((times * 2).astype(int) % 2, 0.8, 0.02)


def written(path: Path, samples: np.ndarray[Any, Any]) -> AudioTrack:
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 48_000, 0, "NONE", ""))
        file.writeframes(np.stack([samples * 32767] * 2, axis=1).astype("<i2").tobytes())
    return AudioTrack(path, len(samples) / 48_000)


def asked(
    track: AudioTrack,
    *,
    start: float = 0.0,
    carry: Carry | None = None,
    frames: int = 8,
    continued: bool = False,
    seed: int = 5,
) -> SegmentInput:
    conditions = (FirstPicture(PICTURE), DrivingSound(track, start, 5.0), carry or Carry())
    return SegmentInput(
        "she speaks", "blurry", conditions, WIDTH, HEIGHT, frames, seed, continued=continued
    )


def frames_of(family: Any, segment: SegmentInput) -> Any:
    return np.concatenate(list(family.render(segment, lambda _step: None).frames))


def seen(family: Any, segment: SegmentInput) -> list[dict[str, Any]]:
    """The inputs of each forward call of the transformer."""
    found: list[dict[str, Any]] = []

    def note(_module: Any, positional: Any, given: dict[str, Any]) -> None:
        found.append({**given, "latents": positional[0], "time": positional[1]})

    hook = family.pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        family.denoise(segment, lambda _step: None)
    finally:
        hook.remove()
    return found


def encoded(family: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised latents, computed by the VAE's own method."""
    vae = family.pipeline.vae
    with torch.inference_mode():
        latents = vae.encode(pixels).latent_dist.mode()
    mean, std = latent_moments(vae, latents)
    return (latents - mean) / std


# --- inputs of the transformer -------------------------------------------------------------------


def test_a_clip_begins_with_the_picture_and_is_guided_away_from_silence(
    family: Any, speech: AudioTrack
) -> None:
    calls = seen(family, asked(speech))
    assert len(calls) == 2 * 2  # two steps, with and without sound
    picture = to_pixels(np.array(PICTURE)[None])
    before = torch.zeros(1, 3, 73, HEIGHT, WIDTH)
    before[:, :, -6:] = picture
    for call in calls:
        assert torch.allclose(call["motion"], encoded(family, before), atol=1e-4)
        assert torch.allclose(call["picture"], encoded(family, picture), atol=1e-4)
        assert call["latents"].shape == (1, 16, 2, HEIGHT // 8, WIDTH // 8)
    assert calls[0]["sound"].shape == (1, 3, 16, 8) and calls[0]["sound"].abs().max() > 0.1
    assert calls[1]["sound"].abs().max() == 0
    assert torch.equal(calls[0]["latents"], calls[1]["latents"])


def test_a_later_segment_continues_from_the_last_73_frames_before_they_are_rounded(
    family: Any, speech: AudioTrack
) -> None:
    carry = Carry()
    first = frames_of(family, asked(speech, carry=carry, continued=True))
    assert carry.pixels.shape == (1, 3, 73, HEIGHT, WIDTH)
    rounded = carry.pixels[0, :, -8:].permute(1, 2, 3, 0).add(1).mul(127.5).round()
    assert np.array_equal(rounded.numpy().astype(np.uint8), first)
    picture = to_pixels(np.array(PICTURE)[None])
    assert torch.allclose(carry.pixels[:, :, :65], begun_with(picture)[:, :, 8:])
    before = carry.pixels.clone()
    call = seen(family, asked(speech, carry=carry, start=0.5, seed=6))[0]
    assert torch.allclose(call["motion"], encoded(family, before), atol=1e-4)


def test_frames_equal_the_end_of_the_whole_decode(family: Any, speech: AudioTrack) -> None:
    segment = asked(speech)
    latents = family.denoise(segment, lambda _step: None)
    assert latents.shape[2] == 19 + 2
    mean, std = latent_moments(family.pipeline.vae, latents)
    whole = torch.cat(list(stream_decode(family.pipeline.vae, latents * std + mean)), dim=2)
    pixels = whole[0, :, -8:].permute(1, 2, 3, 0).add(1).mul(127.5).round()
    found = list(family.decode(latents))
    assert np.array_equal(np.concatenate(found), pixels.numpy().astype(np.uint8))
    assert max(len(chunk) for chunk in found) == 4  # memory does not grow with the clip


@pytest.mark.system
def test_a_seed_gives_the_same_frames_and_another_sound_gives_others(
    family: Any, speech: AudioTrack, tmp_path: Path
) -> None:
    clips = [frames_of(family, asked(speech)) for _ in "12"]
    assert np.array_equal(*clips)
    other = written(tmp_path / "other.wav", pulses(3.0)[::-1].copy())
    assert not np.array_equal(clips[0], frames_of(family, asked(other)))


def test_missing_inputs_are_reported_before_a_step(family: Any) -> None:
    segment = SegmentInput("x", "", (FirstPicture(PICTURE),), WIDTH, HEIGHT, 8, seed=1)

    def never(_step: int) -> None:
        raise AssertionError("it has begun")

    with pytest.raises(NotServed, match="needs driving_sound"):
        family.render(segment, never)


def test_a_job_ends_in_every_stage_before_the_latents(family: Any, speech: AudioTrack) -> None:
    for stage in ("text_encoder", "audio_encoder", "vae.encoder.conv_out", "transformer"):
        begun: list[str] = []
        hook = family.pipeline
        for name in stage.split("."):
            hook = getattr(hook, name)
        entered = hook.register_forward_pre_hook(lambda *_, to=begun: to.append("begun"))
        family._texts._known.clear()

        def on_step(_step: int, begun: list[str] = begun) -> None:
            if begun:
                raise Cancelled

        try:
            with pytest.raises(Cancelled):
                family.render(asked(speech), on_step)
        finally:
            entered.remove()
        assert begun, stage
    frames_of(family, asked(speech))  # the next job is unaffected


def test_a_job_can_end_while_the_frames_before_are_decoded(family: Any, speech: AudioTrack) -> None:
    clip = family.render(asked(speech), lambda _step: None)
    assert [len(next(clip.frames)) for _ in range(19)] == [0] * 19
    clip.frames.close()
    frames_of(family, asked(speech))


def test_the_warm_up_uses_all_networks(family: Any) -> None:
    used: set[str] = set()
    parts = "text_encoder", "audio_encoder", "transformer", "vae.encoder.conv_out", "vae.decoder"
    hooks = []
    for part in parts:
        module = family.pipeline
        for name in part.split("."):
            module = getattr(module, name)
        hooks.append(module.register_forward_pre_hook(lambda *_, part=part: used.add(part)))
    family._texts._known.clear()
    family.warm_up(WIDTH, HEIGHT)
    for hook in hooks:
        hook.remove()
    assert used == set(parts)


# --- the sound -----------------------------------------------------------------------------------


def test_short_sound_is_followed_by_silence_and_long_sound_ends_with_the_clip(
    tmp_path: Path,
) -> None:
    track = written(tmp_path / "a.wav", pulses(2.0))
    short = heard(track, 5.0, 1.0)
    assert len(short) == 6 * HEARD_HZ
    assert short[: 2 * HEARD_HZ].std() == pytest.approx(1.0, abs=0.01)
    assert short[2 * HEARD_HZ :].abs().max() == 0
    long = heard(written(tmp_path / "b.wav", pulses(20.0)), 5.0, 1.0)
    assert len(long) == 6 * HEARD_HZ and long[5 * HEARD_HZ :].abs().max() == 0


@pytest.mark.parametrize(("hertz", "kept"), [(300, 1.0), (3000, 1.0), (7000, 1.0), (11_000, 0.0)])
def test_resampling_keeps_what_the_lower_rate_holds_and_does_not_alias(
    tmp_path: Path, hertz: int, kept: float
) -> None:
    times = np.arange(48_000) / 48_000
    loud = 0.1 * np.sin(2 * np.pi * 100 * times)  # so that there is something to compare
    track = written(tmp_path / "a.wav", loud + 0.1 * np.sin(2 * np.pi * hertz * times))
    spectrum = np.abs(np.fft.rfft(heard(track, 1.0, 0.0).numpy()))
    folded = hertz if hertz < HEARD_HZ / 2 else HEARD_HZ - hertz
    assert spectrum[folded] / spectrum[100] == pytest.approx(kept, abs=0.03)


def test_each_frame_hears_its_own_time() -> None:
    """The features are their own time in seconds. The authors' grid ends with the last feature, so
    that it is late by 1 / 40 s at its end, and they take the nearest of 30 features a second."""
    times = (torch.arange(249) / 50)[None, :, None].expand(3, 249, 2)
    found = of_frames(times, 0.0, 84, 16)[0, 1, 0]
    wanted = torch.arange(84) / 16
    here = wanted * 30 < 148.5
    assert (found - wanted)[here].abs().max() < 1 / 40 + 1 / 60
    assert found[~here].abs().max() == 0
    later = of_frames(times, 2.5, 20, 16)[0, 1, 0]
    assert torch.equal(later, of_frames(times, 0.0, 60, 16)[0, 1, 0, 40:])


def test_silence_is_heard_as_silence_and_an_unusable_file_is_refused(tmp_path: Path) -> None:
    quiet = heard(written(tmp_path / "a.wav", np.zeros(48_000)), 1.0, 0.0)
    assert quiet.abs().max() == 0
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(EncodeFailed):
        heard(AudioTrack(tmp_path / "b.wav", 1.0), 1.0, 0.0)


def test_loudness_is_reported_for_each_frame(tmp_path: Path) -> None:
    found = loudness(written(tmp_path / "a.wav", pulses(2.0)), 16, 40)
    assert found[12] > 0.5 > 0.02 > found[4] and found[35] == 0


# --- other recipes and layouts -------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.parametrize("offload", ["stream", "layer"])
def test_moved_blocks_give_the_same_frames(
    family: Any, load: Load, speech: AudioTrack, offload: Any
) -> None:
    moved = load(NAME, steps=2, recipe=Recipe("cpu", "float32", offload))
    assert np.array_equal(frames_of(moved, asked(speech)), frames_of(family, asked(speech)))


OTHER_NAMES = (
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"\bself_attn\.", "attn1."),
    (r"\bcross_attn\.", "attn2."),
    (r"\b(attn\d|injector\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"\b(attn\d|injector\.\d+)\.o\.", r"\1.to_out.0."),
    (r"\bffn\.0\.", "ffn.net.0.proj."),
    (r"\bffn\.2\.", "ffn.net.2."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"\bmodulation$", "scale_shift_table"),
    (r"^head\.head\.", "proj_out."),
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^cond_encoder\.", "condition_embedder.pose_embedder."),
    (r"^casual_audio_encoder\.weights$", "casual_audio_encoder.weighted_avg.weights"),
    (r"^casual_audio_encoder\.", "condition_embedder.causal_audio_encoder."),
    (r"\.conv2\.conv\.", ".conv2.conv.conv."),
    (r"^trainable_cond_mask\.", "trainable_condition_mask."),
)


def other_name(name: str) -> str:
    """Bytes of a weight in diffusers' pull request 12258."""
    for pattern, replacement in OTHER_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.system
def test_the_other_layout_gives_the_same_frames(
    family: Any, tiny_cache: Path, speech: AudioTrack, tmp_path: Path
) -> None:
    """Converts its names and its configuration, with a speech model that has a head for letters."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_cache / NAME, folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({other_name(name): one for name, one in state.items()}, path)
    assert len(set(load_file(path)) & set(state)) < len(state) / 4
    config = {
        "num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 16, "out_channels": 16,
        "text_dim": 32, "freq_dim": 32, "audio_dim": 16, "pose_dim": 16, "ffn_dim": 64,
        "num_layers": 3, "num_weighted_avg_layers": 3, "audio_inject_layers": [0, 2],
    }  # fmt: skip
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    speaking = Wav2Vec2ForCTC(Wav2Vec2Model.from_pretrained(folder / "audio_encoder").config)
    speaking.wav2vec2.load_state_dict(family.pipeline.audio_encoder.state_dict())
    shutil.rmtree(folder / "audio_encoder")
    speaking.save_pretrained(folder / "audio_encoder")
    row = replace(ROWS[NAME], steps=2)
    loaded = load_family(row, folder, Recipe("cpu", "float32"))
    assert np.array_equal(frames_of(loaded, asked(speech)), frames_of(family, asked(speech)))
