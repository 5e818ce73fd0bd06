"""`schema`: prints the JSON schema of a request."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from wan_engine.schema import ReferenceRequest, VideoRequest

EXAMPLE = "> input.schema.json"


def schema(
    references: Annotated[
        bool, typer.Option("--references", help="Print the schema of a request with references.")
    ] = False,
) -> None:
    """Print the JSON schema of a request's `input`."""
    request = ReferenceRequest if references else VideoRequest
    print(json.dumps(request.model_json_schema(), indent=2))
