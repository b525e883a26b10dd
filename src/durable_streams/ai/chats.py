"""Which run of a chat is the present one, for all processes: three small kinds of streams.

    <prefix>/<chat>                a record for each run; the run's number is the epoch under which it was appended
    <prefix>/<chat>/<run>          the run's messages, closed at its end
    <prefix>/<chat>/<run>/alive    lives as long as somebody generates the run: its lifetime is the lease

Invariants: of two starts at once the store takes one, for both use the same epoch and the sequence 0; a run ends once,
with the append that closes its stream; a run whose lease has ended and whose stream is open has lost its process.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from durable_streams.ai.places import JSON, PATIENT, StreamsPlace, handle
from durable_streams.client.aio import AsyncDurableStream
from durable_streams.client.aio_producer import IdempotentProducer
from durable_streams.errors import (
    DurableStreamError,
    StaleEpochError,
    StreamClosedError,
    StreamNotFoundError,
)

__all__ = ["Chats", "Run"]

_PRODUCER = "runs"
_LONGEST_ID = 256  # characters
_LONGEST_NAME = 512  # characters of a path, which has 1,024
_ALIVE_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of a chat.

    Attributes:
        chat_id: The chat.
        number: Which run of the chat it is, from 1 on.
        stream: The path of the stream with its messages.
    """

    chat_id: str
    number: int
    stream: str

    @property
    def name(self) -> str:
        """The run's name within its chat."""
        return self.stream.rpartition("/")[2]


class Chats:
    """The runs of all chats.

    Args:
        place: Where the streams are.
        prefix: The path under which they are.
        ttl: Seconds that the streams of a chat live after their last use.
        lease: Seconds after which a run whose process is silent counts as interrupted.
    """

    def __init__(self, place: StreamsPlace, prefix: str, *, ttl: int, lease: int) -> None:
        self.place = place
        self._prefix = prefix.strip("/")
        self._ttl = ttl
        self.lease = lease

    def _path(self, chat_id: str) -> str:
        if not isinstance(chat_id, str) or not 0 < len(chat_id) <= _LONGEST_ID:
            raise ValueError(f"A chat's id is text of 1 to {_LONGEST_ID} characters, not {chat_id!r:.80}.")
        # One segment, which is neither empty nor a dot.
        name = quote(chat_id, safe="").replace(".", "%2E")
        if len(name) > _LONGEST_NAME:
            name = f"%-{hashlib.sha256(chat_id.encode()).hexdigest()}"  # no quoted text begins like this
        return f"{self._prefix}/{name}"

    def named(self, chat_id: str, name: str) -> Run:
        """Return a run by its name; it need not exist."""
        number, _, _ = name.partition("-")
        return Run(chat_id, int(number), f"{self._path(chat_id)}/{name}")

    async def latest(self, chat_id: str) -> Run | None:
        """Return the last run that began in a chat; None for a chat without one."""
        try:
            async with handle(self.place, self._path(chat_id)).stream(live=False) as read:
                records = await read.read_json()
        except StreamNotFoundError:
            return None
        record: Mapping[str, Any] | None = records[-1] if records else None
        return None if record is None else self.named(chat_id, record["run"])

    async def state(self, run: Run) -> Literal["active", "ended", "interrupted"]:
        """Return whether a run goes on; ``interrupted``: nobody generates it, and it has no end."""
        try:
            if (await handle(self.place, run.stream).head()).stream_closed:
                return "ended"
        except StreamNotFoundError:
            return "ended"
        try:
            await self._alive(run).head()
        except StreamNotFoundError:
            return "interrupted"
        return "active"

    async def begin(self, chat_id: str, after: Run | None) -> Run | None:
        """Begin the run that follows another one; None where somebody else has begun it."""
        number = 1 if after is None else after.number + 1
        run = self.named(chat_id, f"{number}-{secrets.token_hex(6)}")
        try:
            await handle(self.place, run.stream).create_stream(ttl_seconds=self._ttl)
            await self._alive(run).create_stream(ttl_seconds=self.lease)
            if await self._claim(run):
                return run
        except BaseException:
            with contextlib.suppress(DurableStreamError):
                await self._forget(run)
            raise
        await self._forget(run)
        return None

    async def _claim(self, run: Run) -> bool:
        """Make a run the last one of its chat; false where another one has its number."""
        path = self._path(run.chat_id)
        await handle(self.place, path).create_stream(ttl_seconds=self._ttl)
        try:
            async with self._producer(path, _PRODUCER, run.number) as producer:
                claimed = await producer.submit({"run": run.name})
        except StaleEpochError:
            return False
        # A duplicate may be our own, whose first answer was lost.
        return not claimed.duplicate or await self.latest(run.chat_id) == run

    async def _forget(self, run: Run) -> None:
        for stream in (handle(self.place, run.stream), self._alive(run)):
            with contextlib.suppress(StreamNotFoundError):
                await stream.delete()

    async def keep_alive(self, run: Run) -> None:
        """Restart a run's lease."""
        alive = self._alive(run)
        try:
            await alive.append(b".")
        except StreamNotFoundError:
            await alive.create_stream(ttl_seconds=self.lease)

    async def is_open(self, run: Run) -> bool:
        """Whether nobody has ended a run."""
        try:
            return not (await handle(self.place, run.stream).head()).stream_closed
        except StreamNotFoundError:
            return False

    async def end(self, run: Run, last: Any) -> bool:
        """End a run, wherever it is generated; false if it had ended already.

        Args:
            run: The run.
            last: Its last message, None for none.
        """
        try:
            if not await self.is_open(run):
                return False
            # A name of its own: its request may be repeated, and is stored once.
            async with self._producer(run.stream, f"end-{secrets.token_hex(6)}") as producer:
                await producer.close_stream(last)
        except (StreamClosedError, StreamNotFoundError):
            return False
        finally:
            await self.release(run)
        return True

    async def release(self, run: Run) -> None:
        """End a run's lease."""
        with contextlib.suppress(DurableStreamError):  # it ends by itself
            await self._alive(run).delete()

    def _producer(self, path: str, name: str, epoch: int = 0) -> IdempotentProducer:
        url, client = self.place.url(path), self.place.client
        return IdempotentProducer(url, name, epoch=epoch, linger_ms=0, content_type=JSON, client=client)

    def _alive(self, run: Run) -> AsyncDurableStream:
        url, client = self.place.url(f"{run.stream}/alive"), self.place.client
        # A sign of life more than was meant does no harm.
        return AsyncDurableStream(
            url, content_type=_ALIVE_TYPE, client=client, retry=PATIENT, retry_appends=True
        )
