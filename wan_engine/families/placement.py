"""Applies a recipe to networks and their pipeline in the only order that works: float8, attention,
step cache, placement, compilation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from wan_engine.errors import CompileFailed
from wan_engine.families import attention8, float8
from wan_engine.families.convolution import use_onednn
from wan_engine.families.float8 import convert_block, is_float8
from wan_engine.runtime.compiler import leave_uncompiled, reason
from wan_engine.runtime.recipes import Recipe

log = logging.getLogger(__name__)

EXPERTS = ("transformer", "transformer_2")
EXACT_BESIDE_8_BITS = "_native_cudnn"


def experts(pipeline: Any) -> Iterator[Any]:
    """The transformers of a pipeline: one or two."""
    for name in EXPERTS:
        if (expert := getattr(pipeline, name, None)) is not None:
            yield expert


def blocks_of(expert: Any) -> list[Any]:
    """The blocks of a transformer, including those of VACE."""
    return [*expert.blocks, *getattr(expert, "vace_blocks", ())]


def able(recipe: Recipe, expert: Mapping[str, Any]) -> Recipe:
    """The recipe, without 8 bits if their accuracy test fails on its device. `expert` is the
    configuration of a transformer."""
    device = torch.device(recipe.device)
    if recipe.float8:
        try:
            error = float8.check(device)
            log.info("float8 matrices have an error of at most %.3f of a row's norm", error)
        except float8.Unsupported as why:
            log.warning("float8 matrices are not used, blocks are %s: %s", recipe.dtype, why)
            recipe = replace(recipe, float8=False)
    if recipe.attention == "float8":
        try:
            errors = attention8.check(*_heads(expert), device)
            told = ", ".join(f"{kind} {error:.3f}" for kind, error in errors.items())
            log.info("attention in 8 bits has these errors, as shares of the norm: %s", told)
        except float8.Unsupported as why:
            log.warning("attention in 8 bits is not used: %s", why)
            recipe = replace(recipe, attention=EXACT_BESIDE_8_BITS)
    return recipe


def _heads(expert: Mapping[str, Any]) -> tuple[int, int]:
    """The number and the width of a transformer's heads, from its configuration."""
    if "num_attention_heads" in expert:
        return expert["num_attention_heads"], expert["attention_head_dim"]
    return expert["num_heads"], expert["dim"] // expert["num_heads"]


def attention_of(recipe: Recipe, blocks: int) -> str:
    """The attention kernel in use, in words for the log."""
    if recipe.attention != "float8":
        return recipe.attention.strip("_")
    ends = attention8.EXACT_BLOCKS
    inner = max(0, blocks - 2 * ends)
    return f"cuDNN in 8 bits in {inner} of {blocks} blocks, exact in the first and last {ends}"


def apply(pipeline: Any, recipe: Recipe) -> Recipe:
    """Make a loaded `pipeline` run as `recipe` says. Call it once, after LoRA files are fused.
    Returns the recipe as it runs."""
    recipe = able(recipe, pipeline.transformer.config)
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            for block in blocks_of(part) if name in EXPERTS else ():
                settle_block(block, recipe)
            settle(name, part, recipe)
    finish(pipeline, recipe)
    return recipe


def settle_block(block: Any, recipe: Recipe) -> None:
    """Convert one block of an expert and place it as `recipe` says. Call it once per block, before
    `settle`."""
    device, resident = torch.device(recipe.device), recipe.offload == "none"
    if recipe.float8 and not is_float8(block):
        convert_block(block, device, stay=resident)
    elif resident:
        block.to(device)
    if recipe.offload == "stream" and device.type == "cuda":
        pin(block)  # diffusers would copy all blocks before it frees one


def settle(name: str, network: Any, recipe: Recipe) -> None:
    """Place one network of a pipeline as `recipe` says. Call it once per network, for an expert
    after its blocks."""
    device = torch.device(recipe.device)
    if name == "vae" and device.type == "cpu":
        use_onednn(network)
    if name in EXPERTS:
        if recipe.attention != "native":
            set_attention(network, recipe.attention)
        embedder = _time_embedder(network)
        if device.type == "cuda" and embedder is not None:
            embed_times_in_tf32(embedder)
        if recipe.step_cache is not None:
            cache_steps(network, recipe.step_cache)
    _place(name, network, recipe)


