"""Limits the connections per address, and the bytes in flight of all requests."""

from __future__ import annotations

import ipaddress
import logging
import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from wan_engine.gateway.refusals import Refusal

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1
_SPARE_DESCRIPTORS = 128  # for the database, bodies on the disk, media, webhooks
_UNLIMITED_DESCRIPTORS = 65_536


@dataclass(frozen=True)
class Pace:
    """How fast a request must arrive: its head within `head_seconds`, and its body at `body_rate`
    bytes per second at least. The body may be slower for `head_seconds` at most."""

    head_seconds: float
    body_rate: float

    def body(self, now: float) -> Deadline:
        """The deadline of a body whose head is complete at `now`."""
        return Deadline(self, now)


class Deadline:
    """The time by which more of a body must have arrived, in seconds of the event loop's clock."""

    def __init__(self, pace: Pace, now: float) -> None:
        self._pace = pace
        self.at = now + pace.head_seconds

    def extend(self, size: int, now: float) -> None:
        """Record `size` more bytes. A fast caller may not pause longer than a slow one."""
        most = now + self._pace.head_seconds
        self.at = min(most, self.at + size / self._pace.body_rate)

    def wait(self, seconds: float) -> None:
        """Leave out the seconds in which the gateway did not read from the caller."""
        self.at += seconds


class InFlight:
    """Counts the bytes of requests that are being received, parsed or stored. The limits are `most`
    for all callers and `most_of_owner` for one key. A request that is alone may be larger."""

    def __init__(self, most: int, most_of_owner: int) -> None:
        self._most = most
        self._most_of_owner = most_of_owner
        self._owners: Counter[str] = Counter()

    @property
    def bytes(self) -> int:
        """The number of bytes now."""
        return self._owners.total()

    def add(self, owner: str, size: int, own: int) -> None:
        """Count `size` more bytes of a request that has `own` bytes already. Raises `Refusal`."""
        of_owner = self._owners[owner] - own
        if of_owner and of_owner + own + size > self._most_of_owner:
            sentence = f"Requests of this key have more than {_mb(self._most_of_owner)} in flight"
            raise Refusal("rate_limited", sentence, _AGAIN_SECONDS)
        others = self.bytes - own
        if others and others + own + size > self._most:
            sentence = "The gateway receives as much as it can now, try again later"
            raise Refusal("unavailable", sentence, _AGAIN_SECONDS)
        self._owners[owner] += size

    def remove(self, owner: str, size: int) -> None:
        self._owners[owner] -= size
        if self._owners[owner] <= 0:
            del self._owners[owner]


class Held:
    """The bytes of one request in `InFlight`."""

    def __init__(self, in_flight: InFlight, owner: str) -> None:
        self._in_flight = in_flight
        self._owner = owner
        self._bytes = 0

    def grow(self, size: int) -> None:
        """Count at least `size` bytes. Raises `Refusal` "rate_limited" and "unavailable"."""
        if (more := size - self._bytes) > 0:
            self._in_flight.add(self._owner, more, self._bytes)
            self._bytes = size

    def release(self) -> None:
        """Release all bytes of the request. Calling it again has no effect."""
        self._in_flight.remove(self._owner, self._bytes)
        self._bytes = 0


class Connections:
    """Counts open connections. `most_of_address` counts an IPv6 network of 64 bits as one address,
    because one customer has such a network. `proxies` (as in WAN_TRUSTED_PROXIES) are not
    limited."""

    def __init__(self, most: int, most_of_address: int, proxies: Sequence[str]) -> None:
        self._most = most
        self._most_of_address = most_of_address
        self._proxies = [ipaddress.ip_network(one, strict=False) for one in proxies if one != "*"]
        self._all_proxies = "*" in proxies
        self._addresses: Counter[str] = Counter()

    def enter(self, address: str) -> None:
        self._addresses[_network(address)] += 1

    def leave(self, address: str) -> None:
        name = _network(address)
        self._addresses[name] -= 1
        if not self._addresses[name]:
            del self._addresses[name]

    def crowd(self, address: str) -> float:
        """How full the gateway is for an `address` that is counted already. More than 1 is too
        full."""
        crowds = [self._addresses.total() / self._most]
        if not self._is_proxy(address):
            crowds.append(self._addresses[_network(address)] / self._most_of_address)
        return max(crowds)

    def _is_proxy(self, address: str) -> bool:
        if self._all_proxies:
            return True
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._proxies)


def raise_descriptor_limit() -> int:
    """Raise the limit of open files as far as this process may. Returns the number of connections
    that fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, _UNLIMITED_DESCRIPTORS) if hard == resource.RLIM_INFINITY else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        log.warning("the limit of open files stays at %d: %s", soft, error)
        wanted = soft
    return max(wanted - _SPARE_DESCRIPTORS, wanted // 2)


def _network(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, 64), strict=False))


def _mb(size: int) -> str:
    return f"{size / 2**20:g} MB"
