"""The VAE encoding of known frames followed by grey: equal to the VAE's own `encode`, with less
work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

from wan_engine.families.first_frames import encode_then_grey

SIDE = 32
CAUSAL = {"temperal_downsample": [False, True, True], "z_dim": 16, "base_dim": 4}
KINDS: dict[str, dict[str, Any]] = {
    "of A14B": {**CAUSAL, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2},
    "of TI2V": {
        **CAUSAL,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "decoder_base_dim": 4,
    },
    "shallow": {**CAUSAL, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
}


def make(kind: str) -> Any:
    torch.manual_seed(5)
    return AutoencoderKLWan(**KINDS[kind]).eval()


def clip(known: int, frames: int) -> torch.Tensor:
    """Noise, then zeros from frame `known` on."""
    pixels = torch.zeros(1, 3, frames, SIDE, SIDE)
    pixels[:, :, :known].uniform_(-1, 1, generator=torch.Generator().manual_seed(known))
    return pixels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("known", "frames"), [(1, 1), (1, 5), (1, 81), (5, 5), (5, 81), (9, 57)])
def test_the_latents_are_those_of_the_whole_clip(kind: str, known: int, frames: int) -> None:
    vae, whole = make(kind), clip(known, frames)
    with torch.no_grad():
        wanted = vae.encode(whole).latent_dist.mode()
        assert torch.equal(encode_then_grey(vae, whole[:, :, :known], frames), wanted)
        assert wanted.shape[2] == (frames - 1) // 4 + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("known", "frames"), [(1, 5), (1, 81), (5, 9), (5, 81), (9, 57)])
def test_a_last_frame_gives_the_latents_of_the_whole_clip_too(
    kind: str, known: int, frames: int
) -> None:
    vae, whole = make(kind), clip(known, frames)
    whole[:, :, -1:].uniform_(-1, 1, generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        wanted = vae.encode(whole).latent_dist.mode()
        given = encode_then_grey(vae, whole[:, :, :known], frames, whole[:, :, -1:])
    assert torch.equal(given, wanted)


def test_nothing_of_one_clip_is_kept_for_the_next() -> None:
    vae = make("of A14B")
    first, second = clip(1, 41), clip(5, 41)
    with torch.no_grad():
        wanted = vae.encode(second).latent_dist.mode()
        encode_then_grey(vae, first[:, :, :1], 41)
        assert torch.equal(encode_then_grey(vae, second[:, :, :5], 41), wanted)
        vae.encoder.conv_out.register_forward_pre_hook(_stop)
        with pytest.raises(RuntimeError, match="stopped"):
            encode_then_grey(vae, first[:, :, :1], 41)
    assert all(feature is None for feature in vae._enc_feat_map)


def _stop(*_: Any) -> None:
    raise RuntimeError("stopped")


@pytest.mark.parametrize(("known", "share"), [(1, 0.32), (5, 0.37)])
def test_two_thirds_of_the_work_for_81_frames_are_skipped(known: int, share: float) -> None:
    vae, whole = make("of A14B"), clip(known, 81)
    counters = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with torch.no_grad():
        with counters[0]:
            vae.encode(whole)
        with counters[1]:
            encode_then_grey(vae, whole[:, :, :known], 81)
    all_of_it, ours = (counter.get_total_flops() for counter in counters)
    assert 0 < ours < share * all_of_it


def test_a_clip_that_does_not_settle_is_encoded_in_full() -> None:
    vae, whole = make("shallow"), clip(1, 21)
    with torch.no_grad():
        vae.encoder.conv_in.bias.fill_(float("nan"))  # NaN, which is not equal to itself
        latents = encode_then_grey(vae, whole[:, :, :1], 21)
    assert latents.shape == (1, 16, 6, 4, 4) and latents.isnan().all()
