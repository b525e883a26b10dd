"""Which proxy leads to a host: the one that the environment, or the system's settings, name for it.

``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` as everywhere in Python (``urllib.request``). They are
read once per host. This machine itself is never reached through a proxy; whoever wants that passes a client of
their own.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

__all__ = ["proxy_for"]


@lru_cache(maxsize=1024)
def proxy_for(origin: str) -> str | None:
    """Return the URL of the proxy for an origin such as ``https://host:8443``, None for none."""
    parts = urlsplit(origin)
    host = parts.hostname or ""
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or _is_this_machine(host) or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
