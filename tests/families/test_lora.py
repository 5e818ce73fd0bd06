"""LoRA files: every prefix, naming and kind of tensor is fused exactly, or refused with why."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import peft
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn.functional import conv3d

from wan_engine.errors import ConfigurationError
from wan_engine.families import load_family, lora
from wan_engine.families.continuation import ContinuingPipeline
from wan_engine.media import ffmpeg
from wan_engine.weights import LoraWeights
from wan_engine.weights.lora_keys import original, shown

Tensors = dict[str, torch.Tensor]
WIDTH, RANK, SCALE = 24, 4, 0.7


def network(*, image_encoder: bool = True, in_channels: int = 36) -> Any:
    """The kind of Wan2.1-I2V, which has every layer that one of them has."""
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
    for parameter in made.parameters():  # biases and norms that are not 0 and 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


@pytest.fixture(scope="module")
def plain() -> Any:
    return network()


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def save(tensors: Tensors, path: Path, metadata: Any = None) -> None:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata)


def fused(
    base: Any, tensors: Tensors, folder: Path, *, unused: float = 0, metadata: Any = None
) -> Mapping[str, torch.Tensor]:
    """The parameters of `base` after a file with these tensors; `base` stays as it is."""
    path = folder / "a.safetensors"
    save(tensors, path, metadata)
    return fused_file(base, LoraWeights(path, SCALE, "high", unused))


def fused_file(base: Any, file: LoraWeights) -> Mapping[str, torch.Tensor]:
    before = {name: one.data for name, one in base.named_parameters()}
    try:
        parameters = lora._parameters({"high": base})
        lora.fuse(base, "high", [lora.plan(file, parameters)])
        return {name: one.data for name, one in base.named_parameters()}
    finally:
        for name, one in base.named_parameters():
            one.data = before[name]


def refusal(base: Any, tensors: Tensors, folder: Path, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        fused(base, tensors, folder, **options)
    return str(caught.value)


def assert_sum(
    base: Any, after: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> None:
    """`after` is `base` plus SCALE times `wanted`, by parameter, in float64; and nothing else."""
    for name, parameter in base.named_parameters():
        expected = parameter.detach().double()
        if name not in wanted:
            assert torch.equal(after[name], parameter), name
            continue
        expected = expected + SCALE * wanted[name].double().reshape(parameter.shape)
        error = (after[name].double() - expected).abs().max() / expected.abs().max()
        assert error <= 1e-6, f"{name}: {error:.1e}"


# --- the table: prefix x naming x kind -----------------------------------------------------------

PREFIXES = (
    "",
    "diffusion_model.",
    "model.diffusion_model.",
    "model.",
    "transformer.",
    "base_model.model.",
    "base_model.model.diffusion_model.",
    "unet.",
    "pipe.dit.",
    "dit.",
    "module.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)
SPELLINGS = {  # of the two halves of a low-rank pair
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "peft with a name": (".lora_A.default.weight", ".lora_B.default.weight"),
    "peft without weight": (".lora_A", ".lora_B"),
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "diffusers": (".lora.down.weight", ".lora.up.weight"),
    "old diffusers": ("_lora.down.weight", "_lora.up.weight"),
    "transformers": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
}
LAYERS = {  # Wan's own name: (diffusers' name, shape of the weight)
    "blocks.0.self_attn.q": ("blocks.0.attn1.to_q", (24, 24)),
    "blocks.1.self_attn.o": ("blocks.1.attn1.to_out.0", (24, 24)),
    "blocks.0.cross_attn.v": ("blocks.0.attn2.to_v", (24, 24)),
    "blocks.1.cross_attn.k_img": ("blocks.1.attn2.add_k_proj", (24, 24)),
    "blocks.0.ffn.0": ("blocks.0.ffn.net.0.proj", (64, 24)),
    "blocks.1.ffn.2": ("blocks.1.ffn.net.2", (24, 64)),
    "head.head": ("proj_out", (64, 24)),
    "time_embedding.0": ("condition_embedder.time_embedder.linear_1", (24, 32)),
    "time_projection.1": ("condition_embedder.time_proj", (144, 24)),
    "text_embedding.2": ("condition_embedder.text_embedder.linear_2", (24, 24)),
    "img_emb.proj.1": ("condition_embedder.image_embedder.ff.net.0.proj", (20, 20)),
    "patch_embedding": ("patch_embedding", (24, 36, 1, 2, 2)),
}


@dataclass(frozen=True)
class Kind:
    """What a file says of one layer: tensors by the end of the key, and what each parameter of the
    layer (by its end in diffusers' name; "" is the layer itself) gets, before the scale."""

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
    "a rank that is told": Kind(
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


def named(prefix: str, layer: str, end: str) -> str:
    return prefix + (layer.replace(".", "_") if prefix.endswith("_") else layer) + end


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_naming_and_kind_is_exact(
    plain: Any, tmp_path: Path, prefix: str, naming: str
) -> None:
    table: dict[str, tuple[Tensors, Mapping[str, torch.Tensor]]] = {}
    for kind, one in KINDS.items():
        layer = one.layer[naming == "diffusers"]
        tensors = {named(prefix, layer, end): tensor for end, tensor in one.tensors.items()}
        table[kind] = tensors, {one.layer[1] + end: value for end, value in one.adds.items()}
    for spelling, (down_end, up_end) in SPELLINGS.items():
        tensors, adds = {}, {}
        for seed, (layer, (theirs, shape)) in enumerate(LAYERS.items()):
            given_name = theirs if naming == "diffusers" else layer
            down, up = noise(RANK, *shape[1:], seed=seed), noise(shape[0], RANK, seed=seed + 50)
            tensors[named(prefix, given_name, down_end)] = down
            tensors[named(prefix, given_name, up_end)] = up
            adds[f"{theirs}.weight"] = up.double() @ down.flatten(1).double()
        table[spelling] = tensors, adds
    for kind, (tensors, adds) in table.items():
        try:
            assert_sum(plain, fused(plain, tensors, tmp_path), adds)
        except (AssertionError, ConfigurationError) as error:
            pytest.fail(f"{prefix} {naming}, {kind}: {error}")


def test_names_are_those_that_diffusers_converts(plain: Any) -> None:
    """Every parameter, from Wan's own name through diffusers' converter."""
    names = {}
    for parameter in plain.state_dict():
        layer, _, end = parameter.rpartition(".")
        whole = layer == "" or end not in ("weight", "bias")
        names[original(parameter) if whole else f"{original(layer)}.{end}"] = parameter
    assert len(names) == len(plain.state_dict())
    del names["img_emb.emb_pos"]  # of the first-and-last-frame model, which it leaves out
    for name, parameter in names.items():
        assert list(convert_wan_transformer_to_diffusers({name: torch.zeros(1)})) == [parameter]


MIXED = {
    "musubi with dots behind the block": "lora_unet_blocks_0.self_attn.q.lora_down.weight",
    "old attention processors": "transformer.blocks.0.attn1.processor.to_q_lora.down.weight",
}


@pytest.mark.parametrize("down", MIXED.values(), ids=MIXED)
def test_mixtures_that_are_published_are_read(plain: Any, tmp_path: Path, down: str) -> None:
    tensors = {down: DOWN, down.replace("down", "up"): UP}
    after = fused(plain, tensors, tmp_path)
    assert_sum(plain, after, {"blocks.0.attn1.to_q.weight": UP.double() @ DOWN.double()})


def test_a_layer_between_the_two_is_a_convolution_of_its_own(plain: Any, tmp_path: Path) -> None:
    down, mid, up = noise(3, 36, 1, 1, 1), noise(5, 3, 1, 2, 2), noise(WIDTH, 5, 1, 1, 1)
    names = {".lora_down.weight": down, ".lora_mid.weight": mid, ".lora_up.weight": up}
    tensors = {f"patch_embedding{end}": tensor for end, tensor in names.items()}
    after = fused(plain, {**tensors, "patch_embedding.alpha": torch.tensor(6)}, tmp_path)
    video = noise(1, 36, 2, 4, 4).double()
    added = (after["patch_embedding.weight"] - plain.patch_embedding.weight).double()
    stride = plain.patch_embedding.stride
    through = conv3d(conv3d(conv3d(video, down.double()), mid.double(), stride=stride), up.double())
    expected, found = SCALE * 2 * through, conv3d(video, added, stride=stride)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- what the other implementations make of their own files --------------------------------------

TARGETS = ["to_q", "ffn.net.0.proj", "condition_embedder.time_proj"]
ADAPTERS = {
    "alpha": peft.LoraConfig(r=4, lora_alpha=10, target_modules=TARGETS),
    "root": peft.LoraConfig(r=4, lora_alpha=10, target_modules=TARGETS, use_rslora=True),
    "bias": peft.LoraConfig(r=4, lora_alpha=10, target_modules=TARGETS, lora_bias=True),
    "DoRA": peft.LoraConfig(r=4, lora_alpha=10, target_modules=TARGETS, use_dora=True),
    "patterns": peft.LoraConfig(
        r=4,
        lora_alpha=10,
        target_modules=TARGETS,
        rank_pattern={"to_q": 2},
        alpha_pattern={"attn1.to_q": 7},
    ),
    "LoHa": peft.LoHaConfig(r=4, alpha=10, target_modules=TARGETS),
    "LoKr": peft.LoKrConfig(r=2, alpha=10, target_modules=TARGETS),
    "LoKr of halves": peft.LoKrConfig(r=1, alpha=10, target_modules=TARGETS, decompose_both=True),
    "LoKr of whole matrices": peft.LoKrConfig(r=40, alpha=10, target_modules=TARGETS),
}


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft takes a bias for a broken matrix
@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_of_peft_is_what_peft_makes_of_it(tmp_path: Path, config: Any) -> None:
    base = network()
    adapted = peft.get_peft_model(network(), config)
    generator = torch.Generator().manual_seed(9)
    for name, parameter in adapted.named_parameters():
        if any(word in name for word in ("lora_", "hada_", "lokr_")):
            parameter.data = torch.randn(parameter.shape, generator=generator)
        if "magnitude" in name:
            parameter.data = parameter.data.abs() + 0.1
    adapted.save_pretrained(str(tmp_path))
    expected = dict(adapted.merge_and_unload().named_parameters())
    file = LoraWeights(tmp_path / "adapter_model.safetensors", 1.0, "high")
    after = fused_file(base, file)
    changed = 0
    for name, parameter in base.named_parameters():
        wanted = expected[name].detach()
        assert (after[name] - wanted).abs().max() <= 2e-6 * wanted.abs().max(), name
        changed += not torch.equal(after[name], parameter)
    assert changed == (14 if getattr(config, "lora_bias", False) else 7)


def test_alpha_in_the_metadata_that_diffusers_writes_counts(plain: Any, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=RANK, lora_alpha=10, target_modules=["to_q"]).to_dict()
    layers = {"blocks.0.attn1.to_q.lora_A.weight": DOWN, "blocks.0.attn1.to_q.lora_B.weight": UP}
    WanImageToVideoPipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config
    )
    file = LoraWeights(tmp_path / "pytorch_lora_weights.safetensors", SCALE, "high")
    wanted = {"blocks.0.attn1.to_q.weight": 2.5 * UP.double() @ DOWN.double()}
    assert_sum(plain, fused_file(plain, file), wanted)


def test_the_alpha_that_kohyas_converters_leave_behind_does_not_count(
    plain: Any, tmp_path: Path
) -> None:
    tensors = {f"diffusion_model.{Q[0]}{end}": tensor for end, tensor in PAIR.items()}
    metadata = {"ss_network_alpha": "1", "ss_network_dim": "4"}
    after = fused(plain, tensors, tmp_path, metadata=metadata)
    assert_sum(plain, after, {"blocks.0.attn1.to_q.weight": UP.double() @ DOWN.double()})


@pytest.mark.parametrize("shape", [(64,), (64, 1), (1, WIDTH)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_a_dora_has_the_length_of_its_rows_or_columns(
    plain: Any, tmp_path: Path, shape: tuple[int, ...], scale: float
) -> None:
    layer, name = "blocks.0.ffn.0", "blocks.0.ffn.net.0.proj.weight"
    magnitude, up = noise(*shape).abs() + 1, noise(64, RANK)
    tensors = {"lora_down.weight": DOWN, "lora_up.weight": up, "dora_scale": magnitude}
    tensors["alpha"] = torch.tensor(2.0)
    path = tmp_path / "a.safetensors"
    save({f"{layer}.{end}": tensor for end, tensor in tensors.items()}, path)
    weight = plain.blocks[0].ffn.net[0].proj.weight.detach().double()
    whole = weight + 0.5 * up.double() @ DOWN.double()
    axis = 0 if shape == (1, WIDTH) else 1
    along = magnitude.double() if axis == 0 else magnitude.double().reshape(64, 1)
    decomposed = whole * along / whole.norm(dim=axis, keepdim=True)
    expected = weight + scale * (decomposed - weight)
    found = fused_file(plain, LoraWeights(path, scale, "high"))[name].double()
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


# --- what is refused, and with which words -------------------------------------------------------

FITS = {f"diffusion_model.{Q[0]}{end}": tensor for end, tensor in PAIR.items()}
K = "diffusion_model.blocks.0.self_attn.k"
REFUSED: dict[str, tuple[Tensors, str]] = {
    "half a pair": ({f"{K}.lora_down.weight": DOWN}, "its other half, up, is missing"),
    "another half": ({f"{K}.lora_B.weight": UP}, "its other half, down, is missing"),
    "OFT": ({f"{K}.oft_blocks": noise(4, 6, 6)}, "it is OFT"),
    "GLoRA": ({f"{K}.a1.weight": DOWN}, "it is GLoRA"),
    "Tucker": ({f"{K}.lokr_t2": noise(2, 2, 3, 3)}, "Tucker form"),
    "a checkpoint": ({f"{K}.weight": DIFFERENCE}, "a whole weight, not a change"),
    "quantized": (
        {f"{K}.lora_down.weight": DOWN.to(torch.int8), f"{K}.lora_up.weight": UP},
        "its down is stored as I8",
    ),
    "scales of quantized numbers": (
        {f"{K}.lora_down.weight": DOWN, f"{K}.lora_up.weight": UP, f"{K}.scale_weight": BIAS},
        "a scale of quantized numbers",
    ),
    "half a LoHa": ({f"{K}.hada_w1_a": UP, f"{K}.hada_w1_b": DOWN}, "without all of its four"),
    "half a LoKr": ({f"{K}.lokr_w1": noise(4, 4)}, "without all of its matrices"),
    "a DoRA of nothing": ({f"{K}.dora_scale": noise(24, 1)}, "over something else than a low-rank"),
    "a DoRA of another size": (
        {f"{K}.lora_down.weight": DOWN, f"{K}.lora_up.weight": UP, f"{K}.dora_scale": noise(9, 1)},
        "its magnitude is [9, 1], and blocks.0.attn1.to_k.weight is [24, 24]",
    ),
    "an alpha for each rank": (
        {f"{K}.lora_down.weight": DOWN, f"{K}.lora_up.weight": UP, f"{K}.alpha": noise(4)},
        "its alpha is not one number",
    ),
    "a bias of a layer without": (
        {"diffusion_model.blocks.0.self_attn.norm_k.diff_b": BIAS},
        "blocks.0.attn1.norm_k has no bias",
    ),
    "another width": (
        {f"{K}.lora_down.weight": noise(RANK, 48), f"{K}.lora_up.weight": noise(48, RANK)},
        "its low-rank pair gives 48 x 48, and blocks.0.attn1.to_k.weight is 24 x 24 [24, 24]",
    ),
    "two ranks": (
        {f"{K}.lora_down.weight": DOWN, f"{K}.lora_up.weight": noise(24, 8)},
        "for their inner sides differ",
    ),
    "a text-to-video convolution": (
        {"diffusion_model.patch_embedding.diff": noise(24, 16, 1, 2, 2)},
        "its shape is [24, 16, 1, 2, 2], and patch_embedding.weight is [24, 36, 1, 2, 2]",
    ),
    "no rank": (
        {f"{K}.lora_down.weight": noise(0, 24), f"{K}.lora_up.weight": noise(24, 0)},
        "is empty",
    ),
    "the same twice": (
        {f"{Q[1]}{end}": tensor for end, tensor in PAIR.items()} | {f"{K}.diff": DIFFERENCE},
        "it is there twice",
    ),
    "a block that is not there": (
        {"diffusion_model.blocks.9.self_attn.k.diff": DIFFERENCE},
        "no such layer",
    ),
    "a text encoder": (
        {"lora_te_text_model_encoder_layers_0_fc1.lora_down.weight": DOWN},
        "text encoder",
    ),
    "a tensor of no kind": ({f"{K}.frobnicated": DOWN}, "it is of no known kind"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_fused_is_refused_by_its_key_with_why(
    plain: Any, tmp_path: Path, kind: str
) -> None:
    tensors, words = REFUSED[kind]
    said = refusal(plain, {**FITS, **tensors}, tmp_path)
    assert said.startswith("a.safetensors ") and words in said
    assert any(shown([key]) in said for key in tensors)


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind != "the same twice"])
def test_with_leave_the_rest_is_fused_and_the_layer_is_left_whole(
    plain: Any, tmp_path: Path, kind: str
) -> None:
    after = fused(plain, {**FITS, **REFUSED[kind][0]}, tmp_path, unused=0.6)
    assert_sum(plain, after, {"blocks.0.attn1.to_q.weight": UP.double() @ DOWN.double()})


def test_the_share_that_would_do_is_told_and_does(plain: Any, tmp_path: Path) -> None:
    """A file for Wan2.1 on Wan2.2, which has no image encoder."""
    base = network(image_encoder=False)
    tensors = dict(FITS)
    for block in (0, 1):
        layer = f"diffusion_model.blocks.{block}.cross_attn"
        tensors |= {f"{layer}.k_img{end}": tensor for end, tensor in PAIR.items()}
        tensors[f"{layer}.norm_k_img.diff"] = BIAS
    fused(plain, tensors, tmp_path)
    said = refusal(base, tensors, tmp_path)
    assert "6 of its 8 weights have no use here" in said
    assert "diffusion_model.blocks.*.cross_attn.k_img.lora_down.weight (2)" in said
    share = re.search(r"WAN_LORA_UNUSED=(\S+)", said)
    assert share and share[1] == "0.75"
    after = fused(base, tensors, tmp_path, unused=float(share[1]))
    assert_sum(base, after, {"blocks.0.attn1.to_q.weight": UP.double() @ DOWN.double()})


OTHERS = {
    "Flux": "transformer.single_transformer_blocks.0.attn.to_q",
    "CogVideoX": "transformer.transformer_blocks.0.attn1.to_q",
    "CogVideoX of kohya": "lora_unet_transformer_blocks_0_attn1_to_q",
    "HunyuanVideo": "diffusion_model.double_blocks.0.img_attn.qkv",
    "SDXL": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "VACE": "diffusion_model.vace_blocks.0.self_attn.q",
}


@pytest.mark.parametrize("layer", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("unused", [0, 1])
def test_a_file_for_another_model_is_refused_whatever_may_be_unused(
    plain: Any, tmp_path: Path, layer: str, unused: float
) -> None:
    said = refusal(
        plain, {f"{layer}{end}": one for end, one in PAIR.items()}, tmp_path, unused=unused
    )
    assert "has nothing for this model, which is another than it was made for" in said
    assert shown([layer]) in said


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("end", [".lora_down.weight", ".lora_up.weight", ".alpha", ".diff_b"])
def test_one_number_that_is_not_finite_refuses_the_file(
    plain: Any, tmp_path: Path, bad: float, dtype: torch.dtype, end: str
) -> None:
    tensors = {**PAIR, ".alpha": torch.tensor([4.0]), ".diff_b": BIAS}
    broken = tensors[end].clone()
    broken.view(-1)[-1] = bad
    keys = {f"{K}{name}": tensor for name, tensor in {**tensors, end: broken.to(dtype)}.items()}
    said = refusal(plain, keys, tmp_path, unused=1)
    assert f"a.safetensors cannot be fused: {K}{end} has numbers that are not finite" in said


def test_sums_that_overflow_are_refused(tmp_path: Path) -> None:
    half = network().to(torch.float16)
    key = "diffusion_model.blocks.0.ffn.0.diff"
    said = refusal(half, {key: torch.full((64, 24), 3e6)}, tmp_path)
    assert "make blocks.0.ffn.net.0.proj.weight infinite: lower their scales" in said


def cut(path: Path) -> None:
    save(FITS, path)
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_the_header(path: Path) -> None:
    save(FITS, path)
    path.write_bytes(path.read_bytes()[:60])


def damaged(path: Path) -> None:
    save(FITS, path)
    path.write_bytes(path.read_bytes().replace(b"data_offsets", b"data_offsetz"))


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (cut, "it is cut off, 999 of 1000 bytes are here. Fetch it again"),
    "cut in the header": (cut_in_the_header, "it is cut off in its header, after 60 bytes"),
    "cut in its first number": (
        lambda path: path.write_bytes(b"\x10\0\0"),
        "cut off in its header",
    ),
    "empty": (lambda path: path.touch(), "it is empty"),
    "a page": (
        lambda path: path.write_text("<!DOCTYPE html><html>Sign in</html>"),
        "it is a web page",
    ),
    "an error": (lambda path: path.write_text('{"error": "Entry not found"}'), "it is JSON"),
    "a pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "a pointer of git-lfs",
    ),
    "a pickle": (lambda path: torch.save(FITS, path), "it is a pickle of torch"),
    "GGUF": (lambda path: path.write_bytes(b"GGUF" + bytes(range(90))), "it is a GGUF file"),
    "damaged": (damaged, "it is damaged"),
    "without tensors": (lambda path: save({}, path), "it has no tensor"),
    "with an alpha alone": (
        lambda path: save({f"{K}.alpha": torch.tensor(1.0)}, path),
        "it has no weights",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_lora_is_told_apart(plain: Any, tmp_path: Path, kind: str) -> None:
    make, words = FILES[kind]
    make(tmp_path / "a.safetensors")
    with pytest.raises(ConfigurationError) as caught:
        fused_file(plain, LoraWeights(tmp_path / "a.safetensors", 1.0, "high", 1.0))
    assert str(caught.value).startswith("a.safetensors is not a LoRA") and words in str(
        caught.value
    )


def test_a_file_for_both_experts_gives_each_its_own(tmp_path: Path) -> None:
    one, other = network(), network()
    path = tmp_path / "both.safetensors"
    tensors = {f"transformer.{Q[1]}{end}": tensor for end, tensor in PAIR.items()}
    tensors |= {f"transformer_2.{Q[1]}{end}": 2 * tensor for end, tensor in PAIR.items()}
    save(tensors, path)
    parameters = lora._parameters({"high": one, "low": other})
    before = one.blocks[0].attn1.to_q.weight.detach().clone()
    plan = lora.plan(LoraWeights(path, 1.0, "both"), parameters)
    for expert, model, factor in (("high", one, 1), ("low", other, 4)):
        lora.fuse(model, expert, [plan])  # type: ignore[arg-type]
        added = model.blocks[0].attn1.to_q.weight.detach() - before
        assert torch.allclose(added, factor * UP @ DOWN, atol=1e-5)
    for expert in ("high", "low"):
        with pytest.raises(ConfigurationError, match="it is for the other expert"):
            lora.plan(LoraWeights(path, 1.0, expert), parameters)  # type: ignore[arg-type]


def test_a_bfloat16_network_is_rounded_once(tmp_path: Path) -> None:
    base = network().to(torch.bfloat16)
    files = []
    for index in range(3):
        files.append(LoraWeights(tmp_path / f"{index}.safetensors", 0.01, "high"))
        tensors = {
            f"{Q[0]}.lora_A.weight": noise(RANK, WIDTH, seed=index),
            f"{Q[0]}.lora_B.weight": UP,
        }
        save(tensors, files[-1].path)
    weight = base.blocks[0].attn1.to_q.weight.detach().clone()
    expected = weight.double()
    for index in range(3):
        expected = expected + 0.01 * UP.double() @ noise(RANK, WIDTH, seed=index).double()
    plans = [lora.plan(file, lora._parameters({"high": base})) for file in files]
    lora.fuse(base, "high", plans)
    after = base.blocks[0].attn1.to_q.weight.detach()
    assert after.dtype is torch.bfloat16 and not torch.equal(after, weight)
    assert torch.equal(after, expected.float().to(torch.bfloat16))


# --- nothing is partial in silence ---------------------------------------------------------------


def keys_of_all_kinds() -> Iterator[tuple[str, torch.Tensor]]:
    for one in KINDS.values():
        for end, tensor in one.tensors.items():
            yield f"diffusion_model.{one.layer[0]}{end}", tensor
            yield f"blocks.7.attn1.to_k{end}", tensor
    for tensors, _ in REFUSED.values():
        yield from tensors.items()


POOL = dict(keys_of_all_kinds())


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(chosen=st.sets(st.sampled_from(sorted(POOL)), min_size=1, max_size=12))
def test_each_weight_of_any_file_is_used_or_named(
    plain: Any, tmp_path: Path, chosen: set[str]
) -> None:
    path = tmp_path / "any.safetensors"
    save({key: POOL[key] for key in chosen}, path)
    parameters = lora._parameters({"high": plain})
    weights = {key for key in chosen if not key.endswith((".alpha", ".rank"))}
    try:
        plan = lora.plan(LoraWeights(path, 1.0, "high", 1.0), parameters)
    except ConfigurationError as error:
        assert "nothing for this model" in str(error) or "has no weights" in str(error)
        return
    used = {key for change in plan.changes["high"] for key in change.keys.values()}
    assert (used & weights) | set(plan.unused) == weights and not used & set(plan.unused)
    assert all(shown([key]) in plan.describe() for key in plan.unused)
    if plan.unused:
        with pytest.raises(ConfigurationError, match="have no use here"):
            lora.plan(LoraWeights(path, 1.0, "high"), parameters)
    after = fused_file(plain, LoraWeights(path, 1.0, "high", 1.0))
    moved = {name for name, one in plain.named_parameters() if not torch.equal(after[name], one)}
    wanted: set[str | None] = set()
    for change in plan.changes["high"]:
        of_bias = {"bias", "up_bias"} & set(change.keys)
        of_weight = set(change.keys) - of_bias - {"alpha", "rank"}
        wanted |= ({change.weight} if of_weight else set()) | ({change.bias} if of_bias else set())
    assert moved == wanted


# --- through the engine, the command line's checks and ready sets --------------------------------

MakeSettings = Callable[..., Settings]
NORM = "diffusion_model.blocks.0.norm3.diff"


def frames_with(make_settings: MakeSettings, data: Path, path: Path) -> bytes:
    """The pixels of a clip, as `generate` makes it."""
    engine = Engine(
        make_settings(
            preset="superfast",
            render_area=64 * 48,
            steps=1,
            lora=(Lora(path=path),),
            upscale="lanczos",
        )
    )
    image = "data:image/jpeg;base64," + base64.b64encode(
        (data / "rocket_640x360.jpg").read_bytes()
    ).decode("ascii")
    request = VideoRequest.parse({"prompt": "lift-off", "image": image, "seed": 3})
    clip = unquote(urlsplit(engine.generate(request).video_url).path)
    command = [ffmpeg.executable(), "-v", "error", "-i", clip, "-f", "rawvideo", "-"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_the_difference_of_a_norm_changes_the_clip(
    make_settings: MakeSettings, tmp_path: Path, data: Path
) -> None:
    clips = []
    for strength in (0, 3):
        path = tmp_path / f"{strength}.safetensors"
        save({**FITS, NORM: strength * BIAS}, path)
        clips.append(frames_with(make_settings, data, path))
    assert len(clips[0]) == len(clips[1]) > 0
    assert clips[0] != clips[1]


def rows(settings: Settings) -> list[Check]:
    return [check for check in machine_checks(settings) if check.what == "lora"]


def test_doctor_has_a_row_for_each_file(make_settings: MakeSettings, tmp_path: Path) -> None:
    save({**FITS, NORM: BIAS}, tmp_path / "good.safetensors")
    save({**FITS, "blocks.9.modulation.diff": BIAS}, tmp_path / "more.safetensors")
    (tmp_path / "page.safetensors").write_text("<html>Sign in</html>")
    save({f"{K}.diff": DIFFERENCE * float("nan")}, tmp_path / "nan.safetensors")
    files = ("good", "more", "page", "nan")
    asked = [Lora(path=tmp_path / f"{name}.safetensors", scale=0.5) for name in files]
    found = rows(make_settings(lora=(*asked, Lora(path=asked[0].path, expert="low"))))
    assert [row.ok for row in found] == [True, False, False, False, True]
    said = [row.found for row in found]
    assert said[0] == (
        "good.safetensors at 0.5 into high and low: differences, low-rank, 3 of 3 weights, "
        "2 + 2 layers"
    )
    assert "blocks.*.modulation.diff: this model has no such layer" in said[1]
    assert said[2].endswith("it is a web page, as a link that needs a login gives one")
    assert f"{K}.diff has numbers that are not finite" in said[3]
    assert said[4].startswith("good.safetensors at 1 into low: ")
    (allowed,) = rows(make_settings(lora=(asked[1],), lora_unused=0.4))
    assert allowed.ok and allowed.found.endswith("not used: blocks.*.modulation.diff")


def test_what_is_wrong_is_told_before_the_weights_are_read(
    load: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save({**FITS, "blocks.9.modulation.diff": BIAS}, tmp_path / "a.safetensors")

    def read(*_: Any, **__: Any) -> Any:
        pytest.fail("the weights were read")

    monkeypatch.setattr(ContinuingPipeline, "from_pretrained", read)
    with pytest.raises(ConfigurationError, match="WAN_LORA_UNUSED"):
        load("wan-tiny", (LoraWeights(tmp_path / "a.safetensors", 1.0, "both"),))


def test_what_is_left_out_is_logged(
    load: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save({**FITS, "blocks.9.modulation.diff": BIAS}, tmp_path / "a.safetensors")
    with caplog.at_level("INFO", "wan_engine"):
        load("wan-tiny", (LoraWeights(tmp_path / "a.safetensors", 1.0, "both", 0.5),))
    [line] = [record.getMessage() for record in caplog.records if "fused" in record.getMessage()]
    assert "2 of 3 weights" in line and line.endswith("not used: blocks.*.modulation.diff")


def test_nothing_is_added_to_a_set_in_float8(
    load: Callable[..., Any], tiny_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "float8"
    shutil.copytree(tiny.build("wan-tiny", tiny_cache / "wan-tiny"), folder)
    network = WanTransformer3DModel.from_pretrained(folder / "transformer")
    prepare.to_fp8(network)
    network.save_pretrained(folder / "transformer")
    save(FITS, tmp_path / "a.safetensors")
    file = LoraWeights(tmp_path / "a.safetensors", 1.0, "both")
    with pytest.raises(ConfigurationError, match=r"a\.safetensors is not fused: .* in float8"):
        load_family(CATALOG["wan-tiny"], folder, Recipe("cpu", "float32"), (file,))


def test_a_ready_set_has_all_of_a_file_in_it(
    make_settings: MakeSettings, tmp_path: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "wan2.2-i2v-a14b-4step"
    file = LoraFile("me/l", "both.safetensors", None, "both", 0.5)
    monkeypatch.setitem(CATALOG, name, replace(CATALOG[name], loras=(file,)))  # type: ignore[misc]
    models = tmp_path / "models"
    shutil.copytree(tiny.build("wan-tiny", tiny_cache / "wan-tiny"), models / "wan2.2-i2v-a14b")
    (models / "loras").mkdir()
    save({**FITS, NORM: BIAS}, models / "loras" / "both.safetensors")
    told: list[str] = []
    target = models / name
    prepare.prepare(
        name, target, make_settings(models_dir=models), told.append, precision="float32"
    )
    assert "both.safetensors at 0.5 into high and low: differences, low-rank" in "".join(told)
    for expert in ("transformer", "transformer_2"):
        before, after = (
            dict(WanTransformer3DModel.from_pretrained(folder / expert).named_parameters())
            for folder in (models / "wan2.2-i2v-a14b", target)
        )
        changed = [name for name, one in before.items() if not torch.equal(after[name], one)]
        assert changed == ["blocks.0.attn1.to_q.weight", "blocks.0.norm2.weight"]
        added = after["blocks.0.norm2.weight"] - before["blocks.0.norm2.weight"]
        assert torch.allclose(added, 0.5 * BIAS, atol=1e-6)
