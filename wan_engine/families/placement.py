"""A recipe applied to networks and their pipeline, in the one order that works: float8, attention,
step cache, place, compile."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch

from wan_engine.errors import CompileFailed
from wan_engine.families import attention8
from wan_engine.families.convolution import use_onednn
from wan_engine.families.float8 import convert_blocks
from wan_engine.runtime.compiler import leave_uncompiled, reason
from wan_engine.runtime.recipes import Recipe

log = logging.getLogger(__name__)


EXPERTS = ("transformer", "transformer_2")


def experts(pipeline: Any) -> Iterator[Any]:
    """The transformers of a pipeline: one or two."""
    for name in EXPERTS:
        if (expert := getattr(pipeline, name, None)) is not None:
            yield expert


def apply(pipeline: Any, recipe: Recipe) -> None:
    """Make a loaded `pipeline` run as `recipe` says. Called once, after LoRA files are fused."""
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            settle(name, part, recipe)
    finish(pipeline, recipe)


def settle(name: str, network: Any, recipe: Recipe) -> None:
    """Convert one network of a pipeline and put it where `recipe` wants it. Called once each."""
    device = torch.device(recipe.device)
    if name == "vae" and device.type == "cpu":
        use_onednn(network)
    if name in EXPERTS:
        if recipe.float8:
            convert_blocks(network, device, stay=recipe.offload == "none")
        if recipe.attention != "native":
            set_attention(network, recipe.attention, device)
        if recipe.step_cache is not None:
            cache_steps(network, recipe.step_cache)
    _place(name, network, recipe)


def finish(pipeline: Any, recipe: Recipe) -> None:
    """What is done to a pipeline whose networks have been settled."""
    if recipe.offload == "model":
        pipeline.enable_model_cpu_offload(device=recipe.device)
    elif recipe.offload == "layer":
        pipeline.enable_group_offload(torch.device(recipe.device), offload_type="leaf_level")
    if recipe.compiled:
        for expert in experts(pipeline):
            # Pictures have many shapes: one graph with the number of tokens left open serves all.
            _compile(expert, fullgraph=recipe.step_cache is None, dynamic=True)


def _compile(expert: Any, **options: bool) -> None:
    """Have blocks compiled when they are first called. Raises `CompileFailed`."""
    try:
        expert.compile_repeated_blocks(**options)
    except Exception as error:  # torch's compiler makes folders when it is imported
        raise CompileFailed(reason(error)) from error


def run_eagerly(pipeline: Any) -> None:
    """Let blocks that were to be compiled run as they are."""
    for expert in experts(pipeline):
        leave_uncompiled(expert)
    torch.compiler.reset()


def set_attention(expert: Any, backend: str, device: torch.device) -> None:
    """One of diffusers' attention backends for every block, or `float8` for self-attention with
    cuDNN's beside it, once that has passed a test of its numbers here."""
    if backend == "float8":
        backend = "_native_cudnn"
        config = expert.config
        try:
            error = attention8.check(config.num_attention_heads, config.attention_head_dim, device)
        except attention8.Unsupported as reason:
            log.warning("8-bit attention is not used: %s", reason)
        else:
            log.info("8-bit attention is off by %.3f of the norm on random numbers", error)
            for block in expert.blocks:
                block.attn1.processor = attention8.Float8AttnProcessor()
    noisy = logging.getLogger("diffusers.models.modeling_utils")
    level = noisy.level
    noisy.setLevel(logging.ERROR)  # it warns of its own interface each time
    try:
        expert.set_attention_backend(backend)
    finally:
        noisy.setLevel(level)


def cache_steps(expert: Any, threshold: float) -> None:
    """Leave out the blocks after the first where that one's output hardly changed since the last
    step. The only step cache of diffusers 0.42.1 that acts in this pipeline without calibration."""
    from diffusers import FirstBlockCacheConfig

    expert.enable_cache(FirstBlockCacheConfig(threshold=threshold))


def _place(name: str, network: Any, recipe: Recipe) -> None:
    """On the device, or in host memory where it is used from there."""
    device = torch.device(recipe.device)
    if recipe.offload in ("model", "layer"):
        return  # the pipeline moves them
    if name in EXPERTS and recipe.offload == "stream":
        _stream(network, device)
    elif name != "text_encoder" or recipe.text_encoder == "kept":
        network.to(device)
    elif device.type == "cuda":
        pin(network)


def pin(network: Any) -> None:
    """In pinned memory a copy to the device runs at the speed of the bus. A tensor at a time, so
    that nothing is there twice."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.pin_memory()


def _stream(expert: Any, device: torch.device) -> None:
    """Blocks are copied from pinned host memory, each while the one before it works."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        pin(expert)  # diffusers would have all of it twice before it drops one
    expert.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=on_gpu,
        record_stream=on_gpu,
    )
