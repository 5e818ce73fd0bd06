"""LoRA files: every prefix, naming and kind of tensor is fused exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch.nn.functional import conv3d

from tests.families.lora_files import (
    DOWN,
    KINDS,
    PAIR,
    RANK,
    SCALE,
    UP,
    WIDTH,
    Q,
    Tensors,
    assert_sum,
    fused,
    fused_file,
    network,
    noise,
    parameters_of,
    save,
)
from wan_engine.errors import ConfigurationError
from wan_engine.families import lora
from wan_engine.weights import LocatedLora, lora_plan
from wan_engine.weights.lora_file import Adapter, Header, Tensor
from wan_engine.weights.lora_keys import original, read_keys

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


def test_names_match_the_converter_of_diffusers(plain: Any) -> None:
    """Converts every parameter from Wan's own name with diffusers' converter."""
    names = {}
    for parameter in plain.state_dict():
        layer, _, end = parameter.rpartition(".")
        whole = layer == "" or end not in ("weight", "bias")
        names[original(parameter) if whole else f"{original(layer)}.{end}"] = parameter
    assert len(names) == len(plain.state_dict())
    del names["img_emb.emb_pos"]  # of the first-and-last-frame model; the converter leaves it out
    for name, parameter in names.items():
        assert list(convert_wan_transformer_to_diffusers({name: torch.zeros(1)})) == [parameter]


MIXED = {
    "musubi with dots after the block": "lora_unet_blocks_0.self_attn.q.lora_down.weight",
    "old attention processors": "transformer.blocks.0.attn1.processor.to_q_lora.down.weight",
}


@pytest.mark.parametrize("down", MIXED.values(), ids=MIXED)
def test_published_mixtures_of_names_are_read(plain: Any, tmp_path: Path, down: str) -> None:
    tensors = {down: DOWN, down.replace("down", "up"): UP}
    after = fused(plain, tensors, tmp_path)
    assert_sum(plain, after, {"blocks.0.attn1.to_q.weight": UP.double() @ DOWN.double()})


def test_a_layer_in_the_middle_of_a_low_rank_pair_is_its_own_convolution(
    plain: Any, tmp_path: Path
) -> None:
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


# --- comparison with other implementations -------------------------------------------------------

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
def test_an_adapter_of_peft_equals_what_peft_makes_of_it(tmp_path: Path, config: Any) -> None:
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
    file = LocatedLora(tmp_path / "adapter_model.safetensors", 1.0, "high")
    after = fused_file(base, file)
    changed = 0
    for name, parameter in base.named_parameters():
        wanted = expected[name].detach()
        assert (after[name] - wanted).abs().max() <= 2e-6 * wanted.abs().max(), name
        changed += not torch.equal(after[name], parameter)
    assert changed == (14 if getattr(config, "lora_bias", False) else 7)


def test_alpha_in_the_metadata_of_diffusers_counts(plain: Any, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=RANK, lora_alpha=10, target_modules=["to_q"]).to_dict()
    layers = {"blocks.0.attn1.to_q.lora_A.weight": DOWN, "blocks.0.attn1.to_q.lora_B.weight": UP}
    WanImageToVideoPipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config
    )
    file = LocatedLora(tmp_path / "pytorch_lora_weights.safetensors", SCALE, "high")
    wanted = {"blocks.0.attn1.to_q.weight": 2.5 * UP.double() @ DOWN.double()}
    assert_sum(plain, fused_file(plain, file), wanted)


def test_the_alpha_that_kohyas_converters_leave_behind_is_ignored(
    plain: Any, tmp_path: Path
) -> None:
    tensors = {f"diffusion_model.{Q[0]}{end}": tensor for end, tensor in PAIR.items()}
    metadata = {"ss_network_alpha": "1", "ss_network_dim": "4"}
    after = fused(plain, tensors, tmp_path, metadata=metadata)
    assert_sum(plain, after, {"blocks.0.attn1.to_q.weight": UP.double() @ DOWN.double()})


@pytest.mark.parametrize("shape", [(64,), (64, 1), (1, WIDTH)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_a_dora_has_the_norms_of_its_rows_or_columns(
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
    found = fused_file(plain, LocatedLora(path, scale, "high"))[name].double()
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_a_file_for_both_experts_is_split_between_them(tmp_path: Path) -> None:
    one, other = network(), network()
    path = tmp_path / "both.safetensors"
    tensors = {f"transformer.{Q[1]}{end}": tensor for end, tensor in PAIR.items()}
    tensors |= {f"transformer_2.{Q[1]}{end}": 2 * tensor for end, tensor in PAIR.items()}
    save(tensors, path)
    parameters = {"high": parameters_of(one), "low": parameters_of(other)}
    before = one.blocks[0].attn1.to_q.weight.detach().clone()
    plan = lora_plan.plan(LocatedLora(path, 1.0, "both"), parameters)
    for expert, model, factor in (("high", one, 1), ("low", other, 4)):
        lora.fuse(model, expert, [plan])  # type: ignore[arg-type]
        added = model.blocks[0].attn1.to_q.weight.detach() - before
        assert torch.allclose(added, factor * UP @ DOWN, atol=1e-5)
    for expert in ("high", "low"):
        with pytest.raises(ConfigurationError, match="it is for the other expert"):
            lora_plan.plan(LocatedLora(path, 1.0, expert), parameters)  # type: ignore[arg-type]


def test_a_bfloat16_network_is_rounded_once(tmp_path: Path) -> None:
    base = network().to(torch.bfloat16)
    files = []
    for index in range(3):
        files.append(LocatedLora(tmp_path / f"{index}.safetensors", 0.01, "high"))
        tensors = {
            f"{Q[0]}.lora_A.weight": noise(RANK, WIDTH, seed=index),
            f"{Q[0]}.lora_B.weight": UP,
        }
        save(tensors, files[-1].path)
    weight = base.blocks[0].attn1.to_q.weight.detach().clone()
    expected = weight.double()
    for index in range(3):
        expected = expected + 0.01 * UP.double() @ noise(RANK, WIDTH, seed=index).double()
    plans = [lora_plan.plan(file, {"high": parameters_of(base)}) for file in files]
    lora.fuse(base, "high", plans)
    after = base.blocks[0].attn1.to_q.weight.detach()
    assert after.dtype is torch.bfloat16 and not torch.equal(after, weight)
    assert torch.equal(after, expected.float().to(torch.bfloat16))


# --- the files of the catalogue's four-step row --------------------------------------------------

PUBLISHED_BYTES = 630_695_648
"""SHA-256 on the Hub of `Wan_2_2_I2V_A14B_{HIGH,LOW}_lightx2v_4step_lora_260412_rank_64_fp16`."""


def published() -> dict[str, list[int]]:
    """The keys whose header and numbers, in float16, are as many bytes as that: a pair for every
    matrix, a bias for each of them, and the norms as differences."""
    width, inner, rank = 5120, 13824, 64
    matrices = {
        **{f"{part}_embedding.2": (width, width) for part in ("time", "text")},
        "time_embedding.0": (width, 256),
        "text_embedding.0": (width, 4096),
        "time_projection.1": (6 * width, width),
        "head.head": (64, width),
    }
    differences = {"patch_embedding.diff_b": [width]}
    for block in (f"blocks.{number}" for number in range(40)):
        for attention in ("self_attn", "cross_attn"):
            matrices |= {f"{block}.{attention}.{one}": (width, width) for one in "qkvo"}
            differences |= {f"{block}.{attention}.norm_{one}.diff": [width] for one in "qk"}
        matrices |= {f"{block}.ffn.0": (inner, width), f"{block}.ffn.2": (width, inner)}
        differences |= {f"{block}.norm3.{end}": [width] for end in ("diff", "diff_b")}
    for layer, (rows, columns) in matrices.items():
        differences[f"{layer}.lora_down.weight"] = [rank, columns]
        differences[f"{layer}.lora_up.weight"] = [rows, rank]
        differences[f"{layer}.diff_b"] = [rows]
    return {f"diffusion_model.{key}": shape for key, shape in sorted(differences.items())}


def test_every_key_of_the_four_step_pair_has_a_layer() -> None:
    keys, header, end = published(), {}, 0
    for key, shape in keys.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    header_bytes = len(json.dumps(header, separators=(",", ":")))
    assert 8 + header_bytes + -header_bytes % 8 + end == PUBLISHED_BYTES
    with torch.device("meta"):  # Wan2.2-I2V-A14B
        network = WanTransformer3DModel(in_channels=36)
    tensors = {key: Tensor("F16", tuple(shape)) for key, shape in keys.items()}
    reading = read_keys(Header(tensors, Adapter()), parameters_of(network), low=False)
    used = [key for change in reading.changes for key in change.keys.values()]
    assert reading.refused == {} and sorted(used) == sorted(keys) and len(keys) == 1459


T2V_MEGABYTES = 614
"""SHA-256 on the Hub of `wan2.2_t2v_A14b_{high,low}_noise_lora_rank64_lightx2v_4step_1217`."""


def test_every_key_of_the_text_to_video_pair_has_a_layer_that_is_not_one_of_vace() -> None:
    pairs = {
        key: shape
        for key, shape in published().items()
        if ".blocks." in key and key.endswith(("lora_down.weight", "lora_up.weight"))
    }
    numbers = sum(math.prod(shape) for shape in pairs.values())
    assert round(2 * numbers / 1e6, -1) == round(T2V_MEGABYTES, -1) and len(pairs) == 800
    with torch.device("meta"):  # Wan2.2-VACE-Fun-A14B
        network = WanVACETransformer3DModel(in_channels=16)
    names = parameters_of(network)
    assert sum(name.startswith("vace_blocks.7.") for name in names) > 0
    alphas = {f"{key.removesuffix('lora_up.weight')}alpha": () for key in pairs if "up" in key}
    for keys in (published(), pairs | alphas):  # with keys that their other pairs have too
        types = {key: "I64" if key in alphas else "F16" for key in keys}
        tensors = {key: Tensor(types[key], tuple(shape)) for key, shape in keys.items()}
        reading = read_keys(Header(tensors, Adapter()), names, low=False)
        used = [key for change in reading.changes for key in change.keys.values()]
        assert reading.refused == {} and sorted(used) == sorted(keys)
        assert not any(change.layer.startswith("vace_") for change in reading.changes)
