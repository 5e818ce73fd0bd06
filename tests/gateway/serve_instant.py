"""`python -m tests.gateway.serve_instant PORT`: a served gateway with the instant backend."""

from __future__ import annotations

import sys

from tests.gateway.fakes import InstantBackend
from wan_engine.gateway.serve import serve
from wan_engine.settings import Settings

if __name__ == "__main__":
    serve(
        Settings.load(),
        "127.0.0.1",
        int(sys.argv[1]),
        lambda settings, metrics, on_fatal: InstantBackend(settings.output_dir),
    )
