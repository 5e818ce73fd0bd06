"""Checks for the text of variables: words, keys, URLs, networks.

Each check returns the cleaned value. Its error says which values are allowed and never shows the
value, which may be a secret.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable, Mapping
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

log = logging.getLogger(__name__)

MIB = 1024 * 1024

HASHED_KEY = re.compile(
    r"(?!.*:weight=.*:weight=)(?!.*:max=.*:max=)[A-Za-z0-9_.-]{1,64}:[0-9a-f]{64}"
    r"(?::weight=(?!0+(?:\.0+)?(?::|$))[0-9]{1,3}(?:\.[0-9]{1,2})?|:max=[1-9][0-9]{0,5})*"
)
"""An entry of `api_keys`: a name, the SHA-256 of a key, its weight and its maximum of jobs."""

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_KEY = re.compile(r"[!-~]+")  # the characters that an HTTP header allows


def cleaned(value: object, variable: str, *, lines: bool = False) -> object:
    """Strip the blanks and line breaks that files and consoles add around a value, with a warning
    that names the variable. Raises `ValueError` if the value is blank, or has control characters
    inside and `lines` is not set."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if value and not text:
        raise ValueError("it must not be blank")
    if _CONTROL.search(text) and not lines:
        raise ValueError("it must be one line, without control characters")
    if text != value:
        log.warning("%s has blanks or line breaks around it; they are ignored", variable)
    return text


def _words(value: object) -> object:
    """Split a variable at its commas."""
    if not isinstance(value, str):
        return value
    return tuple(word for part in value.split(",") if (word := part.strip()))


def _api_keys(value: object) -> object:
    if not isinstance(value, str):
        return value
    entries = _words(value)
    assert isinstance(entries, tuple)
    if not all(HASHED_KEY.fullmatch(entry) for entry in entries):
        raise ValueError(
            "it must be name:hash entries, separated by commas, each hash with 64 hexadecimal "
            "digits; :weight= with a number up to 999.99 and :max= with an integer up to 999999 "
            "may follow a hash"
        )
    keys = dict(entry.split(":", 1) for entry in entries)
    if len(keys) != len(entries):
        raise ValueError("each name must be unique")
    return keys


def _key(value: str) -> str:
    if not _KEY.fullmatch(value):
        raise ValueError("it must be printable ASCII without blanks inside")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        raise ValueError("it must be without the quotation marks around it")
    return value


def url(value: str) -> str:
    """Check a URL. Raises `ValueError` if it has no http scheme or no host, or contains a blank."""
    example = "it must be an http or https URL such as https://video.example.com"
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(example) from None
    if not _SCHEME.match(value) or not _HOST.fullmatch(host) or port == 0:
        raise ValueError(example)
    if not _KEY.fullmatch(value):
        raise ValueError(example)
    return value


def _base_url(value: str) -> str:
    """Check a URL to which paths are appended: it has no query, no fragment and no user."""
    parts = urlsplit(url(value))
    if "?" in value or "#" in value or "@" in parts.netloc:
        raise ValueError("it must be without a query, a fragment, a name and a password")
    return value


def _hidden(check: Callable[[str], str]) -> AfterValidator:
    """Apply `check` to a secret."""

    def checked(value: SecretStr) -> SecretStr:
        return SecretStr(check(value.get_secret_value()))

    return AfterValidator(checked)


def secret_parts(value: SecretStr) -> list[str]:
    """The parts of a value that must stay hidden: all of it; of a URL, its password and query."""
    text = value.get_secret_value()
    if "://" not in text:
        return [text]
    user, _, place = text.partition("://")[2].rpartition("@")
    password, query = user.partition(":")[2], place.partition("?")[2]
    return [part for part in (password, unquote(password), query) if part]


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for origin in value:
        if origin != "*" and (urlsplit(_base_url(origin)).path or origin.endswith("/")):
            raise ValueError("each must be * or scheme and host, such as https://www.example.com")
    return value


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for network in value:
        try:
            if network != "*":
                ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise ValueError(
                "each must be *, an address or a network, such as 10.0.0.0/8"
            ) from None
    return value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
Origins = Annotated[Words, AfterValidator(_origins)]
Networks = Annotated[Words, AfterValidator(_networks)]
HashedKeys = Annotated[Mapping[str, str], NoDecode, BeforeValidator(_api_keys)]
Key = Annotated[str, AfterValidator(_key)]
"""An id or a name that goes into a header or a path."""
Url = Annotated[str, AfterValidator(url)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
SecretKey = Annotated[SecretStr, _hidden(_key)]
SecretUrl = Annotated[SecretStr, _hidden(url)]
"""A URL that may contain a password or a key."""
