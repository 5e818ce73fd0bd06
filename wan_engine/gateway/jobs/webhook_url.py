"""Checks the URL of a webhook when it is given."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

from wan_engine.gateway.loopback import is_loopback
from wan_engine.gateway.refusals import Refusal
from wan_engine.media.fetch import is_public_address

_MAX_CHARACTERS = 2048
_IN_HOSTS_FILES = ("localhost.localdomain", "ip6-localhost", "ip6-loopback")


async def checked_webhook(value: object, *, allow_private: bool) -> str | None:
    """Return the URL, or None. Raises `Refusal`, also for an address that is not public, in any
    spelling. The name is resolved when the webhook is sent, and may have another address then."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > _MAX_CHARACTERS or not _is_plain(value):
        raise _refused()
    # In a thread, because the import takes a second, once.
    host = await asyncio.to_thread(_host, value)
    if host is None:
        raise _refused()
    if not allow_private and not await asyncio.to_thread(_may_be_public, host):
        raise Refusal("invalid_request", 'field "webhook" must be a URL with a public address')
    return value


def _refused() -> Refusal:
    return Refusal("invalid_request", 'field "webhook" must be an http or https URL')


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _host(url: str) -> str | None:
    """The host, as the sender parses it."""
    import requests

    try:
        prepared = requests.Request("POST", url).prepare().url
        parts = urlsplit(str(prepared))
        host, _ = parts.hostname, parts.port
    except ValueError:
        return None
    return host if parts.scheme in ("http", "https") else None


def _may_be_public(host: str) -> bool:
    """False for an address that is not public, however it is written: 127.1, 0x7f000001, [::1]."""
    name = host.rstrip(".").lower()
    if is_loopback(name) or name in _IN_HOSTS_FILES:
        return False
    if ":" in name:
        return is_public_address(name)
    try:
        address = socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        return True
    return is_public_address(address)
