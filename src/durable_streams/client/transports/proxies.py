"""Which proxy leads to a host: the one that the environment, or the system's settings, name for it.

``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` as everywhere in Python (``urllib.request``). They are
read once per host. This machine itself is never reached through a proxy; a caller that wants it passes
a client.
"""

from __future__ import annotations

import ipaddress
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
    if not proxy or _is_this_machine(urlsplit(f"//{host}").hostname or "") or proxy_bypass(host):
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


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
