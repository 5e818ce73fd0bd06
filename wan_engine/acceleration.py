"""How a model runs on this machine: device, precision, offload. Every choice comes with its
reason."""

from __future__ import annotations

from dataclasses import dataclass

from wan_engine.catalog import ModelSpec
from wan_engine.errors import ConfigurationError

_BFLOAT16_SINCE = (8, 0)
"""Ampere. Before it only float32 holds the weights' range, at twice the memory of the catalogue."""


@dataclass(frozen=True)
class Gpu:
    """What decides. `total_gb` is 10^9 bytes, as the catalogue counts."""

    name: str
    total_gb: float
    capability: tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """`offload` moves one network at a time to the device; `dtype` is the name of a torch dtype."""

    device: str
    dtype: str
    offload: bool = False


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
    return Recipe(target, dtype, offload=True), reason


def fits(spec: ModelSpec, gpu: Gpu | None) -> bool:
    """Whether a clip of this model can be made here in useful time."""
    if gpu is None:
        return spec.built
    return gpu.total_gb >= spec.offload_gb and (spec.built or gpu.capability >= _BFLOAT16_SINCE)


def spare_gb(spec: ModelSpec, gpu: Gpu | None, recipe: Recipe) -> float:
    """GPU memory that the model leaves free at its peak, for a smaller model beside it."""
    if gpu is None or recipe.dtype == "float32":  # the catalogue's figures are of bfloat16
        return 0.0
    return max(0.0, gpu.total_gb - (spec.offload_gb if recipe.offload else spec.resident_gb))
