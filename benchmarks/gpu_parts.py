"""Measures the parts of a clip on this device. Each function yields one case after the other.

A case that fails yields its error instead of a figure, because kernels differ between GPUs and
versions, and the other cases should still run.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu_networks import (
    Scale,
    block_arguments,
    device,
    forward_arguments,
    peak_gb,
    seconds_of,
    synchronize,
    transformer,
    vae,
)
from wan_engine.families import attention8
from wan_engine.families.float8 import convert_blocks
from wan_engine.families.placement import set_attention, settle_block, stream_blocks
from wan_engine.runtime import memory
from wan_engine.runtime.recipes import Recipe

Case = dict[str, Any]
_OFFLOAD_LAYERS = 10  # enough to see the cost of a block; pinning 28.6 GB takes long
_VAE_FRAMES = 7  # latent frames: the first, and six alike


chosen: frozenset[str] = frozenset()
"""The names of the cases to measure. Empty means all."""


def attempt(case: Case, work: Callable[[], Case]) -> Case:
    """`case` with the result of `work` or its error. A case that was not chosen stays unchanged."""
    if chosen and case["case"] not in chosen:
        return {**case, "skipped": True}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    peak_gb(reset=True)
    try:
        return {**case, **work()}
    except Exception as error:  # noqa: BLE001
        return {**case, "error": f"{type(error).__name__}: {error}"[:400]}


def ceilings(scale: Scale) -> Iterator[Case]:
    """The best rates of this card: a large matrix product, a large copy, host to device."""
    side = 8192 if scale.name != "tiny" else 64

    def product() -> Case:
        left = torch.randn(side, side, device=device(), dtype=torch.bfloat16)
        took = seconds_of(lambda: left @ left, 20, 3)
        return {"ms": took * 1e3, "tflops": 2 * side**3 / took / 1e12}

    def copy() -> Case:
        source = torch.randn(side * side * 8, device=device())
        target = torch.empty_like(source)
        took = seconds_of(lambda: target.copy_(source), 20, 3)
        return {"ms": took * 1e3, "gb_per_second": 2 * source.nbytes / took / 1e9}

    def upload() -> Case:
        source = torch.empty(side * side * 4, pin_memory=torch.cuda.is_available())
        target = torch.empty_like(source, device=device())
        took = seconds_of(lambda: target.copy_(source, non_blocking=True), 5, 1)
        return {"ms": took * 1e3, "gb_per_second": source.nbytes / took / 1e9}

    for work in (product, copy, upload):
        yield attempt({"case": work.__name__}, work)


# --- attention -----------------------------------------------------------------------------------


def attention(scale: Scale) -> Iterator[Case]:
    """Self-attention of one block in each kernel; TFLOP/s count 4 N^2 d multiplications."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    shape = (1, scale.tokens, scale.heads, scale.head_width)
    query, key, value = (
        torch.randn(shape, device=device(), dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)
    )
    operations = 4 * scale.tokens**2 * scale.heads * scale.head_width
    backends = {
        "cudnn": [SDPBackend.CUDNN_ATTENTION],
        "flash": [SDPBackend.FLASH_ATTENTION],
        "default": None,
    }
    for name, backend in backends.items():

        def work(backend: Any = backend) -> Case:
            def run() -> Any:
                if backend is None:
                    return scaled_dot_product_attention(query, key, value)
                with sdpa_kernel(backend):
                    return scaled_dot_product_attention(query, key, value)

            took = seconds_of(run)
            return {"ms": took * 1e3, "tflops": operations / took / 1e12, "kernel": kernel_of(run)}

        yield attempt({"case": name}, work)
    yield from _float8_attention(scale, operations)
    yield _flash_4(scale, operations)


def _flash_4(scale: Scale, operations: int) -> Case:
    """FlashAttention 4, if `pip install "flash-attn-4[cu13]"` was possible. Its libraries take
    92 MB, which is too much to be packed by gpu_quarter.py."""

    def work() -> Case:
        from flash_attn.cute import flash_attn_func  # type: ignore[import-not-found]

        shape = (1, scale.tokens, scale.heads, scale.head_width)
        given = [torch.randn(shape, device=device(), dtype=torch.bfloat16) for _ in range(3)]
        took = seconds_of(lambda: flash_attn_func(*given))
        return {
            "ms": took * 1e3,
            "tflops": operations / took / 1e12,
            "kernel": kernel_of(lambda: flash_attn_func(*given)),
        }

    return attempt({"case": "flash 4"}, work)


