"""`key`: an API key for the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from wan_engine.cli.terminal import err, failing_clearly

EXAMPLE = "alice --weight 2 --max 50"


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    weight: Annotated[
        float | None, typer.Option(help="Turns that it has for one of another key's.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", help="Jobs of its that may wait at a time.")
    ] = None,
) -> None:
    """Make an API key for the gateway; it is shown this once, and only its hash is kept."""
    from wan_engine.gateway import keys

    with failing_clearly():
        made, entry = keys.new_entry(name, weight, most)
    err.print("Add the second line to WAN_API_KEYS; give the first to the caller.")
    print(made)
    print(entry)
