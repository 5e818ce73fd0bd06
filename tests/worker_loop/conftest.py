"""A bucket for the workers of a file, and a request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.services.bucket import Bucket, opened_bucket
from wan_engine import data_uri


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with opened_bucket() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """The fastest valid request."""
    photo = Path(__file__).parents[1] / "data" / "rocket_640x360.jpg"
    return {"prompt": "lift-off", "image": data_uri(photo), "seed": 1}