def _float8_attention(scale: Scale, operations: int) -> Iterator[Case]:
    def work() -> Case:
        errors = attention8.check(scale.heads, scale.head_width, device())
        shape = (1, scale.tokens, scale.heads, scale.head_width)
        given = [torch.randn(shape, device=device(), dtype=torch.bfloat16) for _ in range(3)]
        run = torch.compile(attention8.attention)
        took = seconds_of(lambda: run(*given))
        return {
            "ms": took * 1e3,
            "tflops": operations / took / 1e12,
            "errors": errors,
            "kernel": kernel_of(lambda: run(*given), 4),
        }

    yield attempt({"case": "float8"}, work)


def kernel_of(work: Callable[[], Any], most: int = 1) -> str:
    """The names of the kernels that took most of the time of `work`, with their share."""
    if not torch.cuda.is_available():
        return ""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
        synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    whole = sum(row.self_device_time_total for row in rows) or 1.0
    return "; ".join(
        f"{row.key[:90]} {row.self_device_time_total / whole:.0%}" for row in rows[:most]
    )


# --- the transformer -----------------------------------------------------------------------------


def flops_of_forward(scale: Scale, layers: int) -> float:
    """Multiplications and additions of one call: attention, cross-attention, matrices."""
    width, tokens = scale.heads * scale.head_width, scale.tokens
    ffn = int(scale.transformer["ffn_dim"])
    attend = 4 * tokens**2 * width + 4 * tokens * 512 * width
    matrices = 2 * tokens * (6 * width**2 + 2 * width * ffn)
    return float(layers * (attend + matrices))


def block(scale: Scale) -> Iterator[Case]:
    """One transformer block: as it is, compiled, compiled with float8 matrices."""
    operations = flops_of_forward(scale, 1)

    def timed(*, float8: bool, compiled: bool, dynamic: bool | None, backend: str) -> Case:
        torch.compiler.reset()
        ends = attention8.EXACT_BLOCKS
        whole = transformer(scale, layers=2 * ends + 1)
        set_attention(whole, backend)
        if float8:
            convert_blocks(whole, device())
        if compiled:
            whole.compile_repeated_blocks(fullgraph=True, dynamic=dynamic)
        arguments = block_arguments(scale, whole)
        run = whole.blocks[ends]
        with torch.inference_mode():
            started = time.perf_counter()
            run(*arguments)
            synchronize()
            first = time.perf_counter() - started
            took = seconds_of(lambda: run(*arguments))
            kernels = kernel_of(lambda: run(*arguments), 6)
        return {
            "ms": took * 1e3,
            "tflops": operations / took / 1e12,
            "first_s": first,
            "peak_gb": peak_gb(),
            "kernels": kernels,
        }

    cudnn = "_native_cudnn" if torch.cuda.is_available() else "native"
    cases: dict[str, dict[str, Any]] = {
        "eager, native": {"backend": "native"},
        "eager, cudnn": {"backend": cudnn},
        "compiled, dynamic": {"backend": cudnn, "compiled": True, "dynamic": True},
        "compiled, dynamic, float8": {
            "backend": cudnn,
            "compiled": True,
            "dynamic": True,
            "float8": True,
        },
        "compiled, dynamic, float8 and its attention": {
            "backend": "float8" if torch.cuda.is_available() else "native",
            "compiled": True,
            "dynamic": True,
            "float8": True,
        },
    }
    for name, options in cases.items():
        full = {"float8": False, "compiled": False, "dynamic": None, **options}
        yield attempt({"case": name}, lambda full=full: timed(**full))


def whole(scale: Scale) -> Iterator[Case]:
    """One call of the whole transformer, eager and compiled with float8, and one at 480p: the cost
    of a step at low resolution."""
    cudnn = "_native_cudnn" if torch.cuda.is_available() else "native"
    low = scale if scale.name == "tiny" else replace(scale, width=832, height=480)

    def timed(clip: Scale, *, compiled: bool, float8: bool) -> Case:
        torch.compiler.reset()
        model = transformer(scale)
        set_attention(model, cudnn)
        if float8:
            convert_blocks(model, device())
        if compiled:
            model.compile_repeated_blocks(fullgraph=True, dynamic=True)
        arguments = forward_arguments(clip)
        with torch.inference_mode():
            took = seconds_of(lambda: model(**arguments), 1, 1)
        return {
            "seconds": took,
            "tflops": flops_of_forward(clip, clip.layers) / took / 1e12,
            "peak_gb": peak_gb(),
            "weights_gb": sum(part.nbytes for part in model.parameters()) / 1e9,
        }

    for name, clip, options in (
        ("eager", scale, {}),
        ("compiled", scale, {"compiled": True}),
        ("compiled, float8", scale, {"compiled": True, "float8": True}),
        ("compiled, float8, 480p", low, {"compiled": True, "float8": True}),
        ("eager, 480p", low, {}),
    ):
        full = {"compiled": False, "float8": False, **options}
        yield attempt({"case": name}, lambda clip=clip, full=full: timed(clip, **full))


