"""`key`: makes an API key for the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from wan_engine.cli.terminal import err, failing_clearly

EXAMPLE = "alice --weight 2 --max 50"


def key(
    name: Annotated[str, typer.Argument(help="Name of the caller.")],
    weight: Annotated[
        float | None, typer.Option(help="Turns of this key for each turn of another key.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", help="Largest number of waiting jobs of this key.")
    ] = None,
) -> None:
    """Make an API key for the gateway. It is shown once; the gateway stores only its hash."""
    from wan_engine.gateway import keys

    with failing_clearly():
        made, entry = keys.new_entry(name, weight, most)
    err.print("Add the second line to WAN_API_KEYS; give the first to the caller.")
    print(made)
    print(entry)
