"""LoRA files that cannot be fused as a whole: refused with the key and the reason, never fused in
part without a word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.families.lora_files import (
    BIAS,
    DIFFERENCE,
    DOWN,
    FITS,
    KINDS,
    PAIR,
    RANK,
    UP,
    K,
    Q,
    Tensors,
    assert_sum,
    fused,
    fused_file,
    network,
    noise,
    parameters_of,
    refusal,
    save,
)
from wan_engine.errors import ConfigurationError
from wan_engine.weights import LocatedLora, lora_plan
from wan_engine.weights.lora_file import Adapter, read_header
from wan_engine.weights.lora_keys import shown

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
    "a bias for a layer without one": (
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
    "a single number": ({f"{K}.diff": torch.tensor(1.0)}, "its weight is a single number"),
    "a LoKr with a kernel first": (
        {f"{K}.lokr_w1": noise(4, 4, 2), f"{K}.lokr_w2": noise(6, 3)},
        "more than two axes",
    ),
    "no rank": (
        {f"{K}.lora_down.weight": noise(0, 24), f"{K}.lora_up.weight": noise(24, 0)},
        "is empty",
    ),
    "the same twice": (
        {f"{Q[1]}{end}": tensor for end, tensor in PAIR.items()} | {f"{K}.diff": DIFFERENCE},
        "it is there twice",
    ),
    "a block that does not exist": (
        {"diffusion_model.blocks.9.self_attn.k.diff": DIFFERENCE},
        "no such layer",
    ),
    "a text encoder": (
        {"lora_te_text_model_encoder_layers_0_fc1.lora_down.weight": DOWN},
        "text encoder",
    ),
    "a tensor of unknown kind": ({f"{K}.frobnicated": DOWN}, "it is of no known kind"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_cannot_be_fused_is_refused_with_its_key_and_why(
    plain: Any, tmp_path: Path, kind: str
) -> None:
    tensors, words = REFUSED[kind]
    said = refusal(plain, {**FITS, **tensors}, tmp_path)
    assert said.startswith("a.safetensors ") and words in said
    assert any(shown([key]) in said for key in tensors)


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind != "the same twice"])
def test_with_leave_the_rest_is_fused_and_the_layer_stays_unchanged(
    plain: Any, tmp_path: Path, kind: str
) -> None:
    after = fused(plain, {**FITS, **REFUSED[kind][0]}, tmp_path, unused=0.6)
    assert_sum(plain, after, {"blocks.0.attn1.to_q.weight": UP.double() @ DOWN.double()})


def test_the_share_that_would_suffice_is_named_and_suffices(plain: Any, tmp_path: Path) -> None:
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
def test_a_file_for_another_model_is_refused_even_if_unused_keys_are_allowed(
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
def test_a_file_that_is_no_lora_is_refused_as_such(plain: Any, tmp_path: Path, kind: str) -> None:
    make, words = FILES[kind]
    make(tmp_path / "a.safetensors")
    with pytest.raises(ConfigurationError) as caught:
        fused_file(plain, LocatedLora(tmp_path / "a.safetensors", 1.0, "high", 1.0))
    assert str(caught.value).startswith("a.safetensors is not a LoRA") and words in str(
        caught.value
    )


# --- every key is used or named ------------------------------------------------------------------


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
    parameters = {"high": parameters_of(plain)}
    weights = {key for key in chosen if not key.endswith((".alpha", ".rank"))}
    try:
        plan = lora_plan.plan(LocatedLora(path, 1.0, "high", 1.0), parameters)
    except ConfigurationError as error:
        assert "nothing for this model" in str(error) or "has no weights" in str(error)
        return
    used = {key for change in plan.changes["high"] for key in change.keys.values()}
    assert (used & weights) | set(plan.unused) == weights and not used & set(plan.unused)
    assert all(shown([key]) in plan.describe() for key in plan.unused)
    if plan.unused:
        with pytest.raises(ConfigurationError, match="have no use here"):
            lora_plan.plan(LocatedLora(path, 1.0, "high"), parameters)
    after = fused_file(plain, LocatedLora(path, 1.0, "high", 1.0))
    moved = {name for name, one in plain.named_parameters() if not torch.equal(after[name], one)}
    wanted: set[str | None] = set()
    for change in plan.changes["high"]:
        of_bias = {"bias", "up_bias"} & set(change.keys)
        of_weight = set(change.keys) - of_bias - {"alpha", "rank"}
        wanted |= ({change.weight} if of_weight else set()) | ({change.bias} if of_bias else set())
    assert moved == wanted


def test_a_pattern_of_peft_is_a_regular_expression() -> None:
    adapter = Adapter(2.0, 2, {r"blocks\.\d+\.attn1\.to_q": 16.0, "to_k": 4.0})
    assert adapter.factor(["blocks.0.attn1.to_q"], 2) == 8.0
    assert adapter.factor(["base_model.model.blocks.3.attn1.to_k"], 2) == 2.0
    assert adapter.factor(["blocks.0.attn1.to_v"], 2) == 1.0


@pytest.mark.parametrize(
    "config",
    [
        '{"r": 1e999, "lora_alpha": 1}',
        '{"r": 1, "lora_alpha": 1, "alpha_pattern": {"(": 2}}',
        '{"r": 1, "lora_alpha": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=["infinite", "not an expression", "deep"],
)
def test_the_settings_of_an_adapter_are_read_or_refused_in_words(
    tmp_path: Path, config: str
) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file({"blocks.0.attn1.to_q.lora_A.weight": torch.ones(1, 8)}, path)
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(ConfigurationError, match="alpha cannot be read"):
        read_header(path)
