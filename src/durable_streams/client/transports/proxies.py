"""Which proxy leads to a host: the one that the environment, or the system's settings, name for it.

``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` as everywhere in Python (``urllib.request``);
``NO_PROXY`` takes networks too (``10.0.0.0/8``). They are read once per host. This machine itself is never reached
through a proxy; a caller that wants it passes a client.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from durable_streams.errors import DurableStreamError

__all__ = ["proxy_for"]


def proxy_for(url: str) -> str | None:
    """Return the URL of the proxy that leads to this URL's host, None for none.

    Raises DurableStreamError for a kind of proxy that is not supported.
    """
    scheme, _, rest = url.partition("://")
    return _proxy(scheme, rest.partition("/")[0].partition("?")[0].rpartition("@")[2])


@lru_cache(maxsize=1024)
def _proxy(scheme: str, host: str) -> str | None:
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    name = urlsplit(f"//{host}").hostname or ""
    if not proxy or _is_this_machine(name) or _is_excepted(host, proxies.get("no") or ""):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    kind = urlsplit(proxy).scheme
    if kind not in {"http", "https"}:
        raise DurableStreamError(
            f"The environment names a {kind} proxy for {host}; only http and https proxies are supported, "
            "for others pass a client of your own as client=.",
            code="PROXY",
        )
    return proxy


def _is_excepted(host: str, exceptions: str) -> bool:
    """Whether a host is reached without a proxy: as everywhere in Python, or by a network in ``NO_PROXY``."""
    if proxy_bypass(host):
        return True
    address = _address(urlsplit(f"//{host}").hostname or "")
    return address is not None and any(address in network for network in _networks(exceptions))


def _networks(exceptions: str) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for part in exceptions.split(","):
        with contextlib.suppress(ValueError):
            yield ipaddress.ip_network(part.strip().replace("[", "").replace("]", ""), strict=False)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback
