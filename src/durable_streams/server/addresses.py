"""The address of this server as clients see it, behind proxies that end TLS, change the host or strip a prefix.

Invariant: what a request says of that by itself (``X-Forwarded-…``) counts only from a proxy that the operator trusts.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from durable_streams.server import hosts, parse
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import STREAM_ROOT, ServerRequest

__all__ = ["Addresses"]

_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*/?")


class Addresses:
    """The addresses of a server under a configuration."""

    def __init__(self, config: ServerConfig) -> None:
        self._public = None if config.public_url is None else hosts.public_url(config.public_url)
        self._proxies = hosts.Networks(config.trusted_proxies)

    @property
    def public_host(self) -> str | None:
        """The host that was configured as the public one."""
        return None if self._public is None else hosts.host_of(urlsplit(self._public).netloc)

    def base_url(self, request: ServerRequest) -> str:
        """Return scheme, authority and prefix, as the client used them: the root of streams follows."""
        if self._public is not None:
            return self._public
        scheme, authority, prefix = request.scheme, request.authority(), request.mount
        if self._proxies and request.peer() in self._proxies:
            scheme = _last(request, "x-forwarded-proto", re.compile("https?")) or scheme
            authority = _last(request, "x-forwarded-host", _AUTHORITY) or authority
            stripped = (_last(request, "x-forwarded-prefix", _PREFIX) or "").rstrip("/")
            prefix = prefix if prefix.startswith(stripped) else stripped + prefix
        return f"{scheme}://{authority}{prefix}"

    def is_own(self, request: ServerRequest, origin: str) -> bool:
        """Whether a URL, or an origin, has an authority of ours: the one that clients see, or that of this request."""
        scheme, _, rest = origin.partition("://")
        scheme = scheme.lower()
        if scheme not in ("http", "https"):
            return False
        authority = hosts.without_default_port(scheme, rest.partition("/")[0].rpartition("@")[2])
        seen = urlsplit(self.base_url(request))
        # The scheme is not compared: TLS may end at a proxy that says nothing of it.
        return authority in {
            hosts.without_default_port(scheme, one) for one in (seen.netloc, request.authority())
        }

    def own_path(self, request: ServerRequest, given: str) -> str:
        """Return the path of a stream of ours, below the root of streams; raises the 400 of anything else.

        It is given as a URL, as a path below the public root, or as one below our own.
        """
        if given[:8].lower().startswith(("http://", "https://")):
            if not self.is_own(request, given):
                raise parse.bad_request(
                    "Stream-Forked-From is a stream of another server: fork one of this server's"
                )
            given = urlsplit(given).path
        path = parse.decoded_path(given)
        prefix = unquote(urlsplit(self.base_url(request)).path)
        for root in (prefix + STREAM_ROOT, STREAM_ROOT):
            if path.startswith(root):
                return path[len(root) :]
        raise parse.bad_request(
            f"Stream-Forked-From is a path that starts with {prefix + STREAM_ROOT}, or the URL of such a stream"
        )


def _last(request: ServerRequest, name: str, form: re.Pattern[str]) -> str | None:
    """Return the value that the nearest proxy gave, if it is well-formed."""
    said = (request.listed(name) or "").rpartition(",")[2].strip()
    return said if said and form.fullmatch(said) else None
