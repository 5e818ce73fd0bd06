"""Authenticates callers by the hash of their key, and limits how often each may call."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wan_engine.errors import ConfigurationError
from wan_engine.gateway.refusals import Refusal
from wan_engine.settings.values import HASHED_KEY

NOBODY = "local"
"""The owner of all jobs if there are no keys."""

NO_KEY = "no token provided"
"""The answer to a call without a key, as in Runpod's API."""

_BURST_SECONDS = 10


@dataclass(frozen=True)
class Share:
    """The share of a key: `weight` turns for each turn of another key, and at most `most` waiting
    jobs at a time."""

    weight: float = 1.0
    most: int | None = None


def new_entry(name: str, weight: float | None = None, most: int | None = None) -> tuple[str, str]:
    """A new key, and its entry for WAN_API_KEYS. Raises `ConfigurationError`."""
    key = f"wan_{secrets.token_urlsafe(32)}"
    entry = f"{name}:{digest(key)}"
    if not HASHED_KEY.fullmatch(entry):
        raise ConfigurationError(
            "A key's name has up to 64 letters, digits, dots, dashes and underscores"
        )
    entry += f":weight={weight:g}" if weight is not None else ""
    entry += f":max={most}" if most is not None else ""
    if not HASHED_KEY.fullmatch(entry):
        raise ConfigurationError(
            "A key's weight is a number from 0.01 to 999.99, its max an integer from 1 to 999999"
        )
    return key, entry


def shares(entries: Mapping[str, str]) -> dict[str, Share]:
    """The share of each key by its name, from entries of WAN_API_KEYS."""
    return {name: _share(entry) for name, entry in entries.items()}


def _share(entry: str) -> Share:
    said = dict(word.split("=") for word in entry.split(":")[1:])
    return Share(float(said.get("weight", 1)), int(said["max"]) if "max" in said else None)


def digest(key: str) -> str:
    """The SHA-256 of a key. `new_entry` makes keys of 256 bits, so no slow hash is needed."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Keys:
    """The keys, from the entries of WAN_API_KEYS by name."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self._hashes = {name: entry.partition(":")[0] for name, entry in entries.items()}

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, authorization: str | None) -> str:
        """The name of the key in a header `Authorization: Bearer KEY`, or `KEY` alone, as some of
        the hosted samples send it. Raises `Refusal`."""
        if not self._hashes:
            return NOBODY
        scheme, _, rest = (authorization or "").strip().partition(" ")
        key = rest.strip() if scheme.lower() == "bearer" else (authorization or "").strip()
        if not key:
            raise Refusal("unauthenticated", NO_KEY)
        given, found = digest(key), None
        for name, right in self._hashes.items():  # all of them: the time must reveal nothing
            if hmac.compare_digest(given, right):
                found = name
        if found is None:
            raise Refusal("unauthenticated", "The API key is not valid")
        return found


class RateLimit:
    """A token bucket per owner: `per_second` on average, with bursts of ten seconds' worth. 0 means
    no limit."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second * _BURST_SECONDS)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def count(self, owner: str) -> None:
        """Count one request. Raises `Refusal` "rate_limited" with the time to wait."""
        if self._per_second <= 0:
            return
        now = self._clock()
        tokens, filled = self._buckets.get(owner, (self._most, now))
        tokens = min(self._most, tokens + (now - filled) * self._per_second)
        if tokens < 1:
            self._buckets[owner] = tokens, now
            wait_seconds = max(1, round((1 - tokens) / self._per_second + 0.5))
            raise Refusal("rate_limited", "Too many requests", wait_seconds)
        self._buckets[owner] = tokens - 1, now
