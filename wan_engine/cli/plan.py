"""`plan`: shows what `generate` would render, and renders nothing."""

from __future__ import annotations

import json

from wan_engine.cli.local_requests import LocalRequest
from wan_engine.cli.options import AsJson, RequestOptions, with_request_options
from wan_engine.cli.plan_table import tables
from wan_engine.cli.terminal import failing_clearly, load_settings, out
from wan_engine.engine import Engine

EXAMPLE = '--image photo.jpg --duration 15 --prompt "Leaves sway"'


@with_request_options
def plan(options: RequestOptions, as_json: AsJson = False) -> None:
    """Show what `generate` would render, in which segments and for what price. Render nothing."""
    asked = LocalRequest(options.payload())
    with failing_clearly(), asked.naming_files():
        settings = load_settings(options.model)
        request = asked.request(settings)
        found = Engine(settings).dry_run(request)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for table in tables(found):
            out.print(table)
