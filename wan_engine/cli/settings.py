"""`settings`: lists every environment variable."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.table import Column, Table

from wan_engine.cli.options import AsJson
from wan_engine.cli.terminal import out
from wan_engine.settings import described

EXAMPLE = "--json"


def settings(as_json: AsJson = False) -> None:
    """List every environment variable with its default and meaning."""
    rows = described()
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table(Column("variable", no_wrap=True), "default", "meaning", show_edge=False)
    for row in rows:
        table.add_row(row.variable, row.default, row.meaning)
    out.print(table)
