"""What web pages may do: which hosts are this server's, and which origins may read and write (section 7).

Every web page open on a machine can send requests to a server on its loopback address. So by default

* it answers only under names that no one else can point at it (DNS rebinding);
* under a local name, only pages of local origins may write, and read what they get.

Clients other than browsers send no ``Origin``, and none of this applies to them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from durable_streams.protocol.commands import Rejection
from durable_streams.server import hosts
from durable_streams.server.addresses import Addresses
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import ALLOWED_HEADERS, METHODS, Headers, ServerRequest

__all__ = ["NO_PAGE", "Browsers"]

_WRITES = frozenset({"POST", "PUT", "DELETE"})
_KNOWN = 1024  # pairs of host and origin whose verdict is remembered
_MAX_REQUESTED = 4096  # characters of Access-Control-Request-Headers that are given back
_REQUESTED = re.compile(
    r"[ \t,]*[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t,]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*[ \t,]*"
)
_DAY = "86400"
_ANYBODY = ("access-control-allow-origin", "*")
_VARY = ("vary", "origin")
# What an answer says when no page asks: any may read it, but no browser gives one page what it kept for another.
NO_PAGE: Headers = [_ANYBODY, _VARY]


class _Verdict(NamedTuple):
    """Of a host and an origin: what answers say of it, and whether it may write without another look."""

    headers: Headers
    may_write: bool


class Browsers:
    """Admits requests. ``local``: the server listens on a loopback address."""

    def __init__(self, config: ServerConfig, addresses: Addresses, *, local: bool) -> None:
        self._addresses = addresses
        self._origins = None if config.cors_origins is None else [one.lower() for one in config.cors_origins]
        self._credentials = config.cors_credentials
        names = config.allowed_hosts
        self._names = ["*"] if names is None and not local else [one.lower() for one in names or ()]
        self._dotless = names is None
        self._local = local
        self._own_names = {addresses.public_host, hosts.host_of(config.host)}
        self._known: dict[tuple[str | None, str | None], _Verdict] = {}

    def admit(self, request: ServerRequest) -> Headers:
        """Return what the answer says to browsers; raises the 403 of a host, or of a write, that is not allowed."""
        host, origin = request.header("host"), request.header("origin")
        verdict = self._known.get((host, origin)) or self._judge(host, origin)
        if not verdict.may_write and request.method in _WRITES and not self._may_write(request, origin):
            raise Rejection(
                403,
                "ORIGIN_NOT_ALLOWED",
                f"pages of {(origin or 'other sites')[:80]} may not write here: allow their origin with --cors-origins",
                dict([_VARY]),
            )
        return verdict.headers

    def preflight(self, request: ServerRequest, said: Headers) -> Headers:
        """Return what a page may send, if ``said`` allows its origin: whatever headers it asks for (section 7)."""
        allowed = ", ".join(ALLOWED_HEADERS)
        asked = request.listed("access-control-request-headers") or ""
        if len(asked) <= _MAX_REQUESTED and _REQUESTED.fullmatch(asked):
            names = dict.fromkeys(name.strip().lower() for name in asked.split(","))
            allowed = ", ".join(
                [*ALLOWED_HEADERS, *(one for one in names if one and one not in ALLOWED_HEADERS)]
            )
        return [
            *(one for one in said if one is not _VARY),
            ("access-control-allow-methods", METHODS),
            ("access-control-allow-headers", allowed),
            ("access-control-max-age", _DAY),
            ("vary", "origin, access-control-request-headers"),
        ]

    def _judge(self, authority: str | None, origin: str | None) -> _Verdict:
        host = hosts.host_of(authority or "")
        if authority and not self._is_ours(host):
            raise Rejection(
                403,
                "HOST_NOT_ALLOWED",
                f"this server is not {host[:80]}: allow that name with --allowed-hosts, or --public-url",
            )
        if len(self._known) >= _KNOWN:
            self._known.clear()
        verdict = self._known[authority, origin] = self._verdict(host, origin)
        return verdict

    def _is_ours(self, host: str) -> bool:
        # An address cannot be pointed elsewhere, and a name without a dot cannot be registered.
        return (
            host in self._own_names
            or hosts.is_local(host)
            or hosts.address_of(host) is not None
            or (self._dotless and host and "." not in host)
            or hosts.matches(self._names, host)
        )

    def _is_local(self, host: str) -> bool:
        # What listens on a loopback address has no other names without a dot than this machine's own ones.
        return hosts.is_local(host) or (
            self._local
            and "." not in host
            and hosts.address_of(host) is None
            and host not in self._own_names
            and not hosts.matches(self._names, host)
        )

    def _verdict(self, host: str, origin: str | None) -> _Verdict:
        if self._origins is None and not self._is_local(host):
            return _Verdict([_ANYBODY], may_write=True)
        if self._origins is None:
            if origin is None:
                return _Verdict(NO_PAGE, may_write=False)
            allowed = hosts.is_local(hosts.host_of(origin.partition("://")[2])) and origin.startswith(
                ("http://", "https://")
            )
        elif "*" in self._origins:
            return _Verdict([_ANYBODY], may_write=True)
        else:
            allowed = origin is not None and hosts.matches(self._origins, origin.lower())
        if not allowed or origin is None:
            return _Verdict([_VARY], may_write=False)
        headers = [("access-control-allow-origin", origin), _VARY]
        if self._credentials:
            headers.append(("access-control-allow-credentials", "true"))
        return _Verdict(headers, may_write=True)

    def _may_write(self, request: ServerRequest, origin: str | None) -> bool:
        """Whether a request that wants to write comes from no page, or from one of this server's own origin."""
        site = request.header("sec-fetch-site")  # a browser's word, which no page can change
        if origin is None:
            return site != "cross-site"
        return site == "same-origin" or self._addresses.is_own(request, origin)
