"""`schema`: prints the JSON schema of a request."""

from __future__ import annotations

import json

from wan_engine.schema import VideoRequest

EXAMPLE = "> input.schema.json"


def schema() -> None:
    """Print the JSON schema of a request's `input`."""
    print(json.dumps(VideoRequest.model_json_schema(), indent=2))
