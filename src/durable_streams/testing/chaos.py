"""A network that fails at random, and the same way again for the same seed.

Invariant: what happens to a request depends only on the seed, on what is asked, and on how often that was asked
before; not on which connection carries it, nor on the order in which threads run.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from durable_streams.protocol import headers as h
from durable_streams.testing.background import Background, Stoppable
from durable_streams.testing.faults import answer
from durable_streams.testing.proxy import NOTHING, Fault, Proxy, RequestHead

__all__ = ["ChaosProxy"]

_BREAKS: tuple[Literal["close", "reset"], ...] = ("close", "reset")


class ChaosProxy(Stoppable):
    """A proxy between clients and a server that fails at random; ``met`` counts its faults by kind.

    It cuts connections, with a reset or a plain end, before, while or after a request is delivered; delays and
    stalls; truncates requests and answers; splits them into single bytes; answers 503 and the like in the
    server's place; and delivers requests twice.

    It runs when the constructor returns, on a free port; use it as a context manager, or call ``stop()``.

    Args:
        target: The server, an ``http`` URL.
        seed: All chance comes from it: the same seed gives the same faults.
        rate: The fraction of requests that meet a fault, from 0 to 1.
        longest: How long a delay or a stall lasts at most, in seconds.
        duplicates: Whether requests may be delivered twice.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        target: str,
        *,
        seed: int | str = 0,
        rate: float = 0.3,
        longest: float = 0.3,
        duplicates: bool = True,
    ) -> None:
        parts = urlsplit(target)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"target must be an http:// URL, not {target!r}.")
        if not 0 <= rate <= 1 or not longest >= 0:
            raise ValueError("rate must be between 0 and 1, and longest a number of seconds from 0.")
        self.seed = seed
        self.met: Counter[str] = Counter()
        self._rate = rate
        self._chaos = _Chaos(longest, duplicates)
        self._calm = threading.Event()
        self._asked: Counter[str] = Counter()
        address = (parts.hostname, parts.port or 80)
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._netloc = f"127.0.0.1:{listener.getsockname()[1]}"

        async def main(stop: asyncio.Event, ready: Callable[[None], None]) -> None:
            proxy = Proxy(self._plan)
            proxy.upstream.set_result(address)
            await proxy.open(listener)
            ready(None)
            await stop.wait()
            await proxy.close()

        self._background = Background("durable-streams-chaos", main)

    def url(self, url: str) -> str:
        """Return the URL that leads through the proxy to ``url`` of the target."""
        return urlunsplit(urlsplit(url)._replace(netloc=self._netloc))

    def calm(self) -> None:
        """Pass on everything unchanged from now on."""
        self._calm.set()

    def _plan(self, head: RequestHead) -> Fault | None:
        asked = _identity(head)
        self._asked[asked] += 1
        chance = random.Random(f"{self.seed} {self._asked[asked]} {asked}")  # noqa: S311 - no secret
        if self._calm.is_set() or chance.random() >= self._rate:
            return None
        kind, fault = self._chaos.draw(chance)
        self.met[kind] += 1
        if fault.copies > 1 and head.headers.get(h.PRODUCER_SEQ) == "0":
            # A producer whose first data is answered "duplicate" must assume that another one wrote it.
            return replace(fault, answered_by=0)
        return fault


def _identity(head: RequestHead) -> str:
    """Name what is requested, without the cursor, which depends on the time."""
    path, _, query = head.target.partition("?")
    kept = [pair for pair in query.split("&") if not pair.startswith(f"{h.QUERY_CURSOR}=")]
    producer = [head.headers.get(name, "") for name in (h.PRODUCER_ID, h.PRODUCER_EPOCH, h.PRODUCER_SEQ)]
    return " ".join([head.method, path, "&".join(kept), *producer])


@dataclass(frozen=True, slots=True)
class _Chaos:
    """The faults to draw from."""

    longest: float
    duplicates: bool

    def draw(self, chance: random.Random) -> tuple[str, Fault]:
        kinds = [
            self.lost,
            self.unanswered,
            self.truncated,
            self.cut,
            self.delayed,
            self.stalled,
            self.trickled,
            self.refused,
            self.gateway,
        ]
        if self.duplicates:
            kinds.append(self.doubled)
        kind = chance.choice(kinds)
        return kind.__name__, kind(chance)

    def lost(self, chance: random.Random) -> Fault:
        return Fault(upload=0, ending=chance.choice(_BREAKS))

    def unanswered(self, chance: random.Random) -> Fault:
        return Fault(ending=chance.choice(_BREAKS))

    def truncated(self, chance: random.Random) -> Fault:
        return Fault(upload=_size(chance), pieces=chance.choice((0, 0, 1)), ending=chance.choice(_BREAKS))

    def cut(self, chance: random.Random) -> Fault:
        after = chance.choice((-chance.randrange(1, 400), _size(chance), _size(chance)))
        return Fault(after=after, pieces=chance.choice((0, 0, 1)), ending=chance.choice(_BREAKS))

    def delayed(self, chance: random.Random) -> Fault:
        return Fault(delay=chance.random() * self.longest)

    def stalled(self, chance: random.Random) -> Fault:
        after = chance.choice((NOTHING, 0, _size(chance)))
        return Fault(after=after, ending="stall", seconds=chance.random() * self.longest)

    def trickled(self, chance: random.Random) -> Fault:
        return Fault(pieces=chance.choice((1, 1, 2, 3, 7, 64)))

    def refused(self, chance: random.Random) -> Fault:
        return Fault(copies=0, answer=answer(chance.choice((429, 503)), {"retry-after": "0"}))

    def gateway(self, chance: random.Random) -> Fault:
        # It may or may not have reached the server.
        return Fault(copies=chance.randrange(2), answer=answer(chance.choice((500, 502, 504)), {}))

    def doubled(self, chance: random.Random) -> Fault:
        return Fault(copies=2, answered_by=chance.randrange(2))


def _size(chance: random.Random) -> int:
    """Return a number of bytes: small ones as likely as large ones."""
    return int(2 ** chance.uniform(0, 13))
