"""The tiny Wan2.2-S2V whose outputs with the authors' own code are recorded in
`data/speech_equality.json`.

That code (Wan-Video/Wan2.2 at 42bf4cf, Apache-2.0) is not in this repository. Weights and inputs
come from numpy's generator, which gives the same numbers everywhere, so both sides can make them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILE = Path(__file__).parents[1] / "data" / "speech_equality.json"
MOST = 1e-4
"""The tolerance, relative to the largest number."""

CONFIG = {
    "dim": 48,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": 32,
    "num_heads": 2,
    "num_layers": 4,
    "audio_dim": 16,
    "audio_inject_layers": [0, 2, 3],
}
FRAMES, HEIGHT, WIDTH, TEXT = 3, 8, 16, 8
_SAMPLES = 24


def filled(network: Any, seed: int) -> Any:
    """The network, with weights that depend on their names and on `seed` alone."""
    state = {
        name: given(tuple(tensor.shape), seed + index, _scale(name, tuple(tensor.shape)))
        + (1.0 if name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight")) else 0.0)
        for index, (name, tensor) in enumerate(sorted(network.state_dict().items()))
    }
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _scale(name: str, shape: tuple[int, ...]) -> float:
    if len(shape) < 2 or name.endswith(("modulation", "cond_mask.weight")):
        return 0.1
    return 1.0 / float(np.sqrt(np.prod(shape[1:])))


def given(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> torch.Tensor:
    """Gaussian numbers, float32."""
    numbers = np.random.default_rng(seed).standard_normal(shape) * scale
    return torch.from_numpy(numbers.astype(np.float32))


def inputs() -> dict[str, torch.Tensor]:
    """Inputs of the whole network, by the argument names of `SpeechTransformer.forward`."""
    size = HEIGHT, WIDTH
    return {
        "hidden_states": given((1, 16, FRAMES, *size), 101),
        "timestep": torch.tensor([417.0]),
        "encoder_hidden_states": given((1, TEXT, 32), 102),
        "picture": given((1, 16, 1, *size), 103),
        "motion": given((1, 16, 19, *size), 104),
        "sound": given((1, 25, 16, 4 * FRAMES), 105),
        "pose": given((1, 16, FRAMES, *size), 106),
    }


def sampled(tensor: torch.Tensor) -> dict[str, Any]:
    """The record of a tensor: its shape, mean, norm, and some of its numbers."""
    flat = tensor.detach().double().flatten()
    places = np.random.default_rng(len(flat)).integers(0, len(flat), _SAMPLES)
    return {
        "shape": list(tensor.shape),
        "mean": float(flat.mean()),
        "norm": float(flat.norm()),
        "largest": float(flat.abs().max()),
        "samples": [float(flat[place]) for place in places],
    }


def difference(tensor: torch.Tensor, name: str) -> float:
    """The largest difference between `tensor` and its record, relative to the largest number."""
    wanted = json.loads(FILE.read_text("utf-8"))[name]
    found = sampled(tensor)
    assert found["shape"] == wanted["shape"]
    off = np.abs(np.subtract(found["samples"], wanted["samples"])).max() / wanted["largest"]
    norm = abs(found["norm"] - wanted["norm"]) / wanted["norm"]
    return float(max(off, norm, abs(found["mean"] - wanted["mean"]) / wanted["largest"]))
