"""Names of hosts and origins, as they stand in headers and settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from durable_streams.protocol.headers import STREAM_ROOT

__all__ = ["Networks", "address_of", "host_of", "is_local", "matches", "public_url", "without_default_port"]

_STAR = r"[a-z0-9.-]+"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@lru_cache(maxsize=1024)
def host_of(authority: str) -> str:
    """Return the host of ``host:port``: lower case, without brackets and the dot of the root."""
    authority = authority.strip().lower()
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0].rstrip(".")


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a host is written as, None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def is_local(host: str) -> bool:
    """Whether a host is this machine wherever it is asked for: no one else can answer under that name."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = address_of(host)
    # 0.0.0.0 is no address to connect to, and systems that connect all the same come out here.
    return address is not None and (address.is_loopback or address.is_unspecified)


def matches(patterns: Iterable[str], text: str) -> bool:
    """Whether a host or an origin is one of those; a ``*`` in them stands for any part of a name, or for a port."""
    return any(
        pattern in ("*", text)
        or ("*" in pattern and re.fullmatch(re.escape(pattern).replace(r"\*", _STAR), text) is not None)
        for pattern in patterns
    )


def public_url(url: str) -> str:
    """Return the address that clients see, without the root of the streams; raises ValueError."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _DEFAULT_PORTS and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or "@" in parts.netloc or not url.isascii() or " " in url:
        raise ValueError(f"public_url is an address like https://example.com/streams, not {url!r}")
    path = parts.path.rstrip("/").removesuffix(STREAM_ROOT.rstrip("/"))
    return f"{parts.scheme}://{parts.netloc}{path}"


def without_default_port(scheme: str, authority: str) -> str:
    """Return an authority as it is compared."""
    return authority.lower().removesuffix(_DEFAULT_PORTS.get(scheme, ""))


class Networks:
    """Addresses and networks (``10.0.0.0/8``); ``*`` is every one. Raises ValueError for what is none."""

    def __init__(self, given: Sequence[str]) -> None:
        self._all = "*" in given
        try:
            self._networks = [ip_network(one, strict=False) for one in given if one != "*"]
        except ValueError as error:
            raise ValueError(f"trusted_proxies are addresses or networks like 10.0.0.0/8: {error}") from None

    def __bool__(self) -> bool:
        return self._all or bool(self._networks)

    def __contains__(self, peer: object) -> bool:
        if self._all:
            return True
        address = address_of(str(peer))
        return address is not None and any(
            address.version == network.version and address in network for network in self._networks
        )
