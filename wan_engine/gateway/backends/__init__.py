"""Opens the backend that renders: the engine in a process of this machine, or a Runpod endpoint."""

from __future__ import annotations

from collections.abc import Callable

from wan_engine.gateway.backends.base import Backend
from wan_engine.gateway.backends.endpoint import EndpointBackend
from wan_engine.gateway.backends.local import LocalBackend
from wan_engine.gateway.metrics import Metrics
from wan_engine.settings import Settings

__all__ = ["Backend", "open_backend"]


def open_backend(
    settings: Settings, metrics: Metrics, on_fatal: Callable[[str], None] | None = None
) -> Backend:
    """What the settings ask for; nothing is started. `on_fatal` is told why nothing can ever be
    rendered. Raises `ConfigurationError`."""
    if settings.backend == "runpod" or (settings.backend == "auto" and settings.runpod_endpoint):
        return EndpointBackend(settings)
    return LocalBackend(settings, metrics, on_fatal)
