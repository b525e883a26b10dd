"""Where the keys that verify tokens come from: a file, or a URL that is asked again.

Invariants: one request at a time; an unknown ``kid`` asks at most every ten seconds, whatever tokens come; keys that
were known hold until others are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol
from urllib.parse import urlsplit

import urllib3

from durable_streams.protocol.commands import Rejection
from durable_streams.server import hosts
from durable_streams.server.token_keys import TokenKeys, key_set
from durable_streams.server.toml import Watched

__all__ = ["FileKeys", "KeySource", "UrlKeys"]

_GOOD_FOR = 600.0  # seconds until the keys are asked for again
_ASK_EVERY = 10.0  # seconds between two requests, at least
_WITHIN = 5.0  # seconds for an answer
_MAX_SET = 1 << 20  # bytes
_log = logging.getLogger("durable_streams.server")


class KeySource(Protocol):
    """Where keys come from."""

    def current(self) -> TokenKeys | None:
        """Return the keys, None where there are none yet; the same object as long as they are the same."""

    async def keys(self) -> TokenKeys:
        """Return the keys. Raises the 503 where there are none yet."""

    async def others(self) -> TokenKeys:
        """Return the keys after another look, for a token whose key is not among them."""


class FileKeys:
    """Keys of a file."""

    def __init__(self, watched: Watched[TokenKeys]) -> None:
        self._watched = watched

    def current(self) -> TokenKeys:
        """Return the keys. See KeySource."""
        return self._watched.value()

    async def keys(self) -> TokenKeys:
        """Return the keys. See KeySource."""
        return self._watched.value()

    async def others(self) -> TokenKeys:
        """Return the keys; a changed file is seen within two seconds. See KeySource."""
        return self._watched.value()


class UrlKeys:
    """A JWK set at a URL: ``https``, or ``http`` on this machine. Raises ValueError for any other."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        local = hosts.is_local(hosts.host_of(parts.netloc.rpartition("@")[2]))
        if not (parts.hostname and (parts.scheme == "https" or (parts.scheme == "http" and local))):
            raise ValueError("the keys of tokens come from a file, or an https URL: others could change them")
        self._url = url
        self._pool = urllib3.PoolManager(timeout=_WITHIN, retries=False)
        self._text = ""
        self._keys: TokenKeys | None = None
        self._asked = self._answered = -_GOOD_FOR
        self._asking: asyncio.Future[None] | None = None

    def current(self) -> TokenKeys | None:
        """Return the keys; old ones do until others are there. See KeySource."""
        if time.monotonic() - self._answered >= _GOOD_FOR:
            self._begin()
        return self._keys

    async def keys(self) -> TokenKeys:
        """Return the keys. See KeySource."""
        if self.current() is None and self._asking is not None:
            await asyncio.shield(self._asking)
        return self._found()

    async def others(self) -> TokenKeys:
        """Ask for the keys again. See KeySource."""
        await self._ask()
        return self._found()

    def _found(self) -> TokenKeys:
        if self._keys is None:
            raise Rejection(
                503,
                "UNAVAILABLE",
                "the keys that verify tokens cannot be reached; try again later",
                {"retry-after": str(round(_ASK_EVERY))},
            )
        return self._keys

    async def _ask(self) -> None:
        self._begin()
        if self._asking is not None:
            await asyncio.shield(self._asking)

    def _begin(self) -> None:
        if self._asking is None and time.monotonic() - self._asked >= _ASK_EVERY:
            self._asked = time.monotonic()
            self._asking = asyncio.ensure_future(self._fetched())

    async def _fetched(self) -> None:
        try:
            text = await asyncio.to_thread(self._get)
            if text != self._text:
                self._keys, self._text = key_set(text, secrets=False), text
            self._answered = time.monotonic()
        except (ValueError, urllib3.exceptions.HTTPError) as error:
            _log.warning("the keys that verify tokens cannot be taken from their URL: %s", error)
        finally:
            self._asking = None

    def _get(self) -> str:
        response = self._pool.request("GET", self._url, preload_content=False, redirect=False)
        try:
            content = response.read(_MAX_SET + 1)
        finally:
            response.close()
        if response.status != 200 or len(content) > _MAX_SET:
            raise ValueError(f"status {response.status}, {len(content)} bytes")
        return content.decode(errors="replace")
