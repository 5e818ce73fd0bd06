"""Small LoRA files of every kind, and the change that each makes to a small network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from wan_engine.errors import ConfigurationError
from wan_engine.families import lora
from wan_engine.weights import LocatedLora, lora_plan
from wan_engine.weights.lora_file import Tensor

Tensors = dict[str, torch.Tensor]
WIDTH, RANK, SCALE = 24, 4, 0.7


def network(*, image_encoder: bool = True, in_channels: int = 36) -> Any:
    """A network like Wan2.1-I2V, which has every layer that any of the models has."""
    torch.manual_seed(5)
    encoder = {"image_dim": 20, "added_kv_proj_dim": WIDTH, "pos_embed_seq_len": 8}
    made = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=64,
        **(encoder if image_encoder else {}),
    )
    for parameter in made.parameters():  # biases and norms other than 0 and 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def save(tensors: Tensors, path: Path, metadata: Any = None) -> None:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata)


def lora_file(path: Path, network: Any, seed: int, *, size: float = 0.3) -> Path:
    """A file that changes every matrix, bias and norm of a network, and its convolution."""
    made: Tensors = {}
    for number, (name, one) in enumerate(network.named_parameters()):
        layer, _, last = name.rpartition(".")
        if last == "weight" and one.ndim > 1:
            down = noise(2, *one.shape[1:], seed=seed + number)
            made[f"transformer.{layer}.lora_A.weight"] = down
            made[f"transformer.{layer}.lora_B.weight"] = size * noise(one.shape[0], 2, seed=seed)
        elif last in ("weight", "bias"):
            end = "diff" if last == "weight" else "diff_b"
            made[f"transformer.{layer}.{end}"] = size * noise(*one.shape, seed=seed + number)
    save_file(made, path)
    return path


def parameters_of(network: Any) -> lora_plan.Parameters:
    """The network's parameters, as the header of a safetensors file describes them."""
    return {
        name: Tensor(str(one.dtype), tuple(one.shape)) for name, one in network.named_parameters()
    }


def fused(
    base: Any, tensors: Tensors, folder: Path, *, unused: float = 0, metadata: Any = None
) -> Mapping[str, torch.Tensor]:
    """The parameters of `base` after fusing a file with these tensors. `base` is not changed."""
    path = folder / "a.safetensors"
    save(tensors, path, metadata)
    return fused_file(base, LocatedLora(path, SCALE, "high", unused))


def fused_file(base: Any, file: LocatedLora) -> Mapping[str, torch.Tensor]:
    parameters = dict(base.named_parameters())
    before = {name: one.data for name, one in parameters.items()}
    try:
        lora.fuse(base, "high", [lora_plan.plan(file, {"high": parameters_of(base)})])
        return {name: one.data for name, one in parameters.items()}
    finally:
        for name, one in parameters.items():
            one.data = before[name]


