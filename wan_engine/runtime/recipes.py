"""Chooses how a model runs on this machine: precision, attention, compilation, and which weights
stay on the device.

Every choice has a reason, and a leaner choice to fall back to if memory does not suffice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from wan_engine.catalog import ModelSpec, known_models
from wan_engine.errors import ConfigurationError, Warned
from wan_engine.runtime import compiler, memory
from wan_engine.settings import Settings
from wan_engine.settings.environment import tell_libraries

Offload = Literal["none", "model", "stream", "layer"]
"""Which weights stay on the device between uses. `none`: all. `model`: one network at a time.
`stream`: all but the experts' blocks; each block is copied from pinned host memory while the
previous one computes. `layer`: one layer at a time."""

TextEncoder = Literal["kept", "moved"]
"""Whether the text encoder stays on the device or is copied there for each new prompt."""

_LEANER: dict[Offload, Offload] = {"none": "stream", "model": "layer", "stream": "layer"}
_BFLOAT16_SINCE = (8, 0)
"""Ampere. Older GPUs hold the weights' range in float32 only, with twice the memory of the
catalogue."""
_FLOAT8_SINCE = (8, 9)
"""Ada and Hopper, the first GPUs with float8 matrix products."""
_CUDNN_ATTENTION = ((9, 0), (10, 0), (10, 3))
"""Hopper and Blackwell servers. On other GPUs flash attention is as fast or faster
(huggingface/transformers#48163)."""

_FLOAT8_ATTENTION = ((9, 0),)
"""Hopper, where cuDNN's 8-bit attention was measured. It is not used if its accuracy test fails."""

NOT_COMPILED = "blocks run uncompiled, slower"
"""End of a recipe's reason if the blocks are not compiled although the settings ask for it."""

_SMALL_GB = 2.0  # a prompt guard of 0.6 B and a ViT-B in bfloat16, 1.4 GB, and their working memory
_CONTEXT_GB = 1.5  # the CUDA context, and the fragmentation of the allocator
_FLOAT8_SHARE = 0.52  # of bfloat16; weights outside the blocks stay bfloat16, rows have scales
_STREAMED_SHARE = 0.08  # of an expert: two of its 40 blocks, and the weights outside them
_LAYER_SHARE = 0.03
_HOST_GB = 6.0  # the process itself, and blocks while they load, or decoded frames and ffmpeg


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that decide the recipe. Memory is in 10^9 bytes, as in the catalogue;
    `free_gb` is what no other process uses (None: all of it)."""

    name: str
    total_gb: float
    capability: tuple[int, int]
    free_gb: float | None = None

    @property
    def usable_gb(self) -> float:
        return self.total_gb if self.free_gb is None else min(self.free_gb, self.total_gb)

    @property
    def sm(self) -> str:
        return f"sm{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class Host:
    """The machine around the GPU: its memory in 10^9 bytes, and the reason if it cannot compile."""

    memory_gb: float
    no_compiler: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How a model runs. `dtype` and `decode_dtype` (of a clip's last decode) are names of torch
    dtypes, `attention` is a name of diffusers' backends, `step_cache` the threshold of its first
    block cache. Raises `ConfigurationError` for a combination that cannot work."""

    device: str
    dtype: str
    offload: Offload = "none"
    text_encoder: TextEncoder = "kept"
    float8: bool = False
    compiled: bool = False
    attention: str = "native"
    decode_dtype: str = "float32"
    step_cache: float | None = None

    def __post_init__(self) -> None:
        for wrong, why in self._wrong():
            if wrong:
                raise ConfigurationError(why)

    def _wrong(self) -> Iterator[tuple[bool, str]]:
        cpu = self.device == "cpu"
        yield self.float8 and cpu, "WAN_PRECISION is float8, which needs a GPU."
        yield (
            self.float8 and self.dtype != "bfloat16",
            "WAN_PRECISION is float8, which needs a GPU that computes in bfloat16 beside it.",
        )
        yield (
            self.float8 and self.offload == "layer",
            "WAN_PRECISION is float8 and WAN_OFFLOAD is layer: float8 weights move in whole "
            "blocks. Set WAN_OFFLOAD=stream, or WAN_PRECISION=bfloat16.",
        )
        yield (
            self.compiled and self.offload in ("stream", "layer"),
            f"WAN_COMPILE wants compiled blocks and WAN_OFFLOAD is {self.offload}, which moves "
            "weights inside them. Set WAN_COMPILE=off, or WAN_OFFLOAD=none.",
        )

    def __str__(self) -> str:
        parts = [f"{'float8' if self.float8 else self.dtype} on {self.device}"]
        if self.offload != "none":
            parts.append(f"offload {self.offload}")
        if self.text_encoder == "moved":
            parts.append("text encoder moved")
        if self.device != "cpu":
            parts.append(f"attention {self.attention.strip('_')}")
            parts.append(f"last decode in {self.decode_dtype}")
        if self.compiled:
            parts.append("compiled")
        if self.step_cache is not None:
            parts.append(f"step cache {self.step_cache:g}")
        return ", ".join(parts)


# --- hardware ------------------------------------------------------------------------------------


def detect(device: str) -> Gpu | None:
    """The GPU that `device` ("auto", "cuda", "cuda:1", "cpu") names, or None for the CPU.

    Raises `ConfigurationError` if it names a GPU that is not there.
    """
    if device == "cpu":
        return None
    tell_libraries()
    import torch

    index = int(device.partition(":")[2] or 0)
    if torch.cuda.device_count() <= index:
        if device == "auto":
            return None
        raise ConfigurationError(
            f"WAN_DEVICE is {device}, and torch sees {torch.cuda.device_count()} CUDA devices "
            "here. "
            "Set it to `auto` or `cpu`, or repair the driver."
        )
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    free, _ = torch.cuda.mem_get_info(index)
    return Gpu(properties.name, properties.total_memory / 1e9, capability, free / 1e9)


def detect_host(settings: Settings | None = None) -> Host:
    """The memory of this machine or its container. Tries a compiler if the settings want one."""
    wanted = settings is not None and settings.compile != "off"
    return Host(memory.host_bytes() / 1e9, compiler.problem("cuda") if wanted else None)


# --- choice of the recipe ------------------------------------------------------------------------


def choose(
    spec: ModelSpec, gpu: Gpu | None, settings: Settings, host: Host | None = None
) -> tuple[Recipe, str]:
    """The recipe for `spec` on `gpu`, and the reason, `Warned` if it is slower than it could be.
    Settings other than `auto` are kept.

    Raises `ConfigurationError` for settings that contradict each other or that this machine cannot
    satisfy.
    """
    if gpu is None:
        return _on_cpu(spec, settings)
    host = host or detect_host(settings)
    where = f"{gpu.name} ({gpu.sm}) with {gpu.usable_gb:.0f} GB"
    recipes = list(_candidates(spec, gpu, settings, host))
    for recipe in recipes:
        lacking = _lacking(spec, recipe, gpu, host)
        if not lacking:
            why = f"{where} has the {needs_gb(spec, recipe):.0f} GB that this needs"
            return recipe, _reason(why, _not_compiled(spec, settings, host, recipe.offload))
    # Nothing fits by our figures. Try the leanest, because the figures err on the safe side.
    why = f"{where} is not enough for {spec.name}: {lacking}"
    return recipes[-1], _reason(why, _not_compiled(spec, settings, host, recipes[-1].offload))


def _on_cpu(spec: ModelSpec, settings: Settings) -> tuple[Recipe, str]:
    wanted = spec.wan_blocks and settings.compile in ("on", "required")
    missing = compiler.problem("cpu") if wanted else None
    if missing is not None:
        _require_nothing(settings, missing)
    recipe = Recipe(
        "cpu",
        "float32",
        "none" if settings.offload == "auto" else settings.offload,
        float8=settings.precision == "float8",
        compiled=wanted and missing is None,
        step_cache=settings.step_cache if spec.wan_blocks else None,
    )
    return recipe, _reason("no GPU: float32 on the CPU", missing)


def _candidates(spec: ModelSpec, gpu: Gpu, settings: Settings, host: Host) -> Iterator[Recipe]:
    """The recipes that the settings allow, fastest first."""
    dtype = "bfloat16" if gpu.capability >= _BFLOAT16_SINCE else "float32"
    able8 = gpu.capability >= _FLOAT8_SINCE
    if settings.precision == "float8" and not able8:
        raise ConfigurationError(
            f"WAN_PRECISION is float8, which needs sm89 or newer; {gpu.name} is {gpu.sm}"
        )
    plain = Recipe(
        "cuda" if settings.device == "auto" else settings.device,
        dtype,
        attention=_attention(spec, gpu, dtype, settings),
        step_cache=settings.step_cache if spec.wan_blocks else None,
    )
    offloads: tuple[Offload, ...] = ("none", "stream", "layer")
    if settings.compile == "required":
        offloads = ("none",)  # the only offload whose blocks can be compiled
    if settings.offload != "auto":
        offloads = (settings.offload,)
    for offload in offloads:
        movable = offload in ("none", "stream")
        for text_encoder in ("kept", "moved") if movable else ("kept",):
            for float8 in _precisions(spec, settings, able8, offload):
                yield replace(
                    plain,
                    offload=offload,
                    # Only a VAE that stays on the device can have a second decoder.
                    decode_dtype=dtype if movable else "float32",
                    text_encoder=text_encoder,
                    float8=float8,
                    compiled=_compiled(spec, settings, host, offload),
                )


def _precisions(spec: ModelSpec, settings: Settings, able8: bool, offload: Offload) -> list[bool]:
    if not spec.wan_blocks:
        return [False]
    if settings.precision == "float8":
        return [True]
    if settings.precision == "bfloat16" or not able8 or spec.is_toy or offload == "layer":
        return [False]
    # Resident float8 is faster with compiled blocks. Streamed, it only saves host memory.
    return [True, False] if offload == "none" else [False, True]


def _compiled(spec: ModelSpec, settings: Settings, host: Host, offload: Offload) -> bool:
    if not _wants_compiled(spec, settings, offload):
        return False
    if host.no_compiler is not None:
        _require_nothing(settings, host.no_compiler)
    return host.no_compiler is None


def _wants_compiled(spec: ModelSpec, settings: Settings, offload: Offload) -> bool:
    if not spec.wan_blocks:
        return False
    if settings.compile == "auto":
        return not spec.is_toy and offload == "none"
    # With offload `auto`, only `none` compiles. A set offload that cannot compile is an error.
    return settings.compile != "off" and (settings.offload != "auto" or offload == "none")


def _not_compiled(spec: ModelSpec, settings: Settings, host: Host, offload: Offload) -> str | None:
    """Why the blocks are not compiled although they should be. None if they are, or should not."""
    if not _wants_compiled(spec, settings, offload):
        return f"offload {offload} moves them" if settings.compile == "on" else None
    return host.no_compiler


def _reason(why: str, not_compiled: str | None) -> str:
    """The reason for a recipe, `Warned` if its blocks should have been compiled."""
    return Warned(f"{why}; {NOT_COMPILED}: {not_compiled}") if not_compiled else why


def _require_nothing(settings: Settings, missing: str) -> None:
    """Raise `ConfigurationError` if the settings require compiled blocks."""
    if settings.compile == "required":
        raise ConfigurationError(f"WAN_COMPILE is required, and {missing}.")


def _attention(spec: ModelSpec, gpu: Gpu, dtype: str, settings: Settings) -> str:
    names = {
        "native": "native",
        "cudnn": "_native_cudnn",
        "flash": "_native_flash",
        "float8": "float8",
    }
    if settings.attention in names and (spec.wan_blocks or settings.attention != "float8"):
        return names[settings.attention]
    if dtype == "float32":
        return "native"
    if gpu.capability in _FLOAT8_ATTENTION and spec.wan_blocks and not spec.is_toy:
        return "float8"
    return names["cudnn" if gpu.capability in _CUDNN_ATTENTION else "flash"]


def _lacking(spec: ModelSpec, recipe: Recipe, gpu: Gpu, host: Host) -> str:
    """What `recipe` needs and this machine lacks; empty if it lacks nothing."""
    needed, kept = needs_gb(spec, recipe), host_gb(spec, recipe)
    if needed > gpu.usable_gb:
        return f"it needs {needed:.0f} GB of GPU memory"
    if kept > host.memory_gb:
        return f"it needs {kept:.0f} GB of host memory, and {host.memory_gb:.0f} are here"
    return ""


def _expert_gb(spec: ModelSpec, recipe: Recipe) -> float:
    """The weights of one expert as the recipe has them."""
    networks, wide = spec.networks, 2 if recipe.dtype == "float32" else 1
    if not recipe.float8:
        return networks.expert_gb * wide
    exact = networks.never_float8_gb
    return (exact + (networks.expert_gb - exact) * _FLOAT8_SHARE) * wide


def needs_gb(spec: ModelSpec, recipe: Recipe) -> float:
    """Peak GPU memory of a clip in GB: resident weights and working memory."""
    networks, wide = spec.networks, 2 if recipe.dtype == "float32" else 1
    expert_gb = _expert_gb(spec, recipe)
    text_gb, working_gb = networks.text_encoder_gb * wide, spec.working_gb * wide
    # Once in float32 for encoding, and once more in bfloat16 if the last decode uses it.
    vae_gb = networks.vae_gb * (2 if recipe.decode_dtype == "float32" else 3)
    if recipe.offload == "model":
        return max(expert_gb + working_gb, text_gb, vae_gb + working_gb) + _CONTEXT_GB
    if recipe.offload == "layer":
        return max(expert_gb, text_gb) * _LAYER_SHARE + working_gb + _CONTEXT_GB
    share = networks.experts if recipe.offload == "none" else _STREAMED_SHARE
    peak = text_gb + working_gb if recipe.text_encoder == "kept" else max(text_gb, working_gb)
    return expert_gb * share + vae_gb + peak + _CONTEXT_GB


def kept_gb(spec: ModelSpec, recipe: Recipe) -> float:
    """Device memory in GB that the model keeps between two clips: its resident weights."""
    if recipe.offload in ("model", "layer"):
        return 0.0
    networks, wide = spec.networks, 2 if recipe.dtype == "float32" else 1
    expert_gb = _expert_gb(spec, recipe)
    text_gb = networks.text_encoder_gb * wide if recipe.text_encoder == "kept" else 0.0
    vae_gb = networks.vae_gb * (2 if recipe.decode_dtype == "float32" else 3)
    share = networks.experts if recipe.offload == "none" else _STREAMED_SHARE
    return expert_gb * share + vae_gb + text_gb


def pool_gb(gpu: Gpu | None, settings: Settings) -> float:
    """GB that all models on the device may use together."""
    here = detect_host().memory_gb - _HOST_GB if gpu is None else gpu.usable_gb
    return here if settings.pool_gb is None else min(here, settings.pool_gb)


def can_wait_in_host_memory(spec: ModelSpec, recipe: Recipe) -> bool:
    """Whether a model that is unloaded from the GPU may stay in host memory: it must fit a GPU
    whole, and the host must have room for it now."""
    if recipe.device == "cpu" or recipe.offload != "none":
        return False
    return kept_gb(spec, recipe) + _HOST_GB <= memory.available_bytes() / 1e9


def host_gb(spec: ModelSpec, recipe: Recipe) -> float:
    """Peak host memory in GB: weights that are not on the device, and the process itself."""
    networks, wide = spec.networks, 2 if recipe.dtype == "float32" else 1
    text_gb, kept = networks.text_encoder_gb * wide, 0.0
    if recipe.offload != "none":
        kept += _expert_gb(spec, recipe) * networks.experts
    if recipe.text_encoder == "moved" or recipe.offload in ("model", "layer"):
        kept += text_gb
    # The text encoder is loaded first and whole; experts are loaded block by block.
    return max(kept, text_gb) + _HOST_GB


def least_gb(spec: ModelSpec) -> float:
    """The least GPU memory in GB that makes a clip of this model in useful time."""
    return needs_gb(spec, Recipe("cuda", "bfloat16", "stream", "moved", decode_dtype="bfloat16"))


def leaner(recipe: Recipe) -> Recipe | None:
    """The next recipe with less memory and more time, or None."""
    if recipe.device == "cpu":
        return None
    if recipe.offload in ("none", "stream") and recipe.text_encoder == "kept":
        return replace(recipe, text_encoder="moved")
    if recipe.offload not in _LEANER:
        return None
    offload = _LEANER[recipe.offload]
    float8 = recipe.float8 and offload != "layer"
    text_encoder: TextEncoder = "moved" if offload == "stream" else "kept"
    return replace(
        recipe, offload=offload, float8=float8, compiled=False, text_encoder=text_encoder
    )


def smaller(spec: ModelSpec, gpu: Gpu | None) -> str:
    """The end of a sentence: a model that needs less memory than `spec` and should fit on `gpu`."""
    area = f"a WAN_RENDER_AREA below {spec.max_area} needs less"
    same_task = (row for row in known_models().values() if row.task == spec.task)
    rows = (row for row in same_task if not row.is_toy and least_gb(row) < least_gb(spec))
    names = [row.name for row in rows if fits(row, gpu)]
    return f"{' or '.join(names)} would fit, or {area}" if names else area


def beside(spec: ModelSpec, gpu: Gpu | None, recipe: Recipe) -> str:
    """The device for small models of 2 GB together, such as the safety classifiers: that of the
    model if both fit, otherwise the CPU."""
    if gpu is None or recipe.offload != "none" or recipe.dtype != "bfloat16":
        return "cpu"
    return recipe.device if gpu.usable_gb >= needs_gb(spec, recipe) + _SMALL_GB else "cpu"


def fits(spec: ModelSpec, gpu: Gpu | None, host: Host | None = None) -> bool:
    """Whether this machine can make a clip of this model in useful time."""
    if gpu is None or spec.is_toy:
        return spec.is_toy
    if gpu.capability < _BFLOAT16_SINCE:
        return False
    host = host or detect_host()  # compilation does not change the memory
    recipes = _candidates(spec, gpu, Settings.model_construct(), host)
    useful = (recipe for recipe in recipes if recipe.offload != "layer")
    return any(not _lacking(spec, recipe, gpu, host) for recipe in useful)


def spare_gb(spec: ModelSpec, gpu: Gpu | None, recipe: Recipe) -> float:
    """GPU memory in GB that the model leaves free at its peak, for a smaller model next to it."""
    if gpu is None or recipe.dtype == "float32":
        return 0.0
    used_gb = needs_gb(spec, recipe)
    if beside(spec, gpu, recipe) != "cpu":
        used_gb += _SMALL_GB
    return max(0.0, gpu.usable_gb - used_gb)
