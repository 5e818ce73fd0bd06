"""No credential and no picture is ever in a log line."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_engine.runtime import logs
from wan_engine.settings import Settings

SIGNED = (
    "https://store.example/clips/a.mp4?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA9"
    "%2F20261121&X-Amz-Signature=0f1e2d3c4b5a"
)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"uploaded {SIGNED} at last", "uploaded https://store.example/clips/a.mp4?... at last"),
        (f"['{SIGNED}']", "['https://store.example/clips/a.mp4?...']"),
        ("HTTPS://H/p?sig=abc", "HTTPS://H/p?..."),
        ("https://user:pass@host/x", "https://...@host/x"),
        ("postgresql://wan:hunter22@db/wan", "postgresql://...@db/wan"),
        ("data:image/png;base64," + "iVBORw0KGgo" * 9, "data:image/png;base64,..."),
        ("Authorization: Bearer abc.def.ghi", "Authorization: Bearer ..."),
        ('{"Authorization": "AWS4-HMAC abc"}', '{"Authorization": "... abc"}'),
        ("aws_secret_access_key=wJalrXUtn", "aws_secret_access_key=wJalrXUtn"),
        ("X-Amz-Security-Token: IQoJb3Jp", "X-Amz-Security-Token: ..."),
        ("api_key='k-123456'", "api_key='...'"),
        ("no secret here, 5 tokens a second", "no secret here, 5 tokens a second"),
        ("duration 5 s at 12:30:45, 80 frames", "duration 5 s at 12:30:45, 80 frames"),
    ],
)
def test_a_line_keeps_useful_text_and_loses_secrets(line: str, shown: str) -> None:
    assert logs.redact(line, ["wJalrXUtn"]) == shown.replace("wJalrXUtn", "...")


@given(st.text(max_size=300))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = logs.redact(text)
    assert logs.redact(once) == once


@given(st.text("abcdefABCDEF0123456789%-_&=+/.", min_size=1, max_size=80))
def test_no_query_string_is_logged(query: str) -> None:
    assert logs.redact(f"at https://host/path?{query}!") == "at https://host/path?..."


@pytest.mark.parametrize("unit", ["a-", "token", "data:", "https://", "x://", "x@", "secret_"])
def test_a_long_line_is_shortened(unit: str) -> None:
    text = logs.redact(unit * 50_000)
    assert len(text) <= 20_010 and text.endswith("... (cut)")


def record_of(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("wan", logging.WARNING, __file__, 1, message, args, None)


def test_a_line_for_runpod_is_json_with_its_job() -> None:
    formatter = logs.RunpodFormatter(lambda: "job-1")
    line = json.loads(formatter.format(record_of("took %d s\nat %s", 5, SIGNED)))
    assert line == {
        "requestId": "job-1",
        "message": "took 5 s\nat https://store.example/clips/a.mp4?...",
        "level": "WARN",
    }


def test_a_traceback_is_redacted_too() -> None:
    record = record_of("failed")
    try:
        raise ValueError(SIGNED)
    except ValueError:
        record.exc_info = sys.exc_info()
    text = logs.RedactingFormatter("%(message)s").format(record)
    assert "ValueError: https://store.example" in text and "0f1e2d3c" not in text


def test_the_buckets_keys_are_secrets() -> None:
    settings = Settings(bucket_access_key_id="AKIDEXAMPLE", bucket_secret_access_key="s3cr3tvalue")
    formatter = logs.RedactingFormatter("%(message)s", logs.secrets_of(settings))
    assert formatter.format(record_of("AKIDEXAMPLE and s3cr3tvalue")) == "... and ..."


def test_a_short_key_does_not_remove_ordinary_words() -> None:
    assert logs.secrets_of(Settings(bucket_access_key_id="test")) == ()


@pytest.mark.parametrize("endpoint", ["", "abc123"])
def test_output_of_runpods_sdk_is_redacted_too(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In another process, RUNPOD_LOG_LEVEL would set this to DEBUG."""
    from runpod.serverless.modules import rp_job
    from runpod.serverless.modules.rp_logger import RunPodLogger

    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", endpoint)
    monkeypatch.setattr(RunPodLogger(), "level", "DEBUG", raising=False)
    monkeypatch.setattr(RunPodLogger(), "__class__", RunPodLogger)
    for _ in range(2):  # each set-up of the log redacts it
        logs.redact_runpods(["AKIDEXAMPLE"])
    for log in (rp_job.log, RunPodLogger()):
        log.debug(
            f"Run handler returned: {{'video_url': '{SIGNED}', 'by': 'AKIDEXAMPLE'}}", "job-1"
        )
        log.info("Finished.", "job-1")
    told = capsys.readouterr().out
    assert told.count("https://store.example/clips/a.mp4?...'") == 2 and told.count("Finished") == 2
    assert "AKID" not in told and "0f1e2d3c" not in told and "job-1" in told
