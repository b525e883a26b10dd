"""How much may be stored below a path (``--limits limits.toml``): streams, and their bytes, by the prefix of paths.

Invariants: no request counts what is stored: it adds to a sum, and what is being stored by others counts too, so that a
limit is not passed however many write at once; what changes the sums and comes by no request here (expiry, other
servers) is found by a count in the background, which takes a small share of the time; what is remembered is bounded.

    [prefix."tenants/a/"]    # all streams whose paths begin with this text
    streams = 1000
    bytes = 10737418240      # that can be read, in stored form; of a fork its own ones
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from durable_streams.protocol.commands import Append, Appended, Create, Created, Rejection, SetRetention, Trim
from durable_streams.protocol.state import StreamState
from durable_streams.server.quotas import QuotaFile, Room
from durable_streams.server.toml import Watched
from durable_streams.stores.base import Store, StoreError

__all__ = ["Space", "Writes"]

_COUNT_EVERY = 60.0  # seconds between two counts below a prefix,
_PAUSES = 20  # and at least 20 times as long as a count takes
_LOOK_EVERY = 1.0  # seconds
_FIRST_COUNT = 10.0  # seconds that requests wait for the first one
_PAGE = 500  # streams
_NOWHERE = -1  # a position
_MAX_KNOWN = 100_000  # streams whose bytes are remembered
_log = logging.getLogger("durable_streams.server")


class Writes(Protocol):
    """The part of a Store that changes what is stored."""

    async def append(self, path: str, command: Append) -> Appended:
        """See Store."""

    async def create(self, command: Create) -> Created:
        """See Store."""

    async def delete(self, path: str) -> None:
        """See Store."""

    async def retain(self, path: str, command: Trim | SetRetention) -> StreamState:
        """See Store."""


class _Known(NamedTuple):
    """What was seen of a stream last."""

    id: int
    tail: int
    bytes: int


class _Usage:
    """What is stored below a prefix, as far as that is known."""

    def __init__(self, prefix: str, room: Room) -> None:
        self.prefix = prefix
        self.room = room
        self.streams = self.bytes = 0
        self.coming_streams = self.coming_bytes = 0
        """What requests are storing now."""
        self.counted = asyncio.Event()
        self.count_at = 0.0
        self.cursor: str | None = None
        """How far a count has come: changes up to there are not in it, and are added at its end."""
        self._late_streams = self._late_bytes = 0

    def add(self, path: str, streams: int, size: int) -> None:
        """Note a change."""
        self.streams += streams
        self.bytes += size
        if self.cursor is not None and path <= self.cursor:
            self._late_streams += streams
            self._late_bytes += size

    def begin(self) -> None:
        """Begin a count."""
        self.cursor = ""
        self._late_streams = self._late_bytes = 0

    def end(self, streams: int, size: int) -> None:
        """End a count with what it found."""
        self.streams, self.bytes = streams + self._late_streams, size + self._late_bytes
        self.counted.set()

    def check(self, streams: int, size: int) -> None:
        """Raise the 403 of a request that there is no room for."""
        most = self.room
        if (
            streams
            and most.streams is not None
            and self.streams + self.coming_streams + streams > most.streams
        ):
            raise _no_room(f"{most.streams} streams", self.prefix)
        if size and most.bytes is not None and self.bytes + self.coming_bytes + size > most.bytes:
            raise _no_room(f"{most.bytes} bytes", self.prefix)


def _check(usages: list[_Usage], streams: int, size: int) -> None:
    """Raise the 403 of a request that there is no room for."""
    for usage in usages:
        usage.check(streams, size)


class Space:
    """Writes into a store, within the limits of a file.

    Args:
        file: The limits.
        store: The store.
    """

    def __init__(self, file: Watched[QuotaFile], store: Store) -> None:
        self._file = file
        self._limits: QuotaFile | None = None
        self._store = store
        self._usages: dict[str, _Usage] = {}
        self._lengths: list[int] = []
        self._known: dict[str, _Known] = {}
        self._writing: Counter[str] = Counter()  # paths at which requests store something now
        self._task: asyncio.Task[None] | None = None
        self._started = 0.0
        self._look()

    def start(self) -> None:
        """Begin to count; the store is open."""
        self._started = time.monotonic()
        self._task = asyncio.ensure_future(self._count_forever())

    async def stop(self) -> None:
        """Count no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # -- what a store does, within the limits

    async def append(self, path: str, command: Append) -> Appended:
        """See Store."""
        usages = self._of(path) if command.payload else []
        if not usages:
            return await self._store.append(path, command)
        before = await self._store.glance(path)
        await self._first_count(usages)
        try:
            _check(usages, 0, len(command.payload))
        except Rejection as refusal:
            return await self._repeated(path, command, refusal)
        with self._holding(path, usages, 0, len(command.payload)):
            appended = await self._store.append(path, command)
            state = appended.state
            self._note(path, before or replace(state, tail=state.tail - len(command.payload)), state)
        return appended

    async def _repeated(self, path: str, command: Append, refusal: Rejection) -> Appended:
        """Return the answer to a producer that repeats what was stored, which takes no room; else raise ``refusal``."""
        if command.producer is None:
            raise refusal
        try:
            # What is new is refused: no stream ends there.
            return await self._store.append(path, replace(command, expected=_NOWHERE))
        except Rejection as other:
            raise refusal if other.code == "CONFLICT_OFFSET" else other from None

    async def create(self, command: Create) -> Created:
        """See Store."""
        path = command.path
        usages = self._of(path)
        if not usages or await self._store.glance(path) is not None:  # one that is there takes no room
            return await self._store.create(command)
        await self._first_count(usages)
        _check(usages, 1, len(command.payload))
        with self._holding(path, usages, 1, len(command.payload)):
            created = await self._store.create(command)
            if created.new:
                self._note(path, None, created.state)
        return created

    async def delete(self, path: str) -> None:
        """See Store."""
        before = await self._store.glance(path) if self._of(path) else None
        await self._store.delete(path)
        if before is not None:
            self._note(path, before, None)

    async def retain(self, path: str, command: Trim | SetRetention) -> StreamState:
        """See Store."""
        before = await self._store.glance(path) if self._of(path) else None
        state = await self._store.retain(path, command)
        if before is not None:
            self._note(path, before, state)
        return state

    # -- counting

    @contextlib.contextmanager
    def _holding(self, path: str, usages: list[_Usage], streams: int, size: int) -> Iterator[None]:
        """Keep room for what a request is about to store. No other request comes between `_check` and this."""
        self._writing[path] += 1
        for usage in usages:
            usage.coming_streams += streams
            usage.coming_bytes += size
        try:
            yield
        finally:
            self._writing[path] -= 1
            if not self._writing[path]:
                del self._writing[path]
            for usage in usages:
                usage.coming_streams -= streams
                usage.coming_bytes -= size

    def _note(self, path: str, before: StreamState | None, after: StreamState | None) -> None:
        """Note a change at a path: the stream before it, as far as a look at it said, and after it."""
        known = self._known.get(path)
        streams, base = 0, 0 if known is None else known.bytes
        if after is None:
            streams = -1
        elif known is not None and known.id == after.id:
            if after.tail < known.tail:  # an append before the last one, which was counted with both
                return
        elif known is None and before is None:
            streams = 1
        if known is None and before is not None:
            base = _stored(before)
        size = 0 if after is None else _stored(after)
        for usage in self._of(path):
            usage.add(path, streams, size - base)
        if after is None:
            self._known.pop(path, None)
        else:
            self._remember(after)

    def _remember(self, state: StreamState) -> None:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[state.path] = _Known(state.id, state.tail, _stored(state))

    def _of(self, path: str) -> list[_Usage]:
        if self._file.value() is not self._limits:
            self._look()
        usages = self._usages
        return [
            usages[head] for size in self._lengths if size <= len(path) and (head := path[:size]) in usages
        ]

    def _look(self) -> None:
        self._limits = limits = self._file.value()
        before = self._usages
        self._usages = {
            prefix: before.get(prefix) or _Usage(prefix, room) for prefix, room in limits.prefix.items()
        }
        for prefix, room in limits.prefix.items():
            self._usages[prefix].room = room
        self._lengths = sorted({len(prefix) for prefix in self._usages})

    async def _first_count(self, usages: list[_Usage]) -> None:
        """Wait until what is stored was counted once, for some seconds after the start."""
        for usage in usages:
            left = self._started + _FIRST_COUNT - time.monotonic()
            if not usage.counted.is_set() and left > 0:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(usage.counted.wait(), left)

    async def _count_forever(self) -> None:
        while True:
            self._of("")  # for limits that have changed
            for usage in list(self._usages.values()):
                began = time.monotonic()
                if began < usage.count_at:
                    continue
                try:
                    await self._count(usage)
                except StoreError as error:
                    _log.warning("what is stored below %s cannot be counted: %s", usage.prefix, error)
                finally:
                    usage.cursor = None
                now = time.monotonic()
                usage.count_at = now + max(_COUNT_EVERY, (now - began) * _PAUSES)
            await asyncio.sleep(_LOOK_EVERY)

    async def _count(self, usage: _Usage) -> None:
        usage.begin()
        streams = size = 0
        after: str | None = ""
        while after is not None:
            listed = await self._store.list_streams(usage.prefix, after, _PAGE)
            for state in listed.states:
                streams += 1
                size += _stored(state)
                known = self._known.get(state.path)
                if known is None:
                    if state.path in self._writing:  # what is stored now may be counted before it is noted
                        self._remember(state)
                elif (known.id, known.tail) <= (state.id, state.tail):
                    self._remember(state)
            usage.cursor = after = listed.after
        usage.end(streams, size)


def _stored(state: StreamState) -> int:
    """Return how many bytes of a stream can be read that no other stream holds for it."""
    own = state.earliest if state.forked_from is None else max(state.earliest, state.fork_position)
    return max(0, state.tail - own)


def _no_room(limit: str, prefix: str) -> Rejection:
    return Rejection(
        403,
        "QUOTA_EXCEEDED",
        f"this server keeps at most {limit} below {prefix[:80]!r}: delete or trim some, or ask for more",
    )
