"""The documented lifecycle rule, applied to a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.storage.stores import BUCKET, RECORD, Store, s3_store
from wan_engine.control import Control
from wan_engine.storage import URL_SECONDS

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def lifecycle() -> dict[str, Any]:
    block = PAGE.read_text("utf-8").partition("<!-- lifecycle -->")[2]
    text = block.partition("```json")[2].partition("```")[0]
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_lifecycle_rule_is_accepted_and_covers_clips_and_records(
    s3: Any, bucket_settings: dict[str, Any], clip: Path
) -> None:
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=lifecycle())
    [rule] = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert rule == lifecycle()["Rules"][0]
    store: Store = s3_store(s3, bucket_settings)
    store.storage.put(clip, "job-1", RECORD, Control())
    assert len(store.contents()) == 2
    assert all(name.startswith(rule["Filter"]["Prefix"]) for name in store.contents())


def test_a_link_does_not_outlive_its_clip() -> None:
    [rule] = lifecycle()["Rules"]
    assert (rule["Status"], rule["Expiration"]["Days"] * 86400) == ("Enabled", URL_SECONDS)
    assert rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] == 1