def finish(pipeline: Any, recipe: Recipe) -> None:
    """Finish a pipeline whose networks have been placed."""
    if recipe.offload == "model":
        pipeline.enable_model_cpu_offload(device=recipe.device)
    elif recipe.offload == "layer":
        pipeline.enable_group_offload(torch.device(recipe.device), offload_type="leaf_level")
    if recipe.compiled:
        for expert in experts(pipeline):
            # Clips have many shapes. One graph for any number of tokens serves all.
            _compile(expert, fullgraph=recipe.step_cache is None, dynamic=True)


def _compile(expert: Any, **options: bool) -> None:
    """Compile blocks at their first call. Raises `CompileFailed`."""
    try:
        expert.compile_repeated_blocks(**options)
    except Exception as error:  # torch's compiler makes folders when it is imported
        raise CompileFailed(reason(error)) from error


def run_eagerly(pipeline: Any) -> None:
    """Run compiled blocks uncompiled from now on."""
    for expert in experts(pipeline):
        leave_uncompiled(expert)
    torch.compiler.reset()


def set_attention(expert: Any, backend: str) -> None:
    """Set one of diffusers' attention backends for every block. `float8` is for self-attention of
    all blocks except the first and last ones; the rest uses cuDNN's exact kernel."""
    if backend == "float8":
        backend = EXACT_BESIDE_8_BITS
        for block in expert.blocks[attention8.EXACT_BLOCKS : -attention8.EXACT_BLOCKS]:
            attention8.use_in(block)
    noisy = logging.getLogger("diffusers.models.modeling_utils")
    level = noisy.level
    noisy.setLevel(logging.ERROR)  # it warns about its own interface each time
    try:
        expert.set_attention_backend(backend)
    finally:
        noisy.setLevel(level)


def _time_embedder(expert: Any) -> Any:
    own = getattr(expert, "time_embedding", None)  # the authors' name
    if own is not None:
        return own
    return getattr(getattr(expert, "condition_embedder", None), "time_embedder", None)


def embed_times_in_tf32(embedder: Any) -> None:
    """Compute products in the time embedder in TF32, which diffusers keeps in float32. A model that
    embeds a time for every token (TI2V) spends 1.1 s per clip there, and its inputs are sines.
    Other float32 products stay exact."""
    matmul = torch.backends.cuda.matmul
    before: list[bool] = []

    def begin(*_: Any) -> None:
        before.append(matmul.allow_tf32)
        matmul.allow_tf32 = True

    def end(*_: Any) -> None:
        matmul.allow_tf32 = before.pop()

    embedder.register_forward_pre_hook(begin)
    embedder.register_forward_hook(end, always_call=True)


def cache_steps(expert: Any, threshold: float) -> None:
    """Skip the blocks after the first if the first one's output hardly changed since the last
    step. It is the only step cache of diffusers 0.42.1 that works in this pipeline without
    calibration."""
    from diffusers import FirstBlockCacheConfig

    expert.enable_cache(FirstBlockCacheConfig(threshold=threshold))


def _place(name: str, network: Any, recipe: Recipe) -> None:
    """Place a network on the device, or in host memory if it is used from there."""
    device = torch.device(recipe.device)
    if recipe.offload in ("model", "layer"):
        return  # the pipeline moves them
    if name in EXPERTS and recipe.offload == "stream":
        stream_blocks(network, device)
    elif name != "text_encoder" or recipe.text_encoder == "kept":
        network.to(device)
    elif device.type == "cuda":
        pin(network)


def pin(network: Any) -> None:
    """Pin the host memory of a network, so that copies to the device run at the speed of the bus.
    It pins one tensor at a time, so that memory holds only one of them twice."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.pin_memory()


def stream_blocks(expert: Any, device: torch.device) -> None:
    """Stream blocks from pinned host memory: each is copied while the previous one computes."""
    on_gpu = device.type == "cuda"
    expert.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=on_gpu,
        # With it, diffusers does not wait for a block to finish before it unloads it: the CPU
        # runs ahead, and a third of an expert is on the device.
        record_stream=False,
    )
