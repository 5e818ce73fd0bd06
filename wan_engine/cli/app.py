"""Lists the commands. Results go to stdout as JSON or a table, everything else to stderr.

Exit codes: 0 done, 1 a job, its contact sheet or a check failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from wan_engine.runtime.startup import end_when_told
from wan_engine.settings import VERSION

COMMANDS = (
    *("generate", "plan", "doctor", "models", "loras", "download", "schema", "settings", "serve"),
    "key",
)
"""In the order of `--help`. Each is the function of this name in the file of this name, next to its
`EXAMPLE`."""

PROGRAM = "wan-engine" if Path(sys.argv[0]).stem == "wan-engine" else "python -m wan_engine"
"""The command that the user typed."""

app = typer.Typer(
    name="wan_engine",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Turn a photo and a prompt into an mp4, on this machine.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. `COMMAND --help` has an "
    "example of each command.",
)


@app.callback(invoke_without_command=True)
def start(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    end_when_told()
    if version:
        print(VERSION)
        raise typer.Exit


for _name in COMMANDS:
    _module = import_module(f"wan_engine.cli.{_name}")
    _example = f"Example: `{PROGRAM} {_name} {_module.EXAMPLE}".rstrip() + "`"
    app.command(_name, epilog=_example)(getattr(_module, _name))
