"""Clients that raise for a status by themselves, of every kind, each in another way."""

from __future__ import annotations

from typing import Any

import aiohttp
import requests
import urllib3
from requests.adapters import HTTPAdapter
from wires import EVERY, Wire, client_for

RAISING = [name for name in EVERY if name not in {"urllib3", "urllib3.PoolManager", "aiohttp"}]
STATUSES = [304, 401, 403, 404, 405, 409, 410, 413, 429, 500, 503]


def _raises(response: Any) -> None:
    response.raise_for_status()


def _reads(response: Any, **_: Any) -> None:
    assert response.content is not None


async def _araises(response: Any) -> None:
    response.raise_for_status()


class _RaisingSession(requests.Session):
    def request(self, *args: Any, **options: Any) -> Any:
        response = super().request(*args, **options)
        response.raise_for_status()
        return response


class _RaisingAdapter(HTTPAdapter):
    def send(self, *args: Any, **options: Any) -> Any:
        response = super().send(*args, **options)
        response.raise_for_status()
        return response


def clients_that_raise(wire: Wire) -> list[Any]:
    """Return clients of a wire's kind, each of which raises for a status in another way."""
    kind = wire.name
    if kind == "requests.Session":
        with_hook = client_for(kind)
        with_hook.hooks["response"].append(lambda response, **_: response.raise_for_status())
        reading = client_for(kind)
        reading.hooks["response"] += [_reads, lambda response, **_: response.raise_for_status()]
        adapted, retried = client_for(kind), client_for(kind)
        adapted.mount("http://", _RaisingAdapter())
        retry = urllib3.Retry(1, status_forcelist=STATUSES, allowed_methods=None, backoff_factor=0)
        retried.mount("http://", HTTPAdapter(max_retries=retry))
        return [with_hook, reading, adapted, retried, _RaisingSession()]
    if kind.startswith("aiohttp"):
        return wire.loop.run(_raising_sessions())
    own = type(wire.client)
    hook = _araises if wire.is_async else _raises
    return [own(event_hooks={"response": [hook]}), _sending(own, wire.is_async)]


async def _raising_sessions() -> list[Any]:
    async def reading(response: Any) -> None:
        await response.read()
        response.raise_for_status()

    return [aiohttp.ClientSession(raise_for_status=raising) for raising in (True, _araises, reading)]


def _sending(own: Any, is_async: bool) -> Any:
    class Raising(own):  # type: ignore[misc]
        def send(self, *args: Any, **options: Any) -> Any:
            if is_async:
                return self._asend(*args, **options)
            response = super().send(*args, **options)
            response.raise_for_status()
            return response

        async def _asend(self, *args: Any, **options: Any) -> Any:
            response = await own.send(self, *args, **options)
            response.raise_for_status()
            return response

    return Raising()
