"""`key`: makes an API key for the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from wan_engine.cli.terminal import err, failing_clearly

EXAMPLE = "alice --weight 2 --max 50"


def key(
    name: Annotated[str, typer.Argument(help="Who gets the key.")],
    weight: Annotated[
        float | None, typer.Option(help="Turns of this key for each turn of another key.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", help="Most jobs of this key that may wait at a time.")
    ] = None,
) -> None:
    """Make an API key for the gateway. It is shown once; only its hash is kept."""
    from wan_engine.gateway import keys

    with failing_clearly():
        made, entry = keys.new_entry(name, weight, most)
    err.print("Add the second line to WAN_API_KEYS; give the first to the caller.")
    print(made)
    print(entry)
