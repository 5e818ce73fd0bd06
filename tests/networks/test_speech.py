"""The transformer of Wan2.2-S2V compared with its authors' own: names of weights, and recorded
numbers."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights

from tests.networks.recorded import (
    CONFIG,
    FRAMES,
    HEIGHT,
    MOST,
    TEXT,
    WIDTH,
    difference,
    filled,
    given,
    inputs,
)
from wan_engine.errors import ConfigurationError
from wan_engine.networks.speech import SpeechTransformer
from wan_engine.networks.speech_names import native_config, native_name
from wan_engine.networks.speech_positions import Grid, grids, rotary

ROWS, COLUMNS = HEIGHT // 2, WIDTH // 2
VIDEO = FRAMES * ROWS * COLUMNS
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> Any:
    return filled(SpeechTransformer(**CONFIG), seed=7)


def test_the_names_of_weights_are_the_published_ones(data: Path) -> None:
    lines = (line.partition(" ") for line in (data / "speech_keys.txt").read_text().splitlines())
    published = {name: ast.literal_eval(shape) for name, _, shape in lines}
    with init_empty_weights():
        made = SpeechTransformer()
    assert len(published) == 1260
    assert {name: tuple(one.shape) for name, one in made.state_dict().items()} == published
    assert round(sum(one.numel() for one in made.parameters()) / 1e9, 4) == 16.2958


# --- comparison with the authors' numbers --------------------------------------------------------


def boxes() -> list[Grid]:
    return list(grids(FRAMES, ROWS, COLUMNS, motion=True))


def encoder_tokens(network: Any) -> torch.Tensor:
    return network.casual_audio_encoder(inputs()["sound"])[0]


def encoder_vectors(network: Any) -> torch.Tensor:
    return network.casual_audio_encoder(inputs()["sound"])[1]


def positions(at: int, *, packed: bool) -> torch.Tensor:
    found = rotary(boxes()[2:] if packed else boxes(), 24, CPU)[at][0, :, 0]
    return found


def one_block(network: Any) -> torch.Tensor:
    tokens = VIDEO + ROWS * COLUMNS + 48
    times = given((1, 6, 2, 48), 202)[0].transpose(0, 1)
    text = given((1, TEXT, 48), 203)
    at = rotary(boxes(), 24, CPU)
    return network.blocks[1](given((1, tokens, 48), 201), text, times, at, VIDEO)


def injected(network: Any) -> torch.Tensor:
    tokens = given((1, VIDEO + ROWS * COLUMNS + 48, 48), 201)
    heard, whole = given((1, FRAMES, 5, 48), 205)[0], given((1, FRAMES, 1, 48), 204)[0, :, 0]
    shown = network.audio_injector(1, tokens[:, :VIDEO], heard, whole)
    return torch.cat([shown, tokens[:, VIDEO:]], dim=1)


def whole(network: Any, **changes: Any) -> torch.Tensor:
    return network(**{**inputs(), **changes})


EQUAL: dict[str, Callable[[Any], torch.Tensor]] = {
    "audio encoder, tokens": encoder_tokens,
    "audio encoder, vectors": encoder_vectors,
    "one block": one_block,
    "sound injected": injected,
    "packed frames": lambda network: network.frame_packer(inputs()["motion"]),
    "packed frames, five": lambda network: network.frame_packer(inputs()["motion"][:, :, :5]),
    "positions of packed frames, cosines": lambda _: positions(0, packed=True),
    "positions of packed frames, sines": lambda _: positions(1, packed=True),
    "positions, cosines": lambda _: positions(0, packed=False),
    "positions, sines": lambda _: positions(1, packed=False),
    "whole forward": whole,
    "whole forward without pose": lambda network: whole(network, pose=None),
    "whole forward without what was before": lambda network: whole(
        network, pose=None, first_moves_freely=True
    ),
    "whole forward without sound": lambda network: whole(
        network, pose=None, sound=0 * inputs()["sound"]
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_it_computes_what_the_authors_code_computes(network: Any, name: str) -> None:
    with torch.inference_mode():
        assert difference(EQUAL[name](network), name) < MOST


# --- comparison with plain arithmetic ------------------------------------------------------------


def test_motion_frames_are_embedded_by_time_and_spread_over_the_picture() -> None:
    found = list(grids(21, 44, 64, motion=True))
    assert [box.times for box in found[1:]] == [(30,), (-1,), (-3,), (-19, -14, -9, -4)]
    assert [(len(box.rows), len(box.columns)) for box in found] == [
        *[(44, 64)] * 3,
        (22, 32),
        (11, 16),
    ]
    assert (found[4].rows[0], found[4].rows[-1], found[4].columns[-1]) == (0, 43, 63)
    assert len(list(grids(21, 44, 64, motion=False))) == 2


def test_sound_reaches_its_own_latent_frame_and_later_ones_alone(network: Any) -> None:
    sound = given((1, 25, 16, 40), 3)
    changed = sound.clone()
    changed[..., 20:24] += 1.0  # of the sixth latent frame of ten
    with torch.inference_mode():
        before, after = (network._heard(one) for one in (sound, changed))
    for one, other in zip(before, after, strict=True):
        moved = (one - other).flatten(1).norm(dim=1)
        assert moved[:5].max() == 0 and moved[5:7].min() > 1e-3 and moved[8:].max() == 0


def test_a_backend_is_set_for_every_attention(network: Any) -> None:
    network.set_attention_backend("_native_math")
    layers = [module for module in network.modules() if hasattr(module, "processor")]
    assert len(layers) == 2 * 4 + 3
    assert {layer.processor._attention_backend.value for layer in layers} == {"_native_math"}
    with torch.inference_mode():
        assert difference(whole(network), "whole forward") < MOST
    network.set_attention_backend("native")


# --- the other layout ----------------------------------------------------------------------------

RENAMED = {
    "blocks.7.attn1.to_q.weight": "blocks.7.self_attn.q.weight",
    "blocks.7.attn2.to_out.0.bias": "blocks.7.cross_attn.o.bias",
    "blocks.7.attn2.norm_k.weight": "blocks.7.cross_attn.norm_k.weight",
    "blocks.7.norm2.weight": "blocks.7.norm3.weight",
    "blocks.7.ffn.net.0.proj.weight": "blocks.7.ffn.0.weight",
    "blocks.7.ffn.net.2.bias": "blocks.7.ffn.2.bias",
    "blocks.7.scale_shift_table": "blocks.7.modulation",
    "scale_shift_table": "head.modulation",
    "proj_out.weight": "head.head.weight",
    "patch_embedding.weight": "patch_embedding.weight",
    "condition_embedder.time_embedder.linear_2.bias": "time_embedding.2.bias",
    "condition_embedder.text_embedder.linear_1.weight": "text_embedding.0.weight",
    "condition_embedder.time_proj.weight": "time_projection.1.weight",
    "condition_embedder.pose_embedder.bias": "cond_encoder.bias",
    "condition_embedder.causal_audio_encoder.weighted_avg.weights": "casual_audio_encoder.weights",
    "condition_embedder.causal_audio_encoder.encoder.conv2.conv.conv.weight": (
        "casual_audio_encoder.encoder.conv2.conv.weight"
    ),
    "condition_embedder.casual_audio_encoder.encoder.conv1_local.conv.bias": (
        "casual_audio_encoder.encoder.conv1_local.conv.bias"
    ),
    "condition_embedder.causal_audio_encoder.encoder.padding_tokens": (
        "casual_audio_encoder.encoder.padding_tokens"
    ),
    "trainable_condition_mask.weight": "trainable_cond_mask.weight",
    "audio_injector.injector.3.to_v.weight": "audio_injector.injector.3.v.weight",
    "audio_injector.injector.3.to_out.0.weight": "audio_injector.injector.3.o.weight",
    "audio_injector.injector_adain_layers.3.linear.weight": (
        "audio_injector.injector_adain_layers.3.linear.weight"
    ),
    "frame_packer.proj_2x.weight": "frame_packer.proj_2x.weight",
}


@pytest.mark.parametrize("name", RENAMED)
def test_names_of_the_other_layout_become_the_authors(name: str) -> None:
    assert native_name(name) == RENAMED[name]


def test_the_authors_names_do_not_change(data: Path) -> None:
    names = [line.split()[0] for line in (data / "speech_keys.txt").read_text().splitlines()]
    assert [native_name(name) for name in names] == names


def test_settings_of_both_layouts_make_the_published_network() -> None:
    with init_empty_weights():
        published = dict(SpeechTransformer().config)
    settings = {name for name in published if not name.startswith("_")}
    authors = {
        "_class_name": "WanModel_S2V", "model_type": "s2v", "dim": 5120, "ffn_dim": 13824,
        "freq_dim": 256, "in_dim": 16, "out_dim": 16, "num_heads": 40, "num_layers": 40,
        "eps": 1e-6, "cond_dim": 16, "audio_dim": 1024, "num_audio_token": 4, "text_len": 512,
        "audio_inject_layers": [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39],
        "enable_adain": True, "adain_mode": "attn_norm", "enable_motioner": False,
        "enable_framepack": True, "framepack_drop_mode": "padd", "zero_init": True,
        "zero_timestep": True, "add_last_motion": True, "enable_tsm": False,
    }  # fmt: skip
    diffusers = {
        "_class_name": "WanS2VTransformer3DModel", "num_attention_heads": 40,
        "attention_head_dim": 128, "in_channels": 16, "out_channels": 16, "text_dim": 4096,
        "freq_dim": 256, "audio_dim": 1024, "pose_dim": 16, "ffn_dim": 13824, "num_layers": 40,
        "num_weighted_avg_layers": 25, "enable_adain": True, "adain_mode": "attn_norm",
        "enable_framepack": True, "framepack_drop_mode": "padd", "zero_timestep": True,
        "add_last_motion": True, "patch_size": [1, 2, 2],
    }  # fmt: skip
    for given_ in (authors, diffusers):
        found = native_config(given_)
        assert set(found) <= set(inspect.signature(SpeechTransformer).parameters) == settings
        with init_empty_weights():
            made = dict(SpeechTransformer.from_config(found).config)
        for name in settings:
            assert json.dumps(made[name]) == json.dumps(published[name])


def test_another_variant_of_the_network_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="enable_motioner is True"):
        native_config({"enable_motioner": True})
