"""`doctor`: checks everything that a job needs on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from wan_engine.checks import machine_checks, start_checks
from wan_engine.cli.options import AsJson
from wan_engine.cli.terminal import failing_clearly, load_settings, out
from wan_engine.runtime.startup import Startup
from wan_engine.settings.environment import in_runpod_loop

EXAMPLE = "--timing"

_LEVELS = {"ok": "ok", "warn": "[yellow]warn[/yellow]", "fail": "[red]FAIL[/red]"}


def doctor(
    as_json: AsJson = False,
    timing: Annotated[
        bool,
        typer.Option(
            "--timing", help="Start as a worker does, and print the seconds of each stage."
        ),
    ] = False,
    worker: Annotated[
        bool | None,
        typer.Option(
            "--worker/--no-worker",
            help="Run the checks of a Runpod worker. Default if RUNPOD_WEBHOOK_GET_JOB is set.",
        ),
    ] = None,
) -> None:
    """Show what this machine has, what the engine chose for it and why, and what is missing.

    `warn`: jobs run, but with limits. `FAIL`: jobs do not run; the exit code is 1.
    """
    worker = in_runpod_loop() if worker is None else worker
    with failing_clearly():
        startup = Startup()
        settings = load_settings()
        startup.done("imports")
        checks = list(machine_checks(settings, worker=worker))
        startup.done("checks")
        if timing and all(check.ok for check in checks):
            checks += start_checks(settings, startup, worker=worker)
    if as_json:
        print(json.dumps([{**asdict(check), "ok": check.ok} for check in checks], indent=2))
    else:
        asked = "for a Runpod worker" if worker else "on this machine"
        table = Table("", Column("what", no_wrap=True), f"found {asked}", show_edge=False)
        for check in checks:
            table.add_row(_LEVELS[check.level], check.what, Text(check.found))
        out.print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)
