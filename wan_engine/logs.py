"""Formats log lines, and keeps signatures, credentials and media out of them.

Prompts are never given to a logger at INFO in the first place.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable

from wan_engine.settings import Settings, secret_values

_HIDDEN = (
    # All of a query: what signs a URL has another name in every store.
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
_LONGEST_LINE = 20_000  # what is longer has somebody's data in it, and takes time to look through
_SHORTEST_SECRET = 6  # shorter ones would blot out ordinary words


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without the queries of URLs, credentials, data URIs and the `secrets` themselves."""
    if len(text) > _LONGEST_LINE:
        text = text[:_LONGEST_LINE] + " ... (cut)"
    for secret in secrets:
        text = text.replace(secret, "...")
    for pattern, replacement in _HIDDEN:
        text = pattern.sub(replacement, text)
    return text


class RedactingFormatter(logging.Formatter):
    """Whole lines, tracebacks included, go through `redact`."""

    def __init__(self, layout: str, secrets: Iterable[str] = ()) -> None:
        super().__init__(layout)
        self._secrets = tuple(secrets)

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self._secrets)


class RunpodFormatter(RedactingFormatter):
    """A line of JSON as the Runpod SDK writes it itself; Runpod's console groups by `requestId`."""

    def __init__(self, job_id: Callable[[], str | None], secrets: Iterable[str] = ()) -> None:
        super().__init__("%(message)s", secrets)
        self._job_id = job_id

    def format(self, record: logging.LogRecord) -> str:
        level = "WARN" if record.levelno == logging.WARNING else record.levelname
        message = super().format(record)
        return json.dumps({"requestId": self._job_id(), "message": message, "level": level})


def redact_runpods(secrets: Iterable[str]) -> None:
    """The Runpod SDK prints its lines itself, at DEBUG each job's result with its signed URL."""
    from runpod.serverless.modules.rp_logger import RunPodLogger

    class Redacting(RunPodLogger):  # type: ignore[misc]
        def log(self, message: object, *args: object, **named: object) -> None:
            super().log(redact(str(message), kept), *args, **named)

    kept = tuple(secrets)
    RunPodLogger().__class__ = Redacting  # there is one, which each of its modules has already


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """The credentials that these settings hold, as `redact` takes them."""
    return tuple(value for value in secret_values(settings) if len(value) >= _SHORTEST_SECRET)


def set_up(
    settings: Settings,
    handler: logging.Handler,
    formatter: logging.Formatter,
    *,
    replace: bool = False,
) -> None:
    """Send everything through `handler`, with `replace` instead of what libraries have set up."""
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=replace)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings show whole URLs
    for name in ("httpx2", "httpx"):  # of the Hub's client and the gateway: a line a request
        logging.getLogger(name).setLevel(logging.WARNING)


def quiet_libraries(*, bars: bool) -> None:
    """Loading bars only where they are wanted and somebody watches; no warning about torchvision,
    which is missing here because nothing uses it."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    transformers_logging.set_verbosity_error()
    for logging_module in (diffusers_logging, transformers_logging):
        if bars and sys.stderr.isatty():
            logging_module.enable_progress_bar()
        else:
            logging_module.disable_progress_bar()