def refusal(base: Any, tensors: Tensors, folder: Path, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        fused(base, tensors, folder, **options)
    return str(caught.value)


def assert_sum(
    base: Any, after: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> None:
    """Asserts that `after` is `base` plus SCALE times `wanted` for each parameter, in float64, and
    nothing else has changed."""
    for name, parameter in base.named_parameters():
        expected = parameter.detach().double()
        if name not in wanted:
            assert torch.equal(after[name], parameter), name
            continue
        expected = expected + SCALE * wanted[name].double().reshape(parameter.shape)
        error = (after[name].double() - expected).abs().max() / expected.abs().max()
        assert error <= 1e-6, f"{name}: {error:.1e}"


@dataclass(frozen=True)
class Kind:
    """The part of a LoRA file for one layer: tensors by the end of their key, and the change of
    each parameter before scaling. A parameter has the end of diffusers' name; "" is the layer
    itself."""

    layer: tuple[str, str]
    tensors: Tensors
    adds: Mapping[str, torch.Tensor]


Q = ("blocks.0.self_attn.q", "blocks.0.attn1.to_q")
CONVOLUTION = ("patch_embedding", "patch_embedding")
DOWN, UP = noise(RANK, WIDTH, seed=11), noise(WIDTH, RANK, seed=12)
PAIR = {".lora_down.weight": DOWN, ".lora_up.weight": UP}
DIFFERENCE, BIAS = noise(WIDTH, WIDTH, seed=13), noise(WIDTH, seed=14)


def alpha(value: Any, dtype: torch.dtype, shape: Sequence[int] = ()) -> Kind:
    tensor = torch.full(tuple(shape), value).to(dtype)
    adds = {".weight": float(tensor.float().reshape(())) / RANK * UP.double() @ DOWN.double()}
    return Kind(Q, {**PAIR, ".alpha": tensor}, adds)


def stored(dtype: torch.dtype) -> Kind:
    down, up = DOWN.to(dtype), UP.to(dtype)
    return Kind(
        Q,
        {".lora_down.weight": down, ".lora_up.weight": up, ".alpha": torch.tensor(8.0)},
        {".weight": 2 * up.double() @ down.double()},
    )


def of_convolution(down: torch.Tensor, up: torch.Tensor) -> Kind:
    product = up.flatten(1).double() @ down.flatten(1).double()
    tensors = {".lora_down.weight": down, ".lora_up.weight": up, ".alpha": torch.tensor(2)}
    return Kind(CONVOLUTION, tensors, {".weight": product * 2 / RANK})


def loha(rows: int, columns: int) -> Kind:
    first, second, third, fourth = (
        noise(*shape, seed=seed)
        for seed, shape in enumerate(((rows, 3), (3, columns), (rows, 3), (3, columns)))
    )
    tensors = {
        ".hada_w1_a": first,
        ".hada_w1_b": second,
        ".hada_w2_a": third,
        ".hada_w2_b": fourth,
        ".alpha": torch.tensor(6.0),
    }
    product = (first.double() @ second.double()) * (third.double() @ fourth.double())
    return Kind(("blocks.0.ffn.0", "blocks.0.ffn.net.0.proj"), tensors, {".weight": 2 * product})


def lokr(first: Tensors, second: Tensors, factor: float) -> Kind:
    def whole(parts: Tensors) -> torch.Tensor:
        tensors = [tensor.double() for tensor in parts.values()]
        return tensors[0] @ tensors[1] if len(tensors) == 2 else tensors[0]

    product = torch.kron(whole(first), whole(second))
    return Kind(Q, {**first, **second, ".alpha": torch.tensor(6)}, {".weight": factor * product})


KINDS: dict[str, Kind] = {
    "no alpha": Kind(Q, PAIR, {".weight": UP.double() @ DOWN.double()}),
    "alpha, float32": alpha(8.0, torch.float32),
    "alpha, float16 in a list": alpha(2.5, torch.float16, [1]),
    "alpha, bfloat16 in a matrix": alpha(16.0, torch.bfloat16, [1, 1]),
    "alpha, integer": alpha(3, torch.int64),
    "bfloat16": stored(torch.bfloat16),
    "float16": stored(torch.float16),
    "float8_e4m3fn": stored(torch.float8_e4m3fn),
    "float8_e5m2": stored(torch.float8_e5m2),
    "a pair and its bias": Kind(
        Q, {**PAIR, ".diff_b": BIAS}, {".weight": UP.double() @ DOWN.double(), ".bias": BIAS}
    ),
    "a pair beside a difference": Kind(
        Q,
        {**PAIR, ".diff": DIFFERENCE, ".alpha": torch.tensor(2.0)},
        {".weight": UP.double() @ DOWN.double() / 2 + DIFFERENCE},
    ),
    "peft's bias of a pair": Kind(
        Q,
        {
            ".lora_A.weight": DOWN,
            ".lora_B.weight": UP,
            ".lora_B.bias": BIAS,
            ".alpha": torch.tensor(8),
        },
        {".weight": 2 * UP.double() @ DOWN.double(), ".bias": 2 * BIAS},
    ),
    "a given rank": Kind(
        Q, {**PAIR, ".rank": torch.tensor(RANK)}, {".weight": UP.double() @ DOWN.double()}
    ),
    "a difference": Kind(Q, {".diff": DIFFERENCE}, {".weight": DIFFERENCE}),
    "a bias alone": Kind(Q, {".diff_b": BIAS}, {".bias": BIAS}),
    "a norm of queries": Kind(
        ("blocks.0.self_attn.norm_q", "blocks.0.attn1.norm_q"), {".diff": BIAS}, {".weight": BIAS}
    ),
    "a norm of the picture's keys": Kind(
        ("blocks.1.cross_attn.norm_k_img", "blocks.1.attn2.norm_added_k"),
        {".diff": BIAS},
        {".weight": BIAS},
    ),
    "a norm with its bias": Kind(
        ("blocks.1.norm3", "blocks.1.norm2"),
        {".diff": BIAS, ".diff_b": 2 * BIAS},
        {".weight": BIAS, ".bias": 2 * BIAS},
    ),
    "a norm of LyCORIS": Kind(
        ("blocks.1.norm3", "blocks.1.norm2"),
        {".w_norm": BIAS, ".b_norm": 2 * BIAS},
        {".weight": BIAS, ".bias": 2 * BIAS},
    ),
    "a norm of the image embedding": Kind(
        ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
        {".diff": BIAS, ".diff_b": 2 * BIAS},
        {".weight": BIAS, ".bias": 2 * BIAS},
    ),
    "modulation": Kind(
        ("blocks.1.modulation", "blocks.1.scale_shift_table"),
        {".diff": noise(1, 6, WIDTH)},
        {"": noise(1, 6, WIDTH)},
    ),
    "modulation of LightX2V": Kind(
        ("blocks.1", "blocks.1"),
        {".diff_m": noise(6, WIDTH)},
        {".scale_shift_table": noise(6, WIDTH)},
    ),
    "modulation of the head": Kind(
        ("head.modulation", "scale_shift_table"),
        {".diff": noise(1, 2, WIDTH)},
        {"": noise(1, 2, WIDTH)},
    ),
    "positions of the image embedding": Kind(
        ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
        {".diff": noise(1, 8, 20)},
        {"": noise(1, 8, 20)},
    ),
    "a difference of the convolution": Kind(
        CONVOLUTION,
        {".diff": noise(24, 36, 1, 2, 2), ".diff_b": BIAS},
        {".weight": noise(24, 36, 1, 2, 2), ".bias": BIAS},
    ),
    "a pair for the convolution": of_convolution(
        noise(RANK, 36, 1, 2, 2, seed=3), noise(WIDTH, RANK, 1, 1, 1, seed=4)
    ),
    "a flat pair for the convolution": of_convolution(
        noise(RANK, 144, seed=3), noise(WIDTH, RANK, seed=4)
    ),
    "a LoKr for the convolution": Kind(
        CONVOLUTION,
        {".lokr_w1": noise(4, 6), ".lokr_w2": noise(6, 6, 1, 2, 2)},
        {".weight": torch.kron(noise(4, 6, 1, 1, 1).double(), noise(6, 6, 1, 2, 2).double())},
    ),
    "a pair for a norm": Kind(
        ("blocks.1.norm3", "blocks.1.norm2"),
        {".lora_down.weight": noise(1), ".lora_up.weight": BIAS},
        {".weight": BIAS.double() * noise(1).double()},
    ),
    "LoHa": loha(64, WIDTH),
    "LoKr": lokr(
        {".lokr_w1": noise(4, 4)}, {".lokr_w2_a": noise(6, 3), ".lokr_w2_b": noise(3, 6)}, 2
    ),
    "LoKr of two halves each": lokr(
        {".lokr_w1_a": noise(4, 3), ".lokr_w1_b": noise(3, 4)},
        {".lokr_w2_a": noise(6, 3), ".lokr_w2_b": noise(3, 6)},
        2,
    ),
    "LoKr of whole matrices": lokr({".lokr_w1": noise(2, 6)}, {".lokr_w2": noise(12, 4)}, 1),
}


FITS = {f"diffusion_model.{Q[0]}{end}": tensor for end, tensor in PAIR.items()}
K = "diffusion_model.blocks.0.self_attn.k"
