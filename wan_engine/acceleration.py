"""How a model runs on this machine: device, precision, offload. Every choice comes with its
reason, and has a leaner one behind it for when memory does not suffice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.errors import ConfigurationError

Offload = Literal["none", "model", "layer"]
"""What stays on the device between uses: everything, one network at a time, one layer at a time."""

_LEANER: dict[Offload, Offload] = {"none": "model", "model": "layer"}
_BFLOAT16_SINCE = (8, 0)
"""Ampere. Before it only float32 holds the weights' range, at twice the memory of the catalogue."""

_SMALL_GB = 2.0  # a guard of 0.6 B and a ViT-B in bfloat16, 1.4 GB, and what they compute with


@dataclass(frozen=True)
class Gpu:
    """What decides. `total_gb` is 10^9 bytes, as the catalogue counts."""

    name: str
    total_gb: float
    capability: tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """`dtype` is the name of a torch dtype."""

    device: str
    dtype: str
    offload: Offload = "none"


def detect(device: str) -> Gpu | None:
    """The GPU that `device` ("auto", "cuda", "cuda:1", "cpu") means; None where the CPU is meant.

    Raises `ConfigurationError` for a GPU that is named and not there.
    """
    if device == "cpu":
        return None
    import torch

    index = int(device.partition(":")[2] or 0)
    if torch.cuda.device_count() <= index:
        if device == "auto":
            return None
        raise ConfigurationError(
            f"WAN_DEVICE is {device}, and torch sees {torch.cuda.device_count()} CUDA devices "
            "here. "
            "Set it to `auto` or `cpu`, or mend the driver."
        )
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    return Gpu(properties.name, properties.total_memory / 1e9, capability)


def choose(spec: ModelSpec, gpu: Gpu | None, device: str) -> tuple[Recipe, str]:
    """The recipe for `spec` on `gpu`, and why."""
    if gpu is None:
        return Recipe("cpu", "float32"), "no GPU: float32 on the CPU"
    target = "cuda" if device == "auto" else device
    dtype = "bfloat16" if gpu.capability >= _BFLOAT16_SINCE else "float32"
    where = f"{gpu.name} with {gpu.total_gb:.0f} GB"
    resident_gb = spec.resident_gb * (2 if dtype == "float32" else 1)
    if gpu.total_gb >= resident_gb:
        return Recipe(target, dtype), f"{where} keeps all of the model's {resident_gb:g} GB"
    reason = f"{where} is less than {resident_gb:g} GB: one network at a time"
    return Recipe(target, dtype, "model"), reason


def leaner(recipe: Recipe) -> Recipe | None:
    """The recipe that takes the next less memory and more time; None when there is none."""
    if recipe.device == "cpu" or recipe.offload not in _LEANER:
        return None
    return replace(recipe, offload=_LEANER[recipe.offload])


def smaller(spec: ModelSpec, gpu: Gpu | None) -> str:
    """What needs less memory than `spec` on `gpu` and should fit, as the end of a sentence."""
    area = f"a WAN_RENDER_AREA below {spec.max_area} needs less"
    rows = (row for row in CATALOG.values() if not row.built and row.offload_gb < spec.offload_gb)
    names = [row.name for row in rows if fits(row, gpu)]
    return f"{' or '.join(names)} would fit, or {area}" if names else area


def beside(spec: ModelSpec, gpu: Gpu | None, recipe: Recipe) -> str:
    """The device for small models of 2 GB together, such as the safety classifiers: that of the
    model where both stay in memory, else the CPU."""
    if gpu is None or recipe.offload != "none" or recipe.dtype != "bfloat16":
        return "cpu"
    return recipe.device if gpu.total_gb >= spec.resident_gb + _SMALL_GB else "cpu"


def fits(spec: ModelSpec, gpu: Gpu | None) -> bool:
    """Whether a clip of this model can be made here in useful time."""
    if gpu is None:
        return spec.built
    return gpu.total_gb >= spec.offload_gb and (spec.built or gpu.capability >= _BFLOAT16_SINCE)


def spare_gb(spec: ModelSpec, gpu: Gpu | None, recipe: Recipe) -> float:
    """GPU memory that the model leaves free at its peak, for a smaller model beside it."""
    if gpu is None or recipe.dtype == "float32":  # the catalogue's figures are of bfloat16
        return 0.0
    used_gb = spec.resident_gb if recipe.offload == "none" else spec.offload_gb
    if beside(spec, gpu, recipe) != "cpu":
        used_gb += _SMALL_GB
    return max(0.0, gpu.total_gb - used_gb)
