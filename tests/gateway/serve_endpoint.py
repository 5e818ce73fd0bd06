"""`python -m tests.gateway.serve_endpoint PORT`: a served gateway in front of an endpoint."""

from __future__ import annotations

import logging
import sys

from wan_engine.gateway.serve import serve
from wan_engine.settings import Settings

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    serve(Settings.load(), "127.0.0.1", int(sys.argv[1]))
