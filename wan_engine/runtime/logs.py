"""Formats log lines, and keeps signatures, credentials and media out of them.

The engine never logs prompts at INFO.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable

from wan_engine.settings import Settings, secret_values

_HIDDEN = (
    # The whole query, because every store names the signature differently.
    (re.compile(r"(https?://[^\s\"'<>?]{0,999})\?[^\s\"'<>]*", re.IGNORECASE), r"\1?..."),
    (re.compile(r"(\b\w{1,20}://)[^/\s@\"']{1,999}@"), r"\1...@"),
    (re.compile(r"(data:[\w/+.-]{0,99};base64,)[A-Za-z0-9+/=_%-]{16,}", re.IGNORECASE), r"\1..."),
    (re.compile(r"(\bBearer\s+)[^\s\"',]{4,}", re.IGNORECASE), r"\1..."),
    (
        re.compile(
            r"(\b(?:authorization|[\w-]{0,40}(?:secret|password|token|signature|api[_-]?key))"
            r"[\"']?\s*[:=]\s*[\"']?)(?!Bearer\b)[^\s\"',&]{4,}",
            re.IGNORECASE,
        ),
        r"\1...",
    ),
)
_LONGEST_LINE = 20_000  # longer text contains user data and takes time to search
_SHORTEST_SECRET = 6  # shorter secrets would hide ordinary words


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Remove the queries of URLs, credentials, data URIs and the `secrets` from `text`."""
    if len(text) > _LONGEST_LINE:
        text = text[:_LONGEST_LINE] + " ... (cut)"
    for secret in secrets:
        text = text.replace(secret, "...")
    for pattern, replacement in _HIDDEN:
        text = pattern.sub(replacement, text)
    return text


class RedactingFormatter(logging.Formatter):
    """Formats lines with their tracebacks, and passes them through `redact`."""

    def __init__(self, layout: str, secrets: Iterable[str] = ()) -> None:
        super().__init__(layout)
        self._secrets = tuple(secrets)

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self._secrets)


class RunpodFormatter(RedactingFormatter):
    """Formats lines as the Runpod SDK does, in JSON. Runpod's console groups them by
    `requestId`."""

    def __init__(self, job_id: Callable[[], str | None], secrets: Iterable[str] = ()) -> None:
        super().__init__("%(message)s", secrets)
        self._job_id = job_id

    def format(self, record: logging.LogRecord) -> str:
        level = "WARN" if record.levelno == logging.WARNING else record.levelname
        message = super().format(record)
        return json.dumps({"requestId": self._job_id(), "message": message, "level": level})


def redact_runpods(secrets: Iterable[str]) -> None:
    """Redact the lines that the Runpod SDK prints itself: at DEBUG it prints each job's result with
    its signed URL."""
    from runpod.serverless.modules.rp_logger import RunPodLogger

    class Redacting(RunPodLogger):  # type: ignore[misc]
        def log(self, message: object, *args: object, **named: object) -> None:
            super().log(redact(str(message), kept), *args, **named)

    kept = tuple(secrets)
    # There is one instance, which each of its modules has imported.
    RunPodLogger().__class__ = Redacting


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """The credentials in these settings, for `redact`."""
    return tuple(value for value in secret_values(settings) if len(value) >= _SHORTEST_SECRET)


def set_up(
    settings: Settings,
    handler: logging.Handler,
    formatter: logging.Formatter,
    *,
    replace: bool = False,
) -> None:
    """Send all log records through `handler`, with `replace` instead of the handlers of
    libraries."""
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=replace)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings contain whole URLs
    for name in ("httpx2", "httpx"):  # the Hub's client and the gateway log a line per request
        logging.getLogger(name).setLevel(logging.WARNING)


def quiet_libraries(*, bars: bool) -> None:
    """Show loading bars only if they are wanted and stderr is a terminal. Hide the warning about
    torchvision, which is not needed."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    transformers_logging.set_verbosity_error()
    for logging_module in (diffusers_logging, transformers_logging):
        if bars and sys.stderr.isatty():
            logging_module.enable_progress_bar()
        else:
            logging_module.disable_progress_bar()
