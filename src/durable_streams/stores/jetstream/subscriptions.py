"""Subscriptions on NATS, shared by all gateways: one key each, which is replaced at the revision that was read.

Invariants: a save states the sequence of the key that it was decided on, so that of two gateways one is refused; a
notice to the others is only a hint: what they miss they find by looking every second; one gateway at a time leads, and
stops before another one can begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import zlib
from collections.abc import Sequence
from hashlib import sha256

import msgspec

from durable_streams.protocol.subscription import Subscription
from durable_streams.stores.base import StoreError, StoreFullError, StoreUncertainError
from durable_streams.stores.jetstream.layout import EXPECT, OPERATION, RECORD, ROLLUP, TTL
from durable_streams.stores.jetstream.nats.bus import Bus, ConflictError, Message, Stored
from durable_streams.stores.jetstream.publish import MARKER_SECONDS
from durable_streams.stores.jetstream.records import decode_meta
from durable_streams.stores.subscriptions import Changed, Kept, RevisionError

__all__ = ["JetStreamSubscriptions"]

_LOOK_SECONDS = 1.0
_PAGE_BYTES = 4 << 20
_COMPRESSED = 16 << 10  # bytes from which on a value is compressed
_TRIES = 4
_RENEW = 1.5  # seconds after which the leader says again that it leads
_LEADS = 4.0  # seconds that it leads without having said so
_SILENCE = 6.0  # seconds without a word of the leader after which another gateway leads

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Subscription).decode


class JetStreamSubscriptions:
    """The SubscriptionStore of a bucket.

    Args:
        bus: The bucket.
    """

    shared = True

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._own = secrets.token_hex(8)
        self._begin()

    def _begin(self) -> None:
        self._key = f"$KV.{self._bus.layout.name}"
        self._seen = 0  # the sequence up to which changes are known
        self._hints: set[str] = set()
        self._hinted = asyncio.Event()
        self._listening = False
        self._owner_seq = 0
        self._owner_at = 0.0  # when the leader was last seen to say that it leads, on the monotonic clock
        self._led_at: float | None = None  # when this gateway said so

    # -- reading

    async def load(self) -> list[Kept]:
        """Return all subscriptions, and follow their changes from here on."""
        self._begin()
        await self._bus.listen(self._notices, self._notice)
        self._listening = True
        found: dict[str, Kept] = {}
        for stored in await self._since(1):
            name, kept = self._read(stored)
            if kept is None:
                found.pop(name, None)
            else:
                found[name] = kept
        return list(found.values())

    async def _since(self, seq: int) -> list[Stored]:
        found: list[Stored] = []
        while page := await self._bus.scan(f"{self._key}.sub.>", seq, _PAGE_BYTES):
            found += page
            self._seen = max(self._seen, page[-1].seq)
            seq = page[-1].seq + 1
        return found

    async def find(self, name: str) -> Kept | None:
        """Return the present subscription of an id, as the leader of the bucket has it."""
        stored = await self._bus.last(self._subject(name))
        return None if stored is None else self._read(stored)[1]

    @staticmethod
    def _read(stored: Stored) -> tuple[str, Kept | None]:
        if stored.removed:
            return stored.data.decode(), None
        data = stored.data if stored.data[:1] == b"{" else zlib.decompress(stored.data)
        subscription = _decode(data)
        return subscription.id, Kept(subscription, stored.seq)

    async def paths(self, after: str, limit: int) -> Sequence[str]:
        """Return paths of streams, in the order in which they were changed last."""
        seq = 1
        if after:
            seq = await self._after(after)
        found: list[Stored] = []
        while page := await self._bus.scan(self._bus.layout.every_meta, seq, _PAGE_BYTES, limit):
            seq = page[-1].seq + 1
            found = [one for one in page if not one.removed]
            if found:
                break
        return [decode_meta(one.data).path for one in found]

    async def _after(self, path: str) -> int:
        stored = await self._bus.last(self._bus.layout.meta(path))
        return 1 if stored is None else stored.seq + 1

    # -- writing

    async def save(self, after: Subscription, before: Kept | None) -> int:
        """Store a subscription with its links."""
        data = _encode(after)
        if len(data) > _COMPRESSED:
            data = zlib.compress(data, 1)
        if len(data) > self._bus.max_message:
            raise StoreFullError(
                f"the subscription has {len(after.links)} streams, more than one message of NATS holds: "
                "make several of it, each with a narrower pattern"
            )
        revision = await self._vacant(after.id) if before is None else before.revision
        return await self._publish(after.id, data, {EXPECT: str(revision), ROLLUP: "sub"})

    async def _vacant(self, name: str) -> int:
        stored = await self._bus.last(self._subject(name))
        if stored is None:
            return 0
        if not stored.removed:
            raise RevisionError
        return stored.seq

    async def remove(self, before: Kept) -> None:
        """Remove a subscription with its links."""
        marker = {OPERATION: "PURGE", ROLLUP: "sub", TTL: f"{MARKER_SECONDS}s"}
        name = before.subscription.id
        await self._publish(name, name.encode(), {EXPECT: str(before.revision), **marker})

    async def _publish(self, name: str, data: bytes, headers: dict[str, str]) -> int:
        try:
            revision = await self._put(self._subject(name), data, headers)
        except ConflictError:
            raise RevisionError from None
        self._bus.send(self._notices, f"{self._own} {name}".encode())
        return revision

    async def _put(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        """Store a value at the revision that the headers expect; a publish without an answer is looked for."""
        nonce = secrets.token_hex(8)
        message = Message(subject, data, {RECORD: nonce, **headers})
        for _ in range(_TRIES):
            try:
                return await self._bus.publish([message])
            except StoreUncertainError:
                stored = await self._bus.last(subject)
                if stored is not None and stored.record == nonce.encode():
                    return stored.seq
                # The same bytes again: at most one of the two can be stored.
            except ConflictError:
                stored = await self._bus.last(subject)
                if stored is not None and stored.record == nonce.encode():
                    return stored.seq
                raise
        raise StoreUncertainError("NATS does not answer: the change may have been stored")

    def _subject(self, name: str) -> str:
        return f"{self._key}.sub.{sha256(name.encode()).hexdigest()[:32]}"

    # -- secrets

    async def secret(self, name: str, made: bytes | None) -> bytes | None:
        """Return a secret of the server."""
        subject = f"{self._key}.secret.{name}"
        stored = await self._bus.last(subject)
        if stored is None and made is not None:
            with contextlib.suppress(ConflictError):  # another gateway was faster
                await self._put(subject, made, {EXPECT: "0", ROLLUP: "sub"})
            stored = await self._bus.last(subject)
        return None if stored is None else stored.data

    async def replace_secret(self, name: str, before: bytes, after: bytes) -> bool:
        """Replace a secret."""
        subject = f"{self._key}.secret.{name}"
        stored = await self._bus.last(subject)
        if stored is None or stored.data != before:
            return False
        try:
            await self._put(subject, after, {EXPECT: str(stored.seq), ROLLUP: "sub"})
        except ConflictError:
            return False
        return True

    # -- other gateways

    @property
    def _notices(self) -> str:
        return f"{self._bus.layout.name}.subscriptions"

    def _notice(self, said: bytes) -> None:
        sender, _, name = said.decode(errors="replace").partition(" ")
        if sender != self._own:
            self._hints.add(name)
            self._hinted.set()

    async def changed(self) -> list[Changed]:
        """Wait for a notice, or a second, and return what changed."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._hinted.wait(), _LOOK_SECONDS)
        if self._hinted.is_set():
            self._hinted.clear()
            hints, self._hints = self._hints, set()
            # A server that lags behind the leader may not have the change yet: the leader is asked.
            return [Changed(name, await self.find(name)) for name in hints]
        return [Changed(*self._read(stored)) for stored in await self._since(self._seen + 1)]

    async def leads(self) -> bool:
        """Whether this gateway leads: it said so lately, or the one before is silent."""
        now = time.monotonic()
        if self._led_at is not None and now - self._led_at < _RENEW:
            return True
        with contextlib.suppress(StoreError, ConflictError):
            await self._lead(now)
        return self._led_at is not None and time.monotonic() - self._led_at < _LEADS

    async def _lead(self, now: float) -> None:
        subject = f"{self._key}.leader"
        stored = await self._bus.last(subject)
        seq = 0 if stored is None else stored.seq
        mine = stored is not None and stored.data == self._own.encode()
        if not mine:
            self._led_at = None
            if stored is not None and seq != self._owner_seq:
                self._owner_seq, self._owner_at = seq, now
            if stored is not None and now - self._owner_at < _SILENCE:
                return
        headers = {EXPECT: str(seq), ROLLUP: "sub"}
        self._owner_seq = await self._bus.publish([Message(subject, self._own.encode(), headers)])
        self._led_at = now
