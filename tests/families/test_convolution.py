"""Convolutions of the VAE on a CPU: which of torch's implementations runs, and that results are
equal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.profiler import ProfilerActivity, profile

from wan_engine import toy
from wan_engine.families.base import stream_decode, to_frames
from wan_engine.families.convolution import use_onednn

Load = Callable[..., Any]
SLOW, FAST = "aten::slow_conv3d_forward", "aten::mkldnn_convolution"

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN"
)


def calls(work: Callable[[], Any]) -> dict[str, int]:
    """The number of calls of each of torch's operations."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    return {event.key: event.count for event in seen.key_averages()}


@pytest.fixture
def stock(tiny_cache: Path) -> Any:
    folder = toy.build("wan-tiny", tiny_cache / "wan-tiny")
    return AutoencoderKLWan.from_pretrained(folder, subfolder="vae")


def latents() -> torch.Tensor:
    return torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(1))


def test_small_frames_are_decoded_by_onednn(load: Load, stock: Any) -> None:
    ours = load("wan-tiny").pipeline.vae
    with torch.no_grad():
        before = calls(lambda: stock.decode(latents()))
        after = calls(lambda: ours.decode(latents()))
    kernels = [
        module.kernel_size for module in stock.decoder.modules() if hasattr(module, "_padding")
    ]
    large = sum(kernel == (3, 3, 3) for kernel in kernels)
    assert large > 5
    assert before[SLOW] - after.get(SLOW, 0) == 3 * large  # once for each of three latents
    assert after[FAST] - before.get(FAST, 0) == 3 * large


def test_the_frames_equal_stock_up_to_rounding(load: Load, stock: Any) -> None:
    ours = load("wan-tiny").pipeline.vae
    with torch.no_grad():
        wanted = stock.decode(latents()).sample
        assert (ours.decode(latents()).sample - wanted).abs().max() < 1e-4
    frames, plain = (
        np.concatenate(list(to_frames(stream_decode(vae, latents())))).astype(int)
        for vae in (ours, stock)
    )
    assert abs(frames - plain).max() <= 1 and (frames != plain).mean() < 0.001


def test_what_onednn_does_not_support_is_left_to_torch(stock: Any) -> None:
    """Uses a copy in another dtype, as a GPU's last decode does."""
    use_onednn(stock)
    narrow = copy.deepcopy(stock).to(torch.bfloat16)
    with torch.no_grad():
        decoded = narrow.decode(latents().bfloat16()).sample
    assert decoded.dtype == torch.bfloat16 and decoded.isfinite().all()


def test_strides_and_gradients_use_stock() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv3d(4, 6, 3, stride=(1, 2, 2), padding=(1, 0, 1), dilation=1, groups=2)
    ours = copy.deepcopy(plain)
    use_onednn(ours)
    given = torch.randn(1, 4, 5, 9, 8)
    assert torch.allclose(ours(given), plain(given), atol=1e-5)
    ours(given).square().sum().backward()
    plain(given).square().sum().backward()
    assert torch.allclose(ours.weight.grad, plain.weight.grad, atol=1e-3)