# --- the VAE -------------------------------------------------------------------------------------


def channels_last_3d(model: Any) -> None:
    """Use the memory layout of tensor cores. Activations take the layout of the weights."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)


def decode(scale: Scale) -> Iterator[Case]:
    """Streamed decode, a latent frame at a time: seconds of the first and of each later one."""
    from wan_engine.families.base import stream_decode

    shape = (1, 16, min(_VAE_FRAMES, scale.latent_frames), scale.height // 8, scale.width // 8)

    def timed(dtype: torch.dtype, *, channels_last: bool) -> Case:
        model = vae(scale, dtype)
        if channels_last:
            channels_last_3d(model)
        latents = torch.randn(shape, device=device(), dtype=dtype)
        for _ in stream_decode(model, latents):
            pass
        peak_gb(reset=True)
        took = []
        synchronize()
        started = time.perf_counter()
        for _ in stream_decode(model, latents):
            synchronize()
            took.append(time.perf_counter() - started)
            started = time.perf_counter()
        each = sorted(took[1:])[len(took[1:]) // 2]
        kernels = kernel_of(lambda: list(stream_decode(model, latents[:, :, :3])), 6)
        return {
            "first_ms": took[0] * 1e3,
            "each_ms": each * 1e3,
            "clip_s": took[0] + each * (scale.latent_frames - 1),
            "peak_gb": peak_gb(),
            "kernels": kernels,
        }

    for dtype in (torch.bfloat16, torch.float32):
        for channels_last in (False, True):
            case = {"case": _name(dtype), "channels_last": channels_last}
            yield attempt(case, lambda d=dtype, c=channels_last: timed(d, channels_last=c))


def encode(scale: Scale) -> Iterator[Case]:
    """Encode of the condition: the image and mid-grey after it, as many frames as the clip has."""
    shape = (1, 3, scale.frames, scale.height, scale.width)

    def timed(dtype: torch.dtype, *, channels_last: bool) -> Case:
        model = vae(scale, dtype)
        if channels_last:
            channels_last_3d(model)
        pixels = torch.zeros(shape, device=device(), dtype=dtype)
        pixels[:, :, 0].normal_()
        with torch.inference_mode():
            took = seconds_of(lambda: model.encode(pixels), 1, 1)
        return {"seconds": took, "peak_gb": peak_gb()}

    for dtype in (torch.bfloat16, torch.float32):
        for channels_last in (False, True):
            case = {"case": _name(dtype), "channels_last": channels_last}
            yield attempt(case, lambda d=dtype, c=channels_last: timed(d, channels_last=c))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- offload -----------------------------------------------------------------------------------


def offload(scale: Scale) -> Iterator[Case]:
    """Blocks streamed from host memory against blocks that stay: seconds of a call."""
    layers = min(_OFFLOAD_LAYERS, scale.layers)
    cudnn = "_native_cudnn" if torch.cuda.is_available() else "native"

    def timed(*, streamed: bool, compiled: bool, float8: bool) -> Case:
        torch.compiler.reset()
        model = transformer(scale, layers)
        set_attention(model, cudnn)
        if float8:
            convert_blocks(model, device())
        arguments = forward_arguments(scale)
        started = time.perf_counter()
        if streamed:  # as the product does it
            for one in model.blocks.to("cpu"):
                settle_block(one, Recipe(device().type, "bfloat16", "stream"))
            stream_blocks(model, device())
        synchronize()
        set_up = time.perf_counter() - started
        if compiled:
            model.compile_repeated_blocks(fullgraph=not streamed, dynamic=True)
        gc.collect()
        memory.reset_peaks()
        with torch.inference_mode():
            took = seconds_of(lambda: model(**arguments), 2, 1)
        return {
            "seconds": took,
            "set_up_s": set_up,
            "peak_gb": peak_gb(),
            "host_gb": memory.peaks()["host"] / 1e3,
            "layers": layers,
        }

    for name, options in {
        "resident": {},
        "streamed": {"streamed": True},
        "streamed, compiled": {"streamed": True, "compiled": True},
        "streamed, compiled, float8": {"streamed": True, "compiled": True, "float8": True},
    }.items():
        full = {"streamed": False, "compiled": False, "float8": False, **options}
        yield attempt({"case": name}, lambda full=full: timed(**full))
