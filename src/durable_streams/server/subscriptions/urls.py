"""Where webhooks may go (protocol section 8): to public addresses, whatever a name stands for at the moment.

Invariants: a connection is made to an address that was checked, not to a name that is resolved again; one private
address among the answers refuses the name; nothing but https, except plain http to loopback where that is allowed.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from durable_streams.protocol.commands import Rejection
from durable_streams.server import hosts

__all__ = ["CheckedResolver", "ForbiddenAddressError", "WebhookRules", "is_public"]

Address = IPv4Address | IPv6Address

_PRINTED = re.compile("[!-~]+")
_RESOLVE_SECONDS = 5.0
_PRIVATE_4 = [
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
_GLOBAL_6 = ip_network("2000::/3")
_TRANSLATED_6 = ip_network("64:ff9b::/96")  # the address of IPv4 is in its last 32 bits
# Teredo, documentation, ORCHID, 6to4: they carry other addresses, or none that is reached.
_OTHER_6 = [ip_network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]


class ForbiddenAddressError(OSError):
    """A name stands for an address that webhooks do not go to."""


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, not of a network behind this server."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _PRIVATE_4)
    if address in _TRANSLATED_6:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _GLOBAL_6 and not any(address in network for network in _OTHER_6)


class WebhookRules:
    """The URLs that webhooks may have.

    Args:
        allow_localhost: Whether plain http to this machine is allowed, for development.
        allowed_hosts: The names that they may go to, with ``*`` for any part of a name; empty for all.
    """

    def __init__(self, *, allow_localhost: bool, allowed_hosts: Sequence[str]) -> None:
        self._allow_localhost = allow_localhost
        self._allowed = [host.lower() for host in allowed_hosts]

    def parse(self, text: str) -> URL:
        """Return a URL that webhooks may have, as far as that is known without resolving its name.

        Args:
            text: The URL.

        Raises:
            Rejection: 400 WEBHOOK_URL_REJECTED.
        """
        try:
            url = URL(text)
            host, _ = url.host, url.port
        except ValueError:
            raise _rejected("is no URL") from None
        if not host or url.user is not None or url.password is not None or not _PRINTED.fullmatch(text):
            raise _rejected("has no host, a user, or characters that are not printable ASCII")
        if host.endswith("."):
            raise _rejected("has a host that ends with a dot: leave it out")
        if self.is_local(url):
            if not self._allow_localhost:
                raise _rejected("is plain http: use https (a server for development may allow localhost)")
            return url
        if url.scheme != "https":
            raise _rejected("is not https")
        if self._allowed and not hosts.matches(self._allowed, host.lower()):
            raise _rejected("is not one of the hosts that this server allows")
        address = _literal(host)
        if address is not None and not is_public(address):
            raise _rejected("goes to a private address")
        return url

    async def check(self, text: str) -> URL:
        """Like ``parse``, with the addresses that the name stands for now; one that has none yet is accepted.

        Args:
            text: The URL.

        Raises:
            Rejection: 400 WEBHOOK_URL_REJECTED.
        """
        url = self.parse(text)
        if not self.is_local(url) and url.host is not None and _literal(url.host) is None:
            try:
                await asyncio.wait_for(resolve(url.host, url.port or 443), _RESOLVE_SECONDS)
            except ForbiddenAddressError:
                raise _rejected("goes to a private address") from None
            except (OSError, asyncio.TimeoutError):
                pass  # each delivery resolves it again
        return url

    @staticmethod
    def is_local(url: URL) -> bool:
        """Whether a URL is plain http to this machine."""
        if url.scheme != "http" or url.host is None:
            return False
        address = _literal(url.host)
        return url.host == "localhost" if address is None else (address.version == 4 and address.is_loopback)


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _rejected(reason: str) -> Rejection:
    return Rejection(400, "WEBHOOK_URL_REJECTED", f"the webhook's URL {reason}")


async def resolve(host: str, port: int, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
    """Return the addresses of a name, all of them public.

    Args:
        host: The name.
        port: The port.
        family: The kind of address.

    Raises:
        ForbiddenAddressError: One of them is not.
        OSError: The name cannot be resolved.
    """
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
    found = []
    for kind, _, protocol, _, place in answers:
        address = ip_address(str(place[0]).partition("%")[0])
        if not is_public(address):
            raise ForbiddenAddressError(f"{host} stands for a private address")
        found.append(
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
        )
    return found


class CheckedResolver(AbstractResolver):
    """Resolves the names that aiohttp connects to: it gets addresses that were checked, and connects to those."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name; those of localhost are this machine's."""
        if host == "localhost":  # only plain http gets here with it
            return [_loopback(host, port)]
        return await resolve(host, port, family)

    async def close(self) -> None:
        """There is nothing to release."""


def _loopback(host: str, port: int) -> Any:
    return ResolveResult(
        hostname=host,
        host="127.0.0.1",
        port=port,
        family=socket.AF_INET,
        proto=0,
        flags=socket.AI_NUMERICHOST,
    )
