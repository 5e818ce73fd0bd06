"""`python -m tests.gateway.serve_fake PORT`: a served gateway whose engine is `fake_engine`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from wan_engine.gateway.backends.own_engine import LocalBackend
from wan_engine.gateway.metrics import Metrics
from wan_engine.gateway.serve import serve
from wan_engine.settings import Settings


def open_fake(
    settings: Settings, metrics: Metrics, on_fatal: Callable[[str], None] | None = None
) -> LocalBackend:
    command = ("-m", "tests.gateway.fake_engine")
    return LocalBackend(settings, metrics, on_fatal, command=command)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    serve(Settings.load(), "127.0.0.1", int(sys.argv[1]), open_fake)
