"""Turns the model's frames into the clip's: it enlarges them, then adds frames between them.

Its networks are loaded together with the model.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Literal

from wan_engine.control import Control
from wan_engine.media import retime, upscale
from wan_engine.media.frames import blend
from wan_engine.media.rife import Rife
from wan_engine.schema import Frames, Plan
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

_NETWORKS = ("realesrgan", "kandinsky-sr")


class Postprocess:
    """Enlarges and retimes a stream of frames. `upscaling` is the upscaling method with its reason
    (`weights.choose_upscaling`). Raises `ConfigurationError`, in the constructor and in `load`,
    when a setting names something that this machine lacks."""

    def __init__(self, settings: Settings, device: str, upscaling: tuple[str, str]) -> None:
        self._settings = settings
        self._device = device
        self.interpolation, self._interpolation_reason = retime.choose(settings)
        self.upscaling, self._upscaling_reason = upscaling
        self._rife: Rife | None = None
        self._upscaler: upscale.Upscaler | None = None

    def load(self) -> None:
        """Load the weights of the networks, so that invalid ones fail the start."""
        log.info("interpolation: %s (%s)", self.interpolation, self._interpolation_reason)
        log.info("upscaling: %s (%s)", self.upscaling, self._upscaling_reason)
        if self.interpolation == "rife":
            self._between()
        if self.upscaling in _NETWORKS:
            self._load_upscaler()

    def apply(
        self, frames: Generator[Frames, None, None], plan: Plan, control: Control
    ) -> tuple[Generator[Frames, None, None], Plan]:
        """The frames of the clip from those of the model, and the plan for the encoder. Closes its
        source when it is closed."""
        if self._enlarges(plan):
            frames = upscale.upscale(frames, plan, self._load_upscaler(), control)
            plan = upscale.upscaled(plan)
        if plan.fps != plan.source_fps or any(shot.ends_on_picture for shot in plan.shots):
            frames = retime.retime(frames, plan, self._between(), control)
        return frames, plan

    def describe(self, plan: Plan) -> list[str]:
        """The changes to the model's own frames, in words."""
        parts = []
        if upscale.is_larger(plan):
            how = self.upscaling if self._enlarges(plan) else "lanczos"
            parts.append(f"{plan.crop_width}x{plan.crop_height} enlarged by {how}")
        if plan.fps != plan.source_fps:
            parts.append(f"from {plan.source_fps} fps by {self.interpolation}")
        return parts

    def warnings(self, plan: Plan) -> list[str]:
        """The warnings for a result."""
        chosen = self._settings.interpolation == "auto"
        if chosen and self.interpolation == "blend" and plan.fps != plan.source_fps:
            return [
                f"Frames between the model's {plan.source_fps} a second are means of two: "
                "moving edges are double"
            ]
        return []

    def _enlarges(self, plan: Plan) -> bool:
        return self.upscaling in _NETWORKS and upscale.is_larger(plan)

    def _load_upscaler(self) -> upscale.Upscaler:
        if self._upscaler is None:
            assert self._settings.upscale_weights is not None, "checked at start"
            weights = self._settings.upscale_weights
            self._upscaler = upscale.load(self.upscaling, weights, self._device)
        return self._upscaler

    def _between(self) -> retime.Between | Literal["mci"]:
        if self.interpolation != "rife":
            return "mci" if self.interpolation == "mci" else blend
        if self._rife is None:
            assert self._settings.rife_weights is not None, "checked at start"
            self._rife = Rife(self._settings.rife_weights, self._device)
        self._rife.forget()
        return self._rife.between
