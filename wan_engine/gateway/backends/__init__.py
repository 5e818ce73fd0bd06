"""Opens the backend that renders: the engine in a process of this machine, or a Runpod endpoint."""

from __future__ import annotations

from collections.abc import Callable

from wan_engine.gateway.backends.base import Backend
from wan_engine.gateway.backends.endpoint import EndpointBackend
from wan_engine.gateway.backends.own_engine import LocalBackend
from wan_engine.gateway.metrics import Metrics
from wan_engine.settings import Settings

__all__ = ["Backend", "open_backend"]


def open_backend(
    settings: Settings, metrics: Metrics, on_fatal: Callable[[str], None] | None = None
) -> Backend:
    """The backend that the settings choose, not started. `on_fatal` gets the reason if it can never
    render. Raises `ConfigurationError`."""
    if settings.backend == "runpod" or (settings.backend == "auto" and settings.runpod_endpoint):
        return EndpointBackend(settings)
    return LocalBackend(settings, metrics, on_fatal)
