"""The paths of all streams of a bucket in order, for the listing: NATS finds a stream by the hash of its path only.

Invariants: nothing is read before the first listing; from then on each one reads the metas that were written since the
last; a path of a deleted stream may be left, and is dropped when the caller finds that out.
"""

from __future__ import annotations

import asyncio

import msgspec
from sortedcontainers import SortedList

from durable_streams.protocol.listing import prefix_end
from durable_streams.stores.base import StoreUnavailableError
from durable_streams.stores.jetstream.nats.bus import Bus
from durable_streams.stores.jetstream.nats.messages import Stored

__all__ = ["PathIndex"]

_PAGE_BYTES = 1 << 20
_SECONDS = 10.0  # for one listing; what was read by then is kept


class _Meta(msgspec.Struct):
    path: str


_decode = msgspec.json.Decoder(_Meta).decode


class PathIndex:
    """The paths that are known to one gateway: about 300 bytes each.

    Args:
        bus: The bucket.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._seq = 1  # of the first message that is not read yet
        self._paths: SortedList[str] = SortedList()
        self._known: dict[bytes, str] = {}  # by the hash in the subject: a delete marker has nothing else
        self._reading = asyncio.Lock()

    async def page(self, prefix: str, after: str, limit: int) -> list[str]:
        """Return paths of streams that were there at the call, and perhaps of some that are not any more.

        Args:
            prefix: The text that they begin with.
            after: The path to go on after.
            limit: How many to return; fewer only at the end.

        Raises:
            StoreUnavailableError: The paths cannot be read now, or the first listing takes
                too long, with very many streams: the next call goes on.
        """
        try:
            await asyncio.wait_for(self._catch_up(), _SECONDS)
        except asyncio.TimeoutError:
            raise StoreUnavailableError(
                f"the list of streams is being read from NATS, {len(self._paths)} so far: try again"
            ) from None
        paths, end = self._paths, prefix_end(prefix)
        begin = max(paths.bisect_left(prefix), paths.bisect_right(after))
        stop = len(paths) if end is None else paths.bisect_left(end)
        return list(paths[begin : min(stop, begin + limit)])

    def drop(self, path: str) -> None:
        """Forget a path at which there is nothing: its delete marker was removed before it was read."""
        if self._known.pop(self._key(self._bus.layout.meta(path)), None) is not None:
            self._paths.discard(path)

    @staticmethod
    def _key(subject: str) -> bytes:
        return bytes.fromhex(subject.rpartition(".")[2])

    async def _catch_up(self) -> None:
        async with self._reading:  # who waits for it reads what was written meanwhile
            while found := await self._next():
                for one in found:
                    self._apply(one)
                self._seq = found[-1].seq + 1

    async def _next(self) -> list[Stored]:
        subject = self._bus.layout.every_meta
        found = await self._bus.scan(subject, self._seq, _PAGE_BYTES)
        if found:
            return found
        one = await self._bus.next(subject, self._seq)  # the leader knows where it ends; a replica may lag
        return [] if one is None else [one]

    def _apply(self, meta: Stored) -> None:
        key = self._key(meta.subject)
        if meta.removed:
            path = self._known.pop(key, None)
            if path is not None:
                self._paths.discard(path)
            return
        path = _decode(meta.data).path
        if key not in self._known:
            self._known[key] = path
            self._paths.add(path)
