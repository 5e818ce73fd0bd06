"""Chooses the method of upscaling, and checks that its weights are complete.

`media/upscale.py` loads them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Literal

from wan_engine.errors import ConfigurationError
from wan_engine.settings import Settings
from wan_engine.weights.files import missing_in_layout, read_json

Upscaling = Literal["lanczos", "realesrgan", "kandinsky-sr", "native"]


def choose_upscaling(settings: Settings) -> tuple[Upscaling, str]:
    """The method of upscaling, and the reason. Raises `ConfigurationError` if the settings name a
    method that cannot work."""
    wanted, weights = settings.upscale, settings.upscale_weights
    if wanted in ("lanczos", "native"):
        return wanted, "WAN_UPSCALE"
    if wanted == "auto" and weights is None:
        return "lanczos", "no WAN_UPSCALE_WEIGHTS"
    if weights is None:
        raise ConfigurationError(
            f"WAN_UPSCALE is `{wanted}`, which needs WAN_UPSCALE_WEIGHTS: a checkpoint such as "
            "RealESRGAN_x2plus.pth, or the folder of a Kandinsky 6 SR model in diffusers layout."
        )
    kind: Upscaling = "kandinsky-sr" if weights.is_dir() else "realesrgan"
    if wanted not in ("auto", kind):
        holds = "a folder" if weights.is_dir() else "not a folder"
        raise ConfigurationError(
            f"WAN_UPSCALE is `{wanted}`, and WAN_UPSCALE_WEIGHTS names {weights}, which is {holds}"
        )
    (_check_kandinsky if kind == "kandinsky-sr" else _check_realesrgan)(weights)
    return kind, f"weights of {weights}"


def _check_kandinsky(folder: Path) -> None:
    index = folder / "model_index.json"
    kind = read_json(index).get("_class_name") if index.is_file() else None
    if kind != "Kandinsky6SRPipeline":
        raise ConfigurationError(
            f"WAN_UPSCALE_WEIGHTS names {folder}, which holds {kind or 'no model_index.json'}; "
            "it needs a Kandinsky6SRPipeline in diffusers layout"
        )
    if missing := missing_in_layout(folder):
        raise ConfigurationError(
            f"WAN_UPSCALE_WEIGHTS names {folder}, which is incomplete: {', '.join(missing[:3])}"
        )


def _check_realesrgan(weights: Path) -> None:
    if not weights.is_file():
        raise ConfigurationError(f"WAN_UPSCALE_WEIGHTS names {weights}, which is not there")
    try:
        import_module("spandrel")
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision for another torch
        raise ConfigurationError(
            f"WAN_UPSCALE `realesrgan` needs the package spandrel ({error}): pip install -r "
            "requirements-extra.txt, or set WAN_UPSCALE to `lanczos`."
        ) from error
