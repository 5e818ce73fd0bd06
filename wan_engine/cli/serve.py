"""`serve`: starts the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from wan_engine.cli.options import Model
from wan_engine.cli.terminal import failing_clearly, load_settings

EXAMPLE = "--port 8080"


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free port.")
    ] = 8000,
    model: Model = "",
) -> None:
    """Serve the hosted APIs and the playground, with this machine's GPU or a Runpod endpoint."""
    with failing_clearly():
        from wan_engine.gateway import serve as gateway  # only this command needs a web server

        gateway.serve(load_settings(model), host, port)
